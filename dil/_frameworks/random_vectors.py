"""Random vectors: the same on every backend and in every run."""

from __future__ import annotations

from dil._base.arrays import device
from dil._base.typing import Array
from dil._frameworks.protocol import Backend


def standard_normal(backend: Backend, like: Array, count: int, seed: int) -> Array:
    """Return `count` arrays of independent standard normal numbers, (count, *like.shape), beside `like`.

    They come from NumPy, the one generator that all backends can share: programs under a compiler hold them as
    constants.
    """
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal((count, *like.shape))
    return backend.asarray(drawn, dtype=like.dtype, device=device(like))
