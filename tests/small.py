"""What tests of several wings share: small data, tiny trainings, untrained checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import train_mamba
import train_mamba_v2
from sparsefield.data import open_data
from sparsefield.model.checkpoint import FORMAT, digest, load_checkpoint, save_checkpoint
from sparsefield.train import loop

ROOT = Path(__file__).parents[1]
WHOLE = dict(epochs=3, dropout=0.1)  # the training that tests/train compares others with
SIZE = dict(d_model=16, num_layers=2, neighbours=4, unet_width=8, flow_unet_width=4)
NAMES = {"V1": (train_mamba, train_mamba.MAMBADiffusion, dict(heads=2)),
         "V2": (train_mamba_v2, train_mamba_v2.MAMBADiffusionV2, dict(perceiver_heads=2))}

# --- data ----------------------------------------------------------------------------------------


def write_ramps(path: Path) -> Path:
    """60 pictures of 8 x 8 whose brightness rises from top to bottom."""
    rng = np.random.default_rng(0)
    ramps = rng.integers(0, 255, (60, 1, 1, 3)) * np.linspace(0.2, 1, 8)[None, :, None, None]
    np.savez(path, images=np.broadcast_to(ramps, (60, 8, 8, 3)).astype(np.uint8))
    return path


def write_pictures(path: Path, channels: int, seed: int = 0, count: int = 60) -> Path:
    """Smooth random pictures, 16 x 16: a twentieth of them is the test."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.5, 3, (count, 2, channels)), rng.uniform(0, 6, (count, channels))
    y, x = np.mgrid[:16, :16] / 16
    phase = x[..., None] * waves[0][:, None, None, 0] + y[..., None] * waves[0][:, None, None, 1]
    images = 0.5 + 0.5 * np.sin(2 * np.pi * phase + waves[1][:, None, None])
    np.savez(path, images=(255 * images).round().astype(np.uint8))
    return path


# --- trainings -----------------------------------------------------------------------------------


def settings(data: Path, folder: Path, **changes) -> train_mamba_v2.Config:
    """Of a V2 that trains on `write_ramps` in a second: two epochs of six steps."""
    tiny = dict(
        data=str(data), save_dir=str(folder), d_model=16, num_layers=2, perceiver_iterations=1,
        perceiver_heads=2, neighbours=4, unet_width=8, flow_unet_width=4,
        batch_size=8, epochs=2, queries_min=8, queries_max=16,
        eval_pictures=2, eval_every=1, save_every=1, warmup=2, lr=1e-3, device="cpu",
    )
    return train_mamba_v2.Config(**{**tiny, **changes})


def train(config: train_mamba_v2.Config) -> None:
    loop.train(config, train_mamba_v2.MAMBADiffusionV2, "mamba_v2")


def flags(config: train_mamba_v2.Config) -> list[str]:
    """The command line of settings."""
    return [word for name, value in vars(config).items() if value is not None
            for word in (f"--{name}", str(value))]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder) if "loss" in record]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["weights"]


def records(folder: Path) -> list[dict]:
    """What a training logged, without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = {"minutes", "samples_per_s", "data_wait", "memory_mb"}
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def assert_same(a: object, b: object) -> None:
    """Nested dictionaries and lists of tensors and plain values, equal to the last bit."""
    assert digest(a) == digest(b)


# --- models without training ---------------------------------------------------------------------


def write_untrained(
    path: Path, channels: int = 3, value_range: tuple[float, float] = (0.0, 255.0),
    change=lambda weights: weights, sizes: dict | None = None, **more,
) -> str:
    """The smallest V2 there is, for data of a range; `change` is made to its weights."""
    torch.manual_seed(0)
    arguments = dict(channels=channels, d_model=8, num_layers=2, perceiver_heads=2,
                     perceiver_iterations=1, neighbours=4, num_frequencies=4) | (sizes or {})
    save_checkpoint(path, {
        "format": FORMAT, "model_class": "MAMBADiffusionV2", "model_args": arguments,
        "weights": change(train_mamba_v2.MAMBADiffusionV2(**arguments).state_dict()),
        "data": {"channels": channels, "value_range": [list(value_range)] * channels,
                 "units": None if channels == 3 else "degC"},
        "config": {}, "step": 1, "epoch": 1, **more,
    })
    return str(path)


def write_checkpoint(
    path: Path, name: str, data_spec: str | Path, std: float = 0.1, **config_changes
) -> Path:
    """V1 or V2 as training would save it, whose decoder does something: `std` of its weights."""
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
