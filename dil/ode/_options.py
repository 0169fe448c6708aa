"""The options of `odeint` and `solve`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dil._base.errors import OptionError
from dil._base.options import check_integer, is_number
from dil._base.typing import DType, OnFailure
from dil._layers.call import Solver
from dil.linear._auto import Auto
from dil.linear._direct import Direct
from dil.linear._solver import LinearSolver
from dil.ode import _methods
from dil.ode._adaptive import Control
from dil.ode._events import Event, events_of
from dil.ode._methods import Method
from dil.ode._newton import StepNewton
from dil.ode._pairs import KVAERNO5, PAIRS
from dil.ode._radau import RADAU5
from dil.ode._simplified_newton import ROUNDING
from dil.solvers._anderson import Anderson
from dil.solvers._fixed_point import FixedPoint

METHODS = {**_methods.METHODS, **PAIRS, RADAU5.name: RADAU5}
AUTO = "auto"
"""The name of the choice between an explicit and an implicit method."""
EXPLICIT = "tsit5"
"""Its explicit method."""
FEW = 64
"""Up to so many unknowns its implicit method is "radau", which takes less time there, and above "kvaerno5"."""
FAR = 500
"""The largest number of iterations towards a consistent state. From 5 V, a diode takes 150 that lower it by 26 mV."""
Gradient = Literal["implicit", "naive", "unroll", "adjoint"]
Layer = Literal["root", "argmin"]
Consistent = Literal["find", "check"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options, checked. `dil.ode.odeint` explains them."""

    method: str | None = None
    solver: Solver | None = None
    linear_solver: LinearSolver | None = None
    gradient: Gradient = "implicit"
    layer: Layer = "root"
    steps: int = 1
    rtol: float | None = None
    atol: Any = None
    first_step: float | None = None
    max_step: float | None = None
    max_steps: int = 1000
    checkpoints: int | None = None
    jac: Any = None
    unroll: int = 8
    batch_ndim: int = 0
    on_failure: OnFailure = "warn"
    events: Any = None
    max_events: int = 16
    consistent: Consistent = "find"
    own_steps: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.name, (*METHODS, AUTO)),
            ("gradient", self.gradient, get_args(Gradient)),
            ("layer", self.layer, get_args(Layer)),
            ("consistent", self.consistent, get_args(Consistent)),
        ):
            if value not in known:
                message = f"{name}={value!r} is unknown; expected one of {', '.join(known)}"
                raise OptionError(message)
        for name, count in (
            ("steps", self.steps),
            ("unroll", self.unroll),
            ("max_steps", self.max_steps),
            ("max_events", self.max_events),
        ):
            check_integer(name, count, 1)
        check_integer("batch_ndim", self.batch_ndim, 0)
        if self.checkpoints is not None:
            check_integer("checkpoints", self.checkpoints, 1)
        sizes = (("rtol", self.rtol), ("first_step", self.first_step), ("max_step", self.max_step))
        for name, size in (*sizes, *((("atol", self.atol),) if is_number(self.atol) else ())):
            if size is not None and not (is_number(size) and size > 0):
                message = f"{name}={size!r}; expected a number > 0, or None"
                raise OptionError(message)
        for name, solver in (("solver", self.solver), ("linear_solver", self.linear_solver)):
            if solver is not None and not callable(solver):
                message = f"{name}={solver!r}; expected a callable: a solver, or None for the default"
                raise OptionError(message)
        self._refuse_conflicts()
        if not isinstance(self.own_steps, bool):
            message = f"own_steps={self.own_steps!r}; expected True or False"
            raise OptionError(message)
        if self.own_steps and not (self.adapts and self.gradient in ("implicit", "naive")):
            message = (
                f"own_steps=True with gradient={self.gradient!r}, rtol={self.rtol} and atol={self.atol}; it is for "
                f"steps that adapt, with gradient='implicit' or 'naive': give rtol= or atol="
            )
            raise OptionError(message)
        if self.own_steps and self.scheme.collocation is not None:
            message = f"own_steps=True with method={self.method!r}, whose stages are solved together; take 'kvaerno5'"
            raise OptionError(message)
        if self.watched and not (self.adapts and self.gradient in ("implicit", "naive")):
            message = (
                f"events= with gradient={self.gradient!r}, rtol={self.rtol} and atol={self.atol}; events are found on "
                f"steps that adapt, with gradient='implicit' or 'naive': give rtol= or atol="
            )
            raise OptionError(message)

    def _refuse_conflicts(self) -> None:
        if self.gradient == "naive" and self.linear_solver is not None:
            message = "gradient='naive' solves by dil.linear.Direct(); drop linear_solver=, or take gradient='implicit'"
            raise OptionError(message)
        stage_options = self.solver is not None or self.linear_solver is not None or self.layer != "root"
        if not self.scheme.implicit and (stage_options or self.gradient == "naive"):
            message = (
                f"method={self.name!r} has no stage to solve, and is differentiated step by step; drop "
                f"solver=, linear_solver=, layer= and gradient='naive', or take an implicit method"
            )
            raise OptionError(message)
        if self.jac is not None and not self.simplifies:
            message = (
                f"jac={self.jac!r} is for steps that adapt (rtol= or atol=), an implicit method, and neither solver= "
                f"nor layer='argmin'; drop it"
            )
            raise OptionError(message)
        for name, length in (("first_step", self.first_step), ("max_step", self.max_step)):
            if length is not None and not self.adapts:
                message = f"{name}= is for steps that adapt; give rtol= or atol= too, or steps= for steps of one size"
                raise OptionError(message)
        self._refuse_checkpoints()
        if self.alternates:
            self._refuse_with_auto()
        if self.adapts and self.steps != 1:
            message = f"steps={self.steps} is for steps of one size; drop it, or drop rtol= and atol=, which adapt them"
            raise OptionError(message)
        if self.adapts and self.scheme.error_order is None:
            known = ", ".join(name for name, method in METHODS.items() if method.error_order is not None)
            message = (
                f"method={self.name!r} has no estimate of its error, so its step cannot adapt; take one of {known}, "
                f"or steps= instead of rtol= and atol="
            )
            raise OptionError(message)

    def _refuse_checkpoints(self) -> None:
        if self.checkpoints is None:
            return
        message = None
        if not self.adapts or self.gradient not in ("implicit", "naive"):
            message = f"is for steps that adapt (rtol= or atol=), with gradient='implicit'; got {self.gradient!r}"
        elif self.events is not None:
            message = "keeps too few steps to find events on; drop it, or events="
        elif self.own_steps:
            message = "is for steps that the problems of a batch share; drop it, or own_steps=True"
        elif self.scheme.starter is not None:
            message = f"is for methods of one step, and method={self.name!r} has two; take sdirk2 or another one"
        if message is not None:
            message = f"checkpoints={self.checkpoints} {message}"
            raise OptionError(message)

    def _refuse_with_auto(self) -> None:
        message = None
        if not self.adapts:
            message = "is for steps that adapt: give rtol= or atol=, or take 'tsit5' or 'radau'"
        elif self.gradient not in ("implicit", "naive"):
            message = f"is for gradient='implicit' or 'naive', not {self.gradient!r}; take 'tsit5' or 'radau'"
        elif not self.simplifies:
            message = "solves its stages by simplified Newton iterations; drop solver= and layer=, or take 'radau'"
        elif self.checkpoints is not None:
            message = "keeps all steps; drop checkpoints=, or take 'tsit5' or 'radau'"
        elif self.own_steps:
            message = "changes for all problems of a batch at once; drop own_steps=True, or take 'tsit5' or 'kvaerno5'"
        if message is not None:
            message = f"method='auto' {message}"
            raise OptionError(message)

    def refuse_below(self, least: float, dtype: DType) -> None:
        """Refuse a relative tolerance below rounding.

        Raises
        ------
        OptionError
            If it is, and no atol= is given beside it.
        """
        if self.rtol is not None and self.atol is None and self.rtol < least:
            message = (
                f"rtol={self.rtol} is below the rounding of {dtype}; expected {least:.1e} or more, or atol= beside it"
            )
            raise OptionError(message)

    def refuse_with_mass(self) -> None:
        """Refuse what cannot be had with a mass matrix.

        Raises
        ------
        OptionError
            If the method does not keep the algebraic equations, or the solver or the gradient is for M = I.
        """
        if self.alternates:
            message = "method='auto' takes explicit steps, which cannot have a mass=; take 'radau' or 'kvaerno5'"
            raise OptionError(message)
        if not (self.scheme.implicit and self.scheme.keeps_constraints):
            known = ", ".join(name for name, x in METHODS.items() if x.implicit and x.keeps_constraints)
            why = "solves no equations" if not self.scheme.implicit else "satisfies them in the middle of a step alone"
            message = f"method={self.name!r} cannot keep the algebraic equations of mass=, since it {why}; take {known}"
            raise OptionError(message)
        if self.gradient == "adjoint":
            message = "gradient='adjoint' is for M = I; with mass=, take gradient='implicit'"
            raise OptionError(message)
        if isinstance(self.solver, FixedPoint | Anderson):
            message = (
                f"solver={self.solver!r} iterates z = base + gh f(t, z), a stage without a mass matrix; take "
                f"dil.ode.StepNewton() or another solver of roots"
            )
            raise OptionError(message)

    @property
    def watched(self) -> tuple[Event, ...]:
        """The events, checked."""
        return events_of(self.events)

    @property
    def adapts(self) -> bool:
        """Whether the step size adapts to an estimate of the error."""
        return self.rtol is not None or self.atol is not None

    @property
    def simplifies(self) -> bool:
        """Whether the stages of adaptive steps may be solved by simplified Newton iterations."""
        return self.adapts and self.scheme.implicit and self.solver is None and self.layer == "root"

    @property
    def control(self) -> Control:
        """The options of adaptive steps. The default rtol is 1e-6."""
        rtol = 1e-6 if self.rtol is None else self.rtol
        return Control(rtol, self.atol, self.first_step, self.max_steps, self.max_step)

    @property
    def alternates(self) -> bool:
        """Whether steps are those of an explicit and of an implicit method by turns."""
        return self.name == AUTO

    def parts(self, n: int) -> tuple[Options, Options]:
        """Return the options of the explicit and of the implicit steps of a state of n unknowns."""
        explicit = replace(self, method=EXPLICIT, jac=None, linear_solver=None, gradient="implicit")
        return explicit, replace(self, method=RADAU5.name if n <= FEW else KVAERNO5.name)

    @property
    def scheme(self) -> Method:
        """The method; the implicit one of a small state if there are two."""
        return RADAU5 if self.alternates else METHODS[self.name]

    @property
    def name(self) -> str:
        """The name of the method."""
        if self.method is not None:
            return self.method
        return "kvaerno5" if self.adapts else "implicit_euler"

    def stage_solver(self, *, massive: bool, far: bool = False) -> Solver:
        """Return the solver of the stages, with a mass matrix or without one. `far` says that the guess may be far."""
        solver = StepNewton() if self.solver is None else self.solver
        if not massive or type(solver) is not StepNewton:
            return solver
        max_iter = max(FAR, solver.max_iter) if far else solver.max_iter
        return replace(solver, rounding=max(ROUNDING, solver.rounding), max_iter=max_iter)

    @property
    def backward(self) -> LinearSolver:
        """The linear solver of the gradients."""
        if self.linear_solver is not None:
            return self.linear_solver
        return Direct() if self.gradient == "naive" else Auto()
