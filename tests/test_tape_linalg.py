"""Linear algebra on the tape: every function, to second order, and what coinciding values leave of a derivative."""

from __future__ import annotations

import array_api_compat.numpy as np_xp
import numpy as np
import pytest

import dil
from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape.rules.eigen import pull_general_spectrum, pull_spectrum
from dil_backends._tape.rules.factors import pull_cholesky, pull_qr
from dil_backends._tape.rules.linalg import LINALG, pull_det, pull_slogdet
from dil_backends._tape.rules.singular import pull_polar, pull_pseudoinverse, pull_singular
from linalg_cases import LINALG_CASES, LINALG_COMPLEX, LINALG_COMPLEX_NUMPY_ONLY, LINALG_NUMPY_ONLY
from tape_helpers import check, named

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
G = RNG.normal(size=(4, 4))
CLUSTERS = {
    "pair": Q @ np.diag([1.0, 1.0, 3.0, 5.0]) @ Q.T,
    "triple": Q @ np.diag([1.0, 1.0, 1.0, 5.0]) @ Q.T,
    "two pairs": Q @ np.diag([1.0, 1.0, 5.0, 5.0]) @ Q.T,
    "diagonal": np.diag([1.0, 1.0, 3.0, 3.0]),
    "identity": 2.0 * np.eye(4),
    "batch": np.stack([Q @ np.diag([1.0, 1.0, 3.0, 5.0]) @ Q.T, np.diag([4.0, 1.0, 2.0, 3.0])]),
}


def named_complex(cases):
    return [pytest.param(case, id=f"complex-{case.name}") for case in cases]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", [*named(LINALG_CASES), *named_complex(LINALG_COMPLEX)])
def test_rule(case, order, xp):
    check(case, xp, order)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", [*named(LINALG_NUMPY_ONLY), *named_complex(LINALG_COMPLEX_NUMPY_ONLY)])
def test_rule_beyond_the_standard(case, order):
    check(case, np_xp, order)


def sym(A):
    return 0.5 * (A + np.swapaxes(A, -1, -2))


def differences(f, A, t, h=1e-4):
    """The derivative of f at A along t, by a central difference of fourth order."""
    return sum(w * (f(A + k * h * t) - f(A - k * h * t)) for k, w in [(1, 2 / 3), (2, -1 / 12)]) / h


SYMMETRIC = {
    "squares": lambda A: np.sum(np.linalg.eigvalsh(sym(A)) ** 2),
    "exponentials": lambda A: np.sum(np.exp(np.linalg.eigvalsh(sym(A)))),
    "products": lambda A: np.sum(np.prod(np.linalg.eigvalsh(sym(A)), axis=-1)),
    "spread": lambda A: np.var(np.linalg.eigvalsh(sym(A)) ** 2),
    "singular values": lambda A: np.sum(np.linalg.svd(A)[1] ** 3),
    "nuclear norm": lambda A: np.sum(np.linalg.norm(A, "nuc", axis=(-2, -1)) ** 2),
    "determinant": lambda A: np.sum(np.linalg.det(A)),
    "log determinant": lambda A: np.sum(np.linalg.slogdet(A)[1]),
    "pseudoinverse": lambda A: np.sum(np.linalg.pinv(A) * G),
}


@pytest.mark.parametrize("matrix", CLUSTERS)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_functions_that_treat_a_cluster_alike(name, matrix):
    """They have derivatives: reverse, forward, and the second in both ways."""
    f, A = SYMMETRIC[name], CLUSTERS[matrix]
    t = RNG.normal(size=A.shape)
    t = sym(t) if name != "singular values" else t
    gradient = dil.grad(f)
    expected, bend = differences(f, A, t), differences(lambda A: np.sum(gradient(A) * G), A, t)
    scale = (1.0 + np.linalg.norm(gradient(A))) * np.linalg.norm(t) + abs(f(A))
    assert abs(np.sum(gradient(A) * t) - expected) <= 1e-8 * scale
    assert abs(dil.jvp(f, (A,), (t,))[1] - expected) <= 1e-8 * scale
    second = dil.grad(lambda A: np.sum(gradient(A) * G))(A)
    assert abs(np.sum(second * t) - bend) <= 1e-7 * (scale + abs(bend))
    if (name, matrix) == ("spread", "identity"):
        return  # all derivatives there are rounding: no size says that they are, and forward over reverse is refused
    np.testing.assert_allclose(np.sum(dil.jvp(gradient, (A,), (t,))[1] * G), np.sum(second * t), rtol=1e-9, atol=1e-9)


