"""Batches: three ways to many problems give the same numbers, the hardest sets the cost, and bad ones stay alone."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.linear import CG, MINRES, Auto, Direct
from dil.solvers import LBFGS, GradientDescent, Newton

COUNT, N = 4, 3


def product(A, u):
    """A u for one problem or a batch."""
    return array_namespace(u).matmul(A, u[..., None])[..., 0]


def score(u, A, b, c):
    """A convex quartic: 1/2 u^T A u - b^T u + c/4 sum u^4; c is shared."""
    xp = array_namespace(u)
    return xp.sum(0.5 * u * product(A, u) - b * u + 0.25 * c * u**4, axis=-1)


def spd(eigenvalues, seed):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))[0]
    return (Q * np.asarray(eigenvalues)) @ Q.T


def start(A, b, c):
    return array_namespace(b).zeros_like(b)


def make(batch_ndim, linear_solver, solver=None):
    solver = solver or Newton(rtol=1e-11)
    return dil.argmin(score, solver, batch_ndim=batch_ndim, init=start, linear_solver=linear_solver)


PROBLEMS = (
    np.stack([spd([1.0, 2.0, 1.0 + 3.0 * i], i) for i in range(COUNT)]),
    np.random.default_rng(0).standard_normal((COUNT, N)),
    np.asarray(0.3),
)
WEIGHTS = np.random.default_rng(1).standard_normal((COUNT, N))


def pulled(layer):
    def both(A, b, c, v):
        y, pull = dil.vjp(layer, A, b, c)
        return y, *pull(v)

    return both


def by_jax_vmap(fn, *args):
    import jax

    return jax.jit(jax.vmap(fn, in_axes=(0, 0, None, 0)))(*args)


def by_torch_vmap(fn, *args):
    import torch

    return torch.func.vmap(fn, in_dims=(0, 0, None, 0))(*args)


VMAPS = {"jax": by_jax_vmap, "torch": by_torch_vmap}


@pytest.mark.transform("batch_ndim, vmap and a loop give the same numbers")
def test_three_ways_to_a_batch(plain):
    """Within 1e-12 of the terms; a shared argument gets the sum of what the problems give."""
    batched, single = pulled(make(1, CG())), pulled(make(0, CG()))
    A, b, c, v = (plain.asarray(x) for x in (*PROBLEMS, WEIGHTS))
    if plain.backend == "jax":
        import jax

        batched, single = jax.jit(batched), jax.jit(single)
    loop = [single(A[i, ...], b[i, ...], c, v[i, ...]) for i in range(COUNT)]
    rows = [np.stack([plain.to_numpy(row[k]) for row in loop]) for k in range(4)]
    ways = [[plain.to_numpy(x) for x in batched(A, b, c, v)]]
    if plain.backend in VMAPS:
        *found, dc = (plain.to_numpy(x) for x in VMAPS[plain.backend](single, A, b, c, v))
        assert dc.shape == (COUNT,)
        ways.append([*found, dc.sum()])
    for found in ways:
        for x, y in zip(found, [*rows[:3], rows[3].sum()], strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * np.abs(rows[1]).max())
    for y, A, b in zip(rows[0], *PROBLEMS[:2], strict=True):
        np.testing.assert_allclose(A @ y + PROBLEMS[2] * y**3, b, rtol=0, atol=1e-12)


# --- what a batch costs ---

EASY, HARD = np.ones(40), np.logspace(0, 6, 40)


@pytest.mark.parametrize(
    "solver", [CG(rtol=1e-8, max_iter=4000), MINRES(rtol=1e-8, max_iter=4000)], ids=["CG", "MINRES"]
)
def test_a_batch_costs_what_its_hardest_member_costs(plain, solver):
    """Conditions of 1, 1e3 and 1e6: each takes its own number of steps, and the loop ends with the hardest."""
    if plain.backend == "jax":
        pytest.skip("products of a compiled program cannot be counted; its loop is the one counted here")
    matrices = np.stack([spd(EASY, 0), spd(HARD**0.5, 1), spd(HARD, 2), spd(EASY, 3)])
    b = np.random.default_rng(4).standard_normal((4, 40))
    b[3] = 0.0

    def solve(A, b):
        A, calls = plain.asarray(A), []

        def matvec(p):
            calls.append(1)
            return product(A, p)

        found = solver(matvec, plain.asarray(b))
        assert np.all(plain.to_numpy(found.status) == Status.CONVERGED)
        return plain.to_numpy(found.value), plain.to_numpy(found.iterations), len(calls)

    values, steps, calls = solve(matrices, b)
    alone = [solve(*problem) for problem in zip(matrices, b, strict=True)]
    assert steps[3] == 0
    assert steps[0] <= 2 < steps[1] < steps[2]
    counts = np.asarray([found[1] for found in alone])
    np.testing.assert_allclose(steps, counts, rtol=0.1)  # where hundreds of steps round in another order
    assert calls <= 1.1 * max(found[2] for found in alone) + 2
    assert calls < 0.9 * sum(found[2] for found in alone)
    for value, found, A in zip(values, alone, matrices, strict=True):
        np.testing.assert_allclose(value, found[0], rtol=0, atol=3e-8 * np.linalg.cond(A) * np.abs(found[0]).max())


@pytest.mark.parametrize("solver", [LBFGS(max_iter=2000), Newton()], ids=lambda x: type(x).__name__)
def test_a_batch_of_minimisations_costs_what_its_hardest_costs(plain, solver):
    if plain.backend == "jax":
        pytest.skip("evaluations of a compiled program cannot be counted; its loop is the one counted here")
    A = np.stack([np.eye(6), spd(np.logspace(0, 4, 6), 1)])
    b, c = np.random.default_rng(5).standard_normal((2, 6)), np.asarray(1e-3)

    def solve(A, b, batch_ndim):
        calls = []

        def counted(*args):
            calls.append(1)
            return score(*args)

        layer = dil.argmin(counted, solver, batch_ndim=batch_ndim, init=start)
        found = layer.solve(*(plain.asarray(x) for x in (A, b, c)))
        assert np.all(plain.to_numpy(found.status) == Status.CONVERGED)
        return plain.to_numpy(found.iterations), len(calls)

    steps, calls = solve(A, b, 1)
    alone = [solve(A[i], b[i], 0) for i in range(2)]
    assert abs(int(steps[0]) - int(alone[0][0])) <= 1
    assert abs(int(steps[1]) - int(alone[1][0])) <= 0.1 * int(steps[1])
    assert calls <= 1.2 * alone[1][1] + 4


# --- bad members ---


def quadratic(u, A, b):
    xp = array_namespace(u)
    return xp.sum(0.5 * u * product(A, u) - b * u, axis=-1)


BAD = {
    "benign": np.diag([1.0, 2.0, 3.0]),
    "singular": np.diag([1.0, 2.0, 0.0]),
    "indefinite": np.diag([1.0, 2.0, -3.0]),
    "nan": np.full((3, 3), np.nan),
    "infinite": np.diag([1.0, np.inf, 1.0]),
}

FINITE = {name: A for name, A in BAD.items() if name != "infinite"}
"""NumPy warns of infinity times zero in the user's own score, which is for the user to hear."""


