"""Anderson acceleration of a fixed-point iteration, each problem of a batch by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import (
    array_namespace,
    eps,
    factor_dtype,
    full,
    logical_not,
    nonzero_or_one,
    norm,
    select,
)
from dil._base.errors import OptionError
from dil._base.scalars import Scalar, as_column
from dil._base.solution import Solution
from dil._base.typing import Array, Norm, Tree
from dil._frameworks.loops import Loops
from dil._problem.anderson_memory import Memory, as_dtype, correction, forgotten, nothing, remembered
from dil.solvers._finish import finish
from dil.solvers._leaving import iterate_problems
from dil.solvers._progress import check_watched
from dil.solvers._rounding import EVERY, STALLED, rounding_of_step
from dil.solvers._start import Start, check_positive, start_equation, tolerance, zeros_like_count
from dil.solvers._stopping import check_norm, stopping_test

EXPLODED = 10.0
"""A residual this many times the least one so far sends its problem back to a plain step."""
FAR = 100.0
"""A mixed step this many times as long as a plain one must halve the residual."""

MANY = 2**10
"""The fewest unknowns of which a part is looked at first, whether the step is short."""
PART = 8
"""Every so many-th unknown is in this part."""


@dataclass(frozen=True)
class Anderson:
    """Find u = step(u). Each iterate combines the last steps so that the norm of the combined residual is smallest.

    Parameters
    ----------
    memory : int
        How many differences of earlier iterates are mixed.
    mixing : float
        The share of the mixed residual that is added to the mixed iterate, in (0, 1].
    regularisation : float
        The relative shift of the normal matrix of the least squares. This number times the mean diagonal entry is
        added to the diagonal. It is never below the rounding of the matrix.
    rtol : float, optional
        A problem is solved when each entry of |step(u) - u| is at most rtol |u|, or at most 4 eps |u - start|. The
        default rtol is eps ** 0.75: 1.8e-12 in float64, 6.4e-6 in float32. A problem is also solved when its residual
        is hardly falling, or the run is at its end, and step(u) - u is as small as the rounding errors of its terms.
    max_iter : int
        The largest number of evaluations of the step after the first.
    history : bool
        Whether `extra["history"]` holds the residual after every step, (max_iter, *batch); NaN for steps not taken.
    progress : bool
        Whether to draw a progress bar if the run takes more than a second. Needs rich.
    norm : {"entries", "leaves"}
        What rtol compares: each entry of step(u) - u with that entry of u, or the Euclidean norm of each leaf of
        step(u) - u with the norm of that leaf of u. Every entry, or every leaf, of a problem must pass.
        With "leaves", units within a leaf matter: a small entry of it may be far off, and its gradient with it.

    Notes
    -----
    For an affine step the method is equivalent to GMRES (Walker and Ni 2011, Theorem 2.2). A problem returns to its
    last iterate, clears its memory and takes the plain step u + mixing (step(u) - u) in two cases. (a) The residual is
    not finite, or is more than ten times its least value so far. (b) The step is more than a hundred times as long as
    the plain one and does not halve the residual.

    Source: Walker and Ni 2011, Algorithm AA. The least squares of eq. 2.2 are solved by their normal equations.

    Raises
    ------
    OptionError
        If an option is out of range, or there is no start.

    Examples
    --------
    >>> import numpy as np, dil
    >>> sol = dil.solvers.Anderson()(lambda u, b: 0.99 * np.cos(u) + b, np.zeros(2), np.asarray([0.0, 1.0]))
    >>> np.max(np.abs(0.99 * np.cos(sol.value) + np.asarray([0.0, 1.0]) - sol.value)) < 1e-11
    np.True_
    """

    memory: int = 5
    mixing: float = 1.0
    regularisation: float = 1e-10
    rtol: float | None = None
    max_iter: int = 1000
    history: bool = False
    progress: bool = False
    norm: Norm = "entries"

    _takes_batch = True
    """Whether it solves a batch by calls of the score alone."""
    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""
    _leaves_rtol = True
    """Whether the solver stops as soon as the residual is about rtol |u|."""

    def __post_init__(self) -> None:
        optional = {"rtol": self.rtol, "regularisation": self.regularisation or None}
        check_positive(optional=optional, max_iter=self.max_iter, memory=self.memory, mixing=self.mixing)
        if self.mixing > 1:
            message = f"mixing={self.mixing!r}; expected a number in (0, 1], the part of the residual that is added"
            raise OptionError(message)
        check_norm(self.norm)
        check_watched(self)

    def __call__(self, fun: Callable[..., Tree], init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Iterate fun from init; the value has the structure of init."""
        started = start_equation(self, fun, init, args, kwargs, "step")
        problem, start, _ = started
        backend, xp, rtol = problem.backend, array_namespace(start), tolerance(start, self.rtol, 0.75)
        test = stopping_test(self.norm, problem.space)
        loops, dtype, slack = backend.loops, factor_dtype(start), 2 * (rtol + 4 * eps(xp, start.dtype))

        g, first_move = self._evaluated(started, start)
        unit = nonzero_or_one(norm(as_dtype(first_move, dtype)))
        # squares of tiny or huge residuals would under- or overflow
        scaled = all_hold((unit > eps(xp, dtype)) & (unit < 1 / eps(xp, dtype)), loops) is not True
        single = math.prod(start.shape[:-1]) == 1 and not (self.history or self.progress)
        single = single and isinstance(loops.number(xp.sum(unit)), float)

        def holds(mask: Array) -> Scalar:
            return bool(mask) if single else mask

        def column(x: Scalar) -> Array:
            found: Array = xp.reshape(as_column(x, start), (*start.shape[:-1], 1)) if single else x
            return found

        def in_units(x: Array, unit: Array) -> Array:
            return as_dtype(x, dtype) / unit if scaled else as_dtype(x, dtype)

        def length(x: Array, unit: Array) -> Scalar:
            if single:
                return loops.number(xp.linalg.vector_norm(in_units(x, unit)))
            norms: Array = xp.linalg.vector_norm(in_units(x, unit), axis=-1, keepdims=True)
            return norms

        def is_short(size: Scalar, size_u: Scalar, way: Array, unit: Array) -> Scalar:
            """Return what `StoppingTest.is_short` of a whole vector does, from lengths that are known and finite."""
            rounding = 4 * eps(xp, start.dtype) * length(way, unit)
            return (size <= rtol * size_u) | (size <= rounding) & (rounding < math.inf)

        def step(started: Start, s: Iterate) -> Iterate:
            u = s.g - as_dtype(correction(s.memory, backend.dense.cholesky_solve), start.dtype)
            if all_hold(s.going, loops) is False:  # a problem that has ended must stay where it is
                u = xp.where(s.going, u, s.u)
            g, moved = self._evaluated(started, u)
            size, size_u = length(moved, s.unit), length(u, s.unit)
            # no entry of a step can be short unless its length is
            close = size <= slack * size_u + s.reach
            trial = Trial(u, g, in_units(moved, s.unit), size, length(u - s.u, s.unit), close)

            def is_solution(close: Scalar) -> Scalar:
                if test.is_whole and all_hold(size_u < math.inf, loops) is True:
                    return close & is_short(size, size_u, u - started.u, s.unit)
                if (
                    test.leaves is None and u.shape[-1] >= MANY
                ):  # a part of the entries mostly says no at a small part of the cost
                    close = close & holds(
                        test.is_short(moved[..., ::PART], u[..., ::PART], started.u[..., ::PART], rtol)
                    )
                    if none_holds(close, loops):
                        return close
                return close & holds(test.is_short(moved, u, started.u, rtol))

            def is_rounded(t: Trial, asked: Scalar) -> tuple[Scalar, Scalar]:
                f, level = (x * s.unit if scaled else x for x in (t.f, column(s.level)))
                f, level = (as_dtype(x, start.dtype) for x in (f, level))
                found = rounding_of_step(started, t.u, f, column(asked), level, test)
                level = as_dtype(found.level, dtype)
                level = level / s.unit if scaled else level
                return holds(found.rounded), loops.number(xp.sum(level)) if single else level

            return after(s, trial, is_solution, is_rounded, self.max_iter, loops)

        f, size, reach = in_units(first_move, unit), length(first_move, unit), slack * length(start, unit)
        finite = (size < math.inf) & holds(unit < math.inf)
        solved = finite & holds(test.is_short(first_move, start, start, rtol))
        g, f = (select(finite, x, full(x, 0.0)) for x in (g, f))  # what is not finite must not stay
        no, none = solved & logical_not(solved), 0 if isinstance(solved, bool) else zeros_like_count(start)
        going, memory = finite & logical_not(solved), nothing(f, self.memory, self.regularisation)
        level = select(no, size, math.inf if single else full(size, math.inf))
        broken = logical_not(finite)
        first = Iterate(start, g, f, memory, size, size, size, level, no, none, 0, going, solved, broken, reach, unit)

        def residual(s: Iterate) -> Array:
            size = column(s.size)
            relative: Array = as_dtype(size if scaled else size / unit, start.dtype)
            return relative

        last, extra = iterate_problems(self, started, step, first, max_iter=self.max_iter, residual=residual)
        steps, solved, broken = (column(x) for x in (last.steps, last.solved, last.broken))
        return finish(
            problem.space,
            last.u,
            steps,
            residual(last),
            max_iter=self.max_iter,
            solved=solved,
            broken=broken,
            extra=extra,
        )

    def _evaluated(self, started: Start, u: Array) -> tuple[Array, Array]:
        """Return u + mixing (step(u) - u), and step(u) - u."""
        problem, _, arrays = started
        image: Array = problem.backend.constant(problem.image(u, *arrays))
        return (image if self.mixing == 1 else u + self.mixing * (image - u)), image - u


