"""Object arrays of boxes, such as `np.array([u[0], u[1]])`: the derivatives of `np.stack`, or an error."""

from __future__ import annotations

import math
import sys

import array_api_strict
import numpy as np
import pytest
import scipy.special as sp

import dil
import dil.ode
from dil_backends._tape import entries, vjp

RNG = np.random.default_rng(0)
U = RNG.uniform(0.1, 0.9, 6)
X = RNG.normal(size=(4, 6))
A = RNG.normal(size=(2, 2))


def filled(u):
    v = np.zeros(3, dtype=object)
    for i in range(3):
        v[i] = u[i] ** 2
    return v


def rotation(make, t):
    return make([make([np.cos(t), -np.sin(t)]), make([np.sin(t), np.cos(t)])])


# each pair: what users write, and the same in array code
SAME = {
    "array": (lambda u: np.array([u[0] ** 2, u[1]]), lambda u: np.stack([u[0] ** 2, u[1]])),
    "array of a tuple": (lambda u: np.array((u[0] ** 2, u[1])), lambda u: np.stack([u[0] ** 2, u[1]])),
    "nested lists": (
        lambda u: np.array([[np.cos(u[0]), -np.sin(u[0])], [np.sin(u[0]), np.cos(u[0])]]) @ u[1:3],
        lambda u: rotation(np.stack, u[0]) @ u[1:3],
    ),
    "rows": (lambda u: np.array([u, u**2]) * u, lambda u: np.stack([u, u**2]) * u),
    "rows and numbers": (lambda u: np.array([u, X[0]]) * u, lambda u: np.stack([u, X[0]]) * u),
    "matrices": (lambda u: np.array([u.reshape(2, 3)] * 2) ** 3, lambda u: np.stack([u.reshape(2, 3)] * 2) ** 3),
    "numbers": (lambda u: np.asarray([u[0], 2, 1.5, X[0, 0]]) ** 3, lambda u: np.stack([u[0], 2, 1.5, X[0, 0]]) ** 3),
    "asarray": (lambda u: X @ np.asarray(u), lambda u: X @ u),
    "asarray of a number": (lambda u: np.asarray(u[0]) * u, lambda u: u[0] * u),
    "asarray, matrix": (lambda u: np.asarray(u.reshape(2, 3)).T @ u[:2], lambda u: u.reshape(2, 3).T @ u[:2]),
    "ndarray.dot": (lambda u: X.dot(u), lambda u: X @ u),
    "ndarray.dot, matrix": (lambda u: X.dot(u.reshape(6, 1)), lambda u: X @ u.reshape(6, 1)),
    "r_": (lambda u: np.r_[u[0], u, 1.0] ** 2, lambda u: np.concatenate([u[:1], u, np.ones(1)]) ** 2),
    "c_": (lambda u: np.c_[u, u**2] ** 2, lambda u: np.stack([u, u**2], axis=1) ** 2),
    "full": (lambda u: np.full(6, u[0]) * u, lambda u: u[0] * u),
    "filled": (lambda u: filled(u) * u[:3], lambda u: u[:3] ** 3),
    "beside arrays": (lambda u: A @ np.array([u[0], u[1]]) + A[0], lambda u: A @ u[:2] + A[0]),
    "exp": (lambda u: np.exp(np.array([u[0], u[1]])), lambda u: np.exp(u[:2])),
    "arcsin": (lambda u: np.arcsin(np.array([u[0], u[1]])), lambda u: np.arcsin(u[:2])),
    "hypot": (
        lambda u: np.hypot(np.array([u[0], u[1]]), np.array([u[1], 1.0])),
        lambda u: np.hypot(u[:2], filled_up(u)),
    ),
    "where": (
        lambda u: np.where(np.array([u[0], u[1]]) > 0.5, np.array([u[0], u[1]]), 0.0),
        lambda u: np.where(u[:2] > 0.5, u[:2], 0.0),
    ),
    "compared": (
        lambda u: np.where(u[:2] < np.array([u[2], u[3]]), u[:2], 0.0),
        lambda u: np.where(u[:2] < u[2:4], u[:2], 0.0),
    ),
    "max": (lambda u: np.max(np.array([u[0], u[1]])) ** 2, lambda u: np.max(u[:2]) ** 2),
    "cumsum": (lambda u: np.cumsum(np.array([u[0], u[1]])) ** 2, lambda u: np.cumsum(u[:2]) ** 2),
    "einsum": (lambda u: np.einsum("i,i", np.array([u[0], u[1]]), u[:2]), lambda u: u[:2] @ u[:2]),
    "stack": (lambda u: np.stack([np.array([u[0], u[1]]), u[:2]]) ** 2, lambda u: np.stack([u[:2], u[:2]]) ** 2),
    "keyword": (lambda u: np.clip(u[:2], np.array([u[2], u[3]]), 1.0), lambda u: np.clip(u[:2], u[2:4], 1.0)),
    "where a list is": (
        lambda u: np.concatenate([np.array([u[0]]), u]) ** 2,
        lambda u: np.concatenate([u[:1], u]) ** 2,
    ),
    "logsumexp": (lambda u: sp.logsumexp(np.array([u[0], u[1]])), lambda u: sp.logsumexp(u[:2])),
}


