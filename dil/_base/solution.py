"""The result of a solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dil._base.history import plot_history
from dil._base.html import Cell, table
from dil._base.outcome import outcome, reasons
from dil._base.spread import in_words, legend
from dil._base.typing import Array, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 200
"""The most characters of a text that are shown."""


class Solution(NamedTuple):
    """The result of a linear or nonlinear solver, with a status for each problem.

    Attributes
    ----------
    value : tree
        The solution, with the structure of the unknown.
    status : int array, shape batch, or None
        Codes of `dil.Status`, one per problem; None if the solver reports no status.
    iterations : int array, shape batch, or None
        The number of steps of each problem.
    residual : float array, shape batch, or None
        The norm of the gradient or of the residual, relative to its norm at the start.
    extra : mapping or None
        Further results of the solver, by name.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def solver(score, init, t):
    ...     return dil.Solution(t, extra={"method": "closed form"})
    >>> dil.argmin(lambda u, t: np.sum((u - t) ** 2), solver)(np.asarray([1.0, 2.0]))
    array([1., 2.])
    """

    value: Tree
    status: Array | None = None
    iterations: Array | None = None
    residual: Array | None = None
    extra: Mapping[str, Any] | None = None

    def plot_history(self, ax: Axes | None = None) -> Axes:
        """Draw the residual after every step, with a logarithmic axis. It needs matplotlib.

        Up to 12 problems have a line each. Of more problems, the least, the median and the largest residual are shown,
        and the lines of up to 12 that did not converge.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        Axes

        Raises
        ------
        OptionError
            If the solver kept no history: `history=True` of an iterative solver asks for it.
        ShapeError
            If the first axis of the history is not that of the steps, as after a vmap.
        ImportError
            If matplotlib is missing.

        Examples
        --------
        >>> import numpy as np, dil
        >>> solver = dil.solvers.GradientDescent(history=True)
        >>> layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2 + u**4), solver, init=lambda t: 0.0 * t)
        >>> layer.solve(np.asarray([1.0, 2.0])).plot_history().get_ylabel()
        'residual'
        """
        return plot_history((self.extra or {}).get("history"), self.status, ax)

    def _repr_html_(self) -> str:
        rows: list[tuple[Cell, ...]] = [("value", text) for text in _shapes(self.value)]
        notes: list[str] = []
        if self.status is not None:
            rows.append(("status", outcome(self.status)))
            notes = reasons(self.status)
        for name, numbers in (("iterations", self.iterations), ("residual", self.residual)):
            if numbers is not None:
                rows.append((name, in_words(numbers)))
        for name, value in (self.extra or {}).items():
            rows += [(f"extra[{name!r}]", text) for text in _shapes(value)]
        return table("dil.Solution", (), rows, notes + legend(rows))


def _shapes(tree: Tree) -> Iterator[str]:
    """Describe the leaves of a tree: arrays by dtype and shape, all else by its text."""
    if isinstance(tree, tuple) and type(tree).__str__ is not tuple.__str__:
        yield str(tree)  # a record that says itself what it means
    elif isinstance(tree, Mapping):
        yield from (f"{key}: {text}" for key, part in tree.items() for text in _shapes(part))
    elif isinstance(tree, list | tuple):
        yield from (f"{i}: {text}" for i, part in enumerate(tree) for text in _shapes(part))
    elif hasattr(tree, "shape") and hasattr(tree, "dtype"):
        yield f"{tree.dtype} {tuple(tree.shape)}"
    else:
        text = " ".join(str(tree).split())
        yield text if len(text) <= LONGEST else text[:LONGEST] + "…"
