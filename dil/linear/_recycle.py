"""A linear solver that learns the inverse of a matrix that changes little from call to call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, eye, full, norm, size
from dil._base.errors import ShapeError
from dil._base.operator import Operator, as_operator, shifted
from dil._base.options import check_integer
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Loop, Matvec
from dil._frameworks.loops import Loops, with_loop
from dil._frameworks.protocol import Backend
from dil.linear._auto import Auto
from dil.linear._dense_cost import FEWEST_TRIED, krylov_budget
from dil.linear._direct import dense
from dil.linear._gcr import System, gcr
from dil.linear._inverse_memory import InverseMemory
from dil.linear._right_hand_side import backend_of_system
from dil.linear._window import MOST_NUMBERS

LONGEST_REST = 64.0
"""The most solves in a row that do without the memory after it did not help."""


@dataclass(frozen=True, eq=False)  # equality is identity, because each instance remembers its own solves
class Recycle:
    """`Auto` with a memory, for a matrix A that changes little from one call to the next, as in training.

    An instance remembers an approximation M of A^-1. The first call is solved by `Auto`. Each further call solves
    A x = b along the directions z = M r of the residual r. Each direction and its image A z then correct M. If the
    products of the calls, beyond the fewest of one call, have cost as much as a dense inverse, and the inverse has room
    (2^22 numbers for the batch), M becomes the inverse of the present A, and learns on from there.

    The answer is the same to the tolerance of the solve. Its digits below the tolerance depend on earlier calls. If a
    call with M takes as many products as `Auto` alone, or more than `directions`, `Auto` solves the system, and M
    rests for 2 calls, after further failures for 4, 8, up to 64.

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

    A step costs products of M with a vector besides that of A, up to 8 operations on a vector for each direction. So it
    saves time where products with A are dear, as those of large data sets or deep networks, and costs time where
    `Auto` is quick anyway.

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
    [40, 33, 42, 2]
    """

    damping: float = 0.0
    rtol: float | None = None
    directions: int = 64
    _memories: dict[Any, InverseMemory] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        Auto(damping=self.damping, rtol=self.rtol)
        check_integer("directions", self.directions, 1)

    def __call__(self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch."""
        backend = backend_of_system(b, "dil.linear.Recycle")
        if self._rows(b) == 0:
            return self._auto(A, b, loop=loop)
        key = (backend.NATIVE, tuple(b.shape), str(b.dtype), str(device(b)))
        empty = self.empty(b)

        def read(*empty: Array) -> Arrays:
            return tuple(self._memories.get(key, empty))

        def write(x: Array, *memory: Array) -> Arrays:
            self._memories[key] = InverseMemory(*memory)
            return (x,)

        on_host = backend.loops.on_host
        memory = InverseMemory(*on_host(read, tuple(empty), *map(backend.constant, empty)))
        solution, memory = self.solve(A, b, memory, loop=loop)
        # the solution goes through the callback, because one on which nothing depends is dropped
        (x,) = on_host(write, (solution.value,), *map(backend.constant, (solution.value, *memory)))
        return solution._replace(value=x)

    def empty(self, b: Array) -> InverseMemory:
        """Return a memory in which nothing is stored, for right-hand sides like b, (*batch, n)."""
        return InverseMemory.empty(b, self._rows(b))

    def solve(
        self, A: Operator | Matvec, b: Array, memory: InverseMemory, /, *, loop: Loop | None = None
    ) -> tuple[Solution, InverseMemory]:
        """Return the solution of A x = b, (*batch, n), and the memory for the next call, without a side effect.

        `memory` is what the last call returned, or `empty(b)`.

        Raises
        ------
        ShapeError
            If the memory is that of right-hand sides of another shape or dtype.
        """
        backend, A = backend_of_system(b, "dil.linear.Recycle"), as_operator(A)
        self._check(memory, b)
        loops = with_loop(backend.loops, loop)
        price = max(krylov_budget(A, b, backend) * (1 if A.symmetric else 2), b.shape[-1])
        state = _State.of(b, memory)
        if memory.can_invert:
            state = loops.run_if(memory.spent > price, lambda s: _with_inverse(s, A, self.damping, b, backend), state)
        memory = state.memory
        attempts = (memory.plain > 0) & (memory.rest == 0)
        state = loops.run_if(attempts, lambda s: self._attempt(s, A, b, backend, loops), state)
        xp = array_namespace(b)
        state = loops.run_if(~xp.all(state.solved), lambda s: self._fall_back(s, A, b, attempts, loop), state)
        return state.solution(), state.memory

    def forget(self) -> None:
        """Forget every solve."""
        self._memories.clear()

    @property
    def _auto(self) -> Auto:
        return Auto(damping=self.damping, rtol=self.rtol)

    def _rows(self, b: Array) -> int:
        """Return how many directions are kept; none for few unknowns."""
        n = b.shape[-1]
        if n <= FEWEST_TRIED or size(b.shape) == 0:
            return 0
        return min(self.directions, n, MOST_NUMBERS // size(b.shape))

    def _check(self, memory: InverseMemory, b: Array) -> None:
        expected, found = self.empty(b).z.shape, memory.z.shape
        if tuple(found) != tuple(expected) or memory.z.dtype != b.dtype:
            message = (
                f"dil.linear.Recycle got a memory whose directions have shape {tuple(found)} and dtype "
                f"{memory.z.dtype}; expected {tuple(expected)} and {b.dtype}, as `empty(b)` gives; keep one memory for "
                "each layer"
            )
            raise ShapeError(message)

    def _attempt(self, s: _State, A: Operator, b: Array, backend: Backend, loops: Loops) -> _State:
        """Solve with the memory, and add what the solve shows of A^-1."""
        xp, memory = array_namespace(b), s.memory
        length = norm(b)
        finite = xp.isfinite(length) & ~memory.indefinite[..., None]
        unit = xp.where(finite & (length > 0), length, full(length, 1.0))
        scaled = xp.where(finite, b, full(b, 0.0)) / unit
        rtol = eps(xp, b.dtype) ** 0.75 if self.rtol is None else self.rtol
        system = System(shifted(A, self.damping), memory.product(backend), scaled, rtol, loops)
        found = gcr(system, memory.z.shape[-2], memory.plain)
        solved = (found.solved & finite)[..., 0]
        failed = ~xp.all(solved)
        failures = xp.where(failed, memory.failures + 1.0, 0.0 * memory.failures)
        rest = xp.where(failed, xp.minimum(2.0**failures, full(failures, LONGEST_REST)), 0.0 * failures)
        memory = memory.remember(found.z, found.w, found.count)._replace(failures=failures, rest=rest)
        steps = found.steps[..., 0]
        return _State(
            found.x * unit,
            xp.where(solved, full(s.status, int(Status.CONVERGED)), s.status),
            steps,
            xp.where(solved, found.residual[..., 0], s.residual),
            s.products + steps + 1,
            s.indefinite,
            solved,
            memory.with_cost(_most(steps, memory.spent) + 1.0),
        )

    def _fall_back(self, s: _State, A: Operator, b: Array, attempted: Array, loop: Loop | None) -> _State:
        """Solve the problems that are not solved by `Auto`."""
        xp = array_namespace(b)
        second = self._auto(A, xp.where(s.solved[..., None], full(b, 0.0), b), loop=loop)
        assert second.status is not None
        assert second.iterations is not None
        extra = second.extra or {}
        products = xp.astype(extra["products"], s.products.dtype)
        most = _most(products, s.memory.spent)
        memory = s.memory.with_cost(most)
        indefinite = xp.where(s.solved, s.indefinite, extra.get("indefinite", s.indefinite))
        rested = xp.where(attempted, memory.rest, xp.maximum(memory.rest - 1.0, full(memory.rest, 0.0)))
        return _State(
            xp.where(s.solved[..., None], s.x, second.value),
            xp.where(s.solved, s.status, second.status),
            s.iterations + second.iterations,
            xp.where(s.solved, s.residual, second.residual),
            s.products + products,
            indefinite,
            s.solved | True,
            memory._replace(plain=most, rest=rested, indefinite=indefinite),
        )


class _State(NamedTuple):
    """A solution and the memory, before and after one way to solve.

    x: (*batch, n); the other fields of the solution: batch.
    """

    x: Array
    status: Array
    iterations: Array
    residual: Array
    products: Array
    indefinite: Array
    solved: Array
    memory: InverseMemory

    @staticmethod
    def of(b: Array, memory: InverseMemory) -> _State:
        """Return the state before anything is solved."""
        xp, batch = array_namespace(b), tuple(b.shape[:-1])
        zero = full(b, 0, shape=batch, dtype=xp.int32)
        no = full(b, False, shape=batch, dtype=xp.bool)
        return _State(full(b, 0.0), zero, zero, full(b, 1.0, shape=batch), zero, no, no, memory)

    def solution(self) -> Solution:
        """Return the solution."""
        extra = {"products": self.products, "indefinite": self.indefinite}
        return Solution(self.x, self.status, self.iterations, self.residual, extra)


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
    return s._replace(products=s.products + n, memory=s.memory.renewed(inverse))