def projector(vectors):
    return vectors @ np.swapaxes(vectors, -1, -2)


@pytest.mark.parametrize("matrix", ["pair", "two pairs", "diagonal"])
def test_the_projector_onto_a_cluster(matrix):
    A, t = CLUSTERS[matrix], sym(RNG.normal(size=(4, 4)))
    for f in (
        lambda A: np.sum(G * projector(np.linalg.eigh(sym(A))[1][:, :2])),
        lambda A: np.sum(G * projector(np.linalg.svd(A)[0][:, 2:])),
        lambda A: np.sum(G * projector(np.linalg.svd(A)[2][:2, :].T)),
    ):
        expected = differences(f, A, t)
        assert abs(np.sum(dil.grad(f)(A) * t) - expected) <= 1e-9
        assert abs(dil.jvp(f, (A,), (t,))[1] - expected) <= 1e-9


def matrix_function(G, A):
    w, V = np.linalg.eigh(sym(A))
    return np.sum(G * ((V * np.sqrt(w)) @ V.T))


UNDEFINED = {
    "smallest eigenvalue": lambda A: np.linalg.eigvalsh(sym(A))[0],
    "weighted eigenvalues": lambda A: np.sum(np.linalg.eigvalsh(sym(A)) * np.arange(4.0)),
    "an eigenvector": lambda A: np.sum(np.linalg.eigh(sym(A))[1][:, 0] * G[0]) ** 2,
    "matrix function": lambda A: matrix_function(G, A),
    "its sum": lambda A: matrix_function(1.0, A),
    "a singular vector": lambda A: np.sum(np.linalg.svd(A)[0][:, -1] * G[0]) ** 2,
    "smallest singular value": lambda A: np.linalg.norm(A, -2),
    "condition": lambda A: np.linalg.cond(A),
    "eigenvalue of a general matrix": lambda A: np.linalg.eigvals(A)[0],
}


@pytest.mark.parametrize("matrix", ["pair", "two pairs", "diagonal", "identity"])
@pytest.mark.parametrize("name", UNDEFINED)
def test_functions_that_tell_a_cluster_apart(name, matrix):
    f, A = UNDEFINED[name], CLUSTERS[matrix]
    if name.endswith("general matrix"):
        A = np.triu(np.diag(np.diag(np.diag([1.0, 1.0, 3.0, 5.0]))))
    with pytest.raises(UnsupportedFunctionError, match="coincide"):
        dil.grad(f)(A)
    with pytest.raises(UnsupportedFunctionError, match="coincide"):
        dil.jvp(f, (A,), (sym(G),))


def test_coinciding_eigenvalues_of_a_general_matrix():
    A = np.diag([1.0, 1.0, 3.0])
    np.testing.assert_allclose(dil.grad(lambda A: np.sum(np.linalg.eigvals(A) ** 2))(A), 2.0 * A, atol=1e-14)
    with pytest.raises(UnsupportedFunctionError, match="coincide"):
        dil.grad(lambda A: np.sum(np.linalg.eigvals(A) * np.asarray([1.0, -1.0, 0.0])))(A)


def test_an_eigenvector_of_a_general_matrix():
    with pytest.raises(UnsupportedFunctionError, match="coincide"):
        dil.grad(lambda A: np.linalg.eig(A)[1][1, 0])(np.diag([1.0, 1.0, 3.0]))


