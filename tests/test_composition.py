"""Layers composed with layers, losses, loops and threads: one source by dil's transforms, the same on every backend."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
import dil._frameworks.registry
from dil._diagnostics import record as _record


def diagonal(A, b, /, *, loop=None):
    """Solve as `Direct` does; on JAX by the diagonal alone, which is all there is here and compiles in no time."""
    if dil._frameworks.registry.owner(b).NATIVE == "jax":
        return dil.Solution(b / A(array_namespace(b).ones_like(b)))
    return dil.linear.Direct()(A, b, loop=loop)


def run(engine, fn, *args):
    """Evaluate fn at arrays of the engine, in one compiled program where there is a compiler; return NumPy arrays."""
    args = tuple(engine.asarray(x) for x in args)
    if engine.backend == "jax":
        import jax

        fn = jax.jit(fn)
    return tuple(np.asarray(engine.to_numpy(x)) for x in fn(*args))


def close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# --- derivatives of derivatives, in every order of the two modes ---


def anomaly(M, e):
    """The E of Kepler's equation, to rounding, with the numbers alone."""
    E = M
    for _ in range(20):
        E = E - (E - e * np.sin(E) - M) / (1 - e * np.cos(E))
    return E


def by_solver(solve):
    """Return a black box: no derivative passes NumPy."""

    def solver(fun, init, *args):
        backend = dil._frameworks.registry.owner(args[0])
        return backend.loops.on_host(lambda *xs: (_into(xs[0], solve(*map(backend.to_numpy, xs))),), args[:1], *args)[0]

    return solver


def _into(like, x):
    xp = array_namespace(like)
    return xp.asarray(x.tolist(), dtype=like.dtype, device=like.device)


def fixed(t):
    y = 0.7 + 0 * t
    for _ in range(30):
        y = y - (y - np.cos(y) - t) / (1 + np.sin(y))
    return y


def kepler_residual(E, M, e):
    return E - e * array_namespace(E).sin(E) - M


def kepler_score(E, M, e):
    return 0.5 * kepler_residual(E, M, e) ** 2


def cosine(y, t):
    return array_namespace(y).cos(y) + t


LAYERS = {
    "kepler": (dil.root(kepler_residual, by_solver(anomaly), linear_solver=diagonal), (1.0, 0.3)),
    "kepler-score": (dil.argmin(kepler_score, by_solver(anomaly), linear_solver=diagonal), (1.0, 0.3)),
    "cosine": (dil.fixed_point(cosine, by_solver(fixed), linear_solver=diagonal), (0.0,)),
}


def kepler_second():
    """Derivatives of E in M and e at M = 1, e = 0.3: first, then d2/dM2, d2/dMde, d2/de2."""
    e, E = 0.3, anomaly(1.0, 0.3)
    s, c = np.sin(E), np.cos(E)
    D = 1 - e * c
    slope, bend = s / D, (c - e * s * s / D) / D**2
    return E, (1 / D, slope), (-e * s / D**3, bend, c * slope / D + s * bend)


def cosine_second():
    y = fixed(0.0)
    slope = 1 / (1 + np.sin(y))
    return y, (slope,), (-np.cos(y) * slope**3,)


EXACT = {"kepler": kepler_second, "kepler-score": kepler_second, "cosine": cosine_second}


def second_derivatives(layer, args, order):
    """Return the upper triangle of the Hessian by one order of the modes: "rr" is reverse over reverse."""
    xp = array_namespace(args[0])
    one, zero = xp.ones_like(args[0]), xp.zeros_like(args[0])
    units = [[one if i == j else zero for j in range(len(args))] for i in range(len(args))]
    everything = tuple(range(len(args)))

    def first(*xs):
        if order[1] == "r":
            return dil.grad(layer, everything)(*xs)
        return tuple(dil.jvp(layer, xs, unit)[1] for unit in units)

    if order[0] == "r":
        _, pull = dil.vjp(first, *args)
        rows = [pull(tuple(unit)) for unit in units]
    else:
        rows = [dil.jvp(first, args, unit)[1] for unit in units]
    return tuple(x for i in everything for x in rows[i][i:])