def filled_up(u):
    return np.stack([u[1], 1.0])


def square(u):
    return np.stack([np.stack([u[0] + 2.0, u[1]]), np.stack([u[1], u[2]])])


def square_of_objects(u):
    return np.array([[u[0] + 2.0, u[1]], [u[1], u[2]]])


SAME |= {
    name: (lambda u, f=f: f(square_of_objects(u)), lambda u, f=f: f(square(u)))
    for name, f in {
        "sum": np.sum,
        "prod": np.prod,
        "min": np.min,
        "norm": np.linalg.norm,
        "mean of rows": lambda x: np.mean(x, axis=1, keepdims=True),
        "trace": np.trace,
        "det by hand": lambda x: x[0, 0] * x[1, 1] - x[0, 1] * x[1, 0],
        "matrix product": lambda x: x @ x,
    }.items()
}
SAME["norm of a list"] = (
    lambda u: np.linalg.norm([u[0] ** 2, u[1]]),
    lambda u: np.linalg.norm(np.stack([u[0] ** 2, u[1]])),
)


def weighted(f):
    """Return a score whose gradient shows every entry of f."""
    return lambda u: np.sum(f(u) * np.cos(np.arange(np.size(f(U)), dtype=float)).reshape(np.shape(f(U))))


@pytest.mark.parametrize("case", SAME)
def test_the_derivatives_are_those_of_array_code(case):
    ours, theirs = map(weighted, SAME[case])
    first, expected = dil.grad(ours), dil.grad(theirs)
    np.testing.assert_allclose(ours(U), theirs(U), rtol=1e-12)
    np.testing.assert_allclose(first(U), expected(U), rtol=1e-10, atol=1e-14 * np.max(np.abs(expected(U))))
    v = np.cos(U)
    np.testing.assert_allclose(dil.jvp(ours, (U,), (v,))[1], v @ expected(U), rtol=1e-10)
    second = dil.grad(lambda u: np.sum(first(u) * v))(U)
    wanted = dil.grad(lambda u: np.sum(expected(u) * v))(U)
    np.testing.assert_allclose(second, wanted, rtol=1e-8, atol=1e-12 * np.max(np.abs(wanted)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_that_of_the_array(dtype):
    (y,), pull = vjp(lambda u: (np.array([u[0], 2.0, u[1] * u[1]]),), U.astype(dtype))
    assert y.dtype == pull((np.ones(3, dtype),))[0].dtype == dtype
    assert type(y) is np.ndarray


KINK = {
    "np.maximum": lambda u, x: np.sum(np.maximum(x, 0.0)),
    "np.max": lambda u, x: np.max(np.array([x[0], -1.0])),
    "np.max of a list": lambda u, x: np.max([x[0], -1.0]),
    "np.where": lambda u, x: np.sum(np.where(x > 0, x, 0.0)),
    "residual": lambda u, x: np.maximum(x, 0.0),
}


@pytest.mark.parametrize("case", KINK)
@pytest.mark.parametrize("u", [[-2.0, -3.0], [2.0, -3.0], [2.0, 3.0]])
def test_entries_that_are_all_constant(case, u):
    u = np.array(u)
    ours, pull = dil.vjp(lambda u: KINK[case](u, np.array([u[0], u[1]])), u)
    theirs, expected = dil.vjp(lambda u: KINK[case](u, np.stack([u[0], u[1]])), u)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(pull(np.ones_like(ours))[0], expected(np.ones_like(theirs))[0])


def test_an_array_of_integers_has_the_derivative_zero():
    u = np.array([1.7, 2.2])
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(np.asarray(u, dtype=int) * u))(u), [1.0, 2.0])
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(np.int64(u) * u))(u), [1.0, 2.0])


