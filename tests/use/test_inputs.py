"""What a person gives, in Python or on the command line, and what comes of it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import write_untrained

import reconstruct as script
from sparsefield import cli, load
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import build_model, load_checkpoint
from sparsefield.train.config import TrainingConfig
from sparsefield.train.run import RunFolder
from sparsefield.use.grids import Frame, grid_shape

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"colour": write_untrained(folder / "c.pth"),
            "sea": write_untrained(folder / "s.pth", 1, (-1.0, 1.0)),
            "wind": write_untrained(folder / "w.pth", 2, (-10.0, 10.0))}


@pytest.fixture(scope="module")
def models(paths):
    return {name: load(path) for name, path in paths.items()}


PLACES = np.random.default_rng(0).uniform(size=(40, 2))
WAVE = np.sin(5 * PLACES[:, 0]) * np.cos(4 * PLACES[:, 1])


def quick(model, values=WAVE, coords=PLACES, resolution=8, **more):
    return model.reconstruct(coords, values, resolution,
                             **({"num_samples": 2, "num_steps": 1} | more))


# --- Python ---------------------------------------------------------------------------------------

REFUSED = {
    "half a range": (dict(value_range=(0, 1, 2)), "--value_range 0 1 2: give lo hi"),
    "an infinite range": (dict(value_range=(0, np.inf)), "both finite"),
    "a range from high to low": (dict(value_range=(1, 0)), "below its hi"),
    "a range far from the values": (dict(value_range=(100, 101)), "far outside --value_range"),
    "a negative seed": (dict(seed=-1), "seed=-1: give a whole number"),
    "a huge seed": (dict(seed=2**70), "2^63"),
    "no cells": (dict(resolution=0), "resolution 0: rows and columns are 1 to 512"),
    "half a cell": (dict(resolution=8.5), "give a whole number"),
    "a word": (dict(resolution="big"), "give a whole number"),
    "no steps": (dict(num_steps=0), "num_steps=0"),
    "one sample": (dict(num_samples=1), "at least 2"),
    "endless samples": (dict(num_samples=10**9), "at most 1,000"),
    "noise of NaN": (dict(noise_sd=np.nan), "noise_sd=nan"),
    "an unknown aspect": (dict(aspect="wide"), "give equal, free or auto"),
    "half an extent": (dict(extent=(0, 1, 2)), "x0, x1, y0, y1"),
    "an infinite extent": (dict(extent=(0, np.inf, 0, 1)), "finite"),
    "complex values": (dict(values=WAVE + 1j), "real numbers (complex128)"),
    "dates": (dict(values=np.array(["2024-01-01"] * 40, "datetime64[D]")), "real numbers"),
    "nothing measured": (dict(values=[None] * 39 + ["x"]), "real numbers"),
    "places on their side": (dict(coords=PLACES.T), "one row for each point"),
    "NaN": (dict(values=np.where(WAVE > 0.6, np.nan, WAVE)), "leave those points out"),
    "a code": (dict(values=np.where(WAVE > 0.6, -9999, WAVE)), "-9999 stands there"),
    "all masked": (dict(values=np.ma.masked_all(40)), "0 points"),
    "two channels": (dict(values=np.stack([WAVE, WAVE], 1)), "the model was trained on 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_python(models, name):
    settings, words = REFUSED[name]
    with pytest.raises(UserError) as refused:
        quick(models["sea"], **settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_masked_or_missing_is_left_out(models):
    hidden = WAVE > 0.3
    wanted = quick(models["sea"], WAVE[~hidden], PLACES[~hidden]).samples
    wrong = np.where(hidden, 0.9, WAVE)
    for values, options in (
        (np.ma.masked_array(wrong, hidden), {}),
        (np.ma.masked_array(np.where(hidden, np.nan, WAVE), hidden), {}),
        (np.where(hidden, -9999, WAVE), {"missing": [-9999]}),
        (np.where(hidden, np.float32(9.96921e36), WAVE), {"missing": [9.96921e36]}),
    ):
        np.testing.assert_array_equal(quick(models["sea"], values, **options).samples, wanted)
    places = np.ma.masked_array(PLACES, np.stack([hidden, np.zeros_like(hidden)], 1))
    np.testing.assert_array_equal(quick(models["sea"], wrong, places).samples, wanted)


@pytest.mark.parametrize("factor, shift", [(1, 273), (1e6, -1e6)])
def test_far_outside_the_training_range_sd_stays_honest(models, caplog, factor, shift):
    """In other units than the training data's the field is the same, with a warning."""
    grid = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)
    places, values = grid[::3], np.sin(5 * grid[::3, 0]) * np.cos(4 * grid[::3, 1])
    plain = quick(models["sea"], values, places, num_steps=4, num_samples=8)
    with caplog.at_level("WARNING", logger="sparsefield"):
        field = quick(models["sea"], factor * values + shift, places, num_steps=4, num_samples=8)
    assert "far outside the training data" in caplog.text and "--value_range" in caplog.text
    at = field.mean.reshape(-1)[::3]
    np.testing.assert_allclose(at, factor * values + shift, rtol=0, atol=1e-3 * factor)
    assert 0.5 < np.sqrt((field.sd**2).mean() / (plain.sd**2).mean()) / factor < 2


