"""Make a checkpoint fit for sharing: half precision, calibrated, without folders of this machine.

    python scripts/ship.py TRAINED.pth checkpoints_mamba_v2/mamba_v2_best.safetensors

The samples are calibrated on the validation data of the training if they are not yet with as many
steps as the model takes, so these must be where the training found them. A V2 that was trained with
START_SHARE=1 is written without a flow, unless that has learnt in epochs that were added.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsefield import cli
from sparsefield.data import open_as_configured, parse_pattern
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import PICTURES, calibrate, describe
from sparsefield.model.checkpoint import (
    build_model,
    find_model,
    load_checkpoint,
    save_safetensors,
)
from sparsefield.train.report import Validation

STILL = {"d_model": 16, "num_layers": 0, "perceiver_iterations": 0, "perceiver_heads": 2,
         "neighbours": 0, "flow_unet_width": 0}  # of a model without a flow
PATHS = ("data", "data_val", "data_test", "data_dir", "save_dir", "log_file", "init_from",
         "init_from_v1", "start_from")
TOGETHER = 4  # pictures per model call


def ship(source: Path, target: Path) -> None:
    """Raises UserError where a checkpoint cannot be read, or a file that is none would be lost."""
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: weights are shared as .safetensors: give such a name")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target} is the checkpoint that is read: write to another file")
    if target.exists():
        load_checkpoint(target)  # what is replaced must be one, too
    checkpoint = load_checkpoint(source)
    if checkpoint["config"].get("start_share") == 1 and checkpoint.get("stage") != "flow":
        checkpoint = without_flow(checkpoint)
    config = checkpoint["config"]
    model = build_model(checkpoint)
    if checkpoint.get("calibration", {}).get("num_steps") != model.num_steps:
        val = open_as_configured(config).val
        most = len(val) if config.get("standardise") else PICTURES  # of many kinds: all
        pattern = parse_pattern(config["observe"], config.get("noise", "0"))
        validation = Validation(val, pattern, most, TOGETHER, torch.device("cpu"))
        found = calibrate(model, validation.cases, most=most)
        print(describe(found))
        checkpoint["calibration"] = found
    slim = {key: value for key, value in checkpoint.items() if key != "resume"}
    slim["shipped"] = True
    slim["weights"] = {name: tensor.half() for name, tensor in checkpoint["weights"].items()}
    slim["config"] = {key: Path(value).name if key in PATHS and value else value
                      for key, value in config.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(target, slim)


def without_flow(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The grid U-Nets for mean and sd alone, whose samples are Gaussian; to be calibrated again."""
    if "perceiver_iterations" not in checkpoint["model_args"]:
        raise UserError(f"{checkpoint['model_class']}: only a V2 is written without a flow; train "
                        "this with START_SHARE below 1")
    fresh = checkpoint["model_args"] | STILL
    weights = find_model(checkpoint["model_class"])(**fresh).state_dict()
    kept = {name: checkpoint["weights"][name] for name in weights if name.startswith("unet.")}
    config = checkpoint["config"] | {k: v for k, v in STILL.items() if k in checkpoint["config"]}
    return {**checkpoint, "model_args": fresh, "weights": weights | kept, "config": config,
            "calibration": {}}


def main() -> None:
    if len(sys.argv) != 3:
        raise UserError("give two paths: the trained checkpoint, and where to write")
    ship(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
