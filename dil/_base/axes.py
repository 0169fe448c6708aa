"""The axes that a plot is drawn into. matplotlib is optional."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILED = "C3"
"""The colour of what failed."""
CONVERGED = "C0"


def axes(ax: Axes | None, *, width: float = 6.4, height: float = 3.6) -> Axes:
    """Return the axes given, or those of a new figure.

    Raises
    ------
    ImportError
        If matplotlib cannot be imported.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        message = f'plots are drawn by matplotlib, which cannot be imported ({error}); pip install "dil-layers[cli]"'
        raise ImportError(message, name="matplotlib") from error
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax
