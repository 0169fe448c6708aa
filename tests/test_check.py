"""check_gradients finds what is wrong, and nothing else."""

from __future__ import annotations

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


def test_float32(plain):
    handle = dil.backend(plain.backend, dtype="float32")
    assert dil.check_gradients(smooth, handle.asarray([0.3, 1.2])).ok


def test_trees():
    def fn(tree, scale):
        return {"out": tree["a"] * scale, "n": 3}

    assert dil.check_gradients(fn, {"a": np.asarray([1.0, 2.0]), "k": 4}, np.asarray(0.5)).ok
