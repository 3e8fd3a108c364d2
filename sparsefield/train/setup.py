"""What a training is set up with: the model's arguments, batches, precision."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from torch import nn

from sparsefield.data import Data, TrainingBatches, parse_pattern
from sparsefield.data.batches import count_symmetries
from sparsefield.device import has_fast_bfloat16
from sparsefield.errors import UserError
from sparsefield.flow.path import draw_angles
from sparsefield.model.checkpoint import load_checkpoint
from sparsefield.model.starting import OF_TRAINING
from sparsefield.train.config import TrainingConfig
from sparsefield.train.processes import World

SD_FIELDS = 64


def model_arguments(config: TrainingConfig, model_class: type[nn.Module], data: Data) -> dict:
    """Constructor arguments: the settings whose names the model's classes take, and the data's."""
    names = argument_names(model_class)
    chosen = {name: value for name, value in asdict(config).items() if name in names}
    of_data = {"channels": data.channels, "value_sd": value_sd(data),
               "symmetries": symmetries_shown(config, data),
               "max_frequency": max(data.height, data.width) / 2}
    return {**chosen, **of_data}


def argument_names(model_class: type[nn.Module]) -> set[str]:
    """What the constructors of a model's classes take."""
    return {name for owner in model_class.__mro__ if owner is not nn.Module
            for name in inspect.signature(owner.__init__).parameters}


def sized_as_init_from(config: TrainingConfig, model_class: type[nn.Module]) -> TrainingConfig:
    """Settings whose model is that of `init_from`: sizes that were not set are taken from there.

    A size that was set stays, and is refused when the weights are taken if it differs.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if config.init_from is None:
        return config
    theirs = load_checkpoint(config.init_from)["model_args"]
    free = [name for name, value in asdict(config).items()
            if name in argument_names(model_class) - OF_TRAINING and name in theirs
            and name not in config.given and value == getattr(type(config), name)]
    return replace(config, **{name: theirs[name] for name in free})


def symmetries_shown(config: TrainingConfig, data: Data) -> int:
    """How many turns and flips of fields, observations included, the training shows."""
    if not (data.train.is_symmetric and parse_pattern(config.observe).is_symmetric):
        return 1
    return count_symmetries(data.height, data.width)


def value_sd(data: Data) -> float:
    """Sd of the values in [-1, 1] around 0, of at most SD_FIELDS training fields evenly spread."""
    indices = range(0, len(data.train), max(1, len(data.train) // SD_FIELDS))
    fields = (data.train.training_example(i, np.random.default_rng(i)) for i in indices)
    squares = [np.nanmean(field.astype(np.float64) ** 2) for field in fields]
    return round(float(np.sqrt(np.mean(squares))), 4) or 1.0


def steps_per_epoch(config: TrainingConfig, data: Data) -> int:
    """Whole batches in one pass through the training fields, at least 1."""
    return max(1, len(data.train) // config.batch_size)


def open_batches(
    config: TrainingConfig, data: Data, world: World, starting: int, sees_whole: bool
) -> TrainingBatches:
    """This process's part of every batch; the first `starting` are of stage "start".

    Args:
        sees_whole: whether the model has a flow U-Net, which sees whole draws.
    Raises:
        UserError: a batch does not divide.
    """
    return TrainingBatches(
        data.train,
        parse_pattern(config.observe),
        seed=config.seed,
        batch_size=config.batch_size,
        queries=(config.queries_min, config.queries_max),
        draw_angles=partial(draw_angles, zero_share=config.zero_share),
        starting=starting,
        sees_whole=sees_whole,
        rank=world.rank,
        world_size=world.size,
    )


def pictures_at_once(config: TrainingConfig, world: World) -> int:
    """How many pictures a process computes together. Raises UserError if they do not divide."""
    share = config.batch_size // world.size
    if share % config.accumulate:
        raise UserError(
            f"accumulate={config.accumulate} does not divide the {share} pictures of a process: "
            "change ACCUMULATE or BATCH_SIZE"
        )
    return share // config.accumulate


def uses_bfloat16(config: TrainingConfig, world: World) -> bool:
    """Whether matrix products run in bfloat16 (autocast)."""
    if config.precision == "auto":
        return world.device.type == "cuda" or (
            world.device.type == "cpu" and has_fast_bfloat16()
        )
    return config.precision == "bfloat16"
