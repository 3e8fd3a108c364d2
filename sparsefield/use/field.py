"""A reconstructed field, and the questions that it answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from sparsefield.errors import UserError
from sparsefield.gaussian import Variogram
from sparsefield.use.grids import Grid
from sparsefield.use.points import real_array
from sparsefield.use.times import Times
from sparsefield.use.values import ROUNDING, transformed_limit, untransformed

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataArray, Dataset

MOST_SAMPLES = 1000
ABOVE, QUANTILE = "probability_above_", "quantile_"  # names of what a field is asked for begin so


class Gaussian(NamedTuple):
    """What kriging says of every place, of transformed values: mean and sd (H, W, C)."""

    mean: np.ndarray
    sd: np.ndarray
    transform: str | None


class RegionMean(NamedTuple):
    """The mean over a region, of each channel (C,): its posterior mean and sd, and the ends of its
    interval."""

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Checks(NamedTuple):
    """How the measurements agree with the kriging fitted to them.

    Attributes:
        residuals: (M, C), of each measurement in sd of what the others predict for it.
        variograms: of each channel, distances in units of x (on a globe in km), semivariances in
            squares of the values, or of their transform.
        noise: what was found in the measurements, in words; "" where it was not asked for.
    """

    residuals: np.ndarray
    variograms: tuple[Variogram, ...]
    noise: str = ""


@dataclass(frozen=True)
class Field:
    """A reconstructed field, in the units of the measurements.

    Attributes:
        coords: (H, W, 2), x and y of the middles of its cells; of `Reconstructor.at` (N, 2), and so
            below. mean: (H, W, C) posterior mean, with times (T, H, W, C), and so below.
            samples: (K, H, W, C).
        sd: (H, W, C), that of the samples; of kriging without a transform the exact one.
        how: the samplers in words. variogram: of kriging, as fitted; "" without one.
        covariates: what each is used for, in words.
        gaussian: of kriging, from which probabilities and quantiles are exact; else None.
        grid: the axes of its cells; None of places on no grid.
        names: of the channels. units: of the values, where they are known.
        like: the array with gaps that it fills, if it was made from one. checks: None without
            kriging. times: of its T frames, or of the N places; None without time. in_time:
            what time counts as, in words.
    """

    coords: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str
    variogram: str = ""
    covariates: tuple[str, ...] = ()
    gaussian: Gaussian | None = None
    grid: Grid | None = None
    names: tuple[str, ...] = ()
    units: str | None = None
    like: DataArray | None = None
    checks: Checks | None = None
    times: Times | None = None
    in_time: str = ""

    # --- questions ---------------------------------------------------------------------------

    def probability_above(self, limit: float | Sequence[float]) -> np.ndarray:
        """The probability (H, W, C) that the field is above a limit; NaN where the field is empty.

        It concerns the field, not a further measurement of it, which would add noise. Of the closed
        form it comes from the exact Gaussian, also with a transform; of a trained model it is the
        share of the K samples that are above, in steps of 1 / K.

        Args:
            limit: in the units of the field, one number, or one for each channel (C,).
        Raises:
            UserError: a limit that is no finite number, or not one for each channel.
        """
        limits = require_limit(limit)
        if limits.shape not in ((), self.mean.shape[-1:]):
            raise UserError(f"limit {limit}: give one number, or one for each of "
                            f"{self.mean.shape[-1]} channel(s)")
        if self.gaussian is None:
            slack = ROUNDING * np.nanmax(np.abs(self.mean))  # of measured values, which are kept
            return self._where_known((self.samples > limits + slack).mean(axis=0))
        mean, sd, transform = self.gaussian
        limits = transformed_limit(transform, limits)
        slack = ROUNDING * np.nanmax(np.abs(mean))
        with np.errstate(divide="ignore", invalid="ignore"):
            above = scipy.special.ndtr((mean - limits) / sd)
        return self._where_known(np.where(sd > 0, above, mean > limits + slack))

    def quantile(self, share: float) -> np.ndarray:
        """What the field stays below with a probability (H, W, C); NaN where it is empty.

        Of kriging from the exact Gaussian, also with a transform; of a trained model from
        the K samples, of which the k-th smallest is the quantile k / (K + 1) (Weibull).

        Args:
            share: in (0, 1), such as 0.95.
        Raises:
            UserError: another share, or one beyond the samples of a trained model.
        """
        require_samples(share, len(self.samples) if self.gaussian is None else None)
        if self.gaussian is None:
            return np.quantile(self.samples, share, axis=0, method="weibull")
        mean, sd, transform = self.gaussian
        found = mean + scipy.special.ndtri(share) * sd
        return self._where_known(found if transform is None else untransformed(transform, found))

    def mean_over(self, mask: np.ndarray, level: float = 0.9) -> RegionMean:
        """The mean over a region, with an interval that counts how errors go together.

        Cells count by their area: by the steps of the grid, on a globe times the cosine of
        latitude; places on no grid count alike. sd and interval come from the K samples, each
        averaged over the region, as no map of sd tells them. Of kriging the mean is exact
        and the interval Student's t with K degrees of freedom; with a transform, and of a trained
        model, the ends are quantiles of the K averages (Weibull). More `num_samples` make
        both more precise.

        Args:
            mask: (H, W) bool, the cells of the region; or a DataArray on the dimensions of
                `to_xarray`, in any order. level: of the interval, in (0, 1).
        Raises:
            UserError: no such mask, none or an empty cell in it, or too few samples for the level.
        """
        *_, dims, _ = self._axes()
        if set(getattr(mask, "dims", ())) == set(dims):
            mask = mask.transpose(*dims)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != self.mean.shape[:-1] or not mask.any():
            raise UserError(f"mask {mask.shape} of {mask.dtype}: give bool {self.mean.shape[:-1]}, "
                            "True for the cells of the region")
        if lacking := int(np.isnan(self.mean[mask]).any(axis=-1).sum()):
            raise UserError(f"{lacking} of {int(mask.sum())} cells of the region are empty: leave "
                            "them out of the mask")
        upper = (1 + require_share(level, "level")) / 2
        weight = np.broadcast_to(self.areas, self.mean.shape[:-1])[mask]
        mean, samples = (np.average(part.astype(np.float64), axis=-2, weights=weight)
                         for part in (self.mean[mask], self.samples[:, mask]))
        if self.gaussian is not None and self.gaussian.transform is None:
            sd = np.sqrt(((samples - mean) ** 2).mean(axis=0))
            half = scipy.special.stdtrit(len(samples), upper) * sd
            return RegionMean(mean, sd, mean - half, mean + half)
        require_samples(upper, len(samples))
        low, high = np.quantile(samples, [1 - upper, upper], axis=0, method="weibull")
        return RegionMean(mean, samples.std(axis=0, ddof=1), low, high)

    def answers(
        self, above: Sequence[float] = (), quantiles: Sequence[float] = ()
    ) -> dict[str, np.ndarray]:
        """Probabilities above limits and quantiles, each (H, W, C), by their names in files."""
        limits, shares = require_limit(above).ravel(), real_array("quantiles", quantiles).ravel()
        return {named(ABOVE, limit): self.probability_above(limit) for limit in limits} | {
            named(QUANTILE, share): self.quantile(share) for share in shares}

    @property
    def answers_from(self) -> str:
        """What probabilities and quantiles come from, in words."""
        return f"{len(self.samples)} samples" if self.gaussian is None else (
            "the exact Gaussian")

    def _where_known(self, found: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(self.mean), np.nan, found)

    @property
    def areas(self) -> np.ndarray:
        """(H, W) of the cells, up to a factor; on a globe they shrink with the cosine of latitude.
        1 for places on no grid."""
        if self.grid is None:
            return np.ones(self.coords.shape[:-1])
        across, along = (np.abs(np.gradient(axis)) if len(axis) > 1 else np.ones(1)
                         for axis in (self.grid.x, self.grid.y))
        if self.grid.is_global:
            along = along * np.cos(np.radians(self.grid.y))
        return along[:, None] * across

    @property
    def has_frames(self) -> bool:
        return self.times is not None and self.grid is not None

    def frame(self, k: int) -> Field:
        """The field at the k-th of its times."""
        of_frame = self.gaussian and self.gaussian._replace(
            mean=self.gaussian.mean[k], sd=self.gaussian.sd[k])
        return replace(self, mean=self.mean[k], sd=self.sd[k], samples=self.samples[:, k],
                       gaussian=of_frame, times=None)

    # --- in other forms --------------------------------------------------------------------------

    def to_xarray(
        self, above: Sequence[float] = (), quantiles: Sequence[float] = ()
    ) -> Dataset:
        """Mean, sd, samples and answers of every channel on (y, x) or (time, y, x), by CF 1.8.

        With several channels the names of variables begin with theirs. A field that fills gaps of a
        DataArray has its coordinates and order of dimensions, and `mean` its attributes. Places on
        no grid lie along a dimension `place`.

        Args:
            above, quantiles: such as (30,) and (0.05, 0.95), for variables probability_above_30,
                quantile_0.05 and quantile_0.95.
        Raises:
            UserError: as `probability_above` and `quantile`.
        """
        import xarray

        said = {"units": self.units} if self.units else {}
        kept = {}
        if self.like is not None:
            kept, encoding = self.like.attrs, self.like.encoding
            said |= {key: encoding[key] for key in ("grid_mapping",) if key in encoding}
        maps = {"mean": (self.mean, {"cell_methods": "realization: mean", **said, **kept}),
                "sd": (self.sd, {"cell_methods": "realization: standard_deviation", **said})}
        for key, values in self.answers(above, quantiles).items():
            unit = {"units": "1"} if key.startswith(ABOVE) else said
            maps[key] = values, {"comment": f"from {self.answers_from}", **unit}
        *_, dims, axes = self._axes()
        variables = {}
        for c, (name, prefix) in enumerate(zip(self.names, prefixes(self.names), strict=True)):
            for key, (values, attributes) in maps.items():
                variables[prefix + key] = dims, values[..., c], {
                    "long_name": described(key, name, self.units), **attributes}
            variables[f"{prefix}samples"] = ("realization", *dims), self.samples[..., c], {
                "long_name": f"posterior samples of {name}", **said}
        number = np.arange(len(self.samples), dtype=np.int32) + 1
        axes["realization"] = "realization", number, {
            "standard_name": "realization", "long_name": "number of the sample"}
        data = xarray.Dataset(variables, axes, {
            "Conventions": "CF-1.8", "title": "field reconstructed from sparse measurements",
            "source": self.how})
        if self.like is None:
            return data
        kept = {name: coord.variable for name, coord in self.like.coords.items()
                if name in dims or name not in data.variables}
        return data.assign_coords(kept).transpose(..., *self.like.dims)

    def to_dataframe(
        self, above: Sequence[float] = (), quantiles: Sequence[float] = ()
    ) -> DataFrame:
        """A row for each cell: x, y, and the maps of `to_xarray` without the samples; its `attrs`
        are the units of the columns that have some."""
        x, y, dims, _ = self._axes()
        when = [self.times.name] if self.times is not None else []
        data = self.to_xarray(above, quantiles).drop_dims("realization")
        columns = [*when, x, y, *map(str, data.data_vars)]
        data = data.drop_vars(set(data.coords) - {x, y, *when})
        table = data.to_dataframe(list(dims)).reset_index()[columns]
        table.attrs = {name: data[name].attrs["units"] for name in columns
                       if "units" in data[name].attrs}
        return table

    def _axes(self) -> tuple[str, str, tuple[str, ...], dict]:
        """Names of x and y, dimensions, and the coordinates of `to_xarray`."""
        if self.grid is None:
            axes = {name: ("place", self.coords[:, k]) for k, name in enumerate("xy")}
            if self.times is not None:
                axes[self.times.name] = self.times.as_variable("place")
            return "x", "y", ("place",), axes
        (x, y), (of_x, of_y) = self.grid.names, self.grid.attributes
        axes = {x: (x, self.grid.x, {"axis": "X", **of_x}, {"_FillValue": None}),
                y: (y, self.grid.y, {"axis": "Y", **of_y}, {"_FillValue": None})}
        if self.times is None:
            return x, y, (y, x), axes
        when = self.times.name
        return x, y, (when, y, x), {when: self.times.as_variable(when), **axes}


def described(key: str, name: str, units: str | None) -> str:
    """What a map shows of a channel."""
    if key.startswith(ABOVE):
        unit = f" {units}" if units else ""
        return f"probability that {name} is above {key.removeprefix(ABOVE)}{unit}"
    if key.startswith(QUANTILE):
        return f"posterior quantile {key.removeprefix(QUANTILE)} of {name}"
    return f"posterior {'standard deviation' if key == 'sd' else key} of {name}"


def named(kind: str, number: float) -> str:
    """The name in files of an answer: ABOVE a limit, or the QUANTILE of a share."""
    return f"{kind}{number:.12g}"


def prefixes(names: Sequence[str]) -> list[str]:
    """Of the variables of each channel: none where there is one channel."""
    if len(names) == 1:
        return [""]
    plain = [re.sub(r"[^A-Za-z0-9]", "_", name) for name in names]
    return [f"{name}_" if name[:1].isalpha() and plain.count(name) == 1 else f"value_{k + 1}_"
            for k, name in enumerate(plain)]


def require_limit(limit: float | Sequence[float]) -> np.ndarray:
    """As an array. Raises UserError for what is no finite number."""
    limits = real_array("limit", limit)
    if not np.isfinite(limits).all():
        raise UserError(f"limit {limit}: give a finite number, in the units of the values")
    return limits


def require_share(share: float, name: str = "quantile") -> float:
    """Raises UserError unless it is in (0, 1)."""
    number = real_array(name, share)
    if number.shape != () or not 0 < number < 1:
        raise UserError(f"{name} {share}: give a number between 0 and 1, such as 0.95")
    return float(number)


def require_samples(share: float, count: int | None) -> None:
    """Raises UserError for no quantile, or one that so many samples do not tell; None: an exact
    Gaussian tells all."""
    needed = math.ceil(1 / min(require_share(share), 1 - share) - 1 - 1e-9)
    if count is not None and count < needed:
        least, more = 1 / (count + 1), f"give num_samples={needed}"
        raise UserError(f"quantile {share:g}: {count} samples tell those from {least:.3g} to "
                        f"{1 - least:.3g}; "
                        + (more if needed <= MOST_SAMPLES else "only kriging tells it"))
