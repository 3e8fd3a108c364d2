"""Is the spread of the samples the size of their error? Scores of an ensemble against the truth.

All functions take samples (K, P) and truth (P,): K samples of P values in [0, 1], pooled over the
points, channels and images that are scored. Leave out the observed points: there samples and truth
agree by construction, and every score would look better than it is. `unobserved` does so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from sparsefield.evaluate import metrics

LEVELS = (0.5, 0.9)


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

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return asdict(self) | {name: {f"{level:.0%}": share for level, share in table.items()}
                               for name, table in (("coverage", self.coverage),
                                                   ("attainable", self.attainable))}


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
    variance = samples.var(axis=0, ddof=1) * (1 + 1 / len(samples))
    squared_error = (samples.mean(axis=0) - truth) ** 2
    bin_spread, bin_skill = spread_skill_curve(variance, squared_error)
    highest = (len(samples) - 1) / (len(samples) + 1)
    return Uncertainty(
        crps=metrics.crps(samples[:, :, None, None], truth[:, None, None]),
        coverage={level: coverage(samples, truth, level) for level in LEVELS},
        attainable={level: min(level, highest) for level in LEVELS},
        spread=float(np.sqrt(variance.mean())),
        skill=float(np.sqrt(squared_error.mean())),
        correlation=correlation(np.sqrt(variance), np.sqrt(squared_error)),
        bin_spread=bin_spread,
        bin_skill=bin_skill,
        ranks=rank_histogram(samples, truth).tolist(),
    )


def coverage(samples: np.ndarray, truth: np.ndarray, level: float) -> float:
    """Share of truths inside the central interval of the samples.

    The ends are quantiles at the plotting positions k / (K + 1) (Weibull): of K + 1 exchangeable
    values the truth lies below the k-th sample with exactly that probability, so that a calibrated
    ensemble covers at the stated level (between the positions within 0.01 for K >= 9). K samples
    can express levels up to (K - 1) / (K + 1); beyond, the interval is their whole range: 90 %
    needs 19 samples.
    """
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
