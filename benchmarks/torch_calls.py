"""Layers on torch beside the same work written by hand: vmap, Jacobians, L-BFGS, Anderson; linear solvers beside CG.

    python benchmarks/torch_calls.py --out docs/results

The two run in turn, on one core, and the ratio of processor times is taken for each round.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from _common import ONE_THREAD, Fresh, described, in_turn, machine, markdown, one_core, one_thread, word
from _results import write_results

CASES = (
    "vmap of grad, Newton",
    "vmap of grad, LBFGS",
    "jacrev",
    "jacfwd",
    "functional.jacobian",
    "hessian",
    "LBFGS, Rosenbrock",
    "LBFGS, logistic 1e-5",
    "LBFGS, logistic 1e-8",
    "Anderson, 64 problems",
    "Anderson, one problem",
    "roots, near the money",
    "roots, far from the money",
    "backward, 1 unknown",
    "backward, 2 unknowns",
    "backward, 5 unknowns",
    "forward and backward, 10 unknowns",
    "product, MINRES",
    "product, GMRES",
    "product, BiCGSTAB",
    "few hard systems, CG",
    "few hard systems, MINRES",
    "DEQ, forward 1e-6",
    "DEQ, backward 1e-6",
    "DEQ, forward 1e-3",
    "DEQ, backward 1e-3",
    "DEQ, forward 1e-5",
    "DEQ, backward 1e-5",
)


@dataclass(frozen=True)
class Row:
    """One case beside its reference."""

    case: str
    beside: str
    milliseconds: float
    ratio: float
    """The median of rounds."""
    quartiles: tuple[float, float]
    limit: float | None
    note: str


# --- this runs in a worker -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """What is measured, and the reference."""

    call: Callable[[], Any]
    reference: Callable[[], Any]
    beside: str
    limit: float | None = None
    note: Callable[[], str] = lambda: ""
    share: Callable[[], float] = lambda: 1.0
    """What the ratio is multiplied by, such as a ratio of steps."""


def measured(case: str, seconds: float) -> dict[str, Any]:
    """Time one case and its reference in turn."""
    one_core()
    one_thread("torch")
    import torch

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    pair = made(case)
    pair.call()
    pair.reference()
    rounds = in_turn([pair.call, pair.reference], seconds, 7)
    ratios = [pair.share() * a.cpu / b.cpu for a, b in rounds]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return {
        "beside": pair.beside,
        "milliseconds": 1e3 * statistics.median(a.cpu for a, _ in rounds),
        "ratio": ratio,
        "quartiles": (low, high),
        "limit": pair.limit,
        "note": pair.note(),
    }


def made(case: str) -> Pair:
    """Return what a case measures."""
    kind, _, which = case.partition(", ")
    if kind == "vmap of grad":
        return vmap_of_grad(which)
    if kind == "LBFGS":
        return minimised(which)
    if kind == "Anderson":
        return fixed_point(64, 128) if which == "64 problems" else fixed_point(1, 64)
    if kind == "roots":
        return volatilities(0.03 if which.startswith("near") else 0.15)
    if kind == "backward":
        return few_unknowns(int(which.split()[0]))
    if kind == "forward and backward":
        return whole(int(which.split()[0]))
    if kind == "product":
        return beside_cg(which)
    if kind == "few hard systems":
        return hard_systems(which)
    if kind == "DEQ":
        pass_, _, rtol = which.partition(" ")
        return equilibrium(pass_, float(rtol))
    return jacobian(case)


def vmap_of_grad(solver: str) -> Pair:
    """Return the gradients of 100 problems of 50 unknowns, by vmap and by `batch_ndim`."""
    import torch

    import dil

    A, rows = torch.randn(50, 50) / 7, torch.randn(100, 50)

    def one(u: Any, t: Any) -> Any:
        return ((A @ u - t) ** 2).sum() + 0.1 * (u**4).sum()

    def many(u: Any, t: Any) -> Any:
        return ((u @ A.T - t) ** 2).sum(-1) + 0.1 * (u**4).sum(-1)

    make = getattr(dil.solvers, solver)
    layer = dil.argmin(one, make(), init=torch.zeros_like)
    batch = dil.argmin(many, make(), init=torch.zeros_like, batch_ndim=1)

    def together() -> Any:
        t = rows.clone().requires_grad_()
        return torch.autograd.grad(batch(t).square().sum(), t)

    gradient = torch.func.vmap(torch.func.grad(lambda t: layer(t).square().sum()))
    return Pair(lambda: gradient(rows), together, "`batch_ndim=1`", 1.3)


def jacobian(case: str) -> Pair:
    """Return the Jacobian of a solution of 50 unknowns, or the Hessian of a loss, by torch and by hand."""
    import torch

    import dil

    A, t = torch.randn(50, 50) / 7, torch.randn(50)

    def score(u: Any, t: Any) -> Any:
        return ((A @ u - t) ** 2).sum() + 0.1 * (u**4).sum()

    layer = dil.argmin(score, dil.solvers.Newton(), init=torch.zeros_like)

    def by_hand() -> Any:
        y = layer(t)
        H = torch.func.hessian(score)(y, t)
        return torch.linalg.solve(H, -torch.func.jacrev(torch.func.grad(score), 1)(y, t))

    if case == "hessian":
        hessian = torch.func.hessian(lambda t: layer(t).square().sum())
        return Pair(lambda: hessian(t), lambda: torch.func.jacrev(layer)(t), "`jacrev` of the layer", 3.0)
    if case == "functional.jacobian":
        rows = torch.autograd.functional.jacobian
        return Pair(lambda: rows(layer, t), by_hand, "dense matrices and one solve", None, lambda: "row by row")
    transform = getattr(torch.func, case)(layer)
    return Pair(lambda: transform(t), by_hand, "dense matrices and one solve", 1.3)


def minimised(which: str) -> Pair:
    """Return a minimisation by L-BFGS from one start until the gradient is short enough, relative to the first one.

    The default tolerance of dil asks for more than `torch.optim.LBFGS` reaches on the logistic regression, whose line
    search compares values of the score. So dil gets the loosest tolerance, among powers of ten, that suffices.
    """
    import torch

    import dil

    kind, _, level = which.partition(" ")
    if kind == "Rosenbrock":
        start = torch.full((100,), -1.0)

        def score(u: Any) -> Any:
            return (100 * (u[1:] - u[:-1] ** 2) ** 2 + (1 - u[:-1]) ** 2).sum()

    else:
        X, start = torch.randn(569, 31), torch.zeros(31)
        Z = torch.sign(X @ torch.randn(31) + 0.5 * torch.randn(569))[:, None] * X

        def score(u: Any) -> Any:
            return torch.nn.functional.softplus(-Z @ u).mean() + 0.025 * (u**2).sum()

    def gradient(u: Any) -> float:
        return float(torch.func.grad(score)(u).abs().max())

    solver = dil.solvers.LBFGS()
    if level:
        tolerance = float(level) * gradient(start)
        loosest_first = (dil.solvers.LBFGS(rtol=10.0**-k) for k in range(1, 12))
        solver = next(s for s in loosest_first if gradient(s(score, start).value) <= tolerance)
    solution = solver(score, start)
    reached = gradient(solution.value)
    tolerance = tolerance if level else reached
    evaluations = [0]

    def by_optim() -> Any:
        u = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [u],
            max_iter=5000,
            max_eval=10_000,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            history_size=10,
            line_search_fn="strong_wolfe",
        )
        evaluations[0] = 0

        def closure() -> Any:
            evaluations[0] += 1
            optimiser.zero_grad()
            value = score(u)
            value.backward()
            return value

        optimiser.step(closure)
        return u.detach()

    def note() -> str:
        assert solution.extra is not None
        left = gradient(by_optim())
        return (
            f"{int(solution.extra['evaluations'])} and {evaluations[0]} evaluations, greatest entry of the gradient "
            f"{reached:.0e} and {left:.0e}, asked for {tolerance:.0e}"
        )

    return Pair(lambda: solver(score, start), by_optim, "`torch.optim.LBFGS`", 1.2, note)


def fixed_point(batch: int, unknowns: int) -> Pair:
    """Return Anderson acceleration, and the shortest code for it; the ratio is that of one step."""
    import torch

    import dil

    W = 0.97 * torch.linalg.qr(torch.randn(unknowns, unknowns))[0]
    x = 0.1 * torch.randn(batch, unknowns)

    def step(u: Any, x: Any) -> Any:
        return torch.tanh(u @ W.T) + x

    layer = dil.fixed_point(step, dil.solvers.Anderson(rtol=1e-8), init=torch.zeros_like, batch_ndim=1)
    counts: dict[str, int] = {}

    def solve() -> Any:
        solution = layer.solve(x)
        counts["dil"] = int(solution.iterations.max())
        return solution

    def by_hand(memory: int = 5, most: int = 300) -> Any:
        images, residuals = x.new_zeros(memory, *x.shape), x.new_zeros(memory, *x.shape)
        u = torch.zeros_like(x)
        for k in range(most):
            image = step(u, x)
            residual = image - u
            images[k % memory], residuals[k % memory] = image, residual
            if residual.norm() <= 1e-8 * image.norm():
                break
            held = min(k + 1, memory)
            R = residuals[:held].movedim(0, 1)
            gram = R @ R.mT
            gram = gram / gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None] + 1e-10 * torch.eye(held)
            weights = torch.linalg.solve(gram, x.new_ones(len(x), held, 1))
            weights = weights / weights.sum(1, keepdim=True)
            u = (weights.mT @ images[:held].movedim(0, 1))[:, 0]
        counts["hand"] = k + 1
        return u

    return Pair(
        solve,
        by_hand,
        "the shortest code, one step",
        None,
        lambda: f"{counts['dil']} and {counts['hand']} steps",
        lambda: counts["hand"] / counts["dil"],
    )


def volatilities(spread: float, count: int = 100_000) -> Pair:
    """Return implied volatilities of options, and six steps of Newton's method on all of them.

    Near the money all roots take a few steps, and the ratio is that of one step. Far from it a few take many steps.
    """
    import torch

    import dil

    k, t, s = torch.exp(spread * torch.randn(count)), 0.1 + 1.9 * torch.rand(count), 0.1 + 0.5 * torch.rand(count)

    def price(s: Any, k: Any, t: Any) -> Any:
        v = s * torch.sqrt(t)
        d = 0.5 * v - torch.log(k) / v
        return torch.special.ndtr(d) - k * torch.special.ndtr(d - v)

    def residual(s: Any, p: Any, k: Any, t: Any) -> Any:
        return price(s, k, t) - p

    p, steps, most = price(s, k, t), [0.0, 0.0], 6
    layer = dil.root(residual, dil.solvers.Newton(), init=lambda p, k, t: torch.full_like(p, 0.4), batch_ndim=1)

    def solve() -> Any:
        solution = layer.solve(p, k, t)
        steps[:] = float(solution.iterations.double().mean()), float(solution.iterations.max())
        return solution

    def by_hand() -> Any:
        u = torch.full_like(p, 0.4)
        for _ in range(most):
            u.requires_grad_()
            F = residual(u, p, k, t)
            (slope,) = torch.autograd.grad(F.sum(), u)
            u = (u - F / slope).detach()
        return u

    near = spread < 0.1
    return Pair(
        solve,
        by_hand,
        f"Newton's method by autograd, {'one step' if near else 'six steps'}",
        3.0 if near else None,
        lambda: f"{steps[0]:.1f} steps on average, {steps[1]:.0f} at most",
        lambda: most / steps[1] if near else 1.0,
    )


def few_unknowns(n: int) -> Pair:
    """Return the backward pass of a root of few unknowns, and one by hand from the same point."""
    import torch

    import dil

    W = 0.3 * torch.randn(n, n)
    x, v = torch.randn(n, requires_grad=True), torch.randn(n)

    def residual(u: Any, x: Any) -> Any:
        return u + torch.tanh(W @ u) - x

    y = dil.root(residual, dil.solvers.Newton(), init=torch.zeros_like)(x)
    point = y.detach().requires_grad_()

    def backward() -> Any:
        return [torch.autograd.grad(y, x, v, retain_graph=True) for _ in range(20)]

    def by_hand() -> Any:
        found = []
        for _ in range(20):
            F = residual(point, x)
            rows = [torch.autograd.grad(F, point, e, retain_graph=True)[0] for e in torch.eye(n)]
            found.append(torch.autograd.grad(F, x, -torch.linalg.solve(torch.stack(rows).T, v)))
        return found

    return Pair(backward, by_hand, "by hand, without a check", 2.0, lambda: "20 passes")


def whole(n: int) -> Pair:
    """Return a minimum by Newton's method with its gradient, and the same steps and the dense solve by hand."""
    import torch

    import dil

    A, x, v = torch.randn(n, n), torch.randn(n, requires_grad=True), torch.randn(n)
    A = A @ A.T / n + torch.eye(n)

    def score(u: Any, x: Any) -> Any:
        return 0.5 * u @ (A @ u) + torch.sum(torch.log(torch.cosh(u))) - x @ u

    layer = dil.argmin(score, dil.solvers.Newton(), init=torch.zeros_like)
    steps = int(layer.solve(x.detach()).iterations)

    def linearised(u: Any) -> tuple[Any, Any]:
        (F,) = torch.autograd.grad(score(u, x), u, create_graph=True)
        return F, torch.stack([torch.autograd.grad(F, u, e, retain_graph=True)[0] for e in torch.eye(n)])

    def by_hand() -> Any:
        u = torch.zeros(n, requires_grad=True)
        for _ in range(steps):
            F, H = linearised(u)
            u = (u - torch.linalg.solve(H, F)).detach().requires_grad_()
        F, H = linearised(u)
        return torch.autograd.grad(F, x, -torch.linalg.solve(H, v))[0]

    def by_dil() -> Any:
        return torch.autograd.grad(layer(x), x, v)[0]

    assert torch.allclose(by_dil(), by_hand(), rtol=1e-9)
    note = f"{steps} steps"
    return Pair(by_dil, by_hand, "Newton's method and a dense solve by hand, without a check", 1.3, lambda: note)


