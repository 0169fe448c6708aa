"""The exact second order of a plan about its trajectory, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dil._base.arrays import array_namespace, eye, full, size
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.protocol import Backend
from dil.control._bounds import Bounds
from dil.control._box import Box, Held
from dil.control._riccati import symmetric

if TYPE_CHECKING:
    from dil.control._score import PlanScore


FEW_NUMBERS = 2**14
"""The most numbers of states and controls, of all times and problems, of which a derivative is taken at copies."""


class Expansion(NamedTuple):
    """The Hessian of a plan's score in the free controls v, as that of a linear quadratic problem in z = (dx, dv).

    It is the matrix of sum_t 1/2 z_t^T W_t z_t + 1/2 dx_H^T P dx_H with dx_{t+1} = F_t z_t and dx_0 = 0. W_t is the
    Hessian in (x, v) of c(x, u(v)) + p_{t+1} . h(x, u(v)), where p_t is the derivative of the costs from t on in x_t
    (the costate), so it holds the second derivatives of the dynamics: Dunn and Bertsekas 1989; Pantoja 1988.
    """

    F: Array
    """(horizon, *batch, n_x, n_x + n_u)"""
    W: Array
    """(horizon, *batch, n_x + n_u, n_x + n_u)"""
    P: Array
    """(*batch, n_x, n_x)"""
    q: Array
    """The derivative of the score in v, (horizon, *batch, n_u)."""
    terms: Array
    """The sizes of the terms of q."""
    states: Array
    """(horizon + 1, *batch, n_x)"""
    controls: Array
    """The free controls, (horizon, *batch, n_u)."""
    held: Held | None = None
    """The controls that are held, if the bounds are a box. F and W have no entries for them, but a one in W."""


class Slopes(NamedTuple):
    """What an `Expansion` has besides W, and the costates."""

    F: Array
    p: Array
    """The costate of the state after each step, (horizon, *batch, n_x)."""
    P: Array
    q: Array
    terms: Array
    states: Array
    controls: Array


def expand(plan: PlanScore, backend: Backend, v: Array, x0: Array, theta_c: Tree, theta_h: Tree) -> Expansion:
    """Return the expansion at the free controls v, (*batch, horizon, n_u)."""
    if isinstance(plan.bounds, Box):
        return _with_held(
            plan.bounds, expand(plan.without_box(), backend, plan.bounds.squash(v), x0, theta_c, theta_h), v
        )
    return expanded(plan, backend, slopes(plan, backend, v, x0, theta_c, theta_h), theta_c, theta_h)


def slopes(plan: PlanScore, backend: Backend, v: Array, x0: Array, theta_c: Tree, theta_h: Tree) -> Slopes:
    """Return the slopes of a plan without a box, at the free controls v, (*batch, horizon, n_u)."""
    xp, constant = array_namespace(v), backend.constant
    states = xp.moveaxis(constant(plan.states(v, x0, theta_h)), -2, 0)
    n = states.shape[-1]
    z = xp.concat([states[:-1, ...], xp.moveaxis(constant(v), -2, 0)], axis=-1)
    F = jacobian(backend, lambda z: _after(plan, z, n, theta_h), z, n)
    gradient = gradient_of(backend, lambda z: _cost(plan, z, n, theta_c), z)
    if plan.final is None:
        last, P = full(states[-1, ...], 0.0), full(F[0, ..., :n], 0.0)
    else:
        last, P = at_the_end(backend, lambda x: plan.last(x, theta_c), states[-1, ...])

    def back(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        (p,), (F, g) = carry, row
        q = g + (F.mT @ p[..., None])[..., 0]
        return (q[..., :n],), (p, q[..., n:])

    _, (p, q) = backend.loops.scan(back, (last,), (xp.flip(F, axis=0), xp.flip(gradient, axis=0)))
    p, q = xp.flip(p, axis=0), xp.flip(q, axis=0)
    terms = xp.abs(gradient[..., n:]) + xp.sum(xp.abs(F[..., n:] * p[..., None]), axis=-2)
    return Slopes(F, p, symmetric(P), q, terms, states, z[..., n:])


def expanded(plan: PlanScore, backend: Backend, at: Slopes, theta_c: Tree, theta_h: Tree) -> Expansion:
    """Return the expansion of a plan without a box, from its slopes."""
    xp, n = array_namespace(at.F), at.F.shape[-2]

    def hamiltonian(z: Array) -> Array:
        states = _after(plan, z, n, theta_h)
        times, *rest = at.p.shape
        costates = xp.reshape(at.p, (times, *(1 for _ in range(z.ndim - at.p.ndim)), *rest))
        value: Array = _cost(plan, z, n, theta_c) + array_namespace(states).sum(states * costates, axis=-1)
        return value

    W = hessian(backend, hamiltonian, xp.concat([at.states[:-1, ...], at.controls], axis=-1))
    return Expansion(at.F, symmetric(W), at.P, at.q, at.terms, at.states, at.controls)


def _after(plan: PlanScore, z: Array, n: int, theta_h: Tree) -> Array:
    """Return the states after each step, as a function of states and free controls z."""
    return plan.steps(z[..., :n], plan.controls(z[..., n:]), theta_h)


def _cost(plan: PlanScore, z: Array, n: int, theta_c: Tree) -> Array:
    """Return the cost of each step with its barrier, as a function of states and free controls z."""
    v = z[..., n:]
    total = plan.stages(z[..., :n], plan.controls(v), theta_c)
    if plan.bounds is None or not plan.barrier:
        return total
    return total + plan.barrier * plan.bounds.barrier(v[..., None, :])


def _with_held(box: Box, at: Expansion, v: Array) -> Expansion:
    """Return the expansion in the controls between their bounds, where v is the unknown of the layer."""
    xp, n = array_namespace(at.F), at.F.shape[-2]
    held = box.held(xp.moveaxis(v, -2, 0), at.q, at.terms)
    stays = xp.concat([full(at.states[:-1, ...], 0.0), xp.astype(held.held, at.F.dtype)], axis=-1)
    moves = 1.0 - stays
    W = moves[..., :, None] * at.W * moves[..., None, :] + stays[..., None] * eye(at.F.shape[-1], at.F)
    return at._replace(F=at.F * moves[..., None, :], W=W, q=at.q * moves[..., n:], held=held)


def convex_part(at: Expansion, plan: PlanScore, backend: Backend, theta_c: Tree) -> tuple[Array, Array]:
    """Return positive semidefinite matrices in the place of W and P, without the second derivatives of h and of u(v).

    The first is the positive part of the Hessian of c in (x, u), in terms of v, with that of the barrier.
    """
    xp, v, x = array_namespace(at.F), at.controls, at.states[:-1, ...]
    n = x.shape[-1]
    z = xp.concat([x, backend.constant(plan.controls(v))], axis=-1)
    C = positive_part(hessian(backend, lambda z: plan.stages(z[..., :n], z[..., n:], theta_c), z))
    if not isinstance(plan.bounds, Bounds):
        return C, positive_part(at.P)
    first, _ = plan.bounds.slopes(v)
    scale = xp.concat([full(x, 1.0), first], axis=-1)
    curvature = plan.barrier * 2.0 * (1.0 - xp.tanh(v) ** 2)
    diagonal = xp.concat([full(x, 0.0), curvature], axis=-1)
    convex: Array = scale[..., :, None] * C * scale[..., None, :] + diagonal[..., None] * eye(z.shape[-1], z)
    return convex, positive_part(at.P)


def positive_part(X: Array) -> Array:
    """Return the symmetric matrices with their negative eigenvalues replaced by zero, (..., n, n)."""
    xp, X = array_namespace(X), symmetric(X)
    finite = xp.all(xp.isfinite(X), axis=(-2, -1), keepdims=True)
    values, vectors = xp.linalg.eigh(xp.where(finite, X, 0.0))
    part = (vectors * xp.where(values > 0, values, 0.0)[..., None, :]) @ vectors.mT
    found: Array = xp.where(finite, part, X)
    return found


def jacobian(backend: Backend, fn: Callable[[Array], Array], z: Array, n: int) -> Array:
    """Return the derivative of fn, (..., n_z) -> (..., n), at each time and problem: (..., n, n_z)."""
    return _derivative(backend, lambda z: (fn(z),), z, n)


def gradient_of(backend: Backend, fn: Callable[[Array], Array], z: Array) -> Array:
    """Return the gradient of fn, (..., n_z) -> (...), at each time and problem: (..., n_z)."""
    return backend.constant(_gradient(backend, fn, z)[0])


def gradient_and_hessian(backend: Backend, fn: Callable[[Array], Array], z: Array) -> tuple[Array, Array]:
    """Return the gradient and the Hessian of fn at each time and problem, (..., n_z) and (..., n_z, n_z)."""
    return gradient_of(backend, fn, z), hessian(backend, fn, z)


def at_the_end(backend: Backend, fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """Return the gradient and the Hessian of fn at the last time, for states without an axis of times."""
    p, P = gradient_and_hessian(backend, fn, x[None, ...])
    return p[0, ...], P[0, ...]


def hessian(backend: Backend, fn: Callable[[Array], Array], z: Array) -> Array:
    """Return the Hessian of fn, (..., n_z) -> (...), at each time and problem: (..., n_z, n_z)."""
    return _derivative(backend, lambda z: _gradient(backend, fn, z), z, z.shape[-1])


def _gradient(backend: Backend, fn: Callable[[Array], Array], z: Array) -> Arrays:
    (value,), pull = backend.vjp(lambda z: (fn(z),), z)
    return pull((array_namespace(value).ones_like(value),))


def _derivative(backend: Backend, fn: Callable[[Array], Arrays], z: Array, n: int) -> Array:
    """Return the derivative of fn, whose values are (..., n), by n pullbacks at once.

    Few numbers are one pullback at n copies of z, since an operation costs more than its work. The copies follow the
    first axis, that of times. Of many, fn is called at z alone.
    """
    xp, (times, *batch, n_z) = array_namespace(z), z.shape
    rows = xp.reshape(eye(n, z), (n, 1, *(1 for _ in batch), n))
    if size(z.shape) <= FEW_NUMBERS:
        rows = xp.broadcast_to(xp.moveaxis(rows, 0, 1), (times, n, *batch, n))
        _, pull = backend.vjp(fn, xp.broadcast_to(z[:, None, ...], (times, n, *batch, n_z)))
        (pulled,) = pull((rows,))
        pulled = xp.moveaxis(backend.constant(pulled), 1, -2)
    else:
        _, pull = backend.vjp(fn, z)
        (pulled,) = pull.many((xp.broadcast_to(rows, (n, times, *batch, n)),))
        pulled = xp.moveaxis(backend.constant(pulled), 0, -2)
    derivative: Array = pulled
    return derivative
