"""Samplers and resolutions of one checkpoint, V1 or V2, against the real picture at each size.

    python eval_sde_multiscale.py --checkpoint checkpoints_mamba_v2/mamba_v2_best.pth
    python eval_sde_multiscale.py --checkpoint a.pth --samplers heun sde mean --temperature 1 \\
        --resolutions 32 64 128 256 --num_steps 16 --num_samples 4
    python eval_sde_multiscale.py --checkpoint a.pth --steps_sweep 1 2 4 8 16 32 64
    python eval_sde_multiscale.py --help                       # every setting, explained

The model sees points of the 32 x 32 picture and is asked for 32, 64, 96, ... The truth at each
resolution is the real picture at that resolution; the 32 x 32 one is its area average. Where a
data set has no finer truth, that is said, and only the agreement of the downsampled result with
the 32 x 32 truth is scored. Samples and posterior means are told apart everywhere: theory puts
their PSNR 3 dB apart. Written into --save_dir: metrics_comparison.txt and .json,
multiscale_comparison.png, performance_chart.png, diversity.png and uncertainty.png.
metrics_comparison.json holds

    settings, environment, data, model    of this run
    table          a record for each picture and method, see sparsefield/evaluate/tables.py
    summary        {rows: {kind: {method: {how, nfe, seconds, members, mean, median, sd, ...}}}}
    resolutions    {rows: {"truth": whether there is one of that size}}
    samples        {sampler: summary} at the observed resolution, of all samples
    uncertainty    {sampler: metrics.ensemble_scores}, over all hidden points
    recalibrated   {method, factor, fitted, summary, scores}: after the checkpoint's calibration
    sweep          a record for each sampler and number of steps of --steps_sweep
    gain_over_kriging    [mean, low, high] of the PSNR of the posterior mean, dB
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from sparsefield import cli
from sparsefield.device import pick_device
from sparsefield.errors import UserError
from sparsefield.evaluate import metrics, plots, tables
from sparsefield.evaluate.calibration import SETTINGS, pool
from sparsefield.evaluate.cases import (
    ENLARGED,
    Cases,
    Outcome,
    open_test_data,
    spread,
    with_finest_truth,
)
from sparsefield.evaluate.outputs import EvaluationConfig
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
class Config(EvaluationConfig):
    """Settings of the evaluation."""

    checkpoint: str = V2
    """Checkpoint of V1 or V2; the model is rebuilt from what it holds."""
    samplers: tuple[str, ...] = ("heun", "sde", "ddim", "mean")
    """Any of heun, euler, sde, ddim, adaptive (samples) and mean (the posterior mean)."""
    resolutions: tuple[int, ...] = (32, 64, 96)
    """Rows of the fields asked for: multiples of those that were observed."""
    num_steps: int = 8
    """Steps of the samplers; Heun takes 2 n - 1 evaluations."""
    num_samples: int = 10
    """Test pictures."""
    temperature: float = 0.5
    """Of sde: how strongly errors of earlier steps are forgotten (0 is the ODE)."""
    eta: float = 0.0
    """Of ddim: share of the noise renewed at each step (0 is Euler's rule, 1 ancestral)."""
    ensemble: int = 20
    """Samples per picture for CRPS and calibration, at the observed resolution; 0 for none."""
    steps_sweep: tuple[int, ...] = ()
    """Numbers of steps to compare, at the observed resolution: 1 2 4 8 16 32 64, say."""
    points: int = 4096
    """Most points that one model call answers: several small fields, or a block of a large one."""
    save_dir: str = "eval_sde_multiscale"
    """Folder for the report and the pictures: new, empty, or of an earlier evaluation."""

    def options(self, method: str) -> dict[str, float]:
        """Settings of one sampler."""
        return {"sde": {"temperature": self.temperature}, "ddim": {"eta": self.eta}}.get(method, {})

    def methods(self) -> dict[str, dict]:
        """{sampler: everything that `sample` takes of it}; the posterior mean is always there."""
        names = dict.fromkeys((*self.samplers, MEAN))
        common = {"num_steps": self.num_steps}
        return {name: {"method": name, **common, **self.options(name)} for name in names}

    def check(self) -> None:
        """Raises UserError for a value that nothing can be evaluated with."""
        self.pattern("num_samples", "points")
        for name in ("samplers", "resolutions"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise UserError(f"--{name}: give at least one, and each once")
        for method in self.samplers:
            check_sampler(method, self.num_steps, self.options(method))
        if max(self.resolutions) > MOST_ROWS:
            raise UserError(f"--resolutions {max(self.resolutions)}: at most {MOST_ROWS} rows")
        if self.ensemble < 0 or self.ensemble == 1:
            raise UserError(f"ensemble={self.ensemble}: give at least 2 samples, or 0 for none")
        if self.steps_sweep and not self.ensemble:
            raise UserError("--steps_sweep compares CRPS and needs --ensemble of at least 2")
        if min(self.steps_sweep, default=1) < 1:
            raise UserError("--steps_sweep: every number of steps must be at least 1")


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
        seconds = 0.1 if sys.stderr.isatty() else 30  # between lines of a log
        with tqdm(total=draws * len(self.cases), unit="field", desc=f"{name}, {rows} rows",
                  file=sys.stderr, leave=False, mininterval=seconds, miniters=0) as bar:

            def called(done: int, calls: int | None) -> None:
                bar.set_postfix_str(f"call {done}/{calls or '?'}", refresh=False)
                bar.update(0)

            return self.cases.sample(
                self.model, rows=rows, draws=draws, done=bar.update, progress=called, **options
            )

    def rows_of(self, outcome: Outcome, name: str, kind: str = "sample", **more: Any
                ) -> pd.DataFrame:
        """Rows of the table; see there."""
        steps = 0 if name == MEAN else self.samplers[name]["num_steps"]
        kind = "mean" if name == MEAN else kind
        return tables.rows_of(self.cases, outcome, kind, name, **{"steps": steps, **more})

    def base(self) -> dict[str, Outcome]:
        """All samplers at the observed resolution, with all samples."""
        return {name: self.run(name, self.cases.rows, 1 if name == MEAN else max(1, self.ensemble))
                for name in self.samplers}

    def sweep(self, steps_sweep: Sequence[int]) -> list[pd.DataFrame]:
        """Samples at the observed resolution with other numbers of steps."""
        return [
            self.rows_of(self.run(name, self.cases.rows, self.ensemble, num_steps=steps), name,
                         "sweep", steps=steps)
            for steps in steps_sweep for name in self.samplers
            if name != MEAN and declared_nfe(name, 1) is not None  # others take no steps of ours
        ]


def mean_of_samples(outcome: Outcome) -> Outcome:
    """The mean of all draws: MSE 1 + 1/K times that of the posterior mean, if all is right."""
    count = len(outcome.draws[0])
    averages = [samples.mean(axis=0, keepdims=True) for samples in outcome.draws]
    return outcome.with_draws(averages, f"mean of {count} samples, each: {outcome.how}", count)


def pooled_scores(cases: Cases, draws: list[np.ndarray]) -> dict[str, Any]:
    """Scores of the draws (K, H, W, C) of all cases, over all points that were not observed."""
    return metrics.ensemble_scores(*pool([
        metrics.unobserved(samples, case.truth, case.observed)
        for samples, case in zip(draws, cases, strict=True)
    ]))


def evaluate_all(
    runner: Runner, resolutions: Sequence[int], steps_sweep: Sequence[int],
    fitted: dict[str, Any] | None,
) -> tuple[dict[str, Any], dict[int, dict[str, list[np.ndarray]]], dict[str, list[np.ndarray]]]:
    """The numbers, the fields {rows: {method: [...]}} and the draws {method: [...]}.

    Args:
        fitted: the calibration in the checkpoint, if any.
    """
    cases = runner.cases
    cases.warm_up(runner.model)
    base = runner.base()
    ensembles = {name: made for name, made in base.items() if len(made.draws[0]) > 1}
    parts = [runner.rows_of(made, name) for name, made in base.items()]
    parts += [runner.rows_of(mean_of_samples(made), name, "mean of samples")
              for name, made in ensembles.items()]
    fields = {}
    for rows in dict.fromkeys((cases.rows, *resolutions)):
        made = base if rows == cases.rows else {
            name: runner.run(name, rows) for name in runner.samplers}
        known = {name: cases.interpolate(name, rows) for name in INTERPOLATIONS}
        if rows != cases.rows:
            parts += [runner.rows_of(own, name) for name, own in made.items()]
        parts += [tables.rows_of(cases, own, "baseline", name) for name, own in known.items()]
        if rows in resolutions:
            fields[rows] = {name: own.fields for name, own in {**made, **known}.items()}
    method = SETTINGS["method"]
    wide = None
    if fitted and method in ensembles:
        wide = tables.recalibrated(base[method], fitted["spread"])
        parts.append(runner.rows_of(wide, method, "calibrated"))
    table = pd.concat([*parts, *runner.sweep(steps_sweep)], ignore_index=True)
    summary = {str(rows): tables.summarise(table[(table["rows"] == rows)
                                                 & (table["kind"] != "sweep")])
               for rows in dict.fromkeys((cases.rows, *resolutions))}
    observed = summary[str(cases.rows)]
    means = table[(table["rows"] == cases.rows) & table["method"].isin([MEAN, "kriging, fitted"])]
    gain = tables.differences_of(means.assign(kind="mean"), "mean", "psnr", "kriging, fitted", MEAN)
    results = {
        "table": table,
        "summary": summary,
        "resolutions": {str(rows): {"truth": cases.truths(rows) is not None}
                        for rows in resolutions},
        "samples": observed.get("sample", {}),
        "uncertainty": {name: pooled_scores(cases, made.draws) for name, made in ensembles.items()},
        "sweep": tables.sweep_of(table),
        "gain_over_kriging": metrics.paired_bootstrap(gain.to_numpy()),
    }
    if wide is not None and fitted:
        results["recalibrated"] = {
            "method": method, "factor": fitted["spread"], "fitted": fitted,
            "summary": observed["calibrated"][method], "scores": pooled_scores(cases, wide.draws),
        }
    return results, fields, {name: made.draws for name, made in ensembles.items()}


# --- command -------------------------------------------------------------------------------------


def contents(results: dict, fields: dict, draws: dict, cases: Cases) -> dict[str, bytes]:
    """The report and its pictures, by name."""
    about = (f"{results['data']['name']}, {len(cases)} test pictures, "
             f"{results['settings']['observe']} of {cases.rows} x {cases.columns} observed")
    style = plots.Style.of(results["data"])
    files = {
        "metrics_comparison.json": tables.as_json(results).encode(),
        "metrics_comparison.txt": tables.multiscale_report(results).encode(),
        "multiscale_comparison.png": plots.resolutions(cases, fields, style),
        "performance_chart.png": plots.performance(results, about),
    }
    if draws:
        method = next(iter(draws))
        files["diversity.png"] = plots.diversity(cases, method, draws[method], style)
        files["uncertainty.png"] = plots.calibration(results["uncertainty"], about)
    return files


def evaluate(config: Config) -> dict[str, Any]:
    """Run the evaluation and write its files. Raises UserError for what the user can mend.

    Returns:
        what metrics_comparison.json holds, see above; `table` is a DataFrame.
    """
    config.check()
    device = pick_device(config.device)
    checkpoint = load_checkpoint(config.checkpoint)
    data = open_test_data(checkpoint, config.data, config.data_test)
    model = build_model(checkpoint, device)
    known = with_finest_truth(data.test, config.resolutions)
    out = config.folder(FILES, config.checkpoint)
    cases = Cases(
        data.test, config.pattern(), spread(known, config.num_samples), seed=config.seed,
        resolutions=config.resolutions, points=config.points, device=device,
    )
    numbers, fields, draws = evaluate_all(
        Runner(model, cases, config.methods(), config.ensemble), config.resolutions,
        config.steps_sweep, checkpoint.get("calibration"),
    )
    results = {
        **tables.about(config, device, data, cases),
        "model": tables.describe_model(checkpoint, model, config.checkpoint),
        **numbers,
    }
    out.write(contents(results, fields, draws, cases))
    return results


def main(arguments: list[str] | None = None) -> None:
    config = cli.parse(Config, arguments, __doc__)
    print(tables.multiscale_report(evaluate(config)))
    print(f"Written: {config.save_dir}/metrics_comparison.txt, .json and pictures",
          file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
