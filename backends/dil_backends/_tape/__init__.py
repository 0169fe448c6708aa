"""A reverse-mode tape over the array API, which NumPy and CuPy share. It imports only `dil._base`.

`vjp` evaluates a function at boxes. A box holds a value and the node that made it. A node holds what one rule needs.
The rules (`rules/`) are array code. If a rule runs on boxes of an enclosing trace, that trace records the rule. So
nested calls give derivatives of any order.
"""

from dil_backends._tape.box import Box, constant, is_box, value_type
from dil_backends._tape.captured_boxes import captured_boxes
from dil_backends._tape.entries import as_one_box
from dil_backends._tape.exchange import exchanging
from dil_backends._tape.implicit import PullbackRule, implicit
from dil_backends._tape.namespace import namespace
from dil_backends._tape.pull import Pull, vjp
from dil_backends._tape.user_namespace import user_namespace

__all__ = [
    "Box",
    "Pull",
    "PullbackRule",
    "as_one_box",
    "captured_boxes",
    "constant",
    "exchanging",
    "implicit",
    "is_box",
    "namespace",
    "user_namespace",
    "value_type",
    "vjp",
]
