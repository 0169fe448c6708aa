"""The diagonal as a preconditioner: given, or estimated from products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dil._base.arrays import device
from dil._base.errors import ShapeError
from dil._base.operator import Operator
from dil._base.options import check_integer
from dil._base.typing import AnyArray, Array, Loop
from dil._frameworks.loops import with_loop
from dil.linear._diagonal import estimated_diagonal
from dil.linear._right_hand_side import backend_of_system
from dil.linear.preconditioners._preconditioner import Prepared


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
    The mean of z * (A z) over vectors z of random signs is the diagonal, with an error of the size of the entries off
    the diagonal. In rows that are small this noise is larger than the diagonal, so the estimate has three rounds, with
    a quarter, a quarter and a half of the probes. Each estimates the diagonal of the matrix that the round before has
    scaled to rows of about one size. One vector is enough for a diagonal matrix. The mean of (A z)^2 estimates the sum
    of squares of each row, and its root is the norm of the row. An estimate below half the norm of its row is replaced
    by that half, so the result is positive for every A.

    Sources: Hutchinson 1990; Bekas, Kokiopoulou and Saad 2007, section 2; Bradley and Murray 2011 (the rounds).

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
        backend = backend_of_system(b, "dil.linear.Jacobi")
        if self.diagonal is None and b.shape[-1] == 0:
            return Prepared(lambda r: r)
        if self.diagonal is None:
            loops = with_loop(backend.loops, loop)
            found = estimated_diagonal(A, b, backend, probes=self.probes, seed=self.seed, loops=loops)
            # the square of the root may overflow or underflow
            return Prepared(lambda r: found.root * (found.root * r), self.probes)
        given = self.diagonal() if callable(self.diagonal) else self.diagonal
        diagonal = backend.asarray(given, dtype=b.dtype, device=device(b))
        if tuple(diagonal.shape) not in (tuple(b.shape), tuple(b.shape[-1:])):
            message = f"the diagonal has shape {tuple(diagonal.shape)}; expected {tuple(b.shape)}, like b"
            raise ShapeError(message)
        return Prepared(lambda r: r / diagonal)
