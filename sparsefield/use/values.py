"""Values as a model sees them: whether it has learnt such, their range, and transforms."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import scipy

from sparsefield.data.scale import NARROW, STANDARD, Scale, pixel_scale
from sparsefield.errors import UserError
from sparsefield.use.points import Measurements

log = logging.getLogger("sparsefield")

TRANSFORMS = ("log", "sqrt")
MARGIN = 0.1  # of the span of the values, on either side, where no range is given
FAR = 0.5  # widths of the range outside of it: another unit, or another kind of field
ROUNDING = 1e-6
MOST = 1e30  # larger values may overflow float32, which files and models use

UNUSUAL = 5.0  # times fewer or more measured points a cell: another kind of problem

Ranges = Sequence[tuple[float, float]]  # low and high of each channel


# --- transforms -----------------------------------------------------------------------------------


def transformed(name: str | None, values: np.ndarray) -> np.ndarray:
    """Values of any shape in their units, as the model is to see them.

    Raises:
        UserError: an unknown transform, or values that have no logarithm, or no root.
    """
    if name is None:
        return values
    if name not in TRANSFORMS:
        raise UserError(f"transform {name!r}: give {' or '.join(TRANSFORMS)}, or leave it out")
    if (name == "log" and not values.min() > 0) or values.min() < 0:
        needs = ("only numbers above 0 have a logarithm; give sqrt" if name == "log" else
                 "numbers below 0 have no root; leave --transform out")
        raise UserError(f"transform {name}: the lowest value is {values.min():g}, and {needs}, or "
                        "say with --missing what was not measured")
    return np.log(values) if name == "log" else np.sqrt(values)


def untransformed(name: str, values: np.ndarray) -> np.ndarray:
    """What `transformed` did, undone; a root below 0 counts as 0, so that nothing is negative."""
    with np.errstate(over="ignore"):
        return np.exp(values) if name == "log" else np.clip(values, 0, None) ** 2


def moments(name: str, mean: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of what `untransformed` makes of a Gaussian with these."""
    mean, variance = mean.astype(np.float64), sd.astype(np.float64) ** 2
    if name == "log":
        found = np.exp(mean + variance / 2)
        return found, found * np.sqrt(np.expm1(variance))
    sd = np.sqrt(np.maximum(variance, 1e-300))
    above = scipy.special.ndtr(mean / sd)
    edge = sd * np.exp(-((mean / sd) ** 2) / 2) / np.sqrt(2 * np.pi)
    square = (mean**2 + variance) * above + mean * edge
    fourth = (mean**4 + 6 * mean**2 * variance + 3 * variance**2) * above + edge * (
        mean**3 + 5 * mean * variance)
    return square, np.sqrt(np.maximum(fourth - square**2, 0))


def transformed_limit(name: str | None, limit: np.ndarray) -> np.ndarray:
    """What a transformed value exceeds where the value exceeds a limit, -inf where it always does:
    values are never negative."""
    if name is None:
        return limit
    with np.errstate(divide="ignore"):
        root = (np.log if name == "log" else np.sqrt)(np.maximum(limit, 0))
    return np.where(limit < 0, -np.inf, root)


