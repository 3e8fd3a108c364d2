"""Samplers and resolutions of one model: the numbers and the words of that evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsefield.evaluate import metrics, uncertainty
from sparsefield.evaluate.calibration import SETTINGS, describe, pool
from sparsefield.evaluate.cases import ENLARGED, Cases, Outcome
from sparsefield.evaluate.report import (
    cell,
    describe_variant,
    environment_lines,
    expect_psnr,
    in_words,
    recalibrated,
    sample_table,
    scale_line,
    summarise,
)
from sparsefield.flow.samplers import declared_nfe
from sparsefield.model.field import FieldModel

# They work at any resolution.
INTERPOLATIONS = (ENLARGED, "thin-plate RBF", "kriging, one kernel", "kriging, fitted")
MEAN = "mean"
ENOUGH_PICTURES = 64  # for saying which sampler is best
COLUMNS = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "mae": ("MAE", 4),
           "speckle_0.10": ("speckle", 4), "missed_0.10": ("missed", 4),
           "flat_hf": ("flat_hf", 4), "psnr_base": ("base", 2)}


# --- numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """One model on the cases.

    Attributes:
        samplers: {name: `method` and its options}; the posterior mean is among them.
        ensemble: samples of each case at the observed resolution; below 2, no numbers of them.
    """

    model: FieldModel
    cases: Cases
    samplers: dict[str, dict[str, Any]]
    ensemble: int

    def run(self, name: str, rows: int, draws: int = 1, **changes: Any) -> Outcome:
        """Draws of every case by a sampler, at a resolution."""
        options = self.samplers[name] | changes
        total = draws * len(self.cases)
        seconds = 0.1 if sys.stderr.isatty() else 30  # between lines of a log
        with tqdm(total=total, unit="field", desc=f"{name}, {rows} rows", file=sys.stderr,
                  leave=False, mininterval=seconds, miniters=0) as bar:

            def called(done: int, calls: int | None) -> None:
                bar.set_postfix_str(f"call {done}/{calls or '?'}", refresh=False)
                bar.update(0)

            return self.cases.sample(
                self.model, rows=rows, draws=draws, done=bar.update, progress=called, **options
            )


def evaluate_all(
    runner: Runner,
    resolutions: Sequence[int],
    steps_sweep: Sequence[int],
    fitted: dict[str, Any] | None,
) -> tuple[dict[str, Any], dict[int, dict[str, Any]], dict[str, list[np.ndarray]]]:
    """Everything that the report says, the fields {rows: {method: [...]}} and the draws.

    Args:
        fitted: the calibration in the checkpoint, if any.
    """
    cases = runner.cases
    cases.warm_up(runner.model)
    base = {name: runner.run(name, cases.rows, max(1, runner.ensemble))
            for name in runner.samplers if name != MEAN}
    base[MEAN] = runner.run(MEAN, cases.rows)
    outcomes = {}
    for rows in resolutions:
        found = {name: base[name] if rows == cases.rows else runner.run(name, rows)
                 for name in runner.samplers}
        outcomes[rows] = found | {name: cases.interpolate(name, rows) for name in INTERPOLATIONS}
    ensembles = {name: outcome for name, outcome in base.items() if len(outcome.draws[0]) > 1}
    mean_summary = summarise(base[MEAN], cases.numbers(base[MEAN]))
    samples = {name: summarise(outcome, cases.numbers(outcome))
               for name, outcome in base.items() if name != MEAN}
    for summary in samples.values():
        expect_psnr(summary, mean_summary)
    results = {
        "resolutions": {str(rows): {
            "truth": cases.truths(rows) is not None, "methods": summaries(cases, found),
        } for rows, found in outcomes.items()},
        "samples": samples,
        "mean_of_samples": {name: mean_of_samples(cases, outcome)
                            for name, outcome in ensembles.items()},
        "uncertainty": {name: pooled_scores(cases, outcome.draws).to_dict()
                        for name, outcome in ensembles.items()},
        "sweep": sweep(runner, steps_sweep),
    }
    calibrated = SETTINGS["method"]
    if fitted and calibrated in ensembles:
        wide = recalibrated(base[calibrated], cases, fitted["spread"])
        summary = summarise(wide, cases.numbers(wide))
        expect_psnr(summary, mean_summary)
        results["recalibrated"] = {
            "method": calibrated, "factor": fitted["spread"], "fitted": fitted,
            "summary": summary,
        } | pooled_scores(cases, wide.draws).to_dict()
    fields = {rows: {name: outcome.fields for name, outcome in found.items()}
              for rows, found in outcomes.items()}
    return results, fields, {name: outcome.draws for name, outcome in ensembles.items()}


def summaries(cases: Cases, found: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Of every method at one resolution; of samples with what their PSNR should be."""
    rows = {name: {"kind": kind(name), **summarise(outcome, cases.numbers(outcome))}
            for name, outcome in found.items()}
    for row in rows.values():
        if row["kind"] == "sample":
            expect_psnr(row, rows[MEAN])
    return rows


