"""Further backward passes of one node of torch: they share one inverse, and stay right."""

from __future__ import annotations

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

import dil  # noqa: E402

N = 12


def problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    W = 0.2 * torch.randn(N, N, dtype=torch.float64, generator=g)
    x = torch.randn(N, dtype=torch.float64, generator=g)
    return W, x


def residual(u, x, W):
    return u + torch.tanh(W @ u) - torch.sin(x)


class Counted:
    def __init__(self, fn):
        self.fn, self.calls = fn, 0

    def __call__(self, *args):
        self.calls += 1
        return self.fn(*args)


def jacobian_by_hand(y, x, W):
    J = torch.func.jacrev(residual)(y, x, W)
    return torch.linalg.solve(J, -torch.func.jacrev(residual, 1)(y, x, W))


def test_a_jacobian_row_by_row():
    W, x = problem()
    counted = Counted(residual)
    layer = dil.root(counted, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))
    y = layer(x, W)
    counted.calls = 0
    J = torch.autograd.functional.jacobian(lambda x: layer(x, W), x)
    torch.testing.assert_close(J, jacobian_by_hand(y, x, W), rtol=1e-12, atol=1e-13)
    solve_alone = counted.calls
    counted.calls = 0
    layer(x, W)
    # the function is evaluated for two passes of its own, whatever the number of rows
    assert solve_alone - counted.calls <= 8


def test_all_arguments_and_those_that_a_pass_asks_for():
    W, x = problem()
    x.requires_grad_()
    W.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    vs = torch.randn(4, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = torch.autograd.grad(y, (x, W), vs[0], retain_graph=True)
    for v in vs[1:]:
        gx, gW = torch.autograd.grad(y, (x, W), v, retain_graph=True)
        expected = jacobian_by_hand(y.detach(), x.detach(), W.detach()).T @ v
        torch.testing.assert_close(gx, expected, rtol=1e-12, atol=1e-13)
        (alone,) = torch.autograd.grad(y, W, v, retain_graph=True)
        torch.testing.assert_close(alone, gW, rtol=1e-13, atol=1e-14)
    again = torch.autograd.grad(y, (x, W), vs[0])
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_batches(batch):
    g = torch.Generator().manual_seed(0)
    t = torch.randn(*batch, 2, dtype=torch.float64, generator=g, requires_grad=True)
    layer = dil.argmin(
        lambda u, t: (torch.exp(u) - t * u + 0.1 * (u**2).sum(-1, keepdim=True)).sum(-1),
        dil.solvers.Newton(),
        init=torch.zeros_like,
        batch_ndim=len(batch),
    )
    y = layer(t)
    for seed in range(3):
        v = torch.randn(*batch, 2, dtype=torch.float64, generator=g.manual_seed(seed))
        (found,) = torch.autograd.grad(y, t, v, retain_graph=True)
        (fresh,) = torch.autograd.grad(layer(t), t, v)
        torch.testing.assert_close(found, fresh, rtol=1e-12, atol=1e-13)


def test_passes_that_build_a_graph_are_recorded():
    W, x = problem()
    x.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert g.requires_grad
    layer = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))
    assert torch.autograd.gradgradcheck(lambda x: layer(x, W), (x,))


def test_a_change_of_an_argument_between_two_passes_is_told():
    W, x = problem()
    x.requires_grad_()
    scaled = 1.0 * x
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(scaled, W)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    with torch.no_grad():
        scaled.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x, retain_graph=True)


def test_a_bad_point_warns_in_every_pass():
    """y is no solution: no inverse is kept, so each pass tells of it."""
    W, x = problem()
    x.requires_grad_()
    layer = dil.root(residual, lambda F, u, x, W: torch.zeros_like(x), init=lambda x, W: torch.zeros_like(x))
    y = layer(x, W)
    for k in range(4):
        with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
            torch.autograd.grad(y[k], x, retain_graph=True)


def test_a_singular_matrix_is_told_in_every_pass():
    a = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    layer = dil.argmin(
        lambda u, a: (u[0] - u[1] - a[0]) ** 2, lambda f, u, a: torch.zeros_like(a), init=torch.zeros_like
    )
    y = layer(a)
    for k in range(3):
        with pytest.warns(dil.ConvergenceWarning, match="SINGULAR"):
            torch.autograd.grad(y[0] + k * y[1], a, retain_graph=True)


