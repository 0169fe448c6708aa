"""JAX: `jax.vjp`, the loops of `jax.lax`, `custom_jvp` for the layer and `custom_linear_solve` for its system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dil._base.errors import BackendError, CapturedError
from dil._frameworks.protocol import LinearSystem, Pull, ReverseRule, Rule
from dil_backends._jax_attach import attach, is_zero

NATIVE = "jax"
DENSE = 16
DENSE_GENERAL = 128
TRIAL = 1 / 8
Arrays = tuple[jax.Array, ...]

OBSERVING = jax.make_user_context(False)  # type: ignore[no-untyped-call]
"""A part of the key under which JAX keeps what it has compiled."""

UNDIFFERENTIABLE = ("callbacks do not support JVP", "(jvp) to a custom_vjp")
NO_DERIVATIVE = (
    "dil: the function holds what JAX cannot differentiate in this way; a layer's gradient takes second derivatives of "
    "its score. Of a jax.custom_vjp function take reverse mode at every level (jax.jacrev twice instead of "
    "jax.hessian), or write it as a jax.custom_jvp; for a callback give the products yourself, "
    "dil.argmin(..., derivatives=dil.Derivatives(gradient=, hvp=, mixed=))"
)

constant = jax.lax.stop_gradient


def owns(x: object, /) -> bool:
    """Whether x is a JAX array or a tracer."""
    return isinstance(x, jax.Array)


def children(x: object, /) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Any]] | None:
    """Take apart one level of what JAX has registered as a pytree node."""
    parts, structure = jax.tree.flatten(x, is_leaf=lambda part: part is not x)
    if jax.tree_util.treedef_is_leaf(structure) or x is None:
        return None
    return parts, lambda new: jax.tree.unflatten(structure, new)


def vjp(fn: Callable[..., Arrays], /, *primals: jax.Array) -> tuple[Arrays, Pull]:
    """Return `jax.vjp`; what a pull computes for primals not in `wrt` is dead code to the compiler."""
    try:
        out, pull_all = jax.vjp(fn, *primals)
    except (TypeError, ValueError) as error:
        if any(words in str(error) for words in UNDIFFERENTIABLE):
            error.add_note(NO_DERIVATIVE)
        raise

    def pull(cotangents: Arrays, wrt: Sequence[int] | None = None, /) -> Arrays:
        every = pull_all(tuple(cotangents))
        return tuple(every) if wrt is None else tuple(every[i] for i in wrt)

    return out, pull  # type: ignore[return-value]


def while_loop(cond: Callable[[Any], jax.Array], body: Callable[[Any], Any], state: Any, /) -> Any:
    """Run the loop in XLA."""
    return jax.lax.while_loop(cond, body, state)


def run_if(condition: jax.Array, fn: Callable[[Any], Any], state: Any, /) -> Any:
    """Run a loop of one step or none around a branch.

    A branch alone would be taken under `jax.vmap` whether a problem needs it or not. Out of a loop alone, XLA takes
    what does not depend on its state, such as the identity of a dense solve, and computes it though no step is made.
    """

    def once(s: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return s[0] & ~s[0], jax.lax.cond(s[0], fn, lambda state: state, s[1])

    return jax.lax.while_loop(lambda s: s[0], once, (condition, state))[1]


def scan(
    step: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]], carry: Arrays, xs: Arrays, /
) -> tuple[Arrays, Arrays]:
    """Run the loop in XLA, over a number of steps that is known, so that it differentiates in reverse mode too."""
    return jax.lax.scan(step, carry, xs)


def implicit(solve: Callable[..., Arrays], rule: Rule, /) -> Callable[..., Arrays]:
    """Return `solve` with the derivative of `rule`, forward mode; JAX transposes it for reverse mode.

    The rule's pushforward is built from pulls alone, so a score may hold a `jax.custom_vjp` function.
    """
    if isinstance(rule, ReverseRule):
        return _reversed(solve, rule)

    def held(*args: Any) -> Arrays:
        arrays = tuple(map(_as_array, args))
        return attach(solve(*arrays), arrays, rule.pushforward)

    found = jax.custom_jvp(held)

    def derivative(args: Any, tangents: Sequence[Any]) -> tuple[Any, Any]:
        args = tuple(map(_as_array, args))
        y: Any = found(*args)
        given = [None if is_zero(t) else _as_array(t) for t in tangents]
        return y, rule.pushforward(args, y, given)

    found.defjvp(derivative, symbolic_zeros=True)

    def call(*args: jax.Array) -> Arrays:
        try:
            return found(*args)
        except jax.errors.UnexpectedTracerError as error:
            message = (
                "the solver uses an array that JAX is transforming but that is not among the arguments (captured by "
                "a closure), so it would get no derivative; pass it as an argument, or apply jax.lax.stop_gradient"
            )
            raise CapturedError(message) from error

    return call


def _reversed(solve: Callable[..., Arrays], rule: Rule) -> Callable[..., Arrays]:
    """Return `solve` with a derivative in reverse mode alone."""
    found = jax.custom_vjp(solve)

    def forward(*args: jax.Array) -> tuple[Arrays, tuple[Arrays, Arrays]]:
        y = solve(*args)
        return y, (args, y)

    def backward(kept: tuple[Any, Any], cotangents: Any) -> tuple[Any, ...]:
        args, y = kept
        wrt = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]
        pulled = dict(zip(wrt, rule.pullback(args, y, cotangents, wrt), strict=True))
        return tuple(pulled.get(i) for i in range(len(args)))

    found.defvjp(forward, backward)
    return found


def _as_array(x: Any) -> Any:
    """Return an array for a number of Python: a transform hands on as such what it was given as such."""
    return x if owns(x) else jnp.asarray(x)


def linear_solve(system: LinearSystem, b: Any, /) -> Any:
    """Solve a linear system; differentiable to any order, and transposable."""
    A = system.A

    def solve(matvec: Any, b: Any) -> Any:
        return system.solve(replace(A, matvec=matvec), b, *system.constants)

    def transpose_solve(vecmat: Any, b: Any) -> Any:
        return system.solve(replace(A, rmatvec=vecmat).T, b, *system.constants)

    return jax.lax.custom_linear_solve(A.matvec, b, solve, transpose_solve, symmetric=A.symmetric)


def map_rows(fn: Callable[[Any], Any], rows: Any, /) -> Any:
    """Apply fn to all rows at once, or to one after the other where it holds what has no batching rule."""
    try:
        return jax.vmap(fn)(rows)
    except NotImplementedError:  # such as a pure_callback without a vmap_method
        return jax.lax.map(fn, rows)


def cholesky_solve(A: Any, b: Any, /) -> Any:
    """Solve by Cholesky; NaN comes of itself where A is not positive definite."""
    L = jax.lax.linalg.cholesky(A)
    z = jax.lax.linalg.triangular_solve(L, b, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(L, z, left_side=True, lower=True, transpose_a=True)


def lu_solve(A: Any, b: Any, /) -> Any:
    """Solve by LU."""
    return jnp.linalg.solve(A, b)


def assert_constant(x: jax.Array, message: str, /) -> None:
    """Raise as soon as JAX differentiates x, now or when the program that computes it is transformed."""
    probe = jax.custom_jvp(lambda x: x)

    def refuse(primals: Arrays, tangents: Sequence[Any]) -> Any:
        if not all(is_zero(t) for t in tangents):
            raise CapturedError(message)
        return primals[0], jnp.zeros_like(primals[0])

    probe.defjvp(refuse, symbolic_zeros=True)
    probe(x)


def tell(listener: Callable[[Any], None], status: jax.Array, value: jax.Array) -> jax.Array:
    """Call the listener when the program runs, if a status is not zero; at once if it is concrete.

    It is a pure callback that the value waits for: a callback with an effect would take every call of the program off
    JAX's fast path, and one that is made each time would cost as much again.
    """
    if not isinstance(status, jax.core.Tracer):
        listener(np.asarray(status))
        return value

    def call(code: jax.Array, value: jax.Array) -> Any:
        def report(code: Any) -> Any:
            listener(np.asarray(code))
            return np.asarray(code)

        told = jax.pure_callback(report, jax.eval_shape(lambda: code), code, vmap_method="expand_dims")
        return jnp.where((told >= 0)[..., None], value, jnp.nan)  # so that the call is no dead code

    told: jax.Array = jax.lax.cond(jnp.any(status != 0), call, lambda code, value: value, status, value)
    return told


def observe(listener: Callable[..., None], *arrays: jax.Array) -> None:
    """Call the listener by a callback with an effect, which is made as often as the program gets here; or at once."""

    def call(*arrays: Any) -> None:
        listener(*map(np.asarray, arrays))

    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        jax.debug.callback(call, *arrays)
    else:
        call(*arrays)


def shield(fn: Callable[..., Any], /, *, exact: bool) -> Callable[..., Any]:
    """Return fn: a trace of JAX may see all of it, and nothing casts."""
    return fn


@contextmanager
def observing() -> Iterator[None]:
    """Have jitted functions compiled apart from those that do not observe; wait for their callbacks at the end."""
    with OBSERVING(True):
        yield
        jax.effects_barrier()  # type: ignore[no-untyped-call]


def number(x: jax.Array, /) -> jax.Array:
    """Return x: a scalar stays in the program."""
    return x


def on_host(fn: Callable[..., Arrays], like: Arrays, *arrays: jax.Array) -> Arrays:
    """Call fn behind a `pure_callback`; at once if the arrays are concrete."""
    if not any(isinstance(x, jax.core.Tracer) for x in arrays):
        return fn(*arrays)
    shapes = jax.eval_shape(lambda: like)
    return jax.pure_callback(  # type: ignore[no-any-return]
        lambda *xs: tuple(map(np.asarray, fn(*map(jnp.asarray, xs)))), shapes, *arrays, vmap_method="sequential"
    )


def to_numpy(x: jax.Array, /) -> Any:
    """Copy an array to the host."""
    return np.asarray(x)


def namespace() -> Any:
    """Return jax.numpy."""
    return jnp


def devices() -> list[str]:
    """Name the devices of the default platform."""
    return [f"{d.platform}:{d.id}" for d in jax.devices()]


def asarray(x: object, *, dtype: Any = None, device: Any = None) -> jax.Array:
    """Make an array; a 64-bit dtype while x64 is off is an error."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        message = (
            f"JAX would narrow {np.dtype(dtype)} to {jax.dtypes.canonicalize_dtype(dtype)} because 64-bit types are "
            f'off; switch them on with `jax.config.update("jax_enable_x64", True)` or JAX_ENABLE_X64=1 at the start '
            f"of the program, or ask for the narrower dtype"
        )
        raise BackendError(message)
    return jnp.asarray(x, dtype=dtype, device=_device(device))


def _device(device: Any) -> Any:
    if not isinstance(device, str):
        return device
    platform, _, index = device.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        message = f"JAX has no device {device!r}; expected one of {', '.join(devices())}"
        raise BackendError(message) from error


def unusable() -> str | None:
    """JAX always has its CPU."""
    return None
