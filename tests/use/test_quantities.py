"""Numbers of any size and offset, several quantities at once, and values that are all alike."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.io import netcdf_file

from small import write_untrained
from sparsefield import load
from sparsefield.errors import UserError

ROWS = np.random.default_rng(0).uniform(size=(60, 2))
WAVE = np.sin(5 * ROWS[:, 0]) + ROWS[:, 1]


def table(name: str, columns: dict[str, np.ndarray]) -> str:
    np.savetxt(name, np.column_stack([ROWS, *columns.values()]), delimiter=",", comments="",
               header=",".join(["x", "y", *columns]), fmt="%.12g")
    return name


@pytest.mark.parametrize("scale, offset", [(1e-9, 0.0), (200.0, -1e4)])
def test_a_picture_of_numbers_is_answered_alike_in_all_units(command, scale, offset):
    y, x = np.mgrid[:12, :15]
    field = 0.1 + 0.01 * x + 0.05 * np.sin(y / 3)
    fields = {}
    for name, numbers in (("a", field), ("b", offset + scale * field)):
        np.save(f"{name}.npy", numbers)
        code, _, err = command(f"{name}.npy", "--observe", "random:0.3", "--out", name)
        assert code == 0, err
        with np.load(f"{name}/field.npz") as file:
            fields[name] = {key: file[key] for key in ("mean", "sd", "samples")}
    for key, shift in (("mean", offset), ("sd", 0.0), ("samples", offset)):
        np.testing.assert_allclose((fields["b"][key] - shift) / scale, fields["a"][key], atol=1e-4)
    assert fields["a"]["sd"].mean() < 0.01


def test_a_range_that_is_said_changes_nothing_of_the_closed_form(caplog):
    answers = [load("none").reconstruct(ROWS, WAVE, 8, num_samples=2, value_range=given).sd
               for given in (None, (-1e6, 1e6))]
    np.testing.assert_array_equal(*answers)
    with pytest.raises(UserError, match="far outside --value_range"):
        load("none").reconstruct(ROWS, 100 + WAVE, 8, num_samples=2, value_range=(0, 1))


@pytest.fixture(scope="module")
def of_any(tmp_path_factory):
    """A model of standardised fields whose decoder does something."""
    def change(weights):
        return weights | {"decoder.3.weight": torch.randn_like(weights["decoder.3.weight"]) / 5}

    return load(write_untrained(
        tmp_path_factory.mktemp("any") / "model.pth", change=change, channels=1,
        data={"channels": 1, "value_range": [[-3.0, 3.0]], "units": None, "is_standard": True}))


@pytest.mark.parametrize("scale, offset", [(1e-9, 0.0), (200.0, -1e4), (0.01, 980665.0)])
def test_a_model_of_standardised_fields_answers_alike_in_all_units(of_any, scale, offset):
    rough = np.random.default_rng(1).normal(size=60)
    one = of_any.reconstruct(ROWS, rough, 8, num_samples=3)
    kriged = load("none").reconstruct(ROWS, rough, 8, num_samples=3)
    assert np.abs(one.mean - kriged.mean).max() > 0.1
    other = of_any.reconstruct(ROWS, offset + scale * rough, 8, num_samples=3)
    for key, shift in (("mean", offset), ("sd", 0.0), ("samples", offset)):
        np.testing.assert_allclose((getattr(other, key) - shift) / scale, getattr(one, key),
                                   atol=1e-4)


def test_a_model_of_standardised_fields_reads_each_channel_and_no_range(of_any):
    both = of_any.reconstruct(ROWS, np.column_stack([WAVE, 1000 * WAVE]), 8, num_samples=2)
    np.testing.assert_allclose(both.mean[..., 1], 1000 * both.mean[..., 0], rtol=1e-4)
    assert np.isfinite(of_any.reconstruct(ROWS, 7 + 0 * WAVE, 8, num_samples=2).samples).all()
    with pytest.raises(UserError, match="in any unit"):
        of_any.reconstruct(ROWS, WAVE, 8, num_samples=2, value_range=(0, 1))


@pytest.mark.parametrize("values", [[8.888], [7e-9] * 60])
def test_values_that_are_all_alike_are_said_to_tell_nothing(values, caplog):
    with caplog.at_level(logging.WARNING, logger="sparsefield"):
        field = load("none").reconstruct(ROWS[:len(values)], values, 4, num_samples=2)
    assert "is unknown, and the sd is a guess" in caplog.text
    assert field.mean == pytest.approx(values[0]) and (field.sd < abs(values[0])).all()


def test_files_hold_small_differences_of_large_numbers(command):
    g = table("g.csv", {"gravity": 980665 + 0.01 * WAVE})
    assert command(g, "--out", "out")[0] == 0
    with np.load("out/field.npz") as file:
        mean = file["mean"][..., 0]
    listed = np.loadtxt("out/field.csv", delimiter=",", skiprows=1)[:, 2].reshape(mean.shape)
    np.testing.assert_allclose(listed, mean, rtol=0, atol=1e-5)
    with netcdf_file("out/field.nc", mmap=False) as file:
        np.testing.assert_allclose(file.variables["mean"][:], mean, rtol=0, atol=1e-8)
        assert file.source == b"draws of the corrected kriging posterior"


def test_quantities_are_scored_and_told_one_by_one(command):
    many = table("m.csv", {"temp": WAVE, "salt": 1000 * WAVE[::-1]})
    code, out, err = command(many, "--holdout", "0.2")
    assert code == 0, err
    assert "12 of 60 measurements hidden" in out and "\ntemp:\n" in out and "\nsalt:\n" in out
    assert out.count("this (fields) ") >= 4  # a row and a verdict each
    alone = command(table("t.csv", {"temp": WAVE}), "--holdout", "0.2")[1]
    of_linear = [line.split()[1:3] for text in (out, alone) for line in text.splitlines()
                 if line.startswith("linear")]
    assert of_linear[0] == of_linear[2] != of_linear[1]
    code, out, _ = command(many, "--out", "out")
    assert code == 0 and "temp: mean" in out and "; salt: mean" in out


def test_a_model_reads_the_channels_that_it_has_learnt_together(command, paths):
    """By the names of a table they are different things."""
    two = paths["wind"]
    winds = table("w.csv", {"u wind": WAVE, "v wind": 5 * ROWS[:, 1] - 3})
    code, _, err = command(winds, "--checkpoint", two, "--out", "out")
    assert code == 0, err
    with np.load("out/field.npz") as file:
        given = load(two).reconstruct(
            ROWS, np.stack([WAVE, 5 * ROWS[:, 1] - 3], axis=1), (8, 8), num_samples=2, num_steps=1,
            extent=(*_ends(ROWS[:, 0]), *_ends(ROWS[:, 1])), seed=0)
        assert file["mean"].shape == (8, 8, 2)
        np.testing.assert_allclose(file["mean"], given.mean, atol=1e-4)
        south_north = file["mean"][-1, :, 1].mean() - file["mean"][0, :, 1].mean()
    assert south_north == pytest.approx(5 * np.ptp(ROWS[:, 1]) * 7 / 8, rel=0.1)
    code, out, err = command(winds, "--checkpoint", two, "--holdout", "0.2")
    assert code == 0 and "\nu wind:\n" in out and "this (wind.pth)" in out, err


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def test_longitudes_on_both_sides_of_the_180th_meridian_are_warned_of(command):
    lon = np.where(ROWS[:, 0] < 0.5, 175 + 9 * ROWS[:, 0], -180 + 9 * (ROWS[:, 0] - 0.5))
    np.savetxt("d.csv", np.column_stack([lon, 10 * ROWS[:, 1], WAVE]), delimiter=",", comments="",
               header="lon,lat,temp")
    code, out, _ = command("d.csv", "--out", "out")
    assert code == 0 and "WARNING: d.csv: longitudes span 359" in out and "--lonlat" in out
    code, out, _ = command("d.csv", "--lonlat", "--out", "globe")
    assert code == 0 and "WARNING" not in out
