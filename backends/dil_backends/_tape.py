"""A reverse-mode tape over the Python array API standard, for libraries that do not differentiate themselves.

`vjp` evaluates a function at boxes. A box is a value and the node that made it; a node keeps what one derivative rule
needs. To pull a cotangent back is to walk the nodes from the last to the first. The rules (`_tape_rules`) are array
code, so when the values they meet are boxes of an enclosing trace, that trace records them: derivatives of any order
come from nesting, and nothing in this file knows how deep it is.

Each trace has a number larger than all before it. A primitive strips the boxes of the youngest trace among its
arguments, calls itself on what was inside, and records one node. So every trace sees its own variables only, and
d/dx of x d/dy (x + y) is 1.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from array_api_compat import array_namespace

from dil._base.errors import BackendError, CapturedError, DTypeError, ShapeError, UnsupportedFunctionError
from dil._base.typing import Array, Arrays, DType, Namespace
from dil_backends._tape_rules import ALIASES, COMPOSED, CONSTANT, OWN, RULES, Rule, fit, refuse

__all__ = ["Box", "Pull", "PullbackRule", "constant", "implicit", "is_box", "namespace", "value_type", "vjp"]

_tick = itertools.count(1).__next__  # numbers traces and nodes in the order of their making, over all threads


# --- traces and boxes ------------------------------------------------------------------------------------------------

METHODS = frozenset({"max", "mean", "min", "prod", "std", "sum", "var"})
"""Reductions that a box also has as methods, since `((u - x) ** 2).sum()` is how NumPy is written."""

_LEAKED = (
    "{}: an array of a differentiation that has ended is used again. It was kept from inside the differentiated "
    "function; return it from there, or keep `dil.constant(...)` of it"
)
_CAPTURED = (
    "{}: the score, the solver or the start of a layer uses an array that is being differentiated but was captured by "
    "closure, so it would silently get no gradient. Pass it to the layer as an argument, or capture "
    "`dil.constant(...)` of it if it shall get none"
)


class Trace:
    """One call of `vjp`: its number, the namespace of its boxes, and why they may not be used, if they may not."""

    __slots__ = ("number", "refusal", "tape")

    def __init__(self, tape: Any) -> None:
        self.number = _tick()
        self.tape = tape
        self.refusal: str | None = None


class _OpenTraces(threading.local):
    """The traces that this thread is inside of."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []


_open = _OpenTraces()


@contextmanager
def _recording(tape: Any) -> Iterator[Trace]:
    trace = Trace(tape)
    _open.traces.append(trace)
    try:
        yield trace
    finally:
        _open.traces.pop()
        trace.refusal = _LEAKED


@contextmanager
def _barrier() -> Iterator[None]:
    """Refuse, for a while, the boxes of all traces that this thread is inside of."""
    raised = [trace for trace in _open.traces if trace.refusal is None]
    for trace in raised:
        trace.refusal = _CAPTURED
    try:
        yield
    finally:
        for trace in raised:
            trace.refusal = None


class Node:
    """One application of a primitive: what its rule needs, and the nodes that its arguments came from."""

    __slots__ = ("args", "number", "options", "parents", "primitive", "seen", "y")

    def __init__(self, primitive: Any, args: Any, options: Any, y: Any, parents: list[Any], seen: bool) -> None:
        self.number = _tick()
        self.primitive = primitive
        self.args = args
        self.options = options
        self.y = y
        self.parents = parents  # (position among the arguments, node that made the argument, which of its outputs)
        self.seen = seen  # whether an enclosing trace looks on: there are boxes left among the arguments


def _operator(name: str) -> tuple[Any, Any]:
    """Return the methods of a binary operator, straight and reflected."""

    def straight(self: Box, other: object) -> Any:
        return getattr(self.trace.tape, name)(self, other)

    def reflected(self: Box, other: object) -> Any:
        return getattr(self.trace.tape, name)(other, self)

    return straight, reflected


def _refuse_conversion(what: str) -> Any:
    """Return a method that refuses to make of a box what carries no derivative."""

    def refuse(self: Box, *args: object, **options: object) -> Any:
        msg = f"{what} would cut the derivative; keep it in array code, or use dil's `constant` if it shall be cut"
        raise UnsupportedFunctionError(msg)

    return refuse


