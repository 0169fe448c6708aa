"""The box: an array that is being differentiated. It records operators and refuses to lose its derivative."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np

from dil._base.errors import CapturedError, UnsupportedFunctionError
from dil._base.typing import Array
from dil_backends._tape.entries import is_of_objects, join
from dil_backends._tape.exchange import ACTIVE, exchanged
from dil_backends._tape.methods import attribute
from dil_backends._tape.sparse import FAILURES, SPARSE, explain_sparse, is_sparse, is_sparse_matrix, is_sparse_type
from dil_backends._tape.trace import MADE, Node, Parent, Trace

OPERANDS = frozenset((list, tuple, Fraction))
"""The types that NumPy takes for arrays or numbers beside an array, and whose own operators the rules would meet."""


def operand(x: Box, other: Any) -> Any:
    """Return what NumPy makes of an operand beside an array. Other libraries take none of them."""
    tape = x._trace.tape
    if tape.__name__ != "array_api_compat.numpy":
        return other
    return float(other) if type(other) is Fraction else tape.asarray(other)


def binary_operator(name: str) -> tuple[Any, Any]:
    """Return the two methods of a binary operator: `box op other` and `other op box`."""

    def straight(self: Box, other: object) -> Any:
        if type(other) in OPERANDS:
            other = operand(self, other)
        try:
            return getattr(self._trace.tape, name)(self, other)
        except GivesWay:
            return of_other(name, self, other)
        except FAILURES as e:
            if name == "multiply" and self.ndim and is_sparse_matrix(other):
                return self @ other
            explain_sparse(e, (other,))
            raise

    def reflected(self: Box, other: object) -> Any:
        if type(other) in OPERANDS:
            other = operand(self, other)
        try:
            return getattr(self._trace.tape, name)(other, self)
        except GivesWay:
            return of_other(name, other, self)
        except FAILURES as e:
            if name == "multiply" and self.ndim and is_sparse_matrix(other):
                return self.__rmatmul__(other)
            explain_sparse(e, (other,))
            raise

    return straight, reflected


class GivesWay(UnsupportedFunctionError):
    """An operand has `__array_ufunc__`, by which it takes the operation itself."""


def of_other(name: str, left: Any, right: Any) -> Any:
    """Return what an operand makes of an operator that takes it itself, by NumPy's rule (NEP 13)."""
    if any(getattr(x, "__array_ufunc__", ...) is None for x in (left, right)):
        return NotImplemented  # it has the operator alone
    return getattr(np, {"pow": "power"}.get(name, name))(left, right)


def refuse_conversion(what: str, instead: str = "") -> Any:
    """Return a method that raises, for a conversion of a box that would lose the derivative."""

    def refuse(self: Box, *args: object, **options: object) -> Any:
        way = f"keep it in array code{instead}, or use dil's `constant` if it shall be cut"
        msg = f"{what} would cut the derivative; {way}"
        raise UnsupportedFunctionError(msg)

    return refuse


def refuse_in_place(operator: str) -> Any:
    """Return a method for an augmented assignment: of a number as the operator, of an array refused."""

    def refuse(self: Box, other: Any) -> Any:
        if not self.ndim:
            return NotImplemented  # Python takes `v = v + 1`, and a number has no other name that would change
        msg = (
            f"`v {operator}= x` would not change the other names of an array that is being differentiated, as it does "
            f"in NumPy; write `v = v {operator} x`"
        )
        raise UnsupportedFunctionError(msg)

    return refuse


NUMBERS = " (np.stack([...]) for writing its entries, as in v[0] = u[0]; np.exp for math.exp)"

ROUNDING = " (np.{0} for math.{0}, and np.stack([...]) for the np.array([...]) in it)"


