"""A solver for argmin layers that runs a gradient transformation of optax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Tree
from dil._frameworks.registry import leaves_of
from dil.solvers._start import Start, start
from dil_backends._optimiser_bridge import Rule, State, check_arrays


@dataclass(frozen=True)
class Optax:
    """Minimise by a gradient transformation of optax, in one compiled loop.

    Parameters
    ----------
    transformation : optax.GradientTransformation
        Such as `optax.adam(1e-2)`, a chain, or `optax.lbfgs()`. A line search gets the value and the score function.
    max_iter : int
        The largest number of updates.
    rtol, atol : float, optional
        A problem is solved if ||df/du|| <= rtol ||df/du at the start|| + atol. The defaults are eps ** (1/2) of the
        dtype for rtol and 0 for atol. Give atol if the start may be the solution.

    Raises
    ------
    OptionError
        If `transformation` is not one of optax, the layer is not an argmin layer, or its arrays are not JAX's.

    Notes
    -----
    A batch is minimised as the sum of its scores. A problem that has converged or is not finite keeps its iterate.
    Transformations that act on each entry alone (`sgd`, `adam`) keep the problems of a batch independent. A line
    search, or clipping by the global norm, uses one step length for all problems. Under `jax.vmap` each problem has its
    own step length.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, dil
    >>> from dil_backends.optax import Optax
    >>> layer = dil.argmin(lambda u, t: jnp.sum((u - t) ** 2), Optax(optax.sgd(0.3)), init=jnp.zeros_like)
    >>> [round(float(y), 2) for y in layer(jnp.asarray([1.0, 2.0]))]
    [1.0, 2.0]
    """

    transformation: Any
    max_iter: int = 1000
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.transformation, optax.GradientTransformation):
            message = f"transformation={self.transformation!r}; expected one of optax, such as optax.adam(1e-2)"
            raise OptionError(message)
        self._rule()

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs)
        check_arrays(started, "jax", "Optax")
        rule, update = self._rule(), optax.with_extra_args_support(self.transformation).update

        def step(carried: tuple[State, Any]) -> tuple[State, Any]:
            state, memory = carried
            params = _tree(started, state.u)
            total, gradient = state.masked(state.value, state.gradient)
            slope = _tree(started, gradient)
            asked = {"value": total, "grad": slope, "value_fn": lambda p: _total(started, state, p)}
            updates, found = update(slope, memory, params, **asked)
            u = _vector(started, optax.apply_updates(params, updates))
            return rule.advance(started, state, u), jax.tree.map(_like, found, memory)

        state = rule.first(started)
        first = state, jax.tree.map(jnp.asarray, self.transformation.init(_tree(started, state.u)))
        state, _ = started.problem.backend.loops.while_loop(_going, step, first)
        return rule.finish(started.problem, state)

    def _rule(self) -> Rule:
        return Rule(self.max_iter, self.rtol, self.atol)


def _going(carried: tuple[Any, Any]) -> Any:
    return jnp.any(carried[0].going)


def _total(started: Start, state: Any, params: Tree) -> Any:
    """Return the sum of the scores of the active problems. It does not depend on the other problems."""
    problem, _, arrays = started
    u: Any = jnp.where(state.going, _vector(started, params), state.u)
    return state.masked(problem.value(u, *arrays), state.gradient)[0]


def _tree(started: Start, u: Any) -> Tree:
    """Return the unknown as a pytree of JAX: the unknown, or the list of its leaves if JAX finds other leaves."""
    tree = started.problem.space.unravel(u)
    leaves = leaves_of(tree)[0]
    seen = jax.tree.leaves(tree)
    return tree if len(seen) == len(leaves) and all(x is y for x, y in zip(seen, leaves, strict=True)) else leaves


def _vector(started: Start, params: Tree) -> Any:
    vector = started.problem.space.ravel(leaves_of(params)[0])
    return jnp.asarray(vector, dtype=started.u.dtype)  # a line search may have changed the dtype to a wider one


def _like(new: Any, old: Any) -> Any:
    """Return the state of a transformation in its initial dtypes, which a compiled loop requires."""
    return jnp.asarray(new, dtype=old.dtype)