def test_an_empty_array():
    np.testing.assert_array_equal(dil.grad(lambda u: np.sum(np.asarray(u[:0])) + u[0] ** 2)(np.ones(2)), [2.0, 0.0])


def coupled(make, axis=0):
    """Two equations for two unknowns, for each row of a batch if axis is 1."""

    def residual(x, a):
        x0, x1, a0, a1 = x[..., 0], x[..., 1], a[..., 0], a[..., 1]
        found = make([2 * x0 + 0.3 * np.sin(x1) - a0, 2 * x1 + 0.2 * x0**2 - a1 * a0])
        return found.T if axis else found

    return residual


def layers(make):
    start = lambda a: 0.0 * a  # noqa: E731
    residual = coupled(make)
    return {
        "Newton": dil.root(residual, dil.solvers.Newton(), init=start),
        "SciPyRoot": dil.root(residual, dil.solvers.SciPyRoot(), init=start),
        "fixed point": dil.fixed_point(
            lambda x, a: make([0.3 * np.cos(x[1]) + a[0], 0.2 * np.sin(x[0] * a[1])]),
            dil.solvers.Anderson(),
            init=start,
        ),
        "argmin": dil.argmin(
            lambda u, a: np.sum(make([u[0] - a[0], u[0] * u[1] - a[1], u[1]]) ** 2),
            dil.solvers.Newton(),
            init=lambda a: np.ones(2),
        ),
        "products": dil.argmin(
            lambda u, a: np.sum((u - a**2) ** 2),
            lambda f, u, a: a**2,
            derivatives=dil.Derivatives(gradient=lambda u, a: make([2 * (u[0] - a[0] ** 2), 2 * (u[1] - a[1] ** 2)])),
        ),
        "argument": lambda a: dil.root(residual, dil.solvers.Newton(), init=start)(make([a[0] ** 2, a[1]])),
        "odeint": lambda a: dil.ode.odeint(
            lambda t, y, a: make([y[1] * a[0], -y[0]]), make([a[1], 1.0]), np.linspace(0, 1, 3), (a,)
        ),
    }


def assert_same_layers(ours, theirs, a):
    first, expected = dil.grad(lambda a: np.sum(ours(a) ** 3)), dil.grad(lambda a: np.sum(theirs(a) ** 3))
    np.testing.assert_allclose(first(a), expected(a), rtol=1e-10)
    second = [dil.grad(lambda a, g=g: np.sum(np.sin(g(a))))(a) for g in (first, expected)]
    np.testing.assert_allclose(*second, rtol=1e-8)
    assert np.all(np.abs(second) > 1e-3)


@pytest.mark.parametrize("name", layers(np.stack))
def test_layers_are_those_of_array_code(name):
    assert_same_layers(layers(np.array)[name], layers(np.stack)[name], np.array([1.0, 0.5]))


def test_a_batch_of_roots():
    ours, theirs = (
        dil.root(coupled(make, axis=1), dil.solvers.Newton(), init=lambda a: 0.0 * a, batch_ndim=1)
        for make in (np.array, np.stack)
    )
    assert_same_layers(ours, theirs, np.array([[1.0, 0.5], [0.3, 0.2], [2.0, 1.0]]))


def test_a_batch_of_scores():
    ours, theirs = (
        dil.argmin(
            lambda u, a, make=make: make([np.sum((u[i] - a[i] ** 2) ** 2 + 0.1 * u[i] ** 4) for i in range(3)]),
            dil.solvers.Newton(),
            init=lambda a: 0.0 * a,
            batch_ndim=1,
        )
        for make in (np.array, np.stack)
    )
    assert_same_layers(ours, theirs, np.array([[1.0, 0.5], [0.3, 0.4], [2.0, 1.0]]))


def test_a_complex_root_beside_real_entries():
    ours, theirs = (
        dil.root(
            lambda x, a, make=make: 2.0 * x + 0.1 * x**2 - 1j * a[1] + make([a[0] ** 2, a[1]]),
            dil.solvers.Newton(),
            init=lambda a: np.zeros(2, complex),
        )
        for make in (np.array, np.stack)
    )
    assert_same_layers(lambda a: np.abs(ours(a)), lambda a: np.abs(theirs(a)), np.array([1.0, 0.5]))


