"""Forward mode, derived from the `vjp` of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Autodiff, Pull


def jvp_from_vjp(
    backend: Autodiff, fn: Callable[..., Arrays], primals: Sequence[Array], tangents: Sequence[Array | None]
) -> tuple[Arrays, Arrays]:
    """Return fn(*primals) and its derivative along the tangents. None stands for the zero tangent.

    The pullback w -> J^T w is linear, so its own pullback at any point is t -> J t.
    """
    wrt = [i for i, tangent in enumerate(tangents) if tangent is not None]
    out, pull = backend.vjp(fn, *primals)
    return out, pushforward(backend, out, pull, wrt)(tuple(tangent for tangent in tangents if tangent is not None))


def pushforward(backend: Autodiff, out: Arrays, pull: Pull, wrt: Sequence[int]) -> Pull:
    """Return the pushforward of a function, from its value and its pullback. It takes the tangents of `wrt`."""
    zeros = tuple(array_namespace(x).zeros_like(x) for x in out)
    return backend.vjp(lambda *w: pull(w, wrt), *zeros)[1]
