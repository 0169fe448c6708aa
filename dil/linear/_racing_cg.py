"""Conjugate gradients that precondition themselves: by a diagonal, by orthogonal residuals, or not at all."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, logical_not, select
from dil._base.operator import Operator
from dil._base.scalars import (
    Scalar,
    any_of,
    count,
    count_from_zero,
    either,
    greater,
    smaller,
    sqrt,
    times,
)
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array
from dil._frameworks.iteration import repeat
from dil._frameworks.leaving import Run, repeat_leaving
from dil._frameworks.loops import Loops, runs_later
from dil._frameworks.protocol import Backend
from dil.linear._backward_error import MOST, is_rounding
from dil.linear._cg import State, System, Trial, iterated, part_of, told
from dil.linear._choice import Course, First
from dil.linear._choice_in_words import Way
from dil.linear._curvature_status import curvature_status
from dil.linear._diagonal import estimated_diagonal
from dil.linear._restarts import TRIAL_SHARE
from dil.linear._scaled_cg import MOST_REPAIRS, Method, Turn, take_turn
from dil.linear._window import Window

FIRST = 8
"""The steps of plain CG before its pace is looked at."""
SOON = 40
"""Problems that are to converge within this number of steps, at the pace of the first ones, go on with plain CG."""
LIKELY = 64
"""Problems that are to converge within this number of steps at the pace of the first ones are not scaled."""
PROBES = 8
NEARLY_DIAGONAL = 0.05
"""The `difference` of the estimates of a diagonal up to which the matrix counts as diagonal, and is scaled at once."""
FLAT = 1.0
"""The standard deviation of log(diagonal) up to which scaling is not tried."""
EVEN = 3.0
"""The `concentration` of eigenvalues up to which one way alone goes on along the next direction of plain CG.

