"""A rule: the formulas of one differentiable function.

A formula is the pullback of one function for one argument. Its signature is `(xp, c, y, *args, **options)`: the
namespace to compute in, the cotangent c of y, the value y = f(*args), and the arguments of f. It returns the cotangent
of its argument. `fit` then sums that over the broadcast axes and casts it to the dtype of the argument, so a formula
does not. Values may be boxes of enclosing traces. A formula uses only `xp`, operators and indexing, so it is
differentiated again by running on boxes.

A complex array stands for its real and imaginary parts, and a cotangent is d/dRe + i d/dIm, as in torch. So a formula
is the adjoint in the inner product Re <c, y>. The adjoint of a holomorphic function is c -> conj(f'(z)) c, which is
conj(f'(z) conj(c)): a rule marked `holomorphic` is written for real arrays, and the tape conjugates before and after.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from dil._base.arrays import is_complex
from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import DType, Namespace

Value: TypeAlias = Any
"""A raw array, a box, or, among the arguments of a function, a Python scalar."""

Formula: TypeAlias = Callable[..., Value]
Axis: TypeAlias = int | tuple[int, ...] | None


@dataclass(frozen=True)
class Rule:
    """The formulas of one function. None stands for an argument without a derivative."""

    formulas: tuple[Any, ...]
    prepare: Formula | None = None
    """Replaces c by the part that all formulas share, so that the part is computed once."""
    each: Formula | None = None
    """One formula for any number of array arguments. It gets the position of its argument after y."""
    holomorphic: bool | None = False
    """Whether the formulas are c -> f'(z) c, without the conjugates that complex arrays need. None: for real arrays."""
    hides: bool = False
    """Whether entries may be left out of its value, so that a NaN there has no derivative: see `left_out.py`."""
    elementwise: bool = False
    """Whether an entry of its value is computed from one entry of each argument."""
    uses: Formula | None = None
    """How often the entries of an argument are used: see `uses.py`. None: every entry of the value reads all."""
    multiplies: bool = False
    """Whether its value is a sum of products of entries, so that an entry which is used nowhere may count as zero."""
    options: frozenset[str] = field(init=False)
    """Keywords that the formulas accept. The tape refuses others (`out=`, `where=`) by name."""
    positional: float = field(init=False)
    """The number of positional arguments that they accept. Up to here NumPy's order is that of the standard."""

    def __post_init__(self) -> None:
        formula = self.each or next(f for f in self.formulas if f is not None)
        parameters = inspect.signature(formula).parameters
        by_place = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
        object.__setattr__(self, "options", frozenset(list(parameters)[3 + len(self.formulas) :]))
        object.__setattr__(self, "positional", math.inf if self.each else len(by_place) - 3)


OTHERWISE = (
    "write the score without it, or give the layer its products with derivatives=, or use the torch or JAX backend"
)


MASKED = "write `np.where(mask, f(np.where(mask, x, 1.0)), 0.0)` for `f(x, out=np.zeros_like(x), where=mask)`"
"""What to write for the mask of a ufunc. The inner `where` keeps a NaN out of the derivative."""


def refuse(name: str, instead: str = OTHERWISE) -> NoReturn:
    """Raise an error that names the function, and what to write instead."""
    msg = f"the tape has no derivative rule for `{name}`; {instead}"
    raise UnsupportedFunctionError(msg)


def fit(xp: Namespace, g: Value, x: Value) -> Value:
    """Return a cotangent with the shape and dtype of its primal. Sum over broadcast axes and undo promotion.

    The cotangent of a real argument is the real part.
    """
    if g.shape != x.shape:
        extra = g.ndim - x.ndim
        stretched = (i + extra for i, n in enumerate(x.shape) if n == 1)
        g = xp.reshape(xp.sum(g, axis=(*range(extra), *stretched)), x.shape)
    return g if g.dtype == x.dtype else cast(xp, g, x.dtype)


def cast(xp: Namespace, g: Value, dtype: DType) -> Value:
    """Return g in another dtype. This is the transpose of the cast from there."""
    g = xp.real(g) if is_complex(xp, g.dtype) and not is_complex(xp, dtype) else g
    return g if g.dtype == dtype else xp.astype(g, dtype)
