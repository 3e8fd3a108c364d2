"""Measurements in, a field with its uncertainty out: `Reconstructor` and what it does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from sparsefield.data.scale import Scale, given_range
from sparsefield.device import has_fast_bfloat16, pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate.calibration import widen
from sparsefield.flow.sampling import LARGE, POINTS, Progress, sample
from sparsefield.gaussian import Posterior, estimate_noise
from sparsefield.hashed import noise_seed
from sparsefield.model.bundled import BUNDLED
from sparsefield.model.checkpoint import build_model, load_model
from sparsefield.model.field import GaussianModel
from sparsefield.model.transfer import for_channels
from sparsefield.place import SINGLE, Frames
from sparsefield.use import globe, points
from sparsefield.use.covariates import Known, in_words
from sparsefield.use.field import MOST_SAMPLES, Checks, Field, Gaussian
from sparsefield.use.grids import (
    MOST_CELLS,
    Asked,
    Frame,
    Labelled,
    grid_for,
    moments_of,
    tell_of_far,
    with_known,
)
from sparsefield.use.points import Measurements
from sparsefield.use.times import Times
from sparsefield.use.values import (
    choose_scale,
    excess,
    is_of_pictures,
    own_range,
    transformed,
    transformed_noise,
    untransformed,
)

log = logging.getLogger("sparsefield")

TRENDS = {None: 0, "linear": 1, "quadratic": 2}  # degrees of the polynomial
FEW = 5  # places: of 2, 3, 5 of known fields, 90 % intervals held 54, 65, 81 %
INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32


@dataclass(frozen=True)
class Settings:
    """How a field is reconstructed: the keyword arguments of `Reconstructor`'s methods.

    Attributes:
        num_samples: K, 2 to 1,000.
        noise_sd: sd of the noise in the values, in their units, one number or one for each point;
            0 keeps them exactly, "auto" finds one number for each channel.
        value_range: low high, or so for each channel: what the model sees as darkest and brightest.
            Default that of the training data; for shades of grey, and with a warning where values
            lie far outside: theirs, with a margin.
        num_steps: of Heun's rule; None: the model's own number, at which it was calibrated.
        seed: of the noise.
        aspect: equal (both axes have one scale), free (each its own), or auto: free where the
            points span more than 10 times as much of one.
        lonlat: x and y are degrees of longitude and latitude, and distances are chords through the
            globe; for kriging alone.
        transform: log or sqrt, of values that cannot be negative. Results are in the units of the
            values, and the mean is that of the samples.
        missing: values that mean: not measured. None refuses one that looks like it, such as
            -9999; [] takes all as they are.
        separately: each channel on its own, unless a model of fields was trained on them together.
        progress: called as progress(parts of the work so far, parts in all of its phase).
        with_noise: with noise_sd="auto", samples of what would be measured, with noise.
        checked: also what each measurement is off what the others predict, and the variograms
            (`Field.checks`); for kriging alone.
        tokens: whether the model's tokens are read; False leaves them out, which costs little on
            photographs and saves most of the time. None: up to LARGE places.
        trend: linear or quadratic: the field follows such a polynomial of x and y, beside which it
            is kriged; for kriging alone.
    """

    num_samples: int = 16
    noise_sd: float | Sequence[float] | Literal["auto"] = 0.0
    value_range: Sequence[float] | None = None
    num_steps: int | None = None
    seed: int = 0
    aspect: str = "auto"
    lonlat: bool = False
    transform: str | None = None
    missing: Sequence[float] | None = None
    separately: bool = False
    progress: Progress | None = None
    with_noise: bool = False
    trend: str | None = None
    tokens: bool | None = None
    checked: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for numbers that cannot be used."""
        for name, low, high in (("num_samples", 2, MOST_SAMPLES), ("num_steps", 1, 2**31)):
            number = getattr(self, name)
            if name == "num_steps" and number is None:
                continue
            if not isinstance(number, (int, np.integer)) or not low <= number <= high:
                raise UserError(f"{name}={number!r}: give a whole number from {low} to {high:,}")
        require_seed(self.seed)
        if self.trend not in TRENDS:
            raise UserError(f"trend={self.trend!r}: give linear or quadratic, or leave it out")

    @property
    def finds_noise(self) -> bool:
        return isinstance(self.noise_sd, str) and self.noise_sd == "auto"

    def given(self, coords: np.ndarray, values: np.ndarray,
              covariates: np.ndarray | None = None, times: Any = None) -> Measurements:
        """The measurements of a program, checked."""
        noise_sd = 0.0 if self.finds_noise else self.noise_sd
        return points.as_given(coords, values, noise_sd, self.missing, self.lonlat, covariates,
                               times)


