"""Random vectors that are the same on every backend and in every run."""

from __future__ import annotations

from dil._base.arrays import device
from dil._base.typing import Array
from dil._frameworks.protocol import Backend


def standard_normal(backend: Backend, like: Array, count: int, seed: int) -> Array:
    """Return `count` standard normal arrays, (count, *like.shape), with the dtype and on the device of `like`.

    NumPy draws the numbers, so they are the same on all backends. A compiled program holds them as constants.
    """
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal((count, *like.shape))
    return backend.asarray(drawn, dtype=like.dtype, device=device(like))
