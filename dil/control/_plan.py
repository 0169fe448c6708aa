"""The plan: the optimal controls as a function of the observed state and the parameters of cost and dynamics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dil._base.arrays import array_namespace, full
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.in_words import in_words
from dil._base.one_line import made_by
from dil._base.options import check_integer, check_parameters, declares, is_number
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import AnyArray, Array, OnFailure, Tree
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.registry import common_owner
from dil._layers.call import Solver
from dil._layers.layer import Layer
from dil._problem.score import Score
from dil.control._bounds import Bounds, check_bounds
from dil.control._box import Box, Limit
from dil.control._captured import captured_by
from dil.control._ddp import DDP
from dil.control._over_time import OverTime
from dil.control._riccati_solver import Riccati
from dil.control._score import Cost, Dynamics, PlanScore, name_of
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver
from dil.solvers._lbfgs import LBFGS

if TYPE_CHECKING:
    from dil._diagnostics.report import Report

HUGE = 0.25
"""States above this power of the largest number have diverged, since their products overflow."""


def plan(
    cost: Cost,
    dynamics: Dynamics,
    horizon: int,
    *,
    controls: int = 1,
    final: Cost | None = None,
    solver: Solver | None = None,
    bounds: tuple[Limit, Limit] | Box | None = None,
    barrier: float = 0.0,
    init: AnyArray | Callable[..., AnyArray] | None = None,
    linear_solver: LinearSolver | None = None,
    theta_c_axis: Tree = None,
    theta_h_axis: Tree = None,
    on_failure: OnFailure = "warn",
    refine: int = 0,
) -> Plan:
    """Return the layer u = argmin_u sum_{t < H} c(x_t, u_t) + c_H(x_H), with x_{t+1} = h(x_t, u_t) and x_0 observed.

    Parameters
    ----------
    cost : callable
        `cost(x, u, theta_c)` returns one number, shape (...), for each state x, (..., n_x), and control u, (..., n_u).
    dynamics : callable
        `dynamics(x, u, theta_h)` returns the next states, (..., n_x), of the same dtype.
    horizon : int
        H, the number of controls.
    controls : int
        n_u, the number of entries of one control.
    final : callable, optional
        `final(x, theta_c)` returns the cost c_H, (...), of the state after the last control. By default c_H is zero.
    solver : callable, optional
        Any solver of `dil.solvers`, `dil.control.DDP()`, `dil.control.ILQR()` or your own solver;
        `dil.solvers.LBFGS()` by default.
    bounds : pair or Box, optional
        (low, high), each a number or n_u numbers. The solver finds v, with u = middle + half tanh(v). Or
        `dil.control.Box(low, high)`: the controls may reach these bounds, and one that does has no derivative. It
        needs a solver that keeps the controls within them, `DDP()`, which is then the default, or your own.
    barrier : float
        Adds barrier times -log(1 - tanh(v)^2), summed over all controls, to the cost. Without it, a control whose
        optimum is at a bound has no optimal v, and so no gradient. With it, the distance of u from the bound is about
        barrier divided by the slope of the cost in u.
    init : array or callable, optional
        The initial controls, (*batch, horizon, n_u), or a callable of (x0, theta_c, theta_h). The default is the middle
        of the bounds, or zero without bounds.
    linear_solver : callable, optional
        Any solver of `dil.linear`, or `dil.control.Riccati()`, whose time and memory are linear in the horizon, and
        which is the default if the solver is `DDP` or `ILQR`. These three call the functions for all times at once.
        The default is otherwise `dil.linear.Auto()`.
    theta_c_axis, theta_h_axis : None, 0, or a tree of these
        0 where an array of the parameter has a leading axis of times, as in `in_axes` of `jax.vmap`; cost and dynamics
        get its row of the time. `theta_c_axis={"target": 0, "weight": None}` is that of a reference which moves.
        The axis has H entries, and for theta_c H + 1 if there is a final cost, which gets the last one.
    on_failure, refine
        As in `dil.argmin`.

    Returns
    -------
    Plan
        Called as `plan(x0, theta_c, theta_h, init=None)`. It is differentiable in every float array of the first three.

    Raises
    ------
    OptionError
        If an option is out of range, or a function takes other arguments. Calls raise `ShapeError` if cost or dynamics
        return another shape, and `DTypeError` if x0 is not real floating.

    Notes
    -----
    This is Look et al. 2020, Eq. 5, with the constraints inserted. The last term of Eq. 5 is `final`. The control in
    that term changes no state. `cost` and `dynamics` get arrays with leading dimensions. These are the batch of x0,
    (*batch, n_x). Solvers that try many plans at once add one dimension in front, and `ILQR` adds one for the times.
    Write the functions with `x[..., i]`,
    broadcasting and sums over axis -1. A function of one state can be wrapped by the framework's vmap. theta_c and
    theta_h are trees, shared by the batch or with its leading dimensions. Arrays that the functions capture, such
    as the parameters of a module, get gradients too.

    Random solvers stop near the optimal plan, but the gradient holds at the optimum. refine=2 adds two Newton steps;
    `dil.solvers.Sequence(RandomShooting(samples=1000), LBFGS())` continues with gradients.

    A plan whose states overflow within the horizon ends DIVERGED.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def cost(x, u, goal):
    ...     return np.sum((x - goal) ** 2, axis=-1) + np.sum(u**2, axis=-1)
    >>> def drift(x, u, speed):
    ...     return x + speed * u
    >>> steer = dil.control.plan(cost, drift, 2, final=lambda x, goal: np.sum((x - goal) ** 2, axis=-1))
    >>> steer(np.asarray([1.0]), np.asarray([0.0]), np.asarray(1.0))
    array([[-0.6],
           [-0.2]])
    """
    check_integer("horizon", horizon, 1)
    check_integer("controls", controls, 1)
    for name, fn, expected in (
        ("cost", cost, ("x", "u", "theta_c")),
        ("dynamics", dynamics, ("x", "u", "theta_h")),
        ("final", final, ("x", "theta_c")),
    ):
        if callable(fn):
            check_parameters(name, fn, expected)
        elif name != "final" or fn is not None:
            message = f"{name}={fn!r} of type {type(fn).__name__}; expected a callable"
            raise OptionError(message)
    if not (is_number(barrier) and barrier >= 0) or (barrier and (bounds is None or isinstance(bounds, Box))):
        message = (
            f"barrier={barrier!r}; expected a number >= 0, and bounds=(low, high) that it keeps the controls within"
        )
        raise OptionError(message)
    checked = check_bounds(bounds, controls)
    if isinstance(checked, Box):
        barrier, linear_solver = 1.0, linear_solver or Riccati()
        solver = _box_solver(solver, linear_solver)
    solver = LBFGS() if solver is None else solver
    all_times = declares(solver, "_takes_all_times") or isinstance(linear_solver, Riccati)
    over_time = OverTime("theta_c", theta_c_axis), OverTime("theta_h", theta_h_axis)
    score = PlanScore(cost, dynamics, final, int(horizon), checked, float(barrier), all_times, *over_time)
    policy = Policy(on_failure, f"plan through {name_of(dynamics)}")
    made = Plan(score, int(controls), solver, linear_solver or _default_for(solver), init, policy, refine)
    made.layer(0)  # report an option out of range here, not at the first call
    return made


def _box_solver(solver: Solver | None, linear_solver: LinearSolver) -> Solver:
    """Return the solver of a plan with a box, DDP by default."""
    solver = DDP() if solver is None else solver
    if declares(solver, "_array_code") and not declares(solver, "_takes_box"):
        message = (
            f"solver={in_words(solver)} does not keep the controls within bounds=Box(...); take DDP(), or a function "
            "of your own that does, or bounds=(low, high) for a smooth map"
        )
        raise OptionError(message)
    if not isinstance(linear_solver, Riccati):
        message = f"linear_solver={in_words(linear_solver)}; bounds=Box(...) needs Riccati(), which looks at the bounds"
        raise OptionError(message)
    return solver


def _default_for(solver: Solver) -> LinearSolver:
    """Return the linear solver of a plan. Only a solver for all times at once shows that its functions take them."""
    return Riccati() if declares(solver, "_takes_all_times") else Auto()


@dataclass(frozen=True, eq=False)
class Plan:
    """A layer from the observed state to the optimal controls; made by `dil.control.plan`."""

    score: PlanScore
    controls: int
    solver: Solver
    linear_solver: LinearSolver
    init: AnyArray | Callable[..., AnyArray] | None
    policy: Policy
    refine: int
    _layers: dict[tuple[int, bool], Layer] = field(default_factory=dict, init=False, repr=False)
    """The layers by the number of batch dimensions, and by whether their start is the solution. Each keeps what a
    framework has compiled for it."""

    def __repr__(self) -> str:
        score = self.score
        return made_by(
            "dil.control.plan",
            score.cost,
            score.dynamics,
            score.horizon,
            controls=self.controls,
            final=score.final,
            solver=self.solver,
            bounds=(score.bounds.low, score.bounds.high) if isinstance(score.bounds, Bounds) else score.bounds,
            barrier=score.barrier or None if isinstance(score.bounds, Bounds) else None,
            init=self.init,
            theta_c_axis=score.c_over_time.axis,
            theta_h_axis=score.h_over_time.axis,
        )

    @property
    def horizon(self) -> int:
        """The number of controls."""
        return self.score.horizon

    def __call__(
        self, x0: AnyArray, theta_c: Tree = None, theta_h: Tree = None, *, init: AnyArray | None = None
    ) -> AnyArray:
        """Return the optimal controls, (*batch, horizon, n_u), for the states x0, (*batch, n_x)."""
        _, v = self._begin(x0, theta_c, theta_h, init)
        plan, args = self._with_captured(x0, theta_c, theta_h)
        return self.score.controls(plan.layer(x0.ndim - 1)(*args, init=v))

    def solve(
        self, x0: AnyArray, theta_c: Tree = None, theta_h: Tree = None, *, init: AnyArray | None = None
    ) -> Solution:
        """Return the `dil.Solution` of the solver, with the controls as its value. It has no derivative."""
        layer, v = self._begin(x0, theta_c, theta_h, init)
        solution = layer.solve(x0, theta_c, theta_h, init=v)
        return solution._replace(value=self.score.controls(solution.value))

    def solve_and_call(self, x0: Array, theta_c: Tree, theta_h: Tree, init: Array) -> tuple[Array, Solution]:
        """Return the controls, which have their derivative, and the solution with its status, by one forward solve."""
        _, v = self._begin(x0, theta_c, theta_h, init)
        plan, args = self._with_captured(x0, theta_c, theta_h)
        solution = plan.layer(x0.ndim - 1).solve(*args, init=v)
        u = self.score.controls(plan._layer(x0.ndim - 1, _Known())(*args, init=solution.value))
        return u, solution._replace(value=self.score.controls(solution.value))

    def report(
        self,
        x0: AnyArray,
        theta_c: Tree = None,
        theta_h: Tree = None,
        *,
        init: AnyArray | None = None,
        cotangent: AnyArray | None = None,
    ) -> Report:
        """Report on the forward and the backward solve, like `dil.Layer.report`. The cotangent is dL/dv."""
        _, v = self._begin(x0, theta_c, theta_h, init)
        plan, args = self._with_captured(x0, theta_c, theta_h)
        return plan.layer(x0.ndim - 1).report(*args, init=v, cotangent=cotangent)

    def states(self, u: AnyArray, x0: AnyArray, theta_h: Tree = None) -> AnyArray:
        """Return the states x_0 to x_H under the controls u, (*batch, horizon + 1, n_x), by the plan's dynamics."""
        return replace(self.score, bounds=None, barrier=0.0).states(u, x0, theta_h)

    def layer(self, batch_ndim: int) -> Layer:
        """Return the argmin layer of the free controls v, for states with `batch_ndim` batch dimensions."""
        return self._layer(batch_ndim, self.solver)

    def _layer(self, batch_ndim: int, solver: Solver) -> Layer:
        known = isinstance(solver, _Known)
        if (batch_ndim, known) not in self._layers:
            condition = Score(self.score, batch_ndim)
            if callable(solver) and not isinstance(solver, type):
                solver = _WithDivergence(solver, self.score)
            made = Layer(condition, solver, self.linear_solver, None, self.policy, 0 if known else self.refine)
            self._layers.setdefault((batch_ndim, known), made)
        return self._layers[batch_ndim, known]

    def start(self, x0: AnyArray, theta_c: Tree = None, theta_h: Tree = None) -> AnyArray:
        """Return the default initial controls of a call, (*batch, horizon, n_u)."""
        shape = (*x0.shape[:-1], self.horizon, self.controls)
        if self.init is None:
            zero = full(x0, 0.0, shape=shape)
            return zero if self.score.bounds is None else self.score.bounds.middle(zero)
        return self.init(x0, theta_c, theta_h) if callable(self.init) else self.init

    def _with_captured(self, x0: Array, theta_c: Tree, theta_h: Tree) -> tuple[Plan, tuple[Tree, ...]]:
        """Return the plan and the arguments of its layer, among them the arrays that its functions capture."""
        backend, args = common_owner([x0], ["x0"], self.policy.layer), (x0, theta_c, theta_h)
        u = full(x0, 0.0, shape=(*x0.shape[:-1], self.controls))
        u = u if self.score.bounds is None else self.score.bounds.middle(u)
        captured = captured_by(self.score, backend, x0, u, theta_c, theta_h)
        if not captured.arrays:
            return self, args
        return replace(self, score=replace(self.score, captured=captured)), (*args, captured.arrays)

    def _begin(self, x0: Array, theta_c: Tree, theta_h: Tree, init: Array | None) -> tuple[Layer, Array]:
        common_owner([x0], ["x0"], self.policy.layer)
        if x0.ndim < 1:
            message = "x0 has shape (); expected (*batch, n_x), so (1,) for a state of one number"
            raise ShapeError(message)
        if not array_namespace(x0).isdtype(x0.dtype, "real floating"):
            message = f"x0 has dtype {x0.dtype}; a plan needs a state of real floating numbers, so cast it"
            raise DTypeError(message)
        u = self.start(x0, theta_c, theta_h) if init is None else init
        expected = (*x0.shape[:-1], self.horizon, self.controls)
        if tuple(getattr(u, "shape", ())) != tuple(expected):
            message = (
                f"init has shape {tuple(getattr(u, 'shape', ()))}; expected {tuple(expected)}, that is (*batch, "
                f"horizon, controls) for x0 of shape {tuple(x0.shape)}"
            )
            raise ShapeError(message)
        return self.layer(x0.ndim - 1), u if self.score.bounds is None else self.score.bounds.free(u)


