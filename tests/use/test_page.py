"""The page of a field: in a browser, and what it holds."""

from __future__ import annotations

import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from browser import browse, data_of
from sparsefield import load
from sparsefield.use import globe
from sparsefield.use.field import Field
from sparsefield.use.grids import Asked, Frame, Grid
from sparsefield.use.page import field_page
from sparsefield.use.points import Measurements

HOSTILE = "</script><script>window.hacked = 1</script>"
UNITS = "<img src=x onerror='window.hacked = 1'>"
PLACES = np.random.default_rng(0).uniform(size=(40, 2)) * (20, 10) + (100, 50)
TABLE = np.column_stack([PLACES, PLACES[:, 1], PLACES[:, 0] * PLACES[:, 1]])
# Moves the slider, the line and the channel, and tells what is then there.
ACT = """async () => {
  const shown = () => document.querySelector("#map-3 .heatmaplayer image").getAttribute("href");
  const set = async (id, value, event) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event(event, {bubbles: true}));
    await new Promise(done => setTimeout(done, 200));
  };
  const mean = document.getElementById("map-0").data[0].z;
  const odds = document.getElementById("map-2").data[0].z, first = shown();
  await set("sample", 2, "input");
  const second = shown(), title = document.getElementById("name-3").textContent;
  await set("x0", data.x[1], "change");
  await set("y0", data.y[2], "change");
  const along = document.getElementById("along").data.find(trace => trace.name === "mean").y[0];
  document.getElementById("map-1").emit("plotly_click", {points: [{x: 119, y: 51}]});
  const clicked = ["x0", "x1", "y1"].map(id => document.getElementById(id).valueAsNumber);
  await Plotly.relayout("map-1", {"xaxis.range": [105, 110], "yaxis.range": [52, 54]});
  await new Promise(done => setTimeout(done, 200));
  const zoomed = document.getElementById("map-3").layout.yaxis.range;
  const lines = document.querySelectorAll("#map-2 .contourlevel path").length;
  await set("channel", 1, "change");
  return {mean, moved: first !== second, title, along, hacked: window.hacked ?? null,
          other: document.getElementById("map-0").data[0].z,
          odds, lines, clicked, zoomed,
          images: document.querySelectorAll(".heatmaplayer image").length,
          heading: document.querySelector("h1").textContent,
          bars: document.querySelectorAll("#residuals .bars path").length,
          wide: document.documentElement.scrollWidth - innerWidth,
          unnamed: [...document.querySelectorAll("[role=img], input, select")].filter(element =>
            !element.ariaLabel && !element.labels?.length).length,
          buttons: [...document.querySelectorAll("#map-0 .modebar-btn")].map(
            button => button.dataset.title)};
}"""


def test_a_page_in_a_browser(command, tmp_path):
    np.savetxt("a.csv", TABLE, delimiter=",", header=f"lon,lat,{HOSTILE},b", comments="")
    code, _, err = command("a.csv", "--lonlat", "--units", UNITS, "--page", "--num_samples", "3",
                           "--above", "55")
    assert code == 0, err
    seen, elements, said = browse(tmp_path / "out/field.html", ACT)
    assert said == [] and seen["hacked"] is None
    assert HOSTILE in seen["heading"] and "<img src=x" not in elements
    field = np.load("out/field.npz")
    for c, name in enumerate(("mean", "other")):
        np.testing.assert_allclose(seen[name], field["mean"][..., c],
                                   atol=2e-5 * np.ptp(field["mean"][..., c]))
    assert seen["moved"] and seen["title"] == "Sample 2"
    assert seen["along"] == pytest.approx(field["mean"][2, 1, 0], rel=1e-4)
    np.testing.assert_allclose(seen["odds"], 100 * field["probability_above_55"][..., 0], atol=0.01)
    assert seen["lines"] >= 2
    assert seen["clicked"][1:] == [119, 51] != seen["clicked"][0]  # the nearer end of the line
    assert 50 < seen["zoomed"][0] < 53 < seen["zoomed"][1] < 56  # all maps, in their aspect
    assert seen["images"] == 4 and seen["bars"] > 5 and seen["unnamed"] == 0
    assert not any("loud" in title for title in seen["buttons"])  # none sends the data away


def test_a_file_whose_name_is_no_text_has_a_page(command):
    name = os.fsdecode(b"a\xff.csv")
    np.savetxt(name, PLACES[:, [0, 1, 0]], delimiter=",", header="x,y,value", comments="")
    code, _, err = command(name, "--page", "--resolution", "4", "--num_samples", "2")
    assert code == 0, err
    assert b"a\\udcff.csv" in Path("out/field.html").read_bytes()


def test_a_colour_picture_on_a_narrow_screen(command, tmp_path):
    rng = np.random.default_rng(0)
    np.save("a.npy", rng.integers(0, 255, (12, 16, 3)).astype(np.uint8))
    assert command("a.npy", "--observe", "random:0.5", "--checkpoint", "none", "--page")[0] == 0
    seen, _, said = browse(tmp_path / "out/field.html", """async () => ({
      kinds: [0, 1, 2].map(k => document.getElementById(`map-${k}`).data[0].type),
      colours: document.getElementById("map-0").data[0].z,
      sd: document.getElementById("map-1").data[0].z,
      wide: document.documentElement.scrollWidth - innerWidth,
      columns: getComputedStyle(document.getElementById("maps")).gridTemplateColumns.split(" ")
    })""", width=500)  # the least that chromium has
    assert said == [] and seen["kinds"] == ["image", "heatmap", "image"]
    np.testing.assert_allclose(seen["colours"], np.load("out/field.npz")["mean"].clip(0, 255),
                               atol=0.1)
    np.testing.assert_allclose(seen["sd"], np.load("out/field.npz")["sd"].mean(axis=2), atol=0.1)
    assert seen["wide"] <= 0 and len(seen["columns"]) == 1


