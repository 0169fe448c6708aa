"""How often a solve reads from a device: only conditions and statuses, rarely, and never a vector."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil

SCALARS = ("__bool__", "__float__", "__int__", "__index__", "__complex__")
WHOLE = ("__array__", "__dlpack__", "to_device")


@pytest.fixture
def reads(monkeypatch):
    """Count what leaves device1 of array_api_strict: scalars, and sizes of what is copied."""
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    kind, counts = type(strict.zeros(1)), {"scalars": 0, "copied": []}

    def counted(name, real):
        def method(self, *args, **kwargs):
            if str(self.device) != str(strict.Device("CPU_DEVICE")):
                if name in SCALARS:
                    counts["scalars"] += 1
                else:
                    counts["copied"].append(self.size)
            return real(self, *args, **kwargs)

        return method

    for name in SCALARS + WHOLE:
        if hasattr(kind, name):
            monkeypatch.setattr(kind, name, counted(name, getattr(kind, name)))
    return counts


def system(n):
    """Return a handle on the device, a symmetric product whose CG takes many steps, and a right-hand side."""
    b = dil.backend("array_api_strict", device="device1", dtype="float64")
    scales = b.asarray(np.geomspace(1.0, 1e4, n))
    return b, dil.linear.Operator(lambda p: scales * p, lambda p: scales * p, symmetric=True), b.asarray(np.ones(n))


@pytest.mark.parametrize(
    "solver",
    [
        dil.linear.CG(),
        dil.linear.MINRES(),
        dil.linear.NormalCG(),
        dil.linear.CG(preconditioner=lambda r: r),
        dil.linear.CG(one_reduction=True),
    ],
    ids=["CG", "MINRES", "NormalCG", "flexible CG", "CG with one reduction"],
)
def test_a_solve_reads_its_condition_every_eighth_step(reads, solver):
    b, A, v = system(100)
    reads["scalars"] = 0
    found = solver(A, v)
    scalars, copied = reads["scalars"], list(reads["copied"])
    steps = int(b.to_numpy(found.iterations))
    assert steps > 64
    # a pass ends between two reads, and the passes themselves are counted by reads of their own
    assert scalars <= steps / 8 + 8, f"{scalars} reads in {steps} steps"
    assert not copied, f"arrays of sizes {copied} were copied from the device"


def test_a_backward_pass_copies_no_vector(reads):
    b, _, v = system(100)
    scales = b.asarray(np.geomspace(1.0, 100.0, 100))
    layer = dil.argmin(
        lambda u, t: 0.5 * array_namespace(u).sum(u * u * scales) - array_namespace(u).sum(u * t),
        lambda fun, init, t: t / scales,
        init=lambda t: 0.0 * t,
        linear_solver=dil.linear.CG(),
    )
    _, pull = dil.vjp(layer, v)
    reads["copied"].clear()
    (gradient,) = pull(v)
    assert all(size == 1 for size in reads["copied"]), f"arrays of sizes {reads['copied']} were copied"
    expected = 1.0 / np.geomspace(1.0, 100.0, 100)
    assert np.max(np.abs(b.to_numpy(gradient) - expected)) <= 1e-9 * np.max(expected)


def test_auto_reads_no_step_of_its_own(reads):
    """It asks for the pace, for each probe, and at the end of each turn, but not at each step."""
    n = 200
    b = dil.backend("array_api_strict", device="device1", dtype="float64")
    spectrum = b.asarray(np.concatenate([np.geomspace(1e2, 1e6, 30), np.linspace(1.0, 2.0, n - 30)]))
    v = np.random.default_rng(0).standard_normal(n)
    v = b.asarray(v / np.linalg.norm(v))

    def mirrored(p):
        return p - 2 * v * array_namespace(p).sum(v * p)

    A = dil.linear.Operator(lambda p: mirrored(spectrum * mirrored(p)), symmetric=True)
    reads["scalars"] = 0
    found = dil.linear.Auto(dense=0)(A, b.asarray(np.random.default_rng(1).standard_normal(n)))
    scalars, copied = reads["scalars"], list(reads["copied"])
    steps = int(b.to_numpy(found.iterations))
    assert steps > 64
    assert scalars <= steps / 8 + 48, f"{scalars} reads in {steps} steps"
    assert not copied, f"arrays of sizes {copied} were copied from the device"
