"""The score of a layer: the user's function with its checks, and the derivatives that the user may give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dil._base.arrays import array_namespace, is_complex
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.in_words import in_words
from dil._base.options import check_integer
from dil._base.typing import Array, DType, Tree
from dil._frameworks.fixed import with_variables_of_now
from dil._frameworks.registry import owner


@dataclass(frozen=True)
class Derivatives:
    """The derivative products of a score, given by the user. A score that cannot be traced needs them.

    Attributes
    ----------
    gradient : callable
        `gradient(u, *args, **kwargs)` returns df/du, with the structure and shapes of u.
    hvp : callable, optional
        `hvp(u, v, *args, **kwargs)` returns the Hessian-vector product (d2f/du2) v, like u.
    mixed : callable, optional
        `mixed(u, w, *args, **kwargs)` returns w^T d2f/(du dargs), a tuple with one entry per positional argument. An
        entry is like its argument, or None if f does not depend on it. If the layer is called with keyword arguments,
        a dict with their entries comes last.

    Notes
    -----
    A missing product is computed by differentiating `gradient`, which then must be array code that the backend can
    trace. Second derivatives of the layer differentiate `hvp` and `mixed`, which then must be differentiable code on
    torch and JAX.

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
    """The score function that a layer passes to its solver, with a check of its value."""

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
        """The name of the score in messages."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def fixed(self, fix: Callable[..., Any]) -> Score:
        """Return the score as it is now. `fix` is `Backend.fixed`.

        The user's derivatives keep only the variables of their closures: a backend may not be able to trace them.
        """
        return replace(self, fn=fix(self.fn), derivatives=self.derivatives and _fixed(self.derivatives))

    def once(self, once: Callable[..., Any]) -> Score:
        """Return the score for a program that holds it once. `once` is `Backend.once`.

        A score with derivatives of the user's stays as it is: a backend may not be able to trace it.
        """
        fn = self.fn if self.derivatives is not None else once(self.fn)
        return self if fn is self.fn else replace(self, fn=fn)

    def __call__(self, u: Tree, *args: Tree, **kwargs: Tree) -> Array:
        return self.fn(u, *args, **kwargs)  # type: ignore[no-any-return]

    def check(self, value: object, batch: tuple[int, ...], dtype: DType) -> None:
        """Check that a value is one number for each problem, with the dtype of the unknown.

        Raises
        ------
        ShapeError, DTypeError
            If the value is not.
        """
        if owner(value) is None:
            message = (
                f"the score {self.name!r} returned {in_words(value)} of type {type(value).__name__}; expected an "
                f"array of shape {batch}, computed from the unknown with the functions of array_namespace(u), such as "
                f"maximum for max"
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
        if is_complex(array_namespace(value), value.dtype):  # type: ignore[attr-defined]
            message = (
                f"the score {self.name!r} returned a complex number, of dtype {value.dtype}; a score is real, so "  # type: ignore[attr-defined]
                f"take xp.real(...) of it; the square of a complex r is xp.real(xp.conj(r) * r)"
            )
            raise DTypeError(message)
        if value.dtype != dtype:  # type: ignore[attr-defined]
            message = (
                f"the score {self.name!r} returned dtype {value.dtype}; expected {dtype}, the unknown's; "  # type: ignore[attr-defined]
                f"compute it without casts, or cast the arguments to one dtype before the call"
            )
            raise DTypeError(message)


def _fixed(derivatives: Derivatives) -> Derivatives:
    """Return the products with the variables that they capture now."""
    given = {name: with_variables_of_now(fn) for name, fn in vars(derivatives).items() if fn is not None}
    return replace(derivatives, **given)


def check_condition(kind: str, fn: object, batch_ndim: object) -> None:
    """Check that fn is callable, and that the number of batch dimensions is an integer >= 0.

    Raises
    ------
    OptionError
        If not.
    """
    if not callable(fn):
        message = f"{kind}={fn!r} of type {type(fn).__name__}; expected a callable"
        raise OptionError(message)
    check_integer("batch_ndim", batch_ndim, 0)
