"""`solve_ivp`: the signature and the result of SciPy's function of this name, differentiable on every backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, full
from dil._base.errors import OptionError, ShapeError
from dil._base.status import Status
from dil._base.typing import Array, OnFailure, Tree
from dil._frameworks.adoption import run_in_its_framework
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import adopted, guarded, load, owner
from dil._frameworks.reports import Listener
from dil._layers.first_calls import is_readable
from dil.linear._solver import LinearSolver
from dil.ode._crossings import held
from dil.ode._curve import Curve
from dil.ode._dense import interpolate
from dil.ode._field import Field
from dil.ode._integration import Integration, Run
from dil.ode._odeint import as_arguments, begin, crossings, judged, stacked, times_like
from dil.ode._options import AUTO, METHODS, Options
from dil.ode._verdict import report_if_nonzero

NAMES = {"RK45": "dopri5", "Radau": "radau", "LSODA": AUTO}
"""SciPy's names of methods that are here."""
OTHERS = {
    "RK23": "'RK45' or 'tsit5'",
    "DOP853": "'RK45' or 'tsit5'",
    "BDF": "'Radau' or 'kvaerno5'",
}
"""SciPy's names of methods that are not, and what to take."""
IN_WORDS = {
    Status.DIVERGED: "the solution has a pole there",
    Status.MAX_ITER: "max_steps= steps were taken; raise it, or loosen the tolerances",
    Status.STAGNATED: "the steps became as short as rounding allows; look for a pole or a jump there",
    Status.WRONG_DERIVATIVE: "jac is not the derivative of fun; its entry in row i and column j is df_i/dy_j",
    Status.MORE_EVENTS: "this is the last event that is kept, and there are later ones; raise max_events=",
    Status.NON_FINITE: "fun returned NaN or infinity there, however short the step",
}
"""What a status says of a differential equation."""


@dataclass(frozen=True)
class DenseOutput:
    """The solution as a function of time: `sol(t)` returns the states, (n,) for a number and (n, T) for times (T,).

    It is differentiable in t and in what the solution depends on. A time outside of the span gets the polynomial of the
    nearest step.
    """

    curve: Curve
    field: Field

    def __call__(self, t: Any) -> Array:
        """Return the states at the times t, shape () or (T,).

        Raises
        ------
        ShapeError
            If t has more dimensions.
        """
        like, field = self.curve.states, self.field
        t = _array_of(t, like, field.backend)
        if t.ndim > 1:
            message = f"t has shape {tuple(t.shape)}; expected () or (T,)"
            raise ShapeError(message)
        times = field.sign * (t if t.ndim else t[None])
        states = field.trajectory(interpolate(field.backend, times, *self.curve, extends=True))
        rows = array_namespace(states).moveaxis(states, 0, -1)
        return rows if t.ndim else rows[..., 0]  # type: ignore[no-any-return]


def _array_of(t: Any, like: Array, backend: Backend) -> Array:
    """Return times as an array of the backend. Numbers, lists and constant arrays of NumPy are converted."""
    own, xp = owner(t), array_namespace(like)
    if own is backend:
        return xp.astype(t, like.dtype) if xp.isdtype(t.dtype, "integral") else t  # type: ignore[no-any-return]
    if own is None and isinstance(t, list | tuple) and any(owner(x) is not None for x in t):
        return stacked(t, like)
    if own is not None and own is not load("numpy"):
        return t  # type: ignore[no-any-return]
    if own is not None:
        own.assert_constant(t, "times of NumPy that take part in a differentiation, beside a state that is none")
    return backend.asarray(t, dtype=like.dtype, device=device(like))


