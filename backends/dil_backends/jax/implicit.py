"""The custom derivative: a `custom_jvp` function whose derivative is a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dil._base.errors import CapturedError, UnsupportedFunctionError
from dil._frameworks.protocol import ReverseRule, Rule
from dil_backends.jax.attach import attach, is_zero
from dil_backends.jax.fixed import Fixed
from dil_backends.jax.varying import axes_of, cast

Arrays = tuple[jax.Array, ...]


def implicit(solve: Callable[..., Arrays], rule: Rule, /) -> Callable[..., Arrays]:
    """Return `solve` with the pushforward of `rule` as its derivative. JAX transposes it for reverse mode.

    The pushforward uses only pullbacks of the score, so a score may hold a `jax.custom_vjp` function.
    """
    if isinstance(rule, ReverseRule):
        return _reversed(solve, rule)

    traced = Fixed(solve)  # JAX calls `held` again, later, for a derivative of a program

    def held(*args: Any) -> Arrays:
        arrays = tuple(map(_as_array, args))
        y = (traced if any(isinstance(x, jax.core.Tracer) for x in arrays) else solve)(*arrays)
        return attach(cast(y, axes_of((y, arrays))), arrays, rule.pushforward)

    found = jax.custom_jvp(held)

    def derivative(args: Any, tangents: Sequence[Any]) -> tuple[Any, Any]:
        args = tuple(map(_as_array, args))
        y: Any = found(*args)
        given = [None if is_zero(t) else _as_array(t) for t in tangents]
        return y, cast(rule.pushforward(args, y, given), axes_of(y))

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
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            message = (
                "the solver or the function of a layer needs the numbers of an array that JAX traces, as NumPy and "
                "Python's own `if` and `float` do; write it in JAX, or call the host by jax.pure_callback, as "
                f"dil.solvers.SciPy does (JAX: {str(error).splitlines()[0]})"
            )
            raise UnsupportedFunctionError(message) from error

    return call


def _reversed(solve: Callable[..., Arrays], rule: Rule) -> Callable[..., Arrays]:
    """Return `solve` with a derivative in reverse mode only."""
    found = jax.custom_vjp(solve)

    def forward(*args: jax.Array) -> tuple[Arrays, tuple[Arrays, Arrays]]:
        y = solve(*args)
        return y, (args, y)

    def backward(kept: tuple[Any, Any], cotangents: Any) -> tuple[Any, ...]:
        args, y = kept
        wrt = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.inexact)]
        pulled = dict(zip(wrt, rule.pullback(args, y, cotangents, wrt), strict=True))
        return tuple(pulled.get(i) for i in range(len(args)))

    found.defvjp(forward, backward)
    return found


def _as_array(x: Any) -> Any:
    """Return x as an array. A transform passes Python numbers on as Python numbers."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)