@pytest.mark.parametrize("gap", [1e-4, 1e-8, 1e-10, 1e-12])
def test_near_eigenvalues_are_no_cluster(gap):
    """The first vector of diag(1, 1 + gap, 3) turns to the second by -1 / gap. A vector may have either sign."""
    A = np.diag([1.0, 1.0 + gap, 3.0])
    sign = np.linalg.eigh(A)[1][0, 0]
    g = dil.grad(lambda A: np.linalg.eigh(A)[1][1, 0])(A)
    np.testing.assert_allclose(sign * g[1, 0] * (A[1, 1] - 1.0), -1.0, rtol=1e-12)
    np.testing.assert_allclose(dil.grad(lambda A: np.linalg.eigvalsh(A)[0])(A), np.diag([1.0, 0.0, 0.0]), atol=1e-12)


def test_a_parameter_that_would_tell_a_cluster_apart():
    """f treats the cluster alike at this weight, and not at others: its mixed second derivative does not exist."""

    def slope(weight):
        return np.sum(G * dil.grad(lambda A: np.sum(weight * np.linalg.eigvalsh(sym(A))))(CLUSTERS["pair"]))

    with pytest.raises(UnsupportedFunctionError, match="coincide"):
        dil.grad(slope)(np.ones(4))


LOW = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "f",
    [
        lambda A: np.linalg.norm(A, "nuc"),
        lambda A: np.sum(np.linalg.svd(A)[1]),
        lambda A: np.sum(np.linalg.svd(A, full_matrices=False)[0] * G[:, :3]),
        lambda A: np.sum(np.linalg.svd(A)[0] * G),
        lambda A: np.sum(np.linalg.qr(A)[0] * G[:, :3]),
        lambda A: np.linalg.slogdet(A[:3])[1] + np.linalg.slogdet(np.zeros((3, 3)) + 0.0 * A[:3])[1],
    ],
)
def test_a_matrix_without_full_rank(f):
    with np.errstate(all="ignore"), pytest.raises(UnsupportedFunctionError, match=r"rank|zero|coincide|singular"):
        dil.grad(f)(LOW)


def test_what_is_defined_without_full_rank():
    np.testing.assert_allclose(dil.grad(lambda A: np.sum(np.linalg.svd(A)[1] ** 2))(LOW), 2 * LOW, atol=1e-12)
    np.testing.assert_allclose(dil.grad(np.linalg.det)(np.diag([2.0, 3.0, 0.0])), np.diag([0.0, 0.0, 6.0]), atol=1e-14)
    np.testing.assert_array_equal(dil.grad(np.linalg.det)(np.zeros((3, 3))), 0.0)


def test_a_complement_and_its_projector():
    A, t = RNG.normal(size=(4, 2)), RNG.normal(size=(4, 2))
    for name, f in {
        "svd": lambda A: np.linalg.svd(A)[0][:, 2:],
        "qr": lambda A: np.linalg.qr(A, mode="complete")[0][:, 2:],
    }.items():
        score = lambda A, f=f: np.sum(G * projector(f(A)))  # noqa: E731
        assert abs(np.sum(dil.grad(score)(A) * t) - differences(score, A, t)) <= 1e-9
        with pytest.raises(UnsupportedFunctionError, match=f"{name} has no derivative"):
            dil.grad(lambda A, f=f: np.sum(G[:, :2] * f(A)))(A)


def test_a_defective_matrix():
    with pytest.raises(UnsupportedFunctionError, match="no basis of eigenvectors"):
        dil.grad(lambda A: np.sum(np.linalg.eigvals(A)))(np.asarray([[1.0, 1.0], [0.0, 1.0]]))


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e150])
@pytest.mark.parametrize("order", ["fro", "nuc", 1, 2, -2, np.inf])
def test_norms_have_no_units(order, scale):
    A = RNG.normal(size=(3, 3)) + np.diag([1.0, 3.0, 6.0])
    f = lambda A: np.linalg.norm(A, order)  # noqa: E731
    np.testing.assert_allclose(dil.grad(f)(scale * A), dil.grad(f)(A), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e150])
