"""Random general matrices of the kinds that layers have: convection, units, contractions, discs, a few stiff rows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import numpy as np

Matrix: TypeAlias = Any
"""A NumPy array (n, n)."""
Kind: TypeAlias = "Callable[[np.random.Generator, int], Matrix]"
SIZES = (120, 200, 300)


def noise(draw: np.random.Generator, n: int, radius: float = 1.0) -> Matrix:
    """Return a Gaussian matrix whose eigenvalues fill a disc of about that radius."""
    return radius * draw.standard_normal((n, n)) / np.sqrt(n)


def units(draw: np.random.Generator, n: int, decades: float) -> Any:
    """Return positive numbers over some decades: evenly, at random, or of two sizes."""
    exponents = (
        np.linspace(0, decades, n),
        draw.uniform(0, decades, n),
        decades * (draw.random(n) < 0.3),
    )[int(draw.integers(3))]
    return 10.0 ** draw.permutation(exponents)


def basis(draw: np.random.Generator, n: int) -> Matrix:
    """Return a random orthogonal matrix."""
    return np.linalg.qr(draw.standard_normal((n, n)))[0]


def regular(draw: np.random.Generator, n: int) -> Matrix:
    """Return I + G, whose eigenvalues lie in a disc about one."""
    return np.eye(n) + noise(draw, n, draw.uniform(0.2, 0.8))


def convection(draw: np.random.Generator, n: int, speed: float, decades: float = 0.0, upwind: bool = False) -> Matrix:
    """Return diffusion, of coefficients over some decades, and convection on a square grid of about n points."""
    m = int(np.sqrt(n))
    index, k = np.arange(m * m).reshape(m, m), 10.0 ** (decades * draw.random((m + 1, m + 1)))
    angle = draw.uniform(0, 2 * np.pi)
    across, along = 2 * speed / m * np.array([np.cos(angle), np.sin(angle)])
    A = (0.1 if upwind else 0.0) * np.eye(m * m)
    for i, j in np.ndindex(m, m):
        for down, right, flow in ((1, 0, across), (-1, 0, -across), (0, 1, along), (0, -1, -along)):
            coefficient, row = k[i + (down > 0), j + (right > 0)], index[i, j]
            A[row, row] += coefficient + (max(flow, 0.0) if upwind else 0.0)
            if 0 <= i + down < m and 0 <= j + right < m:
                A[row, index[i + down, j + right]] += -coefficient + (min(flow, 0.0) if upwind else flow / 2)
    return A


def contraction(draw: np.random.Generator, n: int) -> Matrix:
    """Return I - diag(tanh') W of a deep equilibrium model."""
    W = noise(draw, n)
    return np.eye(n) - (1.9 / np.linalg.norm(W, 2)) * W / np.cosh(draw.normal(0, 1.5, n))[:, None] ** 2


def disc(draw: np.random.Generator, n: int, radius: float) -> Matrix:
    """Return a normal matrix with eigenvalues in the disc about one."""
    z = radius * np.sqrt(draw.random(n // 2)) * np.exp(1j * draw.uniform(0, np.pi, n // 2))
    blocks, even = np.eye(n), np.arange(0, 2 * (n // 2), 2)
    blocks[even, even] = blocks[even + 1, even + 1] = 1 + z.real
    blocks[even, even + 1], blocks[even + 1, even] = z.imag, -z.imag
    Q = basis(draw, n)
    return Q @ blocks @ Q.T


def skew(n: int) -> Matrix:
    """Return the skew matrix of a first derivative."""
    return np.eye(n, k=1) - np.eye(n, k=-1)


def in_both(draw: np.random.Generator, B: Matrix) -> Matrix:
    """Return D B D with the same units of equations and unknowns."""
    D = units(draw, len(B), draw.uniform(0.5, 2.5))
    return D[:, None] * B * D


def local(draw: np.random.Generator, n: int, normal: bool) -> Matrix:
    """Return the identity and 12 large directions in a third of the unknowns. The sizes of the rows say nothing."""
    k = n // 3
    U = np.linalg.qr(draw.standard_normal((k, 12)))[0]
    V = U if normal else U @ basis(draw, 12)
    A = np.eye(n) + (0.2 * skew(n) if normal else 0.0)
    A[:k, :k] += (U * np.geomspace(10, 10 ** draw.uniform(2, 4), 12)) @ V.T
    return A


def saddle(draw: np.random.Generator, n: int) -> Matrix:
    """Return the matrix of a Lagrangian with soft constraints, general because of the sign of its last rows."""
    k = n - n // 4
    K = np.diag(units(draw, k, draw.uniform(1, 4))) + 0.1 * noise(draw, k)
    B = draw.standard_normal((k, n - k)) / np.sqrt(n)
    return np.block([[K, B], [-B.T, 0.1 * np.eye(n - k)]])


def arrow(draw: np.random.Generator, n: int) -> Matrix:
    """Return a regular matrix with one large row and one large column."""
    A = regular(draw, n)
    A[0], A[:, 0] = 10 * draw.standard_normal(n), 10 * draw.standard_normal(n)
    return A


def rotated_and_skew(draw: np.random.Generator, n: int) -> Matrix:
    """Return a positive definite matrix in a random basis and a skew one."""
    Q = basis(draw, n)
    return (Q * np.geomspace(1, 10 ** draw.uniform(2, 3), n)) @ Q.T + 2 * skew(n)


def similar(draw: np.random.Generator, n: int) -> Matrix:
    """Return D (I + G) D^-1, whose spectrum has no units."""
    D = units(draw, n, draw.uniform(0.5, 2.5))
    return D[:, None] * regular(draw, n) / D


def triangular(draw: np.random.Generator, n: int) -> Matrix:
    """Return a lower triangle of noise."""
    return np.tril(draw.standard_normal((n, n)), -1) / np.sqrt(n)


def wide(draw: np.random.Generator, n: int) -> Any:
    """Return units over 1 to 5 decades."""
    return units(draw, n, draw.uniform(1, 5))


GROUPS: dict[str, dict[str, Kind]] = {
    "convection": {
        "slow": lambda draw, n: convection(draw, n, 2.0),
        "medium": lambda draw, n: convection(draw, n, 20.0),
        "fast and upwind": lambda draw, n: convection(draw, n, 200.0, upwind=True),
        "contrasts": lambda draw, n: convection(draw, n, 20.0, draw.uniform(2, 4)),
    },
    "units of rows or columns": {
        "rows": lambda draw, n: wide(draw, n)[:, None] * regular(draw, n),
        "columns": lambda draw, n: regular(draw, n) * wide(draw, n),
        "both": lambda draw, n: in_both(draw, regular(draw, n)),
        "rows and columns": lambda draw, n: (
            units(draw, n, draw.uniform(0.5, 2.5))[:, None] * regular(draw, n) * units(draw, n, draw.uniform(0.5, 2.5))
        ),
        "kinetics": lambda draw, n: np.eye(n) + wide(draw, n)[:, None] * (np.eye(n) - 0.35 * noise(draw, n)),
        "few stiff rows": lambda draw, n: (
            np.where(draw.random(n) < 0.1, 30.0, 1.0)[:, None] * (np.eye(n) - noise(draw, n, 0.6))
        ),
        "triangular": lambda draw, n: wide(draw, n)[:, None] * (np.eye(n) + triangular(draw, n)),
        "disc": lambda draw, n: in_both(draw, disc(draw, n, 0.8)),
    },
    "units on the diagonal": {
        "diagonal": lambda draw, n: np.diag(wide(draw, n)) + 0.4 * skew(n) + 0.05 * noise(draw, n),
        "graded triangle": lambda draw, n: np.diag(np.sort(wide(draw, n))) + triangular(draw, n),
        "indefinite": lambda draw, n: (
            np.diag(wide(draw, n) * np.where(np.arange(n) % 5 == 0, -1, 1)) + 0.1 * noise(draw, n)
        ),
        "saddle": saddle,
        "rotations": lambda draw, n: (
            np.kron(np.eye(n // 2), np.array([[1.0, 3.0], [-3.0, 1.0]])) * wide(draw, n)[:, None]
            + 0.05 * noise(draw, n)
        ),
    },
    "similar": {"D (I + G) / D": similar},
    "contractions": {
        "tanh": contraction,
        "Gaussian": lambda draw, n: np.eye(n) - noise(draw, n, 0.97),
        "in units": lambda draw, n: in_both(draw, contraction(draw, n)),
    },
    "discs": {
        "to 0.1": lambda draw, n: disc(draw, n, 0.9),
        "to 0.001": lambda draw, n: disc(draw, n, 0.999),
        "triangle": lambda draw, n: np.eye(n) + triangular(draw, n),
        "and skew": rotated_and_skew,
    },
    "large directions": {
        "local": lambda draw, n: local(draw, n, normal=False),
        "local and normal": lambda draw, n: local(draw, n, normal=True),
        "rank one": lambda draw, n: (
            np.eye(n)
            + noise(draw, n, 0.3)
            + np.outer(draw.standard_normal(n) * 10 ** (2 * draw.random(n)), draw.standard_normal(n)) / n
        ),
        "arrow": arrow,
    },
}
"""The kinds of each group. Each matrix is taken twice: as it is, and transposed."""


KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)


def matrices(seed: int, chosen: Collection[str] = KINDS) -> dict[tuple[str, str], Matrix]:
    """Return a random matrix of each kind, by group and kind, and its transpose. Each kind has draws of its own."""
    found = {}
    for place, (group, kind, make) in enumerate((g, k, f) for g, kinds in GROUPS.items() for k, f in kinds.items()):
        if kind in chosen:
            draw = np.random.default_rng([seed, place])
            A = make(draw, int(draw.choice(SIZES)))
            found[group, kind], found[group, f"{kind}, transposed"] = A, A.T.copy()
    return found
