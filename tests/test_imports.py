"""What importing dil costs, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"numpy", "torch", "jax", "jaxlib", "cupy", "scipy", "array_api_strict"}
LAZY = {"numpy", "scipy"}
"""May be imported inside a function of the core: NumPy is a dependency, SciPy a solver."""


def run(code):
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'backends')!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def test_import_loads_no_framework():
    loaded = run(f"import dil; print([m for m in sys.modules if m.split('.')[0] in {FRAMEWORKS!r}])")
    assert loaded == "[]"


def test_using_one_backend_loads_no_other():
    code = (
        "import numpy as np, dil\n"
        "layer = dil.argmin(lambda u, t: np.sum((u - t)**2), dil.solvers.Newton(), init=np.zeros(2))\n"
        "dil.vjp(layer, np.ones(2))[1](np.ones(2))\n"
        "print([m for m in ('torch', 'jax', 'cupy', 'scipy') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_no_global_is_switched():
    pytest.importorskip("jax", reason="JAX is not installed")
    code = (
        "import os; os.environ.pop('JAX_ENABLE_X64', None)\n"
        "import jax, dil\n"
        "dil.backend('jax')\n"
        "try: dil.backend('jax', dtype='float64')\n"
        "except dil.BackendError as error: print('jax_enable_x64' in str(error), jax.config.jax_enable_x64)"
    )
    assert run(code) == "True False"


def imports(path, *, top_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


CORE = sorted(p for p in (ROOT / "dil").rglob("*.py") if "_cli" not in p.parts)  # the demos are programs


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_framework(path):
    for name in imports(path, top_only=False):
        root = name.split(".")[0]
        if root in FRAMEWORKS:
            assert root in LAZY, f"{path} imports {name}"
        assert root != "dil_backends" or path.name == "registry.py", f"{path} imports {name}"
    assert not {n.split(".")[0] for n in imports(path, top_only=True)} & FRAMEWORKS


ROOMS = {
    "_base": set(),
    "_frameworks": {"_base"},
    "_problem": {"_base", "_frameworks"},
    "linear": {"_base", "_frameworks"},
    "solvers": {"_base", "_frameworks", "_problem", "linear"},
    "_diagnostics": {"_base", "_frameworks", "_problem", "linear"},
    "_layers": {"_base", "_frameworks", "_problem", "linear", "_diagnostics"},
    "ode": {"_base", "_frameworks", "_problem", "linear", "solvers", "_diagnostics", "_layers"},
    "control": {"_base", "_frameworks", "_problem", "linear", "solvers", "_diagnostics", "_layers"},
}
"""The rooms of dil/, lowest first, and those that each may import. The docstring of each room says the same."""


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_the_rooms_below_it(path):
    room = path.relative_to(ROOT / "dil").parts[0]
    for name in imports(path, top_only=False):
        parts = name.split(".")
        if room in ROOMS and parts[0] == "dil":
            assert len(parts) > 1, f"{path} imports the whole of dil"
            assert parts[1] == room or parts[1] in ROOMS[room], f"{path} imports {name}"


BACKENDS = ROOT / "backends" / "dil_backends"
BACKEND_FILES = sorted(BACKENDS.rglob("*.py"))


@pytest.mark.parametrize("path", BACKEND_FILES, ids=lambda p: str(p.relative_to(BACKENDS)))
def test_no_backend_imports_another(path):
    own = path.relative_to(BACKENDS).with_suffix("").parts[0]
    others = {"numpy", "cupy", "torch", "jax"} - {own}
    for name in imports(path, top_only=False):
        parts = name.split(".")
        if own in {"numpy", "cupy", "torch", "jax"}:
            assert parts[:2] not in [["dil_backends", other] for other in others], f"{path} imports {name}"
        if own == "_tape" and parts[0] == "dil":
            assert parts[1] == "_base", f"{path} imports {name}"


def test_every_room_has_its_place_and_says_what_lives_there():
    folders = {p.parent.name for p in (ROOT / "dil").glob("*/__init__.py")}
    assert folders == {*ROOMS, "_cli"}
    for name in folders:
        text = ast.get_docstring(ast.parse((ROOT / "dil" / name / "__init__.py").read_text()))
        assert text is not None
        assert "It imports" in text, f"dil/{name}/__init__.py does not say which rooms it may import"
    entries = [p for p in (ROOT / "dil").iterdir() if not p.name.startswith("__") and p.name != "py.typed"]
    assert len(entries) <= 12


def test_imports_go_downwards():
    """The modules of the core form no cycle, so each can be read knowing only those below it."""
    graph = {}
    for path in CORE:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[name] = {n for n in imports(path, top_only=True) if n.split(".")[0] == "dil" and n != "dil"}
    packages = {name: f"{name}.__init__" for name in graph if f"{name}.__init__" in graph}

    def visit(name, trail):
        name = packages.get(name, name)
        assert name not in trail, " -> ".join([*trail, name])
        for below in graph.get(name, ()):
            visit(below, [*trail, name])

    for name in graph:
        visit(name, [])


def test_all_is_what_there_is():
    import dil

    assert sorted(dil.__all__) == dil.__all__
    shown = {n for n in dir(dil) if not n.startswith("_")}
    assert shown == set(dil.__all__)
    assert all(getattr(dil, name) is not None for name in dil.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = dil.nonsense
