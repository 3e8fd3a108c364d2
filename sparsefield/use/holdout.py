"""Whether to trust a reconstruction: some measurements are hidden, predicted and scored."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import scipy

from sparsefield.errors import UserError
from sparsefield.evaluate.metrics import LEVEL, crps_of_values, gaussian_crps
from sparsefield.use.blocks import Blocks, Stretches
from sparsefield.use.grids import Asked, Frame
from sparsefield.use.points import Extent, Measurements
from sparsefield.use.predict import Reconstructor, Settings

log = logging.getLogger("sparsefield")

SAMPLES = 99  # from the 5th to the 95th of them is a 90 % interval
LEAST_POINTS = 5
RESAMPLES = 2000
FRAME_BY_FRAME = "frame by frame"
WORTH = 0.1  # of CRPS: as much must be excluded before time is said to bring nothing


class Forecast(NamedTuple):
    """Of C hidden values at N places: mean (N, C); samples (K, N, C), or sd (N, C), or neither."""

    mean: np.ndarray
    samples: np.ndarray | None = None
    sd: np.ndarray | None = None


# From measurements, at places (N, 2), with covariates (N, 2 + p), and with times one column more.
Method = Callable[[Measurements, np.ndarray], Forecast]


class Fold(NamedTuple):
    """Measurements to predict from, those that are hidden, and (N,) which of these go together: at
    one place, or in one block."""

    kept: Measurements
    hidden: Measurements
    groups: np.ndarray


@dataclass(frozen=True)
class Score:
    """How well a method predicted the hidden values, in their units.

    Attributes:
        squared: (N, C), squared error of the mean. each: (N, C), CRPS, without an uncertainty the
            absolute error. inside: (N, C), whether it is in its 90 % interval. seconds: it took.
        groups: (N,), see `Fold`.
    """

    name: str
    squared: np.ndarray
    each: np.ndarray
    inside: np.ndarray | None
    seconds: float
    groups: np.ndarray

    @classmethod
    def of(cls, name: str, forecast: Forecast, hidden: Measurements, seconds: float) -> Self:
        """That of a forecast; where measurements have noise, it is given noise, too."""
        truth, error = hidden.values, hidden.values - forecast.mean
        noise = np.zeros((len(truth), 1)) if hidden.noise is None else hidden.noise[:, None]
        each, inside = np.abs(error), None
        if forecast.samples is not None:
            normal = np.random.default_rng(0).normal(size=forecast.samples.shape)
            samples = forecast.samples + normal * noise
            each = crps_of_values(samples, truth)
            low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0,
                                    method="weibull")
            inside = (truth >= low) & (truth <= high)
        elif forecast.sd is not None:
            sd = np.sqrt(forecast.sd**2 + noise**2)
            each = gaussian_crps(error / sd, sd)
            inside = np.abs(error / sd) < scipy.special.ndtri((1 + LEVEL) / 2)
        return cls(name, error**2, each, inside, seconds, places_of(hidden))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """That of several folds, one after the other."""
        squared, each, groups = (np.concatenate([getattr(part, name) for part in parts])
                                 for name in ("squared", "each", "groups"))
        inside = None if parts[0].inside is None else np.concatenate([p.inside for p in parts])
        return cls(parts[0].name, squared, each, inside, sum(part.seconds for part in parts),
                   groups)

    def of_channel(self, channel: int) -> Self:
        own = [channel]
        return replace(self, squared=self.squared[:, own], each=self.each[:, own],
                       inside=None if self.inside is None else self.inside[:, own])

    @property
    def rmse(self) -> float:
        return float(np.sqrt(self.squared.mean()))

    @property
    def crps(self) -> float:
        return float(self.each.mean())

    @property
    def covered(self) -> float | None:
        return None if self.inside is None else float(self.inside.mean())


def places_of(hidden: Measurements) -> np.ndarray:
    """(N,), the number of the place of each."""
    return np.unique(hidden.coords, axis=0, return_inverse=True)[1].reshape(-1)


def table(scores: list[Score], units: str | None) -> list[str]:
    """Lines to print: a head, and one for each method."""
    width = max(len(score.name) for score in scores)
    unit = f" ({units})" if units else ""
    lines = [f"{'method':<{width}}  {'RMSE' + unit:>14}  {'CRPS' + unit:>14}  "
             f"{'in 90 % intervals':>17}  {'seconds':>8}"]
    for score in scores:
        covered = "–" if score.covered is None else f"{score.covered:.1%}"
        lines.append(f"{score.name:<{width}}  {score.rmse:>14.4g}  {score.crps:>14.4g}  "
                     f"{covered:>17}  {score.seconds:>8.2f}")
    return lines


def verdict(scores: list[Score]) -> str:
    """In one line, how the first method compares with the best of the others: by the CRPS of hidden
    values, with a 95 % interval of the mean difference that counts groups; and whether other times
    help."""
    first, *others = scores
    best = min(others, key=lambda score: score.crps)
    if not best.crps:
        return f"{best.name} predicts all of it exactly: nothing is to be compared"
    low, high, numbers = _compared(first, best)
    how = "better than" if high < 0 else "level with"
    found = f"{first.name} is {how} {best.name}, the best of the others: {numbers}"
    if low > 0:
        found = f"{first.name} is worse than {best.name}: {numbers}; trust {best.name} rather"
    return "; ".join([found, *(_on_time(first, score) for score in others
                               if score.name == FRAME_BY_FRAME and score.crps)])


def _on_time(first: Score, frames: Score) -> str:
    """Whether other times tell anything, by the change against frame by frame."""
    low, high, numbers = _compared(first, frames)
    found = ("other times help" if high < 0 else "other times do harm here" if low > 0 else
             "time brings nothing that shows here" if low > -WORTH else
             "too few measurements are hidden to tell whether other times help")
    return f"{found}: {numbers}, against {frames.name}"


def _compared(first: Score, other: Score) -> tuple[float, float, str]:
    """Ends of the 95 % interval of the change of CRPS, of that of the other, and all in words."""
    change = (first.each - other.each).mean(axis=1) / other.crps
    low, high = mean_interval(change, first.groups)
    return low, high, f"CRPS {change.mean():+.1%}, 95 % interval {low:+.1%} to {high:+.1%}"


def mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean of (N,): Student's, of groups that are drawn whole by
    the bootstrap for its standard error, as errors in them go together."""
    _, which = np.unique(groups, return_inverse=True)
    total, size = np.bincount(which, values), np.bincount(which)
    count = len(size)
    if count == 1:
        return -np.inf, np.inf
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        again = rng.integers(count, size=count)
        means.append(total[again].sum() / size[again].sum())
    error = np.std(means) * (count / (count - 1)) ** 0.5
    half = float(scipy.special.stdtrit(count - 1, 0.975) * error)
    middle = float(np.mean(values))
    return middle - half, middle + half


