"""The path from a draw to the field."""

import math

import numpy as np
import pytest
import torch

from sparsefield.flow import path


def ends() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64).unbind()


def test_the_path_goes_from_the_draw_to_the_field():
    z_0, z_1 = ends()
    torch.testing.assert_close(path.interpolate(z_0, z_1, torch.zeros(4).double()), z_0)
    theta = torch.full((4,), path.END, dtype=torch.float64)
    torch.testing.assert_close(path.interpolate(z_0, z_1, theta), z_1)


def test_the_target_is_the_derivative_of_the_path():
    z_0, z_1 = ends()
    theta, h = torch.linspace(0, path.END, 4, dtype=torch.float64), 1e-5
    ahead, back = (path.interpolate(z_0, z_1, theta + side) for side in (h, -h))
    torch.testing.assert_close(path.target(z_0, z_1, theta), (ahead - back) / (2 * h))


def test_it_is_the_straight_path_rescaled():
    z_0, z_1 = ends()
    t = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    straight = (1 - t)[:, None, None] * z_0 + t[:, None, None] * z_1
    scale = ((1 - t) ** 2 + t**2).sqrt()[:, None, None]
    theta = torch.atan2(t, 1 - t)
    torch.testing.assert_close(path.interpolate(z_0, z_1, theta), straight / scale)


def test_the_network_sees_nothing_of_a_draw_at_angle_zero():
    z, _ = ends()
    seen = path.seen(z, torch.tensor([0.0, 1e-6, 0.5, path.END]))
    assert (seen[0] == 0).all() and torch.equal(seen[1:], z[1:])


def test_where_the_closed_form_is_right_the_slope_is_nothing():
    """z_0 and z_1 alike and independent: least squares of the target on z finds no slope."""
    generator = torch.Generator().manual_seed(0)
    z_0, z_1 = torch.randn(2, 1, 200_000, 1, generator=generator, dtype=torch.float64)
    for theta in (0.2, 0.8, 1.4):
        angle = torch.tensor([theta], dtype=torch.float64)
        z, target = path.interpolate(z_0, z_1, angle), path.target(z_0, z_1, angle)
        assert ((z * target).mean() / z.square().mean()).abs() < 0.01
        assert target.std().item() == pytest.approx(1, abs=0.01)


def test_training_angles():
    angles = path.draw_angles(np.random.default_rng(0), 20_000, zero_share=0.25)
    assert angles.dtype == np.float32 and angles.min() == 0 and angles.max() < path.END
    assert (angles == 0).mean() == pytest.approx(0.25, abs=0.01)
    above = angles[angles > 0]
    assert above.mean() == pytest.approx(math.pi / 4, abs=0.01)
    assert above.std() == pytest.approx(path.END / math.sqrt(12), abs=0.01)


def test_training_angles_take_as_many_numbers_whatever_the_share():
    after = []
    for share in (0.0, 1.0):
        rng = np.random.default_rng(0)
        path.draw_angles(rng, 7, zero_share=share)
        after.append(rng.random())
    assert after[0] == after[1]
