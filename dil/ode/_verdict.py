"""The failures of an integration, and the policy for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full
from dil._base.errors import OptionError
from dil._base.status import Status
from dil._base.typing import Array, Arrays, OnFailure
from dil._diagnostics.failure_policy import Policy, summary
from dil._frameworks.constants import as_constant
from dil._frameworks.protocol import Backend
from dil._frameworks.reports import Listener

EQUAL_STEPS_HINT = "Shorter steps are easier: steps= takes more of them between two times, rtol= adapts their size"
MASS_HINT = "Where df_a/dy_a of the algebraic equations becomes singular, the index changes and the solution may end"
START_HINT = "No step was taken"
ADAPTIVE_HINT = "Steps became as short as rounding allows, as near a pole, or max_steps= was reached: raise it"
JAC_HINT = "jac= is not the derivative of func: its entry in row i, column j is df_i/dy_j; correct it, or drop it"
NON_FINITE_HINT = "func was not finite there, however short the step"


class Verdict(NamedTuple):
    """The first failure of each problem. The fields have shape batch and the state's dtype; zero if no step failed."""

    status: Array
    step: Array
    """The number of the step, from 1."""
    begin: Array
    """The time at which the step begins; infinity if no step failed."""
    length: Array
    residual: Array | None = None
    """The largest residual of an algebraic equation, if the initial values failed: then the step is 0."""


def from_start(verdict: Verdict, status: Array, residual: Array, t: Array) -> Verdict:
    """Return a verdict with the failures of the initial values at t in it, which come first."""
    xp, bad = array_namespace(status), status != 0
    code, step, begin, length, _ = verdict
    zero = full(status, 0.0)
    return Verdict(
        xp.where(bad, status, code),
        xp.where(bad, zero, step),
        xp.where(bad, zero + t, begin),
        xp.where(bad, zero, length),
        xp.where(bad & xp.isfinite(residual), residual, zero),
    )


def first_failure(status: Array, begins: Array, lengths: Array) -> Verdict:
    """Return the first failure among the statuses of all steps, (steps, *batch)."""
    xp, batch = array_namespace(status), status.ndim - 1
    begins, lengths = (xp.reshape(x, (-1, *(1,) * batch)) + 0.0 * status for x in (begins, lengths))
    failed = status != 0
    never = full(begins, float("inf"))
    begin = xp.min(xp.where(failed, begins, never), axis=0)
    first, zero = failed & (begins == begin), full(begins, 0.0)
    number = xp.sum(xp.astype(begins <= begin, status.dtype), axis=0)
    return Verdict(
        xp.max(xp.where(first, status, zero), axis=0),
        xp.where(begin < float("inf"), number, 0.0 * number),
        begin,
        xp.max(xp.where(first, lengths, zero), axis=0),
    )


def apply_verdict(
    policy: Policy, backend: Backend, rows: Array, t: Array, verdict: Verdict, hint: str, sign: float = 1.0
) -> Array:
    """Apply the policy. Return the states at the times t, (T, *batch, n). `sign` times t is the user's time."""
    xp = array_namespace(rows)
    if policy.on_failure == "ignore":
        return rows
    if policy.on_failure == "nan":
        times = backend.constant(t)[(slice(None), *(None,) * (rows.ndim - 2))]
        after = (times > verdict.begin)[..., None]
        # a factor, since a NaN that is selected has the derivative zero
        return rows * xp.where(after, full(rows, float("nan")), full(rows, 1.0))  # type: ignore[no-any-return]
    failed = verdict.status != 0
    begin = xp.where(failed, sign * verdict.begin, 0.0 * verdict.status)
    above = xp.where(begin > 0, begin, 0.0 * begin)
    # every entry is >= 0, like a status: the time is reported as its positive and its negative part
    residual = 0.0 * begin if verdict.residual is None else verdict.residual
    failures = xp.stack([verdict.status, verdict.step, above, above - begin, verdict.length, residual], axis=-1)
    return rows + report_if_nonzero(backend, policy.listener("dil.ode._verdict:report", backend, hint), failures)


def report(on_failure: OnFailure, layer: str, frameworks: str, hint: str, failures: Any) -> None:
    """Tell of the failures of an integration by the policy, with its first failure."""
    status, step, above, below, length, residual = failures.reshape(-1, failures.shape[-1]).T  # a vmap adds dimensions
    if not status.any():
        return
    codes = status.astype(int)
    first = (above - below + (codes == 0) * float(abs(failures).sum())).argmin()
    number, start, h = (x.reshape(-1)[first] for x in (step, above - below, length))
    by = f" by h = {h:.3g}" if h else ""  # a missing step of an incomplete mesh has no length
    where = f"the first failure is in step {int(number)}, from t = {start:.6g}{by}"
    failed = set(codes[codes != 0].tolist())
    if failed == {int(Status.EVENT_NON_FINITE)}:
        hint = ""  # steps of another size do not help
    if failed == {int(Status.NON_FINITE)}:
        hint = hint.replace(ADAPTIVE_HINT, NON_FINITE_HINT)
    if int(Status.WRONG_DERIVATIVE) not in failed:
        hint = hint.replace(f". {JAC_HINT}", "")
    elif len(failed) == 1 and hint.endswith(JAC_HINT):
        hint = JAC_HINT
    if failed == {int(Status.MORE_EVENTS)}:
        where, hint = f"the last one that is kept is at t = {start:.6g}", ""
    if not number:
        where = f"an algebraic equation has a residual of {residual[first]:.3g} at the initial values, t = {start:.6g}"
        hint = START_HINT
    Policy(on_failure, layer).warn_or_raise(frameworks, f"{layer}: {summary(codes)}; {where}. {hint}".rstrip())


def report_if_nonzero(backend: Backend, listener: Listener, values: Array) -> Array:
    """Call the listener with an array unless it is all zero. Return a zero, shape (), that waits for the call."""

    def listen(values: Array) -> Arrays:
        zeros = backend.reports.failures(listener, values, full(values, 0.0, shape=(*values.shape, 1)))
        return (array_namespace(values).sum(zeros),)

    return as_constant(backend, listen, values)[0]


def increasing(t: Array, backend: Backend) -> Array:
    """Return the times. If they do not increase, raise when the program runs."""
    xp, plain = array_namespace(t), backend.constant(t)
    wrong = ~(plain[1:] > plain[:-1])  # True for NaN
    return t + report_if_nonzero(backend, Listener("dil.ode._verdict:refuse", ()), xp.astype(wrong, t.dtype))


def refuse(wrong: Any) -> None:
    """Raise if times do not increase."""
    if wrong.any():
        place = int(wrong.argmax()) % wrong.shape[-1]
        message = (
            f"t does not increase from t[{place}] to t[{place + 1}]; a program that gets its times later needs "
            f"times that increase, none of them twice. To go back in time, put s = -t and integrate -func(-s, y)"
        )
        raise OptionError(message)
