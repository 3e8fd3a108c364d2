"""The short causal convolution in front of the scan (Gu & Dao 2023, figure 3), with its SiLU.

Symbols: B batch, E channels, L steps, K taps.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparsefield.scan import choose_backend


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool = False) -> Tensor:
    """silu(bias + sum_k weight_k x_{t - K + 1 + k}), each channel on its own.

    Where the scan runs on numba, so does this: on a CPU torch's depthwise convolution costs more
    than the scan. Elsewhere it is `conv1d`.

    Args:
        x: (B, L, E). weight: (E, 1, K), as of `nn.Conv1d`. bias: (E,).
        reverse: t - K + 1 + k becomes t + K - 1 - k: read from the last step on.
    Returns:
        (B, L, E) in the dtype of x.
    """
    length, taps = x.shape[1], weight.shape[2]
    name, fast = choose_backend(x.device.type, x.dtype)
    if name == "numba" and taps <= fast.MAX_TAPS:
        return fast.causal_conv_silu(x.mT, weight[:, 0], bias, reverse=reverse).mT
    weight = weight.flip(-1) if reverse else weight
    y = F.conv1d(x.mT, weight, bias, padding=taps - 1, groups=x.shape[2])
    y = y[..., taps - 1 :] if reverse else y[..., :length]               # (B, E, L)
    return F.silu(y.mT)
