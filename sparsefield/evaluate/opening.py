"""The data that a trained model is tested on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from sparsefield.data import NAMES, Data, open_as_configured, open_data
from sparsefield.data.netcdf import ENDINGS
from sparsefield.data.scale import pixel_scale
from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")


def open_test_data(
    checkpoint: dict[str, Any], data: str | None = None, test: str | None = None
) -> Data:
    """The data to test a model on.

    Args:
        checkpoint: as loaded. data: what to open instead of what the model was trained on.
        test: an .npz file, all of whose pictures are the test.
    Raises:
        UserError: the file is missing, is not the one trained on (where none was asked for), or
            has other channels than the model.
    """
    trained = checkpoint["data"]
    if test is None and data is None and checkpoint.get("shipped"):  # its data are a mere name
        log.warning("tested on photos: the data of the shipped weights (%s) do not come with them",
                    checkpoint["config"]["data"])
        data = "photos"
    if test is not None:
        opened = open_data(test, val=test, test=test, **_as_trained(checkpoint, test))
    elif data is not None:
        opened = open_data(data, **_as_trained(checkpoint, data))
    else:
        opened = _open_as_trained(checkpoint)
    if opened.channels != trained["channels"]:
        raise UserError(
            f"{opened.name} has {opened.channels} channels, the model was trained with "
            f"{trained['channels']}: choose other --data"
        )
    return opened


def _as_trained(checkpoint: dict[str, Any], data: str) -> dict[str, Any]:
    """How to read other data so that values, sizes and channels mean what they did in training."""
    trained, config = checkpoint["data"], checkpoint["config"]
    bounds = [float(bound) for pair in trained["value_range"] for bound in pair]
    of_pixels = np.ravel(pixel_scale(trained["channels"]).value_range).tolist()
    return {
        "image_size": config["image_size"],
        # Of pixels the type of their numbers says it, unless it was said.
        "value_range": None if bounds == of_pixels and not config.get("value_range") else bounds,
        "units": trained["units"],
        "channels": trained["channels"] if trained["channels"] in (1, 3) else None,
        "data_dir": config.get("data_dir"),
        "variables": config.get("variables") if str(data).lower().endswith(ENDINGS) else None,
    }


def _open_as_trained(checkpoint: dict[str, Any]) -> Data:
    config = checkpoint["config"]
    for path in (config["data"], config["data_val"], config.get("data_test")):
        if path not in (None, *NAMES) and not Path(path).exists():
            raise UserError(
                f"the model was trained on {path}, which is not here: name the data to test on "
                "with --data (`photos` needs no file)"
            )
    opened = open_as_configured(config)
    if opened.fingerprint != checkpoint["data"]["fingerprint"]:
        raise UserError(
            f"{config['data']} is not the data that the model was trained on (its contents "
            "differ): restore it, or name the data to test on with --data"
        )
    return opened
