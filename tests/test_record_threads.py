"""A solve reports to the records that were open where its forward call was made, whatever runs beside it."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from array_api_compat import array_namespace

import dil
from dil._diagnostics import record as _record
from dil._diagnostics.failure_policy import Policy
from dil._frameworks.registry import load

X = np.array([1.0, 1.5, 2.0])
TIMEOUT = 20


def score(u, x):
    xp = array_namespace(u)
    return xp.sum(xp.exp(u) - x * u)


def layer_named(name):
    def named(u, x):
        return score(u, x)

    named.__name__ = name
    return dil.argmin(named, dil.solvers.Newton(), init=lambda x: 0.0 * x)


def stages(record):
    return [(entry.layer.split("'")[1], entry.stage) for entry in record.entries]


def in_threads(*works):
    """Run functions in threads of their own, and return what they return."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(TIMEOUT) for future in [pool.submit(work) for work in works]]


@pytest.fixture(params=["numpy", "torch"])
def x(request):
    """An array of a framework whose operations run at once. JAX, which compiles for long, has its own test."""
    if request.param == "torch":
        return pytest.importorskip("torch", reason="torch is not installed").tensor(X)
    return X


def gradient(layer, x):
    dil.vjp(layer, x)[1](array_namespace(x).ones_like(x))


def test_two_threads_that_record_at_once(x):
    together = threading.Barrier(2, timeout=TIMEOUT)

    def work(name):
        layer = layer_named(name)
        with dil.record() as record:
            together.wait()  # both are open
            gradient(layer, x)
            together.wait()  # both are open still
        return stages(record)

    found = in_threads(lambda: work("a"), lambda: work("b"))
    assert found == [[(name, "forward"), (name, "backward")] for name in "ab"]


def test_a_thread_beside_a_record_is_not_recorded(x):
    with dil.record() as record:
        in_threads(lambda: gradient(layer_named("other"), x))
        layer_named("own")(x)
    assert stages(record) == [("own", "forward")]


def test_a_backward_pass_in_another_thread_reports_to_the_record_of_its_forward_call():
    layer = layer_named("f")
    with dil.record() as record:
        _, pull = dil.vjp(layer, X)

        def backward():
            with dil.record() as own:
                pull(np.ones(3))
            return stages(own)

        assert in_threads(backward) == [[("f", "backward")]]  # what runs inside a record is in it, too
        assert stages(record) == [("f", "forward"), ("f", "backward")]
    in_threads(lambda: pull(np.ones(3)))
    assert len(record.entries) == 2  # it is closed


@pytest.mark.parametrize("make", ["argmin", "value"])
def test_torch_runs_a_backward_pass_in_another_thread(make):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor(X, requires_grad=True)
    layers = {
        "argmin": layer_named("f"),
        "value": dil.value(score, dil.solvers.Newton(), init=lambda x: 0.0 * x),
    }

    def recorded(run):
        with dil.record() as record:
            y = layers[make](x).sum()
            forward = len(record.entries)
            run(lambda: torch.autograd.grad(y, x))
        return forward, stages(record)

    forward, here = recorded(lambda work: work())
    assert len(here) > forward > 0
    assert recorded(in_threads) == (forward, here)


def test_torch_backward_passes_of_two_forward_calls_cross_over():
    """Each backward pass runs in the other's thread, while both records are open."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    together, losses = threading.Barrier(2, timeout=TIMEOUT), {}

    def work(name, other):
        x = torch.tensor(X, requires_grad=True)
        with dil.record() as record:
            losses[name] = layer_named(name)(x).sum()
            together.wait()
            contextvars.Context().run(losses[other].backward)  # as a thread of torch's own, which knows no record
            together.wait()
        return stages(record)

    found = in_threads(lambda: work("a", "b"), lambda: work("b", "a"))
    assert found == [[(name, "forward"), (name, "backward")] for name in "ab"]


def test_tasks_of_asyncio(x):
    async def work(name, mine, other):
        with dil.record() as record:
            mine.set()
            await other.wait()  # both are open
            await asyncio.to_thread(gradient, layer_named(name), x)
        return stages(record)

    async def both():
        a, b = asyncio.Event(), asyncio.Event()
        with dil.record() as around:
            found = await asyncio.gather(work("a", a, b), work("b", b, a))
        return found, around

    found, around = asyncio.run(both())
    assert found == [[(name, "forward"), (name, "backward")] for name in "ab"]
    assert sorted(stages(around)) == sorted(found[0] + found[1])
    assert not _record.recording()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_records_of_one_thread_close_in_any_order(order):
    """As those of two tasks of asyncio do: JAX compiles for a record until the last one is closed."""
    pytest.importorskip("jax", reason="JAX is not installed")
    load("jax")
    from dil_backends.jax.reports import RECORDING

    records, last = [dil.record(), dil.record()], order[1]
    for record in records:
        record.__enter__()
    records[order[0]].__exit__()
    assert RECORDING.value
    records[last].__exit__()
    assert not RECORDING.value


def test_reports_of_two_threads_on_jax():
    """Of arrays whose values are there, the report is made at once, in the thread of the solve."""
    status = pytest.importorskip("jax.numpy", reason="JAX is not installed").asarray(0)
    together = threading.Barrier(2, timeout=TIMEOUT)

    def work(name):
        with dil.record() as record:
            together.wait()
            _record.add_entry(load("jax"), Policy("ignore", name), "forward", {"status": status})
            together.wait()
        return [entry.layer for entry in record.entries]

    assert in_threads(lambda: work("a"), lambda: work("b")) == [["a"], ["b"]]


def test_a_report_from_a_thread_of_a_framework_reaches_all_open_records():
    """A compiled program of JAX reports from a thread in which no record was opened."""
    report = partial(_record._listen, Policy("ignore", "f"), "forward", ("status",), np.asarray(0))
    with dil.record() as first, dil.record() as second:
        contextvars.Context().run(report)
    assert len(first.entries) == len(second.entries) == 1


def test_a_context_hands_the_record_to_a_thread():
    layer = layer_named("f")
    with dil.record() as record:
        inherited = contextvars.copy_context()
        in_threads(lambda: inherited.run(layer, X))
    inherited.run(layer, X)  # the record is closed
    assert stages(record) == [("f", "forward")]


def test_an_adjoint_in_another_thread():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from dil.ode import odeint

    y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)

    def recorded(run):
        with dil.record() as record:
            y = odeint(lambda t, y: -y, y0, t, method="implicit_midpoint")
            run(lambda: torch.autograd.grad(y.sum(), y0))
        return stages(record)

    assert recorded(in_threads) == recorded(lambda work: work())
