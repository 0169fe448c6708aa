"""A layer whose score is a torch module: its parameters are found, and get gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch.utils import _pytree as pytree

import dil
from dil_backends.torch import autocasts, moves, shield, without_autocast

if TYPE_CHECKING:
    from dil._base.typing import OnFailure, Tree
    from dil.linear._solver import LinearSolver

Tensor = torch.Tensor
Kind = Literal["argmin", "root", "fixed_point"]


class ImplicitModule(torch.nn.Module):
    """The layer y = argmin_u score(u, *args) as a module, whose score (or residual, or step) is a module itself.

    Parameters
    ----------
    score : nn.Module
        Called as `score(u, *args, **kwargs)`; returns one number per problem, shape `u.shape[:batch_ndim]`. In the
        other kinds it is the residual or the step, and returns a tree like u.
    solver : callable
        `solver(fun, init, *args, **kwargs)` returns u, or a `dil.Solution`, as in `dil.argmin`; fun is the score with
        its parameters in place.
    kind : {"argmin", "root", "fixed_point"}
        What the answer satisfies: that of `dil.argmin`, `dil.root` or `dil.fixed_point`.
    init : tensor, tree of tensors or callable, optional
        Where the solver starts, if the call gives no `init=`; a callable is called with the arguments. Tensors move
        with the module, and are no part of its state_dict.
    linear_solver, batch_ndim, on_failure, refine
        As in `dil.argmin`.

    Notes
    -----
    The answer is differentiable in the parameters and buffers of the score and in every float tensor of the arguments;
    a parameter with requires_grad=False costs nothing. All of them share one dtype. Under autocast the arguments are
    cast to that of the parameters, and the layer computes in it.

    A solver calls the score many times, and the backward pass calls it again: each time a stand-in as the score was
    in the forward call, in train or eval. What that assigns to itself is lost with it; the buffers that it writes, such
    as running statistics, are copies, and the buffers of the score are written once, by a call of it at the answer.
    Hooks of the score run at every call; those of the ImplicitModule run as those of any module.

    Raises
    ------
    OptionError
        If the score is no module, or an option is out of range.

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
        self.on_failure, self.refine = on_failure, refine
        self.init = init
        self._written: dict[tuple[bool, ...], frozenset[str]] = {}
        self._layer(score)  # an option that is out of range is said here

    def forward(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> Tree:
        """Return the answer, differentiable in the tensors of the module and of the arguments, never in `init`.

        Raises
        ------
        DTypeError
            If two float tensors, of the module and of the arguments, differ in dtype.
        BackendError
            If the tensors are on devices between which torch cannot compute.
        OptionError
            If the score has a parameter without a shape, or draws random numbers.
        UnsupportedFunctionError
            If the score changes a tensor that it is given.
        """
        return shield(self._answer, exact=False)(args, kwargs, init)

    def _answer(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], init: Tree | None) -> Tree:
        score = _Score(self)
        args, kwargs = self._ready(score, args, kwargs)
        y = self._layer(score)(*args, init=init, **kwargs)
        if score.written:
            del kwargs["score_module"]
            with torch.no_grad(), without_autocast():
                self.score(y, *args, **kwargs)
        return y

    def solve(self, *args: Tree, init: Tree | None = None, **kwargs: Tree) -> dil.Solution:
        """Return the solver's whole answer, as `dil.Layer.solve`: not differentiated, and no policy applied."""
        score = _Score(self)
        args, kwargs = self._ready(score, args, kwargs)
        return self._layer(score).solve(*args, init=init, **kwargs)

    def report(
        self, *args: Tree, init: Tree | None = None, cotangent: Tree | None = None, **kwargs: Tree
    ) -> dil.Report:
        """Return the diagnostics of one forward and one backward solve, as `dil.Layer.report`."""
        score = _Score(self)
        args, kwargs = self._ready(score, args, kwargs)
        return self._layer(score).report(*args, init=init, cotangent=cotangent, **kwargs)

    def _layer(self, score: Callable[..., Any]) -> dil.Layer:
        """Return the layer of one call: what the module is set to may change between calls."""
        return getattr(dil, self.kind)(  # type: ignore[no-any-return]
            score,
            _Solver(self.solver) if callable(self.solver) and not isinstance(self.solver, type) else self.solver,
            linear_solver=self.linear_solver,
            batch_ndim=self.batch_ndim,
            init=self._start(),
            on_failure=self.on_failure,
            refine=self.refine,
        )

    def _start(self) -> Tree | Callable[..., Tree] | None:
        make = self.init
        return (lambda *args, score_module, **kwargs: make(*args, **kwargs)) if callable(make) else make

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the module, and its start with it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not callable(self.init):
            self.init = pytree.tree_map(lambda x: fn(x) if isinstance(x, Tensor) else x, self.init)
        return self

    def _ready(
        self, score: _Score, args: tuple[Tree, ...], kwargs: dict[str, Tree]
    ) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """Return the arguments of the layer: those of the call, and the tensors of the score."""
        if "score_module" in kwargs:
            message = "the argument score_module= of an ImplicitModule is the module's own; call yours another name"
            raise dil.OptionError(message)
        state = score.state()
        first = next((x for x in state.values() if x.is_floating_point()), None)
        if first is not None:
            if first.device.type in autocasts():
                args, kwargs = pytree.tree_map(partial(_cast_like, first), (args, kwargs))
            handed = _arguments(args, kwargs)
            _refuse_dtypes(score.__name__, state, handed)
            _refuse_devices(score.__name__, {**state, **handed})
        return args, {**kwargs, "score_module": state}


