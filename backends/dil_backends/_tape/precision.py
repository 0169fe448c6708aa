"""Arguments of less precision than the value: a rule computes with them in that of the value.

NumPy takes u in double precision to the power of an array b in single precision in double precision. The rule computes
b - 1 alone, or the logarithm of b, which would be rounded to that of b. That of a small integer has half precision.
"""

from __future__ import annotations

from typing import Any

from dil._base.typing import DType, Namespace

PROMOTED = frozenset(("add", "subtract", "multiply", "divide", "maximum", "minimum", "where"))
"""The functions whose rules compute with no argument alone: the cotangent beside it has the precision of the value."""
BITS = 32
"""NumPy's functions make double precision of integers with as many bits."""


def widened(xp: Namespace, args: Any, dtype: DType, cut: frozenset[int]) -> Any:
    """Return the arguments, none of less precision than `dtype` but those at the positions `cut`, which have no rule.

    xp: the raw namespace, or that of the tape if the arguments are boxes.
    """
    for a in args:
        if getattr(a, "dtype", dtype) != dtype:
            break
    else:  # most often
        return args
    return tuple([a if i in cut or not hasattr(a, "dtype") else wide(xp, a, dtype) for i, a in enumerate(args)])


def wide(xp: Namespace, a: Any, dtype: DType) -> Any:
    """Return a with the precision of `dtype`, if it has less. A real array stays real, and integers stay integers."""
    if xp.isdtype(a.dtype, "bool"):
        return xp.astype(a, xp.int64)
    if xp.isdtype(a.dtype, "integral"):
        return a if xp.iinfo(a.dtype).bits >= BITS else xp.astype(a, xp.int64)
    if xp.finfo(a.dtype).bits >= xp.finfo(dtype).bits:
        return a
    return xp.astype(a, dtype if xp.isdtype(a.dtype, "complex floating") else xp.finfo(dtype).dtype)
