"""The picture of the page on spectra: the Ritz values of three layers, and the products of each linear solver.

python docs/figures/spectra.py --out docs/pages
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import dil

mpl.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).parent.parent / "pages" / "spectra.md"


def of_page() -> dict[str, Any]:
    """Return the layers and the counts of the page, by its own code."""
    names: dict[str, Any] = {"print": lambda *_: None, "__name__": PAGE.stem}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(code, names)
    return names


def draw(out: Path) -> list[Path]:
    """Draw the picture into a folder, and return its path."""
    page = of_page()
    counts = page["counts"]
    figure, axes = plt.subplots(2, len(counts), figsize=(10, 5.2), dpi=100, layout="constrained")
    for above, below, (kind, products) in zip(*axes, counts.items(), strict=True):
        dil.linear.spectrum(page["layer_of"](page[kind]), page["t"], steps=60).plot(above)
        above.set(title=kind, xlim=(0.5, 2e6), ylim=(1e-6, 1))
        place = np.arange(len(products))
        bars = below.barh(place, list(products.values()), color=["#9fa8da"] * (len(products) - 1) + ["#3f51b5"])
        below.bar_label(bars, padding=3, fontsize=8)
        below.set_yticks(place, list(products) if below is axes[1, 0] else [""] * len(products))
        below.set(xscale="log", xlim=(10, 1e5), xlabel="products")
        below.invert_yaxis()
    figure.savefig(path := out / "spectra.png")
    plt.close(figure)
    return [path]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/pages"))
    draw(parser.parse_args().out)
