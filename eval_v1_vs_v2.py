"""Compare V1 with V2: the same test pictures, observations and noise for both.

    python eval_v1_vs_v2.py                                    # the checkpoints of the runners
    python eval_v1_vs_v2.py --v1_checkpoint a.pth --v2_checkpoint b.pth --num_samples 100
    python eval_v1_vs_v2.py --data photos --sampler sde --num_steps 50 --json
    python eval_v1_vs_v2.py --help                             # every setting, explained

Both the posterior mean (one evaluation at t = 0) and a sample are scored, in tables of their own:
theory puts a sample 3 dB below the mean, so the two are never compared with each other.
Written into --save_dir: comparison_results.txt and .json, v1_vs_v2_comparison.png and
improvement_chart.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sparsefield.interrupt  # noqa: F401 (first: Ctrl-C during the imports below)

import json
import math
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from sparsefield import cli, metrics, plots_comparison
from sparsefield.baselines import BASELINES
from sparsefield.checkpoint import build_model, load_checkpoint, write_atomically
from sparsefield.data import Data, Scale, parse_pattern
from sparsefield.distributed import pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluation import FrozenTest, Outcome, count_flops, open_test_data
from sparsefield.outputs import OutputFolder
from sparsefield.samplers import check_sampler
from sparsefield.scan import describe_backend

CLASSES = {"V1": "MAMBADiffusion", "V2": "MAMBADiffusionV2"}
RUNNERS = {"V1": "./run_mamba_training.sh", "V2": "./run_mamba_v2_training.sh"}
# Settings of a training that change where or how fast it ran, not what was learnt.
IRRELEVANT = {"save_dir", "device", "num_workers", "log_file", "dry_run", "compile", "accumulate",
              "resume", "eval_every", "eval_pictures", "visualize_every", "save_every", "keep_last"}
FILES = ("comparison_results.json", "comparison_results.txt", "v1_vs_v2_comparison.png",
         "improvement_chart.png")
HIGHER_IS_BETTER = {  # what the first blocks of the report show: title, unit, decimals
    "psnr": ("PSNR", " dB", 2),
    "ssim": ("SSIM", "", 4),
    "ssim_default": ("SSIM (scikit-image's default window)", "", 4),
}
LOWER_IS_BETTER = {
    "mse": ("MSE", 6),
    "mae": ("MAE", 5),
    "speckle_0.05": ("Speckle, threshold 0.05", 5),
    "speckle_0.10": ("Speckle, threshold 0.10", 5),
    "speckle_0.20": ("Speckle, threshold 0.20", 5),
    "flat_hf": ("flat_hf (grain in flat areas)", 5),
}


@dataclass
class Config:
    """Settings of the comparison."""

    v1_checkpoint: str = "checkpoints_mamba/mamba_best.pth"
    """Checkpoint of V1."""
    v2_checkpoint: str = "checkpoints_mamba_v2/mamba_v2_best.pth"
    """Checkpoint of V2."""
    num_samples: int = 20
    """Test pictures, evenly spread over the test part (at most all of it)."""
    sampler: str = "heun"
    """How samples are drawn: heun, euler, sde, ddim or adaptive."""
    num_steps: int = 20
    """Steps of the sampler; Heun takes 2 n - 1 evaluations."""
    data: str | None = None
    """What to test on, when it is not the test part of what was trained on."""
    data_test: str | None = None
    """An .npz file to test on, all of its pictures."""
    observe: str = "random:0.2"
    """Which points are observed."""
    seed: int = 0
    """Of observations, noise and bootstrap."""
    batch_size: int = 16
    """Pictures computed together: for speed and memory; results agree up to rounding."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    save_dir: str = "eval_v1_vs_v2"
    """Folder for the report and the pictures."""
    json: tyro.conf.UseCounterAction[int] = 0
    """Also print comparison_results.json, instead of the report."""


# --- checkpoints ---------------------------------------------------------------------------------


def load(name: str, path: str) -> dict:
    """The checkpoint of V1 or V2. Raises UserError if it is missing, damaged or the other one."""
    if not Path(path).exists():
        latest = Path(path.replace("_best", "_latest"))
        hint = f" (or give {latest}, which is there)" if latest.exists() else ""
        raise UserError(
            f"no {name} checkpoint at {path}: train {name} first: {RUNNERS[name]}{hint}"
        )
    checkpoint = load_checkpoint(path)
    if checkpoint["model_class"] != CLASSES[name]:
        raise UserError(
            f"--{name.lower()}_checkpoint {path} holds a {checkpoint['model_class']}, not a "
            f"{CLASSES[name]} ({name}): check the two paths, or train {name}: {RUNNERS[name]}"
        )
    return checkpoint


