"""Wrong gradients that are not told, and right ones that are, in any unit.

    python benchmarks/silent.py --out docs/results

Random layers whose solver stops early, is noisy, or is wrong in one entry, in units from 1e-12 to 1e12, in float32 and
float64. The gradient of a loss is compared with the exact one, and with the status of its linear solve.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

import dil
from _results import write_results
from backward import machine, markdown, show

WRONG, RIGHT = 0.1, 0.01
"""Relative errors of a gradient that must be told, and that need not be."""
SEED = 20211
KINDS = ("stopped", "noisy", "one entry", "soft direction", "exact")
FAMILIES = ("quartic", "ridge", "softplus", "prior", "root", "fixed point")

MEASURED = (
    "Layers of six families: scores (quartic, ridge regression, softplus, a quadratic prior whose mean the solution "
    "leaves by 1e-4 to 1 of itself), a root and a fixed point with Jacobians that are not symmetric. Three in four "
    "have 1 to 12 unknowns and the default linear solver. The others have 13 to 60 and CG or BiCGSTAB. Unknowns, score "
    "and arguments have units 10^k, k uniform between -12 and 12 (in float32 the score between -6 and 6). Each unknown "
    "has its own unit, but all have one if the linear solver is iterative, because its residual is measured in one "
    "norm. The solver returns the solution with a relative error of 1e-8 to 1 in all entries ('stopped'), with noise "
    "of 1e-12 to 1e-4 ('noisy'), with an error of 1e-3 to 10 in one entry, with an error of 1e-8 to 1 along the "
    "softest direction, or rounded ('exact'). The loss is linear and quadratic in the solution. The error is the "
    "largest over the arguments of `||G - G*|| / ||G*||`, with G* by NumPy in float64 at the exact solution. 'silent' "
    "counts gradients with errors above 10 % whose status is CONVERGED, and 'alarms' gradients with errors below 1 %, "
    "from a solution that is right to 1 % in each entry, whose status is not."
)


@dataclass(frozen=True)
class Family:
    """One problem in units of one: the layer's function, and F and its derivatives for the reference."""

    function: Callable[..., Any]
    residual: Callable[..., Any]
    jacobian: Callable[..., Any]
    mixed: Callable[..., Any]
    """dF/dargs as a list of matrices, one for each argument."""
    layer: Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """One gradient."""

    family: str
    kind: str
    dtype: str
    unknowns: int
    argmin_error: float
    error: float
    status: str


def softplus(x: Any) -> Any:
    """Return log(1 + exp(x))."""
    return np.log(1.0 + np.exp(x))


def sigmoid(x: Any) -> Any:
    """Return the derivative of `softplus`."""
    return 1.0 / (1.0 + np.exp(-x))


