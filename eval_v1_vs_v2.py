"""Compare V1 with V2: the same test pictures, observations and noise for both.

    python eval_v1_vs_v2.py                  # the bundled weights, or those that the runners left
    python eval_v1_vs_v2.py --v1_checkpoint a.pth --v2_checkpoint b.pth --num_samples 100
    python eval_v1_vs_v2.py --data photos --sampler sde --num_steps 50 --json

Both the posterior mean (one evaluation at angle 0) and a sample are scored, in tables of their own:
theory puts a sample 3 dB below the mean, so the two are never compared with each other.
Written into --save_dir: comparison_results.txt and .json, v1_vs_v2_comparison.png and
improvement_chart.png. comparison_results.json holds

    settings, environment, data, models    of this run
    notes, trained_differently             what else differs between V1 and V2
    table          a record for each picture and method, see sparsefield/evaluate/tables.py
    summary        {kind: {method: {how, nfe, seconds, members, mean, median, sd, ...}}}
    differences    {kind: {metric: {mean, low, high}}} of V2 - V1, with its 95 % interval
    beside         the same of V2 - the bundled V1 that starts where V2 does, if it is compared
    seeds          {kind: {metric: {V1, V2, V2 - V1: {each, mean, sd}}}}, with --v1_seeds

Any two checkpoints can be compared: models of other classes keep the names V1 and V2 of the flags.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from sparsefield import cli
from sparsefield.device import pick_device
from sparsefield.errors import UserError
from sparsefield.evaluate import plots, tables
from sparsefield.evaluate.baselines import BASELINES
from sparsefield.evaluate.calibration import METHOD
from sparsefield.evaluate.cases import Cases, spread_over
from sparsefield.flow.samplers import check_sampler
from sparsefield.model.bundled import V1, V1_WITH_START, V2, find_bundled
from sparsefield.model.checkpoint import build_model, load_checkpoint
from sparsefield.model.field import FieldModel, GaussianModel
from sparsefield.train.config import BESIDE_LEARNING, PATHS_OF_DATA, differ

CLASSES = {"V1": "MAMBADiffusion", "V2": "MAMBADiffusionV2"}
BESIDE = "V1 + start"  # the bundled V1 that has V2's fitted posterior and grid U-Nets
KRIGING = "kriging, fitted"
OF_DATA = ("data_channels", "split_by", "variables", "image_size")  # what they change is told
RUNNERS = {"V1": "./run_mamba_training.sh", "V2": "./run_mamba_v2_training.sh"}
FILES = ("comparison_results.json", "comparison_results.txt", "v1_vs_v2_comparison.png",
         "improvement_chart.png")


@dataclass
class Config(tables.EvaluationConfig):
    """Settings of the comparison."""

    v1_checkpoint: str = V1
    """Checkpoint of V1, or of another model."""
    v2_checkpoint: str = V2
    """Checkpoint of V2, or of another model."""
    v1_seeds: tuple[str, ...] = ()
    """Further checkpoints of V1, which differ from it in the seed of their training alone."""
    v2_seeds: tuple[str, ...] = ()
    """As many of V2: the report then says how much V2 − V1 varies from seed to seed."""
    num_samples: int = 20
    """Test pictures, evenly spread over the test part (at most all of it)."""
    ensemble: int = 20
    """Samples of each picture; fewer than 19 cannot cover 90 %, 1 gives no uncertainty."""
    sampler: str = METHOD
    """How samples are drawn: heun, euler, sde, ddim or adaptive."""
    num_steps: int | None = None
    """Steps of the sampler; Heun takes 2 n - 1 evaluations. Default: those of each model, at which
    its spread is fitted: a model that starts from noise takes more."""
    batch_size: int = 16
    """Pictures computed together: for speed and memory; results agree up to rounding."""
    save_dir: str = "eval_v1_vs_v2"
    """Folder for the report and the pictures: new, empty, or of an earlier comparison."""
    json: tyro.conf.UseCounterAction[int] = 0
    """Print comparison_results.json instead of the report."""

    def check(self) -> None:
        """Raises UserError for a value that nothing can be compared with."""
        self.pattern("num_samples", "ensemble", "batch_size")
        check_sampler(self.sampler, 1 if self.num_steps is None else self.num_steps, {})
        if self.sampler == "mean":
            raise UserError("sampler='mean' draws no sample; the posterior mean is always reported "
                            "beside it: choose heun, euler, sde, ddim or adaptive")
        if len(self.v1_seeds) != len(self.v2_seeds):
            raise UserError(f"v1_seeds has {len(self.v1_seeds)} checkpoints and v2_seeds "
                            f"{len(self.v2_seeds)}: give equally many of both")


# --- checkpoints ---------------------------------------------------------------------------------


def load(name: str, path: str) -> dict[str, Any]:
    """The checkpoint of V1 or V2. Raises UserError if it is missing or damaged."""
    if not find_bundled(path).exists():
        latest = Path(path.replace("_best", "_latest"))
        hint = f" (or give {latest}, which is there)" if latest.exists() else ""
        raise UserError(f"no {name} checkpoint at {path}: train {name} first: "
                        f"{RUNNERS[name]}{hint}")
    return load_checkpoint(path)


def check_pair(v1: dict, v2: dict) -> list[str]:
    """Notes where the models are not the usual two, or are the bundled ones of unlike data.

    Raises:
        UserError: these are exchanged, or were not trained on the same data.
    """
    classes, (of_v1, of_v2) = (v1["model_class"], v2["model_class"]), (v1["data"], v2["data"])
    if classes == (CLASSES["V2"], CLASSES["V1"]):
        raise UserError(f"--v1_checkpoint holds a {classes[0]} (V2) and --v2_checkpoint a "
                        f"{classes[1]} (V1): exchange the two paths")
    if of_v1["channels"] != of_v2["channels"]:
        raise UserError(f"V1 was trained with {of_v1['channels']} channels and V2 with "
                        f"{of_v2['channels']}: train both on the same data")
    are_ours = v1.get("shipped") and v2.get("shipped")
    if of_v1["fingerprint"] != of_v2["fingerprint"] and not are_ours:
        settings = [name for name in OF_DATA if v1["config"].get(name) != v2["config"].get(name)]
        why = f"; {', '.join(settings)} differ" if settings else ""
        raise UserError(f"V1 was trained on {of_v1['name']} and V2 on other data ({of_v2['name']}, "
                        f"{of_v2['height']} x {of_v2['width']}{why}): train both on the same data")
    if not np.array_equal(of_v1["value_range"], of_v2["value_range"]):
        raise UserError(f"V1 was trained with values of {of_v1['value_range']} as -1 and 1, V2 "
                        f"with {of_v2['value_range']}: train both with the same VALUE_RANGE")
    notes = []
    if of_v1["fingerprint"] != of_v2["fingerprint"]:
        notes.append(f"V1 was trained on {of_v1['name']}, V2 on {of_v2['name']}; docs/models.md "
                     "compares V1 and V2 trained on the same crops")
    if classes != tuple(CLASSES.values()):
        notes.append("V1 below is a {}, V2 a {}".format(*classes))
    return notes


def learnt_from(checkpoint: dict) -> dict:
    """The settings that what was learnt depends on, steps among them, but for paths of data."""
    settings = {key: value for key, value in checkpoint["config"].items()
                if key not in BESIDE_LEARNING | PATHS_OF_DATA}
    return {**settings, "steps": checkpoint["step"]}


def differences_in_training(checkpoints: dict[str, dict]) -> dict[str, list]:
    """{setting: [V1's, V2's]} that both have, differ and matter."""
    v1, v2 = (learnt_from(checkpoints[name]) for name in ("V1", "V2"))
    shared = set(v1) & set(v2)
    if checkpoints["V1"]["model_class"] != checkpoints["V2"]["model_class"]:
        shared -= {"d_model", "num_layers"}  # another model's
    if v1.get("init_from") and v2.get("init_from"):  # each went on from its own
        shared.discard("init_from")
    return {name: [v1[name], v2[name]] for name in sorted(shared) if differ(v1[name], v2[name])}


def load_seeds(name: str, paths: Sequence[str], first: dict) -> list[dict]:
    """Checkpoints of trainings like the first's, each of another seed. Raises UserError else."""
    found, seeds, flag = [], {first["config"].get("seed")}, f"--{name.lower()}_seeds"
    own = learnt_from(first)
    for path in paths:
        checkpoint = load(name, path)
        its, seed = learnt_from(checkpoint), checkpoint["config"].get("seed")
        differing = [key for key in own if differ(its.get(key), own[key])
                     and key not in ("seed", "start_from")]  # a start has a seed
        differing += [key for key in ("data", "model_class", "model_args")
                      if key not in differing and checkpoint[key] != first[key]]
        if differing:
            raise UserError(f"{flag} {path} is of another training than the {name} that is "
                            f"compared (differs in {', '.join(differing)}): give trainings that "
                            "differ in their seed alone")
        if seed in seeds:
            raise UserError(f"{flag} {path} was trained with seed {seed}, as another {name} was: "
                            "give each of another seed")
        seeds.add(seed)
        found.append(checkpoint)
    return found