class _Score:
    """The score of one call, as a function of the unknown, the arguments and the tensors of its module."""

    def __init__(self, owner: ImplicitModule) -> None:
        self.__name__ = type(owner.score).__name__
        tensors = {**dict(owner.score.named_parameters()), **dict(owner.score.named_buffers())}
        for name, x in tensors.items():
            if torch.nn.parameter.is_lazy(x):
                message = f"parameter {name!r} of {self.__name__} has no shape yet; call the score once by itself"
                raise dil.OptionError(message)
        self.module, self.turn = _stand_in(owner.score), threading.RLock()
        self.names = _names(self.module)
        self.modes = tuple(part.training for part in self.module.modules())
        self.buffers = frozenset(name for name, _ in self.module.named_buffers())
        # a function of torch may refuse a derivative in what has none anyway, as BatchNorm does in its statistics
        self.fixed = frozenset(name for name, x in tensors.items() if not moves(x))
        self.known = owner._written
        """The buffers that it writes, by the modes of its parts; those that are not known yet are found out."""

    @property
    def written(self) -> frozenset[str] | None:
        """The buffers that it writes; None until it has been called in these modes."""
        return self.known.get(self.modes)

    @property
    def copied(self) -> frozenset[str]:
        """The buffers that it may write."""
        return self.buffers if self.written is None else self.written

    def state(self) -> dict[str, Tensor]:
        """Return its parameters and buffers; one that is shared comes once."""
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: x.clone() if name in self.copied else x for name, x in state.items()}

    def __call__(self, u: Tree, *args: Tree, score_module: dict[str, Tensor], **kwargs: Tree) -> Tree:
        first, copied = self.written is None, self.copied
        state = {name: x.detach() if name in self.fixed else x for name, x in score_module.items()}
        state |= {name: state[name].clone() for name in copied}
        handed = {**dict(_named("the unknown", u)), **_arguments(args, kwargs), **state}
        versions = {name: _version(x) for name, x in handed.items()}
        chance = _random_state(u) if first else None
        with self.turn:
            try:
                placed = {place: state[name] for place, name in self.names.items()}
                value = torch.func.functional_call(self.module, placed, (u, *args), kwargs, tie_weights=False)
            except RuntimeError as error:
                _refuse_devices(self.__name__, handed, error)
                _refuse_shards(self.__name__, handed, error)
                raise
        changed = {name for name, x in handed.items() if _version(x) != versions[name]}
        if chance is not None and not torch.equal(chance, _random_state(u)):
            message = (
                f"the score {self.__name__!r} draws random numbers (by Dropout in training?), so it is another "
                f"function at every call and has no solution; put it in eval(), or draw them outside and pass them "
                f"as an argument"
            )
            raise dil.OptionError(message)
        self._refuse_changes(sorted(changed - copied))
        if first:
            # the kernels of BatchNorm write its statistics without counting that; the count of its batches tells
            parts = {name.rpartition(".")[0] for name in changed}
            self.known[self.modes] = frozenset(name for name in copied if name.rpartition(".")[0] in parts)
        return value

    def _refuse_changes(self, names: Sequence[str]) -> None:
        if names:
            message = (
                f"the score {self.__name__!r} changed {', '.join(names)} in place; it must leave what it is given as "
                f"it is, so write u * 2 instead of u.mul_(2), or begin with u.clone()"
            )
            raise dil.UnsupportedFunctionError(message)


