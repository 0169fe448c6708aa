"""Newton's method where the score is a small sum of large terms, so that float32 does not resolve what a step wins."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil

TERMS = 300.0
"""How large the terms of the score are beside the score."""


def score(u, t):
    xp = array_namespace(u)
    return xp.sum(TERMS * xp.cosh(u - t) - (TERMS - 1) * xp.cosh(u - t), axis=-1)


@pytest.mark.parametrize("away", [1.0, -1.0])
def test_the_gradient_tells_that_a_full_step_is_right(eager, away):
    """Without its word four of ten problems end STAGNATED, 4e-3 from the minimum."""
    t = np.linspace(-2, 2, 201, dtype=np.float32)[:, None]
    layer = dil.argmin(score, dil.solvers.Newton(), batch_ndim=1, init=lambda t: t + away)
    found = layer.solve(eager.asarray(t))
    assert np.all(eager.to_numpy(found.status) == int(dil.Status.CONVERGED))
    assert np.max(np.abs(eager.to_numpy(found.value) - t)) <= 8 * TERMS * np.finfo(np.float32).eps
    assert int(eager.to_numpy(found.iterations).max()) <= 5


@pytest.mark.parametrize("rise", [1e-3, 1.0])
def test_a_gradient_that_contradicts_the_score_is_not_believed(rise):
    """A score that jumps up next to its start: the step is cut, whatever the gradient says beyond the jump."""

    def jumps(u, t):
        return np.sum((u - t) ** 2, axis=-1) + np.where(u[..., 0] > 0.5, t[..., 0] ** 2 + rise, 0.0)

    found = dil.solvers.Newton()(jumps, np.zeros(1), np.ones(1))
    assert found.value[0] <= 0.5
