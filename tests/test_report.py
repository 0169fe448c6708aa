"""layer.report, dil.record and refine: what they say is so, on every engine, and nothing of them stays behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil._diagnostics import record as _record
from engines import engines

H = np.asarray([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
J = np.asarray([[2.0, 1.0, 0.0], [-1.0, 1.5, 0.5], [0.0, 0.3, 1.0]])
X = np.asarray([0.5, -1.0, 2.0])
AWAY = np.asarray([1e-3, -2e-3, 5e-4])


def quadratic(u, A, x):
    xp = array_namespace(u)
    return 0.5 * xp.sum(u * xp.matmul(A, u)) - xp.sum(x * u)


def bowl(u, x):
    """Bends: the gradient of its minimiser is wrong to first order in the minimiser's error."""
    return array_namespace(u).sum((u - x) ** 2 + u**4, axis=-1)


def cube(u, x):
    return u + u**3 - x


def names(entry):
    return [Status(int(code)).name for code in np.ravel(entry.status)]


def near(value, x):
    """Return the root of cube by Newton's method in NumPy, moved by `value`."""
    u = np.zeros_like(x)
    for _ in range(60):
        u = u - (u + u**3 - x) / (1 + 3 * u**2)
    return u + value


@pytest.fixture(params=[e for e in engines() if ":" not in e.name and e.name != "jax"], ids=lambda e: e.name)
def plain(request):
    """Every backend that does not compile; JAX has tests of its own below."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


# --- what a report says ----------------------------------------------------------------------------------------------


def test_numbers_of_a_known_quadratic(plain):
    exact = np.linalg.solve(H, X)
    layer = dil.argmin(quadratic, lambda f, u, A, x: plain.asarray(exact + AWAY / 100))
    rep = layer.report(plain.asarray(H), plain.asarray(X))
    back = rep.backward
    assert rep.ok
    assert names(rep.forward) == names(back) == ["CONVERGED"]
    assert all(isinstance(x, np.ndarray) and x.shape == () for _, x in back.numbers())
    # the Newton step left at y, whatever the solver said
    relative = np.max(np.abs(AWAY / 100) / np.abs(exact + AWAY / 100))
    np.testing.assert_allclose(back.stationarity, relative, rtol=1e-9)
    values = np.linalg.eigvalsh(H)
    np.testing.assert_allclose((back.lowest, back.highest), (values[0], values[-1]), rtol=1e-10)
    np.testing.assert_allclose(back.condition, values[-1] / values[0], rtol=1e-9)
    assert back.asymmetry < 1e-15


def test_numbers_of_a_known_root(plain):
    layer = dil.root(
        lambda u, A, x: array_namespace(u).matmul(A, u) - x,
        lambda f, u, A, x: plain.asarray(np.linalg.solve(J, X)),
    )
    back = layer.report(plain.asarray(J), plain.asarray(X)).backward
    values = np.linalg.svd(J, compute_uv=False)
    np.testing.assert_allclose((back.lowest, back.highest), (values[-1], values[0]), rtol=1e-7)
    np.testing.assert_allclose(back.condition, values[0] / values[-1], rtol=1e-7)
    assert back.stationarity < 1e-15
    assert back.bound < 1e-13
    assert 0.01 < back.asymmetry < 1


def test_asymmetry_of_a_wrong_product(plain):
    def product(u, v, x):
        return array_namespace(u).matmul(plain.asarray(J), v)

    given = dil.Derivatives(gradient=lambda u, x: product(u, u, x) - x, hvp=product, mixed=lambda u, w, x: (-w,))
    layer = dil.argmin(bowl, lambda f, u, x: plain.asarray(np.linalg.solve(J, X)), derivatives=given)
    assert 0.01 < layer.report(plain.asarray(X)).backward.asymmetry < 1


def test_conjugate_gradients_on_a_root_are_found_out():
    layer = dil.root(lambda u, A, x: A @ u - x, lambda f, u, A, x: np.linalg.solve(A, x), linear_solver=dil.linear.CG())
    back = layer.report(J, X).backward
    assert back.asymmetry > 0.01
    assert names(back) != ["CONVERGED"]
    assert back.bound > 0.01


@pytest.mark.parametrize("kind", ["argmin", "root", "fixed_point"])
@pytest.mark.parametrize("linear_solver", [None, dil.linear.Auto(damping=0.1)], ids=["exact", "damped"])
def test_bound_covers(plain, kind, linear_solver):
    functions = {
        "argmin": lambda u, x: array_namespace(u).sum(0.5 * u**2 + 0.25 * u**4 - x * u),
        "root": cube,
        "fixed_point": lambda u, x: (x - u**3 + 3.0 * u) / 4.0,
    }
    layer = getattr(dil, kind)(
        functions[kind], lambda *_: plain.asarray(near(AWAY, X)), linear_solver=linear_solver, on_failure="ignore"
    )
    v = np.asarray([1.0, -0.5, 2.0])
    _, (found,) = plain.gradients(layer, (X,), v)
    exact = v / (1 + 3 * near(0.0, X) ** 2)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    bound = layer.report(plain.asarray(X), cotangent=plain.asarray(v)).backward.bound
    assert 1e-4 < error <= bound <= 30 * error


def test_bound_of_a_gradient_that_is_a_guess_is_infinite():
    # a Newton step from here leads far away, so nothing near is known
    layer = dil.root(lambda u, x: array_namespace(u).tanh(u) - x, lambda f, u, x: 0.0 * x + 2.0, on_failure="ignore")
    assert layer.report(np.asarray([0.1])).backward.bound == np.inf


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_scale_of_the_residual_is_immaterial_to_the_bound(scale):
    """A Newton step from 2 leads far away, so nothing near is known; one from 0.2 leads to the root."""

    def bound(y):
        layer = dil.root(lambda u, x: scale * (np.tanh(u) - x), lambda f, u, x: y + 0.0 * x, on_failure="ignore")
        return layer.report(np.asarray([0.1])).backward.bound

    assert bound(2.0) == np.inf
    error = 1 - (1 - 0.1**2) / (1 - np.tanh(0.2) ** 2)
    assert abs(error) <= bound(0.2) <= 30 * abs(error)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bound_at_a_nearly_singular_saddle_covers_the_rounding(sign):
    """Eigenvalues of 1 and -1e-9 lose nine digits; the exact solution is that of the entries as they are."""
    c, s = np.cos(0.7), np.sin(0.7)
    A = sign * (np.outer([c, s], [c, s]) - 1e-9 * np.outer([-s, c], [-s, c]))
    v = np.asarray([0.3, 1.0])
    layer = dil.argmin(quadratic, lambda f, u, A, x: np.linalg.solve(A, x), on_failure="ignore")
    x = A @ np.ones(2)
    (_, g), back = dil.vjp(layer, A, x)[1](v), layer.report(A, x, cotangent=v).backward
    (a, b), (_, d) = ([Fraction(float(entry)) for entry in row] for row in A)
    p, q = (Fraction(float(entry)) for entry in v)
    exact = np.asarray([float(r / (a * d - b * b)) for r in (d * p - b * q, a * q - b * p)])
    error = np.linalg.norm(g - exact) / np.linalg.norm(exact)
    assert back.condition == np.inf
    assert error <= back.bound <= 1e-6
    assert back.bound >= 0.1 * np.finfo(float).eps * 1e9


@pytest.mark.parametrize("score", [lambda u, x: np.sum((u - x) ** 4), lambda u, x: np.sum((u - x)[0] ** 2)])
def test_bound_at_a_singular_hessian_is_infinite(score):
    rep = dil.argmin(score, lambda f, u, x: x + 0.0, on_failure="ignore").report(X)
    assert names(rep.backward) == ["SINGULAR"]
    assert not rep.ok
    assert rep.backward.bound == np.inf


def test_saddle(plain):
    def saddle(u, x):
        return (u[0] - x[0]) ** 2 - (u[1] - x[1]) ** 2

    back = dil.argmin(saddle, lambda f, u, x: x * 1.0, on_failure="ignore").report(plain.asarray(X[:2])).backward
    assert names(back) == ["NOT_MINIMUM"]
    np.testing.assert_allclose((back.lowest, back.highest), (-2, 2), rtol=1e-12)
    assert back.condition == np.inf
    assert back.bound < 1e-13


def test_batch_with_a_broken_member(plain):
    x = np.stack([X, np.full(3, np.nan), 2 * X])
    layer = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0.0 * x, batch_ndim=1)
    back = layer.report(plain.asarray(x)).backward
    assert names(back) == ["CONVERGED", "NON_FINITE", "CONVERGED"]
    for _, numbers in back.numbers():
        assert numbers.shape == (3,)
        assert np.all(np.isfinite(numbers[[0, 2]]))
    assert back.bound[1] == np.inf
    assert np.all(back.bound[[0, 2]] < 1e-13)
    text = str(back)
    assert "CONVERGED" in text
    assert "(2 of 3 problems)" in text
    assert "(1 of 3 problems)" in text
    alone = layer.report(plain.asarray(x[:1])).backward
    np.testing.assert_allclose(back.highest[0], alone.highest[0], rtol=1e-12)


def test_bounds_of_a_batch_are_each_problem_s_own(plain):
    x = np.stack([X, X, X])
    away = np.asarray([[0.0], [1e-6], [1e-3]]) * np.ones(3)

    def solver(fun, init, x):
        return plain.asarray(near(away, np.stack([X, X, X])))

    score = lambda u, x: array_namespace(u).sum(0.5 * u**2 + 0.25 * u**4 - x * u, axis=-1)  # noqa: E731
    bound = dil.argmin(score, solver, batch_ndim=1).report(plain.asarray(x)).backward.bound
    assert bound[0] < 1e-13
    assert 1e-7 < bound[1] < 1e-4
    assert 1e-4 < bound[2] < 1e-1


def test_cotangent(plain):
    layer = dil.argmin(quadratic, lambda f, u, A, x: plain.asarray(np.linalg.solve(H, X)))
    args = plain.asarray(np.diag([1.0, 10.0, 100.0])), plain.asarray(X)
    seen = layer.report(*args, cotangent=plain.asarray(np.asarray([0.0, 1.0, 0.0]))).backward
    np.testing.assert_allclose((seen.lowest, seen.highest), (10, 10), rtol=1e-12)
    with pytest.raises(dil.DilError):
        layer.report(*args, cotangent=plain.asarray(np.ones(2)))


@pytest.mark.parametrize("scale", [0.0, 1e-250, 1e-150, 1e150, 1e250])
def test_scale_of_the_cotangent_is_immaterial(scale):
    layer = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0.0 * x)
    back = layer.report(X, cotangent=scale * np.ones(3)).backward
    assert names(back) == ["CONVERGED"]
    assert back.bound < 1e-13
    assert 1 <= back.condition < 100


@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e100, 1e200])
def test_scale_of_the_matrix_is_immaterial(scale):
    values = np.linalg.svd(J, compute_uv=False)
    layer = dil.root(lambda u, x: scale * (J @ u - x), lambda f, u, x: np.linalg.solve(J, x))
    back = layer.report(X).backward
    np.testing.assert_allclose((back.lowest / scale, back.highest / scale), (values[-1], values[0]), rtol=1e-7)
    assert back.bound < 1e-12


def test_float32(plain):
    handle = dil.backend(plain.backend, device=plain.device, dtype="float32")
    layer = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0.0 * x)
    back = layer.report(handle.asarray(X.astype("float32"))).backward
    assert back.bound.dtype == np.float32
    assert back.asymmetry < 1e-6
    assert 1e-7 < back.bound < 1e-4


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
def test_empty_and_scalar_problems(plain, shape):
    layer = dil.argmin(
        lambda u, x: array_namespace(u).sum((u - x) ** 2, axis=-1) if u.ndim else (u - x) ** 2,
        lambda f, u, x: x * 1.0,
        batch_ndim=max(0, len(shape) - 1),
    )
    rep = layer.report(plain.asarray(np.ones(shape)))
    assert rep.ok
    assert rep.backward.status.shape == shape[:-1]
    assert np.all(rep.backward.bound < 1e-13)
    assert "backward solve" in str(rep)


def test_no_float_argument():
    layer = dil.argmin(lambda u, k: np.sum((u - 1.0 * k) ** 2), lambda f, u, k: 1.0 * k)
    with pytest.raises(dil.OptionError, match="no argument holds a float array"):
        layer.report(np.asarray([1, 2]))


def test_policy_is_not_applied_and_the_layer_keeps_it():
    layer = dil.argmin(bowl, lambda f, u, x: x * 1.0, on_failure="raise")
    rep = layer.report(X)
    assert names(rep.backward) == ["NOT_STATIONARY"]
    assert rep.backward.bound > 0.1
    with pytest.raises(dil.ConvergenceError):
        dil.vjp(layer, X)[1](np.ones(3))


def test_nested_layers_report_on_the_outer_one():
    inner = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0.0 * x)

    def outer(u, x):
        return np.sum((u - x) ** 2) + np.sum(inner(u) ** 2)

    layer = dil.argmin(outer, dil.solvers.Newton(), init=lambda x: 0.0 * x)
    rep = layer.report(X)
    assert rep.ok
    assert "outer" in rep.forward.layer
    assert "outer" in rep.backward.layer
    assert rep.backward.bound < 1e-13


def test_a_gradient_that_may_be_all_error_is_not_ok():
    layer = dil.root(lambda u, t: u**2 - t, lambda f, u, t: 0 * t + 1e-8)
    report = layer.report(np.asarray(2e-18))
    assert names(report.backward) == ["NOT_STATIONARY"]
    assert report.backward.bound >= 1
    assert not report.ok


def test_printed():
    rep = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0.0 * x).report(X)
    lines = str(rep).splitlines()
    assert lines[0] == "forward solve of the argmin layer of 'bowl'"
    assert lines[1] == f"  status       CONVERGED: {Status.CONVERGED.sentence}"
    said = [line.split()[0] for line in lines[lines.index("backward solve of the argmin layer of 'bowl'") + 1 :]]
    assert said == [
        *("status", "iterations", "residual", "stationarity"),
        *("lowest", "highest", "condition", "asymmetry", "bound", "choice"),
    ]


def test_code_that_is_no_status():
    layer = dil.argmin(bowl, lambda f, u, x: dil.Solution(0.0 * x, 42), on_failure="ignore")
    with dil.record() as record:
        layer(X)
    assert "42: a code that is not a dil.Status" in str(record.forward[0])
    assert "1 42" in str(record)


# --- recording -------------------------------------------------------------------------------------------------------


def layer_named(name, scale=1.0, **options):
    def score(u, x):
        return scale * bowl(u, x)

    score.__name__ = name
    return dil.argmin(score, dil.solvers.Newton(), init=lambda x: 0.0 * x, **options)


def stages(record):
    return [(entry.layer.split("'")[1], entry.stage) for entry in record.entries]


def test_order_nesting_and_summary(plain):
    first, second = layer_named("first"), layer_named("second", 2.0)
    x = plain.asarray(X)
    with dil.record() as outer:
        plain.gradients(first, (X,), np.ones(3))
        with dil.record() as within:
            _, pull = dil.vjp(lambda x: second(first(x)), x)
        pull(x)
    first(x)
    chain = [("first", "forward"), ("second", "forward")]
    assert stages(within) == chain
    assert stages(outer) == [
        *(("first", "forward"), ("first", "backward")),
        *chain,
        *(("second", "backward"), ("first", "backward")),
    ]
    assert len(outer.forward) == len(outer.backward) == 3
    text = str(outer).splitlines()
    assert text[0] == "argmin layer of 'first', forward: 2 solves, problems: 2 CONVERGED"
    assert any("(least, median, largest)" in line for line in text)
    with dil.record() as nothing:
        pass
    assert str(nothing) == "no solve was recorded"


def test_forward_mode_has_no_bound():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor(X)
    with dil.record() as record:
        torch.func.jvp(layer_named("f"), (x,), (x,))
    assert np.isnan(record.backward[0].bound)
    assert record.backward[0].stationarity < 1e-12


@pytest.mark.parametrize("policy", ["raise", "warn", "nan", "ignore"])
def test_failures_are_recorded_whatever_the_policy(policy):
    layer = dil.argmin(bowl, lambda f, u, x: x * 1.0, on_failure=policy)
    with dil.record() as record, warnings.catch_warnings():
        warnings.simplefilter("ignore", dil.ConvergenceWarning)
        try:
            dil.vjp(layer, X)[1](np.ones(3))
        except dil.ConvergenceError:
            assert policy == "raise"
    assert [names(entry) for entry in record.entries] == [["CONVERGED"], ["NOT_STATIONARY"]]
    assert not _record.recording()


def test_an_error_leaves_no_record_open():
    with pytest.raises(ZeroDivisionError), dil.record():
        1 / 0
    assert not _record.recording()


def test_an_error_of_a_backend_leaves_no_record_open(monkeypatch):
    record = dil.record()
    record._stack.push(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), record:
        pass
    assert not _record.recording()


def test_recording_leaves_the_gradient_as_it_is(plain):
    layer = layer_named("f")
    alone = plain.gradients(layer, (X,), X)
    with dil.record():
        watched = plain.gradients(layer, (X,), X)
    np.testing.assert_array_equal(alone[1][0], watched[1][0])


def test_torch_backward_and_double_backward():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor(X, requires_grad=True)
    layer = layer_named("f")
    with dil.record() as record:
        (slope,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
        assert stages(record) == [("f", "forward"), ("f", "backward")]
        slope.sum().backward()
    assert len(record.backward) > 1
    assert record.backward[0].bound < 1e-13
    expected, _ = dil.vjp(lambda x: dil.grad(lambda x: np.sum(layer(x) ** 2))(x), X)
    np.testing.assert_allclose(slope.detach().numpy(), expected, rtol=1e-10)


class TestJax:
    @pytest.fixture(autouse=True)
    def jax(self):
        jax = pytest.importorskip("jax", reason="JAX is not installed")
        layer = layer_named("f", on_failure="ignore")  # to warn takes a callback
        self.slope = jax.jit(jax.grad(lambda x: jax.numpy.sum(layer(x) ** 2)))
        self.x = jax.numpy.asarray(X)
        return jax

    def test_a_function_jitted_before(self, jax):
        before = self.slope(self.x)
        with dil.record() as record:
            during = self.slope(self.x)
            self.slope(2 * self.x)
        assert stages(record) == 2 * [("f", "forward"), ("f", "backward")]
        np.testing.assert_array_equal(before, during)
        assert record.backward[0].bound < 1e-13
        self.slope(self.x).block_until_ready()
        jax.effects_barrier()
        assert len(record.entries) == 4
        with dil.record() as again:
            self.slope(self.x)
        assert len(again.entries) == 2
        assert len(record.entries) == 4

    def test_a_function_jitted_within_is_quiet_after(self, jax):
        with dil.record() as record:
            self.slope(self.x)
        assert "callback" not in self.slope.lower(self.x).as_text()
        with dil.record():
            assert "callback" in self.slope.lower(self.x).as_text()
        assert len(record.entries) == 2

    def test_numbers(self, jax):
        """A batch whose second member is broken, on the way of test_batch_with_a_broken_member."""
        x = np.stack([X, np.full(3, np.nan)])
        away = jax.numpy.asarray(np.stack([near(10 * AWAY, X), X]))
        score = lambda u, x: jax.numpy.sum(0.5 * u**2 + 0.25 * u**4 - x * u, axis=-1)  # noqa: E731
        layer = dil.argmin(score, lambda *_: away, batch_ndim=1, on_failure="ignore")
        back = layer.report(jax.numpy.asarray(x)).backward
        curvature = 1 + 3 * near(10 * AWAY, X) ** 2
        assert names(back) == ["NOT_STATIONARY", "NON_FINITE"]
        np.testing.assert_allclose((back.lowest[0], back.highest[0]), (curvature.min(), curvature.max()), rtol=1e-10)
        exact = 1 / (1 + 3 * near(0.0, X) ** 2)
        error = np.linalg.norm(1 / curvature - exact) / np.linalg.norm(exact)
        assert error <= back.bound[0] <= 30 * error
        assert back.bound[1] == np.inf

    @pytest.mark.slow
    def test_vmap(self, jax):
        rows = jax.numpy.stack([self.x, 2 * self.x])
        with dil.record() as record:
            jax.jit(jax.vmap(self.slope))(rows)
        assert len(record.forward) == len(record.backward) == 2
        assert all(entry.bound < 1e-13 for entry in record.backward)

    def test_an_error_of_a_program_leaves_no_record_open(self, jax, capfd):
        layer = dil.argmin(bowl, lambda f, u, x: x * 1.0, on_failure="raise")

        def run():
            with dil.record():
                jax.jit(jax.grad(lambda x: jax.numpy.sum(layer(x))))(self.x).block_until_ready()

        with pytest.raises(Exception, match="NOT_STATIONARY"):
            run()
        assert not _record.recording()

    def test_report_of_a_traced_program(self, jax):
        layer = layer_named("f")
        with pytest.raises(dil.OptionError, match=r"call layer\.report outside"):
            jax.jit(lambda x: (layer.report(x), x)[1])(self.x)
        assert not _record.recording()


# --- refining --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["argmin", "root", "fixed_point"])
def test_refine_makes_a_rough_solver_sharp(plain, kind):
    functions = {
        "argmin": lambda u, x: array_namespace(u).sum(0.5 * u**2 + 0.25 * u**4 - x * u),
        "root": cube,
        "fixed_point": lambda u, x: (x - u**3 + 3.0 * u) / 4.0,
    }
    exact = 1 / (1 + 3 * near(0.0, X) ** 2)

    def error(steps):
        rough = lambda *_: plain.asarray(near(AWAY, X))  # noqa: E731
        layer = getattr(dil, kind)(functions[kind], rough, refine=steps, on_failure="ignore")
        _, (found,) = plain.gradients(layer, (X,), np.ones(3))
        return np.linalg.norm(found - exact) / np.linalg.norm(exact)

    rough, sharp, sharpest = (error(steps) for steps in (0, 1, 2))
    assert 1e-4 < rough < 1e-2
    # each step squares the error, 3e-3 of it
    assert rough**2 / 100 < sharp < 10 * rough**2
    assert sharpest < 1e-10


@pytest.mark.parametrize("refine", [-1, True, 1.0, None])
@pytest.mark.parametrize("make", [dil.argmin, dil.root, dil.fixed_point])
def test_refine_out_of_range(make, refine):
    with pytest.raises(dil.OptionError, match="refine="):
        make(bowl, dil.solvers.Newton(), refine=refine)


def test_refine_at_a_singular_jacobian(plain):
    """One problem cannot move, and says so; the other one of the batch is refined."""
    start = np.asarray([[0.0], [0.9]])
    layer = dil.root(
        lambda u, x: u * u - x, lambda f, u, x: plain.asarray(start), refine=2, batch_ndim=1, on_failure="ignore"
    )
    found = layer.solve(plain.asarray(np.ones((2, 1))))
    value, status = plain.to_numpy(found.value), plain.to_numpy(found.status)
    assert [Status(int(s)).name for s in status] == ["SINGULAR", "CONVERGED"]
    assert value[0] == 0
    assert abs(value[1] - 1) < 1e-4


def test_refine_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    def run(x):
        layer = dil.root(lambda u, x: u * u - x, lambda f, u, x: 0 * x, refine=2, on_failure="ignore")
        found = layer.solve(x)
        return found.value, found.status

    value, status = jax.jit(run)(jax.numpy.asarray([4.0]))
    assert float(value[0]) == 0
    assert Status(int(status)) is Status.SINGULAR
    layer = dil.root(cube, lambda *_: jax.numpy.asarray(near(AWAY, X)), refine=2)
    slopes = jax.jit(jax.jacrev(layer))(jax.numpy.asarray(X))
    np.testing.assert_allclose(np.diag(slopes), 1 / (1 + 3 * near(0.0, X) ** 2), rtol=1e-9)


def test_refine_keeps_what_a_failed_solver_said():
    layer = dil.root(cube, lambda f, u, x: dil.Solution(near(AWAY, x), Status.MAX_ITER), refine=4)
    assert Status(int(layer.solve(X).status)) is Status.CONVERGED
    stuck = dil.root(lambda u, x: u * u - x, lambda f, u, x: dil.Solution(0 * x, Status.MAX_ITER), refine=1)
    assert Status(int(stuck.solve(X**2).status)) is Status.MAX_ITER


# --- coverage of the bound -------------------------------------------------------------------------------------------


def test_coverage_on_random_problems():
    path = Path(__file__).parents[1] / "benchmarks" / "_trust.py"
    if not path.exists():
        pytest.skip("the benchmarks are not part of this installation")
    spec = importlib.util.spec_from_file_location("_trust", path)
    trust = sys.modules["_trust"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trust)
    rows = [row for problem in trust.problems(64, 7, largest=12, batches=0.2) for row in trust.measure(problem)]
    assert len(rows) >= 64
    assert {row.name for row in rows} == set(trust.FAMILIES)
    assert sum(row.covered for row in rows) >= len(rows) - 1
    assert sum(np.isinf(row.bound) for row in rows) <= 2
    compared = [row for row in rows if row.compared]
    assert len(compared) >= 55
    factors = [row.bound / row.error for row in compared]
    assert np.median(factors) <= 30


@pytest.mark.slow
def test_trust_benchmark(tmp_path):
    pytest.importorskip("typer", reason="typer is not installed")
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    root = Path(__file__).parents[1]
    script = root / "benchmarks" / "trust.py"
    if not script.exists():
        pytest.skip("the benchmarks are not part of this installation")
    path = os.pathsep.join([str(root), str(root / "backends"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), "--count", "60", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "trust.json").read_text())
    assert len(record["rows"]) >= 60
    assert record["groups"][0]["what"] == "all"
    assert (tmp_path / "trust.png").stat().st_size > 10_000
    assert str(root) not in (tmp_path / "trust.md").read_text()


def test_a_record_is_opened_once():
    with dil.record() as rec, pytest.raises(dil.DilError, match="recording already"), rec:
        pass
    with rec:  # again, after it has ended
        assert rec.entries == []