class Iterate(NamedTuple):
    """One step; u, g and f: (*batch, n), the rest but the memory: (*batch, 1), or Python numbers."""

    u: Array
    g: Array
    """u + mixing (step(u) - u)."""
    f: Array
    """step(u) - u in the units of the lengths that follow: those of the first one if that is tiny or huge."""
    memory: Memory
    size: Scalar
    """The norm of f."""
    least: Scalar
    """The least norm so far."""
    mark: Scalar
    """The least norm when a look was last due."""
    level: Scalar
    """The norm of f below which the next look at its rounding is due; infinity before anybody has looked."""
    mixed: Scalar
    """Whether the next step mixes. A plain step is always kept."""
    steps: Scalar
    count: Any
    """The steps of the problems that are going."""
    going: Scalar
    solved: Scalar
    broken: Scalar
    reach: Scalar
    """How long f may be at a solution beside what ||u|| allows."""
    unit: Array
    """The norm of the first step(u) - u, (*batch, 1)."""


class Trial(NamedTuple):
    """A new iterate; u, g and f as those of `Iterate`."""

    u: Array
    g: Array
    f: Array
    size: Scalar
    """The norm of f."""
    way: Scalar
    """The length of the step that led here."""
    close: Scalar
    """Whether each entry of f may be short."""


