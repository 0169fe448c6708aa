"""An observer of every forward and backward solve of a training run."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar

from dil._base.errors import DilError
from dil._base.html import Cell, table
from dil._base.outcome import counts, outcome, reasons
from dil._base.spread import in_words, legend
from dil._base.status import name_of, sentence_of
from dil._base.typing import Array
from dil._diagnostics.failure_policy import Policy
from dil._diagnostics.plots import plot_record
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import loaded
from dil.linear._choice_in_words import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Stage = Literal["forward", "backward"]
P = ParamSpec("P")
R = TypeVar("R")

OPEN: ContextVar[tuple[Record, ...]] = ContextVar("dil_records", default=())
"""The records that were opened in this thread or task. One of them may be closed by now, in another one."""
ALL_OPEN: list[Record] = []
"""The open records of all threads."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One solve, forward or backward. Numbers are NumPy arrays of shape batch, or None if they do not apply.

    Attributes
    ----------
    layer : str
        The name of the layer.
    stage : {"forward", "backward"}
        The kind of solve.
    status, iterations, residual
        Of the solver in a forward entry, of the linear solver in a backward entry. With `refine=`, the forward status
        is the status after the Newton steps.
    stationarity : float array
        Each entry of the Newton step at the solution y is divided by the size of the same entry of y. This is the
        largest of these ratios.
    lowest, highest : float arrays
        The extreme eigenvalues of the Hessian, estimated by Lanczos' method from the cotangent. For a root or a fixed
        point, the extreme singular values of dF/du.
    condition : float array
        The ratio of the magnitudes of `highest` and `lowest`, an estimate of the condition number from below.
    asymmetry : float array
        |<p, A q> - <q, A p>| for the matrix A of the linear system and two random vectors p and q, divided by the sizes
        of the terms. For a symmetric matrix it is of the order of rounding.
    bound : float array
        A bound of the relative error of the gradient for the cotangent given: see `Layer.report`. It is NaN in forward
        mode.
    differences : float array
        The relative error of the derivatives by finite differences that `dil.Jacobian(finite_differences=True)` takes,
        as one random direction shows it.
    choice : str or None
        What `dil.linear.Auto` did in a backward solve and why, in a sentence. None for other solvers.
    """

    layer: str
    stage: Stage
    status: Any
    iterations: Any = None
    residual: Any = None
    stationarity: Any = None
    lowest: Any = None
    highest: Any = None
    condition: Any = None
    asymmetry: Any = None
    bound: Any = None
    differences: Any = None
    policy: Policy | None = field(default=None, repr=False)
    """The policy object of the layer. It tells which layer the entry belongs to."""
    _choice: Any = field(default=None, repr=False)
    """The numbers of the choice, (*batch, fields)."""

    @property
    def choice(self) -> str | None:
        return None if self._choice is None else sentence(self._choice)

    def numbers(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and values of every number that is not None."""
        for name in NUMBERS:
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def __str__(self) -> str:
        lines = [f"{self.stage} solve of the {self.layer}"]
        codes = self.status.reshape(-1).tolist()
        for code in sorted(set(codes)):
            share = "" if len(codes) == 1 else f" ({codes.count(code)} of {len(codes)} problems)"
            lines.append(f"  {'status':<12} {name_of(code)}: {sentence_of(code)}{share}")
        lines += [f"  {name:<12} {_range(values)}" for name, values in self.numbers()]
        lines += [] if self.choice is None else [f"  {'choice':<12} {self.choice}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows: list[tuple[Cell, ...]] = [
            ("status", outcome(self.status)),
            *((name, in_words(x)) for name, x in self.numbers()),
        ]
        notes = reasons(self.status) + legend(rows) + said_of_choice(self.choice)
        return table(f"{self.stage} solve of the {self.layer}", (), rows, notes)


NUMBERS = (
    "iterations",
    "residual",
    "stationarity",
    "lowest",
    "highest",
    "condition",
    "asymmetry",
    "bound",
    "differences",
)


