"""A linear system with many right-hand sides of one matrix, solved at once."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace
from dil._base.operator import MadeWhenUsed, Operator
from dil._base.typing import Array, Matvec
from dil._frameworks.protocol import LinearSystem
from dil._frameworks.registry import common_owner


def with_many(system: LinearSystem) -> LinearSystem:
    """Return the system for right-hand sides (k, *batch, n), whose matrix and constants are those of `system`.

    `system.many` solves them at once. If it cannot, or wants a closer look at one of them, they are solved one by one.
    """

    def solve(A: Operator, B: Array, *constants: Array) -> Array:
        xp, one = array_namespace(B), A.one
        assert one is not None
        if one.one is not None:  # each of the right-hand sides is a stack of them
            flat = xp.reshape(B, (B.shape[0] * B.shape[1], *B.shape[2:]))
            return xp.reshape(system.solve(one, flat, *constants), B.shape)  # type: ignore[no-any-return]
        if B.shape[0] == 0:
            return B
        found = system.many(A, B, *constants) if system.many is not None else None
        if found is None:
            found = xp.stack([system.solve(one, B[i, ...], *constants) for i in range(B.shape[0])])
        return found

    return replace(
        system,
        operator=lambda *arrays: stacked(system.operator(*arrays)),
        A=stacked(system.A),
        solve=solve,
        many=None,
        batched=None,
    )


def stacked(A: Operator) -> Operator:
    """Return A for many right-hand sides at once, (k, *batch, n)."""
    return replace(A, matvec=_by_rows(A), rmatvec=_transposed_by_rows(A.rmatvec), one=A, _rows=None)


def _transposed_by_rows(rmatvec: Matvec | None) -> Matvec | None:
    if isinstance(rmatvec, MadeWhenUsed):
        return MadeWhenUsed(lambda: _by_rows(rmatvec.ready()))
    return None if rmatvec is None else _by_rows(rmatvec)


def _by_rows(product: Matvec) -> Matvec:
    return lambda P: common_owner([P], ["p"], "a product").loops.map_rows(product, P)
