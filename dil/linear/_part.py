"""Some systems of a batch without the others, so that these can leave it when they are solved."""

from __future__ import annotations

from dil._base.arrays import array_namespace, eps, full, max_abs
from dil._base.operator import Operator
from dil._base.rows import NO_PART, Rows
from dil._base.typing import Array
from dil._frameworks.random_vectors import standard_normal
from dil._frameworks.registry import common_owner

SAME = 256
"""The difference of two products in units of the rounding of their terms that a sum in another order may make."""


def matrix_of_part(A: Operator, rows: Rows, like: Array) -> Operator | None:
    """Return A of some problems of a batch, or None if nobody knows it alone, or if it is another matrix there.

    Only the shape of an argument of a layer says whether it has a part for each problem, and a shared one may have this
    shape by chance. A function may also count the problems. So the products with a random vector are compared: two
    matrices that differ have other products, but for a set of vectors of measure zero. Products with two vectors more
    show how large the terms of each entry are. `like`: (*batch, n).
    """
    if A._rows is None:
        return None
    xp, backend = array_namespace(like), common_owner([like], ["b"], "a linear solver")
    p = standard_normal(backend, like, 1, 2)[0, ...]
    try:
        part = A._rows(rows)
        whole, found = rows.take(A(p)), part(rows.take(p))
        others = standard_normal(backend, found, 2, 3)
        products = xp.stack([whole, found, part(others[0, ...]), part(others[1, ...])])
    except NO_PART:
        return None
    terms = xp.max(xp.where(xp.isfinite(products), xp.abs(products), full(products, 0.0)), axis=0)
    machine_eps = eps(xp, like.dtype)
    terms = xp.maximum(terms, machine_eps**0.25 * max_abs(terms)[..., None])
    same = xp.abs(found - whole) <= SAME * machine_eps * terms
    return part if bool(xp.all(same | (~xp.isfinite(whole) & ~xp.isfinite(found)))) else None
