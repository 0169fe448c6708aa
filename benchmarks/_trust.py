"""Random layers with known gradients, solved to a loose tolerance. The error bound of the gradient is tested on them.

The reference does not use dil. F is written by hand in NumPy and differentiated by complex steps. Newton's method with
dense matrices computes the solution, and a dense solve computes the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import dil

Array = Any
KINDS = {"argmin": dil.argmin, "root": dil.root, "fixed point": dil.fixed_point}
TINY = 1e-30
"""The length of a complex step, whose square leaves no trace."""


def product(A: Array, u: Array) -> Array:
    """Return A u: (*batch, m, n), (*batch, n) -> (*batch, m)."""
    return array_namespace(u).matmul(A, u[..., None])[..., 0]


def transposed(A: Array, u: Array) -> Array:
    return product(np.swapaxes(A, -1, -2), u)


def logistic(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))


# --- what the layers are given, by array API functions, and F by hand, in NumPy, also for complex arrays -------------


def network(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return a softplus network plus a parabola of curvatures d."""
    xp = array_namespace(u)
    z = product(A, u) + x
    softplus = xp.log1p(xp.exp(-xp.abs(z))) + xp.maximum(z, 0.0 * z)
    return xp.sum(softplus, axis=-1) + 0.5 * xp.sum(d * u * u, axis=-1)


def network_slope(u: Array, A: Array, x: Array, d: Array) -> Array:
    return transposed(A, logistic(product(A, u) + x)) + d * u


