"""Problems of a batch that are coupled are refused under every transform of torch.func, and no other batch is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import func  # noqa: E402

import dil  # noqa: E402

X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.2]], dtype=torch.float64)
XS = torch.stack([X, 2 * X, -X])
SOLVERS = {
    "of the library": dil.solvers.Newton(),
    "of the user": lambda f, init, x: 0.9 * x,
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def residual(u, x):
    """An equation of each row alone."""
    return u + 0.1 * torch.sin(u) - x


def score(u, x):
    """A score of each row alone."""
    return 0.5 * ((u - x) ** 2).sum(-1)


COUPLED = {
    "mean of a score": (dil.argmin, lambda u, x: score(u, x) + 0.1 * ((u - u.mean(0)) ** 4).sum(-1)),
    "mean of a value": (dil.value, lambda u, x: score(u, x) + 0.1 * ((u - u.mean(0)) ** 4).sum(-1)),
    "mean of a residual": (dil.root, lambda u, x: residual(u, x) + 0.3 * u.mean(0)),
    "neighbour": (dil.root, lambda u, x: residual(u, x) + 0.3 * u.roll(1, 0)),
    "one row of another": (dil.root, lambda u, x: residual(u, x) + 0.3 * torch.stack([u[1], 0 * u[0], 0 * u[0]])),
}
ALONE = {
    "score": (dil.argmin, score),
    "value": (dil.value, score),
    "residual": (dil.root, residual),
    "sorted in its row": (dil.root, lambda u, x: residual(u, x) + 0.3 * u.sort(-1).values.flip(-1)),
}


def layer_of(make, function, solver):
    return make(function, solver, init=lambda x: 0.5 * x, batch_ndim=1, on_failure="ignore")


def total(f):
    return lambda x: (f(x) ** 2).sum()


TRANSFORMS = {
    "grad": lambda f: func.grad(total(f))(X),
    "vjp": lambda f: func.vjp(total(f), X)[1](X[0, 0]),
    "jvp": lambda f: func.jvp(f, (X,), (X,)),
    "jacrev": lambda f: func.jacrev(f)(X),
    "jacfwd": lambda f: func.jacfwd(f)(X),
    "vmap": lambda f: func.vmap(f)(XS),
    "nested vmaps": lambda f: func.vmap(func.vmap(f))(torch.stack([XS, 3 * XS])),
    "vmap along the last axis": lambda f: func.vmap(f, in_dims=2)(XS.movedim(0, 2)),
    "vmap of grad": lambda f: func.vmap(func.grad(total(f)))(XS),
    "grad of vmap": lambda f: func.grad(lambda xs: (func.vmap(f)(xs) ** 2).sum())(XS),
    "grad of grad": lambda f: func.grad(lambda x: func.grad(total(f))(x).sum())(X),
    "hessian": lambda f: func.hessian(total(f))(X),
    "jacobian, vectorized": lambda f: torch.autograd.functional.jacobian(f, X, vectorize=True),
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@solvers
@transforms
@pytest.mark.parametrize("coupled", COUPLED.values(), ids=COUPLED)
def test_problems_that_are_coupled_are_refused(coupled, transform, solver):
    layer = layer_of(*coupled, solver)
    for _ in range(2):
        with pytest.raises(dil.OptionError, match=r"batch_ndim=1 says that its problems are independent"):
            transform(layer)


@solvers
@transforms
@pytest.mark.parametrize("alone", ALONE.values(), ids=ALONE)
def test_problems_that_are_independent_are_not_refused(alone, transform, solver):
    transform(layer_of(*alone, solver))


@pytest.mark.parametrize("transform", [TRANSFORMS["grad"], TRANSFORMS["vmap"], TRANSFORMS["vmap of grad"]])
def test_a_function_that_passed_is_not_evaluated_for_it_again(transform):
    calls = []

    def counted(u, x):
        calls.append(1)
        return residual(u, x)

    layer = layer_of(dil.root, counted, dil.solvers.Newton())

    def evaluations():
        del calls[:]
        transform(layer)
        return len(calls)

    first, second, third = evaluations(), evaluations(), evaluations()
    assert first > second
    assert second == third


def test_a_function_that_torch_cannot_map_is_looked_at_row_by_row():
    def branch(u, x):
        return residual(u, x) + (0.3 * u.mean(0) if float(x[0, 0]) > 1.5 else 0.0)

    layer = layer_of(dil.root, branch, dil.solvers.Newton())
    with (
        pytest.warns(UserWarning, match="rows one after the other"),
        pytest.raises(dil.OptionError, match="independent"),
    ):
        func.vmap(layer)(XS)


@pytest.mark.parametrize("transform", [TRANSFORMS["grad"], TRANSFORMS["jacrev"], TRANSFORMS["vmap of grad"]])
def test_coupled_rows_of_a_differential_equation_are_refused(transform):
    def solution(x):
        return dil.ode.odeint(
            lambda t, y: -y + 2.0 * y.mean(0) * torch.tanh(y),
            x,
            [0.0, 0.5],
            batch_ndim=1,
            method="implicit_euler",
            steps=2,
        )

    with pytest.raises(dil.OptionError, match="independent"):
        transform(solution)
