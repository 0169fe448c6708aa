"""The lengths of Newton's steps: few evaluations from a far start, and an end where F is only rounding."""

import pytest

import dil

torch = pytest.importorskip("torch", reason="torch is not installed")


def solved(fn, start):
    """Return the solution of fn(u) = 0, and how often fn was called."""
    calls = [0]

    def run(u, t):
        calls[0] += 1
        return fn(u) + 0 * t

    u = torch.as_tensor([start], dtype=torch.float64)
    layer = dil.root(run, dil.solvers.Newton(), init=u, on_failure="ignore")
    return layer.solve(torch.zeros_like(u)), calls[0]


def test_a_root_whose_equation_is_noise_ends_in_few_evaluations():
    """F is rounded to 1e-6, which its slope does not show: near the root no step lowers it, and none is short."""

    def noisy(u):
        exact = (u - 0.3) ** 3 + 1e-3 * (u - 0.3)
        return exact + (torch.round(exact * 1e6) * 1e-6 - exact).detach() + 4e-7

    solution, calls = solved(noisy, 2.0)
    assert dil.Status(int(solution.status)) not in (dil.Status.MAX_ITER, dil.Status.CONVERGED)
    assert int(solution.iterations) < 40
    assert calls < 200


@pytest.mark.parametrize("start", [3.0, 30.0, 300.0])
def test_arctan_is_solved_from_far_away(start):
    """Full steps from beyond 1.39 diverge."""
    solution, calls = solved(torch.atan, start)
    assert int(solution.status) == 0
    assert abs(float(solution.value)) < 1e-12
    assert calls < 75


def test_a_trial_without_a_value_is_cut():
    """The full step goes where the logarithm is NaN."""
    solution, calls = solved(torch.log, 1e4)
    assert int(solution.status) == 0
    assert float(solution.value) == pytest.approx(1.0, rel=1e-12)
    assert calls < 70  # halving takes 71
