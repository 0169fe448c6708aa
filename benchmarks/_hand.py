"""The scores of the benchmark and their backward pass, written by hand in each framework. Layers are compared with it.

The backward pass is Algorithm 1 of Look et al. 2020: conjugate gradients with Hessian-vector products of the score,
then one product with the mixed derivative. The loop is the paper's, with a relative tolerance and a limit on the
number of iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

Array = Any
HIDDEN = 30
"""Units of each of the two hidden layers: the architecture of Figure 2 in the paper."""


# --- scores, written once for all frameworks -------------------------------------------------------------------------


def network(u: Array, w1: Array, b1: Array, w2: Array, b2: Array, w3: Array) -> Array:
    """Return a network of two hidden layers plus 1/2 ||u||^2."""
    xp = array_namespace(u)
    hidden = xp.tanh(xp.tanh(u @ w1 + b1) @ w2 + b2)
    return hidden @ w3 + 0.5 * (u @ u)


def chain(u: Array, theta: Array) -> Array:
    """Return a local score: softplus of each entry, 1/2 ||u||^2, and a spring between neighbours."""
    xp = array_namespace(u)
    stretch = u[1:] - u[:-1]
    return xp.sum(xp.logaddexp(theta * u, xp.zeros_like(u))) + 0.5 * (u @ u) + 0.5 * (stretch @ stretch)


SCORES: dict[str, Callable[..., Array]] = {"network": network, "chain": chain}


def parameters(score: str, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the parameters of a score for size unknowns, such that its Hessian is positive definite."""
    if score == "chain":
        return [rng.uniform(0.5, 3.0, size)]
    shapes = [(size, HIDDEN), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN,)]
    w1, b1, w2, b2, w3 = (rng.standard_normal(shape) for shape in shapes)
    # a Gaussian matrix has a spectral norm of about the sum of the roots of its sides
    return [w1 / (size**0.5 + HIDDEN**0.5), 0.1 * b1, w2 / (2 * HIDDEN**0.5), 0.1 * b2, w3 / HIDDEN**0.5]


# --- the backward pass by hand ---------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A backward pass to do: the same for the layer and for the hand-written loop."""

    score: Callable[..., Array]
    params: Sequence[Array]
    y: Array
    v: Array
    """dL/dy."""
    tol: float
    """||r|| <= tol ||v|| ends the loop."""
    cap: int


def conjugate_gradients(product: Callable[[Array], Array], v: Array, tol: float, cap: int) -> tuple[Array, int]:
    """Solve H x = v; return x and the number of iterations."""
    x = array_namespace(v).zeros_like(v)
    r = p = v
    rr = r @ r
    enough, k = tol * tol * rr, 0
    while rr > enough and k < cap:
        Hp = product(p)
        alpha = rr / (p @ Hp)
        x = x + alpha * p
        r = r - alpha * Hp
        rr, before = r @ r, rr
        p = r + (rr / before) * p
        k += 1
    return x, k


def by_torch(task: Task) -> Callable[[], tuple[Sequence[Array], int]]:
    """Return the backward pass by plain autograd: one graph of df/du, one pass through it for each product."""
    import torch

    def backward() -> tuple[Sequence[Array], int]:
        u = task.y.detach().requires_grad_()
        (F,) = torch.autograd.grad(task.score(u, *task.params), u, create_graph=True)
        g, k = conjugate_gradients(
            lambda p: torch.autograd.grad(F, u, p, retain_graph=True)[0], task.v, task.tol, task.cap
        )
        return torch.autograd.grad(F, list(task.params), -g), k

    return backward


def by_numpy(task: Task) -> Callable[[], tuple[Sequence[Array], int]]:
    """Return the backward pass over the library's tape: one tape of df/du, one pull through it for each product."""
    from dil_backends.numpy import vjp

    def gradient(u: Array, *params: Array) -> tuple[Array]:
        (value,), pull = vjp(lambda w: (task.score(w, *params),), u)
        (F,) = pull((array_namespace(value).ones_like(value),))
        return (F,)

    def backward() -> tuple[Sequence[Array], int]:
        _, pull = vjp(gradient, task.y, *task.params)
        g, k = conjugate_gradients(lambda p: pull((p,), (0,))[0], task.v, task.tol, task.cap)
        return pull((-g,), range(1, 1 + len(task.params))), k

    return backward


