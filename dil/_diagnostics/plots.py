"""Pictures of a report and of a record."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dil._base.axes import CONVERGED, FAILED, axes
from dil._base.errors import OptionError
from dil._base.outcome import QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ERRORS = (
    ("forward", "residual"),
    ("backward", "stationarity"),
    ("backward", "residual"),
    ("backward", "asymmetry"),
    ("backward", "bound"),
)
"""The rows of the picture of a report: relative errors."""
DEFAULTS = ("bound", "residual", "iterations")
"""The numbers that the picture of a record shows: the first that is there."""
LABELS = {"bound": "bound on the gradient's error", "lowest": "|lowest|", "highest": "|highest|"}
EDGE = 1e-18
"""Where zeros are drawn. The rounding of float64 is above."""
SPREAD = 0.25
"""The dots of a batch are spread over this part of a row, up and down."""


class Entry(Protocol):
    """One solve; see `dil.Entry`."""

    @property
    def layer(self) -> str: ...
    @property
    def status(self) -> Any: ...


def plot_report(forward: Entry, backward: Entry, ax: Axes | None) -> Axes:
    """Draw the relative errors of both solves; see `Report.plot`."""
    import numpy as np

    ax = axes(ax)
    failed = _failed(forward) | _failed(backward)
    entries = {"forward": forward, "backward": backward}
    rows = [(f"{stage} {name}", getattr(entries[stage], name)) for stage, name in reversed(ERRORS)]
    rows = [(label, values) for label, values in rows if values is not None]
    away = np.linspace(-SPREAD, SPREAD, failed.size) if failed.size > 1 else np.zeros(1)
    for i, (_, values) in enumerate(rows):
        sizes = np.maximum(np.ravel(values).astype(float), EDGE)  # a NaN stays one, and is not drawn
        ax.plot(sizes[~failed], (i + away)[~failed], "o", color=CONVERGED, alpha=0.6, markersize=5)
        ax.plot(sizes[failed], (i + away)[failed], "X", color=FAILED, markersize=7)
    ax.set_xscale("log")
    ax.set_xlim(EDGE / 2, max(10.0, 2 * ax.get_xlim()[1]))
    ax.axvline(1.0, color="0.5", linestyle=":")
    ax.set_yticks(range(len(rows)), [label for label, _ in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(axis="x", alpha=0.3)
    share = f": {int(failed.sum())} of {failed.size} problems failed" if failed.size > 1 else ""
    ax.set(xlabel="relative size", title=f"{forward.layer}{share}")
    return ax


def plot_record(
    groups: Collection[tuple[tuple[str, str], Sequence[Entry]]],
    known: Sequence[str],
    number: str | None,
    ax: Axes | None,
) -> Axes:
    """Draw one number of every solve; see `Record.plot`."""
    name = _chosen([entry for _, entries in groups for entry in entries], known, number)
    ax = axes(ax)
    for i, ((layer, stage), entries) in enumerate(groups):
        sizes = [_largest(getattr(entry, name)) for entry in entries]
        if any(size == size for size in sizes):  # not all are NaN
            solves = range(1, len(entries) + 1)
            ax.plot(solves, sizes, ".-", color=f"C{i}", alpha=0.8, label=f"{layer}, {stage}")
            failed = [k for k, entry in enumerate(entries) if _failed(entry).any()]
            ax.plot([solves[k] for k in failed], [sizes[k] for k in failed], "X", color=f"C{i}", markersize=9)
    ax.set_yscale("linear" if name == "iterations" else "log")
    ax.set(xlabel="solve", ylabel=LABELS.get(name, name))
    ax.locator_params(axis="x", integer=True)
    ax.legend(fontsize="small")
    return ax


def _chosen(entries: Sequence[Entry], known: Sequence[str], number: str | None) -> str:
    """Return the number that is asked for, or the first of three that was recorded."""
    found = [name for name in known if any(getattr(entry, name) is not None for entry in entries)]
    wanted = DEFAULTS if number is None else (number,)
    name = next((name for name in wanted if name in found), None)
    if name is None:
        has = f"it holds {', '.join(found)}" if found else "it holds no numbers: no layer ran while it was open"
        message = f"the record has no {' or '.join(wanted)}; {has}"
        raise OptionError(message)
    return name


def _largest(values: Any) -> float:
    """Return the largest magnitude, or NaN if there is no number."""
    import numpy as np

    known = np.abs(np.ravel(float("nan") if values is None else values).astype(float))
    return float(np.max(known[~np.isnan(known)], initial=-1.0)) if not np.isnan(known).all() else float("nan")


def _failed(entry: Entry) -> Any:
    import numpy as np

    return ~np.isin(np.ravel(entry.status), [int(code) for code in QUIET])