def exact(fun, init, A, b):
    """A solver that is given the answer: what is bad is the backward solve."""
    return b * 1.0


@pytest.mark.transform("a singular, indefinite or NaN member leaves the rest of a batch bit for bit")
@pytest.mark.parametrize("linear_solver", [CG(), MINRES(), Direct(), Auto()], ids=lambda x: type(x).__name__)
def test_a_bad_member_leaves_the_others(plain, linear_solver):
    layer = dil.argmin(quadratic, exact, batch_ndim=1, on_failure="ignore", linear_solver=linear_solver)

    def pull(A, b, v):
        return dil.vjp(layer, A, b)[1](v)

    if plain.backend == "jax":
        if not isinstance(linear_solver, CG | Direct):
            pytest.skip("JAX compiles for long; it runs the same array code, of which CG and Direct are tested on it")
        import jax

        pull = jax.jit(pull)
    good = [spd([1.0, 3.0, 10.0], 0), spd([1.0, 1e3, 1e6], 1)]
    b, v = np.random.default_rng(2).standard_normal((2, 3, 3))
    found = {}
    for name, bad in BAD.items():
        args = (plain.asarray(x) for x in (np.stack([good[0], bad, good[1]]), b, v))
        found[name] = [plain.to_numpy(x) for x in pull(*args)]
    np.testing.assert_allclose(found["benign"][1][0], np.linalg.solve(good[0], v[0]), rtol=1e-9)
    for gradients in found.values():
        for x, y in zip(gradients, found["benign"], strict=True):
            np.testing.assert_array_equal(x[[0, 2]], y[[0, 2]])


SOLVERS = [GradientDescent(), LBFGS(), Newton(), Newton("truncated")]
SOLVER_NAMES = ["GradientDescent", "LBFGS", "Newton", "Newton-truncated"]