def transformed_noise(name: str | None, noise: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sd (M, C) of the noise of transformed values (M, C), to first order, which holds for
    values above their noise: those below count as large as it."""
    if name is None or not noise.any():
        return noise
    size = np.maximum(np.abs(values), noise)
    size = np.where(size > 0, size, 1)
    return noise / size if name == "log" else noise / (2 * np.sqrt(size))


# --- what was learnt ------------------------------------------------------------------------------


def unlike_training(
    given: Measurements, shape: Sequence[int], observe: str, of_colours: bool
) -> str | None:
    """Why a model has not learnt such measurements, in words; None: it has.

    Args:
        shape: rows and columns that are asked for. observe: the rule of its training.
        of_colours: whether it was trained on colour pictures of 8 bits.
    """
    if of_colours and not is_in_colour(given):
        channels = given.values.shape[1]
        return (f"these are {channels} channel{'s' * (channels > 1)} of numbers from "
                f"{given.values.min():.4g} to {given.values.max():.4g}, and it was trained on "
                "colour pictures of 0 to 255")
    shares = [float(share) for rule in re.findall(
        r"random:([\d.]+)(?:-([\d.]+))?(?:,|$)", observe) for share in rule if share]
    rows, columns = given.shape or shape  # a picture counts by its own pixels
    frames = 1 if given.times is None else len(given.times.distinct().values)
    share = len(given.coords) / (frames * rows * columns)
    if not shares or min(shares) / UNUSUAL <= share <= max(shares) * UNUSUAL:
        return None
    trained = " to ".join(f"{share:g}" for share in sorted({min(shares), max(shares)}))
    return f"{share:.2%} of the cells are measured, and in its training {trained} of them were"


def is_in_colour(given: Measurements) -> bool:
    """Whether these are pixels of a picture in colour, as of 8 bits."""
    return bool(given.value_range or (given.are_colours and are_within_bytes(given.values)))


def are_within_bytes(values: np.ndarray) -> bool:
    """Whether all values are such as pixels of 8 bits have, 0 to 255."""
    return bool(values.min() >= 0 and values.max() <= 255)


# --- ranges ---------------------------------------------------------------------------------------


def is_of_pictures(trained: Scale | None) -> bool:
    """Whether a model was trained on pictures of 8 bits."""
    return trained is not None and trained.value_range == pixel_scale(trained.channels).value_range


def choose_scale(trained: Scale | None, values: np.ndarray, ranges: Ranges | None) -> Scale:
    """How a model sees values (M, C), all finite, by the ranges of the user, or by the scale of its
    training data; None: it takes any values. A model of standardised fields sees values by their
    own mean and sd.

    Raises:
        UserError: a range where none counts; values that lie far outside of the range, are too
            large, or cannot be colours.
    """
    found = f"values from {values.min():.6g} to {values.max():.6g}"
    if trained is not None and trained.is_standard:
        if ranges is not None:
            raise UserError("--value_range: this model takes values in any unit, by their own mean "
                            "and sd; leave it out")
        return Scale(standard_range(values))
    if ranges is not None:
        scale = Scale(tuple(ranges), trained and trained.units)
        outside = excess(values, scale)
        if outside > FAR:
            raise UserError(f"{found} lie far outside --value_range {scale.describe()}: widen it")
        if outside > ROUNDING:
            log.warning("WARNING: %s leave --value_range %s; they are kept, but widen it", found,
                        scale.describe())
        return scale
    if trained is None:
        return Scale(own_range(values))
    outside, limits = excess(values, trained), trained.describe()
    if outside <= ROUNDING:
        widths = np.diff(trained.value_range, axis=1)[:, 0]
        if 0 < (np.ptp(values, axis=0) / widths).max() < NARROW:
            log.warning("WARNING: %s are less than a hundredth of the range of the training data "
                        "(%s); if theirs is another, give --value_range low high", found, limits)
        return trained
    if is_of_pictures(trained):
        if trained.channels == 1:
            return Scale(own_range(values))
        raise UserError(f"{found} are no colours of 0 to 255: choose one column with --value, or, "
                        "if they are colours, say what is darkest and brightest with --value_range "
                        "low high")
    if outside <= FAR:
        log.warning("WARNING: %s leave the range of the training data (%s)", found, limits)
        return trained
    log.warning("WARNING: %s lie far outside the training data (%s): their own range is used; else "
                "convert the units, or give --value_range low high", found, limits)
    return Scale(own_range(values), trained.units)


def own_range(values: np.ndarray) -> Ranges:
    """For each channel of (M, C), the range of its values with a margin; half of a value that all
    have on either side of it. Raises UserError for what is too large to compute with."""
    low, high = values.min(axis=0), values.max(axis=0)
    if max(-low.min(), high.max()) > MOST:
        raise UserError(f"values from {low.min():.3g} to {high.max():.3g} are too large; do they "
                        "mean: not measured? then give --missing, else convert the units")
    alike = np.where(low == 0, 0.5, 0.5 * np.abs(low))
    margin = np.where(high > low, MARGIN * (high - low), alike)
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def standard_range(values: np.ndarray) -> Ranges:
    """For each channel of (M, C), STANDARD sd on either side of the mean; as `own_range` where all
    are alike. Raises as that."""
    mean, sd = values.mean(axis=0), values.std(axis=0)
    return tuple(own if np.ptp(column) == 0 else (middle - half, middle + half)
                 for own, column, middle, half in zip(
                     own_range(values), values.T, mean.tolist(), (STANDARD * sd).tolist(),
                     strict=True))


def excess(values: np.ndarray, scale: Scale) -> float:
    """How far values (M, C) leave a range, in widths of it; 0 or less where they do not."""
    low, high = np.asarray(scale.value_range).T
    return float((np.maximum(low - values.min(axis=0), values.max(axis=0) - high)
                  / (high - low)).max())
