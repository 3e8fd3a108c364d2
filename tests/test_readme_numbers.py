"""README and docs give the numbers of the bundled weights that were measured and stored."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import train_mamba
import train_mamba_v2
from sparsefield.data import parse_pattern
from sparsefield.evaluate.cases import Cases, open_test_data
from sparsefield.model.bundled import V1, V1_WITH_START
from sparsefield.model.checkpoint import load_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def numbers():
    spec = importlib.util.spec_from_file_location(
        "readme_numbers", ROOT / "benchmarks/readme_numbers.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stored(numbers) -> dict:
    return json.loads(numbers.STORED.read_text())


def test_pages_say_what_was_measured_and_another_number_would_be_noticed(numbers, stored):
    readme = (ROOT / "README.md").read_text()
    assert numbers.headline(stored) in readme
    assert numbers.samples(stored) in (ROOT / "docs/models.md").read_text()
    stored["mean"]["V2"]["mean"]["psnr"] += 0.01
    assert numbers.headline(stored) not in readme


def test_the_bundled_weights_give_the_stored_numbers(stored):
    """Of a few pictures: measured here, not read."""
    for name, path in (("V1", V1), ("V1 + start", V1_WITH_START), ("V2", "bundled")):
        model, checkpoint = load_model(path)
        expected = stored["checked"][name]
        cases = Cases(open_test_data(checkpoint, "photos").test, parse_pattern("random:0.2"),
                      [int(index) for index in expected])
        found = [row["psnr"] for row in cases.numbers(cases.sample(model, method="mean"))]
        assert found == pytest.approx(list(expected.values()), abs=0.01), name


def test_marks_that_are_missing_are_an_error(numbers):
    with pytest.raises(SystemExit, match="0 places"):
        numbers.between("no marks", "headline table", "")


@pytest.mark.parametrize("command", [train_mamba_v2, train_mamba])
@pytest.mark.parametrize("more", [[], ["--unet_width", "0"]])
def test_the_page_on_models_says_how_large_the_default_models_are(command, more, capsys):
    command.main(["--dry_run", "True", *more])
    count = re.search(r"([\d,]+) parameters", capsys.readouterr().out)[1]
    assert count in (ROOT / "docs/models.md").read_text()
