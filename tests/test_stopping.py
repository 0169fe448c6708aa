"""The option `norm` of the fixed-point solvers: whose residual is compared with what of the iterate."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.solvers import Anderson, FixedPoint

RTOL = 1e-4
KINDS = (Anderson, FixedPoint)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda s: s.__name__)


def step(u, t):
    """Contract two leaves of each problem, one fast and one slowly."""
    xp = array_namespace(u["fast"])
    fast = 0.2 * xp.roll(u["fast"], 1, axis=-1) + t["fast"]
    slow = 0.9 * xp.roll(u["slow"], 1, axis=-1) + t["slow"]
    return {"fast": fast, "slow": slow}


def arguments(eager, unit, batch=3, n=30, dtype=None):
    """Return arguments with a solution whose entries have all sizes; the slow leaf has another unit."""
    rng, found = np.random.default_rng(0), {}
    for name, slope, size in (("fast", 0.2, 1.0), ("slow", 0.9, unit)):
        u = size * rng.standard_normal((batch, n)) * 10.0 ** rng.uniform(-9, 0, (batch, n))
        x = eager.asarray(u - slope * np.roll(u, 1, axis=-1))
        found[name] = x if dtype is None else array_namespace(x).astype(x, getattr(array_namespace(x), dtype))
    return found


def solve(eager, solver, t):
    def start(t):
        return {name: 0.0 * x for name, x in t.items()}

    return dil.fixed_point(step, solver, init=start, batch_ndim=1, on_failure="raise").solve(t)


def most(eager, found):
    return int(eager.to_numpy(found.iterations).max())


def shares(eager, u, t):
    """Return the norm of step(u) - u of each leaf and problem, relative to that of u: (2, batch)."""
    image = step(u, t)
    norms = [
        [np.linalg.norm(eager.to_numpy(x).astype(float), axis=-1) for x in (image[name] - u[name], u[name])]
        for name in ("fast", "slow")
    ]
    return np.asarray([f / size for f, size in norms])


@kinds
@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e7])
def test_every_leaf_of_every_problem_passes(eager, kind, unit):
    t = arguments(eager, unit)
    found = solve(eager, kind(rtol=RTOL, norm="leaves"), t)
    assert np.max(shares(eager, found.value, t)) <= 1.001 * RTOL
    entries = solve(eager, kind(rtol=RTOL), t)
    assert most(eager, found) < 0.8 * most(eager, entries)


@kinds
def test_no_unit_matters(eager, kind):
    """Units that are powers of two change no digit of FixedPoint; Anderson mixes leaves by one norm of all."""
    counts = []
    for unit in (2.0**-30, 1.0, 2.0**30):
        t = {name: unit * x for name, x in arguments(eager, 1.0).items()}
        counts.append(eager.to_numpy(solve(eager, kind(rtol=RTOL, norm="leaves"), t).iterations).tolist())
    assert counts[0] == counts[1] == counts[2]


def test_each_problem_stops_by_itself(eager):
    t = arguments(eager, 1.0)
    scale = eager.asarray([[1.0], [1e-6], [1e6]])
    scaled = {name: scale * x for name, x in t.items()}
    solver = FixedPoint(rtol=RTOL, norm="leaves")
    one, other = (eager.to_numpy(solve(eager, solver, x).iterations) for x in (t, scaled))
    np.testing.assert_array_equal(one, other)


@kinds
def test_a_tolerance_below_rounding_ends_at_rounding(eager, kind):
    t = arguments(eager, 1e-7, dtype="float32")
    found = solve(eager, kind(rtol=1e-9, norm="leaves"), t)
    assert most(eager, found) < 400
    assert np.max(shares(eager, found.value, t)) < 1e-6


@kinds
def test_a_leaf_that_ends_at_zero(eager, kind):
    def halved(u, t):
        return {"zero": 0.5 * u["zero"], "other": 0.5 * u["other"] + t}

    def start(t):
        return {"zero": 0.0 * t + 1.0, "other": 0.0 * t}

    t = eager.asarray(np.linspace(1.0, 2.0, 4))
    layer = dil.fixed_point(halved, kind(rtol=RTOL, norm="leaves"), init=start, on_failure="raise")
    assert np.max(np.abs(eager.to_numpy(layer.solve(t).value["zero"]))) < 1e-13


@kinds
def test_the_default_compares_entries(eager, kind):
    t = arguments(eager, 1.0)
    counts = [most(eager, solve(eager, s, t)) for s in (kind(rtol=RTOL), kind(rtol=RTOL, norm="entries"))]
    assert counts[0] == counts[1]
    u = solve(eager, kind(rtol=RTOL), t).value
    for name, x in step(u, t).items():
        assert np.all(np.abs(eager.to_numpy(x - u[name])) <= 1.001 * RTOL * np.abs(eager.to_numpy(u[name])) + 1e-14)


@kinds
@pytest.mark.parametrize("value", ["rms", "2", 2, None, np.linalg.norm])
def test_other_values_are_refused(kind, value):
    with pytest.raises(dil.OptionError, match=r'expected "entries" .* or "leaves"'):
        kind(norm=value)


@kinds
def test_the_gradient_follows(eager, kind):
    """The linear solve follows rtol whatever is compared, and the gradient has an error of the order of rtol."""
    t = arguments(eager, 1.0)

    def gradient(**options):
        layer = dil.fixed_point(
            step,
            kind(**options),
            init=lambda t: {name: 0.0 * x for name, x in t.items()},
            batch_ndim=1,
            on_failure="raise",
        )
        y, pull = dil.vjp(lambda t: layer(t)["slow"], t)  # the step is affine: only the cotangent depends on y
        return eager.to_numpy(pull(2.0 * y)[0]["slow"])

    exact, loose = gradient(), gradient(rtol=RTOL, norm="leaves")
    error = np.linalg.norm(loose - exact) / np.linalg.norm(exact)
    assert 0 < error < 20 * RTOL


def test_under_jit():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(1)
    t = {name: rng.standard_normal((2, 5)) for name in ("fast", "slow")}
    layer = dil.fixed_point(
        step,
        FixedPoint(rtol=RTOL, norm="leaves"),
        init=lambda t: {name: 0.0 * x for name, x in t.items()},
        batch_ndim=1,
        on_failure="ignore",
    )
    found = jax.jit(lambda t: tuple(layer.solve(t)[:3]))(t)
    assert np.all(np.asarray(found[1]) == int(dil.Status.CONVERGED))
    u = {name: np.asarray(x) for name, x in found[0].items()}
    for name, x in step(u, t).items():
        assert np.all(np.linalg.norm(x - u[name], axis=-1) <= 1.001 * RTOL * np.linalg.norm(u[name], axis=-1))
