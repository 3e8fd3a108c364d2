"""Learning along time: sequences, readers along time, and what they start from."""

import numpy as np
import pytest
import torch

from small import SIZE, settings, train
from sparsefield import load
from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.errors import UserError
from sparsefield.evaluate.cases import Cases, spread_over
from sparsefield.flow.path import draw_angles
from sparsefield.gaussian import condition
from sparsefield.gaussian.grid import GridPosterior
from sparsefield.gaussian.kernels import BANK, isotropic
from sparsefield.model.checkpoint import FORMAT, load_model, save_checkpoint
from sparsefield.model.mamba import Mamba
from sparsefield.model.transfer import take_start, take_weights
from sparsefield.place import Domain, Frames, Observed, grid_coords
from sparsefield.train.losses import ClosedForms, time_scale
from train_mamba_v2 import MAMBADiffusionV2

CPU, FRAMES, SIDE, STEP = torch.device("cpu"), 3, 8, 0.05
TEN_PERCENT = parse_pattern("random:0.1")


@pytest.fixture(scope="module")
def tracer():
    return open_data("tracer", image_size=SIDE, frames=FRAMES)


@pytest.fixture(scope="module")
def batch(tracer):
    return batches(tracer.train)[3]


def batches(split, size=4 * FRAMES, **more):
    return TrainingBatches(split, TEN_PERCENT, seed=0, batch_size=size, queries=(20, 30),
                           draw_angles=draw_angles, sees_whole=True, **more)


def model(**changes):
    torch.manual_seed(0)
    return MAMBADiffusionV2(**{**SIZE, "perceiver_heads": 2, "channels": 1, "time": FRAMES,
                               "time_scale": STEP, **changes})


def awake(made):
    """A network starts as the closed form; give the last layers something to say."""
    for parameter in made.parameters():
        if not parameter.any() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def observed_of(batch, frames=FRAMES):
    return Observed(batch.input_coords, batch.input_values, frames=Frames(frames, batch.times))


# --- data ----------------------------------------------------------------------------------------


def test_slots_of_a_batch_are_frames_of_sequences(tracer, batch):
    assert batch.times.tolist() == [0, 1, 2] * 4
    assert (batch.theta.view(-1, FRAMES) == batch.theta[::FRAMES, None]).all()
    assert len(set(batch.theta.tolist())) > 1
    masks = batch.mask_id.view(-1, FRAMES)
    assert (masks.diff(dim=1) == 1).all()
    seen = [set(index.tolist()) for index in batch.input_index[:FRAMES]]
    assert seen[0] != seen[1]

    full = TrainingBatches(tracer.train, TEN_PERCENT, seed=0, batch_size=2 * FRAMES,
                           queries=(58, 58), draw_angles=draw_angles, starting=9)[3]
    for frames in full.x_1.new_zeros(2 * FRAMES, SIDE**2, 1).scatter_(
        1, full.query_index[..., None], full.x_1
    ).unflatten(0, (2, FRAMES)):
        known = (frames != 0).all(dim=0)
        alike = np.corrcoef(frames[0][known], frames[1][known])[0, 1]
        assert alike > 0.9, "turned, or cut, differently"


def test_ranks_share_sequences(tracer, batch):
    parts = [batches(tracer.train, rank=rank, world_size=2)[3] for rank in range(2)]
    for name, whole in batch._asdict().items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), whole), name
    with pytest.raises(UserError, match="multiple of 6"):
        batches(tracer.train, size=9, world_size=2)


def test_a_stack_is_cut_into_sequences_with_its_times(tmp_path):
    xarray = pytest.importorskip("xarray")
    days = np.delete(np.arange(80.0), [3, 30, 31])
    values = days[:, None, None] + np.zeros((1, 12, 60))
    axis = ("time", days, {"units": "days since 2001-01-01"})
    array = xarray.DataArray(values, dims=("time", "y", "x"), name="t", coords={"time": axis})
    array.to_netcdf(path := tmp_path / "stack.nc", engine="scipy")
    data = open_data(str(path), image_size=8, frames=4)
    for split in (data.train, data.val):
        assert len(split) % 4 == 0
        for first in range(0, len(split), 4):
            frames = [data.to_physical(split.training_example(first + k, np.random.default_rng(1)))
                      for k in range(4)]
            own = np.array([frame[0, 0, 0] for frame in frames])
            assert set(own.round(3)) <= set(days)
            expected = (own - own[0]) / np.diff(own).mean()
            np.testing.assert_allclose([split.time(first + k) for k in range(4)], expected,
                                       atol=1e-4)
    array.isel(time=slice(None, None, -1)).to_netcdf(path, engine="scipy")
    with pytest.raises(UserError, match="do not grow"):
        open_data(str(path), image_size=8, frames=4)


