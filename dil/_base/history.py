"""The history of a solver as a picture: the residual after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dil._base.arrays import array_namespace
from dil._base.axes import CONVERGED, FAILED, axes
from dil._base.errors import OptionError, ShapeError
from dil._base.status import Status
from dil._base.typing import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 12
"""The most problems that have a line each."""


def plot_history(history: Array | None, status: Array | None, ax: Axes | None) -> Axes:
    """Draw a history, (steps, *batch), of problems with these statuses, shape batch. See `Solution.plot_history`."""
    if history is None:
        message = (
            "this Solution holds no history; pass history=True to the solver, as in dil.solvers.Newton(history=True); "
            "linear solvers, SciPy's and most of your own keep none"
        )
        raise OptionError(message)
    if status is not None and tuple(history.shape[1:]) != tuple(status.shape):
        message = (
            f"the history has shape {tuple(history.shape)}; expected (steps, *{tuple(status.shape)}); a vmap puts its "
            f"problems first, so move the axis of the steps to the front"
        )
        raise ShapeError(message)
    xp, ax = array_namespace(history), axes(ax)
    rows = xp.reshape(history, (history.shape[0], -1))
    taken = xp.any(~xp.isnan(rows), axis=1)
    rows = rows[: int(xp.sum(xp.astype(taken, xp.int32))), :]  # each read of a number may cost a device a round trip
    count = rows.shape[1]
    failed = [False] * count
    if status is not None:
        flat = xp.reshape(status, (-1,))
        failed = [int(flat[i]) != int(Status.CONVERGED) for i in range(count)]
    words = {False: "converged" if status is not None else "residual", True: "not converged"}
    if count > LINES:
        _draw_band(ax, rows)
        words[True] += f" (up to {LINES} of {sum(failed)})"
    order = sorted(range(count), key=lambda i: failed[i])  # those that failed lie on top
    shown = order if count <= LINES else [i for i in order if failed[i]][:LINES]
    for i in shown:
        _draw_line(ax, rows[:, i], FAILED if failed[i] else CONVERGED, words[failed[i]])
    ax.set_yscale("log")
    ax.set(xlabel="step", ylabel="residual", title=f"{count} problems" if count > 1 else "")
    if count > 1:
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        ax.legend(handles.values(), handles.keys(), fontsize="small")
    return ax


def _draw_line(ax: Axes, row: Array, colour: str, label: str) -> None:
    values = _numbers(row)
    steps = [k + 1 for k, x in enumerate(values) if x == x]  # a NaN differs from itself
    ax.plot(steps, [values[k - 1] for k in steps], ".-", color=colour, alpha=0.8, label=label)


def _draw_band(ax: Axes, rows: Array) -> None:
    """Draw the least, the median and the largest residual of the problems that go on, step by step."""
    xp = array_namespace(rows)
    missing = xp.isnan(rows)
    count = xp.sum(xp.astype(~missing, xp.int32), axis=1)
    ordered = xp.sort(xp.where(missing, xp.inf, rows), axis=1)
    steps, spread = [], []
    for k in range(rows.shape[0]):
        if left := int(count[k]):
            steps.append(k + 1)
            spread.append([float(ordered[k, i]) for i in (0, left // 2, left - 1)])
    least, middle, most = zip(*spread, strict=True) if spread else ((), (), ())
    ax.fill_between(steps, least, most, color=CONVERGED, alpha=0.2, label="least to largest")
    ax.plot(steps, middle, color=CONVERGED, label="median of those that go on")


def _numbers(row: Array) -> list[float]:
    return [float(row[k]) for k in range(row.shape[0])]