def kind(method: str) -> str:
    """What a result is: numbers of different kinds are not compared."""
    if method in INTERPOLATIONS:
        return "interpolation"
    return "posterior mean" if method == MEAN else "sample"


def pooled_scores(cases: Cases, draws: list[np.ndarray]) -> uncertainty.Uncertainty:
    """Scores of the draws (K, H, W, C) of all cases, over all points that were not observed."""
    return uncertainty.score(*pool([
        uncertainty.unobserved(samples, case.truth, case.observed)
        for samples, case in zip(draws, cases)
    ]))


def mean_of_samples(cases: Cases, outcome: Outcome) -> dict[str, Any]:
    """Of the mean of all draws: MSE 1 + 1/K times that of the posterior mean, if all is right."""
    count = len(outcome.draws[0])
    averages = [samples.mean(axis=0, keepdims=True) for samples in outcome.draws]
    mean = outcome.with_draws(averages, f"mean of {count} samples, each: {outcome.how}", count)
    return summarise(mean, cases.numbers(mean))


def sweep(runner: Runner, steps_sweep: Sequence[int]) -> list[dict[str, Any]]:
    """Quality of samples at the observed resolution against the number of steps."""
    entries = []
    for steps in steps_sweep:
        for name in runner.samplers:
            if name == MEAN or declared_nfe(name, 1) is None:
                continue  # they take no steps of ours
            outcome = runner.run(name, runner.cases.rows, runner.ensemble, num_steps=steps)
            found = summarise(outcome, runner.cases.numbers(outcome))["mean"]
            score = pooled_scores(runner.cases, outcome.draws)
            entries.append({
                "method": name, "num_steps": steps, "nfe": outcome.nfe,
                "seconds": outcome.seconds, "psnr": found["psnr"], "ssim": found["ssim"],
                "speckle_0.10": found["speckle_0.10"], "crps": score.crps,
                "spread_error": score.spread / score.skill,
                "coverage": score.to_dict()["coverage"],
            })
    return entries


# --- words ---------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """metrics_comparison.txt."""
    parts = [header(results)]
    for resolution, found in results["resolutions"].items():
        parts += resolution_tables(results, resolution, found)
    again = results.get("recalibrated")
    rows = dict(results["samples"])
    if again:
        rows[f"{again['method']} x {again['factor']:.2f}"] = again["summary"]
    if rows:
        height, width = results["data"]["height"], results["data"]["width"]
        parts.append(sample_table(f"Samples at the observed resolution, {height} x {width}", rows))
    if results["uncertainty"]:
        parts.append(uncertainty_table(results))
    if results["sweep"]:
        parts.append(sweep_table(results["sweep"]))
    parts.append(recommendation(results["samples"], results["settings"]["seed"]))
    return "\n\n".join(parts) + "\n"


def header(results: dict[str, Any]) -> str:
    settings, data, model = results["settings"], results["data"], results["model"]
    variant = describe_variant(model["model_class"], model["model_args"])
    return "\n".join([
        "MAMBA Diffusion: samplers and resolutions",
        "",
        f"Model:     {settings['checkpoint']}, {model['model_class']}, "
        f"{model['parameters']:,} parameters, step {model['step']}"
        + (f"; {variant}" if variant else ""),
        f"Data:      {data['name']} {data['height']} x {data['width']} x {data['channels']}, "
        f"{len(data['test_indices'])} of {data['sizes'][2]} test pictures",
        scale_line(data),
        f"Observed:  {settings['observe']} of {data['height']} x {data['width']}; "
        f"seed {settings['seed']}",
        *environment_lines(results["environment"]),
        "Numbers are mean ± sd over pictures; base: PSNR of the result averaged down to the "
        "observed\nresolution; mean-3.01: where the PSNR of exact samples lies, see below. Seconds "
        f"are for one field,\nwith as many together as {settings['points']} points allow.",
    ])


