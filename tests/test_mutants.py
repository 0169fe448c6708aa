"""Five wrong theorems, each of which the laws must kill: half gradient, dropped cotangent, wrong sign, missing damping,
stale Hessian."""

from __future__ import annotations

import numpy as np
import pytest

import dil
from dil._layers import layer as _layer
from dil._layers.theorem import ImplicitRule
from dil._problem.jacobian import jacobian
from problems import Case

CASE = Case("quartic", (3,), 4)


class HalfGradient(ImplicitRule):
    def pullback(self, args, y, cotangents, wrt):
        return tuple(0.5 * g for g in super().pullback(args, y, cotangents, wrt))


class DroppedCotangent(ImplicitRule):
    def pullback(self, args, y, cotangents, wrt):
        return super().pullback(args, y, tuple(0.0 * ct + 1.0 for ct in cotangents), wrt)


class WrongSign(ImplicitRule):
    def pullback(self, args, y, cotangents, wrt):
        return tuple(-g for g in super().pullback(args, y, cotangents, wrt))


class StaleHessian(ImplicitRule):
    """The Hessian of where the solver started, not of where it ended."""

    def system(self, F, Fu, A, params, y, *places):
        stale = (0.0 * params[0], *params[1:])
        J = jacobian(F, *stale)
        return super().system(F, Fu, J.T if A.transposed else J, stale, y, *places)


class MissingDamping(dil.linear.CG):
    def __call__(self, matvec, b, /, *, loop=None):
        return dil.linear.CG()(matvec, b, loop=loop)


def gradients_are_right():
    return dil.check_gradients(CASE.function(on_failure="ignore"), *CASE.args()).ok


def test_the_theorem_passes():
    assert gradients_are_right()


@pytest.mark.parametrize("mutant", [HalfGradient, DroppedCotangent, WrongSign, StaleHessian])
def test_mutant_is_killed(monkeypatch, mutant):
    monkeypatch.setattr(_layer, "ImplicitRule", mutant)
    assert not gradients_are_right()


def damping_holds(kind):
    """With damping eps the pullback of 1/2 u^T A u - b^T u is (A + eps I)^-1 v."""
    A, v, damping = np.diag([1.0, 2.0, 7.0]), np.asarray([1.0, -1.0, 2.0]), 0.3

    def score(u, b):
        return 0.5 * u @ (A @ u) - b @ u

    layer = dil.argmin(score, lambda f, u0, b: np.linalg.solve(A, b), linear_solver=kind(damping=damping))
    _, pull = dil.vjp(layer, np.ones(3))
    return np.allclose(pull(v)[0], np.linalg.solve(A + damping * np.eye(3), v), rtol=1e-9)


def test_missing_damping_is_killed():
    assert damping_holds(dil.linear.CG)
    assert not damping_holds(MissingDamping)
