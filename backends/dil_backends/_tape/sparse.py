"""What is a sparse matrix of SciPy or CuPy."""

from __future__ import annotations

KNOWN: dict[type, bool] = {}


def is_sparse(x: object) -> bool:
    """Whether x is a sparse matrix. No library is imported to see it."""
    kind = type(x)
    if kind not in KNOWN:
        KNOWN[kind] = callable(getattr(kind, "tocsr", None))
    return KNOWN[kind]
