"""The one training loop, shared by V1 and V2, so that comparing them compares models.

One integer counts progress: completed optimiser steps. Learning rate, data, noise and times are
pure functions of (seed, step, slot in the global batch), so that resuming is exact and the number
of processes does not matter.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from sparsefield import cli
from sparsefield.model.checkpoint import FORMAT, build_model, load_checkpoint, take_canvas
from sparsefield.model.field import ClosedForm
from sparsefield.train.config import TrainingConfig
from sparsefield.data import Batch, Data, TrainingBatches, open_as_configured, parse_pattern
from sparsefield.train.distributed import World, join_world
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import calibrate, samples_of
from sparsefield.model.precision import has_fast_bfloat16
from sparsefield.train.reporter import Reporter, announce
from sparsefield.train.runfolder import RunFolder
from sparsefield.train.pairs import Pair, Pairs, canvas_loss, slope_loss
from sparsefield.flow.path import draw_angles
from sparsefield.flow.sampling import noise_seed
from sparsefield.train.validation import Validation

log = logging.getLogger("sparsefield")

SD_FIELDS = 64
PATIENCE = 20  # non-finite steps in a row after which training gives up
# A run may be continued with other values of these; any other difference is refused.
FREE_ON_RESUME = {
    "epochs", "eval_every", "eval_pictures", "visualize_every", "save_every", "keep_last", "resume",
    "save_dir", "device", "num_workers", "log_file", "dry_run", "compile", "accumulate",
    "data_dir",
}
# What allocators and libraries say when memory is full, where it is no exception of its own.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED",
                 "std::bad_alloc")


# --- pure functions of the step ------------------------------------------------------------------


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then half a cosine to zero at `total` (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def averaging_decay(count: int, decay: float) -> float:
    """Decay of the moving average after `count` updates: short at first, so short runs work too."""
    return min(decay, (1 + count) / (10 + count))


# --- what a training is made of ------------------------------------------------------------------


class Progress:
    """How far training is: what must survive a restart besides weights and optimiser.

    The sums of an epoch stay on the device, so that no step waits for them.
    """

    def __init__(self, device: torch.device):
        self.step = 0
        self.best_mse = math.inf
        self.best_psnr = math.nan
        self.validation: dict[str, float] = {}  # the newest
        self.seconds = 0.0
        names = ("loss", "grad_norm", "steps", "skipped", "skipped_in_a_row")
        self.sums = {name: torch.zeros((), device=device) for name in names}

    def state_dict(self) -> dict:
        return {**vars(self), "sums": {name: float(sum_) for name, sum_ in self.sums.items()}}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state["sums"].items():
            self.sums[name].fill_(value)
        vars(self).update({**state, "sums": self.sums})

    def record(self, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Count a step; of a skipped one only that it was skipped."""
        taken = 1 - skipped
        self.sums["loss"] += loss.nan_to_num(0, 0, 0) * taken
        self.sums["grad_norm"] += norm.nan_to_num(0, 0, 0) * taken
        self.sums["steps"] += taken
        self.sums["skipped"] += skipped
        self.sums["skipped_in_a_row"] = (self.sums["skipped_in_a_row"] + 1) * skipped

    def close_epoch(self) -> dict[str, float]:
        """Means over the epoch, and the steps skipped since the start; the next epoch begins."""
        sums = {name: float(sum_) for name, sum_ in self.sums.items()}
        for name in ("loss", "grad_norm", "steps"):
            self.sums[name].zero_()
        steps = max(sums["steps"], 1)
        return {"loss": sums["loss"] / steps, "grad_norm": sums["grad_norm"] / steps,
                "skipped": int(sums["skipped"])}


