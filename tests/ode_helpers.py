"""Right-hand sides and helpers that the tests of differential equations share."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

from engines import engines

RTOL = 1e-9


def on(*names, slow=()):
    """Run a test on some engines; JAX compiles each case, so that many are left to the slow tests."""
    chosen = {e.name: e for e in engines() if e.name in (*names, *slow)}
    marks = {
        name: [
            *([pytest.mark.slow] if name in slow else []),
            *([pytest.mark.skip(reason=e.reason)] if e.reason is not None else []),
        ]
        for name, e in chosen.items()
    }
    return pytest.mark.parametrize(
        "engine", [pytest.param(e, id=name, marks=marks[name]) for name, e in chosen.items()]
    )


def close(found, expected, rtol=RTOL):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def decay(t, y, rate):
    return -rate * y


def riccati(t, y, c):
    """y' = -c y^2 cos t: y = 1 / (1 + c sin t) from y(0) = 1."""
    return -c * y * y * array_namespace(y).cos(t)


def network(t, y, theta):
    xp = array_namespace(y)
    return xp.tanh(y @ theta["in"] + t * theta["time"]) @ theta["out"]
