"""Calls from a compiled program on the CPU to a function of Python, through XLA's foreign function interface.

A host callback of JAX is a pointer into this process. So JAX neither exports a program with one, nor keeps it in its
persistent compilation cache. A foreign function has a name instead, and a text as its attribute. The structures below
are those of XLA's C interface, xla/ffi/api/c_api.h, whose version the program's own interface tells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

TARGET = "dil_report"
"""The name of the foreign function. `jax.export` asks for it: see docs/pages/jax.md."""
METADATA, INTERNAL = 1, 13
"""The extension that asks for the version, and the code of an error."""
FIRST = (0, 1)
"""The version, major and minor, of those XLA that ask without telling their own (JAX before 0.8.2)."""


def struct(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    """Return a structure of the interface. Each begins with its size and a pointer to its extensions."""
    return type(
        name, (ctypes.Structure,), {"_fields_": [("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), *fields]}
    )


Version = struct("Version", ("major", ctypes.c_int), ("minor", ctypes.c_int))
Failure = struct("Failure", ("message", ctypes.c_char_p), ("code", ctypes.c_int))
CREATE_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Failure))
Interface = struct("Interface", ("version", Version), ("internal", ctypes.c_void_p), ("create_error", CREATE_ERROR))
Buffer = struct(
    "Buffer",
    ("dtype", ctypes.c_int),
    ("data", ctypes.c_void_p),
    ("rank", ctypes.c_int64),
    ("dims", ctypes.POINTER(ctypes.c_int64)),
)
Buffers = struct(
    "Buffers",
    ("count", ctypes.c_int64),
    ("types", ctypes.c_void_p),
    ("items", ctypes.POINTER(ctypes.POINTER(Buffer))),
)


class Bytes(ctypes.Structure):
    """The bytes of an attribute."""

    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t))


Attributes = struct(
    "Attributes",
    ("count", ctypes.c_int64),
    ("types", ctypes.c_void_p),
    ("names", ctypes.c_void_p),
    ("items", ctypes.POINTER(ctypes.POINTER(Bytes))),
)
Frame = struct(
    "Frame",
    ("interface", ctypes.POINTER(Interface)),
    ("context", ctypes.c_void_p),
    ("stage", ctypes.c_int),
    ("arguments", Buffers),
    ("results", Buffers),
    ("attributes", Attributes),
)


class Extension(ctypes.Structure):
    """A question that XLA asks in the place of a run."""

    _fields_ = (("size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", ctypes.c_void_p))


class Metadata(ctypes.Structure):
    """The answer: the version of the interface that the function was written for."""

    _fields_ = (("size", ctypes.c_size_t), ("version", Version), ("traits", ctypes.c_uint32))


class Question(ctypes.Structure):
    """The question for the metadata."""

    _fields_ = (("base", Extension), ("metadata", ctypes.POINTER(Metadata)))


HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Frame))
DTYPES = {3: np.int16, 4: np.int32, 5: np.int64, 11: np.float32, 12: np.float64}
"""The dtypes that a program reports, by their numbers in the interface."""


def register(fn: Callable[[str, Any, Any], None]) -> Any:
    """Make `fn(text, call, values)` the function that programs call, and return what must stay alive.

    An exception of fn fails the program. Its text is the message of JAX's error.
    """

    def handle(frame: Any) -> int | None:
        frame = frame.contents
        if _asks_for_version(frame):
            return None
        try:
            arrays = [_array(frame.arguments.items[i].contents) for i in range(2)]
            _array(frame.results.items[0].contents)[...] = 0
            text = frame.attributes.items[0].contents
            fn(ctypes.string_at(text.data, text.length).decode(), *arrays)
        except Exception as error:  # no exception of Python may leave a function that C calls
            return _failed(frame, error)
        return None

    handler = HANDLER(handle)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    capsule = new(ctypes.cast(handler, ctypes.c_void_p), b"xla._CUSTOM_CALL_TARGET", None)
    jax.ffi.register_ffi_target(TARGET, capsule, platform="cpu")
    return handler


def call(text: str, number: Any, values: Any) -> Any:
    """Call the function when the program runs. Return an int32 zero that depends on the call."""
    zero = jax.ShapeDtypeStruct((), np.int32)  # type: ignore[no-untyped-call]
    return jax.ffi.ffi_call(TARGET, zero, vmap_method="expand_dims")(number, values, text=text)


def _asks_for_version(frame: Any) -> bool:
    """Return whether a call is no run but the question for the version, and answer it."""
    if not frame.extension:
        return False
    question = ctypes.cast(frame.extension, ctypes.POINTER(Question)).contents
    if question.base.kind != METADATA:
        return False
    metadata = question.metadata.contents
    version = frame.interface.contents.version if frame.interface else Version(0, None, *FIRST)
    metadata.version.major, metadata.version.minor, metadata.traits = version.major, version.minor, 0
    return True


def _failed(frame: Any, error: Exception) -> int | None:
    message = str(error) or type(error).__name__
    failure = Failure(ctypes.sizeof(Failure), None, message.encode(), INTERNAL)
    created: int | None = frame.interface.contents.create_error(ctypes.byref(failure))
    return created


def _array(buffer: Any) -> Any:
    """Return a buffer as a NumPy array, without a copy."""
    shape = tuple(buffer.dims[i] for i in range(buffer.rank))
    dtype = np.dtype(DTYPES[buffer.dtype])
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    raw: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(buffer.data)
    return np.frombuffer(raw, dtype).reshape(shape)
