"""Check that a score changes as its gradient says, at the first call with new shapes."""

from __future__ import annotations

from functools import partial

from dil._base.arrays import array_namespace, full, size
from dil._base.status import Status
from dil._base.typing import Array, Arrays, CheckSmoothness
from dil._diagnostics.failure_policy import without_approximate
from dil._diagnostics.newton_comparison import Point
from dil._frameworks.protocol import Compile
from dil._layers.call import Call
from dil._layers.first_calls import FirstCalls
from dil._layers.first_look import FirstLook, Seen
from dil._problem.conjugate_probes import MOST, gradient_is_wrong_somewhere
from dil._problem.problem import Optimality
from dil._problem.score import Score
from dil._problem.value_slopes import gradient_is_wrong

RIGHT = FirstCalls()
"""The calls whose score was found to have the gradient that it says."""
KNOWN = FirstCalls(by_code=True)
"""The same for its code. A lambda that is made anew at each call is a new function, and looked at in one direction."""
FUNCTIONS = 3
"""The functions of one code that are looked at in several directions, and pass, before the others are not."""
STATUSES = Status.WRONG_DERIVATIVE, Status.CONVERGED


def check_score(
    call: Call, y: Array, arrays: list[Array], check_smoothness: CheckSmoothness, answer: Array | None = None
) -> Array:
    """Apply the policy where the score changes in another way than its gradient says. Return `answer`, or else y.

    y: (*batch, n), the solution; answer: batch. The gradient of such a layer is wrong, and so is the solution of a
    solver that uses gradients. A call that was told is looked at again, since the numbers in the arguments may decide
    whether a part is lost. Values that a compiler traces are not checked.
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
    if not RIGHT.are_new(problem, y, call.solver):
        return answer
    look = FirstLook(call, partial(_look, MOST if KNOWN.are_new(problem, y, call.solver, most=FUNCTIONS) else 1))
    factor = look.factor(y, arrays)
    if look.passed():
        RIGHT.add(problem, y, call.solver)
        KNOWN.add(problem, y, call.solver)
    # a product, so that the derivative is NaN where the answer is
    return answer if factor is None else answer * factor


def _look(most: int, call: Call, compiled: Compile, y: Array, arrays: Arrays) -> Seen:
    """Compare the score with its gradient along some directions, and apply the policy."""
    found = gradient_is_wrong_somewhere(call.problem(), y, arrays, compiled, most)
    if found is None or not bool(array_namespace(y).any(found)):
        return Seen()
    xp, one = array_namespace(y), full(y, 1.0, shape=(*found.shape, 1))
    status = xp.where(found, *(full(y, int(s), shape=found.shape, dtype=xp.int32) for s in STATUSES))
    return Seen(call.policy.apply(call.backend, "first call", status, one))
