"""Give each parameter of a docstring its own default and type: the reader gives "damping, rtol" those of the first."""

from __future__ import annotations

from typing import Any

import griffe


class Defaults(griffe.Extension):
    """Read defaults and types from the signatures, once a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Mend every docstring of a package."""
        mend(pkg)


def mend(thing: griffe.Object) -> None:
    """Mend the docstrings of an object and of its members."""
    if isinstance(thing, griffe.Class | griffe.Function) and thing.docstring:
        for section in thing.docstring.parsed:
            for parameter in section.value if section.kind is griffe.DocstringSectionKind.parameters else ():
                if parameter.name not in thing.parameters:
                    continue
                own = thing.parameters[parameter.name]
                parameter.value = own.default
                # a type that the docstring names itself is none of the signature's
                if any(parameter.annotation is other.annotation for other in thing.parameters):
                    parameter.annotation = own.annotation
    for member in thing.members.values():
        if not member.is_alias:
            mend(member)
