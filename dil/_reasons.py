"""Why each problem of a batch ended: the first reason that holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dil._arrays import array_namespace, full, pick
from dil._status import Status
from dil._typing import Array


def first_of(reasons: Sequence[tuple[Array | bool, Status]], otherwise: Status) -> Any:
    """Return the code of the first status whose condition holds, `otherwise` where none does.

    The conditions are masks of one shape, or bools of Python, which give an int.
    """
    holds, _ = reasons[0]
    code: Any = int(otherwise)
    if not isinstance(holds, bool):
        code = full(holds, code, dtype=array_namespace(holds).int32)
    for holds, status in reversed(reasons):
        code = pick(holds, int(status), code)
    return code
