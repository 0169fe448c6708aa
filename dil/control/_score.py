"""The score of a plan: the cost along the states that a control sequence leads to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from dil._base.arrays import array_namespace, full, shared_namespace
from dil._base.errors import DTypeError, ShapeError
from dil._base.in_words import in_words
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import as_one_array, common_owner, owner
from dil.control._bounds import Bounds
from dil.control._box import Box
from dil.control._captured import Captured
from dil.control._expansion import Expansion, expand
from dil.control._over_time import OverTime, Rows, each_time

Cost = Callable[..., Any]
Dynamics = Callable[..., Any]


@dataclass(frozen=True)
class PlanScore:
    """The score of a plan, sum_{t < H} c(x_t, u_t; theta_c) + c_H(x_H; theta_c), for x_{t+1} = h(x_t, u_t; theta_h).

    This is Eq. 5 of Look et al. 2020 with the states inserted. The unknown v, (*batch, horizon, n_u), is free. The
    controls are u = v, or bounded controls u(v).
    """

    cost: Cost
    dynamics: Dynamics
    final: Cost | None
    horizon: int
    bounds: Bounds | Box | None
    barrier: float
    all_times: bool = False
    """Whether the functions take a leading axis of times. Then the costs of all times are one call."""
    c_over_time: OverTime = field(default=OverTime("theta_c", None))
    h_over_time: OverTime = field(default=OverTime("theta_h", None))
    captured: Captured | None = None
    """The functions as functions of the arrays that they capture, which are then the last argument."""

    broadcasts: ClassVar[bool] = True
    """Whether v may have more leading dimensions than x0, so that one call evaluates many plans."""

    @property
    def __name__(self) -> str:  # the name of the score in messages
        return f"cost along {name_of(self.dynamics)}"

    def __call__(
        self,
        v: Array,
        x0: Array,
        theta_c: Tree = None,
        theta_h: Tree = None,
        captured: dict[str, Arrays] | None = None,
    ) -> Array:
        """Return the cost of each plan, shape v.shape[:-2]."""
        if captured:
            return self.bound(captured)(v, x0, theta_c, theta_h)
        if self.all_times:
            states = self.states(v, x0, theta_h)
            return self.along(time_first(states), time_first(v), theta_c)
        lead, (c_rows, c_at), (h_rows, h_at) = v.shape[:-2], self.c_rows(theta_c), self.h_rows(theta_h)
        count = len(c_rows)

        def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            (x, total), (u, *rest) = carry, row
            c, h = c_at(rest[:count]), h_at(rest[count:])
            return (self.step(x, u, h), total + self.stage(x, u, c)), ()

        carry = (_promote(v, x0), full(v, 0.0, shape=lead))
        (x, total), _ = backend_of(v, x0).loops.scan(step, carry, (time_first(self.controls(v)), *c_rows, *h_rows))
        if self.final is not None:
            total = total + self.last(x, theta_c)
        return total + self.barrier * self.bounds.barrier(v) if self.bounds is not None and self.barrier else total

    def along(self, states: Array, v: Array, theta_c: Tree = None) -> Array:
        """Return the cost of plans whose states are known, with all times at once.

        Shapes: states (horizon + 1, *lead, n_x), v (horizon, *lead, n_u), the cost lead.
        """
        total = array_namespace(states).sum(self.stages(states[:-1, ...], self.controls(v), theta_c), axis=0)
        if self.final is not None:
            total = total + self.last(states[-1, ...], theta_c)
        if self.bounds is not None and self.barrier:
            total = total + self.barrier * array_namespace(v).sum(self.bounds.barrier(v[..., None, :]), axis=0)
        return total  # type: ignore[no-any-return]

    def bound(self, captured: dict[str, Arrays] | None) -> PlanScore:
        """Return the plan whose functions have these arrays in the place of those that they capture."""
        return self if not captured or self.captured is None else self.captured.bound(self, captured)

    def without_box(self) -> PlanScore:
        """Return the score of controls that may lie anywhere, if the bounds are a box."""
        return replace(self, bounds=None, barrier=0.0) if isinstance(self.bounds, Box) else self

    def controls(self, v: Array) -> Array:
        """Return the controls u from the free controls v."""
        return v if self.bounds is None else self.bounds.squash(v)

    def states(self, v: Array, x0: Array, theta_h: Tree = None) -> Array:
        """Return x_0 to x_H, (*batch, horizon + 1, n_x)."""
        x0, (rows, at) = _promote(v, x0), self.h_rows(theta_h)

        def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            x = self.step(carry[0], row[0], at(row[1:]))
            return (x,), (x,)

        _, (after,) = backend_of(v, x0).loops.scan(step, (x0,), (time_first(self.controls(v)), *rows))
        xp = shared_namespace(x0, after)
        return xp.concat([x0[..., None, :], xp.moveaxis(after, 0, -2)], axis=-2)  # type: ignore[no-any-return]

    def expansion(
        self,
        backend: Backend,
        v: Array,
        x0: Array,
        theta_c: Tree = None,
        theta_h: Tree = None,
        captured: dict[str, Arrays] | None = None,
    ) -> Expansion:
        """Return the Hessian in v, (*batch, horizon, n_u), as that of a linear quadratic problem."""
        return expand(self.bound(captured), backend, v, x0, theta_c, theta_h)

    def c_rows(self, theta_c: Tree) -> Rows:
        """Return what differs from time to time in theta_c, for the times of the controls."""
        rows, at = self.c_over_time.rows(theta_c, self.c_times)
        return Rows(tuple(x[: self.horizon, ...] for x in rows), at)

    def h_rows(self, theta_h: Tree) -> Rows:
        """Return what differs from time to time in theta_h."""
        return self.h_over_time.rows(theta_h, self.horizon)

    @property
    def c_times(self) -> int:
        """The number of times at which there is a cost."""
        return self.horizon if self.final is None else self.horizon + 1

    def steps(self, x: Array, u: Array, theta_h: Tree) -> Array:
        """Return the next states of all times, which are the first axis."""
        rows, at = self.h_rows(theta_h)
        if not rows:
            return self.step(x, u, theta_h)
        return each_time(lambda x, u, *row: self.step(x, u, at(row)), backend_of(u, x).loops.scan, (x, u, *rows))

    def stages(self, x: Array, u: Array, theta_c: Tree) -> Array:
        """Return the costs of all times, which are the first axis."""
        rows, at = self.c_rows(theta_c)
        if not rows:
            return self.stage(x, u, theta_c)
        return each_time(lambda x, u, *row: self.stage(x, u, at(row)), backend_of(u, x).loops.scan, (x, u, *rows))

    def step(self, x: Array, u: Array, theta_h: Tree) -> Array:
        """Return the next state, (..., n_x), where theta_h is that of the time."""
        after = as_one_array(self.dynamics(x, u, theta_h))
        if owner(after) is None or tuple(after.shape) != tuple(x.shape):
            message = (
                f"the dynamics {name_of(self.dynamics)} returned {describe(after)} for states of shape "
                f"{tuple(x.shape)} and controls of shape {tuple(u.shape)}; expected the next states, of the states' "
                f"shape: (..., n_x), (..., n_u) -> (..., n_x)"
            )
            raise ShapeError(message)
        return check_dtype(after, x, f"the dynamics {name_of(self.dynamics)}")

    def stage(self, x: Array, u: Array, theta_c: Tree) -> Array:
        """Return the cost of one step, (...), where theta_c is that of the time."""
        return self._cost(self.cost, x, x, u, theta_c)

    def last(self, x: Array, theta_c: Tree) -> Array:
        """Return the cost of the last state, (...)."""
        rows, at = self.c_over_time.rows(theta_c, self.c_times)
        return self._cost(self.final, x, x, at([row[-1, ...] for row in rows]))

    def _cost(self, cost: Any, x: Array, *args: Tree) -> Array:
        value = as_one_array(cost(*args))
        if owner(value) is None or tuple(value.shape) != tuple(x.shape[:-1]):
            message = (
                f"the cost {name_of(cost)} returned {describe(value)} for states of shape {tuple(x.shape)}; expected "
                f"shape {tuple(x.shape[:-1])}, one number for each state: sum over the last axis alone"
            )
            raise ShapeError(message)
        return check_dtype(value, x, f"the cost {name_of(cost)}")


def _promote(v: Array, x0: Array) -> Array:
    """Return x0 for every plan, (*lead, n_x), as an array that is differentiated wherever v is.

    Cost and dynamics ask for the namespace of the states. This makes it the namespace of the controls.
    """
    first, n = v[..., 0, :], x0.shape[-1]
    x0 = array_namespace(x0).broadcast_to(x0, (*first.shape[:-1], n))
    return shared_namespace(x0, first).concat([x0, first], axis=-1)[..., :n]  # type: ignore[no-any-return]


def check_dtype(value: Any, x: Array, what: str) -> Array:
    """Return the value; raise if its dtype is not that of the states."""
    if value.dtype != x.dtype:
        message = f"{what} returned dtype {value.dtype} for states of dtype {x.dtype}; compute it without casts"
        raise DTypeError(message)
    return value  # type: ignore[no-any-return]


def time_first(v: Array) -> Array:
    """Return the rows that a scan steps through: (*batch, horizon, n_u) -> (horizon, *batch, n_u)."""
    return array_namespace(v).moveaxis(v, -2, 0)  # type: ignore[no-any-return]


def backend_of(u: Array, x: Array) -> Backend:
    """Return the backend of controls and states."""
    return common_owner([u, x], ["the controls", "x0"], "a plan")


def name_of(fn: object) -> str:
    """Return a function's name in quotes, for messages."""
    return repr(getattr(fn, "__name__", type(fn).__name__))


def describe(value: Any) -> str:
    """Describe the value that a function returned."""
    return in_words(value) if owner(value) is None else f"shape {tuple(value.shape)}"
