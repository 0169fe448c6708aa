"""The short way of a derivative of few unknowns ends where a check has something to say."""

import numpy as np
import pytest

import dil

sizes = pytest.mark.parametrize("n", [1, 3, 5, 6, 12, 32])  # in Python numbers, and in NumPy


@pytest.fixture(params=["numpy", "torch"])
def b(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return dil.backend(request.param, dtype="float64")


def matrix(n, curvatures):
    Q = np.linalg.qr(np.random.default_rng(n).standard_normal((n, n)))[0]
    return (Q * curvatures) @ Q.T


def layer_of(b, A, solver, **options):
    A, xp = b.asarray(A), b.xp

    def score(u, t):
        return 0.5 * xp.sum(u * (A @ u)) + 0.25 * xp.sum(u**4) - xp.sum(t * u)

    return dil.argmin(score, solver, init=lambda t: 0.0 * t, check_smoothness="never", **options)


def pulled(b, layer, t):
    _, pull = dil.vjp(layer, b.asarray(t))
    return b.to_numpy(pull(b.asarray(np.cos(np.arange(len(t)))))[0])


@sizes
def test_a_derivative_is_that_of_the_inverse_matrix_in_any_units(b, n):
    A, t = matrix(n, np.linspace(1.0, 9.0, n)), np.sin(1.0 + np.arange(n))
    units = 10.0 ** np.random.default_rng(0).integers(-6, 6, n)
    scaled = units[:, None] * A * units
    layer = dil.root(lambda u, t: b.asarray(scaled) @ u - t, dil.solvers.Newton(), init=lambda t: 0.0 * t)
    v = np.cos(np.arange(n))
    _, pull = dil.vjp(layer, b.asarray(units * t))
    found = b.to_numpy(pull(b.asarray(units * v))[0])
    expected = np.linalg.solve(A, v) / units
    np.testing.assert_allclose(found * units, expected * units, rtol=1e-11, atol=1e-11 * abs(expected * units).max())


@sizes
def test_a_start_that_is_no_solution_is_told(b, n):
    def stays(score, init, t):
        return init + 0.5 * t

    A, t = matrix(n, np.linspace(1.0, 9.0, n)), np.sin(1.0 + np.arange(n))
    with pytest.raises(dil.ConvergenceError, match="NOT_STATIONARY"):
        pulled(b, layer_of(b, A, stays, on_failure="raise"), t)


@sizes
def test_a_stationary_point_that_is_no_minimum_is_told(b, n):
    curvatures = np.linspace(1.0, 9.0, n)
    curvatures[0] = -1.0
    A = matrix(n, curvatures)
    with pytest.raises(dil.ConvergenceError, match="NOT_MINIMUM"):
        pulled(b, layer_of(b, A, lambda score, init, t: init, on_failure="raise"), np.zeros(n))


@sizes
def test_a_singular_matrix_is_told(b, n):
    curvatures = np.linspace(1.0, 9.0, n)
    curvatures[0] = 0.0
    A = matrix(n, curvatures)
    with pytest.raises(dil.ConvergenceError, match="SINGULAR"):
        pulled(b, layer_of(b, A, lambda score, init, t: init, on_failure="raise"), np.zeros(n))


def test_a_record_has_the_entry_of_a_short_derivative(b):
    layer = layer_of(b, matrix(6, np.linspace(1.0, 9.0, 6)), dil.solvers.Newton())
    with dil.record() as rec:
        pulled(b, layer, np.sin(1.0 + np.arange(6)))
    assert len(rec.backward) == 1
    assert rec.backward[0].bound < 1e-10


@pytest.mark.parametrize("n", [3, 12])
def test_a_score_whose_gradient_raises_beside_nan_is_cut_back(b, n):
    """The full step from u = 5 leaves the domain of log, where the score is NaN and the gradient raises."""
    xp = b.xp

    def gradient(u, t):
        if not bool(xp.all(u > 0)):
            raise FloatingPointError
        return t - 1.0 / u

    def score(u, t):
        return xp.sum(t * u - xp.log(u)) if bool(xp.all(u > 0)) else xp.sum(u) * float("nan")

    known = dil.Derivatives(gradient=gradient, hvp=lambda u, v, t: v / u**2, mixed=lambda u, w, t: (w,))
    layer = dil.argmin(score, dil.solvers.Newton(), init=lambda t: 0.0 * t + 5.0, derivatives=known)
    t = b.asarray(np.linspace(1.0, 2.0, n))
    np.testing.assert_allclose(b.to_numpy(layer(t)), 1.0 / np.linspace(1.0, 2.0, n), rtol=1e-8)


@pytest.mark.parametrize(("n", "limit"), [(1, 24), (2, 28), (5, 28)])
def test_a_pullback_on_torch_takes_few_operations(n, limit):
    """Each operation on a tiny tensor costs as much as hundreds of its numbers."""
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    W, t = 0.3 * torch.sin(torch.arange(n * n) + 1.0).reshape(n, n).double(), torch.ones(n).double().requires_grad_()
    layer = dil.root(lambda u, t: u + torch.tanh(W @ u) - t, dil.solvers.Newton(), init=torch.zeros_like)
    y, v = layer(t), torch.linspace(1.0, 2.0, n).double()
    torch.autograd.grad(y, t, v, retain_graph=True)  # the first one looks for kinks
    with Counted() as counted:
        torch.autograd.grad(y, t, v, retain_graph=True)
    assert counted.count <= limit
