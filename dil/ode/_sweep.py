"""The steps of a method one after the other, over a grid of times that is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from dil._base.arrays import array_namespace, full
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil.ode._methods import Method, Stages


class StepStages(Stages, Protocol):
    """The stages of one step, with what they leave for the next step and for the report."""

    @property
    def end(self) -> Arrays: ...
    @property
    def told(self) -> Arrays: ...


class Swept(NamedTuple):
    """What a sweep leaves: the last state, and of every step the state and slope at its end and what was said."""

    last: Arrays
    states: Arrays
    slopes: Arrays
    told: Arrays


def grid_of(t: Array, steps: int) -> tuple[Array, Array]:
    """Return where the steps begin and how long they are, both ((T - 1) * steps,)."""
    xp = array_namespace(t)
    h = (t[1:] - t[:-1]) / steps
    if steps == 1:
        return t[:-1], h

    part = xp.stack([full(t[0], float(i)) for i in range(steps)])
    begins = t[:-1][:, None] + h[:, None] * part[None, :]
    return xp.reshape(begins, (-1,)), xp.reshape(h[:, None] + 0.0 * begins, (-1,))


def sweep(
    method: Method, backend: Backend, stages: Callable[[Arrays], StepStages], y: Arrays, slope: Arrays, grid: Arrays
) -> Swept:
    """Step from y over the grid, (begins, lengths); `slope` is the first guess of a stage's."""
    count, guesses = len(y), len(slope)

    def take(method: Method, carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        now, slope, memory = carry[:count], carry[count : count + guesses], carry[count + guesses :]
        here = stages(slope)
        new = method.advance(here, now, memory, *row)
        status, *counts = here.told
        xp = array_namespace(status)
        lost = (status == 0) & ~xp.all(xp.isfinite(backend.constant(new.y[0])), axis=-1)
        status = xp.where(lost, full(status, float(Status.NON_FINITE)), status)
        return (*new.y, *here.last, *new.memory), (*new.y, *here.end, status, *counts)

    begins, lengths = grid
    carry: Arrays = (*y, *slope, *(method.starter or method).begin(stages(slope), y, begins[0]))
    outs: list[Arrays] = []
    if method.starter is not None:
        carry, out = take(method.starter, carry, (begins[0], lengths[0]))
        carry = (*carry[: count + guesses], *y, lengths[0])
        outs.append(tuple(x[None, ...] for x in out))
        begins, lengths = begins[1:], lengths[1:]
    if begins.shape[0]:
        carry, rest = backend.loops.scan(lambda c, row: take(method, c, row), carry, (begins, lengths))
        outs.append(rest)
    xp = array_namespace(y[0])
    joined = outs[0] if len(outs) == 1 else tuple(xp.concat(parts) for parts in zip(*outs, strict=True))
    return Swept(carry[:count], joined[:count], joined[count : count + guesses], joined[count + guesses :])
