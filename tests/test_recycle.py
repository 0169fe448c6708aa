"""A linear solver with a memory: fewer products where the matrix changes little, and the same answers everywhere."""

from __future__ import annotations

import re

import numpy as np
import pytest

import dil
from dil import Status
from dil.linear import Auto, Direct, Operator, Recycle

N = 60


def drifting(kind, steps, change=0.01, n=N, seed=0):
    """Yield matrices and right-hand sides that change by about one percent a step."""
    draw = np.random.default_rng(seed)
    Q = np.linalg.qr(draw.standard_normal((n, n)))[0]
    b, d = draw.standard_normal(n), np.geomspace(1.0, 1e3, n)
    if kind == "symmetric":
        A = (Q * d) @ Q.T
        for _ in range(steps):
            E = draw.standard_normal((n, n)) / n**0.5
            A = A + change * A @ (E @ E.T) @ A.T / np.linalg.norm(A, 2)
            b = b + change * draw.standard_normal(n)
            yield A, b
    else:
        A = np.eye(n) - 0.9 * Q
        for _ in range(steps):
            A = A + change * draw.standard_normal((n, n)) / n**0.5
            b = b + change * draw.standard_normal(n)
            yield A, b


class Solved:
    """Solve on an engine, and check each answer beside NumPy's."""

    def __init__(self, engine, solver, dtype="float64", symmetric=False):
        self.handle = dil.backend(engine.backend, device=engine.device, dtype=dtype)
        self.solver, self.symmetric, self.rtol = solver, symmetric, float(np.finfo(dtype).eps) ** 0.75
        self.calls = 0

    def __call__(self, A, b, statuses=("CONVERGED",)):
        matrix, right, xp = self.handle.asarray(A), self.handle.asarray(b), self.handle.xp
        self.calls = 0

        def product(p):
            self.calls += 1
            return xp.matmul(matrix, p[..., None])[..., 0]

        found = self.solver(Operator(product, symmetric=self.symmetric), right)
        x, status, products = map(self.handle.to_numpy, (found.value, found.status, found.extra["products"]))
        assert {Status(int(s)).name for s in np.ravel(status)} <= set(statuses)
        rest = np.linalg.norm(b - (A @ x[..., None])[..., 0], axis=-1) / np.linalg.norm(b, axis=-1)
        solved = (status == 0) & np.isfinite(rest)
        assert np.all(rest[solved] <= 1.01 * self.rtol)
        return int(np.max(products)), found


@pytest.mark.parametrize("kind", ["symmetric", "general"])
def test_a_drifting_matrix_costs_a_third(eager, kind):
    solve, alone = (Solved(eager, s, symmetric=kind == "symmetric") for s in (Recycle(), Auto()))
    spent = [(solve(A, b)[0], alone(A, b)[0]) for A, b in drifting(kind, 16, change=1e-3)]
    with_memory, without = np.sum(spent[6:], axis=0)
    assert 3 * with_memory <= without


def test_an_inverse_that_has_aged_is_built_anew(eager):
    solve = Solved(eager, Recycle(), symmetric=True)
    counts = [solve(A, b)[0] for A, b in drifting("symmetric", 40, change=0.03)]
    assert sum(N < count <= N + 3 for count in counts) >= 2  # one step with the inverse of the very matrix
    assert np.mean(counts[10:]) <= N / 2


def test_every_problem_of_a_batch_has_its_own_memory(eager):
    several = [list(drifting("general", 8, change=1e-3, seed=seed)) for seed in range(3)]
    solve = Solved(eager, Recycle())
    counts = []
    for step in range(8):
        A, b = (np.stack([one[step][i] for one in several]) for i in (0, 1))
        counts.append(solve(A, b)[0])
    assert counts[-1] <= N / 3


def test_the_products_that_are_told_are_those_that_are_asked_for(engine_of_numpy):
    solve = Solved(engine_of_numpy, Recycle())
    for A, b in drifting("general", 6):
        told, _ = solve(A, b)
        dense_by_rows = told >= N
        assert solve.calls == told or dense_by_rows


@pytest.fixture
def engine_of_numpy():
    class Engine:
        backend, device = "numpy", None

    return Engine


def test_a_memory_without_use_costs_little(engine_of_numpy):
    solve, alone = Solved(engine_of_numpy, Recycle(directions=20)), Solved(engine_of_numpy, Auto())
    draw = np.random.default_rng(3)
    total = np.zeros(2)
    for _ in range(40):
        A, b = np.eye(N) + 0.5 * draw.standard_normal((N, N)) / N**0.5, draw.standard_normal(N)
        total += solve(A, b)[0], alone(A, b)[0]
    assert total[0] <= 2 * total[1]


