"""Ordinary differential equations whose steps are implicit layers (Look et al. 2020, section 3.1).

It imports every package of dil except `control`.
"""

from dil.ode._newton import StepNewton
from dil.ode._odeint import Trajectory, odeint, solve

__all__ = ["StepNewton", "Trajectory", "odeint", "solve"]
