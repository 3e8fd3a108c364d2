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
"""

from __future__ import annotations

if __name__ == "__main__":
    import sparsefield.interrupt  # noqa: F401 (first: Ctrl-C during the imports below)

import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.transform import resize
from torch import Tensor, nn
from tqdm import tqdm

from eval_v1_vs_v2 import environment, plain, summarise
from sparsefield import cli, metrics, plots_multiscale, uncertainty
from sparsefield.baselines import BASELINES, keep_observations
from sparsefield.calibration import widen
from sparsefield.checkpoint import build_model, load_checkpoint, write_atomically
from sparsefield.coords import grid_coords
from sparsefield.data import Pattern, Scale, Split, frozen_case, parse_pattern
from sparsefield.distributed import pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluation import Outcome, open_test_data
from sparsefield.outputs import OutputFolder
from sparsefield.samplers import check_sampler, declared_nfe, noise_seed, sample
from sparsefield.validation import grid_case

BICUBIC = "biharmonic + bicubic"
FILES = ("metrics_comparison.json", "metrics_comparison.txt", "multiscale_comparison.png",
         "performance_chart.png", "diversity.png", "uncertainty.png")
BASELINES_AT_ANY_SIZE = ("thin-plate RBF", "kriging")


@dataclass
class Config:
    """Settings of the evaluation."""

    checkpoint: str = "checkpoints_mamba_v2/mamba_v2_best.pth"
    """Checkpoint of V1 or V2; the model is rebuilt from what it holds."""
    samplers: tuple[str, ...] = ("heun", "sde", "ddim", "mean")
    """Any of heun, euler, sde, ddim, adaptive (samples) and mean (the posterior mean)."""
    resolutions: tuple[int, ...] = (32, 64, 96)
    """Rows of the fields asked for: multiples of those that were observed."""
    num_steps: int = 50
    """Steps of the samplers; Heun takes 2 n - 1 evaluations."""
    num_samples: int = 10
    """Test pictures."""
    temperature: float = 0.5
    """Of sde: how strongly errors of earlier steps are forgotten (0 is the ODE)."""
    eta: float = 0.0
    """Of ddim: share of the noise renewed at each step (0 is Euler's rule, 1 ancestral)."""
    num_draws: int = 4
    """Of mean: noises averaged."""
    ensemble: int = 20
    """Samples per picture for CRPS and calibration, at the observed resolution; 0 for none."""
    steps_sweep: tuple[int, ...] = ()
    """Numbers of steps to compare, at the observed resolution: 1 2 4 8 16 32 64, say."""
    grid: str = "quadratic"
    """Time steps: quadratic (small near the data) or uniform."""
    points: int = 4096
    """Most points that one model call answers: several small fields, or a block of a large one."""
    data: str | None = None
    """What to test on, when it is not the test part of what was trained on."""
    data_test: str | None = None
    """An .npz file to test on, all of its pictures."""
    observe: str = "random:0.2"
    """Which points are observed."""
    seed: int = 0
    """Of observations and noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    save_dir: str = "eval_sde_multiscale"
    """Folder for the report and the pictures."""

    def options(self, method: str) -> dict[str, float]:
        """Settings of one sampler."""
        return {"sde": {"temperature": self.temperature}, "ddim": {"eta": self.eta},
                "mean": {"num_draws": self.num_draws}}.get(method, {})

    def check(self) -> None:
        """Raises UserError for a value that nothing can be evaluated with."""
        require_seed(self.seed)
        for name in ("samplers", "resolutions"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise UserError(f"--{name}: give at least one, and each once")
        for method in self.samplers:
            check_sampler(method, self.num_steps, self.options(method))
        for name in ("num_samples", "points"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.ensemble < 0 or self.ensemble == 1:
            raise UserError(f"ensemble={self.ensemble}: give at least 2 samples, or 0 for none")
        if self.steps_sweep and not self.ensemble:
            raise UserError("--steps_sweep compares CRPS and needs --ensemble of at least 2")
        if min(self.steps_sweep, default=1) < 1:
            raise UserError("--steps_sweep: every number of steps must be at least 1")


# --- the test ------------------------------------------------------------------------------------


class MultiscaleTest:
    """Frozen test cases, and what is true of them at several resolutions.

    Args:
        split: fields of height H. pattern: which points are observed. count: cases, at most.
        resolutions: numbers of rows, multiples of H. seed: of observations and noise.
    Attributes:
        indices: fields of the split, evenly spread over those with real truth at the largest
            resolution that any of them has. cases, tensors: see `frozen_case`, `grid_case`.
        truths: {resolution: [(H, W, C) in [0, 1]]} where all the cases have it.
    Raises:
        UserError: a resolution is no multiple of H.
    """

    def __init__(
        self, split: Split, pattern: Pattern, count: int, resolutions: tuple[int, ...], seed: int
    ):
        self.rows, self.columns, self.channels = split.example(0).shape
        wrong = [r for r in resolutions if r < 1 or r % self.rows]
        if wrong:
            raise UserError(f"--resolutions {wrong[0]}: give multiples of the {self.rows} rows "
                            "that the fields have, so that results can be averaged down to them")
        self.indices = self._choose(split, count, sorted(resolutions, reverse=True))
        self.cases = [frozen_case(split, i, pattern, seed) for i in self.indices]
        self.tensors = [grid_case(case) for case in self.cases]
        self.truths = {}
        for resolution in resolutions:
            fields = [self._truth(split, i, resolution) for i in self.indices]
            if all(field is not None for field in fields):
                self.truths[resolution] = [(field + 1) / 2 for field in fields]
        self.base = [(case["truth"] + 1) / 2 for case in self.cases]

    def __len__(self) -> int:
        return len(self.cases)

    def _truth(self, split: Split, index: int, resolution: int) -> np.ndarray | None:
        if resolution == self.rows:
            return split.example(index)
        return None if self.rows != self.columns else split.high_resolution(index, resolution)

    def _choose(self, split: Split, count: int, largest_first: list[int]) -> list[int]:
        for resolution in [*largest_first, self.rows]:
            known = [i for i in range(len(split)) if self._truth(split, i, resolution) is not None]
            if known:
                break
        places = np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int)
        return [known[place] for place in places]

    def shape(self, resolution: int) -> tuple[int, int]:
        return resolution, resolution // self.rows * self.columns

    def queries(self, case: int, resolution: int) -> tuple[Tensor, Tensor]:
        """Flat indices (N,) and coordinates (N, 2) of the points that exist at a resolution."""
        exists = ~np.isnan(self.cases[case]["truth"][..., 0])
        factor = resolution // self.rows
        fine = exists.repeat(factor, axis=0).repeat(factor, axis=1)
        index = torch.from_numpy(np.flatnonzero(fine))
        return index, grid_coords(*fine.shape)[index]

    def observations(self, case: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (M, 2) and values (M, C) in [0, 1]."""
        tensors = self.tensors[case]
        return tensors["input_coords"].numpy(), (tensors["input_values"].numpy() + 1) / 2

    def outcome(self, fields: list[np.ndarray], resolution: int, **rest) -> Outcome:
        """Scores of fields: against the truth of that size, and averaged down to the base's."""
        factor = resolution // self.rows
        numbers = []
        for case, found in enumerate(fields):
            scores = {}
            if factor > 1:
                scores["psnr_base"] = metrics.psnr(area_average(found, factor), self.base[case])
            if resolution in self.truths:
                scores |= metrics.evaluate(found, self.truths[resolution][case])
            numbers.append(scores)
        return Outcome(fields, numbers, **rest)


def area_average(values: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, C) averaged over squares of factor x factor points."""
    height, width, channels = values.shape
    cells = values.reshape(height // factor, factor, width // factor, factor, channels)
    return cells.mean(axis=(1, 3))


# --- methods -------------------------------------------------------------------------------------


class Runner:
    """Runs one model on the cases of a test, several fields or a block of one at a time."""

    def __init__(self, model: nn.Module, test: MultiscaleTest, config: Config):
        self.model, self.test, self.config = model, test, config
        self.device = next(model.parameters()).device
        self._sample([(0, 0)], test.rows, method="mean", num_draws=1)  # compiles what is compiled

    def run(
        self, method: str, resolution: int, num_steps: int, draws: int = 1
    ) -> tuple[Outcome, list[np.ndarray]]:
        """Outcome of the first draw of every case, and all draws (K, H, W, C) of every case."""
        jobs = [(case, draw) for case in range(len(self.test)) for draw in range(draws)]
        fields: dict[int, list] = defaultdict(list)
        evaluations = seconds = 0.0
        what = f"{method}, {num_steps} steps, {resolution} rows"
        with tqdm(total=len(jobs), unit="field", desc=what, file=sys.stderr, leave=False) as bar:
            for group in self._groups(jobs, resolution):
                start = self._now()
                result = self._sample(
                    group, resolution, method=method, num_steps=num_steps, grid=self.config.grid,
                    progress=lambda done, total: bar.set_postfix_str(f"call {done}/{total or '?'}"),
                    **self.config.options(method),
                )
                seconds += self._now() - start
                evaluations += result.nfe * len(group)
                for (case, _), values in zip(group, result.values):
                    fields[case].append(self._picture(values, case, resolution))
                bar.update(len(group))
        outcome = self.test.outcome(
            [fields[case][0] for case in range(len(self.test))], resolution,
            nfe=evaluations / len(jobs), seconds=seconds / len(jobs), how=result.how,
        )
        return outcome, [np.stack(fields[case]) for case in range(len(self.test))]

    def _sample(self, group: list[tuple[int, int]], resolution: int, **sampler):
        cases = [case for case, _ in group]
        queries = torch.stack([self.test.queries(case, resolution)[1] for case in cases])
        inputs, values = (torch.stack([self.test.tensors[case][name] for case in cases])
                          for name in ("input_coords", "input_values"))
        return sample(
            self.model,
            queries.to(self.device),
            inputs.to(self.device),
            values.to(self.device),
            seeds=[draw_seed(self.test.cases[case]["noise_seed"], draw) for case, draw in group],
            block_size=self.config.points,
            **sampler,
        )

    def _picture(self, values: Tensor, case: int, resolution: int) -> np.ndarray:
        height, width = self.test.shape(resolution)
        flat = np.full((height * width, self.test.channels), np.nan)
        flat[self.test.queries(case, resolution)[0]] = (values.cpu().numpy() + 1) / 2
        return keep_observations(flat.reshape(height, width, -1), *self.test.observations(case))

    def _groups(self, jobs: list[tuple[int, int]], resolution: int) -> list[list]:
        """Jobs with equally many points, together at most config.points queries, or one."""
        by_shape = defaultdict(list)
        for case, draw in jobs:
            count = len(self.test.queries(case, resolution)[0])
            by_shape[count, len(self.test.cases[case]["observed"])].append((case, draw))
        return [same[i : i + size] for (count, _), same in by_shape.items()
                for size in [max(1, self.config.points // count)]
                for i in range(0, len(same), size)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def draw_seed(case_seed: int, draw: int) -> int:
    """Seed of one of several samples of a case: of the first, that of the protocol."""
    return case_seed if draw == 0 else noise_seed(case_seed, draw)


def baseline(test: MultiscaleTest, name: str, resolution: int) -> Outcome:
    """What a person would use instead, at a resolution."""
    fields, start = [], time.perf_counter()
    for case in range(len(test)):
        coords, values = test.observations(case)
        if name == BICUBIC:
            coarse = BASELINES["biharmonic"](coords, values, (test.rows, test.columns))
            fine = resize(coarse, test.shape(resolution), order=3, mode="edge")
            fields.append(keep_observations(fine, coords, values))
        else:
            fields.append(BASELINES[name](coords, values, test.shape(resolution)))
    seconds = (time.perf_counter() - start) / len(test)
    return test.outcome(fields, resolution, nfe=0, seconds=seconds, how=name)


# --- numbers -------------------------------------------------------------------------------------


def evaluate_all(runner: Runner) -> tuple[dict, dict[int, dict], dict[str, list[np.ndarray]]]:
    """Everything that the report says, the fields {resolution: {method: [...]}} and the draws."""
    test, config = runner.test, runner.config
    outcomes: dict[int, dict[str, Outcome]] = {resolution: {} for resolution in config.resolutions}
    draws: dict[str, list[np.ndarray]] = {}
    base: dict[str, Outcome] = {}
    for method in config.samplers:
        if method != "mean" and config.ensemble:
            base[method], draws[method] = runner.run(
                method, test.rows, config.num_steps, config.ensemble
            )
    for resolution, found in outcomes.items():
        for method in config.samplers:
            known = base.get(method) if resolution == test.rows else None
            found[method] = known or runner.run(method, resolution, config.num_steps)[0]
        for name in (BICUBIC, *BASELINES_AT_ANY_SIZE):
            found[name] = baseline(test, name, resolution)
    scores = {method: pooled_scores(test, samples) for method, samples in draws.items()}
    results = {
        "resolutions": {str(resolution): {
            "truth": resolution in test.truths,
            "methods": {name: {"kind": kind(name), **summarise(outcome)}
                        for name, outcome in found.items()},
        } for resolution, found in outcomes.items()},
        "mean_of_samples": {method: summarise(mean_of_samples(test, samples, base[method]))
                            for method, samples in draws.items()},
        "uncertainty": {method: score.to_dict() for method, score in scores.items()},
        "sweep": sweep(runner),
    }
    fields = {resolution: {name: outcome.fields for name, outcome in found.items()}
              for resolution, found in outcomes.items()}
    return results, fields, draws


def kind(method: str) -> str:
    """What a result is: numbers of different kinds are not compared."""
    if method in (BICUBIC, *BASELINES_AT_ANY_SIZE):
        return "interpolation"
    return "posterior mean" if method == "mean" else "sample"


def pooled_scores(test: MultiscaleTest, draws: list[np.ndarray]) -> uncertainty.Uncertainty:
    """Scores of the draws (K, H, W, C) of all cases, over all points that were not observed."""
    parts = [uncertainty.unobserved(samples, truth, case["observed"])
             for samples, truth, case in zip(draws, test.base, test.cases)]
    samples, truths = zip(*parts)
    return uncertainty.score(np.concatenate(samples, axis=1), np.concatenate(truths))


def mean_of_samples(
    test: MultiscaleTest, draws: list[np.ndarray], of_one: Outcome
) -> Outcome:
    """The mean of all draws: MSE 1 + 1/K times that of the posterior mean, if all is right."""
    count = len(draws[0])
    return test.outcome(
        [samples.mean(axis=0) for samples in draws], test.rows, nfe=count * of_one.nfe,
        seconds=count * of_one.seconds, how=f"mean of {count} samples, each: {of_one.how}",
    )


def sweep(runner: Runner) -> list[dict]:
    """Quality of samples at the observed resolution against the number of steps."""
    entries = []
    for steps in runner.config.steps_sweep:
        for method in runner.config.samplers:
            if declared_nfe(method, 1) is None or method == "mean":
                continue  # they take no steps of ours
            outcome, draws = runner.run(method, runner.test.rows, steps, runner.config.ensemble)
            mean = summarise(outcome)["mean"]
            score = pooled_scores(runner.test, draws)
            entries.append({
                "method": method, "num_steps": steps, "nfe": outcome.nfe,
                "seconds": outcome.seconds, "psnr": mean["psnr"], "ssim": mean["ssim"],
                "speckle_0.10": mean["speckle_0.10"], "crps": score.crps,
                "coverage": score.to_dict()["coverage"],
            })
    return entries


# --- report --------------------------------------------------------------------------------------


def report(results: dict) -> str:
    """metrics_comparison.txt."""
    parts = [header(results)]
    for resolution, found in results["resolutions"].items():
        parts += resolution_tables(results, resolution, found)
    if results["uncertainty"]:
        parts.append(uncertainty_table(results))
    if results["sweep"]:
        parts.append(sweep_table(results["sweep"]))
    return "\n\n".join(parts) + "\n"


def header(results: dict) -> str:
    settings, data, model = results["settings"], results["data"], results["model"]
    env = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    return "\n".join([
        "MAMBA Diffusion: samplers and resolutions",
        "",
        f"Model:     {settings['checkpoint']}, {model['model_class']}, "
        f"{model['parameters']:,} parameters, step {model['step']}",
        f"Data:      {data['name']} {data['height']} x {data['width']} x {data['channels']}, "
        f"{len(data['test_indices'])} of {data['sizes'][2]} test pictures",
        f"Values:    0 to 1 below stand for "
        f"{Scale(data['value_range'], data['units']).describe()}",
        f"Observed:  {settings['observe']} of {data['height']} x {data['width']}; "
        f"seed {settings['seed']}",
        f"Versions:  Python {env['python']}, {versions}",
        f"Hardware:  {env['device']}, {env['threads']} threads, {env['platform']}",
        f"           {env['scan']}",
        "Numbers are mean ± sd over pictures; base: PSNR of the result averaged down to the "
        "observed\nresolution. Seconds are for one field, with as many together as "
        f"{settings['points']} points allow.",
    ])


def resolution_tables(results: dict, resolution: str, found: dict) -> list[str]:
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


COLUMNS = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "mae": ("MAE", 4),
           "speckle_0.10": ("speckle", 4), "flat_hf": ("flat_hf", 4), "psnr_base": ("base", 2)}


def table(title: str, rows: dict[str, dict]) -> str:
    columns = [c for c in COLUMNS if c in next(iter(rows.values()))["mean"]]
    heads = "".join(f"{COLUMNS[c][0]:>16}" for c in columns) + f"{'NFE':>7}{'s/field':>10}"
    lines = [title, f"  {'':24}" + heads]
    for name, row in rows.items():
        cells = [f"{row['mean'][c]:.{COLUMNS[c][1]}f} ± {row['sd'][c]:.{COLUMNS[c][1]}f}"
                 for c in columns]
        lines.append(f"  {name:24}" + "".join(f"{cell:>16}" for cell in cells)
                     + f"{row['nfe']:7.0f}{row['seconds_per_image']:10.3f}")
    lines += [f"  {name}: {row['how']}" for name, row in rows.items() if row["how"] != name]
    return "\n".join(lines)


def uncertainty_table(results: dict) -> str:
    count = results["settings"]["ensemble"]
    scores = results["uncertainty"]
    top = next(iter(scores.values()))["attainable"]
    levels = "".join(f"{'in ' + level:>10}" for level in top)
    lines = [
        f"Uncertainty: {count} samples per picture, at the points that were not observed",
        "=" * 72,
        f"  {'':12}{'CRPS':>10}{levels}{'spread':>10}{'skill':>10}{'ratio':>8}{'corr.':>8}",
    ]
    recalibrated = results.get("recalibrated")
    if recalibrated:
        scores = scores | {f"heun x {recalibrated['factor']:.2f}": recalibrated}
    for method, score in scores.items():
        inside = "".join(f"{share:10.1%}" for share in score["coverage"].values())
        lines.append(
            f"  {method:12}{score['crps']:10.5f}{inside}{score['spread']:10.4f}"
            f"{score['skill']:10.4f}{score['spread'] / score['skill']:8.2f}"
            f"{score['correlation']:8.2f}"
        )
    ideal = "".join(f"{level:10.1%}" for level in top.values())
    lines.append(f"  {'calibrated':12}{'':10}{ideal}{'':20}{1:8.2f}")
    lines.append("  spread: rms sd of the samples; skill: rms error of their mean; corr.: of the "
                 "two, over points.\n  in 50%, 90%: share of the truth inside the central "
                 "interval of that level.")
    if recalibrated:
        lines.append("  heun x ...: with the spread fitted at the end of training, on "
                     f"{recalibrated['pictures']} validation pictures at 8 steps.")
    return "\n".join(lines)


def sweep_table(entries: list[dict]) -> str:
    lines = ["Steps of the samplers, at the observed resolution", "=" * 72,
             f"  {'':12}{'steps':>7}{'NFE':>7}{'PSNR':>9}{'SSIM':>9}{'speckle':>9}{'CRPS':>10}"
             f"{'in 90%':>9}{'s/field':>10}"]
    for e in sorted(entries, key=lambda e: e["method"]):
        lines.append(
            f"  {e['method']:12}{e['num_steps']:7}{e['nfe']:7.0f}{e['psnr']:9.2f}{e['ssim']:9.4f}"
            f"{e['speckle_0.10']:9.4f}{e['crps']:10.5f}{e['coverage']['90%']:9.1%}"
            f"{e['seconds']:10.3f}"
        )
    return "\n".join(lines)


# --- command -------------------------------------------------------------------------------------


def write(results: dict, fields: dict, draws: dict, test: MultiscaleTest, folder: Path) -> None:
    """The report and its pictures."""
    write_atomically(folder / "metrics_comparison.json",
                     json.dumps(plain(results), indent=1, allow_nan=False).encode())
    write_atomically(folder / "metrics_comparison.txt", report(results).encode())
    about = (f"{results['data']['name']}, {len(test)} test pictures, "
             f"{results['settings']['observe']} of {test.rows} x {test.columns} observed")
    scale = Scale(results["data"]["value_range"], results["data"]["units"])
    plots_multiscale.resolutions(test, fields, folder / "multiscale_comparison.png", scale)
    plots_multiscale.performance(results, folder / "performance_chart.png", about)
    for method in list(draws)[:1]:
        plots_multiscale.diversity(test, method, draws[method], folder / "diversity.png", scale)
    if draws:
        plots_multiscale.calibration(results["uncertainty"], folder / "uncertainty.png", about)


def evaluate(config: Config) -> dict:
    """Run the evaluation and write its files. Raises UserError for what the user can mend."""
    config.check()
    device = pick_device(config.device)
    pattern = parse_pattern(config.observe)
    checkpoint = load_checkpoint(config.checkpoint)
    data = open_test_data(checkpoint, config.data, config.data_test)
    model = build_model(checkpoint, device)
    test = MultiscaleTest(data.test, pattern, config.num_samples, config.resolutions, config.seed)
    out = OutputFolder(config.save_dir, "--save_dir",
                       [config.checkpoint, config.data, config.data_test])
    out.require(FILES)
    numbers, fields, draws = evaluate_all(Runner(model, test, config))
    fitted = checkpoint.get("calibration")
    if fitted and "heun" in draws:
        wide = [widen(samples, fitted["spread"]) for samples in draws["heun"]]
        numbers["recalibrated"] = {"factor": fitted["spread"], "pictures": fitted["pictures"],
                                   **pooled_scores(test, wide).to_dict()}
    results = {
        "settings": asdict(config),
        "data": data.describe() | {"test_indices": test.indices},
        "model": {
            "model_class": checkpoint["model_class"],
            "model_args": checkpoint["model_args"],
            "step": checkpoint["step"],
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "environment": environment(device),
        **numbers,
    }
    write(results, fields, draws, test, out.path)
    out.record(FILES)
    return results


def main(arguments: list[str] | None = None) -> None:
    config = cli.parse(Config, arguments, __doc__)
    print(report(evaluate(config)))
    print(f"Written: {config.save_dir}/metrics_comparison.txt, .json and pictures",
          file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
