"""What a person gives, in Python or on the command line, and what comes of it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.use.grids import Asked, Frame
from sparsefield.use.points import as_given
from sparsefield.use.predict import Settings

PLACES = np.random.default_rng(0).uniform(size=(40, 2))
WAVE = np.sin(5 * PLACES[:, 0]) * np.cos(4 * PLACES[:, 1])


@pytest.fixture(scope="module")
def models(paths):
    return {name: load(path) for name, path in paths.items()}


def quick(model, values=WAVE, coords=PLACES, resolution=8, **more):
    return model.reconstruct(coords, values, resolution,
                             **({"num_samples": 2, "num_steps": 1} | more))


def test_what_is_masked_or_missing_is_left_out(models):
    hidden = WAVE > 0.3
    wanted = quick(models["sea"], WAVE[~hidden], PLACES[~hidden]).samples
    wrong = np.where(hidden, 0.9, WAVE)
    for values, options in (
        (np.ma.masked_array(wrong, hidden), {}),
        (np.ma.masked_array(np.where(hidden, np.nan, WAVE), hidden), {}),
        (wrong, {"noise_sd": np.ma.masked_array(np.where(hidden, np.nan, 0), hidden)}),
        (np.where(hidden, -9999, WAVE), {"missing": [-9999]}),
        (np.where(hidden, np.float32(9.96921e36), WAVE), {"missing": [9.96921e36]}),
    ):
        np.testing.assert_array_equal(quick(models["sea"], values, **options).samples, wanted)
    places = np.ma.masked_array(PLACES, np.stack([hidden, np.zeros_like(hidden)], 1))
    np.testing.assert_array_equal(quick(models["sea"], wrong, places).samples, wanted)


@pytest.mark.parametrize("factor, shift", [(1, 273), (1e6, -1e6)])
def test_far_outside_the_training_range_sd_stays_honest(models, caplog, factor, shift):
    """In other units than the training data's the field is the same, with a warning."""
    grid = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)
    places, values = grid[::3], np.sin(5 * grid[::3, 0]) * np.cos(4 * grid[::3, 1])
    plain = quick(models["sea"], values, places, num_steps=4, num_samples=8)
    with caplog.at_level("WARNING", logger="sparsefield"):
        field = quick(models["sea"], factor * values + shift, places, num_steps=4, num_samples=8)
    assert "far outside the training data" in caplog.text and "--value_range" in caplog.text
    at = field.mean.reshape(-1)[::3]
    np.testing.assert_allclose(at, factor * values + shift, rtol=0, atol=1e-3 * factor)
    assert 0.5 < np.sqrt((field.sd**2).mean() / (plain.sd**2).mean()) / factor < 2


def test_measured_values_beyond_a_given_range_are_kept(models, caplog):
    values = 100 + 100 * WAVE
    colours = np.stack([values] * 3, 1)
    grid = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)[:40]
    with caplog.at_level("WARNING", logger="sparsefield"):
        field = quick(models["colour"], colours, grid, value_range=(20, 180))
    assert "leave --value_range" in caplog.text
    np.testing.assert_allclose(field.mean.reshape(-1, 3)[:40], colours, atol=0.02)


def test_values_that_are_all_alike_to_the_model_are_said(models, caplog):
    with caplog.at_level("WARNING", logger="sparsefield"):
        quick(models["colour"], np.stack([WAVE * 0.5 + 0.5] * 3, 1))
    assert "less than a hundredth of the range" in caplog.text


def test_three_values_that_are_no_colours(models):
    values = np.stack([1013 + WAVE, -5 + WAVE, 35 + WAVE], 1)
    with pytest.raises(UserError, match=r"no colours of 0 to 255.*--value.*--value_range"):
        quick(models["colour"], values)
    alone = quick(models["colour"], values, separately=True, num_steps=2)
    assert alone.mean.shape == (8, 8, 3)
    for c in range(3):
        low, high = values[:, c].min() - 1, values[:, c].max() + 1
        assert low < alone.mean[..., c].min() and alone.mean[..., c].max() < high
        assert alone.sd[..., c].max() > 1e-3
    np.testing.assert_array_equal(alone.mean[..., :1],
                                  quick(models["colour"], values[:, 0], num_steps=2).mean)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_reconstructed_alone(models, channels):
    values = np.stack([10.0**k * (WAVE + 2 * k) for k in range(channels)], 1)
    field = quick(models["colour"], values)
    assert field.mean.shape == (8, 8, channels) and field.samples.shape == (2, 8, 8, channels)
    for k in range(channels):
        assert abs(field.mean[..., k].mean() / 10.0**k - 2 * k) < 1


