"""Large equations F(u; k) = 0: as a residual that NumPy, torch and JAX run, and as SciPy's sparse matrices by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sparse

Array = Any


@dataclass(frozen=True)
class Ops:
    """What the residuals need of a framework beside operators."""

    pad: Callable[[Array], Array]
    """Zeros around an array, one on each side of each axis."""
    exp: Callable[[Array], Array]
    concat: Callable[[list[Array]], Array]


def ops(backend: str) -> Ops:
    """Return the operations of a backend."""
    if backend == "torch":
        import torch

        return Ops(lambda u: torch.nn.functional.pad(u, (1, 1) * u.ndim), torch.exp, torch.cat)
    if backend == "jax":
        import jax.numpy as jnp

        return Ops(lambda u: jnp.pad(u, 1), jnp.exp, jnp.concatenate)
    return Ops(lambda u: np.pad(u, 1), np.exp, np.concatenate)


@dataclass(frozen=True)
class Problem:
    """One equation, with u = 0 as the start."""

    name: str
    unknowns: int
    k: Array
    """The field in which the gradient of sum(u) is taken."""
    residual: Callable[[Ops, Array, Array], Array]
    """F of arrays of a framework; u: (n,)."""
    matrix: Any
    """The linear part of F in u, sparse, (n, n)."""
    bend: Callable[[Array, Array], Array]
    """The rest of F in NumPy."""
    slope: Callable[[Array, Array], Any]
    """The derivative of the rest in u, sparse, (n, n)."""
    pull: Callable[[Array, Array, Array], Array]
    """(dF/dk)^T w at u, k and w."""

    def F(self, u: Array, k: Array) -> Array:
        """Return F in NumPy, by the sparse matrix."""
        return self.matrix @ u + self.bend(u, k)

    def J(self, u: Array, k: Array) -> Any:
        """Return dF/du."""
        return (self.matrix + self.slope(u, k)).tocsc()


def second(n: int) -> Any:
    """Return -u'' times h^2 between zeros, (n, n)."""
    one = np.ones(n - 1)
    return sparse.diags_array([-one, 2 * np.ones(n), -one], offsets=[-1, 0, 1])


def grid(n: int, dimensions: int) -> Any:
    """Return -lap u times h^2 between zeros, (n ** d, n ** d)."""
    eye, total = sparse.eye_array, second(n)
    for _ in range(dimensions - 1):
        total = sparse.kron(total, eye(n)) + sparse.kron(eye(total.shape[0]), second(n))
    return total.tocsr()


def laplace(ops: Ops, u: Array, n: int, dimensions: int) -> Array:
    """Return -lap u times h^2 of a framework's u, (n ** d,)."""
    U = ops.pad(u.reshape((n,) * dimensions))
    inner = (slice(1, -1),) * dimensions
    total = 2.0 * dimensions * U[inner]
    for axis in range(dimensions):
        for side in (slice(2, None), slice(None, -2)):
            total = total - U[(*inner[:axis], side, *inner[axis + 1 :])]
    return total.reshape((-1,))


def field(n: int) -> Array:
    """Return a field that is smooth to no order."""
    return 1 + 0.5 * np.random.default_rng(0).uniform(size=n)


def bratu(n: int) -> Problem:
    """-lap u = k exp(u) on a square, times h^2."""
    h2, m = 1 / (n + 1) ** 2, n * n
    return Problem(
        f"Bratu, {n} x {n}",
        m,
        field(m),
        lambda ops, u, k: laplace(ops, u, n, 2) - h2 * (k * ops.exp(u)),
        grid(n, 2),
        lambda u, k: -h2 * k * np.exp(u),
        lambda u, k: sparse.diags_array(-h2 * k * np.exp(u)),
        lambda u, k, w: -h2 * np.exp(u) * w,
    )


def cubic(name: str, n: int, dimensions: int, k: Array, *, bend: float, extra: Any = None, more: Any = None) -> Problem:
    """-lap u + bend u^3 + extra = k, times h^2; `more` is the extra part of a framework's u."""
    h2 = 1 / (n + 1) ** 2
    A = grid(n, dimensions) if extra is None else grid(n, dimensions) + extra

    def residual(ops: Ops, u: Array, k: Array) -> Array:
        F = laplace(ops, u, n, dimensions) + h2 * (bend * u**3 - k)
        return F if more is None else F + more(ops, u)

    return Problem(
        name,
        n**dimensions,
        k,
        residual,
        A,
        lambda u, k: h2 * (bend * u**3 - k),
        lambda u, k: sparse.diags_array(3 * h2 * bend * u**2),
        lambda u, k, w: -h2 * w,
    )


