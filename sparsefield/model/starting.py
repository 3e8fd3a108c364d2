"""What a new training starts from: the weights of another model, all or some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsefield.errors import UserError
from sparsefield.model.channels import for_channels
from sparsefield.model.checkpoint import build_model, check_weights, load_checkpoint
from sparsefield.model.field import FieldModel

# Arguments of a model that follow from its training and data: they tell no models apart.
OF_TRAINING = {"dropout", "unet_dropout", "symmetries", "value_sd", "max_frequency"}


def take_shared_components(model: FieldModel, path: str | Path, model_class: str) -> list[str]:
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
    check_weights(checkpoint["weights"])
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


def take_weights(model: FieldModel, arguments: dict[str, Any], path: str | Path) -> str:
    """Copy all weights of a checkpoint into a model of the same sizes, and report it.

    The model may be of fewer channels: see `for_channels`.

    Args:
        arguments: what the model was constructed with.
    Raises:
        UserError: as `build_model`, or the checkpoint holds another class, other sizes or fewer
            channels.
    """
    checkpoint = load_checkpoint(path)
    own, theirs = type(model).__name__, checkpoint["model_class"]
    if theirs != own:
        raise UserError(f"init_from={path}: it holds a {theirs}, and this is a {own}: give another")
    fitting, words = _with_channels(checkpoint, arguments["channels"], f"init_from={path}")
    differing = {name: value for name, value in fitting["model_args"].items()
                 if name not in OF_TRAINING and arguments.get(name, value) != value}
    if differing:
        flags = " ".join(f"--{name} {value}" for name, value in differing.items())
        raise UserError(f"init_from={path}: a model of other sizes: train with {flags}")
    model.load_state_dict(build_model(fitting).state_dict())
    return f"weights taken from {path}{words}"


def _with_channels(
    checkpoint: dict[str, Any], channels: int, flag: str
) -> tuple[dict[str, Any], str]:
    """A checkpoint for fields of so many channels, and words on what was done for that."""
    learnt = checkpoint["model_args"].get("channels")
    if learnt == channels:
        return checkpoint, ""
    try:
        return for_channels(checkpoint, channels), f", of {learnt} channels, for {channels}"
    except UserError as error:
        raise UserError(f"{flag}: {error}: give another, or train from the start") from error


def take_start(model: FieldModel, path: str | Path) -> str:
    """Copy the grid U-Nets of a checkpoint into a model, perhaps of fewer channels, and report it.

    Raises:
        UserError: as `load_checkpoint`, or one of the two has no grid U-Nets, or they differ in
            size.
    """
    checkpoint = load_checkpoint(path)
    check_weights(checkpoint["weights"])
    fitting, words = _with_channels(checkpoint, model.channels, f"start_from={path}")
    theirs = {name.removeprefix("unet."): tensor.float()
              for name, tensor in fitting["weights"].items() if name.startswith("unet.")}
    unet = model.unet
    if unet is None or not theirs:
        where = "this model" if unet is None else str(path)
        raise UserError(f"start_from={path}: {where} has no grid U-Nets")
    has_flow = any(name.startswith("flow.") for name in theirs)
    new = {} if has_flow else {k: v for k, v in unet.state_dict().items() if k.startswith("flow.")}
    try:
        unet.load_state_dict(theirs | new)
    except RuntimeError as error:
        raise UserError(
            f"start_from={path}: its grid U-Nets have another size: set UNET_WIDTH and "
            "FLOW_UNET_WIDTH to its own"
        ) from error
    return f"grid U-Nets taken from {path}{words}{'; that of the flow is new' if new else ''}"