def family(name: str, draw: np.random.Generator, n: int, dtype: str) -> tuple[Family, list[Any]]:
    """Return a random problem of a family, and its arguments."""
    M = draw.standard_normal((n, n)) / np.sqrt(n)
    H = M @ M.T + np.diag(np.logspace(0, -draw.uniform(0, 3), n))
    t = draw.standard_normal(n)
    eye = np.eye(n)
    M, H = (x.astype(dtype).astype(float) for x in (M, H))
    M_, H_ = M.astype(dtype), H.astype(dtype)
    if name == "quartic":
        return Family(
            lambda u, t: 0.5 * u @ (H_ @ u) + 0.25 * np.sum(u**4) - t @ u,
            lambda u, t: H @ u + u**3 - t,
            lambda u, t: H + np.diag(3 * u**2),
            lambda u, t: [-eye],
            dil.argmin,
        ), [t]
    if name == "ridge":
        X = draw.standard_normal((3 * n, n)) * np.logspace(0, -draw.uniform(0, 2), n)
        X = X.astype(dtype).astype(float)
        X_ = X.astype(dtype)
        y, p = draw.standard_normal(3 * n), np.asarray(draw.uniform(-2, 1))
        return Family(
            lambda u, y, p: 0.5 * np.sum((X_ @ u - y) ** 2) + 0.5 * np.exp(p) * np.sum(u**2),
            lambda u, y, p: X.T @ (X @ u - y) + np.exp(p) * u,
            lambda u, y, p: X.T @ X + np.exp(p) * eye,
            lambda u, y, p: [-X.T, (np.exp(p) * u)[:, None]],
            dil.argmin,
        ), [y, p]
    if name == "softplus":
        return Family(
            lambda u, t: 0.5 * u @ (H_ @ u) + np.sum(softplus(2 * (M_ @ u) + t)),
            lambda u, t: H @ u + 2 * M.T @ sigmoid(2 * (M @ u) + t),
            lambda u, t: H + 4 * (M.T * (sigmoid(2 * (M @ u) + t) * (1 - sigmoid(2 * (M @ u) + t)))) @ M,
            lambda u, t: [2 * M.T * (sigmoid(2 * (M @ u) + t) * (1 - sigmoid(2 * (M @ u) + t)))],
            dil.argmin,
        ), [t]
    if name == "prior":
        c, p = draw.standard_normal(n) * 10 ** draw.uniform(-4, 0), np.asarray(draw.uniform(-2, 1))
        c = c.astype(dtype).astype(float)
        c_ = c.astype(dtype)
        return Family(
            lambda u, t, p: 0.5 * np.exp(p) * (u - t) @ (H_ @ (u - t)) + (H_ @ c_) @ u,
            lambda u, t, p: np.exp(p) * H @ (u - t) + H @ c,
            lambda u, t, p: np.exp(p) * H,
            lambda u, t, p: [-np.exp(p) * H, (np.exp(p) * H @ (u - t))[:, None]],
            dil.argmin,
        ), [t, p]
    A = eye + 0.5 * M
    A_ = A.astype(dtype)
    if name == "root":
        return Family(
            lambda u, t: A_ @ u + 0.1 * u**3 - t,
            lambda u, t: A @ u + 0.1 * u**3 - t,
            lambda u, t: A + np.diag(0.3 * u**2),
            lambda u, t: [-eye],
            dil.root,
        ), [t]
    W = (0.4 * M / np.linalg.norm(M, 2)).astype(dtype).astype(float)
    W_ = W.astype(dtype)
    return Family(
        lambda u, t: np.tanh(W_ @ u + t),
        lambda u, t: u - np.tanh(W @ u + t),
        lambda u, t: eye - (1 - np.tanh(W @ u + t) ** 2)[:, None] * W,
        lambda u, t: [-np.diag(1 - np.tanh(W @ u + t) ** 2)],
        dil.fixed_point,
    ), [t]


def solve(problem: Family, u: Any, args: list[Any]) -> Any:
    """Return the exact solution by Newton's method with backtracking in ||F||."""
    for _ in range(200):
        F = problem.residual(u, *args)
        step, length = np.linalg.solve(problem.jacobian(u, *args), F), 1.0
        while length > 1e-6 and np.linalg.norm(problem.residual(u - length * step, *args)) > np.linalg.norm(F):
            length /= 2
        u = u - length * step
        if np.max(np.abs(step)) < 1e-15 * np.max(np.abs(u)):
            break
    return u


def moved(kind: str, draw: np.random.Generator, u: Any, J: Any) -> Any:
    """Return what a rough solver returns in the place of u."""
    n = len(u)
    if kind == "stopped":
        return u * (1 + 10 ** draw.uniform(-8, 0) * draw.standard_normal(n))
    if kind == "noisy":
        return u * (1 + 10 ** draw.uniform(-12, -4) * draw.standard_normal(n))
    if kind == "one entry":
        return u * (1 + np.eye(n)[draw.integers(n)] * 10 ** draw.uniform(-3, 1) * draw.choice([-1, 1]))
    if kind == "soft direction":
        return u + 10 ** draw.uniform(-8, 0) * np.linalg.norm(u) * np.linalg.svd(J)[2][-1]
    return u


