"""Where things lie: how places become the coordinates that a model sees, and what is near."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.use import globe

log = logging.getLogger("sparsefield")

UNLIKE = 10  # sides that differ by more are of different kinds, such as distance and depth


@dataclass(frozen=True)
class Frame:
    """How places become coordinates that a model sees.

    Attributes:
        extent: x0 x1 y0 y1. scaled_by: units of x and y that become one side of the square.
        lonlat: whether places are degrees on a globe.
    """

    extent: tuple[float, float, float, float]
    scaled_by: tuple[float, float]
    lonlat: bool

    @classmethod
    def of(cls, extent: tuple[float, float, float, float], aspect: str, lonlat: bool) -> Frame:
        """That of an extent.

        Args:
            aspect: see `scales`; a globe has its own. lonlat: places are on a globe.
        Raises:
            UserError: another aspect.
        """
        return cls(extent, globe.scales(extent) if lonlat else scales(extent, aspect), lonlat)

    @property
    def aspect(self) -> str:
        """What was chosen, for what is called later: auto is said once."""
        return "free" if self.scaled_by[0] != self.scaled_by[1] else "equal"

    def inside(self, places: np.ndarray) -> Tensor:
        """(P, 2) to float32 (P, 2), or (P, 3) on a globe."""
        if self.lonlat:
            return globe.to_space(places, self.extent)
        x0, _, y0, _ = self.extent
        scaled = (np.asarray(places) - (x0, y0)) / self.scaled_by
        return torch.from_numpy(scaled.astype(np.float32))


def sides(extent: Sequence[float]) -> tuple[float, float]:
    """Width and height."""
    x0, x1, y0, y1 = extent
    return x1 - x0, y1 - y0


def scales(extent: Sequence[float], aspect: str) -> tuple[float, float]:
    """What becomes 1 on each axis: the longer side on both (equal), or each its own (free).

    Args:
        aspect: equal, free, or auto: free, and said, where the sides differ by more than 10 times.
    Raises:
        UserError: another aspect.
    """
    if aspect not in ("auto", "equal", "free"):
        raise UserError(f"aspect {aspect!r}: give equal, free or auto")
    width, height = sides(extent)
    longer, shorter = max(width, height), min(width, height)
    if aspect == "auto" and longer > UNLIKE * shorter:
        log.info("x spans %.6g and y %.6g: each axis has a scale of its own (--aspect equal for "
                 "one scale)", width, height)
        aspect = "free"
    return (width, height) if aspect == "free" else (longer, longer)


def beyond(reach: float, places: np.ndarray, coords: np.ndarray, lonlat: bool) -> np.ndarray:
    """(P,) bool: places (P, 2) farther than `reach` from the nearest of coords (M, 2).

    Args:
        reach: in the units of x and y; with lonlat in km on the Earth.
    """
    if lonlat:
        places, coords = globe.on_sphere(places), globe.on_sphere(coords)
        reach = 2 * np.sin(min(reach / globe.EARTH, np.pi) / 2)           # of the chord
    return scipy.spatial.cKDTree(coords).query(places)[0] > reach
