"""What a function captures: its closure, defaults, globals and attributes, as a key that changes with them."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from dil._frameworks.registry import owner

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), enum.Enum)
MOST_PARTS = 10_000
"""The largest number of parts of a key. Reading more would cost more than it saves."""
MOST_BYTES = 2**24
"""The largest NumPy array whose numbers are read. It could be written into."""


class UnknownStateError(Exception):
    """An object may change in a way that no key shows."""


@dataclass
class Key:
    """A key that is being built from the objects that a function captures."""

    is_traced: Callable[[Any], bool]
    homes: frozenset[str]
    """The packages of the layer's functions. Functions of other packages that are installed do not change."""
    held: list[Any] = field(default_factory=list)
    """The objects that the key knows by their identity. They must live as long as the key."""
    _seen: dict[int, int] = field(default_factory=dict)
    _parts: int = 0

    def of(self, x: Any) -> Hashable:
        """Return the key of an object.

        Raises
        ------
        UnknownStateError
            If the object may change without a change of its key, or if it belongs to a trace.
        """
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise UnknownStateError
        if isinstance(x, PLAIN):
            return type(x), x
        if isinstance(x, type | types.ModuleType | types.BuiltinFunctionType) or type(x).__name__ == "ufunc":
            return self._identity(x)
        if id(x) in self._seen:
            return "seen", self._seen[id(x)]
        self._seen[id(x)] = len(self._seen)
        self.held.append(x)
        return self._of_object(x)

    def _of_object(self, x: Any) -> Hashable:
        if owner(x) is not None:
            return self._of_array(x)
        if isinstance(x, tuple | list):
            return type(x), tuple(self.of(part) for part in x)
        if isinstance(x, dict | types.MappingProxyType):
            return type(x), tuple((self.of(k), self.of(v)) for k, v in x.items())
        if isinstance(x, set | frozenset):
            return type(x), frozenset(self.of(part) for part in x)
        if isinstance(x, types.FunctionType):
            return self._of_function(x) if self._may_change(_package(x)) else self._identity(x)
        if isinstance(x, types.MethodType):
            return self.of(x.__func__), self.of(x.__self__)
        if isinstance(x, functools.partial):
            return self.of(x.func), self.of(x.args), self.of(x.keywords)
        wrapped = inspect.getattr_static(x, "__wrapped__", None)
        if wrapped is not None:
            return self._identity(x), self.of(wrapped)
        return self._of_attributes(x)

    def _identity(self, x: Any) -> Hashable:
        self.held.append(x)
        return "identity", id(x)

    def _may_change(self, package: str) -> bool:
        return package in self.homes or not _is_installed(package)

    def _of_array(self, x: Any) -> Hashable:
        if self.is_traced(x):
            raise UnknownStateError
        if hasattr(x, "at"):  # an array of JAX, which nothing can change
            return self._identity(x)
        if not hasattr(x, "tobytes") or x.nbytes > MOST_BYTES or x.dtype.hasobject:
            raise UnknownStateError
        return type(x), x.shape, x.dtype.str, crc32(x.tobytes())

    def _of_function(self, fn: types.FunctionType) -> Hashable:
        cells = []
        for cell in fn.__closure__ or ():
            try:
                cells.append(self.of(cell.cell_contents))
            except ValueError:  # a name that is not bound yet
                raise UnknownStateError from None
        names = _names_in(fn)
        found = sorted((name, fn.__globals__[name]) for name in names & fn.__globals__.keys())
        return (
            fn.__code__,
            tuple(cells),
            self.of(fn.__defaults__),
            self.of(fn.__kwdefaults__),
            tuple((name, self._of_global(x, names)) for name, x in found),
        )

    def _of_global(self, x: Any, names: set[str]) -> Hashable:
        """Return the key of a global of a function that uses `names`. They may be names in a module of the user."""
        if not isinstance(x, types.ModuleType) or not self._may_change(x.__name__.partition(".")[0]):
            return self.of(x)
        return self._identity(x), tuple((name, self.of(vars(x)[name])) for name in sorted(names & vars(x).keys()))

    def _of_attributes(self, x: Any) -> Hashable:
        kind = type(x)
        module = kind.__module__.partition(".")[0]
        if module in {"builtins", "numpy", "random", "_thread", "threading", "itertools", "_io", "io"}:
            raise UnknownStateError
        if kind.__dictoffset__ == 0 and not hasattr(kind, "__slots__"):
            return self._identity(x)  # an object of a compiled module, such as a jitted function or a device
        names: Mapping[str, Any] = getattr(x, "__dict__", {})
        slots = [s for base in kind.__mro__ for s in _names(getattr(base, "__slots__", ()))]
        attributes = [*names.items(), *((s, getattr(x, s)) for s in slots if hasattr(x, s) and s != "__weakref__")]
        call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
        methods = self.of(call) if isinstance(call, types.FunctionType) else None
        return kind, methods, tuple((name, self.of(value)) for name, value in attributes)


def homes_of(*functions: Any) -> frozenset[str]:
    """Return the packages of functions, and of those that they bind or hold as objects, without dil's own."""
    found: set[str] = set()
    todo, seen = list(functions), set[int]()
    while todo and len(seen) < MOST_PARTS:
        x = todo.pop()
        if id(x) in seen or isinstance(x, PLAIN) or owner(x) is not None:
            continue
        seen.add(id(x))
        if isinstance(x, types.FunctionType):
            found.add(_package(x))
        elif isinstance(x, types.MethodType):
            todo += [x.__func__, x.__self__]
        elif isinstance(x, functools.partial):
            todo += [x.func, *x.args, *x.keywords.values()]
        else:
            found.add(_package(type(x)))
            todo += [value for value in getattr(x, "__dict__", {}).values() if callable(value)]
    return frozenset(found) - {"dil", "builtins", ""}


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether a package is dil, part of Python, or in a folder of installed packages."""
    if package in {"dil", "dil_backends"} or package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return True
    module = sys.modules.get(package)
    files = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any({"site-packages", "dist-packages"} & set(Path(file).parts) for file in files if file)


def _package(x: Any) -> str:
    return (x.__module__ or "").partition(".")[0]


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _names_in(fn: types.FunctionType) -> set[str]:
    """Return the names of globals and attributes that a function and the functions within it use."""
    names: set[str] = set()
    codes = [fn.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return names
