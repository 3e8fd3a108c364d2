"""How well hidden measurements were foretold: the scores of each method, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from sparsefield.evaluate.metrics import crps_of_values
from sparsefield.evaluate.uncertainty import coverage
from sparsefield.use.points import Measurements

LEVEL = 0.9


@dataclass(frozen=True)
class Forecast:
    """What a method says of N hidden values of C channels.

    Attributes:
        mean: (N, C). samples: (K, N, C), or sd: (N, C) of a Gaussian, or neither.
    """

    mean: np.ndarray
    samples: np.ndarray | None = None
    sd: np.ndarray | None = None

    def of_channel(self, c: int) -> Forecast:
        """The same of one channel."""
        return Forecast(*(None if part is None else part[..., c:c + 1]
                          for part in (self.mean, self.samples, self.sd)))


@dataclass(frozen=True)
class Score:
    """How well a method foretold the hidden values, in their units.

    Attributes:
        rmse: of the mean. crps: mean continuous ranked probability score, of a method without an
            uncertainty the mean absolute error. covered: share of the values in their 90 %
            intervals, None without. seconds: it took. each: (N C,) CRPS of every value.
    """

    name: str
    rmse: float
    covered: float | None
    seconds: float
    each: np.ndarray

    @property
    def crps(self) -> float:
        return float(self.each.mean())


def score(name: str, forecast: Forecast, hidden: Measurements, seconds: float) -> Score:
    """That of a forecast of hidden measurements; where they have noise, it is given noise, too."""
    truth = hidden.values
    noise = np.zeros(len(truth)) if hidden.noise is None else hidden.noise
    rmse = float(np.sqrt(((forecast.mean - truth) ** 2).mean()))
    if forecast.samples is not None:
        wobble = np.random.default_rng(0).normal(size=forecast.samples.shape) * noise[:, None]
        samples = (forecast.samples + wobble).reshape(len(forecast.samples), -1)
        return Score(name, rmse, coverage(samples, truth.reshape(-1), LEVEL), seconds,
                     crps_of_values(samples, truth.reshape(-1)))
    if forecast.sd is None:
        return Score(name, rmse, None, seconds, np.abs(forecast.mean - truth).reshape(-1))
    sd = np.sqrt(forecast.sd**2 + noise[:, None] ** 2)
    z = (truth - forecast.mean) / sd
    covered = float((np.abs(z) < scipy.special.ndtri((1 + LEVEL) / 2)).mean())
    return Score(name, rmse, covered, seconds, gaussian_crps(z, sd).reshape(-1))


def gaussian_crps(z: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """CRPS of N(m, sd^2) at m + sd z (Gneiting & Raftery 2007, equation 21)."""
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return sd * (z * (2 * scipy.special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


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
    """In one line, how the first method compares with the best of the others.

    By the CRPS of each hidden value, with an interval of two standard errors of the difference.
    """
    first, *others = scores
    best = min(others, key=lambda score: score.crps)
    if not best.crps:
        return f"{best.name} foretells all of it exactly: nothing is to be compared"
    change = (first.each - best.each) / best.crps
    error = 1.96 * change.std() / len(change) ** 0.5
    low, high = change.mean() - error, change.mean() + error
    numbers = f"CRPS {change.mean():+.1%}, 95 % interval {low:+.1%} to {high:+.1%}"
    if high < 0:
        return f"{first.name} is better than {best.name}, the best of the others: {numbers}"
    if low > 0:
        return f"{first.name} is worse than {best.name}: {numbers}; trust {best.name} rather"
    return f"{first.name} is level with {best.name}, the best of the others: {numbers}"
