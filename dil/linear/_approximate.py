"""Cheap approximations of A^-1 b. No layer uses them unless the user asks for one by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, dot, eps, full, nonzero_max_abs, norm
from dil._base.errors import OptionError
from dil._base.operator import as_operator
from dil._base.options import check_integer, check_rtol, is_number
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec
from dil.linear._right_hand_side import backend_of_system


@dataclass(frozen=True)
class Neumann:
    """Approximate A^-1 b by the first terms of the Neumann series: x = step * sum over k < terms of (I - step A)^k b.

    Parameters
    ----------
    terms : int
        The number of terms. The first term costs no product, and each further term costs one.
    step : float
        The series converges if the eigenvalues of A lie between 0 and 2 / step.
    rtol : float, optional
        A problem is converged when ||b - A x|| <= rtol ||b||. The default is eps ** 0.75 of the dtype.

    Notes
    -----
    The gradient is biased unless the series has converged. One further product tests this. If the series has not
    converged, the status is `Status.APPROXIMATE`. No policy treats this as a failure, because the user asked for an
    approximation. `extra["approximate"]` is always true.

    Sources: Lorraine, Vicol and Duvenaud 2020, Algorithm 3; Geng et al. 2021, section 3.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> found = dil.linear.Neumann(3, step=0.5)(lambda p: 1.5 * p, np.ones(2))
    >>> found.value, dil.Status(int(found.status)).name
    (array([0.65625, 0.65625]), 'APPROXIMATE')
    """

    terms: int
    step: float = 1.0
    rtol: float | None = None

    def __post_init__(self) -> None:
        check_integer("terms", self.terms, 1)
        _check_options(self.step, self.rtol)

    def __call__(self, A: Matvec, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Return the approximation for each problem of a batch; b and the value: (*batch, n), float; status: batch."""
        return _neumann("Neumann", A, b, self.terms, self.step, self.rtol, loop)


@dataclass(frozen=True)
class OneStep:
    """Replace A^-1 by a multiple of the identity: x = step * b, the Jacobian-free backward pass.

    Parameters
    ----------
    step : float
        The multiple of the identity, about the inverse of the curvature.
    rtol : float, optional
        A problem is converged when ||b - A x|| <= rtol ||b||. The default is eps ** 0.75 of the dtype.

    Notes
    -----
    One product with A computes the true residual; no other is needed. The result is that of `Neumann(1, step)`, and so
    are its status and `extra`.

    Sources: Fung et al. 2022, eq. 10.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.linear.OneStep(step=0.5)(lambda p: 1.5 * p, np.ones(2)).value
    array([0.5, 0.5])
    """

    step: float = 1.0
    rtol: float | None = None

    def __post_init__(self) -> None:
        _check_options(self.step, self.rtol)

    def __call__(self, A: Matvec, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Return the approximation for each problem of a batch; b and the value: (*batch, n), float; status: batch."""
        return _neumann("OneStep", A, b, 1, self.step, self.rtol, loop)


def _check_options(step: object, rtol: object) -> None:
    if not (is_number(step) and step > 0):
        message = f"step={step!r}; expected a number > 0"
        raise OptionError(message)
    check_rtol(rtol)


class Term(NamedTuple):
    """The sum x after some products, and the residual r = b - A x of the sum before the last product."""

    x: Array
    r: Array
    products: Array


def _neumann(
    name: str, A: Matvec, b: Array, terms: int, step: float, rtol: float | None, loop: Loop | None
) -> Solution:
    """Return the sum by Horner's rule, x <- x + step (b - A x), with its true residual and status."""
    backend, xp, unit = backend_of_system(b, f"dil.linear.{name}"), array_namespace(b), nonzero_max_abs(b)
    loop = backend.loops.while_loop if loop is None else loop
    rtol = eps(xp, b.dtype) ** 0.75 if rtol is None else rtol
    finite_b, product = xp.isfinite(unit), as_operator(A)
    unit = xp.where(finite_b, unit, full(unit, 1.0))
    scaled = xp.where(finite_b, b, full(b, 0.0)) / unit

    def add(s: Term) -> Term:
        r = scaled - product(s.x)
        return Term(xp.where(s.products < terms - 1, s.x + step * r, s.x), r, s.products + 1)

    first = Term(step * scaled, scaled, full(scaled, 0, shape=(), dtype=xp.int32))
    last: Term = loop(lambda s: s.products < terms, add, first)
    residual = norm(last.r)[..., 0]
    size = xp.sqrt(dot(scaled, scaled))[..., 0]
    residual = residual / xp.where(size == 0, full(size, 1.0), size)
    status = full(residual, int(Status.APPROXIMATE), dtype=xp.int32)
    status = xp.where(residual <= rtol, full(status, int(Status.CONVERGED)), status)
    finite_residual = xp.isfinite(residual) & finite_b[..., 0]
    status = xp.where(finite_residual, status, full(status, int(Status.NON_FINITE)))
    products = full(status, 0) + last.products
    return Solution(last.x * unit, status, products, residual, {"products": products, "approximate": True})
