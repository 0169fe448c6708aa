"""Rules of products with a sparse matrix of SciPy or CuPy, which is constant data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace
from dil_backends._tape.rules.rule import Rule, Value

SPARSE: dict[str, Rule] = {
    "sparse_matrix_times": Rule((lambda xp, c, y, u, *, S: xp.sparse_matrix_times(c, S=adjoint(S)),)),
    "times_sparse_matrix": Rule((lambda xp, c, y, u, *, S: xp.times_sparse_matrix(c, S=adjoint(S)),)),
}


def adjoint(S: Any) -> Any:
    """Return the conjugate transpose. That of a real matrix is a view."""
    return S.T.conj() if S.dtype.kind == "c" else S.T


def sparse_times(xp: Namespace, u: Value, *, S: Any) -> Value:
    """Return S u. A sparse array of one axis counts as a row."""
    if S.ndim == 1:
        return xp.sparse_matrix_times(u, S=S.reshape(1, -1).tocsr())[0, ...]
    return xp.sparse_matrix_times(u, S=matrix(S))


def times_sparse(xp: Namespace, u: Value, *, S: Any) -> Value:
    """Return u S. A sparse array of one axis counts as a column."""
    if S.ndim == 1:
        return xp.times_sparse_matrix(u, S=S.reshape(-1, 1).tocsr())[..., 0]
    return xp.times_sparse_matrix(u, S=matrix(S))


def matrix(S: Any) -> Any:
    """Return S. Raises unless it has two axes."""
    if S.ndim != 2:
        msg = f"the tape multiplies by sparse arrays of one or two axes, not of shape {S.shape}; use `S.toarray()`"
        raise UnsupportedFunctionError(msg)
    return S


# S is a keyword, because a rule gets its positional arrays as boxes where an enclosing trace records
SPARSE_OWN: dict[str, Callable[..., Value]] = {
    "sparse_matrix_times": lambda xp, u, *, S: S @ u,
    "times_sparse_matrix": lambda xp, u, *, S: u @ S,
}
