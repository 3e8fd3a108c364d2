"""Covariates: from tables, grids and pictures, used as the likelihood says, refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from PIL import Image

from sparsefield import load
from sparsefield.errors import UserError

RNG = np.random.default_rng(5)
PLACES = RNG.uniform(size=(70, 2))


def height(p: np.ndarray) -> np.ndarray:
    """In km: rough, so that it cannot be told from near-by places."""
    return 1 + np.sin(37 * p[..., 0]) * np.cos(29 * p[..., 1])


def temperature(p: np.ndarray) -> np.ndarray:
    """In degC: 6 colder for each km, and a smooth rest."""
    return 20 - 6 * height(p) + np.sin(3 * p[..., 0]) + p[..., 1]


@pytest.fixture
def stations(tmp_path):
    rows = np.column_stack([PLACES, height(PLACES), temperature(PLACES)])
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="x,y,elev,t", comments="")


def grid_file(path, size=20, low=0.0, high=1.0, name="elev", gap=False, steps=()):
    at = low + (np.arange(size) + 0.5) / size * (high - low)
    values = height(np.stack(np.meshgrid(at, at), axis=-1))
    if gap:
        values[0, :4] = np.nan
    values = np.broadcast_to(values, (*steps, size, size))
    xarray.DataArray(values, dims=(*["time"] * len(steps), "y", "x"), name=name,
                     coords={"x": at, "y": at}, attrs={"units": "km"}).to_netcdf(
                         path, engine="scipy")
    return path


ASK = "a.csv", "--value", "t", "--covariates", "elev"


def test_a_table_follows_height_on_the_grid_of_a_file(command, stations, tmp_path):
    code, out, _ = command(*ASK, "--grid", grid_file(tmp_path / "g.nc"), "--units", "degC")
    assert code == 0 and "x = x, y = y, value = t, covariates = elev" in out
    assert "covariate elev: drift -6." in out or "covariate elev: drift -5.9" in out
    assert "degC per km" in out
    with np.load("out/field.npz") as field:
        error = field["mean"][..., 0] - temperature(field["coords"])
        inside = np.abs(error) < 1.645 * field["sd"][..., 0]
    assert np.sqrt((error**2).mean()) < 0.15  # the rest of the field varies by 0.6, height by 3
    assert inside.mean() > 0.75


def test_a_covariate_is_interpolated_where_another_grid_is_asked_for(command, stations, tmp_path):
    grid = grid_file(tmp_path / "g.nc", size=160)
    code, out, _ = command(*ASK, "--grid", grid, "--extent", 0.2, 0.6, 0.2, 0.6)
    assert code == 0 and "covariates elev are interpolated from the 160 x 160 points" in out
    with np.load("out/field.npz") as field:
        error = field["mean"][..., 0] - temperature(field["coords"])
    assert error.shape == (64, 64) and np.sqrt((error**2).mean()) < 0.15


def test_hidden_measurements_show_what_covariates_are_worth_without_a_grid(command, stations):
    code, out, _ = command(*ASK, "--holdout", 0.2)
    rows = {line[:30].strip(): float(line[30:].split()[-4]) for line in out.splitlines()
            if line.startswith(("this", "fitted kriging  ")) and " CRPS " not in line}
    assert code == 0 and rows["this (closed form, covariates)"] < 0.3 * rows["fitted kriging"]


def test_cells_without_a_covariate_stay_empty_and_those_beyond_are_counted(
        command, stations, tmp_path):
    code, out, _ = command(*ASK, "--grid", grid_file(tmp_path / "g.nc", gap=True))
    assert code == 0 and "4 of 400 places lack a covariate: left empty" in out
    with np.load("out/field.npz") as field:
        assert np.isnan(field["mean"]).sum() == 4
    rows = np.loadtxt("a.csv", delimiter=",", skiprows=1)
    np.savetxt("a.csv", rows[rows[:, 2] < 1.5], delimiter=",", header="x,y,elev,t", comments="")
    _, out, _ = command(*ASK, "--grid", tmp_path / "g.nc")
    assert "places elev lies outside the" in out


@pytest.mark.parametrize("words, wrong", [
    (("--value", "t", "--covariates", "elev"), "--grid FILE"),
    (("--value", "t", "--covariates", "slope"), "--covariates slope is none of them"),
    (("--value", "t", "--covariates", "t"), "columns of their own"),
    (("--value", "t", "--covariates", "elev", "--grid", "other.nc"), "no variable 'elev'"),
    (("--value", "t", "--covariates", "elev", "--grid", "steps.nc"), "choose one step"),
    (("--value", "t", "--covariates", "elev", "--grid", "far.nc", "--extent", "0", "1", "0", "1"),
     "it covers x 5.1"),
    (("--value", "t", "--covariates", "word", "--grid", "g.nc"), "is no number"),
    (("--value", "t", "--covariates", "elev", "--grid", "g.nc", "--checkpoint", "bundled"),
     "for the closed form alone"),
])
def test_what_cannot_be_used_is_refused_in_one_line(command, stations, tmp_path, words, wrong):
    table = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join(
        [table[0] + ",word", *(line + ",clay" for line in table[1:])]))
    grid_file(tmp_path / "g.nc")
    grid_file(tmp_path / "other.nc", name="slope")
    grid_file(tmp_path / "steps.nc", steps=(3,))
    grid_file(tmp_path / "far.nc", size=4, low=5, high=6)
    code, out, err = command("a.csv", *words)
    assert code == 2 and wrong in err and err.count("\n") == 1, (out, err)


def test_as_many_covariates_as_measurements_are_refused_and_gaps_are_left_out(caplog):
    few, model = PLACES[:6], load("none")
    with pytest.raises(UserError, match="4 covariates for 6 measurements: give at most 3"):
        model.at(few, few, height(few), covariates=RNG.normal(size=(6, 4)),
                 covariates_at=RNG.normal(size=(6, 4)))
    gaps = height(PLACES)
    gaps[:5] = np.nan
    with caplog.at_level("INFO", logger="sparsefield"):
        model.at(PLACES, PLACES, temperature(PLACES), covariates=np.ma.masked_invalid(gaps),
                 covariates_at=height(PLACES), num_samples=2)
    assert "5 of 70 measurements have a missing or infinite number: left out" in caplog.text


def test_in_python_the_same_answer_on_a_grid_and_at_places():
    """Also where nothing is known of a cell, and with more than one covariate."""
    model, values = load("none"), temperature(PLACES)
    known = np.stack([height(PLACES), RNG.normal(size=70)], axis=-1)
    grid = np.stack(np.meshgrid((np.arange(9) + .5) / 9, (np.arange(9) + .5) / 9), axis=-1)
    there = np.stack([height(grid), RNG.normal(size=(9, 9))], axis=-1)
    there[3, 4] = np.nan
    field = model.reconstruct(PLACES, values, 9, covariates=known, covariates_at=there,
                              num_samples=2)
    assert np.isnan(field.mean[3, 4]) and np.isnan(field.mean).sum() == 1
    assert "covariate 1: drift -6" in field.covariates[0] or "-5.9" in field.covariates[0]
    some = model.at(grid[0], PLACES, values, covariates=known, covariates_at=there[0],
                    num_samples=2)
    np.testing.assert_allclose(some.mean, field.mean[0], atol=1e-3)
    with pytest.raises(UserError, match=r"give covariates_at \(9, 9, 2\), not \(9, 9\)"):
        model.reconstruct(PLACES, values, 9, covariates=known, covariates_at=there[..., 0])
    with pytest.raises(UserError, match="go together"):
        model.reconstruct(PLACES, values, 9, covariates_at=there)


def test_a_trend_carries_on_beyond_the_measurements():
    """A slope seen on the left half alone is that of the right half, too."""
    left = PLACES * (0.5, 1)
    values = 5 * left[:, 0] + 0.1 * RNG.normal(size=70)
    far = np.array([[1.0, 0.5]])
    plain, linear = (load("none").at(far, left, values, trend=trend, noise_sd=0.1, num_samples=2)
                     for trend in (None, "linear"))
    assert abs(linear.mean.item() - 5) < 3 * linear.sd.item() < 3 * plain.sd.item()
    with pytest.raises(UserError, match="give linear or quadratic"):
        load("none").at(far, left, values, trend="cubic")


def test_colours_follow_the_luminance_of_a_picture(command, tmp_path):
    y, x = np.mgrid[:32, :32]
    grey = 128 + 60 * np.sin(x) * np.cos(y / 2)
    picture = np.stack([grey, 0.6 * grey + x, 255 - grey], axis=-1).clip(0, 255)
    Image.fromarray(picture.astype(np.uint8)).save("photo.png")
    Image.fromarray(grey.astype(np.uint8)).save("guide.png")
    Image.fromarray(grey.astype(np.uint8)[:9]).save("small.png")
    errors = {}
    for name in ("", "luminance", "guide.png"):
        flags = ("--covariates", name) if name else ()
        code, out, _ = command("photo.png", "--observe", "random:0.05", "--checkpoint", "none",
                               *flags)
        assert code == 0 and (not name or f"covariate {name}: drift" in out)
        with np.load("out/field.npz") as field:
            errors[name] = np.sqrt(((field["mean"] - picture) ** 2).mean())
    assert errors["guide.png"] < 0.2 * errors[""] and errors["luminance"] < 0.6 * errors[""]
    code, _, err = command("photo.png", "--observe", "random:0.05", "--covariates", "small.png")
    assert code == 2 and "is 32 x 9 pixels, the picture 32 x 32" in err
