"""The best penalty of a regression, by the slope of the validation loss.

    python docs/examples/hyperparameters.py --out out
    python docs/examples/hyperparameters.py --backend torch     # or jax; the same numbers

A penalty is usually searched for on a grid: fit, validate, fit again. But the weights of a fit are an argmin,

    w(t) = argmin_w  sum_i loss(x_i, y_i; w) + 1/2 exp(t) ||w||^2,

so the validation loss at w(t) is a function of the log penalty t, and its exact slope costs one linear solve more than
the fit. With the slope at hand, a few steps of a secant method find the penalty where it vanishes to ten digits; many
penalties (one for each feature, say) would cost no more linear solves than one.

Two fits are tuned: a ridge regression on the diabetes data of scikit-learn and a logistic regression on its breast
cancer data. The scores are written once, against the array API: NumPy, torch and JAX run the same lines. In the end
scikit-learn's own estimator is fitted with the penalty that was found, and has to have the same validation loss.

Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from matplotlib import pyplot as plt
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge

import dil

Array = Any
Tree = Any

START = 100.0
"""The first penalty."""
FLAT = 1e-10
"""The slope that counts as none; the validation losses are of size one."""
LONGEST = 1.5
"""The longest step in the log penalty."""

# %% [markdown]
# The scores, written against the array API.


# %%
def squares(w: Array, X: Array, y: Array) -> Array:
    """Return half the squared residuals."""
    return 0.5 * (X @ w - y) ** 2


def ridge(w: Array, X: Array, y: Array, log_penalty: Array) -> Array:
    """Score of a ridge regression; w: (features,), X: (samples, features), y: (samples,)."""
    xp = array_namespace(w)
    return xp.sum(squares(w, X, y)) + 0.5 * xp.exp(log_penalty) * xp.sum(w**2)


def surprise(u: Tree, X: Array, y: Array) -> Array:
    """Return -log P(y | X) for labels of -1 and 1."""
    xp = array_namespace(X)
    margin = y * (X @ u["w"] + u["intercept"])
    return xp.logaddexp(0.0 * margin, -margin)


def logistic(u: Tree, X: Array, y: Array, log_penalty: Array) -> Array:
    """Score of a logistic regression, whose intercept goes without penalty."""
    xp = array_namespace(X)
    return xp.sum(surprise(u, X, y)) + 0.5 * xp.exp(log_penalty) * xp.sum(u["w"] ** 2)


# The two layers. Any solver would do; both Hessians are positive definite, which conjugate gradients want.
fit_ridge = dil.argmin(
    ridge, dil.solvers.Newton(), linear_solver=dil.linear.CG(), init=lambda X, y, log_penalty: 0.0 * X[0, :]
)
fit_logistic = dil.argmin(
    logistic,
    dil.solvers.Newton(),
    linear_solver=dil.linear.CG(),
    init=lambda X, y, log_penalty: {"w": 0.0 * X[0, :], "intercept": 0.0 * y[0]},
)

# %% [markdown]
# The data, and the same fits by scikit-learn.


# %%
class Split(NamedTuple):
    """Data to fit to and to validate with."""

    X: np.ndarray
    y: np.ndarray
    X_held: np.ndarray
    y_held: np.ndarray


@dataclass(frozen=True)
class Task:
    """A fit whose penalty is to be found."""

    name: str
    data: Split
    fit: Callable[..., Tree]
    losses: Callable[..., Array]
    """What is averaged over the samples held back."""
    theirs: Callable[[float, Split], Tree]
    """The same fit by scikit-learn, of a penalty."""


class Step(NamedTuple):
    """One penalty that was tried."""

    penalty: float
    loss: float
    """On the samples held back."""
    slope: float
    """d loss / d log penalty."""


class Tuned(NamedTuple):
    """What came of one task."""

    path: list[Step]
    theirs: float
    """The validation loss of scikit-learn's own fit with the last penalty."""


def split(X: np.ndarray, y: np.ndarray, share: float) -> Split:
    """Shuffle, keep a share of the samples for fitting, and standardise the features by them."""
    order = np.random.default_rng(0).permutation(len(y))
    fitted, held = np.split(order, [int(share * len(y))])
    mean, spread = X[fitted].mean(0), X[fitted].std(0)
    X = (X - mean) / spread
    return Split(X[fitted], y[fitted], X[held], y[held])


def sklearn_ridge(penalty: float, data: Split) -> np.ndarray:
    """Return what `fit_ridge` does, by scikit-learn."""
    return Ridge(penalty, fit_intercept=False).fit(data.X, data.y).coef_