def test_measured_values_beyond_a_given_range_are_kept(models, caplog):
    values = 100 + 100 * WAVE
    colours = np.stack([values] * 3, 1)
    grid = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)[:40]
    with caplog.at_level("WARNING", logger="sparsefield"):
        field = quick(models["colour"], colours, grid, value_range=(20, 180))
    assert "leave --value_range" in caplog.text
    np.testing.assert_allclose(field.mean.reshape(-1, 3)[:40], colours, atol=0.02)


def test_values_that_are_all_alike_to_the_model_are_said(models, caplog):
    with caplog.at_level("WARNING", logger="sparsefield"):
        quick(models["colour"], np.stack([WAVE * 0.5 + 0.5] * 3, 1))
    assert "less than a hundredth of the range" in caplog.text


def test_three_values_that_are_no_colours(models):
    values = np.stack([1013 + WAVE, -5 + WAVE, 35 + WAVE], 1)
    with pytest.raises(UserError, match=r"no colours of 0 to 255.*--value.*--value_range"):
        quick(models["colour"], values)
    alone = quick(models["colour"], values, separately=True, num_steps=2)
    assert alone.mean.shape == (8, 8, 3)
    for c in range(3):
        low, high = values[:, c].min() - 1, values[:, c].max() + 1
        assert low < alone.mean[..., c].min() and alone.mean[..., c].max() < high
        assert alone.sd[..., c].max() > 1e-3
    np.testing.assert_array_equal(alone.mean[..., :1],
                                  quick(models["colour"], values[:, 0], num_steps=2).mean)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_reconstructed_alone(models, channels):
    values = np.stack([10.0**k * (WAVE + 2 * k) for k in range(channels)], 1)
    field = quick(models["colour"], values)
    assert field.mean.shape == (8, 8, channels) and field.samples.shape == (2, 8, 8, channels)
    for k in range(channels):
        assert abs(field.mean[..., k].mean() / 10.0**k - 2 * k) < 1


# --- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height, aspect, shape", [
    (1, 1, "auto", (64, 64)), (10, 5, "auto", (32, 64)), (10, 5, "free", (64, 64)),
    (10, 1, "auto", (6, 64)), (100_000, 100, "auto", (64, 64)), (100_000, 100, "equal", (1, 64)),
    (1, 11, "auto", (64, 64)), (5, 0, "auto", (1, 64)),
])
def test_scales_of_the_axes(width, height, aspect, shape):
    coords = np.array([[5, 0], [5 + width, height]])
    frame = Frame.of(coords, aspect=aspect)
    assert grid_shape(64, (5, 5 + width, 0, height), frame.scaled_by) == shape
    assert frame.domain.side == pytest.approx(1) and (frame.inside(coords) >= 0).all()


