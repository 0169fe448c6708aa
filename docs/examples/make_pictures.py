"""Draw the pictures of the gallery, all or those named, into docs/pages/pictures.

    python docs/examples/make_pictures.py
    python docs/examples/make_pictures.py kepler market

Each example is a process of its own, drawn in the style of gallery.mplstyle. A PNG is then reduced to 128 colours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "pages" / "pictures"
RUN = """
import runpy, sys
from matplotlib import style
style.use(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def scripts() -> dict[str, Path]:
    """Return the scripts that draw, by name."""
    return {
        path.stem: path
        for path in sorted(HERE.glob("[a-z]*.py"))
        if path != Path(__file__).resolve() and '"--out"' in path.read_text(encoding="utf-8")
    }


def draw(path: Path, out: Path) -> None:
    """Run one script in the style of the gallery."""
    arguments = [HERE / "gallery.mplstyle", path, "--out", out]
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "MPLBACKEND": "Agg"})


def keep(path: Path) -> None:
    """Copy a picture to the pages, a PNG with 128 colours."""
    kept = OUT / path.name
    if path.suffix == ".png":
        Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(kept, optimize=True)
    else:
        shutil.copyfile(path, kept)
    print(f"{kept.name}: {kept.stat().st_size / 1000:.0f} kB")


def main(names: list[str]) -> None:
    """Draw the pictures of the names, or all."""
    found = scripts()
    for name in names or found:
        with tempfile.TemporaryDirectory() as out:
            draw(found[name], Path(out))
            for path in sorted(Path(out).iterdir()):
                if path.suffix in {".png", ".gif"}:
                    keep(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"by default all of {', '.join(scripts())}")
    chosen = parser.parse_args().names
    if unknown := set(chosen) - set(scripts()):
        parser.error(f"no example draws under the name of {', '.join(sorted(unknown))}")
    main(chosen)
