"""A linear quadratic plan, forward and backward: by dil, by mpc.pytorch, and by its algorithm written by hand.

The algorithm is that of Amos et al. 2018: a Riccati recursion back and a roll-out forth, whose gradient is a second
regulator with the same matrices, so that it takes the factors of the first one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from _common import one_thread
from dil.control import DDP, plan

HORIZON, STATES, CONTROLS, BATCH = 20, 8, 4, 128
NAMES = ("A", "B", "Q", "R", "c", "x0")
Array = Any
Way = Callable[[], tuple[Array, list[Array]]]
"""Returns the controls, (BATCH, HORIZON, CONTROLS), and the gradient of their product with a cotangent in all NAMES."""


def arrays(batch: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return A, B, Q, R, c and x0 of each problem, and a cotangent of the controls."""
    draw, n, m = np.random.default_rng(0), STATES, CONTROLS
    A = np.eye(n) + 0.2 * draw.standard_normal((batch, n, n)) / n**0.5
    B = draw.standard_normal((batch, n, m)) / n**0.5
    Q, R = (0.3 * draw.standard_normal((batch, k, k)) for k in (n, m))
    Q, R = (x @ x.swapaxes(-1, -2) + np.eye(x.shape[-1]) for x in (Q, R))
    rest = 0.1 * draw.standard_normal((batch, n + m)), draw.standard_normal((batch, n))
    return [A, B, Q, R, *rest], draw.standard_normal((batch, HORIZON, m))


# --- dil -------------------------------------------------------------------------------------------------------------


def form(x: Array, M: Array, einsum: Callable[..., Array]) -> Array:
    """Return 1/2 x^T M x of each problem, (..., batch)."""
    return 0.5 * (einsum("...bi,bij->...bj", x, M) * x).sum(-1)


def cost(x: Array, u: Array, theta: Array, *, einsum: Callable[..., Array]) -> Array:
    Q, R, c = theta
    linear = (c[..., :STATES] * x).sum(-1) + (c[..., STATES:] * u).sum(-1)
    return form(x, Q, einsum) + form(u, R, einsum) + linear


def dynamics(x: Array, u: Array, theta: Array, *, einsum: Callable[..., Array]) -> Array:
    A, B = theta
    return einsum("bij,...bj->...bi", A, x) + einsum("bij,...bj->...bi", B, u)


def layer(einsum: Callable[..., Array]) -> Callable[..., Array]:
    """Return (A, B, Q, R, c, x0) -> controls, by `dil.control.plan`."""
    functions = (functools.partial(f, einsum=einsum) for f in (cost, dynamics))
    steer = plan(*functions, HORIZON, controls=CONTROLS, solver=DDP())
    return lambda A, B, Q, R, c, x0: steer(x0, (Q, R, c), (A, B))


# --- torch -----------------------------------------------------------------------------------------------------------


def in_torch(batch: int) -> dict[str, Way]:
    """Return the ways in torch."""
    import torch

    one_thread("torch")
    given, cotangent = arrays(batch)
    leaves, v = [torch.tensor(x, requires_grad=True) for x in given], torch.tensor(cotangent)

    def way(solve: Callable[..., Array]) -> Way:
        def run() -> tuple[Array, list[Array]]:
            u = solve(*leaves)
            return u.detach(), list(torch.autograd.grad(u, leaves, v))

        return run

    ways = {"dil, DDP": way(layer(torch.einsum)), "by hand": way(by_hand())}
    with contextlib.suppress(ModuleNotFoundError):  # a peer that a run can do without
        ways["mpc.pytorch"] = way(by_mpc())
    return ways


