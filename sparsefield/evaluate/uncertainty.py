"""Is the spread of the samples the size of their error? Scores of an ensemble against the truth.

`evaluate` scores the samples of one image. The other functions take samples (K, P) and truth (P,):
K samples of P values in [0, 1], pooled over whatever is scored. Leave out the observed points:
there samples and truth agree by construction, and every score would look better than it is.
`unobserved` does so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparsefield.evaluate import metrics

LEVELS = (0.5, 0.9)
LEVEL = 0.9  # of `evaluate`
BLOCKS = (4, 8)  # sides of the blocks whose means are scored


@dataclass(frozen=True)
class Uncertainty:
    """Scores of one ensemble forecast; what a calibrated one has is in brackets."""

    crps: float  # fair continuous ranked probability score, in units of the values
    coverage: dict[float, float]  # share of truths inside the central interval of a level [level]
    attainable: dict[float, float]  # the level that K samples can express, see `coverage`
    spread: float  # rms sd of the samples, widened by 1 + 1/K for the error of their mean
    skill: float  # rms error of the mean of the samples [spread]
    correlation: float  # Pearson, of sd and |error of the mean| over points
    bin_spread: list[float]  # spread in ten classes of equal count, by sd
    bin_skill: list[float]  # skill in the same classes [bin_spread]
    ranks: list[float]  # (K+1,) share of truths by how many samples lie below [1 / (K+1) each]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self) | {name: {f"{level:.0%}": share for level, share in table.items()}
                               for name, table in (("coverage", self.coverage),
                                                   ("attainable", self.attainable))}


def evaluate(draws: np.ndarray, truth: np.ndarray, observed: np.ndarray) -> dict[str, float]:
    """Every number about the samples of one image, by name.

        crps                             fair, mean over the hidden values
        coverage_90                      of central 90 % intervals of the hidden values
        coverage_90_4x4, coverage_90_8x8 of the means of blocks that are not wholly observed
        coverage_90_luminance            of the mean over channels of the hidden points
        variance, squared_error          mean over the hidden values; see `moments`

    A point is hidden if it exists and was not observed. NaN where there is nothing to score: an
    image smaller than a block, or without a hidden point.

    Args:
        draws: (K, H, W, C), K >= 2. truth: (H, W, C), NaN where a point does not exist.
        observed: flat indices i * W + j of the observed points.
    """
    draws = np.asarray(draws, dtype=np.float64)
    samples, target = unobserved(draws, truth, observed)
    variance, squared_error = moments(samples, target)
    luminance = unobserved(
        draws.mean(axis=-1, keepdims=True), truth.mean(axis=-1, keepdims=True), observed
    )
    numbers = {"crps": fair_crps(samples, target), "coverage_90": coverage(samples, target, LEVEL)}
    for size in BLOCKS:
        means = block_means(draws, truth, observed, size)
        numbers[f"coverage_90_{size}x{size}"] = coverage(*means, LEVEL)
    return numbers | {
        "coverage_90_luminance": coverage(*luminance, LEVEL),
        "variance": _mean(variance),
        "squared_error": _mean(squared_error),
    }


def spread_error_ratio(variances: Sequence[float], squared_errors: Sequence[float]) -> float:
    """Spread over error of many images: the root of mean variance over mean squared error [1].

    Images for which they are not defined are left out.
    """
    return float(np.sqrt(np.nanmean(variances) / np.nanmean(squared_errors)))


def moments(samples: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the samples and squared error of their mean, (P,) each.

    The variance is widened by 1 + 1/K: the mean of K samples is itself uncertain by 1/K of it, so
    that only then both have the same expectation in a calibrated ensemble (Fortin et al. 2014).
    """
    variance = samples.var(axis=0, ddof=1) * (1 + 1 / len(samples))
    return variance, (samples.mean(axis=0) - truth) ** 2


