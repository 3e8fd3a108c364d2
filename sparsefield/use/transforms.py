"""Values that cannot be negative: reconstructed as their logarithms or roots, and brought back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsefield.errors import UserError

TRANSFORMS = ("log", "sqrt")


def check_transform(name: str | None) -> None:
    """Raises UserError for what is neither None nor one of TRANSFORMS."""
    if name is not None and name not in TRANSFORMS:
        raise UserError(f"transform {name!r}: give {' or '.join(TRANSFORMS)}, or leave it out")


def forward(name: str | None, values: np.ndarray) -> np.ndarray:
    """Values of any shape in their units, as the model is to see them.

    Raises:
        UserError: values that have no logarithm, or no root.
    """
    if name is None:
        return values
    lowest = float(values.min(initial=np.inf))
    if name == "log" and not lowest > 0:
        raise UserError(f"transform log: the lowest value is {lowest:g}, and only numbers above 0 "
                        "have a logarithm; give sqrt, or say with --missing what was not measured")
    if name == "sqrt" and not lowest >= 0:
        raise UserError(f"transform sqrt: the lowest value is {lowest:g}, and numbers below 0 have "
                        "no root; leave --transform out, or say with --missing what was not "
                        "measured")
    return np.log(values) if name == "log" else np.sqrt(values)


def back(name: str | None, values: np.ndarray) -> np.ndarray:
    """What `forward` undoes; a root below 0 counts as 0, so that nothing is negative."""
    if name is None:
        return values
    with np.errstate(over="ignore"):
        return np.exp(values) if name == "log" else np.clip(values, 0, None) ** 2


def of_noise(name: str | None, noise: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sd (M,) of the noise of transformed values (M, C), to first order.

    Values are taken to be no less than their noise, below which the first order says nothing.
    """
    if name is None or not noise.any():
        return noise
    size = np.maximum(np.abs(values).mean(axis=1), noise)
    size = np.where(size > 0, size, 1)
    return noise / size if name == "log" else noise / (2 * np.sqrt(size))


def of_range(
    name: str | None, value_range: Sequence[float] | None
) -> Sequence[float] | None:
    """low high, or so for each channel, in the units of transformed values."""
    if value_range is None or name is None:
        return value_range
    return forward(name, np.asarray(value_range, dtype=np.float64)).tolist()
