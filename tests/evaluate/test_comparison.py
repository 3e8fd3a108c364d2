from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_v1_vs_v2 as script
import train_mamba
import train_mamba_v2
from small import NAMES, run, write_checkpoint, write_pictures
from sparsefield.errors import UserError
from sparsefield.evaluate import tables
from sparsefield.evaluate.cases import open_test_data
from sparsefield.evaluate.tables import OutputFolder
from sparsefield.model.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """60 smooth random colour pictures, 16 x 16: 3 of them are the test."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures.npz", channels=3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, pictures) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {f"{name.lower()}_checkpoint": str(write_checkpoint(folder / name, name, pictures))
            for name in NAMES}


def config(checkpoints: dict, folder: Path, **changes) -> script.Config:
    settings = {**checkpoints, "num_steps": 2, "ensemble": 4, "device": "cpu",
                "save_dir": str(folder), **changes}
    return script.Config(**settings)


@pytest.fixture(scope="module")
def compared(checkpoints, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("report")
    return script.evaluate(config(checkpoints, folder)), folder


# --- results -------------------------------------------------------------------------------------


def test_all_files_are_written_and_the_json_is_strict(compared):
    folder = compared[1]
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "comparison_results.json", "comparison_results.txt", "improvement_chart.png",
        "v1_vs_v2_comparison.png",
    ]
    stored = json.loads((folder / "comparison_results.json").read_text(),
                        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(stored["table"]) == 3 * (2 * 2 + 7 + 1)  # means and samples, baselines, kriging
    assert {"kind", "method", "picture", "psnr", "crps"} <= stored["table"][0].keys()
    for kind, nfe in (("mean", 1), ("sample", 3)):
        for name in ("V1", "V2"):
            row, rows = stored["summary"][kind][name], [
                r for r in stored["table"] if (r["kind"], r["method"]) == (kind, name)]
            assert row["nfe"] == nfe and len(rows) == 3
            psnr = [r["psnr"] for r in rows]
            assert row["mean"]["psnr"] == pytest.approx(np.mean(psnr))
            assert row["median"]["psnr"] == pytest.approx(np.median(psnr))
            assert row["sd"]["psnr"] == pytest.approx(np.std(psnr, ddof=1))


def test_a_model_compared_with_itself_on_other_pictures_does_not_differ(checkpoints, tmp_path):
    same = dict.fromkeys(checkpoints, checkpoints["v2_checkpoint"])
    other = write_pictures(tmp_path / "other.npz", channels=3, seed=1, count=8)
    results = script.evaluate(config(same, tmp_path / "out", num_samples=1000, ensemble=2,
                                     data_test=str(other), sampler="euler"))
    assert results["settings"]["pictures"] == 8
    for found in results["differences"].values():
        assert not np.nan_to_num([list(change.values()) for change in found.values()]).any()
    text = (tmp_path / "out/comparison_results.txt").read_text()
    assert "8 of 8 test pictures" in text
    assert "NOTE: V1 below is a MAMBADiffusionV2, V2 a MAMBADiffusionV2" in text
    assert "cannot be told apart" in text.splitlines()[2]


def test_the_report_has_the_blocks_that_people_search_for(compared):
    """The waves have no flat area: no flat_hf, and no nan in the report."""
    results, folder = compared
    text = (folder / "comparison_results.txt").read_text()
    assert math.isnan(results["summary"]["mean"]["V1"]["mean"]["flat_hf"])
    assert "nan" not in text and "flat_hf (" not in text
    for kind in ("mean", "sample"):
        v1, v2 = (results["summary"][kind][name] for name in ("V1", "V2"))
        gain = v2["mean"]["psnr"] - v1["mean"]["psnr"]
        assert (
            "PSNR:\n"
            f"  V1: {v1['mean']['psnr']:.2f} ± {v1['sd']['psnr']:.2f} dB\n"
            f"  V2: {v2['mean']['psnr']:.2f} ± {v2['sd']['psnr']:.2f} dB\n"
            f"  Improvement: {gain:+.2f} dB ({100 * gain / v1['mean']['psnr']:+.1f}%)\n"
        ) in text
    assert text.count("\nSSIM:\n") == 2
    v1, v2 = (results["summary"]["sample"][name]["seconds"] for name in ("V1", "V2"))
    assert (f"Seconds of a sample:\n  V1: {v1:.3f} s\n  V2: {v2:.3f} s "
            f"({100 * (v2 / v1 - 1):+.1f}%)") in text
    top = text.splitlines()[2:5]
    assert "posterior mean" in top[0] and "without training" in top[1] and "too" in top[2]
    for word in ("kriging", "biharmonic", "Hardware", "NFE", "parameters", "seed 0"):
        assert word in text


def test_samples_stand_beside_what_an_exact_posterior_has(compared):
    summary = compared[0]["summary"]
    for name in ("V1", "V2"):
        mean, sample = summary["mean"][name], summary["sample"][name]
        assert sample["expected_psnr"] == pytest.approx(mean["mean"]["psnr"] - 10 * math.log10(2))
        ratio = sample["mean"]["variance"] / sample["mean"]["squared_error"]
        assert sample["spread_error"] == pytest.approx(math.sqrt(ratio))
    text = (compared[1] / "comparison_results.txt").read_text()
    assert text.count("under-dispersion, not quality") == 1
    assert "V1: not calibrated (its training has not come to its end)" in text


def test_samples_are_compared_after_each_models_own_calibration(checkpoints, tmp_path):
    """Factors that shrink: the ratio follows, and PSNR rises although nothing got better."""
    shrunk = {}
    for (key, path), factor in zip(checkpoints.items(), (0.25, 0.5), strict=True):
        checkpoint = load_checkpoint(path)
        checkpoint["calibration"] = {"spread": factor, "raw": 0.8, "calibrated": 0.9,
                                     "pictures": 8, "fitted_on": 8}
        shrunk[key] = str(tmp_path / f"{key}.pth")
        save_checkpoint(tmp_path / f"{key}.pth", checkpoint)
    results = script.evaluate(config(shrunk, tmp_path / "out", ensemble=3, num_steps=3))
    for name, factor in (("V1", 0.25), ("V2", 0.5)):
        raw, calibrated = (results["summary"][kind][name] for kind in ("sample", "calibrated"))
        assert calibrated["spread_error"] < 1.2 * factor * raw["spread_error"]
        assert calibrated["mean"]["psnr"] > raw["mean"]["psnr"]
    assert set(results["differences"]) == {"mean", "sample", "calibrated"}
    text = (tmp_path / "out/comparison_results.txt").read_text()
    assert "after each model's own calibrated spread" in text and "fitted on 8 others" in text
    assert "V1 calibrated" in text and "NOTE: the spread was fitted to samples by" in text
    assert "in the intervals of 50% and 90% (of 3 samples at most 50%)" in text


@pytest.mark.parametrize("change, of, text", [
    (3.67, 28.45, "+12.9%"), (-1e-9, 1, "+0.0%"), (0.1, 0.0, "undefined: V1 has 0"),
])
def test_percentages(change, of, text):
    assert tables.percent(change, of) == text


def test_weights_that_learnt_nothing_or_another_pattern_are_told_on_top(checkpoints, tmp_path):
    for key, path in checkpoints.items():
        stored = load_checkpoint(path) | {"step": 9, "learnt": key != "v2_checkpoint"}
        stored["config"]["observe"] = "grid:2"
        save_checkpoint(tmp_path / f"{key}.pth", stored)
    given = {key: str(tmp_path / f"{key}.pth") for key in checkpoints}
    script.evaluate(config(given, tmp_path / "out"))
    text = (tmp_path / "out/comparison_results.txt").read_text()
    assert text.splitlines()[2].startswith("V2 learnt nothing") and "V1 learnt nothing" not in text
    assert "Observed:  random:0.2" in text and "NOTE: V1 was trained with --observe grid:2" in text


def test_trainings_that_differ_beyond_the_model_are_told(checkpoints, pictures, tmp_path):
    other = write_checkpoint(tmp_path / "v2", "V2", pictures, zero_share=0.5, lr=2e-3, device="mps")
    settings = config({**checkpoints, "v2_checkpoint": str(other)}, tmp_path)
    loaded = {name: script.load(name, getattr(settings, f"{name.lower()}_checkpoint"))
              for name in NAMES}
    assert script.differences_in_training(loaded) == {
        "prior": ["none", "fitted"], "unet_width": [0, 48], "flow_unet_width": [0, 48],
        "zero_share": [0.25, 0.5], "lr": [1e-3, 2e-3]
    }


def test_one_folder_spelled_in_two_ways_is_no_difference(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    given = {}
    for (key, path), data in zip(checkpoints.items(), ("pics", f"{tmp_path}/pics/"), strict=True):
        stored = load_checkpoint(path)
        stored["config"] |= {"data": data, "observe": data, "data_val": data}
        save_checkpoint(tmp_path / f"{key}.pth", stored)
        given[key[:2].upper()] = load_checkpoint(tmp_path / f"{key}.pth")
    of_v1 = {"prior", "unet_width", "flow_unet_width"}  # V1 as described has other defaults
    assert set(script.differences_in_training(given)) == of_v1
    given["V2"]["config"]["observe"] = "elsewhere"
    assert set(script.differences_in_training(given)) == of_v1 | {"observe"}


# --- seeds ---------------------------------------------------------------------------------------


def of_seed(path: str, seed: int, to: Path, **config) -> str:
    """The same checkpoint as if of a training with another seed: other weights, too."""
    checkpoint = load_checkpoint(path)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: value + 0.01 * torch.randn(value.shape, generator=generator)
               for name, value in checkpoint["weights"].items()}
    changed = {**checkpoint, "weights": weights,
               "config": {**checkpoint["config"], "seed": seed, **config}}
    save_checkpoint(to, changed)
    return str(to)


@pytest.fixture(scope="module")
def seeds(checkpoints, tmp_path_factory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("seeds")
    return {f"{name}_seeds": tuple(
        of_seed(checkpoints[f"{name}_checkpoint"], seed, folder / f"{name}_{seed}.pth")
        for seed in (1, 2)) for name in ("v1", "v2")}


def test_the_report_says_how_far_seeds_differ(checkpoints, seeds, tmp_path):
    results = script.evaluate(config({**checkpoints, **seeds}, tmp_path / "all"))
    row = results["seeds"]["sample"]["crps"]["V2 - V1"]
    assert len(row["each"]) == 3 and row["mean"] == pytest.approx(np.mean(row["each"]))
    assert row["sd"] == pytest.approx(np.std(row["each"], ddof=1)) and row["sd"] > 0
    assert row["each"][0] == pytest.approx(results["differences"]["sample"]["crps"]["mean"])
    text = (tmp_path / "all/comparison_results.txt").read_text()
    assert "Over 3 seeds of training" in text and "nan" not in text


@pytest.mark.parametrize("changes, reason", [
    ({}, "equally many"), ({"seed": 0}, "trained with seed 0"),
    ({"seed": 7, "lr": 0.5}, "differs in lr"),
])
def test_seeds_of_other_trainings_are_refused(checkpoints, seeds, tmp_path, changes, reason):
    own = ()
    if changes:
        own = (of_seed(checkpoints["v1_checkpoint"], to=tmp_path / "other.pth", **changes),
               seeds["v1_seeds"][1])
    assert reason in refused(config({**checkpoints, **seeds, "v1_seeds": own}, tmp_path / "out"))


# --- refusals ------------------------------------------------------------------------------------


def refused(settings: script.Config) -> str:
    with pytest.raises(UserError) as error:
        script.evaluate(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key, name, words", [
    ("v1_checkpoint", "none.pth", "train V1 first: ./run_mamba_training.sh"),
    ("v1_checkpoint", "v1_best.pth", "v1_latest.pth, which is there"),
    ("v2_checkpoint", "none.pth", "train V2 first: ./run_mamba_v2_training.sh"),
])
def test_a_missing_checkpoint_says_what_to_train(checkpoints, tmp_path, key, name, words):
    (tmp_path / "v1_latest.pth").touch()
    missing = {**checkpoints, key: str(tmp_path / name)}
    assert words in refused(config(missing, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case, reason", [
    ("swapped", "exchange the two paths"), ("other", "train both on the same data"),
    ("grey", "3 channels and V2 with 1"), ("range", "train both with the same VALUE_RANGE"),
])
def test_models_that_cannot_be_compared_are_refused(checkpoints, tmp_path, case, reason):
    pair = dict(checkpoints)
    if case == "swapped":
        pair = dict(zip(pair, reversed(pair.values()), strict=True))
    elif case == "range":
        checkpoint = load_checkpoint(pair["v2_checkpoint"])
        checkpoint["data"]["value_range"] = [[0.0, 300.0]] * 3
        pair["v2_checkpoint"] = str(tmp_path / "v2.pth")
        save_checkpoint(tmp_path / "v2.pth", checkpoint)
    else:
        own = write_pictures(tmp_path / "own.npz", channels=1 if case == "grey" else 3, seed=1)
        pair["v2_checkpoint"] = str(write_checkpoint(tmp_path / "v2", "V2", own))
    assert reason in refused(config(pair, tmp_path / "out"))


def test_test_data_that_do_not_fit_changed_or_vanished_are_refused(checkpoints, tmp_path):
    grey = write_pictures(tmp_path / "grey.npz", channels=1)
    message = refused(config(checkpoints, tmp_path / "out", data=str(grey)))
    assert "1 channels, the model was trained with 3" in message
    path = write_pictures(tmp_path / "mine.npz", channels=3)
    both = {f"{name.lower()}_checkpoint": str(write_checkpoint(tmp_path / name, name, path))
            for name in NAMES}
    write_pictures(path, channels=3, seed=9)
    assert "its contents differ" in refused(config(both, tmp_path / "out"))
    path.unlink()
    assert "which is not here" in refused(config(both, tmp_path / "out"))


@pytest.mark.parametrize("changes, reason", [
    ({"sampler": "magic"}, "unknown sampler"), ({"sampler": "mean"}, "draws no sample"),
    ({"num_steps": 0}, "at least 1 step"), ({"num_samples": 0}, "num_samples=0"),
    ({"batch_size": 0}, "batch_size=0"), ({"ensemble": 0}, "ensemble=0"),
    ({"device": "tpu"}, "device='tpu'"),
    ({"observe": "some"}, "random:0.2"), ({"save_dir": "/dev/null/x"}, "choose another folder"),
])
def test_impossible_settings_are_refused(checkpoints, tmp_path, changes, reason):
    assert reason in refused(config(checkpoints, tmp_path, **changes))


# --- as a person runs it -------------------------------------------------------------------------


def test_from_two_short_trainings_to_the_report(tmp_path):
    """From the latest checkpoints: so short a run need not beat its start, and then has no best."""
    pictures = write_pictures(tmp_path / "pictures.npz", channels=3)
    common = ["--data", str(pictures), "--epochs", "1", "--batch_size", "18", "--d_model", "16",
              "--num_layers", "2", "--unet_width", "8", "--flow_unet_width", "4",
              "--neighbours", "4", "--queries_min", "16", "--queries_max", "32",
              "--eval_pictures", "2", "--device", "cpu"]
    train_mamba.main([*common, "--heads", "2", "--save_dir", str(tmp_path / "v1")])
    train_mamba_v2.main([*common, "--perceiver_heads", "2", "--save_dir", str(tmp_path / "v2")])
    result = run(
        "eval_v1_vs_v2.py", "--v1_checkpoint", str(tmp_path / "v1/mamba_latest.pth"),
        "--v2_checkpoint", str(tmp_path / "v2/mamba_v2_latest.pth"), "--num_samples", "2",
        "--num_steps", "2", "--device", "cpu", "--save_dir", str(tmp_path / "out"), "--json",
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["settings"]["pictures"] == 2
    assert (tmp_path / "out/improvement_chart.png").stat().st_size > 10_000


@pytest.mark.parametrize("said, bounds", [((0.0, 255.0), (0, 255)), (None, (115, 160))])
def test_a_range_that_was_said_in_training_holds_in_the_test(tmp_path, said, bounds):
    """Also where it is that of pixels, which other floats do not have."""
    fields = np.random.default_rng(0).uniform(0, 255, (40, 8, 8, 1))
    np.savez(tmp_path / "a.npz", images=fields if said else fields.astype(np.uint8))
    np.savez(tmp_path / "b.npz", images=115 + 45 * fields / 255)
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "v2", "V2", tmp_path / "a.npz",
                                                  value_range=said))
    checkpoint["data"]["value_range"] = [[0.0, 255.0]]
    opened = open_test_data(checkpoint, test=str(tmp_path / "b.npz"))
    assert opened.scale.value_range[0] == pytest.approx(bounds, abs=1)


@pytest.mark.parametrize("units, is_said", [("degF", True), ("degC", False), (None, False)])
def test_other_units_than_those_of_the_training_are_said(tmp_path, caplog, units, is_said):
    fields = np.random.default_rng(0).uniform(5, 25, (40, 8, 8, 1))
    np.savez(tmp_path / "a.npz", images=fields, units="degC")
    np.savez(tmp_path / "b.npz", images=fields, **({"units": units} if units else {}))
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "v2", "V2", tmp_path / "a.npz"))
    with caplog.at_level("WARNING", logger="sparsefield"):
        opened = open_test_data(checkpoint, data=str(tmp_path / "b.npz"))
    assert opened.units == (units or "degC")
    assert ("degF, and the model was trained on 5" in caplog.text) == is_said


def test_a_disk_that_fails_at_the_end_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path, "--save_dir", ["a", "b", "c"])
    folder.write({"a": b"1", "c": b"1"})
    written = []

    def full(file):
        written.append(file)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            folder.write({"a": b"2", "b": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "c": b"1"}
    folder.write({"a": b"2", "b": b"2"})
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}  # c was of an earlier run


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match=r"thesis.txt.*--overwrite"):
        OutputFolder(tmp_path, "--save_dir", ["a"])
    OutputFolder(tmp_path, "--save_dir", ["a"], overwrite=True).write({"a": b"ours"})
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is an input"):
        OutputFolder(tmp_path, "--save_dir", ["a"], [tmp_path / "a"], overwrite=True)
