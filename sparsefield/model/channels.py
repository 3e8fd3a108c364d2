"""A model for fields of fewer channels than it learnt: its weights for those, without training.

What a model of colours knows of edges and grain holds for a field of one channel, too. The model is
applied to colours that are mixtures of the channels at hand (of one channel: shades of grey). Only
its first and last layers know of channels, so the mixing is done in their weights, once.

Symbols: C channels that were learnt, c <= C channels at hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.model.checkpoint import build_model
from sparsefield.model.field import FieldModel

CHANNEL = 0  # in a layout: as many features as there are channels
Layout = list[int]  # widths of what a layer sees, side by side
FEATURES = [1, CHANNEL, CHANNEL, CHANNEL, 2]  # see sparsefield.model.grid_unet.grid_features
OUTPUTS = ["decoder.3", "unet.shift.last", "unet.scale.last", "unet.flow.last"]


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
    of_flow = []
    if model.unet and model.unet.flow:
        of_flow = [CHANNEL, model.unet.flow.first.out_channels]        # a velocity, features
    known = [CHANNEL, CHANNEL] if model.prior != "none" else []           # a mean, a log sd
    layouts = {
        "input_proj.0.weight": [*places, CHANNEL, *features, *known],
        "query_proj.0.weight": [CHANNEL, *of_flow, *places, *features, *known,
                                *[2, CHANNEL] * model.neighbours],
    }
    if model.unet:
        layouts["unet.shift.first.weight"] = FEATURES
        layouts["unet.scale.first.weight"] = [*FEATURES, CHANNEL]
    if model.has_flow_unet:
        layouts["unet.flow.first.weight"] = [*FEATURES, CHANNEL, CHANNEL, *features,
                                               CHANNEL, 1, 2]
    return layouts


def mixed_inputs(weight: Tensor, layout: Layout, mix: Tensor) -> Tensor:
    """Weights (outputs, F, ...) of inputs as in `layout`, where colours are mixtures (C, c)."""
    sizes = [size or len(mix) for size in layout]
    parts = [
        torch.tensordot(part, mix, dims=([1], [0])).movedim(-1, 1) if size == CHANNEL else part
        for part, size in zip(weight.split(sizes, dim=1), layout, strict=True)
    ]
    return torch.cat(parts, dim=1)
