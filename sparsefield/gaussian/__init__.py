"""The best Gaussian answer: kriging fitted to the field at hand, and draws from it."""

from sparsefield.gaussian.fit import estimate_noise
from sparsefield.gaussian.grid import GridAnswer, GridPosterior
from sparsefield.gaussian.kernels import BANK, ONE_KERNEL, Kernel
from sparsefield.gaussian.kriging import Answer, LeaveOneOut
from sparsefield.gaussian.posterior import Posterior, PosteriorNoise, condition

__all__ = ["BANK", "ONE_KERNEL", "Answer", "GridAnswer", "GridPosterior", "Kernel", "LeaveOneOut",
           "Posterior", "PosteriorNoise", "condition", "estimate_noise"]
