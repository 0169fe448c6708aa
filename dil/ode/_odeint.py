"""`odeint`: the differentiable states of an ODE at given times. `solve`: the states with a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, full
from dil._base.errors import BackendError, DTypeError, OptionError, ShapeError
from dil._base.typing import Array, Arrays, OnFailure, Tree
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.adoption import run_in_its_framework
from dil._frameworks.arguments import split_arguments, with_complex_split
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import adopted, adopted_tree, common_owner, guarded, leaves_of, load, owner
from dil._layers.call import Solver
from dil._problem.space import space_of
from dil.linear._solver import LinearSolver
from dil.ode._captured import Start, with_captured
from dil.ode._crossings import Crossings, EventRows
from dil.ode._events import functions_of, refuse_captured_events, without_algebraic
from dil.ode._field import Field
from dil.ode._given_numbers import atol_of, jac_of
from dil.ode._integration import Integration, Run
from dil.ode._mass import mass_of
from dil.ode._options import Consistent, Gradient, Layer, Options
from dil.ode._own_times import check_own_times
from dil.ode._simplified_newton import FOR_VALUE
from dil.ode._times import Times, times_of
from dil.ode._verdict import ADAPTIVE_HINT, EQUAL_STEPS_HINT, JAC_HINT, MASS_HINT, apply_verdict, increasing


def odeint(
    func: Callable[..., Tree],
    y0: Tree,
    t: Any,
    args: Any = (),
    *,
    method: str | None = None,
    solver: Solver | None = None,
    linear_solver: LinearSolver | None = None,
    gradient: Gradient = "implicit",
    layer: Layer = "root",
    steps: int = 1,
    rtol: float | None = None,
    atol: Any = None,
    first_step: float | None = None,
    max_step: float | None = None,
    max_steps: int = 1000,
    checkpoints: int | None = None,
    jac: Any = None,
    unroll: int = 8,
    batch_ndim: int = 0,
    on_failure: OnFailure = "warn",
    events: Any = None,
    max_events: int = 16,
    mass: Any = None,
    consistent: Consistent = "find",
    own_steps: bool = False,
) -> Tree:
    """Return the solution of dy/dt = func(t, y, *args), y(t[0]) = y0, at the times t.

    Parameters
    ----------
    func : callable
        `func(t, y, *args)` returns dy/dt, a tree like y; t is an array of shape (). It may be an object with arrays,
        such as a module of torch or Equinox.
    y0 : tree
        The state at t[0]: float arrays of one dtype.
    t : array or sequence of float, shape (T,)
        Times of the dtype of y0 that all increase or all decrease; two or more may be the same. Times that a program
        such as `jax.jit` traces must increase.
    args : tuple of trees, or one tree
        The other arguments of func. A single argument that is no tuple needs none.
    method : str, optional
        The default is "kvaerno5" for steps that adapt, and otherwise "implicit_euler", that of the paper.
        "implicit_euler", "implicit_midpoint", "trapezoid", "bdf2", "sdirk2", "sdirk3", "kvaerno5" and "radau" are
        implicit, of order 1, 2, 2, 2, 2, 3, 5 and 5. All but the second and the third are L-stable, which suits the
        stiffest problems. "radau" is Radau IIA, whose three stages are solved together (Hairer and Wanner 1996, IV.8).
        "tsit5" (Tsitouras 2011) and "dopri5" (Dormand and Prince 1980) are explicit, of order 5, for problems that are
        not stiff; "euler" is explicit, of order 1, for comparison. "auto" takes steps of "tsit5" while stability does
        not limit them, and of "radau" or, for a state of more than 64 unknowns, "kvaerno5" where it does. It needs
        steps that adapt and operations that run at once; the derivative holds its choice constant.
    solver : callable, optional
        Solves the stages of a step: `dil.ode.StepNewton()` by default, `dil.solvers.FixedPoint()` if the problem is not
        stiff, `dil.solvers.Newton("normal")`, or any solver that a layer takes.
    linear_solver : callable, optional
        Solves the linear systems of the gradient. The default is `dil.linear.Direct()` for a small state and
        `dil.linear.Auto()` for a large one. The paper uses `dil.linear.NormalCG()`, or `CG()` with layer="argmin".
    gradient : {"implicit", "naive", "unroll", "adjoint"}
        "implicit" uses the implicit function theorem with `linear_solver`. "naive" uses it with the dense Jacobian.
        "unroll" differentiates `unroll` iterations of the solver. "adjoint" solves the adjoint ODE backwards in time
        with the same method (Chen et al. 2018); its gradient has a discretisation error of its own.
    layer : {"root", "argmin"}
        Whether a stage is a root of its residual r or, as in the paper, the minimiser of 1/2 ||r||^2.
    steps : int
        The number of equal steps between two times.
    rtol : float, optional
    atol : float, or tree like y0, optional
        If one is given, the step size adapts: the error of a step is kept within rtol |y| + atol, in the root mean
        square over the state of a problem. A tree has a tolerance for each entry; it has no derivative. The problems of
        a batch share their steps and `max_steps`, unless `own_steps`. If only one is given, the other is rtol=1e-6, or
        an atol in units of y: 1e-3 rtol times the largest value that an entry has had, and 4 eps times the largest
        value of all. The error of "radau" is of a higher order than its estimate, which may be 0.1 rtol^(2/3).
    first_step, max_step : float, optional
        The first step size to try, and the longest one, if steps adapt.
    max_steps : int
        The largest number of adaptive steps. Under `jax.jit` the program has memory for the times of that many.
    checkpoints : int, optional
        The number of states that the gradient of adaptive steps keeps; it takes the steps between them again, one block
        after the other. By default all steps are kept where operations run at once. Under `jax.jit`, the default is the
        square root of max_steps, and with this option the stages of implicit methods are solved again, too.
    jac : callable or matrix, optional
        `jac(t, y, *args)` returns df_i/dy_j of each problem, (*batch, n, n), where y is one array. The iterations of
        adaptive steps use it; no derivative does. A constant one may be given as a matrix of numbers. Where y is
        complex, it may be complex, as of SciPy, or that of the parts of the entries, (*batch, 2 n, 2 n). It may be
        rough; where a solve fails and it is wrong by 10 % or more, the status is WRONG_DERIVATIVE. By default it is
        computed from func.
    unroll : int
        The number of iterations of a stage for gradient="unroll".
    batch_ndim : int
        The number of leading dimensions of y that count independent problems, each with its own status.
    on_failure : {"warn", "raise", "nan", "ignore"}
        What to do if a step or a linear solve fails. "nan" replaces the later states of that problem, and its whole
        gradient, by NaN.
    events : callable, dil.ode.Event, or a sequence of them, optional
        Functions `event(t, y, *args)` that return a float array of shape batch. An event is where one crosses zero. It
        may end the solve: see `dil.ode.Event`. Steps must adapt.
    max_events : int
        The number of events of each function that a program of JAX, or one that is mapped by `vmap`, has memory for.
        More of them end the solve MORE_EVENTS.
    mass : array, shape (n, n) or (n,), optional
        The constant matrix M of M dy/dt = func(t, y, *args), or its diagonal, for a y of n entries in the order of its
        leaves. It may be singular, if the index is 1: each row that M has not then gives an algebraic equation 0 =
        func_i(t, y, *args). The implicit methods take it, except "implicit_midpoint".
    consistent : {"find", "check"}
        What to do with a y0 that does not satisfy the algebraic equations. "find" keeps M y0 and solves for the rest.
        "check" fails with the status INCONSISTENT.
    own_steps : bool
        Whether each problem of a batch has its own adaptive steps, as if it were solved alone. func and jac are then
        called with t of shape batch, a time for each problem.

    Returns
    -------
    tree
        Like y0 with a leading dimension of times. It is differentiable in y0, t, the float arrays of args and those
        that func and the events capture, in both modes and to any order; with "adjoint" in reverse mode only.
    tuple of dil.ode.Crossings
        Only with `events`: one for each function, with times and states that are differentiable likewise. Then the
        result is a pair. After an event that ends the solve of a problem, the states at later times are that of the
        event.

    Raises
    ------
    OptionError
        If an option is out of range or unknown, or t neither increases nor decreases.
    ShapeError, DTypeError, BackendError, CapturedError
        If y0 is empty, the result of func is not like the state, or arrays differ in dtype or backend. CapturedError
        if func captures an array that is differentiated and uses it in a way that cannot be followed.
    ConvergenceError
        If a step fails and `on_failure` is "raise".

    Notes
    -----
    A step solves one or more stages z = base + gh f(t, z). Each stage is a layer (Look et al. 2020, section 3.1,
    eq. 4). Its first guess extrapolates with the slope of the previous stage, if this lowers the residual enough. The
    gradient is that of the discrete solution.

    With adaptive steps, the stages of a small state are solved by simplified Newton iterations, whose Jacobian is kept
    over steps (Hairer and Wanner 1996, IV.8), unless `solver` is given. The step size follows the errors of the last
    two steps (Söderlind 2003). The gradient holds the mesh constant. A cubic polynomial interpolates the state within a
    step, from the states and the slopes at its ends; for the methods of order 5 it is of degree 4.

    The function of an event is evaluated at four points of each step, on this polynomial. An event is found if the sign
    changes from one point to the next, and two in between are not. A function that is zero at the start, to eps^(1/2)
    of the first step, has no event there. The place of an event on the polynomial is found to rounding, and has the
    derivative of the implicit function theorem.

    Examples
    --------
    >>> import numpy as np, dil
    >>> y = dil.ode.odeint(lambda t, y, rate: -rate * y, np.asarray(2.0), [0.0, 0.5, 1.0], (np.asarray(1e4),))
    >>> bool(np.allclose(y, [2.0, 2.0 / 5001, 2.0 / 5001**2]))
    True
    """
    options = Options(
        method=method,
        solver=solver,
        linear_solver=linear_solver,
        gradient=gradient,
        layer=layer,
        steps=steps,
        rtol=rtol,
        atol=atol,
        first_step=first_step,
        max_step=max_step,
        max_steps=max_steps,
        checkpoints=checkpoints,
        jac=jac,
        unroll=unroll,
        batch_ndim=batch_ndim,
        on_failure=on_failure,
        events=events,
        max_events=max_events,
        consistent=consistent,
        own_steps=own_steps,
    )

    def run(y0: Tree, t: Any, args: tuple[Tree, ...], mass: Any = None) -> Tree:
        return _odeint(func, y0, t, args, options, mass)

    return guarded(run_in_its_framework, run, _rate_at_start(func), y0, t, as_arguments(args), *_given(mass))


def _given(mass: Any) -> tuple[Any, ...]:
    return () if mass is None else (mass,)


def as_arguments(args: Any) -> tuple[Tree, ...]:
    """Return the arguments. A single one, such as a named tuple, may come without a tuple around it."""
    return args if type(args) is tuple else (args,)


class Trajectory(NamedTuple):
    """The states of an ODE with a report on the solution; made by `dil.ode.solve`.

    Attributes
    ----------
    value : tree
        The states at the times. They have no derivative.
    status : int array, shape batch
        Codes of `dil.Status`: the first failure of each problem.
    failed_at : float array, shape batch
        The time at which the first failed step begins; infinity if none failed. With MORE_EVENTS, that of the last
        event that is kept.
    steps, rejected : int arrays, shape (), or batch with own steps
        The numbers of steps taken and of attempts rejected.
    iterations, linear : int arrays, shape batch
        Iterations of the solver of the stages, and of its linear solver if it counts them. Those of attempts that were
        rejected are included.
    events : tuple of dil.ode.Crossings
        What was found of each event.
    ended_by : int array, shape batch, or None
        The number of the event, from zero, that ended the solve; -1 if none did, and None if there are no events.
    implicit_steps : int array, shape (), or None
        With method="auto", the number of steps of the implicit method; None with others.
    changed_at : float array, or None
        With method="auto", the times at which the method changed: to the implicit one first, then back, and so on.
    """

    value: Tree
    status: Array
    failed_at: Array
    steps: Array
    rejected: Array
    iterations: Array
    linear: Array
    events: tuple[Crossings, ...] = ()
    ended_by: Array | None = None
    implicit_steps: Array | None = None
    changed_at: Array | None = None

    @property
    def t_events(self) -> tuple[Array, ...]:
        """The times of the events, as of SciPy's `solve_ivp`."""
        return tuple(found.t for found in self.events)

    @property
    def y_events(self) -> tuple[Tree, ...]:
        """The states at the events."""
        return tuple(found.y for found in self.events)


