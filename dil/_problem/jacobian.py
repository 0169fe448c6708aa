"""The Jacobian J = dF/du of a problem, given by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from dil._base.arrays import array_namespace, eye, size
from dil._base.errors import SecondDerivativeError
from dil._base.operator import MadeWhenUsed, Operator, Source, Work
from dil._base.rows import Rows
from dil._base.typing import Array, Arrays, Matvec
from dil._frameworks.fixed import identity_of
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend, Pull
from dil._problem.problem import Optimality, Problem

MOST_NUMBERS = 2**24
"""The most numbers of a Jacobian that is made from its rows: 128 MiB in float64."""


def jacobian(F: Optimality, u: Array, *floats: Array) -> Operator:
    """Return J = dF/du as an operator that is differentiable in u and in the arguments."""
    _, pull = F.problem.backend.vjp(lambda w: F(w, *floats), u)
    arrays = F.arrays(floats)
    return replace(operator(F.problem, pull, u, arrays), _rows=of_part(F.problem, u, arrays))


def of_part(problem: Problem, u: Array, arrays: Sequence[Array]) -> Callable[[Rows], Operator]:
    """Return the function that records F for some problems of a batch, and returns their J.

    It takes the parts of the arguments, `arrays`, whose shape begins with that of the batch.
    """

    def part(rows: Rows) -> Operator:
        constant = problem.backend.constant
        some, alone = replace(problem, space=problem.space.rows(rows.count)), [constant(rows.take(x)) for x in arrays]
        here = constant(rows.take(u))
        _, pull = problem.backend.vjp(lambda w: (some.residual(w, *alone),), here)
        return operator(some, pull, here, tuple(alone))

    return part


def operator(problem: Problem, pull: Pull, u: Array, arrays: Arrays) -> Operator:
    """Return J as an operator, from the pullback (p,) -> (J^T p, ...) of F at u and the other arrays of the call."""
    return transposed_operator(problem, pull, u, arrays).T


def transposed_operator(problem: Problem, pull: Pull, u: Array, arrays: Arrays) -> Operator:
    """Return J^T as an operator, from the pullback of F.

    The pullback is linear, so its own pullback is t -> J t. This one is made where it is used, if that can be later.
    """
    backend, zero = problem.backend, array_namespace(u).zeros_like(u)

    def product(p: Array) -> Array:
        return pull((p,), (0,))[0]

    @cache  # a framework may count the numbers of a graph, which costs as much as a product
    def work() -> Work:
        return Work(pull.work(), sum(size(x.shape) for x in arrays))

    def transpose() -> Matvec:
        try:
            _, push = backend.vjp(lambda w: (product(w),), zero)
        except SecondDerivativeError:  # of a function whose first derivative alone is known: J is made from its rows
            if size(u.shape) * u.shape[-1] > MOST_NUMBERS:
                raise
            return _by_rows(backend, product, u)
        return lambda t: push((t,))[0]

    source = _source_of(problem)
    if problem.symmetric:
        expansion = _expansion_of(problem, u, arrays)
        return Operator(product, symmetric=True, transposed=True, work=work, _expansion=expansion, _source=source)
    # a program that is recorded could meet it first within a loop, which would hold it; a tape, when it has ended
    later = type(u) is type(zero) and size(u.shape) > 0 and not runs_later(backend.loops, zero)
    rmatvec = MadeWhenUsed(transpose) if later else transpose()
    given = None if problem.untraced is None else problem.untraced.matrix(u, *arrays)
    return Operator(
        product, rmatvec, transposed=True, work=work, _given=None if given is None else given.T, _source=source
    )


def _expansion_of(problem: Problem, u: Array, arrays: Arrays) -> Callable[[], object] | None:
    """Return the function that makes the score's own form of its Hessian, if the score has one."""
    expand = getattr(identity_of(problem.condition.fn), "expansion", None)
    if expand is None:
        return None
    args, kwargs = problem.arguments.call(arrays)
    return lambda: expand(problem.backend, problem.space.unravel(u), *args, **kwargs)


def _by_rows(backend: Backend, pull: Matvec, u: Array) -> Matvec:
    """Return p -> J p from the rows of J, J^T e for each e of the identity."""
    xp, n = array_namespace(u), u.shape[-1]
    units = xp.reshape(eye(n, u), (n, *(1,) * (u.ndim - 1), n))
    J = xp.moveaxis(backend.loops.map_rows(pull, xp.broadcast_to(units, (n, *u.shape))), 0, -2)
    return lambda p: (J @ p[..., None])[..., 0]


def _source_of(problem: Problem) -> Source:
    """Return what J is of. Functions that are made anew at each call share their code; a wrapper has that of many."""
    condition, fn = problem.condition, identity_of(problem.condition.fn)
    while isinstance(fn, partial) or hasattr(fn, "__wrapped__"):
        fn = fn.func if isinstance(fn, partial) else fn.__wrapped__
    kind = getattr(condition, "kind", "score"), condition.batch_ndim
    return Source(getattr(fn, "__code__", fn), (kind, problem.space.shapes, problem.space.split))
