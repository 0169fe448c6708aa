"""The namespace that a user holds, `dil.backend("numpy").xp`: its functions take raw arrays and boxes.

NumPy's own functions ask a box before they run. Functions of array_api_compat, CuPy and array_api_strict are written in
Python and ask nobody, so they are wrapped: where an argument holds a box, the tape's function runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import reduce, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from dil._base.typing import Namespace
from dil_backends._tape.box import holds_box
from dil_backends._tape.entries import joined
from dil_backends._tape.namespace import Tape, tape_over
from dil_backends._tape.trace import MADE


class UserNamespace:
    """A raw namespace whose functions take boxes too. A function is wrapped at its first use.

    `__name__` is that of the raw namespace, by which array_api_compat recognises it.
    """

    def __init__(self, raw: Namespace, tape: Tape, own: Any, root: str = "") -> None:
        self.__name__: str = raw.__name__
        self._raw = raw
        self._tape = tape
        self._own = own  # the module of NumPy with the same functions
        self._root = root or raw.__name__

    def __repr__(self) -> str:
        return f"<{self.__name__}, whose functions take arrays that are being differentiated>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return restored, (self._root, self._tape.within)

    def __dir__(self) -> list[str]:
        return dir(self._raw)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._raw, name)
        own = getattr(self._own, name, None)
        if isinstance(found, ModuleType):
            found = UserNamespace(found, getattr(self._tape, name), own, self._root)
        elif callable(found) and not isinstance(found, type) and found is not own and not name.startswith("__"):
            found = taking_boxes(found, self._tape, name)
        setattr(self, name, found)
        return found


def user_namespace(raw: Namespace) -> UserNamespace:
    """Return the namespace of users over a raw namespace of the array API."""
    return UserNamespace(raw, tape_over(raw), np)


def restored(root: str, within: str) -> Any:
    """Return the namespace of users that was pickled by the name of its raw namespace."""
    return reduce(getattr, within.split(".")[:-1], user_namespace(import_module(root)))


def taking_boxes(raw: Callable[..., Any], tape: Tape, name: str) -> Callable[..., Any]:
    """Return a raw function that gives way to the tape's where an argument holds a box."""
    standard = keywords(raw)

    @wraps(raw)
    def call(*args: Any, **options: Any) -> Any:
        if MADE:
            args, options = joined(args), joined(options)
        if not (holds_box(args) or any(map(holds_box, options.values()))):
            return raw(*args, **options)
        if options.keys() <= standard:
            return getattr(tape, name)(*args, **options)
        return tape.root.dispatch(
            tape.within + name, args, options
        )  # array_api_compat takes keywords of NumPy too, such as where=

    return call


def keywords(raw: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the parameters of a function. One that is compiled tells none."""
    try:
        parameters = inspect.signature(raw).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
