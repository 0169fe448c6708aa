"""The gallery: a card, a page and a notebook of every script in docs/examples that draws a picture.

A hook of MkDocs. A script is the only source of its page: the docstring is the text, and cells (`# %%`, of jupytext's
percent format) are the code. The pages and the notebooks are made when the site is built, and are not committed. The
pictures are: `python docs/examples/make_pictures.py` draws them.

Another example needs a script like those that are there, its name in `GALLERY`, and its picture.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jupytext
import nbformat

DOCS = Path(__file__).resolve().parent.parent
EXAMPLES, PICTURES = DOCS / "examples", DOCS / "pages" / "pictures"
GALLERY = (
    "kepler",
    "convergence",
    "spectrum",
    "gradient_error",
    "bad_problem",
    "hyperparameters",
    "decision_boundary",
    "deq_digits",
    "energy_model",
    "training_log",
    "stiff",
    "van_der_pol",
    "bouncing_ball",
    "rectifier",
    "swing_up",
    "tracking",
    "market",
    "value_function",
    "cluster",
    "titration",
    "reactor",
    "plate",
)
"""The order of the cards."""
MARK = "<!-- cards -->"
"""What the cards replace in gallery.md."""
FRAMEWORKS = {"torch": "torch", "jax": "JAX"}
THUMBNAIL = "width: 100%; aspect-ratio: 0.97; object-fit: cover; object-position: 0 50%; background: white"
"""The left half of a picture, which is twice as wide as high, without the labels of the right half."""


@dataclass(frozen=True)
class Example:
    """A script of the gallery."""

    name: str

    @cached_property
    def source(self) -> str:
        """The script."""
        return (EXAMPLES / f"{self.name}.py").read_text(encoding="utf-8")

    @cached_property
    def _docstring(self) -> str:
        return ast.get_docstring(ast.parse(self.source)) or ""

    @property
    def title(self) -> str:
        """The first line of the docstring, without its full stop."""
        return self._docstring.partition("\n")[0].rstrip(".")

    @property
    def text(self) -> str:
        """The docstring below its first line."""
        return self._docstring.partition("\n")[2].strip("\n")

    @property
    def lead(self) -> str:
        """The first sentence of the text."""
        paragraphs = [part for part in self.text.split("\n\n") if not part.startswith("    ")]
        return re.split(r"(?<=[.:]) ", " ".join(paragraphs[0].split()), maxsplit=1)[0].replace(":", ".")

    @property
    def framework(self) -> str:
        """The framework whose arrays the script uses."""
        if '"--backend"' in self.source:
            return "NumPy, torch and JAX"
        modules = set(re.findall(r"^(?:import|from) (\w+)", self.source, re.MULTILINE))
        return next((shown for module, shown in FRAMEWORKS.items() if module in modules), "NumPy")

    @property
    def picture(self) -> str:
        """The file name of the picture, of which a card shows the left half."""
        return next(found for found in (f"{self.name}.gif", f"{self.name}.png") if f'"{found}"' in self.source)

    def notebook(self, call: str = 'found = main(out=Path("."))') -> Any:
        """Return the script as a notebook: its text, its cells, and a call of `main` for what a command line gives."""
        tree = ast.parse(self.source)
        lines = self.source.splitlines()
        (footer,) = (node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        begin = tree.body[0].end_lineno or 0  # of what follows the docstring
        code = "\n".join(lines[begin : footer.lineno - 1]).replace("import argparse\n", "")
        head = "\n".join(f"# {line}".rstrip() for line in [f"# {self.title}", "", *self.text.splitlines()])
        return jupytext.reads(f"# %% [markdown]\n{head}\n\n# %%\n{code}\n\n# %%\n{call}\n", fmt="py:percent")

    def page(self) -> str:
        """Return the page, in Markdown."""
        cells = [cell.source if cell.cell_type == "markdown" else _fenced(cell) for cell in self.notebook().cells]
        downloads = f"[Notebook]({self.name}.ipynb){{ download }} · [Script]({self.name}.py){{ download }}"
        shown = f"![{self.title}](../pictures/{self.picture})"
        return "\n\n".join([cells[0], shown, f"{downloads} · {self.framework}", *cells[1:]]) + "\n"

    def card(self) -> str:
        """Return the item of a grid of cards."""
        target = f"gallery/{self.name}.md"
        thumbnail = f'[![{self.title}](pictures/{self.picture}){{ loading=lazy style="{THUMBNAIL}" }}]({target})'
        return f"-   {thumbnail}\n\n    **[{self.title}]({target})**\n\n    {self.lead} *{self.framework}*\n"


def examples() -> list[Example]:
    """Return the examples in their order."""
    return [Example(name) for name in GALLERY]


def _fenced(cell: Any) -> str:
    return f"```python\n{cell.source}\n```"


# --- what MkDocs calls -----------------------------------------------------------------------------------------------


def _with_pages(entries: list[Any]) -> Iterator[Any]:
    """Yield the entries of a navigation, with the pages of the examples below that of the gallery."""
    for entry in entries:
        if isinstance(entry, dict):
            ((title, below),) = entry.items()
            if below == "gallery.md":
                pages = [
                    {example.title.partition(":")[0].replace("`", ""): f"gallery/{example.name}.md"}
                    for example in examples()
                ]
                yield {title: ["gallery.md", *pages]}
                continue
            yield {title: list(_with_pages(below))} if isinstance(below, list) else entry
        else:
            yield entry


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    config.nav = list(_with_pages(config.nav))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page, a notebook and the script itself for each example."""
    from mkdocs.structure.files import File

    for example in examples():
        made = {"md": example.page(), "ipynb": nbformat.writes(example.notebook()), "py": example.source}
        for ending, content in made.items():
            files.append(File.generated(config, f"gallery/{example.name}.{ending}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the cards into the page of the gallery."""
    if page.file.src_uri != "gallery.md":
        return markdown
    cards = "\n".join(example.card() for example in examples())
    return markdown.replace(MARK, f'<div class="grid cards" markdown>\n\n{cards}\n</div>')
