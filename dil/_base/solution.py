"""The result of a solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dil._base.typing import Array, Tree


class Solution(NamedTuple):
    """The result of a linear or nonlinear solver, with a status for each problem.

    Attributes
    ----------
    value : tree
        The solution, with the structure of the unknown.
    status : int array, shape batch, or None
        Codes of `dil.Status`, one per problem; None if the solver reports no status.
    iterations : int array, shape batch, or None
        The number of steps of each problem.
    residual : float array, shape batch, or None
        The norm of the gradient or of the residual, relative to its norm at the start.
    extra : mapping or None
        Further results of the solver, by name.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def solver(score, init, t):
    ...     return dil.Solution(t, extra={"method": "closed form"})
    >>> dil.argmin(lambda u, t: np.sum((u - t) ** 2), solver)(np.asarray([1.0, 2.0]))
    array([1., 2.])
    """

    value: Tree
    status: Array | None = None
    iterations: Array | None = None
    residual: Array | None = None
    extra: Mapping[str, Any] | None = None
