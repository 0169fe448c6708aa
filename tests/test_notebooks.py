"""What a notebook shows of reports, records, solutions and backends: tables in HTML, pictures, layers in one line."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from engines import engines

ENGINES = [e for e in engines() if ":" not in e.name or e.name == "strict:device"]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: e.name)
def engine(request):
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


@pytest.fixture
def plt():
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    pyplot.switch_backend("Agg")
    yield pyplot
    pyplot.close("all")


class Reader(HTMLParser):
    """The text of a page, cell by cell, with a check that its elements are closed and that it loads nothing."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.text = [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "p"}
        assert {name for name, _ in attrs} <= {"style"}
        assert all("url" not in value for _, value in attrs)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.cells.append(data)


def read(thing):
    return Reader(thing._repr_html_())


def bowl(u, x):
    return array_namespace(u).sum((u - x) ** 2 + u**4, axis=-1)


def layer(max_iter=60):
    solver = dil.solvers.GradientDescent(max_iter=max_iter, history=True)
    return dil.argmin(bowl, solver, init=lambda x: 0.0 * x, batch_ndim=1, on_failure="ignore")


ROWS = np.asarray([[0.0, 0.0], [0.1, 0.2], [3.0, -2.0]])
"""The first problem is solved at its start; the last takes longest."""


@pytest.fixture(scope="module")
def answers(engine):
    """A solution, a report and a record of five steps on each engine, made once: JAX compiles them."""
    x, made = engine.asarray(ROWS), layer(5)
    with dil.record() as rec:
        rep = made.report(x)
    return made.solve(x), rep, rec


# --- tables ---


def test_a_solution_as_a_table(answers):
    shown = read(answers[0])
    assert "float64 (3, 2)" in shown.text
    assert "(5, 3)" in shown.text  # the history
    assert any("MAX_ITER" in cell and cell.startswith("✗") for cell in shown.cells)
    assert "raise max_iter" in shown.text
    assert "0 .. " in shown.text
    assert "least .. median .. largest" in shown.text


def test_a_report_and_a_record_as_tables(answers):
    _, rep, rec = answers
    shown = read(rep)
    assert shown.cells[:3] == ["dil.Report of the argmin layer of 'bowl'", "forward", "backward"]
    assert "✗ 1 CONVERGED, 2 MAX_ITER" in shown.cells
    assert "forward solve: MAX_ITER: the iteration limit" in shown.text
    assert {"iterations", "residual", "stationarity", "condition", "bound"} <= set(shown.cells)
    assert "✗ 1 CONVERGED, 2 MAX_ITER" in read(rep.forward).cells
    shown = read(rec)
    assert [shown.cells.count(stage) for stage in ("forward", "backward")] == [1, 1]
    assert "✗ 1 CONVERGED, 2 MAX_ITER" in shown.cells


def test_what_converged_is_no_failure():
    shown = read(layer().report(ROWS[1:]))
    assert "✗" not in shown.text
    assert shown.text.count("✓ 2 CONVERGED") == 2


def test_an_empty_record_says_so():
    assert "no solve was recorded" in read(dil.record()).text


def test_a_bound_that_proves_nothing_is_told():
    shown = read(layer(1).report(ROWS * 50))
    assert "nothing is known of the gradient" in shown.text
    assert "backward solve: NOT_STATIONARY" in shown.text


def test_the_backends_as_a_table():
    found = dil.backends()
    assert isinstance(found, tuple)
    shown = read(found)
    for info in found:
        assert info.name in shown.cells
        assert ("✗ " + (info.reason or "") in shown.cells) == (not info.usable)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x>', "a & b"])
def test_text_is_escaped(text):
    evil = dil.Solution({text: np.zeros(2)}, np.asarray(0), extra={text: text})
    assert text in read(evil).text

    def score(u, x):
        return bowl(u, x)

    score.__name__ = text
    made = dil.argmin(score, dil.solvers.Newton(), init=lambda x: 0.0 * x)
    assert text in read(made.report(np.ones(2))).text


