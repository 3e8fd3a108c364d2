"""A trained model, and what its checkpoint says of the fields that it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from sparsefield.data.scale import Scale, given_range
from sparsefield.device import pick_device
from sparsefield.errors import UserError
from sparsefield.model.channels import for_channels
from sparsefield.model.checkpoint import build_model, load_model
from sparsefield.model.field import GaussianModel
from sparsefield.use.scales import choose_scale, is_of_pictures, own_range, require_inside


class TrainedModel:
    """A network and what it was trained on; the closed form alone is one that takes any values.

    Attributes:
        path: of the checkpoint, as it was given; "none" for the closed form alone.
        channels: of the fields that it was trained on, and scale: their values and units; both None
            for the closed form alone.
        spread: factor on the spread of samples, fitted at the end of training; 1 if it was not.
    """

    def __init__(
        self, network: nn.Module, checkpoint: dict, device: torch.device, path: str | Path = "none"
    ):
        self.network, self.checkpoint, self.device = network, checkpoint, device
        self.path = str(path)
        self.channels = self.scale = None
        self.spread = 1.0
        if not checkpoint:
            return
        data = checkpoint["data"]
        try:
            self.channels = int(data["channels"])
            pairs = tuple((float(low), float(high)) for low, high in data["value_range"])
            self.scale = Scale(pairs, data.get("units"))
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint does not say what its data were (channels, "
                            "value_range): it is damaged, or of another version") from None
        self.spread = float(checkpoint.get("calibration", {}).get("spread", 1.0))

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """See `sparsefield.load`."""
        chosen = pick_device(device)
        if str(path) == "none":
            return cls(GaussianModel(), {}, chosen)
        return cls(*load_model(path, chosen), chosen, path)

    @property
    def is_closed_form(self) -> bool:
        """Whether it is the closed form alone, without training."""
        return self.scale is None

    @property
    def is_of_pictures(self) -> bool:
        """Whether it was trained on pictures of 8 bits."""
        return self.scale is not None and is_of_pictures(self.scale)

    def require_channels(self, channels: int) -> None:
        """Raises UserError for a number of values a point that it cannot read."""
        if not (self.is_closed_form or self.is_of_pictures or channels == self.channels):
            raise UserError(f"{channels} value(s) a point, the model was trained on "
                            f"{self.channels}: choose columns with --value, or another checkpoint")

    def scale_for(self, values: np.ndarray, value_range: Sequence[float] | None) -> Scale:
        """How it sees values (M, C); see `choose_scale`."""
        if self.scale is not None:
            return choose_scale(self.scale, values, value_range)
        if value_range is not None:
            require_inside(values, Scale(given_range(value_range, values.shape[1])))
        return Scale(own_range(values))  # the closed form has no range of its own

    def for_values(self, values: np.ndarray) -> TrainedModel:
        """The model that takes values (M, C): another one where a model of colours gets one
        channel. Raises UserError for another number of channels."""
        if self.is_of_pictures and self.channels != 1 and values.shape[1] == 1:
            return self._of_one_channel
        if self.scale is not None and self.network.channels != values.shape[1]:
            raise UserError(f"{values.shape[1]} value(s) a point, the model takes "
                            f"{self.network.channels} together")
        return self

    @cached_property
    def _of_one_channel(self) -> TrainedModel:
        return _OneChannel(self)


class _OneChannel(TrainedModel):
    """What a model of colour pictures knows, for one channel of whatever unit and range."""

    def __init__(self, colours: TrainedModel):
        checkpoint = for_channels(colours.checkpoint, 1)
        super().__init__(build_model(checkpoint, colours.device), checkpoint, colours.device,
                         colours.path)

    @property
    def is_of_pictures(self) -> bool:
        return False

    def scale_for(self, values: np.ndarray, value_range: Sequence[float] | None) -> Scale:
        return choose_scale(Scale(own_range(values)), values, value_range)
