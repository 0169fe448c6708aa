"""Laws that every backend must keep, as functions that test any backend, also one from another package.

>>> import dil
>>> from dil.testing import LAWS
>>> for law in LAWS:
...     law(dil.backend("numpy"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil._base.arrays import array_namespace, device, eps
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays, Step
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.protocol import LinearSystem
from dil._frameworks.registry import BackendHandle

__all__ = ["LAWS"]

Law = Callable[[BackendHandle], None]


def vjp_is_linear(handle: BackendHandle) -> None:
    """Check that pull(a v + w) = a pull(v) + pull(w), for scales from 1e-9 to 1e9."""
    x, v, w = _vectors(handle, 3)
    _, pull = handle.module.vjp(_smooth, x)
    for a in (1e-9, -1.0, 1e9):
        lhs, rhs = pull((a * v + w,))[0], a * pull((v,))[0] + pull((w,))[0]
        _expect_near(handle, lhs, rhs, "vjp is not linear in the cotangent")


def forward_and_reverse_are_adjoint(handle: BackendHandle) -> None:
    """Check that <v, J t> = <J^T v, t>, for a Jacobian that is not symmetric."""
    x, v, t = _vectors(handle, 3)
    _, pull = handle.module.vjp(_smooth, x)
    _, (Jt,) = jvp_from_vjp(handle.module, _smooth, (x,), (t,))
    _expect_near(handle, handle.xp.sum(v * Jt), handle.xp.sum(pull((v,))[0] * t), "<v, J t> is not <J^T v, t>")


def nested_vjp_is_symmetric(handle: BackendHandle) -> None:
    """Check that <v, H w> = <w, H v>, for the Hessian H computed by a vjp of a vjp."""
    x, v, w = _vectors(handle, 3)

    def gradient(u: Array) -> Arrays:
        (value,), pull = handle.module.vjp(lambda z: (array_namespace(z).sum(_smooth(z)[0] ** 2),), u)
        return pull((array_namespace(value).ones_like(value),))

    _, pull = handle.module.vjp(gradient, x)
    lhs, rhs = handle.xp.sum(v * pull((w,))[0]), handle.xp.sum(w * pull((v,))[0])
    _expect_near(handle, lhs, rhs, "a nested vjp is not symmetric")


def vjp_keeps_dtype_device_and_shape(handle: BackendHandle) -> None:
    """Check that a cotangent is like its primal, and exactly zero if the output does not depend on the primal."""
    x = handle.module.asarray([[1.0, 2.0]], dtype=handle.xp.float32, device=handle.device)
    y = handle.module.asarray([3.0], dtype=handle.xp.float32, device=handle.device)
    (out,), pull = handle.module.vjp(lambda a, b: (array_namespace(a).sum(a * a),), x, y)
    dx, dy = pull((handle.xp.ones_like(out),))
    for ct, primal in ((dx, x), (dy, y)):
        _expect(ct.dtype == primal.dtype and ct.shape == primal.shape, "a cotangent is not like its primal")
        _expect(device(ct) == device(primal), "a cotangent is on another device than its primal")
    _expect(float(handle.to_numpy(dy)[0]) == 0.0, "a cotangent of an unused primal is not an exact zero")


def pull_takes_what_is_asked_for(handle: BackendHandle) -> None:
    """Check that pull(v, wrt) returns the entries `wrt` of pull(v), in that order, at each of several calls."""
    x, y, v = _vectors(handle, 3)
    _, pull = handle.module.vjp(lambda a, b: (a * b * b,), x, y)
    dx, dy = pull((v,))
    for _ in range(2):
        again_y, again_x = pull((v,), (1, 0))
        _expect_near(handle, again_x, dx, "pull with wrt differs from pull")
        _expect_near(handle, again_y, dy, "pull with wrt differs from pull")


def pull_takes_many_cotangents(handle: BackendHandle) -> None:
    """Check that pull.many returns the pullback of each row, also through `implicit` and a linear solve."""
    module = handle.module
    x, b, *rows = _vectors(handle, 5)
    square = module.implicit(lambda a: (a * a,), Square())

    def solved(d: Array, b: Array) -> Arrays:
        d = 2.0 + array_namespace(d).cos(square(d)[0])
        system = LinearSystem(_diagonal, (d,), _diagonal(d), lambda A, b: b / A(b * 0.0 + 1.0))
        return (module.linear_solve(system, b), d)

    _, pull = module.vjp(solved, x, b)
    stacked = handle.xp.stack(rows)
    for wrt in (None, (1, 0)):
        found = pull.many((stacked, 2.0 * stacked), wrt)
        for i, row in enumerate(rows):
            for many, one in zip(found, pull((row, 2.0 * row), wrt), strict=True):
                _expect_near(handle, many[i, ...], one, "many pullbacks differ from one at a time")


def while_loop_may_run_zero_times(handle: BackendHandle) -> None:
    """Check that a loop whose condition is false returns its state, and that a loop of three steps takes three."""
    (x,) = _vectors(handle, 1)
    zero = handle.xp.sum(0.0 * x)
    unchanged = handle.module.loops.while_loop(lambda s: s[0] < -1.0, lambda s: (s[0] + 1.0, s[1] * 2.0), (zero, x))
    _expect_near(handle, unchanged[1], x, "a loop that must not run has run")
    counted = handle.module.loops.while_loop(lambda s: s[0] < 3.0, lambda s: (s[0] + 1.0, s[1] * 2.0), (zero, x))
    _expect_near(handle, counted[1], 8.0 * x, "a loop of three steps has not taken three")


def run_if_runs_what_holds(handle: BackendHandle) -> None:
    """Check that run_if applies its function if the condition holds, and not otherwise."""
    (x,) = _vectors(handle, 1)
    square = handle.xp.sum(x * x)
    unchanged, doubled = (
        handle.module.loops.run_if(c, lambda s: (2.0 * s[0],), (x,))[0] for c in (square < 0.0, square > 0.0)
    )
    _expect_near(handle, unchanged, x, "run_if applies its function though the condition does not hold")
    _expect_near(handle, doubled, 2.0 * x, "run_if does not apply its function though the condition holds")


def scan_steps_through_its_rows(handle: BackendHandle) -> None:
    """Check the last carry, the outs and the derivatives of the scan c <- c x."""
    c, v, *rows = _vectors(handle, 5)

    def products(c: Array, *rows: Array) -> Arrays:
        xp = array_namespace(*rows)
        (last,), (outs,) = handle.module.loops.scan(lambda c, x: ((c[0] * x[0],), c), (c,), (xp.stack(list(rows)),))
        return last, outs

    (last, outs), pull = handle.module.vjp(products, c, *rows)
    _expect_near(handle, last, c * rows[0] * rows[1] * rows[2], "scan has a wrong last carry")
    _expect_near(handle, outs[2, ...], c * rows[0] * rows[1], "scan does not stack its outs in order")
    dc, _, middle, _ = pull((v, 0.0 * outs))
    _expect_near(handle, dc, v * rows[0] * rows[1] * rows[2], "scan has a wrong derivative in its start")
    _expect_near(handle, middle, v * c * rows[0] * rows[2], "scan has a wrong derivative in its rows")


def scan_takes_as_many_rows_as_it_is_told(handle: BackendHandle) -> None:
    """Check the scan c <- c x^2 over two rows of three, with its first and second derivatives in reverse mode."""
    c, v, *rows = _vectors(handle, 5)
    two = handle.xp.sum(0.0 * c) + 2.0

    def products(c: Array, *rows: Array) -> Arrays:
        xp = array_namespace(*rows)
        step: Step = lambda c, x: ((c[0] * x[0] * x[0],), (c[0] * x[0],))  # noqa: E731
        (last,), (outs,) = handle.module.loops.scan(step, (c,), (xp.stack(list(rows)),), two)
        return last, outs

    (last, outs), pull = handle.module.vjp(products, c, *rows)
    squares = rows[0] * rows[0], rows[1] * rows[1]
    _expect_near(handle, last, c * squares[0] * squares[1], "a counted scan has a wrong last carry")
    _expect_near(handle, outs[1, ...], c * squares[0] * rows[1], "a counted scan does not stack its outs in order")
    _expect_near(handle, outs[2, ...], 0.0 * c, "a counted scan has outs beyond its rows")
    dc, first, _, third = pull((v, 0.0 * outs))
    _expect_near(handle, dc, v * squares[0] * squares[1], "a counted scan has a wrong derivative in its start")
    _expect_near(handle, first, 2.0 * v * c * rows[0] * squares[1], "a counted scan has a wrong derivative in its rows")
    _expect_near(handle, third, 0.0 * c, "a counted scan depends on a row beyond its count")

    def slope(row: Array) -> Arrays:
        _, pull = handle.module.vjp(lambda row: products(c, row, *rows[1:])[:1], row)
        return pull((v,))

    _, pull = handle.module.vjp(slope, rows[0])
    _expect_near(handle, pull((v,))[0], 2.0 * v * v * c * squares[1], "a counted scan has a wrong second derivative")


def rows_are_written_at_the_place_of_each_problem(handle: BackendHandle) -> None:
    """Check that set_rows writes one row into the memory of each problem, and leaves the others."""
    x, *_ = _vectors(handle, 1)
    xp, zero = handle.xp, 0.0 * x
    memory = xp.stack([xp.stack([zero, zero, zero]), xp.stack([x, x, x])])
    places = xp.asarray([2, 0], dtype=xp.int32, device=device(x))
    found = handle.module.loops.set_rows(memory[None, ...], places, xp.stack([x, 2.0 * x])[None, ...])
    expected = xp.stack([xp.stack([zero, zero, x]), xp.stack([2.0 * x, x, x])])
    _expect_near(handle, found[0, ...], expected, "set_rows writes other rows than those that it is told")


def implicit_composes_with_scale(handle: BackendHandle) -> None:
    """Check that a custom derivative follows the chain rule, with factors before and after it from 1e-9 to 1e9."""
    x, v = _vectors(handle, 2)
    square = handle.module.implicit(lambda a: (a * a,), Square())
    for scale in (1e-9, 3.0, 1e9):
        _, pull = handle.module.vjp(lambda a, s=scale: (s * square(2.0 * a)[0],), x)
        _expect_near(handle, pull((v,))[0], 8.0 * scale * x * v, "implicit breaks the chain rule")


def implicit_in_a_scan_differentiates_again(handle: BackendHandle) -> None:
    """Check the second derivative of a^4, which a scan computes by two squares with a custom derivative."""
    module = handle.module
    x, v = _vectors(handle, 2)
    # without its rule, the square is a constant
    square = module.implicit(lambda a: (module.constant(a) * module.constant(a),), Square())

    def fourth(a: Array) -> Arrays:
        xp = array_namespace(a)
        (last,), _ = module.loops.scan(lambda c, _: (square(c[0]), c), (a,), (xp.stack([0.0 * a, 0.0 * a]),))
        return (last,)

    _, pull = module.vjp(lambda a: module.vjp(fourth, a)[1]((v,)), x)
    _expect_near(handle, pull((v,))[0], 12.0 * x * x * v * v, "a scan loses the second derivative of implicit")


def implicit_differentiates_again(handle: BackendHandle) -> None:
    """Check that the second derivative of a custom function is the derivative of its rule."""
    x, v = _vectors(handle, 2)
    square = handle.module.implicit(lambda a: (a * a,), Square())
    _, pull = handle.module.vjp(lambda a: handle.module.vjp(lambda b: square(b), a)[1]((v,)), x)
    _expect_near(handle, pull((v,))[0], 2.0 * v * v, "the second derivative through implicit is wrong")


def linear_solve_is_differentiable(handle: BackendHandle) -> None:
    """Check that x = b / d has dx/db = 1 / d and dx/dd = -b / d^2."""
    b, v, d = _vectors(handle, 3)
    d = d * d + 1.0

    def solve(d: Array, b: Array) -> Arrays:
        # the solver is a black box: it can use the products with A only
        system = LinearSystem(_diagonal, (d,), _diagonal(d), lambda A, b: b / A(b * 0.0 + 1.0))
        return (handle.module.linear_solve(system, b),)

    (x,), pull = handle.module.vjp(solve, d, b)
    dd, db = pull((v,))
    _expect_near(handle, x, b / d, "linear_solve does not solve")
    _expect_near(handle, db, v / d, "linear_solve has a wrong derivative in the right-hand side")
    _expect_near(handle, dd, -v * b / (d * d), "linear_solve has a wrong derivative in the matrix")


def constant_has_no_derivative(handle: BackendHandle) -> None:
    """Check that d/dx (x constant(x)) = constant(x)."""
    x, v = _vectors(handle, 2)
    _, pull = handle.module.vjp(lambda a: (a * handle.module.constant(a),), x)
    _expect_near(handle, pull((v,))[0], x * v, "a derivative passes through constant")


def captured_arrays_are_lifted(handle: BackendHandle) -> None:
    """Check that a function that captures an array becomes a function of it, through which it has a derivative."""
    x, w, y, v = _vectors(handle, 4)
    module = handle.module

    def product(captured: Array, other: Array) -> Arrays:
        lift = module.lifted(lambda u: captured * captured * u, module.constant(y))
        _expect(len(lift.arrays) == 1, "an array that is captured and differentiated is not lifted")
        return lift.call(lift.arrays, y), lift.call((other,), y)

    values, pull = module.vjp(product, x, w)
    _expect_near(handle, values[0], x * x * y, "a function is another one with the arrays that it captures")
    _expect_near(handle, values[1], w * w * y, "a captured array is not replaced")
    dx, dw = pull((v, v))
    _expect_near(handle, dx, 2.0 * x * y * v, "a captured array has a wrong derivative")
    _expect_near(handle, dw, 2.0 * w * y * v, "an array in the place of a captured one has a wrong derivative")


def reports_hand_over_the_values(handle: BackendHandle) -> None:
    """Check that a listener gets the reported arrays as NumPy arrays, with their values."""
    import numpy as np

    x, y = _vectors(handle, 2)
    seen: list[Any] = []
    handle.module.reports.values(lambda *arrays: seen.append(arrays), x, y)
    _expect(len(seen) == 1 and len(seen[0]) == 2, "a report does not call the listener once with every array")
    for found, expected in zip(seen[0], (x, y), strict=True):
        _expect(isinstance(found, np.ndarray), "a report passes an array that is not of NumPy")
        _expect(bool(np.all(found == handle.to_numpy(expected))), "a report changes values")


def complex_parts_are_joined_again(handle: BackendHandle) -> None:
    """Check that join(split(z)) = z, and that the derivatives of both are those of the parts."""
    x, y, v, w = _vectors(handle, 4)
    parts, given = (handle.xp.stack([a, b], axis=-1) for a, b in ((x, y), (v, w)))
    complex_parts = handle.module.complex_parts

    def square(parts: Array) -> Arrays:
        z = complex_parts.join(complex_parts.aligned(parts))
        return (complex_parts.split(z * z),)

    (found,), pull = handle.module.vjp(square, parts)
    (pulled,) = pull((given,))
    expected = (
        (x * x - y * y, found),
        (2.0 * x * y, found),
        (2.0 * (x * v + y * w), pulled),
        (2.0 * (x * w - y * v), pulled),
    )
    for i, (number, stacked) in enumerate(expected):
        _expect_near(handle, stacked[..., i % 2], number, "the parts of a complex array are wrong, or their derivative")


def cotangents_are_in_the_convention(handle: BackendHandle) -> None:
    """Check the gradient of |z|^2 Re z: its parts are d/dRe and d/dIm, or -d/dIm if `conjugate` says so."""
    x, y = _vectors(handle, 2)
    complex_parts = handle.module.complex_parts
    z = complex_parts.join(handle.xp.stack([x, y], axis=-1))

    def score(z: Array) -> Arrays:
        xp = array_namespace(z)
        return (xp.real(xp.conj(z) * z) * xp.real(z),)

    (value,), pull = handle.module.vjp(score, z)
    found = complex_parts.split(complex_parts.cotangent(pull((handle.xp.ones_like(value),))[0]))
    _expect_near(handle, found[..., 0], 3.0 * x * x + y * y, "a complex cotangent has a wrong real part")
    _expect_near(handle, found[..., 1], 2.0 * x * y, "a complex cotangent is not in the convention of its backend")


class Square:
    """The derivative rule of a^2."""

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return 2 a v."""
        return (2.0 * args[0] * cotangents[0],)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return 2 a t."""
        (t,) = tangents
        assert t is not None
        return (2.0 * args[0] * t,)


LAWS: tuple[Law, ...] = (
    vjp_is_linear,
    forward_and_reverse_are_adjoint,
    nested_vjp_is_symmetric,
    vjp_keeps_dtype_device_and_shape,
    pull_takes_what_is_asked_for,
    pull_takes_many_cotangents,
    while_loop_may_run_zero_times,
    run_if_runs_what_holds,
    scan_steps_through_its_rows,
    scan_takes_as_many_rows_as_it_is_told,
    rows_are_written_at_the_place_of_each_problem,
    implicit_composes_with_scale,
    implicit_differentiates_again,
    implicit_in_a_scan_differentiates_again,
    linear_solve_is_differentiable,
    constant_has_no_derivative,
    captured_arrays_are_lifted,
    reports_hand_over_the_values,
    complex_parts_are_joined_again,
    cotangents_are_in_the_convention,
)
"""The laws. Each takes a `dil.BackendHandle`, and raises AssertionError with a sentence if the backend breaks it."""


def _smooth(x: Array) -> Arrays:
    """Return a vector function whose Jacobian is not symmetric."""
    xp = array_namespace(x)
    return (xp.sin(x) * xp.cumulative_sum(x) + xp.exp(0.5 * x),)


def _diagonal(d: Array) -> Operator:
    """Return the matrix with the diagonal d by its products."""
    return Operator(lambda p: d * p, lambda p: d * p)


def _vectors(handle: BackendHandle, count: int) -> list[Array]:
    import numpy as np

    draw = np.random.default_rng(0)
    return [handle.asarray(draw.standard_normal(4)) for _ in range(count)]


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _expect_near(handle: BackendHandle, found: Array, expected: Array, sentence: str) -> None:
    """Compare two arrays. The error is relative to the larger one, without an absolute tolerance."""
    a, b = (handle.to_numpy(x).astype("float64") for x in (found, expected))
    rtol = 100 * eps(handle.xp, found.dtype)
    distance, size = abs(a - b).max(), max(abs(a).max(), abs(b).max())
    _expect(bool(distance <= rtol * size), f"{handle.name}: {sentence}: {_short(a)} against {_short(b)}")


def _short(x: Any) -> str:
    return str(x.reshape(-1)[:4].tolist())
