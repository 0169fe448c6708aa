"""Structures whose solution has entries that are zero by symmetry. No step is short beside such an entry."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.solvers import Newton

ANGLES = np.arange(6) * np.pi / 3
HEXAGON = np.concatenate([np.zeros((1, 2)), 1.12 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)])
TRIANGLE = np.asarray([[0.0, 0.0], [1.2, 0.0], [0.6, 1.0]])


def energy(u, size, pair, wide):
    """Return the energy of atoms (n, 2) in a bowl that is no circle, so that the structure cannot turn freely."""
    xp = array_namespace(u)
    apart = u[:, None, :] - u[None, :, :]
    square = xp.sum(apart * apart, axis=-1) / size**2
    q = (1.0 / xp.where(pair > 0, square, xp.ones_like(square))) ** 3
    return xp.sum(pair * 4.0 * (q * q - q)) + xp.sum(wide * (u / size) ** 2)


@pytest.mark.parametrize(
    ("solver", "shape", "unit"),
    [
        (Newton(), HEXAGON, 1.0),
        (Newton("truncated"), HEXAGON, 1e-9),
        (Newton(), TRIANGLE, 1e-9),
        (Newton("truncated"), HEXAGON + 1e-3, 1.0),
    ],
    ids=["hexagon", "small hexagon", "triangle", "shifted"],
)
def test_newton_ends_where_forces_cancel(plain, solver, shape, unit):
    start, size = plain.asarray(unit * shape), plain.asarray(unit)
    rest = plain.asarray(np.triu(np.ones((len(shape), len(shape))), 1)), plain.asarray([0.3, 0.6])
    layer = dil.argmin(energy, solver, on_failure="raise")
    found = layer.solve(size, *rest, init=start)
    assert dil.Status(int(plain.to_numpy(found.status))) is dil.Status.CONVERGED
    assert int(plain.to_numpy(found.iterations)) < 20
    y = plain.to_numpy(found.value)
    # everything scales with the size, so dy/dsize = y / size; to turn costs a millionth of what it costs to stretch
    _, slope = dil.jvp(lambda s: layer(s, *rest, init=start), (size,), (plain.asarray(1.0),))
    rounding = 1e6 * np.finfo(float).eps
    assert np.max(np.abs(plain.to_numpy(slope) - y / unit)) < 8 * rounding * np.max(np.abs(y)) / unit


def test_an_entry_that_still_moves_is_not_rounded(plain):
    """The last unknown is small beside the first, and its force is no rounding: Newton must go on for it."""

    def score(u, t):
        xp = array_namespace(u)
        return xp.sum((u[:1] - t) ** 2) + 1e12 * xp.sum(u[1:] ** 4 / 4 - 1e-21 * u[1:])

    layer = dil.argmin(score, Newton(), on_failure="raise")
    found = layer.solve(plain.asarray([1.0]), init=plain.asarray([1.0, 1e-6]))
    y = plain.to_numpy(found.value)
    assert abs(y[1] - 1e-7) < 1e-12
    assert abs(y[0] - 1.0) < 1e-12


def test_a_torus_with_zeros_where_all_neighbours_are_zero(plain):
    """A singular Laplacian, and a wave whose zeros cross: there every term of the equation is rounding."""
    n, unit = 8, 1e9
    x = 2 * np.pi * np.arange(n) / n
    b = np.outer(np.sin(x), np.cos(2 * x))

    def F(u, b):
        xp = array_namespace(u)
        return unit * (4 * u - sum(xp.roll(u, step, axis=axis) for step in (1, -1) for axis in (0, 1)) - b)

    found = dil.root(F, Newton(), init=lambda b: 0.0 * b).solve(plain.asarray(b))
    assert dil.Status(int(plain.to_numpy(found.status))) is dil.Status.CONVERGED
    eigenvalue = 2 - 2 * np.cos(2 * np.pi / n) + 2 - 2 * np.cos(4 * np.pi / n)
    y = plain.to_numpy(found.value)
    np.testing.assert_allclose(y - y.mean(), b / eigenvalue, atol=1e-14)


def test_an_equation_of_a_small_unit_is_no_rounding(plain):
    """Its own terms are small beside those of the other one, and it is not solved after a step."""

    def F(u, t):
        xp = array_namespace(u)
        return xp.concat([u[:1] - t, 1e-20 * (u[1:] ** 2 - 2 * u[:1])])

    for steps, status in ((1, dil.Status.MAX_ITER), (20, dil.Status.CONVERGED)):
        layer = dil.root(F, Newton(max_iter=steps), init=lambda t: plain.asarray([0.0, 1.0]))
        assert dil.Status(int(plain.to_numpy(layer.solve(plain.asarray([1.0])).status))) is status
