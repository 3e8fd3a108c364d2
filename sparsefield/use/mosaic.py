"""The command for fields of any size: tiles on workers, each kept on the disk, one GeoTIFF out.

A folder of a run holds `tiles.json`, what it is of, and in `.tiles` a file for each tile that is
done, until all of them become `field.tif`. Only this process reads and writes files: workers, here
or on a cluster, get the measurements near to a tile and give its numbers back.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from sparsefield import __version__, progress
from sparsefield.data.files import one_line, parse_missing, require_file
from sparsefield.data.netcdf import ENDINGS, GEOTIFF, REGULAR, ZARR, grid_axes, is_even, lazily
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate.tables import OutputFolder
from sparsefield.model.checkpoint import write_atomically
from sparsefield.use import large
from sparsefield.use.field import ABOVE, QUANTILE, named, prefixes, require_limit, require_samples
from sparsefield.use.grids import LARGEST, RESOLUTION, Grid, grid_shape, parse_resolution
from sparsefield.use.labelled import grid_in, with_axes
from sparsefield.use.large import (
    Cells,
    Index,
    Picture,
    Plan,
    Raster,
    answer,
    cut,
    opened,
    spread_over,
    tell_of_oblong_pixels,
)
from sparsefield.use.points import (
    MOST_POINTS,
    Extent,
    Measurements,
    bounds,
    checked_extent,
)
from sparsefield.use.predict import Settings
from sparsefield.use.read import PICTURES, read_measurements
from sparsefield.use.values import own_range, transformed

log = logging.getLogger("sparsefield")

TILE = 256  # pixels of a side, and of a block of the GeoTIFF
CACHE = 256  # MB of rasters that GDAL keeps
PATIENCE = "10 s"  # that a scheduler and its workers are waited for
LIVES = 3  # times in a row that workers may die before a tile is done
NAMES = ("field.tif", "tiles.json")
# Settings that no tile depends on, or that are read as files.
APART = ("input", "mask", "grid", "out", "overwrite", "workers", "scheduler", "device", "page",
         "checkpoint", "num_steps", "tokens", "value_range", "holdout_by", "block_size",
         "num_samples")
WITHOUT = {
    "holdout": "hold out from a part of the measurements, of up to a million points",
    "page": "field.tif opens in any GIS", "reach": "mask field.tif by its sd",
    "lonlat": "project to metres first, such as UTM", "covariates": "--trend is read",
    "time": "leave out the rows of other times", "observe": "make what is hidden black in a --mask",
}


def is_beyond(config: Any) -> bool:
    """Whether settings of reconstruct.py ask for more than is answered at once, as far as it is
    known before the measurements are read."""
    if config.workers is not None or config.scheduler is not None:
        return True
    if re.fullmatch(RESOLUTION, config.resolution) and max(
        map(int, config.resolution.lower().split("x"))
    ) > LARGEST:
        return True
    with contextlib.suppress(UserError, ImportError):  # of what is raised where it is read
        if config.grid is not None and not config.covariates:
            return max(axis.size for axis in _axes(config.grid)) > LARGEST
        is_gridded = Path(config.input).suffix.lower() in (*GEOTIFF, *ENDINGS, ZARR)
        if is_gridded and config.checkpoint in (None, "none") and not any(
            getattr(config, name) for name in WITHOUT
        ):
            raster = _raster(config)
            return raster is not None and (
                max(raster.shape) > LARGEST or math.prod(raster.shape) > MOST_POINTS)
    return False


def _raster(config: Any) -> Picture | Cells | None:
    """The input, if it is one that is read in windows: a picture, or a grid in a file."""
    path = Path(config.input)
    if path.suffix.lower() in PICTURES:
        return Picture(config.input)
    if path.suffix.lower() not in (*ENDINGS, ZARR):
        return None
    with lazily(path) as dataset:
        found = grid_in(path, dataset, None, config.value, (config.x, config.y))
        return None if found is None else Cells(
            config.input, *with_axes(config.input, found, config.x, config.y))


# --- what is asked for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The field that is asked for, from its first row down.

    Attributes:
        x, y: (W,) and (H,), in units of the measurements. transform, crs: of the GeoTIFF.
    """

    x: np.ndarray
    y: np.ndarray
    transform: Any
    crs: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)


