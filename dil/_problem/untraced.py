"""A residual or step on the host as an operation of any backend, with the derivatives that the user gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dil._base.errors import UnsupportedFunctionError
from dil._base.given_matrix import GivenMatrix
from dil._base.typing import Array, Arrays
from dil._frameworks.arguments import Arguments
from dil._frameworks.protocol import Backend
from dil._problem.equation import Equation
from dil._problem.host_equation import HostEquation, left_out
from dil._problem.linear_map import HostMap
from dil._problem.space import Space
from dil._problem.user_jacobian import Jacobian


@dataclass(frozen=True)
class Untraced:
    """The rule of y = f(u, *arrays), where f runs on the host; u: (n,)."""

    backend: Backend
    condition: Equation
    space: Space
    arguments: Arguments

    @property
    def jacobian(self) -> Jacobian:
        """The derivatives that the user gave."""
        assert self.condition.derivatives is not None
        return self.condition.derivatives

    def host(self, u: Any) -> HostEquation:
        """Return the equation for NumPy vectors of the dtype of u."""
        condition, space = self.condition, replace(self.space, dtype=u.dtype)
        return HostEquation(condition.fn, condition.kind, condition.name, self.jacobian, space, self.arguments)

    def image(self, *arrays: Array) -> Arrays:
        """Return f(u, *arrays)."""
        if self.space.split or self.arguments.split:
            message = (
                f"the {self.condition.kind} {self.condition.name!r} has derivatives=dil.Jacobian(...), which are real, "
                f"and an unknown or an argument is complex; give its real and its imaginary part as one real array"
            )
            raise UnsupportedFunctionError(message)
        return self._run(lambda host, at: (host.value(*at),), (arrays[0],), len(arrays), *arrays)

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return J^T w for the unknown, and w^T df/dargs for the arguments."""
        found: dict[int, Array] = {}
        if 0 in wrt:
            (found[0],) = self._of_u(len(args)).T((args[0],), args, cotangents)
        rest = [i - 1 for i in wrt if i > 0]
        if rest:
            pulled = self._of_arguments(len(args), rest).T(tuple(args[1 + i] for i in rest), args, cotangents)
            found |= {1 + i: x for i, x in zip(rest, pulled, strict=True)}
        return tuple(found[i] for i in wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return J t for the unknown, and df/dargs t for the arguments."""
        total: Array | None = None
        if tangents[0] is not None:
            (total,) = self._of_u(len(args))(y, args, (tangents[0],))
        rest = [i for i, t in enumerate(tangents[1:]) if t is not None]
        if rest:
            moves = tuple(t for t in tangents[1:] if t is not None)
            (moved,) = self._of_arguments(len(args), rest)(y, args, moves)
            total = moved if total is None else total + moved
        assert total is not None
        return (total,)

    def matrix(self, *arrays: Array) -> GivenMatrix | None:
        """Return dF/du at (u, *arrays), if it is known as a matrix."""
        if not self.jacobian.has_matrix:
            return None
        constants = tuple(map(self.backend.constant, arrays))
        return GivenMatrix(lambda *at: self.host(at[0]).kept_of_equation(*at), constants)

    def error_of_differences(self, *arrays: Array) -> Array | None:
        """Return the relative error of the differences at (u, *arrays), shape (); None if there are none."""
        if not self.jacobian.has_differences:
            return None
        constants = tuple(map(self.backend.constant, arrays))
        (error,) = self._run(
            lambda host, at: (host.error_of_differences(*at),), (constants[0][0],), len(arrays), *constants
        )
        return error

    def _of_u(self, count: int) -> HostMap:
        """Return v -> J v, and w -> J^T w."""
        given = self.jacobian

        def push(*arrays: Array) -> Arrays:
            self._needs(given.jvp is not None or given.has_matrix, "jvp", "J v")
            return self._run(lambda host, at, v: (host.jvp(at, v),), (arrays[0],), count, *arrays)

        def pull(*arrays: Array) -> Arrays:
            self._needs(given.vjp is not None or given.has_matrix, "vjp", "J^T w")
            return self._run(lambda host, at, w: (host.vjp(at, w),), (arrays[0],), count, *arrays)

        return HostMap(self.backend, push, pull, count)

    def _of_arguments(self, count: int, wrt: Sequence[int]) -> HostMap:
        """Return t -> dF/dargs t, and w -> w^T dF/dargs, for the arguments at the places `wrt`."""
        given = self.jacobian

        def push(*arrays: Array) -> Arrays:
            self._needs(given.mixed_jvp is not None, "mixed_jvp", "dF/dargs t, as in forward mode")
            return self._run(lambda host, at, *t: (host.mixed_jvp(at, t, wrt),), (arrays[0],), count, *arrays)

        def pull(*arrays: Array) -> Arrays:
            # in forward mode this is the transpose of what is used, and is called with w = 0 alone
            self._needs(given.mixed is not None or given.mixed_jvp is not None, "mixed", "w^T dF/dargs")
            like = tuple(arrays[1 + i] for i in wrt)
            return self._run(lambda host, at, w: host.mixed(at, w, wrt), like, count, *arrays)

        return HostMap(self.backend, push, pull, count)

    def _needs(self, given: bool, name: str, what: str) -> None:
        """Refuse a product that was left out, unless differences may stand for it."""
        if not (given or self.jacobian.finite_differences):
            raise UnsupportedFunctionError(left_out(self.condition.kind, self.condition.name, name, what))

    def _run(self, compute: Callable[..., Sequence[Any]], like: Arrays, count: int, *arrays: Array) -> Arrays:
        """Run `compute(host, at, *rest)` on the host with NumPy arrays, of which `at` are the first `count`."""
        backend = self.backend

        def run(*arrays: Array) -> Arrays:
            numbers = [backend.to_numpy(x) for x in arrays]
            return tuple(compute(self.host(numbers[0]), numbers[:count], *numbers[count:]))

        return backend.loops.on_host(run, like, *map(backend.constant, arrays))
