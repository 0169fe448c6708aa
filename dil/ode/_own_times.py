"""A check that a function of one time for each problem uses it for that problem alone."""

from __future__ import annotations

from typing import Any

from dil._base.arrays import array_namespace, device, eps, full, size
from dil._base.errors import ShapeError
from dil._base.typing import Array, Arrays
from dil._frameworks.reports import Listener
from dil.ode._field import Field
from dil.ode._verdict import report_if_nonzero


def check_own_times(field: Field, t: Array, y: Array, arrays: Arrays) -> Array:
    """Return y. If the slope of the other problems changes with the time of the first one, raise.

    A function that is written for one time broadcasts the times (B,) over a state (B, n) with n = B without an error.
    """
    plain, xp = field.backend.constant, array_namespace(y)
    first, last, u, *fixed = (plain(x) for x in (t[0], t[-1], y, *arrays))
    same = full(u[..., :1], 0.0) + first
    flat = xp.reshape(xp.arange(size(same.shape), dtype=xp.int32, device=device(u)), same.shape)
    other = xp.where(flat == 0, last, same)
    before, after = (field.at(times, u, fixed) for times in (same, other))
    large = eps(xp, u.dtype) ** 0.5 * (xp.abs(before) + xp.abs(after))
    wrong = (xp.abs(after - before) > large) & (flat != 0)  # False for NaN
    listener = Listener("dil.ode._own_times:refuse", (field.name,))
    return y + report_if_nonzero(field.backend, listener, xp.astype(wrong, y.dtype))


def refuse(name: str, wrong: Any) -> None:
    """Raise if the time of a problem changes the slope of another one."""
    if wrong.any():
        message = (
            f"with own_steps=True, {name!r} is called with a time for each problem, t of shape batch, and the slope of "
            f"a problem depends on the time of another one; write t[..., None] beside a state of shape (*batch, n)"
        )
        raise ShapeError(message)
