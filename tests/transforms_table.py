"""The table of transforms, written from the tests that ran: a row is the name in a `transform` marker, nothing else.

`pytest -m transform --transforms-table=docs/pages/transforms.md` writes it. A cell belongs to the backend of the test's
engine, or to the marker's `backend=`, or to the one in the file's name, as in tests/test_torch_transforms.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from engines import Engine

COLUMNS = {"numpy": "NumPy", "cupy": "CuPy", "torch": "torch", "jax": "JAX"}
PROPERTY = "transform"
HEAD = """# Transforms through a layer

Each row is a transform or a composition of transforms. Each cell is the outcome of the tests on that backend:

* *yes*: the results agree with a closed form;
* *refused*: dil raises an error, which names the unsupported transform and an alternative;
* a number: the tests were skipped, for the reason with this number below the table;
* empty: this backend has no test of that name.

The tests write the table:

    python -m pytest -m transform --transforms-table=docs/pages/transforms.md

Transforms nest. This is the third derivative of a layer, in reverse mode over itself:

```python
import dil
import numpy as np

layer = dil.root(lambda y, t: y**2 - t, dil.solvers.Newton(), init=np.asarray(1.0))
print(round(float(dil.grad(dil.grad(dil.grad(layer)))(np.asarray(4.0))), 6), 3 / 8 * 4.0**-2.5)
```

```text
0.011719 0.01171875
```

"""


class Table:
    """Collects outcomes by row and backend, from the reports of all processes; writes them at the end."""

    def __init__(self, path):
        self.path = Path(path)
        self.cells = {}  # row -> backend -> outcomes, each (outcome, reason)

    def pytest_collection_modifyitems(self, items):
        for item in items:
            for found in cells_of(item):
                item.user_properties.append((PROPERTY, found))
                self.cells.setdefault(found[0], {}).setdefault(found[1], [])

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            for name, found in report.user_properties:
                if name == PROPERTY:
                    row, backend, refused = found
                    outcome = "refused" if refused and report.passed else report.outcome
                    reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
                    self.cells.setdefault(row, {}).setdefault(backend, []).append((outcome, reason))

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"):
            self.path.write_text(render(self.cells))


def cells_of(item):
    """Return the (row, backend, refused) of a test, one for each marker."""
    found = []
    for mark in item.iter_markers("transform"):
        (row,) = mark.args
        refused = mark.kwargs.get("refused", "refuse" in item.originalname)
        found.append([row, backend_of(item, mark), refused])
    return found


def backend_of(item, mark):
    """Say which backend a test is about.

    Raises
    ------
    LookupError
        If neither an engine, nor the marker, nor the name of the file says it.
    """
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        if isinstance(value, Engine):
            return value.backend
    if "backend" in mark.kwargs:
        return mark.kwargs["backend"]
    named = re.match(r"test_([a-z]+)(_|$)", item.path.stem)
    if named is None or named[1] not in COLUMNS:
        message = (
            f"{item.nodeid} is a row of the table of transforms, but of which backend? Use an engine fixture, "
            f"transform(..., backend=), or a file named test_<backend>_*.py"
        )
        raise LookupError(message)
    return named[1]


def render(cells):
    """Return the page: rows of most columns first, then by name; reasons numbered below."""
    reasons: list[str] = []

    def cell(outcomes):
        met = {outcome for outcome, _ in outcomes}
        for outcome, text in (("failed", "FAILED"), ("passed", "yes"), ("refused", "refused")):
            if outcome in met:
                return text
        numbers = []
        for reason in sorted({reason for outcome, reason in outcomes if outcome == "skipped"}):
            if reason not in reasons:
                reasons.append(reason)
            numbers.append(str(reasons.index(reason) + 1))
        return ", ".join(numbers)

    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---|" + ":-:|" * len(COLUMNS)]
    order = sorted(cells, key=lambda row: (-len(cells[row].keys() & COLUMNS.keys()), row.lower()))
    lines += [f"| {row} | " + " | ".join(cell(cells[row].get(name, [])) for name in COLUMNS) + " |" for row in order]
    notes = [f"{i}. {reason}" for i, reason in enumerate(reasons, start=1)]
    return HEAD + "\n".join([*lines, "", *notes]).rstrip() + "\n"


def rows(page):
    """Return the names of the rows of a page."""
    return [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")][1:]