@pytest.mark.parametrize("matrix", [np.diag([1.0, 3.0, 4.0, 9.0]) + 0.1 * sym(G), CLUSTERS["pair"]])
def test_decompositions_have_no_units(matrix, scale):
    for f in (
        lambda A: np.sum(np.linalg.eigvalsh(sym(A))),
        lambda A: np.sum(G * projector(np.linalg.eigh(sym(A))[1][:, :2])) * scale,
        lambda A: np.sum(G * projector(np.linalg.svd(A)[0][:, 2:])) * scale,
        lambda A: np.sum(np.linalg.qr(A)[1] * G),
        lambda A: np.sum(np.linalg.pinv(A) * G) * scale * scale,
    ):
        found = dil.grad(f)(scale * matrix)
        assert np.all(np.isfinite(found))
        plain = dil.grad(lambda A, f=f: f(scale * A) / scale)(matrix)
        np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-12 * np.max(np.abs(plain)))


def test_the_other_triangle_is_not_read():
    A = np.diag([1.0, 2.0, 4.0]) + 0.1 * G[:3, :3]
    for f, zero in ((np.linalg.eigvalsh, np.triu), (lambda A: np.linalg.eigh(A, "U")[0], np.tril)):
        g = dil.grad(lambda A, f=f: np.sum(f(A) ** 2))(A)
        strict = zero(g, 1 if zero is np.triu else -1)
        np.testing.assert_array_equal(strict, 0.0)
        t = RNG.normal(size=(3, 3))
        assert abs(np.sum(g * t) - differences(lambda A, f=f: np.sum(f(A) ** 2), A, t)) <= 1e-9


@pytest.mark.parametrize(
    ("factor", "upper"),
    [
        (np.linalg.cholesky, False),
        (lambda A: np.linalg.cholesky(A, upper=True), True),
        (lambda A: dil.backend("numpy").xp.linalg.cholesky(A, upper=True), False),
    ],
    ids=["lower", "upper", "upper of the standard"],
)
def test_a_cholesky_factor_has_the_derivative_of_the_triangle_that_is_read(factor, upper):
    """Of a matrix that is not symmetric too. The value is that without a derivative."""
    A = G @ G.T + np.eye(4) + 0.1 * G
    f = lambda A: np.sum(factor(A) * (G + G.T))  # noqa: E731
    value, g = dil.value_and_grad(f)(A)
    assert value == f(A)
    np.testing.assert_array_equal(np.tril(g, -1) if upper else np.triu(g, 1), 0.0)
    t = RNG.normal(size=(4, 4))
    assert abs(np.sum(g * t) - differences(f, A, t)) <= 1e-9


def test_vectors_of_zero_singular_values_are_told_apart_by_the_difference_of_their_cotangents():
    """Of two zeros, U^H cU - V^H cV is diagonal and not constant: the basis in hand may be a special one."""
    A = np.diag([3.0, 0.0, 0.0]) @ Q[:3, :3]
    u, _, vh = np.linalg.svd(A)
    m = sym(G[:2, :2])
    left, right = u[:, 1:] @ m @ u[:, 1:].T, vh[1:].T @ (m - np.diag([1.0, 2.0])) @ vh[1:]

    def score(A):
        u, _, vh = np.linalg.svd(A)
        return np.sum(left * (u[:, 1:] @ u[:, 1:].T)) + np.sum(right * (vh[1:].T @ vh[1:]))

    with pytest.raises(UnsupportedFunctionError, match="zero singular values coincide"):
        dil.grad(score)(A)


TRUNCATED = {
    "values that rtol drops": [3.0, 2.0, 0.1, 0.05],
    "a pair on both sides": [2.0, 2.0, 0.1, 0.1],
    "a small value and a zero": [3.0, 2.0, 0.1, 0.0],
    "zeros": [3.0, 2.0, 0.0, 0.0],
    "rounding": [3.0, 2.0, 1e-16, 1e-16],
}


def with_singular_values(values, shape):
    k = min(shape)
    u, v = (np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0][:, :k] for n in shape)
    return (u * np.asarray(values)[:k]) @ v.T


