"""A memory of the functions that a check has passed, so that it runs at the first call with new shapes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from dil._base.arrays import size
from dil._base.typing import Array
from dil._frameworks.fixed import identity_of
from dil._frameworks.protocol import Backend
from dil._problem.problem import Problem


class FirstCalls:
    """The calls that have passed one check: for each function, the shapes, dtypes, modes and given derivatives.

    A function made anew for each call names by `identity` the object that stays, and by `modes` what may change in it.
    With `by_code`, functions of one code count as one.
    """

    def __init__(self, *, by_code: bool = False) -> None:
        self._passed: WeakKeyDictionary[Any, Counter[Hashable]] = WeakKeyDictionary()
        self._owner = _code if by_code else _function

    def are_new(self, problem: Problem, y: Array, solver: object = None, *, most: int = 0) -> bool:
        """Return whether at most `most` such calls have passed: always, if the function cannot be remembered.

        A check of the point, and not of the function alone, counts per solver.
        """
        try:
            return self._passed.setdefault(self._owner(problem), Counter())[_key(problem, y, solver)] <= most
        except TypeError:  # an object without a hash or without weak references
            return True

    def add(self, problem: Problem, y: Array, solver: object = None) -> None:
        """Remember that such a call has passed, if the function can be remembered."""
        with suppress(TypeError):
            self._passed.setdefault(self._owner(problem), Counter())[_key(problem, y, solver)] += 1


def is_readable(backend: Backend, x: Array) -> bool:
    """Return whether an array has numbers, and they can be read now. Those of a traced array cannot."""
    compiler = backend.compiler()
    if compiler is not None:
        return not compiler.is_traced(backend.constant(x))
    if size(x.shape) == 0:
        return False
    loops, entry = backend.loops, backend.constant(x)[(0,) * x.ndim]
    return isinstance(loops.number(entry), int | float) or loops.steps_per_read(entry) != 1


def _function(problem: Problem) -> Callable[..., Any]:
    return identity_of(problem.condition.fn)


def _code(problem: Problem) -> Any:
    """Return the code of the function, which functions that are made anew at each call share."""
    fn = _function(problem)
    return getattr(fn, "__code__", fn)


def _key(problem: Problem, y: Array, solver: object) -> Hashable:
    condition = problem.condition
    kind = getattr(condition, "kind", "score"), condition.batch_ndim
    return (
        kind,
        problem.space.shapes,
        problem.space.split,
        str(y.dtype),
        getattr(condition.fn, "modes", None),
        _derivatives_of(condition),
        _hash_of(getattr(getattr(solver, "identity", solver), "__code__", solver)),
    )


def _derivatives_of(condition: object) -> tuple[tuple[str, int], ...]:
    """Return hashes of the derivatives that the user gives. One function may come with others."""
    given = getattr(condition, "derivatives", None)
    functions = [] if given is None else [(name, identity_of(fn)) for name, fn in vars(given).items() if callable(fn)]
    return tuple([(name, _hash_of(getattr(fn, "__code__", fn))) for name, fn in functions])


def _hash_of(solver: object) -> int:
    """Return a hash, because a solver may hold the function, which then would live forever.

    A solver without one, such as one with a dict of options, counts as any other of its type.
    """
    try:
        return hash(solver)
    except TypeError:
        return hash(type(solver))
