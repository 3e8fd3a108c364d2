"""The tables of docs/fields.md: which methods have a row, and what stands below."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from scipy.io import netcdf_file

from small import ROOT, write_checkpoint


@pytest.fixture(scope="module")
def fields_table():
    """The script as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            "fields_table", ROOT / "benchmarks/fields_table.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["fields_table"] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        del sys.modules["fields_table"]


def write_relief(path, seed: int) -> None:
    """Waves, by the names of etopo5."""
    y, x = np.mgrid[:32, :160]
    heights = 100 * np.sin(x / 5 + seed) * np.cos(y / 4) + np.random.default_rng(seed).normal(
        size=x.shape)
    with netcdf_file(path, "w") as file:
        file.createDimension("y", 32)
        file.createDimension("x", 160)
        file.createVariable("ROSE", "f", ("y", "x"))[:] = heights
        file.variables["ROSE"].units = "meters"


def run(module, capsys, monkeypatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["fields_table.py", *arguments])
    module.main()
    return capsys.readouterr().out


@pytest.mark.long
def test_a_model_has_a_row_where_it_was_trained_on_the_data(
    fields_table, tmp_path, capsys, monkeypatch
):
    for name, seed in (("here", 0), ("there", 1)):
        (tmp_path / name).mkdir()
        write_relief(tmp_path / name / "etopo5.cdf", seed)
    paths = {name: write_checkpoint(tmp_path / name / f"{name}.pth", "V2",
                                    tmp_path / name / "etopo5.cdf") for name in ("here", "there")}
    ferret = ["--ferret", str(tmp_path / "here"), "--fields", "1"]
    own = run(fields_table, capsys, monkeypatch, "relief", *ferret, "--checkpoint",
              f"V2={paths['here']}", "--checkpoint", f"V1={paths['there']}")
    assert "| V2 |" in own and "| V1 |" not in own
    assert "parameters, 7 steps." in own and "fitted kriging: CRPS" in own
    assert "| biharmonic |" in own and "RMSE, meters" in own


def test_lists_of_points_have_no_fields_to_learn_from(fields_table, capsys, monkeypatch):
    source = fields_table.SOURCES["example"][:1]
    monkeypatch.setitem(fields_table.SOURCES, "example", source)
    monkeypatch.setattr(fields_table.holdout, "SAMPLES", 3)
    said = run(fields_table, capsys, monkeypatch, "example", "--seeds", "1")
    assert "200 points given and 50 hidden" in said
    assert "| biharmonic spline |" in said


def test_a_checkpoint_without_a_name(fields_table, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run(fields_table, capsys, monkeypatch, "terrain", "--checkpoint", "a.pth")
    assert "give NAME=PATH" in capsys.readouterr().err
