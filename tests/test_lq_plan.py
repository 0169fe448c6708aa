"""The plan of a linear quadratic problem and its gradient, against the closed form of the stacked linear system."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from dil import Status
from dil.control import DDP, plan

HORIZON, STATES, CONTROLS = 5, 3, 2
DRAW = np.random.default_rng(0)
A, B = np.eye(STATES) + 0.3 * DRAW.standard_normal((STATES, STATES)), DRAW.standard_normal((STATES, CONTROLS))
Q, LAST, R = (x @ x.T + np.eye(len(x)) for x in (DRAW.standard_normal((k, k)) for k in (STATES, STATES, CONTROLS)))
X0, GOAL = DRAW.standard_normal((2, STATES)), DRAW.standard_normal(STATES)
V = DRAW.standard_normal((2, HORIZON, CONTROLS))


def form(x, M):
    return 0.5 * array_namespace(x).sum((x @ M) * x, axis=-1)


def steer(asarray):
    """Return the plan; Q and R are no arguments."""
    q, last, r = map(asarray, (Q, LAST, R))
    return plan(
        lambda x, u, goal: form(x - goal, q) + form(u, r),
        lambda x, u, theta: x @ theta[0].T + u @ theta[1].T,
        HORIZON,
        controls=CONTROLS,
        final=lambda x, goal: form(x - goal, last),
        solver=DDP(),
    )


def system(x0, goal, a, b):
    """Return M and r of M u = r, whose solution is the plan from x0: states x = S x0 + T u, gradient zero."""
    S = np.concatenate([np.linalg.matrix_power(a, t) for t in range(HORIZON + 1)])
    T = np.zeros(((HORIZON + 1) * STATES, HORIZON * CONTROLS), dtype=(a @ b).dtype)
    for t in range(HORIZON):
        for s in range(t + 1):
            block = np.linalg.matrix_power(a, t - s) @ b
            T[(t + 1) * STATES : (t + 2) * STATES, s * CONTROLS : (s + 1) * CONTROLS] = block
    weight = np.kron(np.eye(HORIZON + 1), Q)
    weight[-STATES:, -STATES:] = LAST
    return T.T @ weight @ T + np.kron(np.eye(HORIZON), R), T.T @ weight @ (np.tile(goal, HORIZON + 1) - S @ x0)


def closed_form(x0, v):
    """Return the plan from x0, and the gradient of its product with v: -(M^-1 v) . (dM u - dr) for each number.

    dM and dr are the derivatives by a complex step, which have no error of a difference.
    """
    args, step = (x0, GOAL, A, B), 1e-30
    M, r = system(*args)
    u, w = np.linalg.solve(M, r), np.linalg.solve(M, v.ravel())
    found = [np.zeros(x.shape) for x in args]
    for i, x in enumerate(args):
        for place in np.ndindex(x.shape):
            moved = x.astype(complex)
            moved[place] += 1j * step
            dM, dr = (y.imag / step for y in system(*args[:i], moved, *args[i + 1 :]))
            found[i][place] = -w @ (dM @ u - dr)
    return u.reshape(HORIZON, CONTROLS), found


def test_the_gradient_is_that_of_the_closed_form(engine):
    plans, parts = zip(*(closed_form(x, v) for x, v in zip(X0, V, strict=True)), strict=True)
    expected = [np.stack([part[0] for part in parts]), *(sum(part[i] for part in parts) for i in range(1, 4))]
    layer = steer(engine.asarray)
    value, found = engine.gradients(lambda x, goal, a, b: layer(x, goal, (a, b)), (X0, GOAL, A, B), V)
    for a, b in zip((value, *found), (np.stack(plans), *expected), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-10 * np.max(np.abs(b))


def test_one_sweep_is_enough(plain):
    """The step after it is known to be within the tolerance without a further sweep, and is taken."""
    x, goal, a, b = map(plain.asarray, (X0, GOAL, A, B))
    solution = steer(plain.asarray).solve(x, goal, (a, b))
    assert {Status(int(s)) for s in plain.to_numpy(solution.status)} == {Status.CONVERGED}
    assert (plain.to_numpy(solution.iterations) == 1).all()
    expected = np.stack([closed_form(x, v)[0] for x, v in zip(X0, V, strict=True)])
    found = plain.to_numpy(solution.value)
    assert np.max(np.abs(found - expected)) <= 1e-13 * np.max(np.abs(expected))
