"""Whether a residual is rounding: no x of this dtype near the solution could be told from it."""

from __future__ import annotations

from dil._base.scalars import Scalar

FACTOR = 4.0
"""The norm of A is a lower bound, and may be a few times too small."""
MOST = 1e-3
"""The largest residual, relative to b, that counts as rounding. If it is larger, the rounding of A x hides b."""


def is_rounding(residual: Scalar, norm_A: Scalar, norm_x: Scalar, norm_b: Scalar, machine_eps: float) -> Scalar:
    """Return whether ||b - A x|| <= 4 eps (||A|| ||x|| + ||b||), and no larger than a thousandth of ||b||.

    Then x solves a system whose A and b differ by a few roundings, in norm, from those given. The solution itself,
    rounded to the dtype, may have such a residual. `norm_A`: a lower bound of the norm of A.

    Sources: Rigal and Gaches 1967; Higham 2002, theorem 7.1 (the normwise backward error).
    """
    return (residual <= FACTOR * machine_eps * (norm_A * norm_x + norm_b)) & (residual <= MOST * norm_b)