def test_a_cotangent_that_is_not_finite_is_told():
    W, x = problem()
    x.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    with pytest.warns(dil.ConvergenceWarning, match="NON_FINITE"):
        torch.autograd.grad(y, x, torch.full((N,), torch.nan, dtype=torch.float64), retain_graph=True)


def test_a_cotangent_of_a_batch_that_is_not_finite_is_told():
    t = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    layer = dil.argmin(
        lambda u, t: (torch.exp(u) - t * u).sum(-1), dil.solvers.Newton(), init=torch.zeros_like, batch_ndim=1
    )
    y = layer(t)
    for k in range(3):
        torch.autograd.grad(y[k, 0], t, retain_graph=True)
    v = torch.ones(3, 2, dtype=torch.float64)
    v[1, 0] = torch.inf
    with pytest.warns(dil.ConvergenceWarning, match="NON_FINITE"):
        torch.autograd.grad(y, t, v, retain_graph=True)


def test_a_large_argument_has_no_jacobian_of_its_own():
    """A product with it would cost more than a pullback."""
    n = 70  # of n^3 numbers
    W = (0.01 * torch.randn(n, n, dtype=torch.float64)).requires_grad_()
    y = dil.root(lambda u, W: u + torch.tanh(W @ u) - 1.0, dil.solvers.Newton(), init=lambda W: torch.zeros_like(W[0]))(
        W
    )
    v = torch.randn(3, n, dtype=torch.float64)
    passes = [torch.autograd.grad(y, W, row, retain_graph=True)[0] for row in (*v, v[0] + v[1])]
    torch.testing.assert_close(passes[3], passes[0] + passes[1], rtol=1e-12, atol=1e-13)


def test_a_record_sees_every_pass():
    W, x = problem()
    x.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    v = torch.arange(1.0, 1.0 + N, dtype=torch.float64)
    for k in range(3):
        torch.autograd.grad(y, x, k + v, retain_graph=True)
    with dil.record() as rec:
        for k in range(4):
            torch.autograd.grad(y, x, k + v, retain_graph=True)
    assert len(rec.backward) == 4


def test_nothing_is_kept_alive():
    W, x = problem()
    x.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    node = weakref.ref(y.grad_fn)
    gc.disable()
    try:
        del y
        assert node() is None
    finally:
        gc.enable()


