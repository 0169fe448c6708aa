"""The restitution of a ball, from the times at which it is heard to bounce.

A ball is dropped, and each bounce leaves it the share r of its speed. The flight from one bounce to the next is an
equation of motion that ends where the height crosses zero. The time of that event is differentiable, so the times of
all bounces have a derivative in r, although the number of steps in between depends on it.

    python docs/examples/bouncing_ball.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import dil

HEIGHT, GRAVITY = 1.0, 9.81

# %% [markdown]
# The state is the height and the speed. `dil.ode.Event` names a function of the state: the solve ends where it crosses
# zero downwards. The next flight starts upwards from there.


# %%
def motion(t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the derivative of y = (height, speed)."""
    return np.stack([y[1], -GRAVITY + 0.0 * y[0]])


GROUND = dil.ode.Event(lambda t, y: y[0], terminal=True, direction=-1)


def bounces(r: np.ndarray, count: int) -> np.ndarray:
    """Return the times of the bounces of a ball that is dropped at t = 0."""
    y, times = np.asarray([HEIGHT, 0.0]), [0.0 * r]
    for _ in range(count):
        _, (ground,) = dil.ode.odeint(motion, y, [0.0, 9.0], method="tsit5", rtol=1e-6, events=GROUND)
        times.append(times[-1] + ground.t[0])
        y = np.stack([0.0 * r, -r * ground.y[0, 1]])
    return np.stack(times[1:])


# %% [markdown]
# The times were heard with an error of 20 ms. Gauss and Newton's method takes the derivative of all times from one
# sweep in forward mode.


# %%
def main(*, quick: bool = False, out: Path | None = None) -> float:
    """Fit and draw; return the largest error of the derivative, relative to the closed form."""
    count, true = (4 if quick else 10), 0.8
    first, k = (2 * HEIGHT / GRAVITY) ** 0.5, np.arange(count)
    powers = np.where(k > 0, true**k, 0.5)
    heard = 2 * first * np.cumsum(powers) + 0.02 * np.random.default_rng(0).normal(size=count)

    r, fits = np.asarray(0.65), []
    for _ in range(4):
        times, slope = dil.jvp(lambda r: bounces(r, count), (r,), (np.ones_like(r),))
        fits.append((float(r), times))
        r = r - slope @ (times - heard) / (slope @ slope)
    exact = 2 * first * np.cumsum(k * r ** np.maximum(k - 1, 0))
    slope = dil.jvp(lambda r: bounces(r, count), (r,), (np.ones_like(r),))[1]
    error = np.max(np.abs(slope - exact)) / np.max(exact)

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for (value, times), shade in zip((fits[0], fits[-1]), ("C1", "C0"), strict=True):
        starts = np.concatenate([[-times[0]], times[:-1]])
        s = np.linspace(0.0, 1.0, 40)
        t = starts[:, None] + (times - starts)[:, None] * s
        h = 0.5 * GRAVITY * (t - starts[:, None]) * (times[:, None] - t)
        left.plot(np.where(t < 0, np.nan, t).ravel(), h.ravel(), color=shade, label=f"r = {value:.3f}")
    left.plot(heard, 0.0 * heard, "^", color="black", label="heard", clip_on=False, zorder=5)
    left.set(title="first and last step of the fit", xlabel="time", ylabel="height", ylim=(0, 1.05))
    left.legend(loc="upper right")
    right.plot(k + 1, exact, color="C0", label="closed form")
    right.plot(k + 1, slope, "o", color="C1", label="derivative of the events")
    right.set(title="derivative of the time in r", xlabel="bounce")
    right.legend(loc="upper left")
    if out is not None:
        figure.savefig(out / "bouncing_ball.png")
    print(f"r = {float(r):.3f}, where the ball has {true}; the derivative differs from the closed form by {error:.1e}")
    return float(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four bounces")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    main(**vars(parser.parse_args()))