def beside_cg(solver: str) -> Pair:
    """Return a linear solve, and one by CG, of 1,000 unknowns; the ratio is that of one product with the matrix."""
    import torch

    import dil

    n, counts = 1000, {"CG": 0, solver: 0}
    Q, b = torch.linalg.qr(torch.randn(n, n))[0], torch.randn(n)
    A = (Q * torch.logspace(0, 1.5, n)) @ Q.T

    def solved(name: str) -> Callable[[], Any]:
        def product(p: Any) -> Any:
            counts[name] += 1
            return A @ p

        operator = dil.linear.Operator(product, symmetric=True)

        def solve() -> Any:
            counts[name] = 0
            return getattr(dil.linear, name)(rtol=1e-10)(operator, b)

        return solve

    return Pair(
        solved(solver),
        solved("CG"),
        "CG, one product",
        1.3,
        lambda: f"{counts[solver]} and {counts['CG']} products",
        lambda: counts["CG"] / counts[solver],
    )


def hard_systems(solver: str, count: int = 2000, hard: int = 5, n: int = 50) -> Pair:
    """Return the backward pass of a batch with a few matrices of condition number 1e6, beside two batches of a kind."""
    import torch

    import dil

    def matrices(count: int, digits: float) -> Any:
        Q = torch.linalg.qr(torch.randn(count, n, n))[0]
        return (Q * torch.logspace(0, digits, n)) @ Q.mT

    def score(u: Any, t: Any, A: Any) -> Any:
        return 0.5 * (u * (A @ u[..., None])[..., 0]).sum(-1) - (u * t).sum(-1)

    options = {"linear_solver": getattr(dil.linear, solver)(), "batch_ndim": 1, "on_failure": "ignore"}
    layer = dil.argmin(score, dil.solvers.Newton(max_iter=1), init=lambda t, A: torch.linalg.solve(A, t), **options)

    def backward(A: Any) -> Callable[[], Any]:
        t = torch.randn(len(A), n, requires_grad=True)
        y, v = layer(t, A), torch.randn(len(A), n)
        return lambda: torch.autograd.grad(y, t, v, retain_graph=True)

    A = torch.cat([matrices(hard, 6.0), matrices(count - hard, 1.0)])
    easy, few = backward(A[hard:]), backward(A[:hard])
    return Pair(backward(A), lambda: (easy(), few()), "the easy and the hard ones as two batches", 1.3)


