"""What `Auto` chose for the problems of a batch: numbers that it has at hand anyway."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.scalars import Scalar
from dil._base.solution import Solution
from dil._base.typing import Array
from dil._frameworks.registry import owner
from dil.linear._choice_in_words import ATTEMPT_FIELDS, MOST_ATTEMPTS, Reason, Tried, sentence


class Course(NamedTuple):
    """The course of CG or BiCGSTAB that look for the cheapest way; scalars of the problems, see `Scalar`."""

    way: Scalar
    """A `Way`."""
    probes: Any
    diagonal: Scalar
    """The steps with the diagonal, or with the sizes of rows and columns."""
    orthogonal: Scalar
    """The steps with orthogonal residuals, or of plain BiCGSTAB after the first."""
    by_diagonal: Scalar
    """Whether the method with the diagonal was chosen."""

    @staticmethod
    def plain(zero: Scalar, false: Scalar) -> Course:
        """Return the course of problems that go on as they began, from a count of zero and a mask."""
        return Course(zero, zero, zero, zero, false)


class First(NamedTuple):
    """The first steps of plain CG or BiCGSTAB."""

    steps: int
    likely: int
    rr: Scalar
    """<r, r> after them."""
    bb: Scalar


class Taken(NamedTuple):
    """One solver, and the solutions after it."""

    solver: int
    problems: Array | bool
    """The problems that it solved for."""
    status: Array
    steps: Array
    """All steps so far."""


class Choice(NamedTuple):
    """What `Auto` did, as `Solution.extra["choice"]`; `str` says it in a sentence.

    It holds arrays that the solvers have made, and numbers, so it costs no operation.
    """

    unknowns: int
    few: int
    reason: int
    course: Course | None
    first: First | None
    tried: tuple[Taken, ...]
    colours: Array | int = 0
    """The groups of columns of a sparse matrix."""
    fill: Array | float = 0.0
    """The entries of its factors beside those of its pattern."""

    @staticmethod
    def of(
        solver: Tried, solution: Solution, reason: Reason, few: int, raced: tuple[Course, First] | None = None
    ) -> Choice:
        """Return the choice after the first solver."""
        status, steps = solution.status, solution.iterations
        assert status is not None
        assert steps is not None
        course, first = (None, None) if raced is None else raced
        tried = (Taken(int(solver), True, status, steps),)
        return Choice(solution.value.shape[-1], few, int(reason), course, first, tried)

    def then(self, solver: Tried, problems: Array, status: Array, steps: Array) -> Choice:
        """Return the choice after a further solver, for some of the problems."""
        return self._replace(tried=(*self.tried, Taken(int(solver), problems, status, steps)))

    def numbers(self) -> Array:
        """Return the numbers that the sentence is made of, (*batch, fields) int32."""
        like = self.tried[0].status
        xp = array_namespace(like)
        zero = full(like, 0, dtype=xp.int32)

        def column(x: Scalar) -> Array:
            if isinstance(x, bool | int):
                return zero + int(x)
            x = x[..., 0] if x.ndim > like.ndim else x
            return zero + xp.astype(x, xp.int32)  # type: ignore[no-any-return]

        row: list[Any] = [self.unknowns, self.few, self.reason]
        if self.course is None or self.first is None:
            row += [0] * (len(Course._fields) + len(First._fields) - 1)
        else:
            way, *rest = self.course
            row += [way, self.first.steps, _tenths(self.first), self.first.likely, *rest]
        filled = self.fill
        row += [self.colours, 0 if isinstance(filled, float) else xp.round(10 * filled)]
        before = zero
        for taken in self.tried:
            solver = taken.solver if taken.problems is True else xp.where(taken.problems, zero + taken.solver, zero)
            row += [solver, taken.status, taken.steps - before]
            before = taken.steps
        row += [0] * (ATTEMPT_FIELDS * (MOST_ATTEMPTS - len(self.tried)))
        return xp.stack([column(x) for x in row], axis=-1)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        numbers = self.numbers()
        backend = owner(numbers)
        assert backend is not None
        return sentence(backend.to_numpy(numbers))


def _tenths(first: First) -> Scalar:
    """Return ten times the digits that the first steps won: zero where that is none, or not known."""
    if isinstance(first.rr, float):
        known = first.bb > 0 and 0 < first.rr < first.bb
        return round(-5 * math.log10(first.rr / first.bb)) if known else 0
    xp = array_namespace(first.rr)
    known = (first.bb > 0) & (first.rr > 0) & (first.rr < first.bb)
    ratio = xp.where(known, first.rr / xp.where(known, first.bb, 1.0), 1.0)
    return xp.round(-5 * xp.log10(ratio))