@pytest.mark.parametrize("make", [np.array, np.stack])
def test_transforms_take_them(make):
    a, made = np.array([1.0, 0.5]), lambda a: make([a[0] * 2, a[1] ** 2])
    cube = lambda b: b**3  # noqa: E731
    np.testing.assert_array_equal(dil.grad(lambda a: np.sum(a * dil.constant(made(a))))(a), [2.0, 0.25])
    np.testing.assert_allclose(dil.grad(lambda a: np.sum(dil.grad(lambda b: np.sum(b**3))(made(a))))(a), [24.0, 1.5])
    np.testing.assert_allclose(dil.grad(lambda a: np.sum(dil.vjp(cube, a)[1](made(a))[0]))(a), [18.0, 1.5])
    np.testing.assert_allclose(dil.grad(lambda a: np.sum(dil.jvp(cube, (a,), (made(a),))[1]))(a), [18.0, 1.5])
    out, pull = dil.vjp(lambda a: {"x": made(a)}, a)
    np.testing.assert_array_equal(out["x"], [2.0, 0.25])
    np.testing.assert_array_equal(pull({"x": np.ones(2)})[0], [2.0, 1.0])


STACK = r"np\.stack"
REFUSED = {
    "dtype": (lambda u: np.sum(np.array([u[0], u[1]], dtype=float)), f"leave out dtype=.*{STACK}"),
    "asarray, dtype": (lambda u: np.sum(np.asarray(u, dtype=float)), "u in that of np.asarray"),
    "method": (lambda u: np.array([u[0], u[1]]).mean(), f"leave out dtype=.*{STACK}"),
    "float64": (lambda u: np.float64(u[0]), "would cut the derivative"),
    "written": (lambda u: np.sum(filled_numbers(u)), r"np\.stack\(\[...\]\) for writing its entries"),
    "complex": (lambda u: np.sum(np.abs(np.array([u[0] + 1j * u[1]]))), f"complex.*{STACK}"),
    "made complex": (lambda u: np.sum((np.array([u[0], u[1]]) * 1j).imag), f"complex.*{STACK}"),
    "entries made complex": (lambda u: np.sum((np.asarray(u) ** 2 + 1j * X[0]).imag), f"complex.*{STACK}"),
    "ufunc": (lambda u: np.sum(sp.expit(np.array([u[0], u[1]]))), f"object array.*expit.*{STACK}"),
    "predicate": (lambda u: np.sum(np.isfinite(np.array([u[0], u[1]]))), f"object array.*isfinite.*{STACK}"),
    "numbers": (lambda u: np.sum(np.log(np.array([u[0], 2.0]))), f"object array.*log.*{STACK}"),
    "others": (lambda u: np.sum(u[:2] * np.array([u[0], "text"], dtype=object)), f"and of str;.*{STACK}"),
    "math.exp": (lambda u: math.exp(u[0]), r"np\.exp for math\.exp"),
    "int": (lambda u: int(u[0]) * u[1], r"np\.trunc for int"),
    "round": (lambda u: round(u[0]) * u[1], r"np\.round for round"),
    "math.floor": (lambda u: math.floor(u[0]) * u[1], r"np\.floor for math\.floor"),
    "np.floor": (lambda u: np.sum(np.floor(np.array([u[0], u[1]])) * u[:2]), STACK),
    "format of an array": (lambda u: len(f"{u:.3f}") * u[0], r"u\[0\]:\.3f"),
}


OF_OBJECTS = {
    **{f"linalg.{n}": getattr(np.linalg, n) for n in ("inv", "det", "pinv", "eigvalsh", "cholesky", "cond", "svdvals")},
    **{f"linalg.{n}": (lambda x, n=n: getattr(np.linalg, n)(x)[1]) for n in ("slogdet", "eigh", "svd", "qr")},
    "linalg.solve": lambda x: np.linalg.solve(x, x[0] ** 2),
    "linalg.norm, 2": lambda x: np.linalg.norm(x, 2),
    "fft": lambda x: np.abs(np.fft.fft(x)) ** 2,
    **{name: getattr(np, name) for name in ("mean", "std", "var", "median", "average", "cov")},
    "quantile": lambda x: np.quantile(x, 0.3),
    "gradient": lambda x: np.gradient(x)[0],
    "interp": lambda x: np.interp(x, [0.0, 3.0], [1.0, 4.0]),
    "mean of a list": lambda x: np.mean([x[0, 0], x[1, 1]]),
    "solve of lists": lambda x: np.linalg.solve([[x[0, 0], x[0, 1]], [x[1, 0], x[1, 1]]], [x[0, 0], 1.0]),
}
"""Functions of NumPy that compute with numbers alone. They see objects, and nobody asks the boxes before."""
REFUSED |= {
    f"{name} of objects": (lambda u, f=f: np.sum(f(square_of_objects(u))), STACK) for name, f in OF_OBJECTS.items()
}


