"""What samples would look like if they were nearer to the truth: what a goal would take.

    python benchmarks/nearer.py --data_test natural32_val.npz          # 4 minutes of one core

Samples of the shipped V2 are drawn to the truth by a factor, x' = truth + factor (x - truth), so
that spread and error shrink alike and the uncertainty stays as right as it is. The PSNR of the
mean that goes with them is that of a sample + 3.01 dB. CRPS is that of hidden points, and of the
whole field, whose observed values are certain.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield.data import open_data, parse_pattern
from sparsefield.evaluate import metrics, uncertainty
from sparsefield.evaluate.calibration import SETTINGS
from sparsefield.evaluate.cases import Case, Cases, spread
from sparsefield.model.checkpoint import build_model, load_checkpoint


def scores(case: Case, draws: np.ndarray) -> list[float]:
    """PSNR and speckle of a sample, CRPS at hidden points and of the field, of (K, H, W, C)."""
    crps = uncertainty.evaluate(draws, case.truth, case.observed)["crps"]
    hidden = 1 - len(case.observed) / case.truth[..., 0].size
    return [np.mean([metrics.psnr(x, case.truth) for x in draws]),
            np.mean([metrics.speckle(x, case.truth) for x in draws]), crps, crps * hidden]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_test", default="photos")
    parser.add_argument("--checkpoint", default="shipped")
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 0.9, 0.8, 0.7, 0.6])
    given = parser.parse_args()
    data = open_data(given.data_test, val=given.data_test, test=given.data_test)
    cases = Cases(data.test, parse_pattern("random:0.2"),
                  spread(range(len(data.test)), given.pictures))
    outcome = cases.sample(build_model(load_checkpoint(given.checkpoint)), draws=given.draws,
                           **SETTINGS)
    rows = []
    for factor in given.factors:
        found = [scores(case, np.clip(case.truth + factor * (draws - case.truth), 0, 1))
                 for case, draws in zip(cases, outcome.draws)]
        psnr, speckle, hidden, whole = np.mean(found, axis=0)
        rows.append([f"{factor:g}", f"{psnr:.2f}", f"{psnr + 3.01:.2f}", f"{speckle:.4f}",
                     f"{hidden:.4f}", f"{whole:.4f}"])
    print(f"{len(cases)} pictures of {data.name}, {given.draws} samples of each; "
          f"{describe_machine()}\n")
    table(["factor", "PSNR of a sample, dB", "of the mean that goes with it", "speckle above 0.10",
           "CRPS at hidden points", "CRPS of the field"], rows)


if __name__ == "__main__":
    main()
