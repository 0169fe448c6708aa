"""A typed client that uses every public name, as a user's checked code would.

`mypy --strict tests/client.py` and `pyright tests/client.py` must pass. tests/test_public_names.py runs it, and sees
that no public name is missing here.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

import dil
import dil.kepler
import dil.testing
from dil.linear import preconditioners

if TYPE_CHECKING:
    import jax
    import optax
    import optimistix
    import torch

    import dil_backends.nn
    import dil_backends.optax
    import dil_backends.optim
    import dil_backends.optimistix


def score(u: Any, x: Any) -> Any:
    """Return a strictly convex score of two unknowns."""
    return ((u - x) ** 2).sum() + 0.25 * (u**4).sum()


def half(u: Any, x: Any) -> Any:
    """Return a step whose fixed point is x."""
    return 0.5 * (u + x)


def layers(x: Any) -> dict[str, dil.Layer]:
    """Return a layer of each kind and forward solver."""
    solvers: list[Any] = [
        dil.solvers.Newton(rtol=1e-10, linear_solver=dil.linear.CG()),
        dil.solvers.LBFGS(memory=5),
        dil.solvers.GradientDescent(max_iter=5_000),
        dil.solvers.SciPy(method="BFGS"),
        dil.solvers.Sequence(dil.solvers.RandomShooting(samples=8), dil.solvers.Newton()),
        dil.solvers.Sequence(dil.solvers.CrossEntropy(samples=20, iterations=5), dil.solvers.Newton()),
    ]
    made = {f"argmin {i}": dil.argmin(score, solver, init=np.zeros_like(x)) for i, solver in enumerate(solvers)}
    made["fixed point"] = dil.fixed_point(half, dil.solvers.FixedPoint(), init=np.zeros_like)
    made["anderson"] = dil.fixed_point(half, dil.solvers.Anderson(memory=3), init=np.zeros_like)
    made["root"] = dil.root(lambda u, x: u - x, dil.solvers.SciPyRoot(), init=np.zeros_like)
    return made


def linear_solvers() -> list[dil.linear.LinearSolver]:
    """Return every linear solver, and CG with every preconditioner."""
    mine: list[preconditioners.Preconditioner] = [
        preconditioners.Jacobi(),
        preconditioners.Nystrom(rank=1),
        dil.linear.Jacobi(diagonal=np.ones(2)),
        dil.linear.Nystrom(rank=1, adaptive=True),
        preconditioners.LBFGSPairs(),
        dil.linear.LBFGSPairs(),
        preconditioners.SparseILU(drop_tol=1e-2),
        dil.linear.SparseILU("tridiagonal"),
    ]
    return [
        dil.linear.Auto(),
        dil.linear.BiCGSTAB(),
        dil.linear.IDR(s=8),
        dil.linear.Direct(),
        dil.linear.GMRES(restart=5, preconditioner=dil.linear.SparseILU()),
        dil.linear.MINRES(),
        dil.linear.NormalCG(),
        dil.linear.CG(one_reduction=True),
        *(dil.linear.CG(preconditioner=p) for p in mine),
        dil.linear.Neumann(terms=3, step=0.2),
        dil.linear.OneStep(step=0.2),
        dil.linear.SparseDirect("tridiagonal"),
        dil.linear.SparseDirect(pattern=np.ones((2, 2), dtype=bool), damping=1e-3),
    ]


def derivatives(x: Any) -> dict[str, Any]:
    """Return derivatives by every transform."""
    layer = dil.argmin(score, dil.solvers.Newton(), init=np.zeros_like(x))
    minimum: dil.Value = dil.value(score, dil.solvers.Newton(), init=np.zeros_like(x))
    y, pull = dil.vjp(layer, x)
    given = dil.Derivatives(gradient=lambda u, x: 2 * (u - x) + u**3)
    on_host = dil.Jacobian(lambda u, x: np.diag(3 * u**2 + 1), mixed=lambda u, w, x: (-w,))
    of_code = dil.root(lambda u, x: u**3 + u - x, dil.solvers.Newton(), init=np.ones_like(x), derivatives=on_host)
    by_hand = dil.argmin(score, dil.solvers.Newton(), init=np.zeros_like(x), derivatives=given)
    return {
        "grad": dil.grad(lambda x: minimum(x))(x),
        "value and grad": dil.value_and_grad(lambda x: (layer(x) ** 2).sum())(x),
        "jacobian": dil.jacobian(layer)(x),
        "vjp": pull(np.ones_like(y)),
        "jvp": dil.jvp(layer, (x,), (np.ones_like(x),)),
        "constant": dil.grad(lambda x: (x * dil.constant(layer(x))).sum())(x),
        "own": by_hand(x),
        "host": of_code(x),
    }


def checks(x: Any) -> tuple[dil.Report, dil.GradientReport, dil.Solution, list[dil.Entry]]:
    """Return what is told about a solve and its gradient."""
    layer = dil.argmin(score, dil.solvers.Newton(), init=np.zeros_like(x), on_failure="warn")
    with dil.record() as seen:
        dil.grad(lambda x: layer(x).sum())(x)
    record: dil.Record = seen
    solution: dil.Solution = layer.solve(x)
    assert solution.status is not None
    assert dil.Status(int(solution.status)) is dil.Status.CONVERGED
    report: dil.Report = layer.report(x)
    gradients: dil.GradientReport = dil.check_gradients(layer, x, backends=["numpy"])
    assert report.ok
    assert gradients.ok
    return report, gradients, solution, [*record.forward, *record.backward]


def frameworks() -> list[str]:
    """Return the usable backends by name."""
    handle: dil.BackendHandle = dil.backend("numpy", dtype="float64")
    infos: tuple[dil.BackendInfo, ...] = dil.backends()
    assert handle.to_numpy(handle.asarray([1.0, 2.0])).shape == (2,)
    assert dil.testing.LAWS
    return [info.name for info in infos if info.usable]


def errors(x: Any) -> list[type[dil.DilError]]:
    """Return the errors, each of which a user may catch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dil.ConvergenceWarning)
        dil.argmin(score, dil.solvers.GradientDescent(max_iter=1), init=np.zeros_like(x))(x)
    return [
        dil.BackendError,
        dil.CapturedError,
        dil.ConvergenceError,
        dil.OptionError,
        dil.DTypeError,
        dil.SecondDerivativeError,
        dil.ShapeError,
        dil.UnsupportedFunctionError,
    ]


