"""The peer: a plain U-Net on the pixels, around the same kriging, for a given time.

    python benchmarks/peer_unet.py --minutes 25                      # embedded photographs
    python benchmarks/peer_unet.py --data train.npz --data_val val.npz --minutes 60 --out peer.json

What a user would write first: mask, values, mean and log sd of the fitted kriging in, a better mean
out; two levels below the pixels, GroupNorm, AdamW, a cosine over the time given, averaged weights.
Data, observations, closed form and frozen cases are those of the trainings; its loss is in units of
the closed form's sd. It works on one grid alone and gives a mean alone. Not tuned: a difference to
the grid U-Net is in part one of tuning (Muon, dropout, a robust loss).

Printed: PSNR of the mean on the frozen pictures against crops seen and seconds of training; and
kriging on the same pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield.data import open_data, parse_pattern
from sparsefield.data.scale import to_unit
from sparsefield.device import has_fast_bfloat16
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Cases
from sparsefield.gaussian import condition
from sparsefield.place import Domain, grid_coords
from sparsefield.train.optimise import averaging_decay


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
        return self.last(self.fine_up(torch.cat([fine, twice(middle)], dim=1)))


def pair(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Peer:
    """The U-Net with its data and its frozen cases."""

    def __init__(self, given: argparse.Namespace):
        self.data = open_data(given.data, val=given.data_val)
        self.shape, self.pattern = (self.data.height, self.data.width), parse_pattern(given.observe)
        if not self.pattern.is_fixed or any(side % 4 for side in self.shape):
            sys.exit("error: a pattern with equally many points, and sides that 4 divides, please")
        self.grid, self.domain = grid_coords(*self.shape), Domain.of_grid(*self.shape)
        self.rng, self.count = np.random.default_rng(given.seed), given.batch_size
        torch.manual_seed(given.seed)
        channels = self.data.channels
        self.unet = PlainUNet(1 + 3 * channels, channels, given.width)
        self.unet.to(given.device, memory_format=torch.channels_last)
        self.device = given.device
        self.optimiser = torch.optim.AdamW(self.unet.parameters(), lr=given.lr, betas=(0.9, 0.99),
                                           weight_decay=0.01)
        self.steps, self.averaged = 0, AveragedModel(self.unet, multi_avg_fn=self._average)
        self.cases = Cases(self.data.val, self.pattern,
                           range(min(given.pictures, len(self.data.val))))
        self.frozen = [self.known(case.values[None], case.coords[None],
                                  torch.as_tensor(case.observed)[None]) for case in self.cases]
        self.amp = torch.autocast(self.device, torch.bfloat16,
                                  enabled=self.device != "cpu" or has_fast_bfloat16())

    def _average(self, old: list[Tensor], new: list[Tensor], _: object) -> None:
        torch._foreach_lerp_(old, new, 1 - averaging_decay(self.steps, 0.999))

    def known(self, values: Tensor, coords: Tensor, observed: Tensor) -> tuple[Tensor, ...]:
        """Inputs (B, F, H, W), and mean and sd (B, C, H, W), from (B, M, C), (B, M, 2), (B, M)."""
        posterior = condition(coords, values, domain=self.domain)
        answer = posterior.at(self.grid.expand(len(values), -1, -1))
        index = observed[..., None].expand_as(values)
        mask = torch.zeros_like(answer.mean[..., :1]).scatter_(1, observed[..., None], 1)
        seen = torch.zeros_like(answer.mean).scatter_(1, index, values)
        sd = answer.sd.scatter(1, index, posterior.leave_one_out.sd)
        inputs, mean, sd = (x.mT.unflatten(2, self.shape) for x in (
            torch.cat([mask, seen, answer.mean, sd.log()], dim=2), answer.mean, sd))
        return inputs.contiguous(memory_format=torch.channels_last), mean, sd

    def batch(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Truths (B, C, H, W) and what is known of them, all observed at the same places."""
        train = self.data.train
        fields = torch.from_numpy(np.stack([
            train.training_example(int(i), self.rng)
            for i in self.rng.integers(len(train), size=self.count)])).flatten(1, 2)
        valid = np.ones(self.shape, dtype=bool)
        observed = torch.from_numpy(self.pattern.draw(valid, self.rng)).expand(self.count, -1)
        coords = self.grid[observed[0]].expand(self.count, -1, -1)
        known = self.known(fields[:, observed[0]], coords, observed)
        return fields.mT.unflatten(2, self.shape), known

    def step(self, rate: float) -> None:
        truth, (inputs, mean, sd) = self.batch()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with self.amp:
            found = self.unet(inputs.to(self.device))
        hidden = (1 - inputs[:, :1]).to(self.device)
        errors = (found.float() - ((truth - mean) / sd).to(self.device)) ** 2 * hidden
        (errors.sum() / (hidden.sum() * truth.shape[1])).backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        self.averaged.update_parameters(self.unet)

    @torch.no_grad()
    def psnr(self) -> float:
        """Mean over the frozen pictures, in dB."""
        found = []
        for case, (inputs, mean, sd) in zip(self.cases, self.frozen, strict=True):
            with self.amp:
                z = self.averaged(inputs.to(self.device)).float().cpu()
            field = to_unit((mean + sd * z).clamp(-1, 1))
            field = field[0].permute(1, 2, 0).numpy().copy()
            field.reshape(-1, field.shape[2])[case.observed] = to_unit(case.values.numpy())
            found.append(metrics.psnr(field, case.truth))
        return float(np.mean(found))


def train(peer: Peer, minutes: float, rate: float) -> list[dict[str, float]]:
    """Until the time is over; a point of the curve at every twelfth of it."""
    budget, spent, curve = 60 * minutes, 0.0, []
    clock = time.process_time if peer.device == "cpu" and torch.get_num_threads() == 1 else (
        time.perf_counter)
    while spent < budget:
        start, warm = clock(), min(1.0, (peer.steps + 1) / 100)
        peer.step(rate * warm * 0.5 * (1 + math.cos(math.pi * spent / budget)))
        spent += clock() - start
        if spent >= min(budget, budget * (len(curve) + 1) / 12):
            curve.append({"seconds": spent, "crops": peer.steps * peer.count,
                          "psnr": peer.psnr()})
            print(f"{spent:6.0f} s, {curve[-1]['psnr']:.2f} dB", file=sys.stderr, flush=True)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--out", type=Path, help="JSON file for the curve")
    given = parser.parse_args()
    peer = Peer(given)
    parameters = sum(p.numel() for p in peer.unet.parameters())
    curve = train(peer, given.minutes, given.lr)
    print(f"{describe_machine()}; {given.data}, seed {given.seed}, batch {given.batch_size}, "
          f"{parameters:,} parameters, {len(peer.cases)} pictures\n")
    kriging = peer.cases.numbers(peer.cases.interpolate("kriging, fitted"))
    table(["method", "seconds", "crops", "PSNR of the mean, dB"], [
        ["kriging, fitted", "", "", f"{np.mean([numbers['psnr'] for numbers in kriging]):.2f}"],
        *(["U-Net", f"{p['seconds']:,.0f}", f"{p['crops']:,}", f"{p['psnr']:.2f}"] for p in curve)])
    if given.out:
        given.out.write_text(json.dumps({"parameters": parameters, "curve": curve}, indent=1))


if __name__ == "__main__":
    main()