class Box:
    """An array that is being differentiated, and the node that made it.

    The value is a raw array or a box of an enclosing trace.
    """

    __slots__ = ("_trace", "index", "node", "value")
    __array_priority__ = 1000  # CuPy's operators defer to the operand with the larger priority

    def __init__(self, value: Any, trace: Trace, node: Node, index: int = 0) -> None:
        self.value = value
        self._trace = trace
        self.node = node
        self.index = index

    shape = property(attrgetter("value.shape"))
    dtype = property(attrgetter("value.dtype"))
    device = property(attrgetter("value.device"))
    ndim = property(attrgetter("value.ndim"))
    size = property(attrgetter("value.size"))
    T = property(lambda self: self._trace.tape.transpose(self))
    mT = property(lambda self: self._trace.tape.matrix_transpose(self))

    __add__, __radd__ = binary_operator("add")
    __sub__, __rsub__ = binary_operator("subtract")
    __mul__, __rmul__ = binary_operator("multiply")
    __truediv__, __rtruediv__ = binary_operator("divide")
    __floordiv__, __rfloordiv__ = binary_operator("floor_divide")
    __mod__, __rmod__ = binary_operator("remainder")
    __pow__, __rpow__ = binary_operator("pow")
    __iadd__, __isub__, __imul__, __itruediv__ = map(refuse_in_place, ("+", "-", "*", "/"))
    __ifloordiv__, __imod__, __ipow__, __imatmul__ = map(refuse_in_place, ("//", "%", "**", "@"))
    __eq__ = binary_operator("equal")[0]
    __ne__ = binary_operator("not_equal")[0]
    __lt__ = binary_operator("less")[0]
    __le__ = binary_operator("less_equal")[0]
    __gt__ = binary_operator("greater")[0]
    __ge__ = binary_operator("greater_equal")[0]
    __hash__ = object.__hash__

    __float__ = refuse_conversion("float() of an array that is being differentiated", NUMBERS)
    __int__ = refuse_conversion("int() of an array that is being differentiated", " (np.trunc for int)")
    __round__ = refuse_conversion("round() of an array that is being differentiated", " (np.round for round)")
    __floor__ = refuse_conversion("math.floor of an array that is being differentiated", ROUNDING.format("floor"))
    __ceil__ = refuse_conversion("math.ceil of an array that is being differentiated", ROUNDING.format("ceil"))
    __trunc__ = refuse_conversion("math.trunc of an array that is being differentiated", ROUNDING.format("trunc"))
    __complex__ = refuse_conversion("complex() of an array that is being differentiated")
    as_integer_ratio = refuse_conversion(
        "a fraction of an array that is being differentiated, as the module `statistics` makes it,",
        " (np.mean, np.var or np.median of np.stack([...]) for statistics.mean and the others)",
    )
    __index__ = refuse_conversion("using an array that is being differentiated as an integer")

    def __matmul__(self, other: Any) -> Any:
        tape = self._trace.tape
        if type(other) in OPERANDS:
            other = operand(self, other)
        try:
            return tape.times_sparse(self, S=other) if is_sparse(other) else tape.matmul(self, other)
        except GivesWay:
            return of_other("matmul", self, other)

    def __rmatmul__(self, other: Any) -> Any:
        tape = self._trace.tape
        if type(other) in OPERANDS:
            other = operand(self, other)
        try:
            return tape.sparse_times(self, S=other) if is_sparse(other) else tape.matmul(other, self)
        except GivesWay:
            return of_other("matmul", other, self)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._trace.tape.array_of_box(self, dtype, sys._getframe(1))

    def __setitem__(self, key: object, value: object) -> None:
        self._trace.tape.refuse_writing()

    def __neg__(self) -> Any:
        return self._trace.tape.negative(self)

    def __pos__(self) -> Any:
        return self._trace.tape.positive(self)

    def __abs__(self) -> Any:
        return self._trace.tape.abs(self)

    def __getitem__(self, key: Any) -> Any:
        return self._trace.tape.getitem(self, key)

    def __len__(self) -> int:
        if not self.shape:
            msg = "a 0-D array has no length"
            raise TypeError(msg)
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            msg = "iteration over a 0-d array"
            raise TypeError(msg)
        return iter(self._trace.tape.unstack(self))

    def __bool__(self) -> bool:
        # branching on a value is allowed: the derivative is that of the branch taken
        return bool(unboxed(self, "bool"))

    def __copy__(self) -> Box:
        return self  # nothing is written into a box; a copy of its trace would be another one

    def __deepcopy__(self, memo: object) -> Box:
        return self

    def __reduce_ex__(self, protocol: object) -> Any:
        msg = "an array that is being differentiated cannot be pickled; pickle `dil.constant(u)`, the array in it"
        raise UnsupportedFunctionError(msg)

    def __repr__(self) -> str:
        return f"Box({self.value!r})"

    def __format__(self, spec: str) -> str:
        if not spec:
            return repr(self)
        if self.shape:
            msg = "a format is for one number, and this is an array that is being differentiated; write f'{u[0]:.3f}'"
            raise UnsupportedFunctionError(msg)
        is_complex = self.dtype in self._trace.tape.complex_dtypes
        return format((complex if is_complex else float)(constant(self)), spec)

    def __getattr__(self, name: str) -> Any:
        return attribute(self, self._trace.tape, value_type(self), name)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self._trace.tape

    def __array_ufunc__(self, ufunc: Any, method: str, *args: object, **options: Any) -> Any:
        for x in args:
            if type(x) in OPERANDS:
                args = tuple([operand(self, a) if type(a) in OPERANDS else a for a in args])
                break
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        try:
            return self._trace.tape.dispatch(name, args, options)
        except GivesWay:
            return NotImplemented

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if len(types) > 1 and any(map(takes_operations, types)):
            return NotImplemented
        return self._trace.tape.dispatch(full_name(function), args, options)


