"""The array API namespace of boxes. A function has a derivative rule, or its derivative is zero, or a call raises."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, reduce
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import DType, Namespace
from dil_backends._tape.array_protocol import array_of_box, refuse_compat, refuse_writing
from dil_backends._tape.box import Box, constant, holds_box, is_recorded, unboxed, value_type
from dil_backends._tape.entries import joined
from dil_backends._tape.influence import by_roots, influence
from dil_backends._tape.libraries import BESIDE, extension, own_function
from dil_backends._tape.numpy_functions import DIRECT
from dil_backends._tape.primitive import Primitive
from dil_backends._tape.rules import ALIASES, COMPOSED, CONSTANT, INSTEAD, NUMPY, OWN, RULES
from dil_backends._tape.rules.rule import MASKED, OTHERWISE, refuse
from dil_backends._tape.sparse import FAILURES, explain_sparse
from dil_backends._tape.spelling import with_arguments_of_numpy
from dil_backends._tape.trace import MADE, Node, Trace

ABSENT: Any = object()


class Plain:
    """A raw namespace, with the additional functions that the rules need."""

    constant = staticmethod(constant)
    boxed = staticmethod(holds_box)
    recorded = staticmethod(is_recorded)

    def __init__(self, raw: Namespace, within: str = "") -> None:
        self._raw = raw
        self._within = within
        vars(self).update(DIRECT.get(raw.__name__, {}))

    def __getattr__(self, name: str) -> Any:
        full = self._within + name
        found: Any
        if full in BESIDE:
            found = Plain(extension(self._raw, name), f"{full}.")
        else:
            found = partial(OWN[full], self._raw) if full in OWN else getattr(self._raw, name)
        setattr(self, name, found)
        return found


class Tape:
    """The array API namespace of the boxes over one raw namespace. A function is made at its first use."""

    constant = staticmethod(constant)
    boxed = staticmethod(holds_box)
    recorded = staticmethod(is_recorded)
    unboxed = staticmethod(unboxed)
    influence = staticmethod(influence)
    by_roots = staticmethod(by_roots)
    array_of_box = staticmethod(array_of_box)
    refuse_writing = staticmethod(refuse_writing)

    def __init__(self, raw: Namespace, within: str = "", root: Tape | None = None) -> None:
        # array_api_compat compares namespaces by name. With the raw name, `array_namespace(box, raw array)` is no
        # error: it returns the namespace of the first. NumPy's own functions dispatch to the box in any case.
        self.__name__: str = raw.__name__
        self._raw = raw
        self.within = within
        self.root: Tape = root or self
        self.plain = Plain(raw, within)
        self.complex_dtypes: set[DType] = set()  # those met so far
        self.known: dict[DType, bool] = {}  # whether arrays of the dtype have a derivative, of those met so far
        self._of_numpy: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"<tape over {self._raw.__name__}>"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._raw, name) if name.startswith("__") else self._find(name)
        setattr(self, name, found)
        return found

    def _find(self, name: str) -> Any:
        full = self.within + name
        if full in ALIASES:
            return reduce(getattr, ALIASES[full].split("."), self.root)
        if full in RULES:
            return Primitive(full, getattr(self.plain, name), RULES[full], self.root)
        raw: Any = extension(self._raw, name) if full in BESIDE else getattr(self._raw, name, ABSENT)
        if full in COMPOSED:
            return composed(partial(COMPOSED[full], self.root), raw)
        if full in NUMPY and raw is not ABSENT:
            return composed(partial(NUMPY[full], self.root), raw)
        if raw is ABSENT:
            msg = f"{self!r} has no attribute `{full}`"
            raise AttributeError(msg)
        if isinstance(raw, ModuleType):
            return Tape(raw, f"{full}.", self.root)
        if not callable(raw) or isinstance(raw, type):
            return raw  # dtypes, pi, newaxis
        return without_derivative(full, raw) if full in CONSTANT else without_rule(full, raw)

    def dispatch(self, name: str, args: Any, options: dict[str, Any]) -> Any:
        """Call the tape's function of this name, for a NumPy function that got a box. Raise if there is none."""
        function = self._of_numpy.get(name)
        if function is None:
            function = self._of_numpy[name] = self._find_of_numpy(name)
        if MADE:
            args, options = joined(args), joined(options)
        if "out" in options and options.pop("out") is not None:
            refuse_compat(sys._getframe(1))
            way = MASKED if "where" in options else "write `F = F + u` for `F += u`, a new name in the place of out="
            refuse(f"{name}(out=...)", f"{way}, or {OTHERWISE}")
        try:
            return function(*args, **options) if options else function(*args)
        except FAILURES as e:
            explain_sparse(e, args)
            raise

    def _find_of_numpy(self, name: str) -> Callable[..., Any]:
        """Return the function of a name with the arguments that NumPy's function takes."""
        ufunc, *method = name.split(".")  # `power.outer` is a method of NumPy's name for a function
        known = name if name in NUMPY else ".".join([ALIASES.get(ufunc, ufunc), *method])
        if known in NUMPY and hasattr(self._raw, known.partition(".")[0]):
            return with_arguments_of_numpy(known, NUMPY[known], self.root)
        if ALIASES.get(name, name) in CONSTANT and (own := own_function(self._raw, name)) is not None:
            return without_derivative(name, own)
        function: Any = self
        for part in name.split("."):
            function = getattr(function, part, None) or refuse(name, instead_of(name))
        return function  # type: ignore[no-any-return]

    def box(self, trace: Trace, y: Any, node: Node, index: int = 0) -> Any:
        """Return the outputs of a node as boxes. Integer and Boolean outputs have no derivative and stay raw."""
        if isinstance(y, tuple):
            boxes = [self.box(trace, part, node, k) for k, part in enumerate(y)]
            return type(y)(*boxes) if hasattr(y, "_fields") else tuple(boxes)
        dtype = y.dtype
        if not self.differentiable(dtype):
            return y
        if trace.entries is not None and not y.ndim:
            trace.entries.count(y, node)
        return Box(y, trace, node, index)

    def differentiable(self, dtype: DType) -> bool:
        """Return whether the dtype is real or complex floating."""
        known = self.known.get(dtype)
        if known is None:
            if self._raw.isdtype(dtype, "complex floating"):
                self.complex_dtypes.add(dtype)
            elif not self._raw.isdtype(dtype, ("numeric", "bool")):
                msg = (
                    f"the tape met an array of dtype {dtype}, which has no derivative; join numbers by np.stack, and "
                    "write a product with a sparse matrix as `S @ u` or `u @ S`"
                )
                raise UnsupportedFunctionError(msg)
            known = self.known[dtype] = bool(self._raw.isdtype(dtype, ("real floating", "complex floating")))
        return known


