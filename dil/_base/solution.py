"""What a solver returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dil._base.typing import Array, Tree


class Solution(NamedTuple):
    """The answer of a solver, linear or not, with its own word on how far it can be trusted.

    Attributes
    ----------
    value : tree
        The solution, of the structure of the unknown.
    status : int array, shape batch, or None
        Codes of `dil.Status`, one per problem; None where a solver says nothing.
    iterations : int array, shape batch, or None
        Steps taken, one count per problem.
    residual : float array, shape batch, or None
        What the solver drove to zero: the gradient's or the residual's norm, relative to its start.
    extra : mapping or None
        Whatever else the solver wishes to say, by name.
    """

    value: Tree
    status: Array | None = None
    iterations: Array | None = None
    residual: Array | None = None
    extra: Mapping[str, Any] | None = None
