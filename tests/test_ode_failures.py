"""Reports, failures and bad input of the integration of differential equations."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil.ode import odeint, solve
from dil.solvers import Newton
from ode_helpers import close, decay, network, on


def test_a_report_counts():
    found = solve(network, np.ones((2, 3)), [0.0, 0.2, 0.4], (parameters(),), batch_ndim=1, steps=3, method="sdirk2")
    assert int(found.steps) == 6
    assert int(found.rejected) == 0
    assert found.iterations.shape == found.linear.shape == found.status.shape == (2,)
    assert np.all(found.iterations >= 12)
    assert np.all(found.linear == 0)
    assert np.all(np.isinf(found.failed_at))
    krylov = dil.ode.StepNewton(dil.linear.GMRES())
    found = solve(network, np.ones(3), [0.0, 0.2], (parameters(),), solver=krylov)
    assert int(found.linear) > int(found.iterations)


def parameters():
    draw = np.random.default_rng(1)
    return {"in": draw.standard_normal((3, 4)), "time": draw.standard_normal(4), "out": draw.standard_normal((4, 3))}


def spoilt(t, y, bad):
    """NaN after t = 0.35 where `bad` is not zero."""
    xp = array_namespace(y)
    return -y + xp.where((t > 0.35) & (bad != 0), xp.asarray(math.nan, dtype=y.dtype), 0.0)


SPOILT = (
    r"odeint of 'spoilt': 1 of 2 problems \(the first at 1\) ended NON_FINITE: a NaN .* step 4, from t = 0.3 by h = 0.1"
)


@on("numpy", "torch", "torch:func", slow=("jax:jit",))
@pytest.mark.parametrize("options", [{}, {"rtol": 1e-3}], ids=["even", "adaptive"])
def test_a_problem_that_fails_leaves_the_others_alone(engine, options):
    if engine.name != "numpy" and options:
        pytest.skip("NumPy runs this one")
    bad, times = np.asarray([[0.0], [1.0]]), np.linspace(0.0, 0.5, 6)

    def states(start, bad, on_failure="nan"):
        return odeint(spoilt, start, times.tolist(), (bad,), batch_ndim=1, on_failure=on_failure, **options)

    with np.errstate(invalid="ignore"):
        y, (of_start, _) = engine.gradients(states, (np.ones((2, 1)), bad), np.ones((6, 2, 1)))
    good = odeint(decay, np.ones((1, 1)), times, (np.asarray(1.0),), batch_ndim=1, **options)[:, 0, :]
    close(y[:, 0, :], good, 1e-9 if not options else 1e-2)
    assert np.isnan(y[4:, 1]).all()
    assert np.isfinite(y[:4, 1]).all()
    assert np.isfinite(of_start[0]).all()
    assert np.isnan(of_start[1]).all()
    if engine.name in ("numpy", "torch"):
        pattern = SPOILT if not options else "1 of 2 problems .* ended NON_FINITE"
        with np.errstate(invalid="ignore"), pytest.raises(dil.ConvergenceError, match=pattern):
            states(engine.asarray(np.ones((2, 1))), engine.asarray(bad), "raise")


@on("numpy", "torch", slow=("torch:func", "jax:jit"))
def test_the_gradient_of_a_problem_that_fails_is_lost_in_both_modes_and_others_are_not(engine):
    """The solution of y' = y^2 has its pole at t = 1/2 where y(0) = 2."""
    start, times = np.asarray([[0.1], [2.0]]), [0.0, 0.2, 0.4, 1.0]

    def states(y0):
        return odeint(lambda t, y: y * y, y0, times, steps=4, batch_ndim=1, on_failure="nan")

    with np.errstate(all="ignore"):
        y, (reverse,) = engine.gradients(states, (start,), np.ones((4, 2, 1)))
        _, forward = engine.pushforward(states, (engine.asarray(start),), (engine.asarray(np.ones((2, 1))),))
        poisoned = np.isnan(engine.to_numpy(forward))
        assert poisoned[np.isnan(y)].all()
        assert not poisoned[:, 0].any()
    assert np.isnan(y[3, 1]).all()
    assert (np.isnan(reverse[:, 0]) == [False, True]).all()


