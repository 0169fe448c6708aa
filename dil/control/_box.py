"""Bounds on controls that hold exactly: a control at its bound is held there, and has no derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, full
from dil._base.errors import OptionError
from dil._base.typing import Array

Limit = float | Sequence[float]


@dataclass(frozen=True)
class Box:
    """Bounds low <= u <= high on the controls of a plan, which a control may reach.

    Parameters
    ----------
    low, high : float or sequence of float
        One number for all controls, or n_u numbers. A side may be infinite.

    Notes
    -----
    A solver that takes it, as `dil.control.DDP` does, keeps the controls within their bounds by projection (Tassa,
    Mansard and Todorov 2014). The layer then is that of the controls between their bounds, with the others held:
    a control at its bound has the derivative zero. Each held control is looked at in the backward pass. If its
    multiplier is zero within rounding, it is about to leave its bound, the derivative differs on the two sides, and
    the status is KINK. If its multiplier has the wrong sign, the status is NOT_STATIONARY.

    A pair (low, high) in its place asks for the smooth map of `dil.control.plan`, whose controls stay off their bounds.

    Raises
    ------
    OptionError
        If a limit is no number, or is NaN, or a lower bound is not below its upper one.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def cost(x, u, goal):
    ...     return np.sum((x - goal) ** 2, axis=-1) + 0.1 * np.sum(u**2, axis=-1)
    >>> def drift(x, u, speed):
    ...     return x + speed * u
    >>> steer = dil.control.plan(cost, drift, 3, bounds=dil.control.Box(-0.5, 0.5))
    >>> np.round(steer(np.asarray([1.0]), np.asarray(0.0), np.asarray(1.0))[:, 0], 3) + 0.0
    array([-0.5  , -0.455,  0.   ])
    """

    low: Limit
    high: Limit

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            given = getattr(self, name)
            try:
                limit = float(given) if isinstance(given, Real) else tuple(float(x) for x in given)
            except (TypeError, ValueError) as error:
                message = f"Box({name}={given!r}); expected a number, or one for each control"
                raise OptionError(message) from error
            object.__setattr__(self, name, limit)
        low, high = (x if isinstance(x, tuple) else (x,) for x in (self.low, self.high))
        if len({len(low), len(high)} - {1}) > 1:
            message = f"Box({self.low!r}, {self.high!r}); expected as many lower bounds as upper ones"
            raise OptionError(message)
        n = max(len(low), len(high))
        if not all(a < b for a, b in zip(low * (n // len(low)), high * (n // len(high)), strict=True)):
            message = f"Box({self.low!r}, {self.high!r}); each lower bound must be below its upper one"
            raise OptionError(message)

    def check(self, controls: int) -> Box:
        """Return the box. Raises `OptionError` if it is not for this number of controls."""
        for limit in (self.low, self.high):
            if isinstance(limit, Sequence) and len(limit) != controls:
                message = f"Box({self.low!r}, {self.high!r}); expected a number, or {controls}, one for each control"
                raise OptionError(message)
        return self

    def squash(self, v: Array) -> Array:
        """Return the controls of the unknown v, (..., n_u). Outside, v means that the control is held at the bound."""
        xp, (low, high) = array_namespace(v), self._limits(v)
        return xp.where(v < low, low, xp.where(v > high, high, v))  # type: ignore[no-any-return]

    def free(self, u: Array) -> Array:
        """Return the nearest controls within the bounds."""
        return self.squash(u)

    def middle(self, like: Array) -> Array:
        """Return the middle of the bounds, or what is nearest to zero if one is infinite; the shape of `like`."""
        low, high = (x if isinstance(x, Sequence) else (x,) for x in (self.low, self.high))
        n = max(len(low), len(high))
        pairs = zip(tuple(low) * (n // len(low)), tuple(high) * (n // len(high)), strict=True)
        start = [0.5 * (a + b) if math.isfinite(b - a) else min(max(0.0, a), b) for a, b in pairs]
        xp = array_namespace(like)
        found: Array = full(like, 0.0) + xp.asarray(start, dtype=like.dtype, device=device(like))
        return found

    def outside(self, u: Array) -> Array:
        """Return the unknown of controls u: the place outside that means held, for those at their bounds."""
        xp, (low, high), (below, above) = array_namespace(u), self._limits(u), self._places(u)
        return xp.where(u <= low, below, xp.where(u >= high, above, u))  # type: ignore[no-any-return]

    def barrier(self, v: Array) -> Array:
        """Return 1/2 |v - place|^2 over the held controls and times: (..., horizon, n_u) -> (...).

        It determines the unknown of a held control, whose cost does not depend on it.
        """
        xp, (low, high), (below, above) = array_namespace(v), self._limits(v), self._places(v)
        apart = xp.where(v < low, v - below, xp.where(v > high, v - above, full(v, 0.0)))
        return 0.5 * xp.sum(apart**2, axis=(-2, -1))  # type: ignore[no-any-return]

    def held(self, v: Array, q: Array, terms: Array) -> Held:
        """Return which controls are held, from the gradient q of the score in u, and the size of its terms.

        Shapes: v, q and terms (horizon, *batch, n_u).
        """
        xp, (low, high), slack = array_namespace(v), self._limits(v), float(eps(array_namespace(v), v.dtype)) ** 0.5
        below, above, u = v < low, v > high, self.squash(v)
        held, pull = below | above, xp.where(below, q, -q)
        size = xp.minimum(xp.max(xp.abs(u), axis=0), high - low)
        near = xp.minimum(u - low, high - u) <= slack * size
        flat = xp.abs(pull) <= slack * terms
        return Held(
            held,
            xp.any(held & ~flat & (pull < 0), axis=(0, -1)),
            xp.any(xp.where(held, flat, near), axis=(0, -1)),
        )

    def pushed(self, u: Array) -> tuple[Array, Array]:
        """Return one where a control is at its lower bound, and at its upper one, and else zero."""
        xp, (low, high) = array_namespace(u), self._limits(u)
        return xp.astype(u <= low, u.dtype), xp.astype(u >= high, u.dtype)

    def _limits(self, like: Array) -> tuple[Array, Array]:
        xp = array_namespace(like)
        low, high = (xp.asarray(x, dtype=like.dtype, device=device(like)) for x in (self.low, self.high))
        return low, high

    def _places(self, like: Array) -> tuple[Array, Array]:
        """Return the unknowns that mean held at the lower and the upper bound: a width of the box away from it."""
        xp, (low, high) = array_namespace(like), self._limits(like)
        width = high - low

        def place(bound: Array, sign: float) -> Array:
            far = xp.where(xp.isfinite(width), width, xp.maximum(xp.abs(bound), full(bound, 1.0)))
            return bound + sign * far  # type: ignore[no-any-return]

        return place(low, -1.0), place(high, 1.0)


class Held(NamedTuple):
    """The controls that are held at their bounds, and what their multipliers say."""

    held: Array
    """(horizon, *batch, n_u)"""
    wrong: Array
    """Whether a multiplier has the wrong sign, so that leaving the bound lowers the cost; shape batch."""
    degenerate: Array
    """Whether a multiplier is zero within rounding, or a control is within rounding of its bound; shape batch."""
