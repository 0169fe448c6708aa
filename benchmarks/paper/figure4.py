"""Figure 4 of the paper (appendix C): the dynamics of a mass-spring-damper, learned from an expert's controls.

    python benchmarks/paper/figure4.py --out docs/results

The expert is the linear quadratic regulator of the true system. The learner is the regulator of its own system matrix.
It updates the matrix by the gradient through Riccati's equation. Three gradients are compared: the analytic derivative
of East et al. 2020, the implicit function theorem with a dense inverse ("naive"), and the theorem with conjugate
gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

import dil
from _paper import INK, command_line, markdown, one_thread, show, word, write_results
from dil.control import lqr_gain

Array = Any

DAMPING = (1.0, 0.1, -0.6)
"""c; stiffness and mass are one."""
RUNS, ITERATIONS, EVERY = 5, 3_000, 10
"""The losses are taken, and the gradients compared, before every tenth iteration."""
TRAJECTORY, AHEAD = 50, 6
"""Controls of the expert, and how many of them one prediction is held against."""
SPREAD = 0.5
"""Of the uniform perturbation of each entry of the learner's first matrix."""
SEED = 20204
RATE = 3e-2
"""The first step of Adam; it falls to zero by half a cosine."""
B, Q, R, X0 = np.asarray([[0.0], [-1.0]]), np.eye(2), 2.0 * np.eye(1), np.asarray([0.0, 3.0])
GRADIENTS: dict[str, dict[str, Any]] = {
    "analytic": {"gradient": "analytic"},
    "naive": {"linear_solver": dil.linear.Direct()},
    "CG": {"linear_solver": dil.linear.NormalCG(rtol=1e-13)},
}
LOSS, AGREEMENT = 1e-6, 1e-8
"""The targets: the last imitation loss over the first, and the difference of the gradients on one path."""

MEASURED = (
    f"The system x' = A x + B u of appendix C, c = {', '.join(f'{c:g}' for c in DAMPING)}. The expert's {TRAJECTORY} "
    f"controls from x0 = (0, 3) are all that the learner sees besides the states to start from; its matrix begins at A "
    f"plus uniform noise in [-{SPREAD}, {SPREAD}] and it knows B, Q and R. In each iteration a start on the trajectory "
    f"is drawn, {AHEAD} controls are predicted by the learner's own gain and matrix, and Adam steps on the squared "
    f"distance (first step {RATE}, to zero by half a cosine; the paper does not name its optimiser). 'imitation' is "
    f"that distance as a mean over all starts, 'model' is ||A - A_hat||, in the Frobenius norm; both are given as the "
    f"largest of the initialisations, before and after. 'last / first' is the largest ratio of one initialisation. The "
    f"difference of two gradients is ||g - g_analytic|| / ||g_analytic||, the largest of any system and "
    f"initialisation, at every {EVERY}th iterate of the path that the analytic gradient takes, for the loss that is "
    f"stepped on there."
)


class Data(NamedTuple):
    """The expert of every system; systems come first, (len(DAMPING), ...)."""

    A: Array
    states: Array
    """(systems, TRAJECTORY, 2)"""
    controls: Array
    """(systems, TRAJECTORY, 1)"""


def expert() -> Data:
    """Return the trajectories of the regulators of the true systems."""
    A = np.asarray([[[0.0, 1.0], [-1.0, -c]] for c in DAMPING])
    K = lqr_gain(A, B, Q, R)
    x, states, controls = np.broadcast_to(X0, (len(DAMPING), 2)), [], []
    for _ in range(TRAJECTORY):
        u = -_times(K, x)
        states.append(x)
        controls.append(u)
        x = _times(A, x) + _times(B, u)
    return Data(A, np.stack(states, axis=1), np.stack(controls, axis=1))


def _times(matrix: Array, vector: Array) -> Array:
    return (matrix @ vector[..., None])[..., 0]


