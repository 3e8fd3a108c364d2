"""The mixture of kinds of field: what its files hold, and how a model of it is scored."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import numpy as np
import pytest

from small import ROOT, write_untrained
from sparsefield import cli


@pytest.fixture
def mixture(monkeypatch):
    """The script as a module, with few fields to test on."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = import_module("mixture")
    monkeypatch.setattr(module, "HELD", {"val": 2, "test": 3})
    monkeypatch.setattr(module, "THIN", 2)
    yield module
    del sys.modules["mixture"]


def test_files_of_what_needs_none(mixture, tmp_path, capsys):
    whole, less = tmp_path / "whole", tmp_path / "less"
    mixture.main(["make", "--out", str(whole), "--crops", "40"])
    said = capsys.readouterr().err
    assert "relief left out: etopo5.cdf is not there (Debian package ferret-datasets)" in said
    mixture.main(["make", "--out", str(less), "--crops", "40", "--without", "patches", "fronts"])
    parts = {(folder.name, part): np.load(folder / f"mixture_{part}.npz")
             for folder in (whole, less) for part in mixture.PARTS}
    learnt = ["exponential", "fronts", "gaussian", "patches", "photographs", "tracer", "vorticity"]
    assert np.unique(parts["whole", "train"]["kind"]).tolist() == learnt
    assert not {"patches", "fronts"} & {*parts["less", "train"]["kind"],
                                        *parts["less", "val"]["kind"]}
    assert np.unique(parts["whole", "test"]["kind"]).tolist() == sorted([*learnt, "fault"])
    np.testing.assert_array_equal(parts["whole", "test"]["images"], parts["less", "test"]["images"])
    seen = set()
    for part in mixture.PARTS:
        images = parts["whole", part]["images"]
        assert images.shape[1:] == (32, 32, 1) and images.dtype == np.float32
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(images.std(axis=(1, 2, 3)), 1, rtol=1e-4)
        assert not seen & {field.tobytes() for field in images}
        seen |= {field.tobytes() for field in images}


@pytest.mark.parametrize("kind, has_time", [("relief", False), ("winds", True),
                                            ("pressure", False)])
def test_parts_of_gridded_kinds_share_no_place_or_time(mixture, monkeypatch, kind, has_time):
    """Grids whose values tell their file, column and step."""
    shapes = {"etopo5.cdf": (1, 2161, 4320), "monthly_navy_winds.cdf": (132, 73, 144),
              "coads_climatology.cdf": (12, 90, 180)}

    def numbered(folders, file, name):
        steps, rows, columns = shapes[file]
        number = np.add.outer(1e4 * np.arange(steps), np.arange(columns))
        start = 1e7 * list(shapes).index(file)
        return np.broadcast_to((start + number)[:, None], (steps, rows, columns))

    monkeypatch.setattr(mixture, "variable", numbered)
    monkeypatch.setattr(mixture, "terrain", lambda file: np.full((1, 1), -1.0))
    monkeypatch.setattr(mixture, "crops", lambda grids, gaps=0.4: np.unique(
        np.concatenate([grid.ravel() for grid in grids])))
    parts = mixture.GRIDDED[kind]([])
    for number, held in enumerate(parts[1:], 1):
        file = held[0] // 1e7
        for learnt in parts[:number]:
            learnt = learnt[learnt // 1e7 == file]
            assert len(learnt) and not {*held % 1e4} & {*learnt % 1e4}
            assert not has_time or not {*held // 1e4} & {*learnt // 1e4}


def test_a_network_that_has_learnt_nothing_scores_as_kriging(mixture, tmp_path, capsys):
    fields = np.stack([field for field, _ in zip(mixture.gaussian(np.random.default_rng(0)),
                                                 range(4), strict=False)])
    fields[fields < -1] = -4.0  # a step, whose value stands for no gap
    np.savez(tmp_path / "test.npz", images=fields[..., None], kind=["gaussian"] * 4)
    path = write_untrained(tmp_path / "new.pth", 1, data={
        "channels": 1, "value_range": [[-3.0, 3.0]], "units": None, "is_standard": True})
    found = tmp_path / "found.json"
    mixture.main(["score", f"new={path}", "--data", str(tmp_path / "test.npz"), "--fields", "3",
                  "--observe", "random:0.2", "--json", str(found)])
    rows = {row["method"]: row for row in json.loads(found.read_text())["rows"]}
    assert list(rows) == ["kriging", "new"] and rows["new"]["fields"] == 3
    assert np.abs(rows["new"]["crps_change"][0]) < 0.03 < rows["new"]["crps"]
    assert rows["kriging"]["crps_change"] == [0, 0, 0] != rows["new"]["crps_change"]
    assert "| gaussian | " in capsys.readouterr().out
    mixture.main(["score", f"new={path}", "--data", str(tmp_path / "test.npz"), "--fields", "3",
                  "--observe", "random:0.2", "--noise", "0", "0.3", "--json", str(found)])
    exact, same, noisy, other = json.loads(found.read_text())["rows"]
    assert exact == rows["kriging"] and same == rows["new"]
    assert noisy["observed"] == "random:0.2, noise 0.3" and np.abs(other["crps_change"][0]) < 0.05
    assert noisy["crps"] > exact["crps"] and 0.75 < noisy["covered"] < 0.99
    mixture.main(["draw", "--json", str(found), "--out", str(tmp_path / "found.png")])
    assert (tmp_path / "found.png").stat().st_size > 1000


@pytest.mark.parametrize("arguments, why", [
    (["make", "--out", "here", "--files", "nowhere"], "--files nowhere: no such folder"),
    (["make", "--out", "file"], "--out file"),
    (["score", "none", "--data", "file"], "no mixture_test.npz"),
    (["draw", "--json", "nowhere.json"], "run `score` first"),
])
def test_what_cannot_be_used_is_one_line(mixture, monkeypatch, tmp_path, capsys, arguments, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mixture, "KINDS", ("patches",))
    (tmp_path / "file").write_text("no archive")
    assert cli.run(lambda: mixture.main(arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and why in error
