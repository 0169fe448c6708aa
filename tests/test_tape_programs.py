"""Random compositions of the functions that the tape knows, real and complex, against finite differences."""

from __future__ import annotations

import array_api_compat.numpy as np_xp
import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dil_backends._tape import namespace
from tape_helpers import assert_transposed, gradient, is_complex, random_like
from tape_program_table import OF_ONE_MATRIX, OF_ONE_NUMPY, OF_TWO_MATRICES, OF_TWO_NUMPY, special_functions

pytestmark = pytest.mark.filterwarnings("error")
SHAPE = (2, 3)


def small(xp, x):
    """x / sqrt(1 + |x|^2), of modulus below 1, where the functions of the table are smooth."""
    return x / xp.sqrt(1.0 + xp.real(xp.conj(x) * x))


def spread(xp, x):
    """The real part, with entries too far apart to change their order."""
    return xp.real(x) + xp.asarray([[4.0, -7.0, 0.0], [11.0, 7.0, -4.0]])


def ends(xp, x):
    return xp.diff(x, axis=1, append=x[:, :1])


def inverse(xp, x):
    return xp.fft.irfftn(x + 0j, s=SHAPE, axes=(0, 1))


def halves(xp, z, n):
    """A transform of another length, in the shape of the program."""
    return xp.concat([z, z], axis=-1)[:, :n]


ONE = {
    **{
        name: lambda xp, x, name=name: getattr(xp, name)(0.9 * x)
        for name in [
            *("negative", "positive", "square", "exp", "expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh"),
            *("asin", "acos", "atanh", "atan", "real", "conj"),
        ]
    },
    **{
        name: lambda xp, x, name=name: getattr(xp, name)(2.0 + x)
        for name in ["abs", "angle", "sign", "sqrt", "reciprocal", "log", "log1p", "log2", "log10"]
    },
    "acosh": lambda xp, x: xp.acosh(2.5 + x),
    "power": lambda xp, x: x**3 - x**2 + 0.5 * (2.0 + x) ** -1.5,
    "powers": lambda xp, x: 1.5**x + (2.0 + x) ** (0.3 + 0.1j),
    "scaled": lambda xp, x: (0.3 - 0.8j) * x - x / (1.0 + 1j),
    "clip": lambda xp, x: xp.clip(spread(xp, x), -5.5, 5.5),
    "maximum": lambda xp, x: xp.maximum(spread(xp, x), 0.5 * xp.flip(spread(xp, x), axis=1) + 1.7),
    "max": lambda xp, x: x + xp.max(spread(xp, x), axis=0) * xp.min(spread(xp, x), axis=1, keepdims=True),
    "sort": lambda xp, x: xp.sort(spread(xp, x), axis=1, descending=True),
    "remainder": lambda xp, x: xp.remainder(xp.real(x), 3.0),
    "sum": lambda xp, x: x * xp.sum(x, axis=0, keepdims=True),
    "mean": lambda xp, x: x - xp.mean(x) * xp.mean(x, axis=1, keepdims=True),
    "prod": lambda xp, x: x + xp.prod(1.0 + x, axis=1, keepdims=True),
    "var": lambda xp, x: x + xp.var(spread(xp, x), axis=0) + xp.std(spread(xp, x), axis=1, keepdims=True),
    "norm": lambda xp, x: x * xp.linalg.vector_norm(1.0 + x, axis=0) + xp.linalg.matrix_norm(2.0 + x),
    "cumulative_sum": lambda xp, x: xp.cumulative_sum(x, axis=1),
    "cumulative_prod": lambda xp, x: xp.cumulative_prod(x, axis=1, include_initial=True)[:, 1:] + x,
    "moved": lambda xp, x: xp.permute_dims(xp.reshape(xp.flip(x, axis=0), (3, 2)), (1, 0)) + xp.roll(x, 1, axis=1),
    "triangles": lambda xp, x: xp.tril(x) - 2.0 * xp.triu(x, k=1),
    "joined": lambda xp, x: xp.concat([x[:, 1:], x[:, :1] ** 2], axis=1) + xp.stack(xp.unstack(x, axis=1), axis=1),
    "taken": lambda xp, x: xp.take(x, xp.asarray([2, 0, 2]), axis=1) * x[1, ...],
    "repeated": lambda xp, x: xp.tile(x[:, :1], (1, 3)) + xp.repeat(x[:1, :], 2, axis=0) * ends(xp, x),
    "fft": lambda xp, x: xp.fft.fft(1j * x, axis=0, norm="ortho") + xp.fft.ifft(x + 0j, n=5)[:, :3],
    "rfft": lambda xp, x: xp.fft.irfft(halves(xp, xp.fft.rfft(xp.real(x), n=4), 3), n=3) + xp.real(x),
    "hfft": lambda xp, x: xp.fft.hfft(x + 0j, n=3, norm="ortho") + xp.imag(xp.fft.ihfft(xp.real(x), n=5)),
    "fftn": lambda xp, x: xp.fft.fftshift(xp.fft.fftn(x + 0j, norm="forward")) + inverse(xp, x),
}

