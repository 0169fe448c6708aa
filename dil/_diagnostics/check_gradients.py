"""Compare gradients with finite differences, and backends with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dil._base.arrays import array_namespace, device, eps, is_complex
from dil._base.errors import DilError, DTypeError, OptionError
from dil._base.progress_bar import counted
from dil._base.typing import Arrays, Tree
from dil._diagnostics.findings import BENT_FUNCTION, UNKNOWN, Causes, Finding, causes, merged, without_failure_warnings
from dil._diagnostics.finite_differences import Line, largest, length, terms
from dil._frameworks.arguments import split_arguments, with_complex_split
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import BackendHandle, leaves_of, owner
from dil._frameworks.registry import backend as handle_of
from dil._frameworks.transforms import Flat

Case = Callable[[BackendHandle], tuple[Any, ...]]
"""`case(backend)` returns `(fn, *args)`, with arguments made by the backend's `asarray`."""


@dataclass(frozen=True)
class GradientRow:
    """One random direction t and cotangent v on one backend: <J^T v, t>, <v, J t> and their difference quotient."""

    backend: str
    order: int
    """1 for the function's derivative, 2 for the derivative of its pullback."""
    direction: int
    reverse: float
    forward: float
    difference: float
    error: float
    """The larger of the distances of reverse and forward from the difference quotient."""
    bound: float
    """The error that rounding, truncation and the tolerance of the solvers explain."""
    ok: bool


@dataclass(frozen=True)
class AgreementRow:
    """The difference of a backend from the first one, over all directions."""

    backend: str
    reference: str
    order: int
    error: float
    bound: float
    ok: bool