def by_hand() -> Callable[..., Array]:
    """Return the algorithm of Amos et al. 2018 in torch, for matrices that are the same at all times."""
    import torch

    n = STATES

    class Regulator(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, A: Array, B: Array, Q: Array, R: Array, c: Array, x0: Array) -> Array:
            F = torch.cat([A, B], dim=-1)
            Ft, zero = F.mT.contiguous(), Q.new_zeros(*Q.shape[:-1], CONTROLS)
            C = torch.cat([torch.cat([Q, zero], dim=-1), torch.cat([zero.mT, R], dim=-1)], dim=-2)
            C, c = 0.5 * (C + C.mT), c[..., None]
            P, p = torch.zeros_like(Q), torch.zeros_like(c[:, :n])
            kept: list[Any] = []
            for _ in range(HORIZON):
                H, h = torch.baddbmm(C, Ft, P @ F), torch.baddbmm(c, Ft, p)
                L = torch.linalg.cholesky(H[:, n:, n:])
                gains = -torch.cholesky_solve(torch.cat([H[:, n:, :n], h[:, n:]], dim=-1), L)
                K, k = gains[..., :n], gains[..., n:]
                kept.append((L, K, k, P, p))
                P, p = torch.baddbmm(H[:, :n, :n], H[:, :n, n:], K), torch.baddbmm(h[:, :n], H[:, :n, n:], k)
            kept.reverse()
            tau, costates = roll(F, x0[..., None], kept)
            ctx.kept = F, kept, tau, costates
            return tau[:, :, n:].transpose(0, 1)

        @staticmethod
        def backward(ctx: Any, v: Array) -> Any:
            F, kept, tau, costates = ctx.kept
            p, found = torch.zeros_like(tau[0, :, :n, None]), []
            for (L, K, _, P, _), row in zip(reversed(kept), v.transpose(0, 1).flip(0), strict=True):
                h = F.mT @ p
                q_u = h[:, n:] + row[..., None]
                found.append((L, K, -torch.cholesky_solve(q_u, L), P, p))
                p = torch.baddbmm(h[:, :n], K.mT, q_u)
            found.reverse()
            d, dual = roll(F, torch.zeros_like(p), found)
            # sums over the times of outer products, each a product of matrices
            tau, d, costates, dual = (x.transpose(0, 1) for x in (tau, d, costates, dual))
            outer = d.mT @ tau
            dC, dF = 0.5 * (outer + outer.mT), dual.mT @ tau + costates.mT @ d
            return dF[..., :n], dF[..., n:], dC[:, :n, :n], dC[:, n:, n:], d.sum(1), p[..., 0]

    def roll(F: Array, x: Array, kept: list[Any]) -> tuple[Array, Array]:
        """Return states and controls, (horizon, batch, n + m), and the costates of the next states."""
        rows, after = [], []
        for _, K, k, P, p in kept:
            tau = torch.cat([x, torch.baddbmm(k, K, x)], dim=1)
            x = F @ tau
            rows.append(tau)
            after.append(torch.baddbmm(p, P, x))
        return torch.stack(rows)[..., 0], torch.stack(after)[..., 0]

    return Regulator.apply  # type: ignore[no-any-return]


def by_mpc() -> Callable[..., Array]:
    """Return the plan by mpc.pytorch. Raises `ModuleNotFoundError` where it is not installed."""
    import torch
    from mpc.mpc import MPC, LinDx, QuadCost

    def solve(A: Array, B: Array, Q: Array, R: Array, c: Array, x0: Array) -> Array:
        zero = Q.new_zeros(*Q.shape[:-1], CONTROLS)
        C = torch.cat([torch.cat([Q, zero], dim=-1), torch.cat([zero.mT, R], dim=-1)], dim=-2)
        F = torch.cat([A, B], dim=-1)
        over = (x.expand(times, *x.shape) for x, times in ((C, HORIZON), (c, HORIZON), (F, HORIZON - 1)))
        C, c, F = over
        regulator = MPC(STATES, CONTROLS, HORIZON, verbose=-1)
        _, u, _ = regulator(x0, QuadCost(C, c), LinDx(F))
        return u.transpose(0, 1)

    return solve


# --- JAX -------------------------------------------------------------------------------------------------------------


