"""Cheap approximations of A^-1 b, for those who ask for them by name."""

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
    """The first terms of the Neumann series: x = step * sum over k < terms of (I - step A)^k b.

    Parameters
    ----------
    terms : int
        Terms of the series; one costs no product, each further one a product.
    step : float
        It converges if the eigenvalues of A lie between 0 and 2 / step.
    rtol : float, optional
        What counts as converged: ||b - A x|| <= rtol ||b||; by default eps ** 0.75 of the dtype.

    Notes
    -----
    The gradient is biased unless the series has converged. The status is `Status.APPROXIMATE` where it has not, which
    is no failure to any policy, as it was asked for; a further product finds it out. `extra` says "approximate".

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
        _check(self.step, self.rtol)

    def __call__(self, A: Matvec, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Approximate for each problem of a batch; b and the value: (*batch, n), float."""
        return _series("Neumann", A, b, self.terms, self.step, self.rtol, loop)


@dataclass(frozen=True)
class OneStep:
    """The identity for the inverse: x = step * b, the Jacobian-free backward pass.

    Parameters
    ----------
    step : float
        About the inverse of the curvature.
    rtol : float, optional
        What counts as converged: ||b - A x|| <= rtol ||b||; by default eps ** 0.75 of the dtype.

    Notes
    -----
    It costs one product, for the true residual alone. Everything else is as for `Neumann(1, step)`.

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
        _check(self.step, self.rtol)

    def __call__(self, A: Matvec, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Approximate for each problem of a batch; b and the value: (*batch, n), float."""
        return _series("OneStep", A, b, 1, self.step, self.rtol, loop)


def _check(step: object, rtol: object) -> None:
    if not (is_number(step) and step > 0):
        message = f"step={step!r}; expected a number > 0"
        raise OptionError(message)
    check_rtol(rtol)


class Term(NamedTuple):
    """The sum after some products; r = b - A x of the sum before the last one."""

    x: Array
    r: Array
    products: Array


def _series(name: str, A: Matvec, b: Array, terms: int, step: float, rtol: float | None, loop: Loop | None) -> Solution:
    """Return the sum by Horner's rule, x <- x + step (b - A x), and judge it by its true residual."""
    backend, xp, top = backend_of_system(b, f"dil.linear.{name}"), array_namespace(b), nonzero_max_abs(b)
    loop = backend.loops.while_loop if loop is None else loop
    rtol = eps(xp, b.dtype) ** 0.75 if rtol is None else rtol
    finite, product = xp.isfinite(top), as_operator(A)
    top = xp.where(finite, top, full(top, 1.0))
    scaled = xp.where(finite, b, full(b, 0.0)) / top

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
    sound = xp.isfinite(residual) & finite[..., 0]
    status = xp.where(sound, status, full(status, int(Status.NON_FINITE)))
    products = full(status, 0) + last.products
    return Solution(last.x * top, status, products, residual, {"products": products, "approximate": True})
