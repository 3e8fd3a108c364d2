"""Settings of a training, shared by flags, runners and checkpoints, and the model they make."""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from sparsefield.data import Data, frozen_case, parse_pattern
from sparsefield.data.batches import count_symmetries
from sparsefield.data.files import are_one
from sparsefield.data.scale import is_standard
from sparsefield.errors import UserError, require_seed
from sparsefield.model.bundled import BUNDLED, PACKAGE, V2, find_bundled
from sparsefield.model.bundled import NAMES as BUNDLED_NAMES
from sparsefield.model.checkpoint import load_checkpoint
from sparsefield.model.transfer import OF_TRAINING
from sparsefield.train.losses import time_scale

# Settings of where, how fast and how loudly a training runs: what is learnt is the same.
BESIDE_LEARNING = frozenset({
    "data_dir", "accumulate", "eval_every", "eval_pictures", "visualize_every", "save_every",
    "keep_last", "resume", "save_dir", "device", "compile", "num_workers", "log_file", "dry_run",
})
PATHS_OF_DATA = frozenset({"data", "data_val", "data_test"})  # their fingerprint says more
MAY_CHANGE = BESIDE_LEARNING | {"epochs", "data_val", "data_test"}  # when a training goes on
SD_FIELDS = 64  # from which the sd of the values is taken


