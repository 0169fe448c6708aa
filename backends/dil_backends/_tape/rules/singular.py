"""Rules of the singular value decomposition and of what is made of it: nuclear norm, polar factor, pseudoinverse.

Where singular values coincide or vanish, see `clusters.py`. The last columns of a full decomposition are an arbitrary
basis of a complement: a function of the space that they span has a derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from array_api_compat import device as device_of

from dil._base.arrays import is_complex
from dil._base.typing import Namespace
from dil_backends._tape.rules.clusters import Pairs, check_complement, largest, noise, refuse_derivative
from dil_backends._tape.rules.conjugates import adjoint, hermitian_part, real, skew_part
from dil_backends._tape.rules.eigen import eigh
from dil_backends._tape.rules.eigen import hermitian as lower
from dil_backends._tape.rules.matrices import column, identity, row
from dil_backends._tape.rules.rule import Value

Response: TypeAlias = Callable[[Value], list[Value]]

VANISH = "a singular value is zero to rounding, and the function depends on its sign or on its vectors"
DEFICIENT = "the matrix has not full rank, to rounding"
CHANGES_RANK = (
    "the matrix has not full rank, and what is differentiated can raise its rank; an rtol above rounding, such as "
    "np.linalg.pinv(A, rtol=1e-6), makes it smooth"
)
CUT_CLUSTER = "a singular value that rtol keeps and one that it drops coincide to rounding; choose another rtol"


class SVDResult(NamedTuple):
    U: Value
    S: Value
    Vh: Value


def svd(xp: Namespace, x: Value, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Value:
    """Return U, S and Vh. With NumPy's `hermitian=True`, x is the Hermitian matrix of its lower triangle."""
    if not compute_uv:
        return svdvals(xp, lower(xp, x) if hermitian else x)
    if hermitian:
        return of_hermitian(xp, x)
    return SVDResult(*xp.singular(x, full_matrices=bool(full_matrices)))


def of_hermitian(xp: Namespace, x: Value) -> SVDResult:
    """Return the decomposition from eigenvalues and eigenvectors, as NumPy does: the signs of U and Vh are its."""
    w, v = eigh(xp, x)
    order = xp.flip(xp.argsort(xp.abs(xp.constant(w)), axis=-1), axis=-1)
    w, u = xp.take_along_axis(w, order, axis=-1), xp.take_along_axis(v, row(xp, order), axis=-1)
    return SVDResult(u, xp.abs(w), adjoint(xp, u * row(xp, xp.sign(xp.constant(w)))))


def svdvals(xp: Namespace, x: Value) -> Value:
    return xp.singular(x, full_matrices=False)[1]


def singular(xp: Namespace, x: Value, *, full_matrices: bool) -> tuple[Value, Value, Value]:
    u, s, vh = xp.linalg.svd(x, full_matrices=full_matrices)
    return u, s, vh


def pull_singular(xp: Namespace, c: Value, y: Value, x: Value, *, full_matrices: bool) -> Value:
    """Return U core V^H and the parts of the complements (Townsend 2016).

    With the skew parts P of U^H cU and Q of V^H cV, the core is
    diag(cs) + (P + Q)_ij / (s_j - s_i) + (P - Q)_ij / (s_j + s_i).
    """
    (cu, cs, cvh), (u, s, vh) = c, y
    if not x.size:
        return xp.zeros_like(x)
    y = s, u, vh
    k, v, cv = s.shape[-1], adjoint(xp, vh), adjoint(xp, cvh)
    p, q = adjoint(xp, u[..., :k]) @ cu[..., :k], adjoint(xp, v[..., :k]) @ cv[..., :k]
    turned, opposed = skew_part(xp, p + q), skew_part(xp, p - q)
    apart = Pairs(xp, "svd", "singular values", s)
    core = apart.quotient(turned, p + q, cs, y) + apart.spread(cs, y, x, u[..., :k], v[..., :k])
    core = core + Pairs(xp, "svd", "zero singular values", s, -1.0).quotient(opposed, p - q, cs, y)
    g = u[..., :k] @ core @ vh[..., :k, :]
    if u.shape[-2] > k:
        g = g + off_space(xp, u, cu, p, y) @ vh[..., :k, :]
    if v.shape[-2] > k:
        g = g + u[..., :k] @ adjoint(xp, off_space(xp, v, cv, q, y))
    return g


