"""A scan over the first rows of its arrays, as many as a number says that the program computes.

It costs as much as the steps that it takes, however many rows there are. `jax.lax.while_loop` costs no more either, but
has no reverse mode. The derivative of this scan is another one of the same length: its step is the derivative of the
step at the carry that was kept. Its transpose runs the transposed steps from the last one to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Primitive
from jax.interpreters import ad, batching, mlir

from dil_backends.jax.leading_axis import Axis, moved_to_front

Arrays = tuple[Any, ...]

COUNTED_SCAN = Primitive("dil_counted_scan")
"""Takes (count, *consts, *carry, *xs) and returns the last carry and the stacked outs, zero in rows not taken."""
COUNTED_SCAN.multiple_results = True


class Program(NamedTuple):
    """The step as a program of (*consts, *carry, *x), with the numbers of each, and the direction of the scan."""

    jaxpr: Jaxpr
    consts: int
    carry: int
    reverse: bool

    def __call__(self, consts: Sequence[Any], carry: Sequence[Any], x: Sequence[Any]) -> tuple[Arrays, Arrays]:
        """Return the new carry and the outs."""
        own = len(self.jaxpr.constvars)
        found = jax.core.eval_jaxpr(self.jaxpr, consts[:own], *consts[own:], *carry, *x)
        new = (a.astype(old.dtype) for a, old in zip(found[: self.carry], carry, strict=True))
        return tuple(new), tuple(found[self.carry :])

    def split(self, arrays: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays]:
        """Return the constants, the carry and the rows."""
        end = self.consts + self.carry
        return tuple(arrays[: self.consts]), tuple(arrays[self.consts : end]), tuple(arrays[end:])


def _row_like(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # type: ignore[no-untyped-call]


Step = Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]


def counted_scan(
    step: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]], carry: Arrays, xs: Arrays, count: Any
) -> tuple[Arrays, Arrays]:
    """Run `carry, out = step(carry, x)` for the first `count` rows of xs. It is differentiable in both modes."""
    count = jnp.clip(jnp.asarray(count, jnp.int32), 0, xs[0].shape[0])
    return _bound(lambda consts, carry, x: step(carry, x), count, (), carry, xs, reverse=False)


def _bound(
    step: Step, count: Any, consts: Arrays, carry: Arrays, xs: Arrays, *, reverse: bool
) -> tuple[Arrays, Arrays]:
    """Trace the step and bind the primitive. Arrays that the step captures become operands."""
    consts, carry, xs = (tuple(map(jnp.asarray, part)) for part in (consts, carry, xs))
    row = tuple(_row_like(x) for x in xs)

    def flat(*arrays: Any) -> list[Any]:
        known, rest = arrays[: len(consts)], arrays[len(consts) :]
        new, outs = step(known, rest[: len(carry)], rest[len(carry) :])
        return [*new, *outs]

    traced = jax.make_jaxpr(flat)(*consts, *carry, *row)
    every = (*traced.consts, *consts)
    program = Program(traced.jaxpr, len(every), len(carry), reverse)
    found = COUNTED_SCAN.bind(count, *every, *carry, *xs, program=program)  # type: ignore[no-untyped-call]
    return tuple(found[: len(carry)]), tuple(found[len(carry) :])


def _run(count: Any, *arrays: Any, program: Program) -> list[Any]:
    consts, carry, xs = program.split(arrays)
    rows = xs[0].shape[0]
    outs = [jnp.zeros((rows, *v.aval.shape), v.aval.dtype) for v in program.jaxpr.outvars[len(carry) :]]  # type: ignore[attr-defined]

    def advance(state: Any) -> Any:
        done, carry, outs = state
        k = count - 1 - done if program.reverse else done
        x = [jax.lax.dynamic_index_in_dim(x, k, 0, keepdims=False) for x in xs]
        carry, new = program(consts, carry, x)
        outs = [jax.lax.dynamic_update_index_in_dim(a, b.astype(a.dtype), k, 0) for a, b in zip(outs, new, strict=True)]
        return done + 1, carry, outs

    _, carry, outs = jax.lax.while_loop(lambda state: state[0] < count, advance, (jnp.zeros_like(count), carry, outs))
    return [*carry, *outs]


def _abstract(count: Any, *arrays: Any, program: Program) -> Any:
    _, carry, xs = program.split(arrays)
    rows = xs[0].shape[0]
    made: Any = [v.aval for v in program.jaxpr.outvars[len(carry) :]]
    outs = [x.update(shape=(rows, *x.shape), weak_type=False) for x in made]
    return [*(x.update(weak_type=False) for x in carry), *outs], program.jaxpr.effects


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, program: Program) -> tuple[Any, Any]:
    """Run the scan, which keeps its carry, and the scan of the derivatives of its steps."""
    count, *arrays = primals
    consts, carry, xs = program.split(arrays)
    dconsts, dcarry, dxs = program.split(tangents[1:])

    def keeping(consts: Arrays, carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new, outs = program(consts, carry, x)
        return new, (*outs, *carry)

    last, every = _bound(keeping, count, consts, carry, xs, reverse=program.reverse)
    outs, before = every[: len(every) - len(carry)], every[len(every) - len(carry) :]
    moving = (
        [i for i, t in enumerate(dconsts) if not isinstance(t, ad.Zero)],
        [i for i, x in enumerate(carry) if _is_inexact(x)],
        [i for i, t in enumerate(dxs) if not isinstance(t, ad.Zero)],
    )
    kinds = [_is_inexact(x) for x in (*last, *outs)]

    def derivative(known: Arrays, dcarry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        base, dbase = known[: len(consts)], known[len(consts) :]
        x, now, dx = row[: len(xs)], row[len(xs) : len(xs) + len(carry)], row[len(xs) + len(carry) :]

        def moved(*chosen: Any) -> list[Any]:
            parts, start = [], 0
            for part, places in zip((base, now, x), moving, strict=True):
                here = dict(zip(places, chosen[start : start + len(places)], strict=True))
                parts.append(tuple(here.get(i, a) for i, a in enumerate(part)))
                start += len(places)
            new, outs = program(*parts)
            return [a for a, is_moving in zip((*new, *outs), kinds, strict=True) if is_moving]

        at = [part[i] for part, places in zip((base, now, x), moving, strict=True) for i in places]
        _, found = jax.jvp(moved, tuple(at), (*dbase, *dcarry, *dx))
        return tuple(found[: len(moving[1])]), tuple(found[len(moving[1]) :])

    given = tuple(ad.instantiate_zeros(dcarry[i]) for i in moving[1])  # type: ignore[no-untyped-call]
    known = (*consts, *(dconsts[i] for i in moving[0]))
    rows = (*xs, *before, *(dxs[i] for i in moving[2]))
    dlast, douts = _bound(derivative, count, known, given, rows, reverse=program.reverse)
    left = iter((*dlast, *douts))
    values = [*last, *outs]
    return values, [next(left) if kind else _no_tangent(x) for x, kind in zip(values, kinds, strict=True)]


def _no_tangent(x: Any) -> Any:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _transposed(cotangents: Sequence[Any], count: Any, *arrays: Any, program: Program) -> list[Any]:
    """Run the transposed steps backwards. The step is linear in its whole carry and in what is not known."""
    consts, carry, xs = program.split(arrays)
    linear_consts, linear_xs = ([i for i, x in enumerate(p) if _is_linear(x)] for p in (consts, xs))
    known_consts, known_xs = (tuple(x for x in p if not _is_linear(x)) for p in (consts, xs))
    given = [ad.instantiate_zeros(ct) for ct in cotangents]  # type: ignore[no-untyped-call]
    sums = tuple(jnp.zeros(consts[i].aval.shape, consts[i].aval.dtype) for i in linear_consts)
    row_avals = [_row_like(xs[i].aval) for i in linear_xs]
    n = len(carry)

    def back(known: Arrays, state: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        x, outs = row[: len(known_xs)], row[len(known_xs) :]

        def image(consts: Arrays, carry: Arrays, xs: Arrays) -> tuple[Arrays, Arrays]:
            return program(_merged(linear_consts, consts, known), carry, _merged(linear_xs, xs, x))

        like = (tuple(state[n:]), tuple(state[:n]), tuple(row_avals))
        ct_consts, ct_carry, ct_x = jax.linear_transpose(image, *like)((tuple(state[:n]), tuple(outs)))
        total = tuple(a + b for a, b in zip(state[n:], ct_consts, strict=True))
        return (*ct_carry, *total), ct_x

    state, rows = (*given[:n], *sums), (*known_xs, *given[n:])
    last, ct_xs = _bound(back, count, known_consts, state, rows, reverse=not program.reverse)
    of_consts, of_xs = dict(zip(linear_consts, last[n:], strict=True)), dict(zip(linear_xs, ct_xs, strict=True))
    return [
        None,
        *(of_consts.get(i) for i in range(len(consts))),
        *last[:n],
        *(of_xs.get(i) for i in range(len(xs))),
    ]


def _is_linear(x: Any) -> bool:
    return bool(ad.is_undefined_primal(x))  # type: ignore[no-untyped-call]


def _merged(places: Sequence[int], chosen: Sequence[Any], rest: Sequence[Any]) -> Arrays:
    """Return all arrays in their order: those at the places, and the others."""
    of_places, others = dict(zip(places, chosen, strict=True)), iter(rest)
    return tuple(of_places[i] if i in of_places else next(others) for i in range(len(chosen) + len(rest)))


def _batched(args: Sequence[Any], axes: Sequence[Axis], *, program: Program) -> tuple[Any, Any]:
    """Run the scans of a batch together: as many steps as the longest takes. The others stay as they are then."""
    first = 1 + program.consts
    (count, *arrays), places = moved_to_front(args, axes, slice(first, first + program.carry))
    consts, carry, xs = program.split(arrays)
    of_consts, of_carry, of_xs = program.split(places[1:])
    xs = tuple(x if axis is None else jnp.moveaxis(x, 0, 1) for x, axis in zip(xs, of_xs, strict=True))
    together: Step = jax.vmap(program.__call__, in_axes=(of_consts, of_carry, of_xs))
    longest, own = count, places[0] is not None
    if own:
        longest, active = jnp.max(count), jnp.arange(xs[0].shape[0])[:, None] < count
        xs = (*xs, active)

    def step(consts: Arrays, carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        if not own:
            return together(consts, carry, row)
        *row, active = row  # type: ignore[assignment]
        new, outs = together(consts, carry, tuple(row))
        chosen = (_where(active, a, b) for a, b in zip(new, carry, strict=True))
        return tuple(chosen), tuple(_where(active, a, jnp.zeros_like(a)) for a in outs)

    last, outs = _bound(step, longest, consts, carry, xs, reverse=program.reverse)
    return [*last, *outs], [*(0 for _ in last), *(1 for _ in outs)]


def _where(mask: Any, a: Any, b: Any) -> Any:
    return jnp.where(jnp.reshape(mask, (*mask.shape, *(1,) * (a.ndim - mask.ndim))), a, b)


COUNTED_SCAN.def_impl(_run)  # type: ignore[no-untyped-call]
COUNTED_SCAN.def_effectful_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
ad.primitive_jvps[COUNTED_SCAN] = _differentiated
ad.primitive_transposes[COUNTED_SCAN] = _transposed
batching.primitive_batchers[COUNTED_SCAN] = _batched
mlir.register_lowering(COUNTED_SCAN, mlir.lower_fun(_run, multiple_results=True))
