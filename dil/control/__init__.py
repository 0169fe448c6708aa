"""Planning and control as layers: model predictive control and the linear quadratic regulator.

It imports every package of dil except `ode`.
"""

from typing import NoReturn

from dil.control._box import Box
from dil.control._dare import dare
from dil.control._ddp import DDP
from dil.control._ilqr import ILQR
from dil.control._lqr import lqr_gain
from dil.control._mpc import Rollout, mpc_rollout, shift
from dil.control._plan import Plan, plan
from dil.control._riccati_solver import Riccati


def __getattr__(name: str) -> NoReturn:
    place = {"mpc": "mpc_rollout", "rollout": "mpc_rollout", "lqr": "lqr_gain", "ilqr": "ILQR"}.get(name)
    message = f"module 'dil.control' has no attribute {name!r}" + (f"; it is dil.control.{place}" if place else "")
    raise AttributeError(message)


__all__ = [
    "DDP",
    "ILQR",
    "Box",
    "Plan",
    "Riccati",
    "Rollout",
    "dare",
    "lqr_gain",
    "mpc_rollout",
    "plan",
    "shift",
]
