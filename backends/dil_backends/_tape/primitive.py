"""A primitive: a function with a derivative rule. It computes the raw value and records one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dil._base.errors import UnsupportedFunctionError
from dil._base.typing import DType, Namespace
from dil_backends._tape.box import NOWHERE, Box, holds_box, lifted, opened
from dil_backends._tape.entries import begin, is_of_objects, trace_of
from dil_backends._tape.exchange import ACTIVE, HERE, call_exchanged
from dil_backends._tape.left_out import Used
from dil_backends._tape.precision import PROMOTED, widened
from dil_backends._tape.rules.rule import MASKED, Rule, fit, refuse
from dil_backends._tape.trace import MADE, Node

NO_OPTIONS: dict[str, Any] = {}


OF_COMPLEX = "it has one for real arguments, and these are complex; write the function by its real and imaginary parts"


class Primitive:
    """A function with a derivative rule, on raw arrays, boxes and Python scalars in any mixture.

    What `rule` and `tape` say of every call is looked up once, because it would cost as much as a small operation.
    """

    __slots__ = (
        *("complex_dtypes", "cut", "each", "elementwise", "formulas", "hides", "holomorphic", "known", "multiplies"),
        *("name", "plain", "positional", "prepare", "rounds", "rule", "tape", "uses", "value"),
    )

    def __init__(self, name: str, value: Callable[..., Any], rule: Rule, tape: Any) -> None:
        self.name = name
        self.value = value
        self.rule = rule
        self.formulas = rule.formulas
        self.prepare = rule.prepare
        self.each = rule.each
        self.holomorphic = rule.holomorphic
        self.hides = rule.hides
        self.multiplies = rule.multiplies
        self.elementwise = rule.elementwise
        self.uses = rule.uses
        self.rounds = rule.elementwise and len(rule.formulas) > 1 and name not in PROMOTED
        self.positional = rule.positional
        self.tape = tape
        self.plain: Namespace = tape.plain
        self.known: dict[DType, bool] = tape.known
        self.complex_dtypes: set[DType] = tape.complex_dtypes  # the tape adds those that it meets
        self.cut = frozenset(i for i, formula in enumerate(rule.formulas) if formula is None)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if ACTIVE and HERE.table:
            return call_exchanged(self, args, options)
        if options:
            self._check_options(options)
        trace, values, parents, seen = opened(args, self.name)
        if trace is None:
            return self.value(*args, **options)
        if len(args) > self.positional or (options and not self.rule.options.issuperset(options)):
            raise self._unknown(args, options)
        function = self if seen else self.value
        y = function(*values, **options) if options else function(*values)
        node = Node(self, values, options or NO_OPTIONS, y, parents, seen) if parents else NOWHERE
        if trace.entries is None and not isinstance(y, tuple) and self.known.get(y.dtype):
            return Box(y, trace, node, 0)
        if trace not in MADE and is_of_objects(y) and (found := trace_of(y)) is not None:
            # the user has written boxes into an object array
            if found is not trace:  # that of an enclosing call
                return y
            begin(trace)
            return self(*args, **options)
        return self.tape.box(trace, y, node)

    def pull(self, node: Node, c: Any, wanted: Sequence[int], used: Used | None = None) -> list[Any]:
        """Return the cotangents of the wanted arguments. Raw functions are used if no enclosing trace records.

        They are zero in entries that are not `used`, also where the derivative is NaN.
        """
        args, y, options = node.args, node.y, node.options
        xp = self.plain
        if node.seen or type(c) is Box or type(c) is tuple:
            xp, (args, y, c) = self.tape, lifted(args, y, c)
        conjugated = self.holomorphic is not False and self.complex_dtypes and y.dtype in self.complex_dtypes
        if conjugated:
            if self.holomorphic is None:
                refuse(self.name, OF_COMPLEX)
            c = xp.conj(c)
        if used is not None and used.of_factors:
            args = [a if u is None else xp.masked(a, u, 0.0) for a, u in zip(args, used.of_factors, strict=True)]
        if self.prepare is not None:
            c = self.prepare(xp, c, y, *args, **options)
        primals = args
        if self.rounds:
            args = widened(xp, args, y.dtype, self.cut)
        found = []
        for i in wanted:
            if self.each is not None:
                g = self.each(xp, c, y, i, *args, **options)
            elif options:
                g = self.formulas[i](xp, c, y, *args, **options)
            else:
                g = self.formulas[i](xp, c, y, *args)
            if used is not None and self.elementwise:
                g = xp.masked(g, used.of_value, 0.0)  # before `fit` adds it to entries that are used
            found.append(fit(xp, xp.conj(g) if conjugated else g, primals[i]))
        if used is not None and not self.elementwise:
            return [g if u is None else xp.masked(g, u, 0.0) for g, u in zip(found, used.of_arguments, strict=True)]
        return found

    def _check_options(self, options: dict[str, Any]) -> None:
        if any(map(holds_box, options.values())):
            msg = f"{self.name}: an array that is being differentiated must be a positional argument"
            raise UnsupportedFunctionError(msg)

    def _unknown(self, args: Any, options: dict[str, Any]) -> UnsupportedFunctionError:
        extra = ", ".join(f"{key}=" for key in sorted(options.keys() - self.rule.options))
        msg = (
            f"the tape's `{self.name}` was called with {extra or f'{len(args)} positional arguments'}; "
            f"{MASKED if 'where' in options else 'it takes the arguments of the array API standard only'}"
        )
        return UnsupportedFunctionError(msg)
