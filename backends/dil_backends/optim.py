"""A solver for argmin layers that runs an optimiser of `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dil._base.errors import OptionError
from dil._base.solution import Solution
from dil._base.typing import Tree
from dil._frameworks.registry import leaves_of
from dil.solvers._start import Start, start
from dil_backends._optimiser_bridge import Rule, State, check_arrays

Tensor = torch.Tensor


@dataclass(frozen=True)
class TorchOptim:
    """Minimise by an optimiser of `torch.optim`, or by one of your own with the same interface.

    Parameters
    ----------
    factory : callable
        `factory(params)` returns an optimiser; params is the list of the leaves of the unknown. Examples are
        `torch.optim.Adam` and `functools.partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")`.
    max_iter : int
        The largest number of steps. One step of LBFGS contains several iterations.
    rtol, atol : float, optional
        A problem is solved if ||df/du|| <= rtol ||df/du at the start|| + atol. The defaults are eps ** (1/2) of the
        dtype for rtol and 0 for atol. Give atol if the start may be the solution.

    Raises
    ------
    OptionError
        If the factory does not make an optimiser, the layer is not an argmin layer, or its arrays are not torch's.

    Notes
    -----
    A batch is minimised as the sum of its scores. A problem that has converged or is not finite keeps its iterate.
    Optimisers that act on each entry alone (SGD, Adam) keep the problems of a batch independent. LBFGS uses one step
    length for all problems.

    A problem whose unknown no longer changes ends STAGNATED. LBFGS causes this at its own `tolerance_grad`, which is
    absolute. Put weight decay (on by default in AdamW) into the score. In the optimiser it moves the solution away from
    the minimum of the score, and the problem ends MAX_ITER.

    Examples
    --------
    >>> import torch, dil
    >>> from dil_backends.optim import TorchOptim
    >>> solver = TorchOptim(lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.5))
    >>> layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum(), solver, init=torch.zeros(2))
    >>> layer(torch.tensor([1.0, 2.0])).round(decimals=3)
    tensor([1., 2.])
    """

    factory: Callable[[list[Tensor]], Any]
    max_iter: int = 1000
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.factory) or isinstance(self.factory, torch.optim.Optimizer):
            message = (
                f"factory={self.factory!r}; expected a callable that makes an optimiser of a list of tensors, such as "
                f"torch.optim.Adam or functools.partial(torch.optim.Adam, lr=1e-2)"
            )
            raise OptionError(message)
        self._rule()

    def __call__(self, fun: Any, init: Tree, /, *args: Tree, **kwargs: Tree) -> Solution:
        """Minimise fun from init; the value has the structure of init."""
        started = start(self, fun, init, args, kwargs)
        check_arrays(started, "torch", "TorchOptim")
        rule = self._rule()
        with torch.no_grad():  # the solution carries no derivative; vjp computes the gradients in u
            state = rule.first(started)
            leaves = [x.detach().clone() for x in _leaves(started, state.u)]
            optimiser = self._optimiser([x.requires_grad_() for x in leaves])
            while bool(torch.any(state.going)):  # type: ignore[call-overload]
                u = _step(started, optimiser, leaves, state)
                state = rule.advance(started, state, u)
                for leaf, kept in zip(leaves, _leaves(started, state.u), strict=True):
                    leaf.copy_(kept)
        return rule.finish(started.problem, state)

    def _rule(self) -> Rule:
        return Rule(self.max_iter, self.rtol, self.atol)

    def _optimiser(self, leaves: list[Tensor]) -> Any:
        optimiser = self.factory(leaves)
        if not callable(getattr(optimiser, "step", None)):
            message = (
                f"factory(params) returned {optimiser!r}; expected an optimiser of torch.optim, with step(closure)"
            )
            raise OptionError(message)
        return optimiser


def _step(started: Start, optimiser: Any, leaves: list[Tensor], state: State) -> Any:
    """Take one step of the optimiser from the state. Return the new unknowns, (*batch, n)."""
    problem, _, arrays = started
    known: list[Any] = [(state.value, state.gradient)]  # every optimiser evaluates the current point first

    def closure() -> Any:
        with torch.no_grad():
            value, gradient = known.pop() if known else problem.value_and_gradient(_vector(started, leaves), *arrays)
            total, gradient = state.masked(value, gradient)
            for leaf, slope in zip(leaves, _leaves(started, gradient), strict=True):
                leaf.grad = slope.clone()
        return total

    with torch.enable_grad():
        optimiser.step(closure)
    return _vector(started, leaves)


def _vector(started: Start, leaves: list[Tensor]) -> Any:
    detached: list[Any] = [x.detach() for x in leaves]
    vector: Any = started.problem.space.ravel(detached)
    return vector.clone()


def _leaves(started: Start, u: Any) -> list[Tensor]:
    return leaves_of(started.problem.space.unravel(u))[0]