def equilibrium(which: str, rtol: float) -> Pair:
    """Return a pass of a deep equilibrium block of two convolutions, by dil and by torchdeq.

    The forward solver is that of docs/pages/howto/deq.md. torchdeq gets the loosest tolerance whose residual is not
    larger: it returns the image of the point that it tests. Both linear solves have one tolerance.
    """
    import torch
    from torchdeq import get_deq

    import dil
    from dil_backends.nn import ImplicitModule

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

        def forward(self, u: Any, x: Any) -> Any:
            return torch.tanh(self.second(torch.relu(self.first(u))) + x)

    block, x = Block().float(), torch.randn(16, 16, 16, 16, dtype=torch.float32)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.5)
    solver = dil.solvers.Anderson(rtol=rtol, norm="leaves")
    layer = ImplicitModule(block, solver, kind="fixed_point", init=torch.zeros_like, batch_ndim=1)

    def residual(u: Any) -> float:
        with torch.no_grad():
            image = block(u, x)
            return float(((image - u).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)).max())

    solution = layer.solve(x)
    reached = residual(solution.value)
    tight = torch.finfo(torch.float32).eps ** 0.75
    modes = {"f_stop_mode": "rel", "b_stop_mode": "rel", "ift": True, "f_max_iter": 200, "b_max_iter": 200}
    modes |= {
        "f_solver": "anderson",
        "b_solver": "anderson",
        "b_tol": max(0.1 * rtol, tight),
    }

    def by_dil() -> Any:
        return layer(x)

    def solved_by(deq: Any) -> Any:
        return deq(lambda u: block(u, x), torch.zeros_like(x))[0][-1]

    loosest_first = (get_deq(f_tol=reached * 10.0 ** (1 - k / 4), **modes) for k in range(24))
    deq = next(found for found in loosest_first if residual(solved_by(found)) <= reached)

    def by_torchdeq() -> Any:
        return solved_by(deq)

    def note() -> str:
        return f"{int(solution.iterations.max())} steps, residuals {reached:.0e} and {residual(by_torchdeq()):.0e}"

    if which == "forward":
        return Pair(by_dil, by_torchdeq, "torchdeq's Anderson", 0.8, note)
    y, z, weights = by_dil(), by_torchdeq(), tuple(block.parameters())
    cotangent = torch.randn_like(x)

    def back(u: Any) -> Any:
        return torch.autograd.grad(u, weights, cotangent, retain_graph=True)

    return Pair(lambda: back(y), lambda: back(z), "torchdeq's Anderson", 0.8, note)


