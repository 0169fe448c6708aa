"""How often the entries of an argument are used, for functions before one that leaves entries out: see `left_out.py`.

A function of this file takes counts n of the uses of the entries of the value y, which are not negative, and returns
the counts of one argument: `(xp, n, y, i, *args, **options)`. It counts no entry as unused that the function reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from array_api_compat import device as device_of

from dil._base.typing import Namespace
from dil_backends._tape.rules.reductions import REDUCTIONS, scan_sum
from dil_backends._tape.rules.rule import Axis, Formula, Rule, Value


def by_formulas(rule: Rule) -> Formula:
    """Return the counts of a function that moves, copies and adds entries: its formulas count."""

    def count(xp: Namespace, n: Value, y: Value, i: int, *args: Value, **options: Any) -> Value:
        if rule.each is not None:
            return rule.each(xp, n, y, i, *args, **options)
        return rule.formulas[i](xp, n, y, *args, **options)

    return count


def by_ones(rule: Rule) -> Formula:
    """Return the counts of a product of arrays: its formulas count, where all factors are one."""
    formula = by_formulas(rule)

    def count(xp: Namespace, n: Value, y: Value, i: int, *args: Value, **options: Any) -> Value:
        ones = [xp.ones(a.shape, dtype=n.dtype, device=device_of(n)) if hasattr(a, "dtype") else a for a in args]
        return formula(xp, n, y, i, *ones, **options)

    return count


def of_reduction(xp: Namespace, n: Value, y: Value, i: int, x: Value, *others: Value, axis: Axis = None,
                 keepdims: bool = False, **options: Any) -> Value:  # fmt: skip
    """Return the counts of a function that reads all entries along the axes."""
    return REDUCTIONS["sum"](xp, n, y, x, axis, keepdims=keepdims)


def of_scan(xp: Namespace, n: Value, y: Value, i: int, x: Value, axis: int | None = None, *, dtype: Any = None,
            include_initial: bool = False) -> Value:  # fmt: skip
    """Return the counts of a function that reads all entries up to each one."""
    return scan_sum(xp, n, y, x, axis, include_initial=include_initial)


MOVES = (
    *("reshape", "expand_dims", "squeeze", "permute_dims", "matrix_transpose", "moveaxis", "flip", "roll", "unstack"),
    *("tril", "triu", "broadcast_to", "astype", "indexed", "placed", "gather", "scatter", "sum", "sort"),
    *("join", "pile"),
)
PRODUCTS = ("matmul", "vecdot", "contract")
REDUCED = ("mean", "prod", "var", "std", "max", "min", "norm", "power_norm")
SCANS = ("cumulative_sum", "cumulative_prod")


def with_uses(rules: dict[str, Rule]) -> dict[str, Rule]:
    """Return the rules with the counts of their uses. A rule without them reads all entries."""
    found = dict(rules)
    groups: Sequence[tuple[Sequence[str], Any]] = (
        (MOVES, by_formulas),
        (PRODUCTS, by_ones),
        (REDUCED, lambda rule: of_reduction),
        (SCANS, lambda rule: of_scan),
    )
    for names, counting in groups:
        found |= {name: replace(rules[name], uses=counting(rules[name])) for name in names}
    found |= {name: replace(found[name], multiplies=True) for name in PRODUCTS}
    return found
