"""Object arrays of boxes: what NumPy makes of `np.array([u[0], u[1]])`, and the box that they stand for.

NumPy calls `__array__` of each element, and can hold the answers in an array of objects alone. It computes with that
entry by entry, by the operators and methods of the boxes in it. So no derivative is lost, and each entry costs as much
as an operation of a whole array. Where such an array meets the tape again, its entries are joined to one box.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dil._base.errors import CapturedError, DilError, UnsupportedFunctionError
from dil_backends._tape.trace import MADE, Node, Trace

MOST = 256
"""The most entries that an array is split into."""
LONGEST = 100_000
"""The most operations with single numbers in one trace, which take some seconds."""

INSTEAD = (
    "np.stack([...]) in the place of np.array([...]), np.concatenate in that of np.r_ and np.c_, X @ u in that of "
    "X.dot(u), u in that of np.asarray(u)"
)
TOO_MANY = (
    "NumPy would make an object array of the {} entries of an array that is being differentiated and compute with one "
    f"after the other, which takes long above {MOST}; keep it in array code: {INSTEAD}"
)
TOO_LONG = (
    f"NumPy computes with the single entries of object arrays of arrays that are being differentiated, and {LONGEST} "
    f"operations did not suffice; keep them in array code: {INSTEAD}"
)
OF_COMPLEX = (
    "NumPy would make an object array of complex numbers that are being differentiated, and take them for real ones; "
    f"keep them in array code: {INSTEAD}"
)  # np.imag of an object array is zero, whatever it holds
OF_OTHERS = (
    "NumPy made an object array of arrays that are being differentiated and of {}; keep it in array code: " + INSTEAD
)
FAILED = (
    "NumPy made an object array of arrays that are being differentiated, as it does for np.array([...]), and a "
    f"function did not take it ({{}}); keep it in array code: {INSTEAD}"
)
OF_POLYNOMIAL = (
    "np.polynomial evaluates, differentiates and multiplies polynomials whose coefficients are being differentiated; "
    "a fit or the roots it does not take ({}): write np.polyfit(x, u, n)[::-1] for Polynomial.fit(x, u, n).convert()"
    ".coef and for polyfit, np.linalg.lstsq(chebvander(x, n), u)[0] for chebfit and its kin, and "
    "np.roots(c[::-1]) for roots"
)
OF_OBJECTS = re.compile(
    r"dtype\('O'\)|object_?\b.*(dtype|array|type)|(dtype|array|type)\b.*object|no callable \w+ method|"
    r"not supported for the input types|holds references|'(bool|int|float|complex)' object has no attribute"
)
"""What errors of NumPy and SciPy say of an array of objects."""
NUMBERS = (int, float, complex, np.number, np.bool_)


class Entries:
    """The object arrays of the boxes of one trace."""

    def __init__(self) -> None:
        self.operations = 0
        self.nodes: set[int] = set()
        """The numbers of the nodes that computed entries."""

    def count(self, y: Any, node: Node) -> None:
        """Count an operation that computed one number y. Raises if there were too many, or an entry became complex."""
        self.operations += 1
        if self.operations > LONGEST:
            raise UnsupportedFunctionError(TOO_LONG)
        if any(parent.number in self.nodes for _, parent, _ in node.parents):
            self.nodes.add(node.number)
            # beside an entry, NumPy makes a number of Python of the entry of a plain array
            if y.dtype.kind == "c" and any(type(a) is complex for a in node.args):
                raise UnsupportedFunctionError(OF_COMPLEX)


def begin(trace: Trace) -> None:
    """Let operations look for object arrays of the boxes of a trace from now on."""
    MADE.add(trace)
    trace.entries = trace.entries or Entries()


def split(x: Any) -> Any:
    """Return the object array of the entries of a box. Raises if they are complex, or more than `MOST`."""
    if x.size > MOST:
        raise UnsupportedFunctionError(TOO_MANY.format(x.size))
    if x.dtype.kind == "c":
        raise UnsupportedFunctionError(OF_COMPLEX)
    x._trace.tape.unboxed(x, "np.array")  # raises if x may not be used
    begin(x._trace)
    if x.size == 0:
        return np.empty(x.shape, x.dtype)
    tape = x._trace.tape
    array = np.empty(x.size, object)
    # NumPy takes a number itself, and not what is in the array of it
    for i, entry in enumerate(tape.unstack(tape.reshape(x, (x.size,))) if x.shape else (x,)):
        array[i] = entry  # `array[:] =` would make arrays of the entries
        x._trace.entries.nodes.add(entry.node.number)
    return array.reshape(x.shape)


def is_of_objects(x: object) -> bool:
    """Whether x is a NumPy array of objects."""
    return type(x) is np.ndarray and x.dtype.char == "O"


def joined(x: Any) -> Any:
    """Return x with a box in the place of each object array of boxes in it, also inside lists, tuples and dicts."""
    if is_of_objects(x):
        return join(x)
    if type(x) in (list, tuple):
        return type(x)(map(joined, x))
    return {key: joined(part) for key, part in x.items()} if type(x) is dict else x


def trace_of(array: Any) -> Trace | None:
    """Return the innermost trace of the boxes in an object array."""
    traces = [entry._trace for entry in array.ravel().tolist() if is_entry(entry)]
    return max(traces, key=lambda trace: trace.number, default=None)


def as_one_box(x: Any) -> Any:
    """Return the box of an object array of boxes, and anything else as it is."""
    return join(x) if MADE and is_of_objects(x) else x


def join(array: Any) -> Any:
    """Return the box of an object array of boxes and numbers. An array of other objects alone is returned as it is."""
    entries = array.ravel().tolist()
    box = next(filter(is_entry, entries), None)
    others = {type(e).__name__ for e in entries if not is_entry(e) and not isinstance(e, NUMBERS)}
    if box is None:
        return array if others else np.asarray(array, np.result_type(np.float64, *map(type, entries)))
    if others:
        raise UnsupportedFunctionError(OF_OTHERS.format(", ".join(sorted(others))))
    tape = box._trace.tape
    # the numbers of Python give way to arrays, as they do beside a box
    dtype = np.result_type(*{type(e): type(e)(0) for e in entries if not hasattr(e, "dtype")}.values(),
                           *{e.dtype for e in entries if hasattr(e, "dtype")})  # fmt: skip
    parts = [np.asarray(e, dtype) if not is_entry(e) else e if e.dtype == dtype else tape.astype(e, dtype)
             for e in entries]  # fmt: skip
    return tape.reshape(tape.stack(parts), array.shape)


def is_entry(x: object) -> bool:
    """Whether x is a box. The module of boxes imports this one."""
    return hasattr(type(x), "_trace")


def explain_objects(error: Exception, has_entries: bool) -> None:
    """Raise an error that says what to write, if an error of NumPy came from a box or from an object array of boxes."""
    if (reason := reason_of(error)) is not None:
        raise type(reason)(str(reason)) from (reason if isinstance(error, SystemError) else error)
    if str(error) == TOO_LONG:
        shorten(error)
    if has_entries and not isinstance(error, CapturedError) and within(error, "numpy.polynomial."):
        raise UnsupportedFunctionError(OF_POLYNOMIAL.format(error)) from error
    if has_entries and isinstance(error, UnsupportedFunctionError) and "np.stack" not in str(error):
        raise UnsupportedFunctionError(FAILED.format(error)) from error
    if has_entries and not isinstance(error, DilError) and OF_OBJECTS.search(str(error)):
        raise UnsupportedFunctionError(FAILED.format(error)) from error


def reason_of(error: Exception) -> DilError | None:
    """Return the error of the library from which an error of NumPy came, if any: it has the reason, NumPy's names none.

    A loop of NumPy goes on after an error. Where Python notices, as under a debugger, each turn adds a SystemError.
    """
    cause = None if isinstance(error, DilError) else error.__cause__
    while isinstance(cause, SystemError):
        cause = cause.__cause__
    return cause if isinstance(cause, DilError) else None


def within(error: Exception, package: str) -> bool:
    """Whether an error was raised in a module of a package."""
    line = error.__traceback__
    while line is not None:
        if str(line.tb_frame.f_globals.get("__name__")).startswith(package):
            return True
        line = line.tb_next
    return False


def shorten(error: Exception) -> None:
    """Cut the traceback of an error below the code of the user: NumPy's loops go on, and each turn adds a line."""
    line = error.__traceback__
    while line is not None and line.tb_next is not None:
        if line.tb_next.tb_frame.f_globals.get("__name__") == "dil_backends._tape.box":
            line.tb_next = None
        line = line.tb_next
