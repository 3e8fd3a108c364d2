"""A trained model behind one call: measurements in, a field with its uncertainty out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import SETTINGS
from sparsefield.flow.sampling import Progress
from sparsefield.use import globe
from sparsefield.use.answering import answer
from sparsefield.use.arguments import Settings, as_given, observe
from sparsefield.use.field import Answer, Field
from sparsefield.use.grids import cells, grid_shape, own_grid
from sparsefield.use.trained import TrainedModel


class Reconstructor(TrainedModel):
    """A model that takes measurements in their own units; made by `sparsefield.load`.

    Its attributes are those of `TrainedModel`.
    """

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
            separately: each channel on its own, where three are no colours; a model that was
                trained on these channels takes them together all the same.
            progress: called as progress(model calls so far, all).
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        settings = Settings(
            extent=extent, num_samples=num_samples, noise_sd=noise_sd, value_range=value_range,
            num_steps=num_steps, seed=seed, aspect=aspect, lonlat=lonlat, transform=transform,
            missing=missing, separately=separately, progress=progress,
        )
        observed, frame = observe(self, coords, values, settings)
        if axes is None:
            shape = grid_shape(resolution, frame.extent, frame.scaled_by)
            queries, where = cells(shape, frame)
        else:
            shape, where = own_grid(axes)
            queries = frame.inside(where)
        return answer(self, queries, observed, settings).on_grid(where.reshape(*shape, 2))

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
        settings = Settings(
            extent=extent, num_samples=num_samples, noise_sd=noise_sd, value_range=value_range,
            num_steps=num_steps, seed=seed, aspect=aspect, lonlat=lonlat, transform=transform,
            missing=missing, separately=separately, with_noise=with_noise,
        )
        observed, frame = observe(self, coords, values, settings)
        if np.ma.is_masked(places):
            raise UserError("some of the places are masked: leave these out")
        places, _, _ = as_given(places, np.zeros(len(places)), [])
        if lonlat:
            globe.require_degrees("places", places)
        return answer(self, frame.inside(places), observed, settings)
