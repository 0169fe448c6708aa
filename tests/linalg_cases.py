"""The functions of linear algebra that the tape differentiates, each as a case of finite differences."""

from __future__ import annotations

import math

import numpy as np

from tape_helpers import Case, spd


def adjoint(xp, x):
    return xp.matrix_transpose(xp.conj(x))


def symmetric(xp, x):
    return 0.5 * (x + xp.matrix_transpose(x))


def part(f, *indices):
    """Return some of the results of f."""
    return lambda xp, x: tuple(f(xp, x)[i] for i in indices)


def complement(xp, basis, k):
    """The projector onto the columns after the first k, which does not depend on their basis."""
    rest = basis[..., k:]
    return rest @ adjoint(xp, rest)


def full_svd(xp, x):
    u, s, vh = xp.linalg.svd(x)
    k = s.shape[-1]
    v = xp.matrix_transpose(vh)
    return u[..., :k], s, vh[..., :k, :], complement(xp, u, k), complement(xp, v, k)


def complete_qr(xp, x):
    q, r = xp.linalg.qr(x, mode="complete")
    k = min(x.shape[-2:])
    return q[..., :k], r, complement(xp, q, k)


ORDERS = [1, -1, 2, -2, math.inf, -math.inf, "fro", "nuc"]

LINALG_CASES = [
    *(
        Case(f"linalg.vector_norm#{p}{options}", lambda xp, x, p=p, o=options: xp.linalg.vector_norm(x, ord=p, **o),
             ((2, 3, 2),), "apart" if p in (math.inf, -math.inf) else "away")
        for p in [0, 0.5, 1, 1.5, 2, 3, -1, -2.5, math.inf, -math.inf]
        for options in [{"axis": -1}, {"axis": (0, 2), "keepdims": True}]
    ),
    Case("linalg.vector_norm#3", lambda xp, x: xp.linalg.vector_norm(x, ord=3), ((2, 3),)),
    Case("power_norm", lambda xp, x: xp.power_norm(x, 3.0), ((4,),)),
    *(
        Case(f"linalg.matrix_norm#{p}{shape}", lambda xp, x, p=p: xp.linalg.matrix_norm(x, ord=p), (shape,), "spread")
        for p in ORDERS
        for shape in ([(3, 2), (2, 2, 4)] if p in (2, -2, "fro", "nuc") else [(3, 3), (2, 2, 2)])
    ),
    *(
        Case(f"linalg.matrix_norm#{p}keepdims", lambda xp, x, p=p: xp.linalg.matrix_norm(x, ord=p, keepdims=True),
             ((2, 3, 3),), "spread")
        for p in ORDERS
    ),
    Case("nuclear", lambda xp, x: xp.nuclear(x), ((2, 3, 2),), "spread"),
    *(Case(f"polar#{shape}", lambda xp, x: xp.polar(x), (shape,), "spread") for shape in [(3, 3), (2, 4, 3), (2, 3)]),
    *(
        Case(f"linalg.norm#{p}{axis}{keepdims}",
             lambda xp, x, p=p, a=axis, k=keepdims: xp.linalg.norm(x, ord=p, axis=a, keepdims=k), ((4, 2, 3),),
             "away")
        for p in [*ORDERS, None]
        for axis, keepdims in [((0, 2), True), ((-1, 0), False)]
    ),
    *(
        Case(f"linalg.norm#{p}{axis}", lambda xp, x, p=p, a=axis: xp.linalg.norm(x, ord=p, axis=a, keepdims=True),
             ((3, 2),), "away")
        for p, axis in [(0, 0), (1, 0), (2, -1), (3, 0), (-1, -1), (math.inf, 0), (None, 0)]
    ),
    Case("linalg.norm#vector", lambda xp, x: xp.linalg.norm(x, 3), ((4,),)),
    Case("linalg.norm#matrix", lambda xp, x: xp.linalg.norm(x, 1), ((4, 2),)),
    Case("linalg.norm#all", lambda xp, x: xp.linalg.norm(x), ((4, 2, 3),)),
    *(Case(f"linalg.eigh#{shape}", lambda xp, x: xp.linalg.eigh(symmetric(xp, x)), (shape,), "spread")
      for shape in [(1, 1), (4, 4), (2, 3, 3)]),
    Case("linalg.eigh#triangle", lambda xp, x: xp.linalg.eigh(x), ((3, 3),), "spread"),
    Case("linalg.eigvalsh", lambda xp, x: xp.linalg.eigvalsh(x), ((2, 3, 3),), "spread"),
    Case("spectrum", lambda xp, x: xp.spectrum(symmetric(xp, x)), ((3, 3),), "spread"),
    *(Case(f"linalg.svd#{shape}", lambda xp, x: xp.linalg.svd(x, full_matrices=False), (shape,), "spread")
      for shape in [(1, 1), (3, 3), (4, 2), (2, 3, 4)]),
    *(Case(f"linalg.svd#full{shape}", full_svd, (shape,), "spread") for shape in [(3, 3), (4, 2), (2, 1, 4)]),
    Case("linalg.svdvals", lambda xp, x: xp.linalg.svdvals(x), ((2, 4, 3),), "spread"),
    Case("singular", lambda xp, x: xp.singular(x, full_matrices=False), ((3, 2),), "spread"),
    *(Case(f"linalg.qr#{shape}", lambda xp, x: xp.linalg.qr(x), (shape,), "spread")
      for shape in [(1, 1), (3, 3), (4, 2), (2, 3, 5)]),
    *(Case(f"linalg.qr#complete{shape}", complete_qr, (shape,), "spread")
      for shape in [(3, 3), (4, 2), (2, 2, 3), (2, 4, 1)]),
    Case("orthogonal_triangular", lambda xp, x: xp.orthogonal_triangular(x, mode="reduced"), ((3, 2),)),
    *(Case(f"linalg.pinv#{shape}", lambda xp, x: xp.linalg.pinv(x), (shape,), "spread")
      for shape in [(3, 3), (2, 4, 2), (2, 4)]),
    Case("linalg.pinv#rtol", lambda xp, x: xp.linalg.pinv(x, rtol=1e-9), ((4, 2),)),
    Case("linalg.pinv#rank", lambda xp, x: xp.linalg.pinv(x @ xp.matrix_transpose(x), rtol=1e-9), ((4, 2),)),
    *(Case(f"linalg.pinv#drop{shape}", lambda xp, x: xp.linalg.pinv(x, rtol=0.5), (shape,), "spread")
      for shape in [(3, 3), (4, 3), (2, 3, 4)]),
    Case("pseudoinverse", lambda xp, x: xp.pseudoinverse(x, rtol=None), ((2, 3),)),
    *(Case(f"linalg.cond#{p}", lambda xp, x, p=p: xp.linalg.cond(x, p), ((2, 3, 3),), "spread")
      for p in [*ORDERS, None]),
    Case("linalg.multi_dot", lambda xp, a, b, c: xp.linalg.multi_dot([a, b, c]), ((2, 3), (3, 4), (4, 1))),
    Case("linalg.multi_dot#two", lambda xp, a, b: xp.linalg.multi_dot([a, b]), ((2, 3), (3, 1))),
    Case("linalg.multi_dot#vectors", lambda xp, a, b, c: xp.linalg.multi_dot([a, b, c]), ((3,), (3, 4), (4,))),
    Case("linalg.tensorinv", lambda xp, x: xp.linalg.tensorinv(
        xp.reshape(x, (2, 3, 6)) + xp.reshape(3.0 * xp.eye(6), (2, 3, 6))), ((6, 6),)),
    Case("linalg.tensorsolve", lambda xp, a, b: xp.linalg.tensorsolve(
        xp.reshape(a, (2, 2, 4)) + xp.reshape(3.0 * xp.eye(4), (2, 2, 4)), b), ((4, 4), (2, 2))),
    Case("linalg.tensorsolve#axes", lambda xp, a, b: xp.linalg.tensorsolve(
        xp.moveaxis(xp.reshape(a + 3.0 * xp.eye(6), (2, 3, 6)), -1, 1), b, axes=(1,)), ((6, 6), (2, 3))),
    Case("linalg.det#one", lambda xp, x: xp.linalg.det(x), ((1, 1),), "regular"),
    Case("linalg.cholesky#batch", lambda xp, x: xp.linalg.cholesky(spd(xp, x), upper=True), ((2, 1, 3, 3),)),
    # no rows, no columns, no matrices
    *(
        Case(f"linalg.{name}#empty{shape}", lambda xp, x, name=name: getattr(xp.linalg, name)(x), (shape,))
        for name, shapes in {
            "eigh": [(0, 0), (0, 2, 2)],
            "eigvalsh": [(0, 0)],
            "svdvals": [(0, 2), (2, 0), (0, 2, 2)],
            "qr": [(0, 2), (2, 0), (0, 2, 2)],
            "det": [(0, 0), (0, 2, 2)],
            "inv": [(0, 0), (0, 2, 2)],
            "cholesky": [(0, 0)],
            "slogdet": [(0, 0)],
        }.items()
        for shape in shapes
    ),
    Case("linalg.svd#empty", lambda xp, x: xp.linalg.svd(x, full_matrices=False), ((0, 2),)),
]  # fmt: skip

