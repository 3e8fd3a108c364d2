"""A trained model behind one call: measurements in, a field with its uncertainty out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sparsefield.data.scale import Scale, given_range
from sparsefield.data.streams import noise_seed
from sparsefield.device import pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate.calibration import SETTINGS, widen
from sparsefield.flow.sampling import POINTS, Progress, sample
from sparsefield.gaussian import estimate_noise
from sparsefield.model.checkpoint import load_model
from sparsefield.model.field import GaussianModel
from sparsefield.model.precision import has_fast_bfloat16
from sparsefield.use import globe, transforms
from sparsefield.use.grids import cells, grid_shape, own_grid, scales, to_square
from sparsefield.use.points import (
    MOST_POINTS,
    Measurements,
    as_given,
    average_duplicates,
    bounds,
)
from sparsefield.use.scales import choose_scale, excess, is_of_pictures, own_range

log = logging.getLogger("sparsefield")

INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32
SAME_PLACE = 1e-6  # sides of the square
MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Field:
    """A reconstructed field, in the units of the measurements.

    Attributes:
        coords: (H, W, 2), x and y of the middles of its cells.
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

    def within(self, reach: float, coords: np.ndarray, lonlat: bool = False) -> Field:
        """NaN where the nearest of the measured places coords (M, 2) is farther than `reach`.

        Args:
            reach: in the units of x and y; with lonlat in km on the Earth.
        """
        far = beyond(reach, self.coords.reshape(-1, 2), coords, lonlat)
        far = far.reshape(self.coords.shape[:2])
        hidden = {name: np.where(far[..., None], np.nan, getattr(self, name))
                  for name in ("mean", "sd", "samples")}
        return replace(self, **hidden)


def beyond(reach: float, places: np.ndarray, coords: np.ndarray, lonlat: bool) -> np.ndarray:
    """(P,) bool: places (P, 2) farther than `reach` from coords (M, 2); see `Field.within`."""
    if lonlat:
        places, coords = globe.on_sphere(places), globe.on_sphere(coords)
        reach = 2 * np.sin(min(reach / globe.EARTH, np.pi) / 2)           # of the chord
    return cKDTree(coords).query(places)[0] > reach


@dataclass(frozen=True)
class Answer:
    """What a model says of N places: see `Field`.

    Attributes:
        mean, sd: (N, C). samples: (K, N, C).
    """

    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str
    variogram: str = ""


@dataclass(frozen=True)
class Settings:
    """How an answer is made; see `Reconstructor.reconstruct`."""

    num_samples: int
    num_steps: int
    seed: int
    value_range: Sequence[float] | None
    transform: str | None
    separately: bool
    progress: Progress | None
    find_noise: bool
    with_noise: bool = False


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

    def inside(self, places: np.ndarray) -> Tensor:
        """(P, 2) to float32 (P, 2), or (P, 3) on a globe."""
        if self.lonlat:
            return globe.to_space(places, self.extent)
        return to_square(places, self.extent, self.scaled_by)


