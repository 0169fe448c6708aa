"""The commands of the program `dil`; see `dil --help`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

import dil
from dil._cli.demos import kepler
from dil._diagnostics.check_gradients import check_case

app = typer.Typer(
    help=dil.__doc__,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
demo = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(demo, name="demo")

SHOWN = 6
"""The number of steps at the start that are all shown. Later, every fifth step and the last step are shown."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(dil.__version__)
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Differentiable implicit layers on NumPy, torch, JAX and CuPy."""


@app.command()
def backends() -> None:
    """List the backends: version, devices, or why a backend cannot be used here."""
    table = _table("backend", "version", "devices", "usable")
    for info in dil.backends():
        usable = "[green]yes[/]" if info.usable else f"[red]no[/]: {escape(info.reason or '')}"
        table.add_row(info.name, info.version or "-", ", ".join(info.devices) or "-", usable)
    Console().print(table)


@app.command()
def check(
    case: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:CALLABLE",
            help="Takes a dil.BackendHandle and returns (fn, *args), the arrays among args made by handle.asarray.",
            show_default=False,
        ),
    ],
    backends: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Such as numpy,torch,jax; by default all that are usable.")
    ] = None,
    order: Annotated[int, typer.Option(min=1, max=2, help="2 checks second derivatives as well.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the random directions.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of what handle.asarray makes.")] = "float64",
) -> None:
    """Compare gradients with finite differences, and backends with each other.

    Exits with status 1 if a gradient is wrong.
    """
    _allow_float64_of_jax()
    with _one_line("check"):
        make = _load(case)
        names = _split(backends)
        for name in names:
            dil.backend(name, dtype=dtype)
    with _one_line("check", status=1):
        made = lambda handle: _made(make, case, handle.name, dtype)  # noqa: E731
        report = check_case(made, names, order=order, seed=seed, progress=sys.stderr.isatty())
    _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command("bench")
def run_bench(
    seconds: Annotated[
        float,
        typer.Option(min=0.0, help="For all methods together. Each makes two calls at least; JAX compiles in one."),
    ] = 120,
) -> None:
    """Compare a gradient through an optimum by dil with the same by what is installed here.

    The optimum is a logistic regression of 300 rows and 30 features. Times are those of this machine.
    """
    from dil._cli import bench  # imported here because only this command needs NumPy

    _allow_float64_of_jax()
    console = Console()
    table = _table("method", "ms a gradient", "first call, ms", "calls", "rel. error")
    for column in table.columns[1:]:
        column.justify = "right"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the packages that are compared
        with console.status("measuring ...") as status:
            for row in bench.compare(seconds, bench.data()):
                status.update(f"measured: {row.name}")
                times = (f"{1e3 * row.seconds:.2f}", f"{1e3 * row.first:.0f}")
                table.add_row(row.name, *times, str(row.calls), f"{row.error:.1e}")
    console.print(table)
    if absent := bench.missing():
        console.print(f"\nnot installed, so not compared: {', '.join(absent)}", highlight=False)


@demo.callback()
def demos(
    context: typer.Context,
    wanted: Annotated[bool, typer.Option("--list", help="List the demonstrations.")] = False,
) -> None:
    """Run a demonstration."""
    if wanted:
        table = _table("demo", "what it shows")
        for command in demo.registered_commands:
            table.add_row(command.name, (getattr(command.callback, "__doc__", None) or "").splitlines()[0])
        Console().print(table)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@demo.command("stiff")
def demo_stiff(
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="By default $DIL_BACKEND, then numpy.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where stiff.png goes.")] = Path("stiff"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the learning.")] = 8,
) -> None:
    """Learn a rate of a stiff reaction through implicit steps, where explicit ones overflow.

    Exits with status 1 if the rate is not found.
    """
    from dil._cli.demos import stiff

    _allow_float64_of_jax()
    console = Console()
    with _one_line("demo stiff"):
        learned = stiff.learn(dil.backend(backend, dtype="float64"), steps=steps)
        out.mkdir(parents=True, exist_ok=True)
        stiff.save(learned, out / "stiff.png")
    table = _table("step", "k1", "rel. error")
    for i, k1 in enumerate(learned.path):
        table.add_row(str(i), f"{k1:.12f}", f"{abs(k1 / stiff.RATES[0] - 1):.1e}")
    console.print(table)
    _print_wrote(console, out / "stiff.png")
    if learned.error > stiff.FOUND:
        _fail("demo stiff", f"k1 is off by {learned.error:.1e} after {steps} steps; raise --steps", 1)


@demo.command("swing")
def demo_swing(
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="By default $DIL_BACKEND, then numpy.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where swing.gif goes.")] = Path("swing"),
    steps: Annotated[int, typer.Option(min=1, help="Plans, one each 0.05 s of the motion.")] = 70,
) -> None:
    """Swing a pendulum up with a weak motor by model predictive control, as an animation.

    Exits with status 1 if it does not stand upright at the end.
    """
    from dil._cli.demos import swing

    _allow_float64_of_jax()
    console = Console()
    with _one_line("demo swing"):
        handle = dil.backend(backend, dtype="float64")
        with console.status("planning ..."):
            found = swing.swing_up(handle, steps=steps)
        out.mkdir(parents=True, exist_ok=True)
        swing.save(found, out / "swing.gif")
    angle, speed = found.states[-1]
    console.print(f"After {swing.STEP * steps:.2f} s: angle {angle:.4f} rad, speed {speed:.4f} rad/s", highlight=False)
    _print_wrote(console, out / "swing.gif")
    if found.away > swing.UPRIGHT:
        _fail("demo swing", f"the pendulum does not stand upright after {steps} plans; raise --steps", 1)


@demo.command("kepler")
def demo_kepler(
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="By default $DIL_BACKEND, then numpy.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where kepler.png and kepler.json go.")] = Path("kepler"),
    target: Annotated[
        float | None, typer.Option(help="E to reach, radians; by default that of e = 0.7.", show_default=False)
    ] = None,
    mean_anomaly: Annotated[float, typer.Option(help="M, radians.")] = kepler.MEAN_ANOMALY,
    start: Annotated[float, typer.Option(help="e to start from, 0 <= e < 1.")] = kepler.START,
    steps: Annotated[int, typer.Option(help="Steps at most.")] = kepler.STEPS,
) -> None:
    """Learn the eccentricity e of Kepler's equation, E - e sin E = M, so that E(e) matches a target.

    Draws Figure 1 of the paper (Look et al. 2020). Exits with status 1 if the target is not reached.
    """
    from dil._cli.demos import kepler_figure  # imported here because only this command needs matplotlib

    _allow_float64_of_jax()
    console = Console()
    with _one_line("demo kepler"):
        handle = dil.backend(backend, dtype="float64")
        made: list[kepler.Step] = []
        with _shown_live(console, made) as show:
            learned = kepler.learn(
                handle, mean_anomaly=mean_anomaly, target=target, start=start, steps=steps, on_step=show
            )
        land = kepler_figure.survey(handle, learned)
        out.mkdir(parents=True, exist_ok=True)
        kepler_figure.save(kepler_figure.draw(learned, land), out / "kepler.png")
        same, there, none = kepler_figure.agreement(land, learned)
        record = kepler.record(learned)
        record["field"] = {"sign_as_on_the_line": same, "points": there, "not_convex": none}
        (out / "kepler.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _print_learned(console, learned)
    console.print()
    console.print(
        f"Off the argmin line dE/de has the right sign at {same} of {there} points; "
        f"at {none} more the score is not convex in E.\n"
        f"Wrote {escape(str(out / 'kepler.png'))} and {escape(str(out / 'kepler.json'))}",
        highlight=False,
        soft_wrap=True,
    )
    if not learned.converged:
        _fail("demo kepler", f"|E - target| is {learned.distance:.1e} rad after {steps} steps; raise --steps", 1)


@contextmanager
def _shown_live(console: Console, made: list[kepler.Step]) -> Iterator[Callable[[kepler.Step], None]]:
    """Append steps to `made` and show them as they arrive. If the output is no terminal, show all at the end."""
    if not console.is_terminal:
        yield made.append
        console.print(_steps_table(made))
        return
    with Live(_steps_table(made), console=console) as live:

        def show(step: kepler.Step) -> None:
            made.append(step)
            live.update(_steps_table(made))

        yield show


def _steps_table(made: Sequence[kepler.Step]) -> Table:
    table = _table("step", "e", "E [rad]", "loss L", "dL/de: layer", "analytic", "rel. diff")
    for column in table.columns:
        column.justify = "right"
    for s in made:
        if s.step < SHOWN or s.step % 5 == 0 or s is made[-1]:
            numbers = f"{s.e:.8f} {s.E:.8f} {s.loss:.2e} {s.gradient:.4e} {s.analytic:.4e} {s.relative_difference:.1e}"
            table.add_row(str(s.step), *numbers.split())
    return table


def _print_learned(console: Console, learned: kepler.Learned) -> None:
    console.print()
    table = _table("at the end", "by the layer", "closed form", "rel. error")
    for column in table.columns[1:]:
        column.justify = "right"
    for c in learned.checks:
        table.add_row(c.name, f"{c.layer:.15f}", f"{c.closed_form:.15f}", f"{c.relative_error:.1e}")
    console.print(table)


def _print_report(report: dil.GradientReport) -> None:
    console = Console()
    table = _table("backend", "order", "reverse", "forward", "difference", "error", "bound", "", gap=0)
    for row in report.rows:
        numbers = (f"{x:.5e}" for x in (row.reverse, row.forward, row.difference))
        table.add_row(row.backend, str(row.order), *numbers, f"{row.error:.1e}", f"{row.bound:.1e}", _word(row.ok))
    for agreement in report.agreement:
        table.add_row(
            agreement.backend,
            str(agreement.order),
            f"against {agreement.reference}",
            "",
            "",
            f"{agreement.error:.1e}",
            f"{agreement.bound:.1e}",
            _word(agreement.ok),
        )
    for column in table.columns[2:7]:
        column.justify = "right"
    console.print(table)
    judged = [*(row.ok for row in report.rows), *(row.ok for row in report.agreement)]
    wrong = judged.count(False)
    verdict = (
        f"{wrong} of {len(judged)} rows beyond their bound" if wrong else f"all {len(judged)} rows within their bound"
    )
    console.print()
    console.print(verdict, style="red" if wrong else "green")
    for finding in report.findings:
        console.print()
        console.print(str(finding), markup=False, highlight=False)


def _print_wrote(console: Console, path: Path) -> None:
    console.print(f"Wrote {escape(str(path))}", highlight=False, soft_wrap=True)


def _table(*headers: str, gap: int = 1) -> Table:
    """Return an empty table. With its numbers it fits into 80 columns."""
    return Table(*headers, box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)


def _word(ok: bool) -> str:
    return "[green]ok[/]" if ok else "[bold red]WRONG[/]"


def _load(case: str) -> Callable[..., Any]:
    """Import MODULE and return its CALLABLE. The current directory is searched first.

    Raises
    ------
    OptionError
        If `case` has another form, or the module or the callable does not exist.
    """
    module_name, colon, attribute = case.partition(":")
    if not (module_name and colon and attribute):
        message = f"{case!r} is not of the form MODULE:CALLABLE, such as mycases:quadratic"
        raise dil.OptionError(message)
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        message = f"the module {module_name!r} cannot be imported from {os.getcwd()} or the Python path ({error})"
        raise dil.OptionError(message) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        message = f"the module {module_name!r} has no callable {attribute!r}"
        raise dil.OptionError(message)
    return found  # type: ignore[no-any-return]


def _split(names: str | None) -> list[str]:
    if names is None:
        return [info.name for info in dil.backends() if info.usable]
    return [name.strip() for name in names.split(",")]


def _made(make: Callable[..., Any], case: str, backend: str, dtype: str) -> tuple[Any, ...]:
    made = make(dil.backend(backend, dtype=dtype))
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        message = f"{case} returned {made!r}; expected a tuple (fn, *args) that begins with a function"
        raise dil.OptionError(message)
    return made


def _allow_float64_of_jax() -> None:
    """Switch on the 64-bit types of JAX. JAX reads the variable at import. A program may do this, a library may not."""
    os.environ.setdefault("JAX_ENABLE_X64", "1")


@contextmanager
def _one_line(command: str, *, status: int = 2) -> Iterator[None]:
    """Turn a user's error into one line and an exit status: 2 for bad usage, else `status`."""
    try:
        yield
    except (dil.OptionError, dil.BackendError) as error:
        _fail(command, error, 2)
    except OSError as error:
        _fail(command, f"cannot write {error.filename}: {error.strerror}", 2)
    except dil.DilError as error:
        _fail(command, error, status)


def _fail(command: str, error: object, status: int) -> NoReturn:
    typer.echo(f"dil {command}: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(status)