def split(
    given: Measurements, share: float, seed: int, whole: bool = False
) -> tuple[Measurements, Measurements]:
    """Measurements to predict from, and a share of the places, with all that was measured there;
    with times of the places at a time, unless they are to be hidden as a whole. Raises UserError
    for no share, or too few places."""
    if not 0 < share < 1:
        raise UserError(f"holdout {share:g}: give a share between 0 and 1, such as 0.2")
    at = given.coords
    if given.times is not None and not whole:
        at = np.column_stack([at, given.times.values])
    places, which = np.unique(at, axis=0, return_inverse=True)
    hidden = round(share * len(places))
    if len(places) < LEAST_POINTS or not 0 < hidden < len(places) - 1:
        raise UserError(f"holdout {share:g} of {len(places)} places: at least one must be hidden "
                        f"and two left, of {LEAST_POINTS} or more")
    chosen = np.random.default_rng(seed).permutation(len(places))[:hidden]
    is_hidden = np.isin(which.reshape(-1), chosen)
    return given.of(~is_hidden), given.of(is_hidden)


def by_points(
    given: Measurements, share: float, seed: int, whole: bool = False
) -> list[Fold]:
    """One fold, of places at random: see `split`."""
    kept, hidden = split(given, share, seed, whole)
    return [Fold(kept, hidden, places_of(hidden))]


