"""Functions beyond the elementwise ones for random programs: decompositions, special functions and NumPy's own.

Each takes one or two arrays of two rows and three columns, whose entries have a modulus below 1, and returns what
broadcasts to that shape. A decomposition is of a matrix whose eigenvalues or singular values stay apart.
"""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np

WIDE = [[4.0, 0.0, 0.0], [0.0, 1.5, 0.0]]


def adjoint(xp, x):
    return xp.matrix_transpose(xp.conj(x))


def positive(xp, x):
    """A Hermitian matrix of two rows, with eigenvalues above 2."""
    return x @ adjoint(xp, x) + 2.0 * xp.eye(2)


def wide(xp, x):
    """A matrix of two rows and three columns, with singular values near 4 and 1.5."""
    return 0.3 * x + xp.asarray(WIDE)


def eigh(xp, x):
    w, v = xp.linalg.eigh(xp.asarray([[1.0, 0.0], [0.0, 6.0]]) + 0.3 * positive(xp, x))
    first = v[:, :1]
    return first @ (adjoint(xp, first) @ x) + w[:, None]


def svd(xp, x):
    u, s, vh = xp.linalg.svd(wide(xp, x), full_matrices=False)
    return (u * s**2) @ vh


def slogdet(xp, x, y):
    sign, logarithm = xp.linalg.slogdet(x @ xp.matrix_transpose(y) + 5.0 * xp.eye(2))
    return sign * x + logarithm


OF_ONE_MATRIX = {
    "cholesky": lambda xp, x: xp.linalg.cholesky(positive(xp, x)) @ x,
    "cholesky#upper": lambda xp, x: xp.linalg.cholesky(positive(xp, x), upper=True) @ x,
    "qr": lambda xp, x: adjoint(xp, xp.linalg.qr(adjoint(xp, wide(xp, x)))[0]),
    "qr#wide": lambda xp, x: xp.linalg.qr(wide(xp, x))[1],
    "eigh": eigh,
    "svd": svd,
    "svdvals": lambda xp, x: x * xp.linalg.svdvals(wide(xp, x))[:, None],
    "pinv": lambda xp, x: adjoint(xp, xp.linalg.pinv(wide(xp, x))),
    "matrix_norm#nuc": lambda xp, x: x * xp.linalg.matrix_norm(wide(xp, x), ord="nuc"),
    "matrix_norm#2": lambda xp, x: x * xp.linalg.matrix_norm(wide(xp, x), ord=2),
    "matrix_power": lambda xp, x: xp.linalg.matrix_power(positive(xp, x), 3) @ x,
}
OF_TWO_MATRICES = {
    "slogdet": slogdet,
    "outer": lambda xp, x, y: xp.linalg.outer(x[:, 0], y[0, :]),
    "trace": lambda xp, x, y: x * xp.linalg.trace(x @ adjoint(xp, y)),
}