@dataclass(frozen=True)
class _Known:
    """The solver of a plan whose start is its solution."""

    _array_code = True
    """Whether the solver is array code alone, which a framework may compile."""

    def __call__(self, fun: Any, init: Array, /, *args: Tree, **kwargs: Tree) -> Solution:
        return Solution(init)


@dataclass(frozen=True)
class _WithDivergence:
    """A solver of plans that reports DIVERGED if the states of its plan overflow."""

    solver: Solver
    score: PlanScore

    @property
    def __name__(self) -> str:  # the name of the solver in messages
        return getattr(self.solver, "__name__", type(self.solver).__name__)

    @property
    def _array_code(self) -> bool:  # whether a framework may compile it
        return declares(self.solver, "_array_code")

    @property
    def progress(self) -> bool:
        """Whether the solver draws a progress bar."""
        return getattr(self.solver, "progress", False)

    def __call__(self, fun: Any, init: Array, x0: Array, theta_c: Tree, theta_h: Tree, *captured: Any) -> Solution:
        answer = self.solver(fun, init, x0, theta_c, theta_h, *captured)
        solution = answer if isinstance(answer, Solution) else Solution(answer)
        v = solution.value
        if tuple(getattr(v, "shape", ())) != tuple(init.shape):
            return solution  # the layer reports what is wrong
        xp = array_namespace(v)
        if isinstance(self.score.bounds, Box):
            v = self.score.bounds.outside(v)
            solution = solution._replace(value=v)
        states = self.score.bound(*captured or [None]).states(v, x0, theta_h)
        # a state that is NaN before any state is huge comes from the arguments or from controls that are not finite
        huge = xp.abs(states) >= float(xp.finfo(states.dtype).max) ** HUGE
        diverged = xp.any(huge, axis=(-2, -1)) & xp.all(xp.isfinite(v), axis=(-2, -1))
        status = full(diverged, 0, dtype=xp.int32) if solution.status is None else solution.status
        return solution._replace(status=xp.where(diverged, full(status, int(Status.DIVERGED)), status))
