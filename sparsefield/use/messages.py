"""Which model is used for these measurements, and what is printed about the result."""

from __future__ import annotations

import logging
import re

import numpy as np

from sparsefield.evaluate.calibration import LEVEL, describe
from sparsefield.evaluate.metrics import interval_name, largest_coverage
from sparsefield.model.bundled import BUNDLED
from sparsefield.use.points import Measurements, are_colours
from sparsefield.use.predict import Field, Reconstructor

log = logging.getLogger("sparsefield")

TRAINED_SHARE = "random:0.2"  # measured points in its training
FAR = 5.0  # times fewer or more measured points a cell: another kind of problem


def choose_model(
    asked: Reconstructor | None, given: Measurements, shape: tuple[int, int], lonlat: bool,
    device: str,
) -> Reconstructor:
    """The model that is asked for, or the bundled one where it has learnt such measurements.

    Args:
        asked: warned of where it has not learnt such measurements. shape: rows and columns that are
            asked for. lonlat: places are on a globe. device: see `sparsefield.load`.
    """
    if asked is not None:
        if why := outside(asked, given, shape):
            log.warning("WARNING: outside of what %s has learnt: %s; --checkpoint none needs no "
                        "training", asked.path, why)
        return asked
    if lonlat:
        return Reconstructor.load("none", device)
    if why := outside_pictures(given, shape, TRAINED_SHARE):
        hint = (f"; --checkpoint {BUNDLED} uses it all the same, check it with "
                "--holdout 0.2") if can_be_tried(given) else ""
        log.info("the bundled model is not used: %s%s", why, hint)
        return Reconstructor.load("none", device)
    return Reconstructor.load(BUNDLED, device)


def can_be_tried(given: Measurements) -> bool:
    """Whether the bundled model can take values that it has not learnt: as colours, or,
    each channel on its own, as shades of grey."""
    as_colours = given.values.shape[1] == 3 and not are_other_things(given)
    return not as_colours or are_within_bytes(given)


# --- what was trained -----------------------------------------------------------------------------


def outside(model: Reconstructor, given: Measurements, shape: tuple[int, int]) -> str | None:
    """Why a model has not learnt such measurements, in words; None: it has, or needs not."""
    if model.is_closed_form:
        return None
    observe = str(model.checkpoint.get("config", {}).get("observe", ""))
    if model.is_of_pictures and model.channels == 3:
        return outside_pictures(given, shape, observe)
    return other_density(given, shape, observe)


def outside_pictures(given: Measurements, shape: tuple[int, int], observe: str) -> str | None:
    """The same of a model of colour pictures, whose rule in training was `observe`."""
    channels = given.values.shape[1]
    span = f"from {given.values.min():.4g} to {given.values.max():.4g}"
    if given.is_picture and given.value_range is None:
        what = "these are numbers of a range of their own"
    elif not given.is_picture and not (channels == 3 and are_colours(given.names)):
        what = "one channel" if channels == 1 else f"{channels} channels that are no colours"
        what = f"{what} {span}"
    elif not given.is_picture and not are_within_bytes(given):
        what = f"values {span}"
    else:
        return other_density(given, shape, observe)
    return f"{what}, and it was trained on colour pictures of 0 to 255"


def other_density(given: Measurements, shape: tuple[int, int], observe: str) -> str | None:
    """Why there are far fewer or more measurements than in training, in words; None: there are not.

    A picture counts by its own pixels, points by the cells that are asked for.
    """
    rules = re.findall(r"random:([\d.]+)(?:-([\d.]+))?(?:,|$)", observe)
    if not rules:
        return None
    low, high = (pick(float(share) for rule in rules for share in rule if share)
                 for pick in (min, max))
    rows, columns = given.shape or shape
    share = len(given.coords) / (rows * columns)
    if low / FAR <= share <= high * FAR:
        return None
    trained = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{share:.2%} of the cells are measured, and in its training {trained} of them were"


# --- as what measurements are read ----------------------------------------------------------------


def are_within_bytes(given: Measurements) -> bool:
    """Whether all values are such as pixels of 8 bits have, 0 to 255."""
    return bool(given.values.min() >= 0 and given.values.max() <= 255)


def are_other_things(given: Measurements) -> bool:
    """Whether there are several channels whose names say that they are no colours."""
    return len(given.names) > 1 and not given.is_picture and not are_colours(given.names) and (
        not all(name.startswith("column ") for name in given.names))


def are_separate(model: Reconstructor, given: Measurements) -> bool:
    """Whether channels are different things: the argument `separately` of a model."""
    return are_other_things(given) or (model.is_closed_form and not given.is_picture)


def picture_range(model: Reconstructor, given: Measurements) -> tuple[float, float] | None:
    """What is black and white in a picture: the argument `value_range` of a model.

    None: no picture, the range of the training data, or the closed form, which has none.
    """
    if given.values.shape[1] == model.channels == 3 and given.value_range != (0.0, 255.0):
        return given.value_range
    return None


def units_of(model: Reconstructor, given: Measurements) -> str | None:
    """Of the values, as the file or the training data give them."""
    trained = None if given.is_picture or model.is_closed_form else model.scale.units
    return given.units or trained


def account(model: Reconstructor, given: Measurements, field: Field) -> list[str]:
    """Lines to print: the model, what it read, where the uncertainty comes from."""
    lines = [] if model.is_closed_form else [f"model: {model.path}"]
    if field.variogram:
        lines.append(f"closed form fitted to the measurements: {field.variogram}")
    channels, samples = given.values.shape[1], len(field.samples)
    if model.is_of_pictures and not given.is_picture:
        if channels == 3 == model.channels and not are_other_things(given):
            lines.append("three channels, read as red, green and blue of 0 to 255; if they are "
                         "something else, choose one with --value")
        elif channels > 1:
            lines.append(f"{channels} channels, each on its own, as shades of grey")
        elif model.channels == 3:
            lines.append("one channel, read as shades of grey by a model of colour pictures")
    if fitted := model.checkpoint.get("calibration"):
        lines.append(f"uncertainty, calibrated: {describe(fitted)}")
        if largest_coverage(samples) < LEVEL:
            lines.append(f"uncertainty: of the {samples} samples here, intervals are "
                         f"{interval_name(LEVEL, samples)}")
    elif model.is_closed_form:
        lines.append("no trained model: the closed form alone, with its own uncertainty")
    else:
        lines.append("uncertainty: not calibrated (the training has not come to its end)")
    return lines


def in_numbers(given: Measurements, field: Field) -> str:
    """Mean and sd over the field: of all channels together, or of each where they differ."""
    mean, sd = np.nanmean(field.mean, axis=(0, 1)), np.sqrt(np.nanmean(field.sd**2, axis=(0, 1)))
    if not are_other_things(given):
        return f"mean {mean.mean():.4g}, typical sd {np.sqrt((sd**2).mean()):.2g}"
    return "; ".join(f"{name}: mean {m:.4g}, typical sd {s:.2g}"
                     for name, m, s in zip(given.names, mean, sd, strict=True))
