"""Check that the problems of a batch are independent, at the first call with new shapes."""

from __future__ import annotations

from dil._base.arrays import array_namespace, device, eps, full, size
from dil._base.errors import OptionError
from dil._base.typing import Array
from dil._frameworks.random_vectors import standard_normal
from dil._layers.call import Call
from dil._layers.first_calls import FirstCalls, is_readable

INDEPENDENT = FirstCalls()
"""The calls whose problems were found to be independent."""


def check_independence(call: Call, y: Array, arrays: list[Array]) -> None:
    """Refuse a function that couples the problems of a batch, so that their systems cannot be solved one by one.

    One product with dF/du is made along a vector that is zero in every second problem. It must be zero there.

    Raises
    ------
    OptionError
        If it is not. Values that are traced are not checked, and on JAX none are.
    """
    problem = call.problem()
    several = size(problem.space.batch) > 1 and problem.space.dimension > 0
    if not (several and is_readable(call.backend, y) and INDEPENDENT.are_new(problem, y)):
        return
    if float(_largest_coupling(call, y, arrays)) > 0:
        message = (
            f"{call.policy.layer}: batch_ndim={call.condition.batch_ndim} says that its problems are independent, but "
            f"F of one problem depends on the unknown of another, as with batch normalisation in training or attention "
            f"over the batch; pass batch_ndim=0 to solve them as one problem, or normalise within each problem"
        )
        raise OptionError(message)
    INDEPENDENT.add(problem, y)


def _largest_coupling(call: Call, y: Array, arrays: list[Array]) -> Array:
    """Return the largest entry of the product that should be zero, or zero if it is within rounding; shape ()."""
    problem, backend = call.problem(), call.backend
    xp, batch = array_namespace(y), problem.space.batch
    y, *constants = (backend.constant(x) for x in (y, *arrays[: len(call.arguments.arrays)]))
    _, pull = backend.vjp(lambda u: (problem.residual(u, *constants),), y)
    first = xp.reshape(xp.arange(size(batch), device=device(y)), (*batch, 1)) % 2 == 0
    direction = xp.where(first, standard_normal(backend, y, 1, 0)[0, ...], full(y, 0.0))
    (product,) = pull((direction,))
    product = xp.abs(backend.constant(product))
    whole = xp.max(xp.where(xp.isfinite(product), product, full(y, 0.0)))
    other = xp.max(xp.where(xp.isfinite(product) & ~first, product, full(y, 0.0)))
    found: Array = xp.where(other > 64 * eps(xp, y.dtype) * whole, other, 0.0 * other)
    return found
