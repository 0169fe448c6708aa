"""dil.jacobian: closed forms, its laws beside dil.vjp and dil.jvp, one solve for all rows, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil._frameworks import jacobians
from dil.linear import _direct
from messages import to_float32, to_int

DRAW = np.random.default_rng(0)
N, P = 4, 2
A = np.eye(N) + 0.3 * DRAW.standard_normal((N, N))
B = DRAW.standard_normal((N, P))
T = np.asarray([0.4, -0.7])


def linear(u, A, B, t):
    return A @ u - B @ t


def bent(u, A, B, t):
    xp = array_namespace(u)
    return A @ u + 0.2 * xp.tanh(A.mT @ u) - B @ xp.sin(t)


def exactly(fun, init, A, B, t):
    """Solve the linear problem by a black box."""
    return array_namespace(A).linalg.solve(A, (B @ t)[:, None])[:, 0]


LINEAR = dil.root(linear, exactly)
BENT = dil.root(bent, dil.solvers.Newton(), init=lambda A, B, t: 0.0 * (B @ t))


def compiled(engine, fn, *args):
    """Return the arrays of fn(*args) as NumPy arrays, computed by one program where there is a compiler."""
    if engine.backend == "jax":
        import jax

        fn = jax.jit(fn)
    return [np.asarray(engine.to_numpy(x)) for x in fn(*map(engine.asarray, args))]


def close(found, expected, tolerance=1e-10):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-300))


# --- the numbers ---


def test_closed_form_and_laws(plain):
    """In t by pushforwards, which are fewer; in A, and in both, by pullbacks. J v is the jvp and w J the vjp."""
    v, w = DRAW.standard_normal(P), DRAW.standard_normal(N)

    def everything(A, B, t, v, w):
        in_t = dil.jacobian(LINEAR, 2)(A, B, t)
        in_A, again = dil.jacobian(LINEAR, (0, -1))(A, B, t)
        pushed = dil.jvp(LINEAR, (A, B, t), (None, None, v))[1]
        pulled_A, _, pulled_t = dil.vjp(LINEAR, A, B, t)[1](w)
        return in_t, in_A, again, pushed, pulled_A, pulled_t

    in_t, in_A, again, pushed, pulled_A, pulled_t = compiled(plain, everything, A, B, T, v, w)
    inverse, y = np.linalg.inv(A), np.linalg.solve(A, B @ T)
    close(in_t, inverse @ B)
    close(again, inverse @ B)
    close(in_A, -inverse[:, :, None] * y)
    close(in_t @ v, pushed)
    close(w @ in_t, pulled_t)
    close(np.tensordot(w, in_A, 1), pulled_A)


def test_second_derivatives_of_a_closed_form(plain):
    """y(s) = y(1) / s for the matrix s A: the Jacobian of the Jacobian, and of a gradient, at s = 2."""

    def everything(A, B, t, s):
        def path(s):
            return LINEAR(s * A, B, t)

        def loss(s):
            return array_namespace(s).sum(path(s[0] * s[1]) ** 2)

        xp = array_namespace(s)
        return dil.jacobian(dil.jacobian(path))(s), dil.jacobian(dil.grad(loss))(xp.stack([s, 1.0 + 0.0 * s]))

    y = np.linalg.solve(A, B @ T)
    bend, hessian = compiled(plain, everything, A, B, T, 2.0)
    close(bend, y / 4)
    c = y @ y  # the loss is c / (s0 s1)^2, at (2, 1)
    close(hessian, c * np.asarray([[6 / 16, 4 / 8], [4 / 8, 6 / 4]]))


@pytest.mark.parametrize("fewer", ["pullbacks", "pushforwards"])
def test_jacobians_of_jacobians_and_finite_differences(eager, fewer):
    """A smooth layer, with more or with fewer results than arguments, against differences of the order before."""
    rows = slice(None) if fewer == "pushforwards" else slice(1)
    a, b = eager.asarray(A), eager.asarray(B)

    def layer(t):
        return BENT(a, b, t)[rows]

    step, slopes = 1e-5, dil.jacobian(layer)
    for fn, tolerance in ((layer, 1e-8), (slopes, 1e-8)):
        ways = [eager.asarray(T + sign * step * e) for e in np.eye(P) for sign in (1, -1)]
        values = [eager.to_numpy(fn(t)) for t in ways]
        expected = np.stack([(up - down) / (2 * step) for up, down in zip(values[::2], values[1::2], strict=True)], -1)
        close(eager.to_numpy(dil.jacobian(fn)(eager.asarray(T))), expected, tolerance)
    third = eager.to_numpy(dil.jacobian(dil.jacobian(slopes))(eager.asarray(T)))
    for axes in ((0, 2, 1, 3), (0, 1, 3, 2)):
        close(np.transpose(third, axes), third, 1e-9)


def test_hessian_of_a_loss(eager):
    a, b = eager.asarray(A), eager.asarray(B)

    def loss(t):
        return array_namespace(t).sum(BENT(a, b, t) ** 2)

    found = eager.to_numpy(dil.jacobian(dil.grad(loss))(eager.asarray(T)))
    close(found, found.T, 1e-12)
    v = eager.asarray(np.asarray([1.0, -2.0]))
    close(found @ eager.to_numpy(v), eager.to_numpy(dil.jvp(dil.grad(loss), (eager.asarray(T),), (v,))[1]))


def test_a_batch_of_problems(eager):
    """The Jacobian of a batch has a block for each problem, and zeros between them."""
    layer = dil.argmin(
        lambda u, x: array_namespace(u).sum(0.5 * (u - x) ** 2 + 0.25 * u**4, axis=-1),
        dil.solvers.Newton(),
        init=lambda x: 0.0 * x,
        batch_ndim=1,
    )
    x = DRAW.standard_normal((3, 2))
    y = eager.to_numpy(layer(eager.asarray(x)))
    found = eager.to_numpy(dil.jacobian(layer)(eager.asarray(x)))
    close(found.reshape(6, 6), np.diag((1 / (1 + 3 * y**2)).reshape(-1)))


def test_a_differential_equation(eager):
    def end(k):
        return dil.ode.odeint(lambda t, y, k: -k * y, eager.asarray(np.ones(2)), eager.asarray([0.0, 1.0]), (k,))[
            -1, ...
        ]

    k = eager.asarray([0.5, 1.5])
    columns = [eager.to_numpy(dil.jvp(end, (k,), (eager.asarray(e),))[1]) for e in np.eye(2)]
    close(eager.to_numpy(dil.jacobian(end)(k)), np.stack(columns, -1))


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_passes_in_several_batches(monkeypatch, eager, shape):
    argnum = 2 if shape == "tall" else 0
    args = [eager.asarray(x) for x in (A, B, T)]
    whole = eager.to_numpy(dil.jacobian(BENT, argnum)(*args))
    monkeypatch.setattr(jacobians, "NUMBERS_AT_ONCE", 1)
    close(eager.to_numpy(dil.jacobian(BENT, argnum)(*args)), whole)


# --- one factorisation ---


@pytest.mark.parametrize(("argnum", "most"), [(0, 4), (2, 5)], ids=["pullbacks", "pushforwards"])
def test_all_rows_share_a_matrix(monkeypatch, eager, argnum, most):
    """The number of matrices, and of calls of the residual, is the same for 10 unknowns as for 40."""
    calls, made, build = [], [], _direct.dense
    monkeypatch.setattr(_direct, "dense", lambda *args: made.append(1) or build(*args))

    def residual(u, A, B, t):
        calls.append(1)
        return bent(u, A, B, t)

    counts = []
    for n in (40, 80):
        a, b = np.eye(n) + 0.1 * DRAW.standard_normal((n, n)) / n**0.5, DRAW.standard_normal((n, P))
        args = [eager.asarray(x) for x in (a, b, T)]
        layer = dil.root(
            residual, dil.solvers.Newton(), init=lambda A, B, t: 0.0 * (B @ t), linear_solver=dil.linear.Direct()
        )
        layer(*args)
        dil.jacobian(layer, argnum)(*args)  # the first call looks for kinks
        calls.clear()
        layer(*args)
        forward, forward_made = len(calls), 0
        calls.clear()
        made.clear()
        layer(*args)
        forward_made = len(made)
        calls.clear()
        made.clear()
        found = dil.jacobian(layer, argnum)(*args)
        counts.append((len(calls) - forward, len(made) - forward_made))
        assert found.shape == (n, *args[argnum].shape)
    assert counts[0] == counts[1]
    assert counts[0][0] <= 4
    assert counts[0][1] <= most


def test_rows_that_are_not_solved_are_told(eager):
    layer = dil.root(lambda u, x: u * u - x, lambda fun, init, x: 0.0 * x, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="SINGULAR"):
        dil.jacobian(layer)(eager.asarray(np.zeros(3)))


def test_a_record_has_an_entry_for_each_row():
    with dil.record() as seen:
        dil.jacobian(LINEAR)(A, B, T)
    assert len(seen.backward) == N


# --- trees, dtypes, complex numbers ---


def test_trees_of_arguments_and_results(plain):
    xp, x = plain.xp, plain.asarray([1.0, 2.0])
    tree = {"w": x, "count": to_int(x), "name": "a"}

    def fn(scale, tree):
        xp = array_namespace(tree["w"])
        return {"y": scale * tree["w"], "total": (xp.sum(tree["w"] ** 2), 3), "index": tree["count"]}

    found = dil.jacobian(fn, (1, 0))(plain.asarray(3.0), tree)
    assert found["index"] is None
    assert found["total"][1] is None
    in_tree, in_scale = found["y"]
    assert in_tree["count"] is None
    close(plain.to_numpy(in_tree["w"]), 3.0 * np.eye(2))
    close(plain.to_numpy(in_scale), [1.0, 2.0])
    close(plain.to_numpy(found["total"][0][0]["w"]), [2.0, 4.0])
    close(plain.to_numpy(found["total"][0][1]), 0.0)
    by_name = dil.jacobian(lambda a, *, b: a * b)(x, b=xp.flip(x))
    close(plain.to_numpy(by_name), np.diag([2.0, 1.0]))


@pytest.mark.parametrize("fewer", ["pullbacks", "pushforwards"])
def test_the_dtype_is_that_of_the_argument(eager, fewer):
    xp = eager.xp
    x = to_float32(eager.asarray([1.0, 2.0, 3.0]))
    rows = 4 if fewer == "pushforwards" else 1
    found = dil.jacobian(lambda x: xp.astype(x[0] * x[1:2], xp.float64) * eager.asarray(np.ones(rows)))(x)
    assert found.dtype == xp.float32
    assert found.shape == (rows, 3)
    mixed = dil.jacobian(lambda a, b: xp.astype(a, xp.float64) * b, (0, 1))(x, eager.asarray(np.ones(3)))
    assert [j.dtype for j in mixed] == [xp.float32, xp.float64]


@pytest.mark.parametrize("rows", [1, 5])
def test_complex_results_of_real_arguments(plain, rows):
    c = (1.0 + np.arange(rows))[:, None] * np.asarray([1 + 2j, 3 - 1j])
    given = plain.asarray(c)
    found = dil.jacobian(lambda x: given @ array_namespace(x).astype(x, given.dtype))(plain.asarray([1.0, 2.0]))
    close(plain.to_numpy(found), c)


def test_real_results_of_complex_arguments_are_gradients(plain):
    z = plain.asarray(np.asarray([1 + 2j, 3 - 1j]))

    def squares(z):
        xp = array_namespace(z)
        return xp.real(z * z)

    found = plain.to_numpy(dil.jacobian(squares)(z))
    rows = [plain.to_numpy(dil.grad(lambda z, i=i: squares(z)[i])(z)) for i in range(2)]
    close(found, np.stack(rows))


def test_complex_results_of_complex_arguments_are_refused(eager):
    xp, z = eager.xp, eager.asarray(np.asarray([1 + 2j, 3 - 1j]))
    with pytest.raises(dil.DTypeError, match=r"dil.jacobian\(lambda a, b: fn\(a \+ 1j \* b\), \(0, 1\)\)"):
        dil.jacobian(lambda z: z * z)(z)
    real, imaginary = dil.jacobian(lambda a, b: (a + 1j * b) ** 2, (0, 1))(xp.real(z), xp.imag(z))
    slope = np.diag(2 * eager.to_numpy(z))
    close(eager.to_numpy(real), slope)
    close(eager.to_numpy(imaginary), 1j * slope)


def test_a_complex_layer(eager):
    """A u = b t for a complex A and a real t."""
    a, b = A + 0.2j * A.T, B + 1j * B[::-1]
    layer = dil.root(
        lambda u, t: eager.asarray(a) @ u - eager.asarray(b) @ eager.xp.astype(t, u.dtype),
        dil.solvers.Newton(),
        init=lambda t: eager.asarray(np.zeros(N, complex)),
    )
    close(eager.to_numpy(dil.jacobian(layer)(eager.asarray(T))), np.linalg.solve(a, b))


# --- bad input ---


def test_no_dependence_is_zero(plain):
    x, c = plain.asarray([1.0, 2.0]), plain.asarray(np.ones(3))
    for found in (dil.jacobian(lambda x: c)(x), dil.jacobian(lambda x: c * dil.constant(x)[0])(x)):
        np.testing.assert_array_equal(plain.to_numpy(found), np.zeros((3, 2)))


@pytest.mark.parametrize(("given", "returned"), [(0, 3), (3, 0), (0, 0)])
def test_empty_arrays(plain, given, returned):
    xp = plain.xp
    x = plain.asarray(np.ones(given))
    found = dil.jacobian(lambda x: array_namespace(x).sum(x) * plain.asarray(np.ones(returned)))(x)
    assert found.shape == (returned, given)
    assert found.dtype == xp.float64


@pytest.mark.parametrize("argnums", [1, -2, (0, 3), (0, 0), (0, -1), "x", ()], ids=str)
def test_wrong_argnums(plain, argnums):
    with pytest.raises(dil.OptionError, match="argnums="):
        dil.jacobian(lambda x: x, argnums)(plain.asarray([1.0]))


def test_arguments_and_results_without_a_derivative(plain):
    x = plain.asarray([1.0, 2.0])
    with pytest.raises(dil.DTypeError, match="argument 0 holds no floating array but"):
        dil.jacobian(lambda x: x)(to_int(x))
    for fn in (to_int, lambda x: None, lambda x: {"a": "b"}, lambda x: True):
        with pytest.raises(dil.DTypeError, match="jacobian needs a function that returns floating arrays; this one"):
            dil.jacobian(fn)(x)


def test_a_python_number_as_the_result(plain):
    x = plain.asarray([1.0, 2.0])
    if plain.backend == "torch":
        with pytest.raises(dil.ShapeError, match=r"returns floating arrays; .* which float\(\) or item\(\) may"):
            dil.jacobian(lambda x: 3.0)(x)
        return
    np.testing.assert_array_equal(plain.to_numpy(dil.jacobian(lambda x: 3.0)(x)), np.zeros(2))
    close(dil.jacobian(lambda x: x**2)(3.0), 6.0)


# --- torch ---


def test_torch_has_a_graph_and_maps():
    torch = pytest.importorskip("torch")
    a, b, t = (torch.tensor(x) for x in (A, B, T))
    slopes = dil.jacobian(lambda t: BENT(a, b, t))
    t.requires_grad_()
    slopes(t).sum().backward()
    total = torch.func.jacrev(torch.func.jacrev(lambda t: BENT(a, b, t)))(t.detach()).sum((0, 1))
    torch.testing.assert_close(t.grad, total)
    assert not slopes(t.detach()).requires_grad
    rows = torch.stack([t.detach(), 2 * t.detach()])
    torch.testing.assert_close(torch.func.vmap(slopes)(rows)[1], slopes(rows[1]))
    torch.testing.assert_close(torch.func.jacfwd(slopes)(t.detach()).sum((0, 1)), total)


def test_torch_functions_with_a_first_derivative_only():
    """They have no pushforward, so that pullbacks are taken though they are more."""
    torch = pytest.importorskip("torch")

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g

    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = dil.jacobian(lambda x: Once.apply(x).repeat(2))(x)
    torch.testing.assert_close(found, 2 * torch.eye(2, dtype=torch.float64).repeat(2, 1))
