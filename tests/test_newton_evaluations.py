"""Newton's method evaluates F once a step, and holds the graph of one point."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import dil
from dil.solvers import Newton

STEPS_AND_MORE = 4
"""Evaluations besides those of the steps: the start, and the looks at the end."""


def made(backend, *values):
    if backend == "numpy":
        return [np.asarray(x) for x in values]
    torch = pytest.importorskip("torch")
    return [torch.asarray(np.asarray(x)) for x in values]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_a_step_towards_a_root_evaluates_the_residual_once(backend, n):
    calls = []

    def residual(u, t):
        calls.append(u)
        return u**5 + u - t

    start, t = made(backend, np.full(n, 50.0), np.linspace(1e4, 2e4, n))
    found = dil.root(residual, Newton(), init=start).solve(t)
    steps = int(found.iterations)
    assert int(found.status) == 0
    assert steps >= 8, "few steps tell nothing"
    assert steps <= len(calls) <= steps + STEPS_AND_MORE


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("equations", ["hessian", "truncated"])
def test_a_step_towards_a_minimum_evaluates_the_score_once(backend, n, equations):
    calls = []

    def score(u, t):
        calls.append(u)
        return (u**6 / 6 + u**2 / 2 - t * u).sum()

    start, t = made(backend, np.full(n, 50.0), np.linspace(1e4, 2e4, n))
    found = dil.argmin(score, Newton(equations), init=start).solve(t)
    steps = int(found.iterations)
    assert int(found.status) == 0
    assert steps >= 8, "few steps tell nothing"
    assert steps <= len(calls) <= steps + STEPS_AND_MORE


@pytest.mark.parametrize("n", [5, 12])
def test_a_solve_holds_the_graph_of_one_point(n):
    torch = pytest.importorskip("torch")
    alive, most = [], [0]

    def residual(u, t):
        gc.collect()
        # the solver differentiates at u, so it holds u as long as the graph that starts there
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        if u.requires_grad:
            alive.append(weakref.ref(u))
        return u**5 + u - t

    start, t = made("torch", np.full(n, 50.0), np.linspace(1e4, 2e4, n))
    gc.freeze()  # what the tests before hold need not be looked through at every call
    try:
        with torch.no_grad():
            found = Newton()(dil.root(residual, Newton(), init=start).condition, start, t)
    finally:
        gc.unfreeze()
    assert int(found.status) == 0
    assert len(alive) >= 7
    assert most[0] <= 1


def test_a_step_that_is_cut_ends_where_it_ended_without_the_memory_of_a_point():
    """arctan, from where a full step of Newton's method overshoots: some trials are refused."""
    points = []

    def residual(u, t):
        points.append(np.asarray(dil.constant(u)).item())
        return np.arctan(u - t)

    found = dil.root(residual, Newton(), init=np.asarray([10.0])).solve(np.asarray([1.0]))
    assert int(found.status) == 0
    np.testing.assert_allclose(found.value, 1.0, rtol=1e-12)
    assert min(points) < -50, "no trial was refused"
    assert len(points) > int(found.iterations) + STEPS_AND_MORE


def positive_gradient(u, t):
    if not np.all(u > 0):
        raise FloatingPointError
    return t - 1.0 / u


def barrier(u, t):
    return np.sum(t * u - np.log(u)) if np.all(u > 0) else np.asarray(np.nan)


def test_a_gradient_that_raises_where_the_score_is_nan_is_not_asked_for():
    products = {"hvp": lambda u, v, t: v / u**2, "mixed": lambda u, w, t: (w,)}
    known = dil.Derivatives(gradient=positive_gradient, **products)
    layer = dil.argmin(barrier, Newton(), init=np.asarray([0.1, 5.0]), derivatives=known)
    np.testing.assert_allclose(layer(np.asarray([1.0, 2.0])), [1.0, 0.5], rtol=1e-8)


def test_an_error_in_the_gradient_of_a_rejected_trial_does_not_end_the_solve():
    torch = pytest.importorskip("torch")

    class Log(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return torch.log(u)

        @staticmethod
        def backward(ctx, c):
            (u,) = ctx.saved_tensors
            if not bool((u > 0).all()):
                raise ValueError
            return c / u

    start, t = torch.tensor([0.1, 5.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    layer = dil.argmin(lambda u, t: (t * u - Log.apply(u)).sum(), Newton(), init=start)
    np.testing.assert_allclose(layer(t).numpy(), [1.0, 0.5], rtol=1e-8)


def test_an_error_in_the_gradient_of_an_accepted_point_is_raised():
    torch = pytest.importorskip("torch")

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return u**2

        @staticmethod
        def backward(ctx, c):
            (u,) = ctx.saved_tensors
            if bool((u.abs() < 1.0).any()):
                raise ValueError("no gradient here")
            return 2.0 * c * u

    layer = dil.argmin(lambda u, t: (Square.apply(u) * t).sum(), Newton(), init=torch.tensor([3.0]))
    with pytest.raises(ValueError, match="no gradient here"):
        layer(torch.tensor([1.0]))


@pytest.mark.parametrize(("kind", "limit"), [("many scalar roots", 680), ("one minimum", 1000)])
def test_a_solve_on_torch_takes_few_operations(kind, limit):
    """Operations on masks and numbers cost as much as those of the user's function."""
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    if kind == "one minimum":
        layer = dil.argmin(lambda u, t: ((u - t) ** 4).sum() + (u**2).sum(), Newton(), init=torch.zeros_like)
    else:
        layer = dil.root(lambda u, t: u**3 - t, Newton(), init=torch.ones_like, batch_ndim=1)
    t = torch.linspace(1.0, 1.2, 10, dtype=torch.float64)
    layer.solve(t)
    with Counted() as counted:
        found = layer.solve(t)
    assert int(found.status.max()) == 0
    assert counted.count <= limit
