"""Many calls of a layer at once, for a framework whose `vmap` cannot trace a solver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from dil._base.options import declares
from dil._base.typing import Arrays, Tree
from dil._diagnostics.record import recording
from dil._frameworks.mapped import mapped
from dil._frameworks.protocol import Vectorise
from dil._layers.call import Call, Run


@dataclass
class BatchedCall(Call):
    """Many calls as one, whose unknown has one batch dimension more. The arrays have the new axis where `axes` is."""

    row: Call | None = None
    """One of the calls. It learns the shape of its unknown from the solve of all."""
    axes: Sequence[bool] = ()
    size: int = 0
    vectorise: Vectorise | None = None

    def run(self, arrays: Arrays) -> Run:
        """Solve all problems, and tell the single calls the shape of their unknown."""
        found = super().run(arrays)
        space = self.space
        for row in self.rows():
            assert space is not None
            space = space.row()
            row.space, row.has_start = space, self.has_start
        return found

    def rows(self) -> Iterator[Call]:
        """Return one of the calls, and one of those that this one stands for, and so on."""
        call: Call | None = self.row
        while call is not None:
            yield call
            call = call.row if isinstance(call, BatchedCall) else None

    def initial(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], starts: Arrays) -> Tree:
        """Return the starts of all problems."""
        assert self.row is not None
        assert self.vectorise is not None
        many = mapped(self.row.initial, self.axes, self.size, self.vectorise)
        return many(args, kwargs, tuple(starts))


def batched_call(call: Call, axes: Sequence[bool], size: int, vectorise: Vectorise) -> BatchedCall | None:
    """Return `size` calls as one, or None if they have to be made one after the other.

    A user's own solver, and derivatives of a score that the user gives, need not know of a batch. Solvers that draw
    random numbers, or that read more of a score than its value, are not asked either. A record has one entry for each
    call.
    """
    given = call.condition.derivatives is not None
    known = declares(call.solver, "_takes_batch") and declares(call.linear_solver, "_takes_many")
    if given or recording() or not known:
        return None
    condition = call.condition_now()
    count = len(call.arguments.arrays)
    many = replace(
        condition, fn=mapped(condition.fn, axes[:count], size, vectorise), batch_ndim=condition.batch_ndim + 1
    )
    parts = {part.name: getattr(call, part.name) for part in fields(Call)}
    parts |= {"condition": many, "fixed": many, "space": None}
    return BatchedCall(**parts, row=call, axes=tuple(axes), size=size, vectorise=vectorise)