@pytest.mark.parametrize("count, is_said", [(1, False), (2, True), (5, True), (6, False)])
def test_intervals_of_few_places_are_said_to_be_too_narrow(caplog, count, is_said):
    with caplog.at_level("WARNING", logger="sparsefield"):
        quick(load("none"), WAVE[:count], PLACES[:count])
    assert ("hardly tell how a field varies" in caplog.text) == is_said


@pytest.mark.parametrize("noise_sd, is_said", [(0.1, False), (50.0, True), ("auto", False)])
def test_noise_that_is_larger_than_the_values_is_said(caplog, noise_sd, is_said):
    coords = np.random.default_rng(0).random((30, 2))
    load("none").reconstruct(coords, coords[:, 0], noise_sd=noise_sd, resolution=4, num_samples=2)
    assert ("noise of sd 50 is larger than that of the values" in caplog.text) == is_said


def test_other_units_than_those_of_the_training_are_said(models, caplog):
    given = replace(as_given(PLACES, WAVE), units="K")
    asked = Asked(PLACES, (0, 1, 0, 1), Frame.of(given, (0, 1, 0, 1)))
    with caplog.at_level("WARNING", logger="sparsefield"):
        models["sea"].answer(given, asked, Settings(num_samples=2, num_steps=1))
    assert "the values are in K, those that the model has learnt in degC" in caplog.text


# --- the command ----------------------------------------------------------------------------------


def write(name: str, header: str = "x,y,v", columns=(WAVE,)) -> str:
    rows = np.column_stack([PLACES, *columns])
    np.savetxt(name, rows, delimiter=",", header=header, comments="", fmt="%.12g")
    return name


def files(folder="out") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).glob("[!.]*")}


@pytest.fixture
def trained(command, paths):
    """trained(model, arguments) runs the command with one of the models."""
    return lambda model, *arguments: command(*arguments, "--checkpoint", paths[model])


def test_samples_of_an_earlier_run_are_replaced_and_files_of_others_are_not(command):
    write("a.csv")
    for count in (3, 2):
        assert command("a.csv", "--num_samples", count)[0] == 0
        samples = {name for name in files() if name.startswith("sample_")}
        assert samples == {f"sample_{k + 1}.png" for k in range(count)}
    Path("out/notes.txt").write_text("mine")
    before = files()
    code, _, err = command("a.csv")
    assert code == 2 and "notes.txt" in err and "--overwrite" in err and files() == before
    assert command("a.csv", "--overwrite")[0] == 0
    assert Path("out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name, arguments", [
    ("field.npz", ["out/field.npz"]), ("mean.png", ["out/mean.png", "--observe", "random:0.5"]),
    ("sample_2.png", ["a.png", "--mask", "out/sample_2.png"]),
    ("mean.png", ["link.png", "--observe", "random:0.5"]),
])
def test_an_output_that_is_the_input_is_refused(trained, name, arguments):
    Path("out").mkdir()
    Image.new("RGB", (8, 8), "red").save("a.png")
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = 255
    if name == "field.npz":
        np.savez("out/field.npz", coords=PLACES, values=WAVE)
    else:
        Image.fromarray(half).save(f"out/{name}")
    Path("link.png").symlink_to(f"out/{name}")
    before = files()
    code, _, err = trained("colour", *arguments)
    assert code == 2 and "is an input and would be overwritten" in err and files() == before


def test_a_failing_disk_leaves_the_previous_result_whole(command, monkeypatch):
    write("a.csv")
    assert command("a.csv", "--num_samples", "5")[0] == 0
    before = files()
    assert "sample_5.png" in before

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = command("a.csv")
    assert code == 2 and "No space left" in err and files() == before


OTHERS = "x,y,pressure,temp,salinity"


def test_columns_that_are_no_colours_are_reconstructed_alone(trained):
    write("a.csv", OTHERS, (1013 + WAVE, -5 + WAVE, 35 + WAVE))
    code, out, _ = trained("colour", "a.csv", "--num_steps", 2)
    assert code == 0 and "3 channel(s), each on its own" in out
    with np.load("out/field.npz") as field:
        np.testing.assert_allclose(field["mean"].mean((0, 1)), [1013, -5, 35], atol=0.5)
        assert field["sd"].mean((0, 1)).min() > 1e-4
    write("b.csv", OTHERS, (100 + WAVE, 5 + WAVE, 35 + WAVE))  # each could be a colour
    assert "3 channel(s), each on its own" in trained("colour", "b.csv")[1]
    write("c.csv", "x,y,r,g,b", (100 + WAVE, 5 + WAVE, 35 + WAVE))
    assert "read as red, green and blue" in trained("colour", "c.csv")[1]


