"""Colours of pictures: each field in the range of its own truth, in the units of the data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from small import run
from sparsefield.data.scale import Scale
from sparsefield.evaluate import plots

METRES = Scale(((-1000.0, 3000.0),), "m")


@pytest.fixture
def open_figures(monkeypatch):
    """Figures stay open after they are written, to be looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(plots.plt, "close", lambda _: None)
        yield
    plots.plt.close("all")


def test_rows_are_quantiles_of_the_error():
    cases = [SimpleNamespace(truth=np.full((2, 2, 1), value)) for value in (.3, .1, .5, .2, .4)]
    zeros = [np.zeros((2, 2, 1))] * 5
    assert plots.quantile_cases(cases, zeros, (0, 0.5, 1)) == {1: 0, 0: 0.5, 2: 1}
    assert plots.quantile_cases(cases[:1], zeros[:1], (0,)) == {0: 0}


def test_a_field_with_a_small_part_of_the_range_has_all_colours():
    truth = np.linspace(0.4, 0.45, 16).reshape(4, 4, 1)
    flat = np.full((3, 3, 1), 0.5)
    flat[0, 0] = np.nan
    assert np.ptp(list(plots.limits_of(flat).values())) == pytest.approx(plots.LEAST_SPAN)
    limits = plots.limits_of(truth)
    assert limits == {"vmin": pytest.approx(0.4), "vmax": pytest.approx(0.45)}
    figure, axis = plots.plt.subplots()
    plots.show(axis, truth, **limits)
    assert axis.images[0].get_clim() == (pytest.approx(0.4), pytest.approx(0.45))
    plots.value_bar(figure, axis, METRES, limits)
    bar = figure.axes[1]
    assert bar.get_ylim() == (pytest.approx(600), pytest.approx(800))
    assert bar.get_ylabel() == "value in m"
    plots.plt.close(figure)


def test_pictures_have_their_own_colours_and_maps_are_drawn_north_up(open_figures):
    grey = np.full((3, 3, 3), 0.5)
    assert plots.limits_of(grey) == {"vmin": 0, "vmax": 1}
    for field, bars in ((grey, 0), (grey[..., :1], 1)):
        case = SimpleNamespace(truth=field, noisy=2 * field - 1, truths={3: field}, observed=[0])
        row = plots.Row("a", case, [], [np.zeros((3, 3, 1))])
        data = SimpleNamespace(scale=METRES, rows_up=True)
        plots.sheet([row, row._replace(rows=6)], ["error"], data)
        axes = plots.plt.gcf().axes
        assert len(axes) == 7 + 2 * bars  # and one bar for the errors
        assert axes[0].images[0].origin == "lower"


def test_every_baseline_and_sampler_is_in_the_performance_chart(open_figures):
    """A zip that ended with the shorter list once left "kriging, fitted" out."""
    names = [*"abcde", "kriging, fitted"]
    rows = [("baseline", name, 0, 20.0 + k) for k, name in enumerate(names)]
    rows += [("mean", "mean", 0, 27.0), ("sample", "heun", 2, 24.0), ("sweep", "heun", 4, 24.5),
             ("sweep", "heun", 2, 24.0)]
    table = pd.DataFrame(rows, columns=["kind", "method", "steps", "psnr"])
    table = table.assign(rows=8, nfe=table["steps"] + 1, seconds=0.1)
    results = {"table": table, "data": {"height": 8},
               "summary": {"8": {"sample": {"heun": {"expected_psnr": 24.0}}}}}
    plots.performance(results, "test")
    figure = plots.plt.gcf()
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {*names, "posterior mean", "heun", "mean − 3.01 dB"}
    curve = next(line for line in figure.axes[0].lines if line.get_label() == "heun")
    assert list(curve.get_xdata()) == [3, 5]


def test_each_stage_has_a_curve_of_its_own(tmp_path, open_figures):
    records = [{"step": step, "loss": 1 / step, "val_loss": 2 / step, "val_psnr": 20.0,
                "stage": "start" if step <= 20 else "flow"} for step in (10, 20, 30, 40)]
    baselines = {name: {"psnr": 18.0 + k} for k, name in enumerate("abcdef")}
    plots.learning_curves(records, baselines, tmp_path / "curves.png")
    left, right = plots.plt.gcf().axes
    assert {*baselines} < {text.get_text() for text in right.get_legend().get_texts()}
    assert [list(line.get_xdata()) for line in left.lines] == [
        [10, 20], [10, 20], [30, 40], [30, 40]]  # in training, and what decides which is best
    assert [line.get_label().split(":")[0] for line in left.lines] == [
        "start", "start", "flow", "flow"]


def test_matplotlib_is_not_imported_by_what_loads_a_model():
    code = ("import sys; from sparsefield.evaluate import calibration, tables; "
            "sys.exit('matplotlib' in sys.modules)")
    assert run("-c", code).returncode == 0
