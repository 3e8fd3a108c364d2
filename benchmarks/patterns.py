"""How weights do on other measurements, and larger pictures, than they learnt: the posterior mean.

    python benchmarks/patterns.py                                # the bundled weights
    python benchmarks/patterns.py --image_size 64 --observe random:0.2 --pictures 24
    python benchmarks/patterns.py --data_test natural32_val.npz --observe grid:2 lines:8
    python benchmarks/patterns.py --checkpoints a.pth b.pth

PSNR over evenly spread pictures of the test part, in dB, of three methods that need no training and
of each checkpoint; then by how much the last checkpoint is ahead of the fitted kriging that it
starts from, on how large a share of the pictures it is behind, and where it is worst.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield.data import parse_pattern
from sparsefield.evaluate.cases import Cases, open_test_data, spread
from sparsefield.model.bundled import DEFAULTS
from sparsefield.model.checkpoint import load_model

PATTERNS = ["random:0.05", "random:0.1", "random:0.2", "random:0.4", "grid:2", "grid:4",
            "block:0.3", "lines:8"]
UNTRAINED = ["linear", "biharmonic", "kriging, fitted"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", nargs="+", default=list(DEFAULTS))
    parser.add_argument("--data")
    parser.add_argument("--data_test")
    parser.add_argument("--observe", nargs="+", default=PATTERNS)
    parser.add_argument("--image_size", type=int, help="of photos and folders; default: as learnt")
    parser.add_argument("--pictures", type=int, default=64)
    given = parser.parse_args()
    models = [load_model(path) for path in given.checkpoints]
    if given.image_size:
        models[-1][1]["config"]["image_size"] = given.image_size
    data = open_test_data(models[-1][1], given.data, given.data_test)
    pictures = spread(range(len(data.test)), given.pictures)
    rows = []
    for text in tqdm(given.observe, unit="pattern", disable=None):
        cases = Cases(data.test, parse_pattern(text), pictures)
        made = [cases.interpolate(name) for name in UNTRAINED]
        made += [cases.sample(model, method="mean") for model, _ in models]
        psnr = np.array([[each["psnr"] for each in cases.numbers(outcome)] for outcome in made])
        gain = psnr[-1] - psnr[UNTRAINED.index("kriging, fitted")]
        rows.append([text, *(f"{mean:.2f}" for mean in psnr.mean(axis=1)), f"{gain.mean():+.2f}",
                     f"{(gain < 0).mean():.0%}", f"{gain.min():+.2f}"])
    print(f"{describe_machine()}; {data.name}, {len(pictures)} of {data.height} x {data.width}\n")
    names = [Path(path).stem for path in given.checkpoints]
    table(["observed", *UNTRAINED, *names, "gain", "behind", "worst"], rows)


if __name__ == "__main__":
    main()