class Box:
    """An array that is being differentiated: its value one level further out, and the node that made it."""

    __slots__ = ("index", "node", "trace", "value")
    __array_priority__ = 1000  # CuPy's operators give way to the larger

    def __init__(self, value: Any, trace: Trace, node: Node, index: int = 0) -> None:
        self.value = value
        self.trace = trace
        self.node = node
        self.index = index

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: self.value.device)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    T = property(lambda self: self.trace.tape.transpose(self))
    mT = property(lambda self: self.trace.tape.matrix_transpose(self))

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("subtract")
    __mul__, __rmul__ = _operator("multiply")
    __truediv__, __rtruediv__ = _operator("divide")
    __floordiv__, __rfloordiv__ = _operator("floor_divide")
    __mod__, __rmod__ = _operator("remainder")
    __pow__, __rpow__ = _operator("pow")
    __matmul__, __rmatmul__ = _operator("matmul")
    __eq__ = _operator("equal")[0]
    __ne__ = _operator("not_equal")[0]
    __lt__ = _operator("less")[0]
    __le__ = _operator("less_equal")[0]
    __gt__ = _operator("greater")[0]
    __ge__ = _operator("greater_equal")[0]
    __hash__ = object.__hash__

    __float__ = _refuse_conversion("float() of an array that is being differentiated")
    __int__ = _refuse_conversion("int() of an array that is being differentiated")
    __complex__ = _refuse_conversion("complex() of an array that is being differentiated")
    __index__ = _refuse_conversion("using an array that is being differentiated as an integer")
    __array__ = _refuse_conversion("making a NumPy array of an array that is being differentiated")
    __setitem__ = _refuse_conversion("writing into an array that is being differentiated")

    def __neg__(self) -> Any:
        return self.trace.tape.negative(self)

    def __pos__(self) -> Any:
        return self.trace.tape.positive(self)

    def __abs__(self) -> Any:
        return self.trace.tape.abs(self)

    def __getitem__(self, key: Any) -> Any:
        return self.trace.tape.getitem(self, key)

    def __len__(self) -> int:
        if not self.shape:
            msg = "a 0-D array has no length"
            raise TypeError(msg)
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.trace.tape.unstack(self))

    def __bool__(self) -> bool:
        # branching on a value is legitimate: the derivative is that of the branch taken
        return bool(_unboxed(self, "bool"))

    def __repr__(self) -> str:
        return f"Box({self.value!r})"

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return partial(getattr(self.trace.tape, name), self)
        msg = f"an array that is being differentiated has no attribute `{name}`, only those of the array API standard"
        raise AttributeError(msg)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.trace.tape

    def __array_ufunc__(self, ufunc: Any, method: str, *args: object, **options: Any) -> Any:
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        return self.trace.tape.dispatch(name, args, options)

    def __array_function__(self, function: Any, types: object, args: Any, options: Any) -> Any:
        within = [f"{part}." for part in (function.__module__ or "").split(".") if part in ("linalg", "fft")]
        return self.trace.tape.dispatch("".join([*within, function.__name__]), args, options)


def constant(x: Array) -> Array:
    """Return x cut off from every derivative."""
    while type(x) is Box:
        x = x.value
    return x


def is_box(x: object) -> bool:
    """Whether x is being differentiated by the tape."""
    return type(x) is Box


def value_type(x: Any) -> type:
    """Return the type of the raw array behind any number of boxes."""
    return type(constant(x))


def _unboxed(x: Any, name: str) -> Any:
    """Strip the boxes of an argument that has no derivative, in lists too; the boxes of refused traces stay refused."""
    while type(x) is Box:
        if x.trace.refusal is not None:
            raise CapturedError(x.trace.refusal.format(name))
        x = x.value
    return type(x)(_unboxed(part, name) for part in x) if type(x) in (list, tuple) else x


def _boxed(x: object) -> bool:
    """Whether x is a box, or a list or tuple that holds one somewhere."""
    return type(x) is Box or (isinstance(x, list | tuple) and any(map(_boxed, x)))


def _innermost_trace(args: Any, name: str) -> Trace | None:
    """Return the innermost trace among the boxes of the arguments."""
    found: Trace | None = None
    for a in args:
        if type(a) is Box and (found is None or a.trace.number > found.number):
            found = a.trace
    if found is not None and found.refusal is not None:
        raise CapturedError(found.refusal.format(name))
    return found


def _strip(args: Any, trace: Trace) -> tuple[list[Any], list[Any], bool]:
    """Open the boxes of one trace: the values, the parents of a node, and whether other boxes are left."""
    values, parents, seen = list(args), [], False
    for i, a in enumerate(args):
        if type(a) is Box:
            if a.trace is trace:
                parents.append((i, a.node, a.index))
                values[i] = a = a.value
            seen = seen or type(a) is Box
    return values, parents, seen


