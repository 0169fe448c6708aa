"""Optimisers that users have already, as solvers of layers: torch.optim, optax, optimistix."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
from functools import partial

import numpy as np
import pytest

import dil

A = np.asarray([[3.0, 0.5], [0.5, 1.5]])
B = np.asarray([1.0, -0.7])
V = np.asarray([0.9, -1.3])
Y, G = np.linalg.solve(A, B), np.linalg.solve(A, V)


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


TORCH, OPTAX, OPTIMISTIX = needs("torch"), needs("jax", "optax"), needs("jax", "optax", "optimistix")
BRIDGES = [("optim", TORCH), ("optax", OPTAX), ("optimistix", OPTIMISTIX)]


def bridge(name):
    return importlib.import_module(f"dil_backends.{name}")


def score(u, A, b):
    """A tree of two leaves that are coupled: 1/2 u^T A u - b^T u."""
    p, q = u["p"][0], u["q"]
    quadratic = A[0, 0] * p**2 / 2 + A[0, 1] * p * q + A[1, 1] * q**2 / 2
    return quadratic - b[0] * p - b[1] * q


def wells(u, t):
    """One problem a row, (u^2 - 1)^2 / 4 + (u - t)^2, that differ by t."""
    return (0.25 * (u**2 - 1) ** 2 + (u - t) ** 2).sum(-1)


def wells_minimum(t):
    """The root of u^3 + u = 2 t."""
    root = np.sqrt(t * t + 1 / 27)
    return np.cbrt(t + root) + np.cbrt(t - root)


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in BRIDGES])
def test_docstrings(name):
    found = doctest.testmod(bridge(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


# --- torch.optim ---

TORCH_OPTIMISERS = [
    ("SGD", {"lr": 0.3, "momentum": 0.3}),
    ("Adam", {"lr": 0.1, "betas": (0.5, 0.9), "amsgrad": True}),
    ("LBFGS", {"line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}),
    ("LBFGS", {"tolerance_grad": 0.0, "tolerance_change": 0.0}),
]


def torch_optim(kind, options, **kwargs):
    import torch

    return bridge("optim").TorchOptim(partial(getattr(torch.optim, kind), **options), **kwargs)


@TORCH
@pytest.mark.transform("torch.optim: an optimiser as the solver", backend="torch")
@pytest.mark.parametrize(("kind", "options"), TORCH_OPTIMISERS)
def test_torch_optimisers(kind, options):
    import torch

    solver = torch_optim(kind, options, max_iter=3000, rtol=1e-10)
    start = {"p": torch.zeros(1, dtype=torch.float64), "q": torch.zeros((), dtype=torch.float64)}
    layer = dil.argmin(score, solver, init=start)
    b = torch.tensor(B, requires_grad=True)
    y = layer(torch.tensor(A), b)
    (y["p"][0] * V[0] + y["q"] * V[1]).backward()
    np.testing.assert_allclose([float(y["p"][0].detach()), float(y["q"].detach())], Y, rtol=1e-8)
    np.testing.assert_allclose(b.grad, G, rtol=1e-8)
    sol = layer.solve(torch.tensor(A), b)
    assert dil.Status(int(sol.status)) is dil.Status.CONVERGED
    assert sol.residual <= 1e-10
    assert not sol.value["q"].requires_grad
    assert all(not x.any() for x in (start["p"], start["q"]))


@TORCH
def test_torch_batch():
    """Each problem has its own status and count; what is solved or broken is frozen, the others go on."""
    import torch

    t = torch.tensor([[2.0], [float("nan")], [0.0], [-0.3]], dtype=torch.float64)
    for kind, options in (TORCH_OPTIMISERS[0], TORCH_OPTIMISERS[2]):
        solver = torch_optim(kind, options, rtol=1e-9)
        layer = dil.argmin(wells, solver, batch_ndim=1, init=torch.zeros_like)
        sol = layer.solve(t)
        assert [dil.Status(int(s)).name for s in sol.status] == ["CONVERGED", "NON_FINITE", "CONVERGED", "CONVERGED"]
        assert sol.iterations[1] == sol.iterations[2] == 0
        good = [0, 2, 3]
        np.testing.assert_allclose(sol.value[good], wells_minimum(t[good].numpy()), rtol=1e-7, atol=1e-12)
        if kind == "SGD":
            alone = layer.solve(t[:1])
            np.testing.assert_array_equal(alone.value[0], sol.value[0])
            assert alone.iterations[0] == sol.iterations[0]


@TORCH
def test_torch_says_how_it_ended():
    import torch

    def ending(kind, options, **kwargs):
        layer = dil.argmin(wells, torch_optim(kind, options, **kwargs), init=torch.ones_like)
        sol = layer.solve(torch.tensor([2.0, 1.0], dtype=torch.float64))
        return dil.Status(int(sol.status)).name, int(sol.iterations)

    assert ending("SGD", {"lr": 1e-3}, max_iter=7) == ("MAX_ITER", 7)
    assert ending("SGD", {"lr": 1e-30})[0] == "STAGNATED"
    assert ending("LBFGS", {"tolerance_grad": 1e-3}, rtol=1e-12)[0] == "STAGNATED"
    assert ending("SGD", {"lr": 1e3})[0] == "NON_FINITE"
    assert ending("AdamW", {"lr": 0.1, "weight_decay": 0.5}, max_iter=200)[0] == "MAX_ITER"
    with pytest.warns(dil.ConvergenceWarning, match="MAX_ITER"):
        dil.argmin(wells, torch_optim("SGD", {"lr": 1e-3}, max_iter=1), init=torch.zeros_like)(torch.ones(2))


@TORCH
def test_torch_options():
    import torch

    with pytest.raises(dil.OptionError, match=r"(?s)factory=SGD.*functools.partial\(torch.optim.Adam"):
        bridge("optim").TorchOptim(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    with pytest.raises(dil.OptionError, match=r"factory\(params\) returned None; .* step\(closure\)"):
        bridge("optim").TorchOptim(lambda params: None)(wells, torch.zeros(2), torch.ones(2))
    with pytest.raises(dil.OptionError, match=r"atol=-1; expected a number > 0"):
        bridge("optim").TorchOptim(torch.optim.Adam, atol=-1)
    with pytest.raises(dil.OptionError, match="TorchOptim minimises over arrays of torch, and these are of numpy"):
        bridge("optim").TorchOptim(torch.optim.Adam)(wells, np.zeros(2), np.ones(2))
    with pytest.raises(dil.OptionError, match="TorchOptim minimises a score, and this layer has a step"):
        dil.fixed_point(lambda u, t: u, bridge("optim").TorchOptim(torch.optim.Adam), init=torch.zeros(2))(
            torch.ones(2)
        )


# --- optax ---


def sharp(name):
    import optax

    return {
        "sgd": optax.sgd(0.3, momentum=0.3),
        "amsgrad": optax.amsgrad(0.1, b1=0.5, b2=0.9),
        "lbfgs": optax.lbfgs(),
    }[name]


@OPTAX
@pytest.mark.transform("optax: a transformation as the solver, under jit and grad", backend="jax")
@pytest.mark.parametrize("name", ["sgd", "amsgrad", "lbfgs"])
def test_optax_transformations(name):
    import jax
    import jax.numpy as jnp

    start = {"p": jnp.zeros(1), "q": jnp.zeros(())}
    solver = bridge("optax").Optax(sharp(name), max_iter=3000, rtol=1e-10)
    layer = dil.argmin(score, solver, init=start, linear_solver=dil.linear.CG())

    @jax.jit
    def run(A, b):
        sol = layer.solve(A, b)
        y, pull = jax.vjp(lambda b: layer(A, b), b)
        return sol.status, sol.residual, y, pull({"p": jnp.asarray(V[:1]), "q": jnp.asarray(V[1])})[0]

    status, residual, y, gradient = run(jnp.asarray(A), jnp.asarray(B))
    assert dil.Status(int(status)) is dil.Status.CONVERGED
    assert residual <= 1e-10
    np.testing.assert_allclose([y["p"][0], y["q"]], Y, rtol=1e-8)
    np.testing.assert_allclose(gradient, G, rtol=1e-8)


@OPTAX
@pytest.mark.parametrize(("name", "dtype"), [("sgd", "float64"), ("lbfgs", "float32")])
def test_optax_batch(name, dtype):
    import jax.numpy as jnp

    t = jnp.asarray([[2.0], [np.nan], [0.0], [-0.3]], dtype=dtype)
    layer = dil.argmin(wells, bridge("optax").Optax(sharp(name)), batch_ndim=1, init=jnp.zeros_like)
    sol = layer.solve(t)
    assert [dil.Status(int(s)).name for s in sol.status] == ["CONVERGED", "NON_FINITE", "CONVERGED", "CONVERGED"]
    assert sol.iterations[1] == sol.iterations[2] == 0
    good = np.asarray([0, 2, 3])
    tolerance = {"float32": 1e-3, "float64": 1e-6}[dtype]
    np.testing.assert_allclose(sol.value[good], wells_minimum(np.asarray(t)[good]), atol=tolerance)


@OPTAX
def test_optax_endings_and_options():
    import jax.numpy as jnp
    import optax

    Optax = bridge("optax").Optax
    sol = Optax(optax.sgd(1e-3), max_iter=7)(wells, jnp.zeros(2), jnp.ones(2))
    assert (dil.Status(int(sol.status)).name, int(sol.iterations)) == ("MAX_ITER", 7)
    with pytest.raises(dil.OptionError, match=r"transformation=0.1; expected one of optax, such as optax.adam"):
        Optax(0.1)
    with pytest.raises(dil.OptionError, match="max_iter=0; expected an integer > 0"):
        Optax(optax.sgd(0.1), max_iter=0)
    with pytest.raises(dil.OptionError, match="Optax minimises over arrays of jax, and these are of numpy"):
        Optax(optax.sgd(0.1))(wells, np.zeros(2), np.ones(2))


# --- optimistix ---


@OPTIMISTIX
@pytest.mark.transform("optimistix: minimise, root_find, fixed_point, under jit and grad", backend="jax")
@pytest.mark.parametrize("kind", ["argmin", "root", "fixed_point"])
def test_optimistix(kind):
    """One equation in three forms, Kepler's: E - e sin E = M."""
    import jax
    import jax.numpy as jnp
    import optimistix as ox

    make, fn, solver = {
        "argmin": (dil.argmin, lambda E, M: 0.5 * E**2 + 0.3 * jnp.cos(E) - M * E, ox.BFGS(rtol=1e-12, atol=1e-12)),
        "root": (dil.root, lambda E, M: E - 0.3 * jnp.sin(E) - M, ox.Newton(rtol=1e-10, atol=1e-10)),
        "fixed_point": (
            dil.fixed_point,
            lambda E, M: M + 0.3 * jnp.sin(E),
            ox.FixedPointIteration(rtol=1e-12, atol=1e-12),
        ),
    }[kind]
    layer = make(fn, bridge("optimistix").Optimistix(solver), init=lambda M: M, linear_solver=dil.linear.Direct())

    @jax.jit
    def run(M):
        sol = layer.solve(M)
        return sol.status, sol.iterations, sol.residual, *jax.value_and_grad(layer)(M)

    status, steps, residual, E, slope = run(jnp.asarray(1.0))
    assert dil.Status(int(status)) is dil.Status.CONVERGED
    assert 1 <= steps < 40
    tolerance = 1e-7 if kind == "argmin" else 1e-9  # BFGS ends where the score no longer resolves a step
    assert residual < tolerance
    np.testing.assert_allclose(E, 1.2880913132, atol=tolerance)
    np.testing.assert_allclose(slope, 1.0913293012, atol=tolerance)