def block_means(
    draws: np.ndarray, truth: np.ndarray, observed: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means over size x size blocks that hold a hidden point; those cut by the border are left out.

    Args:
        as for `evaluate`. Points that do not exist do not count in a mean.
    Returns:
        samples (K, P) and truth (P,) of P = blocks x channels.
    """
    exists = ~np.isnan(truth).any(axis=-1)
    hidden = exists.copy()
    hidden.reshape(-1)[observed] = False
    count = _block_sums(exists[..., None].astype(float), size)            # (h, w, 1)
    scored = _block_sums(hidden[..., None].astype(float), size)[..., 0] > 0
    fields = np.concatenate([draws, truth[None]]).astype(np.float64)
    sums = _block_sums(np.where(exists[..., None], fields, 0), size)      # (K + 1, h, w, C)
    means = (sums[:, scored] / count[scored]).reshape(len(fields), -1)
    return means[:-1], means[-1]


def _block_sums(fields: np.ndarray, size: int) -> np.ndarray:
    """(..., H, W, C) to (..., H // size, W // size, C)."""
    *batch, height, width, channels = fields.shape
    rows, columns = height // size, width // size
    whole = fields[..., : rows * size, : columns * size, :]
    return whole.reshape(*batch, rows, size, columns, size, channels).sum(axis=(-4, -2))


def unobserved(
    samples: np.ndarray, truth: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of one image that were neither observed nor missing.

    Args:
        samples: (K, H, W, C). truth: (H, W, C), NaN where a point does not exist.
        observed: flat indices i * W + j of the observed points.
    Returns:
        samples (K, P) and truth (P,).
    """
    scored = ~np.isnan(truth).any(axis=-1)
    scored.reshape(-1)[observed] = False
    return samples[:, scored].reshape(len(samples), -1), truth[scored].reshape(-1)


def score(samples: np.ndarray, truth: np.ndarray) -> Uncertainty:
    """All scores of K >= 2 samples (K, P) against the truth (P,)."""
    samples = np.asarray(samples, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64)
    variance, squared_error = moments(samples, truth)
    bin_spread, bin_skill = spread_skill_curve(variance, squared_error)
    highest = largest_coverage(len(samples))
    return Uncertainty(
        crps=fair_crps(samples, truth),
        coverage={level: coverage(samples, truth, level) for level in LEVELS},
        attainable={level: min(level, highest) for level in LEVELS},
        spread=float(np.sqrt(variance.mean())),
        skill=float(np.sqrt(squared_error.mean())),
        correlation=correlation(np.sqrt(variance), np.sqrt(squared_error)),
        bin_spread=bin_spread,
        bin_skill=bin_skill,
        ranks=rank_histogram(samples, truth).tolist(),
    )


def fair_crps(samples: np.ndarray, truth: np.ndarray) -> float:
    """`metrics.crps` of samples (K, P) and truth (P,); NaN without a value."""
    if not len(truth):
        return float("nan")
    return metrics.crps(samples[:, :, None, None], truth[:, None, None])


def largest_coverage(members: int) -> float:
    """The largest coverage that intervals from K exchangeable samples can state: (K-1) / (K+1)."""
    return (members - 1) / (members + 1)


def interval_name(level: float, members: int) -> str:
    """A level in words, which say so where that many samples cannot state it."""
    highest = largest_coverage(members)
    if level <= highest:
        return f"{level:.0%}"
    return f"{level:.0%} (of {members} samples at most {highest:.0%})"


def coverage(samples: np.ndarray, truth: np.ndarray, level: float) -> float:
    """Share of truths inside the central interval of the samples.

    The ends are quantiles at the plotting positions k / (K + 1) (Weibull): of K + 1 exchangeable
    values the truth lies below the k-th sample with exactly that probability, so that a calibrated
    ensemble covers at the stated level (between the positions within 0.01 for K >= 9). K samples
    can express levels up to (K - 1) / (K + 1); beyond, the interval is their whole range: 90 %
    needs 19 samples. NaN without a value.
    """
    if not len(truth):
        return float("nan")
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(samples, tails, axis=0, method="weibull")
    return float(np.mean((truth >= low) & (truth <= high)))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation, NaN where one of the two does not vary."""
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def spread_skill_curve(
    variance: np.ndarray, squared_error: np.ndarray, bins: int = 10
) -> tuple[list[float], list[float]]:
    """Root mean variance and squared error in classes of equal count, by variance.

    The bins of a calibrated ensemble lie on the diagonal (Fortin et al. 2014,
    doi:10.1175/JHM-D-14-0008.1, with the 1 + 1/K in the variance); with few samples flatter than
    it, since the sd that sorts the points is itself uncertain.
    """
    classes = np.array_split(np.argsort(variance, kind="stable"), min(bins, len(variance)))
    spread = [float(np.sqrt(variance[members].mean())) for members in classes]
    skill = [float(np.sqrt(squared_error[members].mean())) for members in classes]
    return spread, skill


def rank_histogram(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(K + 1,) share of truths with 0, 1, ... K samples below them (Hamill 2001).

    Uniform for a calibrated ensemble, a cup for one too narrow, a hill for one too wide. A truth
    equal to samples (clipped values) is shared evenly between the ranks that it could have.
    """
    below = (samples < truth).sum(axis=0)
    ties = (samples == truth).sum(axis=0)
    share = 1 / (ties + 1)
    change = np.zeros(len(samples) + 2)
    np.add.at(change, below, share)
    np.add.at(change, below + ties + 1, -share)
    return change.cumsum()[:-1] / len(truth)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else float("nan")
