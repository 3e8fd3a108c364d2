"""Frozen cases: the same for every method, of any shape, and undisturbed by the model's mode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_sde_multiscale
import eval_v1_vs_v2
from small import SIZE, settings, train, write_checkpoint
from sparsefield import device
from sparsefield.data import open_data, parse_pattern
from sparsefield.data.scale import standardised
from sparsefield.errors import UserError
from sparsefield.evaluate import metrics
from sparsefield.evaluate.baselines import BASELINES
from sparsefield.evaluate.cases import Cases, spread
from sparsefield.evaluate.metrics import block_sums
from sparsefield.gaussian import GridPosterior, posterior
from sparsefield.hashed import noise_seed
from sparsefield.model.field import GaussianModel
from sparsefield.train.report import Validation
from train_mamba_v2 import MAMBADiffusionV2

RANDOM_SHARE = "random:0.05-0.5"


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """100 fields of 12 x 8: ramps are whole, seas have each a gap of its own size."""
    folder = tmp_path_factory.mktemp("fields")
    slopes = np.random.default_rng(0).uniform(0.1, 1, (100, 2, 1, 1))
    y, x = np.mgrid[:12, :8] / 12
    fields = (slopes[:, 0] * x + slopes[:, 1] * y)[..., None].astype(np.float32)
    np.savez(folder / "ramps.npz", images=fields)
    for k, field in enumerate(fields):
        field[: 1 + k % 4, : 1 + k % 7] = np.nan
    np.savez(folder / "seas.npz", images=fields)
    return {name: folder / f"{name}.npz" for name in ("ramps", "seas")}


@pytest.fixture
def ramps(paths) -> Path:
    return paths["ramps"]


@pytest.fixture
def seas(paths) -> Path:
    return paths["seas"]


def open_cases(path: Path, count: int = 5, observe: str = "random:0.2", **options) -> Cases:
    split = open_data(str(path)).test
    return Cases(split, parse_pattern(observe), spread(range(len(split)), count), **options)


def network(**changes) -> MAMBADiffusionV2:
    torch.manual_seed(0)
    model = MAMBADiffusionV2(**SIZE, perceiver_heads=2, channels=1, **changes)
    torch.nn.init.normal_(model.decoder[-1].weight, std=0.1)
    return model


# --- frozen --------------------------------------------------------------------------------------


def test_mask_and_noise_depend_on_the_seed_and_the_field_alone(ramps):
    many, few, other = (open_cases(ramps, count, seed=seed)
                        for count, seed in ((5, 0), (2, 0), (5, 1)))
    by_index = {case.index: case for case in many}
    for case in few:
        assert np.array_equal(case.observed, by_index[case.index].observed)
        assert case.noise_seed == by_index[case.index].noise_seed
        assert not np.array_equal(case.observed, other[case.index].observed)
    assert few[0].seed(0) == few[0].noise_seed
    assert few[0].seed(3) == noise_seed(few[0].noise_seed, 3)


def test_cases_are_spread_evenly():
    assert spread(range(100), 5) == [0, 25, 50, 74, 99]
    assert spread([3, 5], 10) == [3, 5] and spread(range(9), 1) == [0]
    with pytest.raises(UserError, match="at least 1"):
        spread(range(3), 0)


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, observe", [("ramps", RANDOM_SHARE), ("seas", "random:0.2")])
def test_cases_of_unequal_size_are_answered_as_if_alone(paths, kind, observe):
    cases = open_cases(paths[kind], observe=observe)
    assert len({len(case.observed) for case in cases}) > 1
    model = network(prior="none")
    together = cases.sample(model, draws=2, method="sde", num_steps=2)
    for k in range(len(cases)):
        alone = cases.subset([k]).sample(model, draws=2, method="sde", num_steps=2)
        np.testing.assert_allclose(together.draws[k], alone.draws[0], atol=1e-5)


def test_observed_values_are_put_in_and_gaps_stay_gaps(seas):
    cases = open_cases(seas)
    for outcome in (cases.sample(network(), method="euler", num_steps=1),
                    cases.interpolate("linear")):
        for case, field in zip(cases, outcome.fields, strict=True):
            assert np.array_equal(np.isnan(field), np.isnan(case.truth)) and np.isnan(field).any()
            kept = field.reshape(-1, 1)[case.observed]
            np.testing.assert_allclose(kept, case.truth.reshape(-1, 1)[case.observed], atol=1e-6)


def test_a_finer_field_is_compared_with_the_truth_of_its_size():
    data = open_data("photos", image_size=16)
    cases = Cases(data.test, parse_pattern("random:0.2"), [0, 9], resolutions=(16, 48))
    fine = cases.interpolate("linear", rows=48)
    for case, field, numbers in zip(cases, fine.fields, cases.numbers(fine), strict=True):
        assert field.shape == (48, 48, 3)
        assert numbers["mse"] == pytest.approx(np.mean((field - case.truths[48]) ** 2))
        error = block_sums(field, 3) / 9 - case.truth
        assert numbers["psnr_base"] == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-3)


def test_finer_fields_of_data_with_gaps_have_them_too(seas):
    cases = open_cases(seas, resolutions=(24,))
    assert all(list(case.truths) == [12] for case in cases)
    for case, field in zip(cases, cases.interpolate("nearest", rows=24).fields, strict=True):
        gaps = np.isnan(case.truth).repeat(2, axis=0).repeat(2, axis=1)
        assert field.shape == (24, 16, 1) and np.array_equal(np.isnan(field), gaps)
    with pytest.raises(UserError, match="multiples of the 12 rows"):
        open_cases(seas, resolutions=(18,))


# --- what used to crash --------------------------------------------------------------------------


def test_training_and_both_evaluations_take_unequal_cases(seas, tmp_path):
    data, observe = seas, RANDOM_SHARE
    train(settings(data, tmp_path / "run", observe=observe, epochs=1, eval_pictures=5))
    assert (tmp_path / "run/pictures_epoch_0001.png").stat().st_size > 10_000
    paths = {name: write_checkpoint(tmp_path / f"{name}.pth", name, data) for name in ("V1", "V2")}
    common = ["--num_samples", "5", "--num_steps", "1", "--observe", observe, "--ensemble", "2",
              "--device", "cpu"]
    eval_v1_vs_v2.main(["--v1_checkpoint", str(paths["V1"]), "--v2_checkpoint", str(paths["V2"]),
                        "--save_dir", str(tmp_path / "a"), *common])
    eval_sde_multiscale.main(["--checkpoint", str(paths["V2"]), "--save_dir", str(tmp_path / "b"),
                              "--samplers", "sde", "--resolutions", "12", *common])
    found = json.loads((tmp_path / "b/metrics_comparison.json").read_text())
    assert sum(row["kind"] == "sample" for row in found["table"]) == 5


def test_processes_share_the_validation_and_calibrate_on_all_of_it(ramps):
    split, pattern = open_data(str(ramps)).val, parse_pattern("random:0.2")
    alone, *shares = (Validation(split, pattern, 3, 2, torch.device("cpu"), share)
                      for share in ((0, 1), (0, 2), (1, 2)))
    indices = [[case.index for case in own.cases] for own in (alone, *shares)]
    assert len(indices[0]) == 3 and sorted(indices[1] + indices[2]) == sorted(indices[0])
    for own in shares:
        assert [case.index for case in own.every] == indices[0]


def test_dropout_does_not_reach_validation(ramps):
    """The averaged model of a training is in training mode."""
    data = open_data(str(ramps))
    validation = Validation(data.val, parse_pattern("random:0.2"), 3, 2, torch.device("cpu"))
    model = network(dropout=0.5).train()
    assert validation.evaluate(model, "flow") == validation.evaluate(model, "flow")
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind, noise", [("ramps", "0"), ("seas", "0"), ("ramps", "0-0.3")])
def test_training_scores_the_mean_as_evaluations_do(paths, kind, noise):
    data, model = open_data(str(paths[kind])), network()
    validation = Validation(data.val, parse_pattern("random:0.2", noise), 5, 2, torch.device("cpu"))
    theirs = validation.cases.numbers(validation.cases.sample(model, method="mean"))
    bare = validation.cases.numbers(validation.cases.sample(GaussianModel(), method="mean"))
    assert all(want["psnr"] != kriged["psnr"] for want, kriged in zip(theirs, bare, strict=True))
    for mine, want in zip(validation.evaluate(model, "flow"), theirs, strict=True):
        assert mine["psnr"] == pytest.approx(want["psnr"], abs=0.01)
        assert mine["ssim"] == pytest.approx(want["ssim"], abs=1e-3)


def test_with_noise_measured_points_are_predicted_and_scored_and_kriging_is_told(ramps):
    split, noisy = open_data(str(ramps)).test, parse_pattern("random:0.3", "0.3")
    cases = Cases(split, noisy, range(len(split)))
    assert not any(len(case.exact) for case in cases)
    kriged = cases.sample(GaussianModel(), draws=20)
    unaware = np.mean([metrics.mse(BASELINES["kriging, fitted"](*case.known, case.truth.shape[:2]),
                                   case.truth) for case in cases])
    for outcome in (kriged, cases.interpolate("kriging, fitted")):
        for case, field in zip(cases, outcome.fields, strict=True):
            there = field.reshape(-1, 1)[case.observed]
            assert np.abs(there - case.known[1]).max() > 1e-3
    told = cases.interpolate("kriging, fitted").fields
    assert np.mean([metrics.mse(field, case.truth)
                    for field, case in zip(told, cases, strict=True)]) < 0.9 * unaware
    covered = np.mean([numbers["coverage_90"] for numbers in cases.numbers(kriged)])
    assert 0.8 < covered < 0.99


def test_a_field_is_fitted_once_for_all_validations(ramps, monkeypatch):
    fitted = []
    answer = GridPosterior._answer
    monkeypatch.setattr(GridPosterior, "_answer",
                        lambda *given: fitted.append(1) or answer(*given))
    monkeypatch.setattr(posterior, "fit", lambda *given: pytest.fail("fitted again"))
    validation = Validation(open_data(str(ramps)).val, parse_pattern("random:0.2"), 3, 2,
                            torch.device("cpu"))
    first = validation.evaluate(network(), "flow")
    assert validation.evaluate(network(), "flow") == first and len(fitted) == 3


def test_evaluations_compute_in_float32_on_every_machine(ramps, monkeypatch):
    """A CPU with instructions for bfloat16 once gave other numbers than one without."""
    monkeypatch.setattr("sparsefield.device._CHECKS", ("is_available",))
    assert device.has_fast_bfloat16()
    model, seen = network(), set()
    for module in model.modules():
        module.register_forward_hook(
            lambda *given: seen.update(x.dtype for x in [given[2]] if isinstance(x, torch.Tensor)))
    open_cases(ramps, 2).sample(model, method="heun", num_steps=2)
    assert seen == {torch.float32}


def test_standardised_fields_have_no_bounds(tmp_path):
    """A spike of many sd beside nothing: what is measured next to it says that it goes on."""
    y, x = np.mgrid[:12, :12] / 12
    peaks = np.exp(-60 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)) * np.arange(1, 41)[:, None, None]
    np.savez(tmp_path / "peaks.npz", images=peaks[..., None].astype(np.float32))
    split = standardised(open_data(str(tmp_path / "peaks.npz"))).test
    cases = Cases(split, parse_pattern("random:0.4"), range(len(split)))
    for made in (cases.sample(GaussianModel(), draws=2, method="heun"),
                 cases.interpolate("thin-plate RBF"), cases.interpolate("kriging, fitted")):
        found = [draws[0].reshape(-1)[np.setdiff1d(np.arange(144), case.observed)].max()
                 for case, draws in zip(cases, made.widened(1.0).draws, strict=True)]
        assert max(found) > 1
