"""A solver that fails on a score with dropout says that it is random, also under torch.func.vmap."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import func  # noqa: E402

import dil  # noqa: E402
from dil import Status  # noqa: E402
from dil.solvers import LBFGS, GradientDescent, Newton  # noqa: E402

XS = torch.linspace(-1.0, 2.0, 60, dtype=torch.float64).reshape(3, 20)


def score(u, x):
    return ((torch.nn.functional.dropout(u, 0.5) - x) ** 2).sum(-1) + 0.1 * (u**4).sum(-1)


def start(x):
    return torch.ones_like(x)


solvers = pytest.mark.parametrize(
    "solver", [LBFGS(max_iter=10), GradientDescent(max_iter=10), Newton(max_iter=10)], ids=lambda s: type(s).__name__
)


@solvers
def test_the_failed_problems_are_random(solver):
    torch.manual_seed(0)
    for batch_ndim, x in ((0, XS[0]), (1, XS)):
        status = dil.argmin(score, solver, init=start, batch_ndim=batch_ndim).solve(x).status
        assert set(np.atleast_1d(status.numpy()).tolist()) <= {Status.RANDOM, Status.CONVERGED}
        assert Status.RANDOM in np.atleast_1d(status.numpy())


@solvers
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_the_failed_rows_of_vmap_are_told_to_be_random(solver, randomness):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        func.vmap(dil.argmin(score, solver, init=start), randomness=randomness)(XS)
    assert any("ended RANDOM" in str(w.message) for w in told)
    assert not any(name in str(w.message) for w in told for name in ("STAGNATED", "NOT_STATIONARY", "WRONG"))


@solvers
@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_failed_solve_of_another_score_is_not(solver, unit, dtype):
    """No minimum, a kink, and too few steps."""
    x = XS[0].to(dtype)
    for fn in (
        lambda u, x: unit * (u - x).abs().sum(),
        lambda u, x: unit * (u * x).sum(),
        lambda u, x: 1e6 * unit + unit * ((u - x) ** 4).sum(),
    ):
        found = dil.argmin(fn, solver, init=start).solve(x)
        assert int(found.status) != Status.RANDOM


@solvers
def test_a_score_that_is_linear_in_several_unknowns_has_no_minimum(solver):
    """torch keeps no memory for the zeros of its Hessian."""
    found = dil.argmin(lambda u, x: (u * x).sum(), solver, init=start).solve(XS[0])
    assert int(found.status) == Status.DIVERGED
