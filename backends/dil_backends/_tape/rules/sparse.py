"""Rules of products with a sparse matrix of SciPy or CuPy, which is constant data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape.rules.rule import Rule, Value

SPARSE: dict[str, Rule] = {
    "sparse_times": Rule((lambda xp, c, y, u, *, S: xp.sparse_times(c, S=adjoint(S)),)),
    "times_sparse": Rule((lambda xp, c, y, u, *, S: xp.times_sparse(c, S=adjoint(S)),)),
}


def adjoint(S: Any) -> Any:
    """Return the conjugate transpose. That of a real matrix is a view."""
    return S.T.conj() if S.dtype.kind == "c" else S.T


def matrix(S: Any) -> Any:
    """Return S. Raises unless it has two axes."""
    if S.ndim != 2:
        msg = f"the tape multiplies by sparse arrays of two axes, and met one of shape {S.shape}; use `S.toarray()`"
        raise UnsupportedFunctionError(msg)
    return S


# S is a keyword, because a rule gets its positional arrays as boxes where an enclosing trace records
SPARSE_OWN: dict[str, Callable[..., Value]] = {
    "sparse_times": lambda xp, u, *, S: matrix(S) @ u,
    "times_sparse": lambda xp, u, *, S: u @ matrix(S),
}
