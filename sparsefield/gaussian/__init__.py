"""The best Gaussian answer: kriging fitted to the field at hand, and draws from it."""

from sparsefield.gaussian.design import Use
from sparsefield.gaussian.grid import GridPosterior
from sparsefield.gaussian.kernels import BANK, ONE_KERNEL, Kernel
from sparsefield.gaussian.kriging import Answer, LeaveOneOut
from sparsefield.gaussian.noise import estimate_noise
from sparsefield.gaussian.posterior import Posterior, Prior, Variogram, condition

__all__ = ["BANK", "ONE_KERNEL", "Answer", "GridPosterior", "Kernel", "LeaveOneOut", "Posterior",
           "Prior", "Use", "Variogram", "condition", "estimate_noise"]
