"""The pairs of a quasi-Newton solver of the forward problem as a preconditioner: it costs no product at all."""

from __future__ import annotations

from dataclasses import dataclass

from dil._base.arrays import array_namespace, full
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.quasi_newton import Pairs, inverse_product, inverse_scale
from dil._base.typing import Array, Loop
from dil.linear.preconditioners._preconditioner import Prepared


@dataclass(frozen=True)
class LBFGSPairs:
    """Precondition by what the forward solver has learned about the Hessian: the L-BFGS approximation of its inverse.

    Notes
    -----
    The pairs (s, y), y = A s, of the last steps correct a first approximation. Where the pairs are explained by a
    diagonal, y_i = d_i s_i over all of them, that diagonal is the first approximation, which needs few pairs even for
    scales that differ widely; elsewhere it is the usual multiple of the identity, and each pair is worth about one
    large eigenvalue. The last steps of a solver that has converged see little of the large ones, so let it remember
    twice as many pairs as there are: `dil.solvers.LBFGS(memory=...)`.

    Sources: Morales and Nocedal 2000, section 2; Nocedal and Wright 2006, Algorithm 7.4; a diagonal to start from:
    Gilbert and Lemarechal 1989, section 4.

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
        """Return the product with the approximation."""
        pairs = A.pairs
        if pairs is None:
            message = (
                "LBFGSPairs() got no pairs of steps and gradients: the forward solver hands them over, and only "
                "dil.solvers.LBFGS() has any; take it for the layer, or another preconditioner, such as Jacobi()"
            )
            raise OptionError(message)
        if b.shape[-1] == 0:
            return Prepared(lambda r: r)
        inverse = _inverse_diagonal(pairs)
        return Prepared(lambda r: inverse_product(pairs, r, inverse))


def _inverse_diagonal(pairs: Pairs) -> Array:
    """Return what to start the approximation of A^-1 from, (*batch, n)."""
    xp, (s, y, rho) = array_namespace(pairs.s), pairs
    # every pair counts alike: <s, y> = 1
    used = (rho > 0)[..., None]
    weight = xp.where(used, rho[..., None], full(rho[..., None], 0.0))
    ss, sy, yy = (xp.sum(weight * product, axis=0) for product in (s * s, s * y, y * y))
    known = (ss > 0) & (yy > 0)
    safe_ss, safe_yy = (xp.where(known, a, full(a, 1.0)) for a in (ss, yy))
    # the square of the correlation of s_i and y_i: one for a diagonal matrix, about 1 / pairs for a dense one
    explained = xp.where(known & (sy > 0), sy / safe_ss * (sy / safe_yy), full(ss, 0.0))
    diagonal = xp.mean(explained, axis=-1, keepdims=True) > 0.5
    fitted = xp.sqrt(safe_ss / safe_yy)
    scale = inverse_scale(pairs)[..., None]
    return xp.where(diagonal & known, fitted, scale)  # type: ignore[no-any-return]
