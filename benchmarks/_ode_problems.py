"""Initial value problems of the literature, as functions that NumPy, torch and JAX run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
Slope = Callable[[Any, Array, Array, Array], Array]
"""`slope(xp, t, y, p)` returns dy/dt with the functions of the module `xp`; y: (..., n)."""


@dataclass(frozen=True)
class Problem:
    """dy/dt = slope from t = 0 to `end`."""

    name: str
    slope: Slope
    start: Array
    end: float
    p: Array
    """The parameters in which the gradient is taken, beside the start."""
    stiff: bool
    published: tuple[float, ...] = ()
    """The state at the end as the test set for IVP solvers (Mazzia and Magherini, release 2.4) gives it."""
    share: float = 1e-3
    """The absolute tolerance, as a share of the relative one."""
    tolerances: tuple[float, ...] = (1e-4, 1e-6, 1e-8)
    most: int = 4096
    """The largest number of steps."""
    batch: bool = False
    """Whether y, (rows, n), and p, (rows, m), are those of many problems."""

    @property
    def unknowns(self) -> int:
        """The number of unknowns of one problem."""
        return int(np.asarray(self.start).shape[-1])


def van_der_pol(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of y'' = mu (1 - y^2) y' - y."""
    return xp.stack([y[1], p * ((1 - y[0] * y[0]) * y[1]) - y[0]])


def relaxation(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of eps y'' = (1 - y^2) y' - y, with 1 / eps = 1e6 p."""
    return xp.stack([y[1], 1e6 * p * ((1 - y[0] * y[0]) * y[1] - y[0])])


def robertson(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of three species."""
    a, b, c = p[0] * y[0], p[1] * y[1] * y[2], p[2] * y[1] * y[1]
    return xp.stack([b - a, a - b - c, c])


def hires(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of eight reactants of a high irradiance response."""
    a, b, c, d, e, f, g, h = (y[i] for i in range(8))
    fast = p[1] * f * h
    return xp.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + p[0],
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -fast + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            fast - 1.81 * g,
            -fast + 1.81 * g,
        ]
    )


def oregonator(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of the Belousov-Zhabotinskii reaction."""
    s, q, w = p[0], p[1], p[2]
    return xp.stack(
        [s * (y[1] + y[0] * (1 - q * y[0] - y[1])), (y[2] - (1 + y[0]) * y[1]) / s, w * (y[0] - y[2])],
    )


def pleiades(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return velocities and accelerations of seven stars in a plane, whose masses are p."""
    x, z = y[:7], y[7:14]
    dx, dz = x[None, :] - x[:, None], z[None, :] - z[:, None]
    r2 = dx * dx + dz * dz
    r2 = r2 + (r2 == 0)
    w = p[None, :] / (r2 * xp.sqrt(r2))
    return xp.concatenate([y[14:], (w * dx).sum(-1), (w * dz).sum(-1)])


def brusselator(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of a reaction with diffusion on a line, whose ends are held at 1 and 3."""
    n = y.shape[0] // 2
    u, v = y[:n], y[n:]
    reaction = u * u * v
    left, right = y[:1] * 0 + 1, y[:1] * 0 + 3
    a = p * (n + 1) ** 2
    du = xp.concatenate([u[1:], left]) - 2 * u + xp.concatenate([left, u[:-1]])
    dv = xp.concatenate([v[1:], right]) - 2 * v + xp.concatenate([right, v[:-1]])
    return xp.concatenate([1 + reaction - 4 * u + a * du, 3 * u - reaction + a * dv])


def predators(xp: Any, t: Array, y: Array, p: Array) -> Array:
    """Return the slopes of prey and predators."""
    x, z = y[..., 0], y[..., 1]
    return xp.stack([x * (p[..., 0] - p[..., 1] * z), z * (p[..., 2] * x - p[..., 3])], -1)


STARS = (3, 3, -1, -3, 2, -2, 2, 3, -3, 2, 0, 0, -4, 4, 0, 0, 0, 0, 0, 1.75, -1.5, 0, 0, 0, -1.25, 1, 0, 0)
STARS_END = (
    *(0.3706139143970502, 3.237284092057233, -3.222559032418324, 0.6597091455775310, 0.3425581707156584),
    *(1.562172101400631, -0.7003092922212495, -3.943437585517392, -3.271380973972550, 5.225081843456543),
    *(-2.590612434977470, 1.198213693392275, -0.2429682344935824, 1.091449240428980, 3.417003806314313),
    *(1.354584501625501, -2.590065597810775, 2.025053734714242, -1.155815100160448, -0.8072988170223021),
    *(0.5952396354208710, -3.741244961234010, 0.3773459685750630, 0.9386858869551073, 0.3667922227200571),
    *(-0.3474046353808490, 2.344915448180937, -1.947020434263292),
)
HIRES_END = (
    *(0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2),
    *(0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2),
)


def problems() -> dict[str, Problem]:
    """Return the problems by name."""
    points = np.linspace(0.0, 1.0, 102)[1:-1]
    line = np.concatenate([1 + np.sin(2 * np.pi * points), np.full(100, 3.0)])
    draw, two = np.random.default_rng(0), np.asarray([2.0, 0.0])
    rates = np.asarray([1.1, 0.4, 0.1, 0.4]) * np.exp(0.2 * draw.standard_normal((1000, 4)))
    animals = np.asarray([10.0, 5.0]) * np.exp(0.2 * draw.standard_normal((1000, 2)))
    found = (
        Problem("Van der Pol, mu 1", van_der_pol, two, 20.0, np.asarray(1.0), False),
        Problem("Van der Pol, mu 100", van_der_pol, two, 200.0, np.asarray(100.0), True),
        Problem("Van der Pol, mu 1e3", van_der_pol, two, 2000.0, np.asarray(1e3), True, most=16384),
        Problem(
            "Van der Pol, eps 1e-6",
            relaxation,
            two,
            2.0,
            np.asarray(1.0),
            True,
            (0.1706167732170483e1, -0.8928097010247975),
            most=16384,
        ),
        Problem(
            "Robertson",
            robertson,
            np.asarray([1.0, 0.0, 0.0]),
            1e11,
            np.asarray([0.04, 1e4, 3e7]),
            True,
            (0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
            1e-8,
        ),
        Problem(
            "HIRES",
            hires,
            np.asarray([1.0, 0, 0, 0, 0, 0, 0, 0.0057]),
            321.8122,
            np.asarray([0.0007, 280.0]),
            True,
            HIRES_END,
        ),
        Problem(
            "OREGO",
            oregonator,
            np.asarray([1.0, 2.0, 3.0]),
            360.0,
            np.asarray([77.27, 8.375e-6, 0.161]),
            True,
            (0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
            most=16384,
        ),
        Problem("Pleiades", pleiades, np.asarray(STARS, float), 3.0, np.arange(1.0, 8.0), False, STARS_END),
        Problem("Brusselator, 200 states", brusselator, line, 10.0, np.asarray(0.02), True),
        Problem("1,000 small problems", predators, animals, 10.0, rates, False, most=1024, batch=True),
    )
    # a run that is cut short has the quick ones
    return {p.name: p for p in sorted(found, key=lambda p: p.most)}
