"""Layers of DTensors: two processes hold the halves of each tensor, and agree with one that holds all."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import dil

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch.distributed as dist  # noqa: E402

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch is built without torch.distributed or gloo", allow_module_level=True)

from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.experimental import implicit_replication  # noqa: E402

from dil_backends.nn import ImplicitModule  # noqa: E402

pytestmark = pytest.mark.transform("DTensor")

S, L = dil.solvers, dil.linear
ROWS, ALL = Shard(0), Replicate()


def well(u, x, A, t):
    """Score one unknown, which A couples. Of the mean, each process has a part alone."""
    return 0.5 * ((A @ (u - x)) ** 2).sum() + 0.25 * t * (u**4).sum() + 0.5 * ((u - 0.5 * u.mean()) ** 2).sum()


def wells(u, x, t):
    """Score each row."""
    return torch.cosh(u - x).sum(-1) + 0.5 * t * (u * u).sum(-1)


def residual(u, x, A, t):
    return u + t * torch.tanh(A @ u) - x


def step(u, x, A, t):
    return 0.1 * t * torch.cos(A @ u) + x


def numbers(n=6):
    """Return x, A and t."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((n,), (n, n)))
    return x, torch.eye(n, dtype=torch.float64) + 0.1 * noise, torch.tensor(0.7, dtype=torch.float64)


def rows():
    x, A, t = numbers()
    return torch.stack([x[:3], x[3:], A[0, :3], A[1, :3]]), t


ONE, MANY = (ROWS, ROWS, ALL), (ROWS, ALL)
CASES = {
    "argmin by Newton": (dil.argmin(well, S.Newton()), numbers, ONE),
    "argmin by LBFGS, columns of A": (dil.argmin(well, S.LBFGS()), numbers, (ROWS, Shard(1), ALL)),
    "argmin by gradient descent": (dil.argmin(well, S.GradientDescent(rtol=1e-14)), numbers, ONE),
    "backward by CG": (dil.argmin(well, S.Newton(), linear_solver=L.CG()), numbers, ONE),
    "backward by CG with one reduction": (
        dil.argmin(well, S.Newton(), linear_solver=L.CG(one_reduction=True)),
        numbers,
        ONE,
    ),
    "backward by MINRES": (dil.argmin(well, S.Newton(), linear_solver=L.MINRES()), numbers, ONE),
    "backward by a dense solve": (dil.argmin(well, S.Newton(), linear_solver=L.Direct()), numbers, ONE),
    "root": (dil.root(residual, S.Newton()), numbers, ONE),
    "fixed point by Anderson": (dil.fixed_point(step, S.Anderson()), numbers, ONE),
    "value": (dil.value(well, S.LBFGS()), numbers, ONE),
    "shards of different lengths": (dil.argmin(well, S.Newton()), lambda: numbers(7), ONE),
    "a batch": (dil.argmin(wells, S.LBFGS(), batch_ndim=1), rows, MANY),
}


def loss(y):
    return y.sin().sum()


def start(x, placements=None, mesh=None):
    zeros = torch.zeros_like(x)
    return zeros if mesh is None else distribute_tensor(zeros, mesh, placements)


def compared(case, mesh):
    """Return the relative differences of y and of each gradient from plain tensors, and the placements of all."""
    layer, make, placements = CASES[case]
    plain = [x.requires_grad_() for x in make()]
    y = layer(*plain, init=start(plain[0].detach()))
    loss(y).backward()
    spread = [distribute_tensor(x, mesh, [p]).requires_grad_() for x, p in zip(make(), placements, strict=True)]
    found = layer(*spread, init=start(make()[0], placements[:1], mesh))
    loss(found).backward()
    pairs = [(found.detach(), y.detach()), *((a.grad, b.grad) for a, b in zip(spread, plain, strict=True))]
    differences = [float((a.full_tensor() - b).abs().max() / b.abs().max()) for a, b in pairs]
    return differences, [found.placements, *(x.grad.placements for x in spread)]


def second(mesh):
    """Return how second derivatives differ."""
    found = []
    for place in (lambda x, p: x, lambda x, p: distribute_tensor(x, mesh, [p])):
        x, A, t = (place(a, p).requires_grad_() for a, p in zip(numbers(), ONE, strict=True))
        y = dil.argmin(well, S.Newton())(x, A, t, init=torch.zeros_like(x))
        (g,) = torch.autograd.grad(loss(y), x, create_graph=True)
        found.append(torch.autograd.grad((g * g).sum(), (x, A)))
    return [float((b.full_tensor() - a).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)]