def test_the_same_cotangent_gives_the_same_digits():
    """As `torch.autograd.gradcheck` wants."""
    W, x = problem()
    x.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    first = [torch.autograd.grad(y[k], x, retain_graph=True)[0] for k in range(N)]
    again = [torch.autograd.grad(y[k], x, retain_graph=True)[0] for k in range(N)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_krylov_solvers_solve_each_pass():
    W, x = problem()
    x.requires_grad_()
    calls = []

    def counted(A, b, *, loop=None):
        calls.append(1)
        return dil.linear.BiCGSTAB()(A, b, loop=loop)

    init = lambda x, W: torch.zeros_like(x)  # noqa: E731
    y = dil.root(residual, dil.solvers.Newton(), init=init, linear_solver=counted)(x, W)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    assert len(calls) == 3


def of_a_product(W):
    return W, lambda u, x: u + torch.tanh(W @ u) - x


def of_a_function_of_it(W):
    return W, lambda u, x: u + torch.tanh(W.exp() @ u) - x


def of_a_view(W):
    row = W[0]
    return W, lambda u, x: u + torch.tanh(row.exp() * u) - x


def of_a_module(W):
    torch.manual_seed(1)
    inner = torch.nn.Linear(N, N, dtype=torch.float64).requires_grad_(False)
    return inner.weight, lambda u, x: u + torch.tanh(inner(u)) - x


@pytest.mark.parametrize("make", [of_a_product, of_a_function_of_it, of_a_view, of_a_module])
@pytest.mark.parametrize(
    ("kind", "part"), [("root", lambda W: W), ("argmin", lambda W: W[:, : N // 2])], ids=["root", "argmin-view"]
)
def test_a_captured_tensor_that_changes_in_place_ends_the_sharing(make, part, kind):
    """Each pass sees it as it is, as a first pass does, and tells that y is no solution of it."""
    W, x = problem()
    x.requires_grad_()
    captured, F = make(W)
    f = F if kind == "root" else lambda u, x: 0.5 * (F(u, x) ** 2).sum()
    layer = getattr(dil, kind)(f, dil.solvers.Newton(), init=torch.zeros_like)
    v = torch.arange(1.0, 1.0 + N, dtype=torch.float64)
    y, fresh = layer(x), layer(x)
    for k in range(3):
        torch.autograd.grad(y, x, k + v, retain_graph=True)
    part(captured).add_(0.5)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        (expected,) = torch.autograd.grad(fresh, x, v**2)
    for _ in range(2):
        with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
            (found,) = torch.autograd.grad(y, x, v**2, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_captured_tensor_that_is_changed_back_is_shared_again():
    W, x = problem()
    x.requires_grad_()
    counted = Counted(lambda u, x: u + torch.tanh(W @ u) - x)
    y = dil.root(counted, dil.solvers.Newton(), init=torch.zeros_like)(x)
    v = torch.arange(1.0, 1.0 + N, dtype=torch.float64)
    for k in range(3):
        torch.autograd.grad(y, x, k + v, retain_graph=True)
    W.mul_(2.0)
    W.mul_(0.5)
    for k in range(3):  # one pass by itself, one that makes an inverse
        torch.autograd.grad(y, x, k + v, retain_graph=True)
    counted.calls = 0
    torch.autograd.grad(y, x, 5 * v, retain_graph=True)
    assert counted.calls == 0


def test_a_captured_tensor_of_inference_mode_is_read_in_each_pass():
    """torch does not count its changes."""
    W, x = problem()
    x.requires_grad_()
    with torch.inference_mode():
        captured = W[0].clone()
    y = dil.root(lambda u, x: u + torch.tanh(captured + u) - x, dil.solvers.Newton(), init=torch.zeros_like)(x)
    v = torch.arange(1.0, 1.0 + N, dtype=torch.float64)
    for k in range(3):
        torch.autograd.grad(y, x, k + v, retain_graph=True)
    with torch.inference_mode():
        captured.mul_(1.5)
    with pytest.warns(dil.ConvergenceWarning, match="NOT_STATIONARY"):
        torch.autograd.grad(y, x, v**2, retain_graph=True)


def test_what_was_read_is_not_kept_alive():
    x = problem()[1].requires_grad_()
    holder = [torch.ones(N, dtype=torch.float64)]
    y = dil.root(lambda u, x: u + torch.tanh(holder[0] + u) - x, dil.solvers.Newton(), init=torch.zeros_like)(x)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    seen = weakref.ref(holder.pop())
    assert seen() is None
    torch.autograd.grad(y[3], x, retain_graph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler itself
def test_rows_of_a_jacobian_within_a_compiled_function():
    """The compiler does not trace into the passes that share an inverse."""
    layer = dil.root(lambda u, x: u**3 + u - x, dil.solvers.Newton(), init=torch.zeros_like)
    x = torch.linspace(0.1, 0.9, 40, dtype=torch.float64).requires_grad_()

    @torch.compile(backend="aot_eager")
    def rows(x):
        y = layer(2.0 * x)
        return torch.stack([torch.autograd.grad(y[k], x, retain_graph=True)[0] for k in range(3)])

    y = layer(2.0 * x.detach())
    expected = torch.diag(2.0 / (3.0 * y**2 + 1.0))[:3]
    torch.testing.assert_close(rows(x), expected, rtol=1e-10, atol=1e-12)


class Half(dil.linear.Direct):
    """A solver of the user: half of the solution."""

    def __call__(self, A, b, *, loop=None, **options):
        found = super().__call__(A, b, loop=loop, **options)
        return found._replace(value=0.5 * found.value)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_a_subclass_of_a_solver_is_asked(n):
    x = torch.linspace(0.1, 0.9, n, dtype=torch.float64).requires_grad_()
    layer = dil.root(
        lambda u, x: u**3 + u - x,
        dil.solvers.Newton(),
        init=torch.zeros_like,
        linear_solver=Half(),
        on_failure="ignore",
    )
    for _ in range(3):
        y = layer(x)
        for _ in range(2):
            (g,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            torch.testing.assert_close(g, 0.5 / (3.0 * y.detach() ** 2 + 1.0), rtol=1e-10, atol=1e-12)


def test_the_last_pass_frees_what_the_passes_shared():
    W, x = problem()
    x.requires_grad_()
    y = dil.root(residual, dil.solvers.Newton(), init=lambda x, W: torch.zeros_like(x))(x, W)
    for k in range(3):
        torch.autograd.grad(y[k], x, retain_graph=True)
    passes = y.grad_fn.passes
    assert passes.pull is not None
    torch.autograd.grad(y[4], x)
    assert passes.pull is passes.reads is passes.first is None
