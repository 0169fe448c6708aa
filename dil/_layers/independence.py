"""Check that the problems of a batch are independent, at the first call with new shapes."""

from __future__ import annotations

from functools import partial

from dil._base.arrays import array_namespace, device, eps, full, max_abs, size
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Compile
from dil._frameworks.random_vectors import standard_normal
from dil._layers.call import Call
from dil._layers.first_calls import FirstCalls
from dil._layers.first_look import FirstLook, Seen
from dil._problem.jacobian import jacobian

INDEPENDENT = FirstCalls()
"""The calls whose problems were found to be independent."""


def check_independence(call: Call, y: Array, arrays: list[Array]) -> None:
    """Refuse a function that couples the problems of a batch, so that their systems cannot be solved one by one.

    Products with dF/du are made along vectors that are zero in half of the problems. They must be zero there. The
    halves are those of the binary digits of a problem's number, so that any two problems are in different halves once.

    Raises
    ------
    OptionError
        If one is not. Values that are traced are not checked.
    """
    problem = call.problem()
    several = size(problem.space.batch) > 1 and problem.space.dimension > 0
    if not (several and INDEPENDENT.are_new(problem, y)):
        return
    look = FirstLook(call, partial(_look, f"{call.policy.layer}: batch_ndim={call.condition.batch_ndim}"))
    look.factor(y, arrays)
    if look.passed():
        INDEPENDENT.add(problem, y)


def _look(which: str, call: Call, compiled: Compile, y: Array, arrays: Arrays) -> Seen:
    """Refuse a call whose problems are coupled. `which` names the layer and its batch dimensions."""
    (found,) = compiled(partial(_couples, call))(y, *arrays)
    if bool(found):
        message = (
            f"{which} says that its problems are independent, but F of one problem depends on the unknown of another, "
            f"as with batch normalisation in training or attention over the batch; pass batch_ndim=0 to solve them as "
            f"one problem, or normalise within each problem"
        )
        raise OptionError(message)
    return Seen()


def _couples(call: Call, y: Array, *arrays: Array) -> Arrays:
    """Return whether a product is larger than rounding, beside the others of its problem, where it should be zero.

    The products with dF/du see a coupling in units of F, and those with its transpose in units of u.
    """
    problem, backend = call.problem(), call.backend
    xp, batch = array_namespace(y), problem.space.batch
    F, floats = problem.optimality(arrays)
    J = jacobian(F, y, *floats)
    number = xp.reshape(xp.arange(size(batch), device=device(y)), (*batch, 1))
    drawn = standard_normal(backend, y, 1, 0)[0, ...]

    def product(A: Operator, chosen: Array) -> Array:
        image = xp.abs(backend.constant(A(xp.where(chosen, drawn, full(drawn, 0.0)))))
        return xp.where(xp.isfinite(image), image, full(image, 0.0))  # type: ignore[no-any-return]

    found = xp.any(number < 0)
    for A in (J,) if problem.symmetric else (J, J.T):
        whole = max_abs(product(A, number >= 0))[..., None]
        for digit in range((size(batch) - 1).bit_length()):
            chosen = number // 2**digit % 2 == 1
            for half in (chosen, ~chosen):
                found = found | xp.any(~half & (product(A, half) > 64 * eps(xp, y.dtype) * whole))
    return (found,)