@OPTIMISTIX
def test_optimistix_endings_trees_and_batches():
    import jax.numpy as jnp
    import optimistix as ox

    Optimistix = bridge("optimistix").Optimistix
    newton = ox.Newton(rtol=1e-10, atol=1e-10)
    batch = dil.root(lambda u, t: {"x": u["x"] ** 2 - t}, Optimistix(newton), batch_ndim=1, init=lambda t: {"x": t})
    sol = batch.solve(jnp.asarray([4.0, 9.0]))
    np.testing.assert_allclose(sol.value["x"], [2.0, 3.0], rtol=1e-9)
    assert sol.status.shape == sol.iterations.shape == (2,)
    sol = dil.root(lambda u, t: u**2 - t, Optimistix(newton, max_iter=2), init=jnp.asarray(50.0)).solve(
        jnp.asarray(4.0)
    )
    assert (dil.Status(int(sol.status)).name, int(sol.iterations)) == ("MAX_ITER", 2)
    layer = dil.argmin(lambda u, t: u * t, Optimistix(newton), init=lambda t: t)
    with pytest.raises(dil.OptionError, match=r"Newton of optimistix cannot solve a layer of dil.argmin; take a min"):
        layer.solve(jnp.asarray(4.0))
    with pytest.raises(dil.OptionError, match=r"Bisection of optimistix searches between bounds.*optimistix\.Newton"):
        Optimistix(ox.Bisection(rtol=1e-8, atol=1e-8))
    with pytest.raises(dil.OptionError, match=r"solver=<.*expected one of optimistix"):
        Optimistix(dil.solvers.Newton)
