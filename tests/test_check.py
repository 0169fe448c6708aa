"""check_gradients finds what is wrong, and nothing else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st

import dil


def smooth(x):
    xp = array_namespace(x)
    return xp.sum(xp.sin(x) * x)


@given(scale=st.sampled_from([1e-9, 1e-3, 1.0, 1e3, 1e9]), seed=st.integers(0, 1000))
def test_right_gradients_pass_at_every_scale(scale, seed):
    x = np.random.default_rng(seed).standard_normal(4)
    report = dil.check_gradients(lambda x: scale * smooth(x), x, seed=seed)
    assert report.ok, str(report)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("wrong", [0.0, -1.0, 0.5, 1.0 + 1e-6])
def test_wrong_gradients_fail_at_every_scale(scale, wrong):
    """The derivative is multiplied by `wrong`: a zero, a wrong sign, a half, a part in a million."""

    def fn(x):
        y = scale * smooth(x)
        return dil.constant(y) + wrong * (y - dil.constant(y))

    assert not dil.check_gradients(fn, np.asarray([0.3, 1.2])).ok


def test_backends_agree_and_the_report_can_be_read():
    report = dil.check_gradients(smooth, np.asarray([0.3, 1.2]), backends=["numpy", "array_api_strict"], order=2)
    assert report.ok
    assert {row.backend for row in report.rows} == {"numpy", "array_api_strict"}
    assert {row.order for row in report.rows} == {1, 2}
    lines = str(report).splitlines()
    assert "reverse" in lines[0]
    assert lines[-1].startswith("array_api_strict")


def test_a_backend_that_disagrees_is_found():
    def fn(x):
        factor = 2.0 if type(dil.constant(x)).__module__.startswith("array_api_strict") else 1.0
        return factor * smooth(x)

    report = dil.check_gradients(fn, np.asarray([0.3, 1.2]), backends=["numpy", "array_api_strict"])
    assert all(row.ok for row in report.rows)
    assert not report.ok


def test_a_point_of_zeros_has_steps_of_order_one(plain):
    assert dil.check_gradients(
        lambda x: array_namespace(x).sum(array_namespace(x).exp(x)), plain.asarray([0.0, 0.0])
    ).ok


def test_float32(plain):
    handle = dil.backend(plain.backend, dtype="float32")
    assert dil.check_gradients(smooth, handle.asarray([0.3, 1.2])).ok


def test_trees():
    def fn(tree, scale):
        return {"out": tree["a"] * scale, "n": 3}

    assert dil.check_gradients(fn, {"a": np.asarray([1.0, 2.0]), "k": 4}, np.asarray(0.5)).ok


# --- what it finds ---

T = np.asarray([2.0, 0.3])


def zeros(t):
    return 0.0 * t


def bowl(u, t):
    return array_namespace(u).sum((u - t) ** 2 + u**4)


def soft_threshold(f, init, t):
    xp = array_namespace(t)
    return xp.sign(t) * xp.maximum(xp.abs(t) - 1.0, 0.0 * t)


def lasso(u, t):
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - t) ** 2) + xp.sum(xp.abs(u))


def flat(u, t):
    return array_namespace(u).sum((u - t) ** 4)


def cut_from_t(u, t):
    return array_namespace(u).sum((u - dil.constant(t)) ** 2 + u * t)


def shaken(u, t, draw=np.random.default_rng(0)):  # noqa: B008
    return float(1.0 + draw.uniform()) * bowl(u, t)


def shaken_step(x, draw=np.random.default_rng(0)):  # noqa: B008
    return float(1.0 + draw.uniform()) * smooth(x)


CAUSES = {
    "kink": (dil.argmin(lasso, soft_threshold), "argmin layer of 'lasso': backward solve: KINK"),
    "rough": (dil.argmin(bowl, dil.solvers.GradientDescent(rtol=1e-3), init=zeros), "backward solve: NOT_STATIONARY"),
    "early": (dil.argmin(bowl, dil.solvers.GradientDescent(max_iter=2), init=zeros), "forward solve: MAX_ITER"),
    "degenerate": (dil.argmin(flat, lambda f, init, t: t + 0.0), "backward solve: SINGULAR"),
    "cut from an argument": (dil.argmin(cut_from_t, dil.solvers.Newton(), init=zeros), "every solve in it converged"),
    "random score": (dil.argmin(shaken, lambda f, init, t: 0.7 * t), "backward solve: RANDOM"),
    "random function": (shaken_step, "the function: RANDOM"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_failed_check_says_why(plain, cause):
    if plain.backend == "jax" and cause != "kink":
        pytest.skip("JAX compiles every layer, and a function that it traces draws its numbers once")
    fn, text = CAUSES[cause]
    report = dil.check_gradients(fn, plain.asarray(T), directions=1)
    assert not report.ok
    assert text in report.findings[0].text
    assert str(report).endswith(str(report.findings[-1]))


@pytest.mark.parametrize("point", [(2.0, 0.0), (0.0, 0.0), (1.0, 0.3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kink_of_the_function_is_found_even_if_the_derivative_agrees(plain, dtype, point):
    def bent(x):
        xp = array_namespace(x)
        return xp.sum(xp.abs(x))

    handle = dil.backend(plain.backend, dtype=dtype)
    found = dil.check_gradients(bent, handle.asarray(point)).findings
    assert [f.text.split(": ")[1] for f in found] == (["KINK"] if 0.0 in point else [])


@pytest.mark.parametrize("rtol", [1e-7, 1e-9, 1e-11])
@pytest.mark.parametrize("solver", [dil.solvers.GradientDescent, dil.solvers.LBFGS, dil.solvers.Newton])
def test_the_tolerance_of_a_solver_is_part_of_the_bound(solver, rtol):
    report = dil.check_gradients(dil.argmin(bowl, solver(rtol=rtol), init=zeros), T)
    assert report.ok, str(report)
    assert report.findings == ()


@pytest.mark.parametrize("wrong", [0.5, -1.0, 1.0 + 1e-3])
def test_the_tolerance_of_a_solver_does_not_hide_a_wrong_derivative(wrong):
    def score(u, t):
        seen = wrong * t + dil.constant((1.0 - wrong) * t)
        return bowl(u, seen)

    report = dil.check_gradients(dil.argmin(score, dil.solvers.GradientDescent(rtol=1e-7), init=zeros), T)
    assert not report.ok


def test_a_layer_that_warns_is_a_finding_even_if_its_gradient_is_right():
    early = int(dil.Status.MAX_ITER)
    layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2), lambda f, init, t: dil.Solution(t, early))
    report = dil.check_gradients(layer, T)
    assert report.ok
    assert [f.text for f in report.findings] == [
        f"argmin layer of '<lambda>': forward solve: MAX_ITER: {dil.Status.MAX_ITER.sentence}"
    ]
    assert report.findings[0].backends == ("numpy",)


def test_other_warnings_are_let_through():
    def warns(x):
        warnings.warn("mine", DeprecationWarning, stacklevel=1)
        return smooth(x)

    with pytest.warns(DeprecationWarning, match="mine"):
        assert dil.check_gradients(warns, T).ok


@pytest.mark.parametrize("unit", [1e-6, 1e-2, 1e2, 1e6])
def test_arguments_of_different_units(unit):
    def fn(a, b):
        return np.sum(np.sin(a * unit) + np.cos(b / unit))

    report = dil.check_gradients(fn, np.asarray([1.0 / unit]), np.asarray([2.0 * unit]))
    assert report.ok, str(report)


def test_a_step_of_the_function_is_a_kink():
    report = dil.check_gradients(lambda x: np.sum(x + 0.5 * np.sign(x)), np.asarray([0.0, 1.0]))
    assert not report.ok
    assert ": KINK: " in report.findings[0].text


def test_progress_is_drawn_and_changes_no_number(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws nothing where it sees no terminal
    fn, x = lambda u: np.sum(np.exp(u)), np.asarray([0.0, 1.0])
    quiet = dil.check_gradients(fn, x)
    assert capsys.readouterr().err == ""
    assert dil.check_gradients(fn, x, progress=True) == quiet
    assert "check_gradients" in capsys.readouterr().err


def test_a_direction_takes_as_many_calls_as_the_docstring_says():
    calls = []
    dil.check_gradients(lambda u: calls.append(u) or np.sum(np.cosh(u)), np.asarray([0.5, 1.0]), directions=1)
    assert 15 <= len(calls) <= 35
    before = len(calls)
    dil.check_gradients(lambda u: calls.append(u) or np.sum(np.cosh(u)), np.asarray([0.5, 1.0]), directions=1, order=2)
    assert 1.5 * before <= len(calls) - before <= 2.5 * before
