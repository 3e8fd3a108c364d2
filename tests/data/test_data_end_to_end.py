"""One command each trains on every kind of data, and both evaluations work on what it trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import eval_sde_multiscale
import eval_v1_vs_v2
import train_mamba
import train_mamba_v2
from sparsefield import load
from sparsefield.errors import UserError

UNITS, RNG = "degC", np.random.default_rng(0)
SMALL = ["--epochs", "1", "--d_model", "16", "--num_layers", "2", "--batch_size", "12",
         "--unet_width", "8", "--flow_unet_width", "4", "--neighbours", "4",
         "--queries_min", "16", "--queries_max", "32", "--eval_pictures", "2",
         "--image_size", "16", "--device", "cpu", "--lr", "1e-3"]


def pictures(folder) -> list[str]:
    for k, (height, width) in enumerate([(20, 31), (64, 40), (17, 17)] * 5):
        pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.{('png', 'jpg', 'webp')[k % 3]}")
    return ["--data", str(folder)]


def sea(folder) -> list[str]:
    y, x = np.mgrid[:16, :16] / 16
    fields = np.stack([np.sin(6 * x + a) * np.cos(5 * y + b) for a, b in 6 * RNG.random((20, 2))])
    fields[:, :4, :5] = np.nan
    np.savez(folder / "sea.npz", images=fields.astype(np.float32), units=UNITS)
    return ["--data", str(folder / "sea.npz"), "--value_range", "-2", "2"]


@pytest.mark.parametrize("make", [pytest.param(pictures, marks=pytest.mark.long), sea])
def test_train_and_evaluate(make, tmp_path):
    (tmp_path / "source").mkdir()
    data = [*make(tmp_path / "source"), *SMALL]
    train_mamba.main([*data, "--heads", "2", "--save_dir", str(tmp_path / "v1")])
    train_mamba_v2.main([*data, "--perceiver_heads", "2", "--perceiver_iterations", "1",
                         "--save_dir", str(tmp_path / "v2")])
    v1, v2 = tmp_path / "v1/mamba_latest.pth", tmp_path / "v2/mamba_v2_latest.pth"

    eval_v1_vs_v2.main(["--v1_checkpoint", str(v1), "--v2_checkpoint", str(v2), "--num_steps", "2",
                        "--num_samples", "2", "--save_dir", str(tmp_path / "a"), "--device", "cpu"])
    compared = json.loads((tmp_path / "a/comparison_results.json").read_text())
    scores = [row["psnr"] for row in compared["table"]
              if (row["kind"], row["method"]) == ("mean", "V2")]
    assert scores and np.isfinite(scores).all()

    eval_sde_multiscale.main(["--checkpoint", str(v2), "--num_steps", "2", "--num_samples", "2",
                              "--resolutions", "16", "--ensemble", "2", "--device", "cpu",
                              "--save_dir", str(tmp_path / "b")])
    reports = (tmp_path / "a/comparison_results.txt", tmp_path / "b/metrics_comparison.txt")
    for report in reports:
        assert (f"-2 to 2 {UNITS}" in report.read_text()) == (make is sea)
    assert (tmp_path / "b/multiscale_comparison.png").stat().st_size > 10_000


def test_a_model_of_any_quantity_learns_from_fields_with_gaps_and_reads_any_unit(tmp_path):
    data = [*sea(tmp_path), *SMALL, "--standardise", "True", "--eval_pictures", "4"]
    train_mamba_v2.main([*data, "--perceiver_heads", "2", "--save_dir", str(tmp_path / "v2")])
    eval_sde_multiscale.main(["--checkpoint", str(tmp_path / "v2/mamba_v2_latest.pth"),
                              "--num_steps", "2", "--num_samples", "2", "--resolutions", "16",
                              "--ensemble", "2", "--device", "cpu",
                              "--save_dir", str(tmp_path / "b")])
    model = load(str(tmp_path / "v2/mamba_v2_best.pth"))
    assert model.scale.is_standard and model.scale.units is None
    coords, values = np.random.default_rng(0).random((2, 20, 2))
    one, other = (model.reconstruct(coords, given, 4, num_samples=2)
                  for given in (values, 5 + 1000 * values))
    np.testing.assert_allclose((other.samples - 5) / 1000, one.samples, atol=1e-4)
    with pytest.raises(UserError, match="set TIME=1"):
        train_mamba_v2.main([*data, "--time", "2"])