# --- the command -----------------------------------------------------------------------------------------------------

HEADS = ("case", "beside", "time, ms", "ratio", "at most", "reached", "note")


def cells(rows: list[Row]) -> list[list[str]]:
    """Return the cells of the table."""
    return [
        [
            row.case,
            row.beside,
            f"{row.milliseconds:.1f}",
            f"{row.ratio:.2f} ({row.quartiles[0]:.2f} to {row.quartiles[1]:.2f})",
            "-" if row.limit is None else f"{row.limit:g}",
            word(None if row.limit is None else row.ratio <= row.limit),
            row.note,
        ]
        for row in rows
    ]


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="Folder for torch_calls.md and torch_calls.json.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for each case.")] = 8.0,
    only: Annotated[str, typer.Option(help="Part of the names of the cases to measure.")] = "",
) -> None:
    """Measure layers on torch beside the same work written by hand."""
    os.environ.update(ONE_THREAD)
    rows = []
    with Fresh(every_time=True) as fresh:
        for case in CASES:
            if case.startswith("DEQ") and find_spec("torchdeq") is None:
                Console().print(f"{case}: skipped, because torchdeq is not installed (pip install torchdeq)")
            elif only in case:
                rows.append(Row(case, **fresh(measured, case, seconds)))
                Console().print(markdown(HEADS, cells(rows[-1:])))
    command, host = shlex.join(["python", *sys.argv]), machine()
    parts = [
        "# Layers on torch beside code written by hand",
        f"Written by `{command}`. {described(host)}. One thread, one core.",
        "Float64. 'vmap of grad': 100 problems of 50 unknowns. 'jacrev', 'jacfwd', 'functional.jacobian', 'hessian': "
        "50 unknowns, the solve included on both sides. 'LBFGS': the same start, to the same bound on the gradient; "
        "logistic regression has 569 rows and 31 unknowns, and its bound is relative to the first gradient; dil also "
        "verifies the solution by a Newton step. 'Anderson': memory 5, tolerance 1e-8. 'product': a dense symmetric "
        "positive definite matrix of 1,000 unknowns with condition number 32, to 1e-10. "
        "'few hard systems': the backward pass of 2,000 problems of 50 unknowns, five of condition number 1e6. "
        "'roots': 100,000 implied volatilities as one batch of scalars. 'backward': the backward pass of a root. "
        "'forward and backward': a minimum of a strictly convex score, and its gradient. "
        "'DEQ': float32, two convolutions of 16 channels on 16 x 16, batch 16, `Anderson(norm=\"leaves\")` beside "
        "torchdeq at the loosest tolerance whose residual is not larger; dil also checks its gradient; "
        "its rows are left out where torchdeq is not installed. The ratio is "
        "the median over rounds, and its quartiles.",
        "What the library does beyond the other code, in counts. 'LBFGS, logistic 1e-5': one gradient with its graph, "
        "31 rows of the Hessian in one pull and their inverse verify the solution; it takes about a fifth of the time. "
        "'DEQ, forward': one evaluation of the block more at 1e-3 (9 and 8) and at 1e-5 (13 and 12), which looks for "
        "captured tensors; 16 and 21 at 1e-6. 'DEQ, backward': 8 evaluations and 14 products at 1e-3, where torchdeq "
        "takes 1 and 11; 4 and 18 at 1e-5, where it takes 1 and 19. The evaluations continue the iteration from the "
        "loose point: the error of the gradient is 3e-5 at 1e-3 and 3e-6 at 1e-5, that of torchdeq 1.6e-2 and 2e-5. So "
        "0.8 of its time at 1e-3 is out of reach with these counts.",
        markdown(HEADS, cells(rows)),
    ]
    if out is not None:
        write_results(out, "torch_calls", parts, {"host": host, "command": command, "rows": [asdict(r) for r in rows]})


if __name__ == "__main__":
    app()