def kepler() -> list[Any]:
    """Return an orbit's anomaly and its derivatives."""
    E = dil.kepler.eccentric_anomaly(np.asarray(1.0), 0.3)
    layer = dil.argmin(dil.kepler.score, dil.kepler.solver, linear_solver=dil.linear.Direct())
    errors = [dil.kepler.residual(E, 1.0, 0.3), layer(np.asarray(1.0), np.asarray(0.3)) - E]
    return [*errors, dil.kepler.dE_dM(E, 0.3), dil.kepler.dE_de(E, 0.3)]


def plans() -> dil.control.Rollout:
    """Return a closed loop of a linear regulator, and look at its ingredients."""
    A, B, Q, R = np.asarray([[1.0]]), np.asarray([[1.0]]), np.eye(1), np.eye(1)
    P = dil.control.dare(A, B, Q, R)
    assert dil.control.lqr_gain(A, B, Q, R).shape == P.shape
    plan: dil.control.Plan = dil.control.plan(
        lambda x, u, theta: (x**2).sum(-1) + (u**2).sum(-1),
        lambda x, u, theta: x + u,
        horizon=3,
        solver=dil.solvers.Sequence(dil.control.ILQR(max_iter=3), dil.control.DDP()),
        linear_solver=dil.control.Riccati(),
    )
    boxed = dil.control.plan(
        lambda x, u, theta: (x**2).sum(-1) + (u**2).sum(-1),
        lambda x, u, theta: x + u,
        horizon=3,
        bounds=dil.control.Box(-0.1, [0.1]),
    )
    assert np.all(boxed(np.ones(1)) >= -0.1)
    x0 = np.ones(1)
    assert dil.control.shift(plan(x0)).shape == (3, 1)
    return dil.control.mpc_rollout(plan, lambda x, u: x + u, x0, steps=2)