def require_same_data(checkpoints: dict[str, dict]) -> None:
    """Raises UserError unless both models were trained on the same data."""
    v1, v2 = (checkpoints[name]["data"] for name in ("V1", "V2"))
    if v1["channels"] != v2["channels"]:
        raise UserError(
            f"V1 was trained with {v1['channels']} channels and V2 with {v2['channels']}: "
            "train both on the same data"
        )
    if v1["fingerprint"] != v2["fingerprint"]:
        raise UserError(
            f"V1 was trained on {v1['name']} and V2 on other data ({v2['name']}, "
            f"{v2['height']} x {v2['width']}): train both on the same data"
        )


def differences_in_training(checkpoints: dict[str, dict]) -> dict[str, list]:
    """{setting: [V1's, V2's]} that both have, differ and matter; steps among them."""
    v1, v2 = ({**checkpoints[name]["config"], "steps": checkpoints[name]["step"]}
              for name in ("V1", "V2"))
    shared = (set(v1) & set(v2)) - IRRELEVANT - {"d_model", "num_layers"}
    return {name: [v1[name], v2[name]] for name in sorted(shared) if v1[name] != v2[name]}


# --- numbers -------------------------------------------------------------------------------------


def summarise(outcome: Outcome) -> dict:
    """Per-image numbers of a method with their means and standard deviations."""
    names = outcome.numbers[0]
    per_image = {name: [numbers[name] for numbers in outcome.numbers] for name in names}
    return {
        "how": outcome.how,
        "nfe": outcome.nfe,
        "seconds_per_image": outcome.seconds,
        "mean": {name: average(values) for name, values in per_image.items()},
        "sd": {name: deviation(values) for name, values in per_image.items()},
        "per_image": per_image,
    }


def average(values: list[float]) -> float:
    """Mean over the images where the number is defined; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def deviation(values: list[float]) -> float:
    """Standard deviation over the images where the number is defined; NaN below two."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan


def paired(v1: dict, v2: dict, seed: int) -> dict[str, dict]:
    """V2 - V1 for each metric: per image, mean and 95 % bootstrap interval."""
    result = {}
    for name in v1["per_image"]:
        difference = np.subtract(v2["per_image"][name], v1["per_image"][name])
        mean, low, high = metrics.paired_bootstrap(difference, seed=seed)
        result[name] = {"per_image": difference.tolist(), "mean": mean, "low": low, "high": high}
    return result


def compare(
    config: Config,
    checkpoints: dict[str, dict],
    models: dict[str, nn.Module],
    test: FrozenTest,
    data: Data,
) -> tuple[dict, dict[str, list[np.ndarray]]]:
    """Evaluate both models and the baselines: everything the report says, and the fields."""
    sampler = {"mean": {"method": "mean", "num_draws": 1},
               "sample": {"method": config.sampler, "num_steps": config.num_steps}}
    outcomes: dict[str, dict[str, Outcome]] = {"mean": {}, "sample": {}}
    with tqdm(total=4 * len(test), unit="picture", file=sys.stderr) as bar:
        for kind, options in sampler.items():
            for name, model in models.items():
                bar.set_description(f"{name}, {kind}")
                outcomes[kind][name] = test.model(model, done=bar.update, **options)
    baselines = {name: test.baseline(name) for name in BASELINES}
    summaries = {kind: {name: summarise(outcome) for name, outcome in found.items()}
                 for kind, found in outcomes.items()}
    results = {
        "settings": asdict(config) | {"pictures": len(test)},
        "data": data.describe() | {"test_indices": test.indices},
        "models": {name: describe_model(config, name, checkpoints[name], models[name], test)
                   for name in models},
        "trained_differently": differences_in_training(checkpoints),
        "environment": environment(test.device),
        **summaries,
        "differences": {kind: paired(found["V1"], found["V2"], config.seed)
                        for kind, found in summaries.items()},
        "baselines": {name: summarise(outcome) for name, outcome in baselines.items()},
    }
    best = max(BASELINES, key=lambda name: results["baselines"][name]["mean"]["psnr"])
    fields = {"V1": outcomes["mean"]["V1"].fields, "V2": outcomes["mean"]["V2"].fields,
              best: baselines[best].fields}
    return results, fields


