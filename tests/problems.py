"""Random scores with a unique minimum near their start, written once with array_namespace, and their arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from hypothesis import strategies as st

import dil


def _flat(u):
    xp = array_namespace(u)
    return xp.reshape(u, (-1,))


def _softplus(xp, z):
    return xp.log1p(xp.exp(-xp.abs(z))) + xp.maximum(z, 0.0 * z)


def quadratic(u, A, x):
    """SPD quadratic 1/2 u^T (A A^T / n + I) u - x^T u."""
    xp = array_namespace(u)
    z = _flat(u)
    w = xp.matmul(A.mT, z)
    return 0.5 * xp.sum(w * w) / A.shape[0] + 0.5 * xp.sum(z * z) - xp.sum(_flat(x) * z)


def network(u, A, x):
    """A softplus network over u plus a strictly convex term."""
    xp = array_namespace(u)
    z = _flat(u)
    return xp.sum(_softplus(xp, xp.matmul(A, z) + _flat(x))) + 0.5 * xp.sum(z * z)


def quartic(u, A, x):
    """A quartic bowl, coupled by A."""
    xp = array_namespace(u)
    z = _flat(u) - _flat(x)
    w = xp.matmul(A, z)
    return 0.25 * xp.sum(z**4) + 0.5 * xp.sum(w * w) + 0.5 * xp.sum((z - 1.0) ** 2)


def nonconvex(u, A, x):
    """Double wells, coupled weakly: not convex, with a minimum near the start."""
    xp = array_namespace(u)
    z = _flat(u)
    wells = 0.25 * xp.sum((z**2 - 1.0) ** 2)
    return wells + 0.1 * xp.sum(xp.sin(xp.matmul(A, z))) / A.shape[0] - 0.05 * xp.sum(xp.tanh(_flat(x)) * z)


def coupled(u, A, x):
    """Two leaves that depend on each other: a block-diagonal solve would be wrong."""
    xp = array_namespace(u["a"])
    a, b = _flat(u["a"]), _flat(u["b"][0])
    w = xp.matmul(A, a) - b
    return 0.5 * xp.sum(w * w) + 0.5 * xp.sum((a - _flat(x)) ** 2) + 0.5 * xp.sum(b**2) + 0.25 * xp.sum(b**4)


SCORES = {f.__name__: f for f in (quadratic, network, quartic, nonconvex, coupled)}
SHAPES = [(), (1,), (4,), (2, 3)]


@dataclass(frozen=True)
class Case:
    """A score, the shape of its unknown, and a seed for its arguments."""

    kind: str
    shape: tuple[int, ...]
    seed: int

    @property
    def score(self) -> Any:
        return SCORES[self.kind]

    def args(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(self.seed)
        n = int(np.prod(self.shape))
        return draw.standard_normal((n, n)), draw.standard_normal(self.shape)

    def cotangent(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 1).standard_normal(self.shape)

    def layer(self, **options) -> dil.Layer:
        solver = dil.solvers.Newton(rtol=1e-11)
        return dil.argmin(self.score, solver, init=self.init, **options)

    def init(self, A, x):
        xp = array_namespace(x)
        start = xp.ones_like(x) if self.kind == "nonconvex" else xp.zeros_like(x)
        return {"a": start, "b": [start]} if self.kind == "coupled" else start

    def function(self, **options):
        """Return the layer as a function of A and x with one array as its value."""
        layer = self.layer(**options)

        def fn(A, x):
            y = layer(A, x)
            return y["a"] + 2.0 * y["b"][0] if self.kind == "coupled" else y

        return fn


cases = st.builds(Case, kind=st.sampled_from(sorted(SCORES)), shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**6))
