"""The picture of Table 1: forecasts of the test part beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _paper import INK
from _series import DT, Series

LINES = ("-", (0, (5, 3)), (0, (1, 2)), (0, (3, 1, 1, 1)), "-")


def draw(path: Path, all_series: Sequence[Series], runs: Sequence[Mapping[str, Any]], rows: Mapping[str, str]) -> None:
    """Draw the forecasts of the first test sequence by the runs of seed 0, one row of panels for each data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 2.4 * len(all_series)), layout="constrained")
    panels = figure.subplots(len(all_series), 3, squeeze=False)
    for i, series in enumerate(all_series):
        truth, coordinates = series.test[0, series.context :], series.shown()
        times = [DT * k for k in range(len(truth))]
        found = {run["row"]: run["forecast"] for run in runs if run["data"] == series.name and "forecast" in run}
        for j, axes in enumerate(panels[i]):
            if j >= len(coordinates):
                axes.axis("off")
                continue
            axes.plot(times, truth[:, coordinates[j]], color="#111111", linewidth=2.6, label="truth")
            for (row, title), ink, line in zip(rows.items(), INK, LINES, strict=False):
                if row in found:
                    values = [x[j] for x in found[row]]
                    axes.plot(times, values, color=ink, linestyle=line, linewidth=1.3, label=title)
            low, high = truth[:, coordinates[j]].min(), truth[:, coordinates[j]].max()
            axes.set_ylim(low - 0.5 * (high - low), high + 0.5 * (high - low))  # a forecast that diverges leaves
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set_title(f"{series.title}, coordinate {coordinates[j] + 1}", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("time from the first forecast")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})
