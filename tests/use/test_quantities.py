"""Numbers of any size and offset, several quantities at once, and values that are all alike."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.io import netcdf_file
from small import write_untrained

import reconstruct as script
from sparsefield import cli, load
from sparsefield.errors import UserError

ROWS = np.random.default_rng(0).uniform(size=(60, 2))
WAVE = np.sin(5 * ROWS[:, 0]) + ROWS[:, 1]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(arguments) runs reconstruct.py in tmp_path and gives (code, out, err)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        given = [*map(str, arguments)]
        given += [] if "--num_samples" in given else ["--num_samples", "2"]
        given += [] if "--observe" in given else ["--resolution", "8"]
        code = cli.run(lambda: script.main(given))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


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
        assert file.source == b"draws of the closed form"


def test_quantities_are_scored_and_told_one_by_one(command):
    many = table("m.csv", {"temp": WAVE, "salt": 1000 * WAVE[::-1]})
    code, out, err = command(many, "--holdout", "0.2")
    assert code == 0, err
    assert "12 of 60 measurements hidden" in out and "\ntemp:\n" in out and "\nsalt:\n" in out
    assert out.count("this (fitted kriging) ") >= 4  # a row and a verdict each
    alone = command(table("t.csv", {"temp": WAVE}), "--holdout", "0.2")[1]
    of_linear = [line.split()[1:3] for text in (out, alone) for line in text.splitlines()
                 if line.startswith("linear")]
    assert of_linear[0] == of_linear[2] != of_linear[1]
    code, out, _ = command(many, "--out", "out")
    assert code == 0 and "temp: mean" in out and "; salt: mean" in out


def test_a_model_reads_the_channels_that_it_has_learnt_together(command, tmp_path):
    """By the names of a table they are different things."""
    two = write_untrained(tmp_path / "two.pth", 2, (-10.0, 10.0))
    winds = table("w.csv", {"u wind": WAVE, "v wind": 5 * ROWS[:, 1] - 3})
    code, _, err = command(winds, "--checkpoint", two, "--out", "out")
    assert code == 0, err
    with np.load("out/field.npz") as file:
        given = load(two).reconstruct(
            ROWS, np.stack([WAVE, 5 * ROWS[:, 1] - 3], axis=1), (8, 8), num_samples=2,
            extent=(*_ends(ROWS[:, 0]), *_ends(ROWS[:, 1])), seed=0)
        assert file["mean"].shape == (8, 8, 2)
        np.testing.assert_allclose(file["mean"], given.mean, atol=1e-4)
        south_north = file["mean"][-1, :, 1].mean() - file["mean"][0, :, 1].mean()
    assert south_north == pytest.approx(5 * np.ptp(ROWS[:, 1]) * 7 / 8, rel=0.1)
    code, out, err = command(winds, "--checkpoint", two, "--holdout", "0.2")
    assert code == 0 and "\nu wind:\n" in out and "this (two.pth)" in out, err


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def test_a_column_with_gaps_is_said_to_cost_the_others(command):
    salt = np.where(np.arange(60) < 50, np.nan, WAVE)
    code, out, _ = command(table("m.csv", {"temp": WAVE, "salt": salt}), "--out", "out")
    assert code == 0 and "50 of 60 measurements have a missing" in out
    assert "temp lacks 0, salt lacks 50" in out and "--value takes one column" in out
    code, out, _ = command("m.csv", "--value", "temp", "--out", "alone")
    assert code == 0 and "lacks" not in out and "60 points" in out


def test_a_failing_disk_leaves_the_previous_result_whole(command, monkeypatch, tmp_path):
    t = table("t.csv", {"temp": WAVE})
    assert command(t, "--out", "out", "--num_samples", "5")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")}
    assert "sample_5.png" in before

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = command(t, "--out", "out")
    assert code == 2 and "No space left" in err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")}


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_memory_that_does_not_suffice_is_one_line(error, capsys):
    def main():
        raise error

    assert cli.run(main) == 2
    assert capsys.readouterr().err.startswith("error: out of memory")
    with pytest.raises(RuntimeError, match="a defect"):
        cli.run(lambda: (_ for _ in ()).throw(RuntimeError("a defect")))


def test_places_that_are_none_are_refused_and_not_dropped():
    model = load("none")
    hidden = np.ma.masked_array(ROWS[:2], mask=[[True, True], [False, False]])
    with pytest.raises(UserError, match="places are masked"):
        model.at(hidden, ROWS, WAVE)
    with pytest.raises(UserError, match="latitude"):
        model.at([[10.0, 95.0]], ROWS, WAVE, lonlat=True)
    with pytest.raises(UserError, match="axes"):
        model.reconstruct(ROWS, WAVE, axes=np.linspace(0, 1, 5))


def test_longitudes_on_both_sides_of_the_180th_meridian_are_warned_of(command):
    lon = np.where(ROWS[:, 0] < 0.5, 175 + 9 * ROWS[:, 0], -180 + 9 * (ROWS[:, 0] - 0.5))
    np.savetxt("d.csv", np.column_stack([lon, 10 * ROWS[:, 1], WAVE]), delimiter=",", comments="",
               header="lon,lat,temp")
    code, out, _ = command("d.csv", "--out", "out")
    assert code == 0 and "WARNING: d.csv: longitudes span 359" in out and "--lonlat" in out
    code, out, _ = command("d.csv", "--lonlat", "--out", "globe")
    assert code == 0 and "WARNING" not in out
