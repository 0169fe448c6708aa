"""The tape knows every function of the standard: by a rule, in terms of others, or with the reason why not."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape import rules as _tape_rules
from dil_backends._tape import vjp

OF_THE_PACKAGE = {"get_array_api_strict_flags", "set_array_api_strict_flags", "reset_array_api_strict_flags"}
"""Functions of array_api_strict that are not the standard's."""


def functions(module, within=""):
    """The names of the functions of a namespace of the standard."""
    for name in sorted(set(module.__all__) - OF_THE_PACKAGE):
        found = getattr(module, name)
        if callable(found) and not isinstance(found, type) and not name.startswith("__"):
            yield within + name


STANDARD = [
    *functions(array_api_strict),
    *functions(array_api_strict.linalg, "linalg."),
    *functions(array_api_strict.fft, "fft."),
]


def entries(name):
    """The tables that have the function."""
    tables = {
        "rule": _tape_rules.RULES,
        "composition": _tape_rules.COMPOSED,
        "alias": _tape_rules.ALIASES,
        "constant": _tape_rules.CONSTANT,
        "of no array": _tape_rules.OF_NO_ARRAY,
    }
    return [key for key, table in tables.items() if name in table]


def test_the_list_is_that_of_the_standard():
    assert len(STANDARD) > 170
    assert {"sin", "matmul", "unique_all", "linalg.svd", "fft.irfftn"} <= set(STANDARD)


@pytest.mark.parametrize("name", STANDARD)
def test_every_function_of_the_standard_has_one_entry(name):
    assert len(entries(name)) == 1


@pytest.mark.parametrize("name", sorted({**_tape_rules.CONSTANT, **_tape_rules.OF_NO_ARRAY}))
def test_what_has_no_derivative_says_why(name):
    reason = {**_tape_rules.CONSTANT, **_tape_rules.OF_NO_ARRAY}[name]
    assert len(reason.split()) >= 3


@pytest.mark.parametrize("name", sorted(set(_tape_rules.OF_NO_ARRAY) - set(_tape_rules.NUMPY)))  # NumPy: a derivative
def test_a_function_of_no_array_refuses_one(name):
    """It would lose the derivative in silence."""

    def f(x):
        tape = x.__array_namespace__()
        module, _, last = name.rpartition(".")
        return (getattr(getattr(tape, module) if module else tape, last)(x[0]),)

    with pytest.raises(UnsupportedFunctionError, match=f"no derivative rule for `{name}`"):
        vjp(f, np.ones(2))


def test_aliases_have_entries():
    for name, other in _tape_rules.ALIASES.items():
        assert entries(name) == ["alias"]
        assert len(entries(other)) == 1 or other in _tape_rules.NUMPY, name
