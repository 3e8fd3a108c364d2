"""What one evaluation of the default V2 costs at each resolution: time and peak memory.

    python benchmarks/resolution_cost.py                       # 32 ... 256, blocks of 4096 points
    python benchmarks/resolution_cost.py --points 16384 --resolutions 64 128

Random weights: cost does not depend on what they are. Each resolution runs in a process of its
own, so that the peak is its own; 204 of the 32 x 32 points are observed, one field is asked for.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OBSERVED = 204


def measure(resolution: int, points: int, method: str, device: str) -> str:
    """One row of the table."""
    sys.path.insert(0, str(ROOT))
    import torch

    from sparsefield.flow.sampling import sample
    from sparsefield.place import grid_coords
    from train_mamba_v2 import MAMBADiffusionV2

    torch.manual_seed(0)
    model = MAMBADiffusionV2().to(device).eval()
    inputs = grid_coords(32, 32, device)[torch.randperm(1024)[:OBSERVED]][None]
    values = torch.rand(1, OBSERVED, 3, device=device) * 2 - 1

    def run(size: int):
        return sample(model, grid_coords(size, size, device)[None], inputs, values, seeds=[[0]],
                      method=method, num_steps=2, points=points)

    run(32)  # compiles what is compiled
    start = time.perf_counter()
    result = run(resolution)
    result.values.cpu()
    seconds = (time.perf_counter() - start) / result.nfe
    peak = (torch.cuda.max_memory_allocated() if device == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return (f"| {resolution} x {resolution} | {resolution**2:,} | {result.blocks} "
            f"| {seconds:.2f} | {peak / 2**30:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64, 96, 128, 192, 256])
    parser.add_argument("--points", type=int, default=4096, help="answered by one model call")
    parser.add_argument("--method", default="sde", help="of flow/samplers.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(measure(given.one, given.points, given.method, given.device))
        return
    print("| resolution | points | blocks | seconds per evaluation | peak memory in GiB |")
    print("|---|---|---|---|---|", flush=True)
    shared = ["--points", str(given.points), "--method", given.method, "--device", given.device]
    for resolution in given.resolutions:
        command = [sys.executable, __file__, "--one", str(resolution), *shared]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