@dataclass(frozen=True)
class GradientReport:
    """The outcome of `check_gradients`. `print` shows a table. `ok` is True if every row passed.

    `findings` say why a row may have failed: a solve that failed, a rough solver, a kink, random values.
    """

    rows: tuple[GradientRow, ...]
    agreement: tuple[AgreementRow, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row is ok."""
        return all(row.ok for row in self.rows) and all(row.ok for row in self.agreement)

    def __str__(self) -> str:
        lines = [f"{'backend':8} order  {'reverse':>13} {'forward':>13} {'difference':>13}  {'error':>8}  {'bound':>8}"]
        lines += [
            f"{r.backend:8} {r.order:5}  {r.reverse:13.6e} {r.forward:13.6e} {r.difference:13.6e}  "
            f"{r.error:8.1e}  {r.bound:8.1e}  {_word(r.ok)}"
            for r in self.rows
        ]
        lines += [
            f"{a.backend:8} {a.order:5}  against {a.reference:33}  {a.error:8.1e}  {a.bound:8.1e}  {_word(a.ok)}"
            for a in self.agreement
        ]
        lines += [str(finding) for finding in self.findings]
        return "\n".join(lines)


def check_gradients(
    fn: Callable[..., Tree],
    *args: Tree,
    backends: Sequence[str] | None = None,
    order: int = 1,
    directions: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> GradientReport:
    """Compare the derivative of a function with finite differences, and backends with each other.

    Parameters
    ----------
    fn : callable
        A function of trees of arrays; layers may be part of it.
    *args : trees
        The point; the float arrays in it are varied, the real and imaginary parts of complex ones on their own.
    backends : sequence of str, optional
        The names of the backends to run on. The arguments are converted to each, and fn must be array-API code. By
        default the backend of the arguments.
    order : {1, 2}
        2 checks the derivative of the pullback as well.
    directions : int
        The number of random directions for each order.
    seed : int
        The seed of the directions and cotangents, which are the same on every backend.
    progress : bool
        Whether to draw a progress bar over the directions. Needs rich.

    Returns
    -------
    GradientReport
        Rows to read, and `ok`.

    Raises
    ------
    OptionError, BackendError
        If an option is out of range, or a backend cannot be had.
    DTypeError
        If an argument has a dtype of 16 bits.

    Notes
    -----
    Each check compares the scalar <J^T v, t> (and <v, J t>) with Richardson's extrapolation of central differences.
    The bound is the sum of three terms: the error estimate of the extrapolation, the rounding error of the sum of
    (J^T v)_i t_i, and, if these two do not suffice, the bounds that the layers report on their gradients. It scales
    with the gradient and has no absolute floor. A bound above eps ** (1/4) of the terms proves nothing, so such a row
    fails.

    Each direction takes some 30 calls of the function, twice as many with order=2. So a layer that takes a second takes
    half a minute a direction; `directions=1` is the cheapest check.

    A layer that warns does so in `findings`. If a row fails, the layers are asked for a report, and the function is
    called again to see whether it is random or has a kink.

    Examples
    --------
    >>> import numpy as np, dil
    >>> dil.check_gradients(lambda u: np.sum(np.exp(u)), np.asarray([0.0, 1.0])).ok
    True
    """
    if backends is None:
        case: Case = lambda handle: (fn, *args)  # noqa: E731
        arrays = split_arguments(args, {})[0]
        names = [Flat(fn, *split_arguments(args, {})).backend.NATIVE] if arrays else ["numpy"]
    else:
        case = lambda handle: (fn, *(_convert(arg, handle) for arg in args))  # noqa: E731
        names = backends if isinstance(backends, str) else list(backends)  # type: ignore[assignment]
    return check_case(case, names, order=order, directions=directions, seed=seed, progress=progress)


def check_case(
    case: Case,
    backends: Sequence[str],
    *,
    order: int = 1,
    directions: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> GradientReport:
    """Run `check_gradients` on a function and arguments that each backend makes itself."""
    if isinstance(backends, str) or not backends:
        message = f"backends={backends!r}; expected a sequence of names, such as ['numpy', 'torch']"
        raise OptionError(message)
    if order not in (1, 2):
        message = f"order={order!r}; expected 1 or 2"
        raise OptionError(message)
    for name, number, least in (("directions", directions, 1), ("seed", seed, 0)):
        if not isinstance(number, int) or number < least:
            message = f"{name}={number!r}; expected an integer >= {least}"
            raise OptionError(message)
    rows: list[GradientRow] = []
    agreement: list[AgreementRow] = []
    findings: list[Finding] = []
    with counted("check_gradients", order * len(backends) * directions, shown=progress) as tick:
        for k in range(1, order + 1):
            measured: dict[str, list[Measured]] = {}
            for name in backends:
                texts: list[str] = []
                with without_failure_warnings(texts):
                    measured[name], found = _judged(_measure(case, name, k, directions, seed, tick))
                rows += [m.row(name, k, i) for i, m in enumerate(measured[name])]
                findings += [Finding(text, (name,)) for text in found or texts]
                if name != backends[0]:
                    agreement.append(_agree(name, measured[name], backends[0], measured[backends[0]], k))
    return GradientReport(tuple(rows), tuple(agreement), merged(findings))


@dataclass(frozen=True)
class Measured:
    """The scalars of one direction."""

    reverse: float
    forward: float
    difference: float
    spread: float
    terms: float
    """Sum of the absolute values of the terms of <J^T v, t>."""
    size: float
    """||J^T v|| ||t||."""
    line: Line
    tolerance: float = 0.0
    """The relative error of the gradient that the solvers make."""

    def measured_again(self, found: Causes) -> Measured:
        """Return the same with difference quotients for solutions that are as inaccurate as the causes say."""
        difference, spread = self.line.derivative(found.noise)
        return replace(self, difference=difference, spread=spread, tolerance=found.tolerance)

    def row(self, backend: str, order: int, direction: int) -> GradientRow:
        """Return the row of the report."""
        numbers = (self.reverse, self.forward, self.difference, self.error, self.bound)
        return GradientRow(backend, order, direction, *numbers, self.error <= self.bound and self.is_sharp)

    @property
    def bound(self) -> float:
        """The error that rounding, truncation and the tolerance of the solvers explain."""
        return self.rounding + self.tolerance * self.size + 2 * self.spread

    @property
    def error(self) -> float:
        """The larger of the distances of reverse and forward from the difference quotient."""
        return max(abs(self.reverse - self.difference), abs(self.forward - self.difference))

    @property
    def is_sharp(self) -> bool:
        """Whether the bound proves something: a bound that any gradient meets does not."""
        return bool(self.bound <= self.line.machine**0.25 * self.terms or self.bound == 0)

    @property
    def rounding(self) -> float:
        """The rounding error of the sum of the terms."""
        return float(30 * self.line.machine ** (2 / 3) * self.terms)


def _agree(name: str, several: list[Measured], reference: str, expected: list[Measured], order: int) -> AgreementRow:
    pairs = list(zip(several, expected, strict=True))
    errors, bounds = [abs(a.reverse - b.reverse) for a, b in pairs], [max(a.rounding, b.rounding) for a, b in pairs]
    ok = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    return AgreementRow(name, reference, order, max(errors), min(bounds), ok)


def _judged(several: list[Measured]) -> tuple[list[Measured], tuple[str, ...]]:
    """Return the directions and, if a row fails, why. Then the solvers' own errors are part of the bounds."""
    if all(m.error <= m.bound and m.is_sharp for m in several):
        return several, (BENT_FUNCTION,) if several[0].line.has_kink() else ()
    found = causes(several[0].line)
    several = [m.measured_again(found) for m in several]
    if all(m.error <= m.bound for m in several):
        # only a bound too wide to prove anything fails a row now: the solvers made it so
        return several, () if all(m.is_sharp for m in several) else (*found.texts, found.rough)[:1]
    return several, found.texts or (UNKNOWN,)


def _measure(
    case: Case, name: str, order: int, directions: int, seed: int, tick: Callable[[], object]
) -> list[Measured]:
    fn, *args = case(handle_of(name))
    flat = Flat(fn, *with_complex_split(*split_arguments(tuple(args), {})))
    measured = []
    for i in range(directions):
        measured.append(_along(flat, order, seed + i))
        tick()
    return measured


def _along(flat: Flat, order: int, seed: int) -> Measured:
    import numpy as np

    backend, floats = flat.backend, tuple(flat.backend.constant(x) for x in flat.floats)
    if not floats:
        message = "there is no float array among the arguments, so there is no derivative to check"
        raise DilError(message)
    draw = np.random.default_rng(seed)
    of_parts = _of_parts(flat)
    f = of_parts
    if order == 2:
        fixed = _draw(draw, backend, of_parts(*floats))
        f = lambda *xs: backend.vjp(of_parts, *xs)[1](fixed)  # noqa: E731
    t = tuple(largest(backend, x) * d for x, d in zip(floats, _draw(draw, backend, floats), strict=True))
    out, pull = backend.vjp(f, *floats)
    if not out:
        message = "there is no float array in the function's result, so there is no derivative to check"
        raise DilError(message)
    v = _draw(draw, backend, out)
    pulled = pull(v)
    products = [terms(backend, g, d) for g, d in zip(pulled, t, strict=True)]
    _, moved = jvp_from_vjp(backend, f, floats, t)
    machine = max(eps(array_namespace(x), x.dtype) for x in floats)
    if machine > 1e-4:
        message = (
            "check_gradients got an argument with a dtype of 16 bits, whose values are too coarse for differences; "
            "check in float32 or float64, the derivative is that of the same code"
        )
        raise DTypeError(message)
    line = Line(backend, f, floats, t, v, machine, {0.0: out})
    difference, spread = line.derivative()
    return Measured(
        sum(float(p.sum()) for p in products),
        sum(float(terms(backend, a, b).sum()) for a, b in zip(v, moved, strict=True)),
        difference,
        spread,
        sum(float(abs(p).sum()) for p in products),
        length(backend, pulled) * length(backend, t),
        line,
    )


def _of_parts(flat: Flat) -> Callable[..., Arrays]:
    """Return the function with the real and imaginary parts of its complex results, as real arrays."""

    def parts(x: Any) -> Any:
        return flat.backend.complex_parts.split(x) if is_complex(array_namespace(x), x.dtype) else x

    return lambda *floats: tuple([parts(x) for x in flat(*floats)])


def _draw(draw: Any, backend: Backend, like: Arrays) -> Arrays:
    return tuple(backend.asarray(draw.standard_normal(tuple(x.shape)), dtype=x.dtype, device=device(x)) for x in like)


def _convert(tree: Tree, handle: BackendHandle) -> Tree:
    leaves, structure = leaves_of(tree)
    return structure.unflatten([_to(x, handle) for x in leaves])


def _to(x: Any, handle: BackendHandle) -> Any:
    source = owner(x)
    if source is None:
        return x
    values = source.to_numpy(source.constant(x))
    dtype = getattr(handle.xp, str(values.dtype))
    return handle.module.asarray(values, dtype=dtype, device=handle.device)


def _word(ok: bool) -> str:
    return "ok" if ok else "FAILED"
