"""The sentence that says what `Auto` chose: its words name what ran, and its numbers are those of the products."""

from __future__ import annotations

import re

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil._base.operator import Operator
from dil.linear import Auto
from dil.linear._choice_in_words import sentence
from engines import engines

N = 200
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
ROOTS = np.geomspace(1.0, 1e3, N) ** 0.5
GENERAL = np.random.default_rng(6).standard_normal((N, N)) / N**0.5
LOCAL = np.zeros((N, 12))
LOCAL[:60] = np.linalg.qr(RNG.standard_normal((60, 12)))[0]
LARGE = np.linalg.qr(RNG.standard_normal((500, 500)))[0]
LARGE = (LARGE * np.geomspace(1, 1e8, 500)) @ LARGE.T
B = np.random.default_rng(5).standard_normal(500)


def with_spectrum(values):
    return (Q * values) @ Q.T


def swap(size):
    """Return a skew matrix."""
    return np.kron(np.eye(size // 2), np.asarray([[0.0, 1.0], [-1.0, 0.0]]))


def right_side(kind):
    """Return the right-hand side of a kind, with which a cyclic permutation is hardest, and a centring solvable."""
    n = KINDS[kind][0].shape[0]
    if kind == "breakdown":
        return np.eye(n)[0]
    return B[:n] - (np.mean(B[:n]) if kind == "least norm" else 0.0)


def centring(size):
    """Return a singular matrix, whose null vector is that of the constants."""
    return 3.0 * np.eye(size) - 3.0 / size


PLAIN, STEPS = r"plain CG won (no digit|[\d.]+ digits?) in 8 steps; ", r"(\d+) steps?"
BICGSTAB = r"BiCGSTAB won (no digit|[\d.]+ digits?) in 16 steps; "
OTHER = "CG with orthogonal residuals"
DIAGONAL = PLAIN + r"the diagonal from 8 products; "
KINDS = {
    "few": (np.eye(20) + 0.1, True, {}, "dense: 20 unknowns, and up to 32 are never iterated"),
    "cheap": (
        np.eye(40) + np.triu(np.ones((40, 40))),
        False,
        {},
        "dense: 40 unknowns cost less than 32 steps of BiCGSTAB",
    ),
    "asked": (np.eye(60), True, {"dense": 100}, "dense: 60 unknowns, and dense=100 asks for it"),
    "plain": (with_spectrum(np.linspace(1, 2, N)), True, {"dense": 0}, f"plain CG took {STEPS}"),
    "nearly diagonal": (
        np.diag(ROOTS**2),
        True,
        {"dense": 0},
        f"{PLAIN}2 products say that the matrix is nearly diagonal; CG with its diagonal took {STEPS}",
    ),
    "pace": (
        with_spectrum(np.linspace(1, 20, N)),
        True,
        {"dense": 0},
        f"{PLAIN}at this pace fewer than 64 were to come; {OTHER} took {STEPS}",
    ),
    "flat": (
        with_spectrum(np.geomspace(1, 1e3, N)),
        True,
        {"dense": 0},
        f"{PLAIN}the entries of the diagonal differ little, say 8 products; {OTHER} took {STEPS}",
    ),
    "won at once": (
        ROOTS[:, None] * with_spectrum(np.linspace(1, 1.5, N)) * ROOTS,
        True,
        {"dense": 0},
        f"{DIAGONAL}(CG with it took {STEPS}|{OTHER} lost a race after 16 steps; CG with the diagonal took {STEPS})",
    ),
    "race won": (
        ROOTS[:, None] * with_spectrum(np.geomspace(1, 30, N)) * ROOTS,
        True,
        {"dense": 0},
        f"{DIAGONAL}{OTHER} lost a race after {STEPS}; CG with the diagonal took {STEPS}",
    ),
    "race lost": (
        np.eye(N) + (LOCAL * np.geomspace(1e2, 1e4, 12)) @ LOCAL.T,
        True,
        {"dense": 0},
        f"{DIAGONAL}CG with the diagonal lost a race after {STEPS}; {OTHER} took {STEPS}",
    ),
    "dense after a trial": (
        LARGE,
        True,
        {},
        f"{PLAIN}the entries of the diagonal differ little, say 8 products; {OTHER} gave up after {STEPS}; "
        "a dense solve of 500 unknowns took over",
    ),
    "negative curvature": (
        with_spectrum(np.r_[-3.0, np.linspace(1, 2, N - 1)]),
        True,
        {"dense": 0},
        f"plain CG met negative curvature after {STEPS}; MINRES took {STEPS}",
    ),
    "converged slowly": (np.eye(N) + 0.2 * swap(N), False, {"dense": 0}, f"BiCGSTAB took {STEPS}"),
    "general, flat": (
        np.eye(N) + 0.97 * GENERAL,
        False,
        {"dense": 0},
        f"{BICGSTAB}rows and columns differ little in size, say 8 products; BiCGSTAB took {STEPS}",
    ),
    "general, scaled": (
        ROOTS[:, None] ** 2 * (np.eye(N) + 0.1 * GENERAL),
        False,
        {"dense": 0},
        f"{BICGSTAB}the sizes of rows and columns from 8 products; BiCGSTAB scaled by them took {STEPS}",
    ),
    "general, scaled after a race": (
        ROOTS[:, None] ** 2 * (np.eye(N) + 0.3 * GENERAL),
        False,
        {"dense": 0},
        f"{BICGSTAB}the sizes of rows and columns from 8 products; BiCGSTAB lost a race after 11 steps; "
        f"BiCGSTAB scaled by them took {STEPS}",
    ),
    "general, not scaled": (
        np.eye(N) + (LOCAL * np.geomspace(1e2, 1e4, 12)) @ LOCAL.T + 0.1 * np.diag(np.ones(N - 1), 1),
        False,
        {"dense": 0},
        f"{BICGSTAB}the sizes of rows and columns from 8 products; BiCGSTAB scaled by them lost a race after 11 steps; "
        f"BiCGSTAB took {STEPS}",
    ),
    "breakdown": (
        np.roll(np.eye(20), 1, 0),
        False,
        {"dense": 0},
        f"BiCGSTAB gave up after {STEPS}; IDR\\(8\\) took {STEPS}",
    ),
    "limit": (
        with_spectrum(np.geomspace(1, 1e3, N)),
        True,
        {"dense": 0, "max_iter": 30},
        f"{PLAIN}the entries of the diagonal differ little, say 8 products; {OTHER} gave up after 22 steps",
    ),
    "least norm": (
        centring(8),
        True,
        {},
        "dense: 8 unknowns, and up to 32 are never iterated, but the matrix is singular; "
        "the solution of least norm took its place(?P<left>, and a residual remains)?",
    ),
}


@pytest.fixture(params=[e for e in engines() if ":" not in e.name and e.name != "jax"], ids=lambda e: e.name)
def eager(request):
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


def solved(engine, matrix, b, *, symmetric, **options):
    """Return the solution by Auto, and the number of products."""
    A, calls = engine.asarray(matrix), []

    def product(p):
        calls.append(p)
        return (array_namespace(p).matmul(A, p[..., None]))[..., 0]

    def transposed(p):
        return (array_namespace(p).matmul(A.mT, p[..., None]))[..., 0]

    solution = Auto(**options)(Operator(product, transposed, symmetric=symmetric), engine.asarray(b))
    return solution, len(calls)


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_of_each_kind(eager, kind):
    matrix, symmetric, options, expected = KINDS[kind]
    found, products = solved(eager, matrix, right_side(kind), symmetric=symmetric, **options)
    said = str(found.extra["choice"])
    match = re.fullmatch(expected, said)
    assert match is not None, said
    # all steps are told, and no more products were taken than the sentence and the checks of residuals explain
    steps = [int(k) for k in re.findall(r"(\d+) steps?\b(?! of)", said)]
    probes = sum(int(k) for k in re.findall(r"(\d+) products", said))
    dense = sum(int(k) for k in re.findall(r"(\d+) unknowns", said))
    times = 2 if kind == "least norm" else 1
    assert sum(steps) + times * dense == int(found.iterations)
    if symmetric and kind not in ("few", "asked", "least norm", "negative curvature"):
        assert 0 <= products - sum(steps) - probes <= 3 + dense  # rows of a dense matrix may be one product
    assert (int(found.status) == 0) == (kind != "limit")


def test_a_residual_of_the_least_norm_is_told(eager):
    found, _ = solved(eager, centring(8), B[:8], symmetric=True)
    assert str(found.extra["choice"]).endswith("the solution of least norm took its place, and a residual remains")


def test_no_step(eager):
    found, _ = solved(eager, np.eye(N), 0.0 * B[:N], symmetric=True)
    assert str(found.extra["choice"]).startswith("no step")


def test_digits_of_the_first_steps(eager):
    """The relative residual of the first 8 steps of CG."""
    matrix = KINDS["pace"][0]
    found, _ = solved(eager, matrix, B[:N], symmetric=True, dense=0)
    first = dil.linear.CG(max_iter=8)(lambda p: matrix @ p, B[:N])
    said = re.search(r"won ([\d.]+) digits", str(found.extra["choice"]))
    assert said is not None
    assert abs(float(said[1]) + np.log10(float(first.residual))) <= 0.051


def test_a_batch_is_counted(eager):
    """One batch of problems that go different ways: each has the steps that it has alone."""
    names = ["plain", "plain", "nearly diagonal", "negative curvature", "race won"]
    matrices = np.stack([KINDS[name][0] for name in names])
    found, _ = solved(eager, matrices, np.stack([B[:N]] * len(names)), symmetric=True, dense=0)
    said, alone = str(found.extra["choice"]), {}
    steps = eager.to_numpy(found.iterations)
    assert said == (
        f"2 problems by plain CG in {steps[0]} steps, 2 by CG with the diagonal in {steps[2]} to {steps[4]} steps, "
        f"1 by MINRES after CG in {steps[3]} steps"
    ), said
    for name in names:
        alone[name] = int(solved(eager, KINDS[name][0], B[:N], symmetric=True, dense=0)[0].iterations)
    np.testing.assert_allclose([alone[name] for name in names], steps, atol=3)  # rounding


def test_problems_of_one_kind_have_one_story(eager):
    matrices = np.stack([with_spectrum(np.linspace(1, k, N)) for k in (1.5, 2.0, 3.0)])
    found, _ = solved(eager, matrices, np.stack([B[:N]] * 3), symmetric=True, dense=0)
    steps = eager.to_numpy(found.iterations)
    assert str(found.extra["choice"]) == f"3 problems: plain CG took {min(steps)} to {max(steps)} steps"


def test_dense_beside_iterations(eager):
    """In a batch, the problems that a trial gives up are solved dense."""
    matrices = np.stack([np.diag(np.linspace(1.0, 2.0, 500)), LARGE])
    found, _ = solved(eager, matrices, np.stack([B, B]), symmetric=True)
    said = str(found.extra["choice"])
    assert re.fullmatch(rf"1 problem by plain CG in {STEPS}, 1 dense after CG in {STEPS}", said), said


def test_no_problem():
    assert sentence(np.zeros((0, 20), dtype=int)) == "no problem"


# --- what a layer tells ----------------------------------------------------------------------------------------------


def quadratic(u, A, x):
    xp = array_namespace(u)
    return 0.5 * xp.sum(u * (xp.matmul(A, u[..., None]))[..., 0], axis=-1) - xp.sum(x * u, axis=-1)


def layer_of(engine, kind, linear_solver=None):
    """Return a layer whose backward pass solves a system of this kind, and its arguments."""
    matrix, symmetric, options, _ = KINDS[kind]
    x = B[: matrix.shape[0]]
    y = engine.asarray(np.linalg.solve(matrix, x))
    linear_solver = Auto(**options) if linear_solver is None else linear_solver
    make, fn = (dil.argmin, quadratic) if symmetric else (dil.root, lambda u, A, x: array_namespace(u).matmul(A, u) - x)
    layer = make(fn, lambda *_: y, linear_solver=linear_solver, init=lambda A, x: 0.0 * x, on_failure="ignore")
    return layer, (engine.asarray(matrix), engine.asarray(x))


@pytest.mark.parametrize("kind", ["few", "nearly diagonal", "race won", "breakdown", "dense after a trial"])
def test_a_report_has_the_sentence(eager, kind):
    layer, args = layer_of(eager, kind)
    rep = layer.report(*args, cotangent=eager.asarray(right_side(kind)))
    assert re.fullmatch(KINDS[kind][3], rep.backward.choice), rep.backward.choice
    assert rep.forward.choice is None
    assert f"choice       {rep.backward.choice}" in str(rep)
    for shown in (rep, rep.backward):
        assert f"Auto chose: {rep.backward.choice}." in shown._repr_html_()
    assert "Auto chose" not in rep.forward._repr_html_()


def test_a_record_counts_the_problems_of_all_solves(eager):
    layer, args = layer_of(eager, "plain")
    slow, slow_args = layer_of(eager, "race won")
    with dil.record() as rec:
        for made, given in ((layer, args), (layer, args), (slow, slow_args)):
            dil.vjp(made, *given)[1](eager.asarray(np.ones(N)))
    steps = [int(entry.iterations) for entry in rec.backward]
    assert rec.backward[0].choice == f"plain CG took {steps[0]} steps"
    told = f"2 problems by plain CG in {steps[0]} steps, 1 by CG with the diagonal in {steps[2]} steps"
    assert told in str(rec)
    assert told in rec._repr_html_()


@pytest.mark.parametrize("linear_solver", [dil.linear.CG(), dil.linear.Direct(), dil.linear.MINRES()])
def test_other_solvers_have_no_sentence(linear_solver):
    engine = next(e for e in engines() if e.name == "numpy")
    layer, args = layer_of(engine, "plain", linear_solver)
    rep = layer.report(*args)
    assert rep.backward.choice is None
    assert "choice" not in str(rep)
    assert "Auto chose" not in rep._repr_html_()


def test_a_warm_start_hands_the_sentence_on(eager):
    layer, args = layer_of(eager, "race won", dil.linear.WarmStart(Auto(dense=0)))
    assert re.fullmatch(KINDS["race won"][3], layer.report(*args).backward.choice)
    assert re.fullmatch("no step.*", layer.report(*args).backward.choice)


def test_a_solution_shows_the_sentence():
    engine = next(e for e in engines() if e.name == "numpy")
    found, _ = solved(engine, np.eye(20) + 0.1, B[:20], symmetric=True)
    assert KINDS["few"][3] in found._repr_html_()


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("race won", "negative curvature", "breakdown")]


@pytest.mark.parametrize("kind", ["few", "dense after a trial", *SLOW])
def test_a_record_under_jit(kind):
    engine = next(e for e in engines() if e.name == "jax:jit")
    if engine.reason is not None:
        pytest.skip(engine.reason)
    layer, args = layer_of(engine, kind)
    with dil.record() as rec:
        engine.pullback(layer, args, engine.asarray(right_side(kind)))
    (entry,) = rec.backward
    assert re.fullmatch(KINDS[kind][3], entry.choice), entry.choice


@pytest.mark.slow
def test_a_batch_under_jit_has_the_sentence_of_the_batch():
    engine, plain = (next(e for e in engines() if e.name == name) for name in ("jax:jit", "numpy"))
    if engine.reason is not None:
        pytest.skip(engine.reason)
    matrices = np.stack([KINDS[name][0] for name in ("plain", "race won", "race won", "plain")])
    said = []
    for where in (engine, plain):
        layer = dil.argmin(
            quadratic,
            lambda *_, where=where: where.asarray(np.linalg.solve(matrices, np.stack([B[:N]] * 4)[..., None])[..., 0]),
            linear_solver=Auto(dense=0),
            batch_ndim=1,
            init=lambda A, x: 0.0 * x,
        )
        with dil.record() as rec:
            where.pullback(layer, (where.asarray(matrices), where.asarray([B[:N]] * 4)), where.asarray(np.ones((4, N))))
        said.append(re.sub(r"\d+ steps?", "", rec.backward[0].choice))
    assert said[0] == said[1]
    assert "2 problems by plain CG" in said[0]
