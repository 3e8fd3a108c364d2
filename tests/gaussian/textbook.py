"""Ordinary kriging as in the textbooks: dense, slow, float64, with a covariance K = c - gamma.

Cressie 1993, Statistics for Spatial Data, sections 2.6 and 3.2. Nothing here is shared with the
package: coordinates (M, 2), values (M, C) and results are numpy arrays.
"""

import numpy as np

LEVEL = 50.0  # c: any that makes K positive definite; no result depends on it
NUGGET = 1e-4


def gamma(kernel, a, b):
    """Power variogram with geometric anisotropy: (P, Q)."""
    along = np.array([np.cos(kernel.angle), np.sin(kernel.angle)])
    across = np.array([-along[1], along[0]])
    step = a[:, None] - b[None]
    stretched = (step @ along) ** 2 / kernel.ratio + (step @ across) ** 2 * kernel.ratio
    return stretched ** (kernel.smoothness / 2)


class Kriging:
    """One kernel of a given amplitude; noise_variance is in units of the values."""

    def __init__(self, kernel, coords, amplitude2=1.0, noise_variance=0.0):
        self.kernel, self.coords, self.amplitude2 = kernel, coords, amplitude2
        count = len(coords)
        self.k = amplitude2 * (LEVEL - gamma(kernel, coords, coords) + NUGGET * np.eye(count))
        self.k += noise_variance * np.eye(count)
        self.inverse = np.linalg.inv(self.k)
        ones = self.inverse.sum(axis=1)
        self.precision_of_level = ones.sum()
        self.p = self.inverse - np.outer(ones, ones) / self.precision_of_level

    def weights(self, queries):
        """(N, M): the kriging system with its Lagrange multiplier."""
        right = self.amplitude2 * (LEVEL - gamma(self.kernel, self.coords, queries))  # (M, N)
        short = (1 - (self.inverse @ right).sum(axis=0)) / self.precision_of_level
        return (self.inverse @ (right + short)).T

    def covariance(self, queries):
        """(N, N) of the errors at queries, none of them observed; the nugget is the field's."""
        w = self.weights(queries)
        right = self.amplitude2 * (LEVEL - gamma(self.kernel, self.coords, queries))
        prior = self.amplitude2 * (
            LEVEL - gamma(self.kernel, queries, queries) + NUGGET * np.eye(len(queries))
        )
        return prior - w @ right - right.T @ w.T + w @ self.k @ w.T

    def restricted_log_likelihood(self, values):
        """Of values (M,), up to a constant."""
        _, log_det = np.linalg.slogdet(self.k)
        return -(values @ self.p @ values + log_det + np.log(self.precision_of_level)) / 2


def best_scores(kernels, coords, values, prior):
    """Restricted log likelihood of each kernel at its best amplitude, a common one for channels.

    prior: the square of one observation more, that values count besides.
    """
    count, scores = len(coords), []
    for kernel in kernels:
        one = Kriging(kernel, coords)
        q = np.mean([y @ one.p @ y for y in values.T]) + prior
        _, log_det = np.linalg.slogdet(one.k)
        scores.append(-((count - 1) * np.log(q / count) + log_det
                        + np.log(one.precision_of_level)) / 2)
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
