"""A user's function as a function of the arrays that it captures (lambda lifting), so that they have gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dil._base.typing import Arrays, Tree


class Lifted(NamedTuple):
    """A function of the arrays that it captured."""

    call: Callable[..., Tree]
    """`call(arrays, *args)` returns fn(*args) with these arrays in the place of those that fn captures."""
    arrays: Arrays
    """The arrays that fn captures. If there are none, `call` is not used."""
