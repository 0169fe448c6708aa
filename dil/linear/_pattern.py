"""Which entries of a matrix may be other than zero: what a user gives, as columns of row numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from dil._base.errors import OptionError, ShapeError
from dil._base.options import is_integer

PatternLike: TypeAlias = Any
"""A SciPy sparse array or matrix, a NumPy array of bool, "tridiagonal", a bandwidth, or a function of n to these."""
EXPECTED = (
    'expected a SciPy sparse array (n, n), a NumPy array of bool (n, n), "tridiagonal", an int k for |i - j| <= k, '
    "or a function that returns one of these for n"
)


@dataclass(frozen=True)
class Pattern:
    """The entries of an n x n matrix that may be other than zero, with its diagonal, column after column.

    The numbers are held as bytes, which cannot change: a pattern is compared and remembered by its value.
    """

    n: int
    _starts: bytes = field(repr=False)
    _rows: bytes = field(repr=False)

    @property
    def starts(self) -> Any:
        """Where each column begins among the rows, (n + 1,)."""
        return _numbers(self._starts)

    @property
    def rows(self) -> Any:
        """The row of each entry, ascending in each column."""
        return _numbers(self._rows)

    @property
    def columns(self) -> Any:
        """The column of each entry."""
        import numpy as np

        starts = self.starts
        return np.repeat(np.arange(self.n, dtype=starts.dtype), np.diff(starts))

    @property
    def T(self) -> Pattern:
        """The pattern of the transpose, which is equal to the pattern if that is symmetric."""
        return _transposed(self)


def given_pattern(pattern: PatternLike) -> PatternLike:
    """Return the option of a user in a form that cannot change: arrays as a `Pattern`, anything else as it is.

    Raises
    ------
    OptionError
        If it is no pattern.
    ShapeError
        If it is an array that is not square.
    """
    if isinstance(pattern, Pattern) or _is_bandwidth(pattern) or callable(pattern):
        return pattern
    found = _of_array(pattern)
    if found is None:
        what = f"{pattern!r}" if isinstance(pattern, str | int | float | None) else f"a {type(pattern).__name__}"
        if hasattr(pattern, "dtype"):
            what += f" of dtype {pattern.dtype}; for the entries of a matrix M, write M != 0"
        message = f"pattern={what}; {EXPECTED}"
        raise OptionError(message)
    return found


def pattern_for(pattern: PatternLike, n: int) -> Pattern:
    """Return the pattern for n unknowns.

    Raises
    ------
    ShapeError
        If it is that of another number of unknowns.
    OptionError
        If a function returns no pattern.
    """
    found = _called(_ByIdentity(pattern), n) if callable(pattern) else pattern
    if _is_bandwidth(found):
        return _band(1 if found == "tridiagonal" else int(found), n)
    if found.n != n:
        message = (
            f"the pattern of SparseDirect has shape {(found.n, found.n)}, but the system has {n} unknowns for each "
            f"problem: expected {(n, n)}; the unknown of a layer is flattened in C order"
        )
        raise ShapeError(message)
    return found  # type: ignore[no-any-return]


def pattern_of_entries(rows: Any, columns: Any, n: int) -> Pattern:
    """Return the pattern of entries in any order, which may come twice, and of the diagonal."""
    import numpy as np

    diagonal = np.arange(n, dtype=np.int64)
    places = np.sort(np.concatenate([columns.astype(np.int64) * n + rows, diagonal * (n + 1)]))
    places = places[np.diff(places, prepend=-1) > 0]  # `np.unique` hashes, which takes a hundred times as long
    columns, rows = np.divmod(places, n)
    return _of_sorted(rows, columns, n)


class Entries(NamedTuple):
    """The entries of a matrix and its diagonal, in the order of its pattern."""

    pattern: Pattern
    transposed: Pattern
    """The pattern of the transpose."""
    values: Any


def entries_by_column(places: Any, values: Any, n: int) -> Entries:
    """Return the entries at the places i n + j, which are in order and come once, with zeros on the diagonal."""
    import numpy as np
    import scipy.sparse

    diagonal = np.arange(n, dtype=np.int64) * (n + 1)
    at = np.searchsorted(places, diagonal)
    missing = places[np.minimum(at, places.size - 1)] != diagonal if places.size else diagonal >= 0
    if missing.any():
        places, values = np.insert(places, at[missing], diagonal[missing]), np.insert(values, at[missing], 0.0)
    columns = (places % n).astype(np.int32)
    starts = np.searchsorted(places, np.arange(n + 1, dtype=np.int64) * n)
    by_column = scipy.sparse.csr_array((values, columns, starts), shape=(n, n)).tocsc()
    pattern = _of_numbers(n, by_column.indptr, by_column.indices)
    return Entries(pattern, _of_numbers(n, starts, columns), by_column.data)


def union(a: Pattern, b: Pattern) -> Pattern:
    """Return the pattern of the entries of both."""
    import numpy as np

    return pattern_of_entries(np.concatenate([a.rows, b.rows]), np.concatenate([a.columns, b.columns]), a.n)


def full_pattern(n: int) -> Pattern:
    """Return the pattern of all entries."""
    return _band(n, n)


def _is_bandwidth(pattern: PatternLike) -> bool:
    return (isinstance(pattern, str) and pattern == "tridiagonal") or is_integer(pattern, 0)


def _of_array(pattern: PatternLike) -> Pattern | None:
    """Return the pattern of a sparse array or of an array of bool, or None if it is neither."""
    import numpy as np

    is_sparse = callable(getattr(pattern, "tocsc", None))
    if not is_sparse and not (isinstance(pattern, np.ndarray) and pattern.dtype == bool):
        return None
    shape = tuple(pattern.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        message = f"pattern of shape {shape}; expected (n, n), as of the matrix"
        raise ShapeError(message)
    return _of_sparse(pattern) if is_sparse else _of_dense(pattern)


def _of_sparse(pattern: PatternLike) -> Pattern:
    """Return the pattern of the entries that a SciPy array stores, and of the diagonal."""
    import numpy as np
    import scipy.sparse

    n = pattern.shape[0]
    columns = pattern.tocsc()
    ones = np.ones(columns.indices.shape)  # a stored zero belongs to the pattern, and a sum drops zeros
    found = scipy.sparse.csc_array((ones, columns.indices, columns.indptr), shape=(n, n)) + scipy.sparse.eye_array(n)
    found = found.tocsc()
    found.sort_indices()
    return _of_numbers(n, found.indptr, found.indices)


def _of_dense(pattern: PatternLike) -> Pattern:
    """Return the pattern of an array of bool, and of the diagonal."""
    import numpy as np

    n = pattern.shape[0]
    columns, rows = np.nonzero(pattern.T | np.eye(n, dtype=bool))
    return _of_sorted(rows, columns, n)


def _of_sorted(rows: Any, columns: Any, n: int) -> Pattern:
    """Return the pattern of entries in order."""
    import numpy as np

    return _of_numbers(n, np.searchsorted(columns, np.arange(n + 1)), rows)


@lru_cache(maxsize=8)
def _band(k: int, n: int) -> Pattern:
    """Return the pattern of |i - j| <= k."""
    import numpy as np

    rows = np.arange(n)[:, None] + np.arange(-min(k, n), min(k, n) + 1)
    inside = (rows >= 0) & (rows < n)
    return _of_sorted(rows[inside], np.nonzero(inside)[0], n)


@lru_cache(maxsize=8)
def _transposed(pattern: Pattern) -> Pattern:
    import numpy as np
    import scipy.sparse

    ones = np.ones(pattern.rows.size, dtype=np.int8)
    by_row = scipy.sparse.csc_array((ones, pattern.rows, pattern.starts), shape=(pattern.n,) * 2).tocsr()
    return _of_numbers(pattern.n, by_row.indptr, by_row.indices)


def _of_numbers(n: int, starts: Any, rows: Any) -> Pattern:
    import numpy as np

    return Pattern(n, starts.astype(np.int32).tobytes(), rows.astype(np.int32).tobytes())


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A function of the user, which need not have a hash."""

    fn: Callable[[int], PatternLike]

    def __hash__(self) -> int:
        return id(self.fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.fn is other.fn


@lru_cache(maxsize=16)
def _called(pattern: _ByIdentity, n: int) -> PatternLike:
    found = given_pattern(pattern.fn(n))
    if callable(found):
        message = f"the function pattern= returned a {type(found).__name__} for n = {n}; {EXPECTED}"
        raise OptionError(message)
    return found


def _numbers(x: bytes) -> Any:
    import numpy as np

    return np.frombuffer(x, dtype=np.int32)
