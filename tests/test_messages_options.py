"""Bad options, unknown backends and devices end in a message that says what was expected."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dil
from messages import (
    X,
    bowl,
    jax_,
    solved,
    torch_,
)

ROOT = Path(__file__).parents[1]


LAYER_OPTIONS = {
    "on_failure='rise'": (
        {"on_failure": "rise"},
        "on_failure='rise' is unknown; expected one of raise, warn, nan, ign",
    ),
    "on_failure=None": ({"on_failure": None}, "on_failure=None is unknown; expected one of raise, warn"),
    "batch_ndim=-1": ({"batch_ndim": -1}, "batch_ndim=-1; expected an integer >= 0"),
    "batch_ndim=1.0": ({"batch_ndim": 1.0}, "batch_ndim=1.0; expected an integer >= 0"),
    "linear_solver=3": ({"linear_solver": 3}, "linear_solver=3 of type int; expected a callable"),
    "linear_solver=CG": ({"linear_solver": dil.linear.CG}, "linear_solver=.*CG.*expected.*CG\\(\\)"),
    "solver=None": ({"solver": None}, "solver=None of type NoneType; expected a callable"),
    "solver=Newton": ({"solver": dil.solvers.Newton}, "solver=.*Newton.*expected.*Newton\\(\\)"),
    "score=None": ({"score": None}, "score=None of type NoneType; expected a callable"),
    "derivatives=3": ({"derivatives": 3}, r"derivatives=3; expected dil\.Derivatives\(gradient="),
}


@pytest.mark.parametrize("name", LAYER_OPTIONS)
def test_a_bad_option_of_a_layer(name):
    options, text = LAYER_OPTIONS[name]
    with pytest.raises(dil.OptionError, match=text):
        dil.argmin(**{"score": bowl, "solver": solved, **options})


@pytest.mark.parametrize(("product", "value"), [("gradient", None), ("hvp", 3), ("mixed", "w")])
def test_a_product_that_is_no_function(product, value):
    with pytest.raises(dil.OptionError, match=f"derivatives.{product}={value!r}; expected a callable"):
        dil.Derivatives(**{"gradient": bowl, product: value})


SOLVER_OPTIONS = [
    ("linear.CG", "damping", -1.0, "expected a number >= 0, in the units of the Hessian"),
    ("linear.CG", "damping", float("nan"), "expected a number >= 0"),
    ("linear.CG", "damping", float("inf"), "expected a number >= 0"),
    ("linear.CG", "damping", "small", "expected a number >= 0"),
    ("linear.CG", "damping", None, "expected a number >= 0"),
    ("linear.CG", "rtol", 0.0, "expected a number between 0 and 1, or None"),
    ("linear.CG", "rtol", 1.0, "expected a number between 0 and 1, or None"),
    ("linear.CG", "rtol", "small", "expected a number between 0 and 1, or None"),
    ("linear.CG", "max_iter", 0, "expected .*1, or None"),
    ("linear.CG", "max_iter", 2.5, "expected .*1, or None"),
    ("linear.CG", "max_iter", "many", "expected .*1, or None"),
    ("linear.Auto", "damping", -1.0, "expected a number >= 0"),
    ("linear.Auto", "rtol", 0.0, "expected a number between 0 and 1, or None"),
    ("linear.Auto", "max_iter", 0, "expected .*1, or None"),
    ("linear.Auto", "dense", -1, "expected a number of unknowns >= 0"),
    ("linear.Auto", "dense", 2.5, "expected a number of unknowns >= 0"),
    ("linear.Direct", "damping", -1.0, "expected a number >= 0"),
    ("linear.Direct", "damping", float("nan"), "expected a number >= 0"),
    *(
        (f"solvers.{solver}", name, value, "expected")
        for solver in ("LBFGS", "FixedPoint", "Anderson")
        for name, value in [("rtol", 0.0), ("max_iter", 0)]
    ),
    ("solvers.RandomShooting", "iterations", 0, "expected an integer > 0"),
    ("solvers.SciPy", "tol", 0.0, "expected a number > 0"),
    *(
        (f"solvers.{solver}", name, value, "expected")
        for solver in ("Newton", "GradientDescent")
        for name, value in [
            ("rtol", 0.0),
            ("rtol", -1.0),
            ("rtol", float("nan")),
            ("rtol", "small"),
            ("max_iter", 0),
            ("max_iter", None),
            ("max_iter", 2.5),
            ("max_iter", "many"),
        ]
    ),
    ("solvers.Newton", "damping", -1.0, "expected a number >= 0"),
    ("solvers.Newton", "equations", "gauss", "is unknown; expected one of hessian, normal"),
    ("solvers.GradientDescent", "step", 0.0, "expected a number > 0"),
    ("solvers.GradientDescent", "step", None, "expected a number > 0"),
]


@pytest.mark.parametrize(("solver", "name", "value", "text"), SOLVER_OPTIONS, ids=lambda x: str(x)[:20])
def test_a_bad_option_of_a_solver(solver, name, value, text):
    group, kind = solver.split(".")
    with pytest.raises(dil.OptionError, match=rf"{name}={value!r}.*{text}"):
        getattr(getattr(dil, group), kind)(**{name: value})


SCIPY_OPTIONS = {"method": [None, 3], "tol": [-1.0, "small"], "options": [3]}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in SCIPY_OPTIONS.items() for v in vs])
def test_a_bad_option_of_scipy(name, value):
    with pytest.raises(dil.OptionError, match=f"{name}={value!r}.*expected"):
        dil.solvers.SciPy(**{name: value})(bowl, np.zeros(2), X)


def test_a_method_that_scipy_does_not_know():
    with pytest.raises(ValueError, match="Unknown solver steepest"):
        dil.solvers.SciPy("steepest")(bowl, np.zeros(2), X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dil.argmin(bowl, solved, foo=1),
        lambda: dil.linear.CG(foo=1),
        lambda: dil.solvers.Newton(foo=1),
        lambda: dil.solvers.GradientDescent(foo=1),
        lambda: dil.solvers.SciPy(foo=1),
        lambda: dil.check_gradients(bowl, X, X, foo=1),
        lambda: dil.backend("numpy", foo=1),
    ],
)
def test_an_unknown_option(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        make()


def python(code, **environment):
    """Run a program of its own; return its exit status and the end of what it says."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_an_unknown_backend():
    with pytest.raises(
        dil.BackendError, match=r"there is no backend 'nunpy'; expected one of .*cupy, jax, numpy, torch"
    ):
        dil.backend("nunpy")


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_an_absent_backend_says_how_to_install_it():
    text = "'cupy' needs a package that cannot be imported .*; pip install cupy-cuda13x"
    with pytest.raises(dil.BackendError, match=text):
        dil.backend("cupy")
    (row,) = [b for b in dil.backends() if b.name == "cupy"]
    assert not row.usable
    assert "pip install cupy" in row.reason


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_backend_that_is_hidden_says_how_to_install_it(name):
    code, said = python(f"import sys; sys.modules[{name!r}] = None; import dil; dil.backend({name!r})")
    assert code == 1
    assert f"BackendError: the backend '{name}' needs a package that cannot be imported" in said
    assert f"pip install {name}" in said


