"""The libraries that solve an initial value problem, each as a call forward and a call of its gradient."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from _common import lap, one_thread
from _ode_problems import Problem

TIGHT = 1e-12
LARGEST_ERROR = 0.3
"""A run with a larger error has not followed the solution, and is left out of the ratios."""


class Way(NamedTuple):
    """A method of a library on a framework."""

    library: str
    method: str
    framework: str

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.library}, {self.framework}" if self.library == "dil" else f"{self.library} {self.method}"


@dataclass
class Run:
    """A way with one tolerance."""

    way: Way
    rtol: float
    forward: Callable[[], Any]
    """Returns the state at the end."""
    gradient: Callable[[], Any] | None = None
    """Returns the state at the end, and the gradient of its sum in the start and in the parameters."""
    steps: Callable[[], tuple[int, int, bool]] = lambda: (-1, -1, True)
    """Returns the steps taken and rejected, and whether the end was reached."""
    compile_s: tuple[float, float] | None = None
    """Processor seconds to trace and compile both calls."""


def ways(p: Problem, framework: str) -> list[Way]:
    """Return what is measured on a framework: dil first."""
    own = Way("dil", "kvaerno5" if p.stiff else "tsit5", framework)
    if framework == "numpy":
        names = ("Radau", "BDF", "LSODA") if p.stiff else ("Radau", "BDF", "LSODA", "DOP853")
        names = ("DOP853",) if p.batch else names  # the others factorise a matrix of all problems
        return [own, *(Way("SciPy", name, framework) for name in names)]
    if framework == "torch":
        return [own] if p.stiff else [own, Way("torchdiffeq", "dopri5", framework)]
    return [own, *(Way("diffrax", name, framework) for name in (("Kvaerno5",) if p.stiff else ("Dopri5", "Tsit5")))]


def reference(p: Problem) -> Any:
    """Return the state at the end: the published one, or that of SciPy to a tight tolerance."""
    if p.published:
        return np.asarray(p.published)
    options: dict[str, Any] = {"method": "Radau" if p.stiff else "DOP853", "rtol": TIGHT, "atol": 1e-2 * TIGHT}
    slope = partial(_as_one_system if p.batch else _numpy_slope, p)
    return solve_ivp(slope, (0.0, p.end), p.start.ravel(), args=(p.p,), **options).y[:, -1].reshape(p.start.shape)


def _as_one_system(p: Problem, t: Any, y: Any, k: Any) -> Any:
    return p.slope(np, t, y.reshape(p.start.shape), k).ravel()


def _numpy_slope(p: Problem, t: Any, y: Any, k: Any) -> Any:
    return p.slope(np, t, y, k)


def error_of(y: Any, truth: Any) -> float:
    """Return the root mean square of the relative errors of all entries."""
    return float(np.sqrt(np.mean(((np.asarray(y) - truth) / truth) ** 2)))


def runs(p: Problem, framework: str) -> list[Run]:
    """Return all ways with all tolerances, ready to run."""
    if framework == "jax":
        return jax_runs(p)
    make = {
        "numpy": {"dil": dil_eager, "SciPy": scipy_run},
        "torch": {"dil": dil_eager, "torchdiffeq": torchdiffeq_run},
    }
    return [make[framework][way.library](p, way, rtol) for way in ways(p, framework) for rtol in p.tolerances]


def scipy_run(p: Problem, way: Way, rtol: float) -> Run:
    """Return a run of `solve_ivp`. A batch is one system."""
    fn = partial(_as_one_system if p.batch else _numpy_slope, p)
    options: dict[str, Any] = {"method": way.method, "rtol": rtol, "atol": p.share * rtol, "args": (p.p,)}

    def solve() -> Any:
        return solve_ivp(fn, (0.0, p.end), p.start.ravel(), **options)

    def steps() -> tuple[int, int, bool]:
        found = solve()
        return len(found.t) - 1, -1, bool(found.success)

    return Run(way, rtol, lambda: solve().y[:, -1].reshape(p.start.shape), None, steps)


def dil_options(p: Problem, way: Way, rtol: float) -> dict[str, Any]:
    """Return the options of dil."""
    options: dict[str, Any] = {"method": way.method, "rtol": rtol, "atol": p.share * rtol, "max_steps": p.most}
    return {**options, "batch_ndim": 1} if p.batch and way.framework != "jax" else options


def dil_eager(p: Problem, way: Way, rtol: float) -> Run:
    """Return a run of dil where operations run at once."""
    import dil

    one_thread(way.framework)
    backend = dil.backend(way.framework, dtype="float64")
    xp: Any = np
    if way.framework == "torch":
        import torch as xp
    start, k, times, options = backend.asarray(p.start), backend.asarray(p.p), [0.0, p.end], dil_options(p, way, rtol)
    slope = partial(p.slope, xp)

    def end(y: Any, k: Any) -> Any:
        return dil.ode.odeint(slope, y, times, (k,), on_failure="ignore", **options)[-1]

    def steps() -> tuple[int, int, bool]:
        found = dil.ode.solve(slope, start, times, (k,), **options)
        return int(found.steps), int(found.rejected), not np.asarray(found.status).any()

    def gradient() -> Any:
        leaves = [x.clone().requires_grad_() for x in (start, k)]
        y = end(*leaves)
        return y.detach(), xp.autograd.grad(y.sum(), leaves)

    # without a derivative, the value is that of `solve`
    forward = lambda: dil.ode.solve(slope, start, times, (k,), **options).value[-1]  # noqa: E731
    has_peer = way.framework == "torch" and not p.stiff
    return Run(way, rtol, forward, gradient if has_peer else None, steps)


def torchdiffeq_run(p: Problem, way: Way, rtol: float) -> Run:
    """Return a run of torchdiffeq."""
    import torch
    from torchdiffeq import odeint

    one_thread("torch")
    start, k = torch.as_tensor(p.start), torch.as_tensor(p.p)
    times = torch.tensor([0.0, p.end], dtype=start.dtype)

    def end(y: Any, k: Any) -> Any:
        slope = lambda t, y: p.slope(torch, t, y, k)  # noqa: E731
        return odeint(slope, y, times, rtol=rtol, atol=p.share * rtol, method="dopri5")[-1]

    def gradient() -> Any:
        leaves = [x.clone().requires_grad_() for x in (start, k)]
        y = end(*leaves)
        return y.detach(), torch.autograd.grad(y.sum(), leaves)

    return Run(way, rtol, lambda: end(start, k), gradient)


def jax_runs(p: Problem) -> list[Run]:
    """Return the runs under `jax.jit`. The gradient is compiled for the first and the last tolerance."""
    found = []
    for way in ways(p, "jax"):
        of_way = [
            _jax_run(p, way, rtol, with_gradient=rtol in (p.tolerances[0], p.tolerances[-1])) for rtol in p.tolerances
        ]
        spent = [run.compile_s or (0.0, 0.0) for run in of_way]
        # the first compilation of a process also imports
        best = min(s[0] for s in spent), min((s[1] for s in spent if s[1] > 0), default=0.0)
        for run in of_way:
            run.compile_s = best
        found += of_way
    return found


def _jax_run(p: Problem, way: Way, rtol: float, *, with_gradient: bool) -> Run:
    import jax
    import jax.numpy as jnp

    report, end = (_dil_in_jax if way.library == "dil" else _diffrax)(p, way, rtol)
    if p.batch:
        report, end = jax.vmap(report), jax.vmap(end)
    start, k = jnp.asarray(p.start), jnp.asarray(p.p)

    def loss(y: Any, k: Any) -> Any:
        y = end(y, k)
        return jnp.sum(y), y

    counted, forward_s = compiled(report, start, k)
    gradient: Callable[[], Any] | None = None
    gradient_s = 0.0
    if with_gradient:
        try:
            both, gradient_s = compiled(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), start, k)
        except jax.errors.JaxRuntimeError:  # diffrax raises where a linear system has a NaN
            if way.library == "dil":
                raise
        else:

            def gradient() -> Any:
                (_, y), gradients = both()
                return y, gradients

    def steps() -> tuple[int, int, bool]:
        taken, rejected, failed = (np.asarray(x).max() for x in counted()[1:])
        return int(taken), int(rejected), not failed

    return Run(way, rtol, lambda: counted()[0], gradient, steps, (forward_s, gradient_s))


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Callable[[], Any], float]:
    """Return a call of the compiled function, and the processor seconds that tracing and compiling took."""
    import jax

    program = jax.jit(fn)

    def call() -> Any:
        return jax.block_until_ready(program(*args))

    first, second = lap(call, 1), lap(call, 1)
    return call, first.cpu - second.cpu


def _dil_in_jax(p: Problem, way: Way, rtol: float) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Return two functions of start and parameters.

    The first returns the end, the steps taken and rejected, and whether it failed, and the second the end that is
    differentiated.
    """
    import jax.numpy as jnp

    import dil

    slope, options = partial(p.slope, jnp), dil_options(p, way, rtol)

    def report(y: Any, k: Any) -> Any:
        found = dil.ode.solve(slope, y, [0.0, p.end], (k,), **options)
        return found.value[-1], found.steps, found.rejected, found.status != 0

    def end(y: Any, k: Any) -> Any:
        return dil.ode.odeint(slope, y, [0.0, p.end], (k,), on_failure="ignore", **options)[-1]

    return report, end


