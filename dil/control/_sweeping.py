"""What the solvers of plans by sweeps share: their options, and what becomes of a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, full, norm
from dil._base.typing import Array
from dil.solvers._progress import check_watched
from dil.solvers._start import check_positive, size_of

MU_MIN, MU_MAX, MU_FACTOR = 1e-6, 1e10, 8.0
"""The regularisation mu: its smallest value above zero, the value that ends a problem, and the factor of a change."""


@dataclass(frozen=True)
class SweepOptions:
    """The options of a solver by sweeps. Its docstring says what they are."""

    rtol: float | None = None
    max_iter: int = 100
    history: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        check_positive(optional={"rtol": self.rtol}, max_iter=self.max_iter)
        check_watched(self)


class Trial(NamedTuple):
    """The result of a forward sweep: the best step and the full step; u: (*batch, n), values: (*batch, 1)."""

    best: Array
    value: Array
    full_u: Array
    full_value: Array


class Outcome(NamedTuple):
    """What becomes of a trial; u: (*batch, n), the rest: (*batch, 1)."""

    u: Array
    value: Array
    taken: Array
    takes_full: Array
    """Whether it is the full step near the solution, whatever rounding says of its cost."""
    full_step: Array
    """||dv|| of the full step."""


def judge(trial: Trial, u: Array, value: Array, going: Array, start: Array) -> Outcome:
    """Return what becomes of a trial from u: the best step if it lowers the cost, and near the solution the full one.

    There rounding hides the change of the cost over a step. `going` holds where the problem goes on and its sweeps are
    finite.
    """
    xp, machine = array_namespace(u), eps(array_namespace(u), u.dtype)
    full_step = norm(trial.full_u - u)
    usable = going & xp.isfinite(full_step)
    flat = full_step <= machine**0.25 * size_of(u, start)
    takes_full = usable & flat & (trial.full_value <= value + 64 * machine * abs(value))
    lower = usable & (trial.value < value)
    return Outcome(
        xp.where(takes_full, trial.full_u, xp.where(lower, trial.best, u)),
        xp.where(takes_full, trial.full_value, xp.where(lower, trial.value, value)),
        lower | takes_full,
        takes_full,
        full_step,
    )


def next_mu(mu: Array, taken: Array) -> Array:
    """Return the regularisation after a sweep: smaller if its step was taken, else larger."""
    xp = array_namespace(mu)
    smaller = xp.where(mu <= MU_MIN, full(mu, 0.0), mu / MU_FACTOR)
    larger = xp.where(mu < MU_MIN, full(mu, MU_MIN), mu * MU_FACTOR)
    return xp.where(taken, smaller, larger)  # type: ignore[no-any-return]
