"""Large fields are answered in blocks: nothing of that is to be seen."""


import pytest
import torch

from sparsefield.flow.sampling import sample
from sparsefield.gaussian import Kernel
from sparsefield.gaussian.kernels import FEATURES, Waves
from sparsefield.model.blocks import Block, cut_blocks
from sparsefield.model.checkpoint import load_model
from sparsefield.model.field import GaussianModel
from sparsefield.place import grid_coords
from train_mamba_v2 import MAMBADiffusionV2


def jump_across_borders(values: torch.Tensor, block: torch.Tensor) -> float:
    """Mean step between neighbours of two blocks, over that of the pairs beside them on both sides:
    1 if no seam is to be seen.

    Args:
        values: (..., H, W, C). block: (H, W), which block answered each point; negative: none did.
    """
    across, beside = [], []
    for rows, owner in ((values, block), (values.transpose(-3, -2), block.T)):
        step = rows.diff(dim=-3).abs().mean(dim=-1)                       # (..., H - 1, W)
        asked = (owner >= 0).unfold(0, 4, 1).all(dim=2)                   # four in a row
        border = asked & (owner[1:-2] != owner[2:-1])                     # (H - 3, W)
        across.append(step[..., 1:-1, :][..., border])
        beside += [step[..., :-2, :][..., border], step[..., 2:, :][..., border]]
    return float(torch.cat(across, dim=-1).mean() / torch.cat(beside, dim=-1).mean())


def block_of(blocks: list[Block], field: int = 0) -> torch.Tensor:
    """(N,), which of the blocks answers each query of a field."""
    cores = [block.index[field, : block.core] for block in blocks]
    found = torch.empty(sum(map(len, cores)), dtype=torch.long)
    for number, core in enumerate(cores):
        found[core.cpu()] = number
    return found


def field_at(coords: torch.Tensor) -> torch.Tensor:
    """A rough field of three channels in about [-1, 1], at (N, 2): (N, 3)."""
    numbers = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(0))
    waves = Waves(Kernel(1.2), coords).fields(numbers).T
    return 0.3 * (waves - waves.mean(dim=0))


def models() -> dict:
    return {"closed form": GaussianModel(), "V2": load_model("bundled", torch.device("cpu"))[0]}


def seams(model, side: int, inputs: int, block_size: int, draws: int, **settings) -> list[float]:
    """Of samples and of the mean, at pixels none of which is measured."""
    coords = torch.rand(inputs, 2, generator=torch.Generator().manual_seed(1))
    queries = grid_coords(side, side)
    values = field_at(torch.cat([coords, queries]))[:inputs]
    result = sample(model, queries[None], coords[None], values[None], seeds=[list(range(draws))],
                    points=block_size, clip=False, **settings)
    owner = block_of(cut_blocks(queries[None], block_size, 0)).view(side, side)
    assert result.blocks in (1, len(owner.unique())) and len(owner.unique()) > 3
    return [jump_across_borders(found.unflatten(-2, (side, side)), owner)
            for found in (result.values[0], result.mean[0])]


@pytest.mark.parametrize("name", ["closed form", "V2"])
def test_no_seam_is_visible(name):
    of_samples, of_mean = seams(models()[name], 48, 150, 300, draws=2)
    assert 0.9 < of_samples < 1.1 and 0.85 < of_mean < 1.15


def test_the_flow_unet_sees_draws_whole_whatever_the_blocks():
    """Tokens that predict 0, and a flow U-Net that does not: blocks then change nothing at all."""
    torch.manual_seed(0)
    model = MAMBADiffusionV2(d_model=16, num_layers=2, perceiver_heads=2, neighbours=4,
                             unet_width=8, flow_unet_width=8)
    torch.nn.init.normal_(model.unet.flow.last.weight)
    model.eval()
    queries, coords = grid_coords(24, 24)[None], torch.rand(1, 60, 2)
    whole, cut, untold = (
        sample(told, queries, coords, field_at(coords[0])[None], seeds=[[0, 1]], clip=False, **how)
        for told, how in ((model, {}), (model, {"points": 100}), (GaussianModel(), {}))
    )
    assert cut.blocks > 4
    torch.testing.assert_close(cut.values, whole.values, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(whole.values, untold.values, atol=0.05)


@pytest.mark.long
@pytest.mark.parametrize("name, inputs", [("closed form", 2000), ("closed form", 100_000),
                                          ("V2", 2000)])
def test_no_seam_is_visible_in_a_large_field(name, inputs):
    block_size = 4096 if inputs == 2000 else 350  # as sparsefield.use.predict chooses
    found = seams(models()[name], 512, inputs, block_size, draws=1, most_inputs=400)
    assert all(0.97 < seam < 1.03 for seam in found)


def test_a_seam_is_seen():
    """What the tests above look for is found where it is."""
    queries = grid_coords(48, 48)
    owner = block_of(cut_blocks(queries[None], 300, 0)).view(48, 48)
    smooth = field_at(queries).view(48, 48, 3)
    level = torch.randn(int(owner.max()) + 1, generator=torch.Generator().manual_seed(2))
    assert 0.9 < jump_across_borders(smooth, owner) < 1.1
    assert jump_across_borders(smooth + 0.1 * level[owner][..., None], owner) > 1.3