def after(
    s: Iterate,
    t: Trial,
    is_solution: Callable[[Scalar], Scalar],
    is_rounded: Callable[[Trial, Scalar], tuple[Scalar, Scalar]],
    max_iter: int,
    loops: Loops,
) -> Iterate:
    """Return the iterate after a trial: the trial itself, or the old one, where the trial is worse.

    `is_solution` returns the mask of the problems in a mask whose trial is a solution. `is_rounded` returns that of
    the problems in a mask whose f is within rounding, and the `level` of all.
    """
    due, last = (s.count + 1) % EVERY == 0, s.count + 1 >= max_iter
    near = t.size <= EXPLODED * s.least
    usual = (near & (t.way <= FAR * s.size) & (t.way > 0)) | logical_not(s.going)
    if (due | last) is False and all_hold(usual, loops) is True:  # the host knows that nothing is refused or looked at
        return accepted(s, t, s.going, ended(s, t, is_solution, loops), max_iter, loops)
    better = near & ((t.way <= FAR * s.size) | (t.size <= 0.5 * s.size))
    taken = s.going & (better | (logical_not(s.mixed) & (t.size < math.inf)))  # a NaN is never taken
    found = loops.run_if(some_hold(taken & t.close), is_solution, taken & t.close)
    broken, stuck, memory = s.going & logical_not(taken | s.mixed), taken & logical_not(t.way > 0), s.memory
    if all_hold(better, loops) is not True:
        forget = s.going & s.mixed & logical_not(taken)  # the memory; a plain step follows
        memory = forgotten(s.memory, forget)
        u, g, f, size = (select(taken, new, old) for new, old in zip(t[:4], (s.u, s.g, s.f, s.size), strict=True))
        t = t._replace(u=u, g=g, f=f, size=size)
    least = lesser(t.size, s.least)
    stalled = due & (least > STALLED * s.mark) & (t.size <= s.level)
    asked = s.going & logical_not(found | broken) & (stalled | last | stuck)
    rounded, level = loops.run_if(some_hold(asked), lambda now: is_rounded(t, now[0]), (asked, s.level))
    found = found | rounded
    judged = s._replace(
        memory=memory,
        steps=select(s.going, s.steps + 1, s.steps),
        mark=select(due, least, s.mark),
        level=level,
        going=s.going & logical_not(found | broken | stuck),
        solved=s.solved | found,
        broken=s.broken | broken,
    )
    return accepted(s, t, taken, judged, max_iter, loops)


