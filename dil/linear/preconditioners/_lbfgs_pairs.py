"""A preconditioner from the pairs of a quasi-Newton forward solver. It costs no product."""

from __future__ import annotations

from dataclasses import dataclass

from dil._base.arrays import array_namespace, full
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.quasi_newton import Pairs, inverse_product, inverse_scale
from dil._base.typing import Array, Loop
from dil.linear._right_hand_side import backend_of_system
from dil.linear.preconditioners._preconditioner import Prepared


@dataclass(frozen=True)
class LBFGSPairs:
    """Precondition by the L-BFGS approximation of the inverse Hessian, from the pairs of the forward solver.

    Notes
    -----
    The pairs (s, y) of the last steps, with y = A s, correct an initial approximation. If one diagonal d explains all
    pairs (y_i = d_i s_i for each entry i), the initial approximation of the inverse Hessian is 1 / d. Then a few pairs
    are enough, even if the scales differ widely. Otherwise the initial approximation is the usual multiple of the
    identity, and each pair captures about one large eigenvalue. The last steps of a converged solver have only small
    components along the eigenvectors of the large eigenvalues. So keep twice as many pairs as there are large
    eigenvalues, by `dil.solvers.LBFGS(memory=...)`.

    Sources: Morales and Nocedal 2000, section 2; Nocedal and Wright 2006, Algorithm 7.4; the initial
    diagonal: Gilbert and Lemarechal 1989, section 4.

    Raises
    ------
    OptionError
        By the solve, if there are no pairs.

    Examples
    --------
    >>> import numpy as np, dil
    >>> from dil._base.quasi_newton import no_pairs, remember
    >>> scales = np.logspace(0, 6, 100)
    >>> pairs = remember(no_pairs(scales, 1), np.ones(100), scales, np.asarray(True))
    >>> A = dil.linear.Operator(lambda p: scales * p, symmetric=True, pairs=pairs)
    >>> int(dil.linear.CG(preconditioner=dil.linear.LBFGSPairs())(A, np.ones(100)).iterations)
    1
    """

    uses_pairs = True

    def prepare(self, A: Operator, b: Array, /, *, loop: Loop) -> Prepared:
        """Return a function r -> z: the L-BFGS approximation of the inverse Hessian, times r."""
        pairs = A.pairs
        if pairs is None:
            message = (
                "LBFGSPairs() got no pairs of steps and gradients, which only dil.solvers.LBFGS() provides; take that "
                "solver for the layer, or another preconditioner, such as Jacobi()"
            )
            raise OptionError(message)
        if b.shape[-1] == 0:
            return Prepared(lambda r: r)
        inverse = _inverse_diagonal(pairs)
        return Prepared(
            inverse_product(pairs, backend_of_system(b, "dil.linear.LBFGSPairs").dense.triangular_solve, inverse)
        )


def _inverse_diagonal(pairs: Pairs) -> Array:
    """Return the diagonal of the initial approximation of A^-1, (*batch, n)."""
    xp, (s, y, rho) = array_namespace(pairs.s), pairs
    # every pair has the same weight: <s, y> = 1
    used = (rho > 0)[..., None]
    weight = xp.where(used, rho[..., None], full(rho[..., None], 0.0))
    ss, sy, yy = (xp.sum(weight * product, axis=0) for product in (s * s, s * y, y * y))
    positive = (ss > 0) & (yy > 0)
    safe_ss, safe_yy = (xp.where(positive, a, full(a, 1.0)) for a in (ss, yy))
    # the square of the correlation of s_i and y_i: one for a diagonal matrix, about 1 / pairs for a dense one
    correlation = xp.where(positive & (sy > 0), sy / safe_ss * (sy / safe_yy), full(ss, 0.0))
    is_diagonal = xp.mean(correlation, axis=-1, keepdims=True) > 0.5
    diagonal = xp.sqrt(safe_ss / safe_yy)
    scale = inverse_scale(pairs)[..., None]
    return xp.where(is_diagonal & positive, diagonal, scale)  # type: ignore[no-any-return]
