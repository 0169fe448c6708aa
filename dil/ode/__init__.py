"""Ordinary differential equations whose steps are implicit layers (Look et al. 2020, section 3.1).

It imports every package of dil except `control`.
"""

from dil.ode._crossings import Crossings
from dil.ode._events import Event
from dil.ode._newton import StepNewton
from dil.ode._odeint import Trajectory, odeint, solve
from dil.ode._solve_ivp import DenseOutput, OdeResult, solve_ivp

__all__ = [
    "Crossings",
    "DenseOutput",
    "Event",
    "OdeResult",
    "StepNewton",
    "Trajectory",
    "odeint",
    "solve",
    "solve_ivp",
]