Where few eigenvalues are far above the others, it starts anew instead: the first residuals, which have begun to find
them, are not kept, and would be lost."""
TURNS, TURN = 6, 16
"""The turns of a race end at 16, 32 and 64 steps with orthogonal residuals, each before one with the diagonal."""
BEHIND = 8
"""The diagonal ends its turns 0, 8 and 16 steps behind the other, which limits what it may lose."""
LEAD = 6.0
"""The diagonal is dropped when its error is this number of times that of the other, in the energy norm."""


class Race(NamedTuple):
    """Two methods that take turns. They change places after each turn."""

    now: Method
    other: Method
    window: Window
    """The residuals of the method whose residuals are kept orthogonal, which takes every second turn."""
    open: Scalar
    """Whether a problem is neither solved nor failed."""
    turn: Any
    """An int, or an array of shape () in a trace."""
    checks: Scalar
    """Products spent on true residuals."""


class Found(NamedTuple):
    """What is known of the solutions, before and after the race. Vectors: (*batch, n); status and the rest: batch."""

    plain: State
    slow: Scalar
    x: Array
    status: Any
    iterations: Any
    residual: Any
    products: Array
    course: Course


def racing_cg(
    A: Operator, b: Array, *, rtol: Scalar, max_iter: int, backend: Backend, loops: Loops, trial: int | None = None
) -> Solution:
    """Solve A x = b with a symmetric positive definite A by the cheapest of three ways; b: (*batch, n).

    1. Plain CG takes 8 steps. It goes on if they promise that it converges in 40.
    2. Otherwise 2 products with vectors of random signs tell whether A is nearly diagonal. If so, CG goes on with the
       diagonal as a preconditioner. If not, and if the 8 steps promise that CG converges in 64, it goes on with
       orthogonal residuals (see `Window`), which take no more steps than plain CG, but for rounding.
    3. Otherwise 6 products more improve the estimate of the diagonal. If its entries differ little, CG goes on with
       orthogonal residuals. If not, this method and CG with the diagonal race, both from the residual. The turns end
       at 16 and 16, 32 and 24, 64 and 48 steps. The diagonal is dropped if its error in the energy norm, which both
       share, is 6 times that of the other.

    Without a race, and unless a few eigenvalues are far above the others, orthogonal residuals go on along the next
    direction of plain CG: the steps are those of plain CG, and there are at most 8 products more, and checks. Else CG
    starts anew from the residual. Where orthogonal residuals win a race in s steps, there are at most 2 s + 15
    products, and at most s + 64; where the diagonal wins in d steps, at most d + 80. The method that is ahead after
    these turns may be slower later.
    `extra["products"]` counts them, and `extra["raced"]` holds the `Course` and the `First` steps, for the sentence of
    a report.

    `trial`: a problem ends if its relative residual is above rtol ** (2 / 7) after that number of steps.
    """
    system, plain = iterated(A, b, rtol=rtol, max_iter=max_iter, loops=loops, trial=Trial(FIRST, FIRST / SOON))
    first, slow = told(system, plain), _is_slow(system, plain)
    assert first.extra is not None
    known = None if trial is None else Trial(trial, TRIAL_SHARE)

    def race(system: System, found: Found) -> Found:
        start, course = _start(system, found.plain, found.slow, backend, loops)
        last = repeat(lambda now: _advance(system, now, loops, known), lambda now: now.open, start, loops=loops)
        return _ended(system, last, found, course)

    # the few slow problems of a large batch race without the others
    run = Run(tuple(b.shape[:-1]), b.shape[-1], loops)
    course = Course.plain(count_from_zero(system.bb), slow & False)
    solved = first.value, first.status, first.iterations, first.residual, first.extra["products"]
    start = Found(plain, slow, *solved, course)
    found = repeat_leaving(system, race, lambda found: found.slow, start, run=run, part=part_of)
    raced = found.course, First(FIRST, LIKELY, plain.rr, system.bb)
    extra = {"indefinite": found.status == int(Status.INDEFINITE), "products": found.products, "raced": raced}
    return Solution(found.x, found.status, found.iterations, found.residual, extra)


def _is_slow(system: System, last: State) -> Scalar:
    """Return whether a problem was given up after the first steps for its pace, and for no other reason."""
    machine_eps = eps(array_namespace(system.b), system.b.dtype)
    healthy = (last.curvature > machine_eps * last.curvature_sum) & (last.curvature < math.inf)
    return healthy & (last.rr > system.accepted_rr) & (last.steps == FIRST) & (system.max_iter > FIRST)


def _start(system: System, plain: State, slow: Scalar, backend: Backend, loops: Loops) -> tuple[Race, Course]:
    """Return the race before its first turn, with the way of each problem and the number of probes."""
    b, scalars = system.b, system.scalars
    unlikely = slow & (plain.rr > system.bb * system.rtol ** (2 * FIRST / LIKELY))

    def read(x: Array) -> Scalar:
        return scalars.read(x[..., 0])

    def goes_on(k: Any, difference: Array) -> Any:
        unclear = unlikely & (read(difference) > NEARLY_DIAGONAL)
        return either(k < 2, lambda: any_of(slow), lambda: any_of(unclear))

    H, like = (system.H, b) if system.H.one is None else (system.H.one, b[0, ...])
    found = estimated_diagonal(H, like, backend, probes=PROBES, seed=0, loops=loops, goes_on=goes_on)
    is_diagonal = read(found.difference) <= NEARLY_DIAGONAL
    scales = slow & (is_diagonal | (unlikely & (read(_spread(found.root)) > FLAT)))
    traced = runs_later(loops, b)
    scaled = Method.start(system, plain, found.root + full(b, 0.0), scales)
    orthogonal = Method.start(system, plain, full(b, 1.0) if traced else 1.0, slow & logical_not(is_diagonal))
    # a check of the true residual leaves no next direction
    goes_along = orthogonal.in_race & logical_not(scales) & (plain.products == plain.steps)
    goes_along = goes_along & (read(found.concentration) <= EVEN)
    orthogonal = orthogonal.along(plain, goes_along)
    window = Window.empty(b, grows=not traced).with_row(plain.r / sqrt(select(slow, plain.rr, 1.0)), loops)
    none = count_from_zero(plain.rr)
    calm = select(unlikely, none + int(Way.FLAT), none + int(Way.LIKELY))
    way = select(is_diagonal, none + int(Way.NEARLY_DIAGONAL), select(scales, none + int(Way.RACE), calm))
    course = Course(way, found.products, none, none, scales)
    return Race(orthogonal, scaled, window, slow, 0, none), course


def _spread(root: Array) -> Array:
    """Return the standard deviation of the logarithm of the diagonal, (*batch, 1)."""
    xp = array_namespace(root)
    return 2 * xp.std(xp.log(root), axis=-1, keepdims=True)  # type: ignore[no-any-return]


def _advance(system: System, race: Race, loops: Loops, trial: Trial | None) -> Race:
    """Let one method take its turn, check the problems that have ended, and change places."""
    method, other, k = race.now, race.other, race.turn
    most = system.max_iter - FIRST - other.steps
    taken = count(race.open & other.in_race & (k < TURNS))
    limit = smaller(taken * _end_of_turn(k) + (1 - taken) * system.max_iter, most)
    takes = race.open & method.in_race
    turn = Turn(system, loops, trial, limit, FIRST + other.steps, k % 2 == 0)
    method, window = take_turn(turn, method._replace(going=takes & (method.steps < limit)), race.window)
    over = (method.steps < limit) | (limit >= most) | (method.tt <= system.target_rr)
    race = _checked(system, race._replace(now=method, window=window), takes & over, most, loops)
    other, method = _judged(race.other, race.now, k)
    return Race(other, method, race.window, race.open, k + 1, race.checks)


def _end_of_turn(k: Any) -> Any:
    """Return the steps at which turn k ends."""
    steps = TURN * 2 ** (k // 2)
    return steps - (k % 2) * (k // 2) * BEHIND


def _checked(system: System, race: Race, over: Scalar, most: Scalar, loops: Loops) -> Race:
    """Compute the true residual where a method has ended. The problem is solved, has failed, or starts again from it.

    The method that ends is the one that is chosen.
    """
    dot, method, other = system.scalars.dot, race.now, race.other

    def check(race: Race) -> Race:
        t = system.b - system.H(method.x)
        tt = dot(t, t)
        claims = (method.tt <= system.target_rr) & (method.steps < most)
        # p keeps what the repairs took from r, and CG would take many steps to undo it
        renewed = over & (method.repairs == MOST_REPAIRS) & (method.steps < most)
        again = (over & claims & (4 * tt < method.checked) | renewed) & (tt > system.accepted_rr)
        r, Rb = times(method.R, t), times(method.R, system.b)
        rr = dot(r, r)
        norms = method.largest_curvature, system.scalars.norm(method.y), sqrt(dot(Rb, Rb))
        # the rounding of a product is of the size of its row, so it is judged where the rows are of one size
        rounded = is_rounding(sqrt(rr), *norms, eps(array_namespace(t), t.dtype)) & (tt <= MOST**2 * system.bb)
        restarted = method._replace(
            r=select(over, r, method.r),
            p=select(again, r, method.p),
            rr=select(over, rr, method.rr),
            pp=select(again, rr, method.pp),
            rounded=select(over, rounded, method.rounded),
            tt=select(over, tt, method.tt),
            checked=select(over, tt, method.checked),
            repairs=method.repairs + count(renewed),
        )
        dropped = other._replace(in_race=other.in_race & logical_not(over))
        window = race.window.without(again & (race.turn % 2 == 0))
        still_open = race.open & logical_not(over & logical_not(again))
        return Race(restarted, dropped, window, still_open, race.turn, race.checks + count(over))

    return loops.run_if(any_of(over), check, race)  # type: ignore[no-any-return]


def _judged(orthogonal: Method, scaled: Method, k: Any) -> tuple[Method, Method]:
    """Drop the method that is behind, when both have taken the same number of turns.

    A few large eigenvalues hold the method with orthogonal residuals up until it has found them. Then it is quick. So
    it stays until the last turn.
    """
    gain, scaled_gain = orthogonal.won - orthogonal.won_before, scaled.won - scaled.won_before
    least = greater(orthogonal.won + gain, scaled.won + scaled_gain)
    behind = least - scaled.won > LEAD * (least - orthogonal.won)
    last = k == TURNS - 1
    both = orthogonal.in_race & scaled.in_race & (k % 2 == 1) & (k < TURNS)
    drops_scaled = select(last, orthogonal.won >= scaled.won, behind)
    drops_orthogonal = last & (orthogonal.won < scaled.won)
    return (
        orthogonal._replace(in_race=orthogonal.in_race & logical_not(both & drops_orthogonal)),
        scaled._replace(in_race=scaled.in_race & logical_not(both & drops_scaled)),
    )


class Last(NamedTuple):
    """What the status depends on."""

    curvature: Scalar
    curvature_sum: Scalar
    steps: Scalar


def _ended(system: System, race: Race, found: Found, course: Course) -> Found:
    """Return what was found, with the solutions of the slow problems by the method that was chosen."""
    scalars, b, slow = system.scalars, system.b, found.slow
    chosen = race.now.in_race
    method = race.now._replace(
        **{
            name: select(chosen, getattr(race.now, name), getattr(race.other, name))
            for name in ("tt", "rounded", "curvature", "curvature_sum")
        }
    )
    steps = FIRST + race.now.steps + race.other.steps
    failed = logical_not(method.tt <= system.accepted_rr)
    last = Last(method.curvature, method.curvature_sum, steps)
    status = curvature_status(last, failed, method.rounded, system.max_iter, eps(array_namespace(b), b.dtype))
    products = steps + course.probes + race.checks + (found.plain.products - found.plain.steps)

    def merged(new: Scalar, old: Array) -> Array:
        here: Array = select(slow if scalars.single else slow[..., 0], scalars.array(new, b, old.dtype), old)
        return here

    x = either(chosen, lambda: race.now.x, lambda: race.other.x)
    diagonal_now = race.turn % 2 == 1
    taken = Course(
        course.way,
        count_from_zero(system.bb) + course.probes,
        select(diagonal_now, race.now.steps, race.other.steps),
        select(diagonal_now, race.other.steps, race.now.steps),
        chosen == diagonal_now,
    )
    return Found(
        plain=found.plain,
        slow=slow & False,
        x=select(slow, times(system.unit, x), found.x),
        status=merged(status, found.status),
        iterations=merged(steps, found.iterations),
        residual=merged(sqrt(method.tt / select(system.bb == 0, 1.0, system.bb)), found.residual),
        products=merged(products, found.products),
        course=Course(*(select(slow, new, old) for new, old in zip(taken, found.course, strict=True))),
    )
