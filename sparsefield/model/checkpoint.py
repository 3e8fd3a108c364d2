"""Checkpoints: written atomically, read without executing anything, models rebuilt from them.

A checkpoint is a dictionary of plain types and tensors:

    format        FORMAT                     model_class   "MAMBADiffusionV2"
    model_args    constructor arguments      weights       state dict of the averaged model
    data          what the data set was      config        settings of the training
    step, epoch   completed                  metrics       of the last validation
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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from sparsefield.errors import UserError
from sparsefield.model.shipped import find_shipped

FORMAT = 3
# What an earlier format's models were, and the last commit that reads it.
FORMER = {
    1: ("whose flow started from independent noise", "f7b6c33"),
    2: ("whose canvas was one network", "8f15495"),
}
MODEL_MODULES = {"MAMBADiffusionV2": "train_mamba_v2", "MAMBADiffusion": "train_mamba"}
# Arguments of a model that follow from its training and data: they tell no models apart.
OF_TRAINING = {"dropout", "canvas_dropout", "canvas_turns", "value_sd", "max_frequency"}
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
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
    keys = [*_REQUIRED, "calibration", "shipped"]
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

    Shipped weights are found from every folder: see sparsefield.model.shipped.

    Raises:
        UserError: the file is missing, truncated, damaged, not a checkpoint, or of another format.
    """
    path = find_shipped(path)
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
        raise UserError(
            f"{path} is not a checkpoint of this project: it lacks {', '.join(missing)}"
        )
    if checkpoint["format"] > FORMAT:
        raise UserError(
            f"{path} has checkpoint format {checkpoint['format']}, this version reads up to "
            f"{FORMAT}: update the project"
        )
    if checkpoint["format"] < FORMAT:
        was, commit = FORMER.get(checkpoint["format"], ("of another model", "that wrote it"))
        raise UserError(
            f"{path} was written by an earlier version, {was}: its weights mean nothing here. "
            f"Train anew, or take commit {commit}, which reads it"
        )
    return checkpoint


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"checkpoint {path} cannot be read: no permission") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"checkpoint {path} cannot be read: the file is truncated or damaged"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} was refused: it is no checkpoint, or holds objects that could "
            "execute code"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            described = dict(json.loads((file.metadata() or {}).get("sparsefield", "{}")))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read: the file is truncated or damaged"
        ) from error
    return {**described, "weights": weights}


def build_model(checkpoint: dict[str, Any], device: torch.device | str = "cpu") -> nn.Module:
    """The model that a checkpoint describes, with its averaged weights in float32, in eval mode.

    Raises:
        UserError: the model class is unknown, or the weights do not fit it.
    """
    name = checkpoint["model_class"]
    if name not in MODEL_MODULES:
        raise UserError(
            f"the checkpoint holds a {name!r}; known models: {', '.join(MODEL_MODULES)}"
        )
    _check_weights(checkpoint["weights"])
    model_class = getattr(importlib.import_module(MODEL_MODULES[name]), name)
    try:
        model = model_class(**checkpoint["model_args"])
        model.load_state_dict({k: v.float() for k, v in checkpoint["weights"].items()})
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the checkpoint's weights do not fit its {name} (written by another version?): "
            f"{reason}"
        ) from error
    return model.to(device).eval()


def _check_weights(weights: dict[str, Tensor]) -> None:
    """Raises UserError for weights that no model of ours can have, and names what they have."""
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"the checkpoint's weight {name} is no tensor: it is damaged")
        for prefix, wrapper in WRAPPERS.items():
            if name.startswith(prefix):
                raise UserError(
                    f"the checkpoint's weights are those of a model wrapped by {wrapper}: their "
                    f"names begin with `{prefix}` ({name}); save the state dict of the model inside"
                )
        if not tensor.isfinite().all():
            raise UserError(
                f"the checkpoint's weights hold NaN or infinity (in {name}): its training went "
                "wrong; give another checkpoint"
            )


