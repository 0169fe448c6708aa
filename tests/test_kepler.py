"""Kepler's equation as a layer: closed forms, every M and e, and the learning of e with its picture."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import cache

import numpy as np
import pytest

import dil
from dil import kepler
from dil._cli.demos import kepler as demo

REASON = "{} is not installed"


@pytest.fixture(params=["numpy", "torch", "jax"])
def handle(request) -> dil.BackendHandle:
    pytest.importorskip(request.param, reason=REASON.format(request.param))
    return dil.backend(request.param, dtype="float64")


@pytest.fixture(params=["numpy", "torch"])
def eager(request) -> dil.BackendHandle:
    """For what is the same array code everywhere: JAX compiles it anew for each test."""
    pytest.importorskip(request.param, reason=REASON.format(request.param))
    return dil.backend(request.param, dtype="float64")


def residual_of(E, M, e):
    return E - e * np.sin(E) - M


def layer_and_slopes(handle, M, e):
    """Return E, dE/dM and dE/de by the layer."""

    def both(M, e):
        E, pull = dil.vjp(kepler.eccentric_anomaly, M, e)
        return E, *pull(handle.xp.ones_like(E))

    return demo.compiled(handle, both)(handle.asarray(M), handle.asarray(e))


# --- the layer ---


def test_closed_form(handle):
    E, *slopes = layer_and_slopes(handle, 1.0, 0.3)
    dE_dM, dE_de = map(float, slopes)
    assert float(E) == pytest.approx(1.2880913132, abs=1e-9)
    assert dE_de == pytest.approx(1.0480083050, abs=1e-9)
    assert dE_dM == pytest.approx(1.0913293012, abs=1e-9)
    assert float(kepler.dE_de(E, 0.3)) == pytest.approx(dE_de, rel=1e-13)
    assert float(kepler.dE_dM(E, 0.3)) == pytest.approx(dE_dM, rel=1e-13)


def test_every_mean_anomaly_and_eccentricity(handle):
    e = np.concatenate([np.linspace(0.0, 0.99, 34), 1 - 10.0 ** -np.arange(3.0, 16.0)])
    M = np.concatenate([np.linspace(0.0, 2 * math.pi, 41), [1e-12, 1e-6, math.pi, -1.0, 20.0, -1e3]])[:, None]
    solution = kepler.solver(kepler.score, None, handle.asarray(M), handle.asarray(e))
    E = handle.to_numpy(solution.value)
    assert not handle.to_numpy(solution.status).any()
    assert handle.to_numpy(solution.iterations).max() <= 6
    assert np.all(np.abs(residual_of(E, M, e)) <= 1e-15 * np.maximum(4.0, 4 * np.abs(M)))
    assert np.all(np.abs(E - M) <= e * (1 + 1e-12) + 1e-15)


def test_gradients_on_a_grid(handle):
    M, e = (a.reshape(-1) for a in np.meshgrid(np.linspace(0.0, 2 * math.pi, 21), np.linspace(0.0, 0.99, 12)))

    E, dE_dM, dE_de = map(handle.to_numpy, layer_and_slopes(handle, M, e))
    np.testing.assert_allclose(dE_dM, 1 / (1 - e * np.cos(E)), rtol=1e-12)
    np.testing.assert_allclose(dE_de, np.sin(E) / (1 - e * np.cos(E)), rtol=1e-12, atol=1e-14)


def test_shapes_broadcast_and_floats_are_welcome(eager):
    table = kepler.eccentric_anomaly(eager.asarray([[0.5], [1.0]]), eager.asarray([0.1, 0.2, 0.3]))
    assert table.shape == (2, 3)
    assert float(table[1, 2]) == pytest.approx(1.2880913132, abs=1e-9)
    assert float(kepler.eccentric_anomaly(1.0, eager.asarray(0.3))) == pytest.approx(1.2880913132, abs=1e-9)
    assert float(kepler.eccentric_anomaly(eager.asarray(1.0), 0.3)) == pytest.approx(1.2880913132, abs=1e-9)


def test_numbers_alone_are_arrays_of_numpy():
    found = kepler.eccentric_anomaly(1.0, 0.3)
    np.testing.assert_array_equal(found, kepler.eccentric_anomaly(np.asarray(1.0), np.asarray(0.3)))
    assert abs(found - 0.3 * np.sin(found) - 1.0) < 1e-14


def test_what_is_out_of_range_is_nan_and_leaves_the_others_alone(handle):
    e = handle.asarray([0.3, 1.0, -0.1, 0.3])
    M = handle.asarray([1.0, 1.0, 1.0, math.inf])
    with pytest.warns(dil.ConvergenceWarning, match="3 of 4 problems"):
        E = handle.to_numpy(kepler.eccentric_anomaly(M, e))
    assert E[0] == pytest.approx(1.2880913132, abs=1e-9)
    assert np.isnan(E[1:]).all()


def test_float32_stays_float32(eager):
    single = dil.backend(eager.name, dtype="float32")
    E = kepler.eccentric_anomaly(single.asarray([1.0, 3.0]), single.asarray([0.3, 0.9]))
    assert single.to_numpy(E).dtype == np.float32
    assert np.abs(residual_of(single.to_numpy(E), [1.0, 3.0], [0.3, 0.9])).max() < 1e-6


# --- the learning ---


@cache
def learned_on(backend):
    return demo.learn(dil.backend(backend, dtype="float64"))


@pytest.fixture
def learned():
    """What NumPy learns."""
    return learned_on("numpy")


def test_the_target_is_reached(learned):
    assert learned.converged
    assert learned.path[-1].e == pytest.approx(0.7, abs=1e-9)
    assert learned.distance <= 1e-9
    errors = {c.name: c.relative_error for c in learned.checks}
    assert errors["dE/de"] < 1e-14
    assert errors["dE/dM"] < 1e-14
    assert max(step.relative_difference for step in learned.path) < 1e-13


def test_the_path_is_the_same_on_every_backend(handle, learned):
    found = numbers(demo.record(learned_on(handle.name)))
    expected = numbers(demo.record(learned))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def numbers(record, path=""):
    """Return the numbers of a record by their place in it."""
    if isinstance(record, bool | str):
        return {}
    if isinstance(record, int | float):
        return {path: record}
    items = record.items() if isinstance(record, dict) else enumerate(record)
    return {k: v for key, part in items for k, v in numbers(part, f"{path}/{key}").items()}


@pytest.mark.parametrize("mean_anomaly", [0.05, 3.0, 4.0, -1.0, 7.0])
@pytest.mark.parametrize(("start", "wanted"), [(0.0, 0.95), (0.99, 0.0), (0.5, 0.51)])
def test_other_orbits_are_learned_too(mean_anomaly, start, wanted):
    handle = dil.backend("numpy", dtype="float64")
    target = float(kepler.eccentric_anomaly(mean_anomaly, handle.asarray(wanted)))
    learned = demo.learn(handle, mean_anomaly=mean_anomaly, target=target, start=start)
    assert learned.converged
    assert all(0 <= step.e < 1 for step in learned.path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": 3.0}, "no eccentricity in"),
        ({"target": 0.9}, "no eccentricity in"),
        ({"target": math.nan}, "no eccentricity in"),
        ({"start": 1.0}, "start=1.0; expected an eccentricity"),
        ({"steps": 0}, "steps=0; expected at least 1"),
        ({"mean_anomaly": 0.0}, "no multiple of pi"),
        ({"mean_anomaly": math.inf}, "no multiple of pi"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(dil.OptionError, match=match):
        demo.learn(dil.backend("numpy", dtype="float64"), **options)


# --- the picture ---

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason=REASON.format("matplotlib")
)


def picture(handle):
    from dil._cli.demos import kepler_figure

    learned = learned_on(handle.name)
    land = kepler_figure.survey(handle, learned)
    canvas = kepler_figure.draw(learned, land).canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).astype(float), land, learned


@pytest.fixture(scope="module")
def numpy_picture():
    return picture(dil.backend("numpy", dtype="float64"))


@needs_matplotlib
def test_the_picture_is_the_same_on_every_backend(handle, numpy_picture):
    if handle.name == "numpy":
        pytest.skip("NumPy's picture is the one that the others are held against")
    pixels, land, _ = picture(handle)
    expected, of_numpy, _ = numpy_picture
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 0.01
    np.testing.assert_allclose(land.score, of_numpy.score, atol=1e-14)
    np.testing.assert_allclose(land.gradient, of_numpy.gradient, rtol=1e-9, atol=1e-12)


@needs_matplotlib
def test_the_field_off_the_line_is_the_theorem_at_those_points(numpy_picture):
    _, land, learned = numpy_picture
    e, E = land.at_e, land.at_E
    r, slope = residual_of(E, learned.mean_anomaly, e), 1 - e * np.cos(E)
    hessian = slope**2 + r * e * np.sin(E)
    mixed = -np.sin(E) * slope - r * np.cos(E)
    expected = np.where(hessian > 0, -mixed / hessian, np.nan)
    np.testing.assert_allclose(land.slope, expected, rtol=1e-10)
    np.testing.assert_allclose(land.gradient, (E - learned.target) * expected, rtol=1e-10)
    assert 0 < np.isnan(expected).sum() < 0.2 * expected.size


@needs_matplotlib
def test_the_picture_shows_both_the_field_and_the_path(numpy_picture):
    pixels, _, _ = numpy_picture
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)):
        assert np.all(np.abs(pixels[..., :3] - colour) < 8, axis=-1).sum() > 300


@needs_matplotlib
def test_a_saved_picture_does_not_depend_on_the_settings_of_the_user(tmp_path, numpy_picture):
    import matplotlib as mpl

    from dil._cli.demos import kepler_figure

    _, land, learned = numpy_picture
    kepler_figure.save(kepler_figure.draw(learned, land), tmp_path / "a.png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "hatch.linewidth": 5}):
        kepler_figure.save(kepler_figure.draw(learned, land), tmp_path / "b.png")
        assert mpl.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_record_is_json(learned):
    record = json.loads(json.dumps(demo.record(learned), allow_nan=False))
    assert record["target"]["e"] == pytest.approx(0.7, abs=1e-12)
    assert record["path"][0]["e"] == 0.1
    assert set(record["check"]) == {"dE/de", "dE/dM", "e"}
