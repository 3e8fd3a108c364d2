"""How a training fares: how far it is, its validation, and what a person sees of it."""

from __future__ import annotations

import json
import logging
import math
import platform
import resource
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sparsefield.data import Batch, Data, Pattern, Split
from sparsefield.data.scale import frames_of
from sparsefield.errors import UserError
from sparsefield.evaluate import metrics, plots
from sparsefield.evaluate.calibration import METHOD, describe, pool
from sparsefield.evaluate.cases import Cases, evaluating, spread_over
from sparsefield.flow.path import END
from sparsefield.gaussian.kriging import SINGLE_POINTS
from sparsefield.model.checkpoint import write_atomically
from sparsefield.model.field import TIME_STARTS, FieldModel, State, fitted_form, spacetime_form
from sparsefield.place import Domain, Observed
from sparsefield.scan import describe_backend
from sparsefield.train.config import TrainingConfig
from sparsefield.train.losses import ClosedForms, Known, start_loss, velocity_loss
from sparsefield.train.optimise import Stages
from sparsefield.train.page import training_page
from sparsefield.train.processes import World
from sparsefield.train.run import RunFolder

log = logging.getLogger("sparsefield")

PICTURES_SHOWN = 4
DRAWS = 10  # of each, for a rank histogram: more would cost a quick training 1 % of its time
EVAL_SEED = 0
TOLD_SECONDS = 60  # after which a line tells how far a long epoch is, where no terminal shows a bar
SHOWN_BASELINES = ("constant mean", "linear", "kriging, one kernel", "kriging, fitted")
MEAN = {"method": "mean"}  # how a posterior mean is computed
LOSSES = {"start": start_loss, "flow": velocity_loss}  # of the stages
PATIENCE = 20  # non-finite steps in a row after which training gives up


def announce(config: TrainingConfig, model: FieldModel, data: Data, world: World) -> None:
    """Log what is about to be trained, on what, with what."""
    count = sum(p.numel() for p in model.parameters())
    log.info("settings: %s", json.dumps(asdict(config)))
    log.info("model: %s, %s parameters", type(model).__name__, f"{count:,}")
    log.info("data: %s, %d training / %d validation / %d test fields of %d x %d x %d",
             data.name, len(data.train), len(data.val), len(data.test),
             data.height, data.width, data.channels)
    log.info("machine: %s, %d process(es), %d threads each, torch %s, Python %s, scan: %s",
             world.device, world.size, torch.get_num_threads(), torch.__version__,
             platform.python_version(), describe_backend(world.device))


