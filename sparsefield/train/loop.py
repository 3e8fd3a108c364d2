"""The one training loop, shared by V1 and V2, so that comparing them compares models.

One integer counts progress: completed optimiser steps. Learning rate, data, noise, dropout and
times are pure functions of (seed, step, slot in the global batch), so that resuming is exact and
the number of processes does not matter.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from sparsefield import cli
from sparsefield.data import Batch, Data, TrainingBatches, open_as_configured, parse_pattern
from sparsefield.device import has_fast_bfloat16
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import calibrate, describe
from sparsefield.flow.path import draw_angles
from sparsefield.hashed import noise_seed, seeds_of
from sparsefield.model.checkpoint import FORMAT, build_model, load_checkpoint
from sparsefield.model.field import FieldModel
from sparsefield.model.transfer import take_start, take_weights
from sparsefield.train import config as settings
from sparsefield.train.config import TrainingConfig
from sparsefield.train.losses import ClosedForms
from sparsefield.train.optimise import Optimiser, SlotDropout, Stages, averaged, learning_rate
from sparsefield.train.processes import StopRequest, World, join_world, stream
from sparsefield.train.report import LOSSES, Progress, Reporter, Validation, announce
from sparsefield.train.run import RunFolder

ENOUGH_STEPS = 300  # below, gains over kriging do not show
SAVED_SECONDS = 600  # after which a long epoch is saved, should the machine die

log = logging.getLogger("sparsefield")

Initialise = Callable[[FieldModel], list[str]]


def train(
    config: TrainingConfig, model_class: type[FieldModel], name: str,
    initialise: Initialise | None = None,
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
        config = settings.sized_as_init_from(config, model_class)
        data = world.one_first(lambda: open_as_configured(asdict(config)))
        arguments = settings.model_arguments(config, model_class, data)
        torch.manual_seed(config.seed)
        model = model_class(**arguments).to(world.device)
        announce(config, model, data, world)
        training = Training(config, model, arguments, data, RunFolder(config.save_dir, name), world,
                            initialise)
        if config.dry_run:
            training.rehearse()
            return
        held = training.folder.locked() if world.is_first else nullcontext()
        with held, StopRequest(launched=world.size > 1) as stop:
            training.run(stop)
    except (RuntimeError, MemoryError) as error:
        explanation = explain(error, config)
        if explanation is None:
            raise
        raise UserError(explanation) from error
    finally:
        world.close()


class Training:
    """A model, made with `arguments`, with what trains it, and the folder that it is kept in.

    Raises:
        UserError: a batch that does not divide.
    """

    def __init__(
        self, config: TrainingConfig, model: FieldModel, arguments: dict, data: Data,
        folder: RunFolder, world: World, initialise: Initialise | None,
    ):
        self.config, self.model, self.arguments, self.data = config, model, arguments, data
        self.folder, self.world, self.initialise = folder, world, initialise
        self.per_epoch = max(1, len(data.train) // config.batch_size)
        self.total = config.epochs * self.per_epoch
        self.saved = time.monotonic()  # when a checkpoint was written
        self.stages = Stages.of(config, self.total)
        self.batches = TrainingBatches(
            data.train, parse_pattern(config.observe, config.noise), seed=config.seed,
            batch_size=config.batch_size, queries=(config.queries_min, config.queries_max),
            draw_angles=partial(draw_angles, zero_share=config.zero_share),
            starting=self.stages.start, sees_whole=model.has_flow_unet,
            rank=world.rank, world_size=world.size,
        )
        share = len(self.batches.own_slots)
        self.at_once = share // config.accumulate
        if share % (config.accumulate * self.batches.frames):
            raise UserError(f"accumulate={config.accumulate} does not divide the {share} pictures "
                            f"of a process{' into sequences' if config.time > 1 else ''}: change "
                            "ACCUMULATE or BATCH_SIZE")
        if self.total < ENOUGH_STEPS and config.init_from is None:
            log.info("WARNING: too few steps to learn: %d epochs are %d steps, give at least %d "
                     "(EPOCHS=%d, or a smaller BATCH_SIZE)", config.epochs, self.total,
                     ENOUGH_STEPS, math.ceil(ENOUGH_STEPS / self.per_epoch))

    @property
    def is_done(self) -> bool:
        return self.progress.step >= self.total

    # --- from the first step to the last ----------------------------------------------------------

    def rehearse(self) -> None:
        """Raises UserError for what a start would refuse; writes nothing."""
        self.batches[0]
        checkpoint = self.newest()
        if checkpoint is None:
            self.take_weights()
        else:
            self.refuse_contradictions(checkpoint)

    def run(self, stop: StopRequest) -> None:
        """All steps that are left, unless `stop` asks for an end, and the calibration."""
        self.restore()
        if self.is_done:
            log.info("nothing left to do: all %d epochs are done; raise EPOCHS to go on",
                     self.config.epochs)
            self.add_calibration()
            return
        self.prepare()
        self.loop(stop)
        if self.is_done:
            self.reporter.finish(self.add_calibration())

    def restore(self) -> None:
        """Go to where the newest checkpoint stands, if there is one."""
        config, world = self.config, self.world
        self.progress = Progress(world.device)
        self.averaged = averaged(self.model, config.ema_decay, lambda: self.progress.step)
        self.optimiser = Optimiser(self.model, config.optimiser, config.lr, config.weight_decay)
        self.persistent = {"model": self.model, "averaged": self.averaged,
                           "optimiser": self.optimiser, "progress": self.progress}
        self.go_on()
        if 0 <= self.progress.start_ends <= self.progress.step:
            # A start that is over stays so, or it would change under the flow that has learnt on it
            self.stages = self.stages._replace(start=self.progress.start_ends)
        self.progress.start_ends = self.batches.starting = self.stages.start
        self.validation = Validation(
            self.data.val, self.batches.pattern, config.eval_pictures, self.at_once, world.device,
            (world.rank, world.size),
        )
        progress, count = self.progress, self.validation.count
        has_best = world.from_first(lambda: self.folder.has_weights)
        if math.isfinite(progress.best_loss) and not (has_best and progress.best_of == count):
            progress.best_loss, progress.best, progress.before = math.inf, {}, {}
            log.info("the best weights so far are not there, or were found on other validation "
                     "pictures: best is reset")
        progress.best_of = count

    def go_on(self) -> None:
        """Set all that is persistent to where the newest checkpoint of the folder stands, if any.
        Raises UserError as `newest`, and for one made with other settings, data or code."""
        folder, is_first = self.folder, self.world.is_first
        if self.config.resume == "never" and is_first:
            folder.set_aside()
        checkpoint = self.world.from_first(self.newest)
        if checkpoint is None:
            if is_first:
                if folder.has_weights and not folder.records.exists():
                    folder.set_aside()  # weights that came without their training: not ours
                folder.rewind(-1)  # of a run that ended before its first checkpoint
            return
        self.refuse_contradictions(checkpoint)
        try:
            for key, item in self.persistent.items():
                item.load_state_dict(checkpoint["resume"][key])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint in {folder.path} does not fit this version of the project "
                f"({str(error).splitlines()[0]}): go on with the version that wrote it, or give "
                "another SAVE_DIR") from error
        if is_first:
            folder.rewind(checkpoint["step"])
        log.info("going on from step %d (epoch %d)", checkpoint["step"], checkpoint["epoch"])
        before = checkpoint["config"]["epochs"]
        if before != self.config.epochs:
            log.info("EPOCHS was %d and is %d: parts of the training that are over stay so, and "
                     "the learning rate follows the cosine of what is left", before,
                     self.config.epochs)

    def newest(self) -> dict | None:
        """The checkpoint that the training goes on from, if any. Raises UserError if none can be
        read, or there is none and `resume` is "must"."""
        checkpoint = None if self.config.resume == "never" else self.folder.newest()
        if checkpoint is None and self.config.resume == "must":
            raise UserError(f"resume=must, but {self.folder.path} holds no checkpoint to go on "
                            "from")
        return checkpoint

    def refuse_contradictions(self, checkpoint: dict) -> None:
        """Raises UserError naming every setting that differs from the checkpoint's and may not. One
        that did not exist when it was written had its present default."""
        now = {**asdict(self.config), **self.arguments, "data": self.data.fingerprint}
        then = {**asdict(type(self.config)()), **checkpoint["config"], **checkpoint["model_args"],
                "data": checkpoint["data"]["fingerprint"]}
        different = [f"{key}={then.get(key)} (now {value})" for key, value in now.items()
                     if key not in settings.MAY_CHANGE and settings.differ(then.get(key), value)]
        if different:
            raise UserError(
                f"{self.folder.path} holds a training with {', '.join(different)}: give its "
                "settings to go on, another SAVE_DIR for a new one, or RESUME=never to set the old "
                "one aside")

    def take_weights(self) -> None:
        """Weights that a new training starts from, as the settings say, told in the log."""
        lines = []
        if self.config.init_from is not None:
            lines.append(take_weights(self.model, self.arguments, self.config.init_from))
        if self.initialise is not None:
            lines += self.initialise(self.model)
        if self.config.start_from is not None:
            lines.append(take_start(self.model, self.config.start_from))
        for line in lines:
            log.info(line)

    def prepare(self) -> None:
        """What only a training that takes steps needs."""
        device = self.world.device
        if self.progress.step == 0:
            self.take_weights()
            self.averaged.module.load_state_dict(self.model.state_dict())
        log.info("preparing: kriging of %d validation pictures, compilation; up to a minute",
                 self.validation.count)
        self.reporter = Reporter(self.config, self.validation, self.folder, self.world,
                                 self.progress, self.stages, self.per_epoch)
        self.forms = ClosedForms(self.model, self.data.height, self.data.width, device)
        self.dropout = SlotDropout(self.model)
        if self.config.compile:
            for part in filter(None, (self.model, self.model.unet)):
                part.compile()
        is_fast = device.type == "cuda" or (device.type == "cpu" and has_fast_bfloat16())
        in_bfloat16 = {"auto": is_fast, "bfloat16": True, "float32": False}[self.config.precision]
        self.amp = torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16)
        if self.progress.step == 0:
            self.validate()  # where training starts from: the prior, or nothing

    def loop(self, stop: StopRequest) -> None:
        """Steps until all are done, or one after which `stop` asks for an end: then save, too."""
        loader = stream(self.batches, self.progress.step, self.total, self.config.num_workers,
                        self.world.device)
        agreed = torch.zeros(2)  # loss, and how many processes were asked to stop, a step before
        self.begin_to_learn()
        while not self.is_done:
            started = time.perf_counter()
            batch = next(loader)
            came = time.perf_counter()
            shared = self.step(batch, stop.asked)
            self.reporter.step(came - started, time.perf_counter() - came)
            # Processes agree on the step before this one, so that none waits for this one's result.
            stopping = bool(agreed[1]) if self.world.size > 1 else stop.asked
            agreed = shared
            if self.progress.step % self.per_epoch == 0 or self.progress.step == self.stages.start:
                self.end_epoch()
            elif time.monotonic() - self.saved >= SAVED_SECONDS:
                self.save(numbered=False, must=False)
            if stopping and not self.is_done:
                self.save(numbered=False, must=True)
                log.info("stopped after step %d; the same command goes on from here",
                         self.progress.step)
                return

    def begin_to_learn(self) -> None:
        """Put the model into training mode, but what is frozen: it answers as in use."""
        self.model.train()
        if self.stages.name(self.progress.step) == "flow" and self.model.unet is not None:
            self.model.unet.shift.eval()
            self.model.unet.scale.eval()

    # --- one step ---------------------------------------------------------------------------------

    def step(self, batch: Batch, asked_to_stop: bool) -> Tensor:
        """One step of the optimiser; (2,) over all processes: the loss, and how many were asked to
        stop before it."""
        first, end = self.stages.around(self.progress.step)
        self.optimiser.rate = learning_rate(self.progress.step - first, end - first,
                                            self.config.warmup, self.config.lr)
        shared = torch.tensor([0.0, float(asked_to_stop)]).to(self.world.device)
        shared[0] += self.backward(batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        skipped = ~norm.isfinite()  # decided on the device, so that no step waits for it
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(skipped, 0)
        self.optimiser.step()
        for parameter, was in zip(self.model.parameters(), before, strict=True):
            parameter.data.copy_(was.where(skipped, parameter.data))  # moments move, weights not
        self.progress.step += 1
        self.averaged.update_parameters(self.model)
        self.world.sum(shared)
        self.progress.record(shared[0], norm, skipped.float())
        return shared

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of a batch, part by part; this process's share of the mean loss."""
        stage = self.stages.name(self.progress.step)
        known = self.forms(batch, with_draws=stage == "flow")
        total = torch.zeros((), device=self.world.device)
        # What the model draws for a field follows from seed, step and slot alone.
        seed = noise_seed(self.config.seed, self.progress.step)
        seeds = seeds_of(seed, self.batches.own_slots, self.world.device)
        torch.manual_seed(seed)  # should a model draw anything besides dropout
        for k in range(self.config.accumulate):
            rows = slice(k * self.at_once, (k + 1) * self.at_once)
            self.dropout.seed(seeds[rows])
            with self.amp:
                loss = LOSSES[stage](self.model, batch.part(rows), known.part(rows)).mean()
                loss = loss / self.config.accumulate
            loss.backward()
            total += loss.detach() / self.world.size
        self.world.average_gradients(self.model)
        return total

    # --- between epochs ---------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Report, and whatever is due: validation, pictures, a checkpoint. Also where a stage ends
        within an epoch: no loss is the mean of two kinds."""
        step, config = self.progress.step, self.config

        def is_due(epochs: int) -> bool:
            return self.is_done or step % (epochs * self.per_epoch) == 0

        self.reporter.epoch(self.optimiser.rate)
        if is_due(config.eval_every) or step == self.stages.start:
            self.validate()
        if is_due(config.visualize_every):
            self.reporter.picture(self.averaged.module, self.data)
        if is_due(config.save_every):
            self.save(numbered=True, must=self.is_done)
        self.begin_to_learn()

    def validate(self) -> None:
        """Evaluate the averaged weights, and keep them if they are the best so far."""
        progress = self.progress
        before = progress.best_loss, progress.best
        is_best = self.reporter.validate(self.averaged.module)
        if is_best and self.world.is_first and not self.folder.save_best(self.checkpoint()):
            progress.best_loss, progress.best = before  # what is on the disk

    def save(self, numbered: bool, must: bool) -> None:
        """Write a checkpoint. Raises UserError if the disk does not take one that `must` be."""
        self.saved = time.monotonic()
        if not self.world.is_first:
            return
        if not self.folder.save(self.checkpoint(), numbered, self.config.keep_last) and must:
            raise UserError(f"the state after step {self.progress.step} could not be saved: make "
                            f"{self.folder.path} writable; the same command then goes on from the "
                            "checkpoint that is there")

    def checkpoint(self) -> dict:
        """See sparsefield.model.checkpoint."""
        return {
            "format": FORMAT, "model_class": type(self.model).__name__,
            "model_args": self.arguments, "weights": self.averaged.module.state_dict(),
            "data": self.data.describe(), "config": asdict(self.config),
            "step": self.progress.step, "epoch": self.progress.step // self.per_epoch,
            "stage": self.stages.name(max(0, self.progress.step - 1)),
            "metrics": self.progress.validation, "learnt": self.progress.learnt,
            "resume": {key: item.state_dict() for key, item in self.persistent.items()},
        }

    def add_calibration(self) -> dict | None:
        """Fit the spread of samples of the best weights, if it is not there, and keep it there."""
        if not self.world.is_first or not self.folder.best.exists():
            return None
        checkpoint = load_checkpoint(self.folder.best)
        if "calibration" in checkpoint:
            return None
        model = build_model(checkpoint, self.world.device)
        most = self.validation.count if self.config.standardise else None  # of many kinds
        calibration = calibrate(model, self.validation.every, most)
        log.info("calibration: %s", describe(calibration))
        self.folder.save_best({**checkpoint, "calibration": calibration})
        return calibration


def explain(error: BaseException, config: TrainingConfig) -> str | None:
    """What a person can do about an error of memory or compiler; None for any other."""
    if cli.is_out_of_memory(error):
        return (f"out of memory: raise ACCUMULATE (now {config.accumulate}), which gives the same "
                f"result in smaller parts, or lower BATCH_SIZE (now {config.batch_size}) or "
                "D_MODEL")
    if config.compile and any(f"{name} compiler" in str(error) for name in ("C++", "C")):
        return ("COMPILE=1 needs a C++ compiler and there is none: install one (Debian: apt "
                "install g++), or leave COMPILE out")
    return None