def second_in_one(mesh):
    """Return how second derivatives in x differ, where A takes no part in the differentiation."""
    found = []
    for solver in (S.Newton(), S.LBFGS()):
        for place in (lambda x, p: x, lambda x, p: distribute_tensor(x, mesh, [p])):
            x, A, t = (place(a, p) for a, p in zip(numbers(), ONE, strict=True))
            y = dil.argmin(well, solver)(x.requires_grad_(), A, t, init=torch.zeros_like(x))
            (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            found += torch.autograd.grad(g.sum(), x)
    pairs = zip(found[::2], found[1::2], strict=True)
    return [float((b.full_tensor() - a).abs().max() / a.abs().max()) for a, b in pairs]


def uneven_branch(mesh):
    """Return what a solver of the user reads: the norm of a gradient, of which each process holds a part."""
    counts = []

    def descend(fun, u, x):
        for _ in range(1000):
            u = u.detach().requires_grad_()
            fun(u, x).backward()
            counts.append(float((u.grad * u.grad).sum()))
            if counts[-1] < 1e-28:
                break
            u = u - 0.25 * u.grad
        return u

    x = distribute_tensor(torch.tensor([0.0, 0.0, 0.0, 5.0], dtype=torch.float64), mesh, [ROWS])
    dil.argmin(lambda u, x: ((u - x) ** 2).sum(), descend)(x, init=torch.zeros_like(x))
    return counts


def raised(mesh):
    """Return the error that both processes meet."""
    x, A, t = (distribute_tensor(a, mesh, [p]).requires_grad_() for a, p in zip(numbers(), ONE, strict=True))
    layer = dil.argmin(well, S.Newton(), linear_solver=L.CG(max_iter=1), on_failure="raise")
    try:
        layer(x, A, t, init=torch.zeros_like(x)).sum().backward()
    except dil.ConvergenceError as error:
        return str(error)


def work(rank, folder, cases):
    """Do some comparisons in one of two processes."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = {case: OTHERS[case](mesh) if case in OTHERS else compared(case, mesh) for case in cases}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


OTHERS = {
    "second derivatives": second,
    "second derivatives in x alone": second_in_one,
    "a solver of the user": uneven_branch,
    "a failure": raised,
}
FAST = [
    "second derivatives in x alone",
    "argmin by LBFGS, columns of A",
    "backward by CG",
    "fixed point by Anderson",
    "value",
    "a solver of the user",
    "a failure",
]
SLOW = [case for case in (*CASES, *OTHERS) if case not in FAST]


def in_two_processes(folder, cases):
    torch.multiprocessing.spawn(work, (str(folder), cases), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("fast"), FAST)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("slow"), SLOW)


@pytest.fixture
def two(request, case):
    """Return what the two processes found for a case."""
    return [found[case] for found in request.getfixturevalue("fast" if case in FAST else "slow")]


def cases(names):
    return pytest.mark.parametrize(
        "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in names]
    )


@cases(CASES)
def test_two_processes_give_the_gradients_of_one(two, case):
    for differences, _ in two:
        assert max(differences) <= 1e-12


@cases(CASES)
def test_y_and_gradients_lie_where_the_start_and_the_arguments_do(two, case):
    places = CASES[case][2]
    for _, found in two:
        assert found == [(ALL if case == "value" else places[0],), *((p,) for p in places)]


@cases(["second derivatives", "second derivatives in x alone"])
def test_second_derivatives(two, case):
    assert max(two[0] + two[1]) <= 1e-12


@cases(["a solver of the user"])
def test_a_solver_reads_the_same_numbers_in_all_processes(two, case):
    assert two[0] == two[1]
    assert two[0][-1] < 1e-28


@cases(["a failure"])
def test_a_failure_is_raised_in_all_processes(two, case):
    assert two[0] == two[1]
    assert "backward solve: MAX_ITER" in two[0]


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def spread(mesh):
    return [distribute_tensor(a, mesh, [p]).requires_grad_() for a, p in zip(numbers(), ONE, strict=True)]


LAYER = dil.argmin(well, S.Newton(), init=lambda x, A, t: torch.zeros_like(x))


def test_report_record_and_solve(spread):
    plain, shared = (str(LAYER.report(*args).backward.status) for args in (numbers(), spread))
    assert plain == shared == "0"
    with dil.record() as seen:
        LAYER(*spread).sum().backward()
    assert [int(entry.status) for entry in (*seen.forward, *seen.backward)] == [0, 0]
    assert seen.backward[0].bound < 1e-12
    assert LAYER.solve(*spread).value.placements == (ROWS,)


def test_transforms_of_dil(spread):
    x, A, t = (a.detach() for a in spread)
    y, tangent = dil.jvp(lambda x: LAYER(x, A, t), (x,), (x,))
    expected = dil.jvp(lambda x: LAYER(x, *numbers()[1:]), numbers()[:1], numbers()[:1])
    assert torch.allclose(y.full_tensor(), expected[0], rtol=1e-12)
    assert torch.allclose(tangent.full_tensor(), expected[1], rtol=1e-12)


def test_a_module_of_shards(mesh):
    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(6, 4).double()

        def forward(self, u, x):
            return torch.nn.functional.softplus(self.mix(u)).sum() + ((u - x) ** 2).sum()

    def shard(name, part, mesh):
        for key, p in list(part.named_parameters(recurse=False)):
            part.register_parameter(key, torch.nn.Parameter(distribute_tensor(p, mesh, [ROWS])))

    model = ImplicitModule(Energy(), S.LBFGS(), init=torch.zeros_like)
    x = numbers()[0]
    model(x).sum().backward()
    expected = model.score.mix.weight.grad
    model = distribute_module(model, mesh, shard)
    model(distribute_tensor(x, mesh, [ROWS])).sum().backward()
    assert model.score.mix.weight.grad.placements == (ROWS,)
    assert torch.allclose(model.score.mix.weight.grad.full_tensor(), expected, rtol=1e-12)
    with pytest.raises(dil.BackendError, match=r"weight, mix.bias came as shards .* make all of them DTensors"):
        model(x)


def test_plain_tensors_of_which_the_user_says_that_they_are_equal(spread, mesh):
    """torch's `implicit_replication` ends when it is left, in the backward pass of a layer it goes on."""
    x, plain = spread[0], [a.requires_grad_() for a in numbers()]
    with implicit_replication():
        y = LAYER(x, *plain[1:])
    with pytest.raises(RuntimeError, match="mixed"):
        x * plain[0]
    loss(y).backward()
    found = [x.grad.full_tensor(), plain[1].grad, plain[2].grad]
    assert not any(isinstance(g, DTensor) for g in found)
    expected = torch.autograd.grad(loss(LAYER(*plain)), plain)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def test_a_sum_over_shards_as_a_cotangent(spread, mesh):
    """A DTensor whose processes hold parts of a sum."""
    y = LAYER(*spread)
    (g,) = torch.autograd.grad(y, spread[0], DTensor.from_local(torch.ones(6, dtype=torch.float64), mesh, [Partial()]))
    (expected,) = torch.autograd.grad(LAYER(*spread).sum(), spread[0])
    assert torch.allclose(g.full_tensor(), expected.full_tensor(), rtol=1e-12)


MIXED = "which may differ between the processes; make it a DTensor by torch.distributed.tensor.distribute_tensor"


def test_plain_tensors_among_dtensors_are_refused(spread):
    x, A, t = numbers()
    with pytest.raises(dil.BackendError, match=rf"plain tensors, of shape \(6, 6\), \(\), {MIXED}"):
        LAYER(spread[0], A, t)
    with pytest.raises(dil.BackendError, match=rf"plain tensors, of shape \(6,\), {MIXED}"):
        LAYER(*spread, init=torch.zeros_like(x))
    with pytest.raises(dil.BackendError, match=rf"DTensors, of shape \(6,\), and plain tensors, .*{MIXED}"):
        dil.argmin(well, S.Newton(), init=spread[0])(x, A, t)


def captured(u, x):
    return ((u - x) ** 2).sum() + (u * torch.arange(6.0, dtype=torch.float64)).sum()


@pytest.mark.parametrize(
    "layer",
    [
        dil.argmin(captured, S.LBFGS(), init=torch.zeros_like),
        dil.argmin(captured, lambda fun, init, x: x, init=torch.zeros_like),
        dil.argmin(lambda u, x: ((u - x) ** 2).sum(), lambda fun, init, x: numbers()[0]),
        dil.argmin(lambda u, x: ((u - x) ** 2).sum(), S.LBFGS(), init=lambda x: numbers()[0]),
    ],
    ids=["score", "score beside a solver of the user", "solver", "start"],
)
def test_plain_tensors_that_a_function_makes_are_refused(layer, spread):
    with pytest.raises(dil.BackendError, match=rf"makes or captures a plain tensor, {MIXED}"):
        layer(spread[0])


def test_two_meshes_are_refused(spread, mesh):
    other = init_device_mesh("cpu", (1, 1))
    A = distribute_tensor(numbers()[1], other, [ALL, ALL])
    with pytest.raises(dil.BackendError, match=r"different meshes, .* and .*; distribute all"):
        LAYER(spread[0], A, spread[2])


@pytest.mark.parametrize("layer", [dil.argmin(well, S.SciPy()), dil.root(residual, S.SciPyRoot())])
def test_solvers_on_the_host_are_refused(layer, spread):
    pytest.importorskip("scipy", reason="scipy is not installed")
    with pytest.raises(dil.BackendError, match="got a DTensor, whose numbers are shared out; take LBFGS"):
        layer(*spread, init=torch.zeros_like(spread[0]))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.vmap])
def test_transforms_of_torch_func_are_refused(transform, spread):
    x, A, t = (a.detach() for a in spread)
    with pytest.raises(dil.UnsupportedFunctionError, match=r"take backward\(\), torch.autograd.grad, dil.vjp"):
        transform(lambda x: LAYER(x, A, t).sum())(x)


def test_a_mesh_of_two_dimensions(mesh):
    grid = init_device_mesh("cpu", (1, 1))
    x, A, t = (
        distribute_tensor(a, grid, p).requires_grad_()
        for a, p in zip(numbers(), ([ROWS, ALL], [ROWS, Shard(1)], [ALL, ALL]), strict=True)
    )
    loss(LAYER(x, A, t)).backward()
    plain = [a.requires_grad_() for a in numbers()]
    expected = torch.autograd.grad(loss(LAYER(*plain)), plain)
    for a, g in zip((x, A, t), expected, strict=True):
        assert a.grad.placements == a.placements
        assert torch.allclose(a.grad.full_tensor(), g, rtol=1e-12)