class Record:
    """The entries of the solves that ran while it was recording; made by `dil.record`.

    Attributes
    ----------
    entries : list of Entry
        The solves in the order in which they ran.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._stack = ExitStack()

    @property
    def forward(self) -> list[Entry]:
        """The forward solves."""
        return [entry for entry in self.entries if entry.stage == "forward"]

    @property
    def backward(self) -> list[Entry]:
        """The backward solves."""
        return [entry for entry in self.entries if entry.stage == "backward"]

    def __enter__(self) -> Record:
        """Begin to record.

        Raises
        ------
        DilError
            If this record is open already, so that every solve would be recorded twice.
        """
        if self in ALL_OPEN:
            message = "this record is recording already; open another one with dil.record()"
            raise DilError(message)
        for backend in loaded():
            self._stack.enter_context(backend.reports.recording())
        ALL_OPEN.append(self)
        OPEN.set((*open_records(), self))
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._stack.close()  # waits for the reports and errors of programs that still run
        finally:
            ALL_OPEN.remove(self)
            OPEN.set(open_records())

    def __str__(self) -> str:
        """Summarise each layer's solves: how many, how they ended, and the range of every number."""
        return "\n".join(_summary(*key, entries) for key, entries in self._groups()) or "no solve was recorded"

    def _repr_html_(self) -> str:
        names = [name for name in NUMBERS if any(getattr(entry, name) is not None for entry in self.entries)]
        rows: list[tuple[Cell, ...]] = [
            (layer, stage, str(len(entries)), outcome(_statuses(entries)), *(_numbers(name, entries) for name in names))
            for (layer, stage), entries in self._groups()
        ]
        header = ("layer", "stage", "solves", "problems", *names) if rows else ()
        notes = reasons(_statuses(self.entries)) if rows else ["no solve was recorded"]
        notes = [*notes, *legend(rows)]
        for (layer, stage), entries in self._groups():
            notes += said_of_choice(_choice_of(entries), f"{layer}, {stage}: ")
        return table("dil.Record", header, rows, notes)

    def _groups(self) -> ItemsView[tuple[str, str], list[Entry]]:
        """Return the entries by layer and stage."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault((entry.layer, entry.stage), []).append(entry)
        return groups.items()

    def plot(self, number: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw one number of every solve, in the order of the solves. It needs matplotlib.

        Each layer and stage is a line; of a batch, the largest number counts. A cross is a solve that did not converge.

        Parameters
        ----------
        number : str, optional
            "iterations", "residual", "stationarity", "lowest", "highest", "condition", "asymmetry", "bound" or
            "differences". By default the first of "bound", "residual" and "iterations" that was recorded.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        Axes

        Raises
        ------
        OptionError
            If the number is unknown, or no solve recorded it.
        ImportError
            If matplotlib is missing.

        Examples
        --------
        >>> import numpy as np, dil
        >>> layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2), dil.solvers.Newton(), init=lambda t: 0.0 * t)
        >>> with dil.record() as rec:
        ...     _ = dil.vjp(layer, np.ones(3))[1](np.ones(3))
        >>> rec.plot("iterations").get_xlabel()
        'solve'
        """
        return plot_record(self._groups(), NUMBERS, number, ax)


def record() -> Record:
    """Return a context manager that records every forward and backward solve in it, under a compiler too.

    Recording adds a few solves to each backward pass, for the error bound.

    Returns
    -------
    Record
        Its `entries` fill as solves end. `print` shows a summary.

    Notes
    -----
    When a jitted function is first called inside a record, JAX traces it again, so that it reports its solves.
    Outside the record, the function runs as before. Each problem of `jax.vmap` or `torch.func.vmap` is an entry.

    A forward solve reports to the records that are open in its thread or asyncio task. Its backward solves report to
    them too as long as they are open, in whatever thread the framework runs them, and to those that are open where
    they run. A new thread knows no record of the thread that starts it (`asyncio.to_thread` and
    `contextvars.copy_context().run` hand them on), so open one in each. A program that JAX has compiled reports from
    threads of its own, to all open records.

    Examples
    --------
    >>> import numpy as np, dil
    >>> layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2), dil.solvers.Newton(), init=lambda t: 0.0 * t)
    >>> with dil.record() as rec:
    ...     _ = dil.vjp(layer, np.ones(3))[1](np.ones(3))
    >>> [(entry.stage, dil.Status(int(entry.status)).name) for entry in rec.entries]
    [('forward', 'CONVERGED'), ('backward', 'CONVERGED')]
    >>> bool(rec.backward[0].bound < 1e-12)
    True
    """
    return Record()


