"""What a derivative on the tape costs beside the arithmetic: calls of Python functions, which do not vary with load."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dil
from dil._base import tree
from dil._frameworks import registry
from dil_backends._tape import vjp


def python_calls(fn: Callable[[], object]) -> int:
    """Return how many calls of Python functions fn() makes."""
    count = 0

    def seen(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    gc.disable()  # libraries have it call functions of theirs
    sys.setprofile(seen)
    try:
        fn()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def chain(length: int) -> Callable[..., Any]:
    def fn(x: Any) -> tuple[Any]:
        for _ in range(length):
            x = x * 0.9 + 0.1
        return (x,)

    return fn


@pytest.mark.parametrize("steps", [10, 40])
def test_an_operation_costs_a_few_calls(steps):
    x = np.ones(3)
    vjp(chain(1), x)[1]((x,))
    short, long = vjp(chain(1), x)[1], vjp(chain(1 + steps), x)[1]
    record = python_calls(lambda: vjp(chain(1 + steps), x)) - python_calls(lambda: vjp(chain(1), x))
    assert record <= 5 * 2 * steps  # the operator, the primitive, its arguments, a node, a box
    for pull in (short, long):
        pull((x,))
    assert python_calls(lambda: long((x,))) - python_calls(lambda: short((x,))) <= 3 * 2 * steps  # pull, formula, fit


def test_arrays_as_arguments_are_not_taken_for_trees(monkeypatch):
    def refuse(*args: object) -> Any:
        raise AssertionError(args)

    dil.grad(lambda a, b: np.sum(a * b), (0, 1))(np.ones(2), np.ones(2))
    monkeypatch.setattr(registry, "flatten", refuse)
    monkeypatch.setattr(tree, "flatten", refuse)
    a, b = np.asarray([1.0, 2.0]), np.asarray([3.0, 4.0])
    gradient = dil.grad(lambda a, b: np.sum(a * b**2), (0, 1))
    assert [g.tolist() for g in gradient(a, b)] == [[9.0, 16.0], [6.0, 16.0]]
    _, pull = dil.vjp(lambda b: gradient(a, b)[1], b)
    assert pull(np.ones(2))[0].tolist() == [2.0, 4.0]
