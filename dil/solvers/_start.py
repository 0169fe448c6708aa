"""The start of every solver of the library: the call as a problem over flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from dil._base.arrays import array_namespace, eps, full, norm
from dil._base.errors import OptionError
from dil._base.options import is_integer, is_number
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.arguments import split_arguments, with_complex_split
from dil._frameworks.registry import adopted_tree, common_owner, leaves_of, owner
from dil._problem.equation import Equation
from dil._problem.problem import Problem
from dil._problem.score import Score
from dil._problem.space import space_of

COUNTS = frozenset({"iterations", "max_iter", "memory", "samples"})
"""Options that are integers."""


class Start(NamedTuple):
    """A problem, its arguments, and the vector (*batch, n) that the solver starts from."""

    problem: Problem
    u: Array
    arrays: Arrays


def start(
    solver: object,
    fun: Callable[..., Any],
    init: Tree | None,
    args: tuple[Tree, ...],
    kwargs: Mapping[str, Tree],
    *,
    roots: bool = False,
) -> Start:
    """Return the problem of one call of a solver that minimises. With `roots` it may be an equation.

    Raises
    ------
    OptionError
        If there is no start, or the layer is of another kind.
    """
    _refuse_no_start(solver, init)
    if isinstance(fun, Equation) and not roots:
        message = (
            f"{type(solver).__name__} minimises a score, and this layer has a {fun.kind}; take dil.solvers.Newton() or "
            f"{'SciPyRoot()' if fun.kind == 'residual' else 'Anderson()'} for it"
        )
        raise OptionError(message)
    condition = fun if isinstance(fun, Score | Equation) else _score_of(fun, init, args, kwargs)
    return _begin(solver, condition, init, args, kwargs)


def start_equation(
    solver: object,
    fun: Callable[..., Tree],
    init: Tree | None,
    args: tuple[Tree, ...],
    kwargs: Mapping[str, Tree],
    kind: Literal["residual", "step"],
) -> Start:
    """Return the problem of one call of a solver of equations. A plain callable gets the kind `kind`.

    Raises
    ------
    OptionError
        If there is no start, or the layer is of another kind.
    """
    _refuse_no_start(solver, init)
    found = "score" if isinstance(fun, Score) else getattr(fun, "kind", kind)
    if found != kind:
        message = (
            f"{type(solver).__name__} takes a {kind}, and this layer has a {found}; take "
            f"{'dil.root' if kind == 'residual' else 'dil.fixed_point'} for the layer, which is kind="
            f"{'root' if kind == 'residual' else 'fixed_point'!r} of a module, or another solver"
        )
        raise OptionError(message)
    equation = fun if isinstance(fun, Equation) else Equation(fun, 0, kind)
    started = _begin(solver, equation, init, args, kwargs)
    constants = tuple(started.problem.backend.constant(x) for x in started.arrays)
    return Start(started.problem, started.problem.backend.constant(started.u), constants)


def _begin(
    solver: object, condition: Score | Equation, init: Tree, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]
) -> Start:
    arrays, arguments = with_complex_split(*split_arguments(args, kwargs, leaves_of(init)[0]))
    u, space = space_of(adopted_tree(init, arrays), condition.batch_ndim, "init")
    names = ["init", *(arguments.name(i) for i in range(len(arrays)))]
    backend = common_owner([u, *arrays], names, f"{type(solver).__name__}()")
    return Start(Problem(condition, backend, space, arguments), u, tuple(arrays))


def _refuse_no_start(solver: object, init: Tree | None) -> None:
    if init is None:
        message = (
            f"{type(solver).__name__} needs a start; pass init= in the call, layer(..., init=u0), or where the layer "
            "or the module is made: init=u0, or a callable of the arguments"
        )
        raise OptionError(message)


def _score_of(fun: Callable[..., Any], init: Tree, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> Score:
    """Return a plain function as a score. The number of dimensions of its value is that of the batch."""
    value = fun(init, *args, **kwargs)
    score = Score(fun, len(getattr(value, "shape", ())))
    if owner(value) is None:
        score.check(value, (), None)
    return score


def tolerance(u: Array, rtol: float | None, power: float) -> float:
    """Return rtol, or the default tolerance of the dtype."""
    return eps(array_namespace(u), u.dtype) ** power if rtol is None else rtol


def size_of(u: Array, start: Array, unit: float = 1.0) -> Array:
    """Return ||u||, or its distance from the start if that is larger, with which lengths of steps are compared.

    Shape (*batch, 1). A vector of zeros that never moved has the size `unit`.
    """
    xp = array_namespace(u)
    size = xp.maximum(norm(u), norm(u - start))
    return xp.where(size == 0, full(size, unit), size)  # type: ignore[no-any-return]


def check_positive(*, optional: Mapping[str, float | None], **needed: float) -> None:
    """Refuse options that are not positive finite numbers. Optional ones may be None."""
    for name, value in {**{k: v for k, v in optional.items() if v is not None}, **needed}.items():
        count = name in COUNTS
        if not (is_integer(value, 1) if count else is_number(value) and value > 0):
            message = f"{name}={value!r}; expected {'an integer' if count else 'a number'} > 0"
            raise OptionError(message)


def zeros_like_count(u: Array) -> Array:
    """Return a counter for each problem, (*batch, 1)."""
    xp = array_namespace(u)
    return full(u[..., :1] if u.shape[-1] else norm(u), 0, dtype=xp.int32)
