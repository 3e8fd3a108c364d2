"""Measurements in, a field with its uncertainty out: `Reconstructor` and what it does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from sparsefield.data.files import refuse_lone_extreme
from sparsefield.data.scale import Scale, given_range
from sparsefield.device import has_fast_bfloat16, pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate.calibration import SETTINGS, widen
from sparsefield.flow.sampling import Progress, sample
from sparsefield.gaussian import estimate_noise
from sparsefield.hashed import noise_seed
from sparsefield.model.bundled import BUNDLED, NAMES
from sparsefield.model.checkpoint import build_model, load_model
from sparsefield.model.field import GaussianModel
from sparsefield.model.transfer import for_channels
from sparsefield.use import globe
from sparsefield.use.grids import Frame, axes_grid, cells, grid_shape
from sparsefield.use.points import (
    MOST_POINTS,
    SAME_PLACE,
    Extent,
    bounds,
    merge_repeats,
    merge_twins,
    noise_of,
    real_array,
    require_extent,
    without,
)
from sparsefield.use.values import (
    check_transform,
    choose_scale,
    excess,
    is_of_pictures,
    own_range,
    require_inside,
    transformed,
    transformed_noise,
    transformed_range,
    untransformed,
)

log = logging.getLogger("sparsefield")

MOST_SAMPLES = 1000
INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32


@dataclass(frozen=True)
class Field:
    """A reconstructed field, in the units of the measurements.

    Attributes:
        coords: (H, W, 2), x and y of the middles of its cells; (N, 2) of `Reconstructor.at`, and
            likewise below.
        mean: (H, W, C) posterior mean. sd: (H, W, C), that of the samples, and of the closed form
            alone without a transform the exact one. samples: (K, H, W, C).
        how: the samplers in words. variogram: of the closed form, as fitted; "" without one.
    """

    coords: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str
    variogram: str = ""

    def within(
        self, reach: float, coords: np.ndarray, lonlat: bool = False, frame: Frame | None = None
    ) -> Field:
        """NaN where the nearest of the measured places coords (M, 2) is farther than `reach`.

        Args:
            reach: in the units of x and y; with lonlat in km on the Earth. frame: see
                `Frame.beyond`; default one scale for both axes.
        """
        frame = frame or Frame.of(coords, aspect="equal", lonlat=lonlat)
        far = frame.beyond(reach, self.coords.reshape(-1, 2), coords)
        far = far.reshape(*self.coords.shape[:-1], 1)
        return replace(self, **{name: np.where(far, np.nan, getattr(self, name))
                                for name in ("mean", "sd", "samples")})


@dataclass(frozen=True)
class Settings:
    """How a field is reconstructed: the keyword arguments of `Reconstructor`'s methods.

    Attributes:
        num_samples: K, 2 to 1,000.
        noise_sd: sd of the noise in the values, in their units, one number or one for each point;
            0 keeps them exactly, "auto" finds one number for each channel.
        value_range: low high, or so for each channel: what the model sees as its darkest and
            brightest. Default that of the training data; where the values lie far outside of it,
            with a warning, and for shades of grey: theirs, with a margin.
        num_steps: of Heun's rule; the calibration holds at the default.
        seed: of the noise.
        aspect: equal (both axes have one scale), free (each its own), or auto: free where the
            points span more than 10 times as much of one.
        lonlat: x and y are degrees of longitude and latitude, and distances are chords through the
            globe; for the closed form alone.
        transform: log or sqrt, of values that cannot be negative. Results are in the units of the
            values, and the mean is that of the samples.
        missing: values that mean: not measured. None refuses one that looks like it, such as
            -9999; [] takes all as they are.
        separately: each channel on its own, where three are no colours; a model that was trained
            on these channels takes them together all the same.
        region: x0 x1 y0 y1 of the rectangle that the points stand for, as all of a picture;
            default: one about as large as around them.
        progress: called as progress(model calls so far, all).
        with_noise: with noise_sd="auto", samples of what would be measured, with noise.
        channel: which of those that are drawn apart; each has draws of its own. Not for callers.
    """

    num_samples: int = 16
    noise_sd: float | Sequence[float] | Literal["auto"] = 0.0
    value_range: Sequence[float] | None = None
    num_steps: int = SETTINGS["num_steps"]
    seed: int = 0
    aspect: str = "auto"
    lonlat: bool = False
    transform: str | None = None
    missing: Sequence[float] | None = None
    separately: bool = False
    region: Sequence[float] | None = None
    progress: Progress | None = None
    with_noise: bool = False
    channel: int = 0

    def __post_init__(self) -> None:
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
        check_transform(self.transform)
        if self.region is not None:
            require_extent(self.region, self.lonlat, "region")

    @property
    def find_noise(self) -> bool:
        """Whether the noise is to be found."""
        return isinstance(self.noise_sd, str) and self.noise_sd == "auto"


class Reconstructor:
    """A model that takes measurements in their own units; made by `sparsefield.load`.

    Attributes:
        network, checkpoint: of the model; {} for the closed form alone. device: where it runs.
        path: of the checkpoint, as it was given; "none" for the closed form alone.
        channels: of the fields that it was trained on, and scale: their values and units; both None
            for the closed form alone.
        spread: factor on the spread of samples, fitted at the end of training; 1 if it was not.
    """

    def __init__(
        self, network: nn.Module, checkpoint: dict, device: torch.device, path: str | Path = "none"
    ):
        self.network, self.checkpoint, self.device = network, checkpoint, device
        self.path = str(path)
        self.channels = self.scale = None
        self.spread = 1.0
        if not checkpoint:
            return
        data = checkpoint["data"]
        try:
            self.channels = int(data["channels"])
            pairs = tuple((float(low), float(high)) for low, high in data["value_range"])
            self.scale = Scale(pairs, data.get("units"))
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint does not say what its data were (channels, "
                            "value_range): it is damaged, or of another version") from None
        self.spread = float(checkpoint.get("calibration", {}).get("spread", 1.0))

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """See `sparsefield.load`."""
        chosen = pick_device(device)
        if str(path) == "none":
            return cls(GaussianModel(), {}, chosen)
        path = BUNDLED if str(path) in NAMES else path
        return cls(*load_model(path, chosen), chosen, path)

    @property
    def is_closed_form(self) -> bool:
        """Whether it is the closed form alone, without training."""
        return self.scale is None

    @property
    def is_of_pictures(self) -> bool:
        """Whether it was trained on pictures of 8 bits."""
        return self.scale is not None and is_of_pictures(self.scale)

    def require_channels(self, channels: int) -> None:
        """Raises UserError for a number of values a point that it cannot read."""
        if not (self.is_closed_form or self.is_of_pictures or channels == self.channels):
            raise UserError(f"{channels} value(s) a point, the model was trained on "
                            f"{self.channels}: choose columns with --value, or another checkpoint")

    def scale_for(self, values: np.ndarray, value_range: Sequence[float] | None) -> Scale:
        """How it sees values (M, C); see `choose_scale`."""
        if self.scale is not None:
            return choose_scale(self.scale, values, value_range)
        if value_range is not None:
            require_inside(values, Scale(given_range(value_range, values.shape[1])))
        return Scale(own_range(values))  # the closed form has no range of its own

    @cached_property
    def of_one_channel(self) -> Reconstructor:
        """What a model of colour pictures knows, for one channel of whatever unit and range."""
        checkpoint = for_channels(self.checkpoint, 1)
        return _OneChannel(build_model(checkpoint, self.device), checkpoint, self.device, self.path)

    def reconstruct(
        self, coords: np.ndarray, values: np.ndarray, resolution: int | Sequence[int] = 64, *,
        axes: tuple[np.ndarray, np.ndarray] | None = None,
        extent: Sequence[float] | None = None, **settings: Any,
    ) -> Field:
        """The field on a grid, from values at scattered points.

        Args:
            coords: (M, 2), x and y in any units, 1 to 100,000 points, all of which are used, also
                outside the extent. Equal ones become one, weighted by 1 / noise_sd^2. Masked
                points (numpy.ma) are left out.
            values: (M, C) or (M,), in the units of the training data. A model of colour pictures
                takes red, green and blue (0 to 255), one channel as shades of grey, and any other
                number of channels each on its own.
            resolution: cells of the longer side (the other follows), or (rows, columns).
            axes: x (W,) and y (H,) of a grid of your own, instead of `resolution`; its points may
                lie anywhere, also outside the extent.
            extent: x0 x1 y0 y1 of the field, default the unit square; with lonlat the narrowest
                around the points.
            settings: num_samples, noise_sd, lonlat, transform, ...: see `Settings`.
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        settings = Settings(**settings)
        given = _given_places(self, coords, values, settings)
        if extent is not None:
            require_extent(extent, settings.lonlat, "extent")
        if axes is None:
            extent = _default_extent(given[0], settings.lonlat) if extent is None else extent
            observed = observe(self, *given, extent, settings)
            where = cells(grid_shape(resolution, extent, observed.frame.scaled_by), extent)
        else:
            where = axes_grid(axes)
            observed = observe(self, *given, extent or bounds("axes", where.reshape(-1, 2)),
                               settings)
        return answer(self, where, observed, settings)

    def at(
        self, places: np.ndarray, coords: np.ndarray, values: np.ndarray, *,
        extent: Sequence[float] | None = None, **settings: Any,
    ) -> Field:
        """The field at places (N, 2) of any kind; all else as in `reconstruct`.

        Args:
            extent: default: the rectangle around places and points. A trained model sees all of
                it; the closed form's answer does not depend on it.
        """
        settings = Settings(**settings)
        if np.ma.is_masked(places):
            raise UserError("some of the places are masked: leave these out")
        places, _, _ = as_given(places, np.zeros(len(places)), [])
        given = _given_places(self, coords, values, settings)
        if settings.lonlat:
            globe.require_degrees("places", places)
        if extent is not None:
            require_extent(extent, settings.lonlat, "extent")
        observed = observe(self, *given, extent or bounds("places", places), settings)
        return answer(self, places, observed, settings)