def test_what_has_no_time_is_refused():
    with pytest.raises(UserError, match=r"time=8: photos holds single pictures"):
        open_data("photos", frames=8)


def test_cases_of_a_sequence_stay_together_with_equally_many_points(tracer):
    indices = spread_over(tracer.val, 7)
    assert len(indices) == 2 * FRAMES and indices[1] - indices[0] == 1
    cases = Cases(tracer.val, parse_pattern("random:0.05-0.5"), indices, points=4 * SIDE**2)
    assert sorted(cases.groups()) == [[0, 1, 2], [3, 4, 5]]
    counts = {len(case.observed) for case in cases.cases[:FRAMES]}
    assert len(counts) == 1
    assert cases.frames_at([0, 1, 2]).times.tolist() == [0, 1, 2]


# --- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["mamba", "gru"])
def test_readers_start_as_nothing_and_then_tell_of_other_frames(batch, reader):
    made = model(time_reader=reader).eval()
    known = ClosedForms(made, SIDE, SIDE, CPU)(batch)

    def shift(values, frames=FRAMES):
        observed = observed_of(batch, frames)._replace(values=values)
        form = made.closed_form(observed, batch.query_coords)
        form = form._replace(features=form.features.clone())
        with torch.no_grad():
            return made.start(form, observed, batch.query_coords).mean - form.mean

    assert not shift(batch.input_values).any()
    torch.testing.assert_close(made.start(known.form, known.observed, batch.query_coords).mean,
                               known.form.mean)
    awake(made)
    features = known.form.features
    other = features.clone()
    other[2] += 1.0
    with torch.no_grad():
        frames = Frames(FRAMES, batch.times)
        change = (made.unet(features, frames) - made.unet(other, frames)).abs().amax(dim=(1, 2, 3))
    assert (change[:3] > 1e-5).all(), "what a frame shows does not reach the others"
    assert not change[3:].any(), "it reaches another sequence"
    alone = (made.unet(features) - made.unet(other)).abs().amax(dim=(1, 2, 3))
    assert alone[2] > 0 and not alone[:2].any()


