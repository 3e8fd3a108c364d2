"""Colours of pictures: each field in the range of its own truth, in the units of the data."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefield.data.scale import Scale
from sparsefield.evaluate import plots

METRES = Scale(((-1000.0, 3000.0),), "m")


def test_a_field_with_a_small_part_of_the_range_has_all_colours():
    truth = np.linspace(0.4, 0.45, 16).reshape(4, 4, 1)
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


def test_gaps_and_fields_of_one_value_have_limits():
    truth = np.full((3, 3, 1), 0.5)
    truth[0, 0] = np.nan
    assert plots.span(plots.limits_of(truth)) == pytest.approx(plots.LEAST_SPAN)


def test_colours_of_pictures_are_their_own():
    limits = plots.limits_of(np.full((3, 3, 3), 0.5))
    assert limits == {"vmin": 0, "vmax": 1} and plots.span(limits) == 1
    figure, axis = plots.plt.subplots()
    plots.value_bar(figure, axis, Scale(((0, 255),) * 3), limits)
    assert len(figure.axes) == 1
    plots.plt.close(figure)


def test_curves_show_every_baseline_and_which_part_of_the_model_was_learning(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.plt, "close", lambda _: None)
    records = [{"step": step, "loss": 1 / step, "val_psnr": 20.0} for step in (10, 20, 30, 40)]
    baselines = {name: {"psnr": 18.0 + k} for k, name in enumerate("abcdef")}
    plots.learning_curves(records, baselines, tmp_path / "curves.png", painted=20)
    left, right = plots.plt.gcf().axes
    assert {*baselines} < {text.get_text() for text in right.get_legend().get_texts()}
    assert [list(line.get_xdata()) for line in left.lines] == [[10, 20], [30, 40]]
    monkeypatch.undo()
    plots.plt.close("all")
