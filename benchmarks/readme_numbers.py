"""The numbers of the bundled weights in README and docs/models.md, measured by one command.

    python benchmarks/readme_numbers.py            # measure, store, write both tables
    python benchmarks/readme_numbers.py --stored   # write the tables from what is stored

It compares V1 and V2 as they come with the project on test crops of `photos`, by the command that
the README names, stores the numbers in docs/readme_numbers.json, and puts the tables between the
marks in README.md and docs/models.md. A test holds the README to what is stored.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import eval_v1_vs_v2  # noqa: E402
from sparsefield.evaluate import tables  # noqa: E402

STORED = ROOT / "docs/readme_numbers.json"
COMMAND = "python eval_v1_vs_v2.py"
CHECKED = 4  # pictures whose PSNR a test measures again
BASELINES = ("linear", "biharmonic", "thin-plate RBF", "kriging, one kernel", "kriging, fitted")


def measure() -> dict:
    """Run the comparison; what the tables need of it."""
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(tables.as_json(eval_v1_vs_v2.evaluate(eval_v1_vs_v2.Config(
            save_dir=folder))))
    samples = dict(found["summary"]["sample"])
    draws = {name: samples.pop(name) for name in ("kriging, fitted",)}
    rows = found["summary"] | {"sample": samples, "draws": draws,
                               "baselines": found["summary"]["baseline"]}

    def short(row: dict) -> dict:
        kept = {"mean": row["mean"], "median": {"psnr": row["median"]["psnr"]}}
        return {**kept, **{k: row[k] for k in ("expected_psnr", "spread_error") if k in row}}

    kinds = ("mean", "sample", "calibrated", "baselines", "draws")
    return {
        "command": COMMAND, "commit": commit, "versions": found["environment"]["versions"],
        "pictures": found["settings"]["pictures"], "ensemble": found["settings"]["ensemble"],
        "checked": {name: {row["picture"]: row["psnr"] for row in found["table"]
                           if (row["kind"], row["method"]) == ("mean", name)
                           and row["picture"] in found["data"]["test_indices"][:CHECKED]}
                    for name in found["models"]},
        "seed": found["settings"]["seed"],
        "models": {name: {key: model[key] for key in ("parameters", "step")}
                   for name, model in found["models"].items()},
        **{kind: {name: short(row) for name, row in rows[kind].items()} for kind in kinds},
        **{beside: {kind: {name: {key: change[key] for key in ("mean", "low", "high")}
                           for name, change in changes.items()}
                    for kind, changes in found[beside].items()}
           for beside in ("differences", "beside")},
    }


def headline(found: dict) -> str:
    """The table of the README: what needs no training, V1 as described, and V2."""
    names = {"V1": "V1 as described", "V1 + start": "V1 with V2's start", "V2": "**V2**"}
    lines = ["| | mean: PSNR, dB | SSIM | sample: PSNR, dB | CRPS | speckle |",
             "|---|---|---|---|---|---|"]
    for name in (*BASELINES, *names):
        mean = found["baselines" if name in BASELINES else "mean"][name]["mean"]
        drawn = {**found["draws"], **found["sample"]}.get(name)
        cells = [f"{mean['psnr']:.2f}", f"{mean['ssim']:.3f}", "", "", ""]
        if drawn is not None:
            of, speckle = drawn["mean"], 100 * drawn["mean"]["speckle_0.10"]
            cells[2:] = f"{of['psnr']:.2f}", f"{of['crps']:.4f}", f"{speckle:.1f} %"
        lines.append(f"| {names.get(name, name)} | " + " | ".join(cells) + " |")

    def gain(kind: str, metric: str, beside: str = "differences", digits: int = 2) -> str:
        change = found[beside][kind][metric]
        return (f"{change['mean']:+.{digits}f} ({change['low']:+.{digits}f} to "
                f"{change['high']:+.{digits}f})")

    of_v1 = found["sample"]["V1"]["mean"]["speckle_0.10"]
    less = -100 * found["differences"]["sample"]["speckle_0.10"]["mean"] / of_v1
    words = (f"V2 − V1 as described: mean {gain('mean', 'psnr')} dB and "
             f"{gain('mean', 'ssim', digits=3)} SSIM, sample {gain('sample', 'psnr')} dB, speckle "
             f"{less:.0f} % less (hoped for: 3 to 5 dB, 0.05 to 0.07, 70 to 80 %). "
             f"V2 − V1 with V2's start: {gain('mean', 'psnr', 'beside')} dB.")
    return "\n".join([*lines, "", words, "", "```bash", COMMAND, "```"])


def samples(found: dict) -> str:
    """The table of docs/models.md: samples, as drawn."""
    columns = {"kriging, fitted": found["draws"]["kriging, fitted"], **found["sample"]}

    def row(title: str, cell, calibrated: str = "") -> str:
        return f"| {title} | " + " | ".join(map(cell, columns.values())) + f" | {calibrated} |"

    def shares(column: dict) -> str:
        names = ("coverage_90", "coverage_90_4x4", "coverage_90_8x8", "coverage_90_luminance")
        return ", ".join(f"{100 * column['mean'][name]:.0f}" for name in names) + " %"

    def speckle(column: dict) -> str:
        names = ("speckle_0.05", "speckle_0.10", "speckle_0.20")
        return " / ".join(f"{column['mean'][name]:.3f}" for name in names)

    lines = [
        f"| {found['ensemble']} samples of each, as drawn | {' | '.join(columns)} | calibrated |",
        "|---" * (len(columns) + 2) + "|",
        row("PSNR of a sample (posterior mean − 3.01 dB)",
            lambda c: f"{c['mean']['psnr']:.2f} ({c['expected_psnr']:.2f})", "equal"),
        row("CRPS", lambda c: f"{c['mean']['crps']:.5f}"),
        row("spread / error", lambda c: f"{c['spread_error']:.2f}", "1"),
        row("truth in 90 % intervals: points, 4 × 4 means, 8 × 8 means, luminance", shares, "90 %"),
        row("speckle above 0.05 / 0.10 / 0.20", speckle),
        row("missed above 0.10 (speckle of an exact sample)",
            lambda c: f"{c['mean']['missed_0.10']:.3f}"),
        row("grain in flat areas", lambda c: f"{c['mean']['flat_hf']:.4f}"),
    ]
    crps = found["differences"]["sample"]["crps"]
    lines += ["", f"V2 − V1: CRPS {crps['mean']:+.5f} ({crps['low']:+.5f} to {crps['high']:+.5f}). "
              f"{found['pictures']} test crops of `photos`, seed {found['seed']}, "
              f"torch {found['versions']['torch']}, commit {found['commit']}."]
    return "\n".join(lines)


def between(text: str, name: str, content: str) -> str:
    """A text with other content between the marks of that name."""
    pattern = rf"(<!-- {name}: begin[^>]*-->\n).*?(\n<!-- {name}: end -->)"
    changed, count = re.subn(pattern, lambda m: m[1] + content + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"error: {count} places are marked with {name!r}, not 1")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stored", action="store_true", help="measure nothing")
    if not parser.parse_args().stored:
        STORED.write_text(json.dumps(measure(), indent=1) + "\n")
    found = json.loads(STORED.read_text())
    for path, name, content in (
        (ROOT / "README.md", "headline table", headline(found)),
        (ROOT / "docs/models.md", "samples of the bundled weights", samples(found)),
    ):
        path.write_text(between(path.read_text(), name, content))


if __name__ == "__main__":
    main()