def take_shared_components(model: nn.Module, path: str | Path, model_class: str) -> list[str]:
    """Copy into a model what it shares with a checkpoint of another class.

    A component is a direct child of the model (encoders, decoder). It is taken whole, when every
    tensor of it has the same name and shape, or not at all.

    Args:
        model_class: which class the checkpoint must hold.
    Returns:
        lines that say what was and what was not taken.
    Raises:
        UserError: as `load_checkpoint`, or the checkpoint holds another class.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint["model_class"] != model_class:
        raise UserError(
            f"{path} holds a {checkpoint['model_class']}, not a {model_class}: give another file"
        )
    _check_weights(checkpoint["weights"])
    lines = []
    for name, child in model.named_children():
        ours = child.state_dict()
        theirs = {key: checkpoint["weights"].get(f"{name}.{key}") for key in ours}
        differing = [key for key, value in theirs.items()
                     if value is None or value.shape != ours[key].shape]
        if not ours:
            continue
        if differing:
            there = theirs[differing[0]]
            what = "not there" if there is None else f"{tuple(there.shape)}"
            lines.append(f"not taken from {path}: {name} ({differing[0]}: {what}, here "
                         f"{tuple(ours[differing[0]].shape)})")
        else:
            child.load_state_dict({key: value.float() for key, value in theirs.items()})
            lines.append(f"taken from {path}: {name}")
    return lines


def take_weights(model: nn.Module, arguments: dict[str, Any], path: str | Path) -> str:
    """Copy all weights of a checkpoint into a model of the same sizes, and say so.

    Args:
        arguments: what the model was constructed with.
    Raises:
        UserError: as `build_model`, or the checkpoint holds another class or other sizes.
    """
    checkpoint = load_checkpoint(path)
    own, theirs = type(model).__name__, checkpoint["model_class"]
    if theirs != own:
        raise UserError(f"init_from={path}: it holds a {theirs}, and this is a {own}: give another")
    differing = {name: value for name, value in checkpoint["model_args"].items()
                 if name not in OF_TRAINING and arguments.get(name, value) != value}
    if "channels" in differing:
        raise UserError(
            f"init_from={path}: its fields have {differing['channels']} channel(s), and the data "
            f"{arguments['channels']}: give another, or train from the start"
        )
    if differing:
        flags = " ".join(f"--{name} {value}" for name, value in differing.items())
        raise UserError(f"init_from={path}: a model of other sizes: train with {flags}")
    model.load_state_dict(build_model(checkpoint).state_dict())
    return f"weights taken from {path}"


def take_canvas(model: nn.Module, path: str | Path) -> str:
    """Copy the canvas of a checkpoint into a model, and say so.

    Raises:
        UserError: as `load_checkpoint`, or one of the two has no canvas, or they differ in size.
    """
    weights = load_checkpoint(path)["weights"]
    _check_weights(weights)
    prefix = "canvas."
    theirs = {name.removeprefix(prefix): tensor.float() for name, tensor in weights.items()
              if name.startswith(prefix)}
    canvas = model.canvas
    if not isinstance(canvas, nn.Module) or not theirs:
        where = str(path) if isinstance(canvas, nn.Module) else "this model"
        raise UserError(f"canvas_from={path}: {where} has no canvas")
    own = canvas.state_dict()
    has_flow = any(name.startswith("flow.") for name in theirs)
    new = {} if has_flow else {k: v for k, v in own.items() if k.startswith("flow.")}
    try:
        canvas.load_state_dict(theirs | new)
    except RuntimeError as error:
        raise UserError(
            f"canvas_from={path}: its canvas has another size: set CANVAS_WIDTH and "
            "CANVAS_FLOW_WIDTH to its own"
        ) from error
    return f"canvas taken from {path}" + ("; what it says of the slope is new" if new else "")


def load_model(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """Model and checkpoint of a file. Raises UserError as `load_checkpoint`, `build_model`."""
    checkpoint = load_checkpoint(path)
    return build_model(checkpoint, device), checkpoint
