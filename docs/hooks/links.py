"""Make names in code type a link: `dil.linear.CG` to the reference, `jax.jit` to JAX's own page.

The pages of NumPy, SciPy, torch and JAX come from a table, links.toml, so that a build needs no network.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.utils import get_relative_url

HERE = Path(__file__).parent
NAME = re.compile(r"<code>(?P<name>[a-z_]+(?:\.\w+)+)(?P<call>\([^<]*\))?</code>")
SKIPPED = re.compile(r"(<pre\b.*?</pre>|<a\b.*?</a>|<h[1-6]\b.*?</h[1-6]>)", re.DOTALL)
"""Blocks of code, and text that is a link or a heading already."""
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)

foreign: dict[str, str] = {
    name: pattern.format(name, name.rpartition(".")[2])
    for pattern, names in tomllib.loads((HERE / "links.toml").read_text()).values()
    for name in names
}
here: dict[str, str] = {}
"""The address of each public name, from the root of the site."""


def on_files(files: Files, config: Any) -> Files:
    """Find the page of every name of the reference."""
    here.clear()
    for file in files.documentation_pages():
        if file.src_uri.startswith("reference/"):
            here.update({name: f"{file.url}#{name}" for name in ENTRY.findall(file.content_string)})
    return files


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Link the names of a page that are not in a block of code, in a link or in a heading."""

    def linked(found: re.Match[str]) -> str:
        name = found["name"]
        owner = name if name in here else name.rpartition(".")[0]
        if owner in here:
            return f'<a href="{get_relative_url(here[owner], page.url)}">{found[0]}</a>'
        return f'<a href="{foreign[name]}">{found[0]}</a>' if name in foreign else found[0]

    # split by a pattern with one group: every second part is what the pattern found
    parts = SKIPPED.split(html)
    return "".join(part if k % 2 else NAME.sub(linked, part) for k, part in enumerate(parts))
