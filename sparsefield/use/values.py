"""Values as a model sees them: their range, which becomes -1 ... 1, and transforms."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from sparsefield.data.scale import Scale, given_range, pixel_scale
from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

TRANSFORMS = ("log", "sqrt")


def check_transform(name: str | None) -> None:
    """Raises UserError for what is neither None nor one of TRANSFORMS."""
    if name is not None and name not in TRANSFORMS:
        raise UserError(f"transform {name!r}: give {' or '.join(TRANSFORMS)}, or leave it out")


def transformed(name: str | None, values: np.ndarray) -> np.ndarray:
    """Values of any shape in their units, as the model is to see them.

    Raises:
        UserError: values that have no logarithm, or no root.
    """
    if name is None:
        return values
    lowest = float(values.min(initial=np.inf))
    if lowest < 0 or (name == "log" and lowest == 0):
        needs = ("only numbers above 0 have a logarithm; give sqrt" if name == "log" else
                 "numbers below 0 have no root; leave --transform out")
        raise UserError(f"transform {name}: the lowest value is {lowest:g}, and {needs}, or say "
                        "with --missing what was not measured")
    return np.log(values) if name == "log" else np.sqrt(values)


def untransformed(name: str, values: np.ndarray) -> np.ndarray:
    """What `transformed` did, undone; a root below 0 counts as 0, so that nothing is negative."""
    with np.errstate(over="ignore"):
        return np.exp(values) if name == "log" else np.clip(values, 0, None) ** 2


def transformed_noise(name: str | None, noise: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sd (M, C) of the noise of transformed values (M, C), to first order.

    Values are taken to be no less than their noise, below which the first order does not hold.
    """
    if name is None or not noise.any():
        return noise
    size = np.maximum(np.abs(values), noise)
    size = np.where(size > 0, size, 1)
    return noise / size if name == "log" else noise / (2 * np.sqrt(size))


def transformed_range(
    name: str | None, value_range: Sequence[float] | None
) -> Sequence[float] | None:
    """low high, or so for each channel, in the units of transformed values."""
    if value_range is None or name is None:
        return value_range
    return transformed(name, np.asarray(value_range, dtype=np.float64)).tolist()


MARGIN = 0.1  # of the spread of values, on either side, when they come without a range
FAR = 0.5  # widths of the range outside of it: another unit, or another kind of field
ROUNDING = 1e-6
NARROW = 0.01  # of the range: all values look alike to the model
MOST = 1e30  # what float32, of which files and models are, holds with its squares' roots to spare


def is_of_pictures(trained: Scale) -> bool:
    """Whether a model was trained on pictures of 8 bits."""
    return trained.value_range == pixel_scale(trained.channels).value_range


def choose_scale(
    trained: Scale, values: np.ndarray, value_range: Sequence[float] | None
) -> Scale:
    """The scale of a model's channels for these values.

    Args:
        trained: the scale of the training data. values: (M, C) finite, C that of the model.
        value_range: of the user: low high, or so for each channel.
    Raises:
        UserError: no range; values that lie far outside of it; values that cannot be colours.
    """
    channels = values.shape[1]
    if value_range is not None:
        pairs = given_range(value_range, channels)
        require_inside(values, Scale(pairs))
        return Scale(pairs, trained.units)
    outside = excess(values, trained)
    found = f"values from {values.min():.6g} to {values.max():.6g}"
    if outside <= ROUNDING:
        spread = np.ptp(values, axis=0)
        widths = np.diff(trained.value_range, axis=1)[:, 0]
        if 0 < (spread / widths).max() < NARROW:
            log.warning("WARNING: %s are less than a hundredth of the range of the training data "
                        "(%s); if theirs is another, give --value_range low high", found,
                        trained.describe())
        return trained
    if is_of_pictures(trained) and channels > 1:
        raise UserError(f"{found} are no colours of 0 to 255: choose one column with --value, or, "
                        "if they are colours, say what is darkest and brightest with --value_range "
                        "low high")
    if is_of_pictures(trained):
        return Scale(own_range(values))
    if outside <= FAR:
        log.warning("WARNING: %s leave the range of the training data (%s)", found,
                    trained.describe())
        return trained
    log.warning("WARNING: %s lie far outside the training data (%s): their own range is used "
                "instead; if that is not meant, convert the units, or give --value_range low high",
                found, trained.describe())
    return Scale(own_range(values), trained.units)


def own_range(values: np.ndarray) -> tuple[tuple[float, float], ...]:
    """For each channel of (M, C), the range of its values with a margin; half of a value that all
    have on either side of it.

    Raises:
        UserError: too large to compute with.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    if max(-low.min(), high.max()) > MOST:
        raise UserError(f"values from {low.min():.3g} to {high.max():.3g} are too large; do they "
                        "mean: not measured? then give --missing, else convert the units")
    spread = high - low
    alike = np.where(low == 0, 0.5, 0.5 * np.abs(low))
    margin = np.where(spread > 0, MARGIN * spread, alike)
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def excess(values: np.ndarray, scale: Scale) -> float:
    """How far values (M, C) leave a range, in widths of it; 0 or less where they do not."""
    low, high = np.asarray(scale.value_range).T
    return float((np.maximum(low - values.min(axis=0), values.max(axis=0) - high)
                  / (high - low)).max())


def require_inside(values: np.ndarray, scale: Scale) -> None:
    """Raises UserError for values (M, C) far outside of a range; warns of some that leave it."""
    outside = excess(values, scale)
    found = f"values from {values.min():.6g} to {values.max():.6g}"
    if outside > FAR:
        raise UserError(f"{found} lie far outside --value_range {scale.describe()}: widen it")
    if outside > ROUNDING:
        log.warning("WARNING: %s leave --value_range %s; they are kept, but widen it", found,
                    scale.describe())
