"""The Jacobian of a residual or step that no backend can trace, given by the user."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any

from dil._base.cache import Cache
from dil._base.errors import OptionError
from dil._base.given_matrix import Kept
from dil._base.typing import Tree
from dil._frameworks.fixed import with_variables_of_now


class LastMatrix(Cache):
    """The matrix at the point where it was asked for last. A factor of it serves both directions."""

    def __init__(self) -> None:
        self.found: tuple[tuple[Any, ...], Kept] | None = None
        """The function and the arrays, and the matrix. One object, since threads may write at the same time."""

    def get(self, key: tuple[Any, ...]) -> Kept | None:
        """Return the matrix of a function at arrays, or None if the last one was another."""
        import numpy as np

        if self.found is None:
            return None
        known, kept = self.found
        return kept if known[0] is key[0] and all(map(np.array_equal, key[1:], known[1:])) else None

    def put(self, key: tuple[Any, ...], kept: Kept) -> None:
        """Keep a matrix."""
        import numpy as np

        self.found = (key[0], *(np.array(x) for x in key[1:])), kept


@dataclass(frozen=True)
class Jacobian:
    """The derivatives of a residual or step on the host, given by the user: of SciPy, a simulator, a Fortran code.

    With `dil.root(..., derivatives=dil.Jacobian(...))`, the residual and all functions here get NumPy arrays, and
    return NumPy arrays, on every backend. For `dil.fixed_point` they are those of the step. F below is the residual or
    the step.

    Attributes
    ----------
    matrix : callable, optional
        `matrix(u, *args, **kwargs)` returns J = dF/du, (n, n), as a NumPy array or a SciPy sparse array. u is flattened
        in C order. The default linear solver factorises it, and one factor of a sparse J serves J and J^T.
    jvp : callable, optional
        `jvp(u, v, *args, **kwargs)` returns J v, like u. It is not needed beside `matrix`.
    vjp : callable, optional
        `vjp(u, w, *args, **kwargs)` returns J^T w, like u. It is not needed beside `matrix`.
    mixed : callable, optional
        `mixed(u, w, *args, **kwargs)` returns w^T dF/dargs, a tuple with one entry per positional argument. An entry is
        like its argument, or None if F does not depend on it. If the layer is called with keyword arguments, a dict
        with their entries comes last.
    mixed_jvp : callable, optional
        `mixed_jvp(u, tangents, *args, **kwargs)` returns dF/dargs t, like u. `tangents` is a tuple with one entry per
        positional argument, like it, and a dict of those of the keyword arguments last if there are some. It is needed
        in forward mode alone.
    finite_differences : bool
        Whether what is left out is taken by central differences: J v by two residuals, the matrix by 2 n, and
        dF/dargs by two for each number among the arguments. `layer.report` and `dil.record` tell their relative error
        as `differences`. If false, what is left out is refused where it is needed.

    Raises
    ------
    OptionError
        If an entry is not callable, or none gives J and differences are not allowed. Calls raise `ShapeError` for a
        result of the wrong shape, and `UnsupportedFunctionError` for a product that was left out, a `vjp` that is not
        the transpose of J, or a `mixed_jvp` that contradicts `mixed`.

    Notes
    -----
    The layer has first derivatives, in reverse mode and in forward mode. Second derivatives are refused. At its first
    call, `vjp` is compared with J along a random direction, and `mixed_jvp` with `mixed`. J and `mixed` are compared
    with F where `check_smoothness` looks; a wrong one ends WRONG_DERIVATIVE or WRONG_MIXED. Under `jax.jit` each
    function is a host callback. The functions depend on their arguments alone, since a matrix is kept for the next call
    at the same point. A layer has one problem (`batch_ndim=0`), of real numbers.

    An entry of a difference moves by eps ** (1/3) of its size, or of a hundredth of the largest entry beside it if that
    is more. The relative error that is told is that of one random direction, beside a difference twice as wide.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp, dil
    >>> A = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(4, 4))
    >>> F = dil.Jacobian(
    ...     matrix=lambda u, t: A + sp.diags_array(3 * u**2), mixed=lambda u, w, t: (-w,)
    ... )
    >>> layer = dil.root(lambda u, t: A @ u + u**3 - t, dil.solvers.Newton(), init=lambda t: t, derivatives=F)
    >>> y, pull = dil.vjp(layer, np.ones(4))
    >>> bool(np.allclose((A + sp.diags_array(3 * y**2)).T @ pull(np.ones(4))[0], 1.0))
    True
    """

    matrix: Callable[..., Any] | None = None
    jvp: Callable[..., Tree] | None = None
    vjp: Callable[..., Tree] | None = None
    mixed: Callable[..., tuple[Tree, ...]] | None = None
    mixed_jvp: Callable[..., Tree] | None = None
    finite_differences: bool = False
    _last: LastMatrix = field(default_factory=LastMatrix, init=False, compare=False, repr=False)
    _compared: set[str] = field(default_factory=set, init=False, compare=False, repr=False)
    """Which products were compared with each other. Copies share it."""

    def __post_init__(self) -> None:
        for name, fn in self.functions().items():
            if fn is not None and not callable(fn):
                message = f"derivatives.{name}={fn!r}; expected a callable or None"
                raise OptionError(message)
        if not isinstance(self.finite_differences, bool):
            message = f"derivatives.finite_differences={self.finite_differences!r}; expected True or False"
            raise OptionError(message)
        if not self.finite_differences and self.matrix is None and self.jvp is None and self.vjp is None:
            message = (
                "dil.Jacobian gives nothing of J = dF/du; pass matrix=, or the products jvp= and vjp=, or "
                "finite_differences=True"
            )
            raise OptionError(message)

    @property
    def has_matrix(self) -> bool:
        """Whether J is known as a matrix: given, or by differences where its transpose is not given as a product."""
        return self.matrix is not None or (self.finite_differences and self.vjp is None)

    @property
    def has_differences(self) -> bool:
        """Whether something that may be needed is taken by differences."""
        of_u = self.matrix is None and (self.jvp is None or self.vjp is None)
        return self.finite_differences and (of_u or self.mixed is None or self.mixed_jvp is None)

    def functions(self) -> dict[str, Callable[..., Any] | None]:
        """Return the functions of the user by name."""
        names = [part.name for part in fields(self) if part.name not in ("finite_differences", "_last", "_compared")]
        return {name: getattr(self, name) for name in names}

    def fixed(self) -> Jacobian:
        """Return the derivatives with the variables that they capture now, and no matrix."""
        found = copy(self)
        object.__setattr__(found, "_last", LastMatrix())
        for name, fn in self.functions().items():
            if fn is not None:
                object.__setattr__(found, name, with_variables_of_now(fn))
        return found