def test_a_section_is_read_along_both_of_its_axes(models):
    """Distance 0 ... 100,000 and depth 0 ... 100: what was measured in a corner is found there."""
    distance, depth = np.meshgrid(np.linspace(0, 1e5, 6), np.linspace(0, 100, 6))
    coords = np.stack([distance.ravel(), depth.ravel()], 1)
    values = 10 - 5 * coords[:, 1] / 100
    field = quick(models["sea"], values, coords, 16, extent=(0, 1e5, 0, 100))
    assert field.mean.shape == (16, 16, 1)
    down = field.mean[..., 0].mean(axis=1)
    assert np.allclose(down, 10 - 5 * (np.arange(16) + 0.5) / 16, atol=0.3)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, paths, capsys):
    """command(arguments) runs reconstruct.py in tmp_path and gives (code, out, err)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model="colour", resolution=8):
        given = [str(a) for a in arguments]
        for flag, value in (("--checkpoint", paths[model]), ("--out", "out"), ("--num_samples", 2),
                            ("--num_steps", 1), ("--resolution", resolution)):
            if flag not in given and value is not None:
                given += [flag, str(value)]
        code = cli.run(lambda: script.main(given))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def write(name: str, header: str = "x,y,v", columns=(WAVE,)) -> None:
    rows = np.column_stack([PLACES, *columns])
    np.savetxt(name, rows, delimiter=",", header=header, comments="")


def files(folder="out") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_samples_of_an_earlier_run_are_replaced(command):
    write("a.csv")
    for count in (3, 2):
        assert command("a.csv", "--num_samples", count)[0] == 0
        samples = {name for name in files() if name.startswith("sample_")}
        assert samples == {f"sample_{k + 1}.png" for k in range(count)}


def test_a_folder_with_other_files_is_refused_without_overwrite(command):
    write("a.csv")
    assert command("a.csv")[0] == 0 and command("a.csv")[0] == 0
    Path("out/notes.txt").write_text("mine")
    before = files()
    code, _, err = command("a.csv")
    assert code == 2 and "notes.txt" in err and "--overwrite" in err and files() == before
    assert command("a.csv", "--overwrite")[0] == 0
    assert Path("out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name, arguments", [
    ("field.npz", ["out/field.npz"]), ("mean.png", ["out/mean.png", "--observe", "random:0.5"]),
    ("sample_2.png", ["a.png", "--mask", "out/sample_2.png"]),
    ("mean.png", ["link.png", "--observe", "random:0.5"]),
])
def test_an_output_that_is_the_input_is_refused(command, name, arguments):
    Path("out").mkdir()
    Image.new("RGB", (8, 8), "red").save("a.png")
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = 255
    if name == "field.npz":
        np.savez("out/field.npz", coords=PLACES, values=WAVE)
    else:
        Image.fromarray(half).save(f"out/{name}")
    Path("link.png").symlink_to(f"out/{name}")
    before = files()
    code, _, err = command(*arguments, resolution=None)
    assert code == 2 and "is an input and would be overwritten" in err and files() == before


OTHERS = "x,y,pressure,temp,salinity"


def test_columns_that_are_no_colours_are_reconstructed_alone(command):
    write("a.csv", OTHERS, (1013 + WAVE, -5 + WAVE, 35 + WAVE))
    code, out, _ = command("a.csv", "--num_steps", 2)
    assert code == 0 and "3 channels, each on its own" in out
    with np.load("out/field.npz") as field:
        np.testing.assert_allclose(field["mean"].mean((0, 1)), [1013, -5, 35], atol=0.5)
        assert field["sd"].mean((0, 1)).min() > 1e-2
    write("b.csv", OTHERS, (100 + WAVE, 5 + WAVE, 35 + WAVE))  # each could be a colour
    assert "3 channels, each on its own" in command("b.csv")[1]


def test_colours_are_said_to_be_read_as_colours(command):
    write("a.csv", "x,y,r,g,b", (100 + WAVE, 5 + WAVE, 35 + WAVE))
    assert "read as red, green and blue" in command("a.csv")[1]


def test_one_of_several_columns(command):
    write("a.csv", OTHERS, (1013 + WAVE, -5 + WAVE, 35 + WAVE))
    code, out, _ = command("a.csv", "--value", "temp", model="sea")
    assert code == 0 and "left out: pressure, salinity" in out
    code, _, err = command("a.csv", model="sea")
    assert code == 2 and "3 value(s) a point" in err and "--value" in err


def test_deep_pictures_come_back_in_their_own_numbers(command):
    ramp = np.linspace(1000, 2250, 16 * 12).reshape(16, 12).astype(np.uint16)
    Image.fromarray(ramp).save("a.png")
    assert command("a.png", "--observe", "random:0.5", resolution=None)[0] == 0
    with np.load("out/field.npz") as field:
        assert field["mean"].shape == (16, 12, 1)
        assert np.abs(field["mean"][..., 0] - ramp).mean() < 60
    shown = np.asarray(Image.open("out/mean.png"))
    assert shown.shape == (16, 12) and shown.min() < 30 and shown.max() > 225


def test_a_section_on_the_command_line(command):
    np.savetxt("a.csv", np.column_stack([PLACES * (100_000, 100), WAVE]), delimiter=",",
               header="distance_m,depth_m,t", comments="")
    _, out, _ = command("a.csv")
    assert "each axis has a scale of its own (--aspect equal" in out and "-> 8x8" in out
    _, out, _ = command("a.csv", "--aspect", "equal")
    assert "-> 1x8" in out


COMMANDS = {
    "no cells": (["--resolution", "0"], "1 to 512"),
    "too many digits": (["--resolution", "9" * 5000], "ROWSxCOLUMNS"),
    "an extent that overflows": (["--extent", "-1e308", "1e308", "0", "1"], "x0 < x1"),
    "no folder": (["--out", "a.csv"], "--out a.csv"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_refused_on_the_command_line(command, name):
    write("a.csv")
    arguments, words = COMMANDS[name]
    code, _, err = command("a.csv", *arguments)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_mask_that_leaves_nothing_to_do(command):
    Image.new("RGB", (8, 8), "red").save("a.png")
    Image.new("L", (8, 8), 255).save("mask.png")
    code, _, err = command("a.png", "--mask", "mask.png", resolution=None)
    assert code == 2 and "every pixel is known, so nothing is to be reconstructed" in err
    assert command("a.png", "--mask", "mask.png", resolution=16)[0] == 0  # finer than measured


# --- around the commands --------------------------------------------------------------------------


SPEAKS = """
import pathlib, sys
from sparsefield import cli
def main():
    cli.log_to()
    for _ in range(20_000):
        cli.log.info("Höhe in °C")
    pathlib.Path(sys.argv[1]).write_text("done")
    print("Höhe in °C" * 10_000)
