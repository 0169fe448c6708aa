"""The oldest versions that are run are those that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITH_JAX = {"jaxlib"}
"""Packages that another one brings."""


def number(version):
    """Return a version without zeros at its end, since 2.0 and 2.0.0 are one."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", version).split(".")))


def test_the_oldest_versions_are_the_lowest_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("test", "cli", "jax", "scipy", "torch")
    required = [*project["dependencies"], *(line for name in names for line in extras[name])]
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(required), re.MULTILINE))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "tests" / "oldest.txt").read_text(), re.MULTILINE))
    found = {name: number(version) for name, version in pinned.items() if name not in WITH_JAX}
    assert found == {name: number(version) for name, version in lowest.items()}