def solve(
    func: Callable[..., Tree], y0: Tree, t: Any, args: Any = (), *, mass: Any = None, **options: Any
) -> Trajectory:
    """Return the solution with a report. No policy is applied, and the result has no derivative.

    Parameters
    ----------
    func, y0, t, args, mass, **options
        As for `odeint`.

    Returns
    -------
    Trajectory
        Its `value` is what `odeint` returns, up to a thousandth of the error of its steps where they adapt: the stages
        need not be as accurate as for a derivative.

    Raises
    ------
    OptionError, ShapeError, DTypeError, BackendError
        As `odeint` does.

    Examples
    --------
    >>> import numpy as np, dil
    >>> found = dil.ode.solve(lambda t, y: -50.0 * (y - np.cos(t)), np.zeros(1), [0.0, 2.0], method="sdirk3", rtol=1e-4)
    >>> dil.Status(int(found.status)).name, bool(found.steps < 200)
    ('CONVERGED', True)
    """
    unknown = sorted(set(options) - set(Options.__dataclass_fields__))
    if unknown:
        message = f"solve got unknown options {', '.join(unknown)}; expected those of dil.ode.odeint"
        raise OptionError(message)
    chosen = Options(**options)

    def run(y0: Tree, t: Any, args: tuple[Tree, ...], mass: Any = None) -> Trajectory:
        return _solve(func, y0, t, args, chosen, mass)

    return guarded(run_in_its_framework, run, _rate_at_start(func), y0, t, as_arguments(args), *_given(mass))  # type: ignore[no-any-return]


