"""Random vectors that are the same on every backend and in every run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dil._base.arrays import device, size
from dil._base.typing import Array
from dil._frameworks.protocol import Backend

MOST_CACHED = 4096
"""The most numbers of a draw that is kept for the next call."""
MOST_CACHED_SIGNS = 2**20
"""The most signs of a draw that is kept: 1 MiB."""


def standard_normal(backend: Backend, like: Array, count: int, seed: int) -> Array:
    """Return `count` standard normal arrays, (count, *like.shape), with the dtype and on the device of `like`.

    NumPy draws the numbers, so they are the same on all backends. A compiled program holds them as constants.
    """
    draw = _cached_draw if count * size(like.shape) <= MOST_CACHED else _draw
    return backend.asarray(draw((count, *like.shape), seed).copy(), dtype=like.dtype, device=device(like))


def random_signs(backend: Backend, like: Array, count: int, seed: int) -> Array:
    """Return `count` vectors of random signs, (count, 1, ..., 1, n), with the dtype and on the device of `like`.

    `like`: (*batch, n). The problems of a batch share the vectors. NumPy draws them once for each n.
    """
    n = like.shape[-1]
    drawn = _cached_signs((count, n), seed) if count * n <= MOST_CACHED_SIGNS else _signs((count, n), seed)
    return backend.asarray(
        drawn.reshape((count, *(1,) * (like.ndim - 1), n)).copy(), dtype=like.dtype, device=device(like)
    )


def _signs(shape: tuple[int, ...], seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).choice(np.asarray([-1, 1], dtype=np.int8), shape)


@lru_cache(maxsize=8)
def _cached_signs(shape: tuple[int, ...], seed: int) -> Any:
    return _signs(shape, seed)


def _draw(shape: tuple[int, ...], seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).standard_normal(shape)


@lru_cache(maxsize=64)
def _cached_draw(shape: tuple[int, ...], seed: int) -> Any:
    return _draw(shape, seed)
