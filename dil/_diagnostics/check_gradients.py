"""Compare gradients with finite differences, and backends with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dil._base.arrays import array_namespace, device, eps
from dil._base.errors import DilError, OptionError
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.arguments import split_arguments
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import BackendHandle, leaves_of, owner
from dil._frameworks.registry import backend as handle_of
from dil._frameworks.transforms import Flat

Case = Callable[[BackendHandle], tuple[Any, ...]]
"""`case(backend)` returns `(fn, *args)`, with arguments made by the backend's `asarray`."""

STEPS = tuple(2.0**-k for k in range(4, 17))
"""Steps of the differences, relative to the size of the point. The one with the least error estimate is taken."""


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
    """The error that rounding and truncation explain."""
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
    """The outcome of `check_gradients`. `print` shows a table. `ok` is True if every row passed."""

    rows: tuple[GradientRow, ...]
    agreement: tuple[AgreementRow, ...]

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
        return "\n".join(lines)


def check_gradients(
    fn: Callable[..., Tree],
    *args: Tree,
    backends: Sequence[str] | None = None,
    order: int = 1,
    directions: int = 3,
    seed: int = 0,
) -> GradientReport:
    """Compare the derivative of a function with finite differences, and backends with each other.

    Parameters
    ----------
    fn : callable
        A function of trees of arrays; layers may be part of it.
    *args : trees
        The point; the float arrays in it are varied.
    backends : sequence of str, optional
        The names of the backends to run on. The arguments are converted to each, and fn must be array-API code. By
        default the backend of the arguments.
    order : {1, 2}
        2 checks the derivative of the pullback as well.
    directions : int
        The number of random directions for each order.
    seed : int
        The seed of the directions and cotangents, which are the same on every backend.

    Returns
    -------
    GradientReport
        Rows to read, and `ok`.

    Raises
    ------
    OptionError, BackendError
        If an option is out of range, or a backend cannot be had.

    Notes
    -----
    Each check compares the scalar <J^T v, t> (and <v, J t>) with Richardson's extrapolation of central differences.
    The bound is the sum of two terms: the error estimate of the extrapolation, and the rounding error of the sum of
    (J^T v)_i t_i. It scales with the gradient and has no absolute floor.

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
    return check_case(case, names, order=order, directions=directions, seed=seed)


def check_case(
    case: Case, backends: Sequence[str], *, order: int = 1, directions: int = 3, seed: int = 0
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
    for k in range(1, order + 1):
        measured = {name: _measure(case, name, k, directions, seed) for name in backends}
        for name, several in measured.items():
            rows += [m.row(name, k, i) for i, m in enumerate(several)]
            if name != backends[0]:
                agreement.append(_agree(name, several, backends[0], measured[backends[0]], k))
    return GradientReport(tuple(rows), tuple(agreement))


@dataclass(frozen=True)
class Measured:
    """The scalars of one direction."""

    reverse: float
    forward: float
    difference: float
    spread: float
    terms: float
    """Sum of the absolute values of the terms of <J^T v, t>."""
    eps: float

    def row(self, backend: str, order: int, direction: int) -> GradientRow:
        """Return the row of the report."""
        rounding = 30 * self.eps ** (2 / 3) * self.terms
        bound = rounding + 2 * self.spread
        error = max(abs(self.reverse - self.difference), abs(self.forward - self.difference))
        sharp = bound <= self.eps**0.25 * self.terms or bound == 0  # a bound that any gradient meets proves nothing
        ok = bool(error <= bound and sharp)
        return GradientRow(backend, order, direction, self.reverse, self.forward, self.difference, error, bound, ok)


def _agree(name: str, several: list[Measured], reference: str, expected: list[Measured], order: int) -> AgreementRow:
    errors = [abs(a.reverse - b.reverse) for a, b in zip(several, expected, strict=True)]
    bounds = [30 * max(a.eps, b.eps) ** (2 / 3) * max(a.terms, b.terms) for a, b in zip(several, expected, strict=True)]
    ok = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    return AgreementRow(name, reference, order, max(errors), min(bounds), ok)


def _measure(case: Case, name: str, order: int, directions: int, seed: int) -> list[Measured]:
    fn, *args = case(handle_of(name))
    flat = Flat(fn, *split_arguments(tuple(args), {}))
    return [_along(flat, order, seed + i) for i in range(directions)]


def _along(flat: Flat, order: int, seed: int) -> Measured:
    import numpy as np

    backend, floats = flat.backend, tuple(flat.backend.constant(x) for x in flat.floats)
    if not floats:
        message = "there is no float array among the arguments, so there is no derivative to check"
        raise DilError(message)
    draw = np.random.default_rng(seed)
    f: Callable[..., Arrays] = flat
    if order == 2:
        fixed = _draw(draw, backend, flat(*floats))
        f = lambda *xs: backend.vjp(flat, *xs)[1](fixed)  # noqa: E731
    t = _draw(draw, backend, floats)
    out, pull = backend.vjp(f, *floats)
    if not out:
        message = "there is no float array in the function's result, so there is no derivative to check"
        raise DilError(message)
    v = _draw(draw, backend, out)
    products = [_terms(backend, g, d) for g, d in zip(pull(v), t, strict=True)]
    _, moved = jvp_from_vjp(backend, f, floats, t)
    machine = max(eps(array_namespace(x), x.dtype) for x in floats)
    size = max([1e-300, *(float(abs(backend.to_numpy(x)).max(initial=0.0)) for x in floats)])
    difference, spread = _richardson(backend, f, floats, t, v, size, machine)
    return Measured(
        sum(float(p.sum()) for p in products),
        sum(float(_terms(backend, a, b).sum()) for a, b in zip(v, moved, strict=True)),
        difference,
        spread,
        sum(float(abs(p).sum()) for p in products),
        machine,
    )


def _richardson(
    backend: Backend, f: Callable[..., Arrays], x: Arrays, t: Arrays, v: Arrays, size: float, machine: float
) -> tuple[float, float]:
    """Return <v, df(x + h t)/dh> and an estimate of its error, from the best of a ladder of steps."""

    def quotient(h: float) -> float:
        upper = f(*(a + h * b for a, b in zip(x, t, strict=True)))
        lower = f(*(a - h * b for a, b in zip(x, t, strict=True)))
        return sum(float(_terms(backend, w, p - q).sum()) for w, p, q in zip(v, upper, lower, strict=True)) / (2 * h)

    steps = [s * size for s in STEPS if s**3 > machine / 8]
    values = [quotient(h) for h in steps]
    extrapolated = [(4 * b - a) / 3 for a, b in pairwise(values)]
    spreads = [abs(b - a) for a, b in pairwise(extrapolated)]
    finite = [s if s == s else float("inf") for s in spreads]
    best = finite.index(min(finite))
    return extrapolated[best + 1], finite[best]


def _terms(backend: Backend, a: Array, b: Array) -> Any:
    """Return the products whose sum is <a, b>, in double precision on the host."""
    return backend.to_numpy(a).astype("float64") * backend.to_numpy(b).astype("float64")


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
