"""Longitude and latitude: places on a sphere, whose distance is the chord between them.

A chord goes through space, so that the 180th meridian is no border and the poles are no sides, and
every variogram |h|^b of kriging remains one (sparsefield.gaussian.kernels).
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

LEAST_COSINE = 0.1  # by which longitudes shrink at the middle latitude, at most
WIDEST = 360.0
MOST = (720.0, 90.0)  # degrees of longitude, however it was turned, and of latitude
EARTH = 6371.0  # km
ROUNDING = 1e-9  # degrees
COASTS = {"10m": 15.0, "50m": 90.0, "110m": np.inf}  # of Natural Earth, up to so many degrees
ROTATED = {"grid", "rotated", "rlon", "rlat"}  # words in names of degrees about another pole


def require_degrees(source: str, coords: np.ndarray) -> None:
    """Raises UserError unless (M, 2) are longitudes in -720 ... 720 and latitudes in -90 ... 90."""
    for what, values, most in zip(("longitude", "latitude"), coords.T, MOST, strict=True):
        wrong = np.unique(values[np.abs(values) > most])
        if len(wrong):
            raise UserError(f"{source}: {what}s from {values.min():g} to {values.max():g}, and "
                            f"--lonlat takes {-most:g} to {most:g}; are longitude and latitude "
                            "exchanged (give --x and --y), or are these metres (no --lonlat)? "
                            f"Leave out what is a mistake: --missing {wrong[-1]:.7g}")


def refuse_rotated(source: str, names: str) -> None:
    """Raises UserError for axes whose names say that they are degrees about another pole."""
    if ROTATED & set(re.findall(r"[^\W\d_]+", names.lower())):
        raise UserError(f"{source}: {names} are those of a rotated grid, and --lonlat takes "
                        "longitude and latitude; choose these, or leave --lonlat out")


def around(lon: np.ndarray, middle: float | None = None) -> np.ndarray:
    """Longitudes (M,) turned by 360 degrees to lie around a middle; None: to be close together, so
    that 179 and -179 become 179 and 181."""
    if middle is not None:
        west = middle - WIDEST / 2
        return west + np.mod(lon - west, WIDEST)
    turned = np.unique(np.mod(lon, WIDEST))
    gaps = np.diff(turned, append=turned[:1] + WIDEST)
    first = turned[(int(gaps.argmax()) + 1) % len(turned)]
    if first > 180:
        first -= WIDEST
    return first + np.mod(lon - first + ROUNDING, WIDEST) - ROUNDING


def east(lon: float) -> float:
    """A longitude, however it was turned, in -180 ... 180."""
    return (lon + WIDEST / 2) % WIDEST - WIDEST / 2


def scales(extent: Sequence[float]) -> tuple[float, float]:
    """Degrees of longitude and of latitude, in the middle of an extent, that become one unit."""
    x0, x1, y0, y1 = extent
    shrinkage = max(LEAST_COSINE, float(np.cos(np.radians((y0 + y1) / 2))))
    longer = max((x1 - x0) * shrinkage, y1 - y0)
    return longer / shrinkage, longer


def on_sphere(points: np.ndarray) -> np.ndarray:
    """(P, 2) degrees to (P, 3) on the unit sphere."""
    lon, lat = np.radians(points).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def coasts(extent: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes (P,) of the coasts in an extent, lines apart by NaN: of Natural
    Earth, by cartopy, which downloads them once. Without it, or them, there are none."""
    parts = [np.empty((0, 2))]
    if importlib.util.find_spec("cartopy") is not None:
        from cartopy.io import shapereader

        width = extent[1] - extent[0]
        scale = next(name for name, widest in COASTS.items() if width <= widest)
        try:
            path = shapereader.natural_earth(scale, "physical", "coastline")
        except OSError as error:
            log.info("no coast lines: cartopy cannot have them (%s)", error)
        else:
            found = shapereader.Reader(path).geometries()
            lines = [np.asarray(line.coords)[:, :2] for whole in found
                     for line in getattr(whole, "geoms", [whole])]
            parts += [part for turn in (-WIDEST, 0, WIDEST) for line in lines
                      for part in _within(line + (turn, 0), extent)]
    joined = np.concatenate([np.vstack([part, [[np.nan, np.nan]]]) for part in parts])
    return joined[1:, 0], joined[1:, 1]


def _within(line: np.ndarray, extent: Sequence[float]) -> list[np.ndarray]:
    """The parts of a line (P, 2) in an extent, each with the point beyond its ends."""
    x0, x1, y0, y1 = extent
    inside = ((line >= (x0, y0)) & (line <= (x1, y1))).all(axis=1)
    kept = inside.copy()
    kept[1:] |= inside[:-1]
    kept[:-1] |= inside[1:]
    ends = np.flatnonzero(np.diff(np.pad(kept, 1).astype(int))).reshape(-1, 2)
    return [line[start:end] for start, end in ends]


def to_space(points: np.ndarray, extent: Sequence[float]) -> Tensor:
    """(P, 2) degrees to (P, 3) float32: east, north and up of the middle of an extent.

    One is the length of the longer side of the extent along the surface.
    """
    x0, x1, y0, y1 = extent
    lat0 = np.radians((y0 + y1) / 2)
    outward, east, z = on_sphere(points - ((x0 + x1) / 2, 0)).T
    north = z * np.cos(lat0) - outward * np.sin(lat0)
    up = z * np.sin(lat0) + outward * np.cos(lat0) - 1
    radius = 1 / np.radians(scales(extent)[1])
    return torch.from_numpy((radius * np.stack([east, north, up], axis=1)).astype(np.float32))
