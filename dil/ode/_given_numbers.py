"""Options that may be numbers for each entry of the state: `atol`, and a constant `jac`. They have no derivative."""

from __future__ import annotations

from typing import Any

from dil._base.arrays import array_namespace, is_complex
from dil._base.errors import OptionError, ShapeError
from dil._base.options import is_number
from dil._base.tree import LEAF
from dil._frameworks.registry import complex_parts_of, leaves_of, owner
from dil._layers.first_calls import is_readable
from dil._problem.space import Space


def atol_of(atol: Any, space: Space) -> Any:
    """Return the absolute tolerance of each entry of the vectors, (*batch, n), as NumPy's numbers.

    One number for all stays as it is.

    Raises
    ------
    ShapeError
        If a tolerance is neither a number nor like the state.
    OptionError
        If an entry is not above zero, or a program traces it.
    """
    import numpy as np

    if atol is None or is_number(atol):
        return atol
    parts, structure = ([atol], LEAF) if space.structure == LEAF else leaves_of(atol)
    if structure != space.structure:  # a list of numbers may be the tolerances of one leaf
        parts, structure = leaves_of(_with_arrays(atol))
    if structure != space.structure:
        message = f"atol is a tree of another structure than y0, {space.describe()}; expected one like y0, or a number"
        raise ShapeError(message)
    found = []
    for i, (part, shape) in enumerate(zip(parts, space.shapes, strict=True)):
        numbers, parts_of = _numbers("atol", part), shape[:-1] if i in space.split else shape
        try:
            numbers = np.broadcast_to(numbers, parts_of)
        except ValueError:
            message = f"atol has shape {numbers.shape}; expected {parts_of}, like y0, or a number"
            raise ShapeError(message) from None
        if not (numbers > 0).all():
            message = f"atol has the entry {numbers.min():g}; expected numbers > 0"
            raise OptionError(message)
        numbers = np.stack([numbers, numbers], axis=-1) if i in space.split else numbers
        found.append(numbers.reshape(*space.batch, -1))
    return np.concatenate(found, axis=-1)


def _with_arrays(tree: Any) -> Any:
    """Return a tree of dicts, lists and tuples with arrays of NumPy in the place of lists of numbers."""
    import numpy as np

    if isinstance(tree, dict):
        return {key: _with_arrays(value) for key, value in tree.items()}
    if type(tree) not in (list, tuple):
        return tree
    if tree and all(map(is_number, tree)):
        return np.asarray(tree, dtype=float)
    return type(tree)(map(_with_arrays, tree))


def jac_of(jac: Any) -> Any:
    """Return the function jac, or a constant matrix as NumPy's numbers. A sparse matrix becomes a dense one."""
    if jac is None or callable(jac):
        return jac
    return _numbers("jac", jac.toarray() if hasattr(jac, "toarray") else jac, may_be_complex=True)


def _numbers(name: str, given: Any, *, may_be_complex: bool = False) -> Any:
    """Return numbers that were given as a list or an array, of NumPy's float, or complex if they may be.

    Raises
    ------
    OptionError
        If they are none.
    """
    import numpy as np

    own = owner(given)
    if own is not None:
        split = is_complex(array_namespace(given), given.dtype)
        parts = complex_parts_of(given).split(given) if split else given
        if not is_readable(own, parts):
            message = f"{name} is an array that a program traces; give numbers that are known before it runs"
            raise OptionError(message)
        numbers = own.to_numpy(own.constant(parts))
        given = numbers[..., 0] + 1j * numbers[..., 1] if split else numbers
    try:
        found = np.asarray(given)
        kind = complex if found.dtype.kind == "c" else float
        found = np.asarray(found, dtype=kind)
    except (TypeError, ValueError):
        message = f"{name}={given!r}; expected numbers"
        raise OptionError(message) from None
    if kind is complex and not may_be_complex:  # a cast would drop the imaginary parts
        message = f"{name}={given!r} is complex; expected real numbers"
        raise OptionError(message)
    return found