class Progress:
    """How far training is: what must survive a restart besides weights and optimiser.

    The sums of an epoch stay on the device, so that no step waits for them.
    """

    def __init__(self, device: torch.device):
        self.step = 0
        self.best_loss = math.inf  # of the stage that the training is in
        self.best: dict[str, float] = {}  # its validation
        self.best_of = 0  # validation pictures
        self.best_stage = ""
        self.before: dict[str, dict[str, float]] = {}  # validations before a stage's first step
        self.learnt = True  # whether the best weights are better than those
        self.validation: dict[str, float] = {}  # the newest
        self.seconds = 0.0
        self.start_ends = -1  # the last step of stage "start", as last planned
        names = ("loss", "grad_norm", "steps", "skipped", "skipped_in_a_row")
        self.sums = {name: torch.zeros((), device=device) for name in names}

    def state_dict(self) -> dict:
        return {**vars(self), "sums": {name: float(sum_) for name, sum_ in self.sums.items()}}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state["sums"].items():
            self.sums[name].fill_(value)
        vars(self).update({**state, "sums": self.sums})

    def note_validation(self, numbers: dict[str, float], stage: str, begins: bool) -> bool:
        """Whether a validation has the lowest loss so far of its stage. One that `begins` is of
        weights that the stage has not trained: kept only where nothing was trained before."""
        self.validation = numbers
        if begins:
            self.before[stage] = numbers
            if self.step:
                return False
        if stage != self.best_stage:
            self.best_loss, self.best_stage = math.inf, stage
        is_best = numbers["loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best = numbers["loss"], numbers
            first = next(iter(self.before.values()), {"psnr": -math.inf})
            own = self.before.get(stage, numbers)
            self.learnt = numbers["psnr"] > first["psnr"] or numbers["loss"] < own["loss"]
        return is_best

    def record(self, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Count a step; of a skipped one only that it was skipped. Raises UserError after PATIENCE
        steps in a row that were not finite (checked as often)."""
        taken, sums = 1 - skipped, self.sums
        for name, value in (("loss", loss), ("grad_norm", norm)):
            sums[name] += value.nan_to_num(0, 0, 0) * taken
        sums["steps"] += taken
        sums["skipped"] += skipped
        sums["skipped_in_a_row"] = (sums["skipped_in_a_row"] + 1) * skipped
        if self.step % PATIENCE == 0 and sums["skipped_in_a_row"] >= PATIENCE:
            raise UserError(
                f"the loss was not finite for {PATIENCE} steps in a row, up to step {self.step}: "
                "lower LR, or look for extreme values in the data; checkpoints are as they were")

    def close_epoch(self) -> dict[str, float]:
        """Means over the epoch, and the steps skipped since the start; the next epoch begins."""
        steps = max(float(self.sums["steps"]), 1)
        means = {name: float(self.sums[name]) / steps for name in ("loss", "grad_norm")}
        for name in ("loss", "grad_norm", "steps"):
            self.sums[name].zero_()
        return {**means, "skipped": int(self.sums["skipped"])}


class Validation:
    """At most `count` fields of a validation split, evenly spread, for models of one architecture:
    their closed forms are computed once.

    Args:
        batch_size: fields per model call. share: (rank, size), which of them are ours.
    Attributes:
        count: cases of all processes together. every: all of them. cases: ours.
    """

    def __init__(
        self, split: Split, pattern: Pattern, count: int, batch_size: int, device: torch.device,
        share: tuple[int, int] = (0, 1),
    ):
        frames, indices = frames_of(split), spread_over(split, count)
        self.count = len(indices)
        points = batch_size * math.prod(split.example(0).shape[:2])
        self.every = Cases(split, pattern, indices, seed=EVAL_SEED, points=points, device=device)
        self.cases = self.every.subset(
            [k for k in range(self.count) if k // frames % share[1] == share[0]])
        self._groups: list[tuple[list[int], Batch, Known]] = []
        self._kriged: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def baselines(self) -> dict[str, list[dict[str, float]]]:
        """Numbers per field of the methods in SHOWN_BASELINES."""
        return {name: _numbers(self.cases, self.cases.interpolate(name).fields)
                if len(self.cases) else [] for name in SHOWN_BASELINES}

    def in_sequences(self, model: FieldModel) -> dict[str, list[dict[str, float]]]:
        """Scores of the Gaussian before the flow for each of our sequences, see
        `metrics.sequence_scores`: of a model and of kriging frame by frame and, unless it were
        slow, in space and time. Of single fields nothing."""
        frames = self.cases.frames
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        for which, batch, known in self.groups(model) if frames > 1 else ():
            is_quick = frames * batch.input_coords.shape[1] <= SINGLE_POINTS
            answers = {f"kriging, {start}": self.kriging(start, which, batch)
                       for start in TIME_STARTS if start == "frame" or is_quick}
            with evaluating(model), torch.no_grad():
                answers["model"] = model.start(known.form, known.observed, batch.query_coords)[:2]
            for name, answer in answers.items():
                parts = (x.double().cpu().unflatten(0, (-1, frames)).numpy()
                         for x in (*answer, batch.x_1))
                found[name] += [metrics.sequence_scores(*each) for each in zip(*parts, strict=True)]
        return found

    def kriging(self, start: str, which: list[int], batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and sd (B, N, C) of a closed form of sequences at the queries of a batch."""
        key = start, which[0]
        if key not in self._kriged:
            observed = Observed(batch.input_coords, batch.input_values,
                                domain=Domain.of_grid(*self.cases.shape(self.cases.rows)),
                                frames=self.cases.frames_at(which))
            form = spacetime_form if start == "spacetime" else fitted_form
            self._kriged[key] = form(observed, batch.query_coords, None)[:2]
        return self._kriged[key]

    def evaluate(self, model: FieldModel, stage: str) -> list[dict[str, float]]:
        """Numbers per field of the posterior mean, and the loss of a stage, with a frozen draw and
        angle, at the points that are not known."""
        loss_of = LOSSES[stage]
        results: list[dict[str, float]] = [{} for _ in self.cases]
        for which, batch, known in self.groups(model):
            with evaluating(model), torch.no_grad():
                losses = loss_of(model, batch, known).mean(dim=(1, 2)).tolist()
            some = self.cases.subset(which)
            mean = some.sample(_WithForm(model, known), **MEAN)
            for k, loss, numbers in zip(which, losses, _numbers(some, mean.fields), strict=True):
                results[k] = {"loss": loss, **numbers}
        return results

    def groups(self, model: FieldModel) -> list[tuple[list[int], Batch, Known]]:
        """Which cases go together, as a batch, and what is known of them."""
        if not self._groups:
            forms = ClosedForms(model, *self.cases.shape(self.cases.rows), self.cases.device)
            batches = [(which, self._batch(which)) for which in self.cases.groups()]
            self._groups = [(which, batch, forms(batch)) for which, batch in batches]
        return self._groups

    def _batch(self, which: list[int]) -> Batch:
        queries, input_coords, input_values = self.cases.stack(which)
        cases = [self.cases[k] for k in which]
        rngs = [np.random.default_rng([EVAL_SEED, case.index, 1]) for case in cases]
        draws = np.array([rng.integers(2**63) for rng in rngs])
        angles = np.array([END * rng.random() for rng in rngs], dtype=np.float32)
        first = np.arange(len(cases)) // self.cases.frames * self.cases.frames
        index = self.cases.asked(which)
        values = [case.inside.reshape(-1, case.inside.shape[2])[own]
                  for case, own in zip(cases, index, strict=True)]
        parts = (
            np.stack([case.observed for case in cases]), np.stack(index), np.stack(values),
            draws, np.full(len(cases), -1),
            np.stack([np.arange(len(own)) for own in index]),
            angles[first],
            np.array([case.time for case in cases], dtype=np.float32),
        )
        names = ("input_index", "query_index", "x_1", "draws", "mask_id", "answered", "theta",
                 "times")
        tensors = dict(zip(names, map(torch.from_numpy, parts), strict=True))
        return Batch(input_coords=input_coords, input_values=input_values, query_coords=queries,
                     noise_sd=self.cases.noise_sd(which), **tensors).to(self.cases.device)


class _WithForm(nn.Module):
    """A model for which the closed form of one batch is at hand."""

    def __init__(self, model: FieldModel, known: Known):
        super().__init__()
        self.model, self.known, self.num_steps = model, known, model.num_steps

    def encode(self, observed: Observed, queries: Tensor, **settings: Any) -> State:
        return self.model.encode(self.known.observed, queries, form=self.known.form, **settings)

    def velocity(self, *given: Any) -> Tensor:
        return self.model.velocity(*given)


def _numbers(cases: Cases, fields: list[np.ndarray]) -> list[dict[str, float]]:
    return [{"psnr": metrics.psnr(x, case.truth), "ssim": metrics.ssim_wang(x, case.truth),
             "mse": metrics.mse(x, case.truth)} for x, case in zip(fields, cases, strict=True)]


def mean_numbers(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the pictures where it is defined."""
    return {name: metrics.average([r[name] for r in results]) for name in results[0]}


class Reporter:
    """Measures and reports; nothing that it does changes what is trained."""

    def __init__(
        self, config: TrainingConfig, validation: Validation, folder: RunFolder, world: World,
        progress: Progress, stages: Stages, per_epoch: int,
    ):
        self.config, self.validation, self.folder = config, validation, folder
        self.world, self.progress = world, progress
        self.stages, self.per_epoch = stages, per_epoch
        self.waited = self.worked = 0.0  # seconds in this epoch
        self.steps = 0
        self.told = time.monotonic()  # when a line told how far training is
        on_terminal = world.is_first and sys.stderr.isatty()
        self.bar = tqdm(total=stages.end, initial=progress.step, unit="step", smoothing=0.05,
                        disable=not on_terminal, dynamic_ncols=True)
        if on_terminal:
            self._redirect = logging_redirect_tqdm([log])  # kept: it ends when it is forgotten
            self._redirect.__enter__()
        parts = world.gather(validation.baselines())
        self.baselines = {name: mean_numbers([r for part in parts for r in part[name]])
                          for name in SHOWN_BASELINES}

    @property
    def epochs(self) -> int:
        return self.progress.step // self.per_epoch

    @property
    def stage(self) -> str:
        """Of the last step."""
        return self.stages.name(max(0, self.progress.step - 1))

    def step(self, waited: float, worked: float) -> None:
        """A step is done; seconds that it waited for data, and worked."""
        self.waited += waited
        self.worked += worked
        self.progress.seconds += waited + worked
        self.steps += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.told >= TOLD_SECONDS:
            loss, steps = (float(self.progress.sums[name]) for name in ("loss", "steps"))
            self._tell("step %d of %d  loss %.4f  %.0f samples/s  left %s", self.progress.step,
                       self.stages.end, loss / max(steps, 1), self.speed, self.left)

    @property
    def speed(self) -> float:
        """Samples a second in this epoch."""
        return self.steps * self.config.batch_size / (self.waited + self.worked)

    @property
    def left(self) -> timedelta:
        """Until the last step, at this epoch's speed."""
        steps = self.stages.end - self.progress.step
        return timedelta(seconds=round(steps * self.config.batch_size / self.speed))

    def _tell(self, line: str, *numbers: object) -> None:
        log.info(line, *numbers)
        self.told = time.monotonic()

    def epoch(self, rate: float) -> None:
        """Close an epoch: a log line, a record, the curves."""
        numbers = self.progress.close_epoch()
        seconds = self.waited + self.worked
        numbers |= {
            "lr": rate, "samples_per_s": self.speed,
            "data_wait": self.waited / seconds, "memory_mb": peak_memory_mb(self.world.device),
            "minutes": self.progress.seconds / 60,
        }
        step, skipped = self.progress.step, numbers["skipped"]
        self._tell("epoch %d/%d  step %d  stage %s  loss %.4f  grad %.3f  lr %.2e  %.0f samples/s"
                   "  waits %.1f%%  left %s%s", self.epochs, self.config.epochs, step, self.stage,
                   numbers["loss"], numbers["grad_norm"], rate, self.speed,
                   100 * numbers["data_wait"], self.left,
                   f"  skipped {skipped} steps" if skipped else "")
        self.waited = self.worked = 0.0
        self.steps = 0
        if self.world.is_first:
            self.folder.record(step, epoch=self.epochs, stage=self.stage, **numbers)

    def validate(self, model: FieldModel) -> bool:
        """Evaluate the averaged weights; whether they are the best of their stage so far."""
        step = min(self.progress.step, self.stages.end - 1)
        stage, first = self.stages.name(step), self.stages.around(step)[0]
        own = self.validation.evaluate(model, stage)
        results = [r for part in self.world.gather(own) for r in part]
        numbers = mean_numbers(results)
        is_best = self.progress.note_validation(numbers, stage, self.progress.step == first)
        beside = "  ".join(f"{name} {numbers['psnr']:.2f} / {numbers['ssim']:.3f}"
                           for name, numbers in self.baselines.items())
        log.info("validation (%d pictures)  stage %s  loss %.4f%s  |  posterior mean %.2f dB / "
                 "SSIM %.3f  |  %s",
                 len(results), stage, numbers["loss"], " *best*" if is_best else "",
                 numbers["psnr"], numbers["ssim"], beside)
        scores = self.world.gather(self.validation.in_sequences(model))
        for name in scores[0]:
            mean = mean_numbers([numbers for part in scores for numbers in part[name]])
            log.info("sequences, %s: error %.3f, CRPS %.3f (in sd of the field), 90 %% intervals "
                     "hold %.1f %%", name, mean["error"], mean["crps"], 100 * mean["covered"])
        if self.world.is_first:
            self.folder.record(self.progress.step, epoch=self.epochs, stage=stage,
                               minutes=self.progress.seconds / 60,
                               **{f"val_{name}": value for name, value in numbers.items()})
            with self.folder.tolerating("curves"):
                plots.learning_curves(self.folder.read_records(), self.baselines,
                                      self.folder.path / "training_loss.png")
            self.write_page()
        return is_best

    def write_page(self) -> None:
        """All that is known so far, in report.html."""
        with self.folder.tolerating("report"):
            page = training_page(self.folder.name, self.config, self.stages,
                                 self.folder.read_records(), self.baselines, self.folder.path)
            write_atomically(self.folder.path / "report.html", page)

    def picture(self, model: FieldModel, data: Data) -> None:
        """Truth, observations, posterior mean, one sample and error of a few frozen pictures."""
        if not self.world.is_first:
            return
        cases = self.validation.cases
        shown = cases.spread(PICTURES_SHOWN)
        path = self.folder.path / f"pictures_epoch_{self.epochs:04d}.png"
        drawn = shown.sample(model, draws=DRAWS, method=METHOD)
        columns = {"posterior mean": shown.sample(model, **MEAN).fields, "one sample": drawn.fields}
        self.record_ranks(metrics.ensemble_scores(*pool(drawn.draws, shown.cases))["ranks"])
        with self.folder.tolerating("picture"):
            plots.reconstructions(shown, columns, path, data)
            log.info("picture: %s", path)

    def record_ranks(self, ranks: list[float], **more: str) -> None:
        """Where truths lie among samples, for the page; more: in words."""
        self.folder.record(self.progress.step, epoch=self.epochs,
                           minutes=self.progress.seconds / 60, ranks=ranks, **more)

    def finish(self, calibration: dict[str, Any] | None) -> None:
        """The last words; calibration: of the best weights, if it was found now."""
        if calibration and calibration["ranks"]:
            self.record_ranks(calibration["ranks"], calibration=describe(calibration))
        if self.world.is_first:
            self.write_page()
        self.bar.close()
        if not self.progress.learnt:
            log.info("WARNING: nothing was learnt: the best weights are no better than those "
                     "before the first step; train longer, on more pictures, or with another LR")
        log.info(
            "done: %d steps in %.1f minutes; best weights: loss %.4f of stage %s, posterior mean "
            "%.2f dB on %s validation pictures (kriging %.2f, linear %.2f)\n"
            "best checkpoint: %s\nreport: %s",
            self.progress.step, self.progress.seconds / 60, self.progress.best_loss,
            self.progress.best_stage, self.progress.best.get("psnr", math.nan),
            self.validation.count, self.baselines["kriging, fitted"]["psnr"],
            self.baselines["linear"]["psnr"], self.folder.best,
            self.folder.path / "report.html",
        )


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far: of the device for CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