@cache
def full_name(function: Any) -> str:
    """Return the name of a function of NumPy with its submodule: `np.emath.sqrt` is not `np.sqrt`."""
    _, *within = (function.__module__ or "").split(".")
    return ".".join([*within, function.__name__])


def constant(x: Array) -> Array:
    """Return x as a raw array, without any derivative."""
    while type(x) is Box:
        x = x.value
    return x


def is_box(x: object) -> bool:
    """Whether x is being differentiated by the tape."""
    return type(x) is Box


def value_type(x: Any) -> type:
    """Return the type of the raw array behind any number of boxes."""
    return type(constant(x))


def unboxed(x: Any, name: str) -> Any:
    """Return the raw value of an argument that has no derivative, also inside lists and tuples.

    Raises CapturedError for a box of a refused trace.
    """
    if ACTIVE:
        x = exchanged(x)
    if MADE and is_of_objects(x):
        x = join(x)
    while type(x) is Box:
        if x._trace.refusal is not None:
            raise CapturedError(x._trace.refusal.format(name))
        x = x.value
    return type(x)(unboxed(part, name) for part in x) if type(x) in (list, tuple) else x


def holds_box(x: object) -> bool:
    """Whether x is a box, or a list or tuple that holds one somewhere."""
    return type(x) is Box or (isinstance(x, list | tuple) and any(map(holds_box, x)))


NOWHERE = Node(None, (), {}, None, [], False)
"""The node of a constant box. Nothing is recorded of an operation whose boxes are all constant."""


def is_recorded(x: Any) -> bool:
    """Whether x is a box that depends on the primals of a trace. Constant boxes do not."""
    while type(x) is Box:
        if x.node is not NOWHERE:
            return True
        x = x.value
    return False


ORDINARY: set[type] = set()
"""The types of operands that were met and are no arrays with operators of their own."""
WITH_OPERATORS = {
    "matrix": "np.asarray(x) of it, with `@` for the matrix product",
    "MaskedArray": "np.where(mask, 0.0, x.data) and the count of what is left",
}


