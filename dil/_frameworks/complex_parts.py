"""Complex arrays as real ones, with a last axis for the real and the imaginary part.

Everything between the arguments and the solution of a layer is real: a complex unknown is two real ones. So the theorem
and all solvers are those of the real problem, whose inner product is Re <v, w>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dil._base.arrays import array_namespace
from dil._base.typing import Array


def _unchanged(parts: Array) -> Array:
    return parts


@dataclass(frozen=True)
class ComplexParts:
    """How a framework splits complex arrays into real ones and joins them. Both maps are differentiable."""

    split: Callable[[Array], Array]
    """`split(z)`: return the parts of a complex array (*shape,) as a real array (*shape, 2). It may be a view."""
    join: Callable[[Array], Array]
    """`join(parts)`: return the complex array of real parts (*shape, 2). It may be a view."""
    aligned: Callable[[Array], Array] = _unchanged
    """`aligned(parts)`: return parts that lie beside other real numbers so that `split` and `join` can be views."""
    conjugate: bool = False
    """Whether a cotangent is d/dRe - i d/dIm, as on JAX. Otherwise it is d/dRe + i d/dIm."""

    def cotangent(self, z: Array) -> Array:
        """Return d/dRe + i d/dIm for a cotangent of the framework, or the other way round."""
        return array_namespace(z).conj(z) if self.conjugate else z


def split(z: Array) -> Array:
    """Return the parts of a complex array by functions of the standard."""
    xp = array_namespace(z)
    return xp.stack([xp.real(z), xp.imag(z)], axis=-1)  # type: ignore[no-any-return]


def join(parts: Array) -> Array:
    """Return a complex array by functions of the standard, which has no other way than the product with 1j."""
    imaginary: Any = parts[..., 1]
    joined: Array = parts[..., 0] + 1j * imaginary
    return joined


STANDARD = ComplexParts(split, join)
"""By functions of the standard alone."""
