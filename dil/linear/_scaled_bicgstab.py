"""BiCGSTAB that takes the units out of a matrix, where this pays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from dil._base.arrays import array_namespace, full, logical_not, select
from dil._base.operator import Operator
from dil._base.options import LinearOptions
from dil._base.rows import entrywise
from dil._base.scalars import Scalar, any_of, count, count_from_zero
from dil._base.solution import Solution
from dil._base.typing import Array, Loop
from dil._frameworks.iteration import repeat
from dil._frameworks.protocol import Backend
from dil.linear._bicgstab import Iterate, ended, is_active, started, step
from dil.linear._choice import Course, First
from dil.linear._choice_in_words import Way
from dil.linear._found_symmetry import PRODUCTS as LOOK
from dil.linear._found_symmetry import signs
from dil.linear._restarts import TRIAL_SHARE, Progress, Task, prepared, updated
from dil.linear._row_column_scales import PRODUCTS, row_column_scales
from dil.linear._tolerance import Tolerance

FIRST, SOON = 16, 64
"""Problems that are to converge within 64 steps, at the pace of the first 16, go on with plain BiCGSTAB."""
FLAT = 1.0
"""The standard deviation of log(M) up to which M is not tried. Noise alone is 0.3 to 0.7."""
TURN = FIRST - (PRODUCTS + 2) // 2
"""The steps of a turn. M, its turn and two checks of residuals take as many products as the first steps."""
ENOUGH = 1 / 6
"""The share of the digits that BiCGSTAB with M must win in a turn to go on at once."""
AHEAD = 1 / 32
"""The share of the digits by which plain BiCGSTAB must then be ahead. Where units differ, M is the likelier way."""
PATIENCE, GAIN = 3, 0.5
"""As for plain BiCGSTAB."""
PLAIN, SCALED, COMPARED, WITH_M, WITHOUT_M = range(5)
"""The stages of a problem: the first steps, a turn with M, as many plain steps more, and what was chosen."""


class Kept(NamedTuple):
    """What a pass of plain BiCGSTAB goes on from; see `Iterate`. Vectors: (*batch, n).

    The least residual so far is not kept, because the race knows it.
    """

    dx: Array
    r: Array
    p: Array
    rho: Scalar
    rr: Scalar
    unit: Scalar
    scale: Scalar


class Race(NamedTuple):
    """The state between two passes. Vectors: (*batch, n)."""

    progress: Progress
    stage: Scalar
    M: Array
    plain: Kept
    """Plain BiCGSTAB after the first steps."""
    resumable: Scalar
    """Whether `plain` is in its first pass, which started from zero."""
    resumes: Scalar
    """Whether the next pass goes on from `plain`."""
    first_rr: Scalar
    """The square of the error after the first steps, or one where no M was estimated."""
    raced: Scalar
    """Whether M was tried."""
    with_M: Scalar
    """The steps with M."""
    without_M: Scalar
    """The plain steps after M was estimated."""
    sign: Array
    """Not zero where the matrix was found to be symmetric, (*batch, 1); see `signs`."""


@dataclass(frozen=True)
class Systems:
    """The systems of a batch, and the options of the race."""

    task: Task
    backend: Backend
    trial: int | None
    looks: bool
    """Whether slow problems are looked at for symmetry."""


def scaled_bicgstab(
    options: LinearOptions,
    A: Operator,
    b: Array,
    *,
    backend: Backend,
    loop: Loop,
    rtol: Tolerance = None,
    trial: int | None = None,
    looks: bool = False,
) -> Solution:
    """Solve A x = b, b: (*batch, n), by BiCGSTAB for A M y = b, x = M y, with a diagonal M if this pays.

    1. Plain BiCGSTAB takes 16 steps. It goes on if they promise that it converges in 64.
    2. Otherwise 8 products estimate M, see `row_column_scales`. If its entries differ little, plain BiCGSTAB goes on.
    3. Otherwise BiCGSTAB with M takes 11 steps from where the first 16 ended. If it wins a sixth of the digits of
       rtol, it goes on. If not, plain BiCGSTAB takes 11 steps more, from its own state. It goes on if its residual is
       then clearly the smaller one; both ways have the residual of A x = b. If not, BiCGSTAB with M goes on.

    Where plain BiCGSTAB goes on, there are at most 32 products more than those of plain BiCGSTAB alone, as many as the
    first 16 steps took: 8 for M, 22 with it, and 2 checks of the residual. So they are fewer than twice those of plain
    BiCGSTAB, unless that breaks down. `extra["raced"]` is as for `racing_cg`: `Course.diagonal` counts the steps with
    M, and `Course.orthogonal` the plain ones after the first.

    `trial`: a problem ends if its relative residual is above rtol ** (2 / 7) after that number of steps, or after three
    times that number once M is estimated.

    `looks`: two products tell of a problem that is slow after the first steps whether its matrix is symmetric. If so,
    it ends there, not solved. `extra["sign"]`, (*batch, 1), is then as `signs` says, and zero for the others.
    """
    start = prepared(options, A, b, loop=loop, rtol=rtol)
    systems, s = Systems(start.task, backend, trial, looks), start.first
    no, none, zero, null = s.active & False, count_from_zero(s.error), 0.0 * s.error, full(b, 0.0)
    plain = Kept(null, null, null, zero, zero, zero, zero)
    sign = full(b, 0.0, shape=(*b.shape[:-1], 1))
    first = Race(s, none, full(b, 1.0), plain, no, no, zero + 1.0, no, none, none, sign)
    last = repeat(partial(_advance, systems), lambda race: race.progress.active, first, loops=start.task.loops)
    solution, estimated = start.solution(last.progress), (last.with_M > 0) | (last.without_M > 0)
    way = select(estimated, select(last.raced, none + int(Way.RACE), none + int(Way.FLAT)), none)
    by_M = last.raced & (last.stage != COMPARED) & (last.stage != WITHOUT_M)
    course = Course(way, PRODUCTS * count(estimated), last.with_M, last.without_M, by_M)
    raced = course, First(FIRST, SOON, last.first_rr, zero + 1.0)
    assert solution.extra is not None
    products = solution.extra["products"] + start.task.scalars.array(course.probes, b, solution.extra["products"].dtype)
    if not looks:
        return solution._replace(extra={"products": products, "raced": raced})
    looked = LOOK * count(estimated | start.task.scalars.read(last.sign[..., 0] != 0))
    products = products + start.task.scalars.array(looked, b, products.dtype)
    return solution._replace(extra={"products": products, "raced": raced, "sign": last.sign})


def _advance(systems: Systems, race: Race) -> Race:
    """Run a pass of each problem, and decide what comes next."""
    task, s, stage = systems.task, race.progress, race.stage
    none = count_from_zero(s.error)
    uses_M, fresh = (stage == SCALED) | (stage == WITH_M), logical_not(race.resumes)
    # the start of the state that goes on is x = 0
    x, r = select(fresh, s.x, 0.0 * s.x), select(fresh, s.r, task.b)
    origin = s._replace(x=x, r=r, passes=select(fresh, s.passes, 0))
    given, first, unit = started(task, origin)
    look, hurdle = _hurdle(task, race)
    used = any_of(uses_M)
    known = used if isinstance(used, bool) else task.loops.number(used)
    limit = -1 if systems.trial is None else select(stage == PLAIN, none + systems.trial, 3 * systems.trial)
    given = given._replace(
        first_step=select(fresh, s.steps, -1),
        trial=limit,
        look=look,
        hurdle=hurdle / select(unit > 0, unit, 1.0),
        M=1.0 if known is False else select(uses_M, race.M, 1.0),
    )
    begun = _selected(fresh, _kept(first), race.plain)
    first = first._replace(**begun._asdict(), best_dx=begun.dx, least=begun.rr)
    last = task.iterate(given, step, is_active, first)
    new = ended(origin, given, last, unit)
    # the norm of A M is not that of A
    progress = updated(task, s, new._replace(norm_A=select(uses_M, 0.0, new.norm_A)), GAIN, PATIENCE)
    over = progress.steps <= look  # the pass ended at the look, or before it
    unsolved = s.active & progress.finite & (progress.error > task.rtol) & (progress.steps < task.max_iter)
    slow = unsolved & (stage == PLAIN) & (progress.steps == FIRST) & (progress.error > hurdle)
    hands_over = unsolved & (stage == SCALED) & over
    ends_trial = (limit >= 0) & (progress.steps >= limit) & (progress.error > task.rtol**TRIAL_SHARE)
    moves = slow | (unsolved & ((stage == SCALED) | (stage == COMPARED)))
    tried, compared = select(over, none + COMPARED, WITH_M), select(over, none + WITH_M, WITHOUT_M)
    progress = progress._replace(
        active=select(moves, unsolved, progress.active) & (slow | logical_not(ends_trial)),
        # a pass that is cut short does not count, so that plain BiCGSTAB has the same shadow residuals as alone
        passes=select(moves & over, s.passes, progress.passes),
        passes_without_gain=select(moves, 0, progress.passes_without_gain),
    )
    taken = progress.steps - s.steps
    after = race._replace(
        progress=progress,
        stage=select(moves & logical_not(slow), select(stage == SCALED, tried, compared), stage),
        resumes=hands_over & race.resumable,
        with_M=race.with_M + select(uses_M, taken, 0),
        without_M=race.without_M + select(uses_M | (race.first_rr == 1.0), 0, taken),
    )
    if not task.scalars.single:
        after = _selected(s.active, after, race)
    return _estimated(systems, slow, _kept(last), s.passes == 0, after)


def _hurdle(task: Task, race: Race) -> tuple[Scalar, Scalar]:
    """Return the number of steps at which a pass ends if the error is above the hurdle, and the hurdle.

    The number is below zero where there is none.
    """
    stage, error = race.stage, race.progress.error
    none, zero = count_from_zero(error), 0.0 * error
    turn = select((stage == SCALED) | (stage == COMPARED), race.progress.steps + TURN, none - 1)
    # after M is tried, the error is that of the better way so far
    factor = select(stage == SCALED, zero + task.rtol**ENOUGH, task.rtol**AHEAD)
    first = zero + task.rtol ** (FIRST / SOON)
    return select(stage == PLAIN, none + FIRST, turn), select(stage == PLAIN, first, error * factor)


def _kept(i: Iterate) -> Kept:
    """Return what is kept of a state."""
    return Kept(i.dx, i.r, i.p, i.rho, i.rr, i.unit, i.scale)


class Sizes(NamedTuple):
    """M, (*batch, n), and whether its entries differ enough to try it."""

    M: Array
    wide: Scalar


def _estimated(systems: Systems, slow: Scalar, plain: Kept, resumable: Scalar, race: Race) -> Race:
    """Return the race with an M for the problems that are slow."""
    task, some = systems.task, any_of(slow)
    if (some if isinstance(some, bool) else task.loops.number(some)) is False:
        return race
    if systems.looks:
        race, slow = _looked_at(systems, slow, race)
        some = any_of(slow)
        if (some if isinstance(some, bool) else task.loops.number(some)) is False:
            return race
    # a branch with little state: a compiler copies what goes into a branch and comes out of it
    sizes: Sizes = task.loops.run_if(some, partial(_measured, systems, slow), Sizes(race.M, race.raced))
    error, wide = race.progress.error, sizes.wide
    found = race._replace(
        stage=select(wide, 0 * race.stage + SCALED, WITHOUT_M),
        M=sizes.M,
        plain=plain,
        resumable=resumable,
        resumes=resumable & logical_not(wide),
        first_rr=select(error < 1, error * error, 2.0),
        raced=wide,
    )
    return _selected(slow, found, race._replace(M=sizes.M, raced=wide))


def _looked_at(systems: Systems, slow: Scalar, race: Race) -> tuple[Race, Scalar]:
    """Return the race without the slow problems whose matrix is symmetric, and the slow ones that are left."""
    task, b = systems.task, systems.task.b
    sign: Array = task.loops.run_if(any_of(slow), lambda _: signs(task.A, b, systems.backend), race.sign)
    sign = select(slow if isinstance(slow, bool) or slow.ndim == sign.ndim else slow[..., None], sign, race.sign)
    left = task.scalars.read(sign[..., 0] == 0)
    progress = race.progress._replace(active=race.progress.active & (left | logical_not(slow)))
    return race._replace(progress=progress, sign=sign), slow & left


def _measured(systems: Systems, slow: Scalar, old: Sizes) -> Sizes:
    """Return the sizes of the rows and columns of the slow problems, and the old ones of the others."""
    task, b, xp = systems.task, systems.task.b, array_namespace(systems.task.b)
    A, like = (task.A, b) if task.A.one is None else (task.A.one, b[0, ...])
    M = row_column_scales(A, like, systems.backend, task.loops) + full(b, 0.0)
    return _selected(slow, Sizes(M, task.scalars.read(xp.std(xp.log(M), axis=-1)) > FLAT), old)


S = TypeVar("S", bound=tuple[Any, ...])


def _selected(mask: Scalar, a: S, b: S) -> S:
    """Return the state a where the mask holds, else b."""
    return entrywise(lambda x, y: x if x is y else select(mask, x, y), 0, a, b)  # type: ignore[no-any-return]
