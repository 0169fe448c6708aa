"""A score of torch whose gradient has lost a part is told under every transform of torch.func, row by row."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import func  # noqa: E402

import dil  # noqa: E402

F64 = torch.float64
X = torch.tensor([1.0, 2.0], dtype=F64)
XS = torch.stack([X, 2 * X, -X])
FLAGS = torch.tensor([0.0, 1.0, 1.0], dtype=F64)
SOLVERS = {
    "of the library": dil.solvers.Newton(),
    "of the user": lambda f, init, x, *rest: 1.0 * x,
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def start(x, *rest):
    return torch.zeros_like(x)


def layer_of(solver, on_failure, lost=1.0):
    """The part that is lost moves the minimiser from x to 1.5 x. The gradients still sum up to zero at x."""

    def score(u, x, flag=lost):
        return ((u - x) ** 2).sum() + flag * ((u.detach() - 2 * x) ** 2).sum()

    return dil.argmin(score, solver, init=start, on_failure=on_failure)


def twice(f):
    """The sum of squares, so that its second derivative is no zero."""
    return lambda x: (f(x) ** 2).sum()


TRANSFORMS = {
    "grad": lambda f: func.grad(twice(f))(X),
    "vjp": lambda f: func.vjp(f, X)[1](X)[0],
    "jvp": lambda f: func.jvp(f, (X,), (X,))[1],
    "jacrev": lambda f: func.jacrev(f)(X),
    "jacfwd": lambda f: func.jacfwd(f)(X),
    "hessian": lambda f: func.hessian(twice(f))(X),
    "vmap": lambda f: func.vmap(f)(XS),
    "nested vmaps": lambda f: func.vmap(func.vmap(f))(torch.stack([XS, 3 * XS])),
    "vmap along the second axis": lambda f: func.vmap(f, in_dims=1)(XS.T),
    "grad of vmap": lambda f: func.grad(lambda xs: (func.vmap(f)(xs) ** 2).sum())(XS),
    "vmap of grad": lambda f: func.vmap(func.grad(twice(f)))(XS),
    "vmap of jacrev": lambda f: func.vmap(func.jacrev(f))(XS),
    "grad of grad": lambda f: func.grad(lambda x: func.grad(twice(f))(x).sum())(X),
    "jacobian": lambda f: torch.autograd.functional.jacobian(f, X),
    "jacobian, vectorized": lambda f: torch.autograd.functional.jacobian(f, X, vectorize=True),
    "backward": lambda f: torch.autograd.grad(twice(f)(x := X.clone().requires_grad_()), x)[0],
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@solvers
@transforms
def test_a_part_that_is_lost_raises(transform, solver):
    with pytest.raises(dil.ConvergenceError, match="WRONG_DERIVATIVE"):
        transform(layer_of(solver, "raise"))


@transforms
def test_it_is_told_at_the_first_call_and_the_next(transform):
    layer = layer_of(SOLVERS["of the user"], "warn")
    for _ in range(2):
        with pytest.warns(dil.ConvergenceWarning, match="first call: .*WRONG_DERIVATIVE"):
            transform(layer)


@transforms
def test_its_derivative_is_no_number(transform):
    assert torch.isnan(transform(layer_of(SOLVERS["of the user"], "nan"))).all()


@solvers
@transforms
def test_a_score_that_is_right_is_not_told(transform, solver):
    assert torch.isfinite(transform(layer_of(solver, "raise", lost=0.0))).all()


@transforms
def test_the_value_of_a_score_that_lost_a_part(transform):
    def score(u, x):
        return ((u - x) ** 2).sum() + ((u.detach() - 2 * x) ** 2).sum()

    value = dil.value(score, SOLVERS["of the user"], on_failure="nan")
    assert torch.isnan(transform(lambda x: value(x) * torch.ones_like(x))).all()


BY_ROWS = {
    "vmap": lambda f: func.vmap(f)(XS, FLAGS),
    "vmap of grad": lambda f: func.vmap(func.grad(lambda x, flag: (f(x, flag) ** 2).sum()))(XS, FLAGS),
    "grad of vmap": lambda f: func.grad(lambda xs: (func.vmap(f)(xs, FLAGS) ** 2).sum())(XS),
    "vmap, shared argument": lambda f: func.vmap(f, in_dims=(None, 0))(X, FLAGS),
}


@solvers
@pytest.mark.parametrize("transform", BY_ROWS.values(), ids=BY_ROWS)
def test_only_the_rows_whose_part_is_lost_are_poisoned(transform, solver):
    """Newton ends all rows whose gradient is zero as solved."""
    layer = layer_of(solver, "nan")
    for _ in range(2):
        found = torch.isnan(transform(layer))
        assert found.tolist() == [[False] * 2, [True] * 2, [True] * 2]


def test_the_rows_that_are_solved_together_are_counted():
    with pytest.warns(dil.ConvergenceWarning, match="2 of 3 problems .the first at 1. ended WRONG_DERIVATIVE"):
        func.vmap(layer_of(dil.solvers.Newton(), "warn"))(XS, FLAGS)


def test_a_score_that_torch_cannot_map_is_looked_at_row_by_row():
    def score(u, x, flag):
        lost = ((u.detach() - 2 * x) ** 2).sum() if float(flag) > 0.5 else 0.0
        return ((u - x) ** 2).sum() + lost

    layer = dil.argmin(score, dil.solvers.Newton(), init=start, on_failure="nan")
    with pytest.warns(UserWarning, match="rows one after the other"):
        y = func.vmap(layer)(XS, FLAGS)
    assert torch.isnan(y).tolist() == [[False] * 2, [True] * 2, [True] * 2]


@pytest.mark.parametrize("transform", [TRANSFORMS["grad"], TRANSFORMS["vmap"], TRANSFORMS["vmap of grad"]])
def test_a_score_that_passed_is_not_evaluated_for_it_again(transform):
    calls = []

    def score(u, x):
        calls.append(1)
        return ((u - x) ** 2).sum()

    layer = dil.argmin(score, dil.solvers.Newton(), init=start)

    def evaluations():
        del calls[:]
        transform(layer)
        return len(calls)

    first, second, third = evaluations(), evaluations(), evaluations()
    assert first > second
    assert second == third


@pytest.mark.parametrize("options", [{"check_smoothness": "never"}, {"on_failure": "ignore"}], ids=str)
@pytest.mark.parametrize("transform", [TRANSFORMS["grad"], TRANSFORMS["vmap"]])
def test_a_part_that_is_cut_on_purpose_is_not_told(transform, options):
    layer = layer_of(SOLVERS["of the user"], "raise")
    layer = dil.argmin(layer.condition.fn, layer.solver, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isfinite(transform(layer)).all()