sys.exit(cli.run(main))
"""


@pytest.mark.parametrize("encoding, closed", [("ascii", False), ("utf-8", True)])
def test_closed_pipes_and_ascii_terminals(tmp_path, encoding, closed):
    """The work is done although nobody listens, or listens in another alphabet."""
    process = subprocess.Popen([sys.executable, "-c", SPEAKS, tmp_path / "file"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding=encoding,
                               env={**os.environ, "PYTHONIOENCODING": encoding})
    if closed:
        process.stdout.close()
        process.stdout = None
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "" and (tmp_path / "file").read_text() == "done"
    assert closed or (r"H\xf6he in \xb0C" if encoding == "ascii" else "Höhe in °C") in said


def test_interrupted_while_it_is_imported():
    code = ("import os, signal, sys; sys.argv = ['x']; from sparsefield import commands; "
            "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may ignore it
            "commands.end_in_one_line_on_interrupt(); os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    for name in ("reconstruct", "train_mamba", "train_mamba_v2", "eval_v1_vs_v2",
                 "eval_sde_multiscale"):
        text = (ROOT / f"{name}.py").read_text()
        assert 0 < text.index("\n    end_in_one_line_on_interrupt()") < text.index("import sys")


@pytest.mark.parametrize("change, words", [
    (lambda w: {f"module.{k}": v for k, v in w.items()}, "DistributedDataParallel"),
    (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "torch.compile"),
    (lambda w: {k: v * float("nan") for k, v in w.items()}, "NaN or infinity (in "),
    (lambda w: {k: 5 for k in w}, "is no tensor"),
])
def test_weights_that_no_training_of_ours_left(tmp_path, change, words):
    path = write_untrained(tmp_path / "m.pth", change=change)
    with pytest.raises(UserError) as refused:
        build_model(load_checkpoint(path))
    assert words in str(refused.value)


def test_a_log_that_is_the_data_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="is the file of data"):
        TrainingConfig(data=str(tmp_path / "a.npy"), log_file=str(tmp_path / "a.npy")).check()


def test_a_training_leaves_the_files_of_others(tmp_path):
    theirs = {".notes.tmp": "mine", ".mamba_v2_latest.pth.tmp": "mine", ".report.7.tmp": "mine"}
    ours = (".mamba_v2_latest.pth.7.tmp", ".mamba_v2_epoch_0010.pth.7.tmp", ".metrics.jsonl.7.tmp",
            ".mamba_v2_best.safetensors.7.tmp")
    for name in (*theirs, *ours):
        (tmp_path / name).write_text("mine")
    lines = ['{"epoch": 3, "mine": 1}', "my own line", '["x"]', '{"step": 1, "epoch": 0}',
             '{"step": 9, "epoch": 1}', '{"step": 2, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    folder = RunFolder(tmp_path, "mamba_v2")
    with folder.locked():
        folder.rewind(5)
    assert {p.name for p in tmp_path.glob(".*.tmp")} == set(theirs)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:4]
    assert folder.read_records() == [{"step": 1, "epoch": 0}]
    (tmp_path / "metrics.jsonl").write_text("no line end")
    folder.rewind(-1)
    assert (tmp_path / "metrics.jsonl").read_text() == "no line end\n"


# --- the evaluations ------------------------------------------------------------------------------


def test_shipping_onto_itself_or_onto_what_is_no_checkpoint(tmp_path, paths):
    sys.path.insert(0, str(ROOT / "scripts"))
    import ship

    source = Path(shutil.copy(paths["sea"], tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match="is the checkpoint that is read"):
        ship.ship(source, source)
    (tmp_path / "b.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"b\.safetensors"):
        ship.ship(source, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_text() == "mine"


@pytest.fixture(autouse=True)
def heard():
    """Messages reach caplog again after a command took the log for itself."""
    log = logging.getLogger("sparsefield")
    before = log.handlers[:], log.propagate
    log.propagate = True
    yield
    log.handlers[:], log.propagate = before
