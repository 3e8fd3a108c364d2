"""Training, evaluation and use see a field at the same places: of any shape, whichever way up."""

import numpy as np
import pytest
import torch

from small import write_checkpoint
from sparsefield import load
from sparsefield.data import open_data, parse_pattern
from sparsefield.evaluate.cases import Cases
from sparsefield.use.grids import what_is_asked
from sparsefield.use.points import Measurements
from sparsefield.use.predict import Settings

ROWS, COLUMNS = 12, 28


def saw(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A field with a direction: it rises slowly with y, and falls suddenly."""
    return 10 + 5 * np.mod(y / 6 + 0.3 * np.sin(x / 5), 1)


def arrays(path) -> str:
    """60 fields of ROWS x COLUMNS."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    fields = np.stack([saw(y + k / 3, x + k) for k in range(60)])[..., None]
    np.savez(path, images=fields.astype(np.float32))
    return str(path)


def netcdf(path, north_first: bool) -> str:
    """The same as monthly maps."""
    import xarray

    y, x = np.mgrid[:ROWS, :COLUMNS]
    fields = np.stack([saw(y + k / 3, x + k) for k in range(60)]).astype(np.float32)
    lat, order = 40.0 + np.arange(ROWS), slice(None, None, -1 if north_first else 1)
    xarray.DataArray(
        fields[:, order], dims=("time", "lat", "lon"), name="t",
        coords={"time": ("time", np.arange(60), {"units": "days since 2000-01-01"}),
                "lat": ("lat", lat[order], {"units": "degrees_north"}),
                "lon": ("lon", np.arange(COLUMNS, dtype=float), {"units": "degrees_east"})},
    ).to_netcdf(path, engine="scipy")
    return str(path)


@pytest.mark.parametrize("prior", ["fitted", "none"])
def test_a_rectangle_is_asked_as_it_is_learnt_and_evaluated(tmp_path, prior, monkeypatch):
    """Pixel centres of a 12 x 28 field, as points in pixels: the mean of the evaluation."""
    monkeypatch.setattr("sparsefield.use.predict.has_fast_bfloat16", lambda: False)
    spec = arrays(tmp_path / "saw.npz")
    path = write_checkpoint(tmp_path / "v2.pth", "V2", spec)
    data = open_data(spec)
    cases = Cases(data.test, parse_pattern("random:0.2"), [0], seed=0)
    model = load(str(path))
    for name, parameter in model.network.named_parameters():
        if "last" in name:  # which start at 0
            torch.nn.init.normal_(parameter, std=0.1)
    expected = data.to_physical(2 * cases.sample(model.network, method="mean").fields[0] - 1)
    i, j = np.divmod(cases[0].observed, COLUMNS)
    values = data.to_physical(cases[0].values.numpy())
    places = np.stack([j + 0.5, i + 0.5], axis=1)
    given, asked = what_is_asked(Measurements(places, values, shape=(ROWS, COLUMNS)))
    field = model.answer(given, asked, Settings(value_range=data.value_range[0], num_samples=2,
                                                num_steps=1))
    spread = np.std(expected)
    mean = field.mean.clip(*data.value_range[0])  # as evaluations do
    assert np.abs(mean - expected).max() < 1e-3 * spread


@pytest.mark.parametrize("north_first", [True, False])
def test_a_map_is_learnt_with_y_growing_northward_as_tables_have_it(tmp_path, north_first):
    """Whichever way the file goes: row 0 of what is learnt is its southernmost."""
    field = open_data(netcdf(tmp_path / "saw.nc", north_first), image_size=12).train.example(0)
    steps = np.diff(field[:, 0, 0])
    assert np.median(steps) > 0 > steps.min()  # rises slowly with y, falls suddenly
