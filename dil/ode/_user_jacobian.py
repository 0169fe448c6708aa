"""The user's `jac`: in real numbers where the state is complex, and compared with func where a solve fails."""

from __future__ import annotations

from typing import Any

from dil._base.arrays import array_namespace, device, full, is_complex, max_abs
from dil._base.errors import DTypeError, ShapeError
from dil._base.scale import nonzero_scale
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.random_vectors import standard_normal
from dil._frameworks.registry import complex_parts_of
from dil.ode._field import Field

APART = 0.1
"""A jac that differs by this share along a direction is wrong. With a smaller error, simplified iterations converge."""
EXPLAINED = (Status.MAX_ITER, Status.STAGNATED)
"""The failures that a wrong jac explains: stages that do not converge, and steps that become short for that."""


def jacobian_of(field: Field, jac: Any, t: Array, u: Array, args: tuple[Tree, ...]) -> Array:
    """Return df/dy at the vectors u by the user's function or constant numbers, (*batch, n, n).

    Raises
    ------
    ShapeError, DTypeError
        If its shape is another one, or it is complex beside a real state.
    """
    split, real = bool(field.space.split), (*u.shape, u.shape[-1])
    if callable(jac):
        found, verb = jac(field.users_time(t, u), field.space.unravel(u), *field.of_user(args)), "returned"
    else:
        found, verb = _beside(jac, u), "has"
    if is_complex(array_namespace(found), found.dtype):
        if not split:
            message = f"jac {verb} dtype {found.dtype}, but the state has {u.dtype}; give a real one, df_i/dy_j"
            raise DTypeError(message)
        found = with_real_parts(found)
    elif split and found.shape[-1:] == (u.shape[-1] // 2,):
        found = with_real_parts(found + 0j)
    if not callable(jac) and tuple(found.shape) == real[-2:]:
        found = array_namespace(u).broadcast_to(found, real)
    if tuple(found.shape) != real:
        n = u.shape[-1] // 2
        other = f" of the parts of the state, or {(*u.shape[:-1], n, n)}" if split else ""
        message = f"jac {verb} shape {tuple(found.shape)}; expected {real}{other}, df_i/dy_j of each problem"
        raise ShapeError(message)
    return field.sign * found  # type: ignore[no-any-return]


def _beside(jac: Any, u: Array) -> Array:
    """Return constant numbers as an array beside vectors u. Complex ones become an array of their parts first."""
    xp = array_namespace(u)
    if jac.dtype.kind != "c":
        return xp.asarray(jac, dtype=u.dtype, device=device(u))  # type: ignore[no-any-return]
    real, imaginary = (xp.asarray(x.copy(), dtype=u.dtype, device=device(u)) for x in (jac.real, jac.imag))
    return real + 1j * imaginary  # type: ignore[no-any-return]


def with_real_parts(jac: Array) -> Array:
    """Return the matrix, (*batch, 2 n, 2 n), of the parts of a complex vector, from its complex one, (*batch, n, n).

    A vector has the two parts of an entry beside each other. The number a + b i is the matrix [[a, -b], [b, a]].
    """
    parts = complex_parts_of(jac).split(jac)
    xp, real, imaginary = array_namespace(parts), parts[..., 0], parts[..., 1]
    rows = [xp.stack(pair, axis=-1) for pair in ((real, -imaginary), (imaginary, real))]
    *batch, n, _ = real.shape
    return xp.reshape(xp.stack(rows, axis=-3), (*batch, 2 * n, 2 * n))  # type: ignore[no-any-return]


def with_wrong_jac(status: Array, field: Field, jac: Any, at: tuple[Array, Array], arrays: Arrays) -> Array:
    """Return the statuses, with WRONG_DERIVATIVE where a solve failed and jac is not df/dy at a time and a state.

    One product is compared: that with a random vector, in units of the unknowns.
    """
    (t, y), xp = at, array_namespace(status)
    args, _ = field.arguments.call(arrays)
    unit = nonzero_scale(array_namespace(y).abs(y))
    v = standard_normal(field.backend, y, 1, 0)[0, ...] / unit
    _, pull = field.backend.vjp(lambda w: (field(t, w, *args),), y)
    expected = unit * pull((v,))[0]
    found = unit * (v[..., None, :] @ jacobian_of(field, jac, t, y, args))[..., 0, :]
    apart = max_abs(found - expected) > APART * xp.maximum(max_abs(found), max_abs(expected))
    failed = full(status, False, dtype=xp.bool)
    for code in EXPLAINED:
        failed = failed | (status == int(code))
    return xp.where(failed & apart, full(status, float(Status.WRONG_DERIVATIVE)), status)  # type: ignore[no-any-return]
