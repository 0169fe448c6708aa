"""What a function returned, in the words of a message: shapes in the place of the numbers of arrays."""

from __future__ import annotations

from typing import Any


def in_words(x: Any) -> str:
    """Return the repr of x, with the type and shape of each array of one dimension or more in it.

    >>> import numpy as np
    >>> in_words((np.zeros((3, 2)), [1.0, None]))
    '(ndarray of shape (3, 2), [1.0, None])'
    """
    shape = getattr(x, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(x).__name__} of shape {tuple(shape)}"
    if type(x) is list:
        return f"[{', '.join(map(in_words, x))}]"
    if type(x) is tuple:
        return f"({', '.join(map(in_words, x))}{',' if len(x) == 1 else ''})"
    if type(x) is dict:
        return f"{{{', '.join(f'{key!r}: {in_words(value)}' for key, value in x.items())}}}"
    return repr(x)
