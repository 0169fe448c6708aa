"""What the solvers of plans by sweeps share: their options, and what becomes of a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, eye, full, norm
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil.solvers._progress import check_watched
from dil.solvers._start import check_positive, size_of

MU_MIN, MU_MAX, MU_FACTOR = 1e-3, 1e10, 8.0
"""The regularisation mu: its smallest value above zero, the value that ends a problem, and the factor of a change."""
SHORT, LONG = 0.1, 0.4
"""The step lengths below which mu becomes larger, and above which it becomes smaller."""


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
    length: Array
    """The length of the best step, (*batch, 1)."""
    full_u: Array
    full_value: Array


class Outcome(NamedTuple):
    """What becomes of a trial; u: (*batch, n), the rest: (*batch, 1)."""

    u: Array
    value: Array
    taken: Array
    full_step: Array
    """||dv|| of the full step."""
    length: Array
    """The length of the step that is taken; zero if none is."""


def judge(trial: Trial, u: Array, value: Array, going: Array, start: Array) -> Outcome:
    """Return what becomes of a trial from u: the best step if it lowers the cost, and near the solution the full one.

    There rounding hides the change of the cost over a step. `going` holds where the problem goes on and its sweeps are
    finite. The full step itself may not be, where the dynamics are unstable.
    """
    xp, machine = array_namespace(u), eps(array_namespace(u), u.dtype)
    flat = is_flat(trial, u, start)
    takes_full = going & flat & (trial.full_value <= value + 64 * machine * abs(value))
    lower = going & (trial.value < value)
    return Outcome(
        xp.where(takes_full, trial.full_u, xp.where(lower, trial.best, u)),
        xp.where(takes_full, trial.full_value, xp.where(lower, trial.value, value)),
        lower | takes_full,
        norm(trial.full_u - u),
        xp.where(takes_full, full(value, 1.0), xp.where(lower, trial.length, full(value, 0.0))),
    )


def is_flat(trial: Trial, u: Array, start: Array) -> Array:
    """Return whether the full step is so short that rounding hides what it wins, (*batch, 1). That of NaN is not."""
    xp = array_namespace(u)
    return norm(trial.full_u - u) <= eps(xp, u.dtype) ** 0.25 * size_of(u, start)  # type: ignore[no-any-return]


def next_mu(mu: Array, length: Array) -> Array:
    """Return the regularisation after a sweep: smaller if its step was long, larger if it was short or none."""
    xp = array_namespace(mu)
    smaller = xp.where(mu <= MU_MIN, full(mu, 0.0), mu / MU_FACTOR)
    larger = xp.where(mu < MU_MIN, full(mu, MU_MIN), mu * MU_FACTOR)
    return xp.where(length < SHORT, larger, xp.where(length > LONG, smaller, mu))  # type: ignore[no-any-return]


def solve_controls(backend: Backend, Q_u: Array, count: int, added: Array, free: Array | None = None) -> Array:
    """Return (Q_uu + added)^-1 R, (*batch, n_u, count), for Q_u = (R, Q_uu), (*batch, n_u, count + n_u).

    The result is zero where a control has no effect, a row of zeros, or is not `free`, one or zero for each control,
    (*batch, n_u). It is NaN where the matrix of the other controls is not positive definite. `added` is (*batch, n_u).
    """
    xp = array_namespace(Q_u)
    has_effect = xp.any(Q_u != 0, axis=-1)
    R, Q_uu = Q_u[..., :count], Q_u[..., count:]
    matrix = Q_uu + xp.where(has_effect, added, 1.0)[..., None] * eye(Q_uu.shape[-1], Q_uu)
    if free is not None:
        free = free[..., None]
        R, matrix = free * R, free * matrix * free.mT + (1.0 - free) * eye(Q_uu.shape[-1], Q_uu)
    return backend.dense.cholesky_solve(matrix, R)


def largest_sizes(diagonals: Array, own: Array) -> Array:
    """Return the largest size of diagonals, (horizon, *batch, n_u), that are finite, or `own` where it is zero."""
    xp = array_namespace(diagonals)
    found = xp.max(xp.where(xp.isfinite(diagonals), xp.abs(diagonals), full(diagonals, 0.0)), axis=0)
    return xp.where(found == 0, own, found)  # type: ignore[no-any-return]


def sizes(X: Array) -> Array:
    """Return the absolute values of the diagonals, (..., n, n) -> (..., n)."""
    xp = array_namespace(X)
    return xp.abs(xp.linalg.diagonal(X))  # type: ignore[no-any-return]
