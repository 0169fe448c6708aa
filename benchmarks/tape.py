"""The tape of NumPy beside autograd: logistic regression, its Hessian products, a chain, indexing, a small network.

    python benchmarks/tape.py --out docs/results

The two run in turn, on one core, and the ratio of processor times is taken for each round. Without the package autograd
only the times of the tape are measured.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from _common import ONE_THREAD, Fresh, described, in_turn, machine, markdown, one_core, relative, version, word
from _results import write_results

CHAIN = 300
"""The operations of the chain."""
LIMITS: dict[str, float | None] = {
    "logistic regression, value and gradient": 0.8,
    "logistic regression, Hessian product": 0.8,
    "chain of 300 operations": 0.5,
    "chain, a further pull": None,
    "50 indexings": None,
    "network of two layers": None,
}
"""Each case, and the ratio to autograd that is asked for."""


@dataclass(frozen=True)
class Row:
    """One case."""

    case: str
    microseconds: float
    value_microseconds: float
    """The function alone, without derivatives."""
    ratio: float | None
    """The median of rounds, to autograd; None without autograd."""
    quartiles: tuple[float, float] | None
    limit: float | None


# --- this runs in a worker -------------------------------------------------------------------------------------------


def measured(case: str, seconds: float) -> dict[str, Any]:
    """Time one case by both in turn, and the function alone."""
    one_core()
    import numpy as np

    make, args = functions(case)
    alone, ours = make(np), by_dil(case, make(np), args)
    calls = [ours, lambda: alone(*args)]
    if find_spec("autograd") is not None:
        import autograd.numpy as autograd_numpy

        theirs = by_autograd(case, make(autograd_numpy), args)
        for a, b in zip(leaves(ours()), leaves(theirs()), strict=True):
            assert relative(a, b) < 1e-12
        calls.append(theirs)
    rounds = in_turn(calls, seconds, 7)
    found: dict[str, Any] = {
        "microseconds": 1e6 * statistics.median(laps[0].cpu for laps in rounds),
        "value_microseconds": 1e6 * statistics.median(laps[1].cpu for laps in rounds),
        "ratio": None,
        "quartiles": None,
    }
    if len(calls) == 3:
        low, found["ratio"], high = statistics.quantiles([laps[0].cpu / laps[2].cpu for laps in rounds], n=4)
        found["quartiles"] = (low, high)
    return found


def leaves(found: Any) -> list[Any]:
    """Return the arrays of a result."""
    return [x for part in found for x in leaves(part)] if isinstance(found, tuple | list) else [found]


def by_dil(case: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """Return the derivative of a case as the pages of dil write it."""
    import numpy as np

    import dil

    if case.endswith("Hessian product"):
        gradient = dil.grad(fn)
        return lambda: dil.vjp(gradient, *args)[1](np.ones_like(args[0]))
    if case.endswith("a further pull"):
        pull = dil.vjp(fn, *args)[1]
        return lambda: pull(np.asarray(1.0))
    both = dil.value_and_grad(fn, tuple(range(len(args))))
    return lambda: both(*args)


def by_autograd(case: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """Return the same derivative by autograd."""
    import autograd
    import numpy as np

    if case.endswith("Hessian product"):
        product = autograd.hessian_vector_product(fn)
        return lambda: (product(*args, np.ones_like(args[0])),)
    if case.endswith("a further pull"):
        pull = autograd.make_vjp(fn)(*args)[0]
        return lambda: (pull(1.0),)
    both = autograd.value_and_grad(fn, tuple(range(len(args))))
    return lambda: both(*args)


def functions(case: str) -> tuple[Callable[[Any], Callable[..., Any]], tuple[Any, ...]]:
    """Return the function of a case, for a namespace, and its arguments."""
    import numpy as np

    rng = np.random.default_rng(0)
    if case.startswith("logistic"):
        X, label, w = rng.normal(size=(50, 10)), np.sign(rng.normal(size=50)), 0.1 * rng.normal(size=10)
        return (lambda np: lambda w: np.sum(np.logaddexp(0.0, -label * (X @ w))) + 0.5 * np.sum(w**2)), (w,)
    if case.startswith("chain"):
        return chain, (rng.normal(size=100),)
    if case.startswith("50"):
        return indexings, (rng.normal(size=50),)
    x = rng.normal(size=(32, 8))
    weights = tuple(rng.normal(size=shape) for shape in ((8, 16), (16,), (16, 4), (4,)))
    return (lambda np: lambda A, a, B, b: np.mean(np.tanh(np.tanh(x @ A + a) @ B + b) ** 2)), weights


def chain(np: Any) -> Callable[..., Any]:
    def fn(x: Any) -> Any:
        for _ in range(CHAIN // 3):
            x = np.sin(x) * 0.9 + 0.1
        return np.sum(x)

    return fn


def indexings(np: Any) -> Callable[..., Any]:
    def fn(x: Any) -> Any:
        total = 0.0
        for i in range(50):
            total = total + x[i] ** 2
        return total

    return fn


# --- the command -----------------------------------------------------------------------------------------------------

HEADS = ("case", "time, us", "function alone, us", "ratio to autograd", "at most", "reached")


def cells(rows: list[Row]) -> list[list[str]]:
    """Return the cells of the table."""
    return [
        [
            row.case,
            f"{row.microseconds:.0f}",
            f"{row.value_microseconds:.0f}",
            "-" if row.quartiles is None else f"{row.ratio:.2f} ({row.quartiles[0]:.2f} to {row.quartiles[1]:.2f})",
            "-" if row.limit is None else f"{row.limit:g}",
            word(None if row.limit is None or row.ratio is None else row.ratio <= row.limit),
        ]
        for row in rows
    ]


def cost(rows: list[Row]) -> str:
    """Say what one operation costs, from the chain."""
    found = {row.case: row for row in rows}
    whole, again = found.get("chain of 300 operations"), found.get("chain, a further pull")
    if whole is None or again is None:
        return ""
    each = [(row.microseconds - part) / CHAIN for row, part in ((whole, whole.value_microseconds), (again, 0.0))]
    return (
        f"An operation of the chain costs {each[0]:.1f} us more with its derivative than without. A further pull of "
        f"the same tape, which traces nothing, costs {each[1]:.1f} us an operation."
    )


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="Folder for tape.md and tape.json.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for each case.")] = 4.0,
    only: Annotated[str, typer.Option(help="Part of the names of the cases to measure.")] = "",
) -> None:
    """Measure the tape beside autograd."""
    os.environ.update(ONE_THREAD)
    beside = version("autograd") if find_spec("autograd") else "absent"
    beside = "unpacked, without a version" if find_spec("autograd") and beside == "absent" else beside
    reason = "" if find_spec("autograd") else " autograd is not installed, so its columns are empty."
    rows = []
    with Fresh(every_time=True) as fresh:
        for case, limit in LIMITS.items():
            if only in case:
                rows.append(Row(case, limit=limit, **fresh(measured, case, seconds)))
                Console().print(markdown(HEADS, cells(rows[-1:])))
    host, command = machine() | {"autograd": beside}, shlex.join(["python", *sys.argv])
    parts = [
        "# The tape beside autograd",
        f"Written by `{command}`. {described(host)}. One thread, one core, processor times.{reason}",
        "Float64, NumPy. Logistic regression: 50 rows, 10 unknowns; the Hessian product is `dil.vjp` of `dil.grad` and "
        "autograd's `hessian_vector_product`. The chain: sin, times, plus, on 100 numbers. 'a further pull': the same "
        "tape once more. The network: 32 x 8 to 16 to 4, the gradients of all weights. The ratio is the median over "
        "rounds, and its quartiles.",
        markdown(HEADS, cells(rows)),
        cost(rows),
    ]
    if out is not None:
        record = {"host": host, "command": command, "rows": [asdict(r) for r in rows]}
        write_results(out, "tape", [part for part in parts if part], record)


if __name__ == "__main__":
    app()
