"""What one evaluation of a model costs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from sparsefield.model.field import FieldModel
from sparsefield.model.mamba import Mamba
from sparsefield.place import Domain, Observed, grid_coords


def _convolution(
    shape: list[int], weight: list[int], bias: object, stride: object, padding: object,
    dilation: object, transposed: bool, *_: object, out_shape: list[int], **__: object,
) -> int:
    """Of pictures; convolutions of sequences, in the Mamba layers, are counted apart."""
    return conv_flop_count(shape, weight, out_shape, transposed) if len(shape) > 3 else 0


@torch.no_grad()
def count_flops(model: FieldModel, shape: tuple[int, int], channels: int, observed: int) -> int:
    """Floating-point operations of one evaluation for one image, a multiply-add counting two.

    Counted: matrix products (attention as dense ones), the K taps of each causal convolution
    (2 L E K, whichever backend computes it), and selective scans with 9 L E S + 2 L E each
    (discretisation, recurrence, output, skip and gate; the count of VMamba, Liu et al. 2024).
    Not counted: elementwise operations, norms, and what runs once an image whatever the number of
    evaluations (`encode`).

    Args:
        shape: (H, W), all of it queried. channels: C. observed: M.
    """
    device = next(model.parameters()).device
    queries = grid_coords(*shape, device=device)[None]
    inputs = torch.zeros(1, observed, channels, device=device)
    domain = Domain.of_grid(*shape)
    state = model.encode(Observed(queries[:, :observed], inputs, None, domain, domain), queries)
    mamba: list[int] = []

    def count_block(block: Mamba, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inner, states = block.A_log.shape
        taps = block.conv1d.weight.shape[2]
        mamba.append(output.shape[1] * inner * (2 * taps + 9 * states + 2))

    hooks = [block.register_forward_hook(count_block) for block in model.modules()
             if isinstance(block, Mamba)]
    try:
        # The fused attention of a CPU is unknown to the counter and would count nothing.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution: _convolution}
        ) as products:
            model.velocity(state.mean, torch.ones(1, device=device), state)
    finally:
        for hook in hooks:
            hook.remove()
    return products.get_total_flops() + sum(mamba)
