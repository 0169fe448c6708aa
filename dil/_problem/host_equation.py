"""A residual or step on the host: its value, its Jacobian and its products, at NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dil._base.errors import DTypeError, ShapeError, UnsupportedFunctionError
from dil._base.given_matrix import Kept
from dil._frameworks.arguments import Arguments
from dil._frameworks.registry import leaves_of, load, owner
from dil._problem.space import Space
from dil._problem.user_jacobian import Jacobian

HUNDREDTH = 0.01
"""The share of the largest entry below which a difference moves an entry no less."""

Vector = Any
"""A NumPy vector, (n,)."""


@dataclass(frozen=True)
class HostEquation:
    """The user's function as one of NumPy vectors. `at` is (u, *arrays): the unknown and the arrays of the call."""

    fn: Callable[..., Any]
    kind: str
    name: str
    jacobian: Jacobian
    space: Space
    """That of the unknown, with the dtype of NumPy."""
    arguments: Arguments

    def value(self, *at: Any) -> Vector:
        """Return the value of the user's function."""
        args, kwargs = self.arguments.call(at[1:])
        found = self.fn(self.space.unravel(at[0]), *args, **kwargs)
        return self._vector(found, f"the {self.kind} {self.name!r}")

    def kept(self, *at: Any) -> Kept:
        """Return the user's J as a matrix: that of the last call, if it was at the same arrays."""
        last, key = self.jacobian._last, (self.jacobian.matrix or self.fn, *at)
        kept = last.get(key)
        if kept is None:
            kept = Kept(self._recovered(at) if self.jacobian.matrix is None else self._matrix(at))
            last.put(key, kept)
        return kept

    def kept_of_equation(self, *at: Any) -> Kept:
        """Return dF/du as a matrix, where F is the residual or u - step(u)."""
        kept = self.kept(*at)
        if self.kind == "residual":
            return kept
        if kept.of_equation is None:
            kept.of_equation = Kept(_identity_like(kept.matrix) - kept.matrix)
        return kept.of_equation

    def jvp(self, at: Sequence[Any], v: Vector) -> Vector:
        """Return J v."""
        given = self.jacobian
        if given.jvp is None and given.has_matrix:
            return self._cast(self.kept(*at).matrix @ v)
        if given.jvp is not None:
            args, kwargs = self.arguments.call(at[1:])
            product = given.jvp(self.space.unravel(at[0]), self.space.unravel(v), *args, **kwargs)
            return self._vector(product, "derivatives.jvp")
        return self._slope(at, [v, *(None for _ in at[1:])], [at[0], *at[1:]])

    def vjp(self, at: Sequence[Any], w: Vector) -> Vector:
        """Return J^T w."""
        given = self.jacobian
        if given.vjp is None and given.has_matrix:
            return self._cast(self.kept(*at).matrix.T @ w)
        assert given.vjp is not None
        args, kwargs = self.arguments.call(at[1:])
        product = given.vjp(self.space.unravel(at[0]), self.space.unravel(w), *args, **kwargs)
        found = self._vector(product, "derivatives.vjp")
        if "vjp" not in given._compared and w.any():
            self._compare(at, w, found)
            given._compared.add("vjp")
        return found

    def _compare(self, at: Sequence[Any], w: Vector, pulled: Vector) -> None:
        """Raise if J^T w is not the transposed product: if (J^T w) v differs from w (J v) for a random v."""
        import numpy as np

        v = np.random.default_rng(0).choice([-1.0, 1.0], w.shape).astype(w.dtype)
        left, right = np.asarray(pulled * v, dtype=float), np.asarray(w * self.jvp(at, v), dtype=float)
        if _apart(left, right, w.dtype):
            message = (
                f"derivatives.vjp is not the transpose of J: with v of random signs, (J^T w) v is {left.sum():.6g} but "
                f"w (J v) is {right.sum():.6g}; vjp(u, w, ...) has to return J^T w, J = dF/du (see dil.Jacobian)"
            )
            raise UnsupportedFunctionError(message)

    def mixed(self, at: Sequence[Any], w: Vector, wrt: Sequence[int]) -> list[Any]:
        """Return w^T dF/darrays[i] for i in `wrt`."""
        import numpy as np

        given, arrays = self.jacobian, at[1:]
        if given.mixed is None and not given.finite_differences:
            if w.any():
                raise UnsupportedFunctionError(left_out(self.kind, self.name, "mixed", "w^T dF/dargs"))
            return [np.zeros_like(arrays[i]) for i in wrt]
        if given.mixed is None:
            return [np.reshape(self._differences(at, 1 + i).T @ w, arrays[i].shape).astype(w.dtype) for i in wrt]
        args, kwargs = self.arguments.call(arrays)
        parts = given.mixed(self.space.unravel(at[0]), self.space.unravel(w), *args, **kwargs)
        found = self.arguments.cotangents(_cast_like(parts, (*args, *([kwargs] if kwargs else []))), arrays)
        return [found[i] for i in wrt]

    def mixed_jvp(self, at: Sequence[Any], tangents: Sequence[Any], wrt: Sequence[int]) -> Vector:
        """Return the sum of dF/darrays[i] t for i in `wrt` and the tangents t."""
        import numpy as np

        given, every = self.jacobian, [np.zeros_like(x) for x in at[1:]]
        for i, t in zip(wrt, tangents, strict=True):
            every[i] = t
        if given.mixed_jvp is None:
            known: list[Any] = [None] * len(at)
            for i in wrt:
                known[1 + i] = every[i]
            return self._slope(at, known, at)
        args, kwargs = self.arguments.call(at[1:])
        along, of_keywords = self.arguments.call(every)
        both = (*along, of_keywords) if of_keywords else along
        product = given.mixed_jvp(self.space.unravel(at[0]), both, *args, **kwargs)
        found = self._vector(product, "derivatives.mixed_jvp")
        if given.mixed is not None and "mixed_jvp" not in given._compared and found.any():
            self._compare_mixed(at, [every[i] for i in wrt], found, wrt)
            given._compared.add("mixed_jvp")
        return found

    def _compare_mixed(self, at: Sequence[Any], tangents: Sequence[Any], pushed: Vector, wrt: Sequence[int]) -> None:
        """Raise if w (dF/dargs t) differs from (w^T dF/dargs) t for a random w."""
        import numpy as np

        w = np.random.default_rng(0).choice([-1.0, 1.0], pushed.shape).astype(pushed.dtype)
        pairs = zip(self.mixed(at, w, wrt), tangents, strict=True)
        left = np.concatenate([np.ravel(np.asarray(x, dtype=float) * t) for x, t in pairs])
        right = np.asarray(w * pushed, dtype=float)
        if _apart(left, right, w.dtype):
            message = (
                f"derivatives.mixed_jvp and derivatives.mixed contradict each other: with w of random signs, "
                f"mixed(u, w, ...) t is {left.sum():.6g} but w mixed_jvp(u, t, ...) is {right.sum():.6g}; mixed has to "
                f"return w^T dF/dargs, and mixed_jvp the sum of dF/dargs t (see dil.Jacobian)"
            )
            raise UnsupportedFunctionError(message)

    def error_of_differences(self, *at: Any) -> float:
        """Return the relative error of the derivatives by differences along one random direction."""
        import numpy as np

        draw, worst = np.random.default_rng(0), 0.0
        for i in [0, *(1 + j for j in self.arguments.floats)]:
            moves: list[Any] = [None] * len(at)
            moves[i] = _steps(at[i]) * draw.choice([-1.0, 1.0], np.shape(at[i]))
            near, far = (self._centred(at, moves, k) / k for k in (1.0, 2.0))
            size = max(np.abs(near).max(initial=0.0), np.abs(far).max(initial=0.0))
            worst = max(worst, float(np.abs(near - far).max(initial=0.0) / size) if size > 0 else 0.0)
        return worst

    def _matrix(self, at: Sequence[Any]) -> Any:
        """Return the user's matrix in float64, after a look at its shape."""
        import numpy as np

        args, kwargs = self.arguments.call(at[1:])
        assert self.jacobian.matrix is not None
        found, n = self.jacobian.matrix(self.space.unravel(at[0]), *args, **kwargs), self.space.dimension
        is_sparse = callable(getattr(found, "tocsc", None))
        shape = tuple(found.shape) if is_sparse else np.shape(found)
        if shape != (n, n):
            message = (
                f"derivatives.matrix returned {type(found).__name__} of shape {shape}; expected J of shape {(n, n)}, "
                f"one row for each entry of the {self.kind} and one column for each entry of the unknown, in C order"
            )
            raise ShapeError(message)
        if not is_sparse:
            found = np.asarray(found)
        if found.dtype.kind not in "fiub":
            message = f"derivatives.matrix returned numbers of dtype {found.dtype}; expected real ones"
            raise DTypeError(message)
        if not is_sparse:
            return found.astype(float)
        import scipy.sparse

        columns = scipy.sparse.csc_array(found, dtype=float)
        columns.sum_duplicates()
        return columns

    def _recovered(self, at: Sequence[Any]) -> Any:
        """Return the matrix J from n products J v, or by central differences where they are not given."""
        import numpy as np

        if self.jacobian.jvp is None:
            return self._differences(at, 0)
        rows = [self.jvp(at, e) for e in np.eye(self.space.dimension, dtype=self.space.dtype)]
        return np.stack(rows, axis=-1).astype(float)

    def _differences(self, at: Sequence[Any], place: int) -> Any:
        """Return the derivative of F in one of the arrays by central differences, (n, entries)."""
        import numpy as np

        steps = _steps(at[place]).reshape(-1)
        columns = np.empty((self.space.dimension, steps.size))
        for j, h in enumerate(steps):
            moves: list[Any] = [None] * len(at)
            moves[place] = np.zeros(steps.size)
            moves[place][j] = h
            moves[place] = moves[place].reshape(np.shape(at[place]))
            columns[:, j] = self._centred(at, moves, 1.0) / h
        return columns

    def _slope(self, at: Sequence[Any], tangents: Sequence[Any], beside: Sequence[Any]) -> Vector:
        """Return the derivative of F along tangents, None standing for zero, by one central difference."""
        import numpy as np

        h = [
            float((_steps(x) / np.maximum(np.abs(t), np.finfo(float).tiny)).min(initial=np.inf))
            for t, x in zip(tangents, beside, strict=True)
            if t is not None and np.any(t)
        ]
        if not h:
            return np.zeros_like(at[0])
        step = min(h)
        moves = [None if t is None else step * np.asarray(t, dtype=float) for t in tangents]
        return self._cast(self._centred(at, moves, 1.0) / step)

    def _centred(self, at: Sequence[Any], moves: Sequence[Any], k: float) -> Any:
        """Return half of F(at + k moves) - F(at - k moves)."""

        def moved(sign: float) -> Any:
            there = [x if m is None else (x + sign * k * m).astype(x.dtype) for x, m in zip(at, moves, strict=True)]
            return self.value(*there).astype(float)

        return 0.5 * (moved(1.0) - moved(-1.0))

    def _vector(self, tree: Any, what: str) -> Vector:
        """Return a result as a vector. A host code may compute in double precision, whatever the dtype of u."""
        leaves, structure = leaves_of(tree)
        dtypes = {getattr(x, "dtype", None) for x in leaves}
        if not self.space.split and dtypes != {self.space.dtype}:
            tree = structure.unflatten([_float(x, self.space.dtype) for x in leaves])
        return self.space.vector(tree, what)

    def _cast(self, x: Any) -> Vector:
        return x.astype(self.space.dtype)


