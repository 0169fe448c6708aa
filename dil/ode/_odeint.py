"""`odeint`: the states of an ODE at given times, differentiable in all that they depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dil._arguments import take_apart
from dil._arrays import array_namespace, device, full
from dil._call import Solver
from dil._errors import DTypeError, OptionError, ShapeError
from dil._options import check_integer
from dil._policy import Policy
from dil._registry import common_owner, owner, shielded
from dil._space import space_of
from dil._typing import Array, Arrays, OnFailure, Tree
from dil.linear._auto import Auto
from dil.linear._direct import Direct
from dil.linear._solver import LinearSolver
from dil.ode._adjoint import AdjointRule
from dil.ode._field import Field
from dil.ode._methods import METHODS, Method
from dil.ode._newton import StepNewton
from dil.ode._stage import StageLayer, stage_layer
from dil.ode._stages import Solve, VectorStages
from dil.ode._sweep import grid_of, sweep
from dil.ode._unroll import UnrolledStage
from dil.ode._verdict import increasing

Gradient = Literal["implicit", "naive", "unroll", "adjoint"]
Layer = Literal["root", "argmin"]


def odeint(
    func: Callable[..., Tree],
    y0: Tree,
    t: Any,
    args: tuple[Tree, ...] = (),
    *,
    method: str = "implicit_euler",
    solver: Solver | None = None,
    linear_solver: LinearSolver | None = None,
    gradient: Gradient = "implicit",
    layer: Layer = "root",
    steps: int = 1,
    unroll: int = 8,
    batch_ndim: int = 0,
    on_failure: OnFailure = "warn",
) -> Tree:
    """Return the solution of dy/dt = func(t, y, *args), y(t[0]) = y0, at the times t."""
    options = Options(method, solver, linear_solver, gradient, layer, steps, unroll, batch_ndim, on_failure)
    return shielded(_odeint, func, y0, t, args, options)


@dataclass(frozen=True)
class Options:
    """What a call of `odeint` asks for, checked."""

    method: str
    solver: Solver | None
    linear_solver: LinearSolver | None
    gradient: str
    layer: str
    steps: int
    unroll: int
    batch_ndim: int
    on_failure: OnFailure

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, tuple(METHODS)),
            ("gradient", self.gradient, get_args(Gradient)),
            ("layer", self.layer, get_args(Layer)),
        ):
            if value not in known:
                message = f"{name}={value!r} is unknown; expected one of {', '.join(known)}"
                raise OptionError(message)
        check_integer("steps", self.steps, 1)
        check_integer("unroll", self.unroll, 1)
        check_integer("batch_ndim", self.batch_ndim, 0)
        if self.gradient == "naive" and self.linear_solver is not None:
            message = "gradient='naive' solves by dil.linear.Direct(); drop linear_solver=, or take gradient='implicit'"
            raise OptionError(message)


def _odeint(func: Callable[..., Tree], y0: Tree, t: Any, args: tuple[Tree, ...], options: Options) -> Tree:
    y, space = space_of(y0, options.batch_ndim, "y0")
    if not isinstance(args, tuple):
        message = f"args={args!r} of type {type(args).__name__}; expected a tuple, (theta,) for one argument"
        raise OptionError(message)
    arrays, arguments = take_apart(args, {})
    names = ["y0", *(f"args: {arguments.name(i)}" for i in range(len(arrays)))]
    backend = common_owner([y, *arrays], names, "odeint")
    field = Field(func, space, arguments, backend)
    times = times_like(t, y, field)
    field.refuse_captured(times[0], y, tuple(arrays))
    policy = Policy(options.on_failure, f"odeint of {field.name!r}")
    return field.trajectory(Integration(field, options, policy).states(y, times, tuple(arrays))[0])


@dataclass(frozen=True)
class Integration:
    """One call, ready to run."""

    field: Field
    options: Options
    policy: Policy

    def states(self, y0: Array, t: Array, arrays: Arrays) -> Arrays:
        """Return the states at the times, (T, *batch, n), and what was said of every step, (steps, *batch) each."""
        if self.options.gradient != "adjoint":
            return self._swept(y0, t, *arrays)
        back = self._stage((y0, t[0]), arrays, settles=True)
        rule = AdjointRule(self.field, self._method, back, self._linear_solver, self.policy, self.options.steps)
        states, *told = self.field.backend.implicit(self._swept, rule)(y0, t, *arrays)
        return (states, *(self.field.backend.constant(x) for x in told))

    @property
    def _method(self) -> Method:
        return METHODS[self.options.method]

    @property
    def _linear_solver(self) -> LinearSolver:
        return self.options.linear_solver or (Direct() if self.options.gradient == "naive" else Auto())

    def _stage(self, like: tuple[Array, Array], arrays: Arrays, *, settles: bool = False) -> StageLayer:
        solver = StepNewton() if self.options.solver is None else self.options.solver
        call = stage_layer(self.field, like, arrays, solver, self._linear_solver, self.options.layer, self.policy)
        return replace(call, settles=settles)

    def _swept(self, y0: Array, t: Array, *arrays: Array) -> Arrays:
        layer = self._stage((y0, t[0]), arrays)
        solve: Solve = UnrolledStage(layer, self.options.unroll) if self.options.gradient == "unroll" else layer

        def stages(last: Arrays) -> VectorStages:
            return VectorStages(self.field, solve, arrays, last)

        grid = grid_of(t, self.options.steps)
        swept = sweep(self._method, self.field.backend, stages, (y0,), (full(y0, 0.0),), grid)
        at = swept.states[0][self.options.steps - 1 :: self.options.steps, ...]
        return (array_namespace(y0).concat([y0[None, ...], at]), *swept.told)


def times_like(t: Any, y: Array, field: Field) -> Array:
    """Return the times as a vector of the backend, dtype and device of the state."""
    backend = field.backend
    own = owner(t)
    if own is None:
        t = backend.asarray(t, dtype=y.dtype, device=device(y))
    elif own is not backend:
        message = f"t is an array of {own.NATIVE}, but y0 of {backend.NATIVE}; convert one of them"
        raise OptionError(message)
    if t.dtype != y.dtype:
        message = f"t has dtype {t.dtype}, but y0 has {y.dtype}; cast one of them"
        raise DTypeError(message)
    if t.ndim != 1 or t.shape[0] < 2:
        message = f"t has shape {tuple(t.shape)}; expected (T,) with T >= 2 times, the first of them that of y0"
        raise ShapeError(message)
    return increasing(t, backend)