class OdeResult(NamedTuple):
    """What `dil.ode.solve_ivp` returns, with SciPy's names.

    Attributes
    ----------
    t : array, shape (T,)
        `t_eval`, or the times of the steps.
    y : array, shape (n, T)
        The states at t. They are differentiable, as are t where an event ends the solve, `t_events` and `y_events`.
    sol : DenseOutput or None
        The solution as a function of time, with `dense_output=True`.
    t_events, y_events : list of arrays, (K,) and (K, n), or None
        The times of the events, and the states.
    code : int array, shape ()
        A code of `dil.Status`: why the solve failed, or zero.
    ended_by : int array, shape ()
        The number of the event, from zero, that ended the solve; -1 if none did.
    failed_at : float array, shape ()
        The time at which the step begins that failed; infinity if none failed.
    steps, rejected, iterations : int arrays, shape ()
        The steps taken, the attempts rejected, and the iterations of the solver of the stages.
    """

    t: Array
    y: Array
    sol: DenseOutput | None
    t_events: list[Array] | None
    y_events: list[Array] | None
    code: Array
    ended_by: Array
    failed_at: Array
    steps: Array
    rejected: Array
    iterations: Array

    @property
    def status(self) -> Array:
        """-1 if the solve failed, 1 if an event ended it, and 0 if it reached the end of `t_span`; shape ()."""
        xp = array_namespace(self.code)
        ended = xp.astype(self.ended_by >= 0, self.code.dtype)
        return xp.where(self.code != 0, 0 * ended - 1, ended)  # type: ignore[no-any-return]

    @property
    def success(self) -> Array:
        """Whether the solve did not fail, shape ()."""
        return self.code == 0

    @property
    def message(self) -> str:
        """What happened, in words. The numbers must be at hand: look at it outside of compiled programs."""
        code = Status(int(self.code))
        if not code.ok:
            return f"{code.name} at t = {float(self.failed_at):.6g}: {IN_WORDS.get(code, code.sentence)}"
        by = int(self.ended_by)
        return "the end of t_span is reached" if by < 0 else f"event {by} ended the solve"

    def __getattr__(self, name: str) -> Any:
        """Raise an error for the counts of SciPy that are not counted here."""
        if name in ("nfev", "njev", "nlu"):
            message = f"{name} is not counted; steps, rejected and iterations are"
            raise AttributeError(message)
        message = f"an OdeResult has no attribute {name!r}"
        raise AttributeError(message)


def solve_ivp(
    fun: Callable[..., Array],
    t_span: Any,
    y0: Any,
    method: str = "RK45",
    t_eval: Any = None,
    dense_output: bool = False,
    events: Any = None,
    *,
    args: Any = None,
    rtol: float = 1e-3,
    atol: Any = 1e-6,
    first_step: float | None = None,
    max_step: float | None = None,
    max_steps: int = 10000,
    max_events: int = 16,
    jac: Any = None,
    linear_solver: LinearSolver | None = None,
    on_failure: OnFailure = "warn",
) -> OdeResult:
    """Return the solution of dy/dt = fun(t, y, *args), y(t_span[0]) = y0, as SciPy's `solve_ivp` does.

    Parameters
    ----------
    fun : callable
        `fun(t, y, *args)` returns dy/dt, an array of shape (n,); t is an array of shape ().
    t_span : pair
        The first and the last time, numbers or arrays of shape (). Time may run backwards.
    y0 : array, shape (n,)
        The state at the first time, a float array of any backend. A list of numbers is a NumPy array.
    method : str
        "RK45", which is "dopri5", or "Radau" for a stiff problem, which is "radau", or "LSODA", which is "auto", or
        another method of `dil.ode.odeint` that estimates its error.
    t_eval : array or sequence, shape (T,), optional
        Sorted times within the span at which the states are returned. The default are the times of the steps, which a
        program of JAX does not know: give `t_eval` there.
    dense_output : bool
        Whether the result has the solution as a function of time.
    events : callable, dil.ode.Event, or a sequence of them, optional
        As in SciPy; see `dil.ode.Event`. An event at the start does not count.
    args : tuple, or one tree, optional
        The other arguments of fun, of the events and of jac.
    rtol : float
    atol : float or array, shape (n,)
        A step may have an error of rtol |y| + atol. atol=None is in units of y: see `dil.ode.odeint`.
    max_step : float, optional
        The longest step; infinity and None stand for none.
    jac : callable or matrix, optional
        As for `dil.ode.odeint`. A method that needs none ignores it, with a warning.
    first_step, max_steps, max_events, linear_solver, on_failure
        As for `dil.ode.odeint`.

    Returns
    -------
    OdeResult
        t and y end where an event or a failure ends the solve. In a program of JAX they have all times, and later
        states are that of the end.

    Raises
    ------
    OptionError
        If an option is out of range or unknown, or a method of SciPy is not here.
    ShapeError, DTypeError, BackendError, CapturedError, ConvergenceError
        As `dil.ode.odeint` does.

    Notes
    -----
    `vectorized`, `jac_sparsity`, `lband`, `uband` and `min_step` of SciPy are not here.

    Examples
    --------
    >>> import numpy as np, dil
    >>> found = dil.ode.solve_ivp(lambda t, y: -0.5 * y, [0, 10], [2.0, 4.0, 8.0], t_eval=[0, 1, 2, 4, 10])
    >>> found.y.shape, bool(found.success), found.message
    ((3, 5), True, 'the end of t_span is reached')
    >>> slope = dil.grad(lambda y0: dil.ode.solve_ivp(lambda t, y: -0.5 * y, [0, 1], y0).y[0, -1])(np.asarray([2.0]))
    >>> bool(np.allclose(slope, np.exp(-0.5), rtol=1e-4))
    True
    """
    options = Options(
        method=_method(method),
        linear_solver=linear_solver,
        rtol=rtol,
        atol=atol,
        first_step=first_step,
        max_step=None if max_step == float("inf") else max_step,
        max_steps=max_steps,
        jac=_used(jac, method),
        on_failure=on_failure,
        events=events,
        max_events=max_events,
    )
    if not isinstance(dense_output, bool):
        message = f"dense_output={dense_output!r}; expected True or False"
        raise OptionError(message)
    span = _span(t_span)

    def run(y0: Tree, span: tuple[Any, Any], t_eval: Any, args: tuple[Tree, ...]) -> OdeResult:
        return _solve(fun, y0, span, t_eval, args, options, dense_output)

    def rate(y0: Tree, span: tuple[Any, Any], t_eval: Any, args: tuple[Tree, ...]) -> Tree:
        return fun(span[0], y0, *args)

    given = () if args is None else as_arguments(args)
    return guarded(run_in_its_framework, run, rate, _state(y0), span, t_eval, given)  # type: ignore[no-any-return]


