"""F and its Jacobian at an iterate, with the matrix where there are few unknowns."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from dil._base.arrays import size
from dil._base.operator import Operator, matrix_operator
from dil._base.typing import Array
from dil._frameworks.loops import runs_later
from dil._problem.jacobian import transposed_operator
from dil._problem.last_point import LastPoint
from dil.linear._direct import dense
from dil.solvers._start import Start

MOST_UNKNOWNS = 8
"""The most unknowns for which the matrix is made."""


class Linearisation:
    """F at a point u, and J where it is asked for, from one evaluation."""

    def __init__(self, started: Start, u: Array, *, recorded: bool) -> None:
        # the problem holds this linearisation, which must not hold the problem: a cycle lives until Python looks for it
        problem, arrays = replace(started.problem, last=LastPoint()), started.arrays
        self._problem, self._u = problem, u
        self.value: Array | None = None
        """The score, shape batch, where it was evaluated on the way, outside of a program."""

        def F(w: Array) -> tuple[Array]:
            if not problem.symmetric or problem.score.derivatives is not None or recorded:
                return (problem.residual(w, *arrays),)
            value, gradient = problem.value_and_gradient(w, *arrays)
            self.value = problem.backend.constant(value)
            return (gradient,)

        (self.F,), pull = problem.backend.vjp(F, u)
        self._transposed: Operator | None = transposed_operator(problem, pull, u, arrays)

    @cached_property
    def J(self) -> Operator:
        """J at u. The rows of a matrix come from pullbacks, and its products need no graph, which is dropped."""
        transposed, self._transposed = self._transposed, None
        assert transposed is not None
        if self._u.shape[-1] > MOST_UNKNOWNS:
            return transposed.T
        matrix = dense(transposed, self._u, self._problem.backend).mT
        return matrix_operator(matrix, symmetric=self._problem.symmetric)


def records(started: Start, u: Array) -> bool:
    """Return whether operations on u are recorded for a program, whose loops can hold no linearisation."""
    return size(u.shape) == 0 or runs_later(started.problem.backend.loops, u)


def linearisation(started: Start, u: Array) -> Linearisation:
    """Return the linearisation at u: the last one, if it was made at this very point."""
    last = started.problem.last
    found: Linearisation | None = last.get(u, started.arrays)
    return _made(started, u, recorded=records(started, u)) if found is None else found


def linearised(started: Start, u: Array) -> tuple[Array, Operator]:
    """Return F, (*batch, n), and J at u."""
    at = linearisation(started, u)
    return at.F, at.J


def remember(started: Start, u: Array) -> None:
    """Linearise at u, for all that ask next, unless operations are recorded for a program."""
    if not records(started, u):
        _made(started, u, recorded=False)


def remember_trial(started: Start, u: Array) -> None:
    """Linearise at a trial point, which nearly always is the next iterate.

    A score may have a value there, or NaN, and a gradient that raises. The value decides whether the point is taken.
    The error is raised then.
    """
    problem = started.problem
    if not problem.symmetric:
        remember(started, u)
    elif problem.score.derivatives is None:  # else the value and the gradient are separate functions
        try:
            remember(started, u)
        except Exception:
            problem.last.forget()


def _made(started: Start, u: Array, *, recorded: bool) -> Linearisation:
    last = started.problem.last
    last.forget()  # the old graph, before there is a new one
    found = Linearisation(started, u, recorded=recorded)
    if not recorded:
        last.put(u, started.arrays, found)
    return found


def residual_at(started: Start, u: Array) -> Array:
    """Return F at u, (*batch, n): that of the last linearisation, if it was made at this very point."""
    problem, _, arrays = started
    known: Linearisation | None = problem.last.get(u, arrays)
    return problem.residual(u, *arrays) if known is None else known.F


def score_at(started: Start, u: Array) -> Array:
    """Return the score at u, shape batch: that of the last linearisation, if it was made at this very point."""
    problem, _, arrays = started
    known: Linearisation | None = problem.last.get(u, arrays)
    return problem.value(u, *arrays) if known is None or known.value is None else known.value
