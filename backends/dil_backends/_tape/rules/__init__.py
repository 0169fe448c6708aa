"""The derivative of every function that the tape knows, one file for each family of functions.

This package imports no other part of the tape. A new rule goes into the table of its family. The tables are joined
here:

* `RULES`     the formulas of each differentiable function, one per array argument
* `COMPOSED`  functions written with other functions of the tape, which have derivatives
* `CONSTANT`  functions whose derivative is zero wherever it exists, with the reason
* `OWN`       functions that the rules need and the standard lacks (`placed`, `scatter`, ...): how to compute them
* `NUMPY`     functions that NumPy and CuPy share beyond the standard, and the standard's with NumPy's arguments
* `ALIASES`   other names: those of NumPy, and the functions that `linalg` repeats from the main namespace
"""

from __future__ import annotations

from collections.abc import Callable

from dil._base.arrays import is_complex
from dil_backends._tape.rules import numpy_own
from dil_backends._tape.rules.axes import along
from dil_backends._tape.rules.complex import PARTS, angle, conj, imag, real, sign
from dil_backends._tape.rules.eigen import eig, eigh, eigvals, eigvalsh, general_spectrum, spectrum
from dil_backends._tape.rules.elementwise import SEVERAL, UNARY, clip, ratio, sech_squared
from dil_backends._tape.rules.factors import cholesky, cholesky_factor, cholesky_of_numpy, orthogonal_triangular, qr
from dil_backends._tape.rules.fft import COMPOSED_TRANSFORMS, RAW_TRANSFORMS, TRANSFORMS
from dil_backends._tape.rules.indexing import gather, getitem, placed, scatter, take, take_along_axis
from dil_backends._tape.rules.linalg import (
    LINALG,
    diagonal,
    lstsq,
    matrix_power,
    multi_dot,
    outer,
    tensordot,
    tensorinv,
    tensorsolve,
    trace,
)
from dil_backends._tape.rules.manipulation import (
    SHAPES,
    asarray,
    broadcast_arrays,
    concat,
    diff,
    full,
    full_like,
    joined,
    meshgrid,
    repeat,
    stack,
    tile,
    transpose,
)
from dil_backends._tape.rules.norms import matrix_norm, norm, power_norm, vector_norm
from dil_backends._tape.rules.reductions import REDUCTIONS
from dil_backends._tape.rules.rule import Rule, Value
from dil_backends._tape.rules.sets import unique_all, unique_counts, unique_inverse, unique_values
from dil_backends._tape.rules.singular import cond, nuclear, pinv, polar, pseudoinverse, singular, svd, svdvals
from dil_backends._tape.rules.sparse import SPARSE, SPARSE_OWN, sparse_times, times_sparse
from dil_backends._tape.rules.special import SPECIAL, SPECIAL_ALIASES, SPECIAL_OWN, logsumexp, multigammaln
from dil_backends._tape.rules.uses import with_uses
from dil_backends._tape.rules.without_derivative import OF_NO_ARRAY, OF_THE_STANDARD

__all__ = ["ALIASES", "COMPOSED", "CONSTANT", "INSTEAD", "NUMPY", "OF_NO_ARRAY", "OWN", "RULES"]

