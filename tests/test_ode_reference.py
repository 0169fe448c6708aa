"""End values that the test set for IVP solvers (Mazzia and Magherini, release 2.4) publishes."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

from dil import Status
from dil.ode import odeint, solve
from ode_helpers import on

STARS = (3, 3, -1, -3, 2, -2, 2, 3, -3, 2, 0, 0, -4, 4, 0, 0, 0, 0, 0, 1.75, -1.5, 0, 0, 0, -1.25, 1, 0, 0)


def van_der_pol(t, y):
    return array_namespace(y).stack([y[1], 1e6 * ((1 - y[0] ** 2) * y[1] - y[0])])


def robertson(t, y):
    a, b, c = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return array_namespace(y).stack([b - a, a - b - c, c])


def hires(t, y):
    a, b, c, d, e, f, g, h = (y[i] for i in range(8))
    fast = 280 * f * h
    slopes = (-1.71 * a + 0.43 * b + 8.32 * c + 0.0007, 1.71 * a - 8.75 * b, -10.03 * c + 0.43 * d + 0.035 * e)
    more = (8.32 * b + 1.71 * c - 1.12 * d, -1.745 * e + 0.43 * f + 0.43 * g)
    last = (-fast + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g, fast - 1.81 * g, -fast + 1.81 * g)
    return array_namespace(y).stack([*slopes, *more, *last])


def oregonator(t, y):
    first = 77.27 * (y[1] + y[0] * (1 - 8.375e-6 * y[0] - y[1]))
    return array_namespace(y).stack([first, (y[2] - (1 + y[0]) * y[1]) / 77.27, 0.161 * (y[0] - y[2])])


def pleiades(t, y):
    x, z = y[:7], y[7:14]
    dx, dz = x[None, :] - x[:, None], z[None, :] - z[:, None]
    r2 = dx * dx + dz * dz + np.eye(7)
    w = np.arange(1.0, 8.0)[None, :] / r2**1.5
    return np.concatenate([y[14:], np.sum(w * dx, axis=-1), np.sum(w * dz, axis=-1)])


# the problem, its start and end, the method, the state at the end, and the error over the tolerance that is allowed:
# a change of the state grows along the way, most among the stars
CASES = {
    "Van der Pol": (van_der_pol, (2, 0), 2.0, "kvaerno5", (1.706167732170483, -0.8928097010247975), 30),
    "Robertson": (
        robertson,
        (1, 0, 0),
        1e11,
        "kvaerno5",
        (0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
        10,
    ),
    "HIRES": (
        hires,
        (1, 0, 0, 0, 0, 0, 0, 0.0057),
        321.8122,
        "kvaerno5",
        (
            *(0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2),
            *(0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2),
        ),
        10,
    ),
    "OREGO": (
        oregonator,
        (1, 2, 3),
        360.0,
        "kvaerno5",
        (0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
        30,
    ),
    "Pleiades": (
        pleiades,
        STARS,
        3.0,
        "tsit5",
        (
            *(0.3706139143970502, 3.237284092057233, -3.222559032418324, 0.6597091455775310, 0.3425581707156584),
            *(1.562172101400631, -0.7003092922212495, -3.943437585517392, -3.271380973972550, 5.225081843456543),
            *(-2.590612434977470, 1.198213693392275, -0.2429682344935824, 1.091449240428980, 3.417003806314313),
            *(1.354584501625501, -2.590065597810775, 2.025053734714242, -1.155815100160448, -0.8072988170223021),
            *(0.5952396354208710, -3.741244961234010, 0.3773459685750630, 0.9386858869551073, 0.3667922227200571),
            *(-0.3474046353808490, 2.344915448180937, -1.947020434263292),
        ),
        300,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_published_end_values(name):
    """The error, relative to the published state, in units of the tolerance."""
    field, start, end, method, published, most = CASES[name]
    rtol = 1e-5
    atol = 1e-8 if name == "Robertson" else 1e-3
    found = solve(
        field, np.asarray(start, float), [0.0, end], method=method, rtol=rtol, atol=rtol * atol, max_steps=2000
    )
    assert Status(int(found.status)) is Status.CONVERGED
    error = np.sqrt(np.mean((found.value[-1] / np.asarray(published) - 1) ** 2)) / rtol
    assert 1e-3 < error < most


@on("numpy", slow=("jax:jit",))
def test_stages_within_rounding_are_solved(engine):
    """At the end of Robertson's problem, f is rounded more coarsely than the theorem wants a stage to be solved."""
    field, start, end, method, published, _ = CASES["Robertson"]
    times = engine.asarray([0.0, end])
    run = lambda y: odeint(field, y, times, method=method, rtol=1e-4, atol=1e-12, max_steps=300, on_failure="nan")  # noqa: E731
    if engine.backend == "jax":
        import jax

        run = jax.jit(run)
    np.testing.assert_allclose(engine.to_numpy(run(engine.asarray(start)))[-1], published, rtol=1e-3)