def test_codes_that_are_no_status_and_long_texts():
    shown = read(dil.Solution(1.0, np.asarray([0, 77]), extra={"message": "word " * 500}))
    assert "✗ 1 CONVERGED, 1 77" in shown.cells
    assert len(shown.text) < 600


# --- pictures ---


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.get_lines()}


def test_a_history_has_the_numbers_of_the_solution(engine, answers, plt):
    solution = answers[0]
    ax = solution.plot_history()
    history = engine.to_numpy(solution.extra["history"])
    drawn = [line.get_ydata() for line in ax.get_lines()]
    assert len(drawn) == 3
    for row in history.T:
        assert any(np.array_equal(row[~np.isnan(row)], y) for y in drawn)
    assert ax.get_yscale() == "log"


def test_a_history_of_many_problems_is_a_band(plt):
    x = np.random.default_rng(0).normal(size=(40, 2))
    solution = layer(8).solve(x)
    ax = solution.plot_history()
    history = solution.extra["history"]
    middle = next(y for label, y in lines(ax).items() if label.startswith("median"))
    for step, value in middle:
        row = history[int(step) - 1]
        assert (row <= value).sum() >= np.sum(~np.isnan(row)) / 2
        assert (row >= value).sum() >= np.sum(~np.isnan(row)) / 2 - 1
    assert len(ax.get_lines()) <= 13
    (band,) = ax.collections
    assert np.nanmax(history) == band.get_paths()[0].vertices[:, 1].max()


def test_a_plot_is_drawn_where_it_is_told(plt):
    first, second, third = plt.subplots(3)[1]
    x = ROWS[1:]
    solution, report = layer().solve(x), layer().report(x)
    with dil.record() as rec:
        layer()(x)
    assert solution.plot_history(ax=first) is first
    assert report.plot(ax=second) is second
    assert rec.plot(ax=third) is third
    assert len(plt.get_fignums()) == 1
    assert report.plot() is not second


def test_a_report_shows_each_problem_and_marks_those_that_failed(answers, plt):
    report = answers[1]
    ax = report.plot()
    dots = [line for line in ax.get_lines() if line.get_marker() in ("o", "X")]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[-1] == "forward residual"
    assert "backward bound" in labels
    crosses = sum(len(line.get_xdata()) for line in dots if line.get_marker() == "X")
    failed = (report.forward.status != 0) | (report.backward.status != 0)
    assert 0 < failed.sum() < 3
    assert crosses == failed.sum() * len(labels)
    bounds = np.concatenate([line.get_xdata() for line in dots if np.all(np.abs(line.get_ydata()) < 0.5)])
    np.testing.assert_allclose(np.sort(bounds), np.sort(np.maximum(report.backward.bound, 1e-18)))


def test_a_record_shows_the_largest_number_of_every_solve(plt):
    with dil.record() as rec:
        for scale in (1.0, 2.0, 4.0):
            dil.vjp(layer(), scale * ROWS[1:])[1](np.ones((2, 2)))
    ax = rec.plot()
    assert "bound" in ax.get_ylabel()
    drawn = lines(ax)["argmin layer of 'bowl', backward"]
    np.testing.assert_allclose(drawn[:, 1], [entry.bound.max() for entry in rec.backward])
    ax = rec.plot("iterations")
    assert len([label for label in lines(ax) if label.startswith("argmin")]) == 2
    np.testing.assert_allclose(
        lines(ax)["argmin layer of 'bowl', forward"][:, 1], [e.iterations.max() for e in rec.forward]
    )


def test_a_solve_that_failed_is_crossed(plt):
    with dil.record() as rec:
        layer(60)(ROWS[1:])
        layer(3)(ROWS[1:])
    crosses = [line for line in rec.plot().get_lines() if line.get_marker() == "X"]
    assert [list(line.get_xdata()) for line in crosses] == [[2]]