def _rate_at_start(func: Callable[..., Tree]) -> Callable[..., Tree]:
    """Return the function of y0, t, args and perhaps the mass that is func at the first time."""
    return lambda y0, t, args, *mass: func(t[0], y0, *args)


def _odeint(
    func: Callable[..., Tree], y0: Tree, t: Any, args: tuple[Tree, ...], options: Options, mass: Any = None
) -> Tree:
    integration, y, times, arrays = begin(func, y0, t, args, options, mass)
    run, field = integration.run_at(y, times, arrays), integration.field
    states = field.trajectory(judged(integration, run.rows, field.sign * times, run))
    return (states, tuple(crossings(field, x) for x in run.events)) if options.events is not None else states


def judged(integration: Integration, rows: Array, s: Array, run: Run) -> Array:
    """Apply the policy to the failures of a run. Return the states at the times s, which increase."""
    hint = ADAPTIVE_HINT if integration.options.adapts else EQUAL_STEPS_HINT
    field = integration.field
    if field.mass_arrays:
        hint = f"{hint}. {MASS_HINT}"
    if integration.options.jac is not None:
        hint = f"{hint}. {JAC_HINT}"
    return apply_verdict(integration.policy, field.backend, rows, s, run.verdict, hint, field.sign)


def crossings(field: Field, found: EventRows) -> Crossings:
    """Return the events of one function in the user's terms."""
    xp = array_namespace(field.backend.constant(found.t))
    status, count = (xp.asarray(x, dtype=xp.int32) for x in (found.status, found.counts))
    return Crossings(field.sign * found.t, field.trajectory(found.y), status, count)


