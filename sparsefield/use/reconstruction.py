"""A trained model behind one call: measurements in, a field with its uncertainty out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sparsefield.model.checkpoint import load_model
from sparsefield.model.field import GaussianModel
from sparsefield.model.precision import has_fast_bfloat16
from sparsefield.data.scale import Scale, given_range
from sparsefield.data.streams import noise_seed
from sparsefield.device import pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate.calibration import SETTINGS, widen
from sparsefield.flow.sampling import POINTS, Progress, sample
from sparsefield.use.grids import cells, grid_shape, scales, to_square
from sparsefield.use.points import MOST_POINTS, Measurements, as_given, average_duplicates
from sparsefield.use.scales import choose_scale, excess, is_of_pictures, own_range

INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32
SAME_PLACE = 1e-6  # sides of the square
MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Field:
    """A reconstructed field, in the units of the measurements.

    Attributes:
        coords: (H, W, 2), x and y of the middles of its cells.
        mean: (H, W, C) posterior mean. sd: (H, W, C). samples: (K, H, W, C).
        how: the samplers in words. variogram: of the closed form, as fitted; "" without one.
    """

    coords: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str
    variogram: str = ""


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
        extent: Sequence[float] | None = None,
        num_samples: int = 16,
        noise_sd: float | Sequence[float] = 0.0,
        value_range: Sequence[float] | None = None,
        num_steps: int = SETTINGS["num_steps"],
        seed: int = 0,
        aspect: str = "auto",
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
            extent: x0 x1 y0 y1, default the unit square.
            num_samples: K, at least 2.
            noise_sd: sd of the noise in the values, in their units, one number or one for each
                point; 0 keeps them exactly.
            value_range: low high, or so for each channel: what the model sees as its darkest and
                brightest. Default that of the training data; where the values lie far outside of
                it, with a warning, and for shades of grey: theirs, with a margin.
            num_steps: of Heun's rule; the calibration holds at the default.
            aspect: equal (both axes have one scale), free (each its own), or auto: free where the
                sides of the extent differ by more than 10 times.
            missing: values that mean: not measured. None refuses one that looks like it, such as
                -9999; [] takes all as they are.
            separately: each channel on its own, where three are no colours.
            progress: called as progress(model calls so far, all).
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        coords, values, noise = as_given(coords, values, missing, noise_sd)
        extent = tuple(float(x) for x in (extent if extent is not None else (0, 1, 0, 1)))
        given = Measurements(coords, values, extent)
        self._check(given, num_samples, num_steps, seed)
        scaled_by = scales(extent, aspect)
        shape = grid_shape(resolution, extent, scaled_by)
        given, noise = average_duplicates(given, noise)
        if not 1 <= len(given.coords) <= MOST_POINTS:
            raise UserError(f"{len(given.coords):,} points: give 1 to {MOST_POINTS:,}")
        channels = given.values.shape[1]
        alone = self.scale is not None and is_of_pictures(self.scale) and (
            channels not in (1, self.channels))
        if channels > 1 and (separately or alone):
            return self._each_channel(
                given, value_range, seed, resolution=shape, extent=extent, num_samples=num_samples,
                noise_sd=noise, num_steps=num_steps, aspect=aspect, progress=progress,
            )
        scale, copies = self._scale_for(given, value_range)
        inside = torch.from_numpy(scale.to_inside(np.repeat(given.values, copies, axis=1)))
        half_widths = np.diff(scale.value_range, axis=1)[:, 0] / 2
        noise_inside = noise[:, None] / half_widths if noise.any() else None
        places = to_square(given.coords, extent, scaled_by)
        query_coords, where = cells(shape, extent, scaled_by)
        clip = self.scale is not None and is_of_pictures(self.scale) and copies == 1 and (
            excess(given.values, scale) <= 0)
        drawn, mean, how, variogram = self._draw(
            query_coords, places, inside.float(), noise_inside, num_samples, num_steps, seed, clip,
            progress,
        )

        def outside(inner: np.ndarray) -> np.ndarray:
            full = scale.to_physical(inner).reshape(*inner.shape[:-2], *shape, inner.shape[-1])
            return full.mean(axis=-1, keepdims=True) if copies > 1 else full

        samples = outside(drawn)
        return Field(where.reshape(*shape, 2), outside(mean), samples.std(axis=0, ddof=1), samples,
                     how, variogram)

    def _scale_for(
        self, given: Measurements, value_range: Sequence[float] | None
    ) -> tuple[Scale, int]:
        """How the model sees the values, and how often each is repeated."""
        if self.scale is not None:
            return choose_scale(self.scale, given.values, value_range)
        if value_range is not None:
            return Scale(given_range(value_range, given.values.shape[1])), 1
        return Scale(own_range(given.values)), 1

    def _each_channel(
        self, given: Measurements, value_range: Sequence[float] | None, seed: int, **settings
    ) -> Field:
        """Every channel alone, as shades of grey: they are different things, not colours."""
        channels = given.values.shape[1]
        ranges = [None] * channels if value_range is None else given_range(value_range, channels)
        fields = [
            self.reconstruct(given.coords, given.values[:, c], value_range=ranges[c],
                             seed=seed + c, missing=[], **settings)
            for c in range(channels)
        ]
        joined = {name: np.concatenate([getattr(field, name) for field in fields], axis=-1)
                  for name in ("mean", "sd", "samples")}
        variograms = " | ".join(field.variogram for field in fields if field.variogram)
        return Field(coords=fields[0].coords, how=fields[0].how, variogram=variograms, **joined)

    def _check(
        self, given: Measurements, num_samples: int, num_steps: int, seed: int
    ) -> None:
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
        if not 2 <= num_samples <= MOST_SAMPLES:
            raise UserError(f"num_samples={num_samples}: an uncertainty needs at least 2, and at "
                            f"most {MOST_SAMPLES:,} are kept")
        if num_steps < 1:
            raise UserError(f"num_steps={num_steps}: give at least 1")
        require_seed(seed)

    def _draw(
        self, queries: Tensor, places: Tensor, values: Tensor, noise: np.ndarray | None,
        count: int, num_steps: int, seed: int, clip: bool, progress: Progress | None,
    ) -> tuple[np.ndarray, np.ndarray, str, str]:
        """Samples (K, N, C), posterior mean (N, C), the samplers and the variogram in words.

        Exact measurements are put in where a query is one, and not asked for.
        """
        known = np.full(len(queries), -1) if noise is not None else which_observed(queries, places)
        asked = np.flatnonzero(known < 0)
        points = (queries[asked], places, values)
        parts = [part[None].to(self.device) for part in points]
        noise_sd = None if noise is None else torch.from_numpy(noise)[None].float().to(self.device)
        samples = np.empty((count, len(queries), values.shape[1]), dtype=np.float32)
        mean = samples[0].copy()
        samples[:, known >= 0] = mean[known >= 0] = values.numpy()[known[known >= 0]]
        if not len(asked):
            return samples, mean, "every cell is a measured point", ""
        result = sample(
            self.network, *parts, seeds=[[noise_seed(seed, 0, k) for k in range(1, count + 1)]],
            num_steps=num_steps, noise_sd=noise_sd, block_size=block_size(len(asked), len(places)),
            most_inputs=INPUTS, clip=False, progress=progress,
            bfloat16=self.device.type == "cpu" and has_fast_bfloat16(),
        )
        drawn = widen(result.values[0].cpu().numpy(), self.spread)
        mean[asked] = result.mean[0].cpu().numpy()
        samples[:, asked] = drawn
        if clip:
            samples, mean = samples.clip(-1, 1), mean.clip(-1, 1)
        return samples, mean, result.how, result.variogram


def which_observed(queries: Tensor, places: Tensor) -> np.ndarray:
    """(N,) index of the observation at each query, -1 where there is none."""
    index = cKDTree(places.numpy()).query(queries.numpy(), distance_upper_bound=SAME_PLACE)[1]
    return np.where(index < len(places), index, -1)


def block_size(points: int, observed: int) -> int:
    """Queries to answer together so that they and their halo lie among about INPUTS / 2 points."""
    if observed <= INPUTS:
        return POINTS
    return min(POINTS, max(64, points * INPUTS // (3 * observed)))
