"""On a GPU: the scan against its definition and the memory's speed, and the steps of a training.

    python benchmarks/gpu.py                       # all tables, about two minutes
    python benchmarks/gpu.py --tables scan steps   # some: scan, answers, steps
    python benchmarks/gpu.py --tables steps --canvas_width 64 --batch_sizes 64 256

Errors are relative, of the output and of the worst gradient, against the recurrence in float64.
The scan's bytes are those that it must read and write (inputs, output; backward: also their
gradients); the share is of what a copy from the device to itself moves here, counting both
directions. A step is what training does: closed form, forward, backward, clipping, optimiser, on
batches of the photographs that come with scikit-image, made beforehand; its share is of the
floating point operations of matrix products and convolutions that a product of 8192 x 8192
bfloat16 matrices reaches here. Times are medians of runs that the device has finished.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from common import ROOT, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "scan"))

from inputs import make_inputs, run

from sparsefield import scan
from sparsefield.data import Batch, TrainingBatches, open_data, parse_pattern
from sparsefield.flow.path import draw_angles
from sparsefield.hashed import seeds_of
from sparsefield.train.config import TrainingConfig
from sparsefield.train.dropout import SlotDropout
from sparsefield.train.optimiser import Optimiser
from sparsefield.train.pairs import Pairs, canvas_loss, flow_loss, slope_loss
from train_mamba import MAMBADiffusion
from train_mamba_v2 import MAMBADiffusionV2

GPU = torch.device("cuda")
SCANS = ((16, 512, 409), (128, 128, 512), (128, 512, 512))  # B, E, L
LOSSES = {"canvas": canvas_loss, "slope of the canvas": flow_loss, "tokens": slope_loss}


def seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """Median wall time of a run, after two to warm up."""
    found = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


def copy_speed() -> float:
    """Bytes a second, read and written."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device=GPU)
    y = torch.empty_like(x)
    return 2 * x.numel() / seconds(lambda: y.copy_(x))


def product_speed() -> float:
    """Floating point operations a second of a bfloat16 product."""
    x = torch.randn(8192, 8192, device=GPU, dtype=torch.bfloat16)
    return 2 * 8192**3 / seconds(lambda: x @ x)


# --- scan -----------------------------------------------------------------------------------------


def scan_errors() -> None:
    inputs = make_inputs(409, 16, 70)
    on_gpu = {name: x.to(GPU) for name, x in inputs.items()}
    rows = []
    for name in ("triton", "mamba_ssm", "torch"):
        if isinstance(found := scan.load_backend(name), str):
            print(f"note: no row for {name}: {found}\n")
            continue
        for reverse in (False, True):
            want = run("reference", inputs, delta_softplus=True, reverse=reverse)
            got = run(name, on_gpu, torch.float32, delta_softplus=True, reverse=reverse)
            errors = {key: float((got[key] - x).norm() / x.norm()) for key, x in want.items()}
            worst = max((error, key) for key, error in errors.items() if key != "out")
            rows.append([name, "backward" if reverse else "forward", f"{errors['out']:.1e}",
                         f"{worst[0]:.1e} ({worst[1]})"])
    table(["scan, B=2, E=70, L=409, float32", "direction", "output", "worst gradient"], rows)


def scan_speed() -> None:
    peak = copy_speed()
    print(f"a copy moves {peak / 1e12:.2f} TB/s\n")
    rows = []
    names = [name for name in ("triton", "mamba_ssm") if not isinstance(
        scan.load_backend(name), str)]
    for name in names:
        for sizes in SCANS:
            for dtype in (torch.float32, torch.bfloat16):
                rows.append(scan_row(name, sizes, dtype, peak))
    table(["scan", "size", "forward, ms", "GB/s, share", "forward + backward, ms", "GB/s, share"],
          rows)


def scan_row(name: str, sizes: tuple[int, int, int], dtype: torch.dtype, peak: float) -> list[str]:
    batch, channels, length = sizes
    inputs = {key: x.float().to(GPU) for key, x in make_inputs(length, 16, channels, batch).items()}
    for key in ("u", "delta", "z", "B", "C"):  # as a Mamba block gives them
        inputs[key] = inputs[key].transpose(1, 2).contiguous().to(dtype).transpose(1, 2)
    leaves = {key: x.detach().requires_grad_() for key, x in inputs.items()}
    function = scan.load_backend(name).selective_scan

    def ahead() -> None:
        with torch.no_grad():
            function(**inputs, delta_softplus=True)

    def both() -> None:
        out = function(**leaves, delta_softplus=True)
        torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))

    cell = torch.finfo(dtype).bits // 8
    tokens, states = batch * channels * length * cell, 2 * batch * 16 * length * cell
    moved = {ahead: 4 * tokens + states, both: 4 * tokens + states + 8 * tokens + 2 * states}
    row = [name, f"B={batch}, E={channels}, L={length}, {str(dtype)[6:]}"]
    for work, size in moved.items():
        took = seconds(work)
        row += [f"{1000 * took:.2f}", f"{size / took / 1e9:,.0f}, {size / took / peak:.0%}"]
    return row


# --- closed forms ---------------------------------------------------------------------------------