def quartic(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return a quartic bowl, coupled by A, that is flat but for d."""
    xp = array_namespace(u)
    z = u - x
    w = product(A, z)
    return 0.25 * xp.sum(z**4, axis=-1) + 0.5 * xp.sum(w * w, axis=-1) + 0.5 * xp.sum(d * (z - 1.0) ** 2, axis=-1)


def quartic_slope(u: Array, A: Array, x: Array, d: Array) -> Array:
    z = u - x
    return z**3 + transposed(A, product(A, z)) + d * (z - 1.0)


def coupled(u: dict[str, Array], A: Array, x: Array, d: Array) -> Array:
    """Return a score of two leaves that depend on each other."""
    a, b = u["a"], u["b"]
    xp = array_namespace(a)
    w = product(A, a) - b
    bowl = 0.5 * xp.sum(w * w, axis=-1) + 0.5 * xp.sum(d * (a - x) ** 2, axis=-1)
    return bowl + 0.5 * xp.sum(b * b, axis=-1) + 0.25 * xp.sum(b**4, axis=-1)


def coupled_slope(u: Array, A: Array, x: Array, d: Array) -> Array:
    a, b = np.split(u, 2, axis=-1)
    w = product(A, a) - b
    return np.concatenate([transposed(A, w) + d * (a - x), -w + b + b**3], axis=-1)


def wells(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return double wells of depths d, coupled weakly: it is not convex."""
    xp = array_namespace(u)
    waves = 0.1 * xp.sum(xp.sin(product(A, u)), axis=-1) / u.shape[-1]
    return 0.25 * xp.sum(d * (u * u - 1.0) ** 2, axis=-1) + waves - 0.05 * xp.sum(d * xp.tanh(x) * u, axis=-1)


def wells_slope(u: Array, A: Array, x: Array, d: Array) -> Array:
    waves = 0.1 * transposed(A, np.cos(product(A, u))) / u.shape[-1]
    return d * (u**3 - u) + waves - 0.05 * d * np.tanh(x)


def saturating(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return a residual whose Jacobian, diag(d) + A diag(1 - tanh(u)^2) / 2, is not symmetric."""
    return d * u + 0.5 * product(A, array_namespace(u).tanh(u)) - x


def cubic(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return a residual that bends ever more, coupled by rotations: its Jacobian's symmetric part is positive."""
    return d * u + product(A, u) - product(array_namespace(A).swapaxes(A, -1, -2), u) + u**3 - x


def recurrent(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return the step of a network that is run to its fixed point."""
    return array_namespace(u).tanh(product(A, u) + x) / d


def cosines(u: Array, A: Array, x: Array, d: Array) -> Array:
    """Return a step that turns and contracts."""
    return product(A, array_namespace(u).cos(u)) + x / d


@dataclass(frozen=True)
class Family:
    """A function of an unknown of n entries, and F, by hand."""

    kind: Literal["argmin", "root", "fixed point"]
    function: Callable[..., Array]
    residual: Callable[..., Array]
    leaves: int = 1

    def tree(self, u: Array) -> Any:
        """Return the unknown as the layer has it."""
        return u if self.leaves == 1 else dict(zip("ab", np.split(u, self.leaves, axis=-1), strict=True))

    def arguments(self, n: int, condition: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Return A, x and d, such that the condition number of dF/du is about the one given, or less."""
        m = n // self.leaves
        d = np.geomspace(1.0, condition, m)
        A, x = rng.standard_normal((m, m)) / m**0.5, rng.standard_normal(m)
        if self.kind == "argmin":
            d = d / condition
            return (A * d if self.function is wells else A), x, d
        if self.kind == "root":
            return A / np.linalg.norm(A, 2), x, d
        # a step that contracts slowly: the nearer to one, the worse the condition of I - dstep/du
        return A * (1 - 0.5 / condition**0.5) / np.linalg.norm(A, 2), x, np.ones(m)


def _to_fixed(step: Callable[..., Array]) -> Callable[..., Array]:
    return lambda u, *args: u - step(u, *args)


FAMILIES = {
    "network": Family("argmin", network, network_slope),
    "quartic": Family("argmin", quartic, quartic_slope),
    "coupled": Family("argmin", coupled, coupled_slope, leaves=2),
    "wells": Family("argmin", wells, wells_slope),
    "saturating": Family("root", saturating, saturating),
    "cubic": Family("root", cubic, cubic),
    "recurrent": Family("fixed point", recurrent, _to_fixed(recurrent)),
    "cosines": Family("fixed point", cosines, _to_fixed(cosines)),
}


# --- the reference ---------------------------------------------------------------------------------------------------


def jacobian(F: Callable[..., Array], u: Array, args: Sequence[Array]) -> Array:
    """Return dF/du, (n, n)."""
    steps = 1j * TINY * np.eye(u.shape[-1])
    return (F(u + steps, *args).imag / TINY).T


def solution(family: Family, args: Sequence[Array]) -> Array | None:
    """Return where F vanishes, (n,), by Newton steps with backtracking; None if they do not settle at a solution."""
    n = args[1].shape[-1] * family.leaves
    u = np.ones(n) if family.function is wells else np.zeros(n)
    for _ in range(60):
        Fu = family.residual(u, *args)
        step = np.linalg.solve(jacobian(family.residual, u, args), Fu)
        if np.linalg.norm(step) <= 1e-14 * (1 + np.linalg.norm(u)):
            break
        lengths = [0.5**k for k in range(12)]
        falls = [t for t in lengths if np.linalg.norm(family.residual(u - t * step, *args)) < np.linalg.norm(Fu)]
        u = u - (falls[0] if falls else 1.0) * step
    J = jacobian(family.residual, u, args)
    left = np.linalg.solve(J, family.residual(u, *args))
    if not np.linalg.norm(left) <= 4e-16 * np.linalg.cond(J) * (1 + np.linalg.norm(u)):
        return None
    minimum = family.kind != "argmin" or np.linalg.eigvalsh(J)[0] > 0
    return u if minimum else None


def gradient(family: Family, u: Array, args: Sequence[Array], v: Array) -> Array:
    """Return -g^T F_args with J^T g = v, the arguments' entries in one row, by dense linear algebra at u."""
    g = np.linalg.solve(jacobian(family.residual, u, args).T, v)
    rows = []
    for i, x in enumerate(args):
        steps = 1j * TINY * np.eye(x.size).reshape(x.size, *x.shape)
        moved = [x + steps if i == k else other for k, other in enumerate(args)]
        rows.append(-(family.residual(np.tile(u, (x.size, 1)), *moved).imag / TINY) @ g)
    return np.concatenate(rows)


# --- rough solves ----------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """One problem, or several of a batch: every array has the batch in front, which may be ()."""

    name: str
    args: tuple[Array, ...]
    exact: Array
    """The solution."""
    rough: Array
    """Where the forward solver stopped."""
    v: Array
    """dL/dy."""
    linear: str
    solver: Any
    """The linear solver; None for the layer's own."""

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]


class Row(NamedTuple):
    """What was measured of one problem."""

    name: str
    size: int
    batch: int
    condition: float
    """Of dF/du at the solution."""
    linear: str
    argmin_error: float
    """||y - y*|| / (1 + ||y*||)"""
    error: float
    """||G - G*|| / ||G*||, G the gradient in all arguments."""
    bound: float

    @property
    def covered(self) -> bool:
        return self.error <= self.bound

    @property
    def compared(self) -> bool:
        """Whether the error is more than rounding, and the bound finite, so that their ratio says something."""
        return self.error > 1e-13 * self.condition and np.isfinite(self.bound)


def draw(rng: np.random.Generator, name: str, *, largest: int = 30, batch: int = 0) -> Problem:
    """Draw a problem, or a batch of them, that has a solution, and how it is solved."""
    family = FAMILIES[name]
    n = family.leaves * max(1, int(largest ** rng.uniform(0, 1)) // family.leaves)
    condition = 10.0 ** rng.uniform(0, 4)
    drawn = [_solved(family, n, condition, rng) for _ in range(batch or 1)]
    J = jacobian(family.residual, drawn[0][1], drawn[0][0])
    linear, solver = linear_solver(family.kind, J, rng)
    rough = [u + _error(family, args, u, rng) for args, u in drawn]
    v = rng.standard_normal((len(drawn), n))
    if not batch:
        return Problem(name, drawn[0][0], drawn[0][1], rough[0], v[0], linear, solver)
    args = tuple(np.stack(x) for x in zip(*(args for args, _ in drawn), strict=True))
    return Problem(name, args, np.stack([u for _, u in drawn]), np.stack(rough), v, linear, solver)


def _solved(family: Family, n: int, condition: float, rng: np.random.Generator) -> tuple[tuple[Array, ...], Array]:
    while True:
        args = family.arguments(n, condition, rng)
        u = solution(family, args)
        if u is not None:
            return args, u


def _error(family: Family, args: Sequence[Array], u: Array, rng: np.random.Generator) -> Array:
    """Return what a solver left: of a length of 1e-10 to 1e-1, anywhere, or where J is weak, as descent leaves it."""
    error = rng.standard_normal(u.shape)
    if rng.uniform() < 0.5:
        error = np.linalg.solve(jacobian(family.residual, u, args), error)
    return 10.0 ** rng.uniform(-10, -1) * (1 + np.linalg.norm(u)) * error / np.linalg.norm(error)


def linear_solver(kind: str, J: Array, rng: np.random.Generator) -> tuple[str, Any]:
    """Return a linear solver, half of the time the layer's own, and its name."""
    size = float(np.linalg.norm(J, 2))
    rtol, terms = float(10.0 ** rng.uniform(-8, -2)), int(rng.integers(2, 60))
    damping, steps = size * float(10.0 ** rng.uniform(-8, -2)), int(rng.integers(1, 6))
    cut: dict[str, Any] = {"damping": dil.linear.Auto(damping=damping)}
    if kind == "argmin":
        cut |= {"CG(rtol)": dil.linear.CG(rtol=rtol), "CG(max_iter)": dil.linear.CG(max_iter=steps)}
        cut |= {"Neumann": dil.linear.Neumann(terms, step=1 / size)}
    else:
        cut |= {"GMRES(rtol)": dil.linear.GMRES(rtol=rtol), "BiCGSTAB(rtol)": dil.linear.BiCGSTAB(rtol=rtol)}
    if kind == "fixed point":
        cut |= {"Neumann": dil.linear.Neumann(terms)}
    choice = [*["exact"] * len(cut), *cut][rng.integers(2 * len(cut))]
    return choice, cut.get(choice)


def measure(problem: Problem, *, refine: int = 0) -> list[Row]:
    """Differentiate the layer at the rough solution, and hold its gradient and its bound against the reference."""
    family, batched = problem.family, problem.v.ndim == 2
    layer = KINDS[family.kind](
        family.function,
        lambda *_: family.tree(problem.rough),
        linear_solver=problem.solver,
        batch_ndim=int(batched),
        on_failure="ignore",
        refine=refine,
    )
    with dil.record() as record:
        y, pull = dil.vjp(layer, *problem.args)
        grads = pull(family.tree(problem.v))
    found = np.concatenate([y[k] for k in sorted(y)], axis=-1) if isinstance(y, dict) else y
    rows = zip(
        *(np.atleast_2d(x) for x in (found, problem.exact, problem.v)),
        _rows(problem.args, batched),
        _rows(grads, batched),
        np.atleast_1d(record.backward[0].bound),
        strict=True,
    )
    return [_row(problem, *row) for row in rows]


def _rows(arrays: Sequence[Array], batched: bool) -> list[tuple[Array, ...]]:
    return list(zip(*arrays, strict=True)) if batched else [tuple(arrays)]


def _row(problem: Problem, y: Array, exact: Array, v: Array, args: Any, grads: Any, bound: float) -> Row:
    family = problem.family
    G = gradient(family, exact, args, v)
    return Row(
        problem.name,
        exact.size,
        len(problem.v) if problem.v.ndim == 2 else 0,
        float(np.linalg.cond(jacobian(family.residual, exact, args))),
        problem.linear,
        float(np.linalg.norm(y - exact) / (1 + np.linalg.norm(exact))),
        float(np.linalg.norm(np.concatenate([np.ravel(x) for x in grads]) - G) / np.linalg.norm(G)),
        float(bound),
    )


def problems(count: int, seed: int, *, largest: int = 30, batches: float = 0.1) -> list[Problem]:
    """Draw problems of every family in turn until there are so many, some of them in batches of three."""
    rng, drawn, total = np.random.default_rng(seed), [], 0
    while total < count:
        batch = 3 if rng.uniform() < batches else 0
        drawn.append(draw(rng, list(FAMILIES)[len(drawn) % len(FAMILIES)], largest=largest, batch=batch))
        total += batch or 1
    return drawn