def test_one_of_several_columns(trained):
    write("a.csv", OTHERS, (1013 + WAVE, -5 + WAVE, 35 + WAVE))
    code, out, _ = trained("sea", "a.csv", "--value", "temp")
    assert code == 0 and "left out: pressure, salinity" in out
    code, _, err = trained("sea", "a.csv")
    assert code == 2 and "3 value(s) a point" in err and "--value" in err


def test_one_channel_for_a_model_of_pictures_is_grey(trained):
    write("a.csv", "x,y,height", (600 + 300 * WAVE,))
    code, out, _ = trained("colour", "a.csv")
    assert code == 0 and "as shades of grey" in out and "WARNING" in out
    with np.load("out/field.npz") as field:
        assert field["mean"].shape == (8, 8, 1) and 300 < field["mean"].mean() < 900


def test_deep_pictures_come_back_in_their_own_numbers(trained):
    ramp = np.linspace(1000, 2250, 16 * 12).reshape(16, 12).astype(np.uint16)
    Image.fromarray(ramp).save("a.png")
    assert trained("colour", "a.png", "--observe", "random:0.5")[0] == 0
    with np.load("out/field.npz") as field:
        assert field["mean"].shape == (16, 12, 1)
        assert np.abs(field["mean"][..., 0] - ramp).mean() < 60
    shown = np.asarray(Image.open("out/mean.png"))
    assert shown.shape == (16, 12) and shown.min() < 30 and shown.max() > 225


def test_a_photograph_of_ones_own(trained):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (12, 20, 3), np.uint8)).save("photo.png")
    mask = np.zeros((12, 20), np.uint8)
    mask[::2, ::3] = 255
    Image.fromarray(mask).save("mask.png")
    code, out, _ = trained("colour", "photo.png", "--mask", "mask.png")
    assert code == 0 and "42 points -> 12x20" in out
    assert "spread times 1.20" in out
    assert "of 2 samples" not in out  # without a flow the sd is exact
    with np.load("out/field.npz") as file:
        assert file["mean"].shape == (12, 20, 3) and file["samples"].shape == (2, 12, 20, 3)
    assert Path("out/reconstruction.png").stat().st_size > 10_000
    original, mean = (np.asarray(Image.open(p)) for p in ("photo.png", "out/mean.png"))
    assert (original[mask > 0] == mean[mask > 0]).all()
    Image.new("L", (20, 12), 255).save("mask.png")  # all is known, and more is asked for
    assert trained("colour", "photo.png", "--mask", "mask.png", "--resolution", 24)[0] == 0


def test_a_table_from_standard_input(trained, monkeypatch):
    content = io.BytesIO(b"x,y,sst\n0,0,3\n10,5,9\n10,0,5\n0,5,8\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
    code, out, _ = trained("sea", "-")
    assert code == 0 and "4 points -> 4x8" in out
    with np.load("out/field.npz") as file:
        assert file["mean"].shape == (4, 8, 1)
        assert file["coords"][0, 0].tolist() == [0.625, 0.625]


def test_what_cannot_be_used_is_left_out_and_said(command):
    Path("a.csv").write_text("0,0,1\n0,0,3\n1,1,5\n0.5,,4\n0.5,0.5,nan\n9,9,9\n")
    code, out, _ = command("a.csv", "--extent", 0, 1, 0, 1)
    assert code == 0 and "2 of 6 measurements have a missing" in out
    assert "1 of 4 measurements lie outside the field" in out and "they are used, too" in out
    assert "repeated values differ (by an sd of 1.41)" in out
    assert "2 of 4 measurements share a place with another: averaged to 3 points" in out


def test_a_column_with_gaps_is_said_to_cost_the_others(command):
    salt = np.where(np.arange(40) < 30, np.nan, WAVE)
    write("m.csv", "x,y,temp,salt", (WAVE, salt))
    code, out, _ = command("m.csv")
    assert code == 0 and "30 of 40 measurements have a missing" in out
    assert "temp lacks 0, salt lacks 30" in out and "--value takes one column" in out
    code, out, _ = command("m.csv", "--value", "temp")
    assert code == 0 and "lacks" not in out and "40 points" in out
