"""The same derivative transforms on every backend. The framework's own transforms work on layers too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil._base.arrays import array_namespace, is_float
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.tree import Structure
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.arguments import Arguments, split_arguments
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import common_owner, guarded, leaves_of, owner


def vjp(fn: Callable[..., Tree], /, *args: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """Evaluate fn and return the transposed derivative as a function.

    Parameters
    ----------
    fn : callable
        Takes trees of arrays and returns one. It may contain layers and array-API code.
    *args : trees
        The point; only the float arrays in it have a derivative.

    Returns
    -------
    out : tree
        fn(*args).
    pull : callable
        `pull(cotangent)`, the cotangent like `out`, gives a tuple with one entry per argument, each like that argument
        with None in the place of everything that is not a float array.

    Raises
    ------
    BackendError
        If the arguments hold no array, or arrays of two backends.

    Examples
    --------
    >>> import numpy as np, dil
    >>> out, pull = dil.vjp(lambda a, b: a * b, np.asarray(2.0), np.asarray(3.0))
    >>> pull(np.asarray(1.0))
    (np.float64(3.0), np.float64(2.0))
    """
    return guarded(_vjp, fn, args, exact=False)  # type: ignore[no-any-return]


def _vjp(fn: Callable[..., Tree], args: tuple[Tree, ...]) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    flat = Flat(fn, *split_arguments(args, {}))
    leaves, pull_leaves = flat.backend.vjp(flat, *flat.floats)
    out = flat.join(leaves)

    def pull(cotangent: Tree) -> tuple[Tree, ...]:
        return flat.like_arguments(pull_leaves(flat.split(cotangent, leaves)))

    return out, lambda cotangent: guarded(pull, cotangent, exact=False)


def jvp(fn: Callable[..., Tree], args: Sequence[Tree], tangents: Sequence[Tree], /) -> tuple[Tree, Tree]:
    """Evaluate fn and its derivative along tangents.

    Parameters
    ----------
    fn : callable
        Takes trees of arrays and returns one.
    args, tangents : sequences of trees
        The point and the direction, of one structure. None is a zero tangent.

    Returns
    -------
    out, tangent : trees
        fn(*args) and its directional derivative; None in the place of everything that is not a float array.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.jvp(lambda a: a**3, [np.asarray(2.0)], [np.asarray(1.0)])
    (np.float64(8.0), np.float64(12.0))
    """
    return guarded(_jvp, fn, args, tangents, exact=False)  # type: ignore[no-any-return]


def _jvp(fn: Callable[..., Tree], args: Sequence[Tree], tangents: Sequence[Tree]) -> tuple[Tree, Tree]:
    if not (isinstance(args, tuple | list) and isinstance(tangents, tuple | list)):
        message = f"jvp takes a tuple of arguments and one of tangents, jvp(f, (x,), (t,)); got {_describe(args)}"
        raise OptionError(message)
    flat = Flat(fn, *split_arguments(tuple(args), {}))
    if len(tangents) != len(args):
        message = f"jvp got {len(args)} arguments and {len(tangents)} tangents; give one tangent (or None) for each"
        raise ShapeError(message)
    leaves, moved = jvp_from_vjp(flat.backend, flat, flat.floats, flat.tangents(args, tangents))
    return flat.join(leaves), flat.join(moved, nothing=True)


def grad(fn: Callable[..., Array], argnums: int | tuple[int, ...] = 0) -> Callable[..., Tree]:
    """Return the gradient of a scalar function as a function of the same arguments.

    Parameters
    ----------
    fn : callable
        Returns one number, shape ().
    argnums : int or tuple of int
        The positional arguments to differentiate; a tuple gives a tuple of gradients.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.grad(lambda u: np.sum(u**2))(np.asarray([1.0, 2.0]))
    array([2., 4.])
    """
    both = value_and_grad(fn, argnums)
    return lambda *args, **kwargs: both(*args, **kwargs)[1]


def value_and_grad(fn: Callable[..., Array], argnums: int | tuple[int, ...] = 0) -> Callable[..., tuple[Array, Tree]]:
    """Return a function that gives a scalar function's value and its gradient; see `grad`.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.value_and_grad(lambda u: np.sum(u**2))(np.asarray([1.0, 2.0]))
    (np.float64(5.0), array([2., 4.]))
    """
    chosen = (argnums,) if isinstance(argnums, int) else argnums
    if not isinstance(chosen, tuple | list) or not chosen or not all(isinstance(i, int) for i in chosen):
        message = f"argnums={argnums!r}; expected an int or a tuple of ints, the positions of arguments"
        raise OptionError(message)

    def both(args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> tuple[Array, Tree]:
        if any(not -len(args) <= i < len(args) for i in chosen):
            message = f"argnums={argnums!r}, but the function was called with {len(args)} positional arguments"
            raise OptionError(message)
        places = [i % len(args) for i in chosen]
        if len(set(places)) < len(places):
            message = f"argnums={argnums!r} names an argument twice"
            raise OptionError(message)

        def of_chosen(*values: Tree) -> Tree:
            merged = list(args)
            for i, value in zip(places, values, strict=True):
                merged[i] = value
            return fn(*merged, **kwargs)

        value, pull = vjp(of_chosen, *(args[i] for i in places))
        if getattr(value, "shape", None) != ():
            message = (
                f"grad needs a function that returns one number, an array of shape (); this one returned "
                f"{_describe(value)}; reduce it, or use dil.vjp"
            )
            raise ShapeError(message)
        if not is_float(array_namespace(value), value.dtype):
            message = f"grad needs a real floating result; this function returned {_describe(value)}"
            raise DTypeError(message)
        gradients = pull(array_namespace(value).ones_like(value))
        for i, gradient in zip(places, gradients, strict=True):
            if all(leaf is None for leaf in leaves_of(gradient)[0]):
                message = f"argument {i} holds no real floating array, so there is no gradient in it; cast it"
                raise DTypeError(message)
        return value, gradients[0] if isinstance(argnums, int) else gradients

    return lambda *args, **kwargs: guarded(both, args, kwargs, exact=False)


class Flat:
    """A function of trees as a function of the float arrays of its arguments, giving those of its result."""

    def __init__(self, fn: Callable[..., Tree], arrays: list[Array], arguments: Arguments) -> None:
        self.fn, self.arrays, self.arguments = fn, arrays, arguments
        names = [arguments.name(i) for i in range(len(arrays))]
        self.backend: Backend = common_owner(arrays, names, "the function to differentiate")
        self.floats: Arrays = arguments.only_floats(arrays)
        self.structure: Structure | None = None
        self.rest: list[Any] = []

    def __call__(self, *floats: Array) -> Arrays:
        args, kwargs = self.arguments.call(self.arguments.with_floats(self.arrays, floats))
        leaves, self.structure = leaves_of(self.fn(*args, **kwargs))
        moving = [owner(x) is not None and is_float(array_namespace(x), x.dtype) for x in leaves]
        self.rest = [MOVING if m else x for x, m in zip(leaves, moving, strict=True)]
        return tuple(x for x, m in zip(leaves, moving, strict=True) if m)

    def join(self, leaves: Arrays, *, nothing: bool = False) -> Tree:
        """Rebuild a result from its float arrays. Other leaves are unchanged, or None in a derivative."""
        assert self.structure is not None
        moving = iter(leaves)
        return self.structure.unflatten([next(moving) if x is MOVING else None if nothing else x for x in self.rest])

    def split(self, cotangent: Tree, like: Arrays) -> Arrays:
        """Pick the cotangents of the float arrays of the result."""
        leaves, structure = leaves_of(cotangent)
        if self.structure is None or structure.paths != self.structure.paths:
            expected = self.structure.paths if self.structure is not None else ()
            message = f"the cotangent has leaves {structure.paths}; expected {expected}, like the output"
            raise ShapeError(message)
        picked = tuple(x for x, kept in zip(leaves, self.rest, strict=True) if kept is MOVING)
        for ct, y in zip(picked, like, strict=True):
            if owner(ct) is not self.backend or ct.shape != y.shape or ct.dtype != y.dtype:
                message = f"a cotangent is {_describe(ct)}; expected {_describe(y)}, like the output"
                raise ShapeError(message)
        return picked

    def tangents(self, args: Sequence[Tree], tangents: Sequence[Tree]) -> list[Array | None]:
        """Pick the tangents of the float arrays of the arguments."""
        found: list[Array | None] = []
        for arg, tangent in zip(args, tangents, strict=True):
            leaves, structure = leaves_of(arg)
            given, alike = ([None] * len(leaves), structure) if tangent is None else leaves_of(tangent)
            if alike.paths != structure.paths:
                message = f"a tangent has leaves {alike.paths}; expected {structure.paths}, like its argument"
                raise ShapeError(message)
            for x, t in zip(leaves, given, strict=True):
                if owner(x) is None or not is_float(array_namespace(x), x.dtype):
                    continue
                if t is not None and (getattr(t, "shape", None) != x.shape or t.dtype != x.dtype):
                    message = f"a tangent is {_describe(t)}; expected {_describe(x)}, like its argument"
                    raise ShapeError(message)
                found.append(t)
        return found

    def like_arguments(self, floats: Arrays) -> tuple[Tree, ...]:
        """Return one entry per argument, None in the place of what has no derivative."""
        leaves: list[Any] = [None] * self.arguments.structure.size
        for i, value in zip(self.arguments.floats, floats, strict=True):
            leaves[self.arguments.arrays[i]] = value
        args: tuple[Tree, ...] = self.arguments.structure.unflatten(leaves)[0]
        return args


def constant(tree: Tree) -> Tree:
    """Return a tree whose arrays are cut off from every derivative.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.grad(lambda u: u * dil.constant(u))(np.asarray(3.0))
    np.float64(3.0)
    """
    leaves, structure = leaves_of(tree)
    owners = [owner(x) for x in leaves]
    return structure.unflatten([x if own is None else own.constant(x) for x, own in zip(leaves, owners, strict=True)])


MOVING = object()


def _describe(x: object) -> str:
    own = owner(x)
    if own is None:
        return f"{x!r} of type {type(x).__name__}"
    return f"an array of shape {tuple(x.shape)} and dtype {x.dtype} ({own.NATIVE})"  # type: ignore[attr-defined]