def _axes(path: str) -> tuple[Any, Any]:
    with lazily(Path(path)) as dataset:
        return tuple(axis.load() for axis in grid_axes(Path(path), dataset))


def _target(config: Any, given: Measurements, extent: Extent, scaled_by: tuple[float, float],
            raster: Raster | None) -> Target:
    from rasterio.transform import Affine, from_bounds

    most = 10**6
    if config.grid is not None:
        x, y = (axis.values for axis in _axes(config.grid))
        if not (is_even(x, REGULAR) and is_even(y, REGULAR)):
            raise UserError(f"--grid {config.grid}: its steps are uneven, and a GeoTIFF has even "
                            "ones: give --resolution and --extent")
        crs = opened(config.grid).crs if config.grid.lower().endswith(GEOTIFF) else None
        x, y = np.sort(x), np.sort(y)
        x0, x1, y0, y1 = Grid(x, y).extent
        return Target(x, y[::-1], from_bounds(x0, y0, x1, y1, len(x), len(y)), crs)
    shape = grid_shape(parse_resolution(config.resolution, given), extent, scaled_by, most)
    if raster is None:
        grid = Grid.over(extent, shape)
        x0, x1, y0, y1 = extent
        return Target(grid.x, grid.y[::-1], from_bounds(x0, y0, x1, y1, *shape[::-1]))
    if config.resolution == "auto":
        shape = raster.shape
    grid = Grid.over((0, raster.shape[1], 0, raster.shape[0]), shape)
    rows, columns = np.divide(raster.shape, shape)
    return Target(grid.x, grid.y, raster.transform @ Affine.scale(columns, rows), raster.crs)


def run(config: Any, given: Measurements | None = None) -> None:
    """Reconstruct settings of reconstruct.py in tiles; given: the measurements, if they were read.

    Raises:
        UserError: what cannot be read, be done in tiles, or be written.
    """
    _refuse(config)
    if importlib.util.find_spec("rasterio") is None:
        raise UserError("fields in tiles need rasterio: pip install rasterio")
    import rasterio

    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # it raises what it logs
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        _run(config, given)


def _run(config: Any, given: Measurements | None) -> None:
    out = OutputFolder(config.out, "--out", NAMES, [config.input, config.mask, config.grid],
                       config.overwrite)
    samples = config.num_samples if "num_samples" in getattr(config, "given", ()) else 0
    settings = Settings(num_samples=config.num_samples, seed=config.seed, trend=config.trend,
                        transform=config.transform)
    tiles = Tiles(out.path, config, samples)
    raster = None
    numbers, _ = parse_missing(config.missing)
    if given is None and (source := _raster(config)) is not None:
        of_others = ("x", "y", "value") if isinstance(source, Picture) else ("mask",)
        for name in (*of_others, "extent", "grid", "noise_sd"):
            if getattr(config, name):
                raise UserError(f"--{name} is not for {config.input}, a raster: leave it out")
        tell_of_oblong_pixels(config.input, source.transform, source.crs, source.shape[0])
        raster = Raster(source, config.mask, numbers)
        given = raster.given
    elif given is None:
        given = _read(config)
    count = len(given.coords) if raster is None else raster.count
    extent = given.region or (bounds("measurements", given.coords) if config.extent is None else
                              checked_extent("--extent", config.extent, False))
    own_range(transformed(config.transform, given.values))  # refused before anything is written
    plan = Plan.of(given, count, extent, config.aspect, settings, given.names or ("value",),
                   samples, config.above, config.quantiles)
    target = _target(config, given, extent, plan.frame.scaled_by, raster)
    source = Index(given, plan.halo) if raster is None else raster.reaching(plan.halo)
    plan, words = plan.fitted(spread_over(source), raster is None)
    tiles.begin(plan, target)
    log.info("%s: %s points -> %dx%d in %s tiles by kriging, each on its own; %s",
             config.input, f"{count:,}", *target.shape, f"{len(tiles.all):,}",
             f"{samples} samples" if samples else "no samples unless --num_samples asks for some")
    log.info("kriging fitted to measurements spread over the whole: %s", words)
    with tiles.locked():
        missing = tiles.missing()
        if len(missing) < len(tiles.all):
            log.info("%s of %s tiles are done already", f"{len(tiles.all) - len(missing):,}",
                     f"{len(tiles.all):,}")
        jobs = ((tile, tiles.job(tile, source)) for tile in missing)
        with workers(config.workers, config.scheduler) as pool, progress.bar(
            "tiles", len(tiles.all), "tile", initial=len(tiles.all) - len(missing)
        ) as shown:
            for tile, found in results(*pool, answer, jobs):
                tiles.save(tile, found)
                shown.update()
        tiles.join(given.units if config.units is None else config.units)
    log.info("%s: written to %s", config.input, out.path / "field.tif")


