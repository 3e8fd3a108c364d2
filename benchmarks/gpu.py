"""On a GPU: the scan against its definition and the memory's speed, and the steps of a training.

    python benchmarks/gpu.py                       # all tables, about two minutes
    python benchmarks/gpu.py --tables scan steps   # some: scan, answers, steps
    python benchmarks/gpu.py --tables steps --unet_width 64 --batch_sizes 64 256

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
from torch.utils.flop_counter import FlopCounterMode

from common import ROOT, table

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "scan"))

from inputs import make_inputs, run

from sparsefield import scan
from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.flow.path import draw_angles
from sparsefield.hashed import seeds_of
from sparsefield.model.field import FieldModel
from sparsefield.train.config import TrainingConfig
from sparsefield.train.losses import ClosedForms, Known, start_loss, velocity_loss
from sparsefield.train.optimise import Optimiser, SlotDropout
from train_mamba import MAMBADiffusion
from train_mamba_v2 import MAMBADiffusionV2

GPU = torch.device("cuda")
SCANS = ((16, 512, 409), (128, 128, 512), (128, 512, 512))  # B, E, L
LOSSES = {"start": start_loss, "flow": velocity_loss}


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
            want = run("reference", inputs, reverse=reverse)
            got = run(name, on_gpu, torch.float32, reverse=reverse)
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
            function(*inputs.values())

    def both() -> None:
        out = function(*leaves.values())
        torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))

    cell = torch.finfo(dtype).bits // 8
    tokens, states = batch * channels * length * cell, 2 * batch * 16 * length * cell
    moved = {ahead: 4 * tokens + states, both: 4 * tokens + states + 8 * tokens + 2 * states}
    row = [name, f"B={batch}, E={channels}, L={length}, {str(dtype)[6:]}"]
    for work, size in moved.items():
        took = seconds(work)
        row += [f"{1000 * took:.2f}", f"{size / took / 1e9:,.0f}, {size / took / peak:.0%}"]
    return row


# --- a training's step ----------------------------------------------------------------------------


def batches(batch_size: int, starting: int = 0) -> TrainingBatches:
    return TrainingBatches(
        open_data("photos", image_size=32).train, parse_pattern("random:0.2"), seed=0,
        batch_size=batch_size, queries=(256, 256), starting=starting, sees_whole=True,
        draw_angles=partial(draw_angles, zero_share=TrainingConfig.zero_share),
    )


def answers() -> None:
    """Closed forms of a batch, against the CPU."""
    model, batch = MAMBADiffusionV2(d_model=16, num_layers=2, perceiver_heads=2), batches(64)[0]
    want = ClosedForms(model, 32, 32, torch.device("cpu"))(batch).form
    forms, on_gpu = ClosedForms(model.to(GPU), 32, 32, GPU), batch.to(GPU)
    got = forms(on_gpu).form
    for name in ("mean", "sd"):
        print(f"{name}: {float((getattr(got, name).cpu() - getattr(want, name)).abs().max()):.0e} "
              "from the CPU's at most")
    print(f"closed forms of new fields: {64 / seconds(lambda: forms(on_gpu)):,.0f} a second\n")


class Training:
    """A model and what trains it, on the GPU; `step` takes one."""

    def __init__(self, model: FieldModel, stage: str, batch_size: int):
        torch.manual_seed(0)
        self.model, self.stage = model.to(GPU).train(), stage
        self.optimiser = Optimiser(self.model, TrainingConfig.optimiser, 1e-5, 0.01)
        self.forms, self.dropout = ClosedForms(self.model, 32, 32, GPU), SlotDropout(self.model)
        made = batches(batch_size, sys.maxsize if stage == "start" else 0)
        self.at_hand, self.number = [made[step].to(GPU) for step in range(4)], 0

    def step(self) -> None:
        self.learn(self.closed_form())
        self.update()

    def closed_form(self) -> Known:
        self.number = (self.number + 1) % len(self.at_hand)
        return self.forms(self.at_hand[self.number], with_draws=self.stage == "flow")

    def learn(self, known: Known) -> None:
        batch = self.at_hand[self.number]
        self.dropout.seed(seeds_of(0, range(len(batch.theta)), GPU))
        with torch.autocast("cuda", torch.bfloat16):
            LOSSES[self.stage](self.model, batch, known).mean().backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()


def steps(widths: dict[str, int], d_model: int, batch_sizes: list[int]) -> None:
    peak = product_speed()
    print(f"a bfloat16 product reaches {peak / 1e12:,.0f} TFLOP/s\n")
    rows = []
    for size in batch_sizes:
        for name, stage, kind, width in (("start", "start", MAMBADiffusionV2, d_model),
                                         ("flow, V2", "flow", MAMBADiffusionV2, d_model),
                                         ("flow, V1", "flow", MAMBADiffusion, 2 * d_model)):
            training = Training(kind(d_model=width, **widths), stage, size)
            rows.append([name, str(size), *step_row(training, size, peak)])
    table(["step", "crops", "ms", "crops/s", "closed form, ms", "forward + backward, ms",
           "share of products", "optimiser, ms", "memory, GiB"], rows)


def step_row(training: Training, batch_size: int, peak: float) -> list[str]:
    torch.cuda.reset_peak_memory_stats()
    whole, form = seconds(training.step), seconds(training.closed_form)
    known = training.closed_form()
    learn, update = seconds(lambda: training.learn(known)), seconds(training.update)
    counter = FlopCounterMode(display=False)
    with counter:
        training.learn(known)
    return [f"{1000 * whole:.1f}", f"{batch_size / whole:,.0f}", f"{1000 * form:.1f}",
            f"{1000 * learn:.1f}", f"{counter.get_total_flops() / learn / peak:.0%}",
            f"{1000 * update:.1f}", f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["scan", "answers", "steps"]
    parser.add_argument("--tables", nargs="+", default=every, choices=every)
    parser.add_argument("--unet_width", type=int, default=64)
    parser.add_argument("--flow_unet_width", type=int, default=48)
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
        widths = {"unet_width": given.unet_width, "flow_unet_width": given.flow_unet_width}
        steps(widths, given.d_model, given.batch_sizes)


if __name__ == "__main__":
    main()
