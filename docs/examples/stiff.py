"""The frequency that drives a stiff equation, learned through the steps of an ODE method.

x' = -1000 (x - cos w t) follows cos w t after a thousandth of a second. It is observed at 31 times 0.2 s apart, and w
is wanted. Explicit Euler steps of 0.2 s multiply an error by 199 each; implicit ones divide it by 201.

    python docs/examples/stiff.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import dil

TRUTH = 1.3
TIMES = np.linspace(0.0, 6.0, 31)
DATA = np.cos(TRUTH * TIMES)

# %% [markdown]
# The equation, and the loss of its numerical solution.


# %%
def field(t, x, w):  # noqa: ANN001, ANN201
    """Return dx/dt."""
    return -1000.0 * (x - np.cos(w * t))


def states(w, method):  # noqa: ANN001, ANN201
    """Return x at the times, from x(0) = 1."""
    return dil.ode.odeint(field, np.asarray(1.0), TIMES, (w,), method=method)


def loss(w, method="implicit_euler"):  # noqa: ANN001, ANN201
    """Return the mean squared distance to the observations."""
    return np.mean((states(w, method) - DATA) ** 2)


def train(count: int) -> list[tuple[float, float]]:
    """Return w and the loss at each step of gradient descent from w = 1."""
    w, path = np.asarray(1.0), []
    for _ in range(count):
        value, slope = dil.value_and_grad(loss)(w)
        path.append((float(w), float(value)))
        w = w - 0.06 * slope
    return path


def draw(path: list[tuple[float, float]], out: Path) -> None:
    """Draw the first steps of explicit Euler, and the training through implicit Euler."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    explicit = states(np.asarray(TRUTH), "euler")
    left.plot(TIMES[:4], explicit[:4], "o-", color="C1", label="explicit Euler, which goes on to 1e65")
    for w, name, colour in ((path[0][0], "implicit Euler, before training", "C6"), (path[-1][0], "and after", "C0")):
        left.plot(TIMES, states(np.asarray(w), "implicit_euler"), color=colour, label=name)
    left.plot(TIMES, DATA, "k.", label="observed")
    left.set(xlabel="t in s", ylabel="x", ylim=(-1.4, 3.2), title="the same steps of 0.2 s")
    left.legend(loc="upper right", fontsize="small")
    right.semilogy([value for _, value in path], "o-")
    right.set(xlabel="step of gradient descent", ylabel="mean squared error", title="training through the layer")
    figure.savefig(out / "stiff.png")


# %%
def main(*, quick: bool = False, out: Path | None = None) -> list[tuple[float, float]]:
    """Train, print and, if told where, draw; return the path of w and the loss."""
    path = train(6 if quick else 12)
    print(f"explicit Euler: loss {loss(np.asarray(1.0), 'euler'):.1e}")
    for w, value in path:
        print(f"implicit Euler: loss {value:.1e} at w = {w:.4f}")
    if out is not None:
        draw(path, out)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half the steps")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    options = parser.parse_args()
    main(quick=options.quick, out=options.out)
