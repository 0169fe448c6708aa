"""The whole answer of the solver of one call, as arrays without a derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dil._base.arrays import array_namespace, full
from dil._base.errors import ShapeError
from dil._base.solution import Solution
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.arguments import split_arguments
from dil._frameworks.protocol import Vectorise
from dil._frameworks.registry import leaves_of
from dil._layers.batched_call import BatchedCall, batched_call
from dil._layers.call import Call

STEPS_FIRST = ("history", "pairs")
"""The entries of `Solution.extra` whose arrays have an axis of steps before those of the batch."""


def answer_of(call: Call, *arrays: Array) -> Arrays:
    """Return the arrays of the solver's answer, whose value is a vector; `call.answer` rebuilds it."""
    y, solution, _ = call.run(tuple(call.backend.constant(x) for x in arrays))
    rows = list(call.rows()) if isinstance(call, BatchedCall) else []
    extra = solution.extra and _rows_first(solution.extra, len(rows))
    found, answer = split_arguments((solution._replace(value=y, extra=extra),), {})
    for one in (call, *rows):
        if one.answer is not None and not _same(one.answer, answer):
            message = (
                "the solver of a layer answers some problems of a vmap with other objects than others; return arrays "
                "in the dil.Solution, or call layer.solve in a loop"
            )
            raise ShapeError(message)
        one.answer = answer
    return tuple(found)


def rebuilt(call: Call, found: Sequence[Array]) -> Solution:
    """Return the answer of a call that has run, from its arrays."""
    assert call.answer is not None
    ((solution,), _) = call.answer.call([call.backend.constant(x) for x in found])
    return solution._replace(value=call.problem().space.unravel(solution.value))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AnswerRule:
    """The answer of a call, or of many calls at once. It has no derivative."""

    call: Call

    def solve(self, *arrays: Array) -> Arrays:
        """Return the arrays of the answer."""
        return answer_of(self.call, *arrays)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], AnswerRule] | None:
        """Return the solve and the rule of `size` calls at once, or None if they are made one after the other."""
        many = batched_call(self.call, axes, size, vectorise)
        if many is None:
            return None
        rule = AnswerRule(many)
        return rule.solve, rule

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return zero cotangents."""
        return [None for _ in wrt]

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return zero tangents."""
        return tuple(full(x, 0) for x in y)


def _rows_first(extra: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """Return the entries with the axes of `count` vmaps before all others."""
    return {name: _moved(x, count) if name in STEPS_FIRST else x for name, x in extra.items()}


def _moved(tree: Tree, count: int) -> Tree:
    leaves, structure = leaves_of(tree)
    return structure.unflatten([array_namespace(x).moveaxis(x, 0, count) for x in leaves])


def _same(a: Any, b: Any) -> bool:
    return a.structure == b.structure and a.arrays == b.arrays and bool(a.statics == b.statics)
