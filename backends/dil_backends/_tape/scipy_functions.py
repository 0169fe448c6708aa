"""SciPy's special functions that are written in Python, so that they accept boxes.

NumPy asks a box before a ufunc or a function of NumPy runs. Nothing asks before a function of SciPy: the first line of
`scipy.special.logsumexp(u)` makes a NumPy array of u. So the code of these functions is replaced, once SciPy is
imported and a function is differentiated. If an argument holds a box, the tape's rule runs, otherwise SciPy's own code.
The function object stays the same, because users hold it (`from scipy.special import logsumexp`).
"""

from __future__ import annotations

import inspect
import sys
import threading
from types import FunctionType
from typing import Any

from dil_backends._tape.box import holds_box
from dil_backends._tape.replacement import add_branch

LOCK = threading.Lock()
WAITING = {"logsumexp", "softmax", "log_softmax", "polygamma", "multigammaln"}
"""The functions whose code is still SciPy's own."""


def accept_boxes() -> bool:
    """Let the functions accept boxes, if SciPy is imported. Return whether one did not before."""
    special = sys.modules.get("scipy.special") if WAITING else None
    if special is None:
        return False
    with LOCK:  # another thread waits until the code is replaced
        found = {name: getattr(special, name) for name in WAITING if hasattr(special, name)}
        for name, function in found.items():
            # under SCIPY_ARRAY_API=1 some are closures, which ask a box for its namespace by themselves
            if isinstance(function, FunctionType) and function.__closure__ is None:
                replace_code(function, name)
        WAITING.difference_update(found)
    return bool(found)


def replace_code(function: FunctionType, name: str) -> None:
    """Let a function of scipy.special use the tape's rule where an argument holds a box."""
    signature = inspect.signature(function)

    def of_box(tape: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bound = signature.bind(*args, **options)
        for key, value in bound.arguments.items():  # a tuple may be axes
            if isinstance(value, list) or holds_box(value):
                bound.arguments[key] = tape.asarray(value)
        return getattr(tape.special, name)(*bound.args, **bound.kwargs)

    add_branch(function, of_box)