def _solve(
    func: Callable[..., Tree], y0: Tree, t: Any, args: tuple[Tree, ...], options: Options, mass: Any = None
) -> Trajectory:
    integration, y, times, arrays = begin(func, y0, t, args, replace(options, on_failure="ignore"), mass)
    integration = replace(integration, accuracy=FOR_VALUE)
    constant = integration.backend.constant
    run = integration.run_at(constant(y), constant(times), tuple(constant(x) for x in arrays))
    xp, begin_of = array_namespace(y), run.verdict.begin
    failed_at = xp.where(begin_of < float("inf"), integration.field.sign * begin_of, begin_of)
    steps, rejected, iterations, linear = (
        xp.astype(x, xp.int32) for x in (run.steps, run.rejected, run.iterations, run.linear)
    )
    return Trajectory(
        integration.field.trajectory(constant(run.rows)),
        xp.astype(run.verdict.status, xp.int32),
        failed_at,
        steps,
        rejected,
        iterations,
        linear,
        tuple(crossings(integration.field, EventRows(*map(constant, x))) for x in run.events),
        None if run.stop is None else xp.asarray(constant(run.stop.by), dtype=xp.int32),
        None if run.implicit_steps is None else xp.astype(run.implicit_steps, xp.int32),
        None if run.changed_at is None else integration.field.sign * run.changed_at,
    )


