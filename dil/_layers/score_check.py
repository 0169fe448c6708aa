"""Check that a score changes as its gradient says, at the first call with new shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dil._base.arrays import array_namespace, full, size
from dil._base.scale import scale_of
from dil._base.status import Status
from dil._base.typing import Array, Arrays, CheckSmoothness
from dil._diagnostics.failure_policy import without_approximate
from dil._diagnostics.newton_comparison import Point
from dil._frameworks.constants import ZeroRule, as_constant
from dil._frameworks.protocol import Vectorise
from dil._layers.batched_call import batched_call
from dil._layers.call import Call
from dil._layers.first_calls import FirstCalls, is_readable
from dil._problem.problem import Optimality
from dil._problem.score import Score
from dil._problem.value_slopes import gradient_is_wrong

RIGHT = FirstCalls()
"""The calls whose score was found to have the gradient that it says."""
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
    problem, look = call.problem(), ScoreLook(call)
    if not RIGHT.are_new(problem, y, call.solver):
        return answer
    factor = look.factor(y, arrays)
    if look.passed():
        RIGHT.add(problem, y, call.solver)
    # a product, so that the derivative is NaN where the answer is
    return answer if factor is None or not look.told() else answer * factor


@dataclass(frozen=True)
class ScoreLook(ZeroRule):
    """One look at the score of a call, or of the rows of a call under a `vmap` that cannot trace a solver."""

    call: Call
    found: list[bool] = field(default_factory=list)
    """Whether something was told, for each time that numbers were seen."""

    def passed(self) -> bool:
        """Return whether numbers were seen, and no row was told."""
        return bool(self.found) and not self.told()

    def told(self) -> bool:
        """Return whether a row was told."""
        return any(self.found)

    def factor(self, y: Array, arrays: Sequence[Array]) -> Array | None:
        """Apply the policy. Return what it makes of one, (*batch, 1); None if the values are traced."""
        backend, compiler = self.call.backend, self.call.backend.compiler()
        if compiler is None:  # the numbers are those within all transforms
            return as_constant(backend, self.look, y, *arrays, rule=self)[0]
        if compiler.is_traced(backend.constant(y)):
            return None
        return self._applied(*as_constant(backend, compiler.compiled(self._wrong), y, *arrays))

    def look(self, y: Array, *arrays: Array) -> Arrays:
        """Apply the policy at plain arrays. Return what it makes of one, (*batch, 1)."""
        if not is_readable(self.call.backend, y):
            return (full(y, 1.0, shape=(*y.shape[:-1], 1)),)
        return (self._applied(*self._wrong(y, *arrays)),)

    def batched(
        self, axes: Sequence[bool], size: int, vectorise: Vectorise
    ) -> tuple[Callable[..., Arrays], ScoreLook] | None:
        """Return the look at `size` calls at once, or None if they are looked at one after the other."""
        y_has_axis, *rest = axes
        call = batched_call(self.call, rest, size, vectorise) if y_has_axis else None
        if call is None:
            return None
        call.space = self.call.problem().space.many(size)
        many = replace(self, call=call)
        return many.look, many

    def _wrong(self, y: Array, *arrays: Array) -> Arrays:
        problem, count = self.call.problem(), len(self.call.arguments.arrays)
        wrong = gradient_is_wrong(problem, y, arrays[:count], scale_of(y, None))
        status = array_namespace(y).where(wrong, *(full(y, int(s), shape=wrong.shape) for s in STATUSES))
        return status, full(y, 1.0, shape=(*wrong.shape, 1))

    def _applied(self, status: Array, one: Array) -> Array:
        xp = array_namespace(status)
        self.found.append(bool(xp.any(status != int(Status.CONVERGED))))
        if not self.found[-1]:
            return one
        return self.call.policy.apply(self.call.backend, "first call", xp.astype(status, xp.int32), one)
