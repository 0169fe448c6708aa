"""What a function captures: its closure, defaults, globals and attributes, as a key that changes with them."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import sysconfig
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from dil._base.cache import Cache
from dil._frameworks.registry import owner

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), enum.Enum)
MOST_PARTS = 10_000
"""The largest number of parts of a key. Reading more would cost more than it saves."""
MOST_BYTES = 2**24
"""The largest NumPy array whose numbers are read. It could be written into."""


CONTAINERS = (tuple, list, dict, OrderedDict, defaultdict, types.MappingProxyType, set, frozenset)
NOT_READ = frozenset(
    {"__new__", "__init__", "__post_init__", "__init_subclass__", "__class_getitem__", "__del__", "__repr__", "__str__"}
    | {"__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__", "__copy__", "__deepcopy__"}
    | {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__sizeof__", "__dir__"}
)
"""Special methods of a class of the user that make, print, compare or copy an object, and that no score runs."""
POINTER = 8
"""The bytes of a pointer."""


STANDARD = Path(sysconfig.get_path("stdlib"))
"""The folder of Python's own modules."""


class UnknownStateError(Exception):
    """An object may change in a way that no key shows. Its argument names what a user can replace, or there is none."""


@dataclass
class Key:
    """A key that is being built from the objects that a function captures."""

    is_traced: Callable[[Any], bool]
    homes: frozenset[str]
    """The packages of the layer's functions. Functions of other packages that are installed do not change."""
    immutable: frozenset[str] = frozenset()
    """The packages of the framework, whose compiled objects do not change."""
    held: list[Any] = field(default_factory=list)
    """The objects that the key knows by their identity. They must live as long as the key."""
    _seen: dict[int, int] = field(default_factory=dict)
    _read: set[tuple[int, str]] = field(default_factory=set)
    """The names of modules of the user that were read, each with the identity of the module."""
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
            what = f"more than {MOST_PARTS:,} objects"
            raise UnknownStateError(what)
        if isinstance(x, PLAIN):
            plain = repr(x) if isinstance(x, float | complex) else x  # 0.0 == -0.0, and NaN equals nothing
            more = () if type(x) in PLAIN or isinstance(x, enum.Enum) else vars(x) if hasattr(x, "__dict__") else ()
            return type(x), plain, self.of(dict(more)) if more else ()
        if isinstance(x, types.ModuleType) and self._may_change(x.__name__.partition(".")[0]):
            what = f"the module {x.__name__} as an object"  # which names of it are read is not known
            raise UnknownStateError(what)
        if isinstance(x, range | slice):
            return type(x), self.of(x.start), self.of(x.stop), self.of(x.step)
        if isinstance(x, types.ModuleType | types.BuiltinFunctionType) or type(x).__name__.endswith(("ufunc", "DType")):
            return self._identity(x)
        if isinstance(x, type) and not self._may_change(_package(x)):
            return self._identity(x)
        if id(x) in self._seen:
            return "seen", self._seen[id(x)]
        self._seen[id(x)] = len(self._seen)
        self.held.append(x)
        return self._of_object(x)

    def _of_object(self, x: Any) -> Hashable:
        if isinstance(x, Cache):
            return "cache"
        if owner(x) is not None:
            return self._of_array(x)
        if isinstance(x, type):
            return self._identity(x), self._of_class(x)
        if isinstance(x, tuple | list):
            return self._of_attributes(x), tuple(self.of(part) for part in x)
        if isinstance(x, dict | types.MappingProxyType):
            return self._of_attributes(x), tuple((self.of(k), self.of(v)) for k, v in x.items())
        if isinstance(x, set | frozenset):
            return self._of_attributes(x), frozenset(self.of(part) for part in x)
        if isinstance(x, types.FunctionType):
            return self._of_function(x) if self._may_change(_package(x)) else self._identity(x)
        if isinstance(x, types.MethodType):
            return self.of(x.__func__), self.of(x.__self__)
        if isinstance(x, functools.partial):
            return self.of(x.func), self.of(x.args), self.of(x.keywords)
        wrapped = inspect.getattr_static(x, "__wrapped__", None)
        kind: Any = type(x)
        if wrapped is not None and (_is_opaque(kind) or not self._may_change(_package(kind))):
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
            what = f"an array of {type(x).__module__.partition('.')[0]} of shape {tuple(x.shape)}"
            raise UnknownStateError(what)
        return type(x), x.shape, x.dtype.str, crc32(x.tobytes())

    def _of_function(self, fn: types.FunctionType) -> Hashable:
        cells, names = [], _names_in(fn.__code__)
        for cell in fn.__closure__ or ():
            try:
                cells.append(self._of_global(cell.cell_contents, names))
            except ValueError:  # a name that is not bound yet
                raise UnknownStateError from None
        # a module that the function imports itself is no global of it
        found = {name: fn.__globals__.get(name, sys.modules.get(name)) for name in names}
        return (
            fn.__code__,
            tuple(cells),
            tuple(self._of_global(x, names) for x in fn.__defaults__ or ()),
            tuple((name, self._of_global(x, names)) for name, x in (fn.__kwdefaults__ or {}).items()),
            self.of({name: value for name, value in vars(fn).items() if name != "__wrapped__"}),
            tuple((name, self._of_global(found[name], names)) for name in sorted(names) if found[name] is not None),
        )

    def _of_global(self, x: Any, names: frozenset[str]) -> Hashable:
        """Return the key of a global of a function that uses `names`. They may be names in a module of the user."""
        if not isinstance(x, types.ModuleType) or not self._may_change(x.__name__.partition(".")[0]):
            return self.of(x)
        fresh = [name for name in sorted(names & vars(x).keys()) if (id(x), name) not in self._read]
        self._read |= {(id(x), name) for name in fresh}
        return self._identity(x), tuple((name, self._of_global(vars(x)[name], names)) for name in fresh)

    def _of_class(self, kind: type) -> Hashable:
        """Return the key of the members of a class of the user: its methods, and what its instances share."""
        members = []
        for base in kind.__mro__:
            if self._may_change(_package(base)):
                for name, value in vars(base).items():
                    if not _is_special(name, value):
                        members.append((name, self._of_member(value)))
        return tuple(members)

    def _of_member(self, x: Any) -> Hashable:
        if isinstance(x, staticmethod | classmethod):
            return type(x), self.of(x.__func__)
        if isinstance(x, property):
            return property, self.of(x.fget)
        if type(x).__name__ in ("member_descriptor", "getset_descriptor", "_tuplegetter", "_abc_data"):  # a slot
            return self._identity(x)
        return self.of(x)

    def _of_attributes(self, x: Any) -> Hashable:
        kind: Any = type(x)
        module = kind.__module__.partition(".")[0]
        if kind in CONTAINERS:
            return self._identity(kind)
        if module == "re" or (module in self.immutable and (_is_opaque(kind) or kind.__dictoffset__ == 0)):
            return self._identity(x)  # such as a jitted function, a device or a sharding
        if (kind.__dictoffset__ == 0 and not hasattr(kind, "__slots__")) or _is_opaque(kind):
            what = f"an object of {kind.__module__}.{kind.__qualname__}"
            raise UnknownStateError(what)
        names: Mapping[str, Any] = getattr(x, "__dict__", {})
        slots = [(base, s) for base in kind.__mro__ for s in _names(vars(base).get("__slots__", ()))]
        found = [(s, getattr(x, _mangled(base, s))) for base, s in slots if hasattr(x, _mangled(base, s))]
        attributes = [*names.items(), *((s, value) for s, value in found if s not in ("__weakref__", "__dict__"))]
        call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
        methods = self.of(call) if isinstance(call, types.FunctionType) else None
        return self.of(kind), methods, tuple((name, self.of(value)) for name, value in attributes)


