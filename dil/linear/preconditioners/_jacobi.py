"""The diagonal as a preconditioner: given, or estimated from products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dil._base.arrays import array_namespace, device, eps, full, nonzero_max_abs
from dil._base.errors import ShapeError
from dil._base.operator import Operator
from dil._base.options import check_integer
from dil._base.typing import AnyArray, Array, Loop
from dil.linear._right_hand_side import backend_of_system
from dil.linear.preconditioners._preconditioner import Prepared, columns


@dataclass(frozen=True, eq=False)
class Jacobi:
    """Divide by the diagonal of the matrix. This helps when the unknowns, or the scores of a batch, differ in scale.

    Parameters
    ----------
    diagonal : array or callable, optional
        The diagonal of the matrix, damping included, (*batch, n) or (n,), or a callable without arguments that returns
        it. It must be positive, which is not checked. By default the diagonal is estimated.
    probes : int
        The number of products for the estimate.
    seed : int
        The seed of the random probes.

    Notes
    -----
    The estimate is the mean of z * (A z) over vectors z of random signs. One vector is enough for a diagonal matrix.
    Entries off the diagonal add noise, which falls as 1 / sqrt(probes). The mean of (A z)^2 estimates the sum of
    squares of each row, and its root is the norm of the row. An estimate below half the norm of its row is replaced by
    that half, so the result is positive for every A.

    Sources: Hutchinson 1990; Bekas, Kokiopoulou and Saad 2007, section 2.

    Raises
    ------
    OptionError
        If an option is out of range.
    ShapeError
        By the solve, if the shape of the diagonal is neither (*batch, n) nor (n,).

    Examples
    --------
    >>> import numpy as np, dil
    >>> scales = np.logspace(0, 6, 100)
    >>> solver = dil.linear.CG(preconditioner=dil.linear.Jacobi(probes=1))
    >>> int(solver(lambda p: scales * p, np.ones(100)).iterations)
    1
    """

    diagonal: AnyArray | Callable[[], AnyArray] | None = None
    probes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("probes", self.probes, 1)
        check_integer("seed", self.seed, 0)

    def prepare(self, A: Operator, b: Array, /, *, loop: Loop) -> Prepared:
        """Return r -> r / diagonal."""
        if self.diagonal is None:
            estimate = self._estimate(A, b, loop)
            return Prepared(lambda r: r / estimate, self.probes)
        given = self.diagonal() if callable(self.diagonal) else self.diagonal
        backend = backend_of_system(b, "dil.linear.Jacobi")
        diagonal = backend.asarray(given, dtype=b.dtype, device=device(b))
        if tuple(diagonal.shape) not in (tuple(b.shape), tuple(b.shape[-1:])):
            message = f"the diagonal has shape {tuple(diagonal.shape)}; expected {tuple(b.shape)}, like b"
            raise ShapeError(message)
        return Prepared(lambda r: r / diagonal)

    def _estimate(self, A: Operator, b: Array, loop: Loop) -> Array:
        import numpy as np

        xp, backend = array_namespace(b), backend_of_system(b, "dil.linear.Jacobi")
        signs = np.random.default_rng(self.seed).choice([-1.0, 1.0], (self.probes, b.shape[-1]))
        shape = (self.probes, *(1,) * (b.ndim - 1), b.shape[-1])
        random_signs = backend.asarray(signs.reshape(shape), dtype=b.dtype, device=device(b))
        z = random_signs + full(b, 0.0)  # the same probes for every problem
        products = columns(A, z, loop)
        unit = nonzero_max_abs(xp.max(xp.abs(products), axis=0))
        products = products / unit  # squares of tiny and huge entries would underflow or overflow
        mean = xp.mean(z * products, axis=0)
        row_norms = xp.sqrt(xp.mean(products * products, axis=0))
        return unit * xp.maximum(mean, 0.5 * xp.maximum(row_norms, full(row_norms, eps(xp, b.dtype))))  # type: ignore[no-any-return]
