"""Mutants of the tape's rules that no test can tell from the code. `rule_mutants.py` prints the reason beside each."""

from __future__ import annotations

REASONS: dict[str, tuple[str, ...]] = {
    "a function that depends on the phases, whose diagonal is not real, is refused": (
        "rules/clusters.py: unambiguous: real(xp, xp.linalg.diagonal(m)) -> xp.linalg.diagonal(m)",
        "rules/clusters.py: spread: real(xp, xp.linalg.diagonal(mov... -> xp.linalg.diagonal(moved)",
        "rules/clusters.py: check_complement: real(xp, xp.linalg.diagonal(m)) -> xp.linalg.diagonal(m)",
        "rules/eigen.py: pull_general_spectrum: real(xp, xp.linalg.diagonal(m)) -> xp.linalg.diagonal(m)",
    ),
    "the rest is the part that rotates the pair, which is zero here": (
        "rules/clusters.py: unambiguous: hermitian_part(xp, m) -> m",
    ),
    "the block of equal values is a multiple of the identity, and its traceless part zero": (
        "rules/clusters.py: spread: block - xp.constant(block) -> block + xp.constant(block)",
    ),
    "generic numbers stand for all of them: others do as well, and so do their negatives": (
        "rules/clusters.py: __init__: 1.0 + 2.3 * xp.arange(w.shape[-... -> 1.0 - 2.3 * xp.arange(w.shape[-...",
        "rules/clusters.py: __init__: 2.3 * xp.arange(w.shape[-1], dt... -> 1.0 * xp.arange(w.shape[-1], dt...",
        "rules/clusters.py: __init__: random - self.mean(random) -> self.mean(random) - random",
        "rules/clusters.py: check_vectors: column(xp, 3.0 + v) * row(xp, 1... -> column(xp, 3.0 + v) * row(xp, 1...",
        "rules/clusters.py: check_vectors: 3.0 + v -> 3.0 - v",
        "rules/clusters.py: check_vectors: 1.0 - v -> 1.0 + v",
        "rules/clusters.py: check_vectors: 1.0 - v -> v - 1.0",
        "rules/clusters.py: check_vectors: random + 0.0 * xp.constant(m) -> random - 0.0 * xp.constant(m)",
        "rules/clusters.py: check_vectors: hermitian_part(xp, random) -> random",
        "rules/clusters.py: check_vectors: on_diagonal(xp, v) + 0.0 * random -> on_diagonal(xp, v) - 0.0 * random",
        "rules/singular.py: check_constant_rank: 1.0 + 2.3 * xp.reshape(xp.arang... -> "
        "1.0 - 2.3 * xp.reshape(xp.arang...",
        "rules/singular.py: check_constant_rank: 2.3 * xp.reshape(xp.arange(x.si... -> "
        "1.0 * xp.reshape(xp.arange(x.si...",
        "rules/singular.py: check_constant_rank: 1.0 + 0.7j -> 1.0 - 0.7j",
        "rules/singular.py: check_constant_rank: identity(xp, m, x) - x @ y -> x @ y - identity(xp, m, x)",
        "rules/singular.py: check_constant_rank: identity(xp, n, x) - y @ x -> y @ x - identity(xp, n, x)",
    ),
    "only whether a count is zero is read": (
        "rules/uses.py: count: rule.each(xp, n, y, i, *args, *... -> -rule.each(xp, n, y, i, *args, ...",
        "rules/uses.py: count: rule.formulas[i](xp, n, y, *arg... -> -rule.formulas[i](xp, n, y, *ar...",
        "rules/uses.py: count: formula(xp, n, y, i, *ones, **o... -> -formula(xp, n, y, i, *ones, **...",
        "rules/uses.py: of_reduction: REDUCTIONS['sum'](xp, n, y, x, ... -> -REDUCTIONS['sum'](xp, n, y, x,...",
        "rules/uses.py: of_scan: scan_sum(xp, n, y, x, axis, inc... -> -scan_sum(xp, n, y, x, axis, in...",
    ),
    "zero or NaN is added, as it is subtracted": (
        "rules/norms.py: pull_power_norm: xp.power_norm(size, p, axis=axi... -> xp.power_norm(size, p, axis=axi...",
        "rules/reductions.py: unit: ratio(xp, x, xp.norm(x, axis=ax... -> ratio(xp, x, xp.norm(x, axis=ax...",
        "rules/reductions.py: pull_std: xp.where((xp.constant(y) == 0.0... -> xp.where((xp.constant(y) == 0.0...",
    ),
    "the way for numbers out of the range gives the same in it, more slowly": (
        "rules/reductions.py: bounds: -700.0 -> 700.0",
    ),
    "NumPy compares the real parts first; array_api_strict, which the tool leaves out, refuses complex numbers": (
        "rules/singular.py: check_constant_rank: real(xp, xp.matrix_transpose(y)... -> xp.matrix_transpose(y) * x",
        "rules/elementwise.py: sech_squared: xp.real(x) -> x",
    ),
    "a matrix of full rank passes the comparison too, which costs more": (
        "rules/singular.py: check_constant_rank: min(x.shape[-2:]) - 0.5 -> min(x.shape[-2:]) + 0.5",
    ),
    "the array is empty": (
        "rules/reductions.py: scale_of: size -> -size",
        "rules/numpy_own/polynomials.py: roots: p[:0] -> -p[:0]",
        "rules/numpy_own/selection.py: trim_zeros: filt[:0] -> -filt[:0]",
    ),
    "it raises: an array that is differentiated has no integers": (
        "rules/numpy_own/selection.py: bincount: xp.plain.bincount(xp.unboxed(x,... -> "
        "-xp.plain.bincount(xp.unboxed(x...",
    ),
    "only its size is read": (
        "rules/numpy_own/statistics.py: std: a - mean(xp, a, axis, keepdims=... -> mean(xp, a, axis, keepdims=True...",
        "rules/clusters.py: slope: by_w - ratio * v -> ratio * v - by_w",
        "rules/singular.py: pull_singular: p - q -> q - p (2)",
    ),
    "a threshold between rounding and what is not: every number between does": (
        "rules/clusters.py: differ: 100.0 * self.pairs.noise -> 1.0 * self.pairs.noise",
        "rules/eigen.py: without_mixing: 100.0 * rounding -> 1.0 * rounding",
        "rules/singular.py: check_constant_rank: 100.0 * noise(xp, size) -> 1.0 * noise(xp, size)",
    ),
    "only asked whether it is zero, and for its size": (
        "rules/conjugates.py: imaginary: xp.imag(x) if is_complex(xp, x.... -> -(xp.imag(x) if is_complex(xp, ...",
    ),
    "the tape takes the real part for a real array": ("rules/eigen.py: pull_general_spectrum: real(xp, g) -> g",),
    "only its type is read, or it is compared with a number": (
        "rules/eigen.py: unit: real(xp, xp.constant(w)) -> xp.constant(w)",
        "rules/eigen.py: without_mixing: real(xp, w) -> w",
        "rules/singular.py: check_constant_rank: real(xp, x) -> x",
    ),
    "it is subtracted, and added again": (
        "rules/factors.py: pull_qr: adjoint(xp, first) -> xp.matrix_transpose(first)",
    ),
    "the sum has more passes, which find nothing to add": ("rules/indexing.py: sorted: stop - start -> stop + start",),
    "NumPy cuts the slice at the end of the matrix; array_api_strict, which the tool leaves out, refuses it": (
        "rules/linalg.py: diagonal: m + min(offset, 0) -> m - min(offset, 0)",
    ),
    "it is asked for its device only": (
        "rules/manipulation.py: first_box: next((first_box(xp, part) for p... -> -(next((first_box(xp, part) for...",
    ),
    "axes that are the last ones are moved to where they are": (
        "rules/numpy_own/diagonals.py: diagonal: a.ndim - 2 -> a.ndim + 2",
        "rules/numpy_own/diagonals.py: diagonal: a.ndim - 2 -> 2 - a.ndim",
        "rules/numpy_own/diagonals.py: diagonal: a.ndim - 1 -> a.ndim + 1",
        "rules/numpy_own/diagonals.py: diagonal: a.ndim - 1 -> 1 - a.ndim",
    ),
    "NumPy's `reshape` takes any negative length for the one that is left": (
        "rules/numpy_own/differences.py: slopes: n - 1 -> 1 - n",
        "rules/numpy_own/differences.py: trapezoid: x.size - 1 -> 1 - x.size",
    ),
    "where there is no interval, it is multiplied by 0": (
        "rules/numpy_own/differences.py: linspace: stop - start -> stop + start (2)",
        "rules/numpy_own/differences.py: linspace: stop - start -> start - stop (2)",
    ),
    "the slice ends with the convolution": (
        "rules/numpy_own/products.py: full: shorter + longer - 1 -> shorter + longer + 1",
    ),
    "it is squared": (
        "rules/numpy_own/statistics.py: var: a - mean(xp, a, axis, keepdims=... -> mean(xp, a, axis, keepdims=True...",
        "rules/numpy_own/statistics.py: cov: x - xp.mean(x, axis=1, keepdims... -> xp.mean(x, axis=1, keepdims=Tru...",
    ),
    "two factors of each term turn their sign": (
        "rules/reductions.py: ahead: xp.concat([x[..., step:], xp.ze... -> -(xp.concat([x[..., step:], xp....",
    ),
    "true either way": (
        "rules/special.py: of_complex: True if name in HOLOMORPHIC els... -> -(True if name in HOLOMORPHIC e...",
    ),
}
EQUIVALENT: dict[str, str] = {name: reason for reason, names in REASONS.items() for name in names}
"""The name of a mutant -> why no test can see it."""
