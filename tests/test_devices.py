"""The scripts of docs/examples for many devices: their gradients agree with those of one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = r"\d\.\de[+-]\d\d"


def printed(name: str) -> str:
    """Return what a script prints; it must end well and warn of nothing."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("warn|rematerialization", done.stderr, re.IGNORECASE), done.stderr
    assert "DIFFER" not in done.stdout
    return done.stdout


@pytest.fixture
def gloo():
    """Skip where two processes cannot talk."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch is built without torch.distributed or gloo")


def small(found: list[str]) -> bool:
    """Whether each difference is within what the page promises."""
    return all(float(x) <= 1e-10 for x in found)


@pytest.mark.slow
def test_ddp(gloo):
    differences = re.findall(rf"^\S+ +{NUMBER} +({NUMBER}) agrees$", printed("ddp.py"), re.MULTILINE)
    assert len(differences) == 7
    assert small(differences)


@pytest.mark.slow
def test_fsdp(gloo):
    text = printed("fsdp.py")
    differences = re.findall(rf"gradients differ by ({NUMBER}), agree", text)
    assert len(differences) == 3
    assert small(differences)
    newton, descent = re.findall(r"model\.layer\) too, .*\n.*; (.*)", text)
    assert newton == descent  # whatever the solver does between
    assert "mix.weight, mix.bias came as shards" in text


@pytest.mark.slow
def test_dtensor(gloo):
    text = printed("dtensor.py")
    differences = re.findall(rf"differs by ({NUMBER}), agrees", text)
    assert len(differences) == 6
    assert small(differences)
    assert text.count("256 of 512 numbers here") == 4  # y and the gradient in x


@pytest.mark.slow
def test_sharding():
    pytest.importorskip("jax", reason="jax is not installed")
    text = printed("sharding.py")
    differences = re.findall(rf"differs by ({NUMBER}), agrees; on 8 devices", text)
    assert len(differences) == 4
    assert small(differences)
    batch, chain, rolled = re.findall(r"iteration of the backward CG sends (.*)", text)
    assert "pred[]" in batch
    assert "f64" not in batch
    assert "2 x all-reduce of f64[]" in chain
    assert "f64[512]" not in chain
    assert "f64[512]" in rolled
