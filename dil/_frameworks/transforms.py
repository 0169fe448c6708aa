"""Derivative transforms that are the same on every backend. A framework's own transforms also work on layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dil._base.arrays import array_namespace, full, is_complex, is_float, is_inexact
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.in_words import in_words
from dil._base.tree import Structure
from dil._base.typing import AnyArray, Array, Arrays, Tree
from dil._frameworks.adoption import run_in_its_framework
from dil._frameworks.arguments import Arguments, split_arguments, with_numbers_as_arrays
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Backend, Pull
from dil._frameworks.registry import adopted, common_owner, guarded, leaves_of, owner


def vjp(fn: Callable[..., Tree], /, *args: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """Return fn(*args), and the pullback of fn as a function.

    Parameters
    ----------
    fn : callable
        Takes trees of arrays and returns a tree. It may contain layers and array API code.
    *args : trees
        The point. Only its real and complex floating arrays have a derivative.

    Returns
    -------
    out : tree
        fn(*args).
    pull : callable
        `pull(cotangent)` takes a cotangent like `out` and returns a tuple with one entry per argument. An entry is like
        its argument, with None in the place of each leaf that is not a floating array.

    Raises
    ------
    BackendError
        If the arguments hold no array, or arrays of two backends.
    DTypeError
        If no array among them is floating.
    ShapeError
        In `pull`, if the cotangent does not have the leaves, shapes and dtypes of `out`.

    Examples
    --------
    >>> import numpy as np, dil
    >>> out, pull = dil.vjp(lambda a, b: a * b, np.asarray(2.0), np.asarray(3.0))
    >>> pull(np.asarray(1.0))
    (np.float64(3.0), np.float64(2.0))
    """
    out, pull = guarded(_unguarded_vjp, fn, args, exact=False)
    return out, lambda cotangent: guarded(pull, cotangent, exact=False)


def _unguarded_vjp(fn: Callable[..., Tree], args: tuple[Tree, ...]) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    return run_in_its_framework(lambda *args: _vjp(fn, args), fn, *args)  # type: ignore[no-any-return]


def _vjp(fn: Callable[..., Tree], args: tuple[Tree, ...]) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    flat, leaves, pull_leaves = _flat_vjp(fn, *args)

    def pull(cotangent: Tree) -> tuple[Tree, ...]:
        return flat.like_arguments(pull_leaves(flat.split(cotangent, leaves)))

    return flat.join(leaves), pull


def _flat_vjp(fn: Callable[..., Tree], *args: Tree) -> tuple[Flat, Arrays, Pull]:
    """Return fn as a function of flat arrays, the float arrays of its result, and their pullback."""
    flat = Flat(fn, *split_arguments(args, {}))
    if args and not flat.floats:
        message = (
            "the arguments hold no floating array, so there is no derivative; pass one, such as np.asarray(2.0) or "
            "x.astype(float)"
        )
        raise DTypeError(message)
    return flat, *flat.backend.vjp(flat, *flat.floats)


def jvp(fn: Callable[..., Tree], args: Sequence[Tree], tangents: Sequence[Tree], /) -> tuple[Tree, Tree]:
    """Return fn(*args), and the derivative of fn along the tangents.

    Parameters
    ----------
    fn : callable
        Takes trees of arrays and returns a tree.
    args, tangents : tuples or lists of trees
        The point and the direction. A tangent is like its argument, or None for zero.

    Returns
    -------
    out, tangent : trees
        fn(*args) and its directional derivative, with None in the place of each leaf that is not a floating array.
        A Python number, as that of `max(0.0, u[0])`, is a constant array as in `grad`, with the tangent zero.

    Raises
    ------
    BackendError
        If the arguments hold no array, or arrays of two backends.
    OptionError, ShapeError
        If `args` or `tangents` is not a tuple or list, or a tangent is not like its argument. On torch, if the result
        is a Python number, which float() may have cut from the arguments.
    DTypeError
        If an argument without a derivative, such as a Python number or an integer array, gets a tangent.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.jvp(lambda a: a**3, [np.asarray(2.0)], [np.asarray(1.0)])
    (np.float64(8.0), np.float64(12.0))
    """
    if not (isinstance(args, tuple | list) and isinstance(tangents, tuple | list)):
        message = f"jvp takes a tuple of arguments and one of tangents, jvp(f, (x,), (t,)); got {describe(args)}"
        raise OptionError(message)
    return guarded(run_in_its_framework, lambda *args: _jvp(fn, args, tangents), fn, *args, exact=False)  # type: ignore[no-any-return]


def _jvp(fn: Callable[..., Tree], args: Sequence[Tree], tangents: Sequence[Tree]) -> tuple[Tree, Tree]:
    given, structure = leaves_of(tuple(args))
    given = adopted(given, leaves_of(tuple(tangents))[0])
    args = structure.unflatten(with_numbers_as_arrays(given, leaves_of((tuple(args), {}))[1]))
    flat = Flat(fn, *split_arguments(tuple(args), {}))
    if len(tangents) != len(args):
        message = f"jvp got {len(args)} arguments and {len(tangents)} tangents; give one tangent (or None) for each"
        raise ShapeError(message)
    leaves, out_tangents = jvp_from_vjp(flat.backend, flat, flat.floats, flat.tangents(args, tangents))
    out = flat.join(leaves)
    value = with_numbers_as_constants(out, flat, "jvp needs a function that returns arrays")
    if value is not out:
        return value, array_namespace(value).zeros_like(value)
    return out, flat.join(out_tangents, is_tangent=True)


def grad(fn: Callable[..., AnyArray], argnums: int | tuple[int, ...] = 0) -> Callable[..., Tree]:
    """Return a function of the same arguments that computes the gradient of a scalar function.

    Parameters
    ----------
    fn : callable
        Returns one number, shape ().
    argnums : int or tuple of int
        The positions of the arguments to differentiate. A tuple gives a tuple of gradients.

    Raises
    ------
    OptionError
        If `argnums` names something other than a positional argument, or names one twice.
    ShapeError, DTypeError
        When called, if the value of fn is not one real floating number, or an argument holds no floating array.

    Notes
    -----
    A function may return a Python number where a constant wins, as max(0.0, u[0]) does. Its gradient is zero, as that
    of a constant array. torch's float() and item() cut such a number from the arguments without an error, so that it is
    refused there.

    The gradient in a complex array z follows the convention of its framework: d/dRe z + i d/dIm z on NumPy, CuPy and
    torch, and its conjugate on JAX.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.grad(lambda u: np.sum(u**2))(np.asarray([1.0, 2.0]))
    array([2., 4.])
    """
    evaluate = value_and_grad(fn, argnums)
    return lambda *args, **kwargs: evaluate(*args, **kwargs)[1]


def value_and_grad(
    fn: Callable[..., AnyArray], argnums: int | tuple[int, ...] = 0
) -> Callable[..., tuple[AnyArray, Tree]]:
    """Return a function that computes the value and the gradient of a scalar function.

    The arguments and the errors are those of `grad`.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.value_and_grad(lambda u: np.sum(u**2))(np.asarray([1.0, 2.0]))
    (np.float64(5.0), array([2., 4.]))
    """
    chosen = positions(argnums)

    def evaluate(args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> tuple[Array, Tree]:
        fn_of_chosen, chosen_args = with_chosen(fn, chosen, args, kwargs)
        flat, leaves, pull = run_in_its_framework(partial(_flat_vjp, fn_of_chosen), fn_of_chosen, *chosen_args)
        value = with_numbers_as_constants(flat.join(leaves), flat)
        if getattr(value, "shape", None) != ():
            message = (
                f"grad needs a function that returns one number, an array of shape (); this one returned "
                f"{describe(value)}; reduce it, or use dil.vjp"
            )
            raise ShapeError(message)
        if not is_float(array_namespace(value), value.dtype):
            message = (
                f"grad needs a real floating result; this function returned {describe(value)}; a score is real, so "
                f"take the real part or the modulus of a complex number, or use dil.vjp"
            )
            raise DTypeError(message)
        cotangents = tuple(map(array_namespace(value).ones_like, leaves))  # none if the value is a Python number
        gradients = flat.like_arguments(pull(cotangents))
        return value, gradients[0] if isinstance(argnums, int) else gradients

    return lambda *args, **kwargs: guarded(evaluate, args, kwargs, exact=False)


def positions(argnums: int | Sequence[int]) -> tuple[int, ...]:
    """Return the positions that `argnums` gives, as a tuple."""
    chosen = (argnums,) if isinstance(argnums, int) else argnums
    if not isinstance(chosen, tuple | list) or not chosen or not all(isinstance(i, int) for i in chosen):
        message = f"argnums={argnums!r}; expected an int or a tuple of ints, the positions of arguments"
        raise OptionError(message)
    return tuple(chosen)


def with_chosen(
    fn: Callable[..., Tree], chosen: tuple[int, ...], args: tuple[Tree, ...], kwargs: dict[str, Tree]
) -> tuple[Callable[..., Tree], list[Tree]]:
    """Return fn as a function of the arguments at the positions `chosen` alone, and these arguments."""
    argnums = chosen[0] if len(chosen) == 1 else chosen
    if any(not -len(args) <= i < len(args) for i in chosen):
        message = f"argnums={argnums!r}, but the function was called with {len(args)} positional arguments"
        raise OptionError(message)
    places = [i % len(args) for i in chosen]
    if len(set(places)) < len(places):
        message = f"argnums={argnums!r} names an argument twice"
        raise OptionError(message)

    if kwargs or not all(owner(x) is not None for x in args):
        given, structure = leaves_of((args, kwargs))
        args, kwargs = structure.unflatten(with_numbers_as_arrays(given, structure))
    for i in places:
        leaves = leaves_of(args[i])[0]
        if not any(owner(x) is not None and is_inexact(array_namespace(x), x.dtype) for x in leaves):
            held = f" but {describe(leaves[0])}" if leaves else ""
            way = "pass a floating array, such as np.asarray(2.0), or a float such as 2.0 without arrays"
            message = f"argument {i} holds no floating array{held}, so it has no gradient; {way}"
            raise DTypeError(message)

    def fn_of_chosen(*values: Tree) -> Tree:
        merged = list(args)
        for i, value in zip(places, values, strict=True):
            merged[i] = value
        return fn(*merged, **kwargs)

    return fn_of_chosen, [args[i] for i in places]


class Flat:
    """A function of trees, as a function from the float arrays of its arguments to the float arrays of its result."""

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
        is_float_array = [owner(x) is not None and is_inexact(array_namespace(x), x.dtype) for x in leaves]
        self.rest = [FLOAT_ARRAY if yes else x for x, yes in zip(leaves, is_float_array, strict=True)]
        return tuple(x for x, yes in zip(leaves, is_float_array, strict=True) if yes)

    def join(self, leaves: Arrays, *, is_tangent: bool = False) -> Tree:
        """Rebuild a result from its float arrays. The other leaves are those of the result, or None in a tangent."""
        assert self.structure is not None
        floats, rest = iter(leaves), [None if is_tangent and x is not FLOAT_ARRAY else x for x in self.rest]
        return self.structure.unflatten([next(floats) if x is FLOAT_ARRAY else x for x in rest])

    def split(self, cotangent: Tree, like: Arrays) -> Arrays:
        """Return the cotangents of the float arrays of the result."""
        leaves, structure = leaves_of(cotangent)
        if self.structure is None or structure.paths != self.structure.paths:
            expected = self.structure.paths if self.structure is not None else ()
            message = f"the cotangent has leaves {structure.paths}; expected {expected}, like the output"
            raise ShapeError(message)
        leaves = [_like(ct, y) for ct, y in zip(adopted(leaves, like), self._with_places(like), strict=True)]
        cotangents = tuple(x for x, kind in zip(leaves, self.rest, strict=True) if kind is FLOAT_ARRAY)
        for ct, y in zip(cotangents, like, strict=True):
            if owner(ct) is not self.backend or ct.shape != y.shape or ct.dtype != y.dtype:
                message = f"a cotangent is {describe(ct)}; expected {describe(y)}, like the output"
                raise ShapeError(message)
        return cotangents

    def _with_places(self, floats: Arrays) -> list[Any]:
        """Return the leaves of the result, with these arrays in the place of its float arrays."""
        left = iter(floats)
        return [next(left) if x is FLOAT_ARRAY else x for x in self.rest]

    def tangents(self, args: Sequence[Tree], tangents: Sequence[Tree]) -> list[Array | None]:
        """Return the tangents of the float arrays of the arguments."""
        found: list[Array | None] = []
        for arg, tangent in zip(args, tangents, strict=True):
            leaves, structure = leaves_of(arg)
            given, alike = ([None] * len(leaves), structure) if tangent is None else leaves_of(tangent)
            if alike.paths != structure.paths:
                message = f"a tangent has leaves {alike.paths}; expected {structure.paths}, like its argument"
                raise ShapeError(message)
            for x, direction in zip(adopted(leaves, self.floats), adopted(given, self.floats), strict=True):
                t = _like(direction, x)
                if owner(x) is None or not is_inexact(array_namespace(x), x.dtype):
                    if _is_direction(t):
                        message = (
                            f"a tangent is given for {describe(x)}, which has no derivative; pass a floating array, "
                            f"or None as its tangent"
                        )
                        raise DTypeError(message)
                    continue
                if t is not None and (getattr(t, "shape", None) != x.shape or t.dtype != x.dtype):
                    message = f"a tangent is {describe(t)}; expected {describe(x)}, like its argument"
                    raise ShapeError(message)
                found.append(t)
        return found

    def like_arguments(self, floats: Arrays) -> tuple[Tree, ...]:
        """Return one tree per argument, with None in the place of each leaf that has no derivative."""
        leaves: list[Any] = [None] * self.arguments.structure.size
        for i, value in zip(self.arguments.floats, floats, strict=True):
            leaves[self.arguments.arrays[i]] = value
        if self.arguments.plain:
            return tuple(leaves)
        args: tuple[Tree, ...] = self.arguments.structure.unflatten(leaves)[0]
        return args


def with_numbers_as_constants(
    value: Tree, flat: Flat, needed: str = "grad needs a function that returns one number, an array of shape ()"
) -> Tree:
    """Return the value of a function. A Python number becomes an array, whose gradient is zero.

    Such a number, as that of `max(0.0, u[0])`, is a constant if float() cannot have cut it from the arguments.
    """
    if owner(value) is not None or not isinstance(value, int | float) or isinstance(value, bool):  # np.float64 is both
        return value
    if flat.backend.FLOAT_CUTS:
        message = (
            f"{needed}; this one returned {describe(value)}, which float() or item() may have cut from the arguments; "
            f"compute it with the functions of array_namespace(u), such as maximum for max; a constant is "
            f"asarray(value)"
        )
        raise ShapeError(message)
    like = flat.floats[0]
    xp = array_namespace(like)
    dtype = xp.finfo(like.dtype).dtype if is_complex(xp, like.dtype) else like.dtype
    return full(like, value, shape=(), dtype=dtype)


def constant(tree: Tree) -> Tree:
    """Return a tree whose arrays are constants: no derivative passes through them.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.grad(lambda u: u * dil.constant(u))(np.asarray(3.0))
    np.float64(3.0)
    """
    leaves, structure = leaves_of(tree)
    owners = [owner(x) for x in leaves]
    return structure.unflatten([x if own is None else own.constant(x) for x, own in zip(leaves, owners, strict=True)])


def _like(direction: Any, x: Any) -> Any:
    """Return a tangent or cotangent of x. A Python number becomes an array if x is a float array of shape ()."""
    if type(direction) not in (int, float) or owner(x) is None or tuple(x.shape) != ():
        return direction
    xp = array_namespace(x)
    return xp.full_like(x, direction) if is_float(xp, x.dtype) else direction


FLOAT_ARRAY = object()
"""Marks the place of a float array among the leaves of a result."""


def _is_direction(tangent: Any) -> bool:
    """Return whether a tangent asks for a derivative: a number that is not zero, or an array that can hold one."""
    if owner(tangent) is None:
        return isinstance(tangent, int | float | complex) and tangent != 0
    return bool(array_namespace(tangent).isdtype(tangent.dtype, ("real floating", "complex floating")))


def describe(x: object) -> str:
    own = owner(x)
    if own is None:
        return f"{in_words(x)} of type {type(x).__name__}"
    return f"an array of shape {tuple(x.shape)} and dtype {x.dtype} ({own.NATIVE})"  # type: ignore[attr-defined]