def test_a_failure_under_jit_is_told_with_its_step():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    run = jax.jit(
        lambda y, bad, t: odeint(spoilt, y, t, (bad,), batch_ndim=1),
    )
    times = jax.numpy.linspace(0.0, 0.5, 6)
    good = jax.numpy.asarray([[0.0], [0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(jax.numpy.ones((2, 1)), good, times).block_until_ready()
    with pytest.warns(dil.ConvergenceWarning, match=SPOILT):
        run(jax.numpy.ones((2, 1)), good.at[1].set(1.0), times).block_until_ready()
    with pytest.raises(Exception, match=r"t does not increase from t\[1\] to t\[2\]"):
        run(jax.numpy.ones((2, 1)), good, times.at[2].set(0.0)).block_until_ready()


Y = np.ones(2)


T = [0.0, 1.0]


BAD = {
    "times that turn": (
        {"t": [0.0, 1.0, 0.5]},
        r"t does not increase from t\[1\] = 1.0 to t\[2\] = 0.5; expected times",
    ),
    "times that turn up": ({"t": [1.0, 0.0, 0.5]}, r"t does not fall from t\[1\] = 0.0 to t\[2\] = 0.5"),
    "a time that is NaN": ({"t": [0.0, math.nan]}, r"t does not increase from t\[0\] = 0.0 to t\[1\] = nan"),
    "one time that is NaN": ({"t": [math.nan]}, r"t does not increase from t\[0\] = nan"),
    "no time": ({"t": []}, r"t has shape \(0,\); expected \(T,\), the times of the states"),
    "times of another dtype": ({"t": np.asarray(T, dtype=np.float32)}, "t has dtype float32, but y0 has float64"),
    "arguments of another dtype": ({"args": (np.ones(2, np.float32),)}, "argument 0 of args has dtype float32, but y0"),
    "a state of no entries": ({"y0": np.ones(0)}, r"y0 is \(0,\) of float64, a state without an entry"),
    "an empty tree": ({"y0": []}, "y0 is an empty tree"),
    "another shape": ({"func": lambda t, y: y[:1]}, r"the function '<lambda>' of the ODE returned \(1,\) of float64; "),
    "another structure": ({"func": lambda t, y: {"a": y}}, r"returned \['a'\] \(2,\) of float64; expected \(2,\)"),
    "no function": ({"func": 3}, "func=3 of type int; expected a callable"),
    "method": ({"method": "rk4"}, "method='rk4' is unknown; expected one of euler, implicit_euler"),
    "gradient": (
        {"gradient": "magic"},
        "gradient='magic' is unknown; expected one of implicit, naive, unroll, adjoint",
    ),
    "layer": ({"layer": "sum"}, "layer='sum' is unknown; expected one of root, argmin"),
    "steps": ({"steps": 0}, "steps=0; expected an integer >= 1"),
    "unroll": ({"unroll": 0.5}, "unroll=0.5; expected an integer >= 1"),
    "rtol": ({"rtol": -1.0}, "rtol=-1.0; expected a number > 0, or None"),
    "first_step": ({"first_step": 0.1}, "first_step= is for steps that adapt"),
    "steps that adapt": ({"rtol": 1e-3, "steps": 2}, "steps=2 is for steps of one size; drop it"),
    "no estimate": ({"method": "implicit_midpoint", "rtol": 1e-3}, "'implicit_midpoint' has no estimate of its error"),
    "naive": ({"gradient": "naive", "linear_solver": dil.linear.CG()}, "gradient='naive' solves by dil.linear.Direct"),
    "policy": ({"on_failure": "shrug"}, "on_failure='shrug' is unknown"),
    "batch": ({"batch_ndim": 2}, r"leaves of y0 have shapes \(2,\); with batch_ndim=2"),
    "explicit": ({"method": "euler", "gradient": "naive"}, "method='euler' has no stage to solve"),
    "jac of equal steps": ({"jac": lambda t, y: Y}, "jac=.*is for steps that adapt"),
    "a constant jac of another shape": ({"jac": np.eye(3), "rtol": 1e-3}, r"jac has shape \(3, 3\); expected \(2, 2\)"),
    "a jac of words": ({"jac": "banded", "rtol": 1e-3}, "jac='banded'; expected numbers"),
    "atol of another shape": ({"atol": np.ones(3)}, r"atol has shape \(3,\); expected \(2,\), like y0, or a number"),
    "atol of another structure": ({"atol": [1.0], "y0": (Y, Y)}, "atol is a tree of another structure than y0"),
    "atol of zero": ({"atol": [1e-3, 0.0]}, "atol has the entry 0; expected numbers > 0"),
    "max_step": ({"max_step": 0.1}, "max_step= is for steps that adapt"),
    "max_step of zero": ({"max_step": 0.0, "rtol": 1e-3}, "max_step=0.0; expected a number > 0"),
    "jac of an explicit method": ({"jac": lambda t, y: Y, "rtol": 1e-3, "method": "tsit5"}, "jac=.*an implicit method"),
    "jac of another shape": (
        {"jac": lambda t, y: Y, "rtol": 1e-3},
        r"jac returned shape \(2,\); expected \(2, 2\), df_i/dy_j",
    ),
    "checkpoints": ({"checkpoints": 0, "rtol": 1e-3}, "checkpoints=0; expected an integer >= 1"),
    "checkpoints of equal steps": ({"checkpoints": 3}, "checkpoints=3 is for steps that adapt"),
    "checkpoints of the adjoint": (
        {"checkpoints": 3, "rtol": 1e-3, "gradient": "adjoint"},
        "checkpoints=3 .* with gradient='implicit'; got 'adjoint'",
    ),
    "checkpoints and events": (
        {"checkpoints": 3, "rtol": 1e-3, "events": lambda t, y: y[0]},
        "checkpoints=3 keeps too few steps to find events on; drop it",
    ),
    "checkpoints of two steps": (
        {"checkpoints": 3, "rtol": 1e-3, "method": "bdf2"},
        "method='bdf2' has two; take sdirk2",
    ),
    "explicit solver": ({"method": "euler", "solver": Newton()}, "method='euler' has no stage to solve"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    given, text = BAD[case]
    given = {"func": lambda t, y, *args: -y, "y0": Y, "t": T, **given}
    with pytest.raises(dil.DilError, match=text):
        odeint(given.pop("func"), given.pop("y0"), given.pop("t"), given.pop("args", ()), **given)


def test_solve_refuses_unknown_options():
    with pytest.raises(dil.OptionError, match=r"solve got unknown options tol; expected those of dil\.ode\.odeint"):
        solve(decay, Y, T, (Y,), tol=1e-3)


def test_a_long_step_fails_with_its_time():
    with pytest.raises(dil.ConvergenceError, match=r"odeint of '<lambda>': .* step 1, from t = 0 by h = 0.5. Shorter"):
        odeint(lambda t, y: y * y, np.asarray(1.0), [0.0, 0.5], on_failure="raise")
    with pytest.raises(
        dil.ConvergenceError, match=r"step \d+, from t = 0\.\d+( by h = \S+)?\. Steps became as short as r"
    ):
        odeint(lambda t, y: y * y, np.asarray(1.0), [0.0, 2.0], rtol=0.5, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match=r"MAX_ITER.* or max_steps= was reached: raise it"):
        odeint(decay, np.asarray(1.0), [0.0, 2.0], (np.asarray(1.0),), rtol=1e-6, max_steps=3, on_failure="raise")


def test_times_in_a_list_keep_their_derivative():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    end = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = odeint(decay, torch.tensor(2.0, dtype=torch.float64), [0.0, end], (torch.tensor(3.0, dtype=torch.float64),))
    (slope,) = torch.autograd.grad(y[-1], end)
    close(float(slope), -3.0 * 2.0 / 2.5**2)


def test_a_batch_of_no_problems():
    for options in ({}, {"rtol": 1e-3}):
        y = odeint(lambda t, y: -y, np.zeros((0, 3)), [0.0, 1.0], batch_ndim=1, **options)
        assert y.shape == (2, 0, 3)


def test_importing_dil_does_not_import_ode():
    import subprocess
    import sys

    code = "import dil, sys; print('dil.ode' in sys.modules, dil.ode.odeint.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "odeint"]


@pytest.mark.parametrize("method", ["tsit5", "radau", "kvaerno5"])
def test_a_function_that_is_not_finite_is_told_of_with_the_time(method):
    """From the start, and from a time on."""
    options = {"rtol": 1e-4, "method": method, "on_failure": "raise"}
    with pytest.raises(dil.ConvergenceError, match=r"NON_FINITE.*in step 1, from t = 0. func was not finite there"):
        odeint(lambda t, y: math.nan * y, np.ones(1), [0.0, 1.0], **options)
    found = solve(spoilt, np.ones(1), [0.0, 1.0], (np.asarray(1.0),), rtol=1e-4, method=method)
    assert dil.Status(int(found.status)) is dil.Status.NON_FINITE
    close(found.failed_at, 0.35, 1e-9)
