"""Pairs of order 5 and 4: one state, and an estimate of its error, from the same slopes."""

from __future__ import annotations

from collections.abc import Sequence

from dil._base.typing import Array, Arrays
from dil.ode._in_turn import Rows, Tableau
from dil.ode._methods import Advanced, Method, Stages
from dil.ode._state import scaled, stepped


def pair(name: str, A: Rows, estimate: Sequence[float], middle: Sequence[float], diagonal: float = 0.0) -> Method:
    """Return the method whose slopes are k_i = f(t + c_i h, y + h sum_j a_ij k_j).

    Row i of A holds the a_ij with j < i, and c_i is the sum of row i. Each a_ii is `diagonal`, but that of the first
    slope, which is the last one of the step before. The last row gives the new state. `estimate` are the weights of the
    slopes in the error, and `middle` those in a state of order 4 at t + h / 2.
    """
    last, bulge = len(A), _bulge(A[-1], middle, diagonal)

    def advance(stages: Stages, y: Arrays, memory: Arrays, t: Array, h: Array) -> Advanced:
        if diagonal:
            z, slopes = stages.solve_rows(Tableau(A, diagonal), y, memory, t, h)
        else:
            z, slopes = y, [memory]
            for row in A:
                z = stepped(y, h, row, slopes)
                slopes.append(stages.slope(t + sum(row) * h, z))
        return Advanced(
            z,
            slopes[last],
            lambda: _sum(h, estimate, slopes),
            slope=slopes[last],
            bulge=lambda: _sum(h, bulge, slopes),
        )

    return Method(
        name,
        5,
        advance,
        begin=lambda stages, y, t: stages.slope(t, y),
        implicit=diagonal != 0,
        error_order=5,
        stages=last if diagonal else 0,
        continues=True,
        bulges=True,
        estimates_all=diagonal != 0,
    )


def _sum(h: Array, weights: Sequence[float], slopes: Sequence[Arrays]) -> Arrays:
    return scaled(h, *((w, k) for w, k in zip(weights, slopes, strict=True) if w))


def _bulge(b: Sequence[float], middle: Sequence[float], diagonal: float) -> tuple[float, ...]:
    """Return the weights of the state at t + h / 2 minus the cubic through states and slopes at both ends."""
    ends = (0.125, *(0.0,) * (len(b) - 1), -0.125)
    return tuple(m - 0.5 * w - e for m, w, e in zip(middle, (*b, diagonal), ends, strict=True))


# Tsitouras 2011, table 1
TSIT5 = pair(
    "tsit5",
    (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    (
        0.00178001105222577714,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -1.0 / 66.0,
    ),
    (
        0.11142574892073369,
        0.013197067390739586,
        0.37783998967297433,
        -0.01847177222953786,
        0.0031427990704468094,
        0.0157783369080102,
        -0.0029121697333665338,
    ),
)
# Dormand and Prince 1980 (Hairer, Nørsett and Wanner 1993, table II.5.2)
DOPRI5 = pair(
    "dopri5",
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    (
        0.10171038088918309,
        0.0,
        0.3863945529070415,
        0.017457260008813247,
        -0.006102179332876034,
        0.00860087961830239,
        -0.008060894090464798,
    ),
)
# Kværnø 2004, the pair of order 5 and 4: L-stable, and so is the method of order 4, whose state is that of the last
# stage but one
KVAERNO5 = pair(
    "kvaerno5",
    (
        (0.26,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
        (
            0.13659751177640291,
            0.0,
            -0.05496908796538376,
            -0.04118626728321046,
            0.62993304899016403,
            0.06962479448202728,
        ),
    ),
    (
        0.13659751177640291 - 0.13855640231268224,
        0.0,
        -0.05496908796538376 + 0.04245337201752043,
        -0.04118626728321046 - 0.02446657898003141,
        0.62993304899016403 - 0.61943039072480676,
        0.06962479448202728 - 0.26,
        0.26,
    ),
    (
        0.1647142049737,
        0.0,
        0.04526681011491478,
        -0.0032595094371072044,
        0.3922098832259773,
        -0.04946569443874242,
        -0.04946569443874241,
    ),
    diagonal=0.26,
)
PAIRS = {method.name: method for method in (TSIT5, DOPRI5, KVAERNO5)}
