"""How much of V2 - V1 is the luck of a training: the comparison over several seeds of it.

An interval over pictures says how sure a difference between two given models is; how far a model of
another seed would lie from it only further trainings can tell.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SHOWN = {  # kind: metric: title, decimals
    "mean": {"psnr": ("posterior mean: PSNR, dB", 3), "ssim": ("posterior mean: SSIM", 4)},
    "sample": {"psnr": ("sample: PSNR, dB", 3), "crps": ("CRPS", 5),
               "speckle_0.10": ("speckle, threshold 0.10", 5),
               "flat_hf": ("flat_hf (grain in flat areas)", 5)},
}


def over_seeds(pairs: list[dict[str, dict[str, dict[str, Any]]]]) -> dict[str, Any]:
    """How numbers vary between trainings.

    Args:
        pairs: two or more {kind: {V1, V2: summary}}, see `sparsefield.evaluate.report.summarise`.
    Returns:
        {kind: {metric: {V1, V2, V2 - V1: {each, mean, sd}}}} of what is SHOWN and there.
    """
    result: dict[str, Any] = {kind: {} for kind in SHOWN}
    for kind, metrics in SHOWN.items():
        for metric in metrics:
            if metric not in pairs[0][kind]["V1"]["mean"]:
                continue
            one, other = (np.array([pair[kind][name]["mean"][metric] for pair in pairs])
                          for name in ("V1", "V2"))
            rows = {"V1": one, "V2": other, "V2 - V1": other - one}
            result[kind][metric] = {
                name: {"each": row.tolist(), "mean": float(row.mean()),
                       "sd": float(row.std(ddof=1))} for name, row in rows.items()
            }
    return result


def section(found: dict[str, Any]) -> str:
    """The words of `over_seeds`."""
    count = len(next(iter(found["mean"].values()))["V1"]["each"])
    title = f"Over {count} seeds of training (mean ± sd between seeds; first the pair above)"
    lines = [title, "=" * len(title)]
    for kind, metrics in SHOWN.items():
        for metric, (label, digits) in metrics.items():
            rows = found[kind].get(metric)
            if rows is None or math.isnan(rows["V2 - V1"]["mean"]):
                continue
            parts = [f"{name.replace('-', '−')} {row['mean']:{sign}.{digits}f} ± "
                     f"{row['sd']:.{digits}f}"
                     for (name, row), sign in zip(rows.items(), ("", "", "+"))]
            each = ", ".join(f"{value:+.{digits}f}" for value in rows["V2 - V1"]["each"])
            lines.append(f"{label}: {'; '.join(parts)} ({each})")
    return "\n".join(lines)
