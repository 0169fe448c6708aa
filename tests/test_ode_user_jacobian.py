"""The user's `jac`: complex ones, and wrong ones, which are told where a solve fails."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil import Status
from dil.ode import odeint, solve, solve_ivp
from ode_helpers import close, on

MATRIX = np.asarray([[3.0j, 1.0], [0.0, -2.0 + 1.0j]])
START = np.asarray([1.0 + 0j, 2.0])
EVERYWHERE = ("numpy", "torch:backward", "array_api_strict", "jax:jit")


def turning(t, y):
    xp = array_namespace(y)
    a, b = y[..., 0], y[..., 1]
    return xp.stack([3j * a + b, (-2 + 1j) * b], axis=-1)


def van_der_pol(t, y, mu):
    return array_namespace(y).stack([y[1], mu * ((1 - y[0] * y[0]) * y[1]) - y[0]])


def jacobian(t, y, mu):
    xp, one = array_namespace(y), 1.0 + 0.0 * y[0]
    rows = (0.0 * one, one), (-2.0 * mu * y[0] * y[1] - 1.0, mu * (1.0 - y[0] * y[0]))
    return xp.stack([xp.stack(row) for row in rows])


WRONG = {
    "sign": lambda *at: -jacobian(*at),
    "transpose": lambda *at: jacobian(*at).T,
    "zero": lambda *at: 0.0 * jacobian(*at),
    "half": lambda *at: 0.5 * jacobian(*at),
}
FIELD = {"func": van_der_pol, "y0": np.asarray([2.0, 0.0]), "t": [0.0, 200.0], "args": (np.asarray(100.0),)}


@on("numpy", "torch:backward", slow=("jax:jit",))
@pytest.mark.parametrize("method", ["kvaerno5", "radau"])
def test_a_complex_jacobian(engine, method):
    """A function, an array and numbers, of the complex state and of its parts, and of a batch."""
    y0, A = engine.asarray(START), engine.asarray(MATRIX)
    options = {"method": method, "rtol": 1e-6}
    plain = solve(turning, y0, [0.0, 1.0], **options)
    parts = np.kron(MATRIX.real, np.eye(2)) + np.kron(MATRIX.imag, [[0.0, -1.0], [1.0, 0.0]])
    for jac in (A, MATRIX.tolist(), lambda t, y: A, parts):
        found = solve(turning, y0, [0.0, 1.0], jac=jac, **options)
        close(engine.to_numpy(found.value), engine.to_numpy(plain.value), 1e-12)
        assert int(found.iterations) == int(plain.iterations)
    batch = engine.asarray(np.stack([START, 2.0 * START]))
    found = solve(turning, batch, [0.0, 1.0], jac=MATRIX, batch_ndim=1, **options)
    close(engine.to_numpy(found.value)[:, 0], engine.to_numpy(plain.value), 1e-5)


@on(*EVERYWHERE)
def test_constant_numbers_beside_a_captured_array(engine):
    rates = engine.asarray(np.asarray([1.0, 1e3]))
    field, y0 = lambda t, y: -rates * y, engine.asarray(np.ones(2))
    ours, plain = (
        solve(field, y0, [0.0, 1.0], rtol=1e-6, atol=1e-6, jac=jac) for jac in ([[-1.0, 0.0], [0.0, -1e3]], None)
    )
    close(engine.to_numpy(ours.value), engine.to_numpy(plain.value), 1e-12)
    assert int(ours.iterations) == int(plain.iterations)


def test_a_real_matrix_of_a_complex_state():
    options = {"method": "radau", "rtol": 1e-6}
    ours, plain = (solve(lambda t, y: -y, START, [0.0, 1.0], jac=jac, **options) for jac in (-np.eye(2), None))
    close(ours.value, plain.value, 1e-12)
    assert int(ours.iterations) == int(plain.iterations)


def test_complex_jacobians_of_scipy():
    found = solve_ivp(turning, [0.0, 1.0], START, "Radau", jac=MATRIX, rtol=1e-8, atol=1e-8)
    end = [2.0 * (np.exp(-2 + 1j) - np.exp(3j)) / (-2 - 2j) + np.exp(3j), 2.0 * np.exp(-2 + 1j)]
    close(found.y[:, -1], end, 1e-7)


BAD = {
    "constant": ({"jac": 1j * np.eye(2)}, "jac has dtype complex128, but the state has float64; give a real one"),
    "function": ({"jac": lambda t, y: 1j * np.eye(2)}, "jac returned dtype complex128, but the state has float64"),
    "shape": (
        {"jac": np.eye(3), "y0": START},
        r"jac has shape \(3, 3\); expected \(4, 4\) of the .*, or \(2, 2\)",
    ),
    "tolerance": ({"atol": [1.0, 1j]}, "atol=.* is complex; expected real numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_complex_numbers_without_a_meaning_are_refused(case):
    given, text = BAD[case]
    given = {"y0": np.ones(2), "rtol": 1e-3, **given}
    with pytest.raises(dil.DilError, match=text):
        solve(lambda t, y: -y, given.pop("y0"), [0.0, 1.0], **given)


@pytest.mark.parametrize("method", ["kvaerno5", "radau", "sdirk3", "auto"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_jacobian_is_told(method, wrong):
    options = {"method": method, "rtol": 1e-6, "max_steps": 350}
    found = solve(**FIELD, jac=WRONG[wrong], **options)
    assert Status(int(found.status)) is Status.WRONG_DERIVATIVE
    text = r"WRONG_DERIVATIVE: .*step \d+, from t = \S+( by h = \S+)?\. jac= is not the derivative of func: its entry"
    with pytest.raises(dil.ConvergenceError, match=text):
        odeint(**FIELD, jac=WRONG[wrong], on_failure="raise", **options)


@on(*EVERYWHERE)
def test_it_is_told_on_every_engine(engine):
    """Also backwards in time."""
    y0, mu = engine.asarray(FIELD["y0"]), engine.asarray(FIELD["args"][0])
    back = lambda t, y, mu: -van_der_pol(-t, y, mu)  # noqa: E731
    for func, end, sign in ((van_der_pol, 200.0, 1.0), (back, -200.0, -1.0)):
        for factor, status in ((1.0, Status.MAX_ITER), (-1.0, Status.WRONG_DERIVATIVE)):
            jac = lambda t, y, mu, c=factor * sign: c * jacobian(t, y, mu)  # noqa: E731
            found = solve(func, y0, [0.0, end], (mu,), method="radau", rtol=1e-6, max_steps=60, jac=jac)
            assert Status(int(found.status)) is status


@on("numpy", "torch:backward", "jax:jit")
def test_each_problem_of_a_batch_is_told_alone(engine):
    """The first jac is right. With own steps it has time for the whole batch."""
    xp = array_namespace(engine.asarray(START.real))
    rates = engine.asarray(np.asarray([1.0, 1e4]))

    def field(t, y):
        return -rates[:, None] * (y - xp.cos(t)[..., None])

    def jac(t, y):
        return xp.stack([-rates[:1, None], rates[1:, None]])

    options = {"method": "sdirk3", "rtol": 1e-6, "max_steps": 100, "batch_ndim": 1}
    for own in (True, False):
        found = solve(field, engine.asarray(np.ones((2, 1))), [0.0, 1.0], jac=jac, own_steps=own, **options)
        names = [Status(int(x)).name for x in engine.to_numpy(found.status)]
        assert names == ["CONVERGED" if own else "MAX_ITER", "WRONG_DERIVATIVE"]


@pytest.mark.parametrize("share", [0.97, 1.03])
def test_a_rough_jacobian_is_no_reason(share):
    found = solve(**FIELD, method="sdirk2", rtol=1e-6, jac=lambda *at: share * jacobian(*at))
    assert Status(int(found.status)) is Status.MAX_ITER
    with pytest.raises(dil.ConvergenceError, match=r"MAX_ITER: .*max_steps= was reached: raise it$"):
        odeint(**FIELD, method="radau", rtol=1e-6, jac=jacobian, max_steps=50, on_failure="raise")


def test_scipy_names_it():
    field = lambda t, y: van_der_pol(t, y, 100.0)  # noqa: E731
    jac = lambda t, y: -jacobian(t, y, 100.0)  # noqa: E731
    found = solve_ivp(field, [0.0, 200.0], [2.0, 0.0], "Radau", jac=jac, max_steps=300, on_failure="ignore")
    assert found.message.startswith("WRONG_DERIVATIVE at t = ")
    assert "jac is not the derivative of fun" in found.message
