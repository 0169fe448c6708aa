"""A test of the built wheel, run by the gate where only the wheel is installed: `python tests/wheel.py WHEEL OUT`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def sources() -> set[str]:
    """List the modules of the checkout as the wheel should hold them."""
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dil").rglob("*.py")}
    files |= {p.relative_to(ROOT / "backends").as_posix() for p in (ROOT / "backends").rglob("*.py")}
    return files | {"dil/py.typed", "dil_backends/py.typed"}


def main(wheel: str, out: str) -> None:
    """Compare the contents, then use what is installed from another directory."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == sources(), f"the wheel and the checkout differ in {sorted(inside ^ sources())}"
    Path(out).mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    code = (
        "import dil, dil_backends, pathlib\n"
        f"assert not pathlib.Path(dil.__file__).is_relative_to({str(ROOT)!r}), dil.__file__\n"
        "from importlib.metadata import entry_points\n"
        "points = {p.name: p.value for p in entry_points(group='dil.backends')}\n"
        "assert points == dil_backends.MODULES, points\n"
        "print('usable:', [info.name for info in dil.backends() if info.usable])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    subprocess.run([str(Path(sys.executable).with_name("dil")), "backends"], check=True)
    demo = [sys.executable, "-m", "dil", "demo", "kepler", "--backend", "numpy", "--out", "kepler"]
    subprocess.run(demo, check=True)
    assert Path("kepler/kepler.png").stat().st_size > 10_000
    program = [sys.executable, "-m", "dil"]
    listed = subprocess.run([*program, "demo", "--list"], check=True, capture_output=True, text=True).stdout
    assert all(name in listed for name in ("kepler", "stiff", "swing")), listed
    subprocess.run([*program, "demo", "stiff", "--backend", "numpy", "--out", "stiff"], check=True)
    subprocess.run([*program, "bench", "--seconds", "1"], check=True)
    print("the wheel holds what the checkout holds, and works: 1 passed")


if __name__ == "__main__":
    main(*sys.argv[1:])