def _read(config: Any) -> Measurements:
    return read_measurements(
        config.input, channels=3, mask=config.mask, observe=config.observe, x=config.x, y=config.y,
        value=config.value, missing=config.missing, noise_sd=config.noise_sd,
        decimal=config.decimal, most=math.inf)


def _refuse(config: Any) -> None:
    """Raises UserError for settings that a field in tiles does not have."""
    for name, instead in WITHOUT.items():
        if getattr(config, name):
            raise UserError(f"--{name} is not for fields in tiles (beyond {MOST_POINTS:,} points "
                            f"or {LARGEST} rows, or with --workers): {instead}")
    if config.checkpoint not in (None, "none"):
        raise UserError(f"--checkpoint {config.checkpoint}: fields in tiles are answered by "
                        f"kriging: leave it out, or ask for {LARGEST} rows at most")
    if config.noise_sd == "auto":
        raise UserError("--noise_sd auto is not for fields in tiles: give a number or a column; a "
                        "part of the measurements tells it, with --noise_sd auto")
    if config.workers is not None and config.scheduler is not None:
        raise UserError("--workers is for this machine, and --scheduler for a cluster: give one")
    if config.scheduler and not re.fullmatch(r"(tcp|tls|ws|wss|ucx)://[^/]+:\d+", config.scheduler):
        raise UserError(f"--scheduler {config.scheduler}: give its address, such as "
                        "tcp://host:8786")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers {config.workers}: give 1 or more")
    if config.grid is not None and (config.extent is not None or config.resolution != "auto"):
        raise UserError(f"--grid {config.grid}: it sets resolution and extent; leave those out")
    if config.input == "-":
        raise UserError("-: fields in tiles are read from a file, so that the same command can go "
                        "on; write it to one")
    require_seed(config.seed)
    require_limit(config.above)
    for share in config.quantiles:
        require_samples(share, None)


# --- workers --------------------------------------------------------------------------------------


def results(
    start: Callable[[], Executor], lost: type[Exception], at_once: int,
    do: Callable, jobs: Iterable[tuple[Any, tuple]],
) -> Iterator[tuple[Any, Any]]:
    """(key, do(*arguments)) of jobs (key, arguments), as they come, few at a time.

    Args:
        start: gives an executor. Where its workers die, which is `lost`, another does their jobs.
    Raises:
        UserError: workers die again and again, or the cluster is gone.
    """
    jobs, running, again, deaths = iter(jobs), {}, [], 0
    executor = start()
    try:
        while True:
            try:
                while len(running) < at_once and (job := next(jobs, None)):
                    running[executor.submit(do, *job[1])] = job
            except lost:
                again.append(job)
            if not (running or again):
                return
            done = wait(running, return_when=FIRST_COMPLETED).done if running else ()
            for future in done:
                job = running.pop(future)
                try:
                    found = future.result()
                except lost:
                    again.append(job)
                except (CancelledError, OSError) as error:
                    raise UserError(f"the cluster is gone ({type(error).__name__}); tiles that are "
                                    "done stay: start the same command again") from None
                except ImportError as error:
                    raise UserError(f"a worker lacks this program ({error}): install "
                                    f"mamba-diffusion {__version__} there") from None
                else:
                    deaths = 0
                    yield job[0], found
            if again:
                jobs = itertools.chain([*again, *running.values()], jobs)
                running, again, deaths = {}, [], deaths + 1
                if deaths > LIVES:
                    raise UserError("workers die again and again, perhaps for want of memory; "
                                    "tiles that are done stay: start the same command with fewer "
                                    "--workers")
                log.info("a worker has died: its tiles are done again")
                executor.shutdown(wait=False)
                executor = start()
    finally:
        for future in running:
            future.cancel()
        executor.shutdown(wait=False)


