"""The inverse of the matrix of one unknown: what `SmallInverse` comes to for one number."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.small_inverse import SAFE, Numbers, Rows, residual_slack


class Reciprocal(NamedTuple):
    """The matrix (1, 1) with the entry a."""

    a: float

    @property
    def condition(self) -> float:
        """The condition number: one, since the scaled matrix is 1 or -1."""
        return 1.0

    def solve(self, b: Numbers, machine_eps: float) -> tuple[Numbers, float] | None:
        """Return x with a x = b and its relative residual. See `KnownInverse`."""
        x = b[0] / self.a
        if not 1 / SAFE < abs(x) < SAFE:  # False for NaN
            return None
        residual = abs(b[0] - self.a * x)
        return ([x], residual / abs(b[0])) if residual <= 2 * residual_slack(machine_eps, 1) * abs(b[0]) else None

    def step_is_short(self, F: Numbers, scale: Numbers, rtol: float, *, transposed: bool) -> bool:
        """Return whether F / a is within rtol of the scale."""
        return abs(F[0] / self.a) <= rtol * scale[0]


def reciprocal(A: Rows, machine_eps: float, *, symmetric: bool) -> Reciprocal | None:
    """Return the inverse of A, or None if A needs a closer look, as in `small_inverse`."""
    a = A[0][0]
    if not 1 / SAFE < abs(a) < SAFE or (symmetric and a < 0):
        return None
    return Reciprocal(a)
