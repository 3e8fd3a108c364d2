"""What is said of a reconstruction: how it was made, and how far to trust its uncertainty."""

from __future__ import annotations

import numpy as np

from sparsefield.evaluate.calibration import LEVEL, describe
from sparsefield.evaluate.uncertainty import interval_name, largest_coverage
from sparsefield.use.domain import are_other_things
from sparsefield.use.field import Field
from sparsefield.use.points import Measurements
from sparsefield.use.reconstruction import Reconstructor


def account(model: Reconstructor, given: Measurements, field: Field) -> list[str]:
    """Lines to print."""
    fitted = [f"closed form fitted to the measurements: {field.variogram}"] * bool(field.variogram)
    by = [] if model.is_closed_form else [f"model: {model.path}"]
    return [*by, *fitted, *how_read(model, given), *how_certain(model, len(field.samples))]


def in_numbers(given: Measurements, field: Field) -> str:
    """Mean and sd over the field: of all channels together, or of each where they differ."""
    mean, sd = np.nanmean(field.mean, axis=(0, 1)), np.sqrt(np.nanmean(field.sd**2, axis=(0, 1)))
    if not are_other_things(given):
        return f"mean {mean.mean():.4g}, typical sd {np.sqrt((sd**2).mean()):.2g}"
    return "; ".join(f"{name}: mean {m:.4g}, typical sd {s:.2g}"
                     for name, m, s in zip(given.names, mean, sd))


def how_read(model: Reconstructor, given: Measurements) -> list[str]:
    """As what a model of pictures read points."""
    channels = given.values.shape[1]
    if given.is_picture or not model.is_of_pictures:
        return []
    if channels == 1 and model.channels == 3:
        return ["one channel, read as shades of grey by a model of colour pictures"]
    if channels == 3 and model.channels == 3 and not are_other_things(given):
        return ["three channels, read as red, green and blue of 0 to 255; if they are something "
                "else, choose one with --value"]
    return [f"{channels} channels, each on its own, as shades of grey"] if channels > 1 else []


def how_certain(model: Reconstructor, num_samples: int) -> list[str]:
    """Where the uncertainty comes from, and what so many samples can tell of it."""
    if fitted := model.checkpoint.get("calibration"):
        lines = [f"uncertainty, calibrated: {describe(fitted)}"]
        if largest_coverage(num_samples) < LEVEL:
            lines.append(f"uncertainty: of the {num_samples} samples here, intervals are "
                         f"{interval_name(LEVEL, num_samples)}")
        return lines
    if model.is_closed_form:
        return ["no trained model: the closed form alone, with its own uncertainty"]
    return ["uncertainty: not calibrated (the training has not come to its end)"]
