"""Learning the eccentricity of an orbit through Kepler's equation (Look et al. 2020, section 1 and Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import dil
from dil import kepler

MEAN_ANOMALY = 1.0
START = 0.1
TARGET_ECCENTRICITY = 0.7
STEPS = 60
RATE = 0.5
"""The fraction of the Gauss-Newton step that is taken. It is half, so that the path can be seen."""
TOLERANCE = 1e-10
"""Tolerance on |E - target|, radians."""


@dataclass(frozen=True)
class Step:
    """One step of the learning."""

    step: int
    e: float
    E: float
    """Radians."""
    loss: float
    gradient: float
    """d loss / d e by the layer."""
    analytic: float
    """d loss / d e by the closed form."""

    @property
    def relative_difference(self) -> float:
        """The relative difference of the two gradients."""
        return relative(self.gradient, self.analytic)


@dataclass(frozen=True)
class Check:
    """A number computed by the layer, and the same number in closed form."""

    name: str
    layer: float
    closed_form: float

    @property
    def relative_error(self) -> float:
        """The relative error of the layer's number."""
        return relative(self.layer, self.closed_form)


@dataclass(frozen=True)
class Learned:
    """The result of the learning and its path."""

    backend: str
    mean_anomaly: float
    """M, radians, held fixed."""
    target: float
    """The eccentric anomaly that E(e) should match, radians."""
    target_eccentricity: float
    """The eccentricity whose E(e) is the target, in closed form."""
    path: tuple[Step, ...]
    checks: tuple[Check, ...]

    @property
    def distance(self) -> float:
        """|E - target| at the end, radians."""
        return abs(self.path[-1].E - self.target)

    @property
    def converged(self) -> bool:
        """Whether the end of the path is at the target."""
        return self.distance <= TOLERANCE


class Point(NamedTuple):
    """The layer's numbers at one eccentricity, as Python numbers."""

    E: float
    loss: float
    gradient: float
    analytic: float
    dE_de: float
    dE_dM: float
    closed_dE_de: float
    closed_dE_dM: float