def off_space(xp: Namespace, basis: Value, c: Value, m: Value, y: Value) -> Value:
    """Return the part of the cotangent of singular vectors that turns their space, divided by the singular values.

    basis: (..., m, k) or (..., m, m), c: its cotangent, m: the product of the first columns of both.
    """
    s = y[0]
    k = s.shape[-1]
    turning = folded(xp, "svd", basis, c, m, k, y)
    raw, value = xp.constant(turning), xp.constant(s)
    rounding = noise(xp, value)
    zero = row(xp, value) <= rounding * largest(xp, row(xp, value))
    small = xp.abs(raw) <= rounding * largest(xp, xp.constant(c))
    if bool(xp.any(zero & ~small)) or (xp.boxed(turning) and bool(xp.any(zero))):
        refuse_derivative("svd", VANISH)
    return xp.where(zero, 0.0, turning / xp.where(zero, 1.0, row(xp, s)))


def folded(xp: Namespace, name: str, basis: Value, c: Value, m: Value, k: int, y: Value) -> Value:
    """Return the cotangent of the first k columns Q of an orthonormal basis, without its part in their space.

    The other columns N are a basis of the complement. They move with Q: dN = -Q dQ^H N, up to their own rotation.
    """
    first, rest = basis[..., :k], basis[..., k:]
    turning = c[..., :k] - first @ m
    if rest.shape[-1] == 0:
        return turning
    check_complement(xp, name, rest, c[..., k:], y)
    return turning - rest @ (adjoint(xp, c[..., k:]) @ first)


def nuclear(xp: Namespace, x: Value) -> Value:
    """Return the sum of the singular values of each matrix."""
    return xp.sum(xp.linalg.svdvals(x), axis=-1)


def polar(xp: Namespace, x: Value) -> Value:
    """Return U V^H, the gradient of the nuclear norm. It is unique if x has full rank."""
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    if s.size and bool(xp.any(s[..., -1] <= noise(xp, s) * s[..., 0])):
        refuse_derivative("the nuclear norm", DEFICIENT)
    return u @ vh


def pull_polar(xp: Namespace, c: Value, y: Value, x: Value) -> Value:
    """Return the rule of U V^H. It divides by sums of singular values only, so they may coincide."""
    if not x.size:
        return xp.zeros_like(x)
    u, s, vh = xp.singular(x, full_matrices=False)
    uh, v = adjoint(xp, u), adjoint(xp, vh)
    inner = uh @ c @ v
    g = u @ (2.0 * skew_part(xp, inner) / (column(xp, s) + row(xp, s))) @ vh
    if x.shape[-2] != x.shape[-1]:
        g = g + (c @ v - u @ inner) / row(xp, s) @ vh + u @ ((uh @ c - inner @ vh) / column(xp, s))
    return g


def pinv(xp: Namespace, x: Value, rcond: Value = None, hermitian: bool = False, *, rtol: Value = None) -> Value:
    x = lower(xp, x) if hermitian else x
    return xp.pseudoinverse(x, rtol=rcond if rtol is None else rtol, by=partial(xp.by_roots, x))


def pseudoinverse(xp: Namespace, x: Value, *, rtol: Value, by: Response | None = None) -> Value:
    return xp.linalg.pinv(x) if rtol is None else xp.linalg.pinv(x, rtol=rtol)


def pull_pseudoinverse(xp: Namespace, c: Value, y: Value, x: Value, *, rtol: Value,
                       by: Response | None = None) -> Value:  # fmt: skip
    """Return the derivative at constant rank (Golub and Pereyra 1973, equation 4.12).

    That formula takes the singular values that rtol drops as zero. `pull_truncated` has those that are not.
    `by`: see `check_constant_rank`. Without it the rank counts as constant.
    """
    cuts = False
    if rtol is not None and x.size:
        s = xp.constant(xp.linalg.svdvals(x))
        rounding = max(x.shape[-2:]) * xp.finfo(s.dtype).eps
        if bool(xp.any(~kept(xp, s, rtol) & (s > rounding * largest(xp, row(xp, s))[..., 0]))):
            return pull_truncated(xp, c, x, rtol)
        # a value of zero stays below such an rtol, so the truncated pseudoinverse is smooth
        cuts = bool(xp.all(xp.asarray(rtol, dtype=s.dtype, device=device_of(s)) > rounding))
    if by is not None and not cuts:
        check_constant_rank(xp, xp.constant(y), xp.constant(x), by)
    ch, yh = adjoint(xp, c), adjoint(xp, y)
    left, right = ch @ y, y @ ch
    left, right = left - x @ (y @ left), right - (right @ y) @ x
    left, right = left @ yh, yh @ right
    if rtol is not None and xp.boxed(x):
        # a derivative moves the values that rtol drops away from zero: two steps of the series of `pull_truncated`
        rest, cube = x - x @ y @ x, yh @ y @ yh
        left, right = left + rest @ c @ cube, right + cube @ c @ rest
        resth = adjoint(xp, rest)
        left, right = left + rest @ (resth @ left @ y) @ yh, right + yh @ (y @ right @ resth) @ rest
    return left + right - yh @ c @ yh