def _method(name: Any) -> str:
    """Return the name of a method here."""
    if not isinstance(name, str):
        message = f"method={name!r}; expected the name of a method"
        raise OptionError(message)
    if name in OTHERS:
        message = f"method={name!r} of SciPy is not here; take method={OTHERS[name]}"
        raise OptionError(message)
    found = NAMES.get(name, name)
    if found not in (*METHODS, AUTO):
        message = f"method={name!r} is unknown; expected one of {', '.join((*NAMES, *METHODS, AUTO))}"
        raise OptionError(message)
    return found


def _used(jac: Any, method: str) -> Any:
    """Return jac if the method uses it. Else warn as SciPy does, and return None."""
    name = _method(method)
    if jac is None or name == AUTO or METHODS[name].implicit:
        return jac
    warnings.warn(f"jac= is not used by the explicit method {method!r}", UserWarning, stacklevel=3)
    return None


def _span(t_span: Any) -> tuple[Any, Any]:
    """Return the first and the last time."""
    try:
        first, last = t_span
    except (TypeError, ValueError):
        message = f"t_span={t_span!r}; expected a pair, the first and the last time"
        raise OptionError(message) from None
    return first, last


def _state(y0: Any) -> Any:
    """Return the state. A list of numbers is an array of NumPy."""
    numpy = load("numpy")
    if isinstance(y0, list | tuple) and all(isinstance(x, int | float | complex) for x in y0):
        return numpy.asarray(y0, dtype=complex if any(isinstance(x, complex) for x in y0) else float)
    if getattr(y0, "ndim", None) == 1:
        whole = owner(y0) is numpy and numpy.namespace().isdtype(y0.dtype, "integral")
        return numpy.asarray(y0, dtype=float) if whole else y0
    shape = f"shape {tuple(y0.shape)}" if hasattr(y0, "shape") else f"type {type(y0).__name__}"
    message = f"y0 is of {shape}; expected an array of shape (n,); for a tree or a batch take dil.ode.odeint"
    raise ShapeError(message)


def _solve(
    fun: Callable[..., Array],
    y0: Tree,
    span: tuple[Any, Any],
    t_eval: Any,
    args: tuple[Tree, ...],
    options: Options,
    dense_output: bool,
) -> OdeResult:
    integration, y, ends, arrays = begin(fun, y0, list(span), args, options)
    integration = replace(integration, keeps_curve=True)
    backend, sign = integration.backend, integration.field.sign
    run = integration.run_at(y, ends, arrays)
    curve = _start(sign * ends, y) if run.curve is None else run.curve
    times = None if t_eval is None else _within(t_eval, ends, y, integration)
    s, rows = _steps(curve, run, sign * ends, backend) if times is None else _at(sign * times, curve, run, backend)
    states = integration.field.trajectory(judged(integration, rows, s, run))
    constant, xp = backend.constant, array_namespace(y)
    found = [crossings(integration.field, each) for each in run.events]

    def integer(x: Array) -> Array:
        return xp.astype(constant(x), xp.int32)  # type: ignore[no-any-return]

    failed = constant(run.verdict.begin)
    code = integer(run.verdict.status)
    return OdeResult(
        s if sign > 0 else 0.0 - s,
        xp.moveaxis(states, 0, -1),
        DenseOutput(curve, integration.field) if dense_output else None,
        None if options.events is None else [each.t for each in found],
        None if options.events is None else [each.y for each in found],
        code,
        xp.asarray(0 * code - 1) if run.stop is None else integer(run.stop.by),
        xp.where(failed < float("inf"), sign * failed, failed),
        *map(integer, (run.steps, run.rejected, run.iterations)),
    )