# Formulas of these are written for real arrays: see `rule.py`. Those of all others are adjoints for complex arrays too.
HOLOMORPHIC = frozenset(
    {
        *("square", "sqrt", "reciprocal", "exp", "expm1", "log", "log1p", "log2", "log10"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        "sech_squared",
        *("multiply", "divide", "pow", "prod", "cumulative_prod"),
    }
)

RULES: dict[str, Rule] = with_uses(
    {
        **{
            name: Rule((formula,), holomorphic=name in HOLOMORPHIC)
            for name, formula in (REDUCTIONS | SHAPES | TRANSFORMS).items()
        },
        **{
            name: Rule((formula,), holomorphic=name in HOLOMORPHIC, elementwise=True)
            for name, formula in (UNARY | PARTS).items()
        },
        **{
            name: Rule(formulas, holomorphic=name in HOLOMORPHIC, elementwise=True)
            for name, formulas in SEVERAL.items()
        },
        **LINALG,
        **numpy_own.NUMPY_RULES,
        **SPECIAL,
        **SPARSE,
        "join": Rule((), each=joined),
        "pile": Rule((), each=lambda xp, c, y, i, *xs, axis=0: c[along(axis, c.ndim, i)]),
    }
)

COMPOSED: dict[str, Callable[..., Value]] = {
    **{
        function.__name__: function
        for function in (
            *(getitem, take, take_along_axis, concat, stack, asarray, full, full_like, broadcast_arrays, meshgrid),
            *(repeat, tile, diff, clip, tensordot, transpose),
            *(real, imag, conj, angle, sign, unique_all, unique_counts, unique_inverse, unique_values),
            *(sparse_times, times_sparse),
        )
    },
    **{
        f"linalg.{function.__name__}": function
        for function in (
            *(outer, diagonal, trace, matrix_power, multi_dot, lstsq, tensorinv, tensorsolve),
            *(vector_norm, matrix_norm, norm, cond, pinv, eigh, eigvalsh, eig, eigvals, svd, svdvals, qr, cholesky),
        )
    },
    **COMPOSED_TRANSFORMS,
    **{f"special.{function.__name__}": function for function in (logsumexp, multigammaln)},
}

OWN: dict[str, Callable[..., Value]] = {
    **numpy_own.NUMPY_OWN,
    **SPECIAL_OWN,
    **SPARSE_OWN,
    "placed": placed,
    "scatter": scatter,
    "gather": gather,
    "indexed": lambda xp, x, key: x[key],
    "join": lambda xp, *xs, axis=0: xp.concat(xs, axis=axis),
    "pile": lambda xp, *xs, axis=0: xp.stack(xs, axis=axis),
    "norm": lambda xp, x, axis=None, keepdims=False: xp.linalg.vector_norm(x, axis=axis, keepdims=keepdims),
    **{
        function.__name__: function
        for function in (
            *(spectrum, general_spectrum, singular, orthogonal_triangular, cholesky_factor, pseudoinverse, polar),
            *(nuclear, power_norm, sech_squared),
        )
    },
    "pow": lambda xp, a, b: a**b,  # the operator is fast for small integer powers
    "conjugated": lambda xp, x: xp.conj(x),
    "real_part": lambda xp, x: xp.real(x),
    "imaginary_part": lambda xp, x: xp.imag(x),
    "conj": lambda xp, x: xp.conj(x) if is_complex(xp, x.dtype) else x,  # NumPy copies a real array
    # the sign of a complex 0 is 0 / 0 in array_api_compat
    "sign": lambda xp, x: ratio(xp, x, xp.abs(x)) if is_complex(xp, x.dtype) else xp.sign(x),
    **RAW_TRANSFORMS,
}

CONSTANT: dict[str, str] = {**dict.fromkeys(numpy_own.CONSTANT, "its value is piecewise constant"), **OF_THE_STANDARD}
NUMPY: dict[str, Callable[..., Value]] = {**numpy_own.NUMPY, "linalg.cholesky": cholesky_of_numpy}
INSTEAD: dict[str, str] = numpy_own.INSTEAD

ALIASES: dict[str, str] = {
    **numpy_own.NUMPY_ALIASES,
    **{f"linalg.{name}": name for name in ("matmul", "matrix_transpose", "tensordot", "vecdot")},
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "tan2", "sinh", "cosh", "tanh")},
    "absolute": "abs",
    "fabs": "abs",
    "power": "pow",
    "true_divide": "divide",
    "mod": "remainder",
    "conjugate": "conj",
    "concatenate": "concat",
    "amax": "max",
    "amin": "min",
    "cumsum": "cumulative_sum",
    "cumprod": "cumulative_prod",
    "outer": "linalg.outer",
    "rint": "round",
}
# A ufunc tells its name alone, so those of SciPy are found by theirs, after the names of the array API and of NumPy.
ALIASES |= {f"special.{alias}": f"special.{name}" for alias, name in SPECIAL_ALIASES.items()}
ALIASES |= {
    bare: full
    for full in (*RULES, *COMPOSED, *CONSTANT, *ALIASES)
    if (bare := full.removeprefix("special.")) != full and bare not in RULES | COMPOSED | ALIASES
}