def test_draws_of_a_sequence_are_read_apart(batch):
    """Each of K draws side by side is what it is alone."""
    made = awake(model(time_reader="mamba", flow_unet_width=8))
    state = made.encode(observed_of(batch), batch.query_coords)
    z = torch.randn(len(batch.theta), 2, *batch.x_1.shape[1:])
    twice = made.velocity(z.flatten(0, 1), batch.theta.repeat_interleave(2), state.repeat(2))
    once = torch.stack([made.velocity(z[:, k], batch.theta, state) for k in range(2)], dim=1)
    torch.testing.assert_close(twice.unflatten(0, (-1, 2)), once, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reader", ["mamba", "gru"])
def test_uneven_steps_change_what_is_read_and_even_ones_do_not(batch, reader):
    made = awake(model(time_reader=reader))
    features = ClosedForms(made, SIDE, SIDE, CPU)(batch).form.features
    with torch.no_grad():
        plain, even, uneven = (made.unet(features, Frames(FRAMES, times)) for times in (
            None, 7 * batch.times, batch.times**2))
    assert torch.equal(plain, even)
    assert (plain - uneven).abs().max() > 1e-4


def test_a_longer_step_lets_mamba_forget_as_several_steps_do():
    torch.manual_seed(0)
    made = Mamba(4, d_state=2)
    x = torch.randn(1, 4, 4)
    x[:, 1:3] = 0
    without = x.clone()
    without[:, 0] = 0

    @torch.no_grad()
    def memory(tokens, **steps):
        """What the last token still knows of the first."""
        return (made(x[:, tokens], **steps) - made(without[:, tokens], **steps))[0, -1]

    with torch.no_grad():
        made.dt_proj.weight.zero_()  # equal steps of all tokens
        made.conv1d.weight[..., :-1] = 0
    three_steps = memory([0, 1, 2, 3])
    one_long_step = memory([0, 3], log_step=torch.tensor([[1.0, 3.0]]).log())
    one_step = memory([0, 3])
    assert (one_long_step - three_steps).norm() < 0.2 * (one_step - three_steps).norm()


# --- starts --------------------------------------------------------------------------------------


def test_the_start_in_space_and_time_is_the_posterior_of_all_frames(batch):
    forms = ClosedForms(model(time_start="spacetime"), SIDE, SIDE, CPU)
    known = forms(batch)
    frames, domain = Frames(FRAMES), Domain()

    def seen(coords):
        places = frames.in_time(coords)
        return torch.cat([places[..., :2], 0 * places[..., :1], STEP * places[..., 2:]], dim=2)

    posterior = condition(seen(batch.input_coords), frames.joined(batch.input_values),
                          domain=domain, kernels=isotropic(BANK))
    expected = posterior.at(seen(batch.query_coords))
    loo = posterior.leave_one_out
    for found, wanted in ((known.form.mean, expected.mean), (known.form.sd, expected.sd),
                          (known.form.loo_sd, loo.sd), (known.form.loo_z, loo.z)):
        torch.testing.assert_close(found, frames.apart(wanted), rtol=1e-3, atol=1e-4)
    single = ClosedForms(model(), SIDE, SIDE, CPU)(batch)
    error, alone = ((batch.x_1 - each.form.mean).square().mean() for each in (known, single))
    assert error < alone
    again = forms(batch)
    assert torch.equal(again.z_0, known.z_0)


def test_draws_in_space_and_time_follow_each_other():
    grid = GridPosterior(SIDE, SIDE, CPU, FRAMES, 0.02)
    observed = torch.arange(0, FRAMES * SIDE**2, 23)[None]
    values = grid_coords(SIDE, SIDE).repeat(FRAMES, 1)[observed[0], :1][None]
    count = 300
    drawn = grid([(1,)] * count, observed.expand(count, -1), values.expand(count, -1, -1),
                 torch.arange(count)).draws[..., 0]
    free = np.setdiff1d(np.arange(FRAMES * SIDE**2), observed[0])
    assert drawn[:, free].var(dim=0).mean() == pytest.approx(1, abs=0.1)
    frames = drawn.unflatten(1, (FRAMES, -1))
    alike = [torch.corrcoef(frames[:, [0, k], 11].T)[0, 1] for k in (1, 2)]
    assert alike[0] > alike[1] > 0.3


def test_the_scale_of_time_is_that_of_the_fields(tmp_path):
    """Fields that a wind carries by a tenth of their side in each step."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:12, :12] / 12
    waves = rng.uniform(-9, 9, (20, 2)), rng.uniform(0, 6, 20), rng.normal(size=20)
    still = [sum(a * np.cos(k[0] * (x - v * t) + k[1] * y + p)
                 for k, p, a in zip(*waves, strict=True)) for v in (0.03, 0.12) for t in range(60)]
    found = []
    for part in (still[:60], still[60:]):
        np.savez(path := tmp_path / "moving.npz", images=np.float32(part))
        found.append(time_scale(open_data(str(path), frames=3).train, TEN_PERCENT))
    assert 0 < found[0] < found[1]


# --- trainings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["frame", "spacetime"])
def test_a_training_learns_sequences_and_says_how_good_it_is(start, tmp_path):
    config = settings("tracer", tmp_path, image_size=SIDE, time=FRAMES, time_start=start,
                      batch_size=192, eval_pictures=6, observe="random:0.1", epochs=1,
                      log_file=str(tmp_path / "log.txt"))
    train(config)
    told = (tmp_path / "log.txt").read_text()
    for method in ("kriging, frame", "kriging, spacetime", "model"):
        assert f"sequences, {method}: error 0." in told
    made, checkpoint = load_model(tmp_path / "mamba_v2_best.pth")
    assert made.time == FRAMES and made.time_start == start
    assert (made.time_scale > 0) == (start == "spacetime")
    assert checkpoint["config"]["time"] == FRAMES
    assert load(str(tmp_path / "mamba_v2_best.pth")).network.time == FRAMES


def test_a_model_of_single_fields_may_go_on_with_sequences(tmp_path):
    alone, path = awake(model(time=1, time_scale=0.0)), tmp_path / "alone.pth"
    arguments = {**SIZE, "perceiver_heads": 2, "channels": 1, "time": 1}
    save_checkpoint(path, {"format": FORMAT, "model_class": "MAMBADiffusionV2", "data": {},
                           "model_args": arguments, "weights": alone.state_dict(), "config": {},
                           "step": 1, "epoch": 1})
    for take in (lambda made: take_weights(made, {**arguments, "time": FRAMES}, path),
                 lambda made: take_start(made, path)):
        made = model()
        assert "taken" in take(made)
        for name, weight in alone.unet.state_dict().items():
            assert torch.equal(made.unet.state_dict()[name], weight)


def test_an_unknown_reader_or_start_is_refused():
    with pytest.raises(UserError, match="time_reader='lstm' is unknown"):
        model(time_reader="lstm")
    with pytest.raises(UserError, match="time_start='both' is unknown"):
        model(time_start="both")
