"""What a person would use instead of a trained model.

Every method has one signature: `f(coords (M, 2), values (M, C), shape (H, W)) -> (H, W, C)`, with
coordinates (x, y) at pixel centres of a grid, values in [0, 1], any number of channels. The result
is clipped to [0, 1], unless clip=False, and keeps observed values where a point of the grid is an
observation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
import scipy
import skimage
import torch

from sparsefield.errors import UserError
from sparsefield.gaussian import BANK, ONE_KERNEL, Kernel, condition
from sparsefield.place import Domain, grid_coords

Method = Callable[..., np.ndarray]

BASELINES: dict[str, Method] = {}

RBF_DENSE_POINTS = 4000  # one system of that size: 130 MB, a few seconds
RBF_NEIGHBOURS = 64


def keep_observations(
    field: np.ndarray, coords: np.ndarray, values: np.ndarray, clip: bool = True
) -> np.ndarray:
    """The protocol's last step, for baselines and models alike.

    Args:
        field: (H, W, C) reconstruction. coords: (M, 2). values: (M, C) in [0, 1].
        clip: to [0, 1]; standardised fields have no such bounds.
    """
    field = np.clip(field, 0, 1) if clip else field.copy()
    on_grid, rows, columns = _grid_points(coords, field.shape[:2])
    field[rows[on_grid], columns[on_grid]] = values[on_grid]
    return field


def baseline(name: str) -> Callable[[Method], Method]:
    """Register a method under a name, between the checks and `keep_observations`."""

    def register(method: Method) -> Method:
        @wraps(method)
        def checked(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int],
                    clip: bool = True) -> np.ndarray:
            coords, values = (np.asarray(x, dtype=np.float64) for x in (coords, values))
            if not len(values) or coords.shape != (len(values), 2):
                raise ValueError(f"expected (M, 2), (M, C), not {coords.shape}, {values.shape}")
            if not np.isfinite(np.hstack([coords, values])).all():
                raise ValueError("some observations are not finite")
            field = method(coords, values, shape).reshape(*shape, values.shape[1])
            return keep_observations(field, coords, values, clip)

        BASELINES[name] = checked
        return checked

    return register


@baseline("constant mean")
def constant_mean(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mean of the observations, everywhere."""
    return np.broadcast_to(values.mean(axis=0), (*shape, values.shape[1]))


@baseline("nearest")
def nearest(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The value of the nearest observation."""
    return values[scipy.spatial.KDTree(coords).query(_queries(shape))[1]]


@baseline("linear")
def linear(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Linear on a Delaunay triangulation; the nearest observation outside the convex hull, and
    everywhere where the observations lie on one line."""
    outside = nearest(coords, values, shape).reshape(-1, values.shape[1])
    if not _span_the_plane(coords):
        return outside
    inside = scipy.interpolate.griddata(coords, values, _queries(shape), method="linear")
    return np.where(np.isnan(inside), outside, inside)


@baseline("biharmonic")
def biharmonic(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Biharmonic inpainting of scikit-image: the missing points of a picture."""
    on_grid, rows, columns = _grid_points(coords, shape)
    if not on_grid.all():
        raise ValueError(f"{np.sum(~on_grid)} observations are no points of the {shape} grid")
    picture = np.zeros((*shape, values.shape[1]))
    missing = np.ones(shape, dtype=bool)
    picture[rows, columns] = values
    missing[rows, columns] = False
    return skimage.restoration.inpaint_biharmonic(picture, missing, channel_axis=-1)


@baseline("thin-plate RBF")
def thin_plate_rbf(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Thin-plate spline through the observations; the nearest RBF_NEIGHBOURS above
    RBF_DENSE_POINTS of them (UserError where some of those lie on one line). Nearest everywhere
    where all observations lie on one line."""
    if not _span_the_plane(coords):
        return nearest(coords, values, shape)
    neighbours = RBF_NEIGHBOURS if len(coords) > RBF_DENSE_POINTS else None
    spline = scipy.interpolate.RBFInterpolator(coords, values, neighbors=neighbours,
                                                 kernel="thin_plate_spline")
    try:
        return spline(_queries(shape))
    except np.linalg.LinAlgError:
        raise UserError(
            f"thin-plate RBF: some {RBF_NEIGHBOURS} neighbouring observations lie on one line; "
            f"use at most {RBF_DENSE_POINTS} observations, or another baseline") from None


def _kriging(kernels: tuple[Kernel, ...]) -> Method:
    def krige(coords: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Ordinary kriging (sparsefield.gaussian)."""
        places, known, queries = (torch.from_numpy(x)[None].float()
                                  for x in (coords, values, _queries(shape)))
        posterior = condition(places, known, domain=Domain.of_grid(*shape), kernels=kernels)
        return posterior.at(queries).mean[0].double().numpy()

    return krige


baseline("kriging, one kernel")(_kriging(ONE_KERNEL))  # the variogram |h|, whatever the field
baseline("kriging, fitted")(_kriging(BANK))  # fitted to the field: what the models start from


def _queries(shape: tuple[int, int]) -> np.ndarray:
    return grid_coords(*shape).double().numpy()


def _grid_points(
    coords: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which coordinates are pixel centres of the grid (M,), and row and column of the nearest."""
    position = coords[:, ::-1] * max(shape) - 0.5                    # (M, 2) in rows, columns
    nearest_index = np.rint(position).astype(np.int64)
    on_grid = np.abs(position - nearest_index).max(axis=1) < 1e-3
    on_grid &= ((nearest_index >= 0) & (nearest_index < shape)).all(axis=1)
    return on_grid, nearest_index[:, 0], nearest_index[:, 1]


def _span_the_plane(coords: np.ndarray) -> bool:
    return np.linalg.matrix_rank(coords - coords.mean(axis=0), tol=1e-5) == 2
