"""The coupled stages of a step of collocation, of a small state, by simplified Newton iterations.

With b of `Collocation`, their matrix is B = b x M - h I x J. The eigenvalues of b invert it: one system of n real
unknowns, and one of n complex ones, as 2n real ones (Hairer and Wanner 1996, IV.8).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eye, full
from dil._base.scalars import filled, smaller
from dil._base.typing import Array, Arrays
from dil.ode._collocation import Collocation, Matrix, constant
from dil.ode._simplified_newton import Kept, SimplifiedNewton, SimplifiedStages


class CoupledKept(NamedTuple):
    """What one step keeps for the next: the fields of `Kept`, and the inverses."""

    jacobian: Array
    current: Array
    slow: Array
    rate: Array
    past: Array
    """The stages of the last step minus its start, (*batch, s, n)."""
    time: Array
    """The length of that step."""
    inverse: Array
    """That of the matrix of the stages, (*batch, s n, s n)."""
    filter: Array
    """That of the real system, (*batch, n, n)."""
    gh: Array
    """The length of the step of these inverses, shape ()."""


LONGEST_EXTRAPOLATION = 5.0
"""The stages of the last step are a first guess for a step that is at most so many times as long."""


@dataclass(frozen=True)
class CoupledNewton(SimplifiedNewton):
    """Makes the stages of each step of a search."""

    nodes: Collocation = field(kw_only=True)

    def first(self, y: Array, t: Array, slope: Array) -> Arrays:
        """Return what the first step is given: stages that do not move."""
        kept = Kept(*super().first(y, t, slope))
        none = 0.0 * y[..., None, :] + full(y, 0.0, shape=(self.nodes.count, 1))
        size, zero = self.nodes.count * y.shape[-1], 0.0 * y[..., None]
        inverse = zero[..., :1, :] + full(y, 0.0, shape=(size, size))
        kept = kept._replace(past=none, time=0.0 * t + 1.0)
        return CoupledKept(*kept, inverse=inverse, filter=kept.jacobian, gh=0.0 * t)

    def stages(self, t: Array, y: Array, slope: Array, allowed: Array, kept: Arrays) -> SimplifiedStages:
        """Return the stages of a step from y at t. Its error may be `allowed`."""
        return CoupledStages(self, t, y, slope, allowed, CoupledKept(*kept))


class CoupledStages(SimplifiedStages):
    """The stages of one step from y at t."""

    kept: Any

    def __init__(self, maker: CoupledNewton, t: Array, y: Array, slope: Array, allowed: Array, kept: Any) -> None:
        super().__init__(maker, t, y, slope, allowed, kept)
        self.nodes = maker.nodes
        self.weight = maker.nodes.tiled(self.weight)

    def solve_collocation(
        self, nodes: Collocation, y: Arrays, first: Arrays, t: Array, h: Array
    ) -> tuple[Arrays, list[Arrays]]:
        """Return the last stage and the slopes at the nodes, from the slope at the start."""
        (start,) = y
        self._invert(h)
        found = self._iterate(start, t, h, self._extrapolated(start, h))
        parts, slopes = nodes.parts(found.z), nodes.slopes(found.z, start, h)
        self.kept = self.kept._replace(past=parts - start[..., None, :], time=h)
        self.last = self.end = slopes[-1]
        self.solutions += [parts[..., i, :] for i in range(nodes.count)]
        self._count(found)
        return (parts[..., -1, :],), slopes

    def induced(self, error: Array, y: Array, t: Array) -> Array:
        """Return (M - gh J)^-1 M times an estimate, where gh is h over the real eigenvalue (IV.8.19)."""
        if self.mass is not None:
            error = array_namespace(error).where(self.mass.algebraic, 0.0 * error, self.mass.times(error))
        return self.nodes.real * (self.kept.filter @ error[..., None])[..., 0]  # type: ignore[no-any-return]

    def _extrapolated(self, start: Array, h: Array) -> Array:
        """Return the first iterate: the polynomial of the last step, from where it ended (IV.8.5)."""
        past, longest = self.kept.past, LONGEST_EXTRAPOLATION
        ratio = self.scalars.number(h / self.kept.time)
        ratio = smaller(ratio, filled(ratio, longest))
        powers = [[c ** (k + 1) for k in range(self.nodes.count)] for c in self.nodes.nodes]
        xp = array_namespace(start)
        lengths = xp.stack([h * 0.0 + ratio ** (k + 1.0) for k in range(self.nodes.count)])
        change = (constant(powers, start) * lengths) @ (constant(self.nodes.at_end, start) @ past)
        return self.nodes.joined(start[..., None, :] + change)

    def _invert(self, gh: Array) -> None:
        """Compute the inverse of the matrix of the stages, and of the real system, from the kept Jacobian."""
        before, jacobian = self.kept, self._renewed_jacobian()
        if self.mass is not None:
            self.factor = self.mass.factor(gh)
        renewed = (before.slow & ~before.current) | (gh != before.gh)
        found = self.field.backend.loops.run_if(
            renewed, lambda _: self._inverses(jacobian, gh), (before.inverse, before.filter)
        )
        self.kept = self.kept._replace(inverse=found[0], filter=found[1], gh=gh)
        self.inverse, self.gh = found[0], gh

    def _inverses(self, jacobian: Array, gh: Array) -> tuple[Array, Array]:
        """Return the inverses of the matrix of the stages, and of the real system."""
        nodes, lu_solve = self.nodes, self.field.backend.dense.lu_solve
        xp, n, real = array_namespace(jacobian), jacobian.shape[-1], nodes.pair.real
        identity = 0.0 * jacobian + eye(n, jacobian)
        if self.mass is None:
            rows = eye(n, jacobian)
            single, first = nodes.real * rows - gh * jacobian, real * rows - gh * jacobian
        else:
            rows = self.mass.rows
            single, first = (self.mass.stage_matrix(jacobian, gh, x) for x in (nodes.real, real))
        second = 0.0 * jacobian + nodes.pair.imag * rows
        both = xp.concat([xp.concat([first, -second], axis=-1), xp.concat([second, first], axis=-1)], axis=-2)
        inverse = lu_solve(single, identity)
        pair = lu_solve(both, xp.concat([identity, 0.0 * identity], axis=-2))
        parts = (inverse, pair[..., :n, :], pair[..., n:, :])
        products = [_product(a, x) for a, x in zip(nodes.projections, parts, strict=True)]
        return products[0] + products[1] + products[2], inverse

    def _residual(self, z: Array, base: Array, t: Array, gh: Array) -> Array:
        nodes, moved = self.nodes, self.nodes.moved(z, base)
        slopes = nodes.rates(self.field, z, t, gh, self.args)
        if self.mass is None:
            return nodes.joined(moved - gh * slopes)
        return nodes.joined(self.mass.stage(moved, 0.0 * moved, self.factor, slopes))


def _product(a: Matrix, x: Array) -> Array:
    """Return the Kronecker product of a and x, (*batch, n, n)."""
    found = constant(a, x)[:, None, :, None] * x[..., None, :, None, :]
    size = len(a) * x.shape[-1]
    return array_namespace(x).reshape(found, (*x.shape[:-2], size, size))  # type: ignore[no-any-return]
