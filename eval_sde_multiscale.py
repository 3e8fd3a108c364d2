"""Samplers and resolutions of one checkpoint, V1 or V2, against the real picture at each size.

    python eval_sde_multiscale.py --checkpoint checkpoints_mamba_v2/mamba_v2_best.pth
    python eval_sde_multiscale.py --checkpoint a.pth --samplers heun sde mean --temperature 1 \\
        --resolutions 32 64 128 256 --num_steps 16 --num_samples 4
    python eval_sde_multiscale.py --checkpoint a.pth --steps_sweep 1 2 4 8 16 32 64

The model sees points of, say, the 32 x 32 picture and is asked for 32, 64, 96, ... The truth at
each resolution is the real picture at that resolution; the 32 x 32 one is its area average. Where
a data set has no finer truth, that is said, and only the agreement of the downsampled result with
the 32 x 32 truth is scored. Samples and posterior means are told apart everywhere: theory puts
their PSNR 3 dB apart. Written into --save_dir: metrics_comparison.txt and .json,
multiscale_comparison.png, performance_chart.png, diversity.png and uncertainty.png.
metrics_comparison.json holds

    settings, environment, data, model    of this run
    table          a record for each picture and method, see sparsefield/evaluate/tables.py
    summary        {rows: {kind: {method: {how, nfe, seconds, members, mean, median, sd, ...}}}}
    uncertainty    {sampler: metrics.ensemble_scores}, over all hidden points
    gain_over_kriging    [mean, low, high] of the PSNR of the posterior mean, dB
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sparsefield import cli
from sparsefield.data.scale import frames_of
from sparsefield.device import pick_device
from sparsefield.errors import UserError
from sparsefield.evaluate import metrics, plots, tables
from sparsefield.evaluate.calibration import METHOD, pool
from sparsefield.evaluate.cases import ENLARGED, Cases, spread, with_finest_truth
from sparsefield.flow.samplers import check_sampler, declared_nfe
from sparsefield.model.bundled import V2
from sparsefield.model.checkpoint import build_model, load_checkpoint
from sparsefield.model.field import FieldModel

FILES = ("metrics_comparison.json", "metrics_comparison.txt", "multiscale_comparison.png",
         "performance_chart.png", "diversity.png", "uncertainty.png")
# They work at any resolution.
INTERPOLATIONS = (ENLARGED, "thin-plate RBF", "kriging, one kernel", "kriging, fitted")
MEAN = "mean"
MOST_ROWS = 1024


@dataclass
class Config(tables.EvaluationConfig):
    """Settings of the evaluation."""

    checkpoint: str = V2
    """Checkpoint of V1 or V2; the model is rebuilt from what it holds."""
    samplers: tuple[str, ...] = ("heun", "sde", "ddim", "mean")
    """Any of heun, euler, sde, ddim, adaptive (samples) and mean (the posterior mean)."""
    resolutions: tuple[int, ...] = ()
    """Rows of the fields asked for: multiples of those that were observed. Default: once, twice and
    three times as many."""
    num_steps: int = 8
    """Steps of the samplers; Heun takes 2 n - 1 evaluations."""
    num_samples: int = 10
    """Test pictures."""
    temperature: float = 0.5
    """Of sde: how strongly errors of earlier steps are forgotten (0 is the ODE)."""
    eta: float = 0.0
    """Of ddim: share of the noise renewed at each step (0: deterministic, 1: ancestral)."""
    ensemble: int = 20
    """Samples per picture for CRPS and calibration, at the observed resolution; 0 for none."""
    steps_sweep: tuple[int, ...] = ()
    """Numbers of steps to compare, at the observed resolution: 1 2 4 8 16 32 64, say."""
    points: int = 4096
    """Most query points of one model call: several small fields, or a block of a large one."""
    save_dir: str = "eval_sde_multiscale"
    """Folder for the report and the pictures: new, empty, or of an earlier evaluation."""

    def methods(self) -> dict[str, dict]:
        """{sampler: its options}, with the posterior mean, which is always there."""
        options = {"sde": {"temperature": self.temperature}, "ddim": {"eta": self.eta}}
        return {name: options.get(name, {}) for name in dict.fromkeys((*self.samplers, MEAN))}

    def check(self) -> None:
        """Raises UserError for a value that nothing can be evaluated with."""
        self.pattern("num_samples", "points")
        for name, given in (("samplers", self.samplers), ("resolutions", self.resolutions)):
            if len(set(given)) != len(given) or not self.samplers:
                raise UserError(f"--{name}: give at least one, and each once")
        for method, options in self.methods().items():
            check_sampler(method, self.num_steps, options)
        if max(self.resolutions, default=0) > MOST_ROWS:
            raise UserError(f"--resolutions {max(self.resolutions)}: at most {MOST_ROWS} rows")
        if self.ensemble < 0 or self.ensemble == 1:
            raise UserError(f"ensemble={self.ensemble}: give at least 2 samples, or 0 for none")
        if self.steps_sweep and not self.ensemble:
            raise UserError("--steps_sweep compares CRPS and needs --ensemble of at least 2")
        if min(self.steps_sweep, default=1) < 1:
            raise UserError("--steps_sweep: every number of steps must be at least 1")


# --- numbers -------------------------------------------------------------------------------------


def evaluate_all(
    model: FieldModel, cases: Cases, config: Config, fitted: dict[str, Any] | None
) -> tuple[pd.DataFrame, dict[int, dict[str, list[np.ndarray]]], dict[str, list[np.ndarray]]]:
    """The table, the fields {rows: {method: [...]}} and the draws {sampler: [...]}.

    Args:
        fitted: the calibration in the checkpoint, if any.
    """
    samplers = config.methods()
    cases.warm_up(model)
    parts, fields, ensembles = [], {}, {}
    for rows in dict.fromkeys((cases.rows, *config.resolutions)):
        fields[rows] = {}
        for name, options in samplers.items():
            kind, steps = ("mean", 0) if name == MEAN else ("sample", config.num_steps)
            draws = max(1, config.ensemble) if rows == cases.rows and name != MEAN else 1
            made = cases.sample(model, rows=rows, draws=draws, bar=name, method=name,
                                num_steps=config.num_steps, **options)
            fields[rows][name] = made.fields
            parts.append(tables.rows_of(cases, made, kind, name, steps=steps))
            if draws > 1:
                ensembles[name] = made
        for name in INTERPOLATIONS:
            made = cases.interpolate(name, rows)
            fields[rows][name] = made.fields
            parts.append(tables.rows_of(cases, made, "baseline", name))
    if fitted and METHOD in ensembles:
        wide = ensembles[METHOD].widened(fitted["spread"])
        parts.append(tables.rows_of(cases, wide, "calibrated", METHOD,
                                    steps=config.num_steps))
    for steps in config.steps_sweep:
        for name, options in samplers.items():
            if name != MEAN and declared_nfe(name, 1) is not None:  # others take no steps of ours
                made = cases.sample(model, draws=config.ensemble, bar=f"{name}, {steps} steps",
                                    method=name, num_steps=steps, **options)
                parts.append(tables.rows_of(cases, made, "sweep", name, steps=steps))
    draws_of = {name: made.draws for name, made in ensembles.items()}
    return pd.concat(parts, ignore_index=True), fields, draws_of


# --- command -------------------------------------------------------------------------------------


def evaluate(config: Config) -> dict[str, Any]:
    """Run the evaluation and write its files; what metrics_comparison.json holds, with `table` as a
    DataFrame. Raises UserError for what the user can mend."""
    config.check()
    device = pick_device(config.device)
    checkpoint = load_checkpoint(config.checkpoint)
    model = build_model(checkpoint, device)
    data, out = config.open(checkpoint, FILES, config.checkpoint)
    if not config.resolutions:
        fitting = [k * data.height for k in (1, 2, 3) if k == 1 or k * data.height <= MOST_ROWS]
        config = replace(config, resolutions=tuple(fitting))
    if frames_of(data.test) > 1:
        raise UserError(f"{config.checkpoint}: learnt sequences, whose fields are not compared at "
                        "other resolutions; see eval_v1_vs_v2.py")
    chosen = spread(with_finest_truth(data.test, config.resolutions), config.num_samples)
    cases = Cases(data.test, config.pattern(), chosen, seed=config.seed, points=config.points,
                  resolutions=config.resolutions, device=device)
    table, fields, draws = evaluate_all(model, cases, config, checkpoint.get("calibration"))
    by_rows = dict(list(table.groupby("rows")))
    gain = tables.difference(by_rows[cases.rows], ("mean", MEAN), ("baseline", "kriging, fitted"))
    results = {
        **tables.about(config, data, cases),
        "model": tables.describe_model(checkpoint, model, config.checkpoint),
        "table": table,
        "summary": {str(rows): tables.summarise(own) for rows, own in by_rows.items()},
        "uncertainty": {name: metrics.ensemble_scores(*pool(own, cases))
                        for name, own in draws.items()},
        "gain_over_kriging": metrics.paired_bootstrap(gain["psnr"], seed=config.seed),
    }
    about = (f"{data.name}, {len(cases)} test pictures, {config.observe} of {cases.rows} x "
             f"{cases.columns} observed")
    files = {
        "metrics_comparison.json": tables.as_json(results).encode(),
        "metrics_comparison.txt": tables.multiscale_report(results).encode(),
        "multiscale_comparison.png": plots.resolutions(cases, fields, data),
        "performance_chart.png": plots.performance(results, about),
    }
    if draws:
        method = next(iter(draws))
        files["diversity.png"] = plots.diversity(cases, method, draws[method], data)
        files["uncertainty.png"] = plots.calibration(results["uncertainty"], about)
    out.write(files)
    return results


def main(arguments: list[str] | None = None) -> None:
    config = cli.parse(Config, arguments, __doc__)
    print(tables.multiscale_report(evaluate(config)))
    print(f"Written: {config.save_dir}/metrics_comparison.txt, .json and pictures",
          file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