def by_jax(task: Task) -> Callable[[], tuple[Sequence[Array], int]]:
    """Return the backward pass as one jitted program around `lax.while_loop`."""
    import jax

    @jax.jit
    def program(params: Sequence[Array], y: Array, v: Array) -> tuple[Sequence[Array], Array]:
        _, pull = jax.vjp(jax.grad(task.score), y, *params)
        g, k = conjugate_gradients_in_jax(lambda p: pull(p)[0], v, task.tol, task.cap)
        return pull(-g)[1:], k

    def backward() -> tuple[Sequence[Array], int]:
        return jax.block_until_ready(program(task.params, task.y, task.v))

    return backward


def conjugate_gradients_in_jax(
    product: Callable[[Array], Array], v: Array, tol: float, cap: int
) -> tuple[Array, Array]:
    """Solve H x = v in a loop of XLA; return x and the number of iterations."""
    import jax
    import jax.numpy as jnp

    vv = v @ v

    def step(s: tuple[Array, ...]) -> tuple[Array, ...]:
        x, r, p, rr, k = s
        Hp = product(p)
        alpha = rr / (p @ Hp)
        x, r = x + alpha * p, r - alpha * Hp
        new = r @ r
        return x, r, r + (new / rr) * p, new, k + 1

    def go_on(s: tuple[Array, ...]) -> Array:
        return (s[3] > tol**2 * vv) & (s[4] < cap)

    x, *_, k = jax.lax.while_loop(go_on, step, (jnp.zeros_like(v), v, v, vv, 0))
    return x, k


BY_HAND = {"torch": by_torch, "jax": by_jax, "numpy": by_numpy}


# --- the floor: the same, as a function whose backward pass says whether it can be trusted ----------------------------


def careful_gradients(product: Callable[[Array], Array], F: Array, u: Array, v: Array, tol: float, cap: int) -> Array:
    """Solve H x = v, with a test of each curvature, and a judgement of how stationary u is: what a layer cannot omit.

    Its scalars are numbers of Python, which is the faster way to test one in every step.
    """
    x, r, p = array_namespace(v).zeros_like(v), v, v
    rr = float(r @ r)
    enough, curvature, k = tol * tol * rr, 0.0, 0
    while rr > enough and k < cap:
        Hp = product(p)
        curvature = float(p @ Hp)
        if not curvature > 0:
            break
        alpha = rr / curvature
        x, r = x + alpha * p, r - alpha * Hp
        rr, before = float(r @ r), rr
        p = r + (rr / before) * p
        k += 1
    step = float(F @ F) ** 0.5 * float(x @ x) / float(x @ v)
    if not (curvature > 0 and rr <= enough and step <= 1e-4 * (1 + float(u @ u) ** 0.5)):
        message = "the gradient cannot be trusted"
        raise ArithmeticError(message)
    return x


def floor_of_torch(task: Task) -> Callable[[], Sequence[Array]]:
    """Return the backward pass of the least `autograd.Function` that solves carefully."""
    import torch

    class Least(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *params: Array) -> Array:
            ctx.save_for_backward(*params)
            return task.y.clone()

        @staticmethod
        def backward(ctx: Any, v: Array) -> tuple[Array, ...]:
            with torch.enable_grad():
                u, *params = (x.detach().requires_grad_() for x in (task.y, *ctx.saved_tensors))
                (F,) = torch.autograd.grad(task.score(u, *params), u, create_graph=True)
            g = careful_gradients(
                lambda p: torch.autograd.grad(F, u, p, retain_graph=True)[0],
                F.detach(),
                u.detach(),
                v,
                task.tol,
                task.cap,
            )
            return torch.autograd.grad(F, params, -g)

    y = Least.apply(*task.params)
    return lambda: torch.autograd.grad(y, list(task.params), task.v, retain_graph=True)


