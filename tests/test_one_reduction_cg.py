"""CG with one reduction a step: as right as CG, with half of its messages between processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import dil
from dil import Status
from dil.linear import CG, Jacobi, WarmStart

ONE = CG(one_reduction=True)


def matrix(kind, n, condition, seed):
    """Return a random symmetric matrix, its eigenvectors and its eigenvalues, from 1/condition to 1 in size."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    values = np.geomspace(1 / condition, 1, n)
    if kind == "indefinite":
        values = values * np.where(np.arange(n) % 3 == 0, -1.0, 1.0)
    if kind == "singular":
        values[0] = 0.0
    return (Q * values) @ Q.T, Q, values


def run(engine, A, b, solver=ONE, dtype="float64", **options):
    """Solve with matrices (*batch, n, n); return value, status, iterations, residual and products as NumPy arrays."""
    handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
    xp, A, b = handle.xp, handle.asarray(A), handle.asarray(b)

    def matvec(p):
        return xp.matmul(A, p[..., None])[..., 0]

    found = solver(matvec, b, **options)
    assert found.value.dtype == b.dtype
    return tuple(np.asarray(handle.to_numpy(x)) for x in (*found[:4], found.extra["products"]))


def names(status):
    return [Status(int(s)).name for s in np.atleast_1d(status)]


def both(A, b, damping=0.0, **options):
    """Return the solutions of CG and of CG with one reduction, on NumPy."""
    return [CG(damping, one_reduction=one, **options)(lambda p: A @ p, b) for one in (False, True)]


