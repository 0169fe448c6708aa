"""Radau IIA of order 5 (Hairer and Wanner 1996, IV.5 and IV.8): collocation at three nodes, L-stable."""

from __future__ import annotations

from typing import cast

from dil._base.typing import Array, Arrays
from dil.ode._collocation import Collocation, integrals, lagrange
from dil.ode._methods import Advanced, Method, Stages, StagesTogether
from dil.ode._state import scaled

RADAU = Collocation(
    nodes=(0.1 * (4.0 - 6.0**0.5), 0.1 * (4.0 + 6.0**0.5), 1.0),
    real=3.0 + 3.0 ** (2 / 3) - 3.0 ** (1 / 3),
    pair=complex(3.0 + 0.5 * (3.0 ** (1 / 3) - 3.0 ** (2 / 3)), 0.5 * (3.0 ** (5 / 6) + 3.0 ** (7 / 6))),
)
# the slope at the start minus that of the polynomial through the slopes at the nodes, with the weight that turns
# `induced`, which is (I - gh J)^-1, into IV.8.19
ESTIMATE = (1.0 / RADAU.real, *(-x / RADAU.real for x in lagrange(RADAU.nodes, 0.0)))
WITH_START = (0.0, *RADAU.nodes)
# the state at t + h / 2 on the polynomial of degree 4 that has the slopes at the start and at the nodes, minus the
# cubic through states and slopes at both ends
BULGE = tuple(
    m - 0.5 * w - e
    for m, w, e in zip(integrals(WITH_START, 0.5), integrals(WITH_START, 1.0), (0.125, 0.0, 0.0, -0.125), strict=True)
)


def radau(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
    """Return the last stage, whose error is that of a method of order 3 with the slope at the start (IV.8.18)."""
    z, nodes = cast("StagesTogether", stages).solve_collocation(RADAU, y, memory, t, h)
    slopes = (memory, *nodes)

    def weighted(weights: tuple[float, ...]) -> Arrays:
        return scaled(h, *zip(weights, slopes, strict=True))

    return Advanced(z, nodes[-1], lambda: weighted(ESTIMATE), slope=nodes[-1], bulge=lambda: weighted(BULGE))


RADAU5 = Method(
    "radau",
    5,
    radau,
    begin=lambda stages, y, t: stages.slope(t, y),
    error_order=4,
    stages=3,
    continues=True,
    bulges=True,
    collocation=RADAU,
    is_sharper=True,
    predicts=True,
    steady=1.2,
)