class Reconstructor:
    """A model that takes measurements in their own units; made by `sparsefield.load`.

    Attributes:
        network, checkpoint: of the model; {} for kriging alone. device: where it runs.
        path: of the checkpoint, as it was given; "none" for kriging alone.
        channels, scale: of the fields that it was trained on; None for kriging alone.
        spread: factors on the spread of samples of each channel, or one for all, fitted at the end
            of training; 1 if it was not.
    """

    def __init__(
        self, network: nn.Module, checkpoint: dict, device: torch.device, path: str | Path = "none"
    ):
        self.network, self.checkpoint, self.device = network, checkpoint, device
        self.path = str(path)
        self.channels = self.scale = None
        self.spread = checkpoint.get("calibration", {}).get("spread", 1.0)
        if not checkpoint:
            return
        data = checkpoint["data"]
        try:
            self.channels = int(data["channels"])
            pairs = tuple((float(low), float(high)) for low, high in data["value_range"])
            self.scale = Scale(pairs, data.get("units"), bool(data.get("is_standard", False)))
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint does not say what its data were (channels, "
                            "value_range): it is damaged, or of another version") from None

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """See `sparsefield.load`."""
        chosen = pick_device(device)
        if str(path) == "none":
            return cls(GaussianModel(), {}, chosen)
        path = BUNDLED if str(path) == "shipped" else path
        model, checkpoint = load_model(path, chosen)
        return cls(model, checkpoint, chosen, path)

    @property
    def is_closed_form(self) -> bool:
        return self.scale is None

    @property
    def is_gaussian(self) -> bool:
        """Whether its samples are Gaussian, as those of a model without a flow."""
        return self.is_closed_form or self.network.is_still

    @property
    def is_of_pictures(self) -> bool:
        return is_of_pictures(self.scale)

    @property
    def takes_any(self) -> bool:
        """Whether any number of channels is read, if need be each on its own."""
        return self.scale is None or self.is_of_pictures or self.scale.is_standard

    def reads(self, given: Measurements) -> dict[str, Any]:
        """The `Settings` by which it reads measurements of a file: whether channels are different
        things, and what is black and white in a picture."""
        is_in_colour = given.values.shape[1] == self.channels == 3
        is_deep = is_in_colour and given.value_range != (0.0, 255.0)
        separately = given.are_quantities or (self.is_closed_form and not given.is_picture)
        return {"separately": separately, "value_range": given.value_range if is_deep else None}

    def units_of(self, given: Measurements) -> str | None:
        """Of the values: as the measurements or the training data give them."""
        trained = self.scale and not given.is_picture and self.scale.units
        return given.units or trained or None

    @cached_property
    def grey_network(self) -> nn.Module:
        """What a model of colour pictures knows, for one channel of whatever unit and range."""
        return build_model(for_channels(self.checkpoint, 1), self.device)

    def reconstruct(
        self, coords: Any, values: np.ndarray | None = None,
        resolution: int | Sequence[int] | None = None, *, extent: Sequence[float] | None = None,
        x: str | None = None, y: str | None = None, value: str | Sequence[str] | None = None,
        covariates: Any = None, covariates_at: np.ndarray | None = None, times: Any = None,
        at_times: Any = None, **settings: Any,
    ) -> Field:
        """The field on a grid, from values at scattered points.

        Args:
            coords: (M, 2), x and y in any units, 1 to 1,000,000 points, all of which are used, also
                outside the extent. Equal ones become one, weighted by 1 / noise_sd^2. Masked
                points (numpy.ma) are left out. Or, without `values`, a pandas DataFrame with
                columns of x, y and values, or an xarray DataArray: of points, or of (y, x) or
                (time, y, x), whose NaN are filled. What is called longitude and latitude then means
                lonlat=True, for kriging, and noise_sd may name a column.
            values: (M, C) or (M,), in the units of the training data. A model of colour pictures
                takes red, green and blue (0 to 255), one channel as shades of grey, and any other
                number of channels each on its own.
            resolution: cells of the longer side (the other follows), default 64, or (rows,
                columns).
            extent: x0 x1 y0 y1 of the field, default the unit square; with lonlat and of a
                DataFrame the narrowest around the points.
            x, y, value: names of columns; x, y: of dimensions. Default: as reconstruct.py finds
                them.
            covariates: (M, p), what is known at the points, of a DataFrame names of columns, and
                covariates_at: (H, W, p), the same everywhere, row by row from y0 on; NaN leaves a
                cell empty. The likelihood decides whether the field follows each, is alike where it
                is alike, or neither (`Field.covariates` tells). For kriging alone.
            times: (M,), when each was measured: numbers, datetime64 or texts by ISO 8601, of a
                DataFrame the name of a column; and at_times: (T,) of the frames, by default each of
                these once. `Field.mean` is then (T, H, W, C). How far times count is found by the
                likelihood (`Field.in_time` tells). For kriging, and models of sequences:
                these read all times, measured or asked for, as one, with frames of any size.
            settings: num_samples, noise_sd, lonlat, transform, ...: see `Settings`.
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        if values is None:
            from sparsefield.use import labelled  # pandas, which arrays need not wait for

            found = labelled.read(coords, x, y, value, covariates, times, settings,
                                  self.is_closed_form)
            chosen = Settings(**self.reads(found.given) | settings | found.settings)
        else:
            if (x, y, value) != (None, None, None):
                raise UserError("x, y and value choose columns: leave them out, or give a "
                                "DataFrame without values")
            chosen = Settings(**settings)
            found = Labelled(chosen.given(coords, values, covariates, times), chosen.lonlat)
        asked = grid_for(found, resolution, extent, chosen.aspect, at_times)
        field = self.answer(found.given, _knowing(found.given, asked, covariates_at), chosen)
        return replace(field, like=found.like)

    def at(
        self, places: np.ndarray, coords: np.ndarray, values: np.ndarray, *,
        extent: Sequence[float] | None = None, covariates: np.ndarray | None = None,
        covariates_at: np.ndarray | None = None, times: Any = None, at_times: Any = None,
        **settings: Any,
    ) -> Field:
        """The field at places (N, 2) of any kind; all else as in `reconstruct`.

        Args:
            covariates_at: (N, p). at_times: (N,), of each place, with times.
            extent: default: the rectangle around places and points. A trained model sees all of
                it; kriging's answer does not depend on it.
        """
        settings = Settings(**settings)
        is_masked = np.ma.is_masked(places)
        places = points.real_array("places", places)
        if is_masked or places.shape[1:] != (2,) or not (
            len(places) and np.isfinite(places).all()
        ):
            raise UserError(f"places {places.shape}: give (N, 2), N > 0, finite and not masked")
        if settings.lonlat:
            globe.require_degrees("places", places)
        given = settings.given(coords, values, covariates, times)
        extent = (points.bounds("places", places) if extent is None else
                  points.checked_extent("extent", extent, settings.lonlat))
        asked = Asked(places, extent, Frame.of(given, extent, settings.aspect, settings.lonlat),
                      times=moments_of(given, at_times))
        if asked.times is not None and asked.times.values.shape != places.shape[:1]:
            raise UserError(f"at_times {asked.times.values.shape}: give one for each of the "
                            f"{len(places)} places")
        return self.answer(given, _knowing(given, asked, covariates_at), settings)

    def answer(self, given: Measurements, asked: Asked, settings: Settings) -> Field:
        """The field that is asked for. Raises UserError for what the model cannot read."""
        tell_of_far(given.coords, asked.places.reshape(-1, 2), settings.lonlat)
        measured = observe(self, given, asked, settings)
        queries = replace(asked, frame=measured.frame).queries(given)
        drawn = [_draw(self, queries, measured, group, settings)
                 for group in self._groups(measured.values.shape[1], settings)]
        mean, sd, samples = (np.concatenate([getattr(part, name) for part in drawn], axis=-1)
                             for name in ("mean", "sd", "samples"))
        mean, sd = (part.reshape(*asked.shape, -1) for part in (mean, sd))
        samples = samples.reshape(len(samples), *mean.shape)
        gaussian = Gaussian(mean, sd, settings.transform) if self.is_gaussian else None
        if settings.transform is not None:
            samples = untransformed(settings.transform, samples)
            mean, sd = samples.mean(axis=0), samples.std(axis=0, ddof=1)
        if asked.is_far is not None:
            mean[..., asked.is_far, :] = sd[..., asked.is_far, :] = np.nan
            samples[..., asked.is_far, :] = np.nan
        of_channel = [f" ({name})" for name in given.names] if 1 < len(drawn) == len(
            given.names) else [""] * len(drawn)
        checks = [part.checks for part in drawn if part.checks]
        return Field(asked.places, mean, sd, samples, drawn[0].how,
                     " | ".join(part.variogram for part in drawn if part.variogram),
                     tuple(line + name for part, name in zip(drawn, of_channel, strict=True)
                           for line in part.covariates), gaussian, asked.grid,
                     given.names or tuple(f"value_{c + 1}" for c in range(mean.shape[-1])),
                     self.units_of(given),
                     checks=_together(checks) if len(checks) == len(drawn) else None,
                     times=asked.times, in_time=drawn[0].in_time)

    def _groups(self, channels: int, settings: Settings) -> list[slice]:
        """Channels that are read together: all, or each on its own, as different things."""
        is_one_field = self.is_closed_form or channels == self.channels
        if is_one_field and not (settings.separately and self.takes_any):
            return [slice(0, channels)]
        return [slice(channel, channel + 1) for channel in range(channels)]


def _together(checks: list[Checks]) -> Checks:
    """Those of all channels."""
    return Checks(np.concatenate([part.residuals for part in checks], axis=1),
                  tuple(variogram for part in checks for variogram in part.variograms),
                  ", ".join(part.noise for part in checks if part.noise))


def _knowing(given: Measurements, asked: Asked, values: np.ndarray | None) -> Asked:
    """What is asked for, with covariates (..., p) there."""
    if given.known is None and values is None:
        return asked
    count = 0 if given.known is None else len(given.known.names)
    there = None if values is None else points.unmasked("covariates_at", values)
    if there is not None and there.shape in (asked.shape, asked.places.shape[:-1]) and count == 1:
        there = there[..., None]
    if there is None or not count or there.shape not in (
        (*asked.shape, count), (*asked.places.shape[:-1], count)
    ):
        wanted = *asked.shape, count or "p"
        raise UserError(f"covariates and covariates_at go together: give covariates_at "
                        f"({', '.join(map(str, wanted))}), not "
                        f"{'none' if there is None else there.shape}")
    assert given.known is not None
    there = given.known.told("covariates_at", there)
    return with_known(given.known, asked, there)


@dataclass(frozen=True)
class Measured:
    """Measurements as a model takes them, each at a place of its own.

    Attributes:
        frame: where they lie. places: (M, 2) float64 coordinates, on a globe (M, 3), columns of
            covariates, of mean 0 and sd 1, and of time in steps. known, times: these as they were
            given, or None.
            units: of the values. scatter: of repeats, see `points.scatter`.
        of_given: the place of each measurement as it was given.
        values: (M, C) float64, transformed. noise: (M, C) sd of their noise; where it is to be
            found, that of each relative to the others.
    """

    frame: Frame
    places: np.ndarray
    values: np.ndarray
    noise: np.ndarray
    known: Known | None
    times: Times | None
    units: str | None
    scatter: tuple[np.ndarray, int]
    of_given: np.ndarray

    @property
    def further(self) -> dict[str, Any]:
        """What columns of places there are beside those in space, see `gaussian.condition`."""
        known = 0 if self.known is None else len(self.known.names)
        is_timed = self.times is not None
        return {"covariates": known + is_timed, "timed": is_timed}


def observe(
    model: Reconstructor, given: Measurements, asked: Asked, settings: Settings
) -> Measured:
    """Measurements for a model. Raises UserError where it cannot read them."""
    channels = given.values.shape[1]
    if not (model.takes_any or channels == model.channels):
        raise UserError(f"{channels} value(s) a point, the model was trained on {model.channels}: "
                        "choose columns with --value, or another checkpoint")
    if asked.frame.lonlat and not model.is_closed_form:
        raise UserError("lonlat is for kriging alone: leave --checkpoint out, or give "
                        "--checkpoint none")
    if not model.is_closed_form and (given.known is not None or settings.trend):
        raise UserError("covariates and trend are for kriging alone: leave --checkpoint "
                        "out, or give --checkpoint none")
    if given.times and not model.is_closed_form and model.network.time == 1:
        raise UserError("times are for models that learnt sequences (TIME=8), which this has not, "
                        "and kriging: leave --checkpoint out, or give --checkpoint none")
    frame = asked.frame if model.is_closed_form else asked.frame.around(given.coords, asked.extent)
    noise = np.zeros(len(given.values)) if given.noise is None else given.noise
    for own in given.values.T if not settings.finds_noise else ():
        if np.median(noise) > own.std() > 0:
            log.warning("WARNING: noise of sd %.4g is larger than that of the values, %.4g: hardly "
                        "anything is left of them", np.median(noise), own.std())
    noise = np.ones(len(noise)) if settings.finds_noise else noise
    noise = np.repeat(noise[:, None], channels, axis=1)
    places = Asked(given.coords, asked.extent, frame, known=given.known and given.known.values,
                   times=given.times).queries(given)
    scatter = points.scatter(places, transformed(settings.transform, given.values))
    as_given = places
    places, values, noise = points.merge_repeats(
        places, given.values, noise, "a place and time" if given.times else "a place")
    if not settings.finds_noise:  # else it is relative
        spacing = frame.domain.spacing(len(places))
        places, values, noise = points.merge_twins(places, values, noise, spacing)
        noise = transformed_noise(settings.transform, noise, values)
    if given.times and not model.is_closed_form:  # as frames come
        order = places[:, -1].argsort(kind="stable")
        places, values, noise = places[order], values[order], noise[order]
    if model.is_closed_form and 1 < len(places) <= FEW:
        log.warning("WARNING: %d places hardly tell how a field varies: expect intervals of 90 %% "
                    "to hold 50 to 80 %%", len(places))
    if (trained := model.scale and model.scale.units) and given.units not in (None, trained):
        log.warning("WARNING: the values are in %s, those that the model has learnt in %s: convert "
                    "them", given.units, trained)
    for c in np.flatnonzero(np.ptp(values, axis=0) == 0):
        log.warning("WARNING: %s%s: %.6g; how much it varies elsewhere is unknown, and the sd "
                    "is a guess", "the only value" if len(values) == 1 else "all values",
                    f" of channel {c + 1}" if channels > 1 else "", values[0, c])
    return Measured(frame, places, transformed(settings.transform, values), noise, given.known,
                    given.times, given.units, scatter,
                    scipy.spatial.cKDTree(places).query(as_given)[1])


def _draw(
    model: Reconstructor, queries: np.ndarray, measured: Measured, channels: slice,
    settings: Settings,
) -> Field:
    """Some channels at queries (N, D), in the units of `measured`."""
    values, noise = measured.values[:, channels], measured.noise[:, channels]
    ranges = settings.value_range
    if model.is_closed_form and settings.transform is not None:
        ranges = None  # it may begin at 0, which has no logarithm, and does not matter to kriging
    if ranges is not None:
        pairs = np.array(given_range(ranges, measured.values.shape[1]))[channels]
        ranges = transformed(settings.transform, pairs).tolist()
    is_grey = model.is_of_pictures and model.channels != 1 == values.shape[1]
    network, trained = (model.grey_network, None) if is_grey else (model.network, model.scale)
    scale = choose_scale(trained, values, ranges)
    if model.is_closed_form:  # whatever the range, its answer is the same
        scale = Scale(own_range(values))
    half_widths, inside = scale.half_width, torch.from_numpy(scale.to_inside(values))
    found, noise_found = 0.0, ""
    if settings.finds_noise:
        square, freedom = measured.scatter
        coords = torch.from_numpy(measured.places)
        found = np.array([estimate_noise(
            coords, *pair, square=own, freedom=freedom, **measured.further,
            trend=TRENDS[settings.trend]) for *pair, own in zip(
            inside.T, torch.from_numpy(noise).T, square[channels] / half_widths**2, strict=True)])
        noise_found = "sd " + ", ".join(f"{sd:.3g}" for sd in found * half_widths) + (
            f" of their {settings.transform}" if settings.transform else "")
        log.info("noise found in the measurements: %s", noise_found)
    noise = noise * found if settings.finds_noise else noise / half_widths
    drawn, posterior = _sample(model, network, queries, measured, inside, noise, channels.start,
                               settings)
    if posterior is not None:
        drawn = _explained(drawn, posterior, measured, half_widths, noise_found, settings)
    mean, sd, samples = drawn.mean, drawn.sd, drawn.samples
    if model.is_of_pictures and not is_grey and excess(values, scale) <= 0:
        mean, samples = mean.clip(-1, 1), samples.clip(-1, 1)
    if settings.with_noise:
        rng = np.random.default_rng((settings.seed, channels.start))
        samples, sd = samples + found * rng.normal(size=samples.shape), np.hypot(sd, found)
    samples = scale.to_physical(samples)
    sd = sd * half_widths if model.is_gaussian else samples.std(axis=0, ddof=1)
    return replace(drawn, mean=scale.to_physical(mean), sd=sd, samples=samples)


def _explained(
    drawn: Field, posterior: Posterior, measured: Measured, half_widths: np.ndarray,
    noise_found: str, settings: Settings,
) -> Field:
    """The field with what kriging found: checks, if asked for, and uses of covariates and time."""
    frame, trend = measured.frame, posterior.design().trend
    side = frame.domain.side * frame.unit_length
    uses = posterior.uses() if measured.further["covariates"] else ()
    if settings.checked:
        variograms = tuple(
            part._replace(distance=part.distance * side, empirical=part.empirical * half_width**2,
                          fitted=part.fitted * half_width**2)
            for part, half_width in zip(posterior.variograms(), half_widths, strict=True))
        residuals = posterior.leave_one_out.z[0].cpu().numpy()[measured.of_given]
        drawn = replace(drawn, checks=Checks(residuals, variograms, noise_found))
    if trend < TRENDS[settings.trend]:
        log.warning("WARNING: the places do not determine a %s trend: %s is used", settings.trend,
                    "a linear one" if trend else "none")
    if measured.known is not None:
        drawn = replace(drawn, covariates=tuple(in_words(
            measured.known, uses[: len(measured.known.names)], half_widths,
            f"of the {settings.transform}" if settings.transform else measured.units or "",
            side, frame.unit_of_length)))
    if measured.times is not None and uses:
        drawn = replace(drawn, in_time=measured.times.in_words(uses[-1].scale, side,
                                                               frame.unit_of_length))
    return drawn


def _sample(
    model: Reconstructor, network: nn.Module, queries: np.ndarray, measured: Measured,
    values: Tensor, noise: np.ndarray, channel: int, settings: Settings,
) -> tuple[Field, Posterior | None]:
    """Mean and samples at queries (N, D); sd is that of the draws that the flow starts from.

    Exact measurements are put in where a query is one, and not asked for.

    Args:
        values: (M, C) float32, what the network sees. noise: (M, C), sd of the noise in them.
        channel: the first of these; each has draws of its own.
    """
    distance, nearest = scipy.spatial.cKDTree(measured.places).query(
        queries, distance_upper_bound=points.SAME_PLACE)                          # (N,)
    is_known = np.isfinite(distance)
    is_known[is_known] = (noise[nearest[is_known]] == 0).all(axis=1)
    samples = np.empty((settings.num_samples, len(queries), values.shape[1]), dtype=np.float32)
    mean, sd = samples[0].copy(), np.zeros(samples.shape[1:])
    samples[:, is_known] = mean[is_known] = values.numpy()[nearest[is_known]]
    if is_known.all():
        return Field(queries, mean, sd, samples, "every cell is a measured point"), None
    asked, device = ~is_known, model.device
    coords, places, further = _in_frames(model, network, queries[asked], measured)
    seeds = [[noise_seed(settings.seed, channel, k + 1, *([t] if t else []))
              for k in range(settings.num_samples)] for t in range(len(coords.counts))]
    with_tokens = settings.tokens
    if with_tokens is None:
        with_tokens = len(queries) <= LARGE or not getattr(network, "has_flow_unet", False)
    result = sample(
        network, coords.together(coords.points, device), places.together(places.points, device),
        places.together(values, device), seeds=seeds, num_steps=settings.num_steps,
        noise_sd=places.together(noise, device) if noise.any() else None,
        points=POINTS if with_tokens else 0,
        most_inputs=None if model.is_closed_form else INPUTS, clip=False,
        bfloat16=device.type == "cpu" and has_fast_bfloat16(), progress=settings.progress,
        domain=measured.frame.domain, trend=TRENDS[settings.trend], **further,
    )
    mean[asked], sd[asked] = map(coords.apart, (result.mean, result.start_sd))
    # One channel of a model of several is any of them.
    spread = model.spread if np.size(model.spread) == values.shape[1] else np.mean(model.spread)
    drawn = coords.apart(result.values.transpose(1, 2)).swapaxes(0, 1)            # (K, N, C)
    samples[:, asked] = widen(drawn, spread)
    sd[asked] *= spread
    how = ("draws of the kriging posterior" if model.is_closed_form else
           "draws of the corrected kriging posterior" if model.is_gaussian else
           result.how if with_tokens else f"{result.how}, tokens left out")
    words = result.posterior.describe() if result.posterior else ""
    return Field(queries, mean, sd, samples, how, words), result.posterior


class Folded(NamedTuple):
    """Points (N, D) as those of T frames.

    Attributes:
        points: themselves. index: (T, n), which of them; again its own, or any, in a frame that
            has fewer. counts: (T,).
    """

    points: np.ndarray
    index: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, which: np.ndarray, frames: int) -> Self:
        """Of points that lie in frames `which` (N,)."""
        counts = np.bincount(which, minlength=frames)
        own = np.split(which.argsort(kind="stable"), counts.cumsum()[:-1])
        return cls(points, np.stack([np.resize(part, counts.max()) for part in own]), counts)

    def together(self, x: np.ndarray | Tensor, device: torch.device) -> Tensor:
        """What the points have (N, ...) as the frames have it: (T, n, ...) float32."""
        return torch.as_tensor(x[self.index], dtype=torch.float32).to(device)

    def apart(self, x: Tensor) -> np.ndarray:
        """What the frames have (T, n, ...) as the points have it (N, ...)."""
        there = np.arange(self.index.shape[1]) < self.counts[:, None]
        return x.cpu().numpy()[there][self.index[there].argsort()]


def _in_frames(
    model: Reconstructor, network: nn.Module, queries: np.ndarray, measured: Measured
) -> tuple[Folded, Folded, dict[str, Any]]:
    """Queries (N, D) and measured places as the network takes them, frame by frame if it reads
    sequences, and what else `sample` is told of them. Raises UserError as `_check_frames`."""
    both, further = np.concatenate([queries, measured.places]), measured.further
    frames, which = SINGLE, np.zeros(len(both), dtype=int)
    if measured.times is not None and not model.is_closed_form:
        moments, which = np.unique(both[:, -1].round(6), return_inverse=True)
        frames = Frames(len(moments), torch.tensor(moments, dtype=torch.float32))
        both = both[:, :-1]
    asked, places = (Folded.of(*each, frames.count) for each in zip(
        *(np.split(x, [len(queries)]) for x in (both, which.reshape(-1))), strict=True))
    counts = tuple(places.counts.tolist())
    if frames is not SINGLE:
        further = {"frames": frames, "counts": counts}
    if network.time > 1:
        _check_frames(model, network, counts, asked.index.shape[1])
    return asked, places, further


def _check_frames(
    model: Reconstructor, network: nn.Module, counts: tuple[int, ...], places: int
) -> None:
    """Log how a sequence of frames with so many measurements is read, and up to so many places
    asked for in each. Raises UserError for one that cannot be."""
    if len(counts) * places > MOST_CELLS:
        raise UserError(f"{len(counts)} times, measured or asked for, of {places} places: at most "
                        f"{MOST_CELLS:,} in all can be read; round the times of the measurements, "
                        "ask for fewer cells, or give --checkpoint none")
    if 0 in counts and network.time_start == "frame" and network.prior != "none":
        raise UserError(f"{counts.count(0)} of {len(counts)} times have no measurement, and "
                        f"{model.path} starts from kriging of each (TIME_START=frame): ask for "
                        "times that were measured, or give --checkpoint none")
    if len(counts) != network.time:
        log.info("one sequence of %d frame(s), all times that were measured or are asked for; the "
                 "model has learnt from %d at a time", len(counts), network.time)
