"""The fewest products that tell a sparse matrix of a known pattern."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, device
from dil._base.operator import Operator
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil.linear._colouring import Colouring, coloured
from dil.linear._pattern import Pattern


class Way(NamedTuple):
    """The operator whose columns are recovered: A or its transpose."""

    D: Operator
    pattern: Pattern
    colouring: Colouring


def cheapest_way(A: Operator, J: Pattern) -> Way:
    """Return the way with the fewest products. Of two that are equal, that by J^T: a pullback of F."""
    known = [A] if A.symmetric or A.rmatvec is None else [A, A.T]
    patterns = [J.T if D.transposed else J for D in known]
    ways = [Way(D, p, coloured(p, symmetric=A.symmetric)) for D, p in zip(known, patterns, strict=True)]
    return min(ways, key=lambda way: (way.colouring.count, not way.D.transposed))


def seeds_of(way: Way, like: Array, backend: Backend) -> Array:
    """Return the seed of each colour, (colours, n): one in its columns and zero elsewhere."""
    xp, count = array_namespace(like), way.colouring.count
    colours = backend.asarray(way.colouring.colours.copy(), device=device(like))
    numbers = backend.asarray(list(range(count)), dtype=colours.dtype, device=device(like))
    return xp.astype(numbers[:, None] == colours, like.dtype)  # type: ignore[no-any-return]
