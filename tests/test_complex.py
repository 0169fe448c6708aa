"""Complex unknowns, arguments and states: closed forms, conventions, batches, mixed trees, second order, and words."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil

RTOL = 1e-9


def numbers(*shape, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal(shape) + 1j * draw.standard_normal(shape)


A, B, V = numbers(4, 3), numbers(4, seed=1), numbers(3, seed=2)
G = np.linalg.inv(A.conj().T @ A + np.eye(3))
Y = G @ A.conj().T @ B


def close(found, expected, rtol=RTOL):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def pulled(engine, fn, args, v):
    """Return fn(*args) and d/dRe + i d/dIm of Re <v, fn> for each argument, in every framework."""
    conjugated = np.conj if engine.backend == "jax" else lambda x: x
    y, grads = engine.gradients(fn, args, conjugated(v))
    return y, tuple(conjugated(g) for g in grads)


def square(z):
    """Return |z|^2. That of `abs` has no second derivative at zero."""
    xp = array_namespace(z)
    return xp.real(xp.conj(z) * z)


def ridge(u, A, b):
    xp = array_namespace(u)
    r = A @ u - b
    return xp.sum(square(r)) + xp.sum(square(u))


def zero(A, b):
    return 0 * (array_namespace(A).conj(A).T @ b)


def least_squares(solver=None, **options):
    return dil.argmin(ridge, solver or dil.solvers.Newton(rtol=1e-11), init=zero, **options)


def test_least_squares(engine):
    """y = (A^H A + I)^-1 A^H b; with g = (A^H A + I)^-1 v: db = A g, dA = (b - A y) g^H - A g y^H."""
    y, (dA, db) = pulled(engine, least_squares(), (A, B), V)
    g = G @ V
    close(y, Y)
    close(db, A @ g)
    close(dA, np.outer(B - A @ Y, g.conj()) - np.outer(A @ g, Y.conj()))


def test_forward_mode_of_least_squares(engine):
    t = numbers(4, seed=2)
    close(engine.tangent(lambda b: least_squares()(engine.asarray(A), b), (B,), (t,)), G @ A.conj().T @ t)


def test_square_root(engine):
    """The principal square root of each problem of a batch is holomorphic: the pullback is v -> conj(1 / (2 y)) v."""
    layer = dil.root(lambda u, b: u * u - b, dil.solvers.Newton(), init=lambda b: b + 1, batch_ndim=1)
    b, v = np.exp(numbers(6)), numbers(6, seed=1)
    b = np.where(b.real < 0, -b, b) + 1
    y, (db,) = pulled(engine, layer, (b,), v)
    close(y, np.sqrt(b))
    close(db, np.conj(1 / (2 * np.sqrt(b))) * v)
    t = numbers(6, seed=2)
    close(engine.tangent(layer, (b,), (t,)), t / (2 * np.sqrt(b)))


def conjugate_equation(u, b):
    return u + 0.3 * array_namespace(u).conj(u) - b


def conjugate_step(u, b):
    return b - 0.3 * array_namespace(u).conj(u)


@pytest.mark.parametrize(
    "layer",
    [
        dil.root(conjugate_equation, dil.solvers.Newton(), init=lambda b: b),
        dil.fixed_point(conjugate_step, dil.solvers.Anderson(rtol=1e-12), init=lambda b: b),
    ],
    ids=["root", "fixed point"],
)
def test_an_equation_that_is_not_holomorphic(engine, layer):
    """u + 0.3 conj(u) = b: u = (b - 0.3 conj(b)) / 0.91, a map of the plane that is its own adjoint."""
    b, v = numbers(3), numbers(3, seed=1)
    y, (db,) = pulled(engine, layer, (b,), v)
    close(y, (b - 0.3 * b.conj()) / 0.91)
    close(db, (v - 0.3 * v.conj()) / 0.91)


def test_value(engine):
    """min |A u - b|^2 + |u|^2 has the gradient 2 (b - A y) in b."""
    least = dil.value(ridge, dil.solvers.Newton(rtol=1e-11), init=zero)
    v, (_, db) = pulled(engine, least, (A, B), 1.0)
    close(v, np.sum(np.abs(A @ Y - B) ** 2) + np.sum(np.abs(Y) ** 2))
    close(db, 2 * (B - A @ Y))


def test_a_tree_of_complex_and_real_leaves(engine):
    """z = t b and t = c: z t = c^2 b, for an odd number of real unknowns beside the complex ones."""

    def score(u, b, c):
        return array_namespace(u["z"]).sum(square(u["z"] - u["t"] * b)) + (u["t"] - c) ** 2

    layer = dil.argmin(score, dil.solvers.Newton(rtol=1e-11), init=lambda b, c: {"t": 0 * c, "z": 0 * b})
    b, c, v = numbers(3), 1.7, numbers(3, seed=1)

    def product(b, c):
        y = layer(b, c)
        return y["z"] * y["t"]

    y, (db, dc) = pulled(engine, product, (b, c), v)
    close(y, c * c * b)
    close(db, c * c * v)
    close(dc, np.sum(np.conj(v) * 2 * c * b).real)


def test_a_real_unknown_with_a_complex_argument(engine):
    """min_u |u a - b|^2: u = Re(a^H b) / |a|^2."""
    layer = dil.argmin(
        lambda u, a, b: array_namespace(u).sum(square(u * a - b)),
        dil.solvers.Newton(rtol=1e-11),
        init=lambda a, b: 0 * array_namespace(a).abs(a[0]),
    )
    a, b = numbers(4), numbers(4, seed=1)
    u, (_, db) = pulled(engine, layer, (a, b), 2.0)
    close(u, np.vdot(a, b).real / np.vdot(a, a).real)
    close(db, 2.0 * a / np.vdot(a, a).real)


def test_a_complex_unknown_with_a_real_argument(engine):
    """min_u |u - b|^2 + w |u|^2: u = b / (1 + w)."""
    layer = dil.argmin(
        lambda u, b, w: array_namespace(u).sum(square(u - b) + w * square(u)),
        dil.solvers.Newton(rtol=1e-11),
        init=lambda b, w: 0 * b,
    )
    b, w, v = numbers(3), 0.7, numbers(3, seed=1)
    _, (db, dw) = pulled(engine, layer, (b, w), v)
    close(db, v / 1.7)
    close(dw, -np.sum(np.conj(v) * b).real / 1.7**2)


def test_differences_in_both_parts(eager):
    """The gradient of Re <v, y> in each part of an entry of A, by central differences of the layer alone."""
    layer, h = least_squares(), 1e-6
    _, (dA, _) = pulled(eager, layer, (A, B), V)

    def along(step):
        moved = A.copy()
        moved[1, 2] += step
        return np.sum(np.conj(V) * eager.to_numpy(layer(eager.asarray(moved), eager.asarray(B)))).real

    close(dA[1, 2], (along(h) - along(-h)) / (2 * h) + 1j * (along(1j * h) - along(-1j * h)) / (2 * h), 1e-7)


@pytest.mark.parametrize("kind", ["argmin", "root", "value"])
def test_second_order(plain, kind):
    def quartic(u, b):
        xp = array_namespace(u)
        return xp.sum(square(u - b) + xp.real(u * u * xp.conj(b)) ** 2)

    fn = {
        "argmin": dil.argmin(quartic, dil.solvers.Newton(), init=lambda b: b),
        "value": dil.value(quartic, dil.solvers.Newton(), init=lambda b: b),
        "root": dil.root(
            lambda u, b: u * u + 0.2 * array_namespace(u).conj(u) * b - b, dil.solvers.Newton(), init=lambda b: b
        ),
    }[kind]
    report = dil.check_gradients(fn, plain.asarray(np.asarray([1.5 + 0.3j, 1.2 - 0.4j])), order=2, directions=1)
    assert report.ok, str(report)


def test_the_convention_is_that_of_the_framework(plain):
    """The gradient of sum |y|^2 in b is that of the closed form, d/dRe + i d/dIm, or its conjugate on JAX."""

    def loss(b):
        y = least_squares()(plain.asarray(A), b)
        return array_namespace(y).sum(square(y))

    found = dil.grad(loss)(plain.asarray(B))
    expected = 2 * A @ (G @ Y)
    close(plain.to_numpy(found), expected.conj() if plain.backend == "jax" else expected)


def test_transforms_of_complex_functions(plain):
    """A holomorphic map has the pullback c -> conj(f') c and the pushforward t -> f' t. JAX has no conjugate."""
    z, c, t = numbers(3), numbers(3, seed=1), numbers(3, seed=2)

    def fn(z):
        return array_namespace(z).exp(z)

    _, pull = dil.vjp(fn, plain.asarray(z))
    slope = np.exp(z) if plain.backend == "jax" else np.conj(np.exp(z))
    close(plain.to_numpy(pull(plain.asarray(c))[0]), slope * c)
    close(plain.to_numpy(dil.jvp(fn, (plain.asarray(z),), (plain.asarray(t),))[1]), np.exp(z) * t)


SOLVERS = {
    "LBFGS": dil.solvers.LBFGS(),
    "GradientDescent": dil.solvers.GradientDescent(),
    "SciPy": dil.solvers.SciPy(),
    "closed form": lambda f, u, A, b: array_namespace(A).linalg.solve(
        array_namespace(A).conj(A).T @ A + array_namespace(A).eye(3, dtype=A.dtype), array_namespace(A).conj(A).T @ b
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(eager, name):
    """A solver of the library gets the real problem, and one of the user complex arrays."""
    y, (_, db) = pulled(eager, least_squares(SOLVERS[name], on_failure="raise"), (A, B), V)
    close(y, Y, 1e-5)
    close(db, A @ G @ V, 1e-7)


@pytest.mark.parametrize("name", ["SciPyRoot", "Anderson", "FixedPoint"])
def test_solvers_of_equations(eager, name):
    solver = getattr(dil.solvers, name)()
    layer = dil.root(conjugate_equation, solver) if name == "SciPyRoot" else dil.fixed_point(conjugate_step, solver)
    b = numbers(3)
    close(eager.to_numpy(layer(eager.asarray(b), init=eager.asarray(0 * b))), (b - 0.3 * b.conj()) / 0.91, 1e-6)


@pytest.mark.parametrize("name", ["Direct", "CG", "MINRES", "BiCGSTAB", "GMRES", "IDR", "NormalCG"])
def test_linear_solvers(eager, name):
    layer = least_squares(linear_solver=getattr(dil.linear, name)(), on_failure="raise")
    close(pulled(eager, layer, (A, B), V)[1][1], A @ G @ V, 1e-7)


def test_refine_and_the_bound(eager):
    """A rough solution is told, Newton steps repair it, and the bound of the report holds for the gradient."""
    rough = dil.solvers.GradientDescent(rtol=1e-1)
    args = (eager.asarray(A), eager.asarray(B))
    cotangent = eager.asarray(V)
    found = least_squares(rough).report(*args, cotangent=cotangent)
    assert 0 < float(found.backward.stationarity) < 1
    refined = least_squares(rough, refine=1, on_failure="raise")
    close(pulled(eager, refined, (A, B), V)[1][1], A @ G @ V)
    assert float(refined.report(*args, cotangent=cotangent).backward.bound) < 1e-10


def test_a_point_that_is_no_solution_is_told(eager):
    layer = least_squares(lambda f, u, A, b: u + 1j)
    _, pull = dil.vjp(layer, eager.asarray(A), eager.asarray(B))
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        pull(eager.asarray(V))


def test_single_precision(plain):
    single = [plain.xp.asarray(plain.asarray(x), dtype=plain.xp.complex64) for x in (A, B)]
    y, pull = dil.vjp(least_squares(dil.solvers.Newton()), *single)
    found = pull(plain.xp.ones_like(y))[1]
    assert y.dtype == found.dtype == plain.xp.complex64
    close(plain.to_numpy(found), (A @ G @ np.ones(3)).conj() if plain.backend == "jax" else A @ G @ np.ones(3), 1e-5)


def test_a_real_argument_of_the_shape_of_the_parts(plain):
    """A layer is called with complex (3,), then with real (3, 2): a program of the first does not serve the second."""
    layer = dil.argmin(
        lambda u, b: array_namespace(u).sum(square(u - b)),
        dil.solvers.Newton(),
        init=lambda b: 0 * b,
    )
    z = numbers(3)
    for b in (z, np.stack([z.real, z.imag], axis=-1), z):
        y = layer(plain.asarray(b))
        assert tuple(y.shape) == b.shape
        close(plain.to_numpy(y), b)


def eigenvector(eager):
    """Return the layer of the lowest eigenvector of a Hermitian matrix, normalised, and the matrix."""
    M = np.asarray([[2.0, 0.3 + 0.4j, 0.1j], [0.3 - 0.4j, 1.0, 0.2], [-0.1j, 0.2, 3.0]])
    values, vectors = np.linalg.eigh(M)
    start = {"v": eager.asarray(vectors[:, 0]), "value": eager.asarray(values[0])}

    def residual(u, M):
        v = u["v"]
        xp = array_namespace(v)
        return {"v": M @ v - u["value"] * v, "value": xp.real(xp.sum(xp.conj(v) * v)) - 1.0}

    return dil.root(residual, lambda f, u, M: start), M, vectors[:, 0]


def test_the_phase_of_an_eigenvector_is_a_null_direction(eager):
    """What depends on the phase has no derivative, and is told; what does not has one, and is quiet."""
    layer, M, v = eigenvector(eager)
    _, pull = dil.vjp(layer, eager.asarray(M))
    nothing = eager.asarray(0.0)
    with pytest.warns(dil.ConvergenceWarning, match="SINGULAR"):
        pull({"v": eager.asarray(1j * v), "value": nothing})
    (dM,) = pull({"v": eager.asarray(0 * v), "value": eager.asarray(1.0)})
    close(eager.to_numpy(dM), np.outer(v, v.conj()))


def test_odeint(plain):
    """y' = i w y turns y by exp(i w t)."""

    def end(y0, w):
        y = dil.ode.odeint(lambda t, y, w: 1j * w * y, y0, [0.0, 0.5], args=(w,), method="sdirk3", steps=20)
        return y[-1, ...]

    y0, w, v = numbers(2), np.asarray([1.3, 0.4]), numbers(2, seed=1)
    y, (dy, dw) = pulled(plain, end, (y0, w), v)
    turn = np.exp(0.5j * w)
    close(y, turn * y0, 1e-5)
    close(dy, turn.conj() * v, 1e-5)
    close(dw, (v.conj() * 0.5j * turn * y0).real, 1e-5)


def test_a_stiff_odeint_with_a_complex_argument(eager):
    def end(y0, w):
        return dil.ode.odeint(lambda t, y, w: w * y + 0.1 * array_namespace(y).conj(y), y0, [0.0, 0.3], args=(w,))

    report = dil.check_gradients(end, eager.asarray(numbers(2)), eager.asarray(numbers(2, seed=1) - 3), directions=1)
    assert report.ok, str(report)


def test_user_derivatives(plain):
    """They are in the convention of the framework, so that they may be made by its own transforms."""
    given = dil.Derivatives(gradient=lambda u, A, b: dil.grad(ridge)(u, A, b))
    layer = dil.argmin(ridge, dil.solvers.LBFGS(rtol=1e-10), init=zero, derivatives=given)
    close(pulled(plain, layer, (A, B), V)[1][1], A @ G @ V, 1e-7)

    def hvp(u, p, A, b):
        xp = array_namespace(u)
        product = 2 * (xp.conj(A).T @ (A @ p) + p)
        return xp.conj(product) if plain.backend == "jax" else product

    def mixed(u, p, A, b):
        product = -2 * (A @ p)  # A is given, and has no derivative
        return None, array_namespace(u).conj(product) if plain.backend == "jax" else product

    given = dil.Derivatives(gradient=given.gradient, hvp=hvp, mixed=mixed)
    layer = dil.argmin(ridge, dil.solvers.LBFGS(rtol=1e-10), init=zero, derivatives=given)
    close(pulled(plain, lambda b: layer(plain.asarray(A), b), (B,), V)[1][0], A @ G @ V, 1e-7)


ERRORS = {
    "score": (
        dil.argmin(lambda u, b: array_namespace(u).sum(array_namespace(u).conj(u - b) * (u - b)), dil.solvers.Newton()),
        dil.DTypeError,
        r"returned a complex number, of dtype .*complex128; a score is real.* take xp.real\(",
    ),
    "real residual": (
        dil.root(lambda u, b: array_namespace(u).abs(u - b), dil.solvers.Newton()),
        dil.ShapeError,
        r"returned \(3,\) of .*float64; expected \(3,\) \(complex\) of .*float64, like the unknown",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_refused(eager, kind):
    layer, error, text = ERRORS[kind]
    b = eager.asarray(numbers(3))
    with pytest.raises(error, match=text):
        layer(b, init=0 * b)


def test_precisions_are_not_mixed(eager):
    b = eager.asarray(numbers(3))
    narrow = eager.xp.asarray(b, dtype=eager.xp.complex64)
    layer = dil.root(lambda u, a, b: u - a - b, dil.solvers.Newton(), init=lambda a, b: b)
    with pytest.raises(dil.DTypeError, match=r"0 has complex numbers of dtype .*float32, but argument 1 has complex"):
        layer(narrow, b)


def test_a_linear_solver_by_itself_is_real(eager):
    b = eager.asarray(numbers(3))
    with pytest.raises(dil.DTypeError, match="a complex system is a real one of twice the size"):
        dil.linear.CG()(lambda p: p, b)


def test_grad_of_a_complex_value_is_refused(eager):
    with pytest.raises(dil.DTypeError, match=r"real floating result.*take the real part"):
        dil.grad(lambda z: array_namespace(z).sum(z * z))(eager.asarray(numbers(3)))


def test_a_handle_keeps_the_imaginary_part(plain):
    handle = dil.backend(plain.backend, dtype="float32")
    for x in (1 + 2j, [1 + 2j], np.asarray([1 + 2j])):
        made = handle.asarray(x)
        assert made.dtype == handle.xp.complex64
        assert complex(handle.to_numpy(made).reshape(-1)[0]) == 1 + 2j