OF_ONE_NUMPY = {
    "einsum": lambda xp, x: np.einsum("ij,kj,kl->il", x, np.conj(x), x),
    "diag": lambda xp, x: np.diag(x[:, 0]) @ x + np.trace(x),
    "pad": lambda xp, x: np.pad(x, 1, mode="reflect")[1:3, :3],
    "gradient": lambda xp, x: np.gradient(x, axis=1, edge_order=2) + np.gradient(x, axis=0),
    "median": lambda xp, x: x + np.median(np.real(x) + np.asarray(WIDE), axis=1, keepdims=True),
    "nanvar": lambda xp, x: x * np.nanvar(x, axis=0, ddof=1),
    "cov": lambda xp, x: np.cov(x) @ x,
    "nan_to_num": lambda xp, x: np.nan_to_num(x),
    "rot90": lambda xp, x: np.rot90(x, 2) + np.fliplr(x) * np.flipud(x),
    "trapezoid": lambda xp, x: x + np.trapezoid(x, axis=1)[:, None],
    "polyval": lambda xp, x: np.polyval([1.0, -2.0, 0.5], x),
    "exp2": lambda xp, x: np.exp2(x) + np.sinc(0.5 + 0.2 * np.real(x)),
    "linspace": lambda xp, x: np.linspace(x[:, 0], x[:, 1] * 2.0, 3, axis=1),
    "eig": lambda xp, x: x * np.linalg.eigvals(np.asarray([[1.0, 0.0], [0.0, 6.0]]) + 0.3 * positive(xp, x))[0],
    "lstsq": lambda xp, x: np.linalg.lstsq(np.conj(wide(xp, x)).T, x.T)[0] @ x,
}
OF_TWO_NUMPY = {
    "convolve": lambda xp, x, y: np.stack([np.convolve(x[0], y[1], "same"), np.correlate(x[1], y[0], "same")]),
    "kron": lambda xp, x, y: np.kron(x[:, :1], y[:1, :]),
    "inner": lambda xp, x, y: np.inner(x, y) @ y + np.vdot(x, y),
    "dot": lambda xp, x, y: np.dot(x, np.dot(y.T, x)),
    "interp": lambda xp, x, y: x + np.interp(0.3, np.asarray([-1.0, 0.1, 1.0]) + 0.1 * np.real(x[0]), np.real(y[1])),
    "logaddexp2": lambda xp, x, y: np.logaddexp2(np.real(x), np.real(y)),
    "fmax": lambda xp, x, y: np.fmax(np.real(x) + 3.0, np.real(y)) + np.fmin(np.real(x) - 3.0, np.real(y)),
    "select": lambda xp, x, y: np.select([np.asarray([True, False, True])], [x], y),
}


def special_functions():
    """The special functions of one argument and of two; none where SciPy is not installed."""
    if importlib.util.find_spec("scipy") is None:
        return {}, {}
    special = importlib.import_module("scipy.special")
    real = np.real
    of_complex = ("erf", "erfc", "erfcx", "dawsn", "ndtr", "log_ndtr", "softmax", "log_softmax")
    of_real = ("expit", "log_expit", "j0", "j1", "i0", "i1", "i0e", "exprel", "cosm1", "exp10", "erfi")
    above = ("gamma", "gammaln", "psi", "y0", "y1", "k0", "k1", "entr", "expi", "exp1", "rgamma")
    one = {
        **{name: lambda xp, x, name=name: getattr(special, name)(x) for name in of_complex},
        **{name: lambda xp, x, name=name: getattr(special, name)(real(x)) for name in of_real},
        **{name: lambda xp, x, name=name: getattr(special, name)(2.0 + real(x)) for name in above},
        "logit": lambda xp, x: special.logit(0.5 + 0.4 * real(x)),
        "erfinv": lambda xp, x: special.erfinv(0.8 * real(x)),
        "jv": lambda xp, x: special.jv(1.5, 2.0 + x),
        "kv": lambda xp, x: special.kv(0.5, 2.0 + x),
        "logsumexp": lambda xp, x: x - special.logsumexp(x, axis=1, keepdims=True),
    }
    two = {
        "xlogy": lambda xp, x, y: special.xlogy(x, 2.0 + y) + special.xlog1py(x, y * 0.5),
        "beta": lambda xp, x, y: special.beta(2.0 + real(x), 1.5 + real(y)),
        "kl_div": lambda xp, x, y: special.kl_div(2.0 + real(x), 1.5 + real(y)),
        "poch": lambda xp, x, y: special.poch(2.0 + real(x), 1.5 + real(y)),
        "gammainc": lambda xp, x, y: y * special.gammainc(1.5, 2.0 + real(x)),
        "betainc": lambda xp, x, y: y * special.betainc(1.5, 2.5, 0.5 + 0.4 * real(x)),
        "huber": lambda xp, x, y: special.pseudo_huber(2.0 + real(x), real(y)),
    }
    return one, two