def test_a_bad_problem_is_told_and_leaves_the_others(eager):
    several = [next(iter(drifting("general", 1, seed=seed))) for seed in range(3)]
    A, b = (np.stack([one[i] for one in several]) for i in (0, 1))
    solve = Solved(eager, Recycle())
    for _ in range(3):
        solve(A, b)
    broken = b.copy()
    broken[1, 4] = np.nan
    _, found = solve(A, broken, statuses=("CONVERGED", "NON_FINITE"))
    assert [Status(int(s)).name for s in solve.handle.to_numpy(found.status)] == [
        "CONVERGED",
        "NON_FINITE",
        "CONVERGED",
    ]
    count, _ = solve(A, b)
    assert count <= N + 6
    broken = A.copy()
    broken[2, 0, 0] = np.inf
    solve(broken, b, statuses=("CONVERGED", "NON_FINITE", "SINGULAR"))
    solve(A, b)


def test_an_indefinite_matrix_is_told_at_every_call(eager):
    draw = np.random.default_rng(0)
    Q = np.linalg.qr(draw.standard_normal((N, N)))[0]
    d = np.linspace(1.0, 4.0, N)
    d[7] = -0.5
    solve = Solved(eager, Recycle(), symmetric=True)
    for k in range(5):
        _, found = solve((1 + 1e-3 * k) * (Q * d) @ Q.T, draw.standard_normal(N))
        assert bool(solve.handle.to_numpy(found.extra["indefinite"]))


def test_a_singular_matrix_is_told_as_by_auto(eager):
    draw = np.random.default_rng(0)
    A = draw.standard_normal((N, N)) / N**0.5 + np.eye(N)
    solve = Solved(eager, Recycle())
    for k in range(3):
        solve((1 + 1e-3 * k) * A, draw.standard_normal(N))
    singular = A.copy()
    singular[:, 3] = singular[:, 5]
    b = draw.standard_normal(N)
    names = []
    for solver in (solve, Solved(eager, Auto())):
        _, found = solver(singular, b, statuses=[s.name for s in Status])
        names.append(Status(int(solver.handle.to_numpy(found.status))).name)
    assert names[0] == names[1] != "CONVERGED"


@pytest.mark.parametrize("unit", [1e-150, 1e-30, 1e30, 1e150])
def test_units_do_not_matter(engine_of_numpy, unit):
    for scale_A, scale_b in ((unit, 1.0), (1.0, unit), (unit, unit)):
        solve = Solved(engine_of_numpy, Recycle())
        counts = [solve(scale_A * A, scale_b * b)[0] for A, b in drifting("general", 6, change=1e-3)]
        assert counts[-1] <= N / 3


def test_damping_and_tolerance(eager):
    solve = Solved(eager, Recycle(damping=0.5, rtol=1e-6))
    for A, b in drifting("general", 5, change=1e-3):
        matrix = solve.handle.asarray(A)
        found = solve.solver(Operator(lambda p, A=matrix: A @ p), solve.handle.asarray(b))
        rest = b - (A + 0.5 * np.eye(N)) @ solve.handle.to_numpy(found.value)
        assert np.linalg.norm(rest) <= 1e-6 * np.linalg.norm(b)
    assert int(found.extra["products"]) <= 8


def test_few_unknowns_are_solved_as_by_auto(engine_of_numpy):
    A, b, solver = np.diag([1.0, 2.0, 4.0]), np.ones(3), Recycle()
    found = solver(lambda p: p @ A, b)
    np.testing.assert_array_equal(found.value, [1.0, 0.5, 0.25])
    assert not solver._memories


def test_no_unknown_and_no_problem(engine_of_numpy):
    assert Recycle()(lambda p: p, np.ones((0,))).value.shape == (0,)
    assert Recycle()(lambda p: 2.0 * p, np.ones((0, 40))).value.shape == (0, 40)


def test_a_pure_solve_has_no_side_effect(eager):
    solver, held = Recycle(), Recycle()
    solve = Solved(eager, held)
    memory = None
    for A, b in drifting("general", 6, change=1e-3):
        matrix, right = solve.handle.asarray(A), solve.handle.asarray(b)
        memory = solver.empty(right) if memory is None else memory
        found, memory = solver.solve(Operator(lambda p, A=matrix: A @ p), right, memory)
        count, same = solve(A, b)
        np.testing.assert_array_equal(*(solve.handle.to_numpy(x.value) for x in (found, same)))
        assert int(found.extra["products"]) == count
    assert not solver._memories
    assert held._memories
    held.forget()
    assert not held._memories


def test_a_memory_of_another_shape_is_refused():
    solver, b = Recycle(), np.ones(N)
    with pytest.raises(dil.ShapeError, match="keep one memory for each layer"):
        solver.solve(lambda p: p, b, solver.empty(np.ones((2, N))))
    with pytest.raises(dil.ShapeError, match=r"expected .* float64"):
        solver.solve(lambda p: p, b, solver.empty(np.ones(N, np.float32)))
    with pytest.raises(dil.OptionError, match="memory has the type NoneType"):
        solver.solve(lambda p: p, b, None)