_NOWHERE = Node(None, (), {}, None, [], False)


def _lifted(*groups: Any) -> Any:
    """Box all real arrays alike, as constants of the innermost trace among them.

    So a rule that meets a box meets boxes only, and `raw * box` does not arise: it is slow with NumPy, which asks the
    box by way of a ufunc, and array_api_strict refuses it.
    """
    every = [x for group in groups for x in (group if isinstance(group, list | tuple) else (group,))]
    trace = _innermost_trace(every, "pull")
    return groups if trace is None else tuple(_lift(group, trace) for group in groups)


def _lift(x: Any, trace: Trace) -> Any:
    if isinstance(x, list | tuple):
        return tuple(_lift(part, trace) for part in x)
    if type(x) is Box or isinstance(x, type) or not hasattr(x, "dtype"):
        return x
    return Box(x, trace, _NOWHERE) if trace.tape.differentiable(x.dtype) else x


# --- primitives and their namespace ----------------------------------------------------------------------------------


class Primitive:
    """A function with a derivative rule, on raw arrays, boxes and Python scalars in any mixture."""

    __slots__ = ("name", "rule", "tape", "value")

    def __init__(self, name: str, value: Callable[..., Any], rule: Rule, tape: Tape) -> None:
        self.name = name
        self.value = value
        self.rule = rule
        self.tape = tape

    def __call__(self, *args: Any, **options: Any) -> Any:
        trace = _innermost_trace(args, self.name)
        if options and any(map(_boxed, options.values())):
            msg = f"{self.name}: an array that is being differentiated must be a positional argument"
            raise UnsupportedFunctionError(msg)
        if trace is None:
            return self.value(*args, **options)
        if len(args) > self.rule.positional or not options.keys() <= self.rule.options:
            raise self._unknown(args, options)
        values, parents, seen = _strip(args, trace)
        y = self(*values, **options) if seen else self.value(*values, **options)
        return self.tape.box(trace, y, Node(self, values, options, y, parents, seen))

    def pull(self, node: Node, c: Any, wanted: Sequence[int]) -> list[Any]:
        """Return the cotangents of the wanted arguments: by raw functions where no enclosing trace looks on."""
        rule, args, y, options = self.rule, node.args, node.y, node.options
        xp: Namespace = self.tape.plain
        if node.seen or type(c) is Box or type(c) is tuple:
            xp, (args, y, c) = self.tape, _lifted(args, y, c)
        if rule.prepare is not None:
            c = rule.prepare(xp, c, y, *args, **options)
        if rule.each is not None:
            return [fit(xp, rule.each(xp, c, y, i, *args, **options), args[i]) for i in wanted]
        return [fit(xp, rule.formulas[i](xp, c, y, *args, **options), args[i]) for i in wanted]

    def differentiable(self, position: int) -> bool:
        """Whether the rule has a formula for the argument at this position."""
        return self.rule.each is not None or self.rule.formulas[position] is not None

    def _unknown(self, args: Any, options: dict[str, Any]) -> UnsupportedFunctionError:
        extra = ", ".join(f"{key}=" for key in sorted(options.keys() - self.rule.options))
        msg = (
            f"the tape's `{self.name}` was called with {extra or f'{len(args)} positional arguments'}; "
            "it takes the arguments of the array API standard only"
        )
        return UnsupportedFunctionError(msg)


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
    boxed = staticmethod(_boxed)

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
        raw = getattr(self._raw, name, _ABSENT)
        if full in COMPOSED:
            return _composed(partial(COMPOSED[full], self.root), raw)
        if raw is _ABSENT:
            msg = f"{self!r} has no attribute `{full}`"
            raise AttributeError(msg)
        if isinstance(raw, ModuleType):
            return Tape(raw, f"{full}.", self.root)
        if not callable(raw) or isinstance(raw, type):
            return raw  # dtypes, pi, newaxis
        return _constant(full, raw) if full in CONSTANT else _refused(full, raw)

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


_ABSENT: Any = object()


