"""What a linear solver keeps from one call to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dil._base.arrays import device
from dil._base.typing import Array, Arrays
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend


class Kept(dict[Any, Arrays]):
    """Some arrays for each framework, device, shape and dtype of a right-hand side.

    Under a compiler, pure callbacks read and write them, although neither is pure. The compiler may run them twice, in
    another order or not at all. Only a solver whose answer does not depend on what it keeps may use them. Reading or
    writing one entry of a dict is thread-safe.
    """

    def read(self, backend: Backend, b: Array, empty: Callable[[], Arrays]) -> tuple[Arrays, bool]:
        """Return what was kept for b, or `empty()`, and whether it is known that nothing was.

        `empty()` must depend on b: a callback that depends on nothing runs when the program is built.
        """
        key, absent = _key(backend, b), False

        def read(*start: Array) -> Arrays:
            nonlocal absent
            found = self.get(key)
            absent = found is None
            return start if found is None else found

        if not runs_later(backend.loops, b):  # then nothing is made in vain
            backend.loops.on_host(lambda b: (b,), (b,), backend.constant(b))  # refuses what no host has
            found = self.get(key, ())
            return found or empty(), not found
        start = empty()
        found = backend.loops.on_host(read, start, *map(backend.constant, start))
        return found, absent

    def write(self, backend: Backend, b: Array, x: Array, *arrays: Array) -> Array:
        """Keep some arrays for b, or x if there are none. Return x.

        x goes through the callback, because one on which nothing depends is dropped.
        """
        key = _key(backend, b)

        def write(x: Array, *arrays: Array) -> Arrays:
            self[key] = arrays or (x,)
            return (x,)

        return backend.loops.on_host(write, (x,), *map(backend.constant, (x, *arrays)))[0]


def _key(backend: Backend, b: Array) -> Any:
    return backend.NATIVE, tuple(b.shape), str(b.dtype), str(device(b))
