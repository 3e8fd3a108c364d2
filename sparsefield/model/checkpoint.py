"""Checkpoints: written atomically, read without executing anything, models rebuilt from them.

A checkpoint is a dictionary of plain types and tensors:

    format        FORMAT                     model_class   "MAMBADiffusionV2"
    model_args    constructor arguments      weights       state dict of the averaged model
    data          what the data set was      config        settings of the training
    step, epoch   completed                  metrics       of the last validation
    stage         "start" or "flow", of the last step
    learnt        whether the best weights so far are better than those before the first step
    calibration   of the best weights of a finished training: see sparsefield.evaluate.calibration
    shipped       True: made by scripts/ship.py, and the training data are not at hand
    resume        {name: state dict} of everything that training needs to go on (not in "best")

In the file there is also `digest`, of all of these: numbers that a disk has changed are noticed.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import pickle
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.model.bundled import find_bundled
from sparsefield.model.field import MODELS, FieldModel

FORMAT = 4
# What the models of formats that are no longer read were, and the last commit that reads them.
UNREADABLE = {
    1: ("whose flow started from independent noise", "f7b6c33"),
    2: ("whose U-Net before the flow was one network", "8f15495"),
}
RENAMED_SINCE_3 = {
    "canvas_width": "unet_width", "canvas_dropout": "unet_dropout", "canvas_turns": "symmetries",
    "canvas_flow_width": "flow_unet_width", "canvas_first": "start_share",
    "canvas_from": "start_from",
}
MODEL_FILES = "train_*.py"  # of a checkout; an installed package has entry points
ENTRY_POINTS = "sparsefield.models"
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
_DAMAGED = "cannot be read: the file is truncated or damaged"
_REQUIRED = {"format": int, "model_class": str, "model_args": dict, "weights": dict, "data": dict,
             "config": dict, "step": int, "epoch": int}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    Raises:
        OSError: the disk is full or the folder read-only. The old file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself reaches the disk
    finally:
        os.close(folder)


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint atomically. Raises OSError, leaving the old file as it was."""
    buffer = io.BytesIO()
    torch.save({**checkpoint, "digest": digest(checkpoint)}, buffer)
    write_atomically(path, buffer.getvalue())


def save_safetensors(path: Path, checkpoint: dict[str, Any]) -> None:
    """The weights alone, for sharing; everything that rebuilds the model is in the metadata."""
    keys = [*_REQUIRED, "learnt", "calibration", "shipped"]
    described = {key: checkpoint[key] for key in keys if key in checkpoint and key != "weights"}
    described = json.loads(json.dumps(described))  # as it will be read: tuples are lists
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint["weights"].items()}
    described["digest"] = digest({**described, "weights": tensors})
    write_atomically(path, safetensors_bytes(tensors, {"sparsefield": json.dumps(described)}))