def floor_of_numpy(task: Task) -> Callable[[], Sequence[Array]]:
    """Return the backward pass of the least function with a rule on the tape."""
    from dil_backends.numpy import implicit, vjp

    class Least:
        def pullback(
            self, args: Sequence[Array], y: Sequence[Array], cotangents: Sequence[Array], wrt: Sequence[int]
        ) -> Sequence[Array]:
            def gradient(u: Array, *params: Array) -> tuple[Array]:
                (value,), pull = vjp(lambda w: (task.score(w, *params),), u)
                (F,) = pull((array_namespace(value).ones_like(value),))
                return (F,)

            (F,), pull = vjp(gradient, *y, *args)
            g = careful_gradients(lambda p: pull((p,), (0,))[0], F, *y, *cotangents, task.tol, task.cap)
            return pull((-g,), [1 + i for i in wrt])

    _, pull = vjp(implicit(lambda *params: (task.y.copy(),), Least()), *task.params)
    return lambda: pull((task.v,))


def careful_gradients_in_jax(
    product: Callable[[Array], Array], F: Array, u: Array, v: Array, tol: float, cap: int
) -> Array:
    """Solve H x = v in a loop of XLA, as `careful_gradients` does; what cannot be trusted turns into NaN."""
    import jax
    import jax.numpy as jnp

    vv = v @ v

    def step(s: tuple[Array, ...]) -> tuple[Array, ...]:
        x, r, p, rr, _, k = s
        Hp = product(p)
        curvature = p @ Hp
        alpha = rr / jnp.where(curvature > 0, curvature, jnp.inf)
        x, r = x + alpha * p, r - alpha * Hp
        new = r @ r
        return x, r, r + (new / rr) * p, new, curvature > 0, k + 1

    def go_on(s: tuple[Array, ...]) -> Array:
        return s[4] & (s[3] > tol**2 * vv) & (s[5] < cap)

    x, _, _, rr, sound, _ = jax.lax.while_loop(go_on, step, (jnp.zeros_like(v), v, v, vv, vv > 0, 0))
    far = jnp.sqrt(F @ F) * (x @ x) > 1e-4 * (1 + jnp.sqrt(u @ u)) * (x @ v)
    return jnp.where(sound & (rr <= tol**2 * vv) & ~far, x, jnp.nan)


def floor_of_jax(task: Task) -> Callable[[], Sequence[Array]]:
    """Return the jitted backward pass of the least `custom_vjp` function."""
    import jax

    def backward(saved: tuple[Array, Sequence[Array]], v: Array) -> Sequence[Array]:
        u, params = saved
        F, pull = jax.vjp(jax.grad(task.score), u, *params)
        return pull(-careful_gradients_in_jax(lambda p: pull(p)[0], F, u, v, task.tol, task.cap))[1:]

    @jax.jit
    def program(params: Sequence[Array], y: Array, v: Array) -> Sequence[Array]:
        least = jax.custom_vjp(lambda *params: y)
        least.defvjp(lambda *params: (y, (y, params)), backward)
        return jax.vjp(least, *params)[1](v)

    return lambda: jax.block_until_ready(program(task.params, task.y, task.v))


FLOOR = {"torch": floor_of_torch, "jax": floor_of_jax, "numpy": floor_of_numpy}


# --- the same by the layer -------------------------------------------------------------------------------------------


def by_layer(backend: str, task: Task) -> Callable[[], Sequence[Array]]:
    """Return the backward pass of `dil.argmin`, its forward pass done; under JAX it is part of the program."""
    if backend == "jax":
        return _jitted(task)
    y, pull = _recorded(backend, _layer(task.score, task.y), task.params)
    return lambda: pull(y, task.v)


def _layer(score: Callable[..., Array], y: Array) -> Callable[..., Array]:
    """Return a layer whose solver costs nothing: it hands back the solution; its linear solver is that of the hand."""
    import dil

    return dil.argmin(score, lambda fun, init, *params: y, linear_solver=dil.linear.CG())


def _recorded(backend: str, layer: Callable[..., Array], params: Sequence[Array]) -> tuple[Array, Callable[..., Any]]:
    if backend == "torch":
        import torch

        return layer(*params), lambda y, v: torch.autograd.grad(y, list(params), v, retain_graph=True)
    import dil

    y, pull = dil.vjp(layer, *params)
    return y, lambda y, v: pull(v)


def _jitted(task: Task) -> Callable[[], Sequence[Array]]:
    import jax

    @jax.jit
    def program(params: Sequence[Array], y: Array, v: Array) -> Sequence[Array]:
        return jax.vjp(_layer(task.score, y), *params)[1](v)

    return lambda: jax.block_until_ready(program(task.params, task.y, task.v))