def begin(
    func: Callable[..., Tree], y0: Tree, t: Any, args: tuple[Tree, ...], options: Options, mass: Any = None
) -> tuple[Integration, Array, Array, Arrays]:
    """Check a call. Return it with its state as a vector, its times and the arrays of its arguments.

    Those of the mass matrix come last.
    """
    if not callable(func):
        message = f"func={func!r} of type {type(func).__name__}; expected a callable, func(t, y, *args)"
        raise OptionError(message)
    count = len(args)
    if mass is not None:
        options.refuse_with_mass()
        args = (*args, _matrix(mass, leaves_of(y0)[0]))
    arrays, arguments = with_complex_split(*split_arguments(args, {}, leaves_of(y0)[0]))
    users = len(arrays) - (len(args) - count)
    y, space = space_of(adopted_tree(y0, arrays), options.batch_ndim, "y0")
    if space.dimension == 0:
        message = f"y0 is {space.describe()}, a state without an entry, so there is nothing to integrate"
        raise ShapeError(message)
    options = replace(options, atol=atol_of(options.atol, space), jac=jac_of(options.jac))
    options.refuse_below(4 * float(eps(array_namespace(y), y.dtype)), y.dtype)
    names = ["y0", *(f"{arguments.name(i)} of args" for i in range(len(arrays)))]
    if mass is not None:
        names[-1] = "mass"
    backend = common_owner([y, *arrays], names, "odeint")
    times = times_like(adopted((t,), (y,))[0], y, backend)
    given, _ = arguments.call([backend.constant(x) for x in arrays])
    first = Start(backend.constant(times[0]), backend.constant(y), space)
    found = with_captured(func, options, backend, first, given[:count])
    if found.captured:
        func, options, captured, more = found
        args = (*args[:count], *captured, *args[count:])
        names[1 + users :] = [*more, *names[1 + users :]]
        arrays, arguments = with_complex_split(*split_arguments(args, {}, (y,)))
    for i, x in zip(arguments.floats, arguments.only_floats(arrays), strict=True):
        if x.dtype != y.dtype:
            message = f"{names[1 + i]} has dtype {x.dtype}, but y0 has {y.dtype}; cast one of them"
            raise DTypeError(message)
    parts: Arrays = ()
    if mass is not None:
        parts, (given, _) = mass_of(arrays[-1], y, space, backend), arguments.call(arrays)
        arrays, arguments = with_complex_split(*split_arguments((*given[:-1], *parts), {}))
    if parts and options.watched and space.batch != ():
        message = "events= of a batch with mass=; solve the problems one by one, without batch_ndim="
        raise OptionError(message)
    freezes = any(event.terminal for event in options.watched) and space.batch != ()
    if freezes:  # the steps of a batch go on when an event has ended one of its problems
        going = full(y[..., 0], True, dtype=array_namespace(y).bool)
        arrays, arguments = with_complex_split(*split_arguments((*args, going, backend.constant(y)), {}, (y,)))
    own_times = options.own_steps and space.batch != ()
    given = backend.fixed(func), space, arguments, backend
    field = Field(*given, freezes=freezes, mass_arrays=len(parts), own_times=own_times)
    known = times_of(times, t, backend)
    if known is None:
        times, known = increasing(times, backend), Times()
    field = replace(field, sign=known.sign)
    start = known.sign * times[0]
    field.refuse_captured(start, y, tuple(arrays))
    if own_times and 0 not in y.shape:
        y = check_own_times(field, known.sign * times, y, tuple(arrays))
    events = functions_of(options.watched, field)
    refuse_captured_events(events, start, y, tuple(arrays))
    y = without_algebraic(events, start, y, tuple(arrays))
    policy = Policy(options.on_failure, f"odeint of {field.name!r}")
    return Integration(field, options, policy, known, events=events), y, times, tuple(arrays)


