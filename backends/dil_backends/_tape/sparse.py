"""What is a sparse matrix of SciPy or CuPy, and what is said where the tape cannot compute with one."""

from __future__ import annotations

from collections.abc import Iterable

from dil._base.errors import UnsupportedFunctionError

SPARSE = (
    "the tape knows the products `S @ u`, `u @ S` and `S.dot(u)` of a sparse matrix of SciPy, and no other function of "
    "scipy.sparse; write `S @ u` for `np.dot(S, u)`, and for `S * u` if S is a sparse array and the matrix product is "
    "meant, `S @ (v * u)` for `S.multiply(v) @ u`, "
    "`u[0] * (S @ v)` for `(u[0] * S) @ v`, `S.toarray() + u` for `S + u`, "
    "`u * v` for `diags(u) @ v`, and `R @ (u * v[j])` "
    "for `coo_matrix((u, (i, j)), shape) @ v`, with R = coo_matrix((np.ones(k), (i, np.arange(k))), (shape[0], k))"
)
FAILURES = (TypeError, ValueError, AttributeError, NotImplementedError)
"""What is raised where a sparse matrix is taken for an array."""
KNOWN: dict[type, bool] = {}
MATRICES: dict[type, bool] = {}


def is_sparse(x: object) -> bool:
    """Whether x is a sparse matrix. No library is imported to see it."""
    return is_sparse_type(type(x))


def is_sparse_type(kind: type) -> bool:
    """Whether the objects of a type are sparse matrices."""
    if kind not in KNOWN:
        KNOWN[kind] = callable(getattr(kind, "tocsr", None))
    return KNOWN[kind]


def is_sparse_matrix(x: object) -> bool:
    """Whether x is a sparse matrix whose `*` is the matrix product. That of a sparse array works entry by entry."""
    kind = type(x)
    if kind not in MATRICES:
        MATRICES[kind] = is_sparse_type(kind) and any(base.__name__ == "spmatrix" for base in kind.__mro__)
    return MATRICES[kind]


def explain_sparse(error: Exception, args: Iterable[object]) -> None:
    """Raise an error that says what to write, if an error came with a sparse matrix among the arguments."""
    if any(map(is_sparse, args)):
        raise UnsupportedFunctionError(SPARSE) from error
