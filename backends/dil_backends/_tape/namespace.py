"""The array API namespace of boxes: each function has a rule, or no derivative, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import DType, Namespace
from dil_backends._tape.box import Box, constant, holds_box, unboxed, value_type
from dil_backends._tape.primitive import Primitive
from dil_backends._tape.rules import ALIASES, COMPOSED, CONSTANT, OWN, RULES
from dil_backends._tape.rules.rule import refuse
from dil_backends._tape.trace import Node, Trace

ABSENT: Any = object()


class Plain:
    """A raw namespace, and beside it the functions that the standard lacks and the rules need."""

    def __init__(self, raw: Namespace) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        found = partial(OWN[name], self._raw) if name in OWN else getattr(self._raw, name)
        setattr(self, name, found)
        return found


class Tape:
    """The array API namespace of the boxes over one raw namespace; each function is made when first asked for."""

    constant = staticmethod(constant)
    boxed = staticmethod(holds_box)

    def __init__(self, raw: Namespace, within: str = "", root: Tape | None = None) -> None:
        # array_api_compat tells namespaces apart by this name: under the raw one, `array_namespace(box, raw array)`
        # is no error, and the first of them decides (NumPy's own functions dispatch to the box all the same)
        self.__name__: str = raw.__name__
        self._raw = raw
        self._within = within
        self.root: Tape = root or self
        self.plain = Plain(raw)
        self._differentiable: dict[DType, bool] = {}

    def __repr__(self) -> str:
        return f"<tape over {self._raw.__name__}>"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._raw, name) if name.startswith("__") else self._find(name)
        setattr(self, name, found)
        return found

    def _find(self, name: str) -> Any:
        full = self._within + name
        if full in ALIASES:
            return reduce(getattr, ALIASES[full].split("."), self.root)
        if full in RULES:
            return Primitive(full, getattr(self.plain, name), RULES[full], self.root)
        raw = getattr(self._raw, name, ABSENT)
        if full in COMPOSED:
            return composed(partial(COMPOSED[full], self.root), raw)
        if raw is ABSENT:
            msg = f"{self!r} has no attribute `{full}`"
            raise AttributeError(msg)
        if isinstance(raw, ModuleType):
            return Tape(raw, f"{full}.", self.root)
        if not callable(raw) or isinstance(raw, type):
            return raw  # dtypes, pi, newaxis
        return without_derivative(full, raw) if full in CONSTANT else without_rule(full, raw)

    def dispatch(self, name: str, args: Any, options: dict[str, Any]) -> Any:
        """Answer NumPy, which was given a box: the function of this name, or an error that names it."""
        if options.get("out") is not None:
            refuse(f"{name}(out=...)")
        function: Any = self
        for part in name.split("."):
            function = getattr(function, part, None) or refuse(name)
        renamed = {"correction" if key == "ddof" else key: option for key, option in options.items()}
        return function(*args, **renamed)

    def box(self, trace: Trace, y: Any, node: Node, index: int = 0) -> Any:
        """Box the outputs of a node, except those without a derivative: integers, booleans."""
        if isinstance(y, tuple):
            boxes = [self.box(trace, part, node, k) for k, part in enumerate(y)]
            return type(y)(*boxes) if hasattr(y, "_fields") else tuple(boxes)
        return Box(y, trace, node, index) if self.differentiable(y.dtype) else y

    def differentiable(self, dtype: DType) -> bool:
        """Whether the dtype is real floating; the tape has no derivatives of complex functions."""
        known = self._differentiable.get(dtype)
        if known is None:
            if self._raw.isdtype(dtype, "complex floating"):
                msg = f"the tape differentiates real functions only, and met {dtype}; split it, or use torch or JAX"
                raise UnsupportedFunctionError(msg)
            known = self._differentiable[dtype] = bool(self._raw.isdtype(dtype, "real floating"))
        return known


def composed(function: Callable[..., Any], raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function written with others of the tape; raw arrays go the raw way."""

    def call(*args: Any, **options: Any) -> Any:
        if raw is ABSENT or holds_box(args) or any(map(holds_box, options.values())):
            return function(*args, **options)
        return raw(*args, **options)

    return call


def without_derivative(name: str, raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose derivative is zero: it acts on the bare values."""

    def call(*args: Any, **options: Any) -> Any:
        return raw(*(unboxed(a, name) for a in args), **{key: unboxed(a, name) for key, a in options.items()})

    return call


def without_rule(name: str, raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without a rule: it serves raw arrays and refuses boxes."""

    def call(*args: Any, **options: Any) -> Any:
        if holds_box(args) or any(map(holds_box, options.values())):
            refuse(name)
        return raw(*args, **options)

    return call


TAPES: dict[Any, Tape] = {}


TAPE_OF: dict[type, Tape] = {}


def namespace(x: Any) -> Tape:
    """Return the tape's namespace for a raw array or a box: one object for each raw namespace."""
    kind = value_type(x)
    if kind not in TAPE_OF:
        raw = array_namespace(constant(x))
        TAPE_OF[kind] = TAPES.setdefault(raw, Tape(raw))
    return TAPE_OF[kind]
