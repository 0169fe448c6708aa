"""The entry point of the command line. The commands need the extra `cli`."""

from __future__ import annotations

import sys

EXTRA = frozenset({"typer", "rich", "matplotlib"})


def main() -> None:
    """Run the program `dil`. If a package of the extra is missing, print one line and exit with status 2."""
    try:
        from dil._cli.commands import app

        app(prog_name="dil")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        print(f'dil: {missing} is needed and cannot be imported; pip install "dil-layers[cli]"', file=sys.stderr)
        sys.exit(2)
