"""A raster of 8,192 x 8,192 from 13 million points, or a part of it: seconds a tile, and memory.

    python benchmarks/large_raster.py --folder /tmp/large --minutes 6 --plot docs/large.png

Makes a rough random field, hides four fifths of its pixels, and runs reconstruct.py on it with one
worker for so many minutes of CPU time; started again, it goes on where it was. Memory is that of
the command and of its worker, read from /proc every two seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import rasterio
import scipy.fft

from common import ROOT, describe_machine, table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROUGHNESS = 1.4  # power of the variogram
KNOWN = 0.2
TICK = os.sysconf("SC_CLK_TCK")


def make(folder: Path, side: int) -> None:
    """truth.npy and gaps.tif."""
    rng = np.random.default_rng(0)
    speed = np.hypot(scipy.fft.fftfreq(side)[:, None], scipy.fft.rfftfreq(side)).astype(np.float32)
    speed[0, 0] = np.inf
    noise = scipy.fft.rfft2(rng.standard_normal((side, side), np.float32))
    truth = scipy.fft.irfft2(noise * speed ** -(1 + ROUGHNESS / 2), s=(side, side))
    truth = (100 + 30 * truth / truth.std()).astype(np.float32)
    np.save(folder / "truth.npy", truth)
    truth[rng.random(truth.shape, np.float32) > KNOWN] = np.nan
    with rasterio.open(folder / "gaps.tif", "w", driver="GTiff", height=side, width=side, count=1,
                       dtype="float32", nodata=np.nan, tiled=True, compress="deflate",
                       crs="EPSG:32632",
                       transform=rasterio.transform.from_origin(5e5, 6e6, 10, 10)) as file:
        file.write(truth, 1)


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds and GiB of resident memory; zeros of a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK, int(fields[21]) * 4096 / 2**30
    except (OSError, IndexError):
        return 0.0, 0.0


def children(pid: int) -> list[int]:
    """All processes below one."""
    try:
        own = [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
               for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return [process for child in own for process in (child, *children(child))]


def watch(folder: Path, minutes: float) -> np.ndarray:
    """Rows of wall seconds, CPU seconds of all workers, GiB of the command and of the largest
    worker, and tiles that are done."""
    command = [sys.executable, str(ROOT / "reconstruct.py"), "gaps.tif", "--workers", "1"]
    process = subprocess.Popen(command, cwd=folder)
    begun, rows = time.monotonic(), []
    while process.poll() is None:
        below = [usage(pid) for pid in children(process.pid)]
        done = len(list(folder.glob("reconstruction/.tiles/*.npy")))
        rows.append((time.monotonic() - begun, sum(seconds for seconds, _ in below),
                     usage(process.pid)[1], max((memory for _, memory in below), default=0), done))
        if rows[-1][1] > 60 * minutes:
            process.terminate()
            process.wait()
        time.sleep(2)
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/large"))
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if not (given.folder / "gaps.tif").exists():
        make(given.folder, given.side)
    seen = watch(given.folder, given.minutes)
    truth = np.load(given.folder / "truth.npy", mmap_mode="r")
    errors, shown = [], np.full((given.side, given.side), np.nan, np.float32)[::8, ::8]
    for path in (given.folder / "reconstruction/.tiles").glob("*.npy"):
        row, column = map(int, path.name.split(".")[0].split("_"))
        mean, sd = np.load(path)
        off = truth[row:row + len(mean), column:column + mean.shape[1]] - mean
        shown[row // 8:(row + len(mean)) // 8, column // 8:(column + len(mean[0])) // 8] = (
            mean[::8, ::8])
        off, sd = off[sd > 0], sd[sd > 0]
        errors.append(((off**2).mean(), (np.abs(off) < 1.645 * sd).mean()))
    command, worker, done = seen.T[2:]
    at_work = seen[done > done[0]]
    each = (at_work[-1, 1] - at_work[0, 1]) / max(1, at_work[-1, 4] - at_work[0, 4])
    error, covered = np.mean(errors, axis=0)
    print(describe_machine() + "\n")
    table(["tiles", "of", "CPU s a tile", "command, GiB", "worker, GiB", "rms error", "in 90 %"], [[
        f"{len(errors):,}", f"{(given.side // 256) ** 2:,}", f"{each:.2f}", f"{command.max():.2f}",
        f"{worker.max():.2f}", f"{error**0.5:.3f}", f"{covered:.1%}"]])
    if given.plot:
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", dpi=80)
        axes[0].plot(done, command, label="command")
        axes[0].plot(done, worker, label="worker")
        axes[0].set(xlabel="tiles done", ylabel="resident memory, GiB", ylim=(0, None))
        axes[0].legend()
        last = int(np.isfinite(shown).any(axis=1).nonzero()[0].max()) + 1
        axes[1].imshow(shown[:last], aspect="equal")
        axes[1].set_title(f"mean of {len(errors):,} tiles, every 8th pixel", fontsize=10)
        axes[1].set_axis_off()
        figure.savefig(given.plot)


if __name__ == "__main__":
    main()
