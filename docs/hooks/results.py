"""Put the results of the benchmarks, docs/results, on the site, each page with its picture.

A page links to `../results/NAME.md`, so that the link holds in a checkout, too; the site has the results in `results/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parent.parent / "results"
OUTSIDE = re.compile(r"\]\(((?:\.\./)+results/[^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the tables and the pictures. What a benchmark writes as JSON stays out."""
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in (".md", ".png", ".gif"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to docs/results into the site, and show the picture of a result below its title."""
    folder, name = posixpath.split(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("pages", folder, found[1]))
        return f"]({posixpath.relpath(target, folder or '.')}"

    markdown = OUTSIDE.sub(inside, markdown)
    picture = f"{Path(name).stem}.png"
    if folder == "results" and (RESULTS / picture).exists() and f"]({picture})" not in markdown:
        title, _, rest = markdown.partition("\n")
        return f"{title}\n\n![{title.lstrip('# ')}]({picture})\n{rest}"
    return markdown
