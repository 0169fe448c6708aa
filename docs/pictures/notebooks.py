"""The pictures of the page on notebooks: a report, a record and a history, as tables and as plots.

    python docs/pictures/notebooks.py --out docs/pages --browser /usr/bin/chromium

Without --browser, which needs playwright, only the plots are made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import dil


def valley(u, a):  # noqa: ANN001, ANN201
    """Return Rosenbrock's function of each row."""
    return np.sum(100.0 * (u[..., 1:] - u[..., :-1] ** 2) ** 2 + (a - u[..., :-1]) ** 2, axis=-1)


def bowl(u, x):  # noqa: ANN001, ANN201
    """Return a score that is not quadratic."""
    return np.sum((u - x) ** 2 + u**4)


def answers() -> tuple[dil.Solution, dil.Report, dil.Record]:
    """Return a solve of six problems, one of which ends early; its report; and solves with ever tighter tolerances."""
    solver = dil.solvers.LBFGS(max_iter=40, history=True)
    layer = dil.argmin(valley, solver, init=np.full((6, 2), -1.2), batch_ndim=1, on_failure="ignore")
    a = np.asarray([[0.5], [0.7], [25.0], [1.1], [1.3], [1.5]])
    with dil.record() as record:
        for k in range(1, 11):
            rough = dil.solvers.GradientDescent(rtol=10.0**-k)
            made = dil.argmin(bowl, rough, init=lambda x: 0.0 * x, on_failure="ignore")
            dil.vjp(made, np.asarray([1.0, 2.0]))[1](np.ones(2))
    return layer.solve(a), layer.report(a), record


def draw(solution: dil.Solution, report: dil.Report, record: dil.Record, out: Path) -> None:
    """Draw the three plots, one below the other."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(3, figsize=(7.5, 9), layout="constrained")
    solution.plot_history(ax=axes[0])
    report.plot(ax=axes[1])
    record.plot(ax=axes[2])
    for ax, call in zip(axes, ("solution.plot_history()", "report.plot()", "record.plot()"), strict=True):
        ax.set_title("")
        ax.set_title(call, family="monospace", loc="left")
    figure.savefig(out / "notebooks.png", dpi=100)


def photograph(things: list[object], browser: str, out: Path) -> None:
    """Photograph what a notebook shows, on a light and on a dark page."""
    from playwright.sync_api import sync_playwright

    tables = "<br>".join(thing._repr_html_() for thing in things)  # type: ignore[attr-defined]
    style = "padding:16px;font:13px sans-serif;width:650px"
    pages = "".join(
        f'<div style="{style};background:{back};color:{front}">{tables}</div>'
        for back, front in (("#fff", "#111"), ("#111", "#eee"))
    )
    with sync_playwright() as run:
        program = run.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = program.new_page(viewport={"width": 1380, "height": 100})
        page.set_content(f'<body style="margin:0"><div style="display:flex">{pages}</div></body>')
        page.screenshot(path=out / "notebooks_tables.png", full_page=True)
        program.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the pictures")
    parser.add_argument("--browser", help="a Chromium, for the picture of the tables")
    options = parser.parse_args()
    found = answers()
    options.out.mkdir(parents=True, exist_ok=True)
    draw(*found, options.out)
    if options.browser:
        photograph([*found[:2], dil.backends()], options.browser, options.out)
