"""The score of a layer: the user's function, checked, and the derivatives that the user may give with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.options import check_integer
from dil._base.typing import Array, DType, Tree
from dil._frameworks.registry import owner


@dataclass(frozen=True)
class Derivatives:
    """Derivative products of a score that its author knows, for scores that cannot be traced.

    Attributes
    ----------
    gradient : callable
        `gradient(u, *args, **kwargs)` returns df/du, of the structure and shapes of u.
    hvp : callable, optional
        `hvp(u, v, *args, **kwargs)` returns the Hessian product (d2f/du2) v, like u.
    mixed : callable, optional
        `mixed(u, w, *args, **kwargs)` returns w^T d2f/(du dargs): a tuple with one entry per positional argument,
        each like that argument or None where f does not depend on it; a dict of the same for the keyword arguments
        comes last if the layer is called with any.

    Notes
    -----
    Products that are not given are obtained by differentiating `gradient`, which must then be array code that the
    backend can trace. Second derivatives of the layer differentiate `hvp` and `mixed`; on torch and JAX these must then
    be differentiable code.

    Examples
    --------
    >>> import numpy as np, dil
    >>> square = dil.Derivatives(
    ...     gradient=lambda u, t: u - t, hvp=lambda u, v, t: v, mixed=lambda u, w, t: (-w,)
    ... )
    >>> layer = dil.argmin(lambda u, t: 0.5 * np.sum((u - t) ** 2), lambda f, u, t: t, derivatives=square)
    >>> _, pull = dil.vjp(layer, np.ones(2))
    >>> pull(np.asarray([1.0, 3.0]))[0]
    array([1., 3.])
    """

    gradient: Callable[..., Tree]
    hvp: Callable[..., Tree] | None = None
    mixed: Callable[..., tuple[Tree, ...]] | None = None

    def __post_init__(self) -> None:
        for name, value in (("gradient", self.gradient), ("hvp", self.hvp), ("mixed", self.mixed)):
            if not callable(value) and (value is not None or name == "gradient"):
                message = f"derivatives.{name}={value!r}; expected a callable{'' if name == 'gradient' else ' or None'}"
                raise OptionError(message)


@dataclass(frozen=True)
class Score:
    """A score function that checks its value at every call. A layer passes it to its solver."""

    fn: Callable[..., Any]
    batch_ndim: int
    derivatives: Derivatives | None = None

    def __post_init__(self) -> None:
        check_condition("score", self.fn, self.batch_ndim)
        if self.derivatives is not None and not isinstance(self.derivatives, Derivatives):
            message = f"derivatives={self.derivatives!r}; expected dil.Derivatives(gradient=..., hvp=..., mixed=...)"
            raise OptionError(message)

    @property
    def name(self) -> str:
        """What to call the score in messages."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def __call__(self, u: Tree, *args: Tree, **kwargs: Tree) -> Array:
        return self.fn(u, *args, **kwargs)  # type: ignore[no-any-return]

    def check(self, value: object, batch: tuple[int, ...], dtype: DType) -> None:
        """Refuse a value that is not one number of the unknown's dtype for each problem."""
        if owner(value) is None:
            message = (
                f"the score {self.name!r} returned {value!r} of type {type(value).__name__}; expected an "
                f"array of shape {batch}, computed from the unknown with the functions of array_namespace(u)"
            )
            raise ShapeError(message)
        shape = tuple(value.shape)  # type: ignore[attr-defined]
        if shape != batch:
            message = (
                f"the score {self.name!r} returned shape {shape}; expected {batch}, one number per problem with "
                f"batch_ndim={self.batch_ndim}; sum over the entries of a problem, or set batch_ndim if the leading "
                f"dimensions hold independent problems"
            )
            raise ShapeError(message)
        if value.dtype != dtype:  # type: ignore[attr-defined]
            message = (
                f"the score {self.name!r} returned dtype {value.dtype}; expected {dtype}, the unknown's; "  # type: ignore[attr-defined]
                f"compute it without casts, or cast the arguments to one dtype before the call"
            )
            raise DTypeError(message)


def check_condition(kind: str, fn: object, batch_ndim: object) -> None:
    """Refuse a condition that is not callable, or a batch_ndim that is not an integer >= 0."""
    if not callable(fn):
        message = f"{kind}={fn!r} of type {type(fn).__name__}; expected a callable"
        raise OptionError(message)
    check_integer("batch_ndim", batch_ndim, 0)
