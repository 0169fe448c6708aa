"""The derivative of every function that the tape knows, one file for each family of functions.

This package imports no other part of the tape. A new rule goes into the table of its family. The tables are joined
here:

* `RULES`     the formulas of each differentiable function, one per array argument
* `COMPOSED`  functions written with other functions of the tape, which have derivatives
* `CONSTANT`  functions whose derivative is zero wherever it exists
* `OWN`       functions that the rules need and the standard lacks (`placed`, `scatter`, ...): how to compute them
* `ALIASES`   other names: those of NumPy, and the functions that `linalg` repeats from the main namespace
"""

from __future__ import annotations

from collections.abc import Callable

from dil_backends._tape.rules.axes import along
from dil_backends._tape.rules.elementwise import SEVERAL, UNARY, clip
from dil_backends._tape.rules.indexing import gather, getitem, placed, scatter, take, take_along_axis
from dil_backends._tape.rules.linalg import (
    LINALG,
    diagonal,
    dot,
    matrix_norm,
    matrix_power,
    norm,
    outer,
    tensordot,
    trace,
    vector_norm,
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
    swapaxes,
    tile,
    transpose,
)
from dil_backends._tape.rules.reductions import REDUCTIONS
from dil_backends._tape.rules.rule import Rule, Value

RULES: dict[str, Rule] = {
    **{name: Rule((formula,)) for name, formula in (UNARY | REDUCTIONS | SHAPES).items()},
    **{name: Rule(formulas) for name, formulas in SEVERAL.items()},
    **LINALG,
    "join": Rule((), each=joined),
    "pile": Rule((), each=lambda xp, c, y, i, *xs, axis=0: c[along(axis, c.ndim, i)]),
}

COMPOSED: dict[str, Callable[..., Value]] = {
    "real": lambda xp, x: x,
    "conj": lambda xp, x: x,
    **{
        function.__name__: function
        for function in (
            *(getitem, take, take_along_axis, concat, stack, asarray, full, full_like, broadcast_arrays, meshgrid),
            *(repeat, tile, diff, clip, tensordot, dot, transpose, swapaxes),
        )
    },
    **{
        f"linalg.{function.__name__}": function
        for function in (outer, diagonal, trace, vector_norm, matrix_norm, matrix_power, norm)
    },
}

OWN: dict[str, Callable[..., Value]] = {
    "placed": placed,
    "scatter": scatter,
    "gather": gather,
    "indexed": lambda xp, x, key: x[key],
    "join": lambda xp, *xs, axis=0: xp.concat(xs, axis=axis),
    "pile": lambda xp, *xs, axis=0: xp.stack(xs, axis=axis),
    "norm": lambda xp, x, axis=None, keepdims=False: xp.linalg.vector_norm(x, axis=axis, keepdims=keepdims),
    "pow": lambda xp, a, b: a**b,  # the operator is fast for small integer powers
}

# Piecewise constant functions. The derivative is zero except on a set of measure zero, where it does not exist. These
# functions work on raw values and return no box.
CONSTANT = frozenset(
    {
        *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isclose", "allclose", "array_equal"),
        *("logical_and", "logical_or", "logical_xor", "logical_not", "all", "any", "isfinite", "isnan", "isinf"),
        *("sign", "signbit", "floor", "ceil", "round", "trunc", "floor_divide", "linalg.matrix_rank"),
        *("argmax", "argmin", "argsort", "searchsorted", "nonzero", "count_nonzero", "shape", "ndim", "size"),
        *("zeros_like", "ones_like", "empty_like", "result_type", "can_cast", "isdtype", "finfo", "iinfo"),
    }
)

ALIASES: dict[str, str] = {
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
