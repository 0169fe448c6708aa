"""The equation of a layer: the user's residual, or the user's step, whose fixed point is the solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from dil._base.typing import Tree
from dil._problem.score import check_condition


@dataclass(frozen=True)
class Equation:
    """The residual or step that a root or fixed-point layer passes to its solver. Its result is like the unknown."""

    fn: Callable[..., Any]
    batch_ndim: int
    kind: Literal["residual", "step"]
    """A residual is zero at the solution. A step maps the solution to itself."""

    def __post_init__(self) -> None:
        check_condition(self.kind, self.fn, self.batch_ndim)

    @property
    def name(self) -> str:
        """The name of the function in messages."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def fixed(self, fix: Callable[..., Any]) -> Equation:
        """Return the equation as it is now. `fix` is `Backend.fixed`."""
        return replace(self, fn=fix(self.fn))

    def once(self, once: Callable[..., Any]) -> Equation:
        """Return the equation for a program that holds it once. `once` is `Backend.once`."""
        fn = once(self.fn)
        return self if fn is self.fn else replace(self, fn=fn)

    def __call__(self, u: Tree, *args: Tree, **kwargs: Tree) -> Tree:
        return self.fn(u, *args, **kwargs)
