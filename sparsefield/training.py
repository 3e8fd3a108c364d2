"""The one training loop, shared by V1 and V2, so that comparing them compares models.

One integer counts progress: completed optimiser steps. Learning rate, data, noise and times are
pure functions of (seed, step, slot in the global batch), so that resuming is exact and the number
of processes does not matter.
"""

from __future__ import annotations

import inspect
import logging
import math
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from sparsefield import cli, flow
from sparsefield.checkpoint import FORMAT
from sparsefield.config import TrainingConfig
from sparsefield.data import Batch, Data, TrainingBatches, open_data, parse_pattern
from sparsefield.distributed import World, join_world
from sparsefield.errors import UserError
from sparsefield.precision import has_fast_bfloat16
from sparsefield.reporter import Reporter, announce
from sparsefield.runfolder import RunFolder
from sparsefield.samplers import noise_seed
from sparsefield.validation import Validation

log = logging.getLogger("sparsefield")

PATIENCE = 20  # non-finite steps in a row after which training gives up
# A run may be continued with other values of these; any other difference is refused.
FREE_ON_RESUME = {
    "epochs", "eval_every", "eval_pictures", "visualize_every", "save_every", "keep_last", "resume",
    "save_dir", "device", "num_workers", "log_file", "dry_run", "compile", "accumulate",
}


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
    """Within it, SIGTERM or Ctrl-C ask to stop after the current step; a second one stops at once."""

    def __enter__(self) -> StopRequest:
        self.asked = False
        self.former = {number: signal.signal(number, self._ask)
                       for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info("stopping after this step (once more: at once)")


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


def model_arguments(config: TrainingConfig, model_class: type[nn.Module], data: Data) -> dict:
    """Constructor arguments: those settings whose names the model's classes take, and the data's."""
    names = {name for owner in model_class.__mro__ if owner is not nn.Module
             for name in inspect.signature(owner.__init__).parameters}
    chosen = {name: value for name, value in asdict(config).items() if name in names}
    return {**chosen, "channels": data.channels,
            "max_frequency": min(data.height, data.width) / 2}


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
    if config.resume == "never":
        if world.is_first:
            folder.set_aside()
        return
    checkpoint = world.from_first(folder.newest)
    if checkpoint is None:
        if config.resume == "must":
            raise UserError(f"resume=must, but {folder.path} holds no checkpoint to go on from")
        return
    refuse_contradictions(config, arguments, data, checkpoint, folder)
    for key, item in persistent.items():
        item.load_state_dict(checkpoint["resume"][key])
    if world.is_first:
        folder.rewind(checkpoint["step"])
    log.info("going on from step %d (epoch %d)", checkpoint["step"], checkpoint["epoch"])


def refuse_contradictions(
    config: TrainingConfig, arguments: dict, data: Data, checkpoint: dict, folder: RunFolder
) -> None:
    """Raises UserError naming every setting that differs from the checkpoint's and may not."""
    now = {**asdict(config), **arguments, "data": data.fingerprint}
    then = {**checkpoint["config"], **checkpoint["model_args"],
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the device's or the machine's way to say that memory is full."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


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
    cli.log_to(world.is_first, config.log_file if world.is_first else None)
    try:
        data = open_data(config.data, image_size=config.image_size, val=config.data_val)
        arguments = model_arguments(config, model_class, data)
        torch.manual_seed(config.seed)
        model = model_class(**arguments).to(world.device)
        announce(config, model, data, world)
        if config.dry_run:
            return
        folder = RunFolder(config.save_dir, name)
        with folder.locked() if world.is_first else nullcontext(), StopRequest() as stop:
            run(config, model, arguments, data, folder, world, stop, initialise)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"out of memory: lower BATCH_SIZE (now {config.batch_size}) or D_MODEL, or raise "
                f"ACCUMULATE (now {config.accumulate}), which gives the same result in smaller parts"
            ) from error
        if "DataLoader worker" in str(error):
            raise UserError(
                "a process that prepares data died: run the same command again to go on; "
                "NUM_WORKERS=0 prepares data in the training process"
            ) from error
        raise
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
    batches = TrainingBatches(
        data.train,
        pattern,
        seed=config.seed,
        batch_size=config.batch_size,
        queries=(config.queries_min, config.queries_max),
        draw_times=partial(flow.draw_times, zero_share=config.zero_share),
        rank=world.rank,
        world_size=world.size,
    )
    share = config.batch_size // world.size
    if share % config.accumulate:
        raise UserError(
            f"accumulate={config.accumulate} does not divide the {share} pictures of a process: "
            "change ACCUMULATE or BATCH_SIZE"
        )
    per_epoch = batches.steps_per_epoch
    total = config.epochs * per_epoch
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
    if progress.step >= total:
        log.info("nothing left to do: all %d epochs are done; raise EPOCHS to go on", config.epochs)
        return
    if initialise is not None and progress.step == 0:
        for line in initialise(model):
            log.info(line)
        averaged.module.load_state_dict(model.state_dict())
    validation = Validation(
        data.val, pattern, config.eval_pictures, share, world.device, (world.rank, world.size)
    )
    reporter = Reporter(config, validation, folder, world, progress, total, per_epoch)
    forward = world.wrap(model)
    if config.compile:
        forward = torch.compile(forward)
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
            "metrics": reporter.last_validation,
            "resume": {key: item.state_dict() for key, item in persistent.items()},
        }

    def validate() -> None:
        if reporter.validate(averaged.module) and world.is_first:
            folder.save_best(checkpoint())

    if progress.step == 0:
        validate()  # where training starts from: the prior, or nothing
    loader = iter(DataLoader(
        batches,
        batch_size=None,
        sampler=range(progress.step, total),
        num_workers=config.num_workers,
        pin_memory=world.device.type == "cuda",
        persistent_workers=False,
    ))
    model.train()
    while progress.step < total:
        reporter.waiting()
        batch = Batch(*(part.to(world.device, non_blocking=True) for part in next(loader)))
        reporter.working()
        rate = learning_rate(progress.step, total, config.warmup, config.lr)
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(noise_seed(config.seed, progress.step, world.rank))  # for dropout

        shared = torch.tensor([0.0, float(stop.asked)]).to(world.device)
        for k, part in enumerate(zip(*(whole.chunk(config.accumulate) for whole in batch))):
            is_last = k == config.accumulate - 1
            with nullcontext() if is_last or world.size == 1 else forward.no_sync(), amp:
                loss = flow.velocity_loss(model, Batch(*part), forward).mean() / config.accumulate
            loss.backward()
            shared[0] += loss.detach() / world.size
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
        stopping = world.size == 1 and stop.asked or world.size > 1 and bool(shared[1])
        if progress.step % per_epoch == 0:
            epoch = progress.step // per_epoch
            is_end = progress.step == total
            reporter.epoch(rate)
            if epoch % config.eval_every == 0 or is_end:
                validate()
            if epoch % config.visualize_every == 0 or is_end:
                reporter.picture(averaged.module)
            if world.is_first and (epoch % config.save_every == 0 or is_end):
                folder.save(checkpoint(), numbered=True, keep=config.keep_last)
            model.train()
        if stopping:
            if world.is_first:
                folder.save(checkpoint(), numbered=False, keep=config.keep_last)
            log.info("stopped after step %d; the same command goes on from here", progress.step)
            return
    reporter.finish()