def check_constant_rank(xp: Namespace, y: Value, x: Value, by: Response) -> None:
    """Raise where a change of what is differentiated raises the rank of x to first order: there y = x^+ jumps.

    A graph's Laplacian keeps its rank for all weights, and so does X^T X with few rows: their dx have no part between
    the two null spaces. `by(c)` are the derivatives of <c, x>, and a generic c stands for all of them.
    """
    if not x.size:
        return
    rank = xp.sum(real(xp, xp.matrix_transpose(y) * x), axis=(-2, -1))  # the trace of y x, a projector
    if not bool(xp.any(rank < min(x.shape[-2:]) - 0.5)):
        return
    m, n = x.shape[-2:]
    size = real(xp, x)
    generic = xp.cos(1.0 + 2.3 * xp.reshape(xp.arange(x.size, dtype=size.dtype, device=device_of(x)), x.shape))
    generic = generic * (1.0 + 0.7j) if is_complex(xp, x.dtype) else generic
    across = (identity(xp, m, x) - x @ y) @ generic @ (identity(xp, n, x) - y @ x)
    rounding = 100.0 * noise(xp, size) * float(xp.max(1.0 + largest(xp, x) * largest(xp, y)))
    for change, reference in zip(by(across), by(generic), strict=True):
        if change.size and bool(xp.max(xp.abs(change)) > rounding * xp.max(xp.abs(reference))):
            refuse_derivative("pinv", CHANGES_RANK)


def kept(xp: Namespace, s: Value, rtol: Value) -> Value:
    """Return which of the singular values are larger than rtol times the largest."""
    relative = xp.expand_dims(xp.asarray(rtol, dtype=s.dtype, device=device_of(s)), axis=-1)
    return s > relative * largest(xp, row(xp, s))[..., 0]


def pull_truncated(xp: Namespace, c: Value, x: Value, rtol: Value) -> Value:
    """Return the rule of V f(s) U^H, where f(s) is 1 / s, and 0 for the dropped values.

    With M = U^H c^H V it is U (D * hermitian part of M + E * skew part of M) V^H and the parts of the complements.
    D_ij = (f_i - f_j) / (s_i - s_j) and E_ij = (f_i + f_j) / (s_i + s_j), so a dropped value counts in the pairs with
    those that are kept.
    """
    u, s, vh = xp.singular(x, full_matrices=False)
    keep = kept(xp, xp.constant(s), rtol)
    f = xp.where(keep, 1.0 / xp.where(keep, s, 1.0), 0.0)
    mixed = xp.logical_xor(column(xp, keep), row(xp, keep))
    gap = column(xp, s) - row(xp, s)
    scale = largest(xp, row(xp, xp.constant(s)))
    if bool(xp.any(mixed & (xp.abs(xp.constant(gap)) <= noise(xp, s) * scale))):
        refuse_derivative("pinv", CUT_CLUSTER)
    products = column(xp, f) * row(xp, f)
    even = xp.where(mixed, (column(xp, f) - row(xp, f)) / xp.where(mixed, gap, 1.0), -products)
    odd = xp.where(mixed, (column(xp, f) + row(xp, f)) / xp.where(mixed, column(xp, s) + row(xp, s), 1.0), products)
    ch, uh, v = adjoint(xp, c), adjoint(xp, u), adjoint(xp, vh)
    m = uh @ ch @ v
    g = u @ (even * hermitian_part(xp, m) + odd * skew_part(xp, m)) @ vh
    if x.shape[-2] != x.shape[-1]:
        squares = f * f
        g = g + ((ch @ v - u @ m) * row(xp, squares)) @ vh + u @ (column(xp, squares) * (uh @ ch - m @ vh))
    return g


def cond(xp: Namespace, x: Value, p: Value = None) -> Value:
    if p is None or p in (2, -2):
        s = svdvals(xp, x)
        return s[..., -1] / s[..., 0] if p == -2 else s[..., 0] / s[..., -1]
    return xp.linalg.matrix_norm(x, ord=p) * xp.linalg.matrix_norm(xp.linalg.inv(x), ord=p)
