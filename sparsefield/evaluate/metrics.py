"""Scores of a reconstruction, and of an ensemble of samples.

Images are numpy arrays (H, W, C), values in [0, 1], any number of channels. NaN in the truth marks
a point that does not exist (land in an ocean field, say): it is never scored. Metrics with a window
continue both images into such points in the same way (each point takes the value of the nearest
existing one) and count only windows whose centre exists. UserError for an image without any.

Scores of ensembles take samples (K, P) and truth (P,): K samples of P values. Leave the observed
points out (`unobserved`): there samples and truth agree by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
import skimage

from sparsefield.errors import UserError

PSNR_CEILING = 100.0  # dB; a perfect image stays a number that can be averaged and written to JSON
SPECKLE_THRESHOLDS = (0.05, 0.10, 0.20)
LEVEL = 0.9  # of intervals
BLOCKS = (4, 8)  # sides of the blocks whose means are scored


def evaluate(reconstruction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Every per-image number, by name: psnr, ssim, mse, mae, speckle_*, missed_0.10, flat_hf."""
    pair = reconstruction, truth
    return {
        "psnr": psnr(*pair), "ssim": ssim_wang(*pair), "mse": mse(*pair),
        "mae": float(np.nanmean(np.abs(np.subtract(*pair, dtype=np.float64)))),
        **{f"speckle_{level:.2f}": speckle(*pair, level) for level in SPECKLE_THRESHOLDS},
        "missed_0.10": missed(*pair), "flat_hf": flat_hf(*pair),
    }