@pytest.mark.parametrize("shape", [(4, 4), (5, 4), (4, 5)])
@pytest.mark.parametrize("name", TRUNCATED)
def test_singular_values_that_rtol_drops(name, shape):
    """The pseudoinverse without them is smooth, and they are part of its derivative. They may be zero."""
    A, t, weight = with_singular_values(TRUNCATED[name], shape), RNG.normal(size=shape), RNG.normal(size=shape)
    b = RNG.normal(size=shape[0])
    for f in (
        lambda A: np.sum(np.linalg.pinv(A, rcond=0.2) * weight.T),
        lambda A: np.sum(np.linalg.lstsq(A, b, rcond=0.2)[0] * weight[0]),
    ):
        expected = differences(f, A, t)
        assert abs(np.sum(dil.grad(f)(A) * t) - expected) <= 1e-9
        assert abs(dil.jvp(f, (A,), (t,))[1] - expected) <= 1e-9
        slope = lambda A, f=f: np.sum(dil.grad(f)(A) * weight)  # noqa: E731
        if name in ("a pair on both sides", "a small value and a zero"):
            with pytest.raises(UnsupportedFunctionError, match="coincide"):
                dil.grad(slope)(A)
        else:
            assert abs(np.sum(dil.grad(slope)(A) * t) - differences(slope, A, t)) <= 1e-8


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (3, 4)])
def test_the_third_derivative_of_a_pseudoinverse(shape):
    """A value of zero that rtol drops moves away from zero to first order, and counts in the third derivative."""
    rng = np.random.default_rng(0)
    t, v, w = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for _ in range(3))
    phases = np.exp(1j * rng.normal(size=(shape[0], 1))), np.exp(1j * rng.normal(size=shape[1]))
    A = phases[0] * with_singular_values([3.0, 2.0, 0.0], shape) * phases[1]

    def along(f, v):
        return lambda A: np.sum(np.real(np.conj(dil.grad(f)(A)) * v))

    slope = along(lambda A: np.sum(np.real(np.linalg.pinv(A, rcond=0.2) * w.T)), v)
    second = along(slope, w)
    expected = differences(second, A, t)
    assert abs(along(second, t)(A) - expected) <= 1e-7 * abs(expected)


def test_a_singular_value_at_the_edge_of_rtol():
    A = np.diag([3.0, 1.0 + 1e-15, 1.0, 0.5])
    with pytest.raises(UnsupportedFunctionError, match="choose another rtol"):
        dil.grad(lambda A: np.sum(np.linalg.pinv(A, rcond=(1.0 + 5e-16) / 3.0)))(A)


@pytest.mark.parametrize("matrix", [np.diag([1.0, 2.0, 0.0]), np.diag([1.0, 0.0, 0.0]), np.zeros((3, 3)), G[:3, :3]])
def test_a_determinant_in_forward_mode(matrix):
    """The first derivative of a determinant exists everywhere; the second of a singular matrix is refused."""
    t, weight = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3))
    expected = differences(np.linalg.det, matrix, t)
    np.testing.assert_allclose(dil.jvp(np.linalg.det, (matrix,), (t,))[1], expected, rtol=1e-9, atol=1e-12)
    by_tangent = dil.grad(lambda t: dil.jvp(np.linalg.det, (matrix,), (t,))[1])(t)
    np.testing.assert_allclose(by_tangent, dil.grad(np.linalg.det)(matrix), rtol=1e-12, atol=1e-14)
    if matrix[2, 2] == 0.0:
        with pytest.raises(UnsupportedFunctionError, match="singular"):
            dil.grad(lambda A: np.sum(weight * dil.grad(np.linalg.det)(A)))(matrix)
        with pytest.raises(UnsupportedFunctionError, match="singular"):
            dil.jvp(dil.grad(np.linalg.det), (matrix,), (t,))


# the rules of complex matrices, by themselves: <a, b> = Re sum conj(a) b


def complex_normal(*shape):
    return RNG.normal(size=shape) + 1j * RNG.normal(size=shape)