def _matrix(mass: Any, state: list[Any]) -> Any:
    """Return the mass matrix. One of numbers, or of NumPy, becomes an array like the leaves of the state."""
    own, numpy, first = owner(mass), load("numpy"), next((x for x in state if owner(x) is not None), None)
    if own is None and isinstance(mass, list | tuple) and any(owner(x) is not None for x in mass):
        return stacked(mass, next(x for x in mass if owner(x) is not None))
    if own is not None and (own is not numpy or first is None or owner(first) is numpy):
        return mass
    if own is numpy:
        message = "mass is a NumPy array that takes part in a differentiation, but y0 is none of NumPy; convert one"
        own.assert_constant(mass, message)
    if first is None:
        return numpy.asarray(mass, dtype=float)
    return owner(first).asarray(mass, dtype=first.dtype, device=device(first))  # type: ignore[union-attr]


def stacked(numbers: Any, like: Array) -> Array:
    """Return numbers and arrays of shape () as one vector. Each may carry a derivative."""
    backend, xp = owner(like), array_namespace(like)
    return xp.stack([x if owner(x) is backend else full(like, x, shape=()) for x in numbers])  # type: ignore[no-any-return]


def times_like(t: Any, y: Array, backend: Backend) -> Array:
    """Return the times as a vector with the backend, dtype and device of the state."""
    t_backend = owner(t)
    if isinstance(t, list | tuple) and any(owner(x) is not None for x in t):  # each may carry a derivative
        t = stacked(t, y)
        t_backend = owner(t)
    if t_backend is None:
        t = backend.asarray(t, dtype=y.dtype, device=device(y))
    elif t_backend is not backend:
        message = f"t is an array of {t_backend.NATIVE}, but y0 is of {backend.NATIVE}; convert one of them"
        raise BackendError(message)
    if t.dtype != y.dtype:
        message = f"t has dtype {t.dtype}, but y0 has {y.dtype}; cast one of them"
        raise DTypeError(message)
    if t.ndim != 1 or t.shape[0] < 1:
        message = f"t has shape {tuple(t.shape)}; expected (T,), the times of the states, the first of them that of y0"
        raise ShapeError(message)
    return t  # type: ignore[no-any-return]
