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
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import json
import sys
from dataclasses import asdict, dataclass

from sparsefield import cli
from sparsefield.data import Scale, parse_pattern
from sparsefield.device import pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate import plots_multiscale
from sparsefield.evaluate.cases import Cases, spread, with_finest_truth
from sparsefield.evaluate.multiscale import MEAN, Runner, evaluate_all, report
from sparsefield.evaluate.opening import open_test_data
from sparsefield.evaluate.outputs import OutputFolder
from sparsefield.evaluate.report import environment, plain
from sparsefield.flow.samplers import check_sampler
from sparsefield.model.bundled import V2
from sparsefield.model.checkpoint import build_model, load_checkpoint

FILES = ("metrics_comparison.json", "metrics_comparison.txt", "multiscale_comparison.png",
         "performance_chart.png", "diversity.png", "uncertainty.png")
MOST_ROWS = 1024


@dataclass
class Config:
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
        return {"sde": {"temperature": self.temperature}, "ddim": {"eta": self.eta}}.get(method, {})

    def methods(self) -> dict[str, dict]:
        """{sampler: everything that `sample` takes of it}; the posterior mean is always there."""
        names = dict.fromkeys((*self.samplers, MEAN))
        common = {"num_steps": self.num_steps}
        return {name: {"method": name, **common, **self.options(name)} for name in names}

    def check(self) -> None:
        """Raises UserError for a value that nothing can be evaluated with."""
        require_seed(self.seed)
        for name in ("samplers", "resolutions"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise UserError(f"--{name}: give at least one, and each once")
        for method in self.samplers:
            check_sampler(method, self.num_steps, self.options(method))
        if max(self.resolutions) > MOST_ROWS:
            raise UserError(f"--resolutions {max(self.resolutions)}: at most {MOST_ROWS} rows")
        for name in ("num_samples", "points"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.ensemble < 0 or self.ensemble == 1:
            raise UserError(f"ensemble={self.ensemble}: give at least 2 samples, or 0 for none")
        if self.steps_sweep and not self.ensemble:
            raise UserError("--steps_sweep compares CRPS and needs --ensemble of at least 2")
        if min(self.steps_sweep, default=1) < 1:
            raise UserError("--steps_sweep: every number of steps must be at least 1")


# --- command -------------------------------------------------------------------------------------


def contents(results: dict, fields: dict, draws: dict, cases: Cases) -> dict[str, bytes]:
    """The report and its pictures, by name."""
    about = (f"{results['data']['name']}, {len(cases)} test pictures, "
             f"{results['settings']['observe']} of {cases.rows} x {cases.columns} observed")
    scale = Scale(results["data"]["value_range"], results["data"]["units"])
    files = {
        "metrics_comparison.json": json.dumps(plain(results), indent=1, allow_nan=False).encode(),
        "metrics_comparison.txt": report(results).encode(),
        "multiscale_comparison.png": plots_multiscale.resolutions(cases, fields, scale),
        "performance_chart.png": plots_multiscale.performance(results, about),
    }
    for method, drawn in list(draws.items())[:1]:
        files["diversity.png"] = plots_multiscale.diversity(cases, method, drawn, scale)
    if draws:
        files["uncertainty.png"] = plots_multiscale.calibration(results["uncertainty"], about)
    return files


def evaluate(config: Config) -> dict:
    """Run the evaluation and write its files. Raises UserError for what the user can mend."""
    config.check()
    device = pick_device(config.device)
    pattern = parse_pattern(config.observe)
    checkpoint = load_checkpoint(config.checkpoint)
    data = open_test_data(checkpoint, config.data, config.data_test)
    model = build_model(checkpoint, device)
    known = with_finest_truth(data.test, config.resolutions)
    cases = Cases(
        data.test, pattern, spread(known, config.num_samples), seed=config.seed,
        resolutions=config.resolutions, points=config.points, device=device,
    )
    out = OutputFolder(config.save_dir, "--save_dir",
                       [config.checkpoint, config.data, config.data_test])
    out.require(FILES)
    numbers, fields, draws = evaluate_all(
        Runner(model, cases, config.methods(), config.ensemble), config.resolutions,
        config.steps_sweep, checkpoint.get("calibration"),
    )
    results = {
        "settings": asdict(config),
        "data": data.describe() | {"test_indices": [case.index for case in cases]},
        "model": {
            "model_class": checkpoint["model_class"],
            "model_args": checkpoint["model_args"],
            "step": checkpoint["step"],
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "environment": environment(device),
        **numbers,
    }
    out.write(contents(results, fields, draws, cases))
    return results


def main(arguments: list[str] | None = None) -> None:
    config = cli.parse(Config, arguments, __doc__)
    print(report(evaluate(config)))
    print(f"Written: {config.save_dir}/metrics_comparison.txt, .json and pictures",
          file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
