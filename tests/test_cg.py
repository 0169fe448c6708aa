"""Conjugate gradients: right, or a status that says it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil.linear import CG


def spd(n, condition, seed):
    """Return a random symmetric matrix with eigenvalues from 1/condition to 1."""
    draw = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(draw.standard_normal((n, n)))
    return (Q * np.geomspace(1 / condition, 1, n)) @ Q.T


def run(engine, A, b, solver=None, dtype="float64"):
    """Solve with matrices (*batch, n, n) on an engine; return value, status and iterations as NumPy arrays."""
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    xp, A = handle.xp, handle.asarray(A)

    def matvec(p):
        return xp.matmul(A, p[..., None])[..., 0]

    found = (solver or CG())(matvec, handle.asarray(b))
    return tuple(np.asarray(handle.to_numpy(x)) for x in (found.value, found.status, found.iterations))


def test_right_or_says_so(plain):
    @settings(max_examples=plain.examples * 3)
    @given(
        n=st.integers(1, 60),
        condition=st.sampled_from([1.0, 10.0, 1e4, 1e8]),
        power=st.sampled_from([-30, -13, 0, 13, 30]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(n, condition, power, seed, dtype):
        A = spd(n, condition, seed).astype(dtype)
        b = (np.random.default_rng(seed).standard_normal(n) * 10.0**power).astype(dtype)
        x, status, steps = run(plain, A, b, dtype=dtype)
        eps = np.finfo(dtype).eps
        residual = np.linalg.norm(b.astype(float) - A.astype(float) @ x.astype(float))
        if status == Status.CONVERGED:
            rounding = 4 * eps * n * np.linalg.norm(x.astype(float))
            assert residual <= eps**0.75 * np.linalg.norm(b.astype(float)) + rounding
        else:
            assert condition * eps > 1e-9, f"a well-conditioned system ended {Status(int(status)).name}"
        assert steps >= 1

    check()


def test_n_steps_suffice_for_n_eigenvalues(plain):
    A, b = np.diag([1.0, 2.0, 3.0, 4.0]), np.ones(4)
    x, status, steps = run(plain, A, b)
    np.testing.assert_allclose(x, b / np.diag(A), rtol=1e-12)
    assert status == Status.CONVERGED
    assert steps <= 5


def test_one_bad_problem_leaves_the_others(plain):
    good = spd(5, 1e3, 0)
    bad = good.copy()
    bad[0, 0] = np.nan
    singular = np.diag([1.0, 1.0, 0.0, 1.0, 1.0])
    A = np.stack([good, -good, np.eye(5), bad, singular, good])
    b = np.stack([np.ones(5), np.ones(5), np.zeros(5), np.ones(5), np.ones(5), 1e-200 * np.ones(5)])
    x, status, steps = run(plain, A, b)
    names = [Status(int(s)).name for s in status]
    assert names == ["CONVERGED", "INDEFINITE", "CONVERGED", "NON_FINITE", "SINGULAR", "CONVERGED"]
    alone = run(plain, good, np.ones(5))[0]
    np.testing.assert_allclose(x[0], alone, rtol=1e-9)
    np.testing.assert_allclose(x[5], 1e-200 * alone, rtol=1e-9)
    assert steps[2] == 0
    assert np.all(x[2] == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_right_hand_side_costs_nothing(plain, dtype):
    x, status, steps = run(plain, np.eye(3), np.zeros(3), dtype=dtype)
    assert np.all(x == 0)
    assert status == Status.CONVERGED
    assert steps == 0


def test_scale_of_the_right_hand_side_is_immaterial(plain):
    A, b = spd(6, 100.0, 1), np.arange(1.0, 7.0)
    x = run(plain, A, b)[0]
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        np.testing.assert_allclose(run(plain, A, scale * b)[0] / scale, x, rtol=1e-10)


def test_tiny_cotangent_in_float32(plain):
    x, status, _ = run(plain, spd(6, 10.0, 2), 1e-30 * np.ones(6), dtype="float32")
    assert status == Status.CONVERGED
    assert np.all(np.isfinite(x))
    assert np.any(x != 0)


def test_iteration_limit(plain):
    _, status, steps = run(plain, spd(40, 1e6, 3), np.ones(40), CG(max_iter=3))
    assert Status(int(status)) is Status.MAX_ITER
    assert steps == 3


@pytest.mark.parametrize("condition", [1e4, 1e6])
def test_converged_means_that_the_true_residual_is_within_rtol_or_rounding(condition):
    """At a condition number of 1e6 the recurrence goes on to fall where rounding holds the true residual."""
    machine_eps = np.finfo(float).eps
    for seed in range(8):
        A, b = spd(40, condition, seed), np.random.default_rng(seed).standard_normal(40)
        found = CG()(lambda p, A=A: A @ p, b)
        size = np.linalg.norm(b)
        true = np.linalg.norm(b - A @ found.value) / size
        rounding = machine_eps * (np.linalg.norm(A, 2) * np.linalg.norm(found.value) / size + 1)
        assert Status(int(found.status)) is Status.CONVERGED
        # the product is rounded here as well
        assert true <= max(3 * machine_eps**0.75, 4 * rounding)
        assert abs(true - float(found.residual)) <= 4 * rounding


def test_rtol_is_of_the_residual_at_every_limit():
    A, b, rtol, names = spd(20, 100.0, 0), np.arange(1.0, 21.0), 1e-4, []
    for limit in range(1, 30):
        found = CG(rtol=rtol, max_iter=limit)(lambda p: A @ p, b)
        names.append(Status(int(found.status)).name)
        assert names[-1] == ("CONVERGED" if found.residual <= rtol else "MAX_ITER")
        assert found.residual == pytest.approx(np.linalg.norm(b - A @ found.value) / np.linalg.norm(b), rel=1e-6)
    assert set(names) == {"CONVERGED", "MAX_ITER"}


def test_consistent_singular_system_is_solved(plain):
    A, b = np.diag([2.0, 4.0, 0.0]), np.asarray([1.0, 1.0, 0.0])
    x, status, _ = run(plain, A, b)
    assert Status(int(status)) is Status.CONVERGED
    np.testing.assert_allclose(x, [0.5, 0.25, 0.0], rtol=1e-12)


def test_inconsistent_singular_system_keeps_a_best_iterate(plain):
    draw = np.random.default_rng(5)
    Q, _ = np.linalg.qr(draw.standard_normal((6, 6)))
    A = (Q * np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 0.0])) @ Q.T
    x, status, _ = run(plain, A, Q @ np.ones(6))
    assert Status(int(status)) in (Status.SINGULAR, Status.STAGNATED)
    assert np.linalg.norm(x) < 1e9


@pytest.mark.parametrize(
    ("options", "text"),
    [({"damping": -1.0}, "damping"), ({"rtol": 0.0}, "rtol"), ({"max_iter": 0}, "max_iter"), ({"rtol": 2.0}, "rtol")],
)
def test_options_out_of_range(options, text):
    with pytest.raises(dil.OptionError, match=text):
        CG(**options)


def test_empty_problem(plain):
    x, status, steps = run(plain, np.zeros((0, 0)), np.zeros(0))
    assert x.shape == (0,)
    assert status == Status.CONVERGED
    assert steps == 0
