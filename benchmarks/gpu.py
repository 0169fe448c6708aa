"""All GPU measurements of dil, in one command that takes at most eight minutes.

    PYTHONPATH=.:backends python benchmarks/gpu.py --out docs/results

The steps are the tests on CuPy, torch with CUDA and JAX; the backward pass against a loop written by hand; a batch;
reads of the device; peak memory. Results are written after each step, so an interrupted run keeps its results. Without
a GPU the script makes a dry run on the CPU with small sizes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from _common import described, machine, markdown, version
from _results import write_results

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("array_api_compat", "hypothesis", "numpy", "pytest")
FRAMEWORKS = ("cupy", "torch", "jax")
TESTS = ("test_laws.py", "test_closed_forms.py", "test_gradients.py", "test_cg.py")
SIZES = ("1000", "10000", "100000", "1000000", "10000000")
BATCH = "256x50"
ENDED = re.compile(r"^(?:tests/|\[gw).*?\b(PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
"""A line of pytest's, with xdist or without, that says how one test ended."""
CUPY = ("cupy", "cupy-cuda13x", "cupy-cuda12x")
"""The packages that CuPy may have been installed from."""
MEASURED = (
    "The layer is y = argmin_u 1/2 u^T (D + L) u - theta^T u with a condition number of about 200, in "
    "float64, solved by CG to a residual of 1e-8. 'ratio' is the time of its backward pass over that of "
    "conjugate gradients written by hand in the framework, with the matrix-vector product by hand too (the "
    "layer differentiates its score). The two run in turn, with the device synchronised around each. The "
    "table has medians of pairs and their quartiles. 'difference' is the largest entry of the difference of "
    "the two results, relative to the largest entry. 'reads of the condition' counts how often the loop asks "
    "the device whether to go on. 'synchronisations' is what torch.cuda.set_sync_debug_mode reports in the "
    "same pass."
)
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def gpu() -> str | None:
    """Return the name, memory and driver of the GPU, as nvidia-smi has them; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(found.stdout.strip().splitlines()) or None


def environment(dry: bool) -> dict[str, str]:
    """Return the environment of a step: the source tree on the path, and memory that three frameworks share.

    XLA_FLAGS is set, if to nothing, so that the suite does not set the flags that it has for the CPU.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    wanted = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    wanted |= {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_X64": "1", "CI": "1"}
    if dry:
        return {**wanted, "JAX_PLATFORMS": "cpu"}
    wanted.setdefault("XLA_FLAGS", "")
    return wanted


def run(command: Sequence[str], limit: float, environment: dict[str, str]) -> tuple[str, str | None]:
    """Return the output of a command, and why it failed: the last lines of its errors, or the time that it had.

    A command that is stopped gives the output that it had written. The processes that it started are stopped too.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, cwd=ROOT, process_group=0) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0], f"stopped after {limit:.0f} s"
    lines = (errors.strip() or output.strip()).splitlines()
    return output, None if process.returncode == 0 else " / ".join(lines[-3:])


def tests(framework: str, dry: bool, limit: float) -> tuple[list[dict[str, Any]], str | None]:
    """Run the tests of one framework on the device."""
    if framework == "jax" and not dry:  # it falls back to the CPU in silence
        _, error = run([sys.executable, "-c", "import jax; jax.devices('gpu')"], limit, environment(dry))
        if error:
            return [], error
    chosen = "cuda" if framework == "torch" else framework
    if dry:
        chosen = "strict" if framework == "cupy" else framework
    files = [f"tests/{name}" for name in (TESTS[:1] if dry else TESTS)]
    # frameworks newer than those of constraints.txt may warn of what is deprecated
    options = ["-v", "-p", "no:cacheprovider", "--no-header", "-W", "default", "-W", "error::dil.ConvergenceWarning"]
    if not dry and importlib.util.find_spec("xdist"):
        options += ["-n", "4"]
    command = [sys.executable, "-m", "pytest", *options, "-k", chosen, *files]
    output, error = run(command, limit, environment(dry))
    ended = [line.lower() for line in ENDED.findall(output)]
    row = {word: ended.count(word) for word in ("passed", "failed", "error", "skipped")}
    if error is None and not row["passed"]:
        error = "no test ran: all were skipped"
    return [{"framework": framework, **row}], error


def cases(step: str, framework: str, dry: bool, limit: float, sizes: Sequence[str]) -> tuple[list[Any], str | None]:
    """Run one step of `_gpu.py` for a framework."""
    stand_in = "numpy" if dry and framework == "cupy" else framework
    device = "" if dry else {"torch": "cuda", "jax": "gpu"}.get(framework, "")
    seconds = "0.1" if dry else "3"
    command = [sys.executable, "benchmarks/_gpu.py", step, stand_in, device, seconds, *sizes]
    output, error = run(command, limit, environment(dry))
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")], error


def steps(dry: bool, budget: float) -> Iterator[tuple[str, list[Any], list[str]]]:
    """Run the steps in order; give the name, the rows and the failures of each."""
    begins = time.monotonic()
    sizes = SIZES[:1] if dry else SIZES
    batch = "16x50" if dry else BATCH
    plan = (
        ("tests", ()),
        ("backward", sizes),
        ("batch", (batch,)),
        ("reads", sizes[:1]),
        ("memory", (sizes[-1],)),
    )
    for name, chosen in plan:
        rows: list[Any] = []
        failures: list[str] = []
        for framework in FRAMEWORKS[:1] if dry and name == "tests" else FRAMEWORKS:
            limit = budget - (time.monotonic() - begins)
            if limit < 5:
                failures.append(f"{framework}: skipped, the {budget:.0f} s of the run are used up")
                continue
            if name == "tests":
                found, error = tests(framework, dry, min(limit, budget / 6))
            else:
                step = "backward" if name == "batch" else name
                found, error = cases(step, framework, dry, min(limit, budget / 5), chosen)
            rows += found
            failures += [f"{framework}: {error}"] if error else []
        yield name, rows, failures


def cell(x: Any) -> str:
    """Return one entry of a table."""
    if isinstance(x, list):
        return " to ".join(cell(y) for y in x)
    return "-" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x)


def page(head: Sequence[str], done: dict[str, tuple[list[Any], list[str]]]) -> list[str]:
    """Return the paragraphs of the results."""
    parts = [*head, MEASURED]
    for name, (rows, failures) in done.items():
        parts.append(f"## {name.capitalize()}")
        if rows:
            parts.append(markdown(list(rows[0]), [[cell(x) for x in row.values()] for row in rows]))
        parts += [f"Failed: {failure}" for failure in failures]
    return parts


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where gpu.md and gpu.json go.")] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="How long the whole run may take.")] = 480.0,
) -> None:
    """Run tests and benchmarks on the GPU; without one, a dry run on the CPU with small sizes."""
    console = Console()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        console.print(
            f"missing here, and needed: {', '.join(missing)}. Install them, or put their wheels on PYTHONPATH"
        )
        raise typer.Exit(2)
    device = gpu()
    dry = device is None
    if dry:
        console.print("no NVIDIA GPU was found: this is a dry run on the CPU with small sizes (NumPy stands for CuPy)")
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    cupy = next((found for found in map(version, CUPY) if found != "absent"), "absent")
    host = {**machine(), "cupy": cupy, "GPU": device or "none"}
    head = ["# dil on a GPU", f"`{command}`", described(host) + ".", f"GPU (name, memory, driver): {host['GPU']}."]
    if dry:
        head.append(
            "A dry run on the CPU: the figures say nothing of a GPU. NumPy and array_api_strict stand for CuPy."
        )
    done: dict[str, tuple[list[Any], list[str]]] = {}
    for name, rows, failures in steps(dry, budget):
        done[name] = (rows, failures)
        console.print(f"{name}: {len(rows)} rows" + "".join(f"\n  failed: {failure}" for failure in failures))
        if out is not None:
            record = {"command": command, "machine": host, "dry": dry, "measured": MEASURED}
            parts = {step: {"rows": met, "failures": told} for step, (met, told) in done.items()}
            write_results(out, "gpu", page(head, done), {**record, **parts})


if __name__ == "__main__":
    app()
