"""Every public name has its entry in the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_public_names import LIST, home

PAGES = sorted((Path(__file__).parent.parent / "docs" / "pages" / "reference").glob("*.md"))
TEXTS = [page.read_text() for page in PAGES]
ENTRIES = [name for text in TEXTS for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
SAME = {
    f"dil.linear.{name}": f"dil.linear.preconditioners.{name}"
    for name in ("Jacobi", "LBFGSPairs", "Nystrom", "SparseILU")
}
"""Names of one thing in two modules: the entry is that of the second."""


def public_names():
    """Return the names of the list, without the methods and attributes of classes."""
    found = {}
    for line in LIST.read_text().splitlines():
        module = home(line)
        found[f"{module}.{re.match(r'[a-zA-Z_]+', line.removeprefix(module + '.'))[0]}"] = line.endswith(": module")
    return found


def test_every_public_name_is_on_a_page_of_the_reference():
    names = public_names()
    wanted = {SAME.get(name, name) for name, is_module in names.items() if not is_module}
    assert wanted == set(ENTRIES)
    assert len(ENTRIES) == len(set(ENTRIES)), "a name is on two pages"


@pytest.mark.parametrize("module", sorted(name for name, is_module in public_names().items() if is_module))
def test_every_public_module_has_a_page(module):
    assert any(text.startswith(f"# {module}\n") for text in TEXTS)
