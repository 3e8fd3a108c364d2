"""Small pictures, and checkpoints of untrained models whose decoder does something."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import train_mamba
import train_mamba_v2
from sparsefield.model.checkpoint import FORMAT, save_checkpoint
from sparsefield.data import open_data

ROOT = Path(__file__).parents[1]
SIZE = dict(d_model=16, num_layers=2, neighbours=4)
NAMES = {"V1": (train_mamba, train_mamba.MAMBADiffusion, dict(heads=2)),
         "V2": (train_mamba_v2, train_mamba_v2.MAMBADiffusionV2, dict(perceiver_heads=2))}


def write_pictures(path: Path, channels: int, seed: int = 0, count: int = 60) -> Path:
    """Smooth random pictures, 16 x 16: a twentieth of them is the test."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.5, 3, (count, 2, channels)), rng.uniform(0, 6, (count, channels))
    y, x = np.mgrid[:16, :16] / 16
    phase = x[..., None] * waves[0][:, None, None, 0] + y[..., None] * waves[0][:, None, None, 1]
    images = 0.5 + 0.5 * np.sin(2 * np.pi * phase + waves[1][:, None, None])
    np.savez(path, images=(255 * images).round().astype(np.uint8))
    return path


def write_checkpoint(
    path: Path, name: str, data_spec: str | Path, std: float = 0.1, **config_changes
) -> Path:
    """V1 or V2 as training would save it; `std` of the last layer's weights."""
    module, model_class, heads = NAMES[name]
    data = open_data(str(data_spec), image_size=config_changes.get("image_size"))
    arguments = {**SIZE, **heads, "channels": data.channels}
    torch.manual_seed(len(name) + (name == "V2"))
    model = model_class(**arguments)
    torch.nn.init.normal_(model.decoder[-1].weight, std=std)
    config = {**asdict(module.Config(data=str(data_spec))), **config_changes}
    save_checkpoint(path, {
        "format": FORMAT, "model_class": model_class.__name__, "model_args": arguments,
        "weights": model.state_dict(), "data": data.describe(), "config": config,
        "step": 7, "epoch": 1, "metrics": {},
    })
    return path


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """A command of the project, as a person runs it."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
