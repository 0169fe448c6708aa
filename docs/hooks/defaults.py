"""Give each parameter of a docstring the default of the signature: "damping, rtol" in one entry have two defaults."""

from __future__ import annotations

from typing import Any

import griffe


class Defaults(griffe.Extension):
    """Read the defaults from the signatures, once a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Mend every docstring of a package."""
        mend(pkg)


def mend(thing: griffe.Object) -> None:
    """Mend the docstrings of an object and of its members."""
    if isinstance(thing, griffe.Class | griffe.Function) and thing.docstring:
        for section in thing.docstring.parsed:
            for parameter in section.value if section.kind is griffe.DocstringSectionKind.parameters else ():
                if parameter.name in thing.parameters:
                    parameter.value = thing.parameters[parameter.name].default
    for member in thing.members.values():
        if not member.is_alias:
            mend(member)
