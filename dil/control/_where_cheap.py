"""The sweeps of a plan multiply small matrices, one step after the other: they run where an operation costs least."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend

FEW_NUMBERS = 2**10
"""The largest number of entries of one step's matrices for which what an operation costs besides its work counts."""


def run_where_cheap(sweep: Callable[..., Arrays], backend: Backend, rows: Arrays, *carry: Array) -> Arrays:
    """Return sweep(backend, rows, *carry), whose arrays may be computed by another framework.

    `rows` have the time first, (horizon, *batch, ...). The arrays that `sweep` returns must be new, not views.
    """
    host = backend.dense.host(*rows, *carry) if prod(rows[0].shape[1:]) <= FEW_NUMBERS else None
    if host is None:
        return sweep(backend, rows, *carry)
    found = host.run(sweep, host.backend, tuple(map(host.give, rows)), *map(host.give, carry))
    return tuple(map(host.take, found))
