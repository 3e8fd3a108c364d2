"""The selective scan: speed against the other ways, cost by length, peak memory.

    python benchmarks/scan.py                     # all tables, about 3 minutes on two cores
    python benchmarks/scan.py --tables lengths    # some: backends, lengths, memory
    pip install mambapy transformers              # optional: two more rows

Sizes of the default V2: B=16, L=409, E=512, S=16, float32, softplus, skip and gate. Each row is
measured beside the others: all ways take turns, a ratio is the median of the rounds' ratios.
The floor is one bare `exp` over the B·L·E·S elements that any scan must exponentiate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common import (
    ROOT,
    describe_machine,
    interleave,
    memory_in_a_process_of_its_own,
    milliseconds,
    print_added_memory,
    ratio,
    table,
)

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "scan"))

import reference

from sparsefield import scan

CHANNELS, STATES = 512, 16
FLOOR, LOOP = "bare exp (floor)", "sequential PyTorch loop (reference)"
BACKENDS = {"numba": "numba", "torch": "torch", LOOP: "reference"}


def make_inputs(batch: int, length: int) -> dict[str, Tensor]:
    """As a Mamba block gives them: (B, L, E) memory, step sizes 1e-3 to 1e-1."""
    torch.manual_seed(0)

    def tokens(width: int) -> Tensor:
        return torch.randn(batch, length, width).transpose(1, 2)

    inputs = {
        "u": tokens(CHANNELS), "delta": tokens(CHANNELS),
        "A": -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1),
        "B": tokens(STATES), "C": tokens(STATES), "D": torch.ones(CHANNELS),
        "z": tokens(CHANNELS), "delta_bias": torch.randn(CHANNELS) - 4,
    }
    return {name: x.requires_grad_() for name, x in inputs.items()}


def mambapy_scan(pscan, u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """What mambapy does around its parallel scan (its `selective_scan`), softplus to gate."""
    dt = F.softplus(delta + delta_bias[:, None]).transpose(1, 2)          # (B, L, E)
    drive = (dt * u.transpose(1, 2))[..., None] * B.transpose(1, 2)[:, :, None]
    states = pscan(torch.exp(dt[..., None] * A), drive)                   # (B, L, E, S)
    y = (states @ C.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)   # (B, E, L)
    return (y + D[:, None] * u) * F.silu(z)


def renamed(scan_fn, u, delta, **others) -> Tensor:
    """transformers' function is ours but for two names."""
    return scan_fn(u, delta, **others, delta_softplus=True)


def others() -> dict[str, Callable[..., Tensor]]:
    """The scans of optional packages, with a note for each that is missing."""
    found = {}
    try:
        from mambapy.pscan import pscan

        found["mambapy, parallel scan"] = partial(mambapy_scan, pscan)
    except ImportError as error:
        print(f"note: no row for mambapy ({error})\n")
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan

        found["transformers, slow path"] = partial(renamed, mamba_selective_scan)
    except ImportError as error:
        print(f"note: no row for transformers ({error})\n")
    return found


def own(name: str) -> Callable[..., Tensor]:
    backend = reference if name == "reference" else scan.load_backend(name)
    return lambda **inputs: backend.selective_scan(*inputs.values())


def forward(method: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        method(**inputs)


def both(method: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
    out = method(**inputs)
    torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out))


def floor(batch: int, length: int) -> Callable[[], Tensor]:
    x = torch.randn(batch * length * CHANNELS * STATES)
    return partial(torch.exp, x, out=torch.empty_like(x))


def compare_backends(rounds: int) -> None:
    inputs = make_inputs(16, 409)
    ways = {label: own(name) for label, name in BACKENDS.items()} | others()
    ahead = interleave({FLOOR: floor(16, 409)} | {
        name: partial(forward, method, inputs) for name, method in ways.items()
    }, rounds)
    there_and_back = interleave(
        {name: partial(both, method, inputs) for name, method in ways.items()}, rounds
    )
    rows = [[FLOOR, milliseconds(ahead[FLOOR]), "1", "", ""]]
    rows += [
        [name, milliseconds(ahead[name]), ratio(ahead[name], ahead[FLOOR]),
         milliseconds(there_and_back[name]),
         ratio(there_and_back[LOOP], there_and_back[name])] for name in ways
    ]
    table(["B=16, L=409", "forward, ms", "of the floor", "forward + backward, ms",
           "faster than the loop"], rows)


def compare_lengths(rounds: int) -> None:
    """Cost of an element as the sequence grows, relative to that of 4,096 steps."""
    method = own("numba")
    lengths = [2**k for k in range(8, 15)]
    inputs = {length: make_inputs(1, length) for length in lengths}
    found = {work: interleave({length: partial(work, method, inputs[length]) for length in lengths},
                              rounds) for work in (forward, both)}
    rows = [[f"L={length:,}", *(cell for seconds in found.values() for cell in (
        milliseconds(seconds[length]),
        ratio([s * 4096 / length for s in seconds[length]], seconds[4096])))] for length in lengths]
    table(["numba, B=1", "forward, ms", "cost of an element", "forward + backward, ms",
           "cost of an element"], rows)


def compare_memory() -> None:
    rows = [[name, *(memory_in_a_process_of_its_own("--memory_of", name, str(length))
                     for length in (409, 1636))] for name in BACKENDS.values()]
    unit = 4 * 409 * CHANNELS * 4 / 2**20
    table([f"MiB added by forward + backward, B=4 (a tensor B·L·E at L=409: {unit:.0f})", "L=409",
           "L=1,636"], rows)


def print_memory(name: str, length: int) -> None:
    method, inputs = own(name), make_inputs(4, length)
    both(method, make_inputs(1, 64))    # code is loaded
    print_added_memory(partial(both, method, inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["backends", "lengths", "memory"]
    parser.add_argument("--tables", nargs="+", default=every, choices=every)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print_memory(given.memory_of[0], int(given.memory_of[1]))
        return
    print(f"{describe_machine()}; medians (ranges) of {given.rounds} rounds\n")
    if "backends" in given.tables:
        compare_backends(given.rounds)
    if "lengths" in given.tables:
        compare_lengths(given.rounds)
    if "memory" in given.tables:
        compare_memory()


if __name__ == "__main__":
    main()
