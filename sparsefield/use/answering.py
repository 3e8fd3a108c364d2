"""The answer in the units of the measurements: channels together or apart, noise, transform."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sparsefield.data.scale import given_range
from sparsefield.gaussian import estimate_noise
from sparsefield.use import transforms
from sparsefield.use.arguments import Observed, Settings
from sparsefield.use.drawing import draw
from sparsefield.use.field import Answer
from sparsefield.use.scales import excess
from sparsefield.use.trained import TrainedModel

log = logging.getLogger("sparsefield")


def answer(
    model: TrainedModel, queries: Tensor, observed: Observed, settings: Settings
) -> Answer:
    """What a model says at queries (N, 2), on a globe (N, 3), in the units of the user.

    Raises:
        UserError: a value_range that is none or does not fit.
    """
    found = _channels(model, queries, observed, settings)
    if settings.transform is None:
        return found
    samples = transforms.back(settings.transform, found.samples)
    return replace(found, mean=samples.mean(axis=0), sd=samples.std(axis=0, ddof=1),
                   samples=samples)


def _channels(
    model: TrainedModel, queries: Tensor, observed: Observed, settings: Settings
) -> Answer:
    """All channels together, or each on its own: where they are different things."""
    channels = observed.values.shape[1]
    value_range = transforms.of_range(settings.transform, settings.value_range)
    alone = model.is_of_pictures and channels not in (1, model.channels)
    has_learnt_them = not model.is_of_pictures and channels == model.channels
    if channels == 1 or has_learnt_them or not (settings.separately or alone):
        return _together(model, queries, observed, value_range, settings)
    ranges = [None] * channels if value_range is None else given_range(value_range, channels)
    answers = [
        _together(model, queries, replace(observed, values=observed.values[:, c:c + 1]), ranges[c],
                  replace(settings, seed=settings.seed + c))
        for c in range(channels)
    ]
    joined = {name: np.concatenate([getattr(answer, name) for answer in answers], axis=-1)
              for name in ("mean", "sd", "samples")}
    variograms = " | ".join(answer.variogram for answer in answers if answer.variogram)
    return Answer(how=answers[0].how, variogram=variograms, **joined)


def _together(
    model: TrainedModel, queries: Tensor, observed: Observed,
    value_range: Sequence[float] | None, settings: Settings,
) -> Answer:
    """The answer of one call of the model, brought back from -1 ... 1."""
    model = model.for_values(observed.values)
    scale = model.scale_for(observed.values, value_range)
    inside = torch.from_numpy(scale.to_inside(observed.values))
    half_widths = np.diff(scale.value_range, axis=1)[:, 0] / 2
    if settings.find_noise:
        found = _found_noise(observed, inside)
        noise = observed.noise[:, None] * found
        _tell_noise(found * half_widths, settings.transform)
    else:
        noise = observed.noise[:, None] / half_widths
    is_within = excess(observed.values, scale) <= 0
    drawn = draw(
        model, queries, observed.places, inside, noise if noise.any() else None,
        num_samples=settings.num_samples, num_steps=settings.num_steps, seed=settings.seed,
        progress=settings.progress, clip=model.is_of_pictures and is_within,
    )
    samples, sd = drawn.samples, drawn.sd
    if settings.with_noise and settings.find_noise:
        rng = np.random.default_rng(settings.seed)
        samples, sd = samples + found * rng.normal(size=samples.shape), np.hypot(sd, found)

    samples = scale.to_physical(samples)
    sd = sd * half_widths if model.is_closed_form else samples.std(axis=0, ddof=1)
    return replace(drawn, mean=scale.to_physical(drawn.mean), sd=sd, samples=samples)


def _found_noise(observed: Observed, inside: Tensor) -> np.ndarray:
    """(C,) sd of the noise that values (M, C) seem to have, times `observed.noise`."""
    weights = torch.from_numpy(observed.noise)
    return np.array([estimate_noise(observed.places, channel, weights) for channel in inside.T])


def _tell_noise(found: np.ndarray, transform: str | None) -> None:
    """Log what noise was found, in units of the (transformed) values."""
    numbers = ", ".join(f"{sd:.3g}" for sd in np.ravel(found))
    log.info("noise found in the measurements: sd %s%s", numbers,
             f" of their {transform}" if transform else "")