@pytest.mark.transform("second derivatives: reverse and forward mode, in all four orders")
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(plain, name):
    """Closed forms 4 and 5 to 1e-8; the orders agree to 1e-10 of the largest."""
    layer, args = LAYERS[name]
    if plain.backend == "jax" and name == "kepler-score":
        pytest.skip("JAX compiles for long, and the residual of the same equation is tested on it")
    y, first, second = EXACT[name]()

    def both(*args):
        value, slopes = dil.value_and_grad(layer, tuple(range(len(args))))(*args)
        orders = [second_derivatives(layer, args, order) for order in ("rr", "rf", "fr", "ff")]
        return value, *slopes, *(x for order in orders for x in order)

    found = np.asarray(run(plain, both, *args))
    close(found[0], y, 1e-12)
    close(found[1 : 1 + len(args)], first, 1e-10)
    orders = found[1 + len(args) :].reshape(4, -1)
    close(orders, np.broadcast_to(second, orders.shape), 1e-8)
    close(orders, np.broadcast_to(orders[0], orders.shape), 1e-10)


# --- layers within layers ---


def shrunk(w, u, c):
    """Its minimiser is u / (1 + c)."""
    return array_namespace(w).sum(0.5 * (w - u) ** 2 + 0.5 * c * w**2)


INNER = dil.argmin(shrunk, lambda fun, init, u, c: u / (1 + c), linear_solver=diagonal)


def outer(u, t, c):
    """1/2 (u - t)^2 + 1/2 w(u)^2 with w(u) = u / (1 + c)."""
    return array_namespace(u).sum(0.5 * (u - t) ** 2 + 0.5 * INNER(u, c) ** 2)


T, C, V = np.asarray([1.0, -2.0]), np.asarray(0.5), np.asarray([0.3, 0.7])


def exact_outer(t, c, v):
    """The minimiser u = t / (1 + 1 / (1 + c)^2), and its pullback."""
    k = 1 + 1 / (1 + c) ** 2
    return t / k, v / k, (v @ t) * 2 / (1 + c) ** 3 / k**2


@pytest.mark.transform("a layer in the score of a layer")
def test_a_layer_in_the_score_of_a_layer(plain):
    """The Hessian of the outer score holds second derivatives of the inner layer."""
    newton = dil.solvers.Newton(rtol=1e-11)
    solver = newton if plain.backend != "jax" else lambda fun, init, t, c: t / (1 + 1 / (1 + c) ** 2)
    layer = dil.argmin(outer, solver, init=lambda t, c: 0.0 * t, linear_solver=diagonal)

    def both(t, c, v):
        u, pull = dil.vjp(layer, t, c)
        return u, *pull(v)

    for found, expected in zip(run(plain, both, T, C, V), exact_outer(T, C, V), strict=True):
        close(found, expected)


@pytest.mark.transform("a layer in the solver of a layer")
def test_a_layer_in_the_solver_of_a_layer(plain):
    """u + u^3 = t by a solver that asks another layer, sqrt, for Cardano's formula."""
    sqrt = dil.root(lambda w, x: w * w - x, lambda fun, init, x: x**0.5, linear_solver=diagonal)

    def cardano(fun, init, t):
        xp = array_namespace(t)

        def cube_root(z):
            return xp.sign(z) * xp.abs(z) ** (1 / 3)

        root = sqrt(0.25 * t * t + 1 / 27)
        return cube_root(0.5 * t + root) + cube_root(0.5 * t - root)

    layer = dil.root(lambda u, t: u + u**3 - t, cardano, linear_solver=diagonal)
    u, slope = run(plain, dil.value_and_grad(layer), np.asarray(1.5))
    close(u + u**3, 1.5, 1e-12)
    close(slope, 1 / (1 + 3 * u**2))


