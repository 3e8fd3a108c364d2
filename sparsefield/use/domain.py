"""Whether a model has been trained on anything like these measurements."""

from __future__ import annotations

import re

from sparsefield.use.columns import are_colours
from sparsefield.use.points import Measurements

TRAINED_SHARE = "random:0.2"  # measured points in the training of the models that come along
FAR = 5.0  # times fewer or more measured points a cell: another kind of problem


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
    if not given.is_picture and not (given.values.min() >= 0 and given.values.max() <= 255):
        return f"values from {given.values.min():.4g} to {given.values.max():.4g}, and {trained}"
    return other_density(given, shape, observe)


def other_density(given: Measurements, shape: tuple[int, int], observe: str) -> str | None:
    """Why there are far fewer or more measurements than in training, in words; None: there are not.

    A picture counts by its own pixels, points by the cells that are asked for.
    """
    rule = re.fullmatch(r"random:([\d.]+)(?:-([\d.]+))?", observe)
    if not rule:
        return None
    low, high = float(rule[1]), float(rule[2] or rule[1])
    rows, columns = given.shape or shape
    share = len(given.coords) / (rows * columns)
    if low / FAR <= share <= high * FAR:
        return None
    return f"{share:.2%} of the cells are measured, and in its training {observe[7:]} of them were"
