"""The look whether step(u) - u is as small as its own rounding, by evaluations of the step alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, norm
from dil._base.typing import Array
from dil._frameworks.random_vectors import standard_normal
from dil._problem.terms import DRAWS, TURNS, rounding
from dil.solvers._start import Start
from dil.solvers._stopping import StoppingTest

EVERY = 8
"""A residual that has hardly fallen in so many steps may be rounding."""
STALLED = 0.99
"""The share of the residual that is left where it has hardly fallen. A slow contraction is no rounding."""


class Rounding(NamedTuple):
    """What a look found; (*batch, 1)."""

    rounded: Array
    """Whether each entry of step(u) - u, or each leaf, is within the rounding of its terms."""
    level: Array
    """The next look is due below this norm of step(u) - u: infinity before anybody has looked.

    It is the longest that may be rounding, and at most half of the norm that the last look met.
    """


class Drawn(NamedTuple):
    """A look under way."""

    count: Any
    """The draws so far."""
    terms: Array
    """The size of the terms of step(u) - u, as the draws show it, (*batch, n)."""
    level: Array
    """The norm of the rounding of these terms, (*batch, 1)."""
    rounded: Array


def rounding_of_step(started: Start, u: Array, f: Array, asked: Array, level: Array, test: StoppingTest) -> Rounding:
    """Return whether f = step(u) - u, (*batch, n), is within its rounding, for the problems in `asked`, (*batch, 1).

    The terms of an entry of f are u, and the change of the entry where the unknown changes by a random multiple of
    itself. So no unit matters, and an entry of u that is zero within rounding is like any other. The arguments do not
    count: they stay the same from step to step, however sensitive f is to them. A draw shows few terms of some entries
    by chance. Thus draws are added until each entry is within its rounding, or the norm of f tells that it is not. A
    problem that is near, but not there, is near again at half of f. `test` says whether leaves are compared instead of
    entries.
    """
    loops, xp = started.problem.backend.loops, array_namespace(u)

    def look(now: Rounding) -> Rounding:
        size = norm(f)

        def draw(s: Drawn) -> Drawn:
            terms = xp.maximum(s.terms, xp.abs(change_of_step(started, u, f, s.count)))
            rounded = asked & test.is_within(f, rounding(u) * terms)
            return Drawn(s.count + 1, terms, rounding(u) * norm(terms), rounded)

        def unknown(s: Drawn) -> Array:
            waiting = xp.any(asked & ~s.rounded & (size <= s.level))
            return (s.count < DRAWS) & ((s.count == 0) | waiting)  # type: ignore[no-any-return]

        last = loops.while_loop(unknown, draw, Drawn(0, xp.abs(u), now.level, now.rounded))
        most = xp.where(last.level < size, last.level, 0.5 * size)
        return Rounding(last.rounded, xp.where(asked & ~last.rounded, most, now.level))

    return loops.run_if(xp.any(asked), look, Rounding(asked & ~asked, level))  # type: ignore[no-any-return]


def change_of_step(started: Start, u: Array, f: Array, count: Any) -> Array:
    """Return the change of f = step(u) - u for a small change of u, divided by its share of u.

    `count` numbers the draws. Zero where the change is not finite.
    """
    problem, _, arrays = started
    backend, xp, share = problem.backend, array_namespace(u), eps(array_namespace(u), u.dtype) ** 0.5
    phases = TURNS * standard_normal(backend, full(u, 0.0, shape=u.shape[-1:]), 1, 0)[0, ...]
    near = u * (1 + share * xp.cos((count + 1) * phases))
    change = (backend.constant(problem.image(near, *arrays)) - near - f) / share
    return xp.where(xp.isfinite(change), change, full(change, 0.0))  # type: ignore[no-any-return]
