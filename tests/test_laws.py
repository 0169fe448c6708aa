"""Every backend keeps the laws of dil.testing, and a backend that breaks one is found out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

import dil
from dil.testing import LAWS
from engines import engines


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(plain, law):
    law(plain.handle)


def breaking(**changes):
    """Return a NumPy backend with some functions exchanged."""
    handle = dil.backend("numpy")
    module = SimpleNamespace(**{name: getattr(handle.module, name) for name in dir(handle.module)})
    for name, change in changes.items():
        if hasattr(module.loops, name):
            module.loops = replace(module.loops, **{name: change(getattr(module.loops, name))})
        else:
            setattr(module, name, change(getattr(module, name)))
    return replace(handle, module=module)


def half_pull(vjp):
    def broken(fn, *primals):
        out, pull = vjp(fn, *primals)
        return out, Pull(pull, pull.many, lambda v, wrt=None: tuple(0.5 * g for g in pull(v, wrt)))

    return broken


def first_row_for_all(vjp):
    def broken(fn, *primals):
        out, pull = vjp(fn, *primals)
        return out, Pull(pull, lambda v, wrt=None: pull.many(tuple(x[:1, ...] + 0.0 * x for x in v), wrt))

    return broken


class Pull:
    """A pullback with another `many`, or that is another one."""

    def __init__(self, pull, many, one=None):
        self.one, self.many, self.work = one or pull, many, pull.work

    def __call__(self, v, wrt=None):
        return self.one(v, wrt)


def ones_for_cotangents(implicit):
    class Deaf:
        def __init__(self, rule):
            self.rule = rule

        def pullback(self, args, y, cotangents, wrt):
            return self.rule.pullback(args, y, tuple(0 * ct + 1 for ct in cotangents), wrt)

    return lambda solve, rule: implicit(solve, Deaf(rule))


@pytest.mark.parametrize(
    "changes",
    [
        {"vjp": half_pull},
        {"vjp": first_row_for_all},
        {"implicit": ones_for_cotangents},
        {"constant": lambda constant: lambda x: x},
        {"run_if": lambda run_if: lambda condition, fn, state: run_if(condition == condition, fn, state)},
        {"scan": lambda scan: lambda step, c, xs, *count: scan(step, c, tuple(x[::-1, ...] for x in xs), *count)},
        {"scan": lambda scan: lambda step, c, xs, *count: scan(step, c, xs)},
        {"while_loop": lambda loop: lambda cond, body, state: loop(cond, body, body(state))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_broken_backend_breaks_a_law(changes):
    handle, broken = breaking(**changes), 0
    for law in LAWS:
        try:
            law(handle)
        except AssertionError:
            broken += 1
    assert broken > 0


def test_every_registered_backend_is_an_engine():
    names = {e.backend for e in engines()}
    assert names == {info.name for info in dil.backends()}
    assert {"numpy", "torch", "jax", "cupy", "array_api_strict"} <= names
