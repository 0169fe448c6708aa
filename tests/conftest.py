"""The engine fixture, and what is fixed for every run."""

from __future__ import annotations

import gc
import importlib.util
import os

import pytest
from hypothesis import Phase, settings

import environment
from engines import Engine, engines
from skipped_summary import write_skipped
from transforms_table import Table

# no shrinking: every case is small already, and shrinking one that compiles takes minutes
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, phases=PHASES)
settings.register_profile("local", deadline=None, phases=PHASES)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser):
    parser.addoption(
        "--transforms-table", metavar="PATH", help="write the table of transforms, from the tests that run"
    )


def pytest_configure(config):
    if config.getoption("numprocesses", None):
        environment.set_threads()
    if config.getoption("--transforms-table"):
        config.pluginmanager.register(Table(config.getoption("--transforms-table")))


def pytest_terminal_summary(terminalreporter):
    write_skipped(terminalreporter)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave to the slow tests what another engine runs in the same way: see `COVERED`."""
    known = {item.nodeid for item in items}
    for item in items:
        names = (item.nodeid.replace(f"[{a}{end}", f"[{b}{end}") for a, b in COVERED for end in "]-")
        covered = any(name != item.nodeid and name in known for name in names)
        if covered or any(part in item.nodeid for part in LONG):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def young_heap():
    """Let the garbage collector pass over what earlier modules left: programs of JAX are millions of objects."""
    gc.collect()
    gc.freeze()


COVERED = (("jax", "jax:jit"), ("array_api_strict", "strict:device"))
"""Engines, each with one that does all that it does: JAX compiles the same anew without `jit`, and the strict arrays on
their second device also refuse to leave it."""
LONG = (
    "test_a_layer_in_the_score_of_a_layer[jax]",
    "test_a_failed_check_says_why[jax-kink]",
    "test_units_of_a_gradient[jax-argmin]",
    "test_pushforward_of_the_theorem[jax]",
    "test_second_derivatives[jax-kepler]",
    "test_complex.py::test_second_order[jax",
    "test_newton_ends_where_forces_cancel[jax-shifted",
    "test_newton_ends_where_forces_cancel[jax-small hexagon",
    "test_newton_ends_where_forces_cancel[jax-hexagon",
    "test_data_of_numpy_beside_parameters_of_jax",
    "test_derivatives_by_dil_at_arrays_of_numpy_alone",
    "test_one_problem_is_solved_as_a_batch_of_one[jax-1.0]",
    "test_complex.py::test_second_order[strict:device",
    "test_sixteen_bits[argmin-jax-bfloat16]",
    "test_parameters_of_a_module_that_are_narrower_than_the_data[LBFGS]",
    "test_gradients_of_rows[refine]",
    "test_gradients_of_rows[LBFGS]",
    "test_nothing_grows_from_pass_to_pass[strict:device]",
    "test_scipy_on_jax_without_jit",
    "test_shards_share_parameters_and_each_has_its_data",
    "test_jax.py::test_check_grads_second_order",
    "test_nothing_is_promoted",
    "test_an_argument_without_a_hash_does_not_make_a_gradient_late",
    "test_few_unknowns_with_heavy_products_take_few_products[jax-True]",
    "test_newton_ends_where_forces_cancel[jax-triangle",
    "test_gpu_without_a_gpu",
)
"""Tests that take long, mostly because JAX compiles. Others show the same on JAX, or these do on another backend."""


@pytest.fixture(scope="session", params=engines(), ids=lambda e: e.name)
def engine(request) -> Engine:
    """Every backend and variant; one that cannot run here is skipped with its reason."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


@pytest.fixture(scope="session", params=[e for e in engines() if e.plain], ids=lambda e: e.name)
def plain(request) -> Engine:
    """Every backend and device, by dil's own transforms."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


@pytest.fixture(params=[e for e in engines() if ":" not in e.name and e.name != "jax"], ids=lambda e: e.name)
def eager(request):
    """Every backend that does not compile, so that tables of cases may be long."""
    if request.param.reason is not None:
        pytest.skip(request.param.reason)
    return request.param


@pytest.fixture(params=["numpy", "strict"])
def xp(request):
    """A raw namespace; array_api_strict allows what the standard promises and nothing else."""
    if request.param == "numpy":
        import array_api_compat.numpy

        yield array_api_compat.numpy
        return
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    before = strict.get_array_api_strict_flags()
    strict.set_array_api_strict_flags(api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False)
    yield strict
    strict.set_array_api_strict_flags(**before)


@pytest.fixture(autouse=True, scope="session")
def strictest():
    """Switch array_api_strict to its strictest flags."""
    if importlib.util.find_spec("array_api_strict") is None:  # the tests of other backends run without it
        yield
        return
    import array_api_strict as strict

    strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)
    yield
    strict.reset_array_api_strict_flags()
