"""A person's own measurements: read, reconstructed, written, refused."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import netcdf_file
from small import write_untrained

import reconstruct as script
from sparsefield import cli, load
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import fit_spread, widen
from sparsefield.evaluate.metrics import coverage
from sparsefield.use.read import read_measurements


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("colour") / "model.pth",
                            calibration={"spread": 1.2, "raw": 0.8, "calibrated": 0.9,
                                         "pictures": 4})


@pytest.fixture(scope="module")
def sea(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("sea") / "model.pth", 1, (-2.0, 30.0))


def command(*arguments) -> int:
    return cli.run(lambda: script.main([str(a) for a in arguments]))


def csv(tmp_path, text, name="points.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


# --- the API --------------------------------------------------------------------------------------


def test_the_example_of_the_readme(colour):
    model = load(colour)
    coords = np.random.default_rng(0).uniform(size=(40, 2))
    values = 100 + 50 * coords[:, :1].repeat(3, axis=1)
    field = model.reconstruct(coords, values, resolution=16, num_samples=3)
    assert field.mean.shape == field.sd.shape == (16, 16, 3)
    assert field.samples.shape == (3, 16, 16, 3) and field.coords.shape == (16, 16, 2)
    assert np.abs(field.mean - 100 - 50 * field.coords[..., :1]).mean() < 10


def test_observed_points_are_kept_and_certain(sea):
    where = (np.arange(8) + 0.5) / 8
    coords = np.stack([where, where], axis=1)
    values = np.linspace(-5, 40, 8)  # beyond the range of the training data on both sides
    field = load(sea).reconstruct(coords, values, 8, num_samples=4)
    diagonal = np.arange(8)
    assert np.allclose(field.mean[diagonal, diagonal, 0], values, atol=1e-4)
    assert field.sd[diagonal, diagonal].max() < 1e-4
    assert field.sd[0, 7] > 0.1


def test_units_and_origin_do_not_matter(sea):
    rng = np.random.default_rng(1)
    coords, values = rng.uniform(size=(30, 2)), rng.uniform(0, 20, 30)
    here = load(sea).reconstruct(coords, values, 8, num_samples=2)
    there = load(sea).reconstruct(coords * 1000 + (5000, -300), values, 8, num_samples=2,
                                  extent=(5000, 6000, -300, 700))
    assert np.allclose(here.samples, there.samples, atol=0.05)
    assert np.allclose(there.coords, here.coords * 1000 + (5000, -300))


def test_calibration_widens_samples_about_their_mean(colour):
    coords = np.random.default_rng(0).uniform(size=(20, 2))
    model = load(colour)
    assert model.spread == 1.2
    values = np.full((20, 3), 128.0) + np.random.default_rng(1).normal(0, 5, (20, 3))
    wide = model.reconstruct(coords, values, 8, num_samples=4)
    model.spread = 1.0
    raw = model.reconstruct(coords, values, 8, num_samples=4)
    assert np.allclose(wide.sd, 1.2 * raw.sd, rtol=1e-3, atol=1e-3)
    assert np.array_equal(wide.mean, raw.mean)


def test_many_points_are_seen_in_blocks_around_each_query(sea):
    rng = np.random.default_rng(2)
    coords = rng.uniform(size=(1200, 2))

    def truth(p):
        return 10 + 5 * np.sin(6 * p[..., 0]) * np.cos(5 * p[..., 1])

    field = load(sea).reconstruct(coords, truth(coords), 24, num_samples=2, num_steps=1)
    assert np.abs(field.mean[..., 0] - truth(field.coords)).max() < 0.5


def test_noise_lets_values_move_and_reports_it(sea):
    rng = np.random.default_rng(3)
    where = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)
    truth = 10 + 8 * where[:, 0]
    noisy = truth + rng.normal(0, 2, 64)
    exact = load(sea).reconstruct(where, noisy, 8, num_samples=8)
    smooth = load(sea).reconstruct(where, noisy, 8, num_samples=8, noise_sd=2.0)

    def error(field):
        return np.sqrt(((field.mean.reshape(-1) - truth) ** 2).mean())

    assert error(smooth) < 0.7 * error(exact)
    assert exact.sd.max() < 1e-3 and 0.3 < smooth.sd.mean() < 2


# --- the closed form alone ------------------------------------------------------------------------


def plane(x, y):
    return 3 + 2 * x - y


@pytest.mark.parametrize("noise_sd", [0.1, 0.3])
def test_a_noisy_plane_is_neither_flat_nor_overfitted(noise_sd):
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(60, 2))
    values = 1000 * (plane(*coords.T) + noise_sd * rng.normal(size=60))
    field = load("none").reconstruct(coords, values, 16, num_samples=20, noise_sd=1000 * noise_sd)
    truth = 1000 * plane(*np.moveaxis(field.coords, -1, 0))
    error = field.mean[..., 0] - truth
    assert np.ptp(field.mean) > 0.6 * np.ptp(truth)
    assert np.sqrt((error**2).mean()) < 1000 * noise_sd
    assert (np.abs(error) < 1.645 * field.sd[..., 0]).mean() > 0.75


def test_repeated_measurements_have_less_noise():
    rng = np.random.default_rng(1)
    places = rng.uniform(size=(20, 2))
    coords = places.repeat(25, axis=0)
    values = 10 * plane(*coords.T) + rng.normal(size=500)
    model = load("none")
    field = model.reconstruct(coords, values, 8, num_samples=2, noise_sd=1.0)
    once = model.reconstruct(places, values.reshape(20, 25).mean(axis=1), 8, num_samples=2,
                             noise_sd=0.2)
    np.testing.assert_allclose(field.mean, once.mean, rtol=1e-4)
    assert np.sqrt(np.mean((field.mean[..., 0] - 10 * plane(*field.coords.T).T) ** 2)) < 1


def test_noise_of_its_own_for_every_point():
    coords = np.array([[0.1, 0.1], [0.9, 0.9], [0.1, 0.9], [0.9, 0.1], [0.5, 0.5]])
    values = np.array([0.0, 0.0, 0.0, 0.0, 10.0])
    model = load("none")
    trusted = model.reconstruct(coords, values, (1, 1), num_samples=2, noise_sd=0.1)
    doubted = model.reconstruct(coords, values, (1, 1), num_samples=2,
                                noise_sd=[0.1, 0.1, 0.1, 0.1, 20])
    assert trusted.mean.item() > 8 and doubted.mean.item() < 5
    with pytest.raises(UserError, match="noise_sd"):
        model.reconstruct(coords, values, 4, noise_sd=[0.1, 0.2])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_closed_form_takes_any_channels_and_units(channels):
    rng = np.random.default_rng(2)
    coords = rng.uniform(size=(30, 2))
    values = rng.normal(size=(30, channels)) * 1e5 + 1e7
    field = load("none").reconstruct(coords, values, 8, num_samples=3, seed=1)
    assert field.samples.shape == (3, 8, 8, channels) and np.isfinite(field.samples).all()
    assert "power" in field.variogram
    small = load("none").reconstruct(coords, (values - 1e7) / 1e5, 8, num_samples=3, seed=1)
    np.testing.assert_allclose((field.mean - 1e7) / 1e5, small.mean, atol=0.02)


def test_what_was_not_measured_may_lie_outside_of_what_was():
    """A slope goes on beyond the measured corner, and samples spread both ways."""
    rng = np.random.default_rng(3)
    coords = 0.4 * rng.uniform(size=(60, 2))
    values = coords.sum(axis=1)
    field = load("none").reconstruct(coords, values, 16, num_samples=20)
    margin = values.max() + 0.1 * np.ptp(values)
    assert field.samples.max() > margin + 0.05
    beyond = field.samples[:, -1, -1, 0]
    assert len(np.unique(beyond.round(6))) == 20  # none at a bound


def test_one_point_without_a_model():
    field = load("none").reconstruct([[0.5, 0.5]], [7.0], (3, 3), num_samples=4)
    assert field.mean[1, 1] == 7 and field.sd[1, 1] == 0
    assert np.isfinite(field.samples).all() and field.sd[0, 0] > 0


def test_the_sd_without_a_model_is_that_of_endlessly_many_samples():
    rng = np.random.default_rng(0)
    coords, values = rng.uniform(size=(40, 2)), 1000 * rng.normal(size=40)
    few, many = (load("none").reconstruct(coords, values, 12, num_samples=k) for k in (2, 600))
    np.testing.assert_array_equal(few.sd, many.sd)
    ratio = many.samples.std(axis=0, ddof=1) / many.sd
    assert abs(ratio - 1).max() < 0.15 and ratio.mean() == pytest.approx(1, abs=0.02)
    told = [load("none").at(few.coords.reshape(-1, 2), coords, values, num_samples=600,
                            noise_sd="auto", with_noise=also) for also in (False, True)]
    noise = np.sqrt(told[1].sd**2 - told[0].sd**2)
    assert noise.max() > 100 and np.ptp(noise) < 0.01 * noise.max()
    np.testing.assert_allclose(told[1].samples.std(axis=0, ddof=1), told[1].sd, rtol=0.15)


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_the_spread_undoes_a_width_that_is_wrong(width):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    samples = width * rng.normal(size=(20, 4000))
    spread = fit_spread(samples, truth)
    assert spread == pytest.approx(1 / width, rel=0.1)
    assert coverage(widen(samples, spread), truth, 0.9) == pytest.approx(0.9, abs=0.01)


# --- reading --------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_left_out_and_said(tmp_path, caplog):
    script.cli.log.propagate = True
    path = csv(tmp_path, "0,0,1\n0,0,3\n1,1,5\n0.5,,4\n0.5,0.5,nan\n9,9,9\n")
    with caplog.at_level("INFO", logger="sparsefield"):
        found = read_measurements(str(path), channels=1, extent=(0, 1, 0, 1))
        assert found.values[:, 0].tolist() == [1, 3, 5, 9]  # averaged when their noise is known
        assert "2 of 6 measurements have a missing" in caplog.text
        assert "1 of 4 measurements lie outside the extent; they are used, too" in caplog.text
        load("none").reconstruct(found.coords, found.values, 2, num_samples=2, extent=(0, 1, 0, 1))
    assert "repeated values differ (by an sd of 1.41)" in caplog.text
    assert "2 of 4 measurements share a place with another: averaged to 3 points" in caplog.text


# --- the command ----------------------------------------------------------------------------------


def test_a_photograph_of_ones_own(tmp_path, colour, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (12, 20, 3), np.uint8)).save(tmp_path / "photo.png")
    mask = np.zeros((12, 20), np.uint8)
    mask[::2, ::3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    assert command(tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--checkpoint", colour,
                   "--num_samples", 2, "--num_steps", 2, "--out", out) == 0
    with np.load(out / "field.npz") as file:
        assert file["mean"].shape == (12, 20, 3) and file["samples"].shape == (2, 12, 20, 3)
    assert Image.open(out / "mean.png").size == (20, 12)
    assert (out / "reconstruction.png").stat().st_size > 10_000
    original, mean = (np.asarray(Image.open(p)) for p in (tmp_path / "photo.png", out / "mean.png"))
    assert (original[mask > 0] == mean[mask > 0]).all()
    said = capsys.readouterr().out
    assert "42 points -> 12x20" in said
    assert "spread times 1.20" in said and "90% (of 2 samples at most 33%)" in said


def test_a_table_from_standard_input(tmp_path, sea, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x,y,sst\n0,0,3\n10,5,9\n10,0,5\n0,5,8\n"))
    out = tmp_path / "out"
    assert command("-", "--checkpoint", sea, "--num_samples", 2, "--resolution", 8,
                   "--out", out) == 0
    with np.load(out / "field.npz") as file:
        assert file["mean"].shape == (4, 8, 1)
        assert file["coords"][0, 0].tolist() == [0.625, 0.625]
    assert "4 points -> 4x8" in capsys.readouterr().out


def test_netcdf_has_the_units_of_the_training_data(tmp_path, sea):
    path = csv(tmp_path, "x,y,sst\n0,0,3\n1,1,9\n")
    assert command(path, "--checkpoint", sea, "--num_samples", 2, "--resolution", 4,
                   "--out", tmp_path / "out") == 0
    with netcdf_file(tmp_path / "out/field.nc", mmap=False) as data:
        mean = data.variables["mean"]
        assert mean.dimensions == ("y", "x") and mean.units == b"degC"


def test_one_channel_for_a_model_of_pictures_is_grey(tmp_path, colour, capsys):
    path = csv(tmp_path, "x,y,height\n0,0,300\n1,1,900\n0,1,500\n")
    assert command(path, "--checkpoint", colour, "--num_samples", 2, "--resolution", 6,
                   "--out", tmp_path / "out") == 0
    assert "shades of grey" in capsys.readouterr().out
    with np.load(tmp_path / "out" / "field.npz") as file:
        assert file["mean"].shape == (6, 6, 1) and 300 < file["mean"].mean() < 900


@pytest.mark.parametrize("arguments, words", [
    (["nowhere.csv"], "does not exist"),
    (["."], "is a folder"),
    (["{png}"], "nothing says which pixels are known"),
    (["{png}", "--mask", "{small}"], "make them equal"),
    (["{png}", "--mask", "{black}"], "no pixel is known"),
    (["{png}", "--mask", "{black}", "--observe", "random:0.2"], "give one of them"),
    (["{png}", "--observe", "random:0.2", "--extent", "0", "1", "0", "1"], "has its pixels"),
    (["{csv}", "--observe", "random:0.2"], "every point is known"),
    (["{csv}", "--resolution", "big"], "ROWSxCOLUMNS"),
    (["{csv}", "--noise_sd", "-1"], "0 or more"),
    (["{csv}", "--value_range", "3", "1"], "low high"),
    (["{broken}"], "no readable .npz"),
    (["{csv}", "--checkpoint", "none.pth"], "does not exist"),
])
def test_refusals(tmp_path, colour, capsys, arguments, words):
    files = {name: str(tmp_path / f"{name}.{kind}") for name, kind in (
        ("png", "png"), ("small", "png"), ("black", "png"), ("csv", "csv"), ("broken", "npz"))}
    Image.new("RGB", (8, 8), "red").save(files["png"])
    Image.new("L", (4, 4), 255).save(files["small"])
    Image.new("L", (8, 8), 0).save(files["black"])
    csv(tmp_path, "x,y,v\n0,0,1\n1,1,2\n", "csv.csv")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    given = [a.format(**files) for a in arguments]
    if "--checkpoint" not in given:
        given += ["--checkpoint", colour]
    assert command(*given, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