class StopRequest:
    """Within it, SIGTERM, SIGHUP or Ctrl-C ask to stop after the current step; a second at once.

    Args:
        launched: by torchrun, which passes on signals that the rank has often got already: what
            follows within ECHO seconds is the same request. Its death is a request, too.
    """

    ECHO = 5.0

    def __init__(self, launched: bool = False):
        self.launcher = os.getppid() if launched else None
        self.asked_at: float | None = None

    def __enter__(self) -> StopRequest:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup: outlive the terminal
            numbers.append(signal.SIGHUP)
        self.former = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        orphaned = self.launcher is not None and os.getppid() != self.launcher
        return self.asked_at is not None or orphaned

    def _ask(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            log.info("stopping after this step (once more: at once)")
        elif self.launcher is None or now - self.asked_at > self.ECHO:
            raise KeyboardInterrupt


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms, the scan's A_log and D, attention widths do not.

    Every parameter is in exactly one group.
    """
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and not name.endswith("A_log")
        (decayed if is_matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay},
            {"params": free, "weight_decay": 0.0}]


def painted_steps(config: TrainingConfig, total: int) -> int:
    """How many steps, from the first, are for the canvas; the others are for the rest."""
    if not config.canvas_width or config.canvas_from is not None:
        return 0
    return round(config.canvas_first * total)


def model_arguments(config: TrainingConfig, model_class: type[nn.Module], data: Data) -> dict:
    """Constructor arguments: those settings whose names the model's classes take, and the data's."""
    names = {name for owner in model_class.__mro__ if owner is not nn.Module
             for name in inspect.signature(owner.__init__).parameters}
    chosen = {name: value for name, value in asdict(config).items() if name in names}
    return {**chosen, "channels": data.channels, "value_sd": value_sd(data),
            "max_frequency": min(data.height, data.width) / 2}


def value_sd(data: Data) -> float:
    """Sd of the values in [-1, 1] around 0, of at most SD_FIELDS training fields evenly spread."""
    indices = range(0, len(data.train), max(1, len(data.train) // SD_FIELDS))
    fields = (data.train.training_example(i, np.random.default_rng(i)) for i in indices)
    squares = [np.nanmean(field.astype(np.float64) ** 2) for field in fields]
    return round(float(np.sqrt(np.mean(squares))), 4) or 1.0


def uses_bfloat16(config: TrainingConfig, world: World) -> bool:
    """Whether matrix products run in bfloat16 (autocast)."""
    if config.precision == "auto":
        return world.device.type == "cuda" or world.device.type == "cpu" and has_fast_bfloat16()
    return config.precision == "bfloat16"


def resume(
    config: TrainingConfig,
    arguments: dict,
    data: Data,
    folder: RunFolder,
    persistent: dict,
    world: World,
) -> None:
    """Set everything persistent to where the newest checkpoint of the folder stands, if any.

    Raises:
        UserError: there is none and `resume` is "must", none can be read, or the newest was made
            with other settings or data.
    """
    if config.resume == "never" and world.is_first:
        folder.set_aside()
    checkpoint = world.from_first(folder.newest)
    if checkpoint is None:
        if config.resume == "must":
            raise UserError(f"resume=must, but {folder.path} holds no checkpoint to go on from")
        if world.is_first:
            if folder.best.exists() and not folder.records.exists():
                folder.set_aside()  # weights that came without their training: not ours to replace
            folder.rewind(-1)  # of a run that ended before its first checkpoint
        return
    refuse_contradictions(config, arguments, data, checkpoint, folder)
    try:
        for key, item in persistent.items():
            item.load_state_dict(checkpoint["resume"][key])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"the checkpoint in {folder.path} does not fit this version of the project "
            f"({str(error).splitlines()[0]}): go on with the version that wrote it, or give "
            "another SAVE_DIR"
        ) from error
    if world.is_first:
        folder.rewind(checkpoint["step"])
    log.info("going on from step %d (epoch %d)", checkpoint["step"], checkpoint["epoch"])
    before = checkpoint["config"]["epochs"]
    if before != config.epochs:
        log.info("EPOCHS was %d and is %d: from here on the learning rate follows the cosine of "
                 "a training over %d epochs", before, config.epochs, config.epochs)


def refuse_contradictions(
    config: TrainingConfig, arguments: dict, data: Data, checkpoint: dict, folder: RunFolder
) -> None:
    """Raises UserError naming every setting that differs from the checkpoint's and may not.

    A setting that did not exist when the checkpoint was written had its present default.
    """
    now = {**asdict(config), **arguments, "data": data.fingerprint}
    then = {**asdict(type(config)()), **checkpoint["config"], **checkpoint["model_args"],
            "data": checkpoint["data"]["fingerprint"]}
    different = [f"{key}={then.get(key)} (now {value})" for key, value in now.items()
                 if key not in FREE_ON_RESUME and then.get(key) != value]
    if different:
        raise UserError(
            f"{folder.path} holds a training with {', '.join(different)}: give its settings to go "
            "on, another SAVE_DIR to train anew, or RESUME=never to set the old one aside"
        )


def give_up_when_stuck(progress: Progress) -> None:
    """Raises UserError when PATIENCE steps in a row were not finite (looked at as often)."""
    if progress.step % PATIENCE == 0 and progress.sums["skipped_in_a_row"] >= PATIENCE:
        raise UserError(
            f"the loss was not finite for {PATIENCE} steps in a row, up to step {progress.step}: "
            "lower LR, or look for extreme values in the data; checkpoints are as they were"
        )


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: let the training alone decide what it means."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def stream(
    batches: TrainingBatches, first: int, end: int, num_workers: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of the steps first ... end - 1. Data processes that die are replaced.

    Raises:
        UserError: replacements died as well, before they delivered.
    """
    step, died_at = first, None
    while step < end:
        loader = iter(DataLoader(
            batches,
            batch_size=None,
            sampler=range(step, end),
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        ))
        if num_workers:  # PyTorch would raise anywhere in a step; here a death shows on waiting
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in loader:
                yield Batch(*(part.to(device, non_blocking=True) for part in batch))
                step += 1
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            if died_at == step:
                raise UserError(
                    "processes that prepare data keep dying: the same command goes on from the "
                    "last checkpoint; NUM_WORKERS=0 prepares data in the training process"
                ) from error
            died_at = step
            log.warning("WARNING: a process that prepares data died (out of memory?); others "
                        "take over, nothing is lost")


def explain(error: BaseException, config: TrainingConfig) -> str | None:
    """What a person can do about an error of memory or compiler; None for any other."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        any(words in text for words in OUT_OF_MEMORY)
    ):
        return (
            f"out of memory: raise ACCUMULATE (now {config.accumulate}), which gives the same "
            f"result in smaller parts, or lower BATCH_SIZE (now {config.batch_size}) or D_MODEL"
        )
    if config.compile and ("C++ compiler" in text or "C compiler" in text):
        return ("COMPILE=1 needs a C++ compiler and there is none: install one (Debian: apt "
                "install g++), or leave COMPILE out")
    return None


# --- the training --------------------------------------------------------------------------------


def train(
    config: TrainingConfig,
    model_class: type[nn.Module],
    name: str,
    initialise: Callable[[nn.Module], list[str]] | None = None,
) -> None:
    """Train a model, or go on with it, and write everything into `config.save_dir`.

    Args:
        name: how the files begin, "mamba_v2" or "mamba".
        initialise: changes the weights that a new training starts from, and says how in lines.
    Raises:
        UserError: settings, data or checkpoints that cannot be used, memory that does not suffice,
            or losses that stay non-finite.
    """
    config.check()
    world = join_world(config.device)
    try:
        cli.log_to(world.is_first, config.log_file if world.is_first else None)
    except OSError as error:
        raise UserError(f"log_file={config.log_file}: {error.strerror}") from error
    try:
        data = world.one_first(
            lambda: open_as_configured(asdict(config))
        )
        arguments = model_arguments(config, model_class, data)
        torch.manual_seed(config.seed)
        model = model_class(**arguments).to(world.device)
        announce(config, model, data, world)
        if config.dry_run:
            return
        folder = RunFolder(config.save_dir, name)
        with folder.locked() if world.is_first else nullcontext():
            with StopRequest(launched=world.size > 1) as stop:
                run(config, model, arguments, data, folder, world, stop, initialise)
    except (RuntimeError, MemoryError) as error:
        explanation = explain(error, config)
        if explanation is None:
            raise
        raise UserError(explanation) from error
    finally:
        world.close()


def run(
    config: TrainingConfig,
    model: nn.Module,
    arguments: dict,
    data: Data,
    folder: RunFolder,
    world: World,
    stop: StopRequest,
    initialise: Callable[[nn.Module], list[str]] | None,
) -> None:
    """Set up what training needs, go on where the folder's newest checkpoint stands, and loop."""
    pattern = parse_pattern(config.observe)
    per_epoch = max(1, len(data.train) // config.batch_size)
    total = config.epochs * per_epoch
    painted = painted_steps(config, total)
    batches = TrainingBatches(
        data.train,
        pattern,
        painted=painted,
        seed=config.seed,
        batch_size=config.batch_size,
        queries=(config.queries_min, config.queries_max),
        draw_angles=partial(draw_angles, zero_share=config.zero_share),
        rank=world.rank,
        world_size=world.size,
    )
    share = config.batch_size // world.size
    if share % config.accumulate:
        raise UserError(
            f"accumulate={config.accumulate} does not divide the {share} pictures of a process: "
            "change ACCUMULATE or BATCH_SIZE"
        )
    progress = Progress(world.device)
    averaged = AveragedModel(model, multi_avg_fn=lambda old, new, _: torch._foreach_lerp_(
        old, new, 1 - averaging_decay(progress.step, config.ema_decay)
    ))
    optimiser = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, 0.99), fused=True
    )
    persistent = {
        "model": model, "averaged": averaged, "optimiser": optimiser, "progress": progress
    }
    resume(config, arguments, data, folder, persistent, world)
    validation = Validation(
        data.val, pattern, config.eval_pictures, share // config.accumulate, world.device,
        (world.rank, world.size),
    )
    if progress.step >= total:
        log.info("nothing left to do: all %d epochs are done; raise EPOCHS to go on", config.epochs)
        add_calibration(folder, validation, world)
        return
    if progress.step == 0:
        lines = initialise(model) if initialise is not None else []
        if config.canvas_from is not None:
            lines.append(take_canvas(model, config.canvas_from))
        for line in lines:
            log.info(line)
        averaged.module.load_state_dict(model.state_dict())
    reporter = Reporter(config, validation, folder, world, progress, total, per_epoch)
    if config.compile:
        for part in filter(None, (model, model.canvas)):
            part.compile()
    amp = torch.autocast(world.device.type, torch.bfloat16, enabled=uses_bfloat16(config, world))

    def checkpoint() -> dict:
        return {
            "format": FORMAT,
            "model_class": type(model).__name__,
            "model_args": arguments,
            "weights": averaged.module.state_dict(),
            "data": data.describe(),
            "config": asdict(config),
            "step": progress.step,
            "epoch": progress.step // per_epoch,
            "metrics": progress.validation,
            "resume": {key: item.state_dict() for key, item in persistent.items()},
        }

    def validate() -> None:
        former = progress.best_mse, progress.best_psnr
        is_best = reporter.validate(averaged.module)
        if is_best and world.is_first and not folder.save_best(checkpoint()):
            progress.best_mse, progress.best_psnr = former  # what is on the disk

    def save(numbered: bool, is_last: bool) -> None:
        if world.is_first and not folder.save(checkpoint(), numbered, config.keep_last) and is_last:
            raise UserError(
                f"the state after step {progress.step} could not be saved: make {folder.path} "
                "writable; the same command then goes on from the checkpoint that is there"
            )

    pairs = Pairs(model, data.height, data.width, world.device)
    if progress.step == 0:
        validate()  # where training starts from: the prior, or nothing
    loader = stream(batches, progress.step, total, config.num_workers, world.device)
    agreed = torch.zeros(2)  # loss, and how many processes were asked to stop, at the last step
    model.train()
    while progress.step < total:
        reporter.waiting()
        batch = next(loader)
        reporter.working()
        paints = progress.step < painted
        done, steps = (progress.step, painted) if paints else (
            progress.step - painted, total - painted)
        rate = learning_rate(done, steps, config.warmup, config.lr)
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(noise_seed(config.seed, progress.step, world.rank))  # for dropout

        shared = torch.tensor([0.0, float(stop.asked)]).to(world.device)
        pair, loss_of = pairs(batch, with_draws=not paints), canvas_loss if paints else slope_loss
        for part in parts_of(batch, pair, config.accumulate):
            with amp:
                loss = loss_of(model, *part).mean() / config.accumulate
            loss.backward()
            shared[0] += loss.detach() / world.size
        world.average_gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimiser.found_inf = (~norm.isfinite()).float()  # the fused step leaves all as it is then
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        averaged.update_parameters(model)
        world.sum(shared)
        progress.record(shared[0], norm, optimiser.found_inf)
        reporter.step()

        give_up_when_stuck(progress)
        # Processes agree on the step before this one, so that none waits for this one's result.
        stopping = bool(agreed[1]) if world.size > 1 else stop.asked
        agreed = shared
        if progress.step % per_epoch == 0:
            epoch = progress.step // per_epoch
            is_end = progress.step == total
            reporter.epoch(rate)
            if epoch % config.eval_every == 0 or is_end:
                validate()
            if epoch % config.visualize_every == 0 or is_end:
                reporter.picture(averaged.module)
            if epoch % config.save_every == 0 or is_end:
                save(numbered=True, is_last=is_end)
            model.train()
        if stopping and progress.step < total:
            save(numbered=False, is_last=True)
            log.info("stopped after step %d; the same command goes on from here", progress.step)
            return
    add_calibration(folder, validation, world)
    reporter.finish()


def parts_of(batch: Batch, pair: Pair, count: int) -> Iterator[tuple[Batch, Pair]]:
    """A batch and its pair in parts of equally many fields."""
    def parts(tensors: tuple) -> Iterator[tuple]:
        return zip(*([None] * count if whole is None else whole.chunk(count) for whole in tensors))

    for own, form, z_0 in zip(parts(batch), parts(pair.form), pair.z_0.chunk(count)):
        yield Batch(*own), Pair(ClosedForm(*form), z_0)


def add_calibration(folder: RunFolder, validation: Validation, world: World) -> None:
    """Fit the spread of samples of the best weights, and keep it with them, if it is not there."""
    if not world.is_first or not folder.best.exists():
        return
    checkpoint = load_checkpoint(folder.best)
    if "calibration" in checkpoint:
        return
    model = build_model(checkpoint, world.device)
    calibration = calibrate(samples_of(model), validation.cases)
    log.info("calibration: %s", calibration.describe())
    folder.save_best({**checkpoint, "calibration": calibration._asdict()})