@dataclass
class TrainingConfig:
    """Settings that all models share; a training goes on with others in MAY_CHANGE alone."""

    given: ClassVar[frozenset[str]] = frozenset()  # what the command line gave, be it a default

    data: str = "photos"
    """What to learn from: photos, terrain or tracer (embedded), cifar10, a folder of pictures,
    an .nc (NetCDF), .npz or .npy."""
    data_val: str | None = None
    """Separate validation data, when `data` holds training fields only."""
    data_test: str | None = None
    """Separate test data, likewise."""
    data_dir: str | None = None
    """Where the archives of cifar10 are, or go."""
    data_channels: Literal[1, 3] | None = None
    """Folders that mix grey and colour: read all pictures as 1 or 3 channels."""
    split_by: Literal["folder"] | None = None
    """folder: every sub-folder of a folder of pictures is a scene, and goes whole to training,
    validation or test. Default: each picture on its own."""
    variables: tuple[str, ...] | None = None
    """NetCDF: which variables are the channels; not needed where there is one field."""
    value_range: tuple[float, ...] | None = None
    """Arrays: low high, the values that become -1 and 1; or such a pair for each channel."""
    standardise: bool = False
    """Train for any quantity: each field is standardised by the mean and sd of its measurements,
    and turned, mirrored and negated at random. The model then reads numbers in any unit."""
    units: str | None = None
    """Arrays: units for reports and colour bars, one, or one for each channel with commas."""
    image_size: int = 32
    """Side in pixels of the pictures, where the data does not fix it."""
    time: int = 1
    """Frames in a training sequence, of data whose fields follow each other in time (tracer, .nc,
    .npz, .npy); 1: single fields."""
    time_start: Literal["frame", "spacetime"] = "frame"
    """What a sequence starts from: kriging of each frame alone, or of all in space and time, which
    is better, but slow where a sequence holds more than 500 measurements in all."""
    time_reader: str = "gru"
    """What reads the frames along time in every cell of the grid U-Nets: gru or mamba."""
    observe: str = "random:0.2"
    """Which points are observed."""
    noise: str = "0"
    """Sd of the noise added to measurements, as a share of the sd of the measured values: 0.1;
    0.05-0.3, drawn for every field; or 0-0.3, where half of the fields have none. Kriging is given
    this sd; the target is the field without noise."""
    epochs: int = 1000
    """Passes over the data; the schedule of the learning rate spans all of them."""
    batch_size: int = 64
    """Pictures per optimiser step, over all processes."""
    accumulate: int = 1
    """Parts in which each batch is computed, one after the other, to save memory."""
    queries_min: int = 128
    """Fewest query points in a step."""
    queries_max: int = 512
    """Most query points in a step."""
    optimiser: Literal["muon", "adamw"] = "muon"
    """Optimiser of the inner weight matrices; all other parameters have AdamW."""
    lr: float = 1e-3
    """Peak learning rate of both optimisers."""
    warmup: int = 200
    """Steps over which the learning rate rises to its peak, at most a fifth of a stage; a cosine
    then takes it to zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are the ones evaluated and kept."""
    zero_share: float = 0.25
    """Share of training angles that are exactly 0, where one evaluation gives the mean."""
    prior: Literal["fitted", "none"] = "fitted"
    """What the flow starts from: the Gaussian posterior of the field, or independent noise."""
    unet_width: int = 48
    """Width of the grid U-Nets, which improve mean and sd that the flow starts from; 0: none."""
    unet_dropout: float = 0.1
    """Share of their channels that training drops, in [0, 1)."""
    flow_unet_width: int = 48
    """Width of the grid U-Net that predicts the flow's velocity before the tokens do; 0: none."""
    start_share: float = 0.5
    """Share of the steps in which the grid U-Nets learn; in the rest the flow does (stages "start"
    and "flow")."""
    start_from: str | None = None
    """Checkpoint (bundled: that of the project) whose grid U-Nets a new training takes; all steps
    are then for the flow."""
    init_from: str | None = None
    """Checkpoint (bundled: that of the project) whose weights a new training starts from, to learn
    your fields or patterns on top. Sizes that are not set are those of the checkpoint; its fields
    may have more channels than yours (colours, and you have one quantity)."""
    neighbours: int = 24
    """Nearest observations that each query token holds."""
    order: str = "per_layer"
    """Scan order of the tokens: per_layer (another curve for every layer), hilbert,
    hilbert_transposed, raster or concat."""
    eval_every: int = 10
    """Epochs between validations."""
    eval_pictures: int = 64
    """Number of validation pictures."""
    visualize_every: int = 50
    """Epochs between pictures."""
    save_every: int = 10
    """Epochs between checkpoints."""
    keep_last: int = 5
    """Numbered checkpoints kept; older ones are deleted."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue from the newest checkpoint: if there is one, never, or fail without one."""
    save_dir: str = "checkpoints"
    """Folder for checkpoints, pictures and metrics."""
    seed: int = 0
    """Seed of weights, data order, observations and noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; auto is bfloat16 on CUDA and on CPUs with instructions for it.
    Scans, norms and kriging stay float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    num_workers: int = 0
    """Processes that prepare batches; 0 prepares them in between steps."""
    log_file: str | None = None
    """Also append the log to this file."""
    dry_run: bool = False
    """Print the resolved settings, refuse what a training would refuse, and stop."""

    def check(self) -> None:
        """Raises UserError for a value that cannot be trained with, with the reason."""
        require_seed(self.seed)
        rules = (
            (("epochs", "batch_size", "accumulate", "queries_min", "eval_every", "eval_pictures",
              "visualize_every", "save_every", "keep_last", "image_size", "time"),
             lambda value: value >= 1, "must be at least 1"),
            (("lr",), lambda value: 0 < value < math.inf, "must be above 0, and finite"),
            (("grad_clip",), lambda value: value > 0, "must be above 0 (inf: never)"),
            (("warmup", "num_workers", "weight_decay"), lambda value: 0 <= value < math.inf,
             "must be 0 or more, and finite"),
            (("queries_max",), lambda value: value >= self.queries_min,
             f"is below queries_min={self.queries_min}"),
            (("ema_decay",), lambda value: 0 <= value < 1, "give a number in [0, 1)"),
            (("start_share", "zero_share"), lambda value: 0 <= value <= 1,
             "give a share in [0, 1]"),
        )
        for names, is_fine, words in rules:
            for name in names:
                if not is_fine(getattr(self, name)):
                    raise UserError(f"{name}={getattr(self, name)}: {words}")
        if self.standardise and self.time > 1:
            raise UserError("standardise: frames would be standardised each on its own; set TIME=1")
        if self.time > 1 and parse_pattern(self.observe, self.noise).noise[1] > 0:
            raise UserError(f"noise={self.noise}: sequences are learnt without; set TIME=1")
        log = self.log_file
        for name in ("data", "data_val", "data_test", "observe", "init_from", "start_from"):
            given = getattr(self, name)
            is_there = log and given and os.path.exists(log) and os.path.exists(given)
            if is_there and os.path.samefile(log, given):
                raise UserError(f"log_file={log} is the file of {name}: name another log")
        for name in ("init_from", "start_from"):
            given = getattr(self, name)
            if given not in (None, *BUNDLED_NAMES) and (
                    find_bundled(given).resolve().parent == Path(self.save_dir).resolve()):
                instead = f", or {name.upper()}={BUNDLED} for the bundled weights" if are_one(
                    self.save_dir, str(PACKAGE.parent / V2.partition("/")[0])) else ""
                raise UserError(f"{name}={given} lies in save_dir={self.save_dir}, where this "
                                f"training puts its own: set another SAVE_DIR{instead}")


def differ(value: object, other: object) -> bool:
    """Whether two values of a setting mean different things; a path may be spelled in two ways."""
    are_texts = isinstance(value, str) and isinstance(other, str)
    return value != other and not (are_texts and are_one(str(value), str(other)))


def model_arguments(config: TrainingConfig, model_class: type[nn.Module], data: Data) -> dict:
    """Constructor arguments: the settings whose names the model's classes take, and the data's."""
    names = _argument_names(model_class)
    is_symmetric = data.train.is_symmetric and parse_pattern(config.observe).is_symmetric
    return {
        **{name: value for name, value in asdict(config).items() if name in names},
        "channels": data.channels,
        "value_sd": _value_sd(data, config.observe),
        "time_scale": time_scale(data.train, parse_pattern(config.observe))
        if config.time > 1 and config.time_start == "spacetime" else 0.0,
        "symmetries": count_symmetries(data.height, data.width) if is_symmetric else 1,
        "max_frequency": max(data.height, data.width) / 2,
    }


def sized_as_init_from(config: TrainingConfig, model_class: type[nn.Module]) -> TrainingConfig:
    """Settings with the sizes of `init_from` where none were set. Raises UserError if it cannot be
    read; a size that was set and differs is refused when the weights are taken."""
    if config.init_from is None:
        return config
    theirs = load_checkpoint(config.init_from)["model_args"]
    own = _argument_names(model_class) - OF_TRAINING
    return replace(config, **{
        name: theirs[name] for name, value in asdict(config).items()
        if name in own and name in theirs and name not in config.given
        and value == getattr(type(config), name)
    })


def _argument_names(model_class: type[nn.Module]) -> set[str]:
    return {name for owner in model_class.__mro__ if owner is not nn.Module
            for name in inspect.signature(owner.__init__).parameters}


def _value_sd(data: Data, observe: str) -> float:
    """Sd around 0 of the values as the model sees them, of some training fields evenly spread."""
    train, pattern = data.train, parse_pattern(observe)
    indices = range(0, len(train), max(1, len(train) // SD_FIELDS))
    fields = (frozen_case(train, i, pattern, eval_seed=0)["truth"] if is_standard(train)
              else train.training_example(i, np.random.default_rng(i)) for i in indices)
    squares = [np.nanmean(field.astype(np.float64) ** 2) for field in fields]
    return round(float(np.sqrt(np.mean(squares))), 4) or 1.0
