"""The peer: a plain U-Net on the pixels, around the same kriging, for a given time.

    python benchmarks/peer_unet.py --minutes 25                      # embedded photographs
    python benchmarks/peer_unet.py --data train.npz --data_val val.npz --minutes 60 --out peer.json
    python benchmarks/peer_unet.py --beside checkpoints_mamba_v2     # the curve of a training, too

What a user would write first: mask, values, mean and log sd of the fitted kriging in, a better
mean out; two levels below the pixels, GroupNorm, AdamW, a cosine over the time given, a moving
average of the weights. Data, observations, closed form, symmetries and frozen cases are those of
the trainings, and so is the unit of its loss, the closed form's sd, in which it learns best. It
works on one grid alone, and gives a mean alone.

Printed: PSNR of the mean on the frozen pictures against crops seen and seconds of training, without
evaluation, at the end that of the mean over the eight turns and flips too (which is what the
canvas says); and kriging on the same pictures. Threads as OMP_NUM_THREADS says: with one, seconds
are those of a core, whatever else runs there. --device cuda wants --num_workers as well.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import describe_machine, table, validations
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


from sparsefield.model.canvas import turned, turned_back  # noqa: E402
from sparsefield.train.pairs import Pairs  # noqa: E402

from sparsefield.data import Batch, TrainingBatches, open_as_configured, parse_pattern  # noqa: E402
from sparsefield.data.batches import MOST_PAINTED  # noqa: E402
from sparsefield.data.scale import to_unit  # noqa: E402
from sparsefield.device import (
    has_fast_bfloat16,
    pick_device,
)
from sparsefield.evaluate import metrics  # noqa: E402
from sparsefield.evaluate.cases import Case, Cases  # noqa: E402
from sparsefield.flow.path import draw_angles  # noqa: E402
from sparsefield.gaussian import condition  # noqa: E402
from sparsefield.model.field import FieldModel  # noqa: E402
from sparsefield.place import grid_coords  # noqa: E402
from sparsefield.train.config import TrainingConfig  # noqa: E402
from sparsefield.train.processes import stream  # noqa: E402
from sparsefield.train.progress import averaging_decay  # noqa: E402


class PlainUNet(nn.Module):
    """Three sides, two convolutions each, skips by concatenation (Ronneberger et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.fine = pair(inputs, width)
        self.middle = pair(width, 2 * width)
        self.coarse = pair(2 * width, 2 * width)
        self.middle_up = pair(4 * width, 2 * width)
        self.fine_up = pair(3 * width, width)
        self.last = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(self.last.weight)  # it starts as kriging
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W), sides that 4 divides, to (B, outputs, H, W)."""
        fine = self.fine(x)
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.middle_up(torch.cat([middle, twice(coarse)], dim=1))
        fine = self.fine_up(torch.cat([fine, twice(middle)], dim=1))
        return self.last(fine)


def pair(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def pictures(mask: Tensor, values: Tensor, mean: Tensor, sd: Tensor, shape: tuple) -> Tensor:
    """What the U-Net sees, from (B, P, 1), (B, P, C) in [-1, 1] and twice (B, P, C)."""
    seen = torch.cat([mask, values * mask, mean, sd.log()], dim=2)
    return seen.mT.unflatten(2, shape).contiguous(memory_format=torch.channels_last)


class Peer:
    """The U-Net with its training and its frozen cases."""

    def __init__(self, given: argparse.Namespace):
        config = TrainingConfig(data=given.data, data_val=given.data_val)
        self.data = open_as_configured(asdict(config))
        self.shape, pattern = (self.data.height, self.data.width), parse_pattern(given.observe)
        size = math.prod(self.shape)
        if not pattern.is_fixed or any(side % 4 for side in self.shape) or size > MOST_PAINTED:
            sys.exit("error: a pattern with equally many points, and sides that 4 divides, of at "
                     f"most {MOST_PAINTED} pixels, please")
        self.batches = TrainingBatches(
            self.data.train, pattern, seed=given.seed, batch_size=given.batch_size,
            queries=(1, 1), draw_angles=draw_angles, painted=sys.maxsize,
        )
        channels = self.data.channels
        no_canvas = FieldModel(channels=channels, d_model=8)
        self.device = pick_device(given.device)
        self.pairs = Pairs(no_canvas, *self.shape, self.device)
        torch.manual_seed(given.seed)
        self.unet = PlainUNet(1 + 3 * channels, channels, given.width)
        self.unet.to(self.device, memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.unet.parameters(), lr=given.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.steps = 0
        self.averaged = AveragedModel(self.unet, multi_avg_fn=self._average)
        count = min(given.pictures, len(self.data.val))
        self.cases = Cases(self.data.val, pattern, range(count), points=16 * size)
        self.frozen = [self._frozen(case) for case in self.cases]
        on_cpu = self.device.type == "cpu"
        self.amp = torch.autocast(
            self.device.type, torch.bfloat16, enabled=not on_cpu or has_fast_bfloat16()
        )

    def _average(self, old: list[Tensor], new: list[Tensor], _: object) -> None:
        torch._foreach_lerp_(old, new, 1 - averaging_decay(self.steps, 0.999))

    def _frozen(self, case: Case) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (1, F, H, W) of a case, and mean, sd (P, C) of its kriging."""
        posterior = condition(case.coords[None], case.values[None])
        answer = posterior.at(grid_coords(*self.shape)[None])
        observed = torch.as_tensor(case.observed)
        mask, sd = torch.zeros(1, math.prod(self.shape), 1), answer.sd.clone()
        mask[0, observed] = 1
        sd[:, observed] = posterior.leave_one_out.sd  # as in training
        inside = torch.from_numpy(case.inside).flatten(0, 1)[None]
        seen = pictures(mask, inside, answer.mean, sd, self.shape)
        return seen, answer.mean[0], answer.sd[0]

    def step(self, batch: Batch, rate: float) -> None:
        form = self.pairs(batch, with_draws=False).form
        size = math.prod(self.shape)
        count, _, channels = form.mean.shape

        def whole(at_queries: Tensor, at_inputs: Tensor) -> Tensor:
            every = at_queries.new_zeros(count, size, at_queries.shape[2])
            every.scatter_(1, batch.query_index[..., None].expand_as(at_queries), at_queries)
            return every.scatter_(1, batch.input_index[..., None].expand_as(at_inputs), at_inputs)

        asked = whole(torch.ones_like(form.mean[..., :1]), batch.input_values[..., :1] * 0)
        values = whole(batch.x_1, batch.input_values)
        mean = whole(form.mean, batch.input_values)
        sd = whole(form.sd, form.loo_sd)
        target = ((values - mean) / sd).mT.unflatten(2, self.shape)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with self.amp:
            found = self.unet(pictures(1 - asked, values, mean, sd, self.shape))
        weight = asked.mT.unflatten(2, self.shape)
        loss = ((found.float() - target) ** 2 * weight).sum() / (weight.sum() * channels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        self.averaged.update_parameters(self.unet)

    @torch.no_grad()
    def psnr(self, turns: int = 1) -> float:
        """Mean over the frozen pictures, in dB; of the mean over 8 turns and flips, if 8."""
        self.averaged.eval()
        found = []
        for case, (seen, mean, sd) in zip(self.cases, self.frozen):
            with self.amp:
                said = [turned_back(self.averaged(turned(seen.to(self.device), n)).float(), n)
                        for n in range(turns)]
            z = torch.stack(said).mean(0).cpu().flatten(2)[0].mT
            field = to_unit((mean + sd * z).clamp(-1, 1)).reshape(*self.shape, -1).numpy()
            field.reshape(-1, field.shape[2])[case.observed] = to_unit(case.values.numpy())
            found.append(metrics.psnr(field, case.truth))
        return float(np.mean(found))

    def baseline(self, name: str) -> float:
        fields = self.cases.interpolate(name).fields
        return float(np.mean([metrics.psnr(x, c.truth) for x, c in zip(fields, self.cases)]))


def train(peer: Peer, given: argparse.Namespace) -> list[dict[str, float]]:
    """Until the time is over; a point of the curve at every twelfth of it."""
    budget, spent, curve = 60 * given.minutes, 0.0, []
    alone = peer.device.type == "cpu" and torch.get_num_threads() == 1 and not given.num_workers
    clock = time.process_time if alone else time.perf_counter
    feed = stream(peer.batches, 0, sys.maxsize, given.num_workers, peer.device)
    while spent < budget:
        start = clock()
        warm = min(1.0, (peer.steps + 1) / 100)
        peer.step(next(feed), given.lr * warm * 0.5 * (1 + math.cos(math.pi * spent / budget)))
        spent += clock() - start
        if spent >= min(budget, budget * (len(curve) + 1) / 12):
            curve.append({"seconds": spent, "crops": peer.steps * given.batch_size,
                          "psnr": peer.psnr()})
            print(f"{spent:6.0f} s, {curve[-1]['crops']:,} crops, {curve[-1]['psnr']:.2f} dB",
                  file=sys.stderr, flush=True)
    return curve


def beside(folder: Path) -> list[list[str]]:
    """The curve of a training, from its metrics."""
    return [[f"{60 * record['minutes']:,.0f}", f"{record['step']:,} steps",
             f"{record['val_psnr']:.2f}"] for record in validations(folder)]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Of the command line, or of a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="photos")
    parser.add_argument("--data_val")
    parser.add_argument("--observe", default="random:0.2")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--width", type=int, default=88, help="of the finest level")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=160, help="the first of the validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that prepare data")
    parser.add_argument("--out", type=Path, help="JSON file for the curve")
    parser.add_argument("--beside", type=Path, help="folder of a training, to print its curve too")
    return parser.parse_args(given)


def main() -> None:
    given = arguments()
    peer = Peer(given)
    parameters = sum(p.numel() for p in peer.unet.parameters())
    curve = train(peer, given)
    print(f"{describe_machine()}; {given.data}, seed {given.seed}, batch {given.batch_size}, "
          f"{parameters:,} parameters, {len(peer.cases)} pictures\n")
    table(["method", "seconds", "crops", "PSNR of the mean, dB"], [
        *([name, "", "", f"{peer.baseline(name):.2f}"]
          for name in ("kriging, one kernel", "kriging, fitted")),
        *(["U-Net", f"{p['seconds']:,.0f}", f"{p['crops']:,}", f"{p['psnr']:.2f}"] for p in curve),
        ["U-Net, mean of eight turns", "", "", f"{peer.psnr(turns=8):.2f}"],
    ])
    if given.beside:
        table(["seconds", "steps", "PSNR of the mean, dB (its own validation pictures)"],
              beside(given.beside))
    if given.out:
        given.out.write_text(json.dumps({"parameters": parameters, "curve": curve,
                                         **{k: str(v) for k, v in vars(given).items()}}, indent=1))


if __name__ == "__main__":
    main()
