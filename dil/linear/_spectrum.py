"""The spectrum of a layer's dF/du, as Lanczos' method sees it from products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, factor_dtype, full, inner, nonzero_max_abs, norm, size
from dil._base.axes import axes
from dil._base.errors import OptionError
from dil._base.one_line import one_line
from dil._base.operator import Operator
from dil._base.options import check_integer
from dil._base.typing import Array, Matvec, Tree
from dil._frameworks.loops import Loops
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil._frameworks.registry import owner
from dil.linear._extremes import tridiagonal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 12
"""The most problems that have a colour each."""
INVARIANT = 64
"""The Krylov space is whole where the next vector is no longer than this number of roundings of the matrix."""


class Spectrum(NamedTuple):
    """The Ritz values of a symmetric matrix for each problem of a batch.

    Attributes
    ----------
    values : float array, (*batch, m)
        The Ritz values, in ascending order. They lie within the spectrum, and the extreme ones are found first. With n
        steps they are the eigenvalues, each once. Where fewer than m were found, NaN comes last.
    weights : float array, (*batch, m)
        The share of the start vector that belongs to each value. The start is random, so this is about the share of
        the eigenvalues near the value. The weights of a problem add up to one.
    """

    values: Array
    weights: Array

    @property
    def condition(self) -> Array:
        """The largest |value| over the smallest, shape batch: a lower bound of the condition number.

        It is infinite if a value is zero, and NaN if the values have both signs, because the smallest |eigenvalue| is
        then not known.
        """
        xp, known = array_namespace(self.values), ~array_namespace(self.values).isnan(self.values)
        sizes = xp.abs(self.values)
        if self.values.shape[-1] == 0:
            return full(self.values, float("nan"), shape=tuple(self.values.shape[:-1]))
        least = xp.min(xp.where(known, sizes, xp.inf), axis=-1)
        most = xp.max(xp.where(known, sizes, 0.0), axis=-1)
        one_sign = xp.all(~known | (self.values >= 0), axis=-1) | xp.all(~known | (self.values <= 0), axis=-1)
        ratio = most / xp.where(least > 0, least, 1.0)
        ratio = xp.where(least > 0, ratio, xp.inf)
        return xp.where(one_sign & xp.any(known, axis=-1), ratio, xp.nan)  # type: ignore[no-any-return]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each Ritz value as a line as high as its weight. It needs matplotlib.

        Both axes are logarithmic; that of the values is so if all are positive. Up to 12 problems have a colour each.

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
        >>> layer = dil.argmin(lambda u, t: np.sum(t * u**2), dil.solvers.Newton(), init=lambda t: 0.0 * t)
        >>> dil.linear.spectrum(layer, np.asarray([0.5, 1.0, 50.0])).plot().get_xlabel()
        'Ritz value'
        """
        return _plot(self, axes(ax))


def spectrum(
    layer: Callable[..., Tree], /, *args: Tree, steps: int = 100, init: Tree | None = None, **kwargs: Tree
) -> Spectrum:
    """Return the Ritz values of the Hessian of a layer's score at its solution, by Lanczos' method.

    They say which linear solver and preconditioner suit the layer.

    Parameters
    ----------
    layer : Layer
        Made by `dil.argmin`.
    *args, init, **kwargs
        As in a call of the layer. It is solved once.
    steps : int
        The most products with the Hessian; n products suffice for n unknowns. The memory is that of `steps` vectors,
        because each new vector is made orthogonal to all earlier ones.

    Returns
    -------
    Spectrum
        `values` and `weights`, (*batch, m) with m = min(steps, n), and `condition`, shape batch. They have no
        derivative.

    Raises
    ------
    OptionError
        If `layer` is none, if its matrix need not be symmetric, or if `steps` is out of range.

    Notes
    -----
    The start is a random vector, the same in each run. An eigenvalue that occurs several times is found once.

    Sources: Saad 2003, Algorithm 6.15; Golub and Meurant 2010, chapter 6 (the weights).

    Examples
    --------
    >>> import numpy as np, dil
    >>> layer = dil.argmin(lambda u, t: np.sum(t * u**2), dil.solvers.Newton(), init=lambda t: 0.0 * t)
    >>> found = dil.linear.spectrum(layer, np.asarray([0.5, 1.0, 50.0]))
    >>> np.round(found.values, 6), round(float(found.condition), 6)
    (array([  1.,   2., 100.]), 100.0)
    """
    check_integer("steps", steps, 1)
    linearised = getattr(layer, "_linearised", None)
    if linearised is None:
        message = f"layer={one_line(layer)} is no layer; expected one that dil.argmin returned"
        raise OptionError(message)
    A, u = linearised(args, kwargs, init)
    if not A.symmetric:
        message = (
            f"{one_line(layer)} is no argmin layer: its matrix dF/du need not be symmetric, and Lanczos' method finds "
            f"the eigenvalues of symmetric matrices alone; take layer.report(...).backward, whose lowest and highest "
            f"are the extreme singular values"
        )
        raise OptionError(message)
    backend = owner(u)
    assert backend is not None
    return ritz_values(A, u, backend, steps=steps)


