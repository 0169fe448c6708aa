"""The public names and their signatures, held against the list in public_names.txt.

`python tests/test_public_names.py` writes the list anew.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import sys
from enum import Enum
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("public_names.txt")
CLIENT = Path(__file__).with_name("client.py")
MODULES = {
    "dil": (),
    "dil.control": (),
    "dil.kepler": (),
    "dil.linear": (),
    "dil.linear.preconditioners": (),
    "dil.ode": (),
    "dil.solvers": (),
    "dil.testing": (),
    "dil_backends.nn": ("torch",),
    "dil_backends.optim": ("torch",),
    "dil_backends.optax": ("jax", "optax"),
    "dil_backends.optimistix": ("jax", "optimistix"),
}
"""The modules that users import, and the packages that each needs."""


def public(module):
    """Return the names of a module: its `__all__`, or what it defines without a leading underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [n for n, x in vars(module).items() if getattr(x, "__module__", None) == module.__name__]
    return sorted(n for n in names if not n.startswith("_"))


def described(name, thing):
    """Return one line for a name, and one for each public method and attribute of a class."""
    if inspect.ismodule(thing):
        return [f"{name}: module"]
    if not callable(thing):
        return [f"{name}: {type(thing).__name__}"]
    lines = [f"{name}{signature(thing)}"]
    if inspect.isclass(thing):
        for member in sorted(n for n in dir(thing) if not n.startswith("_") and defined_here(thing, n)):
            value = inspect.getattr_static(thing, member)
            value = getattr(value, "__func__", value)
            lines.append(f"{name}.{member}{signature(value) if inspect.isfunction(value) else ''}")
    return lines


def defined_here(cls, name):
    """Whether a class has a name from dil, and not from Python or a framework."""
    home = next(c for c in cls.__mro__ if name in vars(c))
    return home.__module__.split(".")[0] in ("dil", "dil_backends")


def signature(thing):
    """Return the signature of a callable, without what differs from run to run and between versions of Python."""
    if inspect.isclass(thing) and issubclass(thing, Enum):
        return ""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    return re.sub(r"ForwardRef\(('[^']*')[^)]*\)", r"\1", re.sub(r" at 0x[0-9a-f]+", "", text))


def lines(name):
    module = importlib.import_module(name)
    return [line for n in public(module) for line in described(f"{name}.{n}", getattr(module, n))]


@pytest.mark.parametrize("name", MODULES)
def test_the_public_names_are_those_of_the_list(name):
    for package in MODULES[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    kept = [line for line in LIST.read_text().splitlines() if line.startswith(f"{name}.") and home(line) == name]
    assert lines(name) == kept, "if the change is meant, run: python tests/test_public_names.py"


def test_a_typed_client_uses_every_public_name_and_runs():
    """tests/client.py passes mypy --strict in the gate and pyright in the workflow: the types that users see hold."""
    tree = ast.parse(CLIENT.read_text())
    used = {re.sub(r"^preconditioners\.", "dil.linear.preconditioners.", ast.unparse(x)) for x in ast.walk(tree)}
    names = {re.match(r"[\w.]+", line).group() for line in LIST.read_text().splitlines()}
    missing = {name for name in names if name.rpartition(".")[0] in MODULES and name not in MODULES} - used
    assert missing == set()
    runpy.run_path(str(CLIENT), run_name="__main__")


def home(line):
    """Return the longest of the modules that a line begins with."""
    return max((m for m in MODULES if re.match(re.escape(m) + r"\.\w+(\.\w+)?(\W|$)", line)), key=len)


if __name__ == "__main__":
    sys.path[:0] = [str(LIST.parent.parent), str(LIST.parent.parent / "backends")]
    LIST.write_text("\n".join(line for name in MODULES for line in lines(name)) + "\n")
