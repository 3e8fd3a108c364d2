"""The way of a person who has nothing yet: two short trainings, one report."""

from __future__ import annotations

import json

from small import run, write_pictures

import train_mamba
import train_mamba_v2


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
    assert "picture" in result.stderr  # the progress bar
    assert (tmp_path / "out/improvement_chart.png").stat().st_size > 10_000
