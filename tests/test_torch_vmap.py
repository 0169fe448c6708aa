"""torch.func.vmap of a layer is one batched solve, and many right-hand sides of one matrix are one factorisation."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import func  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import dil  # noqa: E402
from dil.solvers import LBFGS, Anderson, GradientDescent, Newton  # noqa: E402

F64 = torch.float64
DRAW = torch.Generator().manual_seed(0)
M = 0.5 * torch.randn(4, 4, dtype=F64, generator=DRAW)
ROWS = torch.randn(5, 4, dtype=F64, generator=DRAW)
SIZES = 0.5 + torch.rand(5, dtype=F64, generator=DRAW)
PLACES = torch.tensor([0, 1, 2, 3, 1])


class Counted:
    """A score that counts its evaluations. It takes an integer, as a label would be."""

    def __init__(self):
        self.calls = 0

    def __call__(self, u, t, s, k):
        self.calls += 1
        return ((M @ u - t) ** 2).sum() + 0.1 * s * (u**4).sum() + 0.5 * (u**2).sum() + (u**2 * (PLACES[:4] == k)).sum()


def residual(u, t, s, k):
    return u + 0.3 * torch.tanh(M @ u) * s - t


def start(t, s, k):
    return 0.0 * t


LAYERS = {
    "argmin, Newton": lambda: dil.argmin(Counted(), Newton(), init=start),
    "argmin, LBFGS and CG, one start": lambda: dil.argmin(
        Counted(), LBFGS(), init=torch.zeros(4, dtype=F64), linear_solver=dil.linear.CG()
    ),
    "root, GMRES": lambda: dil.root(residual, Newton(), init=start, linear_solver=dil.linear.GMRES()),
    "fixed point": lambda: dil.fixed_point(lambda u, t, s, k: t - residual(u, t, s, k) + u, Anderson(), init=start),
    "value": lambda: dil.value(Counted(), Newton(), init=start),
}
TRANSFORMS = {
    "vmap": lambda f: func.vmap(f)(ROWS, SIZES, PLACES),
    "vmap, in_dims mixed": lambda f: func.vmap(f, in_dims=(1, None, None))(ROWS.T, SIZES[0], PLACES[0]),
    "vmap of grad": lambda f: func.vmap(func.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1)))(ROWS, SIZES, PLACES),
    "vmap of grad, shared": lambda f: func.vmap(func.grad(lambda *x: (f(*x) ** 2).sum(), 1), (0, None, None))(
        ROWS, SIZES[0], PLACES[0]
    ),
    "grad of vmap": lambda f: func.grad(lambda t: (func.vmap(f)(t, SIZES, PLACES) ** 2).sum())(ROWS),
    "vmap of jacrev": lambda f: func.vmap(func.jacrev(f))(ROWS, SIZES, PLACES),
    "vmap of jacfwd": lambda f: func.vmap(func.jacfwd(f))(ROWS, SIZES, PLACES),
    "jacrev of vmap": lambda f: func.jacrev(lambda t: func.vmap(f)(t, SIZES, PLACES))(ROWS),
    "hessian": lambda f: func.hessian(lambda t: (f(t, SIZES[0], PLACES[0]) ** 2).sum())(ROWS[0]),
    "vmap of hessian": lambda f: func.vmap(func.hessian(lambda *x: (f(*x) ** 2).sum()))(ROWS, SIZES, PLACES),
    "nested": lambda f: func.vmap(func.vmap(f, (None, 0, 0)), (0, None, None))(ROWS, SIZES, PLACES),
}


def one_by_one(layer):
    """Return the layer with solvers that are not known to take a batch."""
    is_value = hasattr(layer, "layer")
    core = layer.layer if is_value else layer
    kind = getattr(core.condition, "kind", "score")
    make = dil.value if is_value else {"score": dil.argmin, "residual": dil.root, "step": dil.fixed_point}[kind]

    def solver(*args):
        return core.solver(*args)

    def linear(*args, **options):
        return core.linear_solver(*args, **options)

    return make(core.condition.fn, solver, init=core.init, linear_solver=linear)


@pytest.mark.transform("torch.func.vmap, as one batched solve")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_rows_together_are_the_rows_one_by_one(layer, transform):
    made = LAYERS[layer]()
    found, expected = (TRANSFORMS[transform](f) for f in (made, one_by_one(made)))
    for a, b in zip(*(torch.utils._pytree.tree_leaves(x) for x in (found, expected)), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-7 * b.abs().max()


@pytest.mark.transform("torch.func.vmap, as one batched solve")
def test_the_score_is_evaluated_as_often_as_for_one_row():
    layer = LAYERS["argmin, Newton"]()
    counts = []
    for call in (lambda: layer(ROWS[0], SIZES[0], PLACES[0]), lambda: func.vmap(layer)(ROWS, SIZES, PLACES)):
        before = layer.condition.fn.calls
        call()
        counts.append(layer.condition.fn.calls - before)
    assert counts[1] <= 2 * counts[0]


@pytest.mark.transform("torch.func.jacrev of a vector")
@pytest.mark.parametrize("jacobian", [func.jacrev, func.jacfwd])
def test_a_jacobian_builds_its_matrix_once(jacobian):
    """A hundred rows cost no more evaluations of the residual than four."""
    calls = 0

    def counted(u, t):
        nonlocal calls
        calls += 1
        return u + 0.3 * torch.tanh(u) - t

    counts = []
    for n in (4, 100):
        layer = dil.root(counted, Newton(), init=torch.zeros_like)
        t = torch.linspace(-1.0, 1.0, n, dtype=F64)
        jacobian(layer)(t)  # the first call checks the function
        calls = 0
        J = jacobian(layer)(t)
        counts.append(calls)
    assert counts[1] <= counts[0] + 2
    y = layer(t)
    torch.testing.assert_close(J, torch.diag(1 / (1 + 0.3 / torch.cosh(y) ** 2)))


def test_a_row_that_fails_is_told_alone():
    layer = dil.root(lambda u, t: u**2 - t, Newton(), init=lambda t: 1.0 + 0.0 * t, on_failure="nan")
    t = torch.tensor([[4.0], [-1.0], [9.0]], dtype=F64)
    y = func.vmap(layer)(t)
    torch.testing.assert_close(y[[0, 2]], torch.tensor([[2.0], [3.0]], dtype=F64))
    assert torch.isnan(y[1]).all()
    loud = dil.root(lambda u, t: u**2 - t, Newton(), init=lambda t: 1.0 + 0.0 * t, on_failure="raise")
    with pytest.raises(dil.ConvergenceError, match="1 of 3"):
        func.vmap(loud)(t)


@pytest.mark.parametrize("jacobian", [func.jacrev, func.jacfwd])
def test_what_needs_a_closer_look_is_judged_row_by_row(jacobian):
    """A point that is no solution, a singular matrix (which a cotangent shows, and no tangent), and a kink."""
    far = dil.argmin(lambda u, t: ((u - t) ** 2).sum() + (u**4).sum(), lambda f, u, t: t, init=torch.zeros_like)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        jacobian(far)(ROWS[0])
    flat = dil.argmin(lambda u, t: (u - t).sum() ** 2, lambda f, u, t: t, init=torch.zeros_like)
    if jacobian is func.jacrev:
        with pytest.warns(dil.ConvergenceWarning, match="SINGULAR"):
            jacobian(flat)(ROWS[0])
    bent = dil.argmin(lambda u, t: (u - t).abs().sum() + 0.5 * (u - t) @ (u - t), lambda f, u, t: t)
    with pytest.warns(dil.ConvergenceWarning, match="KINK"):
        jacobian(bent)(ROWS[0])


def square(u, t):
    return ((u - t) ** 2).sum()


def bowl(u, t):
    return square(u, t) + 0.1 * (u**4).sum()


def branch(u, t):
    return bowl(u, t) if t.sum() > 0 else bowl(u, 2 * t)


def item(u, t):
    return square(u, t) * (1 + t[0].detach().item() ** 2) + bowl(u, t)


def numpy_inside(u, t):
    return square(u, t) * float(1 + t.detach().numpy()[0] ** 2) + bowl(u, t)


def mappable_item(u, t):
    return square(u, t) * (1 + t[0].detach() ** 2) + bowl(u, t)


def dynamic_shape(u, t):
    return bowl(u, t) + (u[t > 0] ** 2).sum()


def written_into(u, t):
    v = torch.zeros(4, dtype=F64)
    v += u
    return bowl(v, t)


def random(u, t):
    return square(u, t) + 0.0 * torch.rand((), dtype=F64)


def statistics():
    norm = torch.nn.BatchNorm1d(4, affine=False, dtype=F64)
    return lambda u, t: square(u, t) + norm(torch.stack([u, 2 * u])).square().sum()


def counter():
    count = torch.zeros((), dtype=F64)

    def score(u, t):
        count.add_(t.detach().sum())
        return bowl(u, t)

    return score


CANNOT_BE_MAPPED = {
    "branch": (
        branch,
        lambda u, t: torch.where(t.sum() > 0, bowl(u, t), bowl(u, 2 * t)),
    ),
    "item": (item, mappable_item),
    "numpy": (numpy_inside, mappable_item),
    "dynamic shape": (dynamic_shape, lambda u, t: bowl(u, t) + (u**2 * (t > 0)).sum()),
    "in place": (written_into, bowl),
    "buffer": (counter(), bowl),
}
"""Scores that torch.vmap refuses, each with one for it that has the same numbers."""
FEW = ROWS[:3]
MAPS = {
    "forward": lambda f: func.vmap(f)(FEW),
    "vmap of grad": lambda f: func.vmap(func.grad(lambda t: (f(t) ** 2).sum()))(FEW),
    "vmap of jacrev": lambda f: func.vmap(func.jacrev(f))(FEW),
    "nested": lambda f: func.vmap(func.vmap(f))(FEW[None]),
}
MORE_MAPS = {
    "in_dims": lambda f: func.vmap(lambda t, _: f(t), in_dims=(1, None))(FEW.T, SIZES),
    "vmap of jacfwd": lambda f: func.vmap(func.jacfwd(f))(FEW),
    "vmap of hessian": lambda f: func.vmap(func.hessian(lambda t: (f(t) ** 2).sum()))(FEW[:2]),
    "vmap of a third derivative": lambda f: func.vmap(
        func.grad(lambda t: func.hessian(lambda t: (f(t) ** 2).sum())(t).sum())
    )(FEW[:2]),
    "nested, of grad": lambda f: func.vmap(func.vmap(func.grad(lambda t: f(t).sum())))(torch.stack([FEW, -FEW])),
    "backward": lambda f: gradient_by_backward(func.vmap(f)),
}
AROUND = {
    "grad of vmap": lambda f: func.grad(lambda t: (func.vmap(f)(t) ** 2).sum())(FEW),
    "jacrev of vmap": lambda f: func.jacrev(func.vmap(f))(FEW),
    "jvp of vmap": lambda f: func.jvp(func.vmap(f), (FEW,), (FEW,))[1],
}
"""Derivatives of torch.func around vmap. torch.func differentiates the rows one by one."""
NOT_BY_TORCH_FUNC = {(score, how) for score in ("numpy", "buffer") for how in ("grad of vmap", "jvp of vmap")}
ROW_BY_ROW = "a layer under torch.vmap takes its rows one after the other, which is slow: torch.vmap cannot map"
unsaid = pytest.mark.filterwarnings("ignore:a layer under torch.vmap takes its rows:UserWarning")


def gradient_by_backward(f):
    t = FEW.clone().requires_grad_()
    (f(t) ** 2).sum().backward()
    return t.grad


def users_own_newton(fun, u, t):
    return Newton()(fun, u, t)


def assert_equal_numbers(transform, score, make=dil.argmin, solver=None):
    """The numbers of a score that torch.vmap refuses are those of the mappable score beside it."""
    fn, mappable = CANNOT_BE_MAPPED[score]
    found = transform(make(fn, solver or Newton(), init=torch.zeros_like))
    expected = transform(make(mappable, Newton(), init=torch.zeros_like))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.transform("torch.func.vmap of a score that it cannot map")
@pytest.mark.parametrize("transform", MAPS)
@pytest.mark.parametrize("score", CANNOT_BE_MAPPED)
@unsaid
def test_a_score_that_torch_cannot_map_has_the_numbers_of_its_rows(score, transform):
    assert_equal_numbers(MAPS[transform], score)


@pytest.mark.transform("torch.func.vmap of a score that it cannot map")
@pytest.mark.parametrize("transform", MORE_MAPS)
@unsaid
def test_every_transform_of_such_a_score_has_the_numbers_of_its_rows(transform):
    assert_equal_numbers(MORE_MAPS[transform], "branch")


@pytest.mark.parametrize("transform", ["vmap of grad", "nested"])
@pytest.mark.parametrize("make", [dil.argmin, dil.value])
@pytest.mark.parametrize("solver", [Newton(), users_own_newton], ids=["of dil", "of the user"])
@unsaid
def test_values_and_solvers_of_the_user_take_such_a_score(solver, make, transform):
    assert_equal_numbers(MAPS[transform], "branch", make, solver)


@pytest.mark.parametrize("transform", AROUND)
@pytest.mark.parametrize("score", CANNOT_BE_MAPPED)
@unsaid
def test_a_derivative_around_vmap_of_such_a_score_is_right_or_refused(score, transform):
    if (score, transform) not in NOT_BY_TORCH_FUNC:
        assert_equal_numbers(AROUND[transform], score)
        return
    with pytest.raises(dil.UnsupportedFunctionError, match=r"torch.func cannot differentiate the function of a layer"):
        assert_equal_numbers(AROUND[transform], score)


@pytest.mark.parametrize(
    ("solver", "transform"),
    [*((Newton(), name) for name in MAPS), (users_own_newton, "vmap of grad"), (users_own_newton, "vmap of jacrev")],
)
def test_rows_one_after_the_other_are_told(transform, solver):
    layer = dil.argmin(branch, solver, init=torch.zeros_like)
    with pytest.warns(UserWarning, match=ROW_BY_ROW) as told:
        MAPS[transform](layer)
    assert {Path(w.filename).name for w in told} == {Path(__file__).name}


def test_rows_one_after_the_other_are_told_once_a_line():
    layer = dil.argmin(branch, Newton(), init=torch.zeros_like)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            func.vmap(layer)(FEW)
    assert len(told) == 1


@pytest.mark.parametrize("solver", [Newton(), users_own_newton], ids=["of dil", "of the user"])
def test_a_random_score_wants_the_flag_of_vmap(solver):
    layer = dil.argmin(random, solver, init=torch.zeros_like)
    gradient = func.grad(lambda t: layer(t).sum())
    with pytest.raises(dil.UnsupportedFunctionError, match=r"draws random numbers; pass randomness='same'"):
        func.vmap(gradient)(FEW)
    for flag in ("same", "different"):
        torch.testing.assert_close(func.vmap(gradient, randomness=flag)(FEW), torch.ones_like(FEW))


@pytest.mark.parametrize("flag", ["same", "different"])
@unsaid
def test_rows_one_after_the_other_draw_as_the_flag_says(flag):
    def score(u, t):
        return square(u, t) if t.sum() > -100 else u.sum()

    def solver(fun, u, t):
        return t + torch.rand((), dtype=F64)

    layer = dil.argmin(score, solver, init=torch.zeros_like, on_failure="ignore")
    drawn, again = ((func.vmap(layer, randomness=flag)(FEW) - FEW)[:, 0] for _ in range(2))
    assert bool(((drawn - drawn[0]).abs() < 1e-12).all()) == (flag == "same")
    assert bool(((drawn - again).abs() > 1e-9).all())


@pytest.mark.parametrize("solver", [Newton(), users_own_newton], ids=["of dil", "of the user"])
@unsaid
def test_a_captured_array_in_a_score_that_torch_cannot_map_is_refused(solver):
    def layer(w):
        return dil.argmin(lambda u, t: square(u, t * w) if t.sum() > 0 else square(u, t), solver, init=torch.zeros_like)

    rows = FEW.abs()
    with pytest.raises(dil.CapturedError):
        func.vmap(layer(torch.ones(4, dtype=F64, requires_grad=True)))(rows)
    for outer in (func.grad, func.jacrev, func.jacfwd):
        with pytest.raises(dil.CapturedError):
            outer(lambda w: func.vmap(layer(w))(rows).sum())(torch.ones(4, dtype=F64))
    with pytest.raises(dil.CapturedError):
        func.vmap(lambda t, w: layer(w)(t))(rows, rows)
    for w, dim in ((rows, 0), (rows[0], None)):
        with pytest.raises(dil.CapturedError):
            func.vmap(func.grad(lambda w, t: layer(w)(t).sum()), in_dims=(dim, 0))(w, rows)
    torch.testing.assert_close(func.vmap(layer(torch.ones(4, dtype=F64)))(rows), rows)


@pytest.mark.parametrize("make", [statistics, counter])
@pytest.mark.parametrize("jacobian", [func.grad, func.jacrev])
def test_a_score_that_torch_func_cannot_differentiate_is_named(make, jacobian):
    layer = dil.argmin(make(), Newton(), init=torch.zeros_like)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"(?s)torch.func cannot.*BatchNorm.*or call backward\(\)"):
        jacobian(lambda t: layer(t).sum())(ROWS[0])
    t = ROWS[0].clone().requires_grad_()
    layer(t).sum().backward()  # what the message names
    assert t.grad is not None


@pytest.mark.parametrize("text", ["vmap: INTERNAL ASSERT", "vmap: mine", "torch says no"])
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, ZeroDivisionError])
@pytest.mark.parametrize("solver", [Newton(), users_own_newton], ids=["of dil", "of the user"])
def test_the_users_own_error_stays_what_it_is(kind, text, solver):
    def score(u, t):
        raise kind(text)

    layer = dil.argmin(score, solver, init=torch.zeros_like)
    for transform in MAPS.values():
        with pytest.raises(kind, match=text):
            transform(layer)


def test_an_error_of_one_row_has_the_shapes_of_one_row():
    layer = dil.argmin(lambda u, t: square(u, torch.ones(3, dtype=F64)), Newton(), init=torch.zeros_like)
    with pytest.raises(RuntimeError, match=r"size of tensor a \(4\) must match the size of tensor b \(3\)"):
        func.vmap(layer)(ROWS)


SOLVERS = {
    "Newton": Newton(history=True, max_iter=20),
    "LBFGS": LBFGS(history=True, memory=5, max_iter=30),  # as many pairs as rows
    "gradient descent": GradientDescent(),
    "of the user": users_own_newton,
    "of the user, without numbers": lambda fun, u, t: dil.Solution(t, extra={"twice": 2 * t}),
}


def arrays_of(solution):
    return [x for x in torch.utils._pytree.tree_leaves(tuple(solution)) if isinstance(x, torch.Tensor)]


@pytest.mark.transform("layer.solve under torch.func.vmap")
@pytest.mark.parametrize("make", [dil.argmin, dil.value])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_answers_of_the_rows_together_are_those_one_by_one(solver, make):
    layer = make(lambda u, t: square(u, t) + 0.1 * (u**4).sum(), SOLVERS[solver], init=torch.zeros_like)
    expected = [torch.stack(x) for x in zip(*(arrays_of(layer.solve(t)) for t in ROWS), strict=True)]

    def arrays(t):
        solution = layer.solve(t)
        assert solution.value.shape == (4,)
        return tuple(arrays_of(solution))

    assert len(expected) >= 3 or solver.endswith("numbers")
    nested = func.vmap(func.vmap(arrays), in_dims=1)(torch.stack([ROWS, -ROWS]))
    found = {
        "vmap": func.vmap(arrays)(ROWS),
        "in_dims": func.vmap(arrays, in_dims=1)(ROWS.T),
        "nested": [x[:, 0] for x in nested],
        "out_dims": [x.movedim(-1, 0) for x in func.vmap(arrays, out_dims=-1)(ROWS)],
    }
    for way in found.values():
        for a, b in zip(way, expected, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.transform("layer.solve under torch.func.vmap")
def test_the_answer_has_no_derivative_and_counts_each_row():
    layer = dil.root(lambda u, t: u**2 - t, Newton(), init=lambda t: 1.0 + 0.0 * t)
    t = torch.tensor([[1.1], [-1.0], [9e4]], dtype=F64)
    value, status, iterations, residual, _ = func.vmap(lambda t: (*layer.solve(t)[:4], t))(t)
    assert [dil.Status(int(s)).name == "CONVERGED" for s in status] == [True, False, True]
    assert iterations[0] < iterations[2]
    assert residual[0] < 1e-8 < residual[1]
    torch.testing.assert_close(value[[0, 2]], t[[0, 2]].sqrt())
    slope = func.vmap(func.grad(lambda t: layer.solve(t).value.sum() + 3 * t.sum()))(t)
    torch.testing.assert_close(slope, torch.full_like(t, 3.0))


def test_an_answer_that_differs_among_the_rows_is_refused():
    counts = iter(range(9))
    layer = dil.argmin(square, lambda fun, u, t: dil.Solution(t, iterations=next(counts)), init=torch.zeros_like)
    with pytest.raises(dil.ShapeError, match=r"return arrays in the dil.Solution, or call layer.solve in a loop"):
        func.vmap(lambda t: layer.solve(t).value)(ROWS)


def test_a_solver_of_the_user_sees_one_problem_at_a_time():
    shapes = []

    def solver(fun, u, t):
        shapes.append(tuple(t.shape))
        return t

    layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum(), solver, init=torch.zeros_like)
    torch.testing.assert_close(func.vmap(layer)(ROWS), ROWS)
    assert shapes == [(4,)] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype):
    layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum(), Newton(), init=torch.zeros_like)
    found = func.vmap(func.grad(lambda t: (layer(t) ** 2).sum()))(ROWS.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, 2 * ROWS.to(dtype), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("make", [dil.argmin, dil.value, dil.root])
def test_a_captured_parameter_is_refused_under_vmap_too(make):
    def layer(w):
        if make is dil.root:
            return dil.root(lambda u, t: u - t * w, Newton(), init=torch.zeros_like)
        return make(lambda u, t: ((u - t * w) ** 2).sum(), Newton(), init=torch.zeros_like)

    w = torch.ones(4, dtype=F64, requires_grad=True)
    with pytest.raises(dil.CapturedError):
        func.vmap(layer(w))(ROWS)
    for outer in (func.grad, func.jacrev, func.jacfwd):
        with pytest.raises(dil.CapturedError):
            outer(lambda w: func.vmap(layer(w))(ROWS).sum())(torch.ones(4, dtype=F64))


class Shifted(Newton):
    """A solver of the user, for one problem, that uses one of the library."""

    def __call__(self, fun, init, /, *args, **kwargs):
        assert init.ndim == 1
        return super().__call__(fun, init, *args, **kwargs)


class OneRightHandSide(dil.linear.Direct):
    def __call__(self, A, b, /, *, loop=None, x0=None):
        assert b.ndim == 1
        return super().__call__(A, b, loop=loop)


def test_a_subclass_with_a_call_of_its_own_sees_one_problem_at_a_time():
    def score(u, t):
        return ((u - t) ** 2).sum() + 0.1 * (u**4).sum()

    plain = dil.argmin(score, Newton(), init=torch.zeros_like)
    mine = dil.argmin(score, Shifted(), init=torch.zeros_like, linear_solver=OneRightHandSide())
    torch.testing.assert_close(func.vmap(mine)(ROWS), func.vmap(plain)(ROWS))
    torch.testing.assert_close(func.jacrev(mine)(ROWS[0]), func.jacrev(plain)(ROWS[0]))


@pytest.mark.transform("saved-tensor hooks around a layer")
def test_hooks_and_a_checkpoint_around_vmap():
    layer = dil.argmin(lambda u, t: ((u - t) ** 2).sum() + 0.1 * (u**4).sum(), Newton(), init=torch.zeros_like)
    expected = func.grad(lambda t: func.vmap(layer)(t).square().sum())(ROWS)
    for reentrant in (True, False):
        t = ROWS.clone().requires_grad_()
        checkpoint(func.vmap(layer), t, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(t.grad, expected)
    packed, t = [], ROWS.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        func.vmap(layer)(t).square().sum().backward()
    torch.testing.assert_close(t.grad, expected)
    assert len(packed) < 10


def test_no_rows_and_no_unknowns():
    layer = dil.argmin(square, Newton(), init=torch.zeros_like)
    assert func.vmap(layer)(ROWS[:0]).shape == (0, 4)
    assert func.vmap(lambda t: layer.solve(t).status)(ROWS[:0]).shape == (0,)
    assert func.jacrev(layer)(torch.zeros(0, dtype=F64)).shape == (0, 0)


EMPTY_LAYERS = {
    "argmin": lambda index: dil.argmin(
        lambda u, t: square(u, t) + (u[0] ** 2 if index else 0.1 * u.sum()), Newton(), init=torch.zeros_like
    ),
    "value": lambda index: dil.value(
        lambda u, t: square(u, t) + (u[0] ** 2 if index else 0.1 * u.sum()), Newton(), init=torch.zeros_like
    ),
    "root": lambda index: dil.root(lambda u, t: u - t + (u[0] if index else 0.0), Newton(), init=torch.zeros_like),
    "fixed point": lambda index: dil.fixed_point(
        lambda u, t: 0.3 * u + t + (0.1 * u[0] if index else 0.0), Anderson(), init=torch.zeros_like
    ),
}
EMPTY = {
    "vmap": lambda f, rows: func.vmap(f)(rows),
    "vmap of grad": lambda f, rows: func.vmap(func.grad(lambda t: f(t).sum()))(rows),
    "vmap of jacrev": lambda f, rows: func.vmap(func.jacrev(f))(rows),
    "vmap of jacfwd": lambda f, rows: func.vmap(func.jacfwd(f))(rows),
    "vmap of hessian": lambda f, rows: func.vmap(func.hessian(lambda t: f(t).sum()))(rows),
    "grad of vmap": lambda f, rows: func.grad(lambda t: func.vmap(f)(t).sum())(rows),
    "nested, none of some": lambda f, rows: func.vmap(func.vmap(f))(rows[None]),
    "nested, some of none": lambda f, rows: func.vmap(func.vmap(f))(rows[:, None]),
}


@pytest.mark.parametrize("transform", EMPTY)
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("layer", EMPTY_LAYERS)
def test_no_rows_are_an_empty_result_or_a_clear_word(layer, index, transform):
    """torch.vmap has no rule for some operations over no rows, such as a sum times a number."""
    made = EMPTY_LAYERS[layer](index)
    shape = EMPTY[transform](made, ROWS[:1]).shape
    found = empty_or_told(lambda: EMPTY[transform](made, ROWS[:0]))
    if isinstance(found, str):
        assert "over no rows; do not call the layer for an empty batch" in found
        assert index or layer in ("argmin", "value")
    else:
        assert found.numel() == 0
        assert found.ndim == len(shape)
        assert set(found.shape) <= {0, *shape}


def empty_or_told(call):
    try:
        return call()
    except dil.UnsupportedFunctionError as error:
        return str(error)


def test_no_rows_of_a_solver_of_the_user_have_no_shape():
    layer = dil.argmin(square, users_own_newton, init=torch.zeros_like)
    with pytest.raises(dil.ShapeError, match="over no rows: its solver takes one problem after the other"):
        func.vmap(layer)(ROWS[:0])


# --- the legacy vmap of torch.autograd ---


def rows_of(y, inputs, V):
    """Return the gradients for each row of V, by one backward pass for each."""
    found = [torch.autograd.grad(y, inputs, v, retain_graph=True, allow_unused=True) for v in V]
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def equation(u, x, W):
    return u + torch.tanh(u @ W.T) - x


@pytest.mark.transform("torch.autograd.grad(is_grads_batched=True)")
@pytest.mark.parametrize("linear_solver", [None, dil.linear.BiCGSTAB(rtol=1e-13)], ids=["Auto", "BiCGSTAB"])
def test_batched_cotangents(linear_solver):
    g = torch.Generator().manual_seed(0)
    W = (0.2 * torch.randn(6, 6, dtype=torch.float64, generator=g)).requires_grad_()
    x = torch.randn(6, dtype=torch.float64, generator=g).requires_grad_()
    V = torch.randn(5, 6, dtype=torch.float64, generator=g)
    calls = []

    def counted(u, x, W):
        calls.append(u)
        return equation(u, x, W)

    layer = dil.root(counted, dil.solvers.Newton(), init=lambda x, W: 0.0 * x, linear_solver=linear_solver)
    y = layer(x, W)
    calls.clear()
    found = torch.autograd.grad(y, (x, W), V, is_grads_batched=True, retain_graph=True)
    assert len(calls) <= 6, "the function is evaluated for each row"
    for a, b in zip(found, rows_of(y, (x, W), V), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # and for one of the arguments alone
    (alone,) = torch.autograd.grad(y, W, V, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(alone, found[1], rtol=1e-12, atol=1e-14)


@pytest.mark.transform("torch.autograd.functional.jacobian(vectorize=True)")
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_vectorised_jacobian_and_hessian(batch_ndim):
    def score(u, t):
        return (torch.exp(u) - t * u + 0.1 * u**4).sum(-1)

    layer = dil.argmin(score, dil.solvers.Newton(), init=torch.zeros_like, batch_ndim=batch_ndim)
    t = 1.0 + torch.rand(*(2,) * batch_ndim, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    J = torch.autograd.functional.jacobian(layer, t, vectorize=True)
    torch.testing.assert_close(J, torch.autograd.functional.jacobian(layer, t), rtol=1e-12, atol=1e-14)

    def loss(t):
        return layer(t).pow(3).sum()

    H = torch.autograd.functional.hessian(loss, t, vectorize=True)
    torch.testing.assert_close(H, torch.func.hessian(loss)(t), rtol=1e-10, atol=1e-12)


def test_batched_cotangents_of_several_layers_and_values():
    """A network around two layers, and the value of a third."""
    g = torch.Generator().manual_seed(0)
    W = 0.2 * torch.randn(4, 4, dtype=torch.float64, generator=g)
    root = dil.root(equation, dil.solvers.Newton(), init=lambda x, W: 0.0 * x)
    value = dil.value(lambda u, t: ((u - t) ** 2 + u**4).sum(), dil.solvers.Newton(), init=torch.zeros_like)

    def net(x):
        h = torch.sin(root(torch.cos(x), W))
        return torch.cat([root(h, W), value(h)[None]])

    x = torch.randn(4, dtype=torch.float64, generator=g)
    J = torch.autograd.functional.jacobian(net, x, vectorize=True)
    torch.testing.assert_close(J, torch.autograd.functional.jacobian(net, x), rtol=1e-10, atol=1e-12)


def test_batched_cotangents_warn_of_a_bad_point():
    t = torch.ones(3, dtype=torch.float64, requires_grad=True)
    layer = dil.argmin(lambda u, t: ((u - t) ** 4 + u**2).sum(), lambda f, u, t: 0.0 * t + 0.3, init=torch.zeros_like)
    y = layer(t)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        torch.autograd.grad(y, t, torch.eye(3, dtype=torch.float64), is_grads_batched=True)


def test_jacfwd_of_a_root_within_rounding_is_one_solve():
    """An entry of u that is small beside its terms has a Newton step that is not short beside it."""

    class Counted(dil.linear.Auto):
        _takes_many = True
        calls = 0

        def __call__(self, A, b, /, **options):
            Counted.calls += 1
            return super().__call__(A, b, **options)

    n, draw = 100, torch.Generator().manual_seed(0)
    W, x = (torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((n, n), (n,)))
    W = 0.1 * W
    layer = dil.root(
        lambda u, x: u + torch.tanh(W @ u) - x, dil.solvers.Newton(), init=torch.zeros_like, linear_solver=Counted()
    )
    J = torch.func.jacfwd(layer)(x)
    assert Counted.calls <= 2
    y = layer(x)
    exact = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + (1 - torch.tanh(W @ y) ** 2)[:, None] * W)
    torch.testing.assert_close(J, exact, rtol=1e-9, atol=1e-12)
