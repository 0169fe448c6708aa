"""The registry of backends: it imports them, finds the owner of an array, and makes handles for users.

Backends are modules named by the entry-point group `dil.backends`. The name of an entry point is the root module of its
arrays ("torch"). Only a framework that the process has already imported can own an array, so the search for the owner
imports no framework.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import is_
from typing import Any, cast

from dil._base.errors import BackendError, DTypeError
from dil._base.html import Mark, table
from dil._base.tree import LEAF, flatten
from dil._base.typing import AnyArray, Device, DType, Namespace, Tree
from dil._frameworks.complex_parts import ComplexParts
from dil._frameworks.protocol import Backend, BackendInfo

GROUP = "dil.backends"
LOADED: list[Backend] = []
"""The backends that `load` has imported."""
OWNERS: dict[type, Backend] = {}
"""Cache: array type -> backend. Only types from the framework's own package are cached: the owner of a box depends on
what the box holds."""


@cache
def _targets() -> dict[str, str]:
    """Return the module of each backend by name: the backends of dil, then those of the entry points."""
    from importlib.metadata import entry_points  # slow to import, and needed only when a backend is

    import dil_backends

    targets = dict(dil_backends.MODULES)
    targets.update({point.name: point.value for point in entry_points(group=GROUP)})
    return targets


@cache
def load(name: str) -> Backend:
    """Import the backend `name`.

    Raises
    ------
    BackendError
        If no backend has that name, or its framework cannot be imported.
    """
    targets = _targets()
    if name not in targets:
        message = f"there is no backend {name!r}; expected one of {', '.join(sorted(targets))}"
        raise BackendError(message)
    try:
        module = importlib.import_module(targets[name])
    except (ImportError, OSError) as error:
        if (getattr(error, "name", None) or "").partition(".")[0] in ("dil", "dil_backends"):
            raise  # the backend itself is broken; its framework is not the cause
        from dil_backends import INSTALL

        hint = INSTALL.get(name, f"install the package that provides {name!r}")
        message = f"the backend {name!r} needs a package that cannot be imported ({error}); {hint}"
        raise BackendError(message) from error
    backend = cast(Backend, module)
    LOADED.append(backend)
    return backend


def loaded() -> list[Backend]:
    """Return the backends of the frameworks that the process has imported."""
    return [load(name) for name in _targets() if name in sys.modules]


def guarded(fn: Callable[..., Any], *args: Any, exact: bool = True) -> Any:
    """Call fn under the guards of all loaded backends. `exact` is for layers, and not for transforms of user code."""
    for backend in LOADED:
        fn = backend.guard(fn, exact=exact)
    return fn(*args)


def owner(x: object) -> Backend | None:
    """Return the backend that owns the array x, or None if x is not an array of an imported framework."""
    kind = type(x)
    if kind in OWNERS:
        return OWNERS[kind]
    for name in _targets():
        if name in sys.modules:
            backend = load(name)
            if backend.owns(x):
                if kind.__module__.partition(".")[0] == backend.NATIVE:
                    OWNERS[kind] = backend
                return backend
    return None


def as_one_array(x: Any) -> Any:
    """Return x. An array of arrays, such as NumPy makes of numbers that are being differentiated, becomes one array."""
    own = owner(x)
    return x if own is None else own.adopt(x)


def complex_parts_of(x: object) -> ComplexParts:
    """Return how the framework of an array splits complex numbers."""
    own = owner(x)
    assert own is not None
    return own.complex_parts


def children(x: object) -> Any:
    """Split x as the imported frameworks split their pytrees. Return None for an array or a leaf."""
    if owner(x) is None:
        for name in _targets():
            if name in sys.modules:
                parts = load(name).children(x)
                if parts is not None:
                    return parts
    return None


def adopted(leaves: Sequence[Any], beside: Sequence[Any] = ()) -> list[Any]:
    """Return the leaves, with arrays of one framework where a framework among them, or `beside`, adopts the others."""
    every = {owner(x) for x in (*leaves, *beside)}
    if len(every) == 1 and None not in every:
        return list(leaves)
    found = [_given(x) for x in leaves]
    owners = [owner(x) for x in found]
    for backend in dict.fromkeys((*owners, *map(owner, beside))):
        if backend is not None:
            found = [x if own is backend else backend.adopt(x) for x, own in zip(found, owners, strict=True)]
            owners = [owner(x) for x in found]
    return found


def can_be_adopted(leaves: Sequence[Any]) -> bool:
    """Return whether a framework that is in use adopts one of the leaves, which is of another one."""
    foreign = [(x, own) for x in leaves if (own := owner(x)) is not None]
    try:
        return any(backend is not own and backend.adopt(x) is not x for x, own in foreign for backend in LOADED)
    except DTypeError:  # no array of numbers
        return False


def _given(x: Any) -> Any:
    """Return the array that an object without an owner gives itself as, or the object."""
    if owner(x) is None and not isinstance(x, int | float | str | None):
        for backend in LOADED:
            if (array := backend.adopt(x)) is not x:
                return array
    return x


def adopted_tree(tree: Tree, beside: Sequence[Any]) -> Tree:
    """Return a tree, with arrays of one framework where one `beside` it, or in it, adopts the others."""
    leaves, structure = leaves_of(tree)
    found = adopted(leaves, beside)
    return tree if all(map(is_, leaves, found)) else structure.unflatten(found)


def common_owner(leaves: Iterable[Any], names: Sequence[str], what: str) -> Backend:
    """Return the one backend that owns the arrays among the leaves.

    Raises
    ------
    BackendError
        If no leaf is an array, or the arrays are of two backends.
    """
    found: Backend | None = None
    first = ""
    for leaf, name in zip(leaves, names, strict=True):
        backend = owner(leaf)
        if backend is None:
            continue
        if found is None:
            found, first = backend, name
        elif backend is not found:
            message = (
                f"{what} got arrays of two backends: {first} is of {found.NATIVE}, {name} is of {backend.NATIVE}; "
                f"convert one of them"
            )
            raise BackendError(message)
    if found is None:
        message = (
            f"{what} got no array, so there is nothing that says which backend to use; pass at least one array "
            f"(NumPy, torch, JAX, CuPy, ...), for instance `dil.backend('numpy').asarray(value)`"
        )
        raise BackendError(message)
    return found


@dataclass(frozen=True)
class BackendHandle:
    """A handle of a backend: its namespace, and the device and dtype of new arrays.

    Attributes
    ----------
    name : str
        The name of the backend, such as "torch".
    xp : namespace
        The array API namespace.
    device, dtype
        The device and dtype of the arrays that `asarray` makes; None is the framework's default.
    module : module
        The implementation of the backend.

    Examples
    --------
    >>> import dil
    >>> b = dil.backend("numpy")
    >>> b.xp.sum(b.asarray([1.0, 2.0]))
    np.float64(3.0)
    """

    name: str
    xp: Namespace
    device: Device | None
    dtype: DType | None
    module: Backend

    def asarray(self, x: object) -> AnyArray:
        """Make an array of x with the dtype and on the device of this handle; complex numbers get its precision."""
        dtype = self.dtype
        if dtype is not None and _holds_complex(x):
            dtype = getattr(self.xp, f"complex{2 * self.xp.finfo(dtype).bits}")
        return self.module.asarray(x, dtype=dtype, device=self.device)

    def to_numpy(self, x: AnyArray) -> Any:
        """Copy an array to NumPy, for printing, saving and plotting."""
        return self.module.to_numpy(self.module.constant(x))


def _holds_complex(x: Any) -> bool:
    """Return whether an array, or what is to become one, holds complex numbers."""
    if hasattr(x, "dtype"):
        return "complex" in str(x.dtype)
    import numpy as np

    return bool(np.iscomplexobj(x))


@cache
def _namespace_of(name: str) -> Namespace:
    """Return the array API namespace of a backend that can compute here. Cached, because `info` lists all devices."""
    module = load(name)
    reason = module.info().reason
    if reason is not None:
        message = f"the backend {name!r} cannot be used here: {reason}"
        raise BackendError(message)
    return module.namespace()


def backend(
    name: str | None = None, *, device: Device | None = None, dtype: DType | str | None = None
) -> BackendHandle:
    """Return a handle of a backend.

    Parameters
    ----------
    name : str, optional
        The name of the backend. None stands for the name in $DIL_BACKEND, or for NumPy if that is not set.
    device, dtype : optional
        The device and the real floating dtype of new arrays. A dtype may be given by name, such as "float32".

    Raises
    ------
    BackendError
        If the backend is unknown, not installed or unusable here, or does not have the dtype.

    Examples
    --------
    >>> import dil
    >>> dil.backend("numpy", dtype="float32").asarray([1.0, 2.0]).dtype
    dtype('float32')
    """
    chosen = name or os.environ.get("DIL_BACKEND") or "numpy"
    if name is None and chosen not in _targets():
        message = f"$DIL_BACKEND is {chosen!r}; expected one of {', '.join(sorted(_targets()))}"
        raise BackendError(message)
    name = chosen
    module, xp = load(name), _namespace_of(name)
    wanted = getattr(xp, dtype, None) if isinstance(dtype, str) else dtype
    try:
        xp.finfo(wanted if wanted is not None else xp.float32)
        known = dtype is None or wanted is not None
    except (TypeError, ValueError, AttributeError):
        known = False
    if not known:
        message = f"the backend {name!r} has no dtype {dtype!r}; try 'float32' or 'float64'"
        raise BackendError(message)
    handle = BackendHandle(name, xp, device, wanted, module)
    handle.asarray(0.0)  # raises here, and not at the first use, if there is no such dtype or device
    return handle


class Backends(tuple[BackendInfo, ...]):
    """A tuple of the backends, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows = [
            (info.name, info.version or "-", ", ".join(info.devices) or "-", Mark(info.usable, info.reason or "yes"))
            for info in self
        ]
        return table("dil.backends()", ("backend", "version", "devices", "usable"), rows)


def backends() -> Backends:
    """Return one entry for each backend, with its version and devices, or the reason why it cannot be used.

    This imports all frameworks that are installed. A notebook shows a table.
    """
    return Backends(_describe(name) for name in _targets())


def _describe(name: str) -> BackendInfo:
    try:
        return load(name).info()
    except BackendError as error:
        return BackendInfo(name, None, (), str(error))


def leaves_of(tree: Tree) -> tuple[list[Any], Any]:
    """Flatten a tree, which may contain the pytrees of the imported frameworks."""
    if owner(tree) is not None:
        return [as_one_array(tree)], LEAF
    leaves, structure = flatten(tree, children)
    return list(map(as_one_array, leaves)), structure