def batches(batch_size: int, painted: int = 0) -> TrainingBatches:
    return TrainingBatches(
        open_data("photos", image_size=32).train, parse_pattern("random:0.2"), seed=0,
        batch_size=batch_size, queries=(256, 256), painted=painted, sees_whole=True,
        draw_angles=partial(draw_angles, zero_share=TrainingConfig.zero_share),
    )


def on_gpu(batch: Batch) -> Batch:
    return Batch(*(part.to(GPU) for part in batch))


def answers() -> None:
    """Closed forms of a batch together, and field by field, against the CPU."""
    made = batches(64)
    model = MAMBADiffusionV2(d_model=16, num_layers=2, perceiver_heads=2, canvas_width=16)
    at_hand = [on_gpu(made[step]) for step in range(9)]
    together = Pairs(model, 32, 32, GPU)
    first = made[0]
    want = Pairs(model, 32, 32, torch.device("cpu"))(first).form
    got = together(at_hand[0]).form
    names = ("mean", "sd", "loo_sd", "surprise")
    errors = ", ".join(f"{name} {far(getattr(got, name), getattr(want, name)):.0e}"
                       for name in names)
    print(f"closed forms of 64 fields together against the CPU, largest differences: {errors}\n")
    rows = []
    for name, pairs in (("together", together),):
        pairs(at_hand[0])
        torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in at_hand[1:]:
            pairs(batch)
        torch.cuda.synchronize()
        rows.append([name, f"{8 * 64 / (time.perf_counter() - start):,.0f}"])
    table(["closed forms of new fields", "fields/s"], rows)


def far(got: Tensor, want: Tensor) -> float:
    return float((got.cpu() - want).abs().max())


# --- steps ----------------------------------------------------------------------------------------


class Training:
    """A model and what trains it, on the GPU; `step` takes one."""

    def __init__(self, model: nn.Module, at_hand: list[Batch]):
        torch.manual_seed(0)
        self.model = model.to(GPU).train()
        self.optimiser = Optimiser(self.model, TrainingConfig.optimiser, 1e-5, 0.01)
        self.pairs = Pairs(self.model, 32, 32, GPU)
        self.dropout = SlotDropout(self.model)
        self.at_hand, self.number = at_hand, 0

    def step(self, part: str) -> None:
        self.optimiser.zero_grad()
        self.learn(part, self.closed_form(part))
        self.update()

    def closed_form(self, part: str):
        self.number = (self.number + 1) % len(self.at_hand)
        return self.pairs(self.at_hand[self.number], with_draws=part != "canvas")

    def learn(self, part: str, pair) -> None:
        batch = self.at_hand[self.number]
        self.dropout.seed(seeds_of(0, range(len(batch.theta)), GPU))
        with torch.autocast("cuda", torch.bfloat16):
            LOSSES[part](self.model, batch, pair).mean().backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()


def steps(canvas_width: int, flow_width: int, d_model: int, batch_sizes: list[int]) -> None:
    peak = product_speed()
    print(f"a bfloat16 product reaches {peak / 1e12:,.0f} TFLOP/s\n")
    rows = []
    widths = dict(canvas_width=canvas_width, canvas_flow_width=flow_width)
    for batch_size in batch_sizes:
        for part in LOSSES:
            at_hand = [on_gpu(batches(batch_size, sys.maxsize if part == "canvas" else 0)[step])
                       for step in range(4)]
            for kind, dims in ((MAMBADiffusionV2, d_model), (MAMBADiffusion, 2 * d_model)):
                if part == "tokens" or kind is MAMBADiffusionV2:
                    training = Training(kind(d_model=dims, **widths), at_hand)
                    rows.append(step_row(training, part, batch_size, peak))
    table(["step", "crops", "ms", "crops/s", "closed form, ms", "forward + backward, ms",
           "share of products", "optimiser, ms", "memory, GiB"], rows)


def step_row(training: Training, part: str, batch_size: int, peak: float) -> list[str]:
    torch.cuda.reset_peak_memory_stats()
    whole = seconds(lambda: training.step(part))
    form = seconds(lambda: training.closed_form(part))
    pair = training.closed_form(part)
    learn = seconds(lambda: training.learn(part, pair))
    update = seconds(training.update)
    counter = FlopCounterMode(display=False)
    with counter:
        training.learn(part, pair)
    name = part if part != "tokens" else f"tokens of {type(training.model).__name__}"
    return [name, str(batch_size), f"{1000 * whole:.1f}", f"{batch_size / whole:,.0f}",
            f"{1000 * form:.1f}", f"{1000 * learn:.1f}",
            f"{counter.get_total_flops() / learn / peak:.0%}", f"{1000 * update:.1f}",
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["scan", "answers", "steps"]
    parser.add_argument("--tables", nargs="+", default=every, choices=every)
    parser.add_argument("--canvas_width", type=int, default=64)
    parser.add_argument("--flow_width", type=int, default=48)
    parser.add_argument("--d_model", type=int, default=64, help="of V2; V1's is twice that")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128])
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device: nothing to measure")
    torch.cuda.set_device(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    if "scan" in given.tables:
        scan_errors()
        scan_speed()
    if "answers" in given.tables:
        answers()
    if "steps" in given.tables:
        steps(given.canvas_width, given.flow_width, given.d_model, given.batch_sizes)


if __name__ == "__main__":
    main()
