"""Progress bars by rich, which is imported where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dil._base.errors import OptionError


def rich_progress() -> Any:
    """Return the module `rich.progress`.

    Raises
    ------
    OptionError
        If it cannot be imported.
    """
    try:
        import rich.progress
    except ImportError as error:
        message = f"progress=True draws with rich, which cannot be imported ({error}); pip install rich"
        raise OptionError(message) from error
    return rich.progress


@contextmanager
def counted(name: str, total: int, *, shown: bool) -> Iterator[Callable[[], object]]:
    """Draw a bar on stderr while the block runs, if it is shown. The block gets a function that marks one part more."""
    if not shown:
        yield lambda: None
        return
    rich = rich_progress()
    from rich.console import Console

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, rich.TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)