def _start(s: Array, y: Array) -> Curve:
    """Return the dense output of a solve without a step: a step of no length."""
    twice = array_namespace(y).stack([y, y])
    return Curve(s, twice, 0.0 * twice, 0.0 * twice[:1, ...])


def _within(t_eval: Any, ends: Array, y: Array, integration: Integration) -> Array:
    """Return the times as an array. If one is outside of the span or they are not sorted, raise."""
    backend, sign = integration.backend, integration.field.sign
    xp, given = array_namespace(y), _array_of(adopted((t_eval,), (y,))[0], y, backend)
    times = times_like(given, y, backend)
    plain, ends = sign * backend.constant(times), sign * backend.constant(ends)
    falls = xp.concat([full(plain[:1], False, dtype=xp.bool), plain[1:] < plain[:-1]])
    wrong = xp.astype(~((plain >= ends[0]) & (plain <= ends[1])) | falls, y.dtype)  # True for NaN
    return times + report_if_nonzero(backend, Listener("dil.ode._solve_ivp:refuse", ()), wrong)


def refuse(wrong: Any) -> None:
    """Raise if a time of `t_eval` is outside of the span, or before the one before it."""
    if wrong.any():
        message = (
            f"t_eval[{int(wrong.argmax()) % wrong.shape[-1]}] is outside of t_span, or t_eval is not sorted in the "
            f"direction of the integration there; expected sorted times within t_span"
        )
        raise OptionError(message)


def _at(s: Array, curve: Curve, run: Run, backend: Backend) -> tuple[Array, Array]:
    """Return those of the times s, (T,), that are reached, and the states there, (T, n)."""
    rows = interpolate(backend, s, *curve)
    if run.stop is not None:
        rows = held(run.stop, rows, s, backend)
    if not (is_readable(backend, s) and is_readable(backend, curve.knots)):
        return s, rows
    last = _end(curve, run, backend)
    count = sum(1 for x in backend.to_numpy(backend.constant(s)).tolist() if x <= last)
    return s[:count], rows[:count, ...]


def _end(curve: Curve, run: Run, backend: Backend) -> float:
    """Return the time until which the solution is known; infinity if it is known to the end of the span."""
    if run.stop is not None and int(backend.constant(run.stop.by)) >= 0:
        return float(backend.constant(run.stop.t))
    # the end of the last step differs from that of the span by rounding
    return float("inf") if int(backend.constant(run.verdict.status)) == 0 else float(backend.constant(curve.knots)[-1])


def _steps(curve: Curve, run: Run, ends: Array, backend: Backend) -> tuple[Array, Array]:
    """Return the times and the states at the ends of the steps, with the first and the last time.

    Raises
    ------
    OptionError
        If a program is traced that does not know them.
    """
    if not is_readable(backend, curve.knots):
        message = (
            "solve_ivp without t_eval= returns the times of its steps, whose number a program that is traced does not "
            "know; give t_eval="
        )
        raise OptionError(message)
    xp, count = array_namespace(curve.knots), max(2, int(backend.constant(run.steps)) + 1)
    last, knots = _end(curve, run, backend), curve.knots[:count]
    if last == float("inf"):  # the end of the span has a derivative
        s = xp.concat([ends[:1], knots[1:-1], ends[1:]])
        return s, interpolate(backend, s, *curve)
    s = xp.concat([ends[:1], knots[1:]])
    rows = interpolate(backend, s, *curve)
    if run.stop is None or int(backend.constant(run.stop.by)) < 0:
        return s, rows
    count = sum(1 for x in backend.to_numpy(backend.constant(s)).tolist() if x < last)
    return xp.concat([s[:count], run.stop.t[None]]), xp.concat([rows[:count, ...], run.stop.y[None, ...]])