class Reconstructor:
    """A model that takes measurements in their own units; made by `sparsefield.load`.

    Attributes:
        channels: of the fields that it was trained on, and scale: their values and units; both None
            for the closed form alone, which takes any.
        spread: factor on the spread of samples, fitted at the end of training; 1 if it was not.
    """

    def __init__(self, network: nn.Module, checkpoint: dict, device: torch.device):
        self.network, self.checkpoint, self.device = network, checkpoint, device
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
    def load(cls, path: str | Path, device: str = "auto") -> Reconstructor:
        """See `sparsefield.load`."""
        chosen = pick_device(device)
        if str(path) == "none":
            return cls(GaussianModel(), {}, chosen)
        return cls(*load_model(path, chosen), chosen)

    def reconstruct(
        self,
        coords: np.ndarray,
        values: np.ndarray,
        resolution: int | Sequence[int] = 64,
        *,
        axes: tuple[np.ndarray, np.ndarray] | None = None,
        extent: Sequence[float] | None = None,
        num_samples: int = 16,
        noise_sd: float | Sequence[float] | Literal["auto"] = 0.0,
        value_range: Sequence[float] | None = None,
        num_steps: int = SETTINGS["num_steps"],
        seed: int = 0,
        aspect: str = "auto",
        lonlat: bool = False,
        transform: str | None = None,
        missing: Sequence[float] | None = None,
        separately: bool = False,
        progress: Progress | None = None,
    ) -> Field:
        """The field on a grid, from values at scattered points.

        Args:
            coords: (M, 2), x and y in any units, 1 to 100,000 points; equal ones are averaged.
                Masked points (numpy.ma) are left out.
            values: (M, C) or (M,), in the units of the training data. A model of colour pictures
                takes red, green and blue (0 to 255), one channel as shades of grey, and any other
                number of channels each on its own.
            resolution: cells of the longer side (the other follows), or (rows, columns).
            axes: x (W,) and y (H,) of a grid of your own, instead of `resolution`; its points may
                lie anywhere, also outside the extent.
            extent: x0 x1 y0 y1, default the unit square; with lonlat the narrowest around the
                points.
            num_samples: K, at least 2.
            noise_sd: sd of the noise in the values, in their units, one number or one for each
                point; 0 keeps them exactly, "auto" finds one number for each channel.
            value_range: low high, or so for each channel: what the model sees as its darkest and
                brightest. Default that of the training data; where the values lie far outside of
                it, with a warning, and for shades of grey: theirs, with a margin.
            num_steps: of Heun's rule; the calibration holds at the default.
            aspect: equal (both axes have one scale), free (each its own), or auto: free where the
                sides of the extent differ by more than 10 times.
            lonlat: x and y are degrees of longitude and latitude, and distances are chords through
                the globe; for the closed form alone.
            transform: log or sqrt, of values that cannot be negative. Results are in the units of
                the values, and the mean is that of the samples.
            missing: values that mean: not measured. None refuses one that looks like it, such as
                -9999; [] takes all as they are.
            separately: each channel on its own, where three are no colours.
            progress: called as progress(model calls so far, all).
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        settings = Settings(num_samples, num_steps, seed, value_range, transform, separately,
                            progress, is_auto(noise_sd))
        given, noise, frame = self._given(coords, values, missing, noise_sd, extent, aspect, lonlat,
                                          settings)
        if axes is None:
            shape = grid_shape(resolution, frame.extent, frame.scaled_by)
            queries, where = cells(shape, frame.extent, frame.scaled_by)
            queries = frame.inside(where) if lonlat else queries
        else:
            shape, where = own_grid(axes)
            queries = frame.inside(where)
        found = self._answer(given, noise, frame, queries, settings)
        return Field(
            where.reshape(*shape, 2), found.mean.reshape(*shape, -1), found.sd.reshape(*shape, -1),
            found.samples.reshape(num_samples, *shape, found.mean.shape[1]), found.how,
            found.variogram,
        )

    def at(
        self,
        places: np.ndarray,
        coords: np.ndarray,
        values: np.ndarray,
        *,
        extent: Sequence[float] | None = None,
        num_samples: int = 16,
        noise_sd: float | Sequence[float] | Literal["auto"] = 0.0,
        value_range: Sequence[float] | None = None,
        num_steps: int = SETTINGS["num_steps"],
        seed: int = 0,
        aspect: str = "auto",
        lonlat: bool = False,
        transform: str | None = None,
        missing: Sequence[float] | None = None,
        separately: bool = False,
        with_noise: bool = False,
    ) -> Answer:
        """The field at places (N, 2) of any kind; all else as in `reconstruct`.

        Args:
            with_noise: with noise_sd="auto", samples of what would be measured there, with noise.
        """
        settings = Settings(num_samples, num_steps, seed, value_range, transform, separately, None,
                            is_auto(noise_sd), with_noise)
        given, noise, frame = self._given(coords, values, missing, noise_sd, extent, aspect, lonlat,
                                          settings)
        places, _, _ = as_given(places, np.zeros(len(places)), [])
        return self._answer(given, noise, frame, frame.inside(places), settings)

    def _given(
        self, coords: np.ndarray, values: np.ndarray, missing: Sequence[float] | None,
        noise_sd: float | Sequence[float] | str, extent: Sequence[float] | None, aspect: str,
        lonlat: bool, settings: Settings,
    ) -> tuple[Measurements, np.ndarray, Frame]:
        """What was measured, checked and averaged, the sd of its noise, and where it lies."""
        coords, values, noise = as_given(coords, values, missing,
                                         1.0 if settings.find_noise else noise_sd)
        if lonlat:
            if self.scale is not None:
                raise UserError("lonlat is for the closed form alone: leave --checkpoint out, or "
                                "give --checkpoint none")
            globe.require_degrees("coords", coords)
            if extent is not None and extent[1] - extent[0] > globe.WIDEST:
                raise UserError(f"extent {extent[0]:g} {extent[1]:g}: longitudes span 360 degrees "
                                "at most")
            coords[:, 0] = globe.around(coords[:, 0], extent)
            if extent is None and len(coords):
                extent = bounds("coords", coords, lonlat)
        extent = tuple(float(x) for x in (extent if extent is not None else (0, 1, 0, 1)))
        given = Measurements(coords, values, extent)
        self._check(given, settings)
        if lonlat:
            given = replace(given, coords=globe.at_poles(coords, extent))
        frame = Frame(extent, globe.scales(extent) if lonlat else scales(extent, aspect), lonlat)
        given, noise = average_duplicates(given, noise)
        if not 1 <= len(given.coords) <= MOST_POINTS:
            raise UserError(f"{len(given.coords):,} points: give 1 to {MOST_POINTS:,}")
        if not settings.find_noise:  # else noise is relative
            noise = transforms.of_noise(settings.transform, noise, given.values)
        values = transforms.forward(settings.transform, given.values)
        return replace(given, values=values), noise, frame

    def _answer(
        self, given: Measurements, noise: np.ndarray, frame: Frame, queries: Tensor,
        settings: Settings,
    ) -> Answer:
        """The answer at queries (N, 2 or 3), from transformed values, in the units of the user."""
        found = self._channels(given, noise, frame, queries, settings)
        if settings.transform is None:
            return found
        samples = transforms.back(settings.transform, found.samples)
        return replace(found, mean=samples.mean(axis=0), sd=samples.std(axis=0, ddof=1),
                       samples=samples)

    def _channels(
        self, given: Measurements, noise: np.ndarray, frame: Frame, queries: Tensor,
        settings: Settings,
    ) -> Answer:
        """All channels together, or each on its own: where they are different things."""
        channels = given.values.shape[1]
        value_range = transforms.of_range(settings.transform, settings.value_range)
        alone = self.scale is not None and is_of_pictures(self.scale) and (
            channels not in (1, self.channels))
        if channels == 1 or not (settings.separately or alone):
            return self._together(given, noise, frame, queries, value_range, settings)
        ranges = [None] * channels if value_range is None else given_range(value_range, channels)
        answers = [
            self._together(replace(given, values=given.values[:, c:c + 1]), noise, frame, queries,
                           ranges[c], replace(settings, seed=settings.seed + c))
            for c in range(channels)
        ]
        joined = {name: np.concatenate([getattr(answer, name) for answer in answers], axis=-1)
                  for name in ("mean", "sd", "samples")}
        variograms = " | ".join(answer.variogram for answer in answers if answer.variogram)
        return Answer(how=answers[0].how, variogram=variograms, **joined)

    def _together(
        self, given: Measurements, noise: np.ndarray, frame: Frame, queries: Tensor,
        value_range: Sequence[float] | None, settings: Settings,
    ) -> Answer:
        scale, copies = self._scale_for(given, value_range)
        inside = torch.from_numpy(scale.to_inside(np.repeat(given.values, copies, axis=1)))
        half_widths = np.diff(scale.value_range, axis=1)[:, 0] / 2
        places = frame.inside(given.coords)
        found = 0.0
        if settings.find_noise:
            found = np.array([estimate_noise(places, channel, torch.from_numpy(noise))
                              for channel in inside.T])                   # (C,)
            noise_inside = noise[:, None] * found if found.any() else None
        else:
            noise_inside = noise[:, None] / half_widths if noise.any() else None
        clip = self.scale is not None and is_of_pictures(self.scale) and copies == 1 and (
            excess(given.values, scale) <= 0)
        drawn = self._draw(queries, places, inside.float(), noise_inside, clip, settings)
        samples, sd = drawn.samples, drawn.sd
        if settings.with_noise:
            rng = np.random.default_rng(settings.seed)
            samples, sd = samples + found * rng.normal(size=samples.shape), np.hypot(sd, found)

        def outside(inner: np.ndarray) -> np.ndarray:
            full = scale.to_physical(inner)
            return full.mean(axis=-1, keepdims=True) if copies > 1 else full

        samples = outside(samples)
        sd = sd * half_widths if self.scale is None else samples.std(axis=0, ddof=1)
        if settings.find_noise:
            tell_noise(found * half_widths, settings.transform)
        return replace(drawn, mean=outside(drawn.mean), sd=sd, samples=samples)

    def _scale_for(
        self, given: Measurements, value_range: Sequence[float] | None
    ) -> tuple[Scale, int]:
        """How the model sees the values, and how often each is repeated."""
        if self.scale is not None:
            return choose_scale(self.scale, given.values, value_range)
        if value_range is not None:
            return Scale(given_range(value_range, given.values.shape[1])), 1
        return Scale(own_range(given.values)), 1

    def _check(self, given: Measurements, settings: Settings) -> None:
        coords, values = given.coords, given.values
        x0, x1, y0, y1 = given.extent
        if not (x0 < x1 and y0 < y1 and np.isfinite((x1 - x0, y1 - y0)).all()):
            raise UserError(f"extent {x0:g} {x1:g} {y0:g} {y1:g}: give x0 < x1 and y0 < y1, finite")
        outside = ~((coords >= (x0, y0)) & (coords <= (x1, y1))).all(axis=1)
        if outside.any():
            raise UserError(f"{outside.sum()} points lie outside the extent {x0:g} {x1:g} {y0:g} "
                            f"{y1:g}: leave them out, or give a larger extent")
        if self.scale is not None and values.shape[1] != self.channels and (
            not is_of_pictures(self.scale)
        ):
            raise UserError(f"{values.shape[1]} value(s) a point, the model was trained on "
                            f"{self.channels}: choose columns with --value, or another checkpoint")
        if not 2 <= settings.num_samples <= MOST_SAMPLES:
            raise UserError(f"num_samples={settings.num_samples}: an uncertainty needs at least 2, "
                            f"and at most {MOST_SAMPLES:,} are kept")
        if settings.num_steps < 1:
            raise UserError(f"num_steps={settings.num_steps}: give at least 1")
        require_seed(settings.seed)
        transforms.check_transform(settings.transform)

    def _draw(
        self, queries: Tensor, places: Tensor, values: Tensor, noise: np.ndarray | None,
        clip: bool, settings: Settings,
    ) -> Answer:
        """The answer as the model sees it; sd is that of the draws that the flow starts from.

        Exact measurements are put in where a query is one, and not asked for.
        """
        known = np.full(len(queries), -1) if noise is not None else which_observed(queries, places)
        asked = np.flatnonzero(known < 0)
        points = (queries[asked], places, values)
        parts = [part[None].to(self.device) for part in points]
        noise_sd = None if noise is None else torch.from_numpy(noise)[None].float().to(self.device)
        count = settings.num_samples
        samples = np.empty((count, len(queries), values.shape[1]), dtype=np.float32)
        mean, sd = samples[0].copy(), np.zeros(samples.shape[1:])
        samples[:, known >= 0] = mean[known >= 0] = values.numpy()[known[known >= 0]]
        if not len(asked):
            return Answer(mean, sd, samples, "every cell is a measured point")
        result = sample(
            self.network, *parts,
            seeds=[[noise_seed(settings.seed, 0, k) for k in range(1, count + 1)]],
            num_steps=settings.num_steps, noise_sd=noise_sd,
            block_size=block_size(len(asked), len(places)),
            most_inputs=None if self.scale is None else INPUTS, clip=False,
            bfloat16=self.device.type == "cpu" and has_fast_bfloat16(),
            progress=settings.progress,
        )
        drawn = widen(result.values[0].cpu().numpy(), self.spread)
        mean[asked], sd[asked] = result.mean[0].cpu().numpy(), result.start_sd[0].cpu().numpy()
        samples[:, asked] = drawn
        if clip:
            samples, mean = samples.clip(-1, 1), mean.clip(-1, 1)
        return Answer(mean, sd, samples, result.how, result.variogram)


def is_auto(noise_sd: object) -> bool:
    """Whether the noise is to be found."""
    return isinstance(noise_sd, str) and noise_sd == "auto"


def tell_noise(found: np.ndarray, transform: str | None) -> None:
    """Log what noise was found, in units of the (transformed) values."""
    numbers = ", ".join(f"{sd:.3g}" for sd in np.ravel(found))
    log.info("noise found in the measurements: sd %s%s", numbers,
             f" of their {transform}" if transform else "")


def which_observed(queries: Tensor, places: Tensor) -> np.ndarray:
    """(N,) index of the observation at each query, -1 where there is none."""
    index = cKDTree(places.numpy()).query(queries.numpy(), distance_upper_bound=SAME_PLACE)[1]
    return np.where(index < len(places), index, -1)


def block_size(points: int, observed: int) -> int:
    """Queries to answer together so that they and their halo lie among about INPUTS / 2 points."""
    if observed <= INPUTS:
        return POINTS
    return min(POINTS, max(64, points * INPUTS // (3 * observed)))
