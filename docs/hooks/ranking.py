"""Rank the pages in the search: a name leads to the reference, and a task to its page, before tables of results."""

from __future__ import annotations

import posixpath
from typing import Any

BOOST = {"reference/dil.md": 4.0, "reference": 2.0, "howto": 1.5, "results": 0.25}
"""By the page, or by its folder; the others have one."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Give a page its boost, which the search plugin reads from its metadata."""
    place = page.file.src_uri
    boost = BOOST.get(place, BOOST.get(posixpath.dirname(place), 1.0))
    page.meta.setdefault("search", {"boost": boost})
    return markdown