def differential_equations() -> dil.ode.Trajectory:
    """Return a solution of y' = -k y with its counts."""
    t, y0, k = np.linspace(0.0, 1.0, 3), np.ones(1), np.asarray(2.0)
    newton = dil.ode.StepNewton(max_iter=10, rounding=4.0)
    assert dil.ode.odeint(lambda t, y, k: -k * y, y0, t, (k,), solver=newton).shape == (3, 1)
    algebraic = dil.ode.odeint(lambda t, y, k: t - k * y, y0, t, (k,), mass=np.zeros(1), consistent="find")
    assert algebraic.shape == (3, 1)
    half = dil.ode.Event(lambda t, y, k: y[0] - 0.5, terminal=True, direction=-1)
    assert (half.terminal, half.direction) == (True, -1)
    found = dil.ode.solve(lambda t, y, k: -k * y, y0, t, (k,), rtol=1e-6, events=half)
    crossings: dil.ode.Crossings = found.events[0]
    as_scipy: dil.ode.OdeResult = dil.ode.solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, t_eval=t, dense_output=True)
    dense: dil.ode.DenseOutput | None = as_scipy.sol
    assert dense is not None
    assert dense(0.5).shape == (1,)
    assert (found.t_events[0].shape, found.y_events[0].shape) == (crossings.t.shape, crossings.y.shape)
    chosen = dil.ode.solve(lambda t, y, k: -k * y, y0, t, (k,), method="auto", rtol=1e-3)
    assert chosen.implicit_steps == 0
    assert chosen.changed_at is not None
    assert chosen.changed_at.shape == (0,)
    return found


def systems(b: Any) -> dil.Solution:
    """Return the solution of a linear system, by a solver that starts at the last one."""

    def product(v: Any) -> Any:
        return 2 * v

    A = dil.linear.Operator(product, symmetric=True)
    prepared: preconditioners.Prepared = preconditioners.Prepared(product)
    assert prepared.products == 0
    warm, recycle = dil.linear.WarmStart(dil.linear.CG()), dil.linear.Recycle(directions=8)
    found, memory = recycle.solve(A, b, recycle.empty(b))
    assert found.status is not None
    recycle.solve(A, b, memory)
    recycle.forget()
    layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum(), dil.solvers.Newton(), init=np.zeros_like)
    seen: dil.linear.Spectrum = dil.linear.spectrum(layer, b, steps=2)
    assert seen.condition >= 1
    assert layer.report(b).backward.choice is not None
    return warm(A, b)


if TYPE_CHECKING:

    def torch_modules(scored: torch.nn.Module, x: torch.Tensor) -> Any:
        """Use what torch alone has."""
        solver = dil_backends.optim.TorchOptim(lambda p: torch.optim.SGD(p, lr=0.1))
        return dil_backends.nn.ImplicitModule(scored, solver)(x)

    def jax_solvers(x: jax.Array) -> list[dil.Layer]:
        """Use what JAX alone has."""
        by_optax = dil_backends.optax.Optax(optax.adam(0.1))
        by_optimistix = dil_backends.optimistix.Optimistix(optimistix.BFGS(1e-8, 1e-8))
        return [dil.argmin(score, by_optax, init=x), dil.argmin(score, by_optimistix, init=x)]


def main() -> None:
    """Use everything on NumPy."""
    x = np.asarray([0.5, -1.0])
    for layer in layers(x).values():
        assert np.shape(layer(x)) == (2,)
    for linear in linear_solvers():
        layer = dil.argmin(score, dil.solvers.LBFGS(), init=np.zeros_like, linear_solver=linear, on_failure="ignore")
        assert np.all(np.isfinite(dil.vjp(layer, x)[1](np.ones(2))[0]))
    for use in (derivatives, checks, errors, systems):
        use(x)
    for look in (frameworks, kepler, plans, differential_equations):
        look()


if __name__ == "__main__":
    main()
