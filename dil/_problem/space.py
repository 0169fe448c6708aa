"""The space of the unknown: it turns a tree of arrays into one vector for each problem, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dil._base.arrays import array_namespace, is_complex, is_inexact, size
from dil._base.errors import DTypeError, ShapeError
from dil._base.tree import LEAF, Structure
from dil._base.typing import Array, DType, Tree
from dil._frameworks.registry import as_one_array, common_owner, complex_parts_of, leaves_of, owner


@dataclass(frozen=True)
class Space:
    """The trees of one structure, dtype and leaf shapes, and the linear map to vectors (*batch, n) and back.

    The vectors are real. A complex leaf is the real array of its real and imaginary parts there.
    """

    structure: Structure
    shapes: tuple[tuple[int, ...], ...]
    """The shape of each leaf, batch dimensions included. That of a complex leaf ends with 2, for its parts."""
    dtype: DType
    """The real dtype."""
    batch: tuple[int, ...]
    split: tuple[int, ...] = ()
    """The positions of the complex leaves."""

    @property
    def dimension(self) -> int:
        """The number of real unknowns of one problem, n."""
        return sum(size(shape[len(self.batch) :]) for shape in self.shapes)

    def row(self) -> Space:
        """Return the space of one problem, without the first dimension of the batch."""
        return replace(self, shapes=tuple(shape[1:] for shape in self.shapes), batch=self.batch[1:])

    def rows(self, count: int) -> Space:
        """Return the space of `count` problems of the batch, whose shape becomes (count, 1, ..., 1)."""
        batch = (count, *(1,) * (len(self.batch) - 1))
        shapes = tuple((*batch, *shape[len(batch) :]) for shape in self.shapes)
        return replace(self, shapes=shapes, batch=batch)

    def many(self, count: int) -> Space:
        """Return the space of `count` problems, or batches of them, as one batch."""
        shapes = tuple((count, *shape) for shape in self.shapes)
        return replace(self, shapes=shapes, batch=(count, *self.batch))

    def describe(self) -> str:
        """Return the shapes and the dtype in words, for messages."""
        leaves = []
        for i, (path, shape) in enumerate(zip(self.structure.paths, self.shapes, strict=True)):
            words = f"{shape[:-1]} (complex)" if i in self.split else str(shape)
            leaves.append(f"{path} {words}" if path else words)
        return f"{', '.join(leaves)} of {self.dtype}"

    def ravel(self, leaves: Sequence[Array]) -> Array:
        """Join the leaves of a tree into vectors (*batch, n)."""
        if self.split:
            leaves = _with_split(leaves, self.split)
        return self.joined(leaves)

    def joined(self, leaves: Sequence[Array]) -> Array:
        """Join leaves whose complex ones are given by their parts."""
        if len(leaves) == 1 and leaves[0].ndim == len(self.batch) + 1:
            return leaves[0]
        xp = array_namespace(leaves[0])
        flat = [
            xp.reshape(leaf, (*self.batch, size(shape[len(self.batch) :])))
            for leaf, shape in zip(leaves, self.shapes, strict=True)
        ]
        joined: Array = flat[0] if len(flat) == 1 else xp.concat(flat, axis=-1)
        return joined

    def vector(self, tree: Tree, what: str) -> Array:
        """Return the vectors (*batch, n) of a tree, which must belong to this space.

        Raises
        ------
        ShapeError
            If the tree has another structure, shape or dtype.
        """
        if owner(tree) is not None and self._is_like(array := as_one_array(tree)):
            return self.joined([array])
        vector, space = space_of(tree, len(self.batch), f"the result of {what}")
        if space != self:
            message = f"{what} returned {space.describe()}; expected {self.describe()}, like the unknown"
            if isinstance(tree, list | tuple) and len(self.shapes) == 1:
                message += "; join the entries to one array, as xp.stack([...]) does"
            raise ShapeError(message)
        return vector

    def _is_like(self, array: Array) -> bool:
        """Return whether the trees of this space are one real array, and this is one of them."""
        plain = self.structure is LEAF and not self.split
        return plain and array.dtype == self.dtype and tuple(array.shape) == self.shapes[0]

    def covector(self, tree: Tree, what: str) -> Array:
        """Return the vectors (*batch, n) of a gradient, which is complex by the convention of its framework.

        Raises
        ------
        ShapeError
            If the tree has another structure, shape or dtype.
        """
        if self.split:
            leaves, structure = leaves_of(tree)
            tree = structure.unflatten([_conjugated(x) for x in leaves])
        return self.vector(tree, what)

    def unravel(self, vector: Array) -> Tree:
        """Split vectors (*batch, n) into the leaves of a tree, and return the tree."""
        leaves = self._leaves(vector)
        for i in self.split:
            framework = complex_parts_of(leaves[i])
            parts = leaves[i] if len(leaves) == len(self.split) else framework.aligned(leaves[i])
            leaves[i] = framework.join(parts)
        return self.structure.unflatten(leaves)

    def _leaves(self, vector: Array) -> list[Array]:
        """Return the leaves. The complex ones are real arrays of their parts."""
        if len(self.shapes) == 1:
            if len(self.shapes[0]) == len(self.batch) + 1:
                return [vector]
            return [array_namespace(vector).reshape(vector, self.shapes[0])]
        xp = array_namespace(vector)
        leaves, start = [], 0
        for shape in self.shapes:
            stop = start + size(shape[len(self.batch) :])
            leaves.append(xp.reshape(vector[..., start:stop], shape))
            start = stop
        return leaves


def space_of(u: Tree, batch_ndim: int, what: str) -> tuple[Array, Space]:
    """Return the vectors (*batch, n) of a tree, and the space of the tree.

    Raises
    ------
    ShapeError
        If the tree is empty or its leaves do not share `batch_ndim` leading dimensions.
    DTypeError
        If a leaf is not a floating array, or the leaves have different dtypes. A complex leaf has that of its parts.
    """
    leaves, structure = leaves_of(u)
    if not leaves:
        message = f"{what} is an empty tree ({u!r}), so there is nothing to solve for; give at least one float array"
        raise ShapeError(message)
    names = [f"{what}{path}" for path in structure.paths]
    for leaf, name in zip(leaves, names, strict=True):
        _check_leaf(leaf, name)
    common_owner(leaves, names, what)
    split = tuple([i for i, leaf in enumerate(leaves) if is_complex(array_namespace(leaf), leaf.dtype)])
    parts = _with_split(leaves, split)
    dtypes = {str(leaf.dtype) for leaf in parts}
    if len(dtypes) > 1:
        given = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        message = f"the leaves of {what} have dtypes {given}; they must share one precision, so cast them"
        raise DTypeError(message)
    batches = {leaf.shape[:batch_ndim] for leaf in leaves}
    if len(batches) > 1 or len(next(iter(batches))) < batch_ndim:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        message = (
            f"the leaves of {what} have shapes {shapes}; with batch_ndim={batch_ndim} their first {batch_ndim} "
            f"dimensions must exist and agree"
        )
        raise ShapeError(message)
    shapes_ = tuple(tuple(leaf.shape) for leaf in parts)
    space = Space(structure, shapes_, parts[0].dtype, tuple(next(iter(batches))), split)
    return space.joined(parts), space


def _with_split(leaves: Sequence[Array], split: Sequence[int]) -> list[Array]:
    """Return the leaves with those in `split`, the complex ones, as real arrays of their parts."""
    found = list(leaves)
    for i in split:
        framework = complex_parts_of(leaves[i])
        parts = framework.split(leaves[i])
        found[i] = parts if len(split) == len(leaves) else framework.aligned(parts)
    return found


def _conjugated(x: Any) -> Any:
    if owner(x) is None or not is_complex(array_namespace(x), x.dtype):
        return x
    return complex_parts_of(x).cotangent(x)


def _check_leaf(leaf: Any, name: str) -> None:
    if owner(leaf) is None:
        message = (
            f"{name} is {leaf!r} of type {type(leaf).__name__}; expected a float array, such as np.asarray([0.5, 1.0])"
        )
        raise DTypeError(message)
    if not is_inexact(array_namespace(leaf), leaf.dtype):
        message = (
            f"{name} has dtype {leaf.dtype}; the unknown of a layer must be real or complex floating, so cast it, "
            f"for example to float64"
        )
        raise DTypeError(message)
