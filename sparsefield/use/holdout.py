"""Whether to trust a reconstruction of these measurements: some are hidden, foretold and scored."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy

from sparsefield.errors import UserError
from sparsefield.use.domain import are_separate, picture_range
from sparsefield.use.frame import Frame
from sparsefield.use.points import Measurements
from sparsefield.use.reconstruction import Reconstructor
from sparsefield.use.scores import Forecast, Score, score

log = logging.getLogger("sparsefield")

SAMPLES = 99  # from the 5th to the 95th of them is a 90 % interval
LEAST_POINTS = 5

Method = Callable[[Measurements, np.ndarray], Forecast]


def split(given: Measurements, share: float, seed: int) -> tuple[Measurements, Measurements]:
    """Measurements to foretell from, and a share of the places, with all that was measured there.

    Raises:
        UserError: no share, or too few places.
    """
    if not 0 < share < 1:
        raise UserError(f"holdout {share:g}: give a share between 0 and 1, such as 0.2")
    places, which = np.unique(given.coords, axis=0, return_inverse=True)
    hidden = round(share * len(places))
    if len(places) < LEAST_POINTS or not 0 < hidden < len(places) - 1:
        raise UserError(f"holdout {share:g} of {len(places)} places: at least one must be hidden "
                        f"and two left, of {LEAST_POINTS} or more")
    chosen = np.random.default_rng(seed).permutation(len(places))[:hidden]
    is_hidden = np.isin(which.reshape(-1), chosen)
    return _some(given, ~is_hidden), _some(given, is_hidden)


def of_channel(given: Measurements, c: int) -> Measurements:
    """Measurements of one channel."""
    return replace(given, values=given.values[:, c:c + 1], names=given.names[c:c + 1])


def _some(given: Measurements, which: np.ndarray) -> Measurements:
    noise = None if given.noise is None else given.noise[which]
    return Measurements(given.coords[which], given.values[which], given.extent, names=given.names,
                        noise=noise, units=given.units)


def forecasts(
    methods: dict[str, Method], given: Measurements, places: np.ndarray,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[Forecast, float]]:
    """What all methods that have an answer foretell at places (N, 2), in their order, and in how
    many seconds; others are named in the log.

    Args:
        clock: of the seconds of each.
    """
    found = {}
    for name, method in methods.items():
        started = clock()
        try:
            forecast = method(given, places)
        except (np.linalg.LinAlgError, ValueError) as error:  # singular systems of other packages
            log.info("%s: no answer (%s)", name, " ".join(str(error).split())[:100])
            continue
        found[name] = forecast, clock() - started
    return found


def compare(
    methods: dict[str, Method], given: Measurements, hidden: Measurements,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Score]:
    """Scores of `forecasts`, over all channels together.

    Where measurements have noise, a forecast of a measurement has it, too.
    """
    found = forecasts(methods, given, hidden.coords, clock)
    return [score(name, forecast, hidden, seconds) for name, (forecast, seconds) in found.items()]


def compare_each(
    methods: dict[str, Method], given: Measurements, hidden: Measurements
) -> dict[str, list[Score]]:
    """The same of each channel alone, by name."""
    found = forecasts(methods, given, hidden.coords)
    return {
        channel: [score(name, forecast.of_channel(c), of_channel(hidden, c), seconds)
                  for name, (forecast, seconds) in found.items()]
        for c, channel in enumerate(hidden.names)
    }


# --- methods --------------------------------------------------------------------------------------


def all_methods(
    model: Reconstructor, given: Measurements, frame: Frame, *, transform: str | None,
    find_noise: bool, seed: int, num_steps: int, value_range: Sequence[float] | None = None,
    also: Reconstructor | None = None,
) -> dict[str, Method]:
    """What is compared, by name: first the one at hand, then others that need no training.

    Args:
        also: a model to try beside it.
    """
    settings = dict(lonlat=frame.lonlat, aspect=frame.aspect, seed=seed, num_steps=num_steps)

    def by(which: Reconstructor, transform: str | None, find_noise: bool = False) -> Method:
        return by_model(which, transform, find_noise=find_noise,
                        value_range=value_range or picture_range(which, given),
                        separately=are_separate(which, given), **settings)

    closed_form = Reconstructor.load("none", str(model.device))
    kriging = by(closed_form, None)
    if model.is_closed_form and transform is None and not find_noise:
        methods = {"this (fitted kriging)": kriging}
    else:
        kind = "closed form" if model.is_closed_form else Path(model.path).name
        this = ", ".join(filter(None, [kind, transform, "noise found" if find_noise else None]))
        methods = {f"this ({this})": by(model, transform, find_noise), "fitted kriging": kriging}
    if also is not None:
        methods[f"--checkpoint {also.path}"] = by(also, transform, find_noise)
    if not find_noise and given.noise is None:
        methods["fitted kriging, --noise_sd auto"] = by(closed_form, None, True)
    methods |= {"linear": linear(frame), "constant": constant}
    if (other := pykrige(frame)) is not None:
        methods["PyKrige, exponential"] = other
    return methods


def by_model(
    model: Reconstructor, transform: str | None, lonlat: bool, aspect: str, seed: int,
    num_steps: int, separately: bool, find_noise: bool = False,
    value_range: Sequence[float] | None = None,
) -> Method:
    """The method at hand, or with the closed form alone and no transform: fitted kriging."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        found = model.at(
            places, given.coords, given.values, extent=given.extent, num_samples=SAMPLES,
            noise_sd="auto" if find_noise else given.noise_sd, num_steps=num_steps, seed=seed,
            aspect=aspect, lonlat=lonlat, transform=transform, missing=[], separately=separately,
            value_range=value_range, with_noise=find_noise)
        return Forecast(found.mean, found.samples)

    return method