@contextlib.contextmanager
def workers(
    count: int | None, scheduler: str | None
) -> Iterator[tuple[Callable[[], Executor], type[Exception], int]]:
    """What starts an executor, what it raises where workers die, and how many jobs keep it busy.

    Args:
        count: of processes of this machine; None: its cores. scheduler: of a dask.distributed
            cluster instead.
    Raises:
        UserError: no package, or no scheduler or worker that answers.
    """
    if scheduler is None:
        count = count or os.cpu_count() or 1
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload([large.__name__])
        yield (lambda: ProcessPoolExecutor(count, context, _outlive_nobody), BrokenExecutor,
               2 * count)
        return
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError("--scheduler needs dask.distributed: pip install distributed") from None
    for name in ("distributed", "distributed.client"):  # what they say is said in one line here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--scheduler {scheduler}: does not answer within {PATIENCE} "
                        f"({type(error).__name__}); is it running there?") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError):
            raise UserError(f"--scheduler {scheduler}: it has no worker; start some with "
                            f"dask worker {scheduler}") from None
        yield client.get_executor, KilledWorker, 2 * sum(client.ncores().values())


def _outlive_nobody() -> None:
    """A worker leaves Ctrl-C to the command, and ends where that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


# --- tiles on the disk ----------------------------------------------------------------------------


def _digest_of(path: str) -> str:
    """Of a file, or of all files of a zarr."""
    if Path(path).is_dir():
        each = sorted(file for file in Path(path).rglob("*") if file.is_file())
        digests = "".join(f"{file.relative_to(path)} {_digest_of(str(file))}\n" for file in each)
        return hashlib.sha256(digests.encode()).hexdigest()
    require_file(Path(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Tiles:
    """The tiles of a run in a folder: which are done, and what they are of.

    Args:
        samples: their number.
    Raises:
        UserError: the folder holds tiles of another input or of other settings.
    """

    def __init__(self, folder: Path, config: Any, samples: int):
        self.folder = folder
        inputs = {name: _digest_of(path) for name in ("input", "mask", "grid")
                  if (path := getattr(config, name))}
        settings = {name: value for name, value in sorted(vars(config).items())
                    if name not in (*APART, "given")}
        self.of = json.loads(json.dumps({
            "version": __version__, "samples": samples, **inputs, **settings}))
        self.digest = hashlib.sha256(json.dumps(self.of).encode()).hexdigest()[:12]
        self.done, self.manifest = folder / ".tiles", folder / "tiles.json"
        self.is_continued = self._check()

    def begin(self, plan: Plan, target: Target) -> None:
        """Which tiles there are. Raises UserError where they have no room."""
        self.plan, self.target = plan, target
        self.bands = [prefix + key for part in plan.parts
                      for prefix in prefixes(plan.names)[part.channels] for key in (
                          "mean", "sd", *(named(ABOVE, limit) for limit in
                                          dict.fromkeys(plan.above)),
                          *(named(QUANTILE, share) for share in dict.fromkeys(plan.quantiles)),
                          *(f"sample_{k + 1}" for k in range(plan.samples)))]
        there = [path.stat().st_size for path in self.done.glob("*.npy")]
        self.is_done = not there and self.is_continued and (self.folder / "field.tif").exists()
        needs = 4 * len(self.bands) * math.prod(target.shape) - sum(there)
        if not self.is_done and needs > (free := shutil.disk_usage(self.folder).free):
            raise UserError(f"--out {self.folder}: tiles need {needs / 1e9:.2g} GB, and "
                            f"{free / 1e9:.2g} are free; make room, or choose another folder")
        self.all = list(cut(target.shape, TILE))

    def _check(self) -> bool:
        """Whether it holds a run of this."""
        start = "choose another folder with --out, or delete this one"
        try:
            before = json.loads(self.manifest.read_text()) if self.manifest.exists() else None
        except (ValueError, OSError):
            raise UserError(f"{self.manifest}: cannot be read; {start}") from None
        if before is not None and before != self.of:
            keys = before if isinstance(before, dict) else {}
            changed = sorted(key for key in {*keys, *self.of}
                             if keys.get(key) != self.of.get(key))
            raise UserError(f"{self.folder} holds tiles of another run (another "
                            f"{', '.join(changed)}): {start}")
        others = [path.name for path in self.done.glob("*.npy") if self.digest not in path.name]
        if others:
            raise UserError(f"{self.done} holds tiles of another run ({others[0]}): {start}")
        return before is not None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other command works in this folder."""
        try:
            self.done.mkdir(exist_ok=True)
            with filelock.FileLock(self.done / "lock", timeout=0):
                if not self.is_continued:
                    (self.folder / "field.tif").unlink(missing_ok=True)
                write_atomically(self.manifest, json.dumps(self.of, indent=1).encode())
                yield
        except filelock.Timeout:
            raise UserError(f"--out {self.folder}: another command works in it; wait for it, or "
                            "choose another folder") from None
        except OSError as error:
            raise UserError(f"--out {self.folder}: {error.strerror or error}; tiles that are done "
                            "stay: make room there, and start the same command again") from None
        shutil.rmtree(self.done, ignore_errors=True)

    def _path(self, tile: tuple[slice, slice]) -> Path:
        return self.done / f"{tile[0].start}_{tile[1].start}.{self.digest}.npy"

    def _shape(self, tile: tuple[slice, slice]) -> tuple[int, int, int]:
        rows, columns = tile
        return len(self.bands), rows.stop - rows.start, columns.stop - columns.start

    def missing(self) -> list[tuple[slice, slice]]:
        """Tiles that are to be done: none where field.tif is there."""
        there = {path.name for path in self.done.glob("*.npy")}
        return [] if self.is_done else [
            tile for tile in self.all if self._path(tile).name not in there]

    def job(self, tile: tuple[slice, slice], source: Index | Raster) -> tuple:
        """The arguments of `answer`."""
        x, y = self.target.x[tile[1]], self.target.y[tile[0]]
        low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
        return self.plan, source.near(low, high), x, y

    def save(self, tile: tuple[slice, slice], found: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, found)
        write_atomically(self._path(tile), content.getvalue())

    def join(self, units: str | None) -> None:
        """All tiles become field.tif, and are read back before they are deleted."""
        import rasterio

        if self.is_done:
            return
        new, (rows, columns) = self.done / "field.tif", self.target.shape
        profile = dict(
            driver="GTiff", height=rows, width=columns, count=len(self.bands), dtype="float32",
            nodata=np.nan, tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate",
            predictor=3, BIGTIFF="IF_SAFER", transform=self.target.transform, crs=self.target.crs)
        try:
            with rasterio.open(new, "w", **profile) as file:
                file.descriptions = self.bands
                file.units = ["1" if "probability_above" in band else units or ""
                              for band in self.bands]
                for tile in progress.over(self.all, "writing", "tile"):
                    file.write(self._load(tile), window=rasterio.windows.Window.from_slices(*tile))
            with rasterio.open(new, "r+") as file:
                most = max(0, math.ceil(math.log2(max(rows, columns) / TILE)))
                if most:
                    file.build_overviews([2**k for k in range(1, most + 1)],
                                         rasterio.enums.Resampling.average)
            with rasterio.open(new) as file:
                for tile in self.all:
                    window = rasterio.windows.Window.from_slices(*tile)
                    if not np.array_equal(file.read(window=window), self._load(tile), True):
                        raise OSError("what was written is not what is there")
            os.replace(new, self.folder / "field.tif")
        except rasterio.errors.RasterioError as error:
            raise OSError(f"field.tif cannot be written ({one_line(error.__cause__ or error)})"
                          ) from None
        finally:
            new.unlink(missing_ok=True)

    def _load(self, tile: tuple[slice, slice]) -> np.ndarray:
        path = self._path(tile)
        try:
            found = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            found = np.empty(0)
        if found.shape != self._shape(tile):
            raise UserError(f"{path}: broken; delete it, and start the same command again")
        return found
