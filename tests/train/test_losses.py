"""What a training step learns from: the closed form on the grid and elsewhere, and the losses."""

import numpy as np
import pytest
import torch

from small import SIZE
from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.flow.path import draw_angles
from sparsefield.place import Domain, Observed
from sparsefield.train import losses
from sparsefield.train.losses import ClosedForms, start_loss, velocity_loss
from train_mamba_v2 import MAMBADiffusionV2

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[(16, 16), (12, 20)])
def batch(request, tmp_path_factory):
    """Four pictures of a shape; 12 x 20 has a lattice of another shape than its pixels."""
    height, width = request.param
    y, x = np.mgrid[:height, :width] / 16
    waves = np.stack([np.sin(3 * x + k) * np.cos(4 * y - k) for k in range(60)])[..., None]
    path = tmp_path_factory.mktemp("pictures") / "waves.npz"
    np.savez(path, images=(127.5 + 100 * waves.repeat(3, axis=3)).astype(np.uint8))
    split = open_data(str(path)).train
    made = TrainingBatches(split, parse_pattern("random:0.2"), seed=0, batch_size=4,
                           queries=(20, 30), draw_angles=draw_angles, sees_whole=True)
    return made[5], (height, width)


def model(**changes) -> MAMBADiffusionV2:
    torch.manual_seed(0)
    return MAMBADiffusionV2(**{**SIZE, "perceiver_heads": 2, **changes})


def test_the_closed_form_on_a_grid_is_that_of_any_places(batch, monkeypatch):
    made, shape = batch
    on_grid = ClosedForms(model(), *shape, CPU)(made)
    monkeypatch.setattr(losses, "LARGEST_GRID", 0)
    anywhere = ClosedForms(model(), *shape, CPU)(made)
    assert on_grid.observed.domain == Domain.of_grid(*shape)
    for found, expected in zip(on_grid.form[:5], anywhere.form[:5], strict=True):
        scale = expected.abs().mean()
        assert (found - expected).abs().quantile(0.99) < 5e-3 * scale
    assert on_grid.z_0.shape == anywhere.z_0.shape == made.x_1.shape


def test_fields_with_noise_are_kriged_with_it_and_the_others_as_alone(batch):
    made, shape = batch
    is_noisy, learner = torch.tensor([True, False, True, False]), model()
    noise_sd = 0.05 * is_noisy[:, None].expand(-1, 3).float()
    forms = ClosedForms(learner, *shape, CPU)
    mixed = forms(made._replace(noise_sd=noise_sd))
    alone = forms(made.part(~is_noisy))
    given = made.part(is_noisy)
    observed = Observed(given.input_coords, given.input_values, torch.full_like(
        given.input_values, 0.05), Domain.of_grid(*shape), Domain.of_grid(*shape))
    with_noise = learner.closed_form(observed, given.query_coords)
    for rows, expected in ((~is_noisy, alone.form), (is_noisy, with_noise)):
        for found, wanted in zip(mixed.form[:5], expected[:5], strict=True):
            torch.testing.assert_close(found[rows], wanted)
    torch.testing.assert_close(mixed.z_0[~is_noisy], alone.z_0)
    assert mixed.z_0[is_noisy].std() == pytest.approx(1, abs=0.2)
    assert mixed.part(slice(0, 2)).observed.noise_sd.shape == (2, *made.input_values.shape[1:])


def test_draws_have_unit_variance_and_a_seed_of_their_own(batch):
    made, shape = batch
    forms = ClosedForms(model(), *shape, CPU)
    draws = torch.stack([forms(made._replace(draws=made.draws + k)).z_0 for k in range(60)])
    assert draws.var(dim=0).mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(draws[3], forms(made._replace(draws=made.draws + 3)).z_0)
    alone = forms(made.part(slice(1, 2))).z_0
    torch.testing.assert_close(alone[0], draws[0, 1], rtol=1e-3, atol=1e-3)


def test_an_untrained_network_has_the_losses_of_the_closed_form(batch):
    made, shape = batch
    untrained = model()
    known = ClosedForms(untrained, *shape, CPU)(made)
    error = (made.x_1 - known.form.mean) / known.form.sd
    expected = 2 * ((1 + error**2).sqrt() - 1) + 0.5 * error**2
    torch.testing.assert_close(start_loss(untrained, made, known), expected)
    assert velocity_loss(untrained, made, known).shape == (*made.answered.shape, 3)


@pytest.mark.parametrize("loss", [start_loss, velocity_loss])
def test_a_field_whose_sd_is_far_too_small_does_not_decide_a_step(batch, loss):
    made, shape = batch

    def gradient(sd_times: float) -> torch.Tensor:
        learner = model()
        known = ClosedForms(learner, *shape, CPU)(made)
        sd = known.form.sd.clone()
        sd[0] *= sd_times
        known = known._replace(form=known.form._replace(sd=sd))
        loss(learner, made, known).mean().backward()
        return torch.cat([p.grad.ravel() for p in learner.parameters() if p.grad is not None])

    assert gradient(1e-5).norm() < 200 * gradient(1).norm()  # without a bound, 1e9


def test_each_stage_trains_its_own_part(batch):
    made, shape = batch
    for loss, trained in ((start_loss, ("unet.shift", "unet.scale")),
                          (velocity_loss, ("unet.flow", "decoder"))):
        learner = model()
        known = ClosedForms(learner, *shape, CPU)(made)
        loss(learner, made, known).mean().backward()
        moved = {name for name, p in learner.named_parameters()
                 if p.grad is not None and p.grad.any()}
        assert moved and all(name.startswith(trained) for name in moved)
        assert all(any(name.startswith(part) for name in moved) for part in trained)


def test_without_a_prior_the_draw_is_independent_noise(batch):
    made, shape = batch
    known = ClosedForms(model(prior="none", value_sd=0.4), *shape, CPU)(made)
    assert (known.form.mean == 0).all() and torch.allclose(known.form.sd, torch.tensor(0.4))
    assert known.z_0.std() == pytest.approx(1, abs=0.1)
