"""What a program gives to a model: checked, averaged, transformed, and placed in its square."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from sparsefield.data.missing import refuse_lone_extreme
from sparsefield.errors import UserError, require_seed
from sparsefield.flow.sampling import Progress
from sparsefield.use import globe, transforms
from sparsefield.use.frame import Frame
from sparsefield.use.points import (
    MOST_POINTS,
    Measurements,
    average_duplicates,
    bounds,
    noise_of,
    real_array,
    without,
)
from sparsefield.use.trained import TrainedModel

log = logging.getLogger("sparsefield")

MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Settings:
    """How an answer is made; see `Reconstructor.reconstruct` and `Reconstructor.at`."""

    extent: Sequence[float] | None
    num_samples: int
    noise_sd: float | Sequence[float] | Literal["auto"]
    value_range: Sequence[float] | None
    num_steps: int
    seed: int
    aspect: str
    lonlat: bool
    transform: str | None
    missing: Sequence[float] | None
    separately: bool
    progress: Progress | None = None
    with_noise: bool = False

    @property
    def find_noise(self) -> bool:
        """Whether the noise is to be found."""
        return isinstance(self.noise_sd, str) and self.noise_sd == "auto"

    def check(self) -> None:
        """Raises UserError for numbers and names that cannot be used."""
        for name in ("num_samples", "num_steps", "seed"):
            if not isinstance(getattr(self, name), (int, np.integer)):
                raise UserError(f"{name}={getattr(self, name)!r}: give a whole number")
        if not 2 <= self.num_samples <= MOST_SAMPLES:
            raise UserError(f"num_samples={self.num_samples}: an uncertainty needs at least 2, "
                            f"and at most {MOST_SAMPLES:,} are kept")
        if self.num_steps < 1:
            raise UserError(f"num_steps={self.num_steps}: give at least 1")
        require_seed(self.seed)
        transforms.check_transform(self.transform)


@dataclass(frozen=True)
class Observed:
    """Measurements as a model takes them, each at a place of its own.

    Attributes:
        places: (M, 2) float32 in the unit square, or (M, 3) on a globe; see `Frame.inside`.
        values: (M, C) float64, transformed. noise: (M,) sd of their noise; where it is to be found,
            that of each relative to the others.
    """

    places: Tensor
    values: np.ndarray
    noise: np.ndarray


def observe(
    model: TrainedModel, coords: np.ndarray, values: np.ndarray, settings: Settings
) -> tuple[Observed, Frame]:
    """Measurements at coords (M, 2) of values (M, C) or (M,) for a model, and where they lie.

    Raises:
        UserError: an argument that cannot be used, with the reason.
    """
    coords, values, noise = as_given(coords, values, settings.missing,
                                     1.0 if settings.find_noise else settings.noise_sd)
    if settings.extent is not None and real_array("extent", settings.extent).shape != (4,):
        raise UserError(f"extent {settings.extent}: give x0, x1, y0, y1")
    coords, extent = _rectangle(model, coords, settings)
    given = Measurements(coords, values, extent)
    _require_within(given)
    model.require_channels(values.shape[1])
    settings.check()
    if settings.lonlat:
        given = replace(given, coords=globe.at_poles(coords, extent))
    frame = Frame.of(extent, settings.aspect, settings.lonlat)
    given, noise = average_duplicates(given, noise)
    _tell_if_alike(given.values)
    if not 1 <= len(given.coords) <= MOST_POINTS:
        raise UserError(f"{len(given.coords):,} points: give 1 to {MOST_POINTS:,}")
    if not settings.find_noise:  # else it is relative
        noise = transforms.of_noise(settings.transform, noise, given.values)
    values = transforms.forward(settings.transform, given.values)
    return Observed(frame.inside(given.coords), values, noise), frame


def _rectangle(
    model: TrainedModel, coords: np.ndarray, settings: Settings
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Coordinates (M, 2), of a globe turned to where they are together, and the extent."""
    extent = settings.extent
    if settings.lonlat:
        if not model.is_closed_form:
            raise UserError("lonlat is for the closed form alone: leave --checkpoint out, or "
                            "give --checkpoint none")
        globe.require_degrees("coords", coords)
        if extent is not None and extent[1] - extent[0] > globe.WIDEST:
            raise UserError(f"extent {extent[0]:g} {extent[1]:g}: longitudes span 360 degrees "
                            "at most")
        coords = np.stack([globe.around(coords[:, 0], extent), coords[:, 1]], axis=1)
        if extent is None and len(coords):
            extent = bounds("coords", coords, lonlat=True)
    return coords, tuple(float(x) for x in (extent if extent is not None else (0, 1, 0, 1)))