LINALG_NUMPY_ONLY = [
    Case("linalg.eigh#upper", lambda xp, x: np.linalg.eigh(x, "U"), ((2, 3, 3),), "spread"),
    Case("linalg.eigvalsh#upper", lambda xp, x: np.linalg.eigvalsh(x, UPLO="U"), ((3, 3),), "spread"),
    Case("linalg.svd#values", lambda xp, x: np.linalg.svd(x, compute_uv=False), ((3, 3),), "spread"),
    Case("linalg.svd#hermitian", lambda xp, x: np.linalg.svd(x, hermitian=True, compute_uv=False), ((3, 3),), "spread"),
    Case("linalg.pinv#hermitian", lambda xp, x: np.linalg.pinv(x, hermitian=True), ((3, 3),), "regular"),
    Case("linalg.qr#r", lambda xp, x: np.linalg.qr(x, mode="r"), ((3, 2),)),
    Case("linalg.lstsq", lambda xp, a, b: part(lambda xp, a: np.linalg.lstsq(a, b), 0, 1, 3)(xp, a), ((4, 2), (4,))),
    Case("linalg.lstsq#columns", lambda xp, a, b: part(lambda xp, a: np.linalg.lstsq(a, b, 1e-9), 0, 1, 3)(xp, a),
         ((4, 2), (4, 3))),
    Case("linalg.lstsq#drop", lambda xp, a, b: part(lambda xp, a: np.linalg.lstsq(a, b, 0.5), 0, 3)(xp, a),
         ((4, 3), (4,)), "spread"),
    Case("linalg.lstsq#wide", lambda xp, a, b: part(lambda xp, a: np.linalg.lstsq(a, b), 0, 3)(xp, a), ((2, 4), (2,))),
    # upper triangular matrices have real eigenvalues, and so have those near to them
    Case("linalg.eig", lambda xp, x: np.linalg.eig(xp.triu(x) + 0.1 * x + xp.asarray([0.0, 3.0, 6.0])
                                                   * xp.eye(3)), ((2, 3, 3),)),
    Case("linalg.eigvals", lambda xp, x: np.linalg.eigvals(xp.triu(x) + xp.asarray([0.0, 3.0, 6.0]) * xp.eye(3)),
         ((3, 3),)),
    Case("general_spectrum", lambda xp, x: xp.general_spectrum(xp.triu(x) + xp.asarray([0.0, 3.0]) * xp.eye(2)),
         ((2, 2),)),
]  # fmt: skip