def test_right_or_says_so(plain):
    @settings(max_examples=plain.examples)
    @given(
        n=st.integers(1, 60),
        condition=st.sampled_from([1.0, 10.0, 1e4, 1e8]),
        power=st.sampled_from([-30, -13, 0, 13, 30]),
        seed=st.integers(0, 10**6),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def check(n, condition, power, seed, dtype):
        power = min(power, 13) if dtype == "float32" else power  # x itself must not overflow
        A = matrix("definite", n, condition, seed)[0].astype(dtype)
        b = (np.random.default_rng(seed).standard_normal(n) * 10.0**power).astype(dtype)
        x, status, steps, residual, products = run(plain, A, b, dtype=dtype)
        eps, size = np.finfo(dtype).eps, np.linalg.norm(b.astype(float))
        true = np.linalg.norm(b.astype(float) - A.astype(float) @ x.astype(float))
        rounding = 4 * eps * n * (np.linalg.norm(x.astype(float)) + size)
        assert abs(true - residual * size) <= rounding
        if status == Status.CONVERGED:
            assert true <= eps**0.75 * size + rounding
        else:
            assert condition * eps > 1e-9, f"a well-conditioned system ended {names(status)}"
        assert 1 <= steps < products

    check()


CERTAIN = [
    ("definite", 1.0, 0.0, "float64"),
    ("definite", 1e2, 0.0, "float64"),
    ("definite", 1e4, 0.0, "float64"),
    ("definite", 1e8, 0.1, "float64"),
    ("definite", 1e2, 0.0, "float32"),
    ("definite", 1e8, 0.1, "float32"),
    ("indefinite", 1e2, 0.0, "float64"),
    ("indefinite", 1e8, 0.0, "float64"),
    ("indefinite", 1e2, 0.0, "float32"),
]
"""Kinds whose status does not depend on rounding, with the damping."""


@pytest.mark.parametrize(("kind", "condition", "damping", "dtype"), CERTAIN)
@pytest.mark.parametrize("n", [3, 40, 150])
def test_status_and_accuracy_are_those_of_cg(kind, condition, damping, dtype, n):
    for seed in range(5):
        A = matrix(kind, n, condition, seed)[0].astype(dtype)
        b = np.random.default_rng(seed).standard_normal(n).astype(dtype)
        plain, one = both(A, b, damping)
        assert names(plain.status) == names(one.status)
        assert bool(plain.extra["indefinite"]) == bool(one.extra["indefinite"]) == (kind == "indefinite")
        if kind == "definite":
            H = A.astype(float) + damping * np.eye(n)
            exact, eps = np.linalg.solve(H, b.astype(float)), np.finfo(dtype).eps
            error = np.linalg.norm(one.value - exact) / np.linalg.norm(exact)
            assert error <= np.linalg.cond(H) * (eps**0.75 + 8 * eps * n**0.5)
            assert one.iterations <= 1.5 * plain.iterations + 1


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_a_semidefinite_matrix_is_never_called_indefinite(condition):
    """The scalar recurrence alone would call some of them so, for it drifts below zero."""
    for n in (10, 40, 80):
        for seed in range(8):
            A, Q, _ = matrix("singular", n, condition, seed)
            found = ONE(lambda p, A=A: A @ p, Q @ np.ones(n))
            assert names(found.status)[0] in ("SINGULAR", "STAGNATED", "MAX_ITER")


def test_a_consistent_singular_system_is_solved():
    for seed in range(8):
        A, Q, values = matrix("singular", 20, 100.0, seed)
        found = ONE(lambda p, A=A: A @ p, Q @ values)
        assert names(found.status) == ["CONVERGED"]
        np.testing.assert_allclose(found.value, Q @ (values > 0), rtol=0, atol=1e-9)  # entries of the order of one


def test_bad_problems_leave_the_others(plain):
    good = matrix("definite", 5, 1e3, 0)[0]
    bad = good.copy()
    bad[0, 0] = np.nan
    singular = np.diag([1.0, 1.0, 0.0, 1.0, 1.0])
    one = np.ones(5)
    nan = np.asarray([1.0, np.nan, 1.0, 1.0, 1.0])
    A = np.stack([good, -good, np.eye(5), bad, singular, good, good, good])
    b = np.stack([one, one, 0 * one, one, one, 1e-200 * one, nan, np.inf * one])
    with np.errstate(invalid="ignore"):  # inf / inf, in the scale of b
        x, status, steps, *_ = run(plain, A, b)
    expected = ["CONVERGED", "INDEFINITE", "CONVERGED", "NON_FINITE", "SINGULAR", "CONVERGED"]
    assert names(status) == [*expected, "NON_FINITE", "NON_FINITE"]
    assert steps[2] == 0
    assert np.all(x[2] == 0)
    assert not np.any(np.isfinite(x[6:]))
    alone = run(plain, good, one)
    np.testing.assert_allclose(x[0], alone[0], rtol=1e-9)
    np.testing.assert_allclose(x[5], 1e-200 * alone[0], rtol=1e-9)
    assert np.all(x[1] == 0)  # the first direction is refused


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_and_empty_right_hand_sides_cost_nothing(plain, dtype):
    for n in (0, 3):
        x, status, steps, residual, products = run(plain, np.eye(n), np.zeros(n), dtype=dtype)
        assert np.all(x == 0)
        assert names(status) == ["CONVERGED"]
        assert steps == residual == products == 0


@pytest.mark.parametrize(("dtype", "scales"), [("float64", (1e-300, 1e-30, 1e30, 1e300)), ("float32", (1e-30, 1e30))])
def test_units_are_immaterial(eager, dtype, scales):
    A, b = matrix("definite", 6, 100.0, 1)[0], np.arange(1.0, 7.0)
    x, rtol = run(eager, A, b, dtype=dtype)[0], 1e4 * np.finfo(dtype).eps
    for scale in scales:
        found = run(eager, A, scale * b, dtype=dtype)
        assert names(found[1]) == ["CONVERGED"]
        np.testing.assert_allclose(found[0] / scale, x, rtol=rtol)
    for scale in (1e-13, 1e13):  # of H
        np.testing.assert_allclose(run(eager, scale * A, b, dtype=dtype)[0] * scale, x, rtol=rtol)


def test_residual_and_status_at_every_limit():
    A, b, rtol, seen = matrix("definite", 20, 100.0, 0)[0], np.arange(1.0, 21.0), 1e-4, []
    for limit in range(1, 30):
        plain, one = both(A, b, rtol=rtol, max_iter=limit)
        assert names(one.status) == names(plain.status)
        assert one.iterations == plain.iterations <= limit
        if limit <= 12:  # as many steps as unknowns depend on rounding
            assert np.linalg.norm(one.value - plain.value) <= 1e-10 * np.linalg.norm(plain.value)
        true = np.linalg.norm(b - A @ one.value) / np.linalg.norm(b)
        assert one.residual == pytest.approx(true, rel=1e-6)
        seen += names(one.status)
    assert set(seen) == {"CONVERGED", "MAX_ITER"}


def test_a_slow_problem_is_given_up_after_its_trial():
    b = np.random.default_rng(0).standard_normal(80)
    for condition, expected in ((1e6, "STAGNATED"), (2.0, "CONVERGED")):
        A = matrix("definite", 80, condition, 0)[0]
        plain, one = (CG(one_reduction=c).tried(lambda p, A=A: A @ p, b, trial=12) for c in (False, True))
        assert names(one.status) == names(plain.status) == [expected]
        assert one.iterations == plain.iterations


def test_a_batch_is_its_problems():
    A = np.stack([matrix("definite", 12, c, k)[0] for k, c in enumerate([1.0, 10.0, 1e4, 1e2])])
    b = np.random.default_rng(0).standard_normal((4, 12))
    whole = ONE(lambda p: (A @ p[..., None])[..., 0], b)
    for k in range(4):
        alone = ONE(lambda p, k=k: A[k] @ p, b[k])
        np.testing.assert_allclose(whole.value[k], alone.value, rtol=1e-6)
        assert abs(whole.iterations[k] - alone.iterations) <= 2
        assert whole.extra["products"][k] >= whole.iterations[k] + 2


def test_options_that_it_does_not_take():
    with pytest.raises(dil.OptionError, match=r"takes no preconditioner=; take CG\(preconditioner=...\)"):
        CG(preconditioner=Jacobi(), one_reduction=True)
    with pytest.raises(dil.OptionError, match=r"takes no start x0=; take CG\(\)"):
        ONE(lambda p: p, np.ones(2), x0=np.ones(2))
    with pytest.raises(dil.OptionError, match=r"takes no start x0=.* such as CG\(\)"):
        WarmStart(ONE)
    with pytest.raises(dil.OptionError, match="one_reduction=1; expected True or False"):
        CG(one_reduction=1)


COUPLING = np.diag(np.full(7, 2.0)) - np.diag(np.ones(6), 1) - np.diag(np.ones(6), -1)


def spring(u, t):
    xp = array_namespace(u)
    ends = u[:1] ** 2 + u[-1:] ** 2
    return 0.5 * (xp.sum(t * u * u) + xp.sum((u[1:] - u[:-1]) ** 2) + xp.sum(ends)) - xp.sum(u)


def test_gradient_of_a_layer(engine):
    t, cotangent = np.linspace(0.5, 1.5, 7), np.cos(np.arange(7.0))
    H = COUPLING + np.diag(t)
    y = np.linalg.solve(H, np.ones(7))
    solved = engine.asarray(y)
    layer = dil.argmin(spring, lambda score, init, t: solved + 0.0 * t, linear_solver=ONE, init=lambda t: 0.0 * t)
    found, (gradient,) = engine.gradients(layer, [t], cotangent)
    np.testing.assert_allclose(found, y, rtol=1e-14)
    np.testing.assert_allclose(gradient, -np.linalg.solve(H, cotangent) * y, rtol=1e-10)


# --- messages ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import dil

place = NamedSharding(Mesh(np.asarray(jax.devices()), ("devices",)), PartitionSpec("devices"))
b, d = (jax.device_put(x, place) for x in (jnp.ones(64), jnp.linspace(1.0, 5.0, 64)))
for one in (False, True):
    solve = jax.jit(lambda d, b: dil.linear.CG(one_reduction=one)(lambda p: d * p, b).value)
    program = solve.lower(d, b).compile()
    assert len(jax.devices()) == 2 and np.allclose(program(d, b), 1 / d, rtol=1e-4)
    print(program.as_text(), "END")
"""


def reductions_in_loops(program):
    """Return the number of all-reduces in the body of each loop of an HLO program that has no loop within."""
    bodies = {m[1]: m[2] for m in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.M | re.S)}
    loops = [bodies[name] for name in re.findall(r" while\(.*?body=%?([\w.-]+)", program)]
    return [len(re.findall(r" all-reduce(?:-start)?\(", body)) for body in loops if " while(" not in body]


def test_reductions_of_a_step_on_jax():
    pytest.importorskip("jax", reason="jax is not installed")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    programs = done.stdout.split("END")[:2]
    assert [reductions_in_loops(program) for program in programs] == [[2], [1]]


def count_on_torch(rank, folder):
    """Count, in one of two processes, the collectives of solves that take 5 and 6 steps."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sent(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.counts = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.counts[str(func.overloadpacket.__name__)] += func.namespace in ("c10d", "_c10d_functional")
            return func(*args, **(kwargs or {}))

    def count(solver):
        layer = dil.argmin(lambda u, x: 0.5 * (d * u * u).sum() - (u * x).sum(), lambda f, init, x: x / d, **solver)
        with Sent() as sent:
            layer(x, init=torch.zeros_like(x)).sum().backward()
        return sent.counts["all_reduce"]

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    d, x = (
        distribute_tensor(torch.linspace(1.0, high, 64, dtype=torch.float64), mesh, [Shard(0)]) for high in (5.0, 2.0)
    )
    x.requires_grad_()
    found = {}
    for one in (False, True):
        solvers = [CG(one_reduction=one, max_iter=limit) for limit in (5, 6)]
        counts = [count({"linear_solver": solver, "on_failure": "ignore"}) for solver in solvers]
        found[one] = counts[1] - counts[0]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_reductions_of_a_step_on_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch is built without torch.distributed or gloo")
    torch.multiprocessing.spawn(count_on_torch, (str(tmp_path),), 2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [{False: 2, True: 1}] * 2
