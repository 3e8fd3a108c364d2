"""Universal kriging as in the textbooks: dense, slow, float64, with a covariance K = c - gamma.

Cressie 1993, Statistics for Spatial Data, sections 2.6, 3.2 and 3.4; Stein 1999, Interpolation of
Spatial Data, section 2.7. Nothing here is shared with the package: coordinates (M, D), values
(M, C), drift (M, q) and results are numpy arrays.
"""

import numpy as np
import scipy.special

PENALTY = 2.0  # nats against a direction, a range, another nugget than 1e-4


def distances(kernel, a, b):
    """Lengths of steps that are shrunk along a direction and stretched across it: (P, Q)."""
    along = np.array([np.cos(kernel.angle), np.sin(kernel.angle)])
    across = np.array([-along[1], along[0]])
    step = a[:, None] - b[None]
    plane = step[..., :2]
    square = (plane @ along) ** 2 / kernel.ratio + (plane @ across) ** 2 * kernel.ratio
    if a.shape[1] > 2:  # the third axis like the first, others as they are
        third = abs(np.cos(kernel.angle)) ** 2 / kernel.ratio**0.5
        third += abs(np.sin(kernel.angle)) ** 2 * kernel.ratio**0.5
        square = square + (third * step[..., 2]) ** 2 + (step[..., 3:] ** 2).sum(axis=-1)
    return square**0.5


def gamma(kernel, a, b):
    """|h|^b, or 1 minus Matern's correlation, by its Bessel function: (P, Q)."""
    h, nu = distances(kernel, a, b), kernel.smoothness
    if kernel.reach is None:
        return h**nu
    if np.isinf(nu):
        return 1 - np.exp(-((h / kernel.reach) ** 2) / 2)
    d = np.maximum(np.sqrt(2 * nu) * h / kernel.reach, 1e-10)
    correlation = 2 ** (1 - nu) / scipy.special.gamma(nu) * d**nu * scipy.special.kv(nu, d)
    return np.where(h == 0, 0, 1 - correlation)


class Kriging:
    """One kernel of a given amplitude; noise_variance, of each observation or their covariance
    matrix, is in units of the values."""

    def __init__(self, kernel, coords, amplitude2=1.0, noise_variance=0.0, drift=None):
        self.kernel, self.coords, self.amplitude2 = kernel, coords, amplitude2
        # c: any that makes K positive definite; no result depends on it.
        self.level = 50.0 if kernel.reach is None else 1.0
        self.f = self._columns(len(coords), drift)
        self.k = self._covariance(coords, coords)
        noise = np.asarray(noise_variance)
        self.k += amplitude2 * kernel.nugget * np.eye(len(coords))
        self.k += noise if noise.ndim == 2 else noise * np.eye(len(coords))
        self.inverse = np.linalg.inv(self.k)
        self.of_drift = np.linalg.inv(self.f.T @ self.inverse @ self.f)
        self.p = self.inverse - self.inverse @ self.f @ self.of_drift @ self.f.T @ self.inverse

    @staticmethod
    def _columns(count, drift):
        return np.column_stack([np.ones(count), np.empty((count, 0)) if drift is None else drift])

    def _covariance(self, a, b):
        return self.amplitude2 * (self.level - gamma(self.kernel, a, b))

    def weights(self, queries, drift=None):
        """(N, M): the kriging system with its Lagrange multipliers."""
        right = self._covariance(self.coords, queries)                    # (M, N)
        short = self._columns(len(queries), drift).T - self.f.T @ self.inverse @ right
        return (self.inverse @ (right + self.f @ self.of_drift @ short)).T

    def covariance(self, queries, drift=None):
        """(N, N) of the errors at queries, none of them observed; the nugget is the field's."""
        w, right = self.weights(queries, drift), self._covariance(self.coords, queries)
        prior = self._covariance(queries, queries)
        prior += self.amplitude2 * self.kernel.nugget * np.eye(len(queries))
        return prior - w @ right - right.T @ w.T + w @ self.k @ w.T

    def coefficients(self, values):
        """Generalised least squares of values (M, C), level first: (1 + q, C)."""
        return self.of_drift @ self.f.T @ self.inverse @ values

    def log_det(self):
        """Of K, and of F' K^-1 F."""
        return np.linalg.slogdet(self.k)[1] - np.linalg.slogdet(self.of_drift)[1]

    def restricted_log_likelihood(self, values):
        """Of values (M,), up to a constant."""
        return -(values @ self.p @ values + self.log_det()) / 2


def penalty(kernel):
    """What a kernel must gain."""
    return PENALTY * ((kernel.ratio != 1) + (kernel.reach is not None)
                      + (kernel.nugget != 1e-4 and np.isfinite(kernel.smoothness)))


def best_scores(kernels, coords, values, prior, drift=None):
    """Penalised restricted log likelihood of each kernel at its best amplitude, a common one for
    channels.

    prior: the square of one observation more, that values count besides.
    """
    scores = []
    for kernel in kernels:
        one = Kriging(kernel, coords, drift=drift)
        free = len(coords) + 1 - one.f.shape[1]
        q = np.mean([y @ one.p @ y for y in values.T]) + prior
        scores.append(-((free - 1) * np.log(q / free) + free + one.log_det()) / 2 - penalty(kernel))
    return np.array(scores)


def mixture(kernels, weights, coords, values, queries, prior):
    """Mean, variance and variance of the means, each (N, C), of kernels by their weights."""
    means, variances = [], []
    for kernel in kernels:
        one = Kriging(kernel, coords)
        means.append(one.weights(queries) @ values)
        amplitude2 = (np.diag(values.T @ one.p @ values) + prior) / len(coords)
        variances.append(np.outer(np.diag(one.covariance(queries)), amplitude2))
    weights, means = np.asarray(weights)[:, None, None], np.array(means)
    mean = (weights * means).sum(axis=0)
    between = (weights * (means - mean) ** 2).sum(axis=0)
    return mean, (weights * np.array(variances)).sum(axis=0) + between, between
