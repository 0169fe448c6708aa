"""The status of a solve: an integer code with a sentence that says what happened and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, unique
from typing import Any

from dil._base.arrays import array_namespace, full, select
from dil._base.typing import Array


@unique
class Status(IntEnum):
    """The status of one problem. It is an integer code, so a batch of problems has an array of codes.

    Each member has a `sentence`, which says what happened and what to do.

    Examples
    --------
    >>> import dil
    >>> dil.Status.CONVERGED.ok
    True
    >>> dil.Status(2).name
    'INDEFINITE'
    """

    sentence: str

    def __new__(cls, code: int, sentence: str = "") -> Status:
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    CONVERGED = 0, "converged to the tolerance asked for"
    MAX_ITER = (
        1,
        "the iteration limit was reached before the tolerance; raise max_iter, loosen the tolerance, "
        "or start closer to the solution",
    )
    INDEFINITE = (
        2,
        "a direction of negative curvature was met (p^T H p <= 0), so this point is not a strict minimum or the "
        "matrix is indefinite; solve the forward problem further, or add damping=",
    )
    SINGULAR = (
        3,
        "the curvature vanished along a direction (p^T H p = 0 to working precision), or the matrix dF/du is singular: "
        "the solution there is not unique or not a minimum; add a regulariser to the score or the equations, or "
        "damping= to the linear solver",
    )
    STAGNATED = (
        4,
        "progress stopped above the tolerance because of rounding; loosen the tolerance, use a wider dtype, or scale "
        "the problem",
    )
    NON_FINITE = (
        5,
        "a NaN or an infinity was met; look for invalid data, log or sqrt of a negative number, or overflow in the "
        "score",
    )
    NOT_STATIONARY = (
        6,
        "the solver's point is not stationary (the gradient of the score, or the residual, is not small there), so the "
        "implicit gradient is that of another problem; run the forward solver to a tighter tolerance, or pass "
        "refine=2; beside a kink of the score (relu, max, |u|) neither helps, so smooth it",
    )
    FAILED = (
        7,
        "the solver itself reports that it failed; where it gives a message, the `extra` of `layer.solve` holds it",
    )
    PRECONDITIONER = (
        8,
        "<r, M r> <= 0: the preconditioner is not positive definite, or it maps a residual r to zero; use one that is "
        "positive definite, such as dil.linear.Jacobi(), or use none",
    )
    APPROXIMATE = (
        9,
        "the linear solver is an approximate one, chosen by name, and its residual is above the tolerance; "
        "use dil.linear.Auto() for an exact solution",
    )
    NOT_MINIMUM = (
        10,
        "the point is stationary but not a minimum (the Hessian has a negative eigenvalue), and the gradient is that "
        "of this stationary point; start the forward solver elsewhere, or make the layer with dil.root(gradient, "
        "...) if saddle points are allowed",
    )

    DIVERGED = (
        11,
        "the iterates, or the states of a plan, grow without bound; check that the score has a minimum, damp the steps "
        "or take another solver, and for a plan shorten the horizon, bound the controls, start from controls that keep "
        "the states small, or check the dynamics; the solution of a differential equation has a pole there",
    )
    UNSTABILISABLE = (
        12,
        "no control stabilises the pair (A, B): A has an eigenvalue on or outside the unit circle, and B has no "
        "effect on its mode; check A and B, since the cost of every control is infinite",
    )
    UNDETECTABLE = (
        13,
        "Q gives no cost to a mode of A on the unit circle, so the cheapest control does not stabilise this mode; give "
        "the mode a cost, for example with Q + 1e-6 I",
    )
    NOT_CONVEX = (
        14,
        "no control minimises the cost: Q must be positive semi-definite and R positive definite; where they are "
        "learned, write them as L L^T, and R as L L^T + 1e-6 I",
    )
    NO_DERIVATIVE = (
        15,
        "the gradient of the score is exactly zero at the start, although the score changes there, or the score does "
        "not depend on the unknown at all; look for detach, stop_gradient, dil.constant or a conversion to another "
        "array type between the unknown and the score",
    )
    KINK = (
        16,
        "the solution lies on a kink of the score (|u|, max, relu, clip), where the Hessian is that of one side, so "
        "the gradient may be wrong; smooth the score, restrict the unknown to the entries that are not on a kink, or "
        "take dil.fixed_point of the proximal step, whose gradient is right",
    )
    RANDOM = (
        17,
        "the score has another value at each call, so its solution has no derivative; draw the random numbers once and "
        "pass them as an argument, or switch dropout off",
    )
    NO_ROOT = (
        18,
        "the residual has a minimum here that is not zero, so no root is near this point; start elsewhere, or check "
        "the equation and its arguments",
    )
    WRONG_DERIVATIVE = (
        19,
        "the function changes along its unknown in another way than its derivative says: a part of the derivative is "
        "cut off or wrong; look for detach, no_grad, stop_gradient, dil.constant and custom derivatives; a layer "
        'takes check_smoothness="never" if that is meant',
    )
    WRONG_PATTERN = (
        20,
        "the matrix dF/du has an entry where the pattern of dil.linear.SparseDirect has none, or too many entries for "
        "a pattern to be found, so nothing was solved; give a pattern with all entries dF_i/du_j that can differ from "
        "zero, those of the boundary too, or take dil.linear.Auto(), which needs none",
    )
    GRAZING = (
        21,
        "the function of an event hardly crosses zero: its derivative along the solution is zero within the tolerance, "
        "so the time of the event has no derivative; move the threshold, take another function, or lower rtol",
    )
    EVENT_NON_FINITE = (
        22,
        "the function of an event returned NaN or infinity, so its zeros are unknown; look for log or sqrt of a "
        "negative number, or a division by zero, in it",
    )
    HIGHER_INDEX = (
        23,
        "the algebraic equations of M y' = f do not determine the algebraic unknowns (df_a/dy_a is singular), so the "
        "index is above 1; differentiate the constraints in time until the unknowns are determined, as positions of a "
        "mechanism are replaced by their accelerations, or check that no equation is missing or written twice",
    )
    INCONSISTENT = (
        24,
        "the initial values do not satisfy the algebraic equations of M y' = f; give values that do, or take "
        'consistent="find", which corrects the algebraic unknowns',
    )
    MORE_EVENTS = (
        25,
        "more events of a function occurred than a compiled or mapped program has memory for, so the later ones are "
        "missing; raise max_events",
    )
    WRONG_MIXED = (
        26,
        "the function changes along an argument in another way than the given `mixed` (in forward mode `mixed_jvp`) "
        "says, so the gradient is wrong; mixed(u, w, *args) returns w^T dF/dargs of each argument, with the sign of F, "
        "and None only where F does not change with it; compare it with central differences of F; a layer takes "
        'check_smoothness="never" if that is meant',
    )
    LINEAR_SOLVER = (
        27,
        "the linear solver that was given to Newton's method leaves most of J d = F unsolved, so its steps do not lead "
        "to the root, towards which a step by dil.linear.Auto() leads; take Auto(), raise max_iter or restart of the "
        "linear solver, or give it a preconditioner",
    )

    @property
    def ok(self) -> bool:
        """Whether the solution satisfies the equations to the tolerance."""
        return self is Status.CONVERGED


def name_of(code: int) -> str:
    """Return the name of a code, or the code itself if it is not a `Status`."""
    return Status(code).name if code in Status._value2member_map_ else str(code)


def sentence_of(code: int) -> str:
    """Return the sentence of a code."""
    return Status(code).sentence if code in Status._value2member_map_ else "a code that is not a dil.Status"


EXPLAINS_NON_FINITE = Status.DIVERGED
"""Codes >= this one say why a solution is not finite. They are kept, because NON_FINITE would say less."""


def first_of(reasons: Sequence[tuple[Array | bool, Status]], otherwise: Status) -> Any:
    """Return the code of the first status whose condition holds, or of `otherwise` if no condition holds.

    The conditions are masks of one shape, which give an array of codes, or Python bools, which give an int.
    """
    masks = [holds for holds, _ in reasons if not isinstance(holds, bool)]
    code: Any = int(otherwise)
    if masks:
        code = full(masks[0], code, dtype=array_namespace(masks[0]).int32)
    for holds, status in reversed(reasons):
        code = select(holds, int(status), code)
    return code