def homes_of(*functions: Any) -> frozenset[str]:
    """Return the packages of functions, and of those that they bind or hold as objects.

    dil, Python's own modules and NumPy are no home: `init=np.zeros_like` does not make NumPy the user's.
    """
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
    return frozenset(found) - {"dil", "numpy", ""} - sys.stdlib_module_names


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether a package is dil, part of Python, or in a folder of installed packages."""
    if package in {"dil", "dil_backends"} or package in sys.builtin_module_names:
        return True
    module = sys.modules.get(package)
    files = [Path(file) for file in (getattr(module, "__file__", None), *getattr(module, "__path__", ())) if file]
    if not files:
        return package in sys.stdlib_module_names
    return any({"site-packages", "dist-packages"} & set(file.parts) or STANDARD in file.parents for file in files)


def _package(x: Any) -> str:
    return (x.__module__ or "").partition(".")[0]


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _mangled(kind: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{kind.__name__.lstrip('_')}{name}" if private else name


def _is_special(name: str, value: Any) -> bool:
    """Whether a member of a class is one that Python or a decorator makes, or that no score runs."""
    special = name.startswith("__") and name.endswith("__")
    return special and (name in NOT_READ or not isinstance(value, types.FunctionType | property))


@functools.cache
def _is_opaque(kind: type) -> bool:
    """Whether an instance may hold more than its attributes and items: a base of its class is compiled."""
    known = max(base.__basicsize__ for base in (object, *CONTAINERS) if issubclass(kind, base))
    slots = sum(len(_names(vars(base).get("__slots__", ()))) for base in kind.__mro__)
    return kind.__basicsize__ > known + POINTER * (slots + 2)  # two more: its attributes and its weak references


@functools.cache
def _names_in(code: types.CodeType) -> frozenset[str]:
    """Return the names of globals and attributes that a function and the functions within it use."""
    inner = [_names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(code.co_names).union(*inner)