def by_blocks(given: Measurements, blocks: Blocks | Stretches) -> list[Fold]:
    """A fold for each of those of the blocks, or of the stretches of time. Raises UserError where
    too few places are left."""
    folds = []
    for k in range(blocks.fold.max() + 1):
        is_hidden = blocks.fold == k
        kept = given.of(~is_hidden)
        left = len(np.unique(kept.coords, axis=0))
        if left < 2 or len(np.unique(given.coords, axis=0)) < LEAST_POINTS:
            raise UserError(f"hold-out by blocks: {left} place(s) are left to predict from; at "
                            f"least 2 must be, of {LEAST_POINTS} or more: give a smaller --holdout "
                            "or --block_size")
        folds.append(Fold(kept, given.of(is_hidden), blocks.number[is_hidden]))
    return folds


def compare_folds(methods: dict[str, Method], folds: Iterable[Fold]) -> list[Score]:
    """Scores over all folds, of the methods that answer in each. What the first fold logs is
    not logged again."""
    parts = []
    for kept, hidden, groups in folds:
        with quiet() if parts else contextlib.nullcontext():
            parts.append({score.name: replace(score, groups=groups)
                          for score in compare(methods, kept, hidden)})
    complete = [name for name in parts[0] if all(name in part for part in parts)]
    for name in parts[0].keys() - set(complete):
        log.info("%s: no answer in some folds", name)
    return [Score.joined([part[name] for part in parts]) for name in complete]


def compare(
    methods: dict[str, Method], given: Measurements, hidden: Measurements,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Score]:
    """Scores of all methods that have an answer, in their order; others are named in the log."""
    scores, columns = [], [hidden.coords]
    if hidden.known is not None:
        columns.append(hidden.known.values)
    if hidden.times is not None:
        columns.append(hidden.times.values[:, None])
    places = np.column_stack(columns)
    for name, method in methods.items():
        started = clock()
        try:
            forecast = method(given, places)
        except (np.linalg.LinAlgError, ValueError) as error:  # singular systems of other packages
            log.info("%s: no answer (%s)", name, " ".join(str(error).split())[:100])
            continue
        scores.append(Score.of(name, forecast, hidden, clock() - started))
    return scores


# --- methods --------------------------------------------------------------------------------------


def all_methods(
    model: Reconstructor, given: Measurements, asked: Asked, *, transform: str | None,
    find_noise: bool, trend: str | None = None, also: Reconstructor | None = None, **settings: Any,
) -> dict[str, Method]:
    """What is compared, by name: first the model at hand, then others that need no training, and
    `also`; settings: of `Settings`."""
    def by(which: Reconstructor, transform: str | None, find_noise: bool = False,
           trend: str | None = None) -> Method:
        own = which.reads(given) | settings
        if which.scale is not None and which.scale.is_standard:  # it takes no other range
            own["value_range"] = None
        return by_model(which, frame, asked.extent, find_noise, transform=transform, trend=trend,
                        **own)

    frame = asked.frame
    closed_form = Reconstructor.load("none", str(model.device))
    kriging = without_covariates(by(closed_form, None))
    said = [transform, "noise found" if find_noise else None, trend and f"{trend} trend",
            "covariates" if given.known is not None else None,
            "time" if given.times is not None else None]
    kind = "kriging" if model.is_closed_form else Path(model.path).name
    this = f"this ({', '.join(filter(None, [kind, *said]))})"
    methods = {this: by(model, transform, find_noise, trend)}
    if given.times is not None:
        in_time = by(closed_form, transform, find_noise, trend)
        if not model.is_closed_form:
            methods["kriging in space and time"] = in_time
        return methods | {FRAME_BY_FRAME: frame_by_frame(in_time),
                          "linear in time": linear_in_time(frame), "constant": constant}
    if model.is_closed_form and not any(said):
        methods = {"this (fitted kriging)": kriging}
    else:
        methods["fitted kriging"] = kriging
    if also is not None:
        methods[f"--checkpoint {also.path}"] = by(also, transform, find_noise)
    if not find_noise and given.noise is None:
        methods["fitted kriging, --noise_sd auto"] = without_covariates(by(closed_form, None, True))
    methods |= {"linear": linear(frame), "constant": constant}
    if (other := pykrige(frame)) is not None:
        methods["PyKrige, exponential"] = other
    return methods


