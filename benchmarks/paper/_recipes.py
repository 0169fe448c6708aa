"""The training recipes of table1.py, and the trials on the validation split that selected them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam on forecasts over random segments, and the best of the checks on validation."""

    segment: int
    """Frames to forecast in a segment."""
    batch: int
    iterations: int
    rate: float
    """Of Adam at first; it decays to zero by a cosine."""
    checks: int = 20
    """How often the forecast of the validation part is judged; the best parameters stay."""


@dataclass(frozen=True)
class LatentRecipe:
    """How a latent ODE is trained: Adam on all sequences, and the best of the checks on validation."""

    first: int
    """In an iteration, each sequence begins at one of this many first frames."""
    divergence: float
    """The weight of the divergence of the encoder's Gaussian from a standard one."""
    iterations: int
    grown: int = 400
    """The iterations over which that weight grows from zero, linearly."""
    rate: float = 0.01
    """Of Adam at first."""
    decay: float = 0.999
    """Of the rate, in each iteration."""
    checks: int = 16
    """How often the forecast of the validation part is judged; the best parameters stay."""


class Trial(NamedTuple):
    """What a recipe gave on validation."""

    recipe: Recipe | LatentRecipe
    validation: float
    """The median over the seeds."""
    row: str = "backward_euler_cg"
    seeds: int = 5
    """From 100 on."""


PROXY = "forward_euler_exact"
"""Not a row of the table: its steps cost a fraction of an implicit one's."""


FULL = {
    "van_der_pol": Recipe(1, 64, 2000, 0.01),
    "spiral": Recipe(1, 64, 2000, 0.01),
    "spiral_tenth": Recipe(1, 64, 2000, 0.01),
    "walking": LatentRecipe(first=50, divergence=100.0, iterations=800),
}
QUICK = {
    "van_der_pol": Recipe(1, 64, 500, 0.01, checks=5),
    "spiral": Recipe(1, 64, 500, 0.01, checks=5),
    "spiral_tenth": Recipe(1, 64, 500, 0.01, checks=5),
    "walking": LatentRecipe(first=250, divergence=10.0, iterations=30, checks=3),
}
RUNS = {"van_der_pol": 20, "spiral": 20, "spiral_tenth": 20, "walking": 10}

TRIALS = {
    "van_der_pol": [
        Trial(Recipe(1, 64, 2000, 0.01), 0.0039),
        Trial(Recipe(1, 64, 5000, 0.003), 0.0048),
        Trial(Recipe(1, 106, 5000, 0.01), 0.012),
        Trial(Recipe(5, 64, 4000, 0.003), 0.015),
        Trial(Recipe(5, 64, 2000, 0.01), 0.191),
        Trial(Recipe(20, 16, 1000, 0.01), 0.0929),
    ],
    "spiral": [Trial(Recipe(1, 64, 2000, 0.01), 0.0034), Trial(Recipe(5, 64, 2000, 0.003), 0.0164)],
    "spiral_tenth": [
        Trial(Recipe(1, 64, 2000, 0.01), 0.0298),
        Trial(Recipe(5, 64, 2000, 0.003), 0.234),
        Trial(Recipe(20, 16, 1000, 0.003), 0.168),
    ],
    "walking": [
        Trial(LatentRecipe(first=50, divergence=1.0, iterations=800), 11.6, PROXY, 2),
        Trial(LatentRecipe(first=50, divergence=10.0, iterations=800), 11.4, PROXY, 2),
        Trial(LatentRecipe(first=50, divergence=100.0, iterations=800), 10.8, PROXY, 2),
        Trial(LatentRecipe(first=50, divergence=1000.0, iterations=800), 11.2, PROXY, 2),
        Trial(LatentRecipe(first=100, divergence=10.0, iterations=800), 11.8, PROXY, 2),
        Trial(LatentRecipe(first=50, divergence=100.0, iterations=1200, checks=24), 10.8, PROXY, 2),
    ],
}

CHOSEN_BY = (
    "One recipe for each data set, the same for all rows. Van der Pol and the spiral: Adam with a cosine decay and "
    "gradients clipped to norm one, on random segments of the training split; the recipe is the trial below with the "
    "least median error on the validation split. The walks: the latent ODE of Li et al. 2020 with their optimiser, "
    "Adam whose rate decays by 0.999 in each iteration and gradients clipped to norm 10. Each iteration takes all "
    "training walks, each from a random one of the 'first' frames, and forecasts all frames that are left. "
    "'divergence' is the weight of the divergence of the encoder's Gaussian from a standard normal, grown linearly "
    "over the first 'grown' iterations. Three numbers were chosen, 'first', 'divergence' and 'iterations', by the "
    "least median error of a four-fold cross-validation: a quarter of the training walks is held out and judged "
    "together with the validation walks. The trials of the walks are trained by the exact gradient of forward Euler, "
    "which is not a row of the table. No test error of this recipe was seen before the table was run; those of two "
    "runs with divergence 10 were. At first, seed 1 never learned in any row: the squares of its gradients overflowed"
    " where they are clipped. This was mended, and seed 1 alone was run again. In every run the parameters kept are "
    "those with the least validation error of its 'checks'. The seeds of the trials are not among those of the table."
)