# --- numbers -------------------------------------------------------------------------------------


def compare(
    cases: Cases, pairs: Sequence[dict[str, FieldModel]], checkpoints: dict[str, dict],
    sampler: dict[str, Any], ensemble: int,
) -> tuple[pd.DataFrame, dict[str, list[np.ndarray]]]:
    """Evaluate V1, V2 and the baselines.

    Args:
        pairs: {V1, V2: model}, first the one that is compared, then those of other seeds.
        sampler: `method` and options of the samples. ensemble: samples of each case.
    Returns:
        the table, and fields of every case of both means and of kriging.
    """
    parts, fields = [], {}
    for training, models in enumerate(pairs):
        for name, model in models.items():
            cases.warm_up(model)
            made = {"mean": cases.sample(model, method="mean"),
                    "sample": cases.sample(model, draws=ensemble, bar=name, **sampler)}
            fields.setdefault(name, made["mean"].fields)
            steps = sampler["num_steps"] or model.num_steps
            fitted = checkpoints[name].get("calibration")
            if fitted and ensemble > 1 and training == 0:
                made["calibrated"] = made["sample"].widened(fitted["spread"])
            parts += [tables.rows_of(cases, outcome, kind, name, training, steps)
                      for kind, outcome in made.items()]
    for name in BASELINES:
        outcome = cases.interpolate(name)
        parts.append(tables.rows_of(cases, outcome, "baseline", name))
        if name == KRIGING:
            fields[name] = outcome.fields
    kriging = cases.sample(GaussianModel(), draws=ensemble, **sampler)
    parts.append(tables.rows_of(cases, kriging, "sample", KRIGING))
    return pd.concat(parts, ignore_index=True), fields


