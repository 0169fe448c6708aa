"""Planning and control as layers: model predictive control and the linear quadratic regulator.

It imports every package of dil except `ode`.
"""

from dil.control._dare import dare
from dil.control._ilqr import ILQR
from dil.control._lqr import lqr_gain
from dil.control._mpc import Rollout, mpc_rollout, shift
from dil.control._plan import Plan, plan

__all__ = ["ILQR", "Plan", "Rollout", "dare", "lqr_gain", "mpc_rollout", "plan", "shift"]
