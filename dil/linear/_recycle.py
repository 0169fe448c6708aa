"""A linear solver that learns the inverse of a matrix that changes little from call to call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from dil._base.arrays import all_finite, array_namespace, eye, full, norm, size
from dil._base.errors import OptionError, ShapeError
from dil._base.operator import Operator, as_operator, shifted
from dil._base.options import check_integer
from dil._base.scalars import Scalar
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.loops import Loops, with_loop
from dil._frameworks.protocol import Backend
from dil.linear._auto import Auto
from dil.linear._choice_in_words import Tried
from dil.linear._dense_cost import FEWEST_TRIED, krylov_budget
from dil.linear._direct import dense
from dil.linear._gcr import System, gcr
from dil.linear._inverse_memory import InverseMemory
from dil.linear._kept import Kept
from dil.linear._recycled_choice import RecycledChoice
from dil.linear._right_hand_side import backend_of_system
from dil.linear._solve_again import SoFar, solve_again
from dil.linear._tolerance import Tolerance, tolerance_of_call
from dil.linear._window import MOST_NUMBERS

MOST_SHARE = 2 / 3
"""The most steps with the memory, as a share of the products of `Auto` alone: a step costs more than a product."""

MOST_SOLVES = 32
"""An inverse that costs more solves by `Auto` than this is not built: the matrix changes before it pays."""


@dataclass(frozen=True, eq=False)  # equality is identity, because each instance remembers its own solves
class Recycle:
    """`Auto` with a memory, for a matrix A that changes little from one call to the next, as in training.

    An instance remembers an approximation M of A^-1. The first call is solved by `Auto`. Each further call solves
    A x = b along the directions z = M r of the residual r. Each direction and its image A z then correct M. If the
    products of the calls, beyond the fewest of one call, have cost as much as a dense inverse, which costs at most 32
    solves by `Auto` and has room (2^22 numbers for the batch), M becomes the inverse of the present A, and learns on.

    The answer is the same to the tolerance of the solve. Its digits below the tolerance depend on earlier calls. If a
    call with M takes more than two thirds of the products of `Auto` alone, or more than `directions`, `Auto` solves the
    system, and M rests for 2 calls, after further failures for 4, 8, up to 64.

    Parameters
    ----------
    damping, rtol
        As in `CG`.
    directions : int
        The most directions that M keeps, each of them with its image. The vectors of a batch may hold 2^22 numbers.

    Notes
    -----
    Each framework, device, shape and dtype of b has its own memory. Take one instance for each layer and for each set
    of data: with mini-batches each row of a batch is another problem in every step, and nothing can be remembered. Two
    threads may share an instance. `forget()` deletes the memory.

    A step costs a product of M with a vector besides that of A: about 4 operations on a vector for each direction, and
    n with an inverse. It saves time where products with A are dear, as those of large data sets or deep networks, and
    costs time where they are cheap. What a product costs is not known, since a clock would make runs differ.
    Problems of a layer for which a dense solve costs fewer than 32 steps are solved by `Auto`.

    `str(solution.extra["choice"])` says in a sentence what was done, and so do `layer.report` and `dil.record`.

    Under a compiler such as `jax.jit`, callbacks read and write the memory, whose arrays travel to the host and back.
    `solve` takes the memory and returns it instead. It is a pure function, for programs that carry their state.

    Problems with up to 32 unknowns are solved by `Auto`, and so are those in which it has found a symmetric matrix that
    is not positive definite. A matrix that loses its positive definiteness from one call to the next is found only if
    a direction of this call shows it, or at the next solve by `Auto`.

    Sources: Broyden 1965, the second method (M); Eisenstat, Elman and Schultz 1983 (the iteration); the memory between
    systems: Parks, de Sturler, Mackey, Johnson and Maiti 2006.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> H = np.diag(np.linspace(1.0, 9.0, 40)) + 0.1
    >>> solver = dil.linear.Recycle()
    >>> b = np.cos(np.arange(40.0))
    >>> [int(solver(lambda p: t * p @ H, b).extra["products"]) for t in (1.0, 1.01, 1.02, 1.03)]
    [40, 2, 42, 2]
    """

    damping: float = 0.0
    rtol: float | None = None
    directions: int = 64
    _takes_tolerance = True
    """Whether its call takes a tolerance `rtol`, for each problem or for all, in the place of its option."""
    _memories: Kept = field(default_factory=Kept, init=False, repr=False)

    def __post_init__(self) -> None:
        Auto(damping=self.damping, rtol=self.rtol)
        check_integer("directions", self.directions, 1)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, rtol: Tolerance = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch.

        `rtol` stands for the option in this call: a number, or one for each problem, (*batch, 1).
        """
        backend = backend_of_system(b, "dil.linear.Recycle")
        A = as_operator(A)
        if self._is_quick(A, b, backend):
            return self._auto(A, b, loop=loop, rtol=rtol)
        found, _ = self._memories.read(backend, b, lambda: self.empty(b).arrays)
        solution, memory = self.solve(A, b, InverseMemory.of(found), loop=loop, rtol=rtol)
        return solution._replace(value=self._memories.write(backend, b, solution.value, *memory.arrays))

    def empty(self, b: Array) -> InverseMemory:
        """Return a memory in which nothing is stored, for right-hand sides like b, (*batch, n)."""
        return InverseMemory.empty(b, self._rows(b))

    def solve(
        self,
        A: Operator | Matvec,
        b: Array,
        memory: InverseMemory,
        /,
        *,
        loop: Loop | None = None,
        rtol: Tolerance = None,
    ) -> tuple[Solution, InverseMemory]:
        """Return the solution of A x = b, (*batch, n), and the memory for the next call, without a side effect.

        `memory` is what the last call returned, or `empty(b)`. `rtol` is as in a call.

        Raises
        ------
        OptionError
            If `memory` is no memory.
        ShapeError
            If the memory is that of right-hand sides of another shape or dtype.
        """
        backend, A = backend_of_system(b, "dil.linear.Recycle"), as_operator(A)
        self._check(memory, b)
        if self._is_quick(A, b, backend):
            return self._auto(A, b, loop=loop, rtol=rtol), memory
        loops, tolerance = with_loop(backend.loops, loop), tolerance_of_call(rtol, self.rtol, b, backend)
        price = max(krylov_budget(A, b, backend) * (1 if A.symmetric else 2), b.shape[-1])
        state = _State.of(b, memory)
        if memory.can_invert:
            aged = (memory.record.spent > price) & (price <= MOST_SOLVES * memory.record.plain)
            state = loops.run_if(aged, lambda s: _with_inverse(s, A, self.damping, b, backend), state)
        record = state.memory.record
        attempts = (record.plain > 0) & (record.rest == 0)
        state = loops.run_if(attempts, lambda s: self._attempt(s, A, b, tolerance, backend, loops), state)
        left = ~array_namespace(b).all(state.solved)
        state = loops.run_if(left, lambda s: self._fall_back(s, A, b, rtol, attempts, loops), state)
        return state.solution(), state.memory

    def forget(self) -> None:
        """Forget every solve."""
        self._memories.clear()

    @property
    def _auto(self) -> Auto:
        return Auto(damping=self.damping, rtol=self.rtol)

    def _is_quick(self, A: Operator, b: Array, backend: Backend) -> bool:
        """Return whether `Auto` solves the system so quickly that no memory is kept."""
        return self._rows(b) == 0 or (A.work is not None and krylov_budget(A, b, backend) == 0)

    def _rows(self, b: Array) -> int:
        """Return how many directions are kept; none for few unknowns."""
        n = b.shape[-1]
        if n <= FEWEST_TRIED or size(b.shape) == 0:
            return 0
        return min(self.directions, n, MOST_NUMBERS // size(b.shape))

    def _check(self, memory: InverseMemory, b: Array) -> None:
        if not isinstance(memory, InverseMemory):
            message = f"memory has the type {type(memory).__name__}; expected that of the last call, or `empty(b)`"
            raise OptionError(message)
        expected, found = (*b.shape[:-1], self._rows(b), b.shape[-1]), memory.z.shape
        if tuple(found) != tuple(expected) or memory.z.dtype != b.dtype:
            message = (
                f"dil.linear.Recycle got a memory whose directions have shape {tuple(found)} and dtype "
                f"{memory.z.dtype}; expected {tuple(expected)} and {b.dtype}, as `empty(b)` gives; keep one memory for "
                "each layer"
            )
            raise ShapeError(message)

    def _attempt(self, s: _State, A: Operator, b: Array, rtol: Scalar, backend: Backend, loops: Loops) -> _State:
        """Solve with the memory, and add what the solve shows of A^-1."""
        xp, memory, record = array_namespace(b), s.memory, s.memory.record
        length = norm(b)
        finite = xp.isfinite(length) & ~memory.indefinite[..., None]
        unit = xp.where(finite & (length > 0), length, full(length, 1.0))
        scaled = xp.where(finite, b, full(b, 0.0)) / unit
        system = System(shifted(A, self.damping), memory.product(backend), scaled, rtol, loops)
        found = gcr(system, memory.z.shape[-2], MOST_SHARE * record.plain)
        residual, steps = (
            system.scalars.array(k, b, d) for k, d in ((found.residual, b.dtype), (found.steps, xp.int32))
        )
        solved = (residual <= system.scalars.array(rtol, b, b.dtype)) & finite[..., 0]
        memory = memory.remember(found.z, found.w, found.count)
        record = memory.record.with_attempt(~xp.all(solved)).with_cost(_most(steps, record.spent) + 1.0)
        so_far = SoFar(
            found.x * unit,
            xp.where(solved, full(s.so_far.status, int(Status.CONVERGED)), s.so_far.status),
            steps,
            xp.where(solved, residual, s.so_far.residual),
            s.so_far.products + steps + 1,
            s.so_far.indefinite,
        )
        kind = xp.where(
            xp.isinf(s.memory.record.fewest),
            full(record.fewest, int(Tried.NEW_INVERSE), dtype=xp.int32),
            full(record.fewest, int(Tried.MEMORY), dtype=xp.int32),
        )
        return _State(
            so_far, solved, s.choice._replace(memory=kind, helped=solved, steps=steps), memory._replace(record=record)
        )

    def _fall_back(self, s: _State, A: Operator, b: Array, rtol: Tolerance, attempted: Array, loops: Loops) -> _State:
        """Solve the problems that are not solved by `Auto`. The first solutions show the size of A^-1."""
        xp, told = array_namespace(b), []

        def auto(A: Operator, b: Array, /, *, loop: Loop) -> Solution:
            found = self._auto(A, b, loop=loop, rtol=rtol)
            assert found.extra is not None
            told.append(found.extra["choice"].numbers())
            return found

        so_far = solve_again(auto, A, b, ~s.solved, s.so_far, loops.while_loop)
        most = _most(so_far.products - s.so_far.products, s.memory.record.spent)
        memory = loops.run_if(s.memory.record.plain == 0, lambda m: m.remember(*_pair(so_far, b), count=1), s.memory)
        record = memory.record.with_cost(most)
        rested = xp.where(attempted, record.rest, xp.maximum(record.rest - 1.0, 0.0 * record.rest))
        memory = memory._replace(record=record._replace(plain=most, rest=rested), indefinite=so_far.indefinite)
        return _State(so_far, s.solved | True, s.choice._replace(auto=told[0]), memory)


class _State(NamedTuple):
    """A solution and the memory, before and after one way to solve."""

    so_far: SoFar
    solved: Array
    choice: RecycledChoice
    memory: InverseMemory

    @staticmethod
    def of(b: Array, memory: InverseMemory) -> _State:
        """Return the state before anything is solved."""
        xp, batch = array_namespace(b), tuple(b.shape[:-1])
        zero = full(b, 0, shape=batch, dtype=xp.int32)
        no = full(b, False, shape=batch, dtype=xp.bool)
        so_far = SoFar(full(b, 0.0), zero, zero, full(b, 1.0, shape=batch), zero, no)
        return _State(so_far, no, RecycledChoice.empty(b), memory)

    def solution(self) -> Solution:
        """Return the solution."""
        s = self.so_far
        extra = {"products": s.products, "indefinite": s.indefinite, "choice": self.choice}
        return Solution(s.x, s.status, s.steps, s.residual, extra)


def _pair(s: SoFar, b: Array) -> tuple[Array, Array]:
    """Return x and b, (*batch, 1, n), where A x = b, with b made a vector of norm one; else zeros."""
    xp, length = array_namespace(b), norm(b)
    known = (s.status == int(Status.CONVERGED))[..., None] & (length > 0)
    unit = xp.where(known, length, full(length, 1.0))
    z, w = s.x / unit, b / unit
    known = known & all_finite(z) & all_finite(w)
    z, w = (xp.where(known, v, full(v, 0.0))[..., None, :] for v in (z, w))
    return z, w


def _most(counts: Array, like: Array) -> Array:
    """Return the largest count, shape (), with the dtype of `like`."""
    xp = array_namespace(counts)
    largest: Array = xp.astype(xp.max(counts), like.dtype)
    return largest


def _with_inverse(s: _State, A: Operator, damping: float, b: Array, backend: Backend) -> _State:
    """Return a state whose memory holds the inverse of A, or no inverse for the problems where A is singular."""
    xp, n = array_namespace(b), b.shape[-1]
    identity = eye(n, b)
    matrix = dense(A, b, backend) + damping * identity
    inverse = backend.dense.lu_solve(matrix, identity + 0.0 * matrix)
    regular = xp.all(xp.isfinite(inverse), axis=(-2, -1), keepdims=True)
    inverse = xp.where(regular, inverse, full(inverse, 0.0))
    so_far = s.so_far._replace(products=s.so_far.products + n)
    return s._replace(so_far=so_far, memory=s.memory.renewed(inverse))
