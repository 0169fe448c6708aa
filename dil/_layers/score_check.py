"""Check that a score changes as its gradient says, at the first call with new shapes."""

from __future__ import annotations

from dil._base.arrays import array_namespace, full, size
from dil._base.scale import scale_of
from dil._base.status import Status
from dil._base.typing import Array, Arrays, CheckSmoothness
from dil._diagnostics.failure_policy import without_approximate
from dil._diagnostics.newton_comparison import Point
from dil._frameworks.constants import as_constant
from dil._layers.call import Call
from dil._layers.first_calls import FirstCalls, is_readable
from dil._problem.problem import Optimality
from dil._problem.score import Score
from dil._problem.value_slopes import gradient_is_wrong

RIGHT = FirstCalls()
"""The calls whose score was found to have the gradient that it says."""


def check_score(
    call: Call, y: Array, arrays: list[Array], check_smoothness: CheckSmoothness, answer: Array | None = None
) -> Array:
    """Apply the policy where the score changes in another way than its gradient says. Return `answer`, or else y.

    y: (*batch, n), the solution; answer: batch. The gradient of such a layer is wrong, and so is the solution of a
    solver that uses gradients. A call that was told is looked at again. Values that are traced are not checked.
    """
    if answer is not None:
        return _checked(call, y, arrays, check_smoothness, answer[..., None])[..., 0]
    return _checked(call, y, arrays, check_smoothness, y)


def with_wrong_gradient(status: Array, F: Optimality, here: Point) -> Array:
    """Return the statuses, with WRONG_DERIVATIVE where a solve converged and the score changes in another way."""
    problem, u = F.problem, here.u
    if not isinstance(problem.condition, Score):
        return status
    wrong = gradient_is_wrong(problem, u, F.arrays(here.floats), here.scale)
    wrong = wrong & (without_approximate(status) == int(Status.CONVERGED))
    return array_namespace(u).where(wrong, full(status, int(Status.WRONG_DERIVATIVE)), status)  # type: ignore[no-any-return]


def _checked(call: Call, y: Array, arrays: list[Array], check_smoothness: CheckSmoothness, answer: Array) -> Array:
    asked = isinstance(call.condition, Score) and call.condition.derivatives is None and size(y.shape) > 0
    if not asked or check_smoothness == "never" or call.policy.on_failure == "ignore":
        return answer
    problem = call.problem()
    if not (is_readable(call.backend, y) and RIGHT.are_new(problem, y, call.solver)):
        return answer
    compiler = call.backend.compiler()

    def look(y: Array, *arrays: Array) -> Arrays:
        problem = call.problem()
        wrong = gradient_is_wrong(problem, y, arrays[: len(call.arguments.arrays)], scale_of(y, None))
        return (array_namespace(y).where(wrong, *(full(y, int(s), shape=wrong.shape) for s in STATUSES)),)

    (found,) = as_constant(call.backend, look if compiler is None else compiler.compiled(look), y, *arrays)
    xp = array_namespace(found)
    if not bool(xp.any(found != 0)):
        RIGHT.add(problem, y, call.solver)
        return answer
    return call.policy.apply(call.backend, "first call", xp.astype(found, xp.int32), answer)


STATUSES = Status.WRONG_DERIVATIVE, Status.CONVERGED