def describe_model(
    config: Config, name: str, checkpoint: dict, model: nn.Module, test: FrozenTest
) -> dict:
    """What a checkpoint is, and what one evaluation of it costs."""
    height, width, channels = test.truths[0].shape
    observed = len(test.cases[0]["observed"])
    return {
        "checkpoint": getattr(config, f"{name.lower()}_checkpoint"),
        "model_class": checkpoint["model_class"],
        "model_args": checkpoint["model_args"],
        "trained_on": checkpoint["data"]["name"],
        "step": checkpoint["step"],
        "epoch": checkpoint["epoch"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_evaluation": count_flops(model, (height, width), channels, observed),
    }


def environment(device: torch.device) -> dict:
    """Versions and hardware that the numbers of time depend on."""
    names = ("torch", "numpy", "scipy", "scikit-image")
    is_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "threads": torch.get_num_threads(),
        "scan": describe_backend(device),
    }


# --- report --------------------------------------------------------------------------------------


def report(results: dict) -> str:
    """comparison_results.txt."""
    sampler = results["sample"]["V2"]
    parts = [
        header(results),
        section("Posterior mean (1 evaluation at t = 0)", results, "mean"),
        section(f"Sample ({sampler['how']})", results, "sample"),
        table("Point estimates", {**results["mean"], **results["baselines"]}),
        table("Samples (not comparable with point estimates: 3 dB lower by theory)",
              results["sample"]),
        cost(results),
    ]
    return "\n\n".join(parts) + "\n"


def header(results: dict) -> str:
    settings, data, env = results["settings"], results["data"], results["environment"]
    lines = [
        "MAMBA Diffusion: V1 against V2",
        "",
        f"Data:      {data['name']} {data['height']} x {data['width']} x {data['channels']}, "
        f"{settings['pictures']} of {data['sizes'][2]} test pictures",
        f"Values:    0 to 1 below stand for "
        f"{Scale(data['value_range'], data['units']).describe()}",
        f"Observed:  {settings['observe']}; seed {settings['seed']}",
    ]
    for name, model in results["models"].items():
        lines.append(f"{name}:        {model['checkpoint']} (step {model['step']}, "
                     f"trained on {model['trained_on']})")
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    lines += [f"Versions:  Python {env['python']}, {versions}",
              f"Hardware:  {env['device']}, {env['threads']} threads, {env['platform']}",
              f"           {env['scan']}"]
    for setting, (v1, v2) in results["trained_differently"].items():
        lines.append(f"NOTE: trained differently beyond the model: {setting} {v1} (V1), {v2} (V2)")
    lines.append(
        "Numbers are mean ± sd over pictures; V2 − V1 with its paired 95 % bootstrap interval.\n"
        "It takes pictures as independent: where several are crops of one photograph (all of "
        "`photos`), it is too narrow."
    )
    return "\n".join(lines)


def section(title: str, results: dict, kind: str) -> str:
    """One block for each metric."""
    blocks = [f"{title}\n{'=' * len(title)}"]
    differences = results["differences"][kind]
    for name, (label, unit, digits) in HIGHER_IS_BETTER.items():
        blocks.append(block(label, unit, digits, results[kind], name, differences[name], "higher"))
    for name, (label, digits) in LOWER_IS_BETTER.items():
        blocks.append(block(label, "", digits, results[kind], name, differences[name], "lower"))
    return "\n\n".join(blocks)


def block(
    label: str, unit: str, digits: int, found: dict, name: str, difference: dict, better: str
) -> str:
    v1, change = found["V1"]["mean"][name], difference["mean"]
    if math.isnan(change):
        return f"{label}:\n  undefined for these pictures"
    lines = [f"{label}:"]
    for model in ("V1", "V2"):
        mean, sd = found[model]["mean"][name], found[model]["sd"][name]
        lines.append(f"  {model}: {mean:.{digits}f} ± {sd:.{digits}f}{unit}")
    if better == "higher":
        lines.append(f"  Improvement: {change:+.{digits}f}{unit} ({percent(change, v1)})")
    else:
        lines.append(f"  Reduction: {percent(-change, v1, sign='')}")
    lines.append(f"  V2 − V1: {change:+.{digits}f} [{difference['low']:+.{digits}f}, "
                 f"{difference['high']:+.{digits}f}]{unit}")
    return "\n".join(lines)


def percent(change: float, of: float, sign: str = "+") -> str:
    """A change in percent of something, "undefined" where that is nothing."""
    if not of or math.isnan(change):
        return "undefined: V1 has 0" if of == 0 else "undefined"
    return f"{round(100 * change / of, 1) + 0.0:{sign}.1f}%"  # + 0.0: no -0.0


