"""The backward passes of one node of a graph. From the second one on they may share the inverse of a matrix."""

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


class Stage(Enum):
    """What is known of the passes of a node."""

    UNUSED = "no pass has run"
    USED = "a pass has run, and its cotangent is kept"
    SHARED = "an inverse is kept"
    ALONE = "each pass solves by itself"


@dataclass
class Passes:
    """The passes of a node so far. A graph that is walked once keeps only the first cotangent.

    The first cotangent never takes the way of the inverse: it gets the same digits each time, as
    `torch.autograd.gradcheck` wants. Nor does a pass after a captured tensor has changed in place: like a first pass it
    looks at the function as it is now, and says so where y is no solution of it.
    """

    stage: Stage = Stage.UNUSED
    first: Tensor | None = None
    """The cotangent of the first pass."""
    pull: RepeatedPull | None = None
    """The pullback by the inverse."""
    reads: Reads | None = None
    """The tensors that the inverse was made of."""

    def shared_pull(self, rule: Rule, args: Any, y: Any, v: Tensor) -> RepeatedPull | None:
        """Return the pullback by the inverse for a pass with the cotangent v, or None if it solves by itself."""
        if self.reads is not None and self.reads.changed():
            self.stage, self.pull, self.reads = Stage.USED, None, None
            return None
        if self.stage is Stage.UNUSED:
            self._begin(v)
        elif self.first is not None and not torch.equal(self.first, v):
            if self.stage is Stage.USED:
                self._make(rule, args, y)
            return self.pull
        return None

    def _begin(self, v: Tensor) -> None:
        small = v.numel() <= MOST_REPEATED
        self.stage, self.first = (Stage.USED, v.clone()) if small else (Stage.ALONE, None)

    def _make(self, rule: Rule, args: Any, y: Any) -> None:
        self.stage = Stage.ALONE
        if isinstance(rule, RepeatedRule):
            reads = Reads()
            with reads.noting():
                self.pull = rule.repeated(args, y)
            if self.pull is not None:
                self.stage, self.reads = Stage.SHARED, reads
