"""Check the derivative of F in the arguments at the first derivative with new shapes.

The graph of a score's gradient may lack an argument, and the product that a user gives may be wrong.
"""

from __future__ import annotations

from dil._base.arrays import array_namespace, full
from dil._base.errors import SecondDerivativeError
from dil._base.operator import Operator
from dil._base.status import Status
from dil._base.typing import Array
from dil._diagnostics.failure_policy import Policy, without_approximate
from dil._diagnostics.given_mixed import gives_mixed, gives_mixed_jvp, pullback_is_wrong, pushforward_is_wrong
from dil._diagnostics.newton_comparison import Point
from dil._layers.first_calls import FirstCalls
from dil._problem.mixed_derivative import lost_arguments
from dil._problem.problem import Optimality, Problem
from dil._problem.score import Score

KNOWN = FirstCalls()
"""The calls, with the places of the wanted arguments, whose mixed derivatives were found."""


def is_unchecked(problem: Problem, u: Array, wrt: tuple[int, ...] | None, *, forward: bool = False) -> bool:
    """Return whether the mixed derivative in the arguments at the places `wrt` is still to be looked at.

    None, as for pullbacks after a first one, needs no look.
    """
    asked = isinstance(problem.condition, Score) or problem.condition.derivatives is not None
    return asked and bool(wrt) and KNOWN.are_new(problem, u, (wrt, forward))


def with_wrong_mixed(status: Array, F: Optimality, A: Operator, here: Point) -> Array:
    """Return the statuses, with WRONG_MIXED where a solve converged and the user's product with dF/dargs is wrong.

    A is J^T or J, of reverse or of forward mode, each of which has its product. A backend without forward mode
    transposes a pullback, whose product may be that of forward mode alone.
    """
    xp, J = array_namespace(status), A.T if A.transposed else A
    if A.transposed and gives_mixed(F.problem):
        wrong = pullback_is_wrong(F, J, here, A._pull)
    elif gives_mixed_jvp(F.problem, beside_mixed=not A.transposed):
        wrong = pushforward_is_wrong(F, J, here)
    else:
        return status
    wrong = wrong & (without_approximate(status) == int(Status.CONVERGED))
    return xp.where(wrong, full(status, int(Status.WRONG_MIXED)), status)  # type: ignore[no-any-return]


def check_mixed(status: Array, F: Optimality, A: Operator, here: Point, policy: Policy) -> Array:
    """Return the statuses, with WRONG_DERIVATIVE where a mixed derivative is lost and the policy ignores failures.

    The product of a user that is wrong gives WRONG_MIXED. A is J or J^T, which may know the pullback of F. Statuses of
    problems that did not converge stay. A part is lost of scores only: an argument that the graph of a root does not
    know may be detached on purpose.

    Raises
    ------
    SecondDerivativeError
        If one is lost, and the policy does not ignore failures. A status would leave the gradient zero, for there is
        no graph that could make it NaN.
    """
    problem, xp = F.problem, array_namespace(status)
    forward = not A.transposed
    if not is_unchecked(problem, here.u, here.wrt, forward=forward):
        return status
    status = with_wrong_mixed(status, F, A, here)
    if not bool(xp.all(status != int(Status.WRONG_MIXED))):
        return status
    lost = []
    if isinstance(problem.condition, Score):
        lost = lost_arguments(F, here.u, here.floats, here.scale, here.wanted, A._pull)
    if not lost:
        KNOWN.add(problem, here.u, (here.wrt, forward))
        return status
    if policy.on_failure == "ignore":
        converged = without_approximate(status) == int(Status.CONVERGED)
        return xp.where(converged, full(status, int(Status.WRONG_DERIVATIVE)), status)  # type: ignore[no-any-return]
    names = ", ".join([problem.arguments.name(problem.arguments.floats[i - 1]) for i in lost])
    message = (
        f"{policy.layer}: the gradient for {names} would be zero by mistake: the derivative of the score in u changes "
        f"with it, but has no graph that leads to it, as where the backward of an autograd.Function computes by NumPy, "
        f"under no_grad or from detached arrays; write that backward in operations that the framework differentiates, "
        f'or pass derivatives=dil.Derivatives(...); check_smoothness="never" if this is meant'
    )
    raise SecondDerivativeError(message)
