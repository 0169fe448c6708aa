"""What a dense solve costs, counted in steps of an iterative solver."""

from __future__ import annotations

from dil._base.arrays import size
from dil._base.operator import Operator, Work
from dil._base.typing import Array
from dil._frameworks.protocol import Backend

READ, FLOP = 1 / 2, 1 / 40
"""Nanoseconds to read a number in a product, and for a floating-point operation of a factorisation.

A number that a product makes counts one nanosecond. These are estimates; only their ratios matter.
"""
MATRIX_NUMBERS = 16
"""The arrays like the dense matrix that a dense solve makes."""
STEP_NUMBERS = 8
"""The vectors that a step of CG makes besides its product."""
FEWEST_TRIED = 32
"""Where a dense solve costs fewer steps than this, it comes first: few systems are solved by a quarter of them."""
NUMBERS_AT_ONCE = 2**23
"""The most intermediate numbers that products may make at once: 64 MiB in float64."""
FEW_ROWS = 16
"""Up to this number of rows run at once without a look at their work."""


def work_of(A: Operator, one: Array) -> Work:
    """Return the work of a product with vectors like `one`, (*batch, n)."""
    made, read = (0, 0) if A.work is None else A.work()
    return Work(made + size(one.shape), read)


def krylov_budget(A: Operator, b: Array, backend: Backend) -> int:
    """Return how many steps of CG, or of BiCGSTAB if A is not symmetric, cost as much as a dense solve.

    It is zero if a dense solve is so cheap that no step should be tried first. Only sizes decide, so the answer is the
    same on each run, and a program that is traced once can ask.
    """
    n = b.shape[-1]
    if n <= FEWEST_TRIED:
        return 0
    one, cost = b if A.one is None else b[0, ...], backend.dense.overheads
    problems = size(one.shape) // n
    made, read = work_of(A, one)
    step = step_cost(A, b, backend)
    rows = n * (cost.row + made + cost.read_by_row * read)
    flops = problems * n**3 * (1 / 3 if A.symmetric else 2 / 3)
    steps = (cost.dense + rows + MATRIX_NUMBERS * problems * n**2 + FLOP * flops) / step
    return 0 if steps < FEWEST_TRIED else int(steps)


def step_cost(A: Operator, b: Array, backend: Backend, number: float = 1.0) -> float:
    """Return the nanoseconds of a step of CG, or of BiCGSTAB if A is not symmetric; `number`: those of a number."""
    one, cost = b if A.one is None else b[0, ...], backend.dense.overheads
    made, read = work_of(A, one)
    systems = size(b.shape) // max(size(one.shape), 1)
    product = number * systems * (made + READ * read + STEP_NUMBERS * size(one.shape))
    return cost.symmetric_step + product if A.symmetric else cost.general_step + 2 * product


def rows_at_once(A: Operator, one: Array, backend: Backend) -> int | None:
    """Return how many products with A may run at once, so that their memory is bounded; None: all n of them."""
    n = one.shape[-1]
    if n <= FEW_ROWS:
        return None
    made, read = work_of(A, one)
    if size(one.shape) > n and made + read > backend.dense.overheads.alone:
        return 1
    fit = NUMBERS_AT_ONCE // max(made, 1)
    return None if fit >= n else max(fit, 1)
