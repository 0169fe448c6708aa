"""Several solvers in turn: for instance a global one, then an accurate one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Tree


@dataclass(frozen=True, init=False)
class Sequence:
    """Apply several solvers in turn. Each starts from the solution of the previous solver.

    Parameters
    ----------
    *solvers : callable
        Each `solver(fun, init, *args, **kwargs)`.

    Notes
    -----
    Status and residual are those of the last solver. The iterations are the sum over the solvers that count them.

    Raises
    ------
    OptionError
        If there is no solver, or one is not callable.

    Examples
    --------
    >>> import numpy as np, dil
    >>> search = dil.solvers.Sequence(dil.solvers.RandomShooting(iterations=20), dil.solvers.Newton())
    >>> sol = search(lambda u: np.sum((u**2 - 1.0) ** 2 + 0.1 * u), np.zeros(1))
    >>> np.round(sol.value, 6), dil.Status(int(sol.status)).name
    (array([-1.012273]), 'CONVERGED')
    """

    solvers: tuple[Callable[..., Any], ...]

    def __init__(self, *solvers: Callable[..., Any]) -> None:
        if not solvers or not all(callable(each) and not isinstance(each, type) for each in solvers):
            message = f"Sequence{solvers!r}; expected one solver or more, each a callable such as dil.solvers.Newton()"
            raise OptionError(message)
        object.__setattr__(self, "solvers", solvers)

    def __call__(self, fun: Callable[..., Any], init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Solve from init; the value has the structure of init."""
        last, counts = Solution(init), []
        for solver in self.solvers:
            found = solver(fun, last.value, *args, **kwargs)
            last = found if isinstance(found, Solution) else Solution(found)
            counts += [] if last.iterations is None else [last.iterations]
        return last._replace(iterations=sum(counts[1:], counts[0]) if counts else None)