class _OneChannel(Reconstructor):
    """See `Reconstructor.of_one_channel`."""

    is_of_pictures = False

    def scale_for(self, values: np.ndarray, value_range: Sequence[float] | None) -> Scale:
        return choose_scale(Scale(own_range(values)), values, value_range)


@dataclass(frozen=True)
class Observed:
    """Measurements as a model takes them, each at a place of its own.

    Attributes:
        frame: where they lie. places: (M, 2) float64 coordinates, on a globe (M, 3).
        values: (M, C) float64, transformed. noise: (M, C) sd of their noise; where it is to be
            found, that of each relative to the others.
    """

    frame: Frame
    places: np.ndarray
    values: np.ndarray
    noise: np.ndarray


def observe(
    model: Reconstructor, coords: np.ndarray, values: np.ndarray, noise: np.ndarray,
    asked: Extent, settings: Settings,
) -> Observed:
    """Measurements, as `as_given` returns them, for a model.

    Args:
        asked: the rectangle that holds all places that are asked for.
    Raises:
        UserError: an argument that cannot be used, with the reason.
    """
    model.require_channels(values.shape[1])
    frame = Frame.of(coords, aspect=settings.aspect, lonlat=settings.lonlat, asked=asked,
                     region=settings.region, in_unit=not model.is_closed_form)
    noise = np.repeat(noise[:, None], values.shape[1], axis=1)
    places, values, noise = merge_repeats(frame.inside(coords), values, noise)
    if not settings.find_noise:  # else it is relative
        spacing = frame.domain.spacing(len(places))
        places, values, noise = merge_twins(places, values, noise, spacing)
        noise = transformed_noise(settings.transform, noise, values)
    for c in np.flatnonzero(np.ptp(values, axis=0) == 0):
        log.warning("WARNING: %s%s: %.6g; how much it varies elsewhere is unknown, and the sd "
                    "is a guess", "the only value" if len(values) == 1 else "all values",
                    f" of channel {c + 1}" if values.shape[1] > 1 else "", values[0, c])
    if len(places) > MOST_POINTS:
        raise UserError(f"{len(places):,} points: give 1 to {MOST_POINTS:,}")
    return Observed(frame, places, transformed(settings.transform, values), noise)


