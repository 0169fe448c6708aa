"""Each function of `dil.backend(...).xp` takes boxes as the function of `array_namespace(u)` does, or says why not.

The list is that of the namespace itself, so that a function that is missing fails by itself.
"""

from __future__ import annotations

import contextlib
import io
from types import ModuleType

import array_api_compat.numpy as compat
import array_api_strict
import numpy as np
import pytest

import dil
from dil_backends._tape import is_box, user_namespace, vjp

pytestmark = pytest.mark.filterwarnings("ignore")  # functions that NumPy gives up warn

V = np.asarray([0.3, 0.7, 1.4])
M = np.asarray([[2.0, 0.3, 0.1], [0.3, 1.5, 0.4], [0.1, 0.4, 3.0]])
X = np.asarray(0.6)
CUBE = np.arange(8.0).reshape(2, 2, 2) + np.eye(2)
MASK = np.asarray([True, False, True])
PLACES = np.asarray([2, 0, 1])

CALLS = (
    *((V,), (M,), (X,), (CUBE,), ([V, V],), ([[V, V]],), (V, V), (M, V), (V, M), (M, M), (X, X), (CUBE, CUBE)),
    *((MASK, V), (PLACES, V), (MASK, V, V), (V, PLACES), (PLACES, [V, V, V]), ([MASK], [V]), (MASK[None], M)),
    *((V, V, V), (V, 0.4, 1.0), (X, 1.0, 3), (V, 0), (M, 0), (0, V), (M, 0, 1), (V, 2), (M, 2), (M[None], 0), (M, -1)),
    *((V, (3, 1)), (M, (1, 0)), (V, (2, 3)), ((3,), X), (V, np.float32), (V, [1], V[:1]), (V, [0, 1])),
    *((V, [1.0]), (V, V, 1)),
    *(("i->", V), (CUBE[0], CUBE), (V, [3], None), (MASK, [0], V), (M, [0], np.ones((1, 3)), 0), (lambda x: x, 0, M)),
    *((lambda x, axis: x, M, [0]), (V, [V > 0.5], [lambda x: x, 0.0]), (np.sum, 0, M), (CUBE, (1, 2)), (V, M)),
    *((V, np.float64), (np.float64, V), ((2, 2), X), (1j * V,), (MASK, MASK), (M, [PLACES], V, 1)),
    *((np.eye(6).reshape(2, 3, 6) + 0.1,), (M.reshape(3, 3, 1), 3), (MASK,)),
)  # fmt: skip
"""What the functions are called with. A call that a function does not take of plain arrays is left out."""

OF_STATE = {
    *("save", "savetxt", "savez", "savez_compressed", "load", "loadtxt", "fromfile", "genfromtxt", "fromregex", "info"),
    *("show_config", "show_runtime", "get_include", "test", "set_printoptions", "seterr", "seterrcall", "setbufsize"),
    *(
        "put_along_axis",
        "linalg.test",
        "fft.test",
        "printoptions",
        "set_array_api_strict_flags",
        "reset_array_api_strict_flags",
    ),
}
"""Functions that read or write files, write into arrays, or change NumPy itself, and are not called."""

OF_NO_FLOATS = {
    *("binary_repr", "bitwise_and", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor"),
    *("broadcast_shapes", "datetime_as_string", "datetime_data", "empty", "eye", "fromstring", "frompyfunc", "gcd"),
    *("get_printoptions", "getbufsize", "geterr", "geterrcall", "identity", "iinfo", "indices", "isdtype", "isnat"),
    *("issubdtype", "lcm", "left_shift", "mask_indices", "nested_iters", "ones", "packbits", "promote_types"),
    *("ravel_multi_index", "right_shift", "typename", "unpackbits", "unravel_index", "zeros", "fft.fftfreq"),
    *(
        "fft.rfftfreq",
        "get_array_api_strict_flags",
        "fromfunction",
        "bitwise_invert",
        "arange",
        "bitwise_count",
        "bitwise_not",
        "invert",
        "full#strict",
        "isin#strict",
    ),
    *("bartlett", "base_repr", "blackman"),
    *("UniqueAllResult", "UniqueCountsResult", "UniqueInverseResult"),
}
"""Functions that none of the calls fits, since they take no array of floating numbers."""

OF_ONE_ARRAY = {"linalg.norm", "mintypecode", "polyint", "roll"}
"""Functions whose further arguments are options."""

WITHOUT_QUESTION = {"frombuffer", "is_busday", "busday_count", "busday_offset", "printoptions"}
"""NumPy's own functions that ask no box and compute with bytes and dates."""


def functions(module, within=""):
    for name in sorted(n for n in {*module.__all__, "linalg", "fft"} if not n.startswith("_")):
        found = getattr(module, name, None)
        if isinstance(found, ModuleType) and name in ("linalg", "fft"):
            yield from functions(found, f"{name}.")
        elif callable(found) and not isinstance(found, type) and within + name not in OF_STATE:
            yield within + name


RAW = {"numpy": compat, "strict": array_api_strict}
NAMES = [(library, name) for library, raw in RAW.items() for name in functions(raw)]


def find(xp, name):
    for part in name.split("."):
        xp = getattr(xp, part)
    return xp


def called(function, args):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def arguments(raw, args, s=None):
    """The arguments as arrays of a namespace; floating ones times s."""
    if isinstance(args, list | tuple):
        return type(args)(arguments(raw, x, s) for x in args)
    if args is np.float32:
        return raw.float32
    if not isinstance(args, np.ndarray):
        return args
    x = raw.asarray(args, copy=True)
    x = x[()] if raw is compat else x  # a number of NumPy is what is in a box
    return x if s is None or args.dtype.kind != "f" else x * s


def arrays(y):
    if isinstance(y, tuple | list):
        return [x for part in y for x in arrays(part)]
    return [y] if hasattr(y, "dtype") and hasattr(y, "shape") and not isinstance(y, type) else []


def outcome(raw, choose, name, args):
    """The values and the derivative of a function by the size of its arguments, or the error."""

    def f(s):
        y = arrays(called(find(choose(s), name), arguments(raw, args, s)))
        return tuple(x for x in y if is_box(x) or str(x.dtype) == "object") or (s * 0.0,)

    try:
        values, pull = vjp(f, raw.asarray(1.0))
        cotangents = tuple(raw.ones_like(y) for y in values)
        return [np.asarray(x) for x in (*values, *pull(cotangents))]
    except Exception as error:
        return error


def fits(raw, name, args):
    """Whether a function takes such plain arguments, and writes into none of them."""
    given = arguments(raw, args)
    try:
        called(find(raw, name), given)
    except Exception:
        return False
    before = arrays(arguments(raw, args))
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(arrays(given), before, strict=True))