def test_what_cannot_be_drawn_says_what_to_do(plt):
    plain = dil.argmin(bowl, dil.solvers.Newton(), init=lambda x: 0.0 * x)
    with pytest.raises(dil.OptionError, match="history=True"):
        plain.solve(np.ones(2)).plot_history()
    moved = dil.Solution(1.0, np.zeros(3, dtype=int), extra={"history": np.zeros((3, 5))})
    with pytest.raises(dil.ShapeError, match="move the axis of the steps"):
        moved.plot_history()
    with pytest.raises(dil.OptionError, match="no layer ran"):
        dil.record().plot()
    with dil.record() as rec:
        plain(np.ones(2))
    with pytest.raises(dil.OptionError, match="no condition; it holds iterations, residual"):
        rec.plot("condition")
    assert not plt.get_fignums(), "an error leaves no empty figure behind"


def test_without_matplotlib_it_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, dil\n"
        "layer = dil.argmin(lambda u, x: np.sum((u - x) ** 2), dil.solvers.Newton(history=True), init=np.zeros(2))\n"
        "with dil.record() as rec: rep = layer.report(np.ones(2))\n"
        "for plot in (layer.solve(np.ones(2)).plot_history, rep.plot, rec.plot):\n"
        "    try: plot()\n"
        "    except ImportError as error: print(error.name, 'pip install \"dil-layers[cli]\"' in str(error))\n"
        "rep._repr_html_(), rec._repr_html_(), layer.solve(np.ones(2))._repr_html_()\n"
    )
    root = Path(dil.__file__).parents[1]
    path = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'backends')!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["matplotlib True"] * 3


# --- layers in one line ---


def test_a_layer_is_one_line(engine):
    zeros = engine.asarray(np.zeros(2))
    made = dil.argmin(bowl, dil.solvers.LBFGS(max_iter=7), init=zeros, batch_ndim=1, refine=2)
    kind = type(zeros).__name__
    expected = (
        f"dil.argmin(bowl, LBFGS(max_iter=7), linear_solver=Auto(), batch_ndim=1, init={kind} of shape (2,), refine=2)"
    )
    assert repr(made) == expected


def run(x, u, theta):
    return x


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dil.root(bowl, dil.solvers.Newton()), "dil.root(bowl, Newton(), linear_solver=Auto())"),
        (lambda: dil.value(bowl, dil.solvers.SciPy()), "dil.value(bowl, SciPy(), linear_solver=Auto())"),
        (
            lambda: dil.fixed_point(bowl, dil.solvers.Anderson(), linear_solver=dil.linear.GMRES(restart=5)),
            "dil.fixed_point(bowl, Anderson(), linear_solver=GMRES(restart=5))",
        ),
        (
            lambda: dil.argmin(bowl, dil.solvers.Sequence(dil.solvers.CrossEntropy(), dil.solvers.Newton())),
            "dil.argmin(bowl, Sequence(",
        ),
        (
            lambda: dil.control.plan(run, run, 3, bounds=(-1, 1), barrier=0.1),
            "dil.control.plan(run, run, 3, controls=1, solver=LBFGS(), bounds=((-1.0,), (1.0,)), barrier=0.1)",
        ),
    ],
)
def test_each_kind_of_layer_names_the_function_that_makes_it(make, text):
    assert repr(make()).startswith(text)
    assert "\n" not in repr(make())
    assert " at 0x" not in repr(make())


def test_a_module_says_its_solver_in_one_line():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from dil_backends.nn import ImplicitModule

    model = ImplicitModule(torch.nn.Linear(2, 2), dil.solvers.FixedPoint(max_iter=9), kind="fixed_point")
    assert repr(model).splitlines()[1].strip() == "FixedPoint(max_iter=9), kind='fixed_point', batch_ndim=0"
