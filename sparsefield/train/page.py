"""A training as one page to look at: curves, calibration, pictures, settings."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparsefield.evaluate import html
from sparsefield.evaluate.metrics import LEVEL
from sparsefield.train.config import TrainingConfig
from sparsefield.train.optimise import Stages

MOST_PICTURES = 24


def training_page(
    name: str, config: TrainingConfig, stages: Stages, records: Sequence[dict[str, Any]],
    baselines: dict[str, dict[str, float]], folder: Path,
) -> bytes:
    """The page of a training that is under way or done.

    Args:
        records: of metrics.jsonl. baselines: numbers of validation pictures, by method.
        folder: in which the pictures are.
    """
    columns = ("step", "epoch", "stage", "minutes", "loss", "val_loss", "val_psnr", "val_ssim")
    table = pd.DataFrame(records, columns=[*columns, "ranks", "calibration"])
    checks = table.dropna(subset="val_psnr")
    ranked = table.dropna(subset="ranks").tail(1).to_dict("records")
    now = records[-1] if records else {"step": 0}  # a full disk takes none
    summary = [f"Step {now['step']:,} of {stages.end:,}, epoch {now.get('epoch', 0)} of "
               f"{config.epochs}; {table['minutes'].max():.1f} minutes of training."]
    if len(checks):
        summary.append(
            f"Posterior mean of {config.eval_pictures} validation pictures: "
            f"{checks['val_psnr'].iloc[-1]:.2f} dB, SSIM {checks['val_ssim'].iloc[-1]:.3f}; "
            + ", ".join(f"{other} {numbers['psnr']:.2f} dB" for other, numbers in baselines.items())
            + ".")
    return html.page(f"Training of {name}", "sparsefield.train", "report.html", {
        "summary": summary,
        "flow_from": stages.start if 0 < stages.start < stages.end else None,
        "losses": [{"stage": stage, "step": part["step"], "loss": part["loss"],
                    "validation": part["val_loss"]}
                   for stage, part in table.groupby("stage", sort=False)],
        "scores": {"step": checks["step"], "psnr": checks["val_psnr"], "ssim": checks["val_ssim"]},
        "baselines": {other: numbers for other, numbers in baselines.items()
                      if other != "constant mean"},  # so far below that it hides the others
        "ranks": ranked[0]["ranks"] if ranked else None,
        "calibration": _calibration(ranked[0]) if ranked else "",
        "pictures": _pictures(folder),
        "settings": [[key, str(value)] for key, value in asdict(config).items()],
    })


def _calibration(record: dict[str, Any]) -> str:
    """What a rank histogram tells, in words."""
    ranks = np.asarray(record["ranks"])
    cut = round((1 - LEVEL) / 2 * len(ranks))
    inside = ranks[cut : len(ranks) - cut].sum()
    stated = 1 - 2 * cut / len(ranks)
    found = f"Step {record['step']:,}: {stated:.0%} intervals hold {inside:.0%} of the truths."
    if isinstance(record["calibration"], str):
        found = f"{found} Of the weights that were kept: {record['calibration']}."
    return f"{found} A cup: the samples are too much alike; a hill: too different."


def _pictures(folder: Path) -> list[dict[str, Any]]:
    """The pictures of at most MOST_PICTURES epochs, evenly spread."""
    paths = sorted(folder.glob("pictures_epoch_*.png"))
    some = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), MOST_PICTURES)).round())
    return [{"epoch": int(re.findall(r"\d+", paths[int(k)].name)[-1]),
             "png": base64.b64encode(paths[int(k)].read_bytes()).decode()} for k in some]