def distance(A: Array, data: Data, starts: Array, options: dict[str, Any]) -> Array:
    """Return ||u - u_hat||^2 (Eq. 11) from some starts, (systems, runs, 2, 2) -> (systems, runs, starts)."""
    K = lqr_gain(A, B, Q, R, **options)[..., None, :, :]
    x, total = data.states[:, None, starts, :], 0.0
    for k in range(AHEAD):
        u = -_times(K, x)
        total = total + np.sum((u - data.controls[:, None, starts + k, :]) ** 2, axis=-1)
        x = _times(A[..., None, :, :], x) + _times(B, u)
    return total


def slope(A: Array, data: Data, start: int, name: str) -> Array:
    """Return the gradient of every run's own loss: no run is in another's."""
    return dil.grad(lambda A: np.sum(distance(A, data, np.asarray([start]), GRADIENTS[name])))(A)


@dataclass
class Adam:
    """Kingma and Ba 2015, entry by entry."""

    shape: tuple[int, ...]
    iterations: int

    def __post_init__(self) -> None:
        self.mean, self.square, self.count = np.zeros(self.shape), np.zeros(self.shape), 0

    def step(self, g: Array) -> Array:
        """Return what is to be subtracted."""
        rate = RATE * 0.5 * (1 + np.cos(np.pi * self.count / self.iterations))
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * g
        self.square = 0.999 * self.square + 0.001 * g**2
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return rate * mean / (np.sqrt(square) + 1e-12)


class Learned(NamedTuple):
    """The way of one gradient: both losses before every tenth iteration and after the last, (rows, systems, runs)."""

    imitation: Array
    model: Array
    difference: dict[str, float]
    """How far the other gradients were from this one, by name; of the analytic path alone."""


def learn(name: str, data: Data, runs: int, iterations: int, tick: Callable[[], None]) -> Learned:
    """Learn by one gradient; by the analytic one the others are held against it at every iterate."""
    draw = np.random.default_rng(SEED)
    shape = (len(DAMPING), runs, 2, 2)
    A = data.A[:, None] + draw.uniform(-SPREAD, SPREAD, shape)
    starts = draw.integers(0, TRAJECTORY - AHEAD + 1, iterations)
    every, optimiser = np.arange(TRAJECTORY - AHEAD + 1), Adam(shape, iterations)
    others = [other for other in GRADIENTS if other != name] if name == "analytic" else []
    imitation, model, difference = [], [], dict.fromkeys(others, 0.0)
    for i in range(iterations + 1):
        if i % EVERY == 0:
            imitation.append(distance(A, data, every, {}).mean(axis=-1))
            model.append(np.sqrt(np.sum((A - data.A[:, None]) ** 2, axis=(-2, -1))))
        if i == iterations:
            break
        g = slope(A, data, int(starts[i]), name)
        for other in others if i % EVERY == 0 else ():
            apart = np.linalg.norm(slope(A, data, int(starts[i]), other) - g, axis=(-2, -1))
            size = np.linalg.norm(g, axis=(-2, -1))
            difference[other] = max(difference[other], float((apart / np.where(size == 0, 1.0, size)).max()))
        A = A - optimiser.step(g)
        tick()
    return Learned(np.stack(imitation), np.stack(model), difference)


# --- telling ---------------------------------------------------------------------------------------------------------


def table(found: dict[str, Learned], quick: bool) -> tuple[list[str], list[list[str]]]:
    heads = ["c", "gradient", "imitation", "after", "last / first", "model", "after", "fell in", "met"]
    cells = []
    for i, c in enumerate(DAMPING):
        for name, way in found.items():
            imitation, model = way.imitation[:, i], way.model[:, i]
            ratio = (imitation[-1] / imitation[0]).max()
            fell = int((model[-1] < model[0]).sum())
            met = ratio < LOSS and fell == model.shape[1]
            cells.append(
                [
                    *(f"{c:g}", name, f"{imitation[0].max():.2g}", f"{imitation[-1].max():.1e}", f"{ratio:.1e}"),
                    *(f"{model[0].max():.2f}", f"{model[-1].max():.1e}", f"{fell} of {model.shape[1]}"),
                    word(None if quick else met),
                ]
            )
    return heads, cells