def _given_places(
    model: Reconstructor, coords: np.ndarray, values: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`as_given`, where at least one point is left; on a globe they must be degrees."""
    coords, values, noise = as_given(coords, values, settings.missing,
                                     1.0 if settings.find_noise else settings.noise_sd)
    if not len(coords):
        raise UserError(f"0 points: give 1 to {MOST_POINTS:,}")
    if settings.lonlat:
        if not model.is_closed_form:
            raise UserError("lonlat is for the closed form alone: leave --checkpoint out, or "
                            "give --checkpoint none")
        globe.require_degrees("coords", coords)
    return coords, values, noise


def _default_extent(coords: np.ndarray, lonlat: bool) -> Extent:
    """The unit square; on a globe the narrowest rectangle around points (M, 2).

    Raises:
        UserError: points outside the unit square.
    """
    if lonlat:
        lon = globe.around(coords[:, 0])
        return bounds("coords", np.column_stack([lon, coords[:, 1]]), lonlat)
    outside = (coords < 0).any(axis=1) | (coords > 1).any(axis=1)
    if outside.any():
        raise UserError(f"{outside.sum()} points lie outside the unit square: give extent=(x0, x1, "
                        "y0, y1)")
    return 0.0, 1.0, 0.0, 1.0


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
    masks = [np.ma.getmaskarray(a) for a in (coords, values)]
    coords, values = real_array("coords", coords), real_array("values", values)
    values = values[:, None] if values.ndim == 1 else values
    if coords.ndim != 2 or coords.shape[1:] != (2,) or values.ndim != 2 or (
        len(coords) != len(values) or values.shape[1] == 0
    ):
        raise UserError(f"coords {coords.shape} and values {values.shape}: give (M, 2) and "
                        "(M,) or (M, C); one row for each point")
    kept = ~(masks[0].any(axis=1) | masks[1].reshape(values.shape).any(axis=1))
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


def draw(
    model: Reconstructor, queries: np.ndarray, observed: Observed, values: Tensor,
    noise: np.ndarray | None, settings: Settings, clip: bool,
) -> Field:
    """Mean and samples at queries; sd is that of the draws that the flow starts from.

    Exact measurements are put in where a query is one, and not asked for.

    Args:
        queries: (N, 2), on a globe (N, 3). values: (M, C) float32, what a model sees.
        noise: (M, C) sd of the noise in the values; None: they are exact.
        clip: nothing lies outside of -1 ... 1.
    """
    known = scipy.spatial.cKDTree(observed.places).query(
        queries, distance_upper_bound=SAME_PLACE)[1]               # (N,) the observation there
    known[known == len(observed.places)] = -1                      # there is none
    if noise is not None:
        known[(known >= 0) & (noise[known] > 0).any(axis=1)] = -1
    asked = np.flatnonzero(known < 0)
    samples = np.empty((settings.num_samples, len(queries), values.shape[1]), dtype=np.float32)
    mean, sd = samples[0].copy(), np.zeros(samples.shape[1:])
    samples[:, known >= 0] = mean[known >= 0] = values.numpy()[known[known >= 0]]
    if not len(asked):
        return Field(queries, mean, sd, samples, "every cell is a measured point")
    device = model.device
    parts = [torch.as_tensor(part, dtype=torch.float32)[None].to(device)
             for part in (queries[asked], observed.places, values)]
    seeds = [noise_seed(settings.seed, settings.channel, k + 1)
             for k in range(settings.num_samples)]
    result = sample(
        model.network, *parts, seeds=[seeds], num_steps=settings.num_steps,
        noise_sd=None if noise is None else torch.from_numpy(noise)[None].float().to(device),
        most_inputs=None if model.is_closed_form else INPUTS, clip=False,
        bfloat16=device.type == "cpu" and has_fast_bfloat16(), progress=settings.progress,
        domain=observed.frame.domain,
    )
    mean[asked], sd[asked] = result.mean[0].cpu().numpy(), result.start_sd[0].cpu().numpy()
    samples[:, asked] = widen(result.values[0].cpu().numpy(), model.spread)
    if clip:
        samples, mean = samples.clip(-1, 1), mean.clip(-1, 1)
    how = "draws of the closed form" if model.is_closed_form else result.how
    return Field(queries, mean, sd, samples, how, result.variogram)


def answer(
    model: Reconstructor, where: np.ndarray, observed: Observed, settings: Settings
) -> Field:
    """A model's answer at places (..., 2), in the units of the user.

    Raises:
        UserError: a value_range that is none or does not fit.
    """
    found = _channels(model, observed.frame.inside(where.reshape(-1, 2)), observed, settings)
    mean, sd, samples = found.mean, found.sd, found.samples
    if settings.transform is not None:
        samples = untransformed(settings.transform, samples)
        mean, sd = samples.mean(axis=0), samples.std(axis=0, ddof=1)
    shape = where.shape[:-1]
    return replace(found, coords=where, mean=mean.reshape(*shape, -1), sd=sd.reshape(*shape, -1),
                   samples=samples.reshape(len(samples), *shape, -1))


def _channels(
    model: Reconstructor, queries: np.ndarray, observed: Observed, settings: Settings
) -> Field:
    """All channels together, or each on its own: where they are different things."""
    channels = observed.values.shape[1]
    value_range = transformed_range(settings.transform, settings.value_range)
    alone = model.is_of_pictures and channels not in (1, model.channels)
    has_learnt_them = not model.is_of_pictures and channels == model.channels
    if channels == 1 or has_learnt_them or not (settings.separately or alone):
        return _together(model, queries, observed, value_range, settings)
    ranges = [None] * channels if value_range is None else given_range(value_range, channels)
    parts = []
    for c in range(channels):
        one = replace(observed, values=observed.values[:, [c]], noise=observed.noise[:, [c]])
        parts.append(_together(model, queries, one, ranges[c], replace(settings, channel=c)))
    joined = {name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
              for name in ("mean", "sd", "samples")}
    variogram = " | ".join(part.variogram for part in parts if part.variogram)
    return replace(parts[0], variogram=variogram, **joined)


def _together(
    model: Reconstructor, queries: np.ndarray, observed: Observed,
    value_range: Sequence[float] | None, settings: Settings,
) -> Field:
    """The answer of one call of the model, brought back from -1 ... 1."""
    if model.is_of_pictures and model.channels != 1 == observed.values.shape[1]:
        model = model.of_one_channel
    scale = model.scale_for(observed.values, value_range)
    inside = torch.from_numpy(scale.to_inside(observed.values))
    half_widths = np.diff(scale.value_range, axis=1)[:, 0] / 2
    noise = observed.noise / half_widths
    if settings.find_noise:
        places, weights = (torch.from_numpy(a) for a in (observed.places, observed.noise))
        found = np.array([estimate_noise(places.float(), *pair)
                          for pair in zip(inside.T, weights.T, strict=True)])
        noise = observed.noise * found
        log.info("noise found in the measurements: sd %s%s",
                 ", ".join(f"{sd:.3g}" for sd in found * half_widths),
                 f" of their {settings.transform}" if settings.transform else "")
    is_within = excess(observed.values, scale) <= 0
    drawn = draw(model, queries, observed, inside, noise if noise.any() else None, settings,
                 clip=model.is_of_pictures and is_within)
    samples, sd = drawn.samples, drawn.sd
    if settings.with_noise and settings.find_noise:
        rng = np.random.default_rng((settings.seed, settings.channel))
        samples, sd = samples + found * rng.normal(size=samples.shape), np.hypot(sd, found)

    samples = scale.to_physical(samples)
    sd = sd * half_widths if model.is_closed_form else samples.std(axis=0, ddof=1)
    return replace(drawn, mean=scale.to_physical(drawn.mean), sd=sd, samples=samples)
