"""Entries that a function leaves out, such as `np.nansum` those that are NaN: no derivative passes through them.

The cotangent of an entry that is left out is zero. The functions before get it: for `np.nansum((u - y) ** 2)` the
square multiplies it by 2 (u - y), which is NaN where y is, and 0 NaN is NaN. So the entries that are used are followed
back through the nodes, once for a program, and the cotangent of what is used nowhere is zero, whatever the derivative
is. A cotangent of zero alone says nothing: the entry of `np.sqrt(u) ** 2` at 0 has one and is used, and its NaN stays.
A function that mixes entries in another way than `rules/uses.py` knows uses all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from array_api_compat import device as device_of

from dil_backends._tape.box import constant
from dil_backends._tape.trace import Node


class Used(NamedTuple):
    """The entries of a node's value and of its wanted arguments that are used, Boolean. None stands for all."""

    of_value: Any
    of_arguments: list[Any]
    of_factors: list[Any]
    """Those of all arguments of a product, and nothing for other functions."""


class BeforeLeftOut:
    """A node before a function that leaves entries out. It stands for the node in a program."""

    __slots__ = ("node", "used")

    def __init__(self, node: Node, used: Used) -> None:
        self.node = node
        self.used = used

    @property
    def primitive(self) -> BeforeLeftOut:
        return self

    @property
    def y(self) -> Any:
        return self.node.y

    def pull(self, stand_in: Any, c: Any, wanted: Sequence[int]) -> list[Any]:
        found: list[Any] = self.node.primitive.pull(self.node, c, wanted, self.used)
        return found


class Sweep(Protocol):
    """What is needed of a program: see `pull.py`."""

    @property
    def nodes(self) -> list[Node]: ...
    @property
    def several(self) -> list[bool]: ...
    @property
    def places(self) -> list[int]: ...
    @property
    def positions(self) -> list[tuple[int, ...]]: ...
    @property
    def targets(self) -> list[tuple[int, ...]]: ...
    @property
    def seeds(self) -> list[int | None]: ...


def with_entries_left_out(program: Sweep) -> list[Any]:
    """Return the nodes of a program, the last first, with stand-ins before functions that leave entries out."""
    if not any(map(leaves_out, program.nodes, program.positions)):
        return program.nodes
    uses: dict[int, Any] = dict.fromkeys(slot for slot in program.seeds if slot is not None)  # by slot; None for all
    found: list[Any] = []
    columns = (program.nodes, program.several, program.places, program.positions, program.targets)
    for node, several, slot, positions, targets in zip(*columns, strict=True):
        used = used_parts(node, slot, uses) if several else uses.get(slot)
        of_factors = used_factors(node, used)
        of_arguments = [of_factors[i] if of_factors else used_entries(node, used, i) for i in positions]
        for target, part in zip(targets, of_arguments, strict=True):
            before = uses.get(target, False)
            uses[target] = part if before is False else None if before is None or part is None else before | part
        masks = any(u is not None for u in (*of_arguments, *of_factors))
        affects = used is not None and (node.primitive.elementwise or masks)
        found.append(BeforeLeftOut(node, Used(used, of_arguments, of_factors)) if affects else node)
    return found


def leaves_out(node: Node, positions: tuple[int, ...]) -> bool:
    """Whether a node is of a function that leaves entries out, and there are any."""
    primitive = node.primitive
    return primitive.hides and (positions != (0,) or not bool(primitive.plain.all(constant(node.args[1]))))


def used_parts(node: Node, slot: int, uses: dict[int, Any]) -> Any:
    """Return the used entries of each output of a node, or None for all entries of all outputs."""
    parts = [uses.get(slot + k, False) for k in range(len(node.y))]
    if all(part is None or part is False for part in parts):
        return None
    xp = node.primitive.plain
    whole = [xp.ones(y.shape, dtype=xp.bool, device=device_of(y)) for y in map(constant, node.y)]
    return tuple(one if part is None else one & part for one, part in zip(whole, parts, strict=True))


def used_entries(node: Node, used: Any, i: int) -> Any:
    """Return the entries of argument i that are used, if those of the value are. None stands for all."""
    primitive, args, y = node.primitive, list(map(constant, node.args)), values_of(node.y)
    xp, shape = primitive.plain, args[i].shape
    if primitive.hides:
        mask = args[1] if i == 0 else ~args[1]
        if used is not None:
            mask = mask & used
        mask = shrunk(xp, mask if mask.shape == y.shape else xp.broadcast_to(mask, y.shape), shape)
        return None if bool(xp.all(mask)) else mask
    if primitive.elementwise:
        return None if used is None else shrunk(xp, used, shape)
    if primitive.uses is None or (used is None and primitive.multiplies):
        return None
    n = counts(xp, y if used is None else used, whole=used is None)
    mask = shrunk(xp, primitive.uses(xp, n, y, i, *args, **node.options) != 0.0, shape)
    return None if bool(xp.all(mask)) else mask


def counts(xp: Any, used: Any, *, whole: bool) -> Any:
    """Return one use of each entry that is used, or of every entry of a value."""
    if isinstance(used, tuple):
        return [counts(xp, part, whole=whole) for part in used]
    return xp.ones(used.shape, dtype=xp.float64, device=device_of(used)) if whole else xp.astype(used, xp.float64)


def used_factors(node: Node, used: Any) -> list[Any]:
    """Return the used entries of all arguments of a product. Zero times the NaN of another is no derivative."""
    if used is None or not node.primitive.multiplies:
        return []
    return [used_entries(node, used, i) for i in range(len(node.args))]


def values_of(y: Any) -> Any:
    """Return the raw value of a node, or those of its outputs."""
    return tuple(map(constant, y)) if isinstance(y, tuple) else constant(y)


def shrunk(xp: Any, used: Any, shape: tuple[int, ...]) -> Any:
    """Return which entries of an argument are used by any entry that it was broadcast to."""
    if used.shape == shape:
        return used
    extra = used.ndim - len(shape)
    stretched = (i + extra for i, n in enumerate(shape) if n == 1)
    return xp.reshape(xp.any(used, axis=(*range(extra), *stretched)), shape)