def test_a_backend_whose_import_breaks_is_listed_with_its_reason(monkeypatch, tmp_path):
    (tmp_path / "broken_backend.py").write_text("raise OSError('libbroken.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    from dil._frameworks import registry as _registry

    targets = {"numpy": "dil_backends.numpy", "broken": "broken_backend"}
    monkeypatch.setattr(_registry, "_targets", lambda: targets)
    (row,) = [b for b in dil.backends() if b.name == "broken"]
    assert "libbroken.so" in row.reason


def test_the_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("DIL_BACKEND", "")
    assert dil.backend().name == "numpy"
    monkeypatch.setenv("DIL_BACKEND", "nunpy")
    assert dil.backend("numpy").name == "numpy"
    with pytest.raises(dil.BackendError, match=r"DIL_BACKEND.*'nunpy'|'nunpy'.*DIL_BACKEND"):
        dil.backend()


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array_api_strict"])
@pytest.mark.parametrize("device", ["cuda:7", "moon"])
def test_a_device_that_is_not_there(name, device):
    pytest.importorskip(name)
    with pytest.raises(dil.BackendError, match=device):
        dil.backend(name, device=device)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float63", "sum", 3], ids=str)
def test_a_dtype_that_is_none(name, dtype):
    pytest.importorskip(name)
    with pytest.raises(dil.BackendError, match=f"{dtype!r}.*try 'float32' or 'float64'"):
        dil.backend(name, dtype=dtype)


def test_a_dtype_of_another_library():
    torch = torch_()
    with pytest.raises(dil.BackendError, match="dtype"):
        dil.backend("torch", dtype=np.float32)
    with pytest.raises(dil.BackendError, match="dtype"):
        dil.backend("numpy", dtype=torch.float32)


def test_float64_of_jax_while_x64_is_off():
    jax_()
    code, said = python("import dil; dil.backend('jax', dtype='float64')", JAX_ENABLE_X64="0")
    assert code == 1
    assert "BackendError: JAX would narrow float64 to float32" in said
    assert 'jax.config.update("jax_enable_x64", True)' in said