def each_projector(xp, v):
    """The projectors onto the vectors one by one, which do not depend on their phases."""
    return v[..., :, None, :] * xp.conj(v[..., None, :, :])


def complex_eigh(xp, x):
    w, v = xp.linalg.eigh(0.5 * (x + adjoint(xp, x)))
    return w, each_projector(xp, v)


def complex_eig(xp, x):
    w, v = np.linalg.eig(x)
    return w, each_projector(xp, v)


def complex_svd(xp, x):
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    return s, u[..., :, :, None] * vh[..., None, :, :]


def complex_full_svd(xp, x):
    u, s, vh = xp.linalg.svd(x)
    k = s.shape[-1]
    return s, complement(xp, u, k), complement(xp, adjoint(xp, vh), k)


def of_complex(name, f, *shapes):
    return [Case(f"{name}{shape}", f, (shape,), "spread", ("complex",)) for shape in shapes]


LINALG_COMPLEX = [
    *of_complex("linalg.eigh#", complex_eigh, (1, 1), (3, 3), (2, 3, 3)),
    *of_complex("linalg.eigvalsh#", lambda xp, x: xp.linalg.eigvalsh(x), (3, 3)),
    *of_complex("linalg.svd#", complex_svd, (1, 1), (3, 3), (4, 2), (2, 2, 3)),
    *of_complex("linalg.svd#full", complex_full_svd, (4, 2), (2, 1, 3)),
    *of_complex("linalg.svdvals#", lambda xp, x: xp.linalg.svdvals(x), (2, 3, 2)),
    *of_complex("linalg.qr#", lambda xp, x: xp.linalg.qr(x), (3, 3), (4, 2), (2, 2, 3)),
    *of_complex("linalg.qr#complete", complete_qr, (4, 2), (2, 2, 3)),
    *of_complex("linalg.cholesky#", lambda xp, x: xp.linalg.cholesky(spd(xp, x)), (3, 3), (2, 2, 2)),
    *of_complex("linalg.cholesky#upper", lambda xp, x: xp.linalg.cholesky(spd(xp, x), upper=True), (3, 3)),
    *of_complex("linalg.det#", lambda xp, x: xp.linalg.det(x), (1, 1), (3, 3), (2, 2, 2)),
    *of_complex("linalg.slogdet#", lambda xp, x: xp.linalg.slogdet(x), (1, 1), (3, 3), (2, 2, 2)),
    *of_complex("linalg.inv#", lambda xp, x: xp.linalg.inv(x), (3, 3)),
    *of_complex("linalg.pinv#", lambda xp, x: xp.linalg.pinv(x), (3, 3), (4, 2), (2, 2, 3)),
    *of_complex("linalg.pinv#drop", lambda xp, x: xp.linalg.pinv(x, rtol=0.5), (3, 3), (4, 3), (2, 3, 4)),
    *of_complex("polar#", lambda xp, x: xp.polar(x), (3, 3), (4, 2), (2, 2, 3)),
    *of_complex("linalg.matrix_norm#nuc", lambda xp, x: xp.linalg.matrix_norm(x, ord="nuc"), (3, 2)),
]

LINALG_COMPLEX_NUMPY_ONLY = [
    *of_complex("linalg.eig#", complex_eig, (1, 1), (3, 3), (2, 2, 2)),
    *of_complex("linalg.eigvals#", lambda xp, x: np.linalg.eigvals(x), (3, 3)),
    # imaginary parts of the diagonal are not read
    *of_complex("linalg.pinv#hermitian", lambda xp, x: np.linalg.pinv(x, hermitian=True), (3, 3)),
    *of_complex("linalg.svd#hermitian", lambda xp, x: np.linalg.svd(x, hermitian=True, compute_uv=False), (3, 3)),
]
