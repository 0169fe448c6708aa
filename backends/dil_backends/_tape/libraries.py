"""Modules that an array library has beside its namespace of the array API: its special functions."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from dil._base.typing import Namespace

BESIDE = {"special": {"numpy": "scipy.special", "cupy": "cupyx.scipy.special"}}
"""Name of the extension -> library -> its module."""


def own_function(raw: Namespace, name: str) -> Any:
    """Return NumPy's or CuPy's own function, with all the arguments that NumPy takes, or None if there is none."""
    library = raw.__name__.rpartition(".")[2]
    found: Any = sys.modules[library] if library in BESIDE["special"] else None
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def extension(raw: Namespace, name: str) -> ModuleType:
    """Import the module that extends a raw namespace. Raises AttributeError if the library has none."""
    library = raw.__name__.rpartition(".")[2]
    module = BESIDE[name].get(library)
    if module is None:
        msg = f"{library} has no module `{name}`; {', '.join(BESIDE[name])} have one"
        raise AttributeError(msg)
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        msg = f"`{name}` needs {module.partition('.')[0]}, which is not installed"
        raise AttributeError(msg) from e