def _diffrax(p: Problem, way: Way, rtol: float) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Return the same of diffrax, with the controller that its documentation advises for stiff problems."""
    import diffrax
    import jax.numpy as jnp

    term = diffrax.ODETerm(partial(p.slope, jnp))
    gains = {"pcoeff": 0.3, "icoeff": 0.4} if p.stiff else {}
    controller = diffrax.PIDController(rtol=rtol, atol=p.share * rtol, **gains)

    def report(y: Any, k: Any) -> Any:
        found = diffrax.diffeqsolve(
            term,
            getattr(diffrax, way.method)(),
            0.0,
            p.end,
            None,
            y,
            k,
            stepsize_controller=controller,
            max_steps=p.most,
            throw=False,
        )
        stats = found.stats
        return (
            found.ys[-1],
            stats["num_accepted_steps"],
            stats["num_rejected_steps"],
            ~diffrax.is_successful(found.result),
        )

    return report, lambda y, k: report(y, k)[0]


class Point(NamedTuple):
    """A way at one tolerance, as it was measured."""

    way: str
    rtol: float
    error: float
    forward_ms: float
    gradient_ms: float | None
    steps: int
    rejected: int
    reached: bool


def measured(p: Problem, framework: str, seconds: float, in_turn: Callable[..., Any]) -> dict[str, Any]:
    """Return the points of a framework, and for each peer the ratios at equal error."""
    warnings.filterwarnings("ignore")
    truth, found = reference(p), runs(p, framework)
    counts = [run.steps() for run in found]
    begin = time.perf_counter()
    errors = [error_of(run.forward(), truth) for run in found]
    many = time.perf_counter() - begin < seconds
    forward = _timed([run.forward for run in found], seconds, in_turn, many=many)
    with_gradient = [i for i, run in enumerate(found) if run.gradient is not None]
    gradient = _timed([found[i].gradient for i in with_gradient], seconds, in_turn, many=many)
    of_gradient = {i: error_of(found[i].gradient()[0], truth) for i in with_gradient}
    points = [
        Point(run.way.name, run.rtol, error, statistics.median(forward[i]), None, *count)
        for i, (run, error, count) in enumerate(zip(found, errors, counts, strict=True))
    ]
    for place, i in enumerate(with_gradient):
        points[i] = points[i]._replace(gradient_ms=statistics.median(gradient[place]))
    own, *peers = ways(p, framework)
    rows = []
    for peer in peers:
        of = {"forward": (range(len(found)), forward), "gradient": (with_gradient, gradient)}
        for stage, (places, times) in of.items():
            error_at = errors if stage == "forward" else of_gradient
            curves = [
                [
                    (error_at[i], times[k])
                    for k, i in enumerate(places)
                    if found[i].way == way and counts[i][2] and error_at[i] < LARGEST_ERROR
                ]
                for way in (own, peer)
            ]
            if stage == "gradient" and not any(found[i].way == peer for i in places):
                continue
            rows.append({"peer": peer.name, "pass": stage, **_at_equal_error(*curves)})
        of_peer = next(run for run in found if run.way == peer)
        if found[0].compile_s is not None and of_peer.compile_s is not None:
            for stage, a, b in zip(("compile", "compile gradient"), found[0].compile_s, of_peer.compile_s, strict=True):
                if b == 0:
                    continue
                rows.append({"peer": peer.name, "pass": stage, "ms": 1e3 * a, "ratio": a / b, "spread": [a / b, a / b]})
    return {"points": [point._asdict() for point in points], "rows": rows}


def _timed(
    calls: Sequence[Callable[[], Any]], seconds: float, in_turn: Callable[..., Any], *, many: bool
) -> list[list[float]]:
    """Return the milliseconds of processor time of each call in each round."""
    if not calls:
        return []
    rounds = in_turn(calls, seconds, 5 if many else 2, warm=int(many))
    return [[1e3 * laps[i].cpu for laps in rounds] for i in range(len(calls))]


Curve = list[tuple[float, list[float]]]
"""The error of each tolerance, with the times of all rounds."""


def _at_equal_error(own: Curve, peer: Curve) -> dict[str, Any]:
    """Return the ratio of the times at equal errors, its quartiles over the rounds, and where it was taken."""
    if len(own) < 2 or len(peer) < 2:
        return {"ms": None, "ratio": None, "spread": None, "note": "too few runs reached the end"}
    ends = [sorted(error for error, _ in curve) for curve in (own, peer)]
    low, high = max(e[0] for e in ends), min(e[-1] for e in ends)
    at = np.geomspace(low, high, 3) if low < high else np.asarray([(low * high) ** 0.5])
    ratios, times = [], []
    for k in range(min(len(curve[0][1]) for curve in (own, peer))):
        a, b = (_log_times(at, [(error, laps[k]) for error, laps in curve]) for curve in (own, peer))
        ratios.append(float(np.exp(np.mean(a - b))))
        times.append(float(np.exp(np.mean(a))))
    spread = [float(x) for x in np.quantile(ratios, [0.25, 0.75])]
    found = {"ms": statistics.median(times), "ratio": statistics.median(ratios), "spread": spread}
    return {**found, "errors": [float(at[0]), float(at[-1])], "note": "" if low < high else "extrapolated"}


def _log_times(at: Any, curve: list[tuple[float, float]]) -> Any:
    """Return the logarithm of the time at some errors, linear between the points and beyond them."""
    x, y = np.log(np.asarray(sorted(curve))).T
    keep = np.concatenate([[True], np.diff(x) > 1e-9])
    x, y = x[keep], y[keep]
    if len(x) == 1:
        return np.full(len(at), y[0])
    place = np.clip(np.searchsorted(x, np.log(at)) - 1, 0, len(x) - 2)
    return y[place] + (np.log(at) - x[place]) * (y[place + 1] - y[place]) / (x[place + 1] - x[place])