def left_out(kind: str, function: str, name: str, what: str) -> str:
    """Return the message that a product was left out."""
    return (
        f"the {kind} {function!r} needs {what}, but dil.Jacobian({name}=...) was left out; give {name}=, or pass "
        f"finite_differences=True"
    )


def _apart(left: Any, right: Any, dtype: Any) -> bool:
    """Return whether two sums differ: by a hundredth, and by more than what rounding leaves of their terms."""
    import numpy as np

    apart, size = abs(left.sum() - right.sum()), max(abs(left.sum()), abs(right.sum()))
    noise = float(np.finfo(dtype).eps) ** (1 / 3) * (np.abs(left).sum() + np.abs(right).sum())
    return bool(apart > max(HUNDREDTH * size, noise))


def _steps(x: Any) -> Any:
    """Return how far a difference moves each entry."""
    import numpy as np

    sizes = np.abs(np.asarray(x, dtype=float))
    largest = sizes.max(initial=0.0)
    machine_eps = float(np.finfo(np.asarray(x).dtype).eps)
    return machine_eps ** (1 / 3) * np.maximum(sizes, HUNDREDTH * largest if largest > 0 else 1.0)


def _identity_like(matrix: Any) -> Any:
    import numpy as np

    if isinstance(matrix, np.ndarray):
        return np.eye(matrix.shape[0])
    import scipy.sparse

    return scipy.sparse.eye_array(matrix.shape[0], format="csc")


def _float(x: Any, dtype: Any) -> Any:
    """Return a number or an array with the dtype of the unknown; anything else as it is."""
    import numpy as np

    if isinstance(x, np.ndarray | np.generic | float | int) and np.asarray(x).dtype.kind in "fiu":
        return load("numpy").asarray(np.asarray(x, dtype=dtype))
    return x


def _cast_like(parts: Any, args: Sequence[Any]) -> Any:
    """Return the entries of a tuple in the dtype of the arguments they belong to, where both are one array."""
    if not isinstance(parts, tuple) or len(parts) != len(args):
        return parts
    return tuple(
        [_float(p, x.dtype) if owner(x) is not None and p is not None else p for p, x in zip(parts, args, strict=True)]
    )
