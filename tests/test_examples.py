"""The examples run, and come to what they say."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@cache
def example(name: str):
    """Import an example by its path."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


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


def test_deq_digits(capsys):
    needs("torch", "sklearn")
    figures = example("deq_digits").main(quick=True)
    assert figures["with the block"].accuracy > 0.9
    assert figures["with the block"].accuracy > figures["without the block"].accuracy - 0.03


def test_energy_model(capsys):
    needs("jax", "equinox", "optax")
    figures = example("energy_model").main(quick=True)
    assert figures.last < 0.05 * figures.first
    assert figures.held_out < 0.1 * figures.first
    assert figures.slope < 1e-5


def test_stiff(capsys, tmp_path):
    needs("matplotlib")
    path = example("stiff").main(quick=True, out=tmp_path)
    assert all(after[1] < before[1] for before, after in zip(path, path[1:], strict=False))
    assert path[-1][0] == pytest.approx(1.3, abs=2e-3)
    assert (tmp_path / "ode.png").stat().st_size > 10_000
