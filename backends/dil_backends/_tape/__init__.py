"""A reverse-mode tape over the array API, which NumPy and CuPy share; it imports `dil._base` alone.

`vjp` evaluates a function at boxes. A box is a value and the node that made it; a node keeps what one rule needs. The
rules (`rules/`) are array code: where they meet boxes of an enclosing trace, that trace records them, so derivatives of
any order come from nesting.
"""

from dil_backends._tape.box import Box, constant, is_box, value_type
from dil_backends._tape.implicit import PullbackRule, implicit
from dil_backends._tape.namespace import namespace
from dil_backends._tape.pull import Pull, vjp

__all__ = ["Box", "Pull", "PullbackRule", "constant", "implicit", "is_box", "namespace", "value_type", "vjp"]
