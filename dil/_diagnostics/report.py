"""The report of a layer on one call of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dil._base.arrays import array_namespace
from dil._base.errors import OptionError
from dil._base.html import Cell, table
from dil._base.outcome import outcome, reasons
from dil._base.spread import in_words, legend
from dil._base.typing import Tree
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.plots import plot_report
from dil._diagnostics.record import NUMBERS, Entry, Record, said_of_choice
from dil._frameworks.arguments import split_arguments
from dil._frameworks.registry import leaves_of, owner
from dil._frameworks.transforms import vjp

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Report:
    """The forward and the backward solve of one call, each a `dil.Entry`. `print` shows a table."""

    forward: Entry
    backward: Entry

    @property
    def ok(self) -> bool:
        """Whether both solves converged for every problem, and every bound on the relative error is below one."""
        worthless = self.backward.bound >= 1  # False for NaN, the bound of forward mode
        return not (self.forward.status.any() or self.backward.status.any() or worthless.any())

    def __str__(self) -> str:
        return f"{self.forward}\n{self.backward}"

    def _repr_html_(self) -> str:
        solves = (self.forward, self.backward)
        known = [dict(entry.numbers()) for entry in solves]
        rows: list[tuple[Cell, ...]] = [("status", *(outcome(entry.status) for entry in solves))]
        for name in NUMBERS:
            if any(name in numbers for numbers in known):
                rows.append((name, *(in_words(numbers[name]) if name in numbers else "" for numbers in known)))
        notes = [f"{entry.stage} solve: {text}" for entry in solves for text in reasons(entry.status)]
        if (self.backward.bound >= 1).any():
            notes.append("bound: where it is 1 or more, nothing is known of the gradient.")
        notes = [*notes, *legend(rows), *said_of_choice(self.backward.choice)]
        return table(f"dil.Report of the {self.forward.layer}", ("", "forward", "backward"), rows, notes)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the relative errors that were found, one row each and one dot for each problem. It needs matplotlib.

        The rows are the residuals of both solves, the stationarity, the asymmetry, and the bound on the error of the
        gradient. Problems that failed are crosses. What is zero stands at the left edge.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        Axes

        Raises
        ------
        ImportError
            If matplotlib is missing.

        Examples
        --------
        >>> import numpy as np, dil
        >>> layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2), dil.solvers.Newton(), init=lambda t: 0.0 * t)
        >>> layer.report(np.ones(3)).plot().get_xscale()
        'log'
        """
        return plot_report(self.forward, self.backward, ax)


def report(
    layer: Callable[..., Tree],
    policy: Policy,
    args: tuple[Tree, ...],
    kwargs: Mapping[str, Tree],
    cotangent: Tree | None,
) -> Report:
    """Return the report of one call of the layer that has this policy; see `Layer.report`."""
    if not split_arguments(args, kwargs)[1].floats:
        message = f"{policy.layer}: no argument holds a float array, so there is no gradient to report on"
        raise OptionError(message)
    with Record() as record:
        y, pull = vjp(lambda args, kwargs: layer(*args, **kwargs), args, dict(kwargs))
        pull(_ones(y) if cotangent is None else cotangent)
    # a score may contain other layers, whose entries do not belong to this report
    ours = [entry for entry in record.entries if entry.policy is policy]
    forward, backward = ([entry for entry in ours if entry.stage == stage] for stage in ("forward", "backward"))
    if not forward:
        message = (
            f"{policy.layer}: its report holds numbers, which there are none of while a program is traced or "
            f"compiled (by jax.jit or jax.vmap, say); call layer.report outside, or use dil.record"
        )
        raise OptionError(message)
    return Report(forward[0], backward[0])


def _ones(y: Tree) -> Tree:
    leaves, structure = leaves_of(y)
    owners = [owner(x) for x in leaves]
    return structure.unflatten(
        [x if own is None else array_namespace(x).ones_like(x) for x, own in zip(leaves, owners, strict=True)]
    )
