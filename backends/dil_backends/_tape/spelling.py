"""Calls of NumPy's own functions: the arguments that the tape's function takes, and the others, refused by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from dil._base.errors import UnsupportedFunctionError


def with_arguments_of_numpy(name: str, function: Callable[..., Any], tape: Any) -> Callable[..., Any]:
    """Return a function of the table `NUMPY` on one tape. It refuses arguments that it does not take."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    known = {p.name for p in parameters if p.kind is not p.VAR_POSITIONAL}
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    out = places.index("out") if "out" in places else sys.maxsize
    most = (
        sys.maxsize
        if any(p.kind is p.VAR_POSITIONAL for p in parameters)
        else sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    )

    def call(*args: Any, **options: Any) -> Any:
        if not options.keys() <= known:
            extra = ", ".join(f"{key}=" for key in sorted(options.keys() - known))
            msg = f"the tape's `{name}` was called with {extra}; it takes {', '.join(places)}"
            raise UnsupportedFunctionError(msg)
        if len(args) > out and args[out] is not None:
            msg = f"the tape's `{name}` was called with out=; nothing is written in place"
            raise UnsupportedFunctionError(msg)
        if len(args) > most:
            msg = (
                f"the tape's `{name}` was called with {len(args)} positional arguments; it takes {', '.join(places)}, "
                "and nothing is written in place"
            )
            raise UnsupportedFunctionError(msg)
        return function(tape, *args, **options)

    return call