class Plain:
    """The functions that rules need, on raw arrays."""

    constant = staticmethod(lambda x: x)
    boxed = staticmethod(lambda x: False)
    recorded = staticmethod(lambda x: False)
    singular = staticmethod(lambda x, full_matrices: np.linalg.svd(x, full_matrices=full_matrices))

    def __getattr__(self, name):
        return getattr(np_xp, name)


def hermitian(x):
    return 0.5 * (x + np.conj(np.swapaxes(x, -1, -2)))


def phases(v):
    """What is left of vectors if their phases are free."""
    return v[..., :, None, :] * np.conj(v[..., None, :, :])


def functions_of_complex_matrices():
    """Name -> function, its rule and an argument. A score of the results does not depend on the phases."""
    square, tall, wide = complex_normal(2, 3, 3) + 3 * np.eye(3), complex_normal(4, 3), complex_normal(2, 4)
    positive = square @ np.conj(np.swapaxes(square, -1, -2))
    deficient = complex_normal(3, 3) * np.asarray([[1.0], [1.0], [0.0]])
    svd = lambda x: np.linalg.svd(x, full_matrices=False)  # noqa: E731
    pull_svd = lambda xp, c, y, x: pull_singular(xp, c, y, x, full_matrices=False)  # noqa: E731
    reduced_qr = lambda xp, c, y, x: pull_qr(xp, c, y, x, mode="reduced")  # noqa: E731
    same = lambda *y: y  # noqa: E731
    vectors = lambda w, v: (w, phases(v))  # noqa: E731
    both = lambda u, s, vh: (s, u[..., :, None, :] * np.swapaxes(vh, -1, -2)[..., None, :, :])  # noqa: E731
    return {
        "eigh": (lambda x: np.linalg.eigh(hermitian(x)), pull_spectrum, positive, vectors),
        "eig": (np.linalg.eig, pull_general_spectrum, square, vectors),
        **{f"svd{x.shape}": (svd, pull_svd, x, both) for x in (square, tall, wide)},
        **{f"qr{x.shape}": (np.linalg.qr, reduced_qr, x, same) for x in (square, tall, wide)},
        "cholesky": (lambda x: (np.linalg.cholesky(hermitian(x)),), only(pull_cholesky), positive, same),
        "polar": (lambda x: (np.matmul(*svd(x)[::2]),), only(pull_polar), tall, same),
        "pinv": (lambda x: (np.linalg.pinv(x),),
                 only(lambda xp, c, y, x: pull_pseudoinverse(xp, c, y, x, rtol=None)), tall, same),
        "det": (lambda x: (np.linalg.det(x),), only(pull_det), square, same),
        "det of a singular matrix": (lambda x: (np.linalg.det(x),), only(pull_det), deficient, same),
        "slogdet": (lambda x: tuple(np.linalg.slogdet(x)), pull_slogdet, square, same),
        "inv": (lambda x: (np.linalg.inv(x),), only(LINALG["linalg.inv"].formulas[0]), square, same),
    }  # fmt: skip


def only(rule):
    return lambda xp, c, y, x: rule(xp, c[0], y[0], x)


@pytest.mark.parametrize("name", functions_of_complex_matrices())
def test_rules_of_complex_matrices(name):
    f, rule, x, invariant = functions_of_complex_matrices()[name]
    y = f(x)
    weights = [complex_normal(*part.shape) for part in invariant(*y)]

    def score(*y):
        return sum(np.sum(np.real(np.conj(w) * part)) for w, part in zip(weights, invariant(*y), strict=True))

    c = tuple(gradient_by_differences(lambda part, i=i: score(*y[:i], part, *y[i + 1 :]), y[i]) for i in range(len(y)))
    t = complex_normal(*x.shape)
    found = np.sum(np.real(np.conj(rule(Plain(), c, y, x)) * (hermitian(t) if name in ("eigh", "cholesky") else t)))
    expected = differences(lambda x: score(*f(x)), x, t, 1e-3)
    assert abs(found - expected) <= 1e-6 * (abs(expected) + abs(found) + abs(score(*y)))