def test_scores_of_hidden_measurements_stand_on_the_page(command, tmp_path):
    np.savetxt("a.csv", TABLE[:, :3], delimiter=",", header="x,y,a", comments="")
    asked = "a.csv", "--units", "K", "--holdout", "0.2", "--page"
    assert command(*asked)[0] == 0
    data = data_of(tmp_path / "out/field.html")
    (table,) = data["holdout"]
    assert table["head"] == ["method", "RMSE (K)", "CRPS (K)", "in 90 % intervals"]
    assert {"this (fitted kriging)", "linear"} <= {row[0] for row in table["rows"]}
    assert "CRPS" in table["verdict"] and ["hold-out", "0.2 of the places, by points"] in (
        data["words"])
    assert [word for term, word in data["words"] if term == "command"] == [
        "reconstruct.py a.csv --units K --holdout 0.2 --page --out out --num_samples 2 "
        "--num_steps 1 --resolution 8"]
    (tmp_path / "out/mine.txt").touch()
    code, out, err = command(*asked)
    assert code == 2 and "mine.txt" in err and "measurements hidden" not in out  # before the work


def test_large_fields_are_thinned_and_it_is_said(tmp_path):
    rng = np.random.default_rng(0)
    shape = (512, 512, 3)
    grid = Grid.over((0, 512, 0, 512), shape[:2])
    given = Measurements(rng.uniform(size=(9000, 2)) * 512, rng.normal(size=(9000, 3)))
    asked = Asked(grid.places, (0, 512, 0, 512), Frame.of(given, (0, 512, 0, 512)), grid)
    samples = rng.normal(size=(16, *shape)).astype(np.float32)
    field = Field(grid.places, samples[0], np.abs(samples[1]), samples, "noise", grid=grid,
                  names=("a", "b", "c"))
    page = field_page(field, given, asked, limits=(0.5,))
    assert len(page) < 15e6
    (tmp_path / "page.html").write_bytes(page)
    data = data_of(tmp_path / "page.html")
    assert data["thinned"] == (
        "To keep this page small: every 2nd row and column is shown, 12 of 16 samples, 1,500 of "
        "9,000 measurements. The other files hold all.")
    assert len(data["x"]) == 256 and len(data["frames"][0]["channels"][0]["samples"]) == 12


def test_residuals_are_of_the_measurements_in_their_order():
    coords = np.random.default_rng(0).uniform(size=(30, 2))
    values = coords.sum(axis=1)
    coords[7] = coords[3]  # measured twice
    values[7], values[20] = values[3], values[20] + 2
    field = load("none").reconstruct(coords, values, 4, noise_sd=0.1, checked=True)
    residuals = field.checks.residuals
    assert residuals.shape == (30, 1) and np.abs(residuals).argmax() == 20
    assert residuals[7] == residuals[3] and residuals[20] > 3


@pytest.fixture
def coast(monkeypatch):
    """Cartopy, whose coasts are one line; called with an error it has none."""
    def set_up(error=None):
        def natural_earth(*which):
            if error:
                raise error
            return "path"

        line = types.SimpleNamespace(coords=[(-121, 40), (-118, 40), (-115, 41), (-80, 41)])
        reader = types.SimpleNamespace(geometries=lambda: [line])
        found = types.SimpleNamespace(natural_earth=natural_earth, Reader=lambda path: reader)
        for name in ("cartopy", "cartopy.io"):
            module = types.ModuleType(name)
            module.__spec__, module.shapereader = ModuleSpec(name, None), found
            monkeypatch.setitem(sys.modules, name, module)

    return set_up


def test_coast_lines_where_cartopy_has_them(coast, caplog):
    coast()
    lon, lat = globe.coasts((240.0, 250.0, 30.0, 50.0))  # turned by 360 degrees
    np.testing.assert_array_equal(lon, [239, 242, 245, 280, np.nan])
    np.testing.assert_array_equal(lat, [40, 40, 41, 41, np.nan])
    assert globe.coasts((0.0, 10.0, 0.0, 10.0))[0].size == 0
    coast(OSError("no network"))
    caplog.set_level("INFO")
    assert globe.coasts((240.0, 250.0, 30.0, 50.0))[0].size == 0
    assert "no coast lines: cartopy cannot have them (no network)" in caplog.text


def test_maps_of_the_earth_have_their_aspect_coasts_and_degrees(command, tmp_path, coast):
    coast()
    np.savetxt("a.csv", TABLE - (220, 0, 0, 0), delimiter=",", header="lon,lat,a,b", comments="")
    asked = "a.csv", "--lonlat", "--value", "a", "--page", "--extent"
    assert command(*asked, 170, -170, 50, 70)[0] == 0
    data = data_of(tmp_path / "out/field.html")
    assert data["aspect"] == pytest.approx(1 / np.cos(np.radians(60)))
    assert dict(zip(data["ticks"]["tickvals"], data["ticks"]["ticktext"], strict=True))[188] == (
        "-172°")
    assert command(*asked, -121.5, -114.5, 30, 50)[0] == 0
    assert (tmp_path / "out/reconstruction.png").exists()
    assert data_of(tmp_path / "out/field.html")["coast"]["x"] == [-121, -118, -115, -80, None]
