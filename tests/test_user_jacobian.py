"""Roots and fixed points of functions on the host, whose Jacobian the user gives."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import dil

sp = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")

N = 12
A = sp.csr_array(sp.diags_array([-1.0, 2.5, -1.2], offsets=[-1, 0, 1], shape=(N, N)))
T, C = np.linspace(0.5, 2.0, N), np.asarray(0.7)
V = np.cos(np.arange(N))


def residual(u, t, c):
    assert type(u) is np.ndarray, "it runs on the host"
    return A @ u + c * u**3 - t


def matrix(u, t, c):
    return A + sp.diags_array(3 * c * u**2)


PRODUCTS = {
    "jvp": lambda u, v, t, c: A @ v + 3 * c * u**2 * v,
    "vjp": lambda u, w, t, c: A.T @ w + 3 * c * u**2 * w,
    "mixed": lambda u, w, t, c: (-w, np.sum(w * u**3)),
    "mixed_jvp": lambda u, d, t, c: d[1] * u**3 - d[0],
}
MIXED = {name: PRODUCTS[name] for name in ("mixed", "mixed_jvp")}
KINDS = {
    "sparse": dil.Jacobian(matrix, **MIXED),
    "dense": dil.Jacobian(lambda u, t, c: matrix(u, t, c).toarray(), **MIXED),
    "products": dil.Jacobian(**PRODUCTS),
    "differences": dil.Jacobian(finite_differences=True),
}


def layer_of(derivatives, fn=residual, **options):
    options = {"on_failure": "raise", **options}
    return dil.root(fn, dil.solvers.Newton(), init=lambda t, c: 0.0 * t, derivatives=derivatives, **options)


def by_hand(cotangent=V):
    """Return the root, its J, and the cotangents of t and c by the adjoint."""
    u = np.zeros(N)
    for _ in range(30):
        u = u - np.linalg.solve(matrix(u, T, C).toarray(), residual(u, T, C))
    J = matrix(u, T, C).toarray()
    g = np.linalg.solve(J.T, cotangent)
    return u, J, g, -g @ u**3


@pytest.mark.parametrize("kind", ["sparse", "products"])
def test_gradients_are_those_of_the_adjoint(engine, kind):
    u, _, of_t, of_c = by_hand()
    y, (dt, dc) = engine.gradients(layer_of(KINDS[kind]), (T, C), V)
    np.testing.assert_allclose(y, u, rtol=1e-12)
    np.testing.assert_allclose(dt, of_t, rtol=1e-10)
    np.testing.assert_allclose(dc, of_c, rtol=1e-10)


@pytest.mark.parametrize(("kind", "rtol"), [("dense", 1e-10), ("differences", 1e-7)])
def test_other_matrices(eager, kind, rtol):
    u, _, of_t, of_c = by_hand()
    y, (dt, dc) = eager.gradients(layer_of(KINDS[kind]), (T, C), V)
    np.testing.assert_allclose(y, u, rtol=1e-12)
    np.testing.assert_allclose(dt, of_t, rtol=rtol)
    np.testing.assert_allclose(dc, of_c, rtol=rtol)


def test_forward_mode(engine):
    u, J, _, _ = by_hand()
    dy = engine.tangent(layer_of(KINDS["sparse"]), (T, C), (V, np.asarray(2.0)))
    np.testing.assert_allclose(dy, np.linalg.solve(J, V - 2.0 * u**3), rtol=1e-10)


@pytest.mark.parametrize("solver", [dil.solvers.SciPyRoot(), lambda fun, init, t, c: numpy_newton(fun, init, t, c)])
def test_other_solvers(eager, solver):
    if eager.backend == "array_api_strict" and not isinstance(solver, dil.solvers.SciPyRoot):
        pytest.skip("the solver of this test writes arrays in NumPy's way")
    layer = dil.root(residual, solver, init=lambda t, c: 0.0 * t, derivatives=KINDS["sparse"])
    _, (dt, _) = eager.gradients(layer, (T, C), V)
    np.testing.assert_allclose(dt, by_hand()[2], rtol=1e-6)


def numpy_newton(fun, init, t, c):
    """A solver of the user: it calls the function with arrays of the backend."""
    backend = dil.backend(type(init).__module__.partition(".")[0])
    u = init
    for _ in range(30):
        J = matrix(np.asarray(u), None, float(c)).toarray()
        u = u - backend.asarray(np.linalg.solve(J, np.asarray(fun(u, t, c))))
    return u


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_fixed_point(plain, kind):
    """The user gives the derivatives of the step, and the system is that of I - J."""
    B = sp.csr_array(sp.diags_array([0.3, 0.2], offsets=[-1, 1], shape=(N, N)))

    def step(u, t):
        return np.sin(B @ u) + t

    def jacobian(u, t):
        J = sp.diags_array(np.cos(B @ u)) @ B
        return J if kind == "sparse" else J.toarray()

    layer = dil.fixed_point(
        step,
        dil.solvers.FixedPoint(rtol=1e-13),
        init=lambda t: 0.0 * t,
        derivatives=dil.Jacobian(jacobian, mixed=lambda u, w, t: (w,)),
        on_failure="raise",
    )
    y, (dt,) = plain.gradients(layer, (T,), V)
    np.testing.assert_allclose(step(y, T), y, rtol=1e-11)
    J = jacobian(y, T)
    np.testing.assert_allclose(dt, np.linalg.solve(np.eye(N) - np.asarray(J @ np.eye(N)).T, V), rtol=1e-9)


def test_one_factor_serves_both_directions(monkeypatch):
    import scipy.sparse.linalg as linalg

    made, splu = [], linalg.splu

    def counted(*args, **kwargs):
        made.append(1)
        return splu(*args, **kwargs)

    monkeypatch.setattr(linalg, "splu", counted)
    J, _ = layer_of(KINDS["sparse"])._linearised((T, C), {}, None)
    made.clear()
    for A, M in ((J, by_hand()[1]), (J.T, by_hand()[1].T), (J, by_hand()[1])):
        np.testing.assert_allclose(dil.linear.Auto()(A, V).value, np.linalg.solve(M, V), rtol=1e-10)
    assert len(made) == 1


@pytest.mark.parametrize("make", [lambda: dil.linear.WarmStart(dil.linear.Auto()), dil.linear.Recycle])
def test_solvers_that_remember(make):
    layer = layer_of(KINDS["sparse"], linear_solver=make())
    for shift in (0.0, 0.01, 0.0):
        _, pull = dil.vjp(lambda t: layer(t, C), T + shift)
        found = pull(V)[0]
    np.testing.assert_allclose(found, by_hand()[2], rtol=1e-10)


def test_damping_is_that_of_the_solver():
    J, _ = layer_of(KINDS["sparse"])._linearised((T, C), {}, None)
    x = dil.linear.Auto(damping=0.5)(J, V).value
    np.testing.assert_allclose(x, np.linalg.solve(by_hand()[1] + 0.5 * np.eye(N), V), rtol=1e-10)


def test_jacobians_share_one_factor(eager):
    """Many right-hand sides at once."""
    if eager.backend == "array_api_strict":
        pytest.skip("one backend by the tape and one by its own graph show what all do")
    _, J, _, _ = by_hand()
    layer, c = layer_of(KINDS["sparse"]), eager.asarray(C)
    found = eager.to_numpy(dil.jacobian(lambda t: layer(t, c))(eager.asarray(T)))
    np.testing.assert_allclose(found, np.linalg.inv(J), rtol=1e-8, atol=1e-12)


def test_data_that_changed_in_between():
    """A matrix is kept within a call, and not for the next one."""
    S = A.copy()
    layer = dil.root(
        lambda u, t: S @ u - t,
        lambda f, u, t: 0.0 * t,
        derivatives=dil.Jacobian(lambda u, t: S, mixed=lambda u, w, t: (-w,)),
        on_failure="ignore",
    )
    first = dil.vjp(layer, 0.0 * T)[1](V)[0]
    S.data *= 2.0
    np.testing.assert_allclose(dil.vjp(layer, 0.0 * T)[1](V)[0], first / 2.0)


def test_trees_and_keywords(eager):
    """An unknown of two leaves; J is that of both, one after the other."""

    def fn(u, *, a):
        return {"p": 2.0 * u["p"] - u["q"][0] - a, "q": 3.0 * u["q"] + u["p"] ** 2}

    def J(u, *, a):
        p = u["p"][0]
        assert u["q"].shape == (1, 1)
        return np.asarray([[2.0, -1.0], [2 * p, 3.0]])

    layer = dil.root(
        fn,
        dil.solvers.Newton(),
        init=lambda a: {"p": 0.0 * a, "q": 0.0 * a[:, None]},
        derivatives=dil.Jacobian(J, mixed=lambda u, w, a: ({"a": -w["p"]},)),
    )
    _, (da,) = eager.gradients(lambda a: layer(a=a)["p"], (np.asarray([1.0]),), np.asarray([1.0]))
    p = (-2 + np.sqrt(4 + 4 / 3)) / (2 / 3)  # 2 p + p^2 / 3 = 1
    np.testing.assert_allclose(da, [1 / (2 + 2 * p / 3)], rtol=1e-10)


def test_single_precision_of_a_code_in_double():
    pytest.importorskip("torch", reason="torch is not installed")
    b = dil.backend("torch", dtype="float32")
    fn = dil.Jacobian(matrix, mixed=lambda u, w, t, c: (-w.astype(float), np.sum(w * u**3)))
    y, pull = dil.vjp(layer_of(fn, lambda u, t, c: residual(u, t, c).astype(float)), b.asarray(T), b.asarray(C))
    assert y.dtype == b.xp.float32
    np.testing.assert_allclose(b.to_numpy(pull(b.asarray(V))[0]), by_hand()[2], rtol=1e-4)


def test_report_tells_the_error_of_differences():
    report = layer_of(KINDS["differences"]).report(T, C)
    assert report.ok
    assert 0 < float(report.backward.differences) < 1e-7
    assert "differences" in str(report)
    exact = layer_of(KINDS["sparse"]).report(T, C).backward
    assert exact.differences is None
    assert exact.choice == "the given matrix was factorised"


def test_the_error_of_differences_grows_with_the_bend():
    """exp(k u) bends more, the larger k is, and the estimate sees it: of order (k h)^2."""

    def error(k):
        layer = dil.root(
            lambda u, t: np.exp(k * u) - t,
            lambda f, u, t: np.log(t) / k,
            derivatives=dil.Jacobian(finite_differences=True),
            on_failure="ignore",
        )
        report = layer.report(np.asarray([np.exp(k)]), cotangent=np.ones(1))
        return float(report.backward.differences)

    assert error(100.0) == pytest.approx(100 * error(10.0), rel=0.1)


def test_only_what_is_needed(eager):
    """Reverse mode needs no forward product of the arguments."""
    only = dil.Jacobian(matrix, mixed=PRODUCTS["mixed"])
    _, (dt, _) = eager.gradients(layer_of(only), (T, C), V)
    np.testing.assert_allclose(dt, by_hand()[2], rtol=1e-10)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"mixed_jvp=\.\.\.\) was left out"):
        eager.tangent(layer_of(only), (T, C), (V, C))


@pytest.mark.parametrize(("missing", "words"), [("jvp", "needs J v"), ("vjp", r"needs J\^T w"), ("mixed", "dF/dargs")])
def test_a_product_that_is_missing_is_named(eager, missing, words):
    given = {name: fn for name, fn in PRODUCTS.items() if name != missing}
    with pytest.raises(dil.UnsupportedFunctionError, match=words):
        eager.gradients(layer_of(dil.Jacobian(**given)), (T, C), V)


def test_second_derivatives_are_refused(plain):
    layer = layer_of(KINDS["sparse"])
    t, c, v = (plain.asarray(x) for x in (T, C, V))
    xp = plain.xp

    def slope(t):
        return xp.sum(dil.grad(lambda t: xp.sum(layer(t, c) * v))(t) ** 2)

    with pytest.raises(dil.SecondDerivativeError, match="only its first derivatives are given"):
        dil.grad(slope)(t)


@pytest.mark.parametrize(
    ("J", "status"),
    [
        (lambda u, t, c: matrix(u, t, c) * np.nan, dil.Status.NON_FINITE),
        (lambda u, t, c: matrix(u, t, c).toarray() * np.nan, dil.Status.NON_FINITE),
        (lambda u, t, c: sp.csr_array(np.ones((N, N))), dil.Status.SINGULAR),
        (lambda u, t, c: np.ones((N, N)), dil.Status.SINGULAR),
        (lambda u, t, c: sp.csr_array((N, N)), dil.Status.SINGULAR),
    ],
    ids=["nan", "nan dense", "singular", "singular dense", "empty"],
)
def test_a_bad_matrix_is_told(J, status):
    layer = dil.root(
        residual, lambda f, u, t, c: by_hand()[0], derivatives=dil.Jacobian(J, **MIXED), on_failure="raise"
    )
    _, pull = dil.vjp(layer, T, C)
    with pytest.raises(dil.ConvergenceError, match=status.name):
        pull(V)


def test_a_wrong_matrix_is_told():
    layer = dil.root(
        residual,
        lambda f, u, t, c: by_hand()[0],
        derivatives=dil.Jacobian(lambda u, t, c: 2 * matrix(u, t, c), **MIXED),
        on_failure="raise",
    )
    _, pull = dil.vjp(layer, T, C)
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        pull(V)


def test_shapes_are_checked():
    with pytest.raises(dil.ShapeError, match=r"derivatives.matrix returned csr_array of shape \(3, 3\); expected J of"):
        dil.grad(lambda t: np.sum(layer_of(dil.Jacobian(lambda u, t, c: A[:3, :3], **MIXED))(t, C)))(T)
    wrong = dil.Jacobian(matrix, mixed=lambda u, w, t, c: (-w[:3], None))
    with pytest.raises(dil.ShapeError, match=r"derivatives.mixed returned arrays of shapes"):
        dil.grad(lambda t: np.sum(layer_of(wrong)(t, C)))(T)
    with pytest.raises(dil.ShapeError, match=r"the residual .* returned \(3,\)"):
        layer_of(KINDS["sparse"], lambda u, t, c: u[:3])(T, C)


def test_complex_numbers_are_refused():
    given = dil.Jacobian(lambda u, t: np.eye(2), mixed=lambda u, w, t: (-w,))
    layer = dil.root(lambda u, t: u - t, dil.solvers.Newton(), init=lambda t: t, derivatives=given)
    with pytest.raises(dil.UnsupportedFunctionError, match="as one real array"):
        layer(np.asarray([1.0 + 1.0j, 2.0]))
    J = dil.Jacobian(lambda u, t, c: 1j * matrix(u, t, c), **MIXED)
    with pytest.raises(dil.DTypeError, match="of dtype complex128; expected real ones"):
        layer_of(J)(T, C)


def test_options():
    with pytest.raises(dil.OptionError, match="gives nothing of J"):
        dil.Jacobian(mixed=PRODUCTS["mixed"])
    with pytest.raises(dil.OptionError, match=r"(?s)derivatives.matrix=.*expected a callable"):
        dil.Jacobian(A)
    with pytest.raises(dil.OptionError, match="expected True or False"):
        dil.Jacobian(matrix, finite_differences=1e-6)
    with pytest.raises(dil.OptionError, match=r"expected dil.Jacobian\(matrix"):
        dil.root(residual, dil.solvers.Newton(), derivatives=dil.Derivatives(residual))
    with pytest.raises(dil.OptionError, match="expected batch_ndim=0"):
        dil.root(residual, dil.solvers.Newton(), derivatives=KINDS["sparse"], batch_ndim=1)


def test_copies_hold_no_factor():
    given = KINDS["sparse"]
    layer_of(given)(T, C)
    assert given._last.found is not None
    assert copy.deepcopy(given)._last.found is None
    assert pickle.loads(pickle.dumps(dil.Jacobian(matrix)))._last.found is None


def test_jax_compiles_once_and_maps():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    layer = layer_of(KINDS["sparse"])
    traced = []

    @jax.jit
    def gradient(t):
        traced.append(1)
        return jax.grad(lambda t: (layer(t, C) * V).sum())(t)

    for _ in range(2):
        found = gradient(np.stack([T, T + 0.0])[0])
    np.testing.assert_allclose(found, by_hand()[2], rtol=1e-10)
    assert len(traced) == 1
    rows = jax.vmap(lambda t: layer(t, C))(np.stack([T, T + 0.0]))
    np.testing.assert_allclose(rows[1], by_hand()[0], rtol=1e-10)


@pytest.mark.parametrize("wrong", [lambda M, w: 3.0 * (M.T @ w), lambda M, w: M @ w], ids=["scaled", "not transposed"])
@pytest.mark.parametrize("by_differences", [False, True])
def test_a_product_that_is_not_the_transpose_is_an_error(wrong, by_differences):
    A = np.asarray([[3.0, 1.0, 0.0], [-2.0, 4.0, 0.5], [0.0, 1.0, 5.0]])

    def J(u):
        return A + np.diag(2.0 * u)

    jvp = None if by_differences else lambda u, v, t: J(u) @ v
    given = dil.Jacobian(
        jvp=jvp, vjp=lambda u, w, t: wrong(J(u), w), mixed=lambda u, w, t: (-w,), finite_differences=by_differences
    )
    layer = dil.root(lambda u, t: A @ u + u**2 - t, dil.solvers.Newton(), init=np.zeros_like, derivatives=given)
    with pytest.raises(dil.UnsupportedFunctionError, match="vjp is not the transpose of J"):
        dil.vjp(layer, np.ones(3))[1](np.asarray([1.0, 2.0, 3.0]))
