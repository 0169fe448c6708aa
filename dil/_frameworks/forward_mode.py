"""Forward mode, derived from the `vjp` of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Autodiff


def jvp_from_vjp(
    backend: Autodiff, fn: Callable[..., Arrays], primals: Sequence[Array], tangents: Sequence[Array | None]
) -> tuple[Arrays, Arrays]:
    """Return fn(*primals) and its derivative along the tangents. None stands for the zero tangent.

    The pullback w -> J^T w is linear, so its own pullback at any point is t -> J t.
    """
    wrt = [i for i, tangent in enumerate(tangents) if tangent is not None]
    out, pull = backend.vjp(fn, *primals)
    zeros = tuple(array_namespace(x).zeros_like(x) for x in out)
    _, push = backend.vjp(lambda *w: pull(w, wrt), *zeros)
    return out, push(tuple(tangent for tangent in tangents if tangent is not None))