TWO = {
    **{name: lambda xp, x, y, name=name: getattr(xp, name)(x, y) for name in ["add", "subtract", "multiply"]},
    **{
        name: lambda xp, x, y, name=name: getattr(xp, name)(2.0 + xp.real(x), 3.0 + xp.imag(y + 1j))
        for name in ["hypot", "atan2", "logaddexp", "copysign"]
    },
    "divide": lambda xp, x, y: x / (2.0 + y),
    "pow": lambda xp, x, y: (2.0 + x) ** y,
    "where": lambda xp, x, y: xp.where(xp.asarray([[True, False, True], [False, False, True]]), x, y),
    "complex": lambda xp, x, y: xp.real(x) + 1j * xp.real(y),
    "matmul": lambda xp, x, y: x @ (xp.matrix_transpose(xp.conj(y)) @ x),
    "vecdot": lambda xp, x, y: y * xp.vecdot(x, y, axis=-1)[:, None],
    "tensordot": lambda xp, x, y: xp.tensordot(xp.tensordot(x, y, axes=((1,), (1,))), x, axes=1),
    "solve": lambda xp, x, y: xp.linalg.solve(x @ xp.matrix_transpose(y) + 9.0 * xp.eye(2), y),
    "inv": lambda xp, x, y: xp.linalg.inv(9.0 * xp.eye(2) + x @ xp.matrix_transpose(y)) @ y,
    "det": lambda xp, x, y: x * xp.linalg.det(3.0 * xp.eye(2) + x @ xp.matrix_transpose(y)),
    "cross": lambda xp, x, y: xp.linalg.cross(x, y),
}

SPECIAL = special_functions()
STANDARD_ONE, STANDARD_TWO = {**ONE, **OF_ONE_MATRIX}, {**TWO, **OF_TWO_MATRICES}
ALL_ONE, ALL_TWO = {**STANDARD_ONE, **OF_ONE_NUMPY, **SPECIAL[0]}, {**STANDARD_TWO, **OF_TWO_NUMPY, **SPECIAL[1]}
STANDARD = sorted({**STANDARD_ONE, **STANDARD_TWO})
NUMPY = sorted({**ALL_ONE, **ALL_TWO})


def program(steps):
    """The function of a real and a complex array that applies the steps, each to values before it."""

    def f(xp, *args):
        values = [small(xp, x) for x in args]
        for name, i, j in steps:
            x, y = values[-1 - i % len(values)], values[-1 - j % len(values)]
            value = ALL_TWO[name](xp, x, y) if name in ALL_TWO else ALL_ONE[name](xp, x)
            values.append(small(xp, xp.broadcast_to(value, SHAPE)))
        return values[-1], values[-1] * values[len(values) // 2]

    return f


def check(xp, steps, seed):
    rng = np.random.default_rng(seed)
    numbers = [rng.normal(size=SHAPE), rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)]
    args = tuple(map(xp.asarray, numbers))
    tape, of_steps = namespace(args[0]), program(steps)

    def f(*args):
        return of_steps(tape, *args)

    y = f(*args)
    assert_transposed(f, args, rng, step=3e-4, rtol=1e-7, terms=1.0, finer=(3e-5,))
    assert_transposed(
        gradient(f, 2), (*args, *random_like(y, rng)), rng, step=3e-4, rtol=1e-6, terms=10.0, finer=(3e-5,)
    )
    return any(map(is_complex, y))


def steps_of(names):
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6)


SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", STANDARD)
def test_function_of_the_table(name, xp):
    for places in [(0, 1), (1, 0)]:
        check(xp, [(name, *places), ("fft", 0, 0)], 0)


@pytest.mark.parametrize("name", sorted(set(NUMPY) - set(STANDARD)))
def test_function_of_numpy(name):
    for places in [(0, 1), (1, 0)]:
        check(np_xp, [(name, *places), ("fft", 0, 0)], 0)


@settings(max_examples=70)
@given(steps=steps_of(NUMPY), seed=SEEDS)
def test_programs(steps, seed):
    check(np_xp, steps, seed)


@settings(max_examples=30)
@given(steps=steps_of(STANDARD), seed=SEEDS)
def test_programs_of_the_standard(steps, seed):
    check(array_api_strict, steps, seed)


@pytest.mark.slow
@settings(max_examples=1000)
@given(steps=steps_of(NUMPY), seed=SEEDS)
def test_a_thousand_programs(steps, seed):
    check(np_xp, steps, seed)


@pytest.mark.slow
@settings(max_examples=1000)
@given(steps=steps_of(STANDARD), seed=SEEDS)
def test_a_thousand_programs_of_the_standard(steps, seed):
    check(array_api_strict, steps, seed)