def _composed(function: Callable[..., Any], raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function written with others of the tape; raw arrays go the raw way."""

    def call(*args: Any, **options: Any) -> Any:
        if raw is _ABSENT or _boxed(args) or any(map(_boxed, options.values())):
            return function(*args, **options)
        return raw(*args, **options)

    return call


def _constant(name: str, raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose derivative is zero: it acts on the bare values."""

    def call(*args: Any, **options: Any) -> Any:
        return raw(*(_unboxed(a, name) for a in args), **{key: _unboxed(a, name) for key, a in options.items()})

    return call


def _refused(name: str, raw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without a rule: it serves raw arrays and refuses boxes."""

    def call(*args: Any, **options: Any) -> Any:
        if _boxed(args) or any(map(_boxed, options.values())):
            refuse(name)
        return raw(*args, **options)

    return call


_tapes: dict[Any, Tape] = {}
_tape_of: dict[type, Tape] = {}


def namespace(x: Any) -> Tape:
    """Return the tape's namespace for a raw array or a box: one object for each raw namespace."""
    kind = value_type(x)
    if kind not in _tape_of:
        raw = array_namespace(constant(x))
        _tape_of[kind] = _tapes.setdefault(raw, Tape(raw))
    return _tape_of[kind]


# --- differentiation -------------------------------------------------------------------------------------------------


class _Program(NamedTuple):
    """The nodes between the outputs and some of the primals, last first, with the slots their cotangents add up in."""

    slots: int
    steps: list[tuple[Node, int, bool, list[int], list[int]]]
    """Node, its slot, whether it has several outputs, the positions of the wanted arguments and their slots."""
    seeds: list[int | None]
    """The slot of each output."""
    results: list[int]
    """The slot of each primal asked for."""


class Pull:
    """The transposed derivative of a function at a point; it may be called any number of times and differentiated."""

    def __init__(self, tape: Any, primals: Arrays, roots: list[Node], outputs: Arrays, sources: list[Any]) -> None:
        self._tape = tape
        self._primals = primals
        self._roots = roots
        self._outputs = outputs
        self._sources = sources  # (node, which of its outputs), or None where an output is constant
        self._programs: dict[tuple[int, ...], _Program] = {}

    def __call__(self, cotangents: Arrays, wrt: Sequence[int] | None = None) -> Arrays:
        """Return the cotangents of the primals in `wrt` (of all, if None), and work for no other."""
        wanted = tuple(range(len(self._primals)) if wrt is None else wrt)
        program = self._programs.get(wanted)
        if program is None:
            program = self._programs[wanted] = self._compile(wanted)
        slots: list[Any] = [None] * program.slots
        self._sow(slots, program.seeds, cotangents)
        for node, slot, several, positions, targets in program.steps:
            c = self._parts(slots, node, slot) if several else slots[slot]
            if c is None:
                continue
            slots[slot] = None
            for target, g in zip(targets, node.primitive.pull(node, c, positions), strict=True):
                slots[target] = slots[target] if g is None else _plus(slots[target], g)
        found = [slots[slot] for slot in program.results]
        return tuple(
            self._tape.zeros_like(self._primals[i]) if g is None else g for i, g in zip(wanted, found, strict=True)
        )

    def _sow(self, slots: list[Any], seeds: list[int | None], cotangents: Arrays) -> None:
        if len(cotangents) != len(self._outputs):
            msg = f"{len(cotangents)} cotangents were given for {len(self._outputs)} outputs"
            raise ShapeError(msg)
        for c, y, slot in zip(cotangents, self._outputs, seeds, strict=True):
            if getattr(c, "shape", None) != y.shape:
                msg = f"the cotangent of an output of shape {y.shape} has shape {getattr(c, 'shape', type(c))}"
                raise ShapeError(msg)
            if slot is not None:
                slots[slot] = _plus(slots[slot], fit(self._tape, c, y))

    def _parts(self, slots: list[Any], node: Node, slot: int) -> Any:
        """Return the cotangents of a node's several outputs; None if they are all zero."""
        parts = slots[slot : slot + len(node.y)]
        if all(part is None for part in parts):
            return None
        return tuple(self._tape.zeros_like(y) if c is None else c for c, y in zip(parts, node.y, strict=True))

    def _compile(self, wanted: tuple[int, ...]) -> _Program:
        """Find the nodes that lie between the outputs and the primals asked for: no others are ever pulled."""
        reached: dict[int, Node] = {}
        todo = [source[0] for source in self._sources if source is not None]
        while todo:  # by hand, for a graph may be deeper than Python's stack
            node = todo.pop()
            if node.number not in reached:
                reached[node.number] = node
                todo.extend(parent for _, parent, _ in node.parents)
        slot_of: dict[int, int] = {}
        slots = 0
        for i in dict.fromkeys(wanted):
            slot_of[self._roots[i].number] = slots
            slots += 1
        steps = []
        for number in sorted(reached):  # a node is younger than its parents
            node = reached[number]
            edges = [
                (i, slot_of[parent.number] + k)
                for i, parent, k in node.parents
                if parent.number in slot_of and node.primitive.differentiable(i)
            ]
            if edges:
                slot_of[number] = slots
                several = isinstance(node.y, tuple)
                steps.append((node, slots, several, [i for i, _ in edges], [target for _, target in edges]))
                slots += len(node.y) if several else 1
        seeds = [slot_of[s[0].number] + s[1] if s and s[0].number in slot_of else None for s in self._sources]
        return _Program(slots, steps[::-1], seeds, [slot_of[self._roots[i].number] for i in wanted])


def _plus(total: Any, g: Any) -> Any:
    """Add a cotangent to what is there; a box first, for not every raw array knows how to add one."""
    if total is None:
        return g
    return g + total if type(g) is Box else total + g


def vjp(fn: Callable[..., Arrays], /, *primals: Array) -> tuple[Arrays, Pull]:
    """Evaluate fn, which returns a tuple of arrays, and return its outputs and the pull of their cotangents."""
    tape = _common(primals)
    roots = [Node(None, (), {}, p, [], False) for p in primals]
    with _recording(tape) as trace:
        outputs: Any = fn(*(Box(p, trace, root) for p, root in zip(primals, roots, strict=True)))
        if not isinstance(outputs, tuple):
            msg = f"a differentiated function must return a tuple of arrays; it returned {type(outputs).__name__}"
            raise ShapeError(msg)
    ours = [type(y) is Box and y.trace is trace for y in outputs]
    values = tuple(y.value if own else y for y, own in zip(outputs, ours, strict=True))
    sources = [(y.node, y.index) if own else None for y, own in zip(outputs, ours, strict=True)]
    return values, Pull(tape, primals, roots, values, sources)


def _common(primals: Arrays) -> Tape | None:
    """Return the namespace of the primals, which must be real floating arrays of one library."""
    tapes = dict.fromkeys(map(namespace, primals))
    if len(tapes) > 1:
        msg = f"arrays of one library were expected, and {', '.join(map(repr, tapes))} came together"
        raise BackendError(msg)
    for tape in tapes:
        for p in primals:
            if not tape.differentiable(p.dtype):
                msg = f"a derivative was asked for in an array of dtype {p.dtype}; make it real floating, or a constant"
                raise DTypeError(msg)
    return next(iter(tapes), None)


class PullbackRule(Protocol):
    """The derivative of y = solve(*args), written in array code and `vjp`, so that it differentiates again."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Sequence[Array | None]:
        """Return the cotangents of `args[i]` for i in `wrt`; None stands for the zero cotangent."""
        ...


class _Implicit:
    """A function whose derivative the caller gave; it stands in its nodes as a primitive does."""

    __slots__ = ("rule", "solve")

    def __init__(self, solve: Callable[..., Arrays], rule: PullbackRule) -> None:
        self.solve = solve
        self.rule = rule

    def __call__(self, *args: Array) -> Arrays:
        trace = _innermost_trace(args, "implicit")
        if trace is None:
            with _barrier():
                return tuple(self.solve(*args))
        values, parents, seen = _strip(args, trace)
        y = self(*values)  # so that the enclosing traces see the call, and the barrier is up when none is left
        boxes: Arrays = trace.tape.box(trace, y, Node(self, values, {}, y, parents, seen))
        return boxes

    def differentiable(self, position: int) -> bool:
        return True

    def pull(self, node: Node, c: Arrays, wanted: Sequence[int]) -> list[Any]:
        args, y, c = _lifted(tuple(node.args), node.y, c)
        found = self.rule.pullback(args, y, c, tuple(wanted))
        for i, g in zip(wanted, found, strict=True):
            if g is not None and g.shape != args[i].shape:
                msg = f"a pullback returned shape {g.shape} for an argument of shape {args[i].shape}"
                raise ShapeError(msg)
        return [None if g is None else fit(namespace(g), g, args[i]) for i, g in zip(wanted, found, strict=True)]


def implicit(solve: Callable[..., Arrays], rule: PullbackRule) -> Callable[..., Arrays]:
    """Return `solve` with its derivative given by `rule` instead of by its operations.

    Raises CapturedError if `solve` uses an array that is being differentiated and is not among its arguments.
    """
    return _Implicit(solve, rule)