def gradient_by_differences(f, y):
    """The gradient d/dx + i d/dy of a real function that is quadratic: the differences are exact."""
    g = np.zeros(y.shape, dtype=y.dtype)
    for i in np.ndindex(y.shape):
        e = np.zeros(y.shape, dtype=y.dtype)
        e[i] = 1.0
        g[i] = differences(f, y, e, 1.0)
        if np.iscomplexobj(y):
            g[i] += 1j * differences(f, y, 1j * e, 1.0)
    return g


def test_coinciding_values_of_a_complex_matrix():
    """Two equal eigenvalues or singular values, and functions that treat them alike, to second order."""
    q = np.linalg.qr(complex_normal(4, 4))[0]
    x, t, weight = (q * np.asarray([1.0, 1.0, 3.0, 5.0])) @ np.conj(q.T), complex_normal(4, 4), complex_normal(4, 4)
    inner = lambda a, b: np.sum(np.real(np.conj(a) * b))  # noqa: E731
    for f in (
        lambda x: np.sum(np.exp(np.linalg.eigvalsh(hermitian(x)) / 5.0)),
        lambda x: np.sum(np.linalg.svd(x / 5.0)[1] ** 3),
    ):
        expected = differences(f, x, t)
        assert abs(inner(dil.grad(f)(x), t) - expected) <= 1e-9
        assert abs(dil.jvp(f, (x,), (t,))[1] - expected) <= 1e-9
        slope = lambda x, f=f: inner(dil.grad(f)(x), weight)  # noqa: E731
        assert abs(inner(dil.grad(slope)(x), t) - differences(slope, x, t)) <= 1e-9
    with pytest.raises(UnsupportedFunctionError, match="coincide"):
        dil.grad(lambda x: np.linalg.eigvalsh(hermitian(x))[0])(x)


def test_a_phase_has_no_derivative():
    x = hermitian(complex_normal(3, 3))
    w, v = np.linalg.eigh(x)
    with pytest.raises(UnsupportedFunctionError, match="phases"):
        pull_spectrum(Plain(), (np.zeros(3), complex_normal(3, 3)), (w, v), x)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 3)])
@pytest.mark.parametrize("dtype", [float, complex])
def test_svd_of_a_hermitian_matrix_has_the_signs_of_numpy(shape, dtype):
    """Its eigenvalues have both signs, and U and Vh those of `np.linalg.svd(A, hermitian=True)`."""
    rng = np.random.default_rng(4)
    A = rng.normal(size=shape) + (1j * rng.normal(size=shape) if dtype is complex else 0.0)
    A = A + np.conj(np.swapaxes(A, -1, -2))
    recorded = []

    def score(A):
        recorded.append([dil.constant(part) for part in np.linalg.svd(A, hermitian=True)])
        U, s, Vh = np.linalg.svd(A, hermitian=True)
        return (
            np.sum(np.abs(U) ** 4)
            + np.sum(s**3)
            + np.sum(np.abs(Vh) ** 4)
            + np.sum(np.real((U * s[..., None, :]) @ Vh))
        )

    t = np.tril(A)
    g, h = dil.grad(score)(A), 1e-3
    for found, expected in zip(recorded[0], np.linalg.svd(A, hermitian=True), strict=True):
        np.testing.assert_array_equal(found, expected)
    expected = sum(w * (score(A + k * h * t) - score(A - k * h * t)) for k, w in [(1, 2 / 3), (2, -1 / 12)]) / h
    assert abs(np.sum(np.real(np.conj(g) * t)) - expected) <= 1e-8 * abs(expected)
    if dtype is float:
        signed = lambda A: np.sum(np.linalg.svd(A, hermitian=True)[2][..., -1, :])  # noqa: E731
        expected = sum(w * (signed(A + k * h * t) - signed(A - k * h * t)) for k, w in [(1, 2 / 3), (2, -1 / 12)]) / h
        assert abs(np.sum(dil.grad(signed)(A) * t) - expected) <= 1e-7 * (abs(expected) + 1.0)
