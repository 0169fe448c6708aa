"""A layer whose score is a torch module. The parameters of the module get gradients."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch.utils import _pytree as pytree

import dil
from dil._base.one_line import one_line
from dil_backends.torch.guards import guard
from dil_backends.torch.isolation import autocasts, isolated
from dil_backends.torch.named_tensors import (
    cast_like,
    is_inexact,
    refuse_devices,
    refuse_dtypes,
    refuse_shards,
    tensors_of_call,
)
from dil_backends.torch.patched_forward import naming_patches
from dil_backends.torch.stateless_score import StatelessScore

if TYPE_CHECKING:
    from dil._base.typing import CheckSmoothness, OnFailure, Tree
    from dil.linear._solver import LinearSolver

Tensor = torch.Tensor
Kind = Literal["argmin", "root", "fixed_point"]


class ImplicitModule(torch.nn.Module):
    """The layer y = argmin_u score(u, *args) as a module. The score (or residual, or step) is a module too.

    Parameters
    ----------
    score : nn.Module
        Called as `score(u, *args, **kwargs)`. It returns one number per problem, shape `u.shape[:batch_ndim]`. For the
        other kinds of layer it is the residual or the step, and returns a tree like u.
    solver : callable
        `solver(fun, init, *args, **kwargs)` returns u, or a `dil.Solution`, as in `dil.argmin`. Here fun is the score
        with its parameters.
    kind : {"argmin", "root", "fixed_point"}
        The kind of layer: `dil.argmin`, `dil.root` or `dil.fixed_point`.
    init : tensor, tree of tensors or callable, optional
        The start of the solver if the call gives no `init=`. A callable is called with the arguments. Tensors move with
        the module, but are not part of its state_dict.
    linear_solver, batch_ndim, on_failure, refine, check_smoothness
        As in `dil.argmin`.

    Notes
    -----
    The solution is differentiable in the parameters and buffers of the score and in every float tensor of the
    arguments. A parameter with requires_grad=False costs nothing. All these tensors have one dtype. Under autocast the
    arguments are cast to the dtype of the parameters, and the layer computes in that dtype.

    A solver calls the score many times, and the backward pass calls it again. Each call uses a copy of the score in the
    train or eval mode of the forward call. Attributes that the copy assigns are lost. The copy also writes to copies of
    the buffers, such as running statistics. The score's own buffers are written once, by a call at the solution. Hooks
    of the score run at every call. Hooks of the ImplicitModule run as usual.

    Raises
    ------
    OptionError
        If the score is not a module, or an option is out of range.

    Examples
    --------
    >>> import torch, dil
    >>> from dil_backends.nn import ImplicitModule
    >>> class Fit(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = torch.nn.Parameter(torch.tensor(2.0))
    ...
    ...     def forward(self, u, x):
    ...         return ((u - self.scale * x) ** 2).sum()
    >>> model = ImplicitModule(Fit(), dil.solvers.Newton(), init=torch.zeros_like)
    >>> model(torch.tensor([1.0, 3.0])).sum().backward()
    >>> round(float(model.score.scale.grad), 3)
    4.0
    """

    def __init__(
        self,
        score: torch.nn.Module,
        solver: Callable[..., Any],
        *,
        kind: Kind = "argmin",
        linear_solver: LinearSolver | None = None,
        batch_ndim: int = 0,
        init: Tree | Callable[..., Tree] | None = None,
        on_failure: OnFailure = "warn",
        refine: int = 0,
        check_smoothness: CheckSmoothness = "first",
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            message = f"kind={kind!r} is unknown; expected one of {', '.join(get_args(Kind))}"
            raise dil.OptionError(message)
        if not isinstance(score, torch.nn.Module):
            message = (
                f"score={score!r} of type {type(score).__name__}; expected a torch.nn.Module; for another callable "
                f"take dil.{kind}"
            )
            raise dil.OptionError(message)
        self.score, self.solver, self.kind = score, solver, kind
        self.linear_solver, self.batch_ndim = linear_solver, batch_ndim
        self.on_failure, self.refine, self.check_smoothness = on_failure, refine, check_smoothness
        self.init = init
        self._written: dict[Hashable, frozenset[str]] = {}
        self._layer(score)  # report an option out of range here

    def forward(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Tree:
        """Return the solution. It is differentiable in the tensors of the module and of the arguments, not in `init`.

        Raises
        ------
        DTypeError
            If the float tensors of the module and of the arguments do not all have one dtype.
        BackendError
            If the tensors are on devices between which torch cannot compute.
        OptionError
            If the score has a parameter whose shape is not yet known (a lazy module before its first call), or draws
            random numbers.
        CapturedError
            If the score computes with tensors that are neither its own nor arguments, as a `forward` does that was
            replaced by a function which keeps the module.
        UnsupportedFunctionError
            If the score changes the unknown, an argument or a parameter in place.
        """
        return guard(self._answer, exact=False)(args, kwargs, init)

    def _answer(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Tree:
        score = self._score()
        args, kwargs = self._ready(score, args, kwargs)
        with naming_patches(self.score):
            y = self._layer(score)(*args, init=init, **kwargs)
        if score.written:
            del kwargs["score_module"]
            with torch.no_grad(), isolated():
                self.score(y, *args, **kwargs)
        return y

    def solve(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> dil.Solution:
        """Return the `dil.Solution` of the solver, as `dil.Layer.solve`: no derivative, and no `on_failure`."""
        score = self._score()
        args, kwargs = self._ready(score, args, kwargs)
        return self._layer(score).solve(*args, init=init, **kwargs)

    def report(
        self, *args: Tree, init: Tree | None = None, cotangent: Tree | None = None, **kwargs: Tree
    ) -> dil.Report:
        """Return the diagnostics of one forward and one backward solve, as `dil.Layer.report`."""
        score = self._score()
        args, kwargs = self._ready(score, args, kwargs)
        return self._layer(score).report(*args, init=init, cotangent=cotangent, **kwargs)

    def extra_repr(self) -> str:
        """Return the options in one line; torch shows the score below it."""
        return f"{one_line(self.solver)}, kind={self.kind!r}, batch_ndim={self.batch_ndim}"

    def _score(self) -> StatelessScore:
        return StatelessScore(self.score, self._written)

    def _layer(self, score: Callable[..., Any]) -> dil.Layer:
        """Return a new layer for each call, because the settings of the module may change between calls."""
        return getattr(dil, self.kind)(  # type: ignore[no-any-return]
            score,
            _BoundSolver(self.solver) if callable(self.solver) and not isinstance(self.solver, type) else self.solver,
            linear_solver=self.linear_solver,
            batch_ndim=self.batch_ndim,
            init=self._start(),
            on_failure=self.on_failure,
            refine=self.refine,
            check_smoothness=self.check_smoothness,
        )

    def _start(self) -> Tree | Callable[..., Tree] | None:
        make = self.init
        return (lambda *args, score_module, **kwargs: make(*args, **kwargs)) if callable(make) else make

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the module and its `init`."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not callable(self.init):
            self.init = pytree.tree_map(lambda x: fn(x) if isinstance(x, Tensor) else x, self.init)
        return self

    def _ready(
        self, score: StatelessScore, args: tuple[Tree, ...], kwargs: dict[str, Tree]
    ) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """Return the arguments of the layer: the arguments of the call and the tensors of the score."""
        if "score_module" in kwargs:
            message = "the argument score_module= of an ImplicitModule is the module's own; call yours another name"
            raise dil.OptionError(message)
        state = score.state()
        first = next((x for x in state.values() if is_inexact(x)), None)
        if first is not None:
            if first.device.type in autocasts():
                args, kwargs = pytree.tree_map(partial(cast_like, first), (args, kwargs))
            handed = tensors_of_call(args, kwargs)
            refuse_dtypes(score.__name__, state, handed)
            refuse_devices(score.__name__, {**state, **handed})
            refuse_shards(score.__name__, {**state, **handed})
        return args, {**kwargs, "score_module": state}


class _BoundSolver:
    """The user's solver. It gets a score that already has its tensors, so `score_module` is no argument of it."""

    def __init__(self, solver: Callable[..., Any]) -> None:
        self.solver = self.identity = solver
        self.__name__ = getattr(solver, "__name__", type(solver).__name__)

    def __call__(self, fun: Any, init: Tree, *args: Tree, score_module: dict[str, Tensor], **kwargs: Tree) -> Any:
        bound = partial(fun.fn, score_module=score_module)
        bound.__name__ = fun.name  # type: ignore[attr-defined]
        return self.solver(replace(fun, fn=bound), init, *args, **kwargs)
