"""Fields in tiles: seams, workers, what is left of a run that was broken off, bad input."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray
from scipy.ndimage import map_coordinates

from small import ROOT
from sparsefield.errors import UserError
from sparsefield.use import large, mosaic, points, read
from sparsefield.use.points import Measurements
from sparsefield.use.predict import Settings
from sparsefield.use.values import moments, untransformed

rasterio = pytest.importorskip("rasterio")
SIDE = 64


def wavy(x, y):
    return 50 + 9 * np.sin(x / 7) + 6 * np.cos(y / 5 + x / 11)


def measured(count=1300, side=SIDE, noise=None, seed=0):
    coords = np.random.default_rng(seed).uniform(0, side, (count, 2))
    return Measurements(coords, wavy(*coords.T)[:, None], ("value",), noise=noise)


def rough(given):
    """The same with a field that looks alike at all scales."""
    speed = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    speed[0, 0] = np.inf
    noise = np.random.default_rng(5).normal(size=speed.shape)
    field = np.fft.ifft2(np.fft.fft2(noise) * speed**-1.6).real
    y, x = given.coords.T[::-1]
    return replace(given, values=map_coordinates(field, [y, x], order=1, mode="nearest")[:, None])


def planned(given, samples=0, **settings):
    plan = large.Plan.of(given, len(given.coords), (0, SIDE, 0, SIDE), "equal",
                         Settings(**settings), given.names, samples)
    source = large.Index(given, plan.halo)
    return plan.fitted(large.spread_over(source), True)[0], source


def answered(plan, source, tile):
    """The field of SIDE x SIDE in tiles of a side."""
    axis, found = np.arange(SIDE) + 0.5, None
    for rows, columns in large.cut((SIDE, SIDE), tile):
        low, high = (np.array([axis[columns][k], axis[rows][k]]) for k in (0, -1))
        part = large.answer(plan, source.near(low, high), axis[columns], axis[rows])
        found = np.empty((len(part), SIDE, SIDE)) if found is None else found
        found[:, rows, columns] = part
    return found


def raster(path, values, **more):
    with rasterio.open(path, "w", driver="GTiff", height=values.shape[-2], width=values.shape[-1],
                       count=1, dtype=values.dtype, **{
                           "transform": rasterio.transform.from_origin(500, 900, 10, 10),
                           "crs": "EPSG:32632", **more}) as file:
        file.write(values, 1)


def with_gaps(path="gaps.tif", side=SIDE, seed=0):
    """A raster of which a fifth is known; its truth."""
    truth = wavy(*np.meshgrid(np.arange(side), np.arange(side))).astype(np.float32)
    hidden = np.random.default_rng(seed).random((side, side)) > 0.2
    raster(path, np.where(hidden, np.nan, truth).astype(np.float32), nodata=np.nan)
    return truth


def bands(path):
    with rasterio.open(path) as file:
        return file.read()


@pytest.fixture
def tiled(command, monkeypatch):
    """The command with tiles of 32 x 32 and one worker, a thread, which starts at once."""
    monkeypatch.setattr(mosaic, "TILE", 32)
    monkeypatch.setattr(mosaic, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    return lambda *arguments: command(*arguments, "--resolution", "auto")


# --- the answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [None, 0.5])
def test_tiles_join_to_what_one_go_gives(noise):
    """Within 1 % of the sd, draws within 2 %, root mean square; and no edges at the borders."""
    given = rough(measured(noise=None if noise is None else np.full(1300, noise)))
    plan, source = planned(given, samples=1)
    whole, parts = (answered(plan, source, side) for side in (SIDE, 32))
    off = (parts - whole) / whole[1]
    mean, sd, sample = np.sqrt((off**2).mean(axis=(1, 2)))
    assert mean < 0.01 and sd < 0.01 and sample < 0.02
    at_border = np.zeros(SIDE, bool)
    at_border[[31, 32]] = True
    steps = np.abs(np.diff((parts[2] - parts[0]) / parts[1], axis=1))
    assert np.median(steps[:, [31]]) < 1.5 * np.median(steps[:, ~at_border[1:]])


def test_a_tile_depends_on_nothing_else_that_is_asked_for():
    plan, source = planned(measured(), samples=1)
    axis = np.arange(32) + 32.5
    alone = large.answer(plan, source.near(np.full(2, 32.5), np.full(2, 63.5)), axis, axis)
    assert np.array_equal(alone, answered(plan, source, 32)[:, 32:, 32:].astype(np.float32))


def test_measured_cells_are_kept_and_intervals_hold():
    given = measured()
    axis = np.arange(SIDE) + 0.5
    given = replace(given, coords=np.concatenate([given.coords, [[8.5, 3.5]]]),
                    values=np.concatenate([given.values, [[77.0]]]))
    plan, source = planned(given)
    mean, sd = answered(plan, source, 64)
    assert mean[3, 8] == 77 and sd[3, 8] == 0
    truth = wavy(*np.meshgrid(axis, axis))
    near = np.hypot(*np.meshgrid(axis - 8.5, axis - 3.5)) < 20
    assert np.mean(np.abs(mean - truth)[~near] < 2 * sd[~near]) > 0.9
    assert np.sqrt(np.mean((mean - truth)[~near] ** 2)) < 0.1


def test_the_index_sees_all_that_is_near_and_some_of_what_is_far():
    given = measured(20_000, 1000)
    index = large.Index(given, np.array([20.0, 30.0]))
    near = index.near(np.array([400.0, 400.0]), np.array([500.0, 600.0])).coords
    assert len(np.unique(near, axis=0)) == len(near)
    inside = ((given.coords >= (380, 370)) & (given.coords <= (520, 630))).all(axis=1)
    assert set(map(tuple, given.coords[inside])) <= set(map(tuple, near))
    ring = ((near >= (320, 280)) & (near <= (580, 720))).all(axis=1).sum() - inside.sum()
    assert 0.5 < ring / (20_000 * (260 * 440 - 140 * 260) / 1e6 / large.THINNED) < 1.5
    assert len(near) < 3000 and np.ptp(near, axis=0).min() > 900
    assert len(index.near(np.full(2, 5000.0), np.full(2, 5001.0)).coords) > 0


def test_a_raster_read_in_windows_gives_what_memory_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_gaps()
    whole = large.Raster(large.Picture("gaps.tif"), None, None)
    monkeypatch.setattr(large, "WINDOW", 40)
    monkeypatch.setattr(large, "KEPT", 400)
    thinned = large.Raster(large.Picture("gaps.tif"), None, None)
    assert thinned.count == whole.count == len(whole.given.coords)
    assert 100 < len(thinned.given.coords) <= 400
    halo = np.full(2, 5.0)
    found = thinned.reaching(halo).near(np.full(2, 30.0), np.full(2, 40.0)).coords
    near = whole.reaching(halo).near(np.full(2, 30.0), np.full(2, 40.0)).coords
    within = [set(map(tuple, x[((x > 25) & (x < 45)).all(axis=1)])) for x in (found, near)]
    assert within[0] == within[1] and np.ptp(found, axis=0).min() > 45


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_moments_are_those_of_many_draws(name):
    mean, sd = np.array([0.5, 2.0]), np.array([0.4, 0.3])
    drawn = untransformed(name, np.random.default_rng(0).normal(mean, sd, (400_000, 2)))
    found = moments(name, mean, sd)
    np.testing.assert_allclose(found, [drawn.mean(axis=0), drawn.std(axis=0)], rtol=0.01)


# --- tables in parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_tables_in_parts_are_the_table(tmp_path, monkeypatch, ending):
    given = measured(300)
    table = pd.DataFrame({"note": "a", "y": given.coords[:, 1], "x": given.coords[:, 0],
                          "zinc": given.values[:, 0]})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    whole = read.read_measurements(str(path), channels=3)
    monkeypatch.setattr(read, "BLOCK", 1000)
    monkeypatch.setattr(read, "ROWS", 70)
    parts = read.read_measurements(str(path), channels=3)
    assert np.array_equal(whole.coords, parts.coords) and parts.names == ("zinc",)
    assert np.array_equal(whole.values, parts.values) and len(parts.values) == 300


def test_a_word_in_a_later_part_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BLOCK", 100)
    rows = [f"{k},{k % 7},{k}" for k in range(200)]
    rows[150] = "150,3,wet"
    (tmp_path / "a.csv").write_text("\n".join(["x,y,v", *rows]))
    with pytest.raises(UserError, match="'wet' in column 'v', measurement 151"):
        read.read_measurements(str(tmp_path / "a.csv"), channels=3)


# --- the command ----------------------------------------------------------------------------------


def test_workers_do_not_change_a_bit(tiled, monkeypatch):
    truth = with_gaps()
    found = {}
    for number in (1, 2, 4):
        if number > 1:
            monkeypatch.setattr(mosaic, "ProcessPoolExecutor", ProcessPoolExecutor)
        code, out, err = tiled("gaps.tif", "--workers", number, "--out", f"by{number}")
        assert code == 0, err
        found[number] = bands(f"by{number}/field.tif")
    assert np.array_equal(found[1], found[2]) and np.array_equal(found[1], found[4])
    assert found[1].shape == (4, SIDE, SIDE) and sorted(os.listdir("by1")) == [
        "field.tif", "tiles.json"]
    assert np.sqrt(np.mean((found[1][0] - truth) ** 2)) < 0.3
    with rasterio.open("by1/field.tif") as file, rasterio.open("gaps.tif") as like:
        assert file.descriptions == ("mean", "sd", "sample_1", "sample_2")
        assert file.transform == like.transform and file.crs == like.crs and file.overviews(1)
    code, out, err = tiled("gaps.tif", "--workers", 1, "--out", "by1")
    assert code == 0 and "4 of 4 tiles are done already" in out


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_grid_in_a_file_is_the_raster_of_its_cells(tiled, monkeypatch, ending):
    """Whichever way its axes go, packed, with gaps of two kinds; and it takes this path by size."""
    if ending == "zarr":
        pytest.importorskip("zarr")
    with_gaps()
    with rasterio.open("gaps.tif") as file:
        cells = np.round(file.read(1), 1)
    raster("gaps.tif", cells, nodata=np.nan)
    axes = {"x": 505.0 + 10 * np.arange(SIDE), "y": 895.0 - 10 * np.arange(SIDE)}
    array = xarray.DataArray(cells, axes, ("y", "x"), "heat", {"units": "K"})
    packed = (array.fillna(-99).where(array.notnull() | (array.x > 600), 900) * 10).round()
    packed = packed.astype(np.int16).sortby("y").transpose("x", "y").expand_dims("time")
    packed.attrs |= {"scale_factor": 0.1, "_FillValue": np.int16(-990), "valid_max": np.int16(2000)}
    monkeypatch.setattr(large, "WINDOW", 40)
    monkeypatch.setattr(mosaic, "LARGEST", SIDE - 1)
    if ending == "nc":
        packed.to_netcdf("cells.nc", engine="scipy")
    else:
        packed.to_dataset().to_zarr("cells.zarr")
    fields = []
    for name in ("gaps.tif", f"cells.{ending}"):
        code, _, err = tiled(name, "--out", f"of_{name}")
        assert code == 0, err
        with rasterio.open(f"of_{name}/field.tif") as file:
            fields.append((file.read(), file.transform, file.units))
    np.testing.assert_allclose(fields[0][0], fields[1][0], atol=1e-3)
    assert fields[0][1].almost_equals(fields[1][1]) and set(fields[1][2]) == {"K"}


def test_a_large_table_takes_this_path_by_itself(tiled, monkeypatch):
    given = measured(900)
    pd.DataFrame({"x": given.coords[:, 0], "y": given.coords[:, 1], "v": given.values[:, 0],
                  "w": 2 * given.values[:, 0]}).to_csv("a.csv", index=False)
    monkeypatch.setattr("reconstruct.MOST_POINTS", 800)
    code, out, err = tiled("a.csv", "--above", "50", "--extent", 0, 32, 0, 64)
    assert code == 0 and "900 points -> 64x32 in 2 tiles by kriging" in out, err
    with rasterio.open("out/field.tif") as file:
        assert file.descriptions[:3] == ("v_mean", "v_sd", "v_probability_above_50")
        assert "w_mean" in file.descriptions and file.bounds == (0, 0, 32, 64)
        mean, _, above = file.read([1, 2, 3])
        y, x = np.mgrid[:64, :32]
        truth = wavy(*(file.transform @ (x + 0.5, y + 0.5)))
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.5
    assert np.array_equal(above > 0.5, mean > 50)


def test_a_full_disk_leaves_tiles_and_the_same_command_goes_on(tiled, monkeypatch):
    with_gaps()
    assert tiled("gaps.tif", "--workers", 1, "--out", "undisturbed")[0] == 0
    whole, count = mosaic.write_atomically, []

    def full(path, content):
        count.append(path)
        if len(count) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, content)

    monkeypatch.setattr(mosaic, "write_atomically", full)
    code, out, err = tiled("gaps.tif", "--workers", 1)
    assert code == 2 and "No space left on device; tiles that are done stay" in err
    assert err.count("\n") == 1
    monkeypatch.setattr(mosaic, "write_atomically", whole)
    code, out, err = tiled("gaps.tif", "--workers", 2)
    assert code == 0 and "2 of 4 tiles are done already" in out
    assert np.array_equal(bands("out/field.tif"), bands("undisturbed/field.tif"))


def test_tiles_of_another_run_are_refused(tiled, monkeypatch):
    with_gaps()
    with monkeypatch.context() as patch:
        patch.setattr(mosaic.Tiles, "join", lambda self, units: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiled("gaps.tif", "--workers", 1)
    os.rename("out/tiles.json", "tiles.json")
    code, _, err = tiled("gaps.tif", "--workers", 1, "--seed", 1)
    assert code == 2 and "holds tiles of another run (" in err
    os.rename("tiles.json", "out/tiles.json")
    code, _, err = tiled("gaps.tif", "--workers", 1, "--seed", 1)
    assert code == 2 and "another run (another seed)" in err
    with_gaps(seed=1)
    code, _, err = tiled("gaps.tif", "--workers", 1)
    assert code == 2 and "another run (another input)" in err


def dies_once(path, number):
    """7 x number; the first worker that comes to 3 is killed."""
    if number == 3 and not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7 * number


def dies(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_loses_its_job_alone(tmp_path):
    jobs = ((k, (str(tmp_path / "died"), k)) for k in range(8))
    pool = (lambda: ProcessPoolExecutor(2), BrokenExecutor, 4)
    assert dict(mosaic.results(*pool, dies_once, jobs)) == {k: 7 * k for k in range(8)}
    assert (tmp_path / "died").exists()
    with pytest.raises(UserError, match="die again and again"):
        dict(mosaic.results(*pool, dies, ((k, (k,)) for k in range(8))))


@pytest.mark.parametrize("arguments, said", [
    ("gaps.tif --workers 0", "give 1 or more"),
    ("gaps.tif --workers 2 --scheduler tcp://localhost:1", "give one"),
    ("gaps.tif --workers 2 --page", "--page is not for fields in tiles"),
    ("gaps.tif --workers 2 --holdout 0.2", "--holdout is not for fields in tiles"),
    ("a.csv --resolution 2000 --lonlat", "--lonlat is not for fields in tiles"),
    ("gaps.tif --workers 2 --checkpoint bundled", "answered by kriging"),
    ("a.csv --workers 2 --noise_sd auto", "give a number or a column"),
    ("cut.tif --workers 2", "cut.tif: broken or cut off"),
    ("full.tif --workers 2", "every pixel is known"),
    ("none.tif --workers 2", "no pixel is known"),
    ("gaps.tif --workers 2 --mask small.tif", "make them equal"),
    ("code.tif --workers 2", "give --missing -9999"),
    ("missing.tif --workers 2", "missing.tif: no such file"),
    ("a.csv.tif --workers 2", "no raster that can be read"),
    ("gaps.tif --workers 2 --x 1", "--x is not for gaps.tif, a raster"),
    ("a.csv --workers 2 --out a.csv", "--out a.csv"),
    ("a.csv --resolution 500000x500000", "are free"),
    ("gaps.tif --scheduler tcp://127.0.0.1:1", "does not answer within 1 s"),
])
def test_what_cannot_be_done_is_one_line(tiled, command, monkeypatch, arguments, said):
    monkeypatch.setattr(mosaic, "PATIENCE", "1 s")
    truth = with_gaps()
    with_gaps("small.tif", 40)
    raster("full.tif", truth)
    raster("none.tif", np.full((40, 40), np.nan, np.float32), nodata=np.nan)
    raster("code.tif", np.where(truth > 50, truth, -9999).astype(np.float32))
    raster("cut.tif", np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32))
    with open("cut.tif", "r+b") as file:
        file.truncate(150_000)
    given = measured(50)
    table = pd.DataFrame(np.hstack([given.coords, given.values]), columns=["x", "y", "v"])
    table.to_csv("a.csv", index=False)
    table.to_csv("a.csv.tif")
    run = command if "--resolution" in arguments else tiled
    code, out, err = run(*arguments.split())
    assert code == 2 and said in err and err.count("\n") == 1, (out, err)
    assert not os.path.exists("out/field.tif")


def test_a_point_too_many_for_one_go_is_counted(monkeypatch):
    monkeypatch.setattr(points, "MOST_POINTS", 10)
    with pytest.raises(UserError, match="at most 10"):
        points.clean("a", measured(20), None, most=10)


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_killed_command_goes_on_and_a_killed_worker_of_a_cluster_changes_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with_gaps(side=600)
    distributed = pytest.importorskip("distributed")

    def start(*more):
        return subprocess.Popen([sys.executable, ROOT / "reconstruct.py", "gaps.tif", *more])

    assert start("--workers", "2", "--out", "undisturbed").wait() == 0
    whole = bands("undisturbed/field.tif")
    process = start("--workers", "2", "--out", "killed")
    while not list(tmp_path.glob("killed/.tiles/*.npy")):
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/field.tif").exists()
    assert start("--workers", "2", "--out", "killed").wait() == 0
    assert np.array_equal(bands("killed/field.tif"), whole)
    with distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as own:
        process = start("--scheduler", own.scheduler_address, "--out", "cluster")
        while not list(tmp_path.glob("cluster/.tiles/*.npy")):
            time.sleep(0.1)
        os.kill(next(iter(own.workers.values())).pid, signal.SIGKILL)
        assert process.wait() == 0
    assert np.array_equal(bands("cluster/field.tif"), whole)
