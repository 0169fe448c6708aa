"""Arrays that cost and dynamics capture, such as the parameters of a module, as one more argument of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.fixed import identity_of
from dil._frameworks.lifted import Lifted
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import leaves_of, owner

if TYPE_CHECKING:
    from dil.control._score import PlanScore


@dataclass(frozen=True, eq=False)
class Bound:
    """A user's function with arrays in the place of those that it captures."""

    call: Callable[..., Tree]
    arrays: Arrays
    identity: Callable[..., Any]
    """The user's function."""

    @property
    def __name__(self) -> str:
        """The name of the user's function in messages."""
        return getattr(self.identity, "__name__", type(self.identity).__name__)

    def __call__(self, *args: Tree) -> Tree:
        """Return the value of the user's function."""
        return self.call(self.arrays, *args)


@dataclass(frozen=True, eq=False)
class Captured:
    """The functions of a plan, lifted, and the arrays that they capture."""

    lifts: dict[str, Lifted]

    @property
    def arrays(self) -> dict[str, Arrays]:
        """The arrays that each function captures."""
        return {name: lift.arrays for name, lift in self.lifts.items() if lift.arrays}

    def bound(self, plan: PlanScore, arrays: dict[str, Arrays]) -> PlanScore:
        """Return the plan whose functions have these arrays."""
        fns = {name: Bound(self.lifts[name].call, x, identity_of(getattr(plan, name))) for name, x in arrays.items()}
        return replace(plan, captured=None, **fns)  # type: ignore[arg-type]


def captured_by(plan: PlanScore, backend: Backend, x0: Array, u: Array, theta_c: Tree, theta_h: Tree) -> Captured:
    """Return the functions of a plan, lifted at states x0 and controls u, (*batch, n_u)."""
    x, c = backend.constant(x0), plan.c_over_time.rows(theta_c, plan.c_times)
    h = plan.h_over_time.rows(theta_h, plan.horizon)
    theta_c, theta_h = (_constant(rows.at([row[0, ...] for row in rows.arrays])) for rows in (c, h))
    u = backend.constant(u)
    lifts = {"cost": backend.lifted(plan.cost, x, u, theta_c), "dynamics": backend.lifted(plan.dynamics, x, u, theta_h)}
    if plan.final is not None:
        lifts["final"] = backend.lifted(plan.final, x, theta_c)
    return Captured(lifts)


def _constant(theta: Tree) -> Tree:
    leaves, structure = leaves_of(theta)
    owners = [owner(x) for x in leaves]
    return structure.unflatten([x if own is None else own.constant(x) for x, own in zip(leaves, owners, strict=True)])