def instead_of(name: str) -> str:
    """Return what to write in the place of a function without a rule."""
    return INSTEAD.get(name) or INSTEAD.get(name.rpartition(".")[2], OTHERWISE)


def composed(function: Callable[..., Any], raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, which is written with functions of the tape. Calls without boxes use `raw`."""

    def call(*args: Any, **options: Any) -> Any:
        if raw is ABSENT or holds_box(args) or any(map(holds_box, options.values())):
            return function(*args, **options)
        return raw(*args, **options)

    return call


def without_derivative(name: str, raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose derivative is zero. It works on raw values."""

    def call(*args: Any, **options: Any) -> Any:
        return raw(*(unboxed(a, name) for a in args), **{key: unboxed(a, name) for key, a in options.items()})

    return call


def without_rule(name: str, raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without a derivative rule. It accepts raw arrays and raises for boxes."""

    def call(*args: Any, **options: Any) -> Any:
        if holds_box(args) or any(map(holds_box, options.values())):
            refuse(name, instead_of(name))
        return raw(*args, **options)

    return call


TAPES: dict[Any, Tape] = {}


TAPE_OF: dict[type, Tape] = {}


def namespace(x: Any) -> Tape:
    """Return the tape's namespace for a raw array or a box. There is one namespace for each raw namespace."""
    kind = value_type(x)
    if kind not in TAPE_OF:
        TAPE_OF[kind] = tape_over(array_namespace(constant(x)))
    return TAPE_OF[kind]


def tape_over(raw: Namespace) -> Tape:
    """Return the tape's namespace over a raw namespace."""
    return TAPES.setdefault(raw, Tape(raw))