def in_jax(batch: int) -> dict[str, Way]:
    """Return the ways in JAX, compiled."""
    import jax
    import jax.numpy as jnp

    given, cotangent = arrays(batch)
    leaves, v = [jnp.asarray(x) for x in given], jnp.asarray(cotangent)

    def way(solve: Callable[..., Array]) -> Way:
        @jax.jit
        def run(leaves: list[Array]) -> tuple[Array, Any]:
            u, pull = jax.vjp(solve, *leaves)
            return u, pull(v)

        def call() -> tuple[Array, list[Array]]:
            u, found = jax.block_until_ready(run(leaves))
            return u, list(found)

        return call

    return {"dil, DDP": way(layer(jnp.einsum)), "by hand": way(scanned())}


def scanned() -> Callable[..., Array]:
    """Return the same algorithm in JAX, each loop a scan."""
    import jax
    import jax.numpy as jnp

    n = STATES

    def solve_with(L: Array, b: Array) -> Array:
        return jax.scipy.linalg.cho_solve((L, True), b)

    def roll(F: Array, x: Array, gains: Any) -> tuple[Array, Array]:
        def step(x: Array, row: Any) -> tuple[Array, Any]:
            K, k, P, p = row
            tau = jnp.concatenate([x, K @ x + k], axis=1)
            x = F @ tau
            return x, (tau[..., 0], (P @ x + p)[..., 0])

        return jax.lax.scan(step, x, gains)[1]  # type: ignore[no-any-return]

    def forward(A: Array, B: Array, Q: Array, R: Array, c: Array, x0: Array) -> tuple[Array, Any]:
        F, zero = jnp.concatenate([A, B], axis=-1), jnp.zeros((*Q.shape[:-1], CONTROLS))
        C = jnp.concatenate([jnp.concatenate([Q, zero], -1), jnp.concatenate([zero.mT, R], -1)], -2)
        C, c = 0.5 * (C + C.mT), c[..., None]

        def step(carry: Any, _: Any) -> tuple[Any, Any]:
            P, p = carry
            H, h = C + F.mT @ (P @ F), c + F.mT @ p
            L = jnp.linalg.cholesky(H[:, n:, n:])
            gains = -solve_with(L, jnp.concatenate([H[:, n:, :n], h[:, n:]], axis=-1))
            K, k = gains[..., :n], gains[..., n:]
            after = H[:, :n, :n] + H[:, :n, n:] @ K, h[:, :n] + H[:, :n, n:] @ k
            return after, (L, K, k, P, p)

        start = jnp.zeros_like(Q), jnp.zeros_like(c[:, :n])
        _, (L, K, k, P, p) = jax.lax.scan(step, start, length=HORIZON, xs=None, reverse=True)
        tau, costates = roll(F, x0[..., None], (K, k, P, p))
        return jnp.moveaxis(tau[..., n:], 0, 1), (F, L, K, P, tau, costates)

    def backward(kept: Any, v: Array) -> Any:
        F, L, K, P, tau, costates = kept

        def step(p: Array, row: Any) -> tuple[Array, Any]:
            (L, K, v), h = row, F.mT @ p
            q_u = h[:, n:] + v[..., None]
            return h[:, :n] + K.mT @ q_u, (-solve_with(L, q_u), p)

        zero = jnp.zeros_like(tau[0, :, :n, None])
        p, (k, later) = jax.lax.scan(step, zero, (L, K, jnp.moveaxis(v, 1, 0)), reverse=True)
        d, dual = roll(F, zero, (K, k, P, later))
        tau, d, costates, dual = (jnp.moveaxis(x, 0, 1) for x in (tau, d, costates, dual))
        outer = d.mT @ tau
        dC, dF = 0.5 * (outer + outer.mT), dual.mT @ tau + costates.mT @ d
        return dF[..., :n], dF[..., n:], dC[:, :n, :n], dC[:, n:, n:], d.sum(1), p[..., 0]

    @jax.custom_vjp
    def regulator(*leaves: Array) -> Array:
        return forward(*leaves)[0]

    regulator.defvjp(forward, backward)
    return regulator
