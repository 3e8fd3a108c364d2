"""Weights of one model for another: a start of trainings, and fields of fewer channels.

What a model of colours knows of edges and grain holds for a field of one channel, too. The model is
applied to colours that are mixtures of the channels at hand (of one channel: shades of grey). Only
its first and last layers know of channels, so the mixing is done in their weights, once.

Symbols: C channels that were learnt, c <= C channels at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsefield.errors import UserError
from sparsefield.model.bundled import NAMES, V1
from sparsefield.model.checkpoint import build_model, check_weights, load_checkpoint
from sparsefield.model.field import FieldModel

# Arguments of a model that follow from its training and data: they tell no models apart.
OF_TRAINING = {"dropout", "unet_dropout", "symmetries", "value_sd", "max_frequency", "time_scale"}
IN_TIME = {"time", "time_start", "time_reader"}  # a model of single fields may learn sequences


CHANNEL = 0  # in a layout: as many features as there are channels
Layout = list[int]  # widths of what a layer sees, side by side
FEATURES = [1, CHANNEL, CHANNEL, CHANNEL, 2]  # see sparsefield.model.grid_unet.grid_features
OUTPUTS = ["decoder.3", "unet.shift.last", "unet.scale.last", "unet.flow.last"]

# --- starts of trainings -------------------------------------------------------------------------


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
        raise UserError(f"{path} holds a {checkpoint['model_class']}, not a {model_class}: give "
                        "another file")
    weights, lines = checkpoint["weights"], []
    check_weights(weights)
    for name, child in model.named_children():
        ours = child.state_dict()
        theirs = {key: weights.get(f"{name}.{key}") for key in ours}
        shapes = {key: None if value is None else tuple(value.shape)
                  for key, value in theirs.items()}
        wrong = [key for key, value in ours.items() if shapes[key] != tuple(value.shape)]
        if wrong:
            lines.append(f"not taken from {path}: {name} ({wrong[0]}: "
                         f"{shapes[wrong[0]] or 'not there'}, here {tuple(ours[wrong[0]].shape)})")
        elif ours:
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
        instead = f" (the bundled V1 is {V1}; set a SAVE_DIR beside it)" if path in NAMES else ""
        raise UserError(f"init_from={path}: it holds a {theirs}, and this is a {own}: give "
                        f"another{instead}")
    fitting, words = _with_channels(checkpoint, arguments["channels"], f"init_from={path}")
    free = OF_TRAINING | (IN_TIME if fitting["model_args"].get("time", 1) == 1 else set())
    differing = {name: value for name, value in fitting["model_args"].items()
                 if name not in free and arguments.get(name, value) != value}
    if differing:
        flags = " ".join(f"--{name} {value}" for name, value in differing.items())
        raise UserError(f"init_from={path}: a model of other sizes: train with {flags}")
    learnt = build_model(fitting).state_dict()
    new = _readers_beside(learnt, model)
    model.load_state_dict(learnt | new)
    return f"weights taken from {path}{words}{'; the readers along time are new' if new else ''}"


def _readers_beside(learnt: dict[str, Tensor], part: nn.Module) -> dict[str, Tensor]:
    """Weights of readers along time that a checkpoint of single fields lacks."""
    return {name: weight for name, weight in part.state_dict().items()
            if "readers." in name and name not in learnt}


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
    new |= _readers_beside(theirs, unet)
    try:
        unet.load_state_dict(theirs | new)
    except RuntimeError as error:
        raise UserError(f"start_from={path}: its grid U-Nets have another size: set UNET_WIDTH and "
                        "FLOW_UNET_WIDTH to its own") from error
    return f"grid U-Nets taken from {path}{words}{'' if has_flow else '; that of the flow is new'}"


# --- fewer channels ------------------------------------------------------------------------------


def mixture(learnt: int, channels: int) -> Tensor:
    """(C, c): colours from the channels at hand, which come first; the others are their mean."""
    mean = torch.full((learnt - channels, channels), 1 / channels)
    return torch.cat([torch.eye(channels), mean])


def for_channels(checkpoint: dict[str, Any], channels: int) -> dict[str, Any]:
    """A checkpoint, as loaded, whose model takes fields of c channels.

    It predicts for them what the trained model, if that treats all channels alike, predicts for
    colours that are mixtures of them, but for the closed form, which then counts each measurement
    once.

    Raises:
        UserError: more channels than were learnt, or as `build_model`.
    """
    model = build_model(checkpoint)
    learnt = model.channels
    if channels > learnt:
        raise UserError(f"its fields have {learnt} channel(s), the data {channels}")
    mix, weights = mixture(learnt, channels), model.state_dict()
    for name, layout in inputs_of(model).items():
        weights[name] = mixed_inputs(weights[name], layout, mix)
    unmix = torch.linalg.pinv(mix)                                        # (c, C)
    for name in OUTPUTS:
        for part in (f"{name}.weight", f"{name}.bias"):
            if part in weights:
                weights[part] = torch.tensordot(unmix, weights[part], dims=1)
    arguments = {**checkpoint["model_args"], "channels": channels}
    return {**checkpoint, "model_args": arguments, "weights": weights}


def inputs_of(model: FieldModel) -> dict[str, Layout]:
    """What each layer that sees channels sees, in the order of its inputs."""
    places = [model.fourier.width] if model.fourier else []
    features = [model.unet.width] if model.unet else []
    known = [CHANNEL, CHANNEL] if model.prior != "none" else []           # a mean, a log sd
    layouts, of_flow = {}, []
    if model.unet:
        layouts["unet.shift.first.weight"] = FEATURES
        layouts["unet.scale.first.weight"] = [*FEATURES, CHANNEL]
        if model.unet.flow:
            of_flow = [CHANNEL, model.unet.flow.first.out_channels]       # a velocity, features
            layouts["unet.flow.first.weight"] = [*FEATURES, CHANNEL, CHANNEL, *features, CHANNEL,
                                                 1, 2]
    neighbours = [2, CHANNEL] * model.neighbours
    return layouts | {
        "input_proj.0.weight": [*places, CHANNEL, *features, *known],
        "query_proj.0.weight": [CHANNEL, *of_flow, *places, *features, *known, *neighbours],
    }


def mixed_inputs(weight: Tensor, layout: Layout, mix: Tensor) -> Tensor:
    """Weights (outputs, F, ...) of inputs as in `layout`, where colours are mixtures (C, c)."""
    sizes = [size or len(mix) for size in layout]
    parts = [
        torch.tensordot(part, mix, dims=([1], [0])).movedim(-1, 1) if size == CHANNEL else part
        for part, size in zip(weight.split(sizes, dim=1), layout, strict=True)
    ]
    return torch.cat(parts, dim=1)
