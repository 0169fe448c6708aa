"""The time series of the paper's Table 1 (Look et al. 2020, section 3.1), split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.float64]
DT = 0.1
"""Seconds between two frames; of the walks, a unit of time like any other."""
MU = 3.0
SPIRAL = {"spiral": -1.0, "spiral_tenth": -0.1}
"""a_11 as the paper prints it, and as in the demonstration of Chen et al. 2018, where the rest of A is the same."""


@dataclass(frozen=True)
class Series:
    """Sequences of equally spaced frames, (sequences, frames, dimensions) each.

    A forecast sees the first `context` frames of a sequence and predicts the others. The validation and the test
    sequence of a single trajectory begin with the last frame before them.
    """

    name: str
    title: str
    train: Frames
    validation: Frames
    test: Frames
    context: int

    @property
    def dimensions(self) -> int:
        """Of a frame."""
        return int(self.train.shape[-1])

    @property
    def scale(self) -> float:
        """What a network divides frames by: one, or their deviation where they are not states of the ODE."""
        return 1.0 if self.context == 1 else float(self.train.std())

    def shown(self) -> list[int]:
        """Return the coordinates that a figure shows: the two, or three, that vary most in the test part."""
        return np.argsort(-self.test.std(axis=(0, 1)))[:3].tolist()

    def naive(self) -> float:
        """Return the test error of predicting the mean of the training frames."""
        ahead = self.test[:, self.context :]
        return float(np.mean((ahead - self.train.mean(axis=(0, 1))) ** 2))


def van_der_pol() -> Series:
    """Return a solution of x'' = mu (1 - x^2) x' - x as (x, x'), mu = 3, from (2, 0): 320 points, 107 / 106 / 106."""

    def field(_: float, x: Frames) -> list[float]:
        return [x[1], MU * (1.0 - x[0] ** 2) * x[1] - x[0]]

    return split("van_der_pol", "Van der Pol", simulate(field, 320), 107, 106, 106)


def spiral(name: str = "spiral") -> Series:
    """Return a solution of x' = A x^3, A = [[a, 2], [-2, -1/10]], from (2, 0): 300 points, 100 / 50 / 150."""
    A = np.asarray([[SPIRAL[name], 2.0], [-2.0, -0.1]])
    return split(name, f"Spiral, a11 = {SPIRAL[name]:g}", simulate(lambda _, x: A @ x**3, 300), 100, 50, 150)


def walking(path: Path) -> Series:
    """CMU motion capture, subject 35: 16 / 3 / 4 walks of 300 frames, 297 of them forecast after 3."""
    from scipy.io import loadmat

    found = loadmat(path)
    return Series("walking", "CMU Walking", found["Xtr"], found["Xval"], found["Xtest"], context=3)


def folds(series: Series, count: int = 4) -> list[Series]:
    """Return the series with a share of the training sequences held out, judged with the validation part; no test."""
    train, held = series.train, np.arange(len(series.train)) % count
    return [
        replace(
            series,
            train=train[held != k],
            validation=np.concatenate([train[held == k], series.validation]),
            test=series.validation,
        )
        for k in range(count)
    ]


def simulate(field: Any, count: int) -> Frames:
    """Return `count` states from (2, 0) on."""
    from scipy.integrate import solve_ivp

    t = DT * np.arange(count)
    frames: Frames = solve_ivp(field, (0.0, t[-1]), [2.0, 0.0], t_eval=t, method="LSODA", rtol=1e-10, atol=1e-10).y.T
    return frames


def split(name: str, title: str, x: Frames, train: int, validation: int, test: int) -> Series:
    """Cut one trajectory; a forecast begins at the last frame before its part."""
    second, third = train + validation, train + validation + test
    return Series(name, title, x[None, :train], x[None, train - 1 : second], x[None, second - 1 : third], context=1)
