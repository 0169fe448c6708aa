"""The examples run, and come to what they say, and their notebooks with them.

A notebook is run here as its cells, one after the other in one namespace, without a kernel: that is what a kernel does
with them, and it takes a tenth of the time.
"""

from __future__ import annotations

import codeop
import importlib.util
import math
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"
LARGEST = {".png": 60_000, ".gif": 400_000}
"""Bytes of a picture that is committed."""


@cache
def example(name: str, folder: Path = EXAMPLES):
    """Import an example by its path."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture
def gallery():
    """The hook that makes pages and notebooks."""
    needs("jupytext")
    return example("gallery", DOCS / "hooks")


@pytest.fixture
def notebook(gallery, tmp_path, monkeypatch, capsys):
    """Return a function that runs the cells of a notebook in quick mode, and returns what its `main` does."""
    needs("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    def run(name: str):
        found = gallery.Example(name)
        module = ModuleType(f"notebook_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
        compiled = codeop.Compile()  # keeps `from __future__` of a cell for those below, as a kernel does
        for number, cell in enumerate(found.notebook(f"found = main(quick=True, out=Path({str(tmp_path)!r}))").cells):
            if cell.cell_type == "code":
                exec(compiled(cell.source, f"{name}, cell {number}", "exec"), module.__dict__)
        assert (tmp_path / found.picture).stat().st_size > 5_000
        return module.found

    yield run
    plt.close("all")
    if "torch" in sys.modules:  # some examples compute in float64 by default
        import torch

        torch.set_default_dtype(torch.float32)


def test_gallery(gallery):
    names = [found.name for found in gallery.examples()]
    assert len(names) == len(set(names)) >= 12
    drawn = {
        path.stem for path in EXAMPLES.glob("*.py") if path.stem != "make_pictures" and '"--out"' in path.read_text()
    }
    assert set(names) == drawn
    for found in gallery.examples():
        picture = DOCS / "pages" / "pictures" / found.picture
        assert 2_000 < picture.stat().st_size <= LARGEST[picture.suffix], picture
        assert f"python docs/examples/{found.name}.py" in found.text
        assert found.lead.endswith(".")
        cells = found.notebook().cells
        assert [cell.cell_type for cell in cells[:2]] == ["markdown", "code"]
        assert "argparse" not in "".join(cell.source for cell in cells)


@cache
def tuned(backend: str):
    return example("hyperparameters").main(backend, quick=True)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_hyperparameters(backend, capsys):
    needs("sklearn", backend)
    figures = tuned(backend)
    assert len(figures) == 2
    for name, found in figures.items():
        first, last = found.path[0], found.path[-1]
        assert last.loss < 0.95 * first.loss
        assert abs(last.slope) < 0.1 * abs(first.slope)
        assert last.loss == pytest.approx(found.theirs, rel=1e-10)
        for step, same in zip(found.path, tuned("numpy")[name].path, strict=True):
            assert step == pytest.approx(same, rel=1e-8)


def test_hyperparameters_end(capsys):
    needs("sklearn")
    for found in example("hyperparameters").main("numpy").values():
        (*_, before, last) = found.path
        assert abs(last.slope) <= 1e-10
        # a slope of the right sign and size: the loss of the step before lies above by half the slope times the step
        away = math.log(before.penalty / last.penalty)
        assert before.loss - last.loss == pytest.approx(0.5 * before.slope * away, abs=1e-14)


def test_hyperparameters_picture(notebook):
    needs("sklearn")
    assert len(notebook("hyperparameters")) == 2


def test_deq_digits(notebook):
    needs("torch", "sklearn")
    figures = notebook("deq_digits")
    assert figures["with the block"].accuracy > 0.9
    assert figures["with the block"].accuracy > figures["without the block"].accuracy - 0.03


def test_energy_model(notebook):
    needs("jax", "equinox", "optax")
    figures = notebook("energy_model")
    assert figures.last < 0.05 * figures.first
    assert figures.held_out < 0.1 * figures.first
    assert figures.slope < 1e-5


def test_stiff(notebook):
    path = notebook("stiff")
    assert all(after[1] < before[1] for before, after in pairwise(path))
    assert path[-1][0] == pytest.approx(1.3, abs=2e-3)


def test_rectifier(notebook):
    needs("scipy")
    path = notebook("rectifier")
    assert path[-1][1] < 0.01 * path[0][1]
    np.testing.assert_allclose(path[-1][0], [1e-5, 1e3], rtol=0.15)


def test_kepler(notebook):
    assert notebook("kepler") < 1e-14


def test_convergence(notebook):
    found = notebook("convergence")
    counts = [found[name][0] for name in ("Newton", "LBFGS", "GradientDescent")]
    assert sorted(counts) == counts
    for _, slope in found.values():
        assert slope == pytest.approx(3.0, rel=1e-8)  # of u + v = t + t^2 at t = 1


def test_spectrum(notebook):
    needs("torch")
    found = notebook("spectrum")
    assert found["highest seen"] == pytest.approx(found["highest"], rel=1e-6)
    assert 0.99 * found["lowest"] < found["lowest seen"] < 2 * found["lowest"]


def test_gradient_error(notebook):
    errors, bounds = notebook("gradient_error")
    assert (errors[0] <= bounds).all()
    assert (errors[1:, :2] < 1e-2 * errors[0, :2]).all()
    assert errors[0, -1] < 1e-9 < 1e-3 < errors[0, 0]


def test_bad_problem(notebook):
    needs("torch")
    names, gradient = notebook("bad_problem")
    assert [row for row, name in enumerate(names) if name != "CONVERGED"] == [4]
    assert gradient.isnan().all(1).tolist() == [row == 4 for row in range(9)]
    assert gradient.isfinite().all(1).sum() == 8


def test_van_der_pol(notebook):
    assert notebook("van_der_pol") < 0.02


def test_bouncing_ball(notebook):
    assert notebook("bouncing_ball") < 1e-12


def test_tracking(notebook):
    assert notebook("tracking") < 1e-6


def test_swing_up(notebook):
    needs("PIL")
    x, slope = notebook("swing_up")
    assert x[-1, 0] == pytest.approx(np.pi, abs=0.2)
    assert x[:, 0].min() < -0.3  # it swings back first
    assert slope > 0


def test_decision_boundary(notebook):
    needs("torch")
    losses = notebook("decision_boundary")
    assert losses[-1] < 0.6 * losses[0]


def test_market(notebook):
    needs("jax")
    excess, response, predicted, solved = notebook("market")
    assert excess < 1e-6
    assert (np.diag(response) < 0).all()
    assert np.asarray(predicted) == pytest.approx(np.asarray(solved), abs=0.1 * float(abs(solved).max()))


def test_value_function(notebook):
    needs("jax")
    V, visits = notebook("value_function")
    assert visits.sum() == pytest.approx(1 / (1 - 0.97), rel=1e-3)
    assert visits.min() >= -1e-6 * float(visits.max())
    assert np.isfinite(V).all()


def test_cluster(notebook):
    needs("torch")
    _, arrows, error = notebook("cluster")
    assert error < 1e-5
    assert arrows[1, 0] > 0.3  # a neighbour of the atom that swells


def test_titration(notebook):
    needs("scipy")
    added, pH, slope = notebook("titration")
    assert (np.diff(pH) > 0).all()
    quotient = np.gradient(pH, added)
    assert np.median(np.abs(slope - quotient) / quotient) < 0.05  # coarse only where the pH jumps
    assert min(abs(added[np.argmax(slope)] - end) for end in (20.0, 40.0)) < 1.5


def test_training_log(notebook, tmp_path):
    needs("torch")
    writer = notebook("training_log")
    tags = ("forward/iterations", "forward/failed", "backward/condition", "backward/bound", "backward/failed", "loss")
    assert {len(writer.values(tag)) for tag in tags} == {8}
    assert not any(writer.values("forward/failed"))
    assert writer.values("loss")[-1] < writer.values("loss")[0]
    assert (tmp_path / "training_log.csv").read_text().startswith("tag,step,value\nloss,0,")


@cache
def reactor(backend: str):
    return example("reactor").main(backend, quick=True)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_reactor(backend, capsys):
    needs("scipy", backend)
    error, gradient = reactor(backend)
    assert error < 1e-12
    assert np.asarray(gradient) == pytest.approx(np.asarray(reactor("numpy")[1]), rel=1e-10)


def test_reactor_picture(notebook):
    needs("scipy")
    assert notebook("reactor")[0] < 1e-12


def slope_by_hand(plate, module):
    """Return d misfit / d log conductivity at zero by the adjoint, from a matrix that is put together cell by cell."""
    import scipy.sparse as sparse
    from scipy.sparse.linalg import splu

    n = plate.rim.shape[0]
    cell = np.arange(n * n).reshape(n, n)
    here = np.concatenate([cell[:, :-1].ravel(), cell[:-1].ravel()])
    there = np.concatenate([cell[:, 1:].ravel(), cell[1:].ravel()])
    faces = np.arange(here.size)
    jump = sparse.csr_array((np.ones(here.size), (faces, here)), (here.size, n * n))
    jump = jump - sparse.csr_array((np.ones(here.size), (faces, there)), (here.size, n * n))
    factor = splu(sparse.csc_array(jump.T @ jump + sparse.diags_array(module.LOSS * plate.rim.ravel())))
    slope = np.zeros(n * n)
    for heating, measured in zip(plate.heating, plate.measured, strict=True):
        u = factor.solve(heating.ravel())
        rim = module.on_rim(u.reshape(1, n, n))[0]
        v = np.zeros(n * n)
        places = module.on_rim(cell[None])[0]
        np.add.at(v, places, 2.0 * (rim - measured) / plate.noise**2 / plate.measured.size)
        g = factor.solve(v)
        of_faces = -(jump @ g) * (jump @ u)  # the mean of two equal conductivities changes by half of each
        slope += 0.5 * (np.bincount(here, of_faces, n * n) + np.bincount(there, of_faces, n * n))
    return slope


def test_plate(notebook):
    needs("scipy")
    found = notebook("plate")
    assert found.misfit < 10
    assert found.error < 0.8


@pytest.mark.parametrize("backend", ["numpy", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_the_gradient_of_the_plate_is_that_of_the_adjoint(backend):
    needs("scipy", backend)
    module = example("plate")
    plate = module.hidden_plate(8)
    _, slope = module.objective(plate, 0.0, backend)(np.zeros(64))
    assert 2.0 * slope == pytest.approx(slope_by_hand(plate, module), rel=1e-9, abs=1e-11 * float(abs(slope).max()))
