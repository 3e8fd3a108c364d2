"""Gain over the fitted kriging against crops seen: a canvas for each budget, and a power law.

    python benchmarks/budgets.py --data crops.npz --data_val val.npz --crops 6000 12000 24000
    python benchmarks/budgets.py ... --beside 588000=0.848      # a gain measured elsewhere, too

Each budget is a training of its own, from nothing to the end of its learning rate, on as many crops
of the data, drawn at random (several epochs of all of them, if they do not suffice); started again,
it goes on. Gains are those of the posterior mean on the validation pictures of these trainings,
over what the untrained canvas has there, which is the fitted kriging. Fitted is
g(n) = g_inf - a n^-b, by least squares; with as many budgets as unknowns it has no error to show,
and beyond the budgets it is a guess.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import ALONE, ROOT, describe_machine, table, validations
from scipy.optimize import least_squares

RARELY = "--warmup 50 --eval_every 1000 --visualize_every 100000 --keep_last 1"


def subset(images: np.ndarray, count: int, path: Path) -> int:
    """Write so many crops, drawn at random, or all of them; the number of epochs for `count`."""
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    np.savez(path, images=images[np.sort(chosen)])
    return max(1, round(count / len(images)))


def gain(count: int, images: np.ndarray, given: argparse.Namespace) -> tuple[int, float]:
    """Crops seen and the gain of a training on them, in dB."""
    folder = given.out / str(count)
    folder.mkdir(parents=True, exist_ok=True)
    epochs = subset(images, count, folder / "crops.npz")
    script, *flags = ALONE.split()
    subprocess.run([
        sys.executable, str(ROOT / script), *flags, *RARELY.split(),
        "--data", str(folder / "crops.npz"), "--data_val", given.data_val, "--epochs", str(epochs),
        "--canvas_width", str(given.width), "--batch_size", str(given.batch_size), "--lr",
        str(given.lr), "--eval_pictures", str(given.pictures), "--save_dir", str(folder),
    ], check=True, stdout=sys.stderr)
    first, *_, last = validations(folder)
    return last["step"] * given.batch_size, last["val_psnr"] - first["val_psnr"]


def fit(crops: np.ndarray, gains: np.ndarray) -> tuple[float, float, float]:
    """g_inf, a, b of g(n) = g_inf - a n^-b, n in thousands."""
    def residual(x: np.ndarray) -> np.ndarray:
        return x[0] - x[1] * (crops / 1000) ** -x[2] - gains

    found = least_squares(residual, [gains.max() + 0.1, 1.0, 0.5],
                          bounds=([0, 0, 0.01], [10, 100, 3]))
    return tuple(found.x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="an .npz of crops")
    parser.add_argument("--data_val", required=True)
    parser.add_argument("--crops", type=int, nargs="+", default=[6000, 12000, 24000])
    parser.add_argument("--beside", nargs="*", default=[], metavar="CROPS=DB")
    parser.add_argument("--goal", type=float, default=2.0, help="a gain, in dB")
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("experiments/budgets"))
    given = parser.parse_args()
    with np.load(given.data) as file:
        images = file["images"]
    found = [gain(count, images, given) for count in given.crops]
    found += [(int(n), float(db)) for n, db in (each.split("=") for each in given.beside)]
    if len(found) < 3:
        parser.error("three unknowns want three budgets at least")
    crops, gains = (np.array(column, float) for column in zip(*sorted(found)))
    limit, a, b = fit(crops, gains)
    print(f"{describe_machine()}; width {given.width}, batch {given.batch_size}\n")
    table(["crops", "gain, dB", "the fit's"],
          [[f"{n:,.0f}", f"{g:+.3f}", f"{limit - a * (n / 1000) ** -b:+.3f}"]
           for n, g in zip(crops, gains)])
    print(f"gain = {limit:.3f} - {a:.3f} (n / 1000)^-{b:.3f} dB: at most {limit:.2f} dB")
    left = limit - given.goal
    print(f"{given.goal:+.2f} dB: " + (f"{1000 * (a / left) ** (1 / b):.1e} crops" if left > 0 else
                                  "never, with these pictures and this network"))


if __name__ == "__main__":
    main()
