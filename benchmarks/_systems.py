"""The linear systems of the benchmark: systems of layers, A = dF/du by the backend's vjp, with a known solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from _hand import chain, network, parameters

Array = Any


# --- scores and residuals, written once for all frameworks -----------------------------------------------------------


def scales(u: Array, d: Array) -> Array:
    """Return a score of diagonal scales d, with a spring between neighbours."""
    stretch = u[1:] - u[:-1]
    return 0.5 * ((d * u) @ u) + 0.25 * (stretch @ stretch)


def stiff(u: Array, d: Array, mirrors: Array) -> Array:
    """Return a score of eigenvalues d in no basis that stands out: that of some reflections."""
    for i in range(mirrors.shape[0]):
        v = mirrors[i, :]
        u = u - (2 * (v @ u)) * v
    return 0.5 * ((d * u) @ u)


def coupled(u: Array, d: Array, M: Array) -> Array:
    """Return a score of scales d and a dense coupling."""
    w = M @ u
    return 0.5 * ((d * u) @ u) + (0.5 / M.shape[0]) * (w @ w)


def saddle(u: Array, d: Array) -> Array:
    """Return a Lagrangian: a quadratic in the first two thirds of u, held together by multipliers, the last third."""
    m = u.shape[0] // 3
    a, b, multipliers = u[:m], u[m : 2 * m], u[2 * m :]
    both = u[: 2 * m]
    return 0.5 * ((d * both) @ both) + multipliers @ (a - b)


def batched_chain(u: Array, theta: Array) -> Array:
    """Return the scores of many chains, u and theta: (batch, n)."""
    xp = array_namespace(u)
    stretch = u[:, 1:] - u[:, :-1]
    soft = xp.logaddexp(theta * u, xp.zeros_like(u))
    return xp.sum(soft + 0.5 * u * u, axis=-1) + 0.5 * xp.sum(stretch * stretch, axis=-1)


def contraction(u: Array, W: Array) -> Array:
    """Return u - tanh(W u), the residual of a fixed point."""
    return u - array_namespace(u).tanh(W @ u)


def convection(u: Array, wind: Array) -> Array:
    """Return the residual of reaction, diffusion and convection on a line, u = 0 at both ends."""
    xp = array_namespace(u)
    end = xp.zeros_like(u[:1])
    left, right = xp.concat([end, u[:-1]]), xp.concat([u[1:], end])
    return u + 0.1 * u**3 + 10.0 * (2.0 * u - left - right) + wind * (right - left)


# --- systems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A x = b with A = dF/du at u, transposed as a layer's pullback asks for it; all arrays NumPy's."""

    name: str
    fn: Callable[..., Array]
    params: Sequence[Any]
    u: Any
    symmetric: bool = True
    """Whether fn is a score, F its gradient; else it is F."""
    goals: tuple[str, ...] = ()
    """The preconditioners that have a target here."""

    @property
    def n(self) -> int:
        """Unknowns of a problem."""
        return int(self.u.shape[-1])

    def solution(self) -> Any:
        """Return x, like u."""
        return np.random.default_rng(7).standard_normal(self.u.shape)


def operator(backend: Any, system: System, u: Array, params: Sequence[Array]) -> Any:
    """Return A in arrays of a backend."""
    import dil

    if system.symmetric:
        _, pull = backend.vjp(lambda w: (slope(backend, system.fn, w, params),), u)
        return dil.linear.Operator(lambda p: pull((p,))[0], symmetric=True)
    _, pull = backend.vjp(lambda w: (system.fn(w, *params),), u)
    _, push = backend.vjp(lambda w: (pull((w,))[0],), array_namespace(u).zeros_like(u))
    return dil.linear.Operator(lambda p: pull((p,))[0], lambda t: push((t,))[0], transposed=True)


def slope(backend: Any, fn: Callable[..., Array], u: Array, params: Sequence[Array]) -> Array:
    """Return df/du of a score."""
    (value,), pull = backend.vjp(lambda w: (fn(w, *params),), u)
    return pull((array_namespace(value).ones_like(value),))[0]


def learned_pairs(system: System, backend: Any, memory: int) -> Any:
    """Return what L-BFGS has learned of A when it has minimised the same score, tilted so that the way is long."""
    import dil

    tilt = np.random.default_rng(5).standard_normal(system.u.shape)
    params, tilt, start = [backend.asarray(x) for x in system.params], backend.asarray(tilt), backend.asarray(system.u)
    solver = dil.solvers.LBFGS(memory=memory, max_iter=20_000)
    extra = solver(lambda u, *params: system.fn(u, *params) - tilt @ u, start, *params).extra
    assert extra is not None
    return extra["pairs"]


def systems(*, quick: bool) -> list[System]:
    """Return the systems, small ones alone if it is to be quick."""
    rng = np.random.default_rng(0)

    def hand(name: str, n: int) -> System:
        fn = {"network": network, "chain": chain}[name]
        return System(f"{name}", fn, parameters(name, n, rng), 0.1 * rng.standard_normal(n))

    def still(name: str, fn: Callable[..., Array], n: int, *params: Any, **more: Any) -> System:
        return System(name, fn, params, np.zeros(n), **more)

    def scaled(n: int) -> System:
        return still("scales", scales, n, rng.permutation(np.logspace(0, 6, n)), goals=("Jacobi", "LBFGSPairs"))

    def stiffened(n: int) -> System:
        mirrors = rng.standard_normal((4, n))
        d = np.concatenate([np.geomspace(1e2, 1e6, 50), 1 + rng.random(n - 50)])
        mirrors = mirrors / np.linalg.norm(mirrors, axis=-1, keepdims=True)
        return still("stiff", stiff, n, d, mirrors, goals=("Nystrom", "LBFGSPairs"))

    def twisted(n: int) -> System:
        W = rng.standard_normal((n, n))
        W *= 0.9 / np.max(np.abs(np.linalg.eigvals(W)))
        return still("contraction", contraction, n, W, symmetric=False)

    def blown(n: int) -> System:
        return replace(
            still("convection", convection, n, rng.uniform(1.0, 9.0, n), symmetric=False), u=rng.standard_normal(n)
        )

    def held(n: int) -> System:
        return still("saddle", saddle, n, rng.uniform(1.0, 10.0, 2 * n // 3))

    many = System("batch of 100", batched_chain, [rng.uniform(0.5, 3.0, (100, 10))], rng.standard_normal((100, 10)))
    if quick:
        return [hand("chain", 10), stiffened(100), held(30), blown(30), many]
    found = [hand(name, n) for name in ("network", "chain") for n in (10, 100, 1_000, 10_000)]
    found += [make(n) for make in (scaled, stiffened) for n in (100, 1_000, 10_000)]
    found += [held(n) for n in (30, 300, 9_999)]
    found += [
        make(n) for make, sizes in ((twisted, (10, 100, 1_000)), (blown, (10, 100, 1_000, 10_000))) for n in sizes
    ]
    return [*found, many]


def crossing(kind: str, n: int) -> System:
    """Return a system of few iterations, or of many."""
    rng = np.random.default_rng(n)
    if kind == "few":
        return System("few", chain, parameters("chain", n, rng), np.full(n, 0.1))
    return System("many", coupled, [np.geomspace(1, 1e6, n), rng.standard_normal((n, n))], np.zeros(n))