@pytest.mark.transform("a layer of another layer's output, within a loss, within vjp")
def test_chained_layers_within_a_loss(plain):
    """A gradient step on a loss of two chained layers, pulled back: second derivatives of both."""

    def cube(u, t):
        return u + u**3 - t

    def cardano(t):
        half = np.sqrt(0.25 * t * t + 1 / 27)
        return np.cbrt(0.5 * t + half) + np.cbrt(0.5 * t - half)

    root = dil.root(cube, by_solver(cardano), linear_solver=diagonal)

    def loss(t, c):
        return array_namespace(t).sum(root(INNER(t, c)) ** 2)

    def step(t, c):
        return t - 0.1 * dil.grad(loss)(t, c)

    def both(t, c, v):
        new, pull = dil.vjp(step, t, c)
        return new, *pull(v)

    new, dt, dc = run(plain, both, T, C, V)
    z = T / (1 + C)
    u = cardano(z)
    d1 = 1 / (1 + 3 * u**2)
    d2 = -6 * u * d1**3
    bent = 2 * d1**2 + 2 * u * d2  # of u(z)^2
    close(new, T - 0.1 * 2 * u * d1 / (1 + C))
    close(dt, V * (1 - 0.1 * bent / (1 + C) ** 2))
    close(dc, np.sum(V * 0.1 * (bent * T / (1 + C) ** 3 + 2 * u * d1 / (1 + C) ** 2)))


# --- a recurrent loop ---


@pytest.mark.transform("a layer in a recurrent loop of 100 steps")
def test_a_recurrent_loop(plain):
    """Implicit Euler on y' = -l y: after 100 steps y = (1 + h l)^-100 (closed form 8)."""
    h, steps = 0.01, 100
    layer = dil.root(
        lambda u, y, rate: u + h * rate * u - y, lambda fun, init, y, rate: y / (1 + h * rate), linear_solver=diagonal
    )

    def last(y, rate):
        if plain.backend == "jax":
            import jax

            return jax.lax.scan(lambda y, _: (layer(y, rate), None), y, None, length=steps)[0]
        for _ in range(steps):
            y = layer(y, rate)
        return y

    def both(y, rate):
        return *dil.value_and_grad(last, (0, 1))(y, rate)[1], dil.jvp(last, (y, rate), (None, rate))[1]

    rate = 30.0
    dy, drate, moved = run(plain, both, np.asarray(2.0), np.asarray(rate))
    close(dy, (1 + h * rate) ** -steps)
    close(drate, -2.0 * steps * h * (1 + h * rate) ** -(steps + 1))
    close(moved, rate * drate, 1e-10)


# --- threads ---


def exact_inner(t, c, v):
    return t / (1 + c), v / (1 + c), -(v @ t) / (1 + c) ** 2


@pytest.mark.transform("one layer in two threads at once")
def test_two_threads_share_a_layer(plain):
    def both(t, c, v):
        u, pull = dil.vjp(INNER, t, c)
        return u, *pull(v)

    if plain.backend == "jax":
        import jax

        both = jax.jit(both)
    inputs = [[plain.asarray(x) for x in ((1 + k) * T, C + k, V)] for k in range(2)]
    count = 10
    start, found, errors = threading.Barrier(2), {}, []

    def work(k):
        try:
            start.wait()
            found[k] = [[plain.to_numpy(x) for x in both(*inputs[k])] for _ in range(count)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for k in range(2):
        alone = [plain.to_numpy(x) for x in both(*inputs[k])]
        for repeated in found[k]:
            for x, y in zip(repeated, alone, strict=True):
                np.testing.assert_array_equal(x, y)
        for x, y in zip(alone, exact_inner(*map(plain.to_numpy, inputs[k])), strict=True):
            close(x, y)


def test_a_record_that_another_thread_closes_takes_no_entry_from_the_next():
    first, second = dil.record(), dil.record()

    class Closing(list):
        def append(self, entry):
            _record.ALL_OPEN.remove(first)  # as the end of another thread's `with` does

    first.entries = Closing()
    with second:
        first.__enter__()
        INNER(T, C)
        first._stack.close()  # as that end does, too
    assert len(second.entries) == 1