def table(title: str, rows: dict[str, dict]) -> str:
    columns = ("psnr", "ssim", "ssim_default", "mse", "mae", "speckle_0.05", "speckle_0.10",
               "speckle_0.20", "flat_hf")
    names = ("PSNR", "SSIM", "SSIM-def", "MSE", "MAE", "spk 0.05", "spk 0.10", "spk 0.20",
             "flat_hf", "NFE", "s/image")
    lines = [title, "=" * len(title), f"{'':16}" + "".join(f"{name:>10}" for name in names)]
    for name, row in rows.items():
        digits = [2, 4, 4] + [5] * (len(columns) - 3)
        numbers = [f"{row['mean'][c]:10.{d}f}" for c, d in zip(columns, digits)]
        lines.append(f"{name:16}" + "".join(numbers)
                     + f"{row['nfe']:10.0f}{row['seconds_per_image']:10.4f}")
    return "\n".join(lines)


def cost(results: dict) -> str:
    lines = ["Cost", "====", f"{'':16}{'parameters':>14}{'GFLOP per evaluation':>24}"
             f"{'GFLOP mean':>14}{'GFLOP sample':>16}"]
    for name, model in results["models"].items():
        each = model["flops_per_evaluation"] / 1e9
        mean, sample = (each * results[kind][name]["nfe"] for kind in ("mean", "sample"))
        lines.append(f"{name:16}{model['parameters']:14,}{each:24.2f}{mean:14.2f}{sample:16.1f}")
    lines.append(
        "FLOP: matrix products, attention, convolutions and scans of one picture, a multiply-add "
        "counting two;\nnot elementwise operations and norms, nor what is computed once a picture "
        "(kriging, neighbours, order).\n"
        f"Seconds: {results['settings']['batch_size']} pictures together, after a warm-up."
    )
    return "\n".join(lines)


def plain(item: object) -> object:
    """For JSON: what is not a number becomes null."""
    if isinstance(item, dict):
        return {str(key): plain(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [plain(value) for value in item]
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


# --- command -------------------------------------------------------------------------------------


def write(results: dict, fields: dict, test: FrozenTest, folder: Path) -> None:
    """The four files of a comparison."""
    stored = plain(results)
    write_atomically(folder / "comparison_results.json",
                     json.dumps(stored, indent=1, allow_nan=False).encode())
    write_atomically(folder / "comparison_results.txt", report(results).encode())
    about = (f"{results['data']['name']}, {len(test)} test pictures, "
             f"{results['settings']['observe']}, seed {results['settings']['seed']}")
    rows = plots_comparison.quantile_rows(results["mean"]["V2"]["per_image"]["mse"])
    plots_comparison.comparison(
        test.cases, fields, rows, folder / "v1_vs_v2_comparison.png",
        f"Posterior means: {about}", Scale(results["data"]["value_range"], results["data"]["units"]),
    )
    plots_comparison.improvement_chart(
        stored["differences"], folder / "improvement_chart.png",
        f"V2 against V1, mean and 95 % bootstrap interval: {about}",
    )


def evaluate(config: Config) -> dict:
    """Run the comparison and write its files. Raises UserError for what the user can mend."""
    require_seed(config.seed)
    check_sampler(config.sampler, config.num_steps, {})
    if config.sampler == "mean":
        raise UserError("sampler='mean' draws no sample; the posterior mean is always reported "
                        "beside it: choose heun, euler, sde, ddim or adaptive")
    device = pick_device(config.device)
    checkpoints = {"V1": load("V1", config.v1_checkpoint), "V2": load("V2", config.v2_checkpoint)}
    require_same_data(checkpoints)
    data = open_test_data(checkpoints["V2"], config.data, config.data_test)
    out = OutputFolder(config.save_dir, "--save_dir", [
        config.v1_checkpoint, config.v2_checkpoint, config.data, config.data_test])
    out.require(FILES)
    models = {name: build_model(checkpoint, device) for name, checkpoint in checkpoints.items()}
    test = FrozenTest(
        data.test, parse_pattern(config.observe), config.num_samples,
        seed=config.seed, batch_size=config.batch_size, device=device,
    )
    results, fields = compare(config, checkpoints, models, test, data)
    write(results, fields, test, out.path)
    out.record(FILES)
    return results


def main(arguments: list[str] | None = None) -> None:
    config = cli.parse(Config, arguments, __doc__)
    results = evaluate(config)
    print(json.dumps(plain(results), allow_nan=False) if config.json else report(results))
    print(f"Written: {config.save_dir}/comparison_results.txt, .json, v1_vs_v2_comparison.png, "
          "improvement_chart.png", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