def convection(n: int, peclet: float = 100.0) -> Problem:
    """-lap u + Pe (0.8, 0.6) . grad u + u^3 = k on a square, central differences."""
    h, eye, one = 1 / (n + 1), sparse.eye_array(n), np.ones(n - 1)
    first = sparse.diags_array([-one, one], offsets=[-1, 1]) * (peclet * h / 2)
    extra = 0.8 * sparse.kron(first, eye) + 0.6 * sparse.kron(eye, first)

    def more(ops: Ops, u: Array) -> Array:
        U = ops.pad(u.reshape((n, n)))
        along, across = U[2:, 1:-1] - U[:-2, 1:-1], U[1:-1, 2:] - U[1:-1, :-2]
        return (peclet * h / 2 * (0.8 * along + 0.6 * across)).reshape((-1,))

    name = f"convection, Pe {peclet:g}, {n} x {n}"
    return cubic(name, n, 2, 100 * field(n * n), bend=1.0, extra=extra, more=more)


def poisson(n: int) -> Problem:
    """-lap u + u^3 = k in a cube."""
    return cubic(f"Poisson, {n} x {n} x {n}", n, 3, 10 * field(n**3), bend=1.0)


def helmholtz(n: int, wave: float = 15.0) -> Problem:
    """-lap u - wave^2 u + u^3 = k on a square: an indefinite matrix."""
    h2 = 1 / (n + 1) ** 2
    name = f"Helmholtz, {n} x {n}"
    shift = -(wave**2) * h2
    return cubic(
        name, n, 2, field(n * n), bend=1.0, extra=shift * sparse.eye_array(n * n), more=lambda ops, u: shift * u
    )


def chain(n: int) -> Problem:
    """3 u_i - u_{i-1} - u_{i+1} + u_i^3 = k_i."""

    def residual(ops: Ops, u: Array, k: Array) -> Array:
        U = ops.pad(u)
        return 3 * u - U[2:] - U[:-2] + u**3 - k

    return Problem(
        f"chain of {n:,}",
        n,
        field(n),
        residual,
        (second(n) + sparse.eye_array(n)).tocsr(),
        lambda u, k: u**3 - k,
        lambda u, k: sparse.diags_array(3 * u**2),
        lambda u, k, w: -w,
    )


def pair(n: int) -> Problem:
    """-lap a + a + 20 a b = k, -3 lap b + b = 5 a^2 on a square: two species that react."""
    h2, m = 1 / (n + 1) ** 2, n * n
    A = sparse.block_diag([grid(n, 2) + h2 * sparse.eye_array(m), 3 * grid(n, 2) + h2 * sparse.eye_array(m)]).tocsr()

    def residual(ops: Ops, u: Array, k: Array) -> Array:
        a, b = u[:m], u[m:]
        first = laplace(ops, a, n, 2) + h2 * (a + 20 * a * b - k)
        return ops.concat([first, 3 * laplace(ops, b, n, 2) + h2 * (b - 5 * a**2)])

    def slope(u: Array, k: Array) -> Any:
        a, b = u[:m], u[m:]
        d = sparse.diags_array
        return h2 * sparse.block_array([[d(20 * b), d(20 * a)], [d(-10 * a), None]])

    return Problem(
        f"reaction and diffusion, 2 x {n} x {n}",
        2 * m,
        100 * field(m),
        residual,
        A,
        lambda u, k: h2 * np.concatenate([20 * u[:m] * u[m:] - k, -5 * u[:m] ** 2]),
        slope,
        lambda u, k, w: -h2 * w[:m],
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "bratu 100": partial(bratu, 100),
    "bratu 300": partial(bratu, 300),
    "convection": partial(convection, 100),
    "pair": partial(pair, 70),
    "chain": partial(chain, 1_000_000),
    "poisson": partial(poisson, 40),
    "helmholtz": partial(helmholtz, 100),
}
"""The problems of the table."""
