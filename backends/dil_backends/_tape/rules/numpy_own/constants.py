"""NumPy's functions whose derivative is zero wherever it exists, and what is refused with a way that works."""

from __future__ import annotations

CONSTANT = (
    *("digitize", "argpartition", "argwhere", "flatnonzero", "lexsort", "nanargmax", "nanargmin", "array_equiv"),
    *("isposinf", "isneginf", "fix", "around", "heaviside", "common_type", "min_scalar_type", "may_share_memory"),
    *("shares_memory", "array_str", "array_repr", "array2string", "spacing", "isscalar", "iterable", "in1d"),
    *("diag_indices_from", "tril_indices_from", "triu_indices_from", "einsum_path"),
)

WRITING = "it writes in place; make a new array by `np.where`, `np.concatenate` or `np.stack`"

SCIMATH = {
    **{name: name for name in ("sqrt", "log", "log2", "log10", "power", "arccos", "arcsin", "arctanh")},
    "logn": "log",
}
"""Functions of `np.emath`, and those of NumPy without a change of dtype by the values."""

INSTEAD: dict[str, str] = {
    **dict.fromkeys(("copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal"), WRITING),
    **dict.fromkeys(
        ("histogram", "histogram2d", "histogramdd", "histogram_bin_edges"),
        "its counts are piecewise constant, so take it of dil's `constant` of the array; sums of weights between edges "
        "are np.bincount(np.digitize(x, edges), weights=w)",
    ),
    "reduceat": "write the reductions of the slices, or a sparse matrix of zeros and ones, S @ u",
    "at": WRITING,
    "reduce": "write the operator, or functools.reduce with it",
    "accumulate": "write the operator in a loop, and join its values by `np.stack`",
    "frexp": "write `np.log2`",
    "sort_complex": "write `np.sort`",
    "full": "write `np.ones(shape) * value`",
    "apply_along_axis": "write the function with axis=, or stack its values by `np.stack`",
    "apply_over_axes": "call the function with a tuple of axes",
    "piecewise": "write `np.where` or `np.select`",
    **{
        f"lib.scimath.{name}": f"write `np.{instead}` of `u.astype(complex)`, or of the real numbers it is defined for"
        for name, instead in SCIMATH.items()
    },
    "savetxt": "save `dil.constant(...)` of it",
    "save": "save `dil.constant(...)` of it",
}
"""What to write in the place of a function that the tape cannot have."""