def mse(reconstruction: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error over existing points and channels."""
    x, g, exists = _pair(reconstruction, truth)
    return float(np.mean((x - g)[exists] ** 2))


def psnr(reconstruction: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a data range of 1; at most PSNR_CEILING."""
    floor = 10 ** (-PSNR_CEILING / 10)
    return float(-10 * np.log10(max(mse(reconstruction, truth), floor)))


def ssim_wang(reconstruction: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity with the settings of Wang et al. (2004): Gaussian window, sigma 1.5.

    Mean over channels, without the border of 5 points where the window leaves the image (less where
    a side is below 11); NaN where no point exists inside it. UserError for a side below 3 points.
    """
    x, g, exists = _pair(reconstruction, truth)
    side = min(exists.shape)
    if side < 3:
        raise UserError(f"SSIM needs images of at least 3 x 3 points, this one has {exists.shape}")
    window = min(11, side - 1 + side % 2)
    _, similarity = skimage.metrics.structural_similarity(
        x, g, win_size=window, data_range=1, channel_axis=-1, full=True, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False,
    )
    inner = np.s_[window // 2 : -(window // 2), window // 2 : -(window // 2)]
    return _mean(similarity[inner][exists[inner]])


def speckle(reconstruction: np.ndarray, truth: np.ndarray, threshold: float = 0.10) -> float:
    """Share of values that stand out of their 3 x 3 neighbourhood and do not in the truth.

        mean[ |x - med3(x)| > threshold  and not  |g - med3(g)| > threshold ]

    over existing points and channels; med3 is the median per channel, borders reflected. A sample
    that is as rough as the truth has some: see `missed`.
    """
    x, g, exists = _pair(reconstruction, truth)
    return _mean((_stands_out(x, threshold) & ~_stands_out(g, threshold))[exists])


def missed(reconstruction: np.ndarray, truth: np.ndarray, threshold: float = 0.10) -> float:
    """Share of values that stand out in the truth and do not in the reconstruction.

    A sample of the exact posterior misses as much as it has speckle: more speckle is grain, less is
    smoothing.
    """
    x, g, exists = _pair(reconstruction, truth)
    return _mean((_stands_out(g, threshold) & ~_stands_out(x, threshold))[exists])


def _stands_out(image: np.ndarray, threshold: float) -> np.ndarray:
    median = scipy.ndimage.median_filter(image, size=(3, 3, 1), mode="reflect")
    return np.abs(image - median) > threshold


def flat_hf(reconstruction: np.ndarray, truth: np.ndarray, flat_below: float = 0.03) -> float:
    """Grain in flat areas: rms of e - box3(e), e = x - g, where the truth's 5 x 5 sd < flat_below.

    Flatness is decided per channel. NaN for a truth without any flat area.
    """
    x, g, exists = _pair(reconstruction, truth)

    def box(image: np.ndarray, side: int) -> np.ndarray:
        return scipy.ndimage.uniform_filter(image, size=(side, side, 1), mode="reflect")

    flat = (box(g**2, 5) - box(g, 5) ** 2 < flat_below**2) & exists[..., None]
    grain = x - g - box(x - g, 3)
    return float(np.sqrt(_mean(grain[flat] ** 2)))


def average(values: Sequence[float]) -> float:
    """Mean over the images where a number is defined; NaN if there are none."""
    defined = _defined(values)
    return float(defined.mean()) if len(defined) else math.nan


def _defined(values: Sequence[float]) -> np.ndarray:
    """Those that are numbers, float64."""
    numbers = np.array(values, dtype=np.float64)
    return numbers[~np.isnan(numbers)]


def paired_bootstrap(
    differences: Sequence[float], confidence: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean of per-image differences with a bootstrap interval: (mean, low, high).

    Expanded percentile interval (Hesterberg 2015, doi:10.1080/00031305.2015.1089789): images are
    drawn with replacement, and the percentiles are moved out to those of Student's t, so that few
    images do not make the interval too short.

    Args:
        differences: (n,) one number an image; NaN = not defined for that image, left out.
    Returns:
        NaN for what cannot be computed: the mean of no image, the interval of fewer than two.
    """
    defined = _defined(differences)
    count = len(defined)
    if count < 2:
        return _mean(defined), np.nan, np.nan
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    quantile = scipy.stats.t.ppf((1 - confidence) / 2, df=count - 1)
    tail = scipy.stats.norm.cdf(quantile * np.sqrt(count / (count - 1)))
    low, high = np.quantile(defined[draws].mean(axis=1), [tail, 1 - tail])
    return float(defined.mean()), float(low), float(high)


# --- ensembles -----------------------------------------------------------------------------------


def crps_of_values(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of each value: of samples (K, ...), K >= 2, at (...).

    In the units of the values. The fair estimator, whose expectation does not depend on K (Ferro
    2014, doi:10.1002/qj.2270): mean_k |x_k - g|  -  sum_{j<k} |x_j - x_k| / (K (K - 1)).
    """
    count = len(samples)
    if count < 2:
        raise ValueError("CRPS of an ensemble needs at least 2 samples; of one, use mae")
    members = np.sort(samples, axis=0)
    skill = np.abs(members - truth).mean(axis=0)
    ranks = 2 * np.arange(count) - count + 1                         # sum of pairs, by sorting
    return skill - np.tensordot(ranks, members, axes=1) / (count * (count - 1))


def gaussian_crps(z: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """CRPS of N(m, sd^2) at m + sd z (Gneiting & Raftery 2007, equation 21)."""
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return sd * (z * (2 * scipy.special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


def sequence_scores(mean: np.ndarray, sd: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of Gaussian forecasts of points of one sequence, arrays of one shape: root mean square error
    and CRPS in units of the sd of the truths, and the share of these in LEVEL intervals."""
    z, spread = (truth - mean) / sd, float(truth.std()) or 1.0
    return {"error": float(np.sqrt(((truth - mean) ** 2).mean())) / spread,
            "crps": float(gaussian_crps(z, sd).mean()) / spread,
            "covered": float((np.abs(z) < scipy.special.ndtri((1 + LEVEL) / 2)).mean())}


def evaluate_samples(
    draws: np.ndarray, truth: np.ndarray, observed: np.ndarray
) -> dict[str, float]:
    """Every number about the samples of one image, by name; NaN where there is nothing to score.

        crps                             fair, mean over the hidden values: of points that exist
                                         and were not observed
        coverage_50, coverage_90         of central intervals of the hidden values
        coverage_90_4x4, coverage_90_8x8 of the means of blocks that are not wholly observed
        coverage_90_luminance            of the mean over channels of the hidden points
        coverage_90_channel_1, ...       of each channel, where there are several
        variance, squared_error          mean over the hidden values; see `moments`

    Args:
        draws: (K, H, W, C), K >= 2. truth: (H, W, C), NaN where a point does not exist.
        observed: flat indices i * W + j of the observed points.
    """
    draws = np.asarray(draws, dtype=np.float64)
    samples, target = unobserved(draws, truth, observed)
    _require_finite(samples)
    variance, squared_error = moments(samples, target)
    channels = truth.shape[2]
    luminance = unobserved(
        draws.mean(axis=-1, keepdims=True), truth.mean(axis=-1, keepdims=True), observed)
    return {
        "crps": _mean(crps_of_values(samples, target)),
        "coverage_50": coverage(samples, target, 0.5), "coverage_90": coverage(samples, target),
        **{f"coverage_90_{size}x{size}": coverage(*block_means(draws, truth, observed, size))
           for size in BLOCKS},
        "coverage_90_luminance": coverage(*luminance),
        **{f"coverage_90_channel_{c + 1}": coverage(samples[:, c::channels], target[c::channels])
           for c in range(channels) if channels > 1},
        "variance": _mean(variance), "squared_error": _mean(squared_error),
    }


def widen(samples: np.ndarray, spread: float | Sequence[float]) -> np.ndarray:
    """Samples (K, ..., C) with their distance from their mean multiplied, by one factor or C."""
    mean = samples.mean(axis=0, keepdims=True)
    return mean + np.asarray(spread, dtype=samples.dtype) * (samples - mean)


def by_channel(numbers: float | Sequence[float], form: str = ".2f") -> str:
    """One number, or one for each channel, in words."""
    return " / ".join(f"{number:{form}}" for number in np.atleast_1d(numbers))


def moments(samples: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the samples and squared error of their mean, (P,) each.

    The variance is widened by 1 + 1/K, for the mean of K samples is uncertain by 1/K of it (Fortin
    et al. 2014, doi:10.1175/JHM-D-14-0008.1).
    """
    variance = samples.var(axis=0, ddof=1) * (1 + 1 / len(samples))
    return variance, (samples.mean(axis=0) - truth) ** 2


def unobserved(
    samples: np.ndarray, truth: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden values of one image (see `evaluate_samples`): samples (K, P) and truth (P,)."""
    hidden = _hidden(truth, observed)
    return samples[:, hidden].reshape(len(samples), -1), truth[hidden].reshape(-1)


def block_means(
    draws: np.ndarray, truth: np.ndarray, observed: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means over size x size blocks that hold a hidden point; those cut by the border are left out.

    Points that do not exist do not count in a mean. Returns samples (K, P) and truth (P,) of
    P = blocks x channels.
    """
    exists = ~np.isnan(truth).any(axis=-1)
    count = block_sums(exists[..., None], size)                           # (h, w, 1)
    scored = block_sums(_hidden(truth, observed)[..., None], size)[..., 0] > 0
    fields = np.concatenate([draws, truth[None]]).astype(np.float64)
    sums = block_sums(np.where(exists[..., None], fields, 0), size)       # (K + 1, h, w, C)
    means = (sums[:, scored] / count[scored]).reshape(len(fields), -1)
    return means[:-1], means[-1]


def block_sums(fields: np.ndarray, size: int) -> np.ndarray:
    """(..., H, W, C) to (..., H // size, W // size, C)."""
    *batch, height, width, channels = fields.shape
    rows, columns = height // size, width // size
    whole = fields[..., : rows * size, : columns * size, :]
    return whole.reshape(*batch, rows, size, columns, size, channels).sum(axis=(-4, -2))


def largest_coverage(members: int) -> float:
    """The largest coverage that intervals from K exchangeable samples can state: (K-1) / (K+1)."""
    return (members - 1) / (members + 1)


def interval_name(level: float, members: int) -> str:
    """A level in words, which say so where that many samples cannot state it."""
    highest = largest_coverage(members)
    stated = "" if level <= highest else f" (of {members} samples at most {highest:.0%})"
    return f"{level:.0%}{stated}"


def coverage(samples: np.ndarray, truth: np.ndarray, level: float = LEVEL) -> float:
    """Share of truths inside the central interval of the samples; NaN without a value.

    The ends are quantiles at the plotting positions k / (K + 1) (Weibull), so that a calibrated
    ensemble covers at the stated level. Beyond `largest_coverage` the interval is the whole range
    of the samples: 90 % needs 19.
    """
    if not len(truth):
        return float("nan")
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(samples, tails, axis=0, method="weibull")
    return float(np.mean((truth >= low) & (truth <= high)))


def ensemble_scores(samples: np.ndarray, truth: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """How the spread of K >= 2 samples (K, P) fits the truth (P,), in plain types.

        bin_spread, bin_skill  rms sd of the samples and rms error of their mean (see `moments`) in
                               classes of equal count, by sd; equal if calibrated (Fortin et al.)
        ranks                  (K + 1,) share of truths with 0, 1, ... K samples below them (Hamill
                               2001): uniform if calibrated, a cup if too narrow, a hill if too wide

    A truth equal to samples (clipped values) is shared between the ranks that it could have.
    """
    variance, squared_error = moments(samples, truth)
    classes = np.array_split(np.argsort(variance, kind="stable"), min(bins, len(variance)))
    spread, skill = ([float(np.sqrt(values[members].mean())) for members in classes]
                     for values in (variance, squared_error))
    below, not_above = (samples < truth).sum(axis=0), (samples <= truth).sum(axis=0)
    ranks = np.arange(len(samples) + 1)[:, None]
    possible = (below <= ranks) & (ranks <= not_above)                   # (K + 1, P)
    return {"bin_spread": spread, "bin_skill": skill,
            "ranks": (possible / possible.sum(axis=0)).mean(axis=1).tolist()}


# --- helpers -------------------------------------------------------------------------------------


def _pair(
    reconstruction: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both images in float64 with points that do not exist filled, and which exist (H, W)."""
    x, g = (np.asarray(image, dtype=np.float64) for image in (reconstruction, truth))
    if x.shape != g.shape or g.ndim != 3:
        raise ValueError(f"expected two images (H, W, C), not {x.shape} and {g.shape}")
    exists = np.asarray(~np.isnan(g).any(axis=-1))
    if not exists.any():
        raise UserError("an image without a single existing point (all NaN) cannot be scored")
    if not exists.all():
        nearest = tuple(scipy.ndimage.distance_transform_edt(
            ~exists, return_distances=False, return_indices=True))
        x, g = x[nearest], g[nearest]
    _require_finite(x)
    return x, g, exists


def _hidden(truth: np.ndarray, observed: np.ndarray) -> np.ndarray:
    hidden = np.asarray(~np.isnan(truth).any(axis=-1))
    hidden.reshape(-1)[observed] = False
    return hidden


def _require_finite(values: np.ndarray) -> None:
    # A comparison with NaN is False: a diverged model would have no speckle at all.
    if not np.isfinite(values).all():
        raise ValueError("a reconstruction has values that are not finite")


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else float("nan")
