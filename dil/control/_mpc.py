"""Model predictive control: plan, take the first control, observe the state, plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device
from dil._base.errors import OptionError, ShapeError
from dil._base.options import check_integer
from dil._base.typing import AnyArray, Array, Arrays, Tree
from dil._frameworks.registry import common_owner, owner
from dil.control._plan import Plan
from dil.control._score import check_dtype, describe, name_of


class Rollout(NamedTuple):
    """A closed loop of some steps.

    Attributes
    ----------
    states : array, (*batch, steps + 1, n_x)
        From the first state to the last.
    controls : array, (*batch, steps, n_u)
        The control taken in each state but the last.
    status : int array, (*batch, steps)
        The status of the plan for each control, codes of `dil.Status`.
    """

    states: AnyArray
    controls: AnyArray
    status: AnyArray


def shift(u: AnyArray) -> AnyArray:
    """Return a plan shifted by one step, (*batch, horizon, n_u). It drops the first control and repeats the last one.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.control.shift(np.asarray([[1.0], [2.0], [3.0]])).tolist()
    [[2.0], [3.0], [3.0]]
    """
    return array_namespace(u).concat([u[..., 1:, :], u[..., -1:, :]], axis=-2)


def mpc_rollout(
    plan: Plan,
    environment: Callable[[AnyArray, AnyArray], AnyArray],
    x0: AnyArray,
    steps: int,
    theta_c: Tree = None,
    theta_h: Tree = None,
    *,
    warm_start: bool = True,
) -> Rollout:
    """Control an environment: in every state, make a plan and apply its first control.

    Parameters
    ----------
    plan : Plan
        From `dil.control.plan`.
    environment : callable
        `environment(x, u)` returns the next states, (*batch, n_x), for states x and controls u, (*batch, n_u).
    x0 : array, (*batch, n_x)
        The first state.
    steps : int
        The number of controls.
    theta_c, theta_h : tree
        The parameters for the calls of the plan. Arrays with a leading axis of times have the rows of the whole
        loop, steps - 1 more than a plan has, and the plan of each step gets those from its time on.
    warm_start : bool
        Whether each plan starts from the last plan, shifted by a step. Otherwise it starts from `plan.init`.

    Returns
    -------
    Rollout
        The states and controls are differentiable in x0, theta_c, theta_h and whatever the environment is
        differentiable in. No policy is applied to the statuses; that of the plan is applied to the linear solves of
        a gradient.

    Raises
    ------
    OptionError
        If `steps` is not an integer >= 1, or `plan` is not a Plan.
    ShapeError
        If the environment returns states of another shape.
    DTypeError
        If the environment returns states of another dtype.

    Notes
    -----
    The loop is that of the backend. Under `jax.jit` one planning step is compiled, for any number of steps.

    The gradient goes through the closed loop: each control follows its state through the plan, by the implicit function
    theorem, and each state follows the last one through the environment. The start of a plan has no derivative. The
    memory grows linearly with the steps: each keeps its state and its plan, and none of the work of the solver.
    An environment that leaves the framework, such as a simulator, passes no derivative on.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def cost(x, u, goal):
    ...     return np.sum((x - goal) ** 2, axis=-1) + np.sum(u**2, axis=-1)
    >>> def drift(x, u, speed=1.0):
    ...     return x + speed * u
    >>> steer = dil.control.plan(cost, drift, 5)
    >>> run = dil.control.mpc_rollout(steer, drift, np.asarray([1.0]), 3, np.asarray(0.0), np.asarray(1.0))
    >>> run.states[:, 0].round(3), run.status
    (array([1.   , 0.382, 0.146, 0.056]), array([0, 0, 0], dtype=int32))
    """
    if not isinstance(plan, Plan):
        message = f"plan={plan!r} of type {type(plan).__name__}; expected one made by dil.control.plan"
        raise OptionError(message)
    check_integer("steps", steps, 1)
    backend = common_owner([x0], ["x0"], "mpc_rollout")
    xp, score = array_namespace(x0), plan.score
    c_rows, c_at = score.c_over_time.windows(theta_c, steps, score.c_times)
    h_rows, h_at = score.h_over_time.windows(theta_h, steps, score.horizon)
    rows = (*c_rows, *h_rows, xp.zeros((steps,), dtype=x0.dtype, device=device(x0)))

    def parameters(row: Sequence[Array]) -> tuple[Tree, Tree]:
        return c_at(row[: len(c_rows)]), h_at(row[len(c_rows) : -1])

    def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (x, u), (c, h) = carry, parameters(row)
        controls, solution = plan.solve_and_call(x, c, h, u)
        first = controls[..., 0, :]
        after = _check_states(environment(x, first), x, environment)
        assert solution.status is not None
        return (after, shift(solution.value) if warm_start else u), (after, first, solution.status)

    start = (x0, backend.constant(plan.start(x0, *parameters([x[0, ...] for x in rows]))))
    _, (after, controls, status) = backend.loops.scan(step, start, rows)
    states = xp.concat([x0[None, ...], after], axis=0)
    return Rollout(xp.moveaxis(states, 0, -2), xp.moveaxis(controls, 0, -2), xp.moveaxis(status, 0, -1))


def _check_states(after: Any, x: Array, environment: object) -> Array:
    """Return the next states; raise if they are not like x."""
    if owner(after) is None or tuple(after.shape) != tuple(x.shape):
        message = (
            f"the environment {name_of(environment)} returned {describe(after)} for states of shape "
            f"{tuple(x.shape)}; expected the next states, of that shape"
        )
        raise ShapeError(message)
    return check_dtype(after, x, f"the environment {name_of(environment)}")