def resolution_tables(results: dict[str, Any], resolution: str, found: dict[str, Any]) -> list[str]:
    rows = results["data"]["height"]
    shape = " x ".join(str(int(resolution) // rows * results["data"][side])
                       for side in ("height", "width"))
    truth = "against the real pictures of that size" if found["truth"] else (
        "no truth of that size in the data: only averages over cells are scored")
    methods = found["methods"]
    points = {name: row for name, row in methods.items() if row["kind"] != "sample"}
    samples = {name: row for name, row in methods.items() if row["kind"] == "sample"}
    if int(resolution) == rows:
        points |= {f"mean of {results['settings']['ensemble']} {name}": row
                   for name, row in results["mean_of_samples"].items()}
    parts = [f"{shape}: {truth}\n" + "=" * 72, table("Point estimates", points)]
    if samples:
        parts.append(table("Samples (3 dB below a posterior mean by theory: never compare the two)",
                           samples))
    return parts


def table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    first = next(iter(rows.values()))
    columns = [c for c in COLUMNS if c in first["mean"]]
    expected = "expected_psnr" in first
    heads = "".join(f"{COLUMNS[c][0]:>16}" for c in columns) + f"{'mean-3.01':>11}" * expected
    lines = [title, f"  {'':24}{heads}{'NFE':>7}{'s/field':>10}"]
    for name, row in rows.items():
        cells = "".join(f"{with_sd(row, c, COLUMNS[c][1]):>16}" for c in columns)
        if expected:
            cells += cell(row["expected_psnr"], 2, 11)
        lines.append(f"  {name:24}{cells}{row['nfe']:7.0f}{row['seconds_per_image']:10.3f}")
    lines += [f"  {name}: {row['how']}" for name, row in rows.items() if row["how"] != name]
    return "\n".join(lines)


def with_sd(row: dict[str, Any], name: str, digits: int) -> str:
    return f"{cell(row['mean'][name], digits, 0)} ± {cell(row['sd'][name], digits, 0)}"


def uncertainty_table(results: dict[str, Any]) -> str:
    count = results["settings"]["ensemble"]
    scores = results["uncertainty"]
    top = next(iter(scores.values()))["attainable"]
    levels = "".join(f"{'in ' + level:>10}" for level in top)
    lines = [
        f"Uncertainty: {count} samples per picture, at the points that were not observed",
        "=" * 72,
        f"  {'':12}{'CRPS':>10}{levels}{'spread':>10}{'skill':>10}{'ratio':>8}{'corr.':>8}",
    ]
    again = results.get("recalibrated")
    if again:
        scores = scores | {f"{again['method']} x {again['factor']:.2f}": again}
    for method, score in scores.items():
        inside = "".join(f"{share:10.1%}" for share in score["coverage"].values())
        lines.append(
            f"  {method:12}{score['crps']:10.5f}{inside}{score['spread']:10.4f}"
            f"{score['skill']:10.4f}{score['spread'] / score['skill']:8.2f}"
            f"{score['correlation']:8.2f}"
        )
    ideal = "".join(f"{level:10.1%}" for level in top.values())
    lines.append(f"  {'calibrated':12}{'':10}{ideal}{'':20}{1:8.2f}")
    names = ", ".join(uncertainty.interval_name(level, count) for level in uncertainty.LEVELS)
    lines.append("  spread: rms sd of the samples; skill: rms error of their mean; corr.: of the "
                 f"two, over points.\n  in ...: share of the truth inside the central interval of "
                 f"{names}.")
    if again:
        lines.append(f"  {again['method']} x ...: {describe(again['fitted'])};\n"
                     f"  fitted to samples by {in_words(SETTINGS)}.")
    return "\n".join(lines)


def sweep_table(entries: list[dict[str, Any]]) -> str:
    lines = ["Steps of the samplers, at the observed resolution", "=" * 72,
             f"  {'':12}{'steps':>7}{'NFE':>7}{'PSNR':>9}{'SSIM':>9}{'speckle':>9}{'CRPS':>10}"
             f"{'in 90%':>9}{'spr/err':>9}{'s/field':>10}"]
    for e in sorted(entries, key=lambda e: e["method"]):
        lines.append(
            f"  {e['method']:12}{e['num_steps']:7}{e['nfe']:7.0f}{e['psnr']:9.2f}{e['ssim']:9.4f}"
            f"{e['speckle_0.10']:9.4f}{e['crps']:10.5f}{e['coverage']['90%']:9.1%}"
            f"{e['spread_error']:9.2f}{e['seconds']:10.3f}"
        )
    return "\n".join(lines)


def recommendation(samples: dict[str, dict[str, Any]], seed: int) -> str:
    """Which sampler is best by CRPS, or why that cannot be said."""
    scored = {name: row["per_image"]["crps"] for name, row in samples.items()
              if "crps" in row["per_image"]}
    if len(scored) < 2:
        return "No sampler is recommended: that takes the CRPS of two or more."
    pictures = len(next(iter(scored.values())))
    if pictures < ENOUGH_PICTURES:
        return (f"No sampler is recommended: {pictures} pictures are too few to choose one, at "
                f"least {ENOUGH_PICTURES} are needed (--num_samples).")
    best = min(scored, key=lambda name: metrics.average(scored[name]))
    lines, tied = [], [best]
    for name, values in scored.items():
        if name == best:
            continue
        mean, low, high = metrics.paired_bootstrap(np.subtract(values, scored[best]), seed=seed)
        lines.append(f"  {name} − {best}: {mean:+.5f} [{low:+.5f}, {high:+.5f}]")
        if low <= 0:
            tied.append(name)
    cheapest = min(tied, key=lambda name: samples[name]["seconds_per_image"])
    verdict = f"Recommended by CRPS on {pictures} pictures: {cheapest}"
    if len(tied) > 1:
        verdict += f", the fastest of those not told apart ({', '.join(tied)})"
    return "\n".join([f"{verdict}.", "  differences of CRPS with paired 95 % intervals:", *lines])