def agreement(found: dict[str, Learned]) -> str:
    apart = found["analytic"].difference
    words = ", ".join(f"{name} {value:.1e}" for name, value in apart.items())
    met = all(value < AGREEMENT for value in apart.values())
    return (
        f"Difference from the analytic gradient along its path: {words} (target {AGREEMENT:.0e}: "
        f"{'met' if met else 'MISSED'}). The target for the imitation loss is {LOSS:.0e} of the first, "
        f"for the model loss to fall."
    )


def picture(path: Path, found: dict[str, Learned]) -> None:
    """Draw both losses over the iterations, mean and deviation over the initialisations, for every c."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = figure.subplots(2, len(DAMPING), sharex=True, sharey="row")
    lines = ("-", (0, (5, 3)), (0, (1, 2)))
    for i, c in enumerate(DAMPING):
        for row, what in enumerate(("imitation", "model")):
            axes = panels[row, i]
            for (name, way), ink, line in zip(found.items(), INK, lines, strict=False):
                losses = getattr(way, what)[:, i]
                mean, spread = losses.mean(axis=1), losses.std(axis=1)
                steps = EVERY * np.arange(len(mean))
                axes.plot(steps, mean, color=ink, linestyle=line, linewidth=1.8, label=name)
                # a band in a picture of logarithms has no place below zero
                axes.fill_between(
                    steps, np.maximum(mean - spread, 0.05 * mean), mean + spread, color=ink, alpha=0.12, linewidth=0
                )
            axes.set_yscale("log")
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        panels[0, i].set_title(f"c = {c:g}", fontsize=11)
        panels[1, i].set_xlabel("iteration")
    panels[0, 0].set_ylabel("imitation loss")
    panels[1, 0].set_ylabel("model loss")
    panels[0, 0].legend(loc="lower left", fontsize=9)
    figure.savefig(path, dpi=150, metadata={"Software": None})


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where figure4.md, .json and .png go.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two initialisations, 300 iterations, which are too few.")
    ] = False,
) -> None:
    """Learn the dynamics of a mass, spring and damper from the controls of an expert."""
    one_thread()
    console, data = Console(), expert()
    runs, iterations = (2, 300) if quick else (RUNS, ITERATIONS)
    found = {}
    with Progress(console=console, transient=True) as progress:
        for name in GRADIENTS:
            task = progress.add_task(name, total=iterations)
            found[name] = learn(name, data, runs, iterations, lambda task=task: progress.advance(task))
    measured = f"{MEASURED} {runs} initialisations, {iterations:,} iterations."
    console.print(f"{command_line()}\n\n{measured}", highlight=False)
    show(console, "figure 4", *table(found, quick))
    console.print(agreement(found), highlight=False)
    if out is not None:
        every = max(1, iterations // (100 * EVERY))
        ways = {
            name: {what: _short(getattr(way, what)[::every]) for what in ("imitation", "model")}
            for name, way in found.items()
        }
        record = {
            "measured": measured,
            "damping": DAMPING,
            "targets": {"imitation": LOSS, "difference": AGREEMENT},
            "difference": found["analytic"].difference,
            "losses": {"every": every * EVERY, "shape": "iteration, c, initialisation", **ways},
        }
        image = "![Both losses over the iterations, for every gradient and damping](figure4.png)"
        caption = (
            "Mean and standard deviation over the initialisations, no lower than a twentieth of the mean; the curves "
            "of the three gradients lie on each other."
        )
        parts = [measured, markdown(*table(found, quick)), agreement(found), image, caption]
        write_results(out, "figure4", "Figure 4: the dynamics learned from the controls of an expert", parts, record)
        picture(out / "figure4.png", found)


def _short(values: Array) -> Any:
    return [[[float(f"{x:.4g}") for x in row] for row in rows] for rows in values]


if __name__ == "__main__":
    app()