class _Solver:
    """The user's solver, which is given a score with its tensors in place, and so no argument of ours."""

    def __init__(self, solver: Callable[..., Any]) -> None:
        self.solver = solver
        self.__name__ = getattr(solver, "__name__", type(solver).__name__)

    def __call__(self, fun: Any, init: Tree, *args: Tree, score_module: dict[str, Tensor], **kwargs: Tree) -> Any:
        bound = partial(fun.fn, score_module=score_module)
        bound.__name__ = fun.name  # type: ignore[attr-defined]
        return self.solver(replace(fun, fn=bound), init, *args, **kwargs)


def _stand_in(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module of the same tensors, whose own are not disturbed where `functional_call` replaces them."""
    # a module that keeps its tensors in places of its own, such as an LSTM, says by this method how to part from them
    copies = {part: part._replicate_for_data_parallel() for part in module.modules()}  # type: ignore[no-untyped-call]
    for part, new in copies.items():
        new._parameters = dict(part._parameters)
        new._modules = {name: child if child is None else copies[child] for name, child in part._modules.items()}
    return copies[module]  # type: ignore[no-any-return]


def _names(module: torch.nn.Module) -> dict[str, str]:
    """Return each place of a tensor in the module, and the name that the tensor has: its first place.

    A part that has several names counts once: `functional_call` would replace its tensors twice, and restore the wrong.
    """
    first: dict[int, str] = {}
    return {
        (place := f"{prefix}.{key}".lstrip(".")): first.setdefault(id(x), place)
        for own in ("_parameters", "_buffers")
        for prefix, part in module.named_modules()
        for key, x in getattr(part, own).items()
        if x is not None
    }


def _named(name: str, tree: Tree) -> Iterator[tuple[str, Tensor]]:
    """Name the tensors of a tree."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    for path, leaf in pytree.tree_leaves_with_path(tree):
        if isinstance(leaf, Tensor):
            yield name + pytree.keystr(path), leaf


def _arguments(args: Sequence[Tree], kwargs: dict[str, Tree]) -> dict[str, Tensor]:
    """Name the tensors of a call."""
    named = [*enumerate(args), *kwargs.items()]
    return {name: x for key, tree in named for name, x in _named(f"argument {key}", tree)}


def _refuse_dtypes(name: str, state: dict[str, Tensor], args: dict[str, Tensor]) -> None:
    """Raise if two float tensors differ in dtype."""
    floats = [(key, x) for key, x in (*state.items(), *args.items()) if x.is_floating_point()]
    for key, x in floats:
        if x.dtype != floats[0][1].dtype:
            message = (
                f"{floats[0][0]} of the score {name!r} is of {floats[0][1].dtype}, but {key} of {x.dtype}; they must "
                f"agree, so cast the argument, or the module by module.to({x.dtype})"
            )
            raise dil.DTypeError(message)


def _refuse_devices(name: str, tensors: dict[str, Tensor], error: RuntimeError | None = None) -> None:
    """Raise with names, if tensors that torch has failed to compute with are on several devices, or one has no numbers.

    Devices may differ by design: a model may be spread over several.
    """
    places = {str(x.device): key for key, x in tensors.items()}
    if len(places) > 1 and (error is not None or "meta" in places):
        found = ", ".join(f"{key} on {place}" for place, key in places.items())
        message = (
            f"the score {name!r} cannot be computed: it has {found}; move them to one device, the module by "
            f"module.to(device), or move what it computes between them itself"
        )
        raise dil.BackendError(message) from error


def _refuse_shards(name: str, tensors: dict[str, Tensor], error: RuntimeError) -> None:
    """Raise with names, if torch has failed to compute with shards and whole tensors together."""
    # by name, since torch.distributed is large and most programs do without
    shards = [key for key, x in tensors.items() if type(x).__name__ == "DTensor"]
    if shards and len(shards) < len(tensors):
        message = (
            f"the score {name!r} cannot be computed: {', '.join(shards)} came as shards (DTensor), the rest as whole "
            f"tensors; call fully_shard on the ImplicitModule or the model around it, not on the score or a part of it"
        )
        raise dil.BackendError(message) from error


def _cast_like(like: Tensor, x: Tree) -> Tree:
    """Cast a float tensor to the dtype of another, as autocast does with what it meets."""
    return x.to(like.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _version(x: Tensor) -> int:
    """Return how often a tensor has been written; torch does not count it for one of inference mode."""
    return 0 if x.is_inference() else x._version


def _random_state(u: Tree) -> Tensor:
    """Return the state of the generator that torch draws from beside u."""
    device = next((x.device for _, x in _named("", u)), torch.device("cpu"))
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_rng_state(device)  # type: ignore[no-any-return]
    return torch.get_rng_state()