@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_NAMES)
def test_a_bad_member_leaves_the_other_minimisations(plain, solver):
    if plain.backend == "jax":
        pytest.skip("JAX compiles for long; it runs the same array code")
    layer = dil.argmin(score, solver, batch_ndim=1, init=start)
    b, c = np.random.default_rng(3).standard_normal((3, 3)), np.asarray(0.5)
    found = {}
    for name, bad in FINITE.items():
        A = np.stack([spd([1.0, 3.0, 10.0], 0), bad, spd([1.0, 10.0, 100.0], 1)])
        sol = layer.solve(*(plain.asarray(x) for x in (A, b, c)))
        found[name] = [plain.to_numpy(x)[[0, 2]] for x in (sol.value, sol.iterations, sol.residual)]
        status = [Status(int(code)).name for code in plain.to_numpy(sol.status)]
        assert status[0] == status[2] == "CONVERGED"
        assert (status[1] == "NON_FINITE") == (name == "nan")
    for name in FINITE:
        for x, y in zip(found[name], found["benign"], strict=True):
            np.testing.assert_array_equal(x, y)


def mixing(u, x):
    """A score whose rows share their mean, as batch normalisation does."""
    xp = array_namespace(u)
    return 0.5 * xp.sum((u - x) ** 2, axis=-1) + 0.1 * xp.sum((u - xp.mean(u, axis=0)) ** 4, axis=-1)


def apart(u, x):
    return 0.5 * array_namespace(u).sum((u - x) ** 2, axis=-1)


@pytest.mark.parametrize("make", [dil.argmin, dil.value], ids=lambda f: f.__name__)
def test_problems_of_a_batch_that_are_coupled_are_refused(plain, make):
    if plain.name == "array_api_strict":
        pytest.skip("its arrays are not read: strict arrays stand for traced ones")
    x = plain.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    found = lambda f, init, x: 0.5 * x  # noqa: E731
    with pytest.raises(dil.OptionError, match="problems are independent"):
        make(mixing, found, batch_ndim=1, on_failure="ignore")(x)
    make(mixing, found, batch_ndim=1, on_failure="ignore")(x[:1, :])  # one problem is not coupled to another
    make(apart, found, batch_ndim=1, on_failure="ignore")(x)


def by_groups(u, t):
    """Normalisation over the first of two batch dimensions, whose rows are all of even or all of odd number."""
    xp = array_namespace(u)
    return 0.5 * xp.tanh(u - xp.mean(u, axis=0, keepdims=True)) + t


def by_a_neighbour(u, t):
    xp = array_namespace(u)
    return 0.5 * xp.tanh(u - 0.9 * xp.roll(u, 2, axis=0)) + t


def of_another_size(u, t):
    """The second problem has a term of the first, whose equation has a unit of 1e14 or 1e-14."""
    xp = array_namespace(u)
    size = xp.asarray([[1e14], [1.0], [1e-14]], dtype=u.dtype, device=getattr(u, "device", None))
    return size * (u - t) + 0.5 * xp.roll(xp.where(size == 1.0, 0.0 * u, u), 1, axis=0)


COUPLED = {
    "groups": (dil.fixed_point, by_groups, (4, 2, 3), 2),
    "neighbour": (dil.fixed_point, by_a_neighbour, (4, 1), 1),
    "neighbour of five": (dil.fixed_point, by_a_neighbour, (5, 1), 1),
    "sizes": (dil.root, of_another_size, (3, 1), 1),
}


@pytest.mark.parametrize(("make", "function", "shape", "batch_ndim"), COUPLED.values(), ids=COUPLED)
def test_any_two_problems_that_are_coupled_are_refused(make, function, shape, batch_ndim):
    """By a product with the Jacobian or its transpose, each beside the others of its own problem."""
    t = np.random.default_rng(0).standard_normal(shape)
    with pytest.raises(dil.OptionError, match="problems are independent"):
        make(function, lambda f, i, t: 1.1 * t, batch_ndim=batch_ndim, on_failure="ignore")(t)
    make(function, lambda f, i, t: 1.1 * t, batch_ndim=0, on_failure="ignore")(t)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(("share", "coupled"), [(1e-17, False), (1e-6, True)])
def test_a_coupling_is_judged_beside_the_products_of_its_problem(unit, share, coupled):
    """Rounding couples the rows of a batch, too, in any unit of F."""
    layer = dil.root(lambda u, t: unit * (u - t + share * np.sum(u, axis=0)), lambda f, i, t: 1.0 * t, batch_ndim=1)
    t = np.ones((3, 2))
    if coupled:
        with pytest.raises(dil.OptionError, match="independent"):
            layer(t)
    else:
        layer(t)
