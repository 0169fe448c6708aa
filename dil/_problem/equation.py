"""The equation of a layer: the user's residual, or the user's step, whose fixed point is the solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from dil._base.errors import OptionError
from dil._base.typing import Tree
from dil._frameworks.fixed import with_variables_of_now
from dil._problem.called_on_host import called_on_host
from dil._problem.score import check_condition
from dil._problem.user_jacobian import Jacobian


@dataclass(frozen=True)
class Equation:
    """The residual or step that a root or fixed-point layer passes to its solver. Its result is like the unknown."""

    fn: Callable[..., Any]
    batch_ndim: int
    kind: Literal["residual", "step"]
    """A residual is zero at the solution. A step maps the solution to itself."""
    derivatives: Jacobian | None = None
    """Those of a function on the host, which no backend can trace."""

    def __post_init__(self) -> None:
        check_condition(self.kind, self.fn, self.batch_ndim)
        if self.derivatives is None:
            return
        if not isinstance(self.derivatives, Jacobian):
            message = f"derivatives={self.derivatives!r}; expected dil.Jacobian(matrix=..., mixed=...)"
            raise OptionError(message)
        if self.batch_ndim:
            message = (
                f"batch_ndim={self.batch_ndim} with derivatives=dil.Jacobian(...); expected batch_ndim=0: call the "
                f"layer for each problem, or make one unknown of all, whose J has a block for each"
            )
            raise OptionError(message)

    @property
    def name(self) -> str:
        """The name of the function in messages."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def fixed(self, fix: Callable[..., Any]) -> Equation:
        """Return the equation as it is now. `fix` is `Backend.fixed`."""
        if self.derivatives is not None:  # a backend cannot trace the function
            return replace(self, fn=with_variables_of_now(self.fn), derivatives=self.derivatives.fixed())
        return replace(self, fn=fix(self.fn))

    def once(self, once: Callable[..., Any]) -> Equation:
        """Return the equation for a program that holds it once. `once` is `Backend.once`."""
        fn = self.fn if self.derivatives is not None else once(self.fn)
        return self if fn is self.fn else replace(self, fn=fn)

    def __call__(self, u: Tree, *args: Tree, **kwargs: Tree) -> Tree:
        if self.derivatives is not None:
            return called_on_host(self.fn, u, args, kwargs)
        return self.fn(u, *args, **kwargs)