def learn(
    handle: dil.BackendHandle,
    *,
    mean_anomaly: float = MEAN_ANOMALY,
    target: float | None = None,
    start: float = START,
    steps: int = STEPS,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Learned:
    """Find the eccentricity e whose eccentric anomaly E(e) matches a target, by descent on 1/2 (E(e) - target)^2.

    Parameters
    ----------
    handle : dil.BackendHandle
        The backend to compute with. Its dtype sets the precision.
    mean_anomaly : float
        M in radians. It must not be a multiple of pi, where E does not depend on e.
    target : float, optional
        E in radians. The default is E at the eccentricity 0.7.
    start : float
        The eccentricity to start from, 0 <= start < 1.
    steps : int
        The largest number of steps.
    on_step : callable
        Called with each step, as soon as it is taken.

    Raises
    ------
    OptionError
        If an option is out of range, or no eccentricity has the target.
    """
    _check_options(mean_anomaly, start, steps)
    evaluate = _evaluator(handle, mean_anomaly)
    if target is None:
        target = evaluate(TARGET_ECCENTRICITY, 0.0).E
    wanted = eccentricity_of(target, mean_anomaly)
    path: list[Step] = []
    e, step = start, 0
    while True:
        at = evaluate(e, target)
        path.append(Step(step, e, at.E, at.loss, at.gradient, at.analytic))
        on_step(path[-1])
        if step >= steps or abs(at.E - target) <= TOLERANCE:
            break
        # gradient descent; the step is divided by the curvature (dE/de)^2 of the loss (Gauss-Newton)
        e, step = _inside(e - RATE * at.gradient / at.dE_de**2, e), step + 1
    checks = (
        Check("dE/de", at.dE_de, at.closed_dE_de),
        Check("dE/dM", at.dE_dM, at.closed_dE_dM),
        Check("e", e, wanted),
    )
    return Learned(handle.name, mean_anomaly, target, wanted, tuple(path), checks)


def eccentricity_of(E: float, M: float) -> float:
    """Return the eccentricity for which the eccentric anomaly is E at mean anomaly M: (E - M) / sin E.

    Raises
    ------
    OptionError
        If no eccentricity in [0, 1) has this E.
    """
    slope = math.sin(E)
    e = (E - M) / slope if slope else math.nan
    if not 0 <= e < 1:
        message = (
            f"no eccentricity in [0, 1) has E = {E:.6g} rad at M = {M:.6g} rad; expected a target that E reaches "
            f"between e = 0, where it is M, and e = 1, such as {M + 0.3 * math.sin(M):.4g}"
        )
        raise dil.OptionError(message)
    return e


def relative(value: float, reference: float) -> float:
    """Return |value - reference| / |reference|, or |value| if the reference is zero."""
    return abs(value - reference) / (abs(reference) or 1.0)


def number(handle: dil.BackendHandle, x: Any) -> float:
    """Return an array of one entry as a Python number."""
    return float(handle.to_numpy(x))


def compiled(handle: dil.BackendHandle, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return fn, jitted under JAX. Without jit, JAX would compile the loops at each call."""
    if handle.name != "jax":
        return fn
    import jax

    return jax.jit(fn)


def _evaluator(handle: dil.BackendHandle, mean_anomaly: float) -> Callable[[float, float], Point]:
    xp, M = handle.xp, handle.asarray(mean_anomaly)

    def loss(e: Any, target: Any) -> Any:
        missing = kepler.eccentric_anomaly(M, e) - target
        return 0.5 * missing * missing

    def everything(e: Any, target: Any) -> tuple[Any, ...]:
        value, gradient = dil.value_and_grad(loss)(e, target)
        E, pull = dil.vjp(kepler.eccentric_anomaly, M, e)
        dE_dM, dE_de = pull(xp.ones_like(E))
        closed_de, closed_dM = kepler.dE_de(E, e), kepler.dE_dM(E, e)
        return E, value, gradient, (E - target) * closed_de, dE_de, dE_dM, closed_de, closed_dM

    run = compiled(handle, everything)

    def evaluate(e: float, target: float) -> Point:
        return Point(*(number(handle, x) for x in run(handle.asarray(e), handle.asarray(target))))

    return evaluate


def _inside(e: float, before: float) -> float:
    """Clip e to [0, 1). A step goes at most half of the way from `before` to 1, where E(e) is no longer defined."""
    return max(0.0, min(e, 0.5 * (1 + before)))


def _check_options(mean_anomaly: float, start: float, steps: int) -> None:
    if not 0 <= start < 1:
        message = f"start={start!r}; expected an eccentricity, 0 <= start < 1"
        raise dil.OptionError(message)
    if steps < 1:
        message = f"steps={steps!r}; expected at least 1"
        raise dil.OptionError(message)
    if not math.isfinite(mean_anomaly) or abs(math.sin(mean_anomaly)) < 1e-6:
        message = (
            f"mean anomaly {mean_anomaly!r}; expected radians, and no multiple of pi, where E = M for every "
            f"eccentricity and there is nothing to learn from"
        )
        raise dil.OptionError(message)


def record(learned: Learned) -> dict[str, Any]:
    """Return the result as a dictionary for JSON, with angles in radians."""
    return {
        "backend": learned.backend,
        "dtype": "float64",
        "mean_anomaly": learned.mean_anomaly,
        "target": {"E": learned.target, "e": learned.target_eccentricity},
        "converged": learned.converged,
        "path": [{**asdict(s), "relative_difference": s.relative_difference} for s in learned.path],
        "check": {
            c.name: {"layer": c.layer, "closed_form": c.closed_form, "relative_error": c.relative_error}
            for c in learned.checks
        },
    }
