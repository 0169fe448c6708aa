"""What a score, a solver, a start or an argument of the wrong kind ends in: a message, or a defined result."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from messages import (
    NEWTON,
    V,
    X,
    bowl,
    float32,
    integers,
    jax_,
    pulled,
    solved,
    to_float32,
    to_int,
    zeros,
)

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


RESULTS = {
    "shape": (lambda x: x[:1], dil.ShapeError, r"result of the solver 'solver' .*\(1,\).*init is .*\(2,\)"),
    "tree": (lambda x: {"a": x}, dil.ShapeError, r"result of the solver 'solver' .*\['a'\]"),
    "ints": (
        to_int,
        dil.DTypeError,
        r"result of the solver 'solver' has dtype .*int64; .*real or complex floating, so cast",
    ),
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
    with pytest.warns(dil.ConvergenceWarning, match="42: a code that is not a dil.Status"):
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


@pytest.mark.parametrize("name", ["Newton", "GradientDescent", "SciPy"])
def test_no_init_for_a_solver_that_needs_one(eager, name):
    layer = dil.argmin(bowl, getattr(dil.solvers, name)())
    with pytest.raises(
        dil.OptionError, match=rf"{name} needs a start; pass init= in the call, .*the module is made: init="
    ):
        layer(eager.asarray(X))


def test_a_function_of_init_gets_all_arguments(eager):
    layer = dil.argmin(lambda u, x, y: bowl(u, x * y), dil.solvers.Newton(), init=lambda x: 0.0 * x)
    x = eager.asarray(X)
    with pytest.raises(TypeError) as caught:
        layer(x, x)
    assert caught.value.__notes__[0].startswith(
        "init was called with all arguments of the layer: init(argument 0, argument 1)"
    )


def test_a_list_of_residuals_is_to_be_joined(eager):
    layer = dil.root(lambda u, x: [u[0] - x[0], u[1] + x[1]], dil.solvers.Newton(), init=lambda x: 0.0 * x)
    with pytest.raises(dil.ShapeError, match=r"join the entries to one array, as xp\.stack\(\[\.\.\.\]\) does"):
        layer(eager.asarray([1.0, 2.0]))


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


def test_arguments_of_two_dtypes(plain):
    layer = dil.argmin(lambda u, x, c: bowl(u, x), solved)
    text = r"argument 0 has dtype .*float64, but argument 1\['c'\] has .*float32; cast them to one dtype"
    if plain.name == "jax":  # JAX promotes the parameters of a tree, and so does a layer
        assert str(layer(plain.asarray(X), {"c": float32(plain, X)}).dtype) == "float64"
        return
    with pytest.raises(dil.DTypeError, match=text):
        layer(plain.asarray(X), {"c": float32(plain, X)})


def test_a_keyword_argument_of_another_dtype_is_named(eager):
    layer = dil.argmin(lambda u, x, c: bowl(u, x), lambda fun, init, x, c: x)
    with pytest.raises(dil.DTypeError, match=r"argument c has .*float32; cast"):
        layer(eager.asarray(X), c=float32(eager, X))


@pytest.mark.parametrize("names", [("numpy", "torch"), ("torch", "jax"), ("jax", "torch")], ids="-".join)
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


@pytest.mark.parametrize("args", [(), (1,), (True,), ([1.0, 2.0], None, "text")], ids=str)
def test_no_array_at_all(args):
    text = "'bowl' got no array, so there is nothing that says which backend.*pass at least one array"
    with pytest.raises(dil.BackendError, match=text):
        dil.argmin(bowl, solved)(*args)
    with pytest.raises(dil.BackendError, match="the function to differentiate got no array"):
        dil.vjp(lambda *xs: xs, *args)


def test_a_random_key_of_jax_is_carried_along():
    jax = jax_()
    layer = dil.argmin(lambda u, x, key: bowl(u, x), solved)
    np.testing.assert_array_equal(layer(jax.numpy.asarray(X), jax.random.key(0)), X)


@pytest.mark.parametrize("success", [True, False])
def test_a_solver_may_return_an_optimize_result(success):
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    answer = optimize.OptimizeResult(x=np.asarray([1.0, 2.0]), success=success, message="as it went")
    layer = dil.argmin(lambda u, x: np.sum((u - x) ** 2), lambda f, u, x: answer, on_failure="raise")
    if success:
        np.testing.assert_array_equal(layer(np.asarray([1.0, 2.0])), [1.0, 2.0])
    else:
        with pytest.raises(dil.ConvergenceError, match=r"FAILED.*as it went"):
            layer(np.asarray([1.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "place"), [("nn", "dil_backends.nn"), ("plan", "dil.control.plan"), ("torch", "torch")]
)
def test_a_name_that_is_elsewhere_says_where(name, place):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; it is .*{place}"):
        getattr(dil, name)
    with pytest.raises(AttributeError, match=r"'mpc'; it is dil.control.mpc_rollout"):
        _ = dil.control.mpc
