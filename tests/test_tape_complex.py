"""The tape's rules of complex arrays and of Fourier transforms against finite differences, and their conventions."""

from __future__ import annotations

import array_api_compat
import array_api_compat.numpy as np_xp
import numpy as np
import pytest

import dil
from dil_backends._tape import is_box, namespace, vjp
from dil_backends._tape import primitive as _tape
from dil_backends._tape import rules as _tape_rules
from tape_complex_cases import COMPLEX, NUMPY_TRANSFORMS, TRANSFORMS, as_complex, as_mixed
from tape_helpers import named
from test_tape_rules import CASES, check

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(COMPLEX + as_complex(CASES)))
def test_rule_of_complex_arrays(case, order, xp):
    check(case, xp, order)


@pytest.mark.parametrize("case", named(as_mixed(CASES)))
def test_rule_of_real_and_complex_arrays(case):
    for order in [1, 2]:
        check(case, np_xp, order)


@pytest.mark.parametrize("case", named(as_mixed(CASES)))
def test_rule_of_real_and_complex_arrays_of_the_standard(case, xp):
    check(case, xp, 1)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(TRANSFORMS))
def test_fourier_transform(case, order, xp):
    check(case, xp, order)


@pytest.mark.parametrize("case", named(NUMPY_TRANSFORMS))
def test_fourier_transform_beyond_the_standard(case):
    for order in [1, 2]:
        check(case, np_xp, order)


def cases_of(name):
    return [c for c in COMPLEX + TRANSFORMS + as_complex(CASES) if c.name.partition("#")[0] == name]


def fails(name):
    """Whether a case of the rule fails."""
    for case in cases_of(name):
        try:
            check(case, np_xp, 1)
        except AssertionError:
            return True
    return False


EQUIVALENT = {"astype", "real_part"}
"""Rules from real arrays to complex ones, or back, that read the real part alone."""


@pytest.mark.parametrize("name", sorted(name for name in set(_tape_rules.RULES) - EQUIVALENT if cases_of(name)))
def test_a_dropped_conjugate_is_seen(name, monkeypatch):
    """The cases see a formula that is conjugated: its result, its cotangent, or both, as in the convention of JAX."""
    pull = _tape.Primitive.pull

    def conjugated(x):
        return tuple(map(conjugated, x)) if isinstance(x, tuple) else None if x is None else np_xp.conj(x)

    def wrong(before, after):
        def pull_wrongly(self, node, c, wanted):
            if self.name != name:
                return pull(self, node, c, wanted)
            found = pull(self, node, conjugated(c) if before else c, wanted)
            return [conjugated(g) if after else g for g in found]

        return pull_wrongly

    seen = []
    for places in [(False, True), (True, False)]:
        monkeypatch.setattr(_tape.Primitive, "pull", wrong(*places))
        seen.append(fails(name))
    assert any(seen)
    if _tape_rules.RULES[name].holomorphic:
        monkeypatch.setattr(_tape.Primitive, "pull", wrong(True, True))
        assert fails(name)


def gradient(f, z):
    """The gradient of a real function on the tape."""
    (y,), pull = vjp(lambda z: (f(z),), z)
    return pull((array_api_compat.array_namespace(z).ones_like(y),))[0]


def test_convention(xp):
    """The gradient of a real function is d/dRe + i d/dIm; the pullback of a holomorphic f is c -> conj(f') c."""
    z = xp.asarray([1.0 + 2.0j, -0.5j])

    def score(z):
        tape = array_api_compat.array_namespace(z)
        return tape.sum(tape.real(z) ** 2 + 3.0 * tape.imag(z))

    assert_equal(gradient(score, z), [2.0 + 3.0j, 3.0j])
    c = xp.asarray([1.0j, 2.0 + 1.0j])
    (g,) = vjp(lambda z: (z**2,), z)[1]((c,))
    assert_equal(g, xp.conj(2.0 * z) * c)


def assert_equal(x, y):
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-15)


def test_a_cotangent_fits_its_array(xp):
    """A real array gets the real part, and a complex one a complex cotangent, in the precision of the array."""
    x, z = xp.asarray([2.0], dtype=xp.float32), xp.asarray([1.0 + 3.0j])
    y, pull = vjp(lambda x, z: (x * z, array_api_compat.array_namespace(z).abs(z) ** 2, x), x, z)
    assert [part.dtype for part in y] == [xp.complex128, xp.float64, xp.float32]
    gx, gz = pull((xp.asarray([1.0j]), xp.asarray([1.0]), xp.asarray([5.0 + 7.0j])))
    assert (gx.dtype, gz.dtype) == (xp.float32, xp.complex128)
    assert_equal(gx, [3.0 + 5.0])
    assert_equal(gz, [2.0j + 2.0 * (1.0 + 3.0j)])


def test_zero_has_no_angle_but_a_modulus(xp):
    """`abs` has slope 0 at the 0 of a complex array, so that it does not spoil the other entries."""
    z = xp.asarray([0.0j, 3.0 - 4.0j])
    assert_equal(gradient(lambda z: array_api_compat.array_namespace(z).sum(abs(z)), z), [0.0, 0.6 - 0.8j])
    assert_equal(gradient(lambda z: np.sum(np.real(np.sign(z))), np.zeros(1) * 1j), [0.0])


def test_forward_mode(xp):
    """Forward mode by two pullbacks, J t of a function of complex numbers."""
    z, t = xp.asarray([1.0 + 2.0j, -0.5j]), xp.asarray([0.5 - 1.0j, 2.0])

    def push(f):
        (y,), pull = vjp(f, z)
        return vjp(lambda w: pull((w,)), array_api_compat.array_namespace(y).zeros_like(y))[1]((t,))[0]

    def square(z):
        return (z**2,)

    def modulus(z):
        return (abs(z) ** 2,)

    assert_equal(push(square), 2.0 * z * t)
    assert_equal(push(modulus), 2.0 * xp.real(xp.conj(z) * t))


def test_numpy_asks_for_complex_numbers():
    def f(x, z):
        assert not np.iscomplexobj(x)
        assert np.iscomplexobj(z)
        assert np.isrealobj(x)
        np.testing.assert_array_equal(np.iscomplex(z), [True, False])
        np.testing.assert_array_equal(np.isreal(z), [False, True])
        return (x,)

    vjp(f, np.ones(2), np.asarray([1j, 2.0]))


def test_scores_are_real():
    with pytest.raises(dil.DTypeError, match=r"complex128.*a score is real.*real part.*modulus"):
        dil.grad(lambda u: np.sum(u * 1j))(np.ones(2))


def test_real_functions_of_real_arrays_record_nothing():
    """`real` and `conj` of a real array are the array itself, and cost nothing."""

    def f(x):
        tape = array_api_compat.array_namespace(x)
        assert tape.real(x) is x
        assert tape.conj(x) is x
        assert not any(map(is_box, [tape.sign(x), tape.angle(x), tape.imag(x)]))
        return (x,)

    vjp(f, np.ones(2))
    x = np.ones(2)
    assert namespace(x).plain.conj(x) is x
