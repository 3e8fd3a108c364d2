"""The best Gaussian answer: kriging fitted to the field at hand, and draws from it."""

from sparsefield.gaussian.answer import Answer, LeaveOneOut
from sparsefield.gaussian.kernels import BANK, NOISY_BANK, ONE_KERNEL, Kernel
from sparsefield.gaussian.noise import PosteriorNoise
from sparsefield.gaussian.nugget import estimate_noise
from sparsefield.gaussian.posterior import Posterior, condition

__all__ = ["BANK", "NOISY_BANK", "ONE_KERNEL", "Answer", "Kernel", "LeaveOneOut", "Posterior",
           "PosteriorNoise", "condition", "estimate_noise"]