# --- command -------------------------------------------------------------------------------------


def evaluate(config: Config) -> dict[str, Any]:
    """Run the comparison and write its files; what comparison_results.json holds, with `table` as a
    DataFrame. Raises UserError for what the user can mend."""
    config.check()
    device = pick_device(config.device)
    paths = {"V1": config.v1_checkpoint, "V2": config.v2_checkpoint}
    checkpoints = {name: load(name, path) for name, path in paths.items()}
    notes = check_pair(*checkpoints.values())
    are_ours = all(checkpoint.get("shipped") for checkpoint in checkpoints.values())
    if are_ours and tables.starts_from_noise(checkpoints["V1"]):
        paths[BESIDE] = V1_WITH_START
        checkpoints[BESIDE] = load_checkpoint(V1_WITH_START)
    further = zip(load_seeds("V1", config.v1_seeds, checkpoints["V1"]),
                  load_seeds("V2", config.v2_seeds, checkpoints["V2"]), strict=True)
    pairs = [{name: build_model(checkpoint, device) for name, checkpoint in pair.items()}
             for pair in (checkpoints, *({"V1": v1, "V2": v2} for v1, v2 in further))]
    data, out = config.open(checkpoints["V2"], FILES, *paths.values(), *config.v1_seeds,
                            *config.v2_seeds)
    cases = Cases(
        data.test, config.pattern(), spread_over(data.test, config.num_samples),
        seed=config.seed, points=config.batch_size * data.height * data.width, device=device,
    )
    sampler = {"method": config.sampler, "num_steps": config.num_steps}
    table, fields = compare(cases, pairs, checkpoints, sampler, config.ensemble)
    first = table.query("training == 0")
    results = {
        **tables.about(config, data, cases),
        "models": {
            name: tables.describe_model(checkpoints[name], model, paths[name])
            for name, model in pairs[0].items()},
        "notes": notes,
        "trained_differently": differences_in_training(checkpoints),
        "table": table,
        "summary": tables.summarise(first),
        "differences": tables.compare_pairs(first, config.seed),
        "beside": tables.compare_pairs(first, config.seed, BESIDE),
    }
    if len(pairs) > 1:
        results["seeds"] = tables.over_trainings(table)
    about = f"{data.name}, {len(cases)} test pictures, {config.observe}, seed {config.seed}"
    out.write({
        "comparison_results.json": tables.as_json(results).encode(),
        "comparison_results.txt": tables.comparison_report(results).encode(),
        "v1_vs_v2_comparison.png": plots.comparison(
            cases, fields, data, f"Posterior means: {about}"),
        "improvement_chart.png": plots.improvement_chart(
            results, f"V2 against V1, mean and 95 % bootstrap interval: {about}"),
    })
    return results


def main(arguments: list[str] | None = None) -> None:
    config = cli.parse(Config, arguments, __doc__)
    results = evaluate(config)
    print(tables.as_json(results) if config.json else tables.comparison_report(results))
    print(f"Written: {config.save_dir}/comparison_results.txt, .json, v1_vs_v2_comparison.png, "
          "improvement_chart.png", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
