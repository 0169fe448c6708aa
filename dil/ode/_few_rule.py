"""The derivative of steps of which few states are kept: blocks of steps are taken again, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.typing import Array, Arrays
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Backend
from dil.ode._few_steps import FewSteps, FewSweep


class Block(NamedTuple):
    """The steps from one state that was kept to the next."""

    start: Arrays
    """What the first of them begins from. It has a derivative."""
    ends: list[Array]
    """The times at their ends."""
    slots: list[int]
    """The places of those with output times, among all of these."""
    numbers: list[int]
    """The places of the same among the steps of the block."""


@dataclass(frozen=True)
class FewRule:
    """The derivative of the steps as functions of (y0, t, *arrays), block by block."""

    backend: Backend
    begin: Callable[[Array, Array, Arrays], Arrays]
    """`begin(y0, t0, arrays)` returns what the first step begins from."""
    sweep: Callable[[Arrays], FewSweep]
    """`sweep(arrays)` takes the steps again."""
    count: int
    """The number of arrays. More arguments may follow, which have no derivative."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> list[Array | None]:
        """Return the cotangents of the arguments. The memory is that of one block at a time."""
        found, given = FewSteps.of(y), FewSteps.of(cotangents)
        blocks, own = self._blocks(found), [i for i in wrt if 1 < i < self.count + 2]
        arrays = tuple(args[i] for i in own)
        totals: list[Array | None] = [None for _ in own]
        parts: list[Array | None] = [None for _ in found.rest[1:]]
        for place, block in reversed(list(enumerate(blocks))):
            if place + 1 < found.rest[1].shape[0]:
                parts = [_sum(a, _row(b, place + 1)) for a, b in zip(parts, given.rest[1:], strict=True)]
            values, pull = self.backend.vjp(self._function(block, args, own), *block.start, *arrays)
            rows = [_row(x, i) for i in block.slots for x in (given.segments, given.bounds)]
            parts_and_arrays = pull(_with_zeros((*parts, *rows), values))
            parts = list(parts_and_arrays[: len(parts)])
            totals = [_sum(a, b) for a, b in zip(totals, parts_and_arrays[len(parts) :], strict=True)]
        parts = [_sum(a, _row(b, 0)) for a, b in zip(parts, given.rest[1:], strict=True)]
        values, pull = self.backend.vjp(self._first(args, own), args[0], args[1], *arrays)
        of_y, of_t, *rest = pull(_with_zeros(parts, values))
        cts = {0: of_y, 1: of_t, **{i: _sum(a, b) for i, a, b in zip(own, totals, rest, strict=True)}}
        return [cts.get(i) for i in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangents of the segments, of their bounds, and of what was kept; those of the mesh are zero."""
        found, zeros = FewSteps.of(y), tuple(full(x, 0.0) for x in y)
        own = [i for i, tangent in enumerate(tangents) if tangent is not None and 1 < i < self.count + 2]
        arrays, moved = [args[i] for i in own], [tangents[i] for i in own]
        of_start = [full(x, 0.0) if v is None else v for x, v in zip(args[:2], tangents[:2], strict=True)]
        _, parts = jvp_from_vjp(self.backend, self._first(args, own), [*args[:2], *arrays], [*of_start, *moved])
        starts, rows, size = [parts], list[Array](), len(parts)
        for block in self._blocks(found):
            fn = self._function(block, args, own)
            _, result = jvp_from_vjp(self.backend, fn, [*block.start, *arrays], [*parts, *moved])
            parts = result[:size]
            starts.append(parts)
            rows += result[size:]
        none = FewSteps.of(zeros)
        size = none.rest[1].shape[0]
        kept = (array_namespace(*x).stack(list(x)[:size]) for x in zip(*starts, strict=True))
        if not rows:
            return none._replace(rest=(none.rest[0], *kept)).flat
        segments, bounds = (array_namespace(*x).stack(list(x)) for x in (rows[::2], rows[1::2]))
        return none._replace(segments=segments, bounds=bounds, rest=(none.rest[0], *kept)).flat

    def _first(self, args: Arrays, own: Sequence[int]) -> Callable[..., Arrays]:
        return lambda y0, t, *chosen: self.begin(y0, t[0], self._arrays(args, own, chosen))

    def _function(self, block: Block, args: Arrays, own: Sequence[int]) -> Callable[..., Arrays]:
        """Return the function of the start of a block and of arrays: what follows it, and steps with output times."""
        size = len(block.start)

        def fn(*given: Array) -> Arrays:
            parts, sweep = given[:size], self.sweep(self._arrays(args, own, given[size:]))
            rows = list[Array]()
            for i, end in enumerate(block.ends):
                moved = sweep.step(parts, end)
                parts = moved.parts
                if i in block.numbers:
                    rows += [moved.segment, moved.bounds]
            return (*parts, *rows)

        return fn

    def _arrays(self, args: Arrays, own: Sequence[int], chosen: Sequence[Array]) -> Arrays:
        given = dict(zip(own, chosen, strict=True))
        return tuple(given.get(i, args[i]) for i in range(2, self.count + 2))

    def _blocks(self, found: FewSteps) -> list[Block]:
        """Return the blocks, none of them empty."""
        plain, host = self.backend.constant, self.backend.to_numpy
        ends, spacing, starts = plain(found.ends), int(plain(found.rest[0])), found.rest[1:]
        times = [float(plain(starts[-1])[0]), *host(ends).tolist()]
        place = {t: i for i, t in enumerate(times[:-1])}
        steps = [place[t] for t in host(plain(found.bounds)[:, 0]).tolist()] if place else []

        def of(i: int) -> Block:
            inside = range(i * spacing, min((i + 1) * spacing, len(times) - 1))
            slots = [slot for slot, step in enumerate(steps) if step in inside]
            return Block(
                tuple(x[i, ...] for x in starts),
                [ends[j] for j in inside],
                slots,
                [steps[slot] - inside.start for slot in slots],
            )

        return [block for block in map(of, range(starts[0].shape[0])) if block.ends]


def _with_zeros(cotangents: Sequence[Array | None], values: Arrays) -> Arrays:
    return tuple(full(x, 0.0) if ct is None else ct for ct, x in zip(cotangents, values, strict=True))


def _row(x: Array | None, i: int) -> Array | None:
    return None if x is None else x[i, ...]


def _sum(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