def ended(s: Iterate, t: Trial, is_solution: Callable[[Scalar], Scalar], loops: Loops) -> Iterate:
    """Return the iterate s after a step that all problems take, with those solved whose trial is a solution."""
    s, close = s._replace(steps=select(s.going, s.steps + 1, s.steps)), s.going & t.close
    if none_holds(close, loops):
        return s
    found = is_solution(close)
    return s._replace(going=s.going & logical_not(found), solved=s.solved | found)


def accepted(old: Iterate, t: Trial, taken: Scalar, s: Iterate, max_iter: int, loops: Loops) -> Iterate:
    """Return the iterate s with the vectors of a trial, and with their differences from the old ones in its memory."""
    memory = remembered(s.memory, as_dtype(t.g - old.g, t.f.dtype), t.f - old.f, t.f, loops)
    count, least = s.count + 1, lesser(t.size, s.least)
    going = select(count < max_iter, s.going, s.going & False)
    return s._replace(
        u=t.u, g=t.g, f=t.f, memory=memory, size=t.size, least=least, mixed=taken, count=count, going=going
    )


def all_hold(mask: Scalar, loops: Loops) -> Any:
    """Return whether a mask holds for all problems: a bool where that can be read at no cost."""
    return mask if isinstance(mask, bool) else loops.number(array_namespace(mask).all(mask))


def lesser(a: Scalar, b: Scalar) -> Scalar:
    """Return the smaller of two numbers."""
    return min(a, b) if isinstance(a, float) else array_namespace(a).minimum(a, b)


def some_hold(mask: Scalar) -> Any:
    """Return whether a mask holds for a problem."""
    return mask if isinstance(mask, bool) else array_namespace(mask).any(mask)


def none_holds(mask: Scalar, loops: Loops) -> bool:
    """Return whether a mask holds for no problem, as far as that can be read at no cost."""
    return not mask if isinstance(mask, bool) else loops.number(array_namespace(mask).any(mask)) is False
