"""Tables in HTML for notebooks. All text is escaped, and nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

# the colours of the page are kept, so a table can be read on a light and on a dark one
TABLE = "border-collapse:collapse;color:inherit;background:none;font-variant-numeric:tabular-nums;margin:.3em 0"
CAPTION = "caption-side:top;text-align:left;font-weight:600;padding:0 0 .3em;color:inherit;white-space:nowrap"
CELL = "text-align:left;vertical-align:top;padding:.2em 1em .2em 0;color:inherit;background:none"
HEAD = CELL + ";font-weight:600;border-bottom:1px solid currentColor"
NOTE = "margin:.2em 0;max-width:60em;color:inherit"
SHORT = 40
"""Texts of up to so many characters stay on one line."""
FAILED = "font-weight:600;color:#d9534f"
"""A red with about the same contrast to white and to black."""


class Mark(NamedTuple):
    """A cell that says whether something is as it should be."""

    ok: bool
    text: str


Cell = str | Mark


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], notes: Sequence[str] = ()) -> str:
    """Return a table, with a paragraph below it for each note. No header is shown if it is empty."""
    head = "".join(f'<th style="{HEAD}">{escape(text)}</th>' for text in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    below = "".join(f'<p style="{NOTE}">{escape(note)}</p>' for note in notes)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    title = f'<caption style="{CAPTION}">{escape(caption)}</caption>'
    return f'<div style="overflow-x:auto"><table style="{TABLE}">{title}{top}<tbody>{body}</tbody></table>{below}</div>'


def _cell(cell: Cell) -> str:
    text = cell if isinstance(cell, str) else f"{'✓' if cell.ok else '✗'} {cell.text}"
    style = "white-space:nowrap" if len(text) <= SHORT else ""
    if isinstance(cell, Mark) and not cell.ok:
        style = f"{style};{FAILED}"
    return f'<td style="{CELL}"><span style="{style}">{escape(text)}</span></td>'
