from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import eval_sde_multiscale as script
from small import write_checkpoint
from sparsefield import cli
from sparsefield.data import open_data, parse_pattern
from sparsefield.evaluate.cases import ENLARGED, Cases, spread, with_finest_truth
from sparsefield.evaluate.metrics import block_sums
from sparsefield.evaluate.tables import recommendation
from sparsefield.model.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """V2 for photographs of 16 x 16, whose truth is known up to 256 x 256."""
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "v2.pth", "V2", "photos", 0.02, image_size=16
    )


def config(checkpoint: Path, folder: Path, **changes) -> script.Config:
    settings = dict(resolutions=(16, 32), num_steps=2, num_samples=3, ensemble=3, device="cpu")
    return script.Config(checkpoint=str(checkpoint), save_dir=str(folder), **settings | changes)


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("report")
    return script.evaluate(config(checkpoint, folder, steps_sweep=(1, 3), eta=0.5)), folder


# --- results -------------------------------------------------------------------------------------


def test_all_files_are_written_and_the_json_is_strict(evaluated):
    results, folder = evaluated
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "diversity.png", "metrics_comparison.json", "metrics_comparison.txt",
        "multiscale_comparison.png", "performance_chart.png", "uncertainty.png",
    ]
    stored = json.loads((folder / "metrics_comparison.json").read_text(),
                        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(stored["table"]) == len(results["table"])
    assert all(np.asarray(Image.open(path)).std() > 10 for path in folder.glob("*.png"))


def test_every_sampler_is_scored_at_every_resolution_against_real_truth(evaluated):
    results, _ = evaluated
    for summary in (results["summary"][resolution] for resolution in ("16", "32")):
        assert list(summary["baseline"]) == [ENLARGED, "thin-plate RBF", "kriging, one kernel",
                                             "kriging, fitted"]
        assert {name: row["nfe"] for name, row in summary["sample"].items()} == {
            "heun": 3, "sde": 2, "ddim": 2}
        assert (summary["mean"]["mean"]["nfe"], summary["baseline"][ENLARGED]["nfe"]) == (1, 0)
    counts = results["table"].groupby(["rows", "kind", "method", "steps"])["psnr"].count()
    assert set(counts) == {3}


def test_the_report_shows_each_number_once(evaluated):
    results, folder = evaluated
    sweep = results["summary"]["16"]["sweep"]
    assert {name: row["nfe"] for name, row in sweep.items()} == {
        "heun, 1": 1, "heun, 3": 5, "sde, 1": 1, "sde, 3": 3, "ddim, 1": 1, "ddim, 3": 3}
    assert set(results["uncertainty"]) == {"heun", "sde", "ddim"}
    assert len(results["uncertainty"]["sde"]["ranks"]) == 4
    lines = (folder / "metrics_comparison.txt").read_text().splitlines()
    assert "kriging, fitted" in lines[2] and "Samples of heun" in lines[3]
    assert lines[4].startswith("No sampler is recommended: 3 pictures are too few")
    for start in ("Point estimates, 16 x 16: against the real", "Point estimates, 32 x 32: against",
                  "Samples, 16 x 16", "Samples, 32 x 32", "Steps of the samplers, 16 x 16",
                  "under-dispersion, not quality", "90% (of 3 samples at most 50%)"):
        assert "\n".join(lines).count(start) == 1


def test_fields_with_finer_truth_are_chosen_and_their_average_is_the_base():
    data = open_data("photos", image_size=16)
    assert data.test.high_resolution(255, 256) is None  # the last of the evenly spread ones
    known = with_finest_truth(data.test, (16, 256))
    cases = Cases(data.test, parse_pattern("random:0.2"), spread(known, 4), resolutions=(16, 256))
    assert len(cases) == 4 and 255 not in known
    for case in cases:
        np.testing.assert_allclose(block_sums(case.truths[256], 16) / 256, case.truth, atol=1e-6)


def test_v1_and_data_without_finer_truth(tmp_path):
    arrays = tmp_path / "fields.npz"
    fields = np.random.default_rng(0).integers(0, 255, (60, 8, 12, 1), dtype=np.uint8)
    np.savez(arrays, images=fields)
    path = write_checkpoint(tmp_path / "v1.pth", "V1", arrays, 0.02)
    results = script.evaluate(config(path, tmp_path / "out", resolutions=(8, 16), ensemble=0,
                                     samplers=("sde", "mean")))
    defined = results["summary"]["16"]["mean"]["mean"]["mean"]
    assert {name for name, value in defined.items() if not np.isnan(value)} == {"psnr_base"}
    assert results["uncertainty"] == {} and "sweep" not in results["summary"]["8"]
    text = (tmp_path / "out" / "metrics_comparison.txt").read_text()
    assert "16 x 24: no truth of that size in the data" in text and "8 x 12: against" in text
    assert not (tmp_path / "out" / "diversity.png").exists()


def test_blocks_are_said(checkpoint, tmp_path):
    results = script.evaluate(config(checkpoint, tmp_path, resolutions=(32,), points=300,
                                     samplers=("heun", "mean"), ensemble=0))
    summary = results["summary"]["32"]
    for row in (summary["sample"]["heun"], summary["mean"]["mean"]):
        assert "4 blocks of 256 with 150 around" in row["how"]


def test_default_resolutions_are_multiples_of_the_models_own(tmp_path):
    path = write_checkpoint(tmp_path / "v2.pth", "V2", "photos", 0.02, image_size=24)
    results = script.evaluate(script.Config(
        checkpoint=str(path), save_dir=str(tmp_path / "out"), samplers=("mean",), num_samples=1,
        ensemble=0, device="cpu"))
    assert list(results["summary"]) == ["24", "48", "72"]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
    ("--checkpoint nowhere.pth", "nowhere.pth does not exist"),
    ("--samplers magic", "unknown sampler 'magic'"),
    ("--samplers heun heun", "each once"),
    ("--samplers sde --temperature -1", "temperature"),
    ("--samplers ddim --eta 2", "eta"),
    ("--num_steps 0", "num_steps"),
    ("--resolutions 16 40", "multiples of the 16 rows"),
    ("--points 0", "points"),
    ("--ensemble 1", "at least 2 samples"),
    ("--ensemble 0 --steps_sweep 1 2", "--ensemble"),
    ("--steps_sweep 0", "at least 1"),
])
def test_refusals_are_one_line_and_exit_code_2(checkpoint, capsys, flags, words, tmp_path):
    defaults = {"--checkpoint": str(checkpoint), "--save_dir": str(tmp_path),
                "--resolutions": "16"}
    given = flags.split()
    arguments = given + [part for name, value in defaults.items() if name not in given
                         for part in (name, value)]
    assert cli.run(lambda: script.main(arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and "Traceback" not in error


def test_the_report_shows_samples_before_and_after_calibration(checkpoint, tmp_path):
    stored = load_checkpoint(checkpoint)
    stored["calibration"] = {"spread": [1.3, 1.3, 1.2], "raw": [0.8] * 3, "calibrated": [0.9] * 3,
                             "pictures": 16, "fitted_on": 15, "num_steps": 77}
    save_checkpoint(tmp_path / "v2.pth", stored)
    results = script.evaluate(config(tmp_path / "v2.pth", tmp_path / "out", resolutions=(16,),
                                     samplers=("heun",)))
    summary = results["summary"]["16"]
    raw, wide = (summary[kind]["heun"]["spread_error"] for kind in ("sample", "calibrated"))
    assert 1.1 * raw < wide < 1.3 * raw
    text = (tmp_path / "out" / "metrics_comparison.txt").read_text()
    assert "heun calibrated" in text and "with the spread times 1.30 / 1.30 / 1.20" in text
    assert "with 77 steps; these samples take" in " ".join(text.split())
    assert text.count("heun: in 90%, by channel: 0.") == 1


# --- samples -------------------------------------------------------------------------------------


def scored(**samplers: tuple[np.ndarray, float]) -> pd.DataFrame:
    """The table of samples with a CRPS of each picture and seconds."""
    return pd.concat([pd.DataFrame({"kind": "sample", "method": name, "crps": crps,
                                    "picture": range(len(crps)), "seconds": seconds})
                      for name, (crps, seconds) in samplers.items()], ignore_index=True)


def test_a_sampler_is_recommended_from_enough_pictures_and_with_an_interval():
    rng = np.random.default_rng(0)
    one, other = (0.02 + 0.005 * rng.random(64) for _ in range(2))
    worse = one + 0.001 * rng.random(64)
    text = recommendation(scored(heun=(one, 2.0), sde=(worse, 1.0)), seed=0)
    assert "Recommended by CRPS on 64 pictures: heun." in text and "sde − heun: +0.0005" in text
    few = scored(heun=(one[:63], 2.0), sde=(worse[:63], 1.0))
    assert "63 pictures are too few" in recommendation(few, seed=0)
    text = recommendation(scored(heun=(one, 2.0), sde=(other, 1.0), ddim=(one + 1, 0.1)), seed=0)
    assert "64 pictures: sde, the fastest of those not told apart" in text
    assert "No sampler" in recommendation(scored(sde=(other, 1.0)), seed=0)
