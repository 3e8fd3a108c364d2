"""The report of a training, in a browser."""

import json
from dataclasses import fields

from PIL import Image

from browser import browse, data_of
from small import WHOLE, settings, train
from sparsefield.evaluate.calibration import MEMBERS
from train_mamba_v2 import Config

ACT = """async () => {
  const image = document.getElementById("picture"), first = image.src;
  const slider = document.getElementById("epoch");
  slider.value = 1;
  slider.dispatchEvent(new Event("input"));
  await image.decode();
  return {moved: image.src !== first, alt: image.alt, width: image.naturalWidth,
          curves: document.querySelectorAll("#loss .scatterlayer .trace").length,
          checks: document.getElementById("psnr").data[0].y.length,
          bars: document.querySelectorAll("#calibration .bars path").length,
          caption: document.getElementById("calibration-caption").textContent,
          settings: document.querySelectorAll("#settings tbody tr").length};
}"""


def test_a_report_in_a_browser_renewed_as_the_training_goes_on(data, copied):
    assert len(data_of(copied / "report.html")["pictures"]) == 1
    Image.new("RGB", (300, 200), "red").save(copied / "pictures_epoch_0001.png")
    train(settings(data, copied, **{**WHOLE, "epochs": 4}))
    seen, _, said = browse(copied / "report.html", ACT)
    assert said == []
    assert seen["moved"] and seen["width"] == 300 and "after epoch 1:" in seen["alt"]
    records = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert seen["checks"] == sum("val_psnr" in record for record in records)
    assert seen["curves"] == 4 and seen["bars"] == MEMBERS + 1  # of the calibration, at the end
    assert "Of the weights that were kept: 90 % intervals of" in seen["caption"]
    assert seen["settings"] == len(fields(Config))
