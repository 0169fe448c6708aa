"""The right-hand side of dy/dt = func(t, y, *args), as a function of vectors and flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dil._base.arrays import array_namespace, full
from dil._base.typing import Array, Arrays, Tree
from dil._frameworks.arguments import Arguments
from dil._frameworks.protocol import Backend
from dil._problem.space import Space
from dil.ode._mass import Mass


@dataclass(frozen=True)
class Field:
    """The user's function as it is at the call, with the structure of its state and of its arguments fixed."""

    func: Callable[..., Tree]
    space: Space
    """The space of the states of all problems."""
    arguments: Arguments
    """The structure of `args`."""
    backend: Backend
    sign: float = 1.0
    """Minus one where the times decrease. The state is then a function of s = -t."""
    freezes: bool = False
    """Whether two more arguments follow those of the user: which problems go on, shape batch, and a state where func is
    finite, (*batch, n). The others stand still. func is evaluated at that state for them, since a derivative of zero
    times one that is not finite would not be zero."""
    mass_arrays: int = 0
    """The number of arrays of the mass matrix, the last arguments; zero without one. A field has them or freezes."""

    own_times: bool = False
    """Whether func takes a time for each problem, shape batch. Times are then columns, (*batch, 1), or one for all."""

    @property
    def name(self) -> str:
        """The name of the function in messages."""
        return getattr(self.func, "__name__", type(self.func).__name__)

    def __call__(self, t: Array, u: Array, *args: Tree) -> Array:
        """Return f at the vectors u, (*batch, n), from trees of arguments; -f(-s, u) where the times decrease."""
        t = self.users_time(t, u)
        if self.freezes:
            u = array_namespace(u).where(args[-2][..., None], u, args[-1])
        value = self.func(t, self.space.unravel(u), *self.of_user(args))
        slope = self.space.vector(value, f"the function {self.name!r} of the ODE")
        slope = slope if self.sign > 0 else -slope
        if self.freezes:
            slope = array_namespace(slope).where(args[-2][..., None], slope, full(slope, 0.0))
        return slope

    def users_time(self, t: Array, u: Array) -> Array:
        """Return the user's time at the vectors u, (*batch, n): shape (), or batch with own times."""
        t = t if self.sign > 0 else -t
        if not self.own_times:
            return t
        return t[..., 0] if t.ndim else full(u[..., 0], 0.0) + t

    def of_user(self, args: tuple[Tree, ...]) -> tuple[Tree, ...]:
        """Return the user's arguments."""
        return args[: len(args) - (2 if self.freezes else self.mass_arrays)]

    def with_going(self, arrays: Arrays, going: Array | None = None) -> Arrays:
        """Return the flat arrays with other problems that go on."""
        return arrays if going is None else (*arrays[:-2], going, arrays[-1])

    def mass(self, args: tuple[Tree, ...]) -> Mass:
        """Return the mass matrix, which the arguments hold."""
        return Mass(*args[len(args) - self.mass_arrays :])

    def residual(self, z: Array, base: Array, t: Array, gh: Array, *args: Tree) -> Array:
        """Return the residual of the stage z = base + gh f(t, z), or M (z - base) = gh f(t, z)."""
        slope = self(t, z, *args)
        return self.mass(args).residual(z, base, gh, slope) if self.mass_arrays else z - (base + gh * slope)

    def at(self, t: Array, u: Array, arrays: Sequence[Array]) -> Array:
        """Return dy/dt from the flat arrays of the arguments."""
        args, _ = self.arguments.call(arrays)
        return self(t, u, *args)

    def slope(self, t: Array, u: Array, arrays: Sequence[Array]) -> Array:
        """Return dy/dt, with u differentiated too: func may use the namespace of u on all its arrays."""
        (slope,), _ = self.backend.vjp(lambda w: (self.at(t, w, arrays),), u)
        return slope

    def trajectory(self, rows: Array) -> Tree:
        """Return the vectors (T, *batch, n) as a tree. Its leaves have a leading dimension of times."""
        return self.space.many(rows.shape[0]).unravel(rows)

    def refuse_captured(self, t: Array, u: Array, arrays: Arrays) -> None:
        """Raise if the function depends on an array that is being differentiated but is not among its arguments.

        This is the first evaluation of the function. It also raises if the result is not like the state.
        """
        backend = self.backend
        t, u, *constants = (backend.constant(x) for x in (t, u, *arrays))
        # inside a vjp, as in a step: a function may make a leaf of its own and differentiate in it
        copy = array_namespace(u).asarray(u, copy=True)
        (value,), _ = backend.vjp(lambda w: (self.at(t, w, constants),), copy)
        message = (
            f"odeint of {self.name!r}: the function uses an array that takes part in a differentiation but is not "
            f"among its arguments, and in a way that cannot be followed, such as in a custom function of its "
            f"framework; so it would silently get no gradient; pass it in args, or detach it"
        )
        backend.assert_constant(value, message)
