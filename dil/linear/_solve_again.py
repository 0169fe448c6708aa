"""A second solver for some problems of a batch."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.operator import Operator
from dil._base.typing import Array, Loop
from dil.linear._solver import LinearSolver


class SoFar(NamedTuple):
    """A solution that may change. x: (*batch, n); all others: batch."""

    x: Array
    status: Array
    steps: Array
    residual: Array
    products: Array
    indefinite: Array


def solve_again(solver: LinearSolver, A: Operator, b: Array, selected: Array, s: SoFar, loop: Loop) -> SoFar:
    """Return the solution with the selected problems solved by another solver; selected: batch.

    Steps and products are added up. Each problem that is not selected keeps what it has.
    """
    xp, problems = array_namespace(b), selected[..., None]
    # the other problems get a right-hand side of zero, which costs no iteration
    new = solver(A, xp.where(problems, b, full(b, 0.0)), loop=loop)
    assert new.iterations is not None
    assert new.extra is not None
    return SoFar(
        xp.where(problems, new.value, s.x),
        xp.where(selected, new.status, s.status),
        xp.where(selected, s.steps + new.iterations, s.steps),
        xp.where(selected, new.residual, s.residual),
        xp.where(selected, s.products + new.extra["products"], s.products),
        s.indefinite | (selected & new.extra.get("indefinite", selected & ~selected)),
    )
