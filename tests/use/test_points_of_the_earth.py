"""Longitude and latitude, transforms, noise that is found, holding out: all by the closed form."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.use import globe, holdout, values
from sparsefield.use.grids import Frame, what_is_asked
from sparsefield.use.holdout import Forecast, verdict
from sparsefield.use.points import Measurements, clean

EXTENT = (0, 40, -60, 60)


def wave(lonlat: np.ndarray) -> np.ndarray:
    """A smooth function of places on a sphere."""
    x, y, z = globe.on_sphere(lonlat).T
    return 10 + 5 * x * z + 3 * y


def places(count: int, west: float, east: float, south=-60.0, north=60.0, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(west, east, count), rng.uniform(south, north, count)], axis=1)


# --- the globe ------------------------------------------------------------------------------------


def test_the_180th_meridian_is_no_border():
    """The same region here and across the border, and in both ways of writing longitudes."""
    here = places(80, 20, 60)
    values = wave(here)
    model = load("none")
    fields = []
    for shift in (0, 140, 140 + 360):
        coords = here + (shift, 0)
        coords[:, 0] = (coords[:, 0] + 180) % 360 - 180
        fields.append(model.reconstruct(coords, values, 12, num_samples=3, lonlat=True))
    for field in fields[1:]:
        np.testing.assert_allclose(field.mean, fields[0].mean, atol=2e-3)
        np.testing.assert_allclose(field.samples, fields[0].samples, atol=2e-2)
    assert fields[1].coords[..., 0].min() > 159 and fields[1].coords[..., 0].max() < 201


def test_a_whole_globe_has_no_seam():
    where = places(400, -180, 180, -90, 90)
    field = load("none").reconstruct(where, wave(where), (12, 72), num_samples=2, lonlat=True,
                                     extent=(-180, 180, -90, 90))
    across = np.abs(field.mean[:, 0] - field.mean[:, -1])
    beside = np.abs(np.diff(field.mean, axis=1))
    assert across.mean() < 2 * beside.mean()
    assert np.abs(field.mean[..., 0] - wave(field.coords.reshape(-1, 2)).reshape(12, 72)
                  ).mean() < 0.3


def test_at_a_pole_all_longitudes_are_one_place():
    coords = np.array([[0.0, 90.0], [120.0, 90.0], [30.0, 60.0], [150.0, 60.0], [-90.0, 60.0]])
    field = load("none").reconstruct(coords, [5.0, 7.0, 1.0, 2.0, 3.0], 8, num_samples=2,
                                     lonlat=True)
    assert np.isfinite(field.samples).all()
    pole = load("none").at([[77.0, 90.0]], coords, [5.0, 7.0, 1.0, 2.0, 3.0], num_samples=2,
                           lonlat=True)
    assert pole.mean.item() == pytest.approx(6, abs=0.05)


@pytest.mark.parametrize("lon, middle, wanted", [
    ([179, -179], None, [179, 181]), ([10, 350], None, [10, -10]), ([0, 5], None, [0, 5]),
    ([190, 200], None, [-170, -160]), ([-170, 170], 180.0, [190, 170]),
    ([370.0], None, [10]),
])
def test_longitudes_are_turned_to_where_they_are_together(lon, middle, wanted):
    turned = globe.around(np.array(lon, float), middle)
    assert np.allclose(np.sort(turned), np.sort(wanted))


def test_no_field_ends_beyond_a_pole():
    coords = np.array([[0.0, 88.0], [120.0, 88.0], [-120.0, 88.0]])
    field = load("none").reconstruct(coords, [1.0, 2.0, 3.0], 8, num_samples=2, lonlat=True)
    assert 60 < field.coords[..., 1].max() < 90
    given = clean("a.csv", Measurements(coords, np.ones((3, 1))), None, lonlat=True)
    assert what_is_asked(given, lonlat=True)[1].extent[3] == 90


def test_chords_are_as_long_as_the_surface_nearby():
    extent = (0.0, 10.0, 45.0, 52.0)
    a, b = np.array([[5.0, 48.0]]), np.array([[5.0, 48.7]])
    apart = (globe.to_space(a, extent) - globe.to_space(b, extent)).norm()
    assert float(apart) == pytest.approx(0.1, rel=1e-3)


# --- transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", values.TRANSFORMS)
def test_results_come_back_in_their_units_and_never_below_0(name):
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(60, 2))
    values = np.exp(2 * np.sin(5 * coords[:, 0]) + rng.normal(size=60))
    field = load("none").reconstruct(coords, values, 16, num_samples=12, transform=name)
    assert field.samples.min() >= 0
    np.testing.assert_allclose(field.mean, field.samples.mean(axis=0))
    kept = load("none").at(coords, coords, values, num_samples=4, transform=name)
    np.testing.assert_allclose(kept.mean[:, 0], values, rtol=1e-3, atol=1e-3)


def test_noise_of_transformed_values_is_that_of_their_slope():
    measured, noise = np.array([100.0, 4.0]), np.array([1.0, 0.5])
    assert np.allclose(values.transformed_noise("log", noise, measured), [0.01, 0.125])
    assert np.allclose(values.transformed_noise("sqrt", noise, measured), [0.05, 0.125])


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sd", [0.0, 0.3, 1.0])
def test_noise_is_found(sd, caplog):
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(250, 2))
    values = 3 * np.sin(4 * coords[:, 0]) * np.cos(3 * coords[:, 1]) + sd * rng.normal(size=250)
    with caplog.at_level("INFO", logger="sparsefield"):
        load("none").reconstruct(coords, values, 4, num_samples=2, noise_sd="auto")
    found = float(caplog.text.split("sd ")[-1].split()[0])
    assert found == pytest.approx(sd, rel=0.35, abs=0.1)


def test_noise_that_is_found_makes_intervals_of_measurements_honest():
    rng = np.random.default_rng(1)
    coords = rng.uniform(size=(300, 2))
    values = np.sin(4 * coords.sum(axis=1)) + 0.4 * rng.normal(size=300)
    given = Measurements(coords, values[:, None])
    kept, hidden = holdout.split(given, 0.3, 0)
    seen = Frame.of(given, EXTENT), EXTENT
    exact, found = (holdout.by_model(load("none"), *seen, find_noise=f) for f in (False, True))
    scores = holdout.compare({"exact": exact, "found": found}, kept, hidden)
    assert scores[1].rmse < scores[0].rmse and scores[1].crps < scores[0].crps
    assert 0.82 < scores[1].covered < 0.97


# --- holding out ----------------------------------------------------------------------------------


def test_a_share_of_the_places_is_hidden_with_all_that_was_measured_there():
    coords = np.random.default_rng(0).uniform(size=(50, 2)).repeat(2, axis=0)
    given = Measurements(coords, np.arange(100.0)[:, None], noise=np.ones(100))
    kept, hidden = holdout.split(given, 0.2, 3)
    assert len(hidden.coords) == 20 and len(kept.coords) == 80 == len(kept.noise)
    assert not {tuple(c) for c in kept.coords} & {tuple(c) for c in hidden.coords}
    again = holdout.split(given, 0.2, 3)[1]
    np.testing.assert_array_equal(hidden.values, again.values)
    assert (hidden.values != holdout.split(given, 0.2, 4)[1].values).any()


@pytest.mark.parametrize("share", [0, 1, float("nan"), 0.01, 0.99])
def test_shares_that_are_none(share):
    given = Measurements(np.random.default_rng(0).uniform(size=(20, 2)), np.zeros((20, 1)))
    with pytest.raises(UserError, match="holdout"):
        holdout.split(given, share, 0)


def test_scores_of_a_gaussian_are_those_of_its_samples():
    rng = np.random.default_rng(0)
    mean, sd, truth = rng.normal(size=(3, 400, 1))
    sd = np.abs(sd) + 0.1
    hidden = Measurements(np.zeros((400, 2)), truth)
    samples = mean + sd * rng.normal(size=(999, 400, 1))
    scores = holdout.compare({"closed": lambda *_: Forecast(mean, sd=sd),
                              "drawn": lambda *_: Forecast(mean, samples)}, None, hidden)
    assert scores[0].crps == pytest.approx(scores[1].crps, rel=0.02)
    assert scores[0].covered == pytest.approx(scores[1].covered, abs=0.01)
    assert scores[0].rmse == scores[1].rmse


def test_a_method_that_fails_is_named_and_left_out(caplog):
    def broken(*_):
        raise np.linalg.LinAlgError("singular")

    hidden = Measurements(np.zeros((3, 2)), np.ones((3, 1)))
    with caplog.at_level("INFO", logger="sparsefield"):
        assert holdout.compare({"broken": broken}, None, hidden) == []
    assert "broken: no answer (singular)" in caplog.text


def test_values_that_are_all_alike_need_no_verdict(recwarn):
    given = Measurements(places(20, 0, 40), np.full((20, 1), 3.0))
    kept, hidden = holdout.split(given, 0.2, 0)
    frame = Frame.of(given, EXTENT, "equal")
    scores = holdout.compare({"this": holdout.constant, "linear": holdout.linear(frame)}, kept,
                             hidden)
    assert "predicts all of it exactly" in verdict(scores) and not recwarn.list


class NoVariogram:
    """What PyKrige gives where its variogram could not be fitted: warnings and NaN."""

    def __init__(self, *places, **settings):
        self.count = len(places[0])

    def execute(self, style, x, y):
        nothing = np.zeros(len(x)) / np.zeros(1)
        return nothing, nothing


def test_pykrige_without_a_variogram_is_left_out(monkeypatch, caplog, recwarn):
    monkeypatch.setitem(sys.modules, "pykrige", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pykrige.ok", SimpleNamespace(OrdinaryKriging=NoVariogram))
    given = Measurements(places(20, 0, 40), np.arange(20.0)[:, None])
    method = holdout.pykrige(Frame.of(given, EXTENT, "equal"))
    with caplog.at_level("INFO", logger="sparsefield"):
        assert holdout.compare({"PyKrige": method}, *holdout.split(given, 0.2, 0)) == []
    assert "PyKrige: no answer (its variogram could not be fitted)" in caplog.text
    assert not recwarn.list


@pytest.mark.parametrize("lonlat", [False, True])
def test_all_methods_predict_a_smooth_field(lonlat):
    where = places(150, 0, 40, 30, 60)
    given = Measurements(where, wave(where)[:, None])
    frame = Frame.of(given, EXTENT, lonlat=lonlat)
    kept, hidden = holdout.split(given, 0.2, 0)
    methods = {"constant": holdout.constant, "linear": holdout.linear(frame)}
    if holdout.pykrige(frame):
        methods["PyKrige"] = holdout.pykrige(frame)
    methods["this"] = holdout.by_model(load("none"), frame, EXTENT, separately=True)
    constant, *others = holdout.compare(methods, kept, hidden)
    assert all(score.rmse < 0.3 * constant.rmse for score in others)
    assert "this is better than constant" in verdict([others[-1], constant])
    assert "trust this rather" in verdict([constant, others[-1]])
    assert "level with this" in verdict([others[-1], others[-1]])