def sklearn_logistic(penalty: float, data: Split) -> dict[str, np.ndarray]:
    """Return what `fit_logistic` does, by scikit-learn."""
    model = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-12).fit(data.X, data.y)
    return {"w": model.coef_[0], "intercept": model.intercept_[0]}


def tasks() -> Iterator[Task]:
    """Make the two tasks."""
    X, y = load_diabetes(return_X_y=True)
    data = split(X, (y - y.mean()) / y.std(), 0.25)
    yield Task("ridge, diabetes", data, fit_ridge, squares, sklearn_ridge)
    X, y = load_breast_cancer(return_X_y=True)
    data = split(X, 2.0 * y - 1.0, 0.5)
    yield Task("logistic, breast cancer", data, fit_logistic, surprise, sklearn_logistic)


# %% [markdown]
# The search: a secant method on the slope of the validation loss.


# %%
def secant(t: float, slope: float, before: tuple[float, float] | None) -> float:
    """Return the next log penalty: where the line through the last two slopes is zero, or a step downhill."""
    downhill = -math.copysign(1.0, slope)
    curvature = 0.0 if before is None else (slope - before[1]) / (t - before[0])
    # where the loss is concave, the zero of the line is a maximum
    return t + downhill * (min(abs(slope) / curvature, LONGEST) if curvature > 0 else LONGEST)


def compiled(fn: Callable[..., Any], handle: dil.BackendHandle) -> Callable[..., Any]:
    """Return the function as JAX wants it: the loop compiles once with all that is around the layer."""
    if handle.name != "jax":
        return fn
    import jax

    return jax.jit(fn)


def tune(task: Task, handle: dil.BackendHandle, steps: int) -> Tuned:
    """Find the penalty of the least validation loss."""
    X, y, X_held, y_held = (handle.asarray(part) for part in task.data)

    def validation(log_penalty: Array) -> Array:
        return handle.xp.mean(task.losses(task.fit(X, y, log_penalty), X_held, y_held))

    value_and_slope = compiled(dil.value_and_grad(validation), handle)
    t, before, path = math.log(START), None, list[Step]()
    for step in range(steps):
        loss, slope = (float(x) for x in value_and_slope(handle.asarray(t)))
        path.append(Step(math.exp(t), loss, slope))
        print(f"{step:4d}  {path[-1].penalty:12.6f}  {loss:16.12f}  {slope:10.1e}")
        if abs(slope) <= FLAT or step == steps - 1:
            break
        before, t = (t, slope), secant(t, slope, before)

    theirs = task.theirs(path[-1].penalty, task.data)
    return Tuned(path, float(np.mean(task.losses(theirs, task.data.X_held, task.data.y_held))))


def draw(tuned: dict[str, Tuned], out: Path) -> None:
    """Draw the validation loss over the penalty, and the slopes that the search met."""
    figure, both = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for task, axes in zip(tasks(), both, strict=True):
        path = tuned[task.name].path
        low, high = (pick(step.penalty for step in path) for pick in (min, max))
        penalties = np.geomspace(0.3 * low, 3.0 * high, 40)
        axes.semilogx(penalties, [np.mean(task.losses(task.theirs(p, task.data), *task.data[2:])) for p in penalties])
        for step in path:
            near = np.asarray([0.6, 1.0, 1.6])
            axes.semilogx(step.penalty * near, step.loss + step.slope * np.log(near), color="C1")
        axes.plot([step.penalty for step in path], [step.loss for step in path], "o", color="C1")
        axes.plot(path[-1].penalty, path[-1].loss, "*", color="black", markersize=14)
        axes.set(title=task.name, xlabel="penalty", ylabel="validation loss")
    figure.savefig(out / "hyperparameters.png")


# %%
def main(backend: str | None = None, *, quick: bool = False, out: Path | None = None) -> dict[str, Tuned]:
    """Tune both fits on a backend; `quick` takes a few steps only. Return what came of each, by its name."""
    handle = dil.backend(backend, dtype="float64")
    tuned = {}
    for task in tasks():
        print(f"{task.name}, on {handle.name}\nstep       penalty   validation loss       slope")
        tuned[task.name] = tune(task, handle, 4 if quick else 25)
        print(f"scikit-learn's own  {tuned[task.name].theirs:15.12f}\n")
    if out is not None:
        draw(tuned, out)
    return tuned


if __name__ == "__main__":
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX computes in float32 otherwise
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", help="numpy, torch, jax or cupy; by default $DIL_BACKEND, then numpy")
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    chosen = parser.parse_args()
    main(chosen.backend, quick=chosen.quick, out=chosen.out)
