"""The backward passes of one node of a graph. They may share the inverse of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from dil._frameworks.protocol import RepeatedPull, RepeatedRule, Rule
from dil_backends.torch.reads import Reads

Tensor = torch.Tensor

MOST_REPEATED = 2**14
"""The most numbers of a solution whose cotangents share work."""
FEWEST_AT_ONCE = 32
"""The fewest numbers of a solution whose inverse is made in the first pass. With fewer, one pass alone costs less."""


class Stage(Enum):
    """What is known of the passes of a node."""

    UNUSED = "no pass has run"
    USED = "a pass has run, and its cotangent is kept"
    SHARED = "an inverse is kept"
    ALONE = "each pass solves by itself"


@dataclass
class Passes:
    """The passes of a node so far. A graph that is walked once keeps only the first cotangent.

    The inverse is made in the second pass, or in the first one if that retains the graph, since then there will be
    others, and the solution is no small one. A pass to arguments whose derivatives were never looked at solves by
    itself, and looks. A cotangent that was solved by itself never takes the way of the inverse: it gets the same digits
    each time, as `torch.autograd.gradcheck` wants. Nor does a pass after a captured tensor has changed in place: like a
    first pass it looks at the function as it is now, and says so where y is no solution of it.
    """

    stage: Stage = Stage.UNUSED
    first: Tensor | None = None
    """The cotangent of the first pass, if that solved by itself."""
    pull: RepeatedPull | None = None
    """The pullback by the inverse."""
    reads: Reads | None = None
    """The tensors that the inverse was made of."""

    def shared_pull(self, rule: Rule, args: Any, y: Any, v: Tensor, wrt: list[int]) -> RepeatedPull | None:
        """Return the pullback by the inverse for a pass with the cotangent v, or None if it solves by itself."""
        if self._end_if_changed():
            return None
        if self.stage is Stage.UNUSED:
            self._begin(rule, args, y, v, wrt)
            return self.pull
        if self.stage is Stage.ALONE or self._was_first(v) or not _has_looked(rule, args, y, wrt):
            return None
        if self.stage is Stage.USED:
            self._make(rule, args, y)
        return self.pull

    def shares(self, v: Tensor) -> bool:
        """Return whether a pass with the cotangent v takes the pullback by the inverse, which is at hand."""
        return self.pull is not None and not self._end_if_changed() and not self._was_first(v)

    def _end_if_changed(self) -> bool:
        """Give up the inverse if a tensor that it was made of has changed, and return whether one has."""
        changed = self.reads is not None and self.reads.changed()
        if changed:
            self.stage, self.pull, self.reads = Stage.USED, None, None
        return changed

    def _begin(self, rule: Rule, args: Any, y: Any, v: Tensor, wrt: list[int]) -> None:
        if v.numel() > MOST_REPEATED:
            self.stage = Stage.ALONE
        elif v.numel() >= FEWEST_AT_ONCE and _is_retained() and _has_looked(rule, args, y, wrt):
            self._make(rule, args, y)
        else:
            self.stage, self.first = Stage.USED, v.clone()

    def _was_first(self, v: Tensor) -> bool:
        return self.first is not None and torch.equal(self.first, v)

    def end_with_graph(self) -> None:
        """Free what is kept if this is the last pass, since the graph is freed."""
        if self.stage is not Stage.UNUSED and not _is_retained():
            self.stage, self.first, self.pull, self.reads = Stage.UNUSED, None, None, None

    def _make(self, rule: Rule, args: Any, y: Any) -> None:
        self.stage = Stage.ALONE
        if isinstance(rule, RepeatedRule):
            reads = Reads()
            with reads.noting():
                self.pull = rule.repeated(args, y)
            if self.pull is not None:
                self.stage, self.reads = Stage.SHARED, reads


def _has_looked(rule: Rule, args: Any, y: Any, wrt: list[int]) -> bool:
    """Return whether a pass to these arguments has nothing to look at but its system."""
    return isinstance(rule, RepeatedRule) and rule.has_looked(args, y, wrt)


def _is_retained() -> bool:
    """Return whether the pass that runs keeps the graph."""
    return torch._C._autograd._get_current_graph_task_keep_graph()
