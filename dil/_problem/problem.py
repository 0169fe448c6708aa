"""One call of a layer as functions of flat arrays: the score, its gradient, and F, which is zero at the solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dil._base.arrays import array_namespace
from dil._base.typing import Array, Arrays
from dil._frameworks.arguments import Arguments
from dil._frameworks.protocol import Backend
from dil._frameworks.registry import as_one_array
from dil._problem.equation import Equation
from dil._problem.last_point import LastPoint
from dil._problem.score import Derivatives, Score
from dil._problem.space import Space
from dil._problem.untraced import Untraced


@dataclass(frozen=True)
class Problem:
    """A score or an equation with the structure of its unknown and of its arguments fixed.

    The unknown is a vector u of shape (*batch, n). The arguments are a flat tuple of arrays. F(u) is zero at the
    solution. F is df/du for a score.
    """

    condition: Score | Equation
    backend: Backend
    space: Space
    arguments: Arguments
    last: LastPoint = field(default_factory=LastPoint, compare=False, repr=False)
    """What the solver of this call evaluated last."""

    @property
    def score(self) -> Score:
        """The score. Only a problem with a score has this property."""
        assert isinstance(self.condition, Score)
        return self.condition

    @property
    def untraced(self) -> Untraced | None:
        """The rule of an equation on the host, whose derivatives the user gives; None for another condition."""
        condition = self.condition
        if not isinstance(condition, Equation) or condition.derivatives is None:
            return None
        return Untraced(self.backend, condition, self.space, self.arguments)

    @property
    def symmetric(self) -> bool:
        """Whether dF/du is known to be symmetric. It is for a score, where dF/du is the Hessian."""
        return isinstance(self.condition, Score)

    def value(self, u: Array, *arrays: Array) -> Array:
        """Return the score, one number per problem, shape batch."""
        args, kwargs = self.arguments.call(arrays)
        value = as_one_array(self.score.fn(self.space.unravel(u), *args, **kwargs))
        self.score.check(value, self.space.batch, self.space.dtype)
        return value  # type: ignore[no-any-return]

    def value_and_gradient(self, u: Array, *arrays: Array) -> tuple[Array, Array]:
        """Return the score, shape batch, and df/du, shape (*batch, n)."""
        if self.score.derivatives is not None:
            return self.value(u, *arrays), self.gradient(u, *arrays)
        (value,), pull = self.backend.vjp(lambda w: (self.value(w, *arrays),), u)
        (gradient,) = pull((array_namespace(value).ones_like(value),))
        return value, gradient

    def residual(self, u: Array, *arrays: Array) -> Array:
        """Return F(u), shape (*batch, n): df/du, the residual, or u - step(u)."""
        if isinstance(self.condition, Score):
            return self.gradient(u, *arrays)
        image = self.image(u, *arrays)
        # this sign gives dF/du = I - d step/du, whose inverse is a Neumann series in the Jacobian of the step
        return image if self.condition.kind == "residual" else u - image

    def image(self, u: Array, *arrays: Array) -> Array:
        """Return the value of the residual or step at u, shape (*batch, n)."""
        if self.untraced is not None:
            (image,) = self.backend.implicit(self.untraced.image, self.untraced)(u, *arrays)
            return image
        args, kwargs = self.arguments.call(arrays)
        what = f"the {self.condition.kind} {self.condition.name!r}"  # type: ignore[union-attr]
        return self.space.vector(self.condition(self.space.unravel(u), *args, **kwargs), what)

    def gradient(self, u: Array, *arrays: Array) -> Array:
        """Return df/du of a score, shape (*batch, n)."""
        if self.score.derivatives is None:
            return self.value_and_gradient(u, *arrays)[1]
        rule = UserDerivatives(self, self.score.derivatives)
        if rule.derivatives.hvp is None and rule.derivatives.mixed is None:
            return rule.gradient(u, *arrays)
        (gradient,) = self.backend.implicit(lambda *xs: (rule.gradient(*xs),), rule)(u, *arrays)
        return gradient

    def optimality(self, arrays: Sequence[Array]) -> tuple[Optimality, Arrays]:
        """Return F as a function of the unknown and of the real floating arguments, and those arguments.

        The arrays may end with a start for the solver, which is no argument of F.
        """
        used = tuple(arrays[: len(self.arguments.arrays)])
        others = self.arguments.with_floats(used, [None] * len(self.arguments.floats))
        return Optimality(self, tuple(others)), self.arguments.only_floats(used)


@dataclass(frozen=True)
class Optimality:
    """The function F(u, *floats). The other arrays of the call are fixed."""

    problem: Problem
    others: tuple[Array | None, ...]
    """The arrays of the call, with None in the place of each float. A framework keeps F longer than its arrays."""

    @property
    def fixed(self) -> Arrays:
        """The arrays of the call that have no derivative."""
        return tuple(x for x in self.others if x is not None)

    def with_fixed(self, arrays: Sequence[Array]) -> Optimality:
        """Return F with other arrays that have no derivative."""
        rest = iter(arrays)
        return replace(self, others=tuple(x if x is None else next(rest) for x in self.others))

    def arrays(self, floats: Sequence[Array]) -> Arrays:
        """Return the arrays of the call."""
        return tuple(self.problem.arguments.with_floats(self.others, floats))

    def __call__(self, u: Array, *floats: Array) -> Arrays:
        return (self.problem.residual(u, *self.arrays(floats)),)


@dataclass(frozen=True)
class UserDerivatives:
    """The derivative rule of a user's gradient, made of the user's products."""

    problem: Problem
    derivatives: Derivatives

    def gradient(self, u: Array, *arrays: Array) -> Array:
        """Return the user's gradient as a vector."""
        args, kwargs = self.problem.arguments.call(arrays)
        return self.problem.space.covector(
            self.derivatives.gradient(self.problem.space.unravel(u), *args, **kwargs), "derivatives.gradient"
        )

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return H w for the unknown and w^T d2f/(du dargs) for the arguments."""
        (w,) = cotangents
        rest = [i for i in wrt if (self.derivatives.hvp if i == 0 else self.derivatives.mixed) is None]
        found = dict(zip(rest, self._pull_gradient(args, w, rest), strict=True))
        if 0 in wrt and 0 not in found:
            found[0] = self._hvp(args, w)
        if any(i not in found for i in wrt):
            found = {**dict(enumerate(self._mixed(args, w), start=1)), **found}
        return tuple(found[i] for i in wrt)

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return the tangent of the gradient. It is the transpose of the pullback, which is linear in w."""
        wrt = [i for i, tangent in enumerate(tangents) if tangent is not None]
        zero = array_namespace(y[0]).zeros_like(y[0])
        _, push = self.problem.backend.vjp(lambda w: self.pullback(args, y, (w,), wrt), zero)
        return push(tuple(tangent for tangent in tangents if tangent is not None))

    def _pull_gradient(self, args: Arrays, w: Array, wrt: Sequence[int]) -> Arrays:
        """Differentiate the user's gradient in all float arrays, and return the cotangents of those in `wrt`."""
        if not wrt:
            return ()
        floats = [0, *(1 + i for i in self.problem.arguments.floats)]

        def gradient(*values: Array) -> Arrays:
            merged = dict(zip(floats, values, strict=True))
            return (self.gradient(*(merged.get(i, x) for i, x in enumerate(args))),)

        _, pull = self.problem.backend.vjp(gradient, *(args[i] for i in floats))
        return pull((w,), [floats.index(i) for i in wrt])

    def _hvp(self, args: Arrays, w: Array) -> Array:
        assert self.derivatives.hvp is not None
        space = self.problem.space
        positional, keywords = self.problem.arguments.call(args[1:])
        product = self.derivatives.hvp(space.unravel(args[0]), space.unravel(w), *positional, **keywords)
        return space.covector(product, "derivatives.hvp")

    def _mixed(self, args: Arrays, w: Array) -> list[Array]:
        assert self.derivatives.mixed is not None
        space, arguments = self.problem.space, self.problem.arguments
        positional, keywords = arguments.call(args[1:])
        parts = self.derivatives.mixed(space.unravel(args[0]), space.unravel(w), *positional, **keywords)
        return arguments.cotangents(parts, args[1:])
