"""The equation of a layer: the user's residual, or the step whose fixed point is sought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dil._base.typing import Tree
from dil._problem.score import check_condition


@dataclass(frozen=True)
class Equation:
    """A function of the unknown that returns a tree like it: what a root or fixed-point layer hands to its solver."""

    fn: Callable[..., Any]
    batch_ndim: int
    kind: Literal["residual", "step"]
    """A residual vanishes at the solution; a step leaves the solution where it is."""

    def __post_init__(self) -> None:
        check_condition(self.kind, self.fn, self.batch_ndim)

    @property
    def name(self) -> str:
        """What to call the function in messages."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def __call__(self, u: Tree, *args: Tree, **kwargs: Tree) -> Tree:
        return self.fn(u, *args, **kwargs)
