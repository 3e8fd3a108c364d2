"""Ordinary kriging: the best linear answer and its variance, in closed form.

The field is modelled as m + s * G, with G a Gaussian process of unit variance and covariance
exp(-r / length), m an unknown mean per channel and s an unknown amplitude per image (Cressie 1993,
Statistics for Spatial Data, sections 3.2 and 3.4). The models are built around this answer
(sparsefield.conditional), and the evaluations report it as a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.neighbours import nearest

LENGTH = 1.0  # the side of the square: at 2-6 pixels between observations only the slope at 0 acts
NUGGET = 1e-4  # variance, relative to the amplitude, of what is not spatially correlated
DENSE_POINTS = 2000  # beyond this, each query is answered from its nearest observations
LOCAL_NEIGHBOURS = 64
AMPLITUDE_PRIOR = (1.0, 0.05)  # (observations' worth, variance): one point has no variance of its own


class Kriging(NamedTuple):
    """Gaussian answers at the queries, and leave-one-out answers at the observations.

    Attributes:
        mean: (B, N, C) conditional mean, in the units of the values.
        sd: (B, N, 1) conditional standard deviation, the same for all channels.
        loo_mean: (B, M, C) mean at each observation given all the others.
        loo_sd: (B, M, 1) its standard deviation.
    """

    mean: Tensor
    sd: Tensor
    loo_mean: Tensor
    loo_sd: Tensor


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it, float32 products are float32, not TF32: the weights of near points cancel."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def ordinary_kriging(input_coords: Tensor, input_values: Tensor, query_coords: Tensor) -> Kriging:
    """Krige every query from the observations, and every observation from the others.

    Args:
        input_coords: (B, M, 2) in [0, 1]. input_values: (B, M, C). query_coords: (B, N, 2).
    Returns:
        `Kriging`, in float32. Up to DENSE_POINTS observations exactly, by one Cholesky
        factorisation of M x M an image (float64 above 512 points); beyond that each point
        is answered from its LOCAL_NEIGHBOURS nearest observations.
    """
    with torch.autocast(input_coords.device.type, enabled=False), full_precision():
        points = input_coords.float(), input_values.float(), query_coords.float()
        if input_coords.shape[1] > DENSE_POINTS:
            return _local(*points)
        if input_coords.shape[1] > 512:
            return Kriging(*(x.float() for x in _dense(*(p.double() for p in points))))
        return _dense(*points)


@torch.no_grad()
def noisy_observations(
    coords: Tensor, values: Tensor, noise_sd: Tensor, count: int, seed: int
) -> Tensor:
    """What noisy measurements say about the true values at their own points, under the same model.

    With K the covariance of the field and S that of the noise, the posterior of the field at the
    observations is N(m + K (K + S)^-1 (y - m), K - K (K + S)^-1 K) (Rasmussen & Williams 2006,
    equations 2.22-2.24; the mean m is taken as known).

    Args:
        coords: (M, 2), M <= DENSE_POINTS. values: (M, C). noise_sd: (C,), in the units of values.
        count: draws. seed: of them.
    Returns:
        (1 + count, M, C) float32: the posterior mean, then draws from the posterior.
    """
    coords, values = coords.double().cpu(), values.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    kernel = covariance(coords[None], coords[None])[0]
    identity = torch.eye(len(coords), dtype=torch.float64)
    channels = []
    for value, sd in zip(values.T, noise_sd.double()):
        noise2 = sd**2
        worth, least = AMPLITUDE_PRIOR
        # The variance of the values is that of the field and of the noise.
        solved = torch.linalg.solve(kernel + NUGGET * identity, value - value.mean())
        quadratic = ((value - value.mean()) * solved).sum()
        noise_part = noise2 * torch.linalg.inv(kernel + NUGGET * identity).trace()
        amplitude2 = ((quadratic - noise_part).clamp_min(0) + worth * least) / (len(value) + worth)
        prior = amplitude2 * kernel
        factor = torch.linalg.cholesky(prior + noise2 * identity)
        weights = torch.cholesky_solve(prior, factor)                    # (K + S)^-1 K
        precision = torch.cholesky_solve(torch.ones_like(value)[:, None], factor)[:, 0]
        trend = (precision * value).sum() / precision.sum()
        mean = trend + weights.T @ (value - trend)
        posterior = prior - prior @ weights
        scale, axes = torch.linalg.eigh((posterior + posterior.T) / 2)
        root = axes * scale.clamp_min(0).sqrt()
        draws = torch.randn(count, len(value), generator=generator, dtype=torch.float64) @ root.T
        channels.append(torch.cat([mean[None], mean + draws]))
    return torch.stack(channels, dim=-1).float()


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """exp(-|a - b| / LENGTH) for (B, P, 2) against (B, Q, 2): (B, P, Q)."""
    return torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / LENGTH)


def _dense(coords: Tensor, values: Tensor, queries: Tensor) -> Kriging:
    count = coords.shape[1]
    k_xx = covariance(coords, coords)                                     # (B, M, M)
    k_xx.diagonal(dim1=1, dim2=2).add_(NUGGET)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(k_xx))         # (B, M, M)
    ones = inverse.sum(dim=2, keepdim=True)                               # (B, M, 1)  K^-1 1
    precision = ones.sum(dim=1, keepdim=True)                             # (B, 1, 1)  1' K^-1 1
    trend = (ones * values).sum(dim=1, keepdim=True) / precision          # (B, 1, C)  GLS mean
    weights = inverse @ (values - trend)                                  # (B, M, C)
    amplitude2 = _amplitude2((weights * (values - trend)).sum(dim=1), count)

    k_xq = covariance(coords, queries)                                    # (B, M, N)
    mean = trend + k_xq.mT @ weights                                      # (B, N, C)
    solved = inverse @ k_xq                                               # (B, M, N)
    explained = (k_xq * solved).sum(dim=1)                                # (B, N)
    mean_error = (1 - solved.sum(dim=1)) ** 2 / precision[:, 0]           # (B, N)
    variance = (1 - explained + mean_error).clamp_min(NUGGET)[..., None]  # (B, N, 1)

    # Leave-one-out in closed form (Dubrule 1983): with P the precision once the mean is
    # projected out, observation i is off its prediction by (P y)_i / P_ii, variance 1 / P_ii.
    p_ii = inverse.diagonal(dim1=1, dim2=2)[..., None] - ones**2 / precision
    p_ii = p_ii.clamp_min(0.5 / count)  # a single observation has P = 0: nothing predicts it
    return Kriging(
        mean,
        (amplitude2 * variance).sqrt(),
        values - weights / p_ii,
        (amplitude2 / p_ii).sqrt(),
    )


def _amplitude2(quadratic: Tensor, count: int) -> Tensor:
    """Amplitude s^2 (B, 1, 1) by maximum likelihood from y' K^-1 y (B, C), with a weak prior."""
    worth, variance = AMPLITUDE_PRIOR
    estimate = (quadratic.mean(dim=1) + worth * variance) / (count + worth)
    return estimate[:, None, None]


def _local(coords: Tensor, values: Tensor, queries: Tensor) -> Kriging:
    """The dense answer, with every point a problem of its own: B * N problems of few points."""
    answers = []
    for b in range(len(coords)):
        at_queries = _from_nearest(coords[b], values[b], queries[b], skip_self=False)
        at_inputs = _from_nearest(coords[b], values[b], coords[b], skip_self=True)
        answers.append((*at_queries, *at_inputs))
    return Kriging(*(torch.stack(parts) for parts in zip(*answers)))


def _from_nearest(
    coords: Tensor, values: Tensor, points: Tensor, skip_self: bool, block: int = 4096
) -> tuple[Tensor, Tensor]:
    means, sds = [], []
    for part in points.split(block):
        index, _ = nearest(part[None], coords[None], LOCAL_NEIGHBOURS + skip_self)
        index = index[0, :, skip_self:]                                   # (n, k)
        answer = _dense(coords[index], values[index], part[:, None])
        means.append(answer.mean[:, 0])
        sds.append(answer.sd[:, 0])
    return torch.cat(means), torch.cat(sds)