def by_model(
    model: Reconstructor, frame: Frame, extent: Extent, find_noise: bool = False, **more: Any
) -> Method:
    """A model's samples of what would be measured; more: of `Settings`."""
    settings = Settings(num_samples=SAMPLES, noise_sd="auto" if find_noise else 0.0,
                        with_noise=find_noise, **more)

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        own = Frame.of(given, extent, frame.aspect, frame.lonlat)
        known = None if given.known is None else places[:, 2 : 2 + len(given.known.names)]
        times = given.times and replace(given.times, values=places[:, -1])
        asked = Asked(places[:, :2], extent, own, known=known, times=times)
        found = model.answer(given, asked, settings)
        return Forecast(found.mean, found.samples)

    return method


def without_covariates(method: Method) -> Method:
    return lambda given, places: method(replace(given, known=None), places[:, :2])


def frame_by_frame(method: Method) -> Method:
    """Each time on its own; where nothing was measured at it, the mean and sd of all."""

    def answer(given: Measurements, places: np.ndarray) -> Forecast:
        assert given.times is not None
        times, frames = given.times.values, replace(given, times=None)
        whole = constant(given, places)
        normal = np.random.default_rng(0).normal(size=(SAMPLES, *whole.mean.shape))
        mean, samples = whole.mean.copy(), whole.mean + whole.sd * normal
        for when in np.intersect1d(places[:, -1], times):
            there, own = places[:, -1] == when, frames.of(times == when)
            with quiet():
                found = method(own, places[there, :-1])
            mean[there], samples[:, there] = found.mean, found.samples
        return Forecast(mean, samples)

    return answer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing is logged but errors."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def linear_in_time(frame: Frame) -> Method:
    """Between the measurements before and after, at the nearest place of which there are any; the
    first and the last hold on."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        assert given.times is not None
        there, which = np.unique(frame.inside(given.coords), axis=0, return_inverse=True)
        _, nearest = scipy.spatial.cKDTree(there).query(frame.inside(places[:, :2]))
        mean = np.empty((len(places), given.values.shape[1]))
        order = np.lexsort((given.times.values, which.reshape(-1)))
        ends = np.searchsorted(which.reshape(-1)[order], np.arange(len(there) + 1))
        for place in np.unique(nearest):
            own, asked = order[ends[place] : ends[place + 1]], nearest == place
            for c, values in enumerate(given.values[own].T):
                mean[asked, c] = np.interp(places[asked, -1], given.times.values[own], values)
        return Forecast(mean)

    return method


def constant(given: Measurements, places: np.ndarray) -> Forecast:
    """The mean and sd of all measurements, everywhere."""
    shape = (len(places), given.values.shape[1])
    return Forecast(np.broadcast_to(given.values.mean(axis=0), shape),
                    sd=np.broadcast_to(given.values.std(axis=0) + 1e-12, shape))


def linear(frame: Frame) -> Method:
    """Linear on triangles of the plane, beyond them the nearest measurement."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        points, queries = (p / frame.scaled_by for p in (given.coords, places[:, :2]))
        nearest = scipy.interpolate.NearestNDInterpolator(points, given.values)(queries)
        try:
            inside = scipy.interpolate.LinearNDInterpolator(points, given.values)(queries)
        except scipy.spatial.QhullError:  # fewer than three, or all on one line
            return Forecast(nearest)
        return Forecast(np.where(np.isnan(inside), nearest, inside))

    return method


def pykrige(frame: Frame) -> Method | None:
    """Ordinary kriging by PyKrige with an exponential variogram, which of those that it fits was
    the best on soil, stations and terrain (docs/fields.md); None without the package."""
    try:
        from pykrige.ok import OrdinaryKriging
    except ImportError:
        return None

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        scale = (1.0, 1.0) if frame.lonlat else frame.scaled_by
        points, queries = (p / scale for p in (given.coords, places[:, :2]))
        kind = "geographic" if frame.lonlat else "euclidean"
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = [OrdinaryKriging(
                *points.T, values, variogram_model="exponential", nlags=20, weight=True,
                coordinates_type=kind).execute("points", *queries.T) for values in given.values.T]
        mean, variance = np.stack(found, axis=-1)
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise ValueError("its variogram could not be fitted")
        return Forecast(mean, sd=np.sqrt(np.maximum(variance, 1e-12)))

    return method
