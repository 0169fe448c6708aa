"""Functions that the scripts of the paper share: the benchmark helpers, a single thread, and the writing of results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _sys_path  # noqa: F401
from _common import ONE_THREAD, described, machine, markdown, show, word
from _results import write_results as write_files

__all__ = ["INK", "command_line", "described", "machine", "markdown", "one_thread", "show", "word", "write_results"]

INK = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7")
"""Colours that the colour-blind tell apart (Okabe and Ito)."""


def one_thread() -> None:
    """Start the program again if its libraries may use more threads, which small matrices only make wait."""
    wanted = {name: value for name, value in ONE_THREAD.items() if name.endswith("_THREADS")}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def command_line() -> str:
    """Return the command that runs, as one would type it."""
    return shlex.join(["python", f"benchmarks/paper/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_results(out: Path, name: str, title: str, parts: Sequence[str], record: Mapping[str, Any]) -> None:
    """Write NAME.md, the parts below title and command, and NAME.json, both with what they ran on."""
    head = {"command": command_line(), "machine": machine()}
    top = [f"# {title}", f"`{head['command']}`", described(machine()) + "."]
    write_files(out, name, [*top, *parts], {**head, **record})
