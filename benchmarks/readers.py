"""What a reader along time is worth, at equal seconds of one core: the table of docs/models.md.

    python benchmarks/readers.py train gru mamba --start spacetime   # rows of readers.json
    python benchmarks/readers.py train --start spacetime             # its closed form alone
    python benchmarks/readers.py table
    python benchmarks/readers.py use --checkpoint PATH   # a trained V2, as `reconstruct` uses it:
    python train_mamba_v2.py --data tracer --time 8 --time_start spacetime --observe random:0.05 \
        --batch_size 16 --lr 5e-3 --epochs 16 --start_share 0.7 --d_model 32 --num_layers 2 \
        --perceiver_iterations 1 --unet_width 24 --flow_unet_width 24 --queries_min 64 \
        --queries_max 256 --ema_decay 0.998 --eval_every 1 --device cpu

A grid U-Net learns the mean and sd of sequences of the tracer (2-D turbulence), 5 % new points a
frame, and is scored on others at the points that were not seen: root mean square error relative to
the sd of the sequence, CRPS of its Gaussian, share of the truths in its 90 % intervals. Seconds are
those of the processor, closed forms included, the simulation and the scoring excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import ROOT, table

sys.path.insert(0, str(ROOT))

from sparsefield.data import Batch, TrainingBatches, parse_pattern
from sparsefield.data.tracer import FROZEN_RUNS, RUNS, TracerSplit
from sparsefield.evaluate.cases import evaluating
from sparsefield.evaluate.metrics import sequence_scores
from sparsefield.hashed import noise_seed, seeds_of
from sparsefield.model.field import TIME_STARTS
from sparsefield.model.readers import READERS, TimeReader
from sparsefield.train.losses import ClosedForms, Known, start_loss, time_scale
from sparsefield.train.optimise import Optimiser, SlotDropout, averaged
from sparsefield.train.report import mean_numbers
from train_mamba_v2 import MAMBADiffusionV2

RESULTS = Path(__file__).with_suffix(".json")
SIZE, PATTERN = 32, "random:0.05"
TEST_FRAMES = 256
DECAY, WARMUP = 0.998, 0.05
CLOSED_FORM = "closed form"
HEADS, DILATIONS = 4, (1, 2, 4)
USED = 8  # test sequences


class NoReader(TimeReader, name="none"):
    """Every frame on its own."""

    def forward(self, x: Tensor, frames) -> Tensor:
        return x


class Convolutions(TimeReader, name="convolution"):
    """Dilated convolutions along time, which see 15 frames (van den Oord et al. 2016)."""

    def __init__(self, width: int):
        super().__init__(width)
        sizes = [width + 2] + [width] * len(DILATIONS)
        self.layers = nn.ModuleList(
            nn.Conv1d(sizes[i], sizes[i + 1], 3, padding=d, dilation=d)
            for i, d in enumerate(DILATIONS))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def read(self, x: Tensor, steps: Tensor) -> Tensor:
        y = torch.cat([x, steps], dim=-1).mT
        for i, layer in enumerate(self.layers):
            y = layer(y if i == 0 else F.silu(y))
        return y.mT


class Attention(TimeReader, name="attention"):
    """Softmax attention over all frames; times enter as waves."""

    def __init__(self, width: int):
        super().__init__(width)
        self.into = nn.Linear(width + 16, 3 * width)
        self.out = nn.Linear(width, width)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def read(self, x: Tensor, steps: Tensor) -> Tensor:
        times = steps[..., :1].exp().cumsum(dim=1)
        waves = times * (2.0 ** -torch.arange(8)) * torch.pi
        x = torch.cat([x, waves.sin(), waves.cos()], dim=-1)
        asked, keys, values = self.into(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(asked, keys, values)
        return self.out(found.transpose(1, 2).flatten(2))


class Irregular(TracerSplit):
    """Frames at irregular times: of twice as many those that chance keeps."""

    def __init__(self, runs: range, size: int, frames: int, seed: int):
        super().__init__(runs, size, frames, seed)
        self.span = 2 * frames

    def moment(self, index: int) -> int:
        sequence, frame = divmod(index, self.frames)
        rng = np.random.default_rng([self.seed, self.runs[0], sequence])
        return int(np.sort(rng.choice(self.span, self.frames, replace=False))[frame])


class Trained:
    """A grid U-Net with a reader, before the flow."""

    def __init__(self, reader: str, split: TracerSplit, given: argparse.Namespace):
        seed, start, self.rate = given.seed, given.start, given.rate
        torch.manual_seed(seed)
        self.model = MAMBADiffusionV2(
            channels=1, d_model=8, num_layers=0, perceiver_iterations=0, perceiver_heads=1,
            unet_width=given.width, unet_dropout=0.1, symmetries=8, time=split.frames,
            time_start=start, time_scale=SCALE,
            time_reader="none" if reader == CLOSED_FORM else reader)
        self.batches = TrainingBatches(
            split, parse_pattern(PATTERN), seed=seed, batch_size=max(given.batch, split.frames),
            queries=(128, 128), draw_angles=lambda rng, size: np.zeros(size), starting=1 << 30)
        self.forms = ClosedForms(self.model, SIZE, SIZE, torch.device("cpu"))
        self.seed = seed

    def train(self, seconds: float) -> int:
        """Steps taken in so many seconds of the processor; the rate is a cosine of them."""
        step, optimiser = 0, Optimiser(self.model.unet, "muon", self.rate, 0.01)
        self.averaged = averaged(self.model, DECAY, lambda: step)
        dropout = SlotDropout(self.model)
        self.model.train()
        began = time.process_time()
        while (share := (time.process_time() - began) / seconds) < 1:
            optimiser.rate = self.rate * min(share / WARMUP, 0.5 * (1 + np.cos(np.pi * share)))
            batch = self.batches[step]
            dropout.seed(seeds_of(noise_seed(self.seed, step), self.batches.own_slots,
                                  torch.device("cpu")))
            start_loss(self.model, batch, self.forms(batch, with_draws=False)).mean().backward()
            nn.utils.clip_grad_norm_(self.model.unet.parameters(), 1.0)
            optimiser.step()
            step += 1
            self.averaged.update_parameters(self.model)
            if step % 20 == 0:
                print(f"step {step}, {100 * share:.0f} %", file=sys.stderr, flush=True)
        return step

    def score(self, test: list[tuple[Batch, Known]], model=None) -> dict[str, float]:
        """Of test sequences, all unobserved points; without a model that of the closed form."""
        scores = []
        for batch, known in test:
            answer = known.form[:2]
            if model is not None:
                with evaluating(model), torch.no_grad():
                    answer = model.start(known.form, known.observed, batch.query_coords)[:2]
            scores.append(sequence_scores(*(x.double().numpy() for x in (*answer, batch.x_1))))
        return mean_numbers(scores)

    def closed_forms(self, split: TracerSplit) -> list[tuple[Batch, Known]]:
        """Test sequences with their closed forms."""
        batches = TrainingBatches(
            split, parse_pattern(PATTERN), seed=10_000, batch_size=split.frames, queries=(1, 1),
            draw_angles=lambda rng, size: np.zeros(size), starting=1 << 30)
        forms = ClosedForms(self.model, SIZE, SIZE, torch.device("cpu"))  # of masks of its own
        found = [batches[step] for step in range(max(4, TEST_FRAMES // split.frames))]
        return [(batch, forms(batch, with_draws=False)) for batch in found]


SCALE = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "table", "use"))
    parser.add_argument("readers", nargs="*", choices=(*READERS, []))
    parser.add_argument("--start", default="frame", choices=TIME_STARTS)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--irregular", action="store_true")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--levels", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--batch", type=int, default=16, help="frames, at least a sequence")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="none")
    given = parser.parse_args()
    if given.what == "table":
        show()
        return
    if given.what == "use":
        use(given.checkpoint, given.frames, given.seed)
        return
    from sparsefield.model import grid_unet
    grid_unet.READ_LEVELS = tuple(given.levels)
    torch.set_num_threads(1)
    made = Irregular if given.irregular else TracerSplit
    train, test = (made(range(first, last), SIZE, given.frames, 0) for first, last in
                   ((0, RUNS), (RUNS + FROZEN_RUNS, RUNS + 2 * FROZEN_RUNS)))
    for split in (train, test):  # simulated before the clock starts
        for number in range(len(split.runs)):
            split.example(number * split.frames)
    global SCALE
    if given.start == "spacetime":
        SCALE = time_scale(train, parse_pattern(PATTERN))
        print(f"a step counts as {SCALE:.4f} sides", file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                            capture_output=True).stdout.strip()
    known: list[tuple[Batch, Known]] = []
    for reader in given.readers or [CLOSED_FORM]:
        trained = Trained(reader, train, given)
        row = {key: value for key, value in vars(given).items() if key not in ("what", "readers")}
        row |= {"reader": reader, "commit": commit}
        known = known or trained.closed_forms(test)
        if reader == CLOSED_FORM:
            row |= {"seconds": 0} | trained.score(known)
        else:
            steps = trained.train(given.seconds)
            row |= {"sequences": steps * trained.batches.batch_size // given.frames,
                    "parameters": sum(p.numel() for p in trained.model.unet.parameters()),
                    **trained.score(known, trained.averaged.module)}
        print(json.dumps(row), flush=True)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")


def use(checkpoint: str, frames: int, seed: int) -> None:
    """Print the error of USED test sequences by a model and by kriging in space and time, and how
    much samples change from frame to frame, of the change of the truth."""
    import xarray

    from sparsefield import load

    torch.set_num_threads(1)
    split = TracerSplit(range(RUNS + FROZEN_RUNS, RUNS + 2 * FROZEN_RUNS), SIZE, frames, 0)
    pattern, models = parse_pattern(PATTERN), {name: load(name) for name in (checkpoint, "none")}
    found = {name: [] for name in models}
    for number in np.linspace(0, len(split) // frames - 1, USED).astype(int).tolist():
        truth = np.stack([split.example(number * frames + k)[..., 0] for k in range(frames)])
        known = np.zeros(truth.shape, dtype=bool)
        for k, own in enumerate(known.reshape(frames, -1)):
            own[pattern.draw(np.ones(truth.shape[1:], dtype=bool),
                             np.random.default_rng((seed, number, k)))] = True
        axes = {dim: np.arange(n) for dim, n in zip(("time", "y", "x"), truth.shape, strict=True)}
        gappy = xarray.DataArray(np.where(known, truth, np.nan), axes, name="tracer")
        for name, model in models.items():
            field = model.reconstruct(gappy, num_samples=8, seed=seed)
            off = (field.mean[..., 0] - truth)[~known]
            changes = np.abs(np.diff(field.samples[..., 0], axis=1)).mean()
            found[name].append((np.sqrt((off**2).mean()) / truth.std(),
                                changes / np.abs(np.diff(truth, axis=0)).mean()))
            print(f"sequence {number}, {name}: error {found[name][-1][0]:.3f}", file=sys.stderr)
    table(["model", "error", "change from frame to frame"],
          [[name, *(f"{number:.3f}" for number in np.mean(rows, axis=0))]
           for name, rows in found.items()])


def show() -> None:
    rows = sorted(json.loads(RESULTS.read_text()), key=lambda row: (
        row["irregular"], row["start"], row["seconds"], -row["error"]))
    table(["times", "start", "reader", "CPU seconds", "sequences seen", "error", "CRPS",
           "in 90 % intervals"],
          [["irregular" if row["irregular"] else "even", row["start"], row["reader"],
            f"{row['seconds']:g}", str(row.get("sequences", "")), f"{row['error']:.3f}",
            f"{row['crps']:.3f}", f"{100 * row['covered']:.1f} %"] for row in rows])


if __name__ == "__main__":
    main()
