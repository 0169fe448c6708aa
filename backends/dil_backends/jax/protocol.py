"""The functions of the JAX backend that `dil._frameworks.protocol.Backend` requires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._base.arrays import array_namespace
from dil._base.errors import BackendError, CapturedError, DTypeError
from dil._base.typing import Namespace
from dil._frameworks.protocol import BackendInfo, Compiler, Pull, PullWithWork
from dil_backends.jax.attach import is_zero
from dil_backends.jax.complex_parts import COMPLEX_PARTS as complex_parts
from dil_backends.jax.dense import DENSE as dense
from dil_backends.jax.fixed import fixed
from dil_backends.jax.guard import compiled, guard, may_run_programs
from dil_backends.jax.implicit import implicit
from dil_backends.jax.lifted import lifted
from dil_backends.jax.linear_solve import linear_solve
from dil_backends.jax.loops import LOOPS as loops
from dil_backends.jax.loops import map_many
from dil_backends.jax.reports import REPORTS as reports
from dil_backends.jax.varying import axes_of, cast, checked

__all__ = ["complex_parts", "dense", "fixed", "guard", "implicit", "lifted", "linear_solve", "loops", "once", "reports"]

NATIVE = "jax"
FLOAT_CUTS = False
Arrays = tuple[jax.Array, ...]

UNDIFFERENTIABLE = ("callbacks do not support JVP", "(jvp) to a custom_vjp")
NO_DERIVATIVE = (
    "dil: the function holds what JAX cannot differentiate in this way; a layer's gradient takes second derivatives of "
    "its score. Of a jax.custom_vjp function take reverse mode at every level (jax.jacrev twice instead of "
    "jax.hessian), or write it as a jax.custom_jvp; for a callback give the products yourself, "
    "dil.argmin(..., derivatives=dil.Derivatives(gradient=, hvp=, mixed=))"
)

_ONE = np.float32(1.0)


def owns(x: object, /) -> bool:
    """Whether x is a JAX array or a tracer."""
    return isinstance(x, jax.Array)


def adopt(x: object, /, dtype: Any = None) -> Any:
    """Return a NumPy array of numbers, or an object that gives itself as an array of JAX, as an array of JAX.

    An array gets a wider `dtype` where JAX promotes dtypes, which `jax_numpy_dtype_promotion="strict"` forbids.
    """
    if dtype is not None and isinstance(x, jax.Array):
        promotes = jax.config.jax_numpy_dtype_promotion == "standard"  # type: ignore[attr-defined]
        return x.astype(dtype) if promotes and jnp.promote_types(x.dtype, dtype) == dtype else x
    if isinstance(x, np.ndarray | np.generic):
        if x.dtype == jax.dtypes.float0 or isinstance(x, np.ma.MaskedArray):
            return x  # the tangent of an integer holds no number, and JAX has no masked arrays
        if not (x.dtype == bool or jnp.issubdtype(x.dtype, np.number)):
            message = f"a NumPy array of dtype {x.dtype} is no array of numbers for JAX; convert it"
            raise DTypeError(message)
        return jnp.asarray(x)
    return jnp.asarray(x) if hasattr(type(x), "__jax_array__") else x


def constant(x: Any, /) -> Any:
    """Return x without its derivative. A transform passes Python numbers on as Python numbers; they become arrays."""
    plain = jax.lax.stop_gradient(x)
    return plain if isinstance(plain, jax.Array) else jnp.asarray(plain)


def compiler() -> Compiler | None:
    """Return `jax.jit` for calls outside any program, and None while one is traced."""
    return None if _records() else Compiler(compiled, _is_traced, frozenset({"jax", "jaxlib"}))


def once(fn: Callable[..., Any], /) -> Callable[..., Any]:
    """Return fn as it is now, traced once, while a program is traced."""
    return fixed(fn) if _records() else fn


def _records() -> bool:
    return isinstance(jnp.add(_ONE, _ONE), jax.core.Tracer)


def _is_traced(x: object) -> bool:
    return isinstance(x, jax.core.Tracer)


def children(x: object, /) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Any]] | None:
    """Split one level of a pytree that JAX has registered."""
    parts, structure = jax.tree.flatten(x, is_leaf=lambda part: part is not x)
    if jax.tree_util.treedef_is_leaf(structure) or x is None:
        return None
    return parts, lambda new: jax.tree.unflatten(structure, new)


def vjp(fn: Callable[..., Arrays], /, *primals: jax.Array) -> tuple[Arrays, Pull]:
    """Return fn(*primals) and its pullback by `jax.vjp`. Cotangents not in `wrt` are dead code to the compiler."""
    may_run_programs()
    try:
        if checked():  # each shard takes its own derivative: without the cast JAX would sum over all
            primals = cast(primals, axes_of(jax.eval_shape(fn, *primals)) | axes_of(primals))
        out, pull_all = jax.vjp(fn, *primals)
    except (TypeError, ValueError) as error:
        if any(words in str(error) for words in UNDIFFERENTIABLE):
            error.add_note(NO_DERIVATIVE)
        raise

    axes = [axes_of(y) for y in out]

    def pull(cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        may_run_programs()
        every = pull_all(tuple(cast(c, where) for c, where in zip(cotangents, axes, strict=True)))
        return tuple(every) if wrt is None else tuple(every[i] for i in wrt)

    # XLA fuses what a pull computes, so only its results have to be made
    return out, PullWithWork(pull, lambda: primals[0].size, map_many)


def assert_constant(x: jax.Array, message: str, /) -> None:
    """Raise if JAX differentiates x, now or later when the program that computes x is transformed."""
    probe = jax.custom_jvp(lambda x: x)

    def refuse(primals: Arrays, tangents: Sequence[Any]) -> Any:
        if not all(is_zero(t) for t in tangents):
            raise CapturedError(message)
        return primals[0], jnp.zeros_like(primals[0])

    probe.defjvp(refuse, symbolic_zeros=True)
    probe(x)


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> jax.Array:
    """Make an array. A 64-bit dtype is an error while x64 is off."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        message = (
            f"JAX would narrow {np.dtype(dtype)} to {jax.dtypes.canonicalize_dtype(dtype)} because 64-bit types are "
            f'off; switch them on with `jax.config.update("jax_enable_x64", True)` or JAX_ENABLE_X64=1 at the start '
            f"of the program, or ask for the narrower dtype"
        )
        raise BackendError(message)
    made = jnp.asarray(x, dtype=dtype)
    # not the device= of jnp.asarray, which jax.vmap cannot batch inside a branch (JAX 0.11)
    return made if device is None else jax.device_put(made, _device(device))


def _device(device: Any) -> Any:
    if not isinstance(device, str):
        return device
    platform, _, index = device.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        message = f"JAX has no device {device!r}; expected one of {', '.join(_devices())}"
        raise BackendError(message) from error


def to_numpy(x: jax.Array, /) -> Any:
    """Copy an array to the host."""
    return np.asarray(x)


def namespace() -> Namespace:
    """Return the array API namespace."""
    return array_namespace(asarray(0.0))


def info() -> BackendInfo:
    """Describe JAX and the devices of its default platform."""
    return BackendInfo(NATIVE, jax.__version__, tuple(_devices()), None)


def _devices() -> list[str]:
    return [f"{d.platform}:{d.id}" for d in jax.devices()]
