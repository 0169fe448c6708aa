"""A primitive: a function with a derivative rule. It computes the raw value and records one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import Namespace
from dil_backends._tape.box import NOWHERE, Box, holds_box, lifted, opened
from dil_backends._tape.rules.rule import Rule, fit, refuse
from dil_backends._tape.trace import Node

NO_OPTIONS: dict[str, Any] = {}


OF_COMPLEX = "it has one for real arguments, and these are complex; write the function by its real and imaginary parts"


class Primitive:
    """A function with a derivative rule, on raw arrays, boxes and Python scalars in any mixture."""

    __slots__ = ("cut", "name", "positional", "rule", "tape", "value")

    def __init__(self, name: str, value: Callable[..., Any], rule: Rule, tape: Any) -> None:
        self.name = name
        self.value = value
        self.rule = rule
        self.positional = rule.positional
        self.tape = tape
        self.cut = frozenset(i for i, formula in enumerate(rule.formulas) if formula is None)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options:
            self._check_options(options)
        trace, values, parents, seen = opened(args, self.name)
        if trace is None:
            return self.value(*args, **options)
        if len(args) > self.positional or not self.rule.options.issuperset(options):
            raise self._unknown(args, options)
        function = self if seen else self.value
        y = function(*values, **options) if options else function(*values)
        node = Node(self, values, options or NO_OPTIONS, y, parents, seen) if parents else NOWHERE
        return self.tape.box(trace, y, node)

    def pull(self, node: Node, c: Any, wanted: Sequence[int]) -> list[Any]:
        """Return the cotangents of the wanted arguments. Raw functions are used if no enclosing trace records."""
        rule, args, y, options = self.rule, node.args, node.y, node.options
        xp: Namespace = self.tape.plain
        if node.seen or type(c) is Box or type(c) is tuple:
            xp, (args, y, c) = self.tape, lifted(args, y, c)
        conjugated = rule.holomorphic is not False and y.dtype in self.tape.complex_dtypes
        if conjugated:
            if rule.holomorphic is None:
                refuse(self.name, OF_COMPLEX)
            c = xp.conj(c)
        if rule.prepare is not None:
            c = rule.prepare(xp, c, y, *args, **options)
        found = []
        for i in wanted:
            if rule.each is None:
                g = rule.formulas[i](xp, c, y, *args, **options)
            else:
                g = rule.each(xp, c, y, i, *args, **options)
            found.append(fit(xp, xp.conj(g) if conjugated else g, args[i]))
        return found

    def _check_options(self, options: dict[str, Any]) -> None:
        if any(map(holds_box, options.values())):
            msg = f"{self.name}: an array that is being differentiated must be a positional argument"
            raise UnsupportedFunctionError(msg)

    def _unknown(self, args: Any, options: dict[str, Any]) -> UnsupportedFunctionError:
        extra = ", ".join(f"{key}=" for key in sorted(options.keys() - self.rule.options))
        msg = (
            f"the tape's `{self.name}` was called with {extra or f'{len(args)} positional arguments'}; "
            "it takes the arguments of the array API standard only"
        )
        return UnsupportedFunctionError(msg)