def draw_row(seed: int) -> Row:
    """Draw one problem, and compare its gradient with the reference and with its status."""
    draw = np.random.default_rng([SEED, seed])
    name, kind = FAMILIES[seed % len(FAMILIES)], str(draw.choice(KINDS))
    iterative = draw.uniform() < 0.25
    dtype, n = (
        str(draw.choice(["float32", "float64"])),
        int(draw.integers(13, 61) if iterative else draw.integers(1, 13)),
    )
    problem, args = family(name, draw, n, dtype)
    exact = solve(problem, draw.standard_normal(n) if name != "fixed point" else np.zeros(n), args)
    y = moved(kind, draw, exact, problem.jacobian(exact, *args))
    a, b = draw.standard_normal(n), draw.uniform(0, 1, n)

    adjoint = np.linalg.solve(problem.jacobian(exact, *args).T, a + b * exact)
    reference = [-(adjoint @ np.reshape(m, (n, -1))) for m in problem.mixed(exact, *args)]

    D = 10.0 ** draw.integers(-12, 13, n)
    D = np.full(n, D[0]) if iterative else D
    c = 10.0 ** draw.integers(-12 if dtype == "float64" else -6, 13 if dtype == "float64" else 7)
    E = [10.0 ** draw.integers(-12, 13) for _ in args]
    if name in ("ridge", "prior"):
        E[1] = 1.0  # an exponent has no unit
    D, c, *E = (np.asarray(x, dtype) for x in (D, c, *E))

    def function(v: Any, *scaled: Any) -> Any:
        value = problem.function(v / D, *(x / e for x, e in zip(scaled, E, strict=True)))
        return D * value if problem.layer is dil.fixed_point else c * value

    rough = np.asarray(y * D, dtype)
    solver = dil.linear.Auto(dense=0) if iterative else None
    layer = problem.layer(function, lambda *_: rough, linear_solver=solver, on_failure="ignore")

    def loss(*scaled: Any) -> Any:
        u = layer(*scaled) / D
        return np.sum(np.asarray(a, dtype) * u) + 0.5 * np.sum(np.asarray(b, dtype) * u**2)

    point = [np.asarray(x, dtype) * e for x, e in zip(args, E, strict=True)]
    with warnings.catch_warnings(), dil.record() as record:
        warnings.simplefilter("ignore")
        found = dil.vjp(loss, *point)[1](np.asarray(1.0, dtype))
    gradients = [np.asarray(g * e, "float64").reshape(-1) for g, e in zip(found, E, strict=True)]
    errors = [np.linalg.norm(g - r) / np.linalg.norm(r) for g, r in zip(gradients, reference, strict=True)]
    status = dil.Status(int(record.backward[0].status)).name
    argmin_error = float(np.max(np.abs(y - exact) / np.abs(exact)))
    return Row(name, kind, dtype, n, argmin_error, float(np.max(errors)), status)


def summary(rows: list[Row]) -> list[dict[str, object]]:
    """Count the silent errors and the false alarms, for each kind of solver and dtype."""
    groups = [("all", rows)]
    groups += [(kind, [r for r in rows if r.kind == kind]) for kind in KINDS]
    groups += [(dtype, [r for r in rows if r.dtype == dtype]) for dtype in ("float32", "float64")]
    table: list[dict[str, object]] = []
    for name, some in groups:
        wrong = [r for r in some if not r.error <= WRONG]
        right = [r for r in some if r.error <= RIGHT and r.argmin_error <= RIGHT]
        table.append(
            {
                "solver": name,
                "problems": len(some),
                "wrong": len(wrong),
                "silent": sum(r.status == "CONVERGED" for r in wrong),
                "right": len(right),
                "alarms": sum(r.status != "CONVERGED" for r in right),
            }
        )
    return table


def main(
    out: Annotated[Path | None, typer.Option(help="Directory for silent.md and silent.json.")] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems to draw.")] = 2000,
) -> None:
    """Count wrong gradients that are not told, and right ones that are."""
    dil.backend("numpy")
    console = Console(stderr=True)
    rows = [draw_row(seed) for seed in track(range(problems), description="problems", console=console)]
    table = summary(rows)
    heads, cells = list(table[0]), [[str(x) for x in row.values()] for row in table]
    show(Console(), "silent", heads, cells)
    command = f"python benchmarks/silent.py --problems {problems}"
    if out is not None:
        parts = [
            "# Wrong gradients that are not told",
            f"`{command} --out docs/results`",
            MEASURED,
            markdown(heads, cells),
        ]
        record = {"command": command, "machine": machine(), "measured": MEASURED, "rows": [asdict(r) for r in rows]}
        write_results(out, "silent", parts, record)
    sys.exit(any(row["silent"] for row in table))


if __name__ == "__main__":
    typer.run(main)
