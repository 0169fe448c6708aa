"""Jacobians: all pullbacks or all pushforwards at one point, whichever are fewer, as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil._base.arrays import array_namespace, device, full, is_complex, is_inexact, size
from dil._base.errors import DTypeError, SecondDerivativeError
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.adoption import run_in_its_framework
from dil._frameworks.arguments import split_arguments
from dil._frameworks.forward_mode import pushforward
from dil._frameworks.protocol import Pull
from dil._frameworks.registry import guarded, owner
from dil._frameworks.transforms import Flat, describe, positions, with_chosen, with_numbers_as_constants

NUMBERS_AT_ONCE = 2**26
"""The most intermediate numbers that the passes of one batch may make: 512 MiB in float64."""


def jacobian(fn: Callable[..., Tree], argnums: int | tuple[int, ...] = 0) -> Callable[..., Tree]:
    """Return a function of the same arguments that computes the Jacobian of fn.

    Parameters
    ----------
    fn : callable
        Takes trees of arrays and returns a tree. It may contain layers and array API code.
    argnums : int or tuple of int
        The positions of the arguments to differentiate. A tuple gives a tuple of Jacobians in the place of one.

    Returns
    -------
    callable
        It returns a tree like fn(*args). Each floating array y of it is replaced by a tree like the argument, in which
        each floating array x is replaced by dy/dx, of shape (*y.shape, *x.shape). Other leaves are replaced by None.
        dy/dx has the dtype of x; it is complex, of the precision of x, if y is.

    Raises
    ------
    OptionError
        If `argnums` names something other than a positional argument, or names one twice.
    DTypeError
        When called, if an argument or the result holds no floating array, or if both hold a complex one.
    ShapeError
        When called on torch, if the result is a Python number, which float() may have cut from the arguments.

    Notes
    -----
    The Jacobian takes one pullback for each number of the result, or one pushforward for each number of the argument if
    these are fewer. torch and JAX make them as one batch, so that a layer inside fn solves one linear system with many
    right-hand sides. On NumPy and CuPy the operations of fn take one row after the other, and layers take all rows at
    once. Passes that would make more than 2**26 numbers at once come in batches of fewer.

    A function without a second derivative on torch has no pushforward here, and takes pullbacks.

    For a real y and a complex x, a row of dy/dx is the gradient of one number as `dil.grad` defines it. A complex y of
    a complex x has one complex derivative only where fn is holomorphic, so that it is refused: differentiate in the
    real and the imaginary part.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.jacobian(lambda u: u[0] * u)(np.asarray([1.0, 2.0]))
    array([[2., 0.],
           [2., 1.]])
    >>> dil.jacobian(dil.grad(lambda u: u[0] ** 2 * u[1]))(np.asarray([1.0, 2.0]))
    array([[4., 2.],
           [2., 0.]])
    """
    chosen = positions(argnums)

    def evaluate(args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        fn_of_chosen, chosen_args = with_chosen(fn, chosen, args, kwargs)

        def run(*values: Tree) -> Tree:
            return _jacobian(fn_of_chosen, values, only_one=isinstance(argnums, int))

        return run_in_its_framework(run, fn_of_chosen, *chosen_args)

    return lambda *args, **kwargs: guarded(evaluate, args, kwargs, exact=False)


def _jacobian(fn: Callable[..., Tree], args: tuple[Tree, ...], *, only_one: bool) -> Tree:
    flat = Flat(fn, *split_arguments(args, {}))
    parts = InParts(flat)
    out, pull = flat.backend.vjp(parts, *parts.inputs)
    rows = _blocks(parts, out, pull) if out else [_of_a_constant(flat)]
    trees = [flat.like_arguments(tuple(row)) for row in rows]
    found: list[Any] = [tree[0] if only_one else tree for tree in trees]
    return flat.join(tuple(found), is_tangent=True) if out else found[0]


class InParts:
    """A function of flat arrays, as a function of real arrays: complex ones are given by their parts, (*shape, 2)."""

    def __init__(self, flat: Flat) -> None:
        self.flat, self.parts = flat, flat.backend.complex_parts
        self.given = list(map(_is_complex, flat.floats))
        self.returned: list[bool] = []
        self.inputs = tuple(map(self._split, flat.floats))

    def __call__(self, *inputs: Array) -> Arrays:
        out = self.flat(*(self.parts.join(x) if yes else x for x, yes in zip(inputs, self.given, strict=True)))
        self.returned = list(map(_is_complex, out))
        if any(self.given) and any(self.returned):
            message = (
                "a complex result of a complex argument has one complex derivative only where the function is "
                "holomorphic; differentiate in the real and the imaginary part, "
                "dil.jacobian(lambda a, b: fn(a + 1j * b), (0, 1)), whose first part is f'(z) of a holomorphic f, or "
                "use dil.vjp or dil.jvp"
            )
            raise DTypeError(message)
        return tuple(map(self._split, out))

    def _split(self, x: Array) -> Array:
        return self.parts.split(x) if _is_complex(x) else x

    def joined(self, block: Array, i: int, j: int) -> Array:
        """Return the derivative of the result i in the input j from that of their parts."""
        if self.returned[i]:
            last = block.ndim - self.inputs[j].ndim - 1
            block = self.parts.join(_last(block, last))
        return self.parts.cotangent(self.parts.join(block)) if self.given[j] else block


def _is_complex(x: Array) -> bool:
    return is_complex(array_namespace(x), x.dtype)


def _blocks(parts: InParts, out: Arrays, pull: Pull) -> list[list[Array]]:
    """Return the derivatives of each result in each input, by pushforwards if these are fewer than pullbacks."""
    inputs, found = parts.inputs, None
    if _total(inputs) * _total(out) == 0:
        found = [[full(x, 0.0, shape=(*y.shape, *x.shape)) for x in inputs] for y in out]
    elif _total(inputs) < _total(out):
        found = _by_pushforwards(parts, out, pull)
    if found is None:
        columns = [_cut(x, out) for x in _of_units(parts, pull, out)]
        found = [[_reshaped(x[i], y, inputs[j]) for j, x in enumerate(columns)] for i, y in enumerate(out)]
    return [[parts.joined(block, i, j) for j, block in enumerate(row)] for i, row in enumerate(found)]


def _by_pushforwards(parts: InParts, out: Arrays, pull: Pull) -> list[list[Array]] | None:
    """Return the derivatives by pushforwards, or None if a function on the way has no second derivative."""
    try:
        push = pushforward(parts.flat.backend, out, pull, range(len(parts.inputs)))
        rows = [_cut(y, parts.inputs) for y in _of_units(parts, push, parts.inputs)]
    except SecondDerivativeError:  # a pushforward is the pullback of a pullback
        return None
    return [
        [_reshaped(_last(dy), y, x) for dy, x in zip(row, parts.inputs, strict=True)]
        for row, y in zip(rows, out, strict=True)
    ]


def _last(x: Array, axis: int = 0) -> Array:
    """Return x with an axis moved to the end."""
    order = [*(i for i in range(x.ndim) if i != axis), axis]  # torch.vmap has no rule for moveaxis
    return array_namespace(x).permute_dims(x, tuple(order))  # type: ignore[no-any-return]


def _reshaped(block: Array, y: Array, x: Array) -> Array:
    """Return a derivative of y in x with its shape, and the dtype of x."""
    xp = array_namespace(block)
    return xp.astype(xp.reshape(block, (*y.shape, *x.shape)), x.dtype, copy=False)  # type: ignore[no-any-return]


def _of_units(parts: InParts, pull: Pull, likes: Arrays) -> list[Array]:
    """Return the pullback of each unit vector of the space of `likes`, stacked."""
    total, at_once = _total(likes), max(NUMBERS_AT_ONCE // max(pull.work(), 1), 1)
    constants = [parts.flat.backend.constant(x) for x in likes]
    chunks = [
        pull.many(_units(constants, range(first, min(first + at_once, total)))) for first in range(0, total, at_once)
    ]
    if len(chunks) == 1:
        return list(chunks[0])
    return [array_namespace(every[0]).concat(list(every)) for every in zip(*chunks, strict=True)]


def _units(likes: Sequence[Array], places: range) -> Arrays:
    """Return unit vectors of the space of `likes`, stacked: those with their one at the given places."""
    found, first = [], 0
    for x in likes:
        xp, place, last = array_namespace(x), device(x), first + size(x.shape)
        rows = xp.arange(places.start, places.stop, device=place)[:, None]
        ones = rows == xp.arange(first, last, device=place)
        found.append(xp.reshape(xp.astype(ones, x.dtype), (len(places), *x.shape)))
        first = last
    return tuple(found)


def _cut(stacked: Array, likes: Arrays) -> list[Array]:
    """Return the parts of stacked rows that belong to each of `likes`."""
    parts, first = [], 0
    for x in likes:
        parts.append(stacked[first : first + size(x.shape), ...])
        first += size(x.shape)
    return parts


def _total(arrays: Arrays) -> int:
    return sum(size(x.shape) for x in arrays)


def _of_a_constant(flat: Flat) -> list[Array]:
    """Return the derivatives of a Python number, which are zero. Any other result without an array is refused."""
    needed = "jacobian needs a function that returns floating arrays"
    value: Any = with_numbers_as_constants(flat.join(()), flat, needed)
    if owner(value) is None or not is_inexact(array_namespace(value), value.dtype):
        message = f"{needed}; this one returned {describe(value)}; convert it, as in xp.astype(y, xp.float64)"
        raise DTypeError(message)
    return [array_namespace(x).zeros_like(x) for x in flat.floats]
