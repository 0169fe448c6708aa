"""Write the results of a benchmark: NAME.md for people and NAME.json for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH = 120
"""Characters that a mapping may take on one line of the JSON file."""


def write_results(out: Path, name: str, parts: Sequence[str], record: Mapping[str, Any]) -> None:
    """Write NAME.md, the parts as paragraphs, and NAME.json into the folder `out`.

    A run that is cut short leaves whole files behind: each is written beside its place first.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write(out / f"{name}.md", "\n\n".join(parts))
    _write(out / f"{name}.json", lines_of(record))


def earlier(out: Path | None, name: str, *, keep: bool) -> dict[str, Any]:
    """Return the record of an earlier run in the folder `out`, empty if it is not kept or there is none."""
    path = None if out is None or not keep else out / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
    return found


def commands_of(record: Mapping[str, Any], command: str) -> list[str]:
    """Return the commands that made a record and then this one, each once."""
    return list(dict.fromkeys([*str(record.get("command", "")).splitlines(), command]))


def lines_of(value: Any, indent: str = "") -> str:
    """Return a value as JSON: one line for each entry of a mapping, and for each row of a list of rows."""
    whole = json.dumps(value, allow_nan=False)
    inner = indent + " "
    if isinstance(value, Mapping) and len(indent) + len(whole) > WIDTH:
        entries = [f"{json.dumps(str(key))}: {lines_of(x, inner)}" for key, x in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(x, Mapping | list | tuple) for x in value):
        entries = [json.dumps(x, allow_nan=False) for x in value]
    else:
        return whole
    first, last = whole[0], whole[-1]
    return f"{first}\n" + ",\n".join(inner + entry for entry in entries) + f"\n{indent}{last}"


def _write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)