def constant(given: Measurements, places: np.ndarray) -> Forecast:
    """The mean and sd of all measurements, everywhere."""
    shape = (len(places), given.values.shape[1])
    return Forecast(np.broadcast_to(given.values.mean(axis=0), shape),
                    sd=np.broadcast_to(given.values.std(axis=0) + 1e-12, shape))


def linear(frame: Frame) -> Method:
    """Linear on triangles of the plane, beyond them the nearest measurement."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        points, queries = (p / frame.scaled_by for p in (given.coords, places))
        nearest = scipy.interpolate.NearestNDInterpolator(points, given.values)(queries)
        try:
            inside = scipy.interpolate.LinearNDInterpolator(points, given.values)(queries)
        except scipy.spatial.QhullError:  # fewer than three, or all on one line
            return Forecast(nearest)
        return Forecast(np.where(np.isnan(inside), nearest, inside))

    return method


def pykrige(frame: Frame) -> Method | None:
    """Ordinary kriging by PyKrige with an exponential variogram that it fits; None without it.

    Of its variograms and ways to fit them the best on soil, stations and terrain (docs/fields.md).
    """
    try:
        from pykrige.ok import OrdinaryKriging
    except ImportError:
        return None

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        scale = (1.0, 1.0) if frame.lonlat else frame.scaled_by
        points, queries = (p / scale for p in (given.coords, places))
        kind = "geographic" if frame.lonlat else "euclidean"
        means, variances = [], []
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for values in given.values.T:
                kriging = OrdinaryKriging(
                    *points.T, values, variogram_model="exponential", nlags=20, weight=True,
                    coordinates_type=kind)
                mean, variance = kriging.execute("points", *queries.T)
                means.append(np.asarray(mean))
                variances.append(np.asarray(variance))
        mean, variance = np.stack(means, axis=1), np.stack(variances, axis=1)
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise ValueError("its variogram could not be fitted")
        return Forecast(mean, sd=np.sqrt(np.maximum(variance, 1e-12)))

    return method