def open_records() -> tuple[Record, ...]:
    """Return the records that a solve reports to if it is made here."""
    return tuple([record for record in OPEN.get() if record in ALL_OPEN])


def recording() -> bool:
    """Whether a solve that is made here is recorded."""
    return bool(OPEN.get()) and bool(open_records())


class Recorded(Protocol):
    """What belongs to a forward call."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The records that were open where the forward call was made."""
        ...


def with_records_of_forward_call(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method whose solves report to `self.records` too: a framework may run it in a thread of its own."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        of_call: Any = args[0]
        if not of_call.records:
            return method(*args, **kwargs)
        with _reporting_to(of_call):
            return method(*args, **kwargs)

    return call


@contextmanager
def _reporting_to(call: Recorded) -> Iterator[None]:
    here = open_records()
    token = OPEN.set((*here, *(record for record in call.records if record not in here)))
    try:
        yield
    finally:
        OPEN.reset(token)


def add_entry(backend: Backend, policy: Policy, stage: Stage, numbers: Mapping[str, Array | None]) -> None:
    """Add an entry to every open record, when the program runs."""
    known = {name: x for name, x in numbers.items() if x is not None}
    backend.reports.values(partial(_listen, policy, stage, tuple(known)), *known.values())


def _listen(policy: Policy, stage: Stage, names: tuple[str, ...], *values: Any) -> None:
    entry = Entry(policy.layer, stage, policy=policy, **dict(zip(names, values, strict=True)))
    # a compiled program may report from a thread of the framework, which no record was opened in
    for record in open_records() or tuple(ALL_OPEN):
        record.entries.append(entry)


def said_of_choice(choice: str | None, front: str = "") -> list[str]:
    """Return the note below a table that tells the choice of the linear solver, if there was one."""
    return [] if choice is None else [f"{front}Auto chose: {choice}."]


def _range(values: Any) -> str:
    """Format one number, or the least, the median and the largest of several."""
    text = in_words(values)
    return f"{text}  (least, median, largest)" if " .. " in text else text


def _summary(layer: str, stage: str, entries: list[Entry]) -> str:
    ends = ", ".join(f"{number} {name_of(code)}" for code, number in counts(_statuses(entries)).items())
    lines = [f"{layer}, {stage}: {len(entries)} solves, problems: {ends}"]
    for name in NUMBERS:
        if any(getattr(entry, name) is not None for entry in entries):
            lines.append(f"  {name:<12} {_range(_of_all(name, entries))}")
    choice = _choice_of(entries)
    lines += [] if choice is None else [f"  {'choice':<12} {choice}"]
    return "\n".join(lines)


def _choice_of(entries: Sequence[Entry]) -> str | None:
    """Return the sentence for all problems of some solves."""
    import numpy as np

    known = [entry._choice for entry in entries if entry._choice is not None]
    return sentence(np.concatenate([x.reshape((-1, x.shape[-1])) for x in known])) if known else None


def _statuses(entries: Sequence[Entry]) -> Any:
    return _of_all("status", entries)


def _numbers(name: str, entries: Sequence[Entry]) -> str:
    return in_words(_of_all(name, entries)) if any(getattr(entry, name) is not None for entry in entries) else ""


def _of_all(name: str, entries: Sequence[Entry]) -> Any:
    """Return one number of all problems of some solves, (n,)."""
    import numpy as np

    return np.concatenate([np.ravel(x) for entry in entries if (x := getattr(entry, name)) is not None])
