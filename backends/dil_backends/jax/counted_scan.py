"""A scan over the first rows of its arrays, as many as a number says that the program computes.

It costs as much as the steps that it takes, however many rows there are. `jax.lax.while_loop` costs no more either, but
has no reverse mode. The derivative of this scan is another one of the same length: its step is the derivative of the
step at the carry that was kept. Its transpose runs the transposed steps from the last one to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Primitive
from jax.interpreters import ad, batching, mlir

from dil_backends.jax.leading_axis import Axis, moved_to_front

Arrays = tuple[Any, ...]

COUNTED_SCAN = Primitive("dil_counted_scan")
"""Takes (count, *known, *consts, *carry, *sums, *xs).

Returns the last carry, the sums and the stacked outs, zero in rows not taken.
"""
COUNTED_SCAN.multiple_results = True


class Program(NamedTuple):
    """The step as a program of (*consts, *carry, *sums, *x), with the numbers of each, and the direction of the scan.

    A step only adds to the sums: nothing else depends on them. A step of a row that is not taken adds nothing.
    """

    jaxpr: Jaxpr
    consts: int
    carry: int
    sums: int
    known: int
    """The number of arrays that hold the carry before each step: as many as the carry has, or none."""
    reverse: bool

    def __call__(
        self, consts: Sequence[Any], carry: Sequence[Any], sums: Sequence[Any], x: Sequence[Any]
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Return the new carry, the sums and the outs."""
        own, last = len(self.jaxpr.constvars), self.carry + self.sums
        found = jax.core.eval_jaxpr(self.jaxpr, consts[:own], *consts[own:], *carry, *sums, *x)
        new = [a.astype(old.dtype) for a, old in zip(found[:last], (*carry, *sums), strict=True)]
        return tuple(new[: self.carry]), tuple(new[self.carry :]), tuple(found[last:])

    def split(self, arrays: Sequence[Any]) -> Operands:
        """Return the operands after the count, by their kinds."""
        rest = iter(arrays)
        known, consts, carry, sums = (
            tuple(islice(rest, size)) for size in (self.known, self.consts, self.carry, self.sums)
        )
        return Operands(known, consts, carry, sums, tuple(rest))


class Operands(NamedTuple):
    """The operands of a scan."""

    known: Arrays
    consts: Arrays
    carry: Arrays
    sums: Arrays
    xs: Arrays


class Results(NamedTuple):
    """The results of a scan."""

    carry: Arrays
    sums: Arrays
    outs: Arrays


