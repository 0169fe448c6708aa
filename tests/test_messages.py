"""What bad input of every kind ends in: a message (what was expected, what came, what to do) or a defined result."""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from engines import engines

X = np.asarray([1.0, 2.0])
V = np.asarray([1.0, 3.0])
ROOT = Path(__file__).parents[1]
NEWTON = dil.solvers.Newton()


@pytest.fixture(params=[e for e in engines() if ":" not in e.name and e.name != "jax"], ids=lambda e: e.name)
def eager(request):
    """Every backend that does not compile, so that tables of cases may be long."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def zeros(x, *rest, **others):
    return array_namespace(x).zeros_like(x)


def bowl(u, x):
    """1/2 ||u - x||^2, whose minimum is x."""
    return 0.5 * array_namespace(u).sum((u - x) ** 2)


def quartic(u, x):
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - x) ** 2) + 0.25 * xp.sum(u**4)


def solved(fun, init, x, *rest):
    return x * 1.0


def float32(engine, values):
    xp = engine.xp
    return xp.astype(engine.asarray(values), xp.float32)


def integers(engine, values):
    xp = engine.xp
    return xp.astype(engine.asarray(values), xp.int64)


def pulled(engine, layer, *args, cotangent=V):
    """Return the cotangents of the arguments, as NumPy arrays."""
    _, pull = dil.vjp(layer, *map(engine.asarray, args))
    return [None if g is None else engine.to_numpy(g) for g in pull(engine.asarray(cotangent))]


def jax_():
    return pytest.importorskip("jax", reason="JAX is not installed")


def torch_():
    return pytest.importorskip("torch", reason="torch is not installed")


def tensor(values, **options):
    torch = torch_()
    return torch.tensor(values, dtype=torch.float64, **options)


# --- what a score returns ---


def to_float32(value):
    xp = array_namespace(value)
    return xp.astype(value, xp.float32)


def to_int(value):
    xp = array_namespace(value)
    return xp.astype(value, xp.int64)


SCORES = {
    "vector": (lambda u, x: (u - x) ** 2, dil.ShapeError, r"returned shape \(2,\); expected \(\), .*sum over"),
    "one entry": (lambda u, x: bowl(u, x)[None], dil.ShapeError, r"returned shape \(1,\); expected \(\)"),
    "float": (lambda u, x: 0.5, dil.ShapeError, r"returned 0.5 of type float; expected an array of shape \(\)"),
    "int": (lambda u, x: 3, dil.ShapeError, r"returned 3 of type int; expected an array of shape \(\)"),
    "None": (lambda u, x: None, dil.ShapeError, r"returned None of type NoneType; expected an array"),
    "pair": (lambda u, x: (bowl(u, x), 0), dil.ShapeError, r"of type tuple; expected an array of shape \(\)"),
    "float32": (lambda u, x: to_float32(bowl(u, x)), dil.DTypeError, r"dtype .*float32.*; expected .*float64.*cast"),
    "int64": (lambda u, x: to_int(bowl(u, x)), dil.DTypeError, r"dtype .*int64; expected .*float64.*without casts"),
}


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_that_returns_something_else(plain, kind):
    score, error, text = SCORES[kind]
    with pytest.raises(error, match=text):
        dil.argmin(score, solved)(plain.asarray(X))


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_that_returns_something_else_to_a_solver(eager, kind):
    score, error, text = SCORES[kind]
    with pytest.raises(error, match=text):
        dil.argmin(score, NEWTON, init=zeros)(eager.asarray(X))


@pytest.mark.parametrize("solver", [NEWTON, dil.solvers.GradientDescent()], ids=lambda s: type(s).__name__)
def test_a_score_that_returns_a_float_to_a_solver_called_by_itself(eager, solver):
    with pytest.raises(dil.ShapeError, match="of type float; expected an array"):
        solver(lambda u: 0.5, eager.asarray(X))


def test_float_of_a_score_is_refused_by_the_tape(eager):
    if eager.backend == "torch":
        pytest.skip("float() of a tensor is a float, refused by its type above")
    layer = dil.argmin(lambda u, x: float(bowl(u, x)), NEWTON, init=zeros)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"float\(\) .* would cut the derivative; keep it in array"):
        layer(eager.asarray(X))


def test_a_batch_needs_a_number_for_each_problem(eager):
    layer = dil.argmin(bowl, solved, batch_ndim=1)
    with pytest.raises(dil.ShapeError, match=r"returned shape \(\); expected \(2,\), one number per problem"):
        layer(eager.asarray(np.ones((2, 3))))


# --- what a solver returns ---

RESULTS = {
    "shape": (lambda x: x[:1], dil.ShapeError, r"result of the solver 'solver' .*\(1,\).*init is .*\(2,\)"),
    "tree": (lambda x: {"a": x}, dil.ShapeError, r"result of the solver 'solver' .*\['a'\]"),
    "ints": (to_int, dil.DTypeError, r"result of the solver 'solver' has dtype .*int64; .*real floating, so cast"),
    "float32": (to_float32, dil.DTypeError, r"dtype .*float32, but argument 0 has .*float64; cast one"),
    "list": (lambda x: [0.5, 0.5], dil.DTypeError, r"'solver'\[0\] is 0.5 of type float; expected a float array"),
    "float": (lambda x: 0.5, dil.DTypeError, "is 0.5 of type float; expected a float array"),
    "None": (lambda x: None, dil.DTypeError, "is None of type NoneType; expected a float array"),
    "empty": (lambda x: {}, dil.ShapeError, "is an empty tree .* nothing to solve for; give at least one float array"),
    "no value": (lambda x: dil.Solution(None), dil.DTypeError, "is None of type NoneType; expected a float array"),
    "codes": (lambda x: dil.Solution(x, to_int(x * 0)), dil.ShapeError, r"status.*\(2,\).*expected.*\(\)"),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_solver_that_returns_something_else(eager, kind):
    value, error, text = RESULTS[kind]

    def solver(fun, init, x):
        return value(x)

    with pytest.raises(error, match=text):
        dil.argmin(bowl, solver)(eager.asarray(X), init=eager.asarray(X))


def test_a_status_that_is_none_of_ours(eager):
    layer = dil.argmin(bowl, lambda fun, init, x: dil.Solution(x, to_int(x[0] * 0) + 42))
    with pytest.warns(dil.ConvergenceWarning, match="42: a code that is no dil.Status"):
        layer(eager.asarray(X))


@pytest.mark.parametrize("kind", ["shape", "ints", "list", "None"])
def test_a_solver_that_returns_something_else_on_jax(kind):
    jnp, (value, error, text) = jax_().numpy, RESULTS[kind]

    def solver(fun, init, x):
        return value(x)

    with pytest.raises(error, match=text):
        dil.argmin(bowl, solver)(jnp.asarray(X), init=jnp.asarray(X))


def test_a_solver_may_give_its_status_as_a_member(plain):
    layer = dil.argmin(bowl, lambda fun, init, x: dil.Solution(x * 1.0, dil.Status.MAX_ITER))
    with pytest.warns(dil.ConvergenceWarning, match="MAX_ITER"):
        layer(plain.asarray(X))


def test_a_solver_that_returns_an_array_of_another_backend(plain):
    if plain.backend == "numpy":
        other, native = dil.backend("array_api_strict"), "array_api_strict"
    else:
        other, native = dil.backend("numpy"), "numpy"
    layer = dil.argmin(bowl, lambda fun, init, x: other.asarray(X))
    text = f"is an array of {native}, but the arguments are of {plain.backend}; convert it inside the solver"
    with pytest.raises(dil.BackendError, match=text):
        layer(plain.asarray(X))


def test_an_error_of_the_solver_reaches_the_caller_and_leaves_no_trace(eager):
    def solver(fun, init, x):
        raise RuntimeError("the simulator is off")

    with pytest.raises(RuntimeError, match="the simulator is off"):
        pulled(eager, dil.argmin(bowl, solver), X)
    np.testing.assert_allclose(pulled(eager, dil.argmin(bowl, solved), X)[0], V)


# --- the start ---


@pytest.mark.parametrize("name", ["Newton", "GradientDescent", "SciPy"])
def test_no_init_for_a_solver_that_needs_one(eager, name):
    layer = dil.argmin(bowl, getattr(dil.solvers, name)())
    with pytest.raises(dil.OptionError, match=rf"{name} needs a start; pass init= in the call, .*dil\.argmin\("):
        layer(eager.asarray(X))


def test_a_solver_that_needs_no_init_gets_none(eager):
    layer = dil.argmin(bowl, lambda fun, init, x: x * 1.0 if init is None else None)
    np.testing.assert_array_equal(eager.to_numpy(layer(eager.asarray(X))), X)


STARTS = {
    "ints": (lambda e: integers(e, X), r"init has dtype .*int64; .*so cast it"),
    "list": (lambda e: [0.0, 0.0], r"init\[0\] is 0.0 of type float; expected a float array"),
    "float32": (lambda e: float32(e, X), r"init.*float32.*float64|init.*float64.*float32"),
}


@pytest.mark.parametrize("solver", [NEWTON, solved], ids=["Newton", "closed form"])
@pytest.mark.parametrize("kind", STARTS)
def test_an_init_of_another_dtype(eager, kind, solver):
    make, text = STARTS[kind]
    with pytest.raises(dil.DTypeError, match=text):
        dil.argmin(bowl, solver)(eager.asarray(X), init=make(eager))


@pytest.mark.parametrize("wrong", ["a", "b"])
def test_an_init_of_another_tree_is_named(eager, wrong):
    layer = dil.argmin(lambda u, x: bowl(u["c"], x), lambda fun, init, x: {"c": x * 1.0})
    with pytest.raises(dil.ShapeError, match=rf"\['c'\].*\['{wrong}'\]"):
        layer(eager.asarray(X), init={wrong: eager.asarray(X)})


def test_an_init_without_the_dimensions_of_the_batch(eager):
    layer = dil.argmin(bowl, NEWTON, batch_ndim=2, init=zeros)
    with pytest.raises(dil.ShapeError, match=r"init have shapes \(2,\); with batch_ndim=2 their first 2 dimensions"):
        layer(eager.asarray(X))


# --- dtypes and backends of the arguments ---


def test_arguments_of_two_dtypes(plain):
    layer = dil.argmin(lambda u, x, c: bowl(u, x), solved)
    text = r"argument 0 has dtype .*float64, but argument 1\['c'\] has .*float32; cast them to one dtype"
    with pytest.raises(dil.DTypeError, match=text):
        layer(plain.asarray(X), {"c": float32(plain, X)})


def test_a_keyword_argument_of_another_dtype_is_named(eager):
    layer = dil.argmin(lambda u, x, c: bowl(u, x), lambda fun, init, x, c: x)
    with pytest.raises(dil.DTypeError, match=r"argument c has .*float32; cast"):
        layer(eager.asarray(X), c=float32(eager, X))


@pytest.mark.parametrize("names", [("numpy", "torch"), ("torch", "jax"), ("jax", "numpy")], ids="-".join)
def test_arguments_of_two_backends(names):
    first, second = (pytest.importorskip(name) and dil.backend(name).asarray(X) for name in names)
    layer = dil.argmin(lambda u, x, c: bowl(u, x), solved)
    text = f"two backends: argument 0 is of {names[0]}, argument 1 is of {names[1]}; convert one of them"
    with pytest.raises(dil.BackendError, match=text):
        layer(first, second)
    with pytest.raises(dil.BackendError, match=f"argument 0 is of {names[0]}, init is of {names[1]}; convert"):
        dil.argmin(bowl, solved)(first, init=second)
    with pytest.raises(dil.BackendError, match=f"argument 0 is of {names[0]}, argument 1 is of {names[1]}"):
        dil.vjp(lambda a, b: a, first, second)


@pytest.mark.parametrize("args", [(), (1.0,), ([1.0, 2.0], None, "text")], ids=str)
def test_no_array_at_all(args):
    text = "'bowl' got no array, so there is nothing that says which backend.*pass at least one array"
    with pytest.raises(dil.BackendError, match=text):
        dil.argmin(bowl, solved)(*args)
    with pytest.raises(dil.BackendError, match="the function to differentiate got no array"):
        dil.vjp(lambda *xs: xs, *args)


def complex_layer():
    def score(u, x, z):
        xp = array_namespace(u)
        return bowl(u, x * xp.abs(z))

    return dil.argmin(score, lambda fun, init, x, z: x * array_namespace(x).abs(z))


def test_a_complex_argument_has_no_gradient_on_torch_and_says_so():
    torch = torch_()
    z = torch.tensor([1.0 + 1.0j, 2.0], dtype=torch.complex128, requires_grad=True)
    with pytest.raises(dil.DilError, match="complex"):
        complex_layer()(tensor([1.0, 2.0]), z).sum().backward()


def test_a_complex_argument_has_no_gradient_on_jax_and_says_so():
    jax = jax_()
    z = jax.numpy.asarray([1.0 + 1.0j, 2.0])
    with pytest.raises(dil.DilError, match="complex"):
        jax.grad(lambda z: complex_layer()(jax.numpy.asarray(X), z).sum())(z)


def test_a_random_key_of_jax_is_carried_along():
    jax = jax_()
    layer = dil.argmin(lambda u, x, key: bowl(u, x), solved)
    np.testing.assert_array_equal(layer(jax.numpy.asarray(X), jax.random.key(0)), X)


# --- options ---

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


# --- backends ---


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


# --- trees, integers and shapes of the unknown ---

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass(frozen=True)
class Box:
    a: object
    b: object


TREES = {
    "dict": (lambda a, b: {"b": b, "a": a}, lambda t: (t["a"], t["b"])),
    "list": (lambda a, b: [a, b], tuple),
    "tuple": (lambda a, b: (a, (b,)), lambda t: (t[0], t[1][0])),
    "namedtuple": (Pair, tuple),
    "dataclass": (Box, lambda t: (t.a, t.b)),
}


def tree_layer(make, take):
    """The minimum of 1/2 ||a - x||^2 + 1/2 (b - c)^2 with unknown (a, b) and argument (x, c)."""

    def score(u, p):
        (a, b), (x, c) = take(u), take(p)
        return bowl(a, x) + 0.5 * (b - c) ** 2

    def solver(fun, init, p):
        x, c = take(p)
        return make(x * 1.0, c * 1.0)

    return dil.argmin(score, solver)


@pytest.mark.parametrize("kind", TREES)
def test_trees_as_unknown_and_as_argument(eager, kind):
    make, take = TREES[kind]
    argument = make(eager.asarray(X), eager.asarray(3.0))
    y, pull = dil.vjp(tree_layer(make, take), argument)
    assert type(y) is type(argument)
    (found,) = pull(make(eager.asarray(V), eager.asarray(5.0)))
    assert type(found) is type(argument)
    np.testing.assert_allclose(eager.to_numpy(take(found)[0]), V)
    np.testing.assert_allclose(eager.to_numpy(take(found)[1]), 5.0)


def test_trees_on_jax():
    jnp = jax_().numpy
    make, take = TREES["namedtuple"]
    _, pull = dil.vjp(tree_layer(make, take), make(jnp.asarray(X), jnp.asarray(3.0)))
    (found,) = pull(make(jnp.asarray(V), jnp.asarray(5.0)))
    np.testing.assert_allclose(found.a, V)


@pytest.mark.parametrize("empty", [{}, [], (), {"a": []}], ids=str)
def test_an_empty_tree_as_unknown(eager, empty):
    layer = dil.argmin(bowl, lambda fun, init, x: empty)
    with pytest.raises(dil.ShapeError, match=r"is an empty tree .*; give at least one float array"):
        layer(eager.asarray(X))


@pytest.mark.parametrize("name", ["Newton", "GradientDescent", "SciPy"])
def test_an_empty_array_as_unknown(eager, name):
    layer = dil.argmin(bowl, getattr(dil.solvers, name)(), init=zeros)
    x = eager.asarray(np.zeros(0))
    y, pull = dil.vjp(layer, x)
    assert tuple(y.shape) == tuple(pull(x)[0].shape) == (0,)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_a_batch_without_problems_or_without_unknowns(eager, shape):
    layer = dil.argmin(lambda u, x: array_namespace(u).sum((u - x) ** 2, axis=-1), NEWTON, init=zeros, batch_ndim=1)
    x = eager.asarray(np.zeros(shape))
    y, pull = dil.vjp(layer, x)
    assert tuple(y.shape) == tuple(pull(x)[0].shape) == shape


def test_a_scalar_unknown_has_a_gradient(plain):
    layer = dil.argmin(lambda u, x: 0.5 * (u - 2.0 * x) ** 2, lambda fun, init, x: 2.0 * x)
    y, (g,) = plain.gradients(layer, (3.0,), 5.0)
    assert (y.shape, float(y), float(g)) == ((), 6.0, 10.0)


def scaled_layer():
    def score(u, x, k):
        return bowl(u, x * array_namespace(u).astype(k, u.dtype))

    return dil.argmin(score, lambda fun, init, x, k: x * array_namespace(x).astype(k, x.dtype))


def test_integer_leaves_are_carried_along_without_a_gradient(plain):
    x, k = plain.asarray(X), integers(plain, [2.0, 3.0])
    _, pull = dil.vjp(scaled_layer(), x, k)
    gx, gk = pull(plain.asarray(V))
    np.testing.assert_allclose(plain.to_numpy(gx), V * [2.0, 3.0])
    assert gk is None


def test_integer_leaves_have_float0_gradients_on_jax():
    jax = jax_()
    x, k = jax.numpy.asarray(X), jax.numpy.asarray([2, 3])
    gradient = jax.grad(lambda x, k: scaled_layer()(x, k).sum(), argnums=(0, 1), allow_int=True)
    gx, gk = gradient(x, k)
    np.testing.assert_allclose(gx, [2.0, 3.0])
    assert gk.dtype == jax.dtypes.float0


def test_keyword_arguments_have_gradients(plain):
    layer = dil.argmin(lambda u, x, c: bowl(u, c * x), lambda fun, init, x, c: c * x)
    gx, gc = pulled(plain, lambda x, c: layer(x, c=c), X, 2.0)
    np.testing.assert_allclose(gx, 2.0 * V)
    np.testing.assert_allclose(gc, (V * X).sum())


def test_python_numbers_and_strings_are_carried_along(eager):
    layer = dil.argmin(lambda u, x, k, how: bowl(u, k * x), lambda fun, init, x, k, how: k * x)
    (g,) = pulled(eager, lambda x: layer(x, 2.0, how="now"), X)
    np.testing.assert_allclose(g, 2.0 * V)


# --- captured parameters ---

CAPTURED = "captured by a? ?closure.*[Pp]ass it"


def closure(solver=solved, **options):
    """A layer as a function of t, which its score holds and its arguments do not."""

    def fn(t, x):
        return array_namespace(x).sum(dil.argmin(lambda u, x: bowl(u, t * x), solver, **options)(x))

    return fn


@pytest.mark.parametrize("solver", [solved, NEWTON], ids=["closed form", "Newton"])
def test_a_captured_parameter_under_dil_grad(plain, solver):
    with pytest.raises(dil.CapturedError, match=CAPTURED):
        dil.grad(closure(solver, init=zeros))(plain.asarray(2.0), plain.asarray(X))


def test_a_captured_parameter_that_is_not_differentiated(plain):
    """The other argument is: here the captured one is a constant, which it may be."""
    found = dil.grad(closure(NEWTON, init=zeros), argnums=1)(plain.asarray(2.0), plain.asarray(X))
    np.testing.assert_allclose(plain.to_numpy(found), [2.0, 2.0])


@pytest.mark.parametrize("place", ["solver", "init"])
def test_what_a_solver_or_an_init_captures_needs_no_gradient_or_is_refused(eager, place):
    """Neither can change the minimum: either an error, or the right gradient, zero."""

    def fn(t, x):
        solver = (lambda fun, init, x: x + 0.0 * t) if place == "solver" else NEWTON
        layer = dil.argmin(bowl, solver, init=lambda x: 0.0 * x + t)
        return array_namespace(x).sum(layer(x))

    try:
        gradient = dil.grad(fn)(eager.asarray(2.0), eager.asarray(X))
    except dil.CapturedError:
        return
    assert float(gradient) == 0.0


def test_a_captured_parameter_of_a_given_gradient(eager):
    def fn(t, x):
        given = dil.Derivatives(gradient=lambda u, x: u - t * x)
        layer = dil.argmin(bowl, lambda fun, init, x: x * 2.0, derivatives=given)
        return array_namespace(x).sum(layer(x))

    with pytest.raises(dil.CapturedError, match=CAPTURED):
        dil.grad(fn)(eager.asarray(2.0), eager.asarray(X))


@pytest.mark.parametrize("solver", [solved, NEWTON], ids=["closed form", "Newton"])
class TestCapturedOnTorch:
    def test_under_backward(self, solver):
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            closure(solver, init=zeros)(tensor(2.0, requires_grad=True), tensor([1.0, 2.0]))

    def test_a_tensor_that_is_no_leaf(self, solver):
        t = 2.0 * tensor(1.0, requires_grad=True)
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            closure(solver, init=zeros)(t, tensor([1.0, 2.0], requires_grad=True))

    def test_under_torch_func(self, solver):
        torch = torch_()
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            torch.func.grad(closure(solver, init=zeros))(tensor(2.0), tensor([1.0, 2.0]))

    def test_under_forward_mode(self, solver):
        torch = torch_()
        x = tensor([1.0, 2.0])
        with pytest.raises(dil.CapturedError, match=CAPTURED):
            torch.func.jvp(lambda t: closure(solver, init=zeros)(t, x), (tensor(2.0),), (tensor(1.0),))

    def test_under_no_grad_it_is_fine(self, solver):
        torch = torch_()
        with torch.no_grad():
            closure(NEWTON, init=zeros)(tensor(2.0, requires_grad=True), tensor([1.0, 2.0]))


class TestModuleOnTorch:
    @pytest.fixture
    def module(self):
        torch = torch_()

        class Energy(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(tensor([1.0, 2.0]))

            def forward(self, u, x):
                return bowl(u, x) + 0.5 * (self.w * u**2).sum()

        return Energy()

    def layer(self, module):
        return dil.argmin(module, NEWTON, init=zeros)

    def test_its_parameters_are_refused(self, module):
        with pytest.raises(dil.CapturedError, match=r"a parameter of a module.*pass it as an argument, or detach it"):
            self.layer(module)(tensor([1.0, 2.0], requires_grad=True))

    def test_under_no_grad_they_are_fine(self, module):
        with torch_().no_grad():
            y = self.layer(module)(tensor([1.0, 2.0]))
        np.testing.assert_allclose(y, [1.0 / 2.0, 2.0 / 3.0], rtol=1e-9)

    def test_frozen_parameters_are_fine(self, module):
        x = tensor([1.0, 2.0], requires_grad=True)
        self.layer(module.requires_grad_(False))(x).sum().backward()
        np.testing.assert_allclose(x.grad, [1.0 / 2.0, 1.0 / 3.0], rtol=1e-9)

    def test_passed_as_an_argument_they_get_their_gradient(self, module):
        call = torch_().func.functional_call
        layer = dil.argmin(lambda u, x, p: call(module, p, (u, x)), NEWTON, init=zeros)
        layer(tensor([1.0, 2.0]), dict(module.named_parameters())).sum().backward()
        np.testing.assert_allclose(module.w.grad, [-1.0 / 4.0, -2.0 / 9.0], rtol=1e-9)

    def test_under_torch_func_grad(self, module):
        call = torch_().func.functional_call

        def loss(p):
            return dil.argmin(lambda u, x: call(module, p, (u, x)), NEWTON, init=zeros)(tensor([1.0, 2.0])).sum()

        with pytest.raises(dil.CapturedError, match=CAPTURED):
            torch_().func.grad(loss)(dict(module.named_parameters()))


@pytest.mark.parametrize("solver", [solved, NEWTON], ids=["closed form", "Newton"])
@pytest.mark.parametrize("order", ["grad", "jit of grad", "grad of jit", "jvp"])
def test_a_captured_parameter_on_jax(solver, order):
    jax = jax_()
    t, x = jax.numpy.asarray(2.0), jax.numpy.asarray(X)
    fn = closure(solver, init=zeros)
    transformed = {
        "grad": jax.grad(fn),
        "jit of grad": jax.jit(jax.grad(fn)),
        "grad of jit": jax.grad(jax.jit(fn)),
        "jvp": lambda t, x: jax.jvp(lambda t: fn(t, x), (t,), (t,)),
    }
    with pytest.raises(dil.CapturedError, match=CAPTURED):
        transformed[order](t, x)


def test_a_captured_tracer_that_is_not_differentiated_on_jax():
    jax = jax_()
    t, x = jax.numpy.asarray(2.0), jax.numpy.asarray(X)
    found = jax.jit(jax.grad(closure(NEWTON, init=zeros), argnums=1))(t, x)
    np.testing.assert_allclose(found, [2.0, 2.0])


# --- how stationary the solution is ---

SCALES = [1e-6, 1e-3, 1.0, 1e3, 1e6]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("solver", [NEWTON, dil.solvers.GradientDescent()], ids=lambda s: type(s).__name__)
def test_no_false_alarm_over_scales_of_the_unknown(eager, solver, scale):
    """A warning is an error here."""
    (g,) = pulled(eager, dil.argmin(quartic, solver, init=zeros), scale * X)
    assert np.isfinite(g).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("solver", [NEWTON, dil.solvers.GradientDescent()], ids=lambda s: type(s).__name__)
def test_no_false_alarm_over_scales_of_the_score(eager, solver, scale):
    layer = dil.argmin(lambda u, x: scale * quartic(u, x), solver, init=zeros)
    np.testing.assert_allclose(pulled(eager, layer, X)[0][1], V[1] / 4.0, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_a_solution_that_is_half_off_is_told(eager, scale):
    layer = dil.argmin(bowl, lambda fun, init, x: 1.5 * x)
    with pytest.warns(dil.ConvergenceWarning, match="backward solve: NOT_STATIONARY: .*run the forward solver"):
        pulled(eager, layer, scale * X)


def test_the_measure_of_stationarity_is_one_plus_the_size_of_u(eager):
    """As documented: what is within 1.2e-4 of 1 + ||u|| counts, however small u is."""
    pulled(eager, dil.argmin(bowl, lambda fun, init, x: x + 1e-5), X)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        pulled(eager, dil.argmin(bowl, lambda fun, init, x: x + 1e-2), X)


def half_off(fun, init, x):
    return 1.5 * x


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_not_stationary_is_told_whatever_the_size_of_the_cotangent(name, dtype, scale):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype=dtype)
    _, pull = dil.vjp(dil.argmin(bowl, half_off), handle.asarray(X))
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        pull(handle.asarray(scale * V))


# --- right-hand sides and Hessians of every kind ---


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
def test_tiny_and_huge_cotangents_lose_nothing(name, dtype, scale):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype=dtype)
    _, pull = dil.vjp(dil.argmin(quartic, NEWTON, init=zeros), handle.asarray(X))
    unit, scaled = (handle.to_numpy(pull(handle.asarray(s * V))[0]) for s in (1.0, scale))
    tolerance = 10 * np.finfo(dtype).eps ** 0.75
    np.testing.assert_allclose(scaled.astype("float64") / scale, unit, rtol=tolerance)


def test_tiny_cotangents_lose_nothing_on_jax():
    jax = jax_()
    x = jax.numpy.asarray(X, dtype="float32")
    _, pull = dil.vjp(dil.argmin(quartic, NEWTON, init=zeros), x)
    np.testing.assert_allclose(pull(1e-30 * (x / x))[0] / 1e-30, pull(x / x)[0], rtol=1e-4)


@dataclasses.dataclass
class Counting:
    """CG that counts its products with the Hessian."""

    products: int = 0

    def __call__(self, matvec, b, /, *, loop):
        def counted(p):
            self.products += 1
            return matvec(p)

        return dil.linear.CG()(counted, b, loop=loop)


def test_a_zero_cotangent_costs_no_product_and_gives_exact_zeros(eager):
    counting = Counting()
    layer = dil.argmin(quartic, NEWTON, init=zeros, linear_solver=counting)
    (g,) = pulled(eager, layer, X, cotangent=[0.0, 0.0])
    assert counting.products == 0
    np.testing.assert_array_equal(g, [0.0, 0.0])


def test_a_zero_right_hand_side_of_cg(plain):
    found = dil.linear.CG()(lambda p: 2.0 * p, plain.asarray([[0.0, 0.0], [1.0, 0.0]]))
    assert plain.to_numpy(found.iterations).tolist() == [0, 1]
    np.testing.assert_array_equal(plain.to_numpy(found.value), [[0.0, 0.0], [0.5, 0.0]])


def weighted(*h, linear_solver=None):
    """1/2 sum h (u - x)^2, with Hessian diag(h), solved by u = x."""

    def score(u, x):
        return 0.5 * sum(k * (u[i] - x[i]) ** 2 for i, k in enumerate(h))

    return dil.argmin(score, solved, on_failure="raise", linear_solver=linear_solver)


def first_only(u, x):
    return 0.5 * (u[0] - x[0]) ** 2


def constant(u, x):
    return array_namespace(x).sum(x)


CONSISTENT = {
    "singular": (dil.argmin(first_only, solved), [2.0, 0.0]),
    "indefinite": (weighted(1.0, -1.0, linear_solver=dil.linear.CG()), [2.0, 0.0]),
    "a saddle point that is asked for": (weighted(1.0, -1.0, linear_solver=dil.linear.MINRES()), [2.0, 3.0]),
    "no dependence": (dil.argmin(constant, solved), [0.0, 0.0]),
}


@pytest.mark.parametrize("kind", CONSISTENT)
def test_a_cotangent_that_does_not_meet_the_defect_of_the_hessian(plain, kind):
    layer, cotangent = CONSISTENT[kind]
    (g,) = pulled(plain, layer, X, cotangent=cotangent)
    np.testing.assert_allclose(g, cotangent)


DEFECTS = {
    "singular": (dil.argmin(first_only, solved, on_failure="raise"), [0.0, 1.0], "SINGULAR"),
    "singular, in part": (dil.argmin(first_only, solved, on_failure="raise"), [1.0, 1.0], "SINGULAR"),
    "zero": (dil.argmin(constant, solved, on_failure="raise"), [1.0, 0.0], "SINGULAR"),
    "nearly singular": (weighted(1.0, 1e-18), [1.0, 1.0], "SINGULAR"),
    "negative": (weighted(1.0, -1.0), [0.0, 1.0], "NOT_MINIMUM"),
    "saddle": (weighted(1.0, -1.0), [2.0, 1.0], "NOT_MINIMUM"),
    "maximum": (weighted(-1.0, -1.0), [1.0, 0.0], "NOT_MINIMUM"),
    "negative, large": (weighted(1.0, -1.0, linear_solver=dil.linear.Auto(dense=0)), [0.0, 1.0], "NOT_MINIMUM"),
    "negative, by CG": (weighted(1.0, -1.0, linear_solver=dil.linear.CG()), [0.0, 1.0], "INDEFINITE"),
    "saddle, by CG": (weighted(1.0, -1.0, linear_solver=dil.linear.CG()), [2.0, 1.0], "INDEFINITE"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_hessian_that_is_not_positive_definite(eager, kind):
    layer, cotangent, status = DEFECTS[kind]
    with pytest.raises(dil.ConvergenceError, match=f"backward solve: {status}: "):
        pulled(eager, layer, X, cotangent=cotangent)


def test_a_saddle_seen_along_a_direction_of_no_curvature_is_not_called_converged(eager):
    with pytest.raises(dil.ConvergenceError, match=r"backward solve: NOT_MINIMUM"):
        pulled(eager, weighted(1.0, -1.0), X, cotangent=[1.0, 1.0])


def bowls(u, x, h):
    return array_namespace(u).sum(0.5 * h * (u - x) ** 2 + 0.25 * h * u**4, axis=-1)


BAD = {"NaN": (np.nan, 1.0), "indefinite": (2.0, -1.0), "singular": (2.0, 0.0)}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_problem_leaves_the_others_right(plain, kind):
    """The minimiser x of row k solves x + x^3 = c; the bad row is the second."""
    draw = np.random.default_rng(0)
    y, h, v = draw.standard_normal((4, 2)), draw.uniform(1.0, 2.0, (4, 2)), draw.standard_normal((4, 2))
    if kind == "NaN":
        y[1, 0] = np.nan
    h[1] *= 1.0 if kind == "NaN" else BAD[kind]
    layer = dil.argmin(bowls, lambda fun, init, x, h: 1.0 * init, batch_ndim=1, on_failure="nan")
    start = plain.asarray(y)
    found, (gx, _) = plain.gradients(lambda x, h: layer(x, h, init=start), (y + y**3, h), v)
    good = [0, 2, 3]
    np.testing.assert_allclose(found[good], y[good], rtol=1e-12)
    np.testing.assert_allclose(gx[good], (v / (1.0 + 3.0 * y**2))[good], rtol=1e-12)
    assert np.isnan(gx[1]).any()


def test_one_bad_problem_leaves_the_solver_of_the_others_alone(eager):
    x = np.asarray([[1.0, 2.0], [np.nan, 1.0], [3.0, 4.0]])
    layer = dil.argmin(bowls, NEWTON, init=zeros, batch_ndim=1)
    h = np.ones((3, 2))
    spoilt = eager.to_numpy(layer.solve(eager.asarray(x), eager.asarray(h)).value)
    alone = eager.to_numpy(layer.solve(eager.asarray(x[[0, 2]]), eager.asarray(h[:2])).value)
    np.testing.assert_allclose(spoilt[[0, 2]], alone, rtol=1e-12)


# --- the transforms ---


def two(x):
    return {"a": 2.0 * x, "b": 3.0 * x}


COTANGENTS = {
    "shape": (lambda e: e.asarray(np.ones(3)), r"shape \(3,\) .*; expected an array of shape \(2,\)"),
    "dtype": (lambda e: float32(e, X), r"dtype .*float32.*; expected .*float64"),
    "float": (lambda e: 1.0, r"is 1.0 of type float; expected an array of shape \(2,\)"),
    "None": (lambda e: None, r"is None of type NoneType; expected an array of shape \(2,\)"),
    "list": (lambda e: [1.0, 1.0], r"has leaves \('\[0\]', '\[1\]'\); expected"),
}


@pytest.mark.parametrize("kind", COTANGENTS)
def test_a_cotangent_unlike_the_output(plain, kind):
    make, text = COTANGENTS[kind]
    _, pull = dil.vjp(lambda x: 2.0 * x, plain.asarray(X))
    with pytest.raises(dil.ShapeError, match=text):
        pull(make(plain))


@pytest.mark.parametrize("keys", [("b", "c"), ("a", "c")])
def test_a_cotangent_with_other_keys(eager, keys):
    _, pull = dil.vjp(two, eager.asarray(X))
    with pytest.raises(dil.ShapeError, match=rf"\['{keys[1]}'\].*; expected .*\['b'\]"):
        pull({key: eager.asarray(V) for key in keys})


def test_a_cotangent_of_another_backend():
    jnp = jax_().numpy
    _, pull = dil.vjp(lambda x: 2.0 * x, X)
    with pytest.raises(dil.DilError, match=r"jax.*numpy|numpy.*jax"):
        pull(jnp.asarray(V))


TANGENTS = {
    "count": (lambda e: (), r"1 arguments and 0 tangents; give one tangent \(or None\) for each"),
    "shape": (lambda e: (e.asarray(np.ones(3)),), r"shape \(3,\) .*; expected .*shape \(2,\) .*like its argument"),
    "dtype": (lambda e: (float32(e, X),), r"dtype .*float32.*; expected .*float64"),
    "float": (lambda e: (1.0,), r"is 1.0 of type float; expected an array of shape \(2,\)"),
    "tree": (lambda e: ([e.asarray(X)] * 2,), "a tangent has leaves .*; expected .*, like its argument"),
}


@pytest.mark.parametrize("kind", TANGENTS)
def test_tangents_unlike_the_arguments(plain, kind):
    make, text = TANGENTS[kind]
    with pytest.raises(dil.ShapeError, match=text):
        dil.jvp(lambda x: 2.0 * x, (plain.asarray(X),), make(plain))


def test_a_tangent_with_other_keys(eager):
    x = eager.asarray(X)
    with pytest.raises(dil.ShapeError, match=r"\['c'\].*expected .*\['a'\]"):
        dil.jvp(lambda d: d["a"] + 2.0 * d["b"], ({"a": x, "b": x},), ({"b": x, "c": x},))


@pytest.mark.parametrize("n", [1, 2])
def test_jvp_wants_sequences_of_arguments(eager, n):
    x = eager.asarray(np.ones(n))
    with pytest.raises(dil.DilError, match=r"expected a sequence|tuple"):
        dil.jvp(lambda x: 2.0 * x, x, x)


def test_a_tangent_of_none_is_zero(eager):
    _, moved = dil.jvp(lambda x: 2.0 * x, (eager.asarray(X),), (None,))
    np.testing.assert_array_equal(eager.to_numpy(moved), [0.0, 0.0])


VALUES = {
    "vector": (lambda x: 2.0 * x, r"one number, an array of shape \(\); .*shape \(2,\) .*reduce it, or use dil.vjp"),
    "float": (lambda x: 3.0, "returned 3.0 of type float; reduce it"),
    "dict": (lambda x: {"v": array_namespace(x).sum(x)}, "of type dict; reduce it"),
    "int": (lambda x: to_int(array_namespace(x).sum(x)), "dtype .*int64"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_grad_of_a_function_that_returns_no_number(plain, kind):
    fn, text = VALUES[kind]
    with pytest.raises(dil.DilError, match=text):
        dil.grad(fn)(plain.asarray(X))


def inner(a, b):
    return array_namespace(a).sum(a * b)


@pytest.mark.parametrize("argnums", [2, -3, (0, 5)], ids=str)
def test_argnums_out_of_range(eager, argnums):
    with pytest.raises(dil.OptionError, match=r"argnums=.*, but the function was called with 2 positional arguments"):
        dil.grad(inner, argnums)(eager.asarray(X), eager.asarray(V))


@pytest.mark.parametrize("argnums", [1.0, "a", None, (), (0, 0)], ids=str)
def test_argnums_that_are_none(eager, argnums):
    with pytest.raises(dil.OptionError, match="argnums="):
        dil.grad(inner, argnums)(eager.asarray(X), eager.asarray(V))


def test_grad_of_an_integer_array(eager):
    with pytest.raises(dil.DilError, match="int64"):
        dil.grad(lambda a: array_namespace(a).sum(a))(integers(eager, X))


# --- derivatives given by hand ---


def given(**parts):
    return dil.argmin(bowl, solved, derivatives=dil.Derivatives(**{"gradient": lambda u, x: u - x, **parts}))


RIGHT = {
    "gradient only": given(),
    "hvp without mixed": given(hvp=lambda u, v, x: v),
    "mixed without hvp": given(mixed=lambda u, w, x: (-w,)),
    "both": given(hvp=lambda u, v, x: v, mixed=lambda u, w, x: (-w,)),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_derivatives_given_in_part(eager, kind):
    np.testing.assert_allclose(pulled(eager, RIGHT[kind], X)[0], V)


@pytest.mark.parametrize("kind", ["gradient only", "hvp without mixed"])
def test_derivatives_given_in_part_on_jax(kind):
    jax = jax_()
    found = jax.grad(lambda x: (RIGHT[kind](x) * V).sum())(jax.numpy.asarray(X))
    np.testing.assert_allclose(found, V)


def hvp(u, v, x):
    return v


WRONG = {
    "gradient shape": (
        given(gradient=lambda u, x: u[:1]),
        r"derivatives.gradient returned \(1,\) of .*; expected \(2,\) of .*like the unknown",
    ),
    "gradient tree": (given(gradient=lambda u, x: {"a": u}), r"derivatives.gradient returned \['a'\] \(2,\)"),
    "gradient float": (given(gradient=lambda u, x: 1.0), "derivatives.gradient is 1.0 of type float; expected"),
    "gradient dtype": (given(gradient=lambda u, x: to_float32(u)), "float32; expected .*float64"),
    "hvp shape": (given(hvp=lambda u, v, x: v[:1]), r"derivatives.hvp returned \(1,\)"),
    "hvp None": (given(hvp=lambda u, v, x: None), "derivatives.hvp is None of type NoneType; expected"),
    "mixed array": (given(hvp=hvp, mixed=lambda u, w, x: -w), "expected a tuple of 1 entries, one per positional arg"),
    "mixed count": (given(hvp=hvp, mixed=lambda u, w, x: (w, w)), "expected a tuple of 1 entries"),
    "mixed shape": (
        given(hvp=hvp, mixed=lambda u, w, x: (w[:1],)),
        r"derivatives.mixed returned arrays of shapes \[\(\(1,\).*shapes \[\(\(2,\).*; each entry must be like",
    ),
    "mixed dtype": (given(hvp=hvp, mixed=lambda u, w, x: (to_float32(w),)), "derivatives.mixed.*float32"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_derivatives_of_another_shape_or_structure(eager, kind):
    layer, text = WRONG[kind]
    with pytest.raises(dil.DilError, match=text):
        pulled(eager, layer, X)


def test_mixed_derivatives_of_a_keyword_that_is_not_there(eager):
    products = dil.Derivatives(
        gradient=lambda u, x, c: u - c * x,
        hvp=lambda u, v, x, c: v,
        mixed=lambda u, w, x, c: (-c * w, {"d": -array_namespace(w).sum(w * x)}),
    )
    layer = dil.argmin(lambda u, x, c: bowl(u, c * x), lambda fun, init, x, c: c * x, derivatives=products)
    with pytest.raises(dil.DilError, match=r"derivatives.mixed.*'d'"):
        pulled(eager, lambda x, c: layer(x, c=c), X, 2.0)


# --- check_gradients ---


def cube(x):
    return array_namespace(x).sum(x**3)


CHECKS = {
    "order=3": ({"order": 3}, "order=3; expected 1 or 2"),
    "order='1'": ({"order": "1"}, "order='1'; expected 1 or 2"),
    "directions=0": ({"directions": 0}, "directions=0; expected an integer >= 1"),
    "directions=1.5": ({"directions": 1.5}, "directions=1.5; expected"),
    "directions='2'": ({"directions": "2"}, "directions='2'; expected"),
    "backends=[]": ({"backends": []}, r"backends=\[\]; expected"),
    "backends='numpy'": ({"backends": "numpy"}, "backends='numpy'; expected"),
    "backends=['nunpy']": ({"backends": ["nunpy"]}, "there is no backend 'nunpy'; expected one of"),
    "seed=-1": ({"seed": -1}, "seed=-1; expected"),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_bad_option_of_check_gradients(kind):
    options, text = CHECKS[kind]
    with pytest.raises(dil.DilError, match=text):
        dil.check_gradients(cube, X, **options)


def test_check_gradients_without_a_float_array(eager):
    with pytest.raises(dil.DilError, match="no float array among the arguments"):
        dil.check_gradients(cube, integers(eager, X))
    with pytest.raises(dil.BackendError, match="got no array"):
        dil.check_gradients(cube, 1.0)


def test_check_gradients_of_a_function_without_floats_in_its_value(eager):
    with pytest.raises(dil.DilError, match="no float array"):
        dil.check_gradients(lambda x: x > 0.0, eager.asarray(X))


# --- attempts to break it ---


def overwrites(u, x):
    u -= x
    return array_namespace(u).sum(u * u)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_score_that_writes_into_u_leaves_the_solution_alone_or_is_refused(name):
    pytest.importorskip(name)
    handle = dil.backend(name, dtype="float64")
    try:
        y = dil.argmin(overwrites, solved)(handle.asarray(X.copy()))
    except (dil.DilError, RuntimeError):
        return
    np.testing.assert_array_equal(handle.to_numpy(y), X)


def in_place(fun, init, x):
    init[...] = 2.0 * x
    return init


@pytest.mark.parametrize("name", ["numpy", "torch"])
class TestSolverThatWritesIntoItsStart:
    def double(self, **options):
        return dil.argmin(lambda u, x: bowl(u, 2.0 * x), in_place, **options)

    def test_it_leaves_an_argument_alone(self, name):
        pytest.importorskip(name)
        handle = dil.backend(name, dtype="float64")
        x = handle.asarray(X.copy())
        self.double(init=lambda x: x)(x)
        np.testing.assert_array_equal(handle.to_numpy(x), X)

    def test_it_leaves_the_start_of_the_layer_alone(self, name):
        pytest.importorskip(name)
        handle = dil.backend(name, dtype="float64")
        start = handle.asarray(np.zeros(2))
        self.double(init=start)(handle.asarray(X.copy()))
        np.testing.assert_array_equal(handle.to_numpy(start), [0.0, 0.0])


def test_inference_mode_of_torch_gives_the_solution_or_an_error():
    torch = torch_()
    with torch.inference_mode():
        try:
            y = dil.argmin(bowl, NEWTON, init=zeros)(tensor([1.0, 2.0]))
        except dil.DilError:
            return
    np.testing.assert_allclose(y.numpy(), X)


def test_an_init_that_requires_grad_gets_none():
    init = tensor([0.0, 0.0], requires_grad=True)
    x = tensor([1.0, 2.0], requires_grad=True)
    dil.argmin(bowl, NEWTON)(x, init=init).sum().backward()
    assert init.grad is None
    np.testing.assert_allclose(x.grad, [1.0, 1.0])


@pytest.mark.parametrize("solver", ["Newton", "GradientDescent", "SciPy"])
def test_arrays_that_are_read_only(solver):
    x = X.copy()
    x.flags.writeable = False
    _, pull = dil.vjp(dil.argmin(bowl, getattr(dil.solvers, solver)(), init=lambda x: x), x)
    np.testing.assert_allclose(pull(x)[0], X)


STRIDES = {
    "transposed": lambda a: a.T,
    "every other row": lambda a: a[::2, :],
    "broadcast": lambda a: a[:1, :] if type(a).__module__ != "numpy" else np.broadcast_to(a[:1, :], a.shape),
}


@pytest.mark.parametrize("kind", STRIDES)
def test_arrays_that_are_not_contiguous(eager, kind):
    x = STRIDES[kind](eager.asarray(np.arange(12.0).reshape(3, 4)))
    _, pull = dil.vjp(dil.argmin(bowl, NEWTON, init=zeros), x)
    np.testing.assert_allclose(eager.to_numpy(pull(x)[0]), eager.to_numpy(x))


def test_a_layer_inside_the_score_of_another(eager):
    """The inner layer gives 3 u, so that 1/2 ||3 u - x||^2 + 1/2 ||u||^2 is least at u = 0.3 x."""
    inner = dil.argmin(lambda w, u: bowl(w, 3.0 * u), lambda fun, init, u: 3.0 * u)
    outer = dil.argmin(lambda u, x: bowl(inner(u), x) + bowl(u, 0.0 * x), NEWTON, init=zeros)
    np.testing.assert_allclose(eager.to_numpy(outer(eager.asarray(X))), 0.3 * X, rtol=1e-9)
    np.testing.assert_allclose(pulled(eager, outer, X)[0], 0.3 * V, rtol=1e-9)


def test_a_layer_of_the_output_of_another(eager):
    layer = dil.argmin(quartic, NEWTON, init=zeros)
    assert dil.check_gradients(lambda x: layer(2.0 * layer(x)), eager.asarray(X), directions=1).ok


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_layer_is_copied_and_pickled(twin):
    layer = twin(dil.argmin(quartic, NEWTON, init=np.zeros(2), batch_ndim=0, on_failure="nan"))
    assert dil.check_gradients(layer, X, directions=1).ok


@pytest.mark.parametrize("status", dil.Status, ids=lambda s: s.name)
def test_a_status_is_pickled_with_its_sentence(status):
    again = pickle.loads(pickle.dumps(status))
    assert again is status
    assert again.sentence


def test_jit_of_a_layer_that_holds_its_start():
    jax = jax_()
    layer = dil.argmin(bowl, solved, init=jax.numpy.zeros(2))
    np.testing.assert_array_equal(jax.jit(layer)(jax.numpy.asarray(X)), X)


def test_threads_do_not_meet(eager):
    layer, found = dil.argmin(quartic, NEWTON, init=zeros), {}

    def work(i):
        for _ in range(5):
            found[i] = pulled(eager, layer, X + i)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], pulled(eager, layer, X + i)[0])


def test_a_long_batch(eager):
    x = np.random.default_rng(0).standard_normal((20_000, 2))
    ones = np.ones_like(x)
    layer = dil.argmin(bowls, NEWTON, init=zeros, batch_ndim=1)
    y, pull = dil.vjp(layer, eager.asarray(x), eager.asarray(ones))
    (g, _), y = pull(eager.asarray(ones)), eager.to_numpy(y)
    np.testing.assert_allclose(eager.to_numpy(g), 1.0 / (1.0 + 3.0 * y**2), rtol=1e-9)


def dil_step(handle):
    layer, x, v = dil.argmin(quartic, solved_by_newton, on_failure="ignore"), handle.asarray(X), handle.asarray(V)
    return lambda: dil.vjp(layer, x)[1](v)


def torch_step(handle):
    layer, x = dil.argmin(quartic, solved_by_newton, on_failure="ignore"), tensor([1.0, 2.0], requires_grad=True)

    def step():
        x.grad = None
        layer(x).sum().backward()

    return step


def solved_by_newton(fun, init, x):
    return NEWTON(fun, 0.0 * x, x).value


STEPS = {"numpy": dil_step, "torch": dil_step, "torch:backward": torch_step}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_left_in_cycles(name):
    """What reference counting frees is free at once; a cycle keeps large arrays until the collector comes."""
    pytest.importorskip(name.partition(":")[0])
    step = STEPS[name](dil.backend(name.partition(":")[0], dtype="float64"))
    step()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            step()
        gc.collect()
        # torch.vmap leaves small functions of its own behind, which hold no tensor
        assert not [x for x in gc.garbage if hasattr(x, "shape") or type(x).__module__.startswith("dil")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", STEPS)
def test_memory_does_not_grow_from_call_to_call(name):
    pytest.importorskip(name.partition(":")[0])
    step = STEPS[name](dil.backend(name.partition(":")[0], dtype="float64"))
    for _ in range(20):
        step()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(100):
            step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
