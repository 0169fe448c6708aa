"""Imitation learning from observations with differentiable MPC (Algorithm 2) for Table 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import _cartpole
import _dynamics
import dil
from _dynamics import Data, Net
from dil.control import Plan, mpc_rollout, plan

Array = Any

HORIZON = 10
GROWN = 0.6
"""The share of the training after which the horizon, which grows from 1, has its length."""
BATCH = 64
DYNAMICS = 25
"""Steps of train.h for each of train.c."""
RATE = 5e-2
BARRIER = 0.03
SOLVE = dil.solvers.Sequence(
    dil.solvers.RandomShooting(samples=256, iterations=1), dil.solvers.LBFGS(max_iter=60, rtol=1e-3)
)
"""For train.c: a gradient is right where the plan is stationary, which a random search alone does not reach."""
ACT = dil.solvers.RandomShooting(samples=1000, iterations=1)
"""For the test, as in the paper; each search begins at the last plan."""


class Cost(NamedTuple):
    """theta_c: the target and the logarithms of the weights of its distance, (5,) each, in standard features."""

    target: Array
    weight: Array


class Student(NamedTuple):
    """theta_h and theta_c with the states of their optimisers."""

    h: tuple[Net, Any]
    c: tuple[Cost, Any]


class Clocked(NamedTuple):
    """theta_c of a plan whose cost counts the first states alone: one program for every horizon."""

    cost: Cost
    horizon: Array


def planner(data: Data, solver: Any) -> Plan:
    """Return the plan of the student (Eq. 5). A state has its time as the last entry."""

    def stage(x: Array, u: Array, theta_c: Clocked) -> Array:
        time = x[..., -1]
        near = jnp.exp(theta_c.cost.weight) * (_dynamics.standard(data, x[..., :-1]) - theta_c.cost.target) ** 2
        return jnp.where((time > 0.5) & (time < theta_c.horizon + 0.5), jnp.sum(near, axis=-1), 0.0)

    def dynamics(x: Array, u: Array, theta_h: Net) -> Array:
        return clocked(_dynamics.imagine(data, x[..., :-1], u, theta_h), x[..., -1:] + 1.0)

    def last(x: Array, theta_c: Clocked) -> Array:
        return stage(x, x, theta_c)

    return plan(
        stage,
        dynamics,
        HORIZON,
        final=last,
        solver=solver,
        bounds=(-1.0, 1.0),
        barrier=BARRIER,
        linear_solver=dil.linear.CG(),
        on_failure="ignore",  # the statuses are looked at
    )


def clocked(x: Array, time: Array | float = 0.0) -> Array:
    return jnp.concatenate([x, jnp.broadcast_to(jnp.asarray(time, dtype=x.dtype), (*x.shape[:-1], 1))], axis=-1)


def given(score: Any, v: Array, *args: Any) -> dil.Solution:
    """Return the start: a solver for a plan that is found already, to be differentiated."""
    return dil.Solution(v)


def single(tree: Any) -> Any:
    """Return arrays in float32: random search needs no more, and takes half the time."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


class Told(NamedTuple):
    """What a step of training says: the loss of the dynamics, that of the cost, the share of plans that were solved."""

    h: Array
    c: Array
    solved: Array


class Imitation:
    """The programs of Algorithm 2 for one set of trajectories of an expert; compiled once for all runs."""

    def __init__(self, data: Data, iterations: int, warmup: int) -> None:
        self.data, self.iterations, self.warmup = data, iterations, warmup
        self.rate_h = _dynamics.optimiser(_dynamics.RATE, warmup + DYNAMICS * iterations)
        self.rate_c = _dynamics.optimiser(RATE, iterations)
        self.search, self.found, self.acting = planner(data, SOLVE), planner(data, given), planner(single(data), ACT)
        self.first, self.step, self.roll = jax.jit(self._first), jax.jit(self._step), jax.jit(self._roll)

    def run(self, key: Array, tick: Callable[[], None]) -> tuple[Student, list[Told]]:
        """Learn from scratch."""
        begin, rest = jax.random.split(key)
        student, told = self.first(begin), []
        for i in range(self.iterations):
            horizon = min(HORIZON, 1 + int(HORIZON * i / (GROWN * self.iterations)))
            student, said = self.step(student, float(horizon), jax.random.fold_in(rest, i))
            told.append(jax.block_until_ready(said))
            tick()
        return student, told

    def _first(self, key: Array) -> Student:
        """Return a student whose dynamics have taken their first steps, and whose cost is arbitrary."""
        net, cost, rest = jax.random.split(key, 3)
        theta_h = _dynamics.begin(net)
        theta_c = Cost(0.1 * jax.random.normal(cost, (5,)), jnp.full(5, -2.0))
        state, _ = _dynamics.train_h(self.data, self.rate_h, (theta_h, self.rate_h.init(theta_h)), rest, self.warmup)
        return Student(state, (theta_c, self.rate_c.init(theta_c)))

    def _step(self, student: Student, horizon: Array, key: Array) -> tuple[Student, Told]:
        """Return the student after train.h and one step of train.c, on the plans that were solved."""
        dynamics, row = jax.random.split(key)
        h, loss_h = _dynamics.train_h(self.data, self.rate_h, student.h, dynamics, DYNAMICS)
        row = jax.random.randint(row, (BATCH,), 0, len(self.data.x))
        x, after = clocked(self.data.x[row]), self.data.after[row]
        plans = self.search.solve(x, Clocked(student.c[0], horizon), h[0])
        solved = plans.status == int(dil.Status.CONVERGED)

        def loss(cost: Cost) -> Array:
            u = self.found(x, Clocked(cost, horizon), h[0], init=plans.value)
            far = _dynamics.distance(self.data, _dynamics.imagine(self.data, x[:, :-1], u[:, 0], h[0]), after)
            return jnp.sum(jnp.where(solved, far, 0.0)) / jnp.maximum(jnp.sum(solved), 1)

        loss_c, slope = jax.value_and_grad(loss)(student.c[0])
        return Student(h, _dynamics.descend(self.rate_c, student.c, slope)), Told(loss_h, loss_c, jnp.mean(solved))

    def _roll(self, student: Student, x: Array) -> Array:
        """Return the states that the student leads the true cart through, (n, steps + 1, 4)."""

        def after(x: Array, u: Array) -> Array:
            return clocked(_cartpole.environment(x[..., :-1], u))

        x, cost, theta_h = single((clocked(x), student.c[0], student.h[0]))
        theta_c = Clocked(cost, single(jnp.asarray(float(HORIZON))))
        return mpc_rollout(self.acting, after, x, _cartpole.STEPS, theta_c, theta_h).states[..., :-1]
