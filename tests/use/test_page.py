"""The page of a field: in a browser, and what it holds."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
from browser import browse, data_of

from sparsefield.use import export
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
  const shown = () => document.querySelector("#map-2 .heatmaplayer image").getAttribute("href");
  const set = async (id, value, event) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event(event, {bubbles: true}));
    await new Promise(done => setTimeout(done, 200));
  };
  const mean = document.getElementById("map-0").data[0].z;
  const first = shown();
  await set("sample", 2, "input");
  const second = shown(), title = document.getElementById("name-2").textContent;
  await set("x0", data.x[1], "change");
  await set("y0", data.y[2], "change");
  const along = document.getElementById("along").data.find(trace => trace.name === "mean").y[0];
  await set("channel", 1, "change");
  return {mean, moved: first !== second, title, along, hacked: window.hacked ?? null,
          other: document.getElementById("map-0").data[0].z,
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
    code, _, err = command("a.csv", "--lonlat", "--units", UNITS, "--page", "--num_samples", "3")
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
    assert seen["images"] == 3 and seen["bars"] > 5 and seen["unnamed"] == 0
    assert not any("loud" in title for title in seen["buttons"])  # none sends the data away


def test_a_colour_picture_on_a_narrow_screen(command, tmp_path):
    rng = np.random.default_rng(0)
    np.save("a.npy", rng.integers(0, 255, (12, 16, 3)).astype(np.uint8))
    assert command("a.npy", "--observe", "random:0.5", "--checkpoint", "none", "--page")[0] == 0
    seen, _, said = browse(tmp_path / "out/field.html", """async () => ({
      kinds: [0, 1, 2].map(k => document.getElementById(`map-${k}`).data[0].type),
      colours: document.getElementById("map-0").data[0].z,
      wide: document.documentElement.scrollWidth - innerWidth,
      columns: getComputedStyle(document.getElementById("maps")).gridTemplateColumns.split(" ")})""",
                            width=500)  # the least that chromium has
    assert said == [] and seen["kinds"] == ["image", "heatmap", "image"]
    np.testing.assert_allclose(seen["colours"], np.load("out/field.npz")["mean"].clip(0, 255),
                               atol=0.1)
    assert seen["wide"] <= 0 and len(seen["columns"]) == 1
