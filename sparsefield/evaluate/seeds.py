"""How much of V2 - V1 is the luck of a training: the comparison over several seeds of it.

An interval over pictures says how sure a difference between two given models is; how far a model of
another seed would lie from it only further trainings can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sparsefield.evaluate.cases import Cases
from sparsefield.evaluate.metrics import average
from sparsefield.model.field import FieldModel

SHOWN = {  # kind: metric: title, decimals
    "mean": {"psnr": ("posterior mean: PSNR, dB", 3), "ssim": ("posterior mean: SSIM", 4)},
    "sample": {"psnr": ("sample: PSNR, dB", 3), "crps": ("CRPS", 5),
               "speckle_0.10": ("speckle, threshold 0.10", 5),
               "flat_hf": ("flat_hf (grain in flat areas)", 5)},
}


def further(
    cases: Cases, pairs: Iterable[dict[str, FieldModel]], sampler: dict[str, Any], ensemble: int,
    done: Callable[[int], object],
) -> list[dict[str, dict[str, dict[str, float]]]]:
    """{kind: {V1, V2: {metric: mean over the cases}}} of every pair, as `of_summaries` has it.

    Args:
        sampler, ensemble: as in `sparsefield.evaluate.comparison.compare`. done: called with the
            number of pictures that have been drawn.
    """
    found = []
    for models in pairs:
        numbers: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in SHOWN}
        for name, model in models.items():
            for kind, options in (("mean", {"method": "mean"}),
                                  ("sample", {**sampler, "draws": ensemble})):
                rows = cases.numbers(cases.sample(model, done=done, **options))
                numbers[kind][name] = {
                    metric: average([row[metric] for row in rows])
                    for metric in SHOWN[kind] if metric in rows[0]
                }
        found.append(numbers)
    return found


def of_summaries(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The same of the pair that was compared, from its results."""
    return {kind: {name: {metric: row["mean"][metric] for metric in SHOWN[kind]
                          if metric in row["mean"]}
                   for name, row in results[kind].items()} for kind in SHOWN}


def over_seeds(pairs: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """{kind: {metric: {V1, V2, V2 - V1: {each, mean, sd}}}}; sd between seeds, of a single one
    undefined."""
    result: dict[str, Any] = {}
    for kind, metrics in SHOWN.items():
        result[kind] = {}
        for metric in metrics:
            if metric not in pairs[0][kind]["V1"]:
                continue
            one, other = (np.array([pair[kind][name][metric] for pair in pairs])
                          for name in ("V1", "V2"))
            rows = {"V1": one, "V2": other, "V2 - V1": other - one}
            result[kind][metric] = {name: {
                "each": row.tolist(), "mean": float(row.mean()),
                "sd": float(row.std(ddof=1)) if len(row) > 1 else math.nan,
            } for name, row in rows.items()}
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
                     f"{row['sd']:.{digits}f}" for (name, row), sign in zip(rows.items(), "  +")]
            each = ", ".join(f"{value:+.{digits}f}" for value in rows["V2 - V1"]["each"])
            lines.append(f"{label}: {'; '.join(parts)} ({each})".replace("  ", " "))
    return "\n".join(lines)