@pytest.mark.parametrize(("library", "name"), NAMES, ids=["-".join(pair) for pair in NAMES])
def test_a_function_takes_boxes_as_that_of_the_array_does(library, name):
    raw = RAW[library]
    ours = user_namespace(raw)
    with array_api_strict.ArrayAPIStrictFlags(data_dependent_shapes=True):
        assert_alike(library, name, raw, ours)


def assert_alike(library, name, raw, ours):
    calls = [args for args in CALLS if fits(raw, name, args)]
    if find(ours, name) is find(raw, name):  # NumPy's own function makes object arrays of lists before it asks a box
        calls = [args for args in calls if not any(isinstance(x, list) or callable(x) for x in args)] or calls
    if name in OF_ONE_ARRAY:
        calls = [args for args in calls if not any(isinstance(x, np.ndarray) for x in args[1:])]
    assert calls or {name, f"{name}#{library}"} & OF_NO_FLOATS
    for args in calls:
        found = outcome(raw, lambda s: ours, name, args)
        expected = outcome(raw, lambda s: s.__array_namespace__(), name, args)
        if isinstance(expected, list):
            assert isinstance(found, list), (args, found)
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-12, atol=0)
        elif isinstance(expected, dil.DilError) and isinstance(found, Exception) and name not in WITHOUT_QUESTION:
            assert isinstance(found, dil.DilError) or "being differentiated" in str(found), (args, found)


def test_the_list_is_that_of_the_namespace():
    assert len([name for library, name in NAMES if library == "numpy"]) > 400
    assert {("numpy", "clip"), ("numpy", "linalg.solve"), ("strict", "fft.fft"), ("strict", "unique_all")} <= set(NAMES)


@pytest.mark.parametrize("library", RAW)
def test_plain_arrays_get_what_the_namespace_gives(library):
    raw = RAW[library]
    xp = user_namespace(raw)
    x = raw.asarray(M)
    assert type(xp.clip(x, 0.2, 1.0)) is type(x)
    np.testing.assert_array_equal(np.asarray(xp.linalg.inv(x)), np.asarray(raw.linalg.inv(x)))
    assert xp.float32 is raw.float32
    assert xp.pi == raw.pi
    assert xp.__name__ == raw.__name__
    assert set(dir(xp)) == set(dir(raw))
    with pytest.raises(AttributeError):
        _ = xp.no_such_function


def test_numpys_own_functions_stay():
    xp = dil.backend("numpy").xp
    assert xp.exp is np.exp
    assert xp.einsum is np.einsum
    assert xp.maximum.reduce([1.0, 2.0]) == 2.0
    assert xp.linalg.norm is np.linalg.norm
    assert xp.clip.__name__ == "clip"


def test_keywords_of_numpy_and_object_arrays():
    xp = dil.backend("numpy").xp
    np.testing.assert_array_equal(dil.grad(lambda u: xp.sum(u * u, where=MASK))(V), 2 * V * MASK)
    assert xp.sum(V, where=MASK) == 1.7
    np.testing.assert_array_equal(dil.grad(lambda u: xp.sum(xp.clip(np.array([u[0], u[2]]), 0, 1)))(V), [1, 0, 0])
    np.testing.assert_array_equal(
        dil.grad(lambda u: xp.sum(xp.linalg.solve(M, u)))(V), np.linalg.solve(M.T, np.ones(3))
    )
    np.testing.assert_array_equal(dil.grad(lambda u: xp.sum(xp.asarray(u, dtype=xp.float32)))(V), np.ones(3))


def test_an_array_that_was_kept_is_refused():
    kept = []
    dil.grad(lambda u: [kept.append(u), u[0]][1])(V)
    with pytest.raises(dil.CapturedError, match="has ended"):
        dil.backend("numpy").xp.clip(kept[0], 0.0, 1.0)


def test_a_layer_whose_score_is_written_with_the_handle():
    xp = dil.backend("numpy").xp
    layer = dil.argmin(
        lambda u, t: xp.sum(xp.linalg.solve(M, u - xp.clip(t, -1.0, 1.0)) ** 2), dil.solvers.Newton(), init=lambda t: t
    )
    np.testing.assert_allclose(dil.grad(lambda t: np.sum(layer(t)))(V), [1.0, 1.0, 0.0], atol=1e-12)


def test_array_api_compat_itself_says_what_to_write():
    for f in (lambda u: compat.clip(u, 0.0, 1.0), lambda u: compat.linalg.solve(M, u)):
        with pytest.raises(dil.UnsupportedFunctionError, match=r"array_api_compat.*array_namespace\(u\).*\.xp"):
            dil.grad(lambda u: np.sum(f(u)))(V)  # noqa: B023
