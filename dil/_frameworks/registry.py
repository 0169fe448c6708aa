"""The registry of backends: find them, find the owner of an array, and make handles.

Backends are modules named by the entry-point group `dil.backends`. The name of an entry point is the root module of
the arrays that it serves ("torch"), so that an array's owner is found without importing any framework: only frameworks
that the process has imported already can own an array.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from dil._base.arrays import array_namespace
from dil._base.errors import BackendError
from dil._base.typing import Array, Device, DType, Namespace, Tree
from dil._frameworks.protocol import Backend, BackendInfo

GROUP = "dil.backends"
LOADED: list[Backend] = []
"""The backends that `load` has imported."""
OWNERS: dict[type, Backend] = {}
"""Cache: array type -> backend. Only types from the framework's own package are cached: the owner of a box depends on
what the box holds."""


@cache
def _targets() -> dict[str, str]:
    """Map each backend's name to its module: those that come with dil, then those of the entry points."""
    from importlib.metadata import entry_points  # slow to import, and needed only once a backend is asked for

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
            raise  # the backend itself is broken, its framework is not absent
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
    """Call fn under the guards of all frameworks in use. With `exact`, as for a layer, dtypes are kept."""
    for backend in LOADED:
        fn = backend.guard(fn, exact=exact)
    return fn(*args)


def owner(x: object) -> Backend | None:
    """Return the backend that owns the array x; None if x is no array of a framework in use."""
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


def children(x: object) -> Any:
    """Split x as the frameworks in use would. Return None for an array or a leaf."""
    if owner(x) is None:
        for name in _targets():
            if name in sys.modules:
                parts = load(name).children(x)
                if parts is not None:
                    return parts
    return None


def common_owner(leaves: Iterable[Any], names: Sequence[str], what: str) -> Backend:
    """Return the one backend that owns the arrays among the leaves.

    Raises
    ------
    BackendError
        If there is no array, or arrays of two backends.
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
        Such as "torch".
    xp : namespace
        The array API namespace.
    device, dtype
        The device and dtype that `asarray` uses; None leaves them to the framework.

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

    def asarray(self, x: object) -> Array:
        """Make an array of x with this handle's dtype, on its device."""
        return self.module.asarray(x, dtype=self.dtype, device=self.device)

    def to_numpy(self, x: Array) -> Any:
        """Copy an array to NumPy, for printing, saving and plotting."""
        return self.module.to_numpy(self.module.constant(x))


@cache
def _namespace_of(name: str) -> Namespace:
    """Return the array API namespace of a backend that can compute here; found once, since it lists devices."""
    module = load(name)
    reason = module.info().reason
    if reason is not None:
        message = f"the backend {name!r} cannot be used here: {reason}"
        raise BackendError(message)
    return array_namespace(module.asarray(0.0))


def backend(
    name: str | None = None, *, device: Device | None = None, dtype: DType | str | None = None
) -> BackendHandle:
    """Return a handle of a backend; None reads $DIL_BACKEND, then takes NumPy.

    Raises
    ------
    BackendError
        If the backend is unknown, absent or unusable here, or has no such dtype.
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
    handle.asarray(0.0)  # report an unavailable dtype or device here, not at the first use
    return handle


def backends() -> tuple[BackendInfo, ...]:
    """List every backend: its version and devices, or why it cannot be used. Imports the frameworks that it finds."""
    return tuple(_describe(name) for name in _targets())


def _describe(name: str) -> BackendInfo:
    try:
        return load(name).info()
    except BackendError as error:
        return BackendInfo(name, None, (), str(error))


def leaves_of(tree: Tree) -> tuple[list[Any], Any]:
    """Flatten a tree, with the pytrees of the frameworks in use."""
    from dil._base.tree import flatten

    return flatten(tree, children)