def filled_numbers(u):
    v = np.zeros(2)
    v[0] = u[0]
    return v


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_write(case):
    f, words = REFUSED[case]
    with pytest.raises(dil.UnsupportedFunctionError, match=f"(?s){words}"):
        dil.grad(f)(U)


def test_the_cost_is_bounded(monkeypatch):
    monkeypatch.setattr(entries, "LONGEST", 1000)
    with pytest.raises(dil.UnsupportedFunctionError, match=f"300 entries.*{STACK}.*X @ u"):
        dil.grad(lambda u: np.sum(np.asarray(u)))(np.ones(300))
    with pytest.raises(dil.UnsupportedFunctionError, match=r"operations did not suffice.*X @ u") as caught:
        dil.grad(lambda u: np.sum(np.ones((100, 40)).dot(u)))(np.ones(40))
    assert len(caught.traceback) < 30


def test_the_reason_is_told_where_python_notices_each_turn_of_a_loop(monkeypatch):
    """With a trace function, as a debugger has one, each call after the first error is a SystemError."""
    monkeypatch.setattr(entries, "LONGEST", 1000)
    before = sys.gettrace()
    sys.settrace(lambda *event: None)
    try:
        with pytest.raises(dil.UnsupportedFunctionError, match=r"operations did not suffice.*X @ u"):
            dil.grad(lambda u: np.sum(np.ones((100, 40)).dot(u)))(np.ones(40))
    finally:
        sys.settrace(before)


def test_what_is_captured_is_refused():
    def score(a):
        layer = dil.argmin(
            lambda u, t: np.sum((u - np.array([a[0], t[1]])) ** 2), dil.solvers.Newton(), init=lambda t: t
        )
        return np.sum(layer(np.ones(2)))

    with pytest.raises(dil.CapturedError, match="captured by closure"):
        dil.grad(score)(np.ones(2))
    kept = []
    dil.grad(lambda a: [kept.append(a[0]), a[0]][1])(np.ones(2))
    with pytest.raises(dil.CapturedError, match="has ended"):
        np.array([kept[0], 1.0])


def test_a_plan_whose_dynamics_are_written_entry_by_entry():
    def cost(x, u, theta):
        return np.sum(x**2, axis=-1) + 0.1 * np.sum(u**2, axis=-1)

    plans = [
        dil.control.plan(cost, lambda x, u, theta, make=make: make([x[0] + 0.1 * x[1], x[1] + 0.1 * u[0]]), 4)
        for make in (np.array, np.stack)
    ]
    ours, theirs = (dil.grad(lambda x0, p=p: np.sum(p(x0)))(np.array([1.0, 0.5])) for p in plans)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_another_error_of_the_score_is_raised_as_it_is():
    def score(u):
        np.array([u[0], u[1]])
        msg = "an error of the user"
        raise ValueError(msg)

    with pytest.raises(ValueError, match=r"^an error of the user$"):
        dil.grad(score)(U)


def test_a_strict_namespace_makes_no_numpy_array():
    with pytest.raises(dil.UnsupportedFunctionError, match="would cut the derivative"):
        vjp(lambda u: (np.array([u[0], u[1]]),), array_api_strict.asarray([1.0, 2.0]))


def test_a_text_of_a_number():
    texts = []
    dil.grad(lambda u: [texts.append(f"{u[0]:.3f} {u[0]}"), u[0]][1])(np.array([0.25, 1.0]))
    assert texts == ["0.250 Box(np.float64(0.25))"]


def test_object_arrays_of_other_things_stay():
    labels = np.array(["a", None], dtype=object)
    assert entries.joined(labels) is labels
    assert dil.grad(lambda u: np.sum(u**2) if labels[0] == "a" else u[0])(np.ones(1)) == 2.0
