"""The examples in the docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dil

MODULES = sorted(m.name for m in pkgutil.walk_packages(dil.__path__, "dil.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0