@pytest.mark.parametrize(
    ("option", "value"), [("directions", 0), ("directions", 1.5), ("rtol", -1.0), ("damping", "a")]
)
def test_options_out_of_range(option, value):
    with pytest.raises(dil.OptionError, match=option):
        Recycle(**{option: value})


def test_single_precision(eager):
    solve = Solved(eager, Recycle(), dtype="float32")
    counts = [solve(A.astype("f4"), b.astype("f4"))[0] for A, b in drifting("general", 8, change=1e-3)]
    assert counts[-1] <= N / 4


def trained(eager, n, steps=5):
    """Return the solver of a fixed-point layer, and the record, after some gradients beside those without a memory."""
    handle = dil.backend(eager.backend, device=eager.device, dtype="float64")
    xp, draw = handle.xp, np.random.default_rng(1)
    w0, change, x = draw.uniform(-0.9, 0.9, n), draw.standard_normal(n), draw.standard_normal(n)

    def F(z, w, x):
        return xp.tanh(w * xp.concat([z[1:], z[:1]]) + x)

    remembered = Recycle()
    with_memory, without = (
        dil.fixed_point(F, dil.solvers.Anderson(), linear_solver=s, init=lambda w, x: 0.0 * x)
        for s in (remembered, Direct())
    )

    def gradient(layer, w):
        return handle.to_numpy(dil.grad(lambda w: xp.sum(layer(w, handle.asarray(x)) ** 2))(w))

    with dil.record() as rec:
        for k in range(steps):
            w = handle.asarray(w0 + 1e-3 * k * change)
            found = [gradient(layer, w) for layer in (with_memory, without)]
            np.testing.assert_allclose(*found, rtol=0, atol=1e-9 * np.max(np.abs(found[1])))
    return remembered, rec


def test_gradients_of_a_layer_are_those_without_memory(eager, monkeypatch):
    monkeypatch.setattr("dil.linear._sparse_choice._has_scipy", lambda: False)  # else a factorisation pays
    remembered, rec = trained(eager, 450)  # Auto iterates here
    assert remembered._memories
    assert rec.backward[-2].choice == f"the memory took {int(rec.backward[-2].iterations)} steps"


def test_a_layer_whose_dense_solve_is_cheap_keeps_no_memory(eager):
    remembered, rec = trained(eager, 40, steps=2)
    assert not remembered._memories
    assert rec.backward[0].choice.startswith("dense: 40 unknowns cost less")


def test_it_says_what_it_did(eager):
    solve, said = Solved(eager, Recycle(), symmetric=True), []
    first, right = map(solve.handle.asarray, next(drifting("symmetric", 1, change=0.03)))
    for A, b in drifting("symmetric", 40, change=0.03):
        count, found = solve(A, b)
        said.append((count, int(solve.handle.to_numpy(found.iterations)), str(found.extra["choice"])))
    assert said[0][2] == str(Auto()(Operator(lambda p: first @ p, symmetric=True), right).extra["choice"])
    renewed = [text for count, _, text in said if N < count <= N + 3]
    assert renewed
    assert all(re.fullmatch("the memory with a new inverse took [12] steps?", text) for text in renewed)
    assert said[-1][2] == f"the memory took {said[-1][1]} steps"
    gave_up = [text for _, _, text in said if text.startswith("the memory gave up after")]
    assert all(re.fullmatch(r"the memory gave up after \d+ steps?; .+", text) for text in gave_up)


def test_under_jit_and_vmap():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    solver, pure = Recycle(), Recycle()

    @jax.jit
    def solve(A, b):
        found = solver(Operator(lambda p: A @ p), b)
        return found.value, found.extra["products"]

    @jax.jit
    def step(A, b, memory):
        found, memory = pure.solve(Operator(lambda p: A @ p), b, memory)
        return found.value, found.extra["products"], memory

    memory, counts = pure.empty(jax.numpy.ones(N)), []
    for A, b in drifting("general", 7, change=1e-3):
        x, products = solve(A, b)
        y, same, memory = step(A, b, memory)
        np.testing.assert_allclose(x, y, rtol=1e-9)
        np.testing.assert_allclose(A @ np.asarray(x), b, rtol=0, atol=1e-11 * np.linalg.norm(b))
        counts.append((int(products), int(same)))
    assert counts[-1][0] <= N / 3
    assert counts[-1][1] == counts[-1][0]
    several = [next(iter(drifting("general", 1, seed=seed))) for seed in range(2)]
    A, b = (np.stack([one[i] for one in several]) for i in (0, 1))
    stacked = jax.vmap(lambda A, b: solve(A, b)[0])(A, b)
    np.testing.assert_allclose(stacked, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-9)


def test_threads_share_an_instance():
    from concurrent.futures import ThreadPoolExecutor

    solver = Recycle()

    def run(seed):
        for A, b in drifting("general", 5, change=1e-3, seed=seed):
            x = solver(Operator(lambda p, A=A: A @ p), b).value
            np.testing.assert_allclose(A @ x, b, rtol=0, atol=1e-11 * np.linalg.norm(b))
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))
