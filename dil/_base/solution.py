"""The answer of a solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dil._base.typing import Array, Tree


class Solution(NamedTuple):
    """The answer of a solver, linear or not, with its status.

    Attributes
    ----------
    value : tree
        The solution, of the structure of the unknown.
    status : int array, shape batch, or None
        Codes of `dil.Status`, one per problem; None if the solver reports none.
    iterations : int array, shape batch, or None
        Steps taken, one count per problem.
    residual : float array, shape batch, or None
        The norm of the gradient or residual, relative to that at the start.
    extra : mapping or None
        Other results of the solver, by name.
    """

    value: Tree
    status: Array | None = None
    iterations: Array | None = None
    residual: Array | None = None
    extra: Mapping[str, Any] | None = None
