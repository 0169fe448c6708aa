"""A rule: the formulas of one differentiable function.

A formula is the transposed derivative of one function in one argument. It reads `(xp, c, y, *args, **options)`: the
namespace to compute in, the cotangent c of y, the value y = f(*args), and what f was called with. It returns the
cotangent of its argument. `fit` then sums that over the axes that were broadcast and casts it to the argument's dtype,
so a formula need not. Values may be boxes of enclosing traces: a formula uses nothing but `xp`, operators and indexing,
and is differentiated again by being run on boxes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace

Value: TypeAlias = Any
"""A raw array, a box, or, among the arguments of a function, a Python scalar."""

Formula: TypeAlias = Callable[..., Value]
Axis: TypeAlias = int | tuple[int, ...] | None


@dataclass(frozen=True)
class Rule:
    """The formulas of one function, None where an argument has no derivative."""

    formulas: tuple[Any, ...]
    prepare: Formula | None = None
    """Replaces c by what all the formulas share, so that it is computed once."""
    each: Formula | None = None
    """One formula for any number of array arguments; after y it is told the position of its own."""
    options: frozenset[str] = field(init=False)
    """Keywords that the formulas understand; the tape refuses others (`out=`, `where=`) by name."""
    positional: float = field(init=False)
    """How many positional arguments they understand: NumPy's order is the standard's as far as that, not further."""

    def __post_init__(self) -> None:
        formula = self.each or next(f for f in self.formulas if f is not None)
        parameters = inspect.signature(formula).parameters
        by_place = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
        object.__setattr__(self, "options", frozenset(list(parameters)[3 + len(self.formulas) :]))
        object.__setattr__(self, "positional", math.inf if self.each else len(by_place) - 3)


def refuse(name: str) -> NoReturn:
    """Raise the error that refuses a function by name."""
    msg = (
        f"the tape has no derivative rule for `{name}`; write the score without it, or give the layer its products "
        "with derivatives=, or use the torch or JAX backend"
    )
    raise UnsupportedFunctionError(msg)


def fit(xp: Namespace, g: Value, x: Value) -> Value:
    """Give a cotangent the shape and dtype of its primal: sum over broadcast axes, undo promotion."""
    if g.shape != x.shape:
        extra = g.ndim - x.ndim
        stretched = (i + extra for i, n in enumerate(x.shape) if n == 1)
        g = xp.reshape(xp.sum(g, axis=(*range(extra), *stretched)), x.shape)
    return g if g.dtype == x.dtype else xp.astype(g, x.dtype)