def digest(item: object) -> str:
    """SHA-256 of nested dictionaries and lists of tensors and plain values."""
    if isinstance(item, dict):
        content = "".join(f"{key}={digest(item[key])};" for key in sorted(item, key=str)).encode()
    elif isinstance(item, (list, tuple)):
        content = "".join(map(digest, item)).encode()
    elif isinstance(item, torch.Tensor):
        numbers = item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        about = f"{item.dtype} {tuple(item.shape)}".encode()
        content = about + hashlib.sha256(numbers.tobytes()).digest()
    else:
        content = repr(item).encode()
    return hashlib.sha256(content).hexdigest()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint (.pth or .safetensors) onto the CPU, executing nothing that is in it.

    Bundled weights are found from every folder: see sparsefield.model.bundled.

    Raises:
        UserError: the file is missing, truncated, damaged, not a checkpoint, or of another format.
    """
    path = find_bundled(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {what}: give the path of a .pth or .safetensors file")
    checkpoint = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint of this project")
    written = checkpoint.pop("digest", None)  # files of earlier versions have none
    if written is not None and written != digest(checkpoint):
        raise UserError(f"checkpoint {path} cannot be read: its content is damaged (other numbers "
                        "than were saved); restore it from a copy")
    missing = [key for key, kind in _REQUIRED.items() if not isinstance(checkpoint.get(key), kind)]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project: it lacks "
                        f"{', '.join(missing)}")
    number = checkpoint["format"]
    if number > FORMAT:
        raise UserError(f"{path} has checkpoint format {number}, this version reads up to "
                        f"{FORMAT}: update the project")
    if number in UNREADABLE:
        was, commit = UNREADABLE[number]
        raise UserError(f"{path} was written by an earlier version, {was}: its weights mean "
                        f"nothing here. Train again, or use commit {commit}, which reads it")
    return _with_new_names(checkpoint) if number == 3 else checkpoint


def _with_new_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of format 3, whose models are the same by other names."""
    def renamed(settings: dict[str, Any]) -> dict[str, Any]:
        found = {RENAMED_SINCE_3.get(name, name): value for name, value in settings.items()}
        if found.get("order") == "several":
            found["order"] = "per_layer"
        found.pop("canvas_flow", None)
        return found

    weights = {"unet." + name.removeprefix("canvas.") if name.startswith("canvas.") else name: value
               for name, value in checkpoint["weights"].items()}
    return {**checkpoint, "weights": weights, "model_args": renamed(checkpoint["model_args"]),
            "config": renamed(checkpoint["config"])}


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"checkpoint {path} cannot be read: no permission") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint {path} was refused: it is no checkpoint, or holds objects "
                        "that could execute code") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"checkpoint {path} {_DAMAGED}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            described = dict(json.loads((file.metadata() or {}).get("sparsefield", "{}")))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise UserError(f"checkpoint {path} {_DAMAGED}") from error
    return {**described, "weights": weights}


def find_model(name: str) -> type[FieldModel]:
    """The class of a model: any that was defined so far, else one of the model files.

    These are the entry points of installed packages in the group "sparsefield.models", and
    train_*.py of a checkout.

    Raises:
        UserError: there is none of that name.
    """
    if name not in MODELS:
        for module in _model_modules():
            importlib.import_module(module)
    if name not in MODELS:
        raise UserError(f"the checkpoint holds a {name!r}, and known models are "
                        f"{', '.join(sorted(MODELS))}: import the file that defines it first, or "
                        "put it beside train_mamba_v2.py, as train_NAME.py")
    return MODELS[name]


def _model_modules() -> set[str]:
    root = Path(__file__).parents[2]
    in_checkout = {file.stem for file in root.glob(MODEL_FILES)
                   if (root / "pyproject.toml").exists()}
    return in_checkout | {entry.module for entry in entry_points(group=ENTRY_POINTS)}


def build_model(checkpoint: dict[str, Any], device: torch.device | str = "cpu") -> FieldModel:
    """The model that a checkpoint describes, with its averaged weights in float32, in eval mode.

    Raises:
        UserError: the model class is unknown, or the weights do not fit it.
    """
    name, weights = checkpoint["model_class"], checkpoint["weights"]
    model_class = find_model(name)
    check_weights(weights)
    try:
        model = model_class(**checkpoint["model_args"])
        model.load_state_dict({key: weight.float() for key, weight in weights.items()})
    except (RuntimeError, TypeError) as error:
        raise UserError(f"the checkpoint's weights do not fit its {name} (written by another "
                        f"version?): {str(error).splitlines()[0]}") from error
    return model.to(device).eval()


def check_weights(weights: dict[str, Tensor]) -> None:
    """Raises UserError for weights that no model of ours can have, and names what they have."""
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"the checkpoint's weight {name} is no tensor: it is damaged")
        for prefix, wrapper in WRAPPERS.items():
            if name.startswith(prefix):
                raise UserError(f"the checkpoint's weights are those of a model wrapped by "
                                f"{wrapper}: their names begin with `{prefix}` ({name}); save the "
                                "state dict of the model inside")
        if not tensor.isfinite().all():
            raise UserError(f"the checkpoint's weights hold NaN or infinity (in {name}): its "
                            "training went wrong; give another checkpoint")


def load_model(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[FieldModel, dict[str, Any]]:
    """Model and checkpoint of a file. Raises UserError as `load_checkpoint`, `build_model`."""
    checkpoint = load_checkpoint(path)
    return build_model(checkpoint, device), checkpoint
