"""The space of the unknown: it turns a tree of arrays into one vector for each problem, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dil._base.arrays import array_namespace, is_float, size
from dil._base.errors import DTypeError, ShapeError
from dil._base.tree import Structure
from dil._base.typing import Array, DType, Tree
from dil._frameworks.registry import common_owner, leaves_of, owner


@dataclass(frozen=True)
class Space:
    """The trees of one structure, dtype and leaf shapes, and the linear map to vectors (*batch, n) and back."""

    structure: Structure
    shapes: tuple[tuple[int, ...], ...]
    """The shape of each leaf, batch dimensions included."""
    dtype: DType
    batch: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """The number of unknowns of one problem, n."""
        return sum(size(shape[len(self.batch) :]) for shape in self.shapes)

    def row(self) -> Space:
        """Return the space of one problem, without the first dimension of the batch."""
        return Space(self.structure, tuple(shape[1:] for shape in self.shapes), self.dtype, self.batch[1:])

    def rows(self, count: int) -> Space:
        """Return the space of `count` problems of the batch, whose shape becomes (count, 1, ..., 1)."""
        batch = (count, *(1,) * (len(self.batch) - 1))
        shapes = tuple((*batch, *shape[len(batch) :]) for shape in self.shapes)
        return Space(self.structure, shapes, self.dtype, batch)

    def many(self, count: int) -> Space:
        """Return the space of `count` problems, or batches of them, as one batch."""
        shapes = tuple((count, *shape) for shape in self.shapes)
        return Space(self.structure, shapes, self.dtype, (count, *self.batch))

    def describe(self) -> str:
        """Return the shapes and the dtype in words, for messages."""
        leaves = zip(self.structure.paths, self.shapes, strict=True)
        shapes = ", ".join(f"{path} {shape}" if path else str(shape) for path, shape in leaves)
        return f"{shapes} of {self.dtype}"

    def ravel(self, leaves: Sequence[Array]) -> Array:
        """Join the leaves of a tree into vectors (*batch, n)."""
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
        vector, space = space_of(tree, len(self.batch), f"the result of {what}")
        if space != self:
            message = f"{what} returned {space.describe()}; expected {self.describe()}, like the unknown"
            if isinstance(tree, list | tuple) and len(self.shapes) == 1:
                message += "; join the entries to one array, as xp.stack([...]) does"
            raise ShapeError(message)
        return vector

    def unravel(self, vector: Array) -> Tree:
        """Split vectors (*batch, n) into the leaves of a tree, and return the tree."""
        if len(self.shapes) == 1:
            if len(self.shapes[0]) == len(self.batch) + 1:
                return self.structure.unflatten([vector])
            return self.structure.unflatten([array_namespace(vector).reshape(vector, self.shapes[0])])
        xp = array_namespace(vector)
        leaves, start = [], 0
        for shape in self.shapes:
            stop = start + size(shape[len(self.batch) :])
            leaves.append(xp.reshape(vector[..., start:stop], shape))
            start = stop
        return self.structure.unflatten(leaves)


def space_of(u: Tree, batch_ndim: int, what: str) -> tuple[Array, Space]:
    """Return the vectors (*batch, n) of a tree, and the space of the tree.

    Raises
    ------
    ShapeError
        If the tree is empty or its leaves do not share `batch_ndim` leading dimensions.
    DTypeError
        If a leaf is not a real floating array, or the leaves have different dtypes.
    """
    leaves, structure = leaves_of(u)
    if not leaves:
        message = f"{what} is an empty tree ({u!r}), so there is nothing to solve for; give at least one float array"
        raise ShapeError(message)
    names = [f"{what}{path}" for path in structure.paths]
    for leaf, name in zip(leaves, names, strict=True):
        _check_leaf(leaf, name)
    common_owner(leaves, names, what)
    dtypes = {str(leaf.dtype) for leaf in leaves}
    if len(dtypes) > 1:
        message = f"the leaves of {what} have dtypes {', '.join(sorted(dtypes))}; they must share one, so cast them"
        raise DTypeError(message)
    batches = {leaf.shape[:batch_ndim] for leaf in leaves}
    if len(batches) > 1 or len(next(iter(batches))) < batch_ndim:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        message = (
            f"the leaves of {what} have shapes {shapes}; with batch_ndim={batch_ndim} their first {batch_ndim} "
            f"dimensions must exist and agree"
        )
        raise ShapeError(message)
    shapes_ = tuple(tuple(leaf.shape) for leaf in leaves)
    space = Space(structure, shapes_, leaves[0].dtype, tuple(next(iter(batches))))
    return space.ravel(leaves), space


def _check_leaf(leaf: Any, name: str) -> None:
    if owner(leaf) is None:
        message = (
            f"{name} is {leaf!r} of type {type(leaf).__name__}; expected a float array, such as np.asarray([0.5, 1.0])"
        )
        raise DTypeError(message)
    if not is_float(array_namespace(leaf), leaf.dtype):
        message = (
            f"{name} has dtype {leaf.dtype}; the unknown of a layer must be real floating, so cast it, "
            f"for example to float64"
        )
        raise DTypeError(message)
