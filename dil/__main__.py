"""Run the program `dil`, as `python -m dil`."""

from __future__ import annotations

from dil._cli.app import main

if __name__ == "__main__":
    main()
