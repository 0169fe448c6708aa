"""The least, the median and the largest of some numbers, in words."""

from __future__ import annotations

from collections.abc import Iterable

from dil._base.arrays import array_namespace, is_float
from dil._base.typing import Array

LEGEND = "Of several numbers: least .. median .. largest."


def quantiles(values: Array) -> tuple[float, float, float] | None:
    """Return the least, the median and the largest number that is not NaN, or None if there is none.

    The numbers are those of an array of any framework and shape, real or integer.
    """
    xp = array_namespace(values)
    flat = xp.reshape(values, (-1,))
    count = flat.shape[0]
    if is_float(xp, flat.dtype):
        missing = xp.isnan(flat)
        flat, count = xp.where(missing, xp.inf, flat), count - int(xp.sum(xp.astype(missing, xp.int32)))
    if not count:
        return None
    ordered = xp.sort(flat)  # what is NaN comes last
    below, above = (float(ordered[i]) for i in ((count - 1) // 2, count // 2))
    return float(ordered[0]), (below + above) / 2 if below != above else below, float(ordered[count - 1])


def legend(rows: Iterable[Iterable[object]]) -> list[str]:
    """Return what the cells of a table mean, if one of them holds several numbers."""
    return [LEGEND] if any(" .. " in str(cell) for row in rows for cell in row) else []


def in_words(values: Array) -> str:
    """Return one number, or the least, the median and the largest of several."""
    found = quantiles(values)
    if found is None:
        return "nan" if values.shape != (0,) else "none"
    form = "{:.3g}" if is_float(array_namespace(values), values.dtype) else "{:g}"
    least, median, largest = (form.format(x) for x in found)
    return least if least == largest else f"{least} .. {median} .. {largest}"