def _row_like(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # type: ignore[no-untyped-call]


Step = Callable[[Arrays, Arrays, Arrays, Arrays], tuple[Arrays, Arrays, Arrays]]


def counted_scan(
    step: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]], carry: Arrays, xs: Arrays, count: Any
) -> tuple[Arrays, Arrays]:
    """Run `carry, out = step(carry, x)` for the first `count` rows of xs. It is differentiable in both modes."""

    def flat(consts: Arrays, carry: Arrays, sums: Arrays, x: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        new, outs = step(carry, x)
        return new, (), outs

    count = jnp.clip(jnp.asarray(count, jnp.int32), 0, xs[0].shape[0])
    found = _bound(flat, count, Operands((), (), carry, (), xs), reverse=False)
    return found.carry, found.outs


def summing_scan(
    step: Callable[[Arrays, Arrays, Any], tuple[Arrays, Arrays]],
    carry: Arrays,
    sums: Arrays,
    numbers: Any,
    count: Any,
    known: Arrays = (),
) -> tuple[Arrays, Arrays]:
    """Run `carry, sums = step(carry, sums, number)` for the first `count` numbers. A step only adds to the sums.

    `known` may hold the carry before each step, which the derivative then does not compute again.
    """

    def flat(consts: Arrays, carry: Arrays, sums: Arrays, x: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        new, total = step(carry, sums, x[0])
        return new, total, ()

    found = _bound(flat, count, Operands(known, (), carry, sums, (numbers,)), reverse=False)
    return found.carry, found.sums


def _bound(step: Step, count: Any, operands: Operands, *, reverse: bool) -> Results:
    """Trace the step and bind the primitive. Arrays that the step captures become operands."""
    known, consts, carry, sums, xs = (tuple(map(jnp.asarray, part)) for part in operands)
    row = tuple(_row_like(x) for x in xs)

    def flat(*arrays: Any) -> list[Any]:
        given, rest = arrays[: len(consts)], arrays[len(consts) :]
        last = len(carry) + len(sums)
        new, total, outs = step(given, rest[: len(carry)], rest[len(carry) : last], rest[last:])
        return [*new, *total, *outs]

    traced = jax.make_jaxpr(flat)(*consts, *carry, *sums, *row)
    every = (*traced.consts, *consts)
    program = Program(traced.jaxpr, len(every), len(carry), len(sums), len(known), reverse)
    found = COUNTED_SCAN.bind(count, *known, *every, *carry, *sums, *xs, program=program)  # type: ignore[no-untyped-call]
    return _results(found, program)


def _results(found: Sequence[Any], program: Program) -> Results:
    last = program.carry + program.sums
    return Results(tuple(found[: program.carry]), tuple(found[program.carry : last]), tuple(found[last:]))


def _run(count: Any, *arrays: Any, program: Program) -> list[Any]:
    _, consts, carry, sums, xs = program.split(arrays)
    rows = xs[0].shape[0]
    made = _results(program.jaxpr.outvars, program).outs
    outs = [jnp.zeros((rows, *v.aval.shape), v.aval.dtype) for v in made]

    def advance(state: Any) -> Any:
        done, carry, sums, outs = state
        k = count - 1 - done if program.reverse else done
        x = [jax.lax.dynamic_index_in_dim(x, k, 0, keepdims=False) for x in xs]
        carry, sums, new = program(consts, carry, sums, x)
        outs = [jax.lax.dynamic_update_index_in_dim(a, b.astype(a.dtype), k, 0) for a, b in zip(outs, new, strict=True)]
        return done + 1, carry, sums, outs

    begun = (jnp.zeros_like(count), carry, sums, outs)
    _, carry, sums, outs = jax.lax.while_loop(lambda state: state[0] < count, advance, begun)
    return [*carry, *sums, *outs]


def _abstract(count: Any, *arrays: Any, program: Program) -> Any:
    _, _, carry, sums, xs = program.split(arrays)
    rows = xs[0].shape[0]
    made: Any = [v.aval for v in _results(program.jaxpr.outvars, program).outs]
    outs = [x.update(shape=(rows, *x.shape), weak_type=False) for x in made]
    return [*(x.update(weak_type=False) for x in (*carry, *sums)), *outs], program.jaxpr.effects


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, program: Program) -> tuple[Any, Any]:
    """Run the scan, which keeps its carry, and the scan of the derivatives of its steps."""
    count, *arrays = primals
    known, consts, carry, sums, xs = program.split(arrays)
    _, dconsts, dcarry, dsums, dxs = program.split(tangents[1:])

    def keeping(consts: Arrays, carry: Arrays, sums: Arrays, x: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        new, total, outs = program(consts, carry, sums, x)
        return new, total, (*outs, *carry)

    found = _bound(keeping, count, Operands((), consts, carry, sums, xs), reverse=program.reverse)
    own = len(found.outs) - len(carry)
    outs, before = found.outs[:own], found.outs[own:]
    if known:
        before = tuple(map(_with_derivative_of, known, before))
    flags = Operands((), *([not isinstance(t, ad.Zero) for t in part] for part in (dconsts, dcarry, dsums, dxs)))  # type: ignore[arg-type]
    of_carry, kinds = _moving(program, flags)
    moving = [[i for i, moves in enumerate(part) if moves] for part in (flags.consts, of_carry, flags.xs)]
    n = len(carry)

    def derivative(given: Arrays, dcarry: Arrays, dsums: Arrays, row: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        base, dbase = given[: len(consts)], given[len(consts) :]
        x, now, dx = row[: len(xs)], row[len(xs) : len(xs) + n], row[len(xs) + n :]

        def moved(sums: Arrays, *chosen: Any) -> list[Any]:
            parts, start = [], 0
            for part, places in zip((base, now, x), moving, strict=True):
                here = dict(zip(places, chosen[start : start + len(places)], strict=True))
                parts.append(tuple(here.get(i, a) for i, a in enumerate(part)))
                start += len(places)
            new, total, outs = program(parts[0], parts[1], sums, parts[2])
            return [a for a, is_moving in zip((*new, *total, *outs), kinds, strict=True) if is_moving]

        at = [part[i] for part, places in zip((base, now, x), moving, strict=True) for i in places]
        _, found = jax.jvp(moved, (_zeros_like(sums), *at), (dsums, *dbase, *dcarry, *dx))
        last = len(moving[1]) + len(sums)
        return tuple(found[: len(moving[1])]), tuple(found[len(moving[1]) : last]), tuple(found[last:])

    operands = Operands(
        (),
        (*consts, *(dconsts[i] for i in moving[0])),
        tuple(ad.instantiate_zeros(dcarry[i]) for i in moving[1]),  # type: ignore[no-untyped-call]
        tuple(map(ad.instantiate_zeros, dsums)),
        (*xs, *before, *(dxs[i] for i in moving[2])),
    )
    moved = _bound(derivative, count, operands, reverse=program.reverse)
    left = iter((*moved.carry, *moved.sums, *moved.outs))
    values = [*found.carry, *found.sums, *outs]
    return values, [next(left) if kind else _no_tangent(x) for x, kind in zip(values, kinds, strict=True)]


def _moving(program: Program, flags: Operands) -> tuple[list[bool], list[bool]]:
    """Return which arrays of the carry, and which results, have a derivative, if these operands have one."""
    of_carry = list(flags.carry)
    while True:
        found = _reached(program.jaxpr, [*flags.consts, *of_carry, *(True for _ in flags.sums), *flags.xs])
        wider = [a or b for a, b in zip(of_carry, found[: program.carry], strict=True)]
        if wider == of_carry:
            sums = [True] * program.sums
            return of_carry, [*of_carry, *sums, *found[program.carry + program.sums :]]
        of_carry = wider


def _reached(jaxpr: Jaxpr, flags: Sequence[bool]) -> list[bool]:
    """Return which results of a program depend on inputs that have a derivative."""
    known = {v for v, moves in zip((*jaxpr.constvars, *jaxpr.invars), flags, strict=True) if moves}

    def moves(v: Any) -> bool:
        return not isinstance(v, Literal) and v in known

    for eqn in jaxpr.eqns:
        inputs = [moves(v) for v in eqn.invars]
        results = [any(inputs)] * len(eqn.outvars)
        if eqn.primitive is COUNTED_SCAN:
            inner: Program = eqn.params["program"]
            results = _moving(inner, inner.split(inputs[1:]))[1]
        known |= {v for v, does in zip(eqn.outvars, results, strict=True) if does and _is_inexact(v.aval)}
    return [moves(v) for v in jaxpr.outvars]


def _no_tangent(x: Any) -> Any:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _zeros_like(arrays: Sequence[Any]) -> Arrays:
    return tuple(jnp.zeros(x.shape, x.dtype) for x in arrays)


@jax.custom_jvp
def _with_derivative_of(value: Any, image: Any) -> Any:
    """Return the value with the derivative of its image, which is the same number computed again."""
    return value


_with_derivative_of.defjvps(None, lambda tangent, found, value, image: tangent)


def _transposed(cotangents: Sequence[Any], count: Any, *arrays: Any, program: Program) -> list[Any]:
    """Run the transposed steps backwards. The step is linear in its whole carry, the sums and what is not known."""
    _, consts, carry, sums, xs = program.split(arrays)
    linear_consts, linear_xs = ([i for i, x in enumerate(p) if _is_linear(x)] for p in (consts, xs))
    known_consts, known_xs = (tuple(x for x in p if not _is_linear(x)) for p in (consts, xs))
    given = _results([ad.instantiate_zeros(ct) for ct in cotangents], program)  # type: ignore[no-untyped-call]
    totals = tuple(jnp.zeros(consts[i].aval.shape, consts[i].aval.dtype) for i in linear_consts)
    row_avals = [_row_like(xs[i].aval) for i in linear_xs]
    n, m = len(carry), len(known_consts)

    def back(known: Arrays, state: Arrays, _: Arrays, row: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        x, outs, (known, of_sums) = row[: len(known_xs)], row[len(known_xs) :], (known[:m], known[m:])

        def image(consts: Arrays, carry: Arrays, xs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
            parts = _merged(linear_consts, consts, known), carry, _zeros_like(of_sums), _merged(linear_xs, xs, x)
            return program(*parts)

        like = (tuple(state[n:]), tuple(state[:n]), tuple(row_avals))
        ct_consts, ct_carry, ct_x = jax.linear_transpose(image, *like)((tuple(state[:n]), of_sums, tuple(outs)))
        total = tuple(a + b for a, b in zip(state[n:], ct_consts, strict=True))
        return (*ct_carry, *total), (), ct_x

    operands = Operands((), (*known_consts, *given.sums), (*given.carry, *totals), (), (*known_xs, *given.outs))
    last, _, ct_xs = _bound(back, count, operands, reverse=not program.reverse)
    of_consts, of_xs = dict(zip(linear_consts, last[n:], strict=True)), dict(zip(linear_xs, ct_xs, strict=True))
    return [
        None,
        *(of_consts.get(i) for i in range(len(consts))),
        *last[:n],
        *(ct if _is_linear(x) else None for ct, x in zip(given.sums, sums, strict=True)),
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
    first = 1 + program.known + program.consts
    spread = slice(first, first + program.carry + program.sums)
    (count, *arrays), places = moved_to_front(args, axes, spread)
    known, consts, carry, sums, xs = program.split(arrays)
    of_known, of_consts, of_carry, of_sums, of_xs = program.split(places[1:])
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    xs, known = (
        tuple(x if axis is None else jnp.moveaxis(x, 0, 1) for x, axis in zip(part, its_axes, strict=True))
        for part, its_axes in ((xs, of_xs), (known, of_known))
    )
    known = tuple(
        jnp.broadcast_to(x[:, None], (x.shape[0], size, *x.shape[1:])) if axis is None else x
        for x, axis in zip(known, of_known, strict=True)
    )
    together: Step = jax.vmap(program.__call__, in_axes=(of_consts, of_carry, of_sums, of_xs))
    longest, own = count, places[0] is not None
    if own:
        longest, active = jnp.max(count), jnp.arange(xs[0].shape[0])[:, None] < count
        xs = (*xs, active)

    def step(consts: Arrays, carry: Arrays, sums: Arrays, row: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        if not own:
            return together(consts, carry, sums, row)
        *row, active = row  # type: ignore[assignment]
        new, total, outs = together(consts, carry, sums, tuple(row))
        chosen = tuple(_where(active, a, b) for a, b in zip(new, carry, strict=True))
        return chosen, total, tuple(_where(active, a, jnp.zeros_like(a)) for a in outs)

    found = _bound(step, longest, Operands(known, consts, carry, sums, xs), reverse=program.reverse)
    ends = (*found.carry, *found.sums)
    return [*ends, *found.outs], [*(0 for _ in ends), *(1 for _ in found.outs)]


def _where(mask: Any, a: Any, b: Any) -> Any:
    return jnp.where(jnp.reshape(mask, (*mask.shape, *(1,) * (a.ndim - mask.ndim))), a, b)


COUNTED_SCAN.def_impl(_run)  # type: ignore[no-untyped-call]
COUNTED_SCAN.def_effectful_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
ad.primitive_jvps[COUNTED_SCAN] = _differentiated
ad.primitive_transposes[COUNTED_SCAN] = _transposed
batching.primitive_batchers[COUNTED_SCAN] = _batched
mlir.register_lowering(COUNTED_SCAN, mlir.lower_fun(_run, multiple_results=True))
