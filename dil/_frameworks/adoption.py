"""Calls with arrays of one framework and a function of another, which may adopt the arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from operator import is_
from typing import Any

from dil._base.errors import BackendError, DilError
from dil._base.typing import Tree
from dil._frameworks.arguments import with_numbers_as_arrays
from dil._frameworks.registry import adopted, can_be_adopted, leaves_of


def run_in_its_framework(run: Callable[..., Any], function: Callable[..., Tree], *trees: Tree) -> Any:
    """Return run(*trees). If it fails, the framework of function(*trees) adopts the arrays, and the call runs again.

    JAX adopts NumPy arrays. So a layer whose score is JAX code takes NumPy arrays alone, as JAX's own functions do. The
    result is then an array of JAX. Any other failure is raised as it is.
    """
    try:
        return run(*trees)
    except (TypeError, BackendError):
        leaves, structure = leaves_of(trees)
        leaves = with_numbers_as_arrays(leaves, structure)
        found = adopted(leaves, _values(function, trees)) if can_be_adopted(leaves) else leaves
        if all(map(is_, leaves, found)):
            raise
    return run(*structure.unflatten(found))


def _values(function: Callable[..., Tree], trees: tuple[Tree, ...]) -> list[Any]:
    """Return the leaves of function(*trees), and none if it fails: then the first failure is the one to tell."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return list(leaves_of(function(*trees))[0])
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, DilError):
        return []
