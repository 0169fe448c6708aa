"""The functions that have no derivative, each with the reason."""

from __future__ import annotations

PIECEWISE_CONSTANT = (
    *("floor", "ceil", "round", "trunc", "floor_divide", "signbit", "linalg.matrix_rank", "special.gammasgn"),
    *("argmax", "argmin", "argsort", "searchsorted", "nonzero", "count_nonzero"),
)
BOOLEAN = (
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isclose", "allclose", "array_equal"),
    *("logical_and", "logical_or", "logical_xor", "logical_not", "all", "any", "isfinite", "isnan", "isinf", "isin"),
    *("iscomplex", "isreal"),
)
OF_INTEGERS = tuple(f"bitwise_{name}" for name in ("and", "or", "xor", "invert", "left_shift", "right_shift"))
OF_SHAPES_AND_DTYPES = (
    *("shape", "ndim", "size", "zeros_like", "ones_like", "empty_like"),
    *("result_type", "can_cast", "isdtype", "finfo", "iinfo", "iscomplexobj", "isrealobj"),
)

OF_THE_STANDARD: dict[str, str] = {
    **dict.fromkeys(PIECEWISE_CONSTANT, "its value is piecewise constant"),
    **dict.fromkeys(BOOLEAN, "its value is Boolean"),
    **dict.fromkeys(OF_INTEGERS, "it takes integers"),
    **dict.fromkeys(OF_SHAPES_AND_DTYPES, "it looks at shapes and dtypes alone"),
}
"""Functions whose derivative is zero wherever it exists. They work on raw values and return no box."""

OF_NO_ARRAY: dict[str, str] = {
    **dict.fromkeys(("arange", "empty", "eye", "linspace", "ones", "zeros"), "it takes numbers and shapes"),
    **dict.fromkeys(("fft.fftfreq", "fft.rfftfreq"), "it takes numbers"),
    "broadcast_shapes": "it takes shapes",
    "from_dlpack": "it takes an array of another library, which is never being differentiated",
}
"""Functions that take no array that could be differentiated. Where they get one, they raise."""