class Basis(NamedTuple):
    """The state of Lanczos' method with all its vectors."""

    rows: Array
    """The orthonormal vectors, (*batch, m, n); those that are not yet found are zero."""
    v: Array
    """The next one, (*batch, n)."""
    diagonal: Array
    """(*batch, m), NaN where not reached."""
    coupling: Array
    """(*batch, m): the entries beside the diagonal."""
    size: Array
    """A lower bound of the norm of the matrix, shape batch."""
    active: Array
    step: Any


def ritz_values(A: Operator | Matvec, like: Array, backend: Backend, *, steps: int) -> Spectrum:
    """Return the spectrum of a symmetric A after at most `steps` products, from a random start; `like`: (*batch, n)."""
    xp, n = array_namespace(like), like.shape[-1]
    m = min(steps, n)
    if m == 0 or size(like.shape) == 0:
        none = full(like, float("nan"), shape=(*like.shape[:-1], m))
        return Spectrum(none, none)
    draw = standard_normal(backend, like, 1, 0)[0, ...]
    zero = full(like, 0.0, shape=(*like.shape[:-1], m))
    first = Basis(
        full(like, 0.0, shape=(*like.shape[:-1], m, n)),
        draw / norm(draw),
        full(zero, float("nan")),
        zero,
        zero[..., 0],
        zero[..., 0] == 0,
        0,
    )
    column = xp.arange(m, device=device(like))
    last = backend.loops.while_loop(
        lambda s: (s.step < m) & xp.any(s.active), lambda s: _advanced(A, s, column, backend.loops), first
    )
    return _spectrum_of(last)


def _advanced(A: Operator | Matvec, s: Basis, column: Array, loops: Loops) -> Basis:
    """Multiply once more, and make the result orthogonal to all vectors, twice (Parlett 1998, section 6.9)."""
    xp = array_namespace(s.v)
    rows = loops.set_row(s.rows, s.step, s.v)
    w = A(s.v)
    alpha = inner(s.v, w)
    for _ in range(2):
        w = w - (rows.mT @ (rows @ w[..., None]))[..., 0]
    beta = norm(w)[..., 0]
    finite = s.active & xp.isfinite(alpha) & xp.isfinite(beta)
    larger = xp.where(xp.abs(alpha) > beta, xp.abs(alpha), beta)
    bound = xp.where(finite & (larger > s.size), larger, s.size)
    goes_on = finite & (beta > INVARIANT * eps(xp, w.dtype) * bound)
    here = (column == s.step) & finite[..., None]
    return Basis(
        rows,
        xp.where(goes_on[..., None], w / xp.where(goes_on, beta, full(beta, 1.0))[..., None], full(w, 0.0)),
        xp.where(here, alpha[..., None], s.diagonal),
        xp.where(here & goes_on[..., None], beta[..., None], s.coupling),
        bound,
        goes_on,
        s.step + 1,
    )


def _spectrum_of(last: Basis) -> Spectrum:
    """Return the eigenvalues of the tridiagonal matrix, and the squares of the first entries of its eigenvectors."""
    xp = array_namespace(last.diagonal)
    known = ~xp.isnan(last.diagonal)
    # what was not reached is coupled to nothing, and comes last
    unit = nonzero_max_abs(xp.where(known, last.diagonal, 0.0) + last.coupling)
    far = full(last.diagonal, 4.0)
    T = tridiagonal(
        xp.where(known, last.diagonal / unit, far), xp.where(known[..., 1:], last.coupling[..., :-1] / unit, 0.0)
    )
    values, vectors = xp.linalg.eigh(xp.astype(T, factor_dtype(T)))
    values, weights = (xp.astype(x, last.diagonal.dtype) for x in (values * unit, vectors[..., 0, :] ** 2))
    count = xp.sum(xp.astype(known, xp.int32), axis=-1)[..., None]
    found = xp.arange(known.shape[-1], device=device(known)) < count
    nan = full(values, float("nan"))
    return Spectrum(xp.where(found, values, nan), xp.where(found, weights, nan))


def _plot(spectrum: Spectrum, ax: Axes) -> Axes:
    import numpy as np

    backend = owner(spectrum.values)
    assert backend is not None
    m = spectrum.values.shape[-1]
    values, weights = (np.reshape(backend.to_numpy(x), (-1, m)) for x in spectrum)
    floor = float(np.min(weights[weights > 0], initial=1.0)) / 2
    for k, (x, y) in enumerate(zip(values, weights, strict=True)):
        colour = f"C{k}" if len(values) <= LINES else "C0"
        ax.vlines(x, float(np.finfo(float).tiny), np.maximum(y, floor), color=colour, alpha=0.7)
        ax.plot(x, np.maximum(y, floor), "o", color=colour, alpha=0.7, markersize=3)
    known = values[~np.isnan(values)]
    ax.set_xscale("log" if known.size and known.min() > 0 else "linear")
    ax.set_yscale("log")
    ax.set_ylim(floor, 2.0)
    ax.set(xlabel="Ritz value", ylabel="weight", title=f"{len(values)} problems" if len(values) > 1 else "")
    return ax
