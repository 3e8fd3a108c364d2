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
    """The model that is asked for, or the bundled one where it has anything to say.

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
        hint = (f"; --checkpoint {BUNDLED} uses it all the same, and --holdout 0.2 tells whether "
                "it should be") if can_be_tried(given) else ""
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
    """Why a model of colour pictures has nothing to say of this, in words; None: it has.

    Args:
        given: what was measured. shape: rows and columns that are asked for.
        observe: the rule of its training, as random:0.2.
    """
    trained = "it was trained on colour pictures of 0 to 255"
    channels = given.values.shape[1]
    if given.is_picture and given.value_range is None:
        return f"these are numbers of a range of their own, and {trained}"
    if not given.is_picture and not (channels == 3 and are_colours(given.names)):
        what = "one channel" if channels == 1 else f"{channels} channels that are no colours"
        return f"{what} from {given.values.min():.4g} to {given.values.max():.4g}, and {trained}"
    if not given.is_picture and not are_within_bytes(given):
        return f"values from {given.values.min():.4g} to {given.values.max():.4g}, and {trained}"
    return other_density(given, shape, observe)


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

    None: no picture, the training data tell, or it is the closed form, which has no range.
    """
    if given.values.shape[1] == model.channels == 3 and given.value_range != (0.0, 255.0):
        return given.value_range
    return None


def units_of(model: Reconstructor, given: Measurements) -> str | None:
    """Of the values, as far as the file or the training data tell."""
    trained = None if given.is_picture or model.is_closed_form else model.scale.units
    return given.units or trained


def account(model: Reconstructor, given: Measurements, field: Field) -> list[str]:
    """Lines to print."""
    lines = [] if model.is_closed_form else [f"model: {model.path}"]
    if field.variogram:
        lines.append(f"closed form fitted to the measurements: {field.variogram}")
    return [*lines, *how_read(model, given), *how_certain(model, len(field.samples))]


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