def _tell_if_alike(values: np.ndarray) -> None:
    """Warn of a channel of (M, C) that says nothing of how much it varies."""
    for c in np.flatnonzero(values.min(axis=0) == values.max(axis=0)) if len(values) else ():
        which = f" of channel {c + 1}" if values.shape[1] > 1 else ""
        what = "the only value" if len(values) == 1 else "all values"
        log.warning("WARNING: %s%s: %.6g; how much it varies elsewhere nothing tells, and the sd "
                    "is a guess", what, which, values[0, c])


def _require_within(given: Measurements) -> None:
    """Raises UserError for an extent that is none, and for points outside of it."""
    x0, x1, y0, y1 = given.extent
    if not (x0 < x1 and y0 < y1 and np.isfinite((x1 - x0, y1 - y0)).all()):
        raise UserError(f"extent {x0:g} {x1:g} {y0:g} {y1:g}: give x0 < x1 and y0 < y1, finite")
    outside = ~((given.coords >= (x0, y0)) & (given.coords <= (x1, y1))).all(axis=1)
    if outside.any():
        raise UserError(f"{outside.sum()} points lie outside the extent {x0:g} {x1:g} {y0:g} "
                        f"{y1:g}: leave them out, or give a larger extent")


def as_given(
    coords: np.ndarray, values: np.ndarray, missing: Sequence[float] | None,
    noise_sd: float | Sequence[float] = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates (M, 2), values (M, C) and their noise's sd (M,) in float64, as a program gives.

    Points that are masked (numpy.ma), or whose value is in `missing`, are left out and counted in
    the log. `missing` None refuses a value that looks like one that means: not measured.

    Raises:
        UserError: no real numbers, other shapes, NaN or infinity that is not masked.
    """
    masks = [np.ma.getmaskarray(a) if np.ma.isMaskedArray(a) else None for a in (coords, values)]
    coords, values = real_array("coords", coords), real_array("values", values)
    values = values[:, None] if values.ndim == 1 else values
    if coords.ndim != 2 or coords.shape[1:] != (2,) or values.ndim != 2 or (
        len(coords) != len(values) or values.shape[1] == 0
    ):
        turned = "; one row for each point" if len(coords) in coords.shape[1:] or (
            values.shape[-1:] == coords.shape[:1]) or coords.shape[:1] == (2,) else ""
        raise UserError(f"coords {coords.shape} and values {values.shape}: give (M, 2) and "
                        f"(M,) or (M, C){turned}")
    kept = np.ones(len(coords), bool)
    for mask in masks:
        if mask is not None:
            kept &= ~mask.reshape(len(kept), -1).any(axis=1)
    if not (np.isfinite(coords[kept]).all() and np.isfinite(values[kept]).all()):
        raise UserError("coords or values hold NaN or infinity: leave those points out")
    kept &= np.isfinite(without(values, missing)).all(axis=1)
    if not kept.all():
        log.info("%d of %d points are masked or missing: left out", (~kept).sum(), len(kept))
    noise = noise_of(noise_sd, len(coords))[kept]
    coords, values = coords[kept], values[kept]
    if missing is None:
        for c in range(values.shape[1]):
            refuse_lone_extreme(f"values, channel {c + 1}", values[:, c])
    return coords, values, noise