OVERRIDES = ("__array_ufunc__", "__array_function__", *(f"__{r}{name}__" for name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul") for r in ("", "r")))  # fmt: skip
"""What a subclass of NumPy's arrays may define so that its operations are not theirs."""


def takes_operations(kind: type) -> bool:
    """Whether a type that is no array takes NumPy's operations itself, as arrays with units do."""
    is_array = kind is Box or hasattr(kind, "__dlpack__")  # CuPy's arrays have `__array_ufunc__`, too
    return not is_array and hasattr(kind, "__array_ufunc__")


def check_type(found: type) -> None:
    """Remember the type of an operand. Raise for arrays of NumPy whose operators mean something else than its arrays'.

    NumPy asks the box first for `u * x`, and would not apply the mask, or take the matrix product.
    """
    if takes_operations(found):
        msg = (
            f"an array that is being differentiated met a {found.__name__}, which takes NumPy's operations itself, in "
            "a function that does not ask it; write the function of the array in it"
        )
        raise GivesWay(msg)
    for base in found.__mro__:
        if base.__name__ in WITH_OPERATORS and base.__module__.partition(".")[0] == "numpy":
            msg = (
                f"an array that is being differentiated met a numpy {base.__name__}, whose operators are its own; "
                f"write {WITH_OPERATORS[base.__name__]}"
            )
            raise UnsupportedFunctionError(msg)
    if is_sparse_type(found):
        raise UnsupportedFunctionError(SPARSE)
    if issubclass(found, np.ndarray) and any(getattr(found, m) is not getattr(np.ndarray, m) for m in OVERRIDES):
        msg = (
            f"an array that is being differentiated met a {found.__name__}, a kind of NumPy array with operations of "
            "its own, which the derivative does not know; write np.asarray(x) of it"
        )
        raise UnsupportedFunctionError(msg)
    ORDINARY.add(found)


def innermost_trace(args: Any, name: str) -> Trace | None:
    """Return the innermost trace among the boxes of the arguments."""
    return opened(args, name)[0]


def opened(args: Any, name: str) -> tuple[Trace | None, Any, list[Parent], bool]:
    """Unbox the boxes of the innermost trace among the arguments.

    Return the trace, the values, the parents of the new node, and whether boxes of other traces remain among the
    values. Raises CapturedError for a refused trace.
    """
    if MADE:
        args = [join(a) if is_of_objects(a) else a for a in args]
    trace: Trace | None = None
    values: Any = args
    parents: list[Parent] = []
    seen = False
    position = -1
    for a in args:
        position += 1  # faster than `enumerate`, and every operation comes here
        if type(a) is not Box:
            if type(a) not in ORDINARY:
                check_type(type(a))
            continue
        if a._trace is not trace:
            if trace is not None:
                seen = True  # of two traces, the outer one remains
                if a._trace.number < trace.number:
                    continue
            trace, values, parents = a._trace, list(args), []
        values[position] = value = a.value
        if a.node is not NOWHERE:
            parents.append((position, a.node, a.index))
        if type(value) is Box:
            seen = True
    if trace is not None and trace.refusal is not None:
        raise CapturedError(trace.refusal.format(name))
    return trace, tuple(values), parents, seen  # tuples of arrays do not burden Python's garbage collection


def lifted(args: Any, y: Any, c: Any) -> tuple[Any, Any, Any]:
    """Return what a rule gets with all its arrays as boxes of their innermost trace. Raw arrays become constant boxes.

    So a rule that gets a box gets boxes only, and `raw * box` does not occur. That product is slow with NumPy, which
    calls the box through a ufunc, and array_api_strict refuses it.
    """
    several = [x for x in (y, c) if isinstance(x, tuple)]
    trace = innermost_trace([*args, y, c] + [part for x in several for part in x], "pull")
    return (args, y, c) if trace is None else (tuple([lift(a, trace) for a in args]), lift(y, trace), lift(c, trace))


def lift(x: Any, trace: Trace) -> Any:
    if type(x) is Box:
        return x
    if isinstance(x, list | tuple):
        return tuple(lift(part, trace) for part in x)
    if isinstance(x, type) or not hasattr(x, "dtype"):
        return x
    return Box(x, trace, NOWHERE) if trace.tape.differentiable(x.dtype) else x
