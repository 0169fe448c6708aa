"""A base of objects that only remember results."""

from __future__ import annotations


class Cache:
    """A base of objects that only remember results. They are no part of what a function captures.

    A copy or a pickle of one is empty.
    """

    def __reduce__(self) -> tuple[type[Cache], tuple[()]]:
        return type(self), ()
