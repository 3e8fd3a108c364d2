"""Frozen cases: the same fields, observed at the same points with the same noise, for every method;
and the data that a checkpoint is tested on.

Symbols: K draws, M observed points, N points that exist, C channels. A *field* is (H, W, C) in
[0, 1] with NaN where no point exists; models work in [-1, 1]. A resolution is a number of rows:
fields can be asked for, and compared with the truth, on a multiple of the observed ones.
"""

from __future__ import annotations

import copy
import filecmp
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from torch import Tensor, nn

from sparsefield import progress
from sparsefield.data import NAMES, Data, Pattern, Split, frozen_case, open_as_configured, open_data
from sparsefield.data.arrays import ArraySplit
from sparsefield.data.crops import FolderSplit
from sparsefield.data.files import are_one
from sparsefield.data.netcdf import ENDINGS
from sparsefield.data.scale import Scale, frames_of, is_standard, standardised, time_of, to_unit
from sparsefield.errors import UserError
from sparsefield.evaluate import metrics
from sparsefield.evaluate.baselines import BASELINES, keep_observations
from sparsefield.flow.sampling import POINTS, Result, sample
from sparsefield.hashed import noise_seed
from sparsefield.model.field import FieldModel, GaussianModel
from sparsefield.place import SINGLE, Domain, Frames, grid_coords

log = logging.getLogger("sparsefield")

Model = FieldModel | GaussianModel
KRIGED = "kriging, fitted"
ENLARGED = "biharmonic + bicubic"  # biharmonic where it was observed, then enlarged


@dataclass(frozen=True, eq=False)
class Case:
    """One field with its observations; see `sparsefield.data.frozen_case`.

    Attributes:
        index: of the field in its split. inside: (H, W, C) in [-1, 1].
        noisy: the same as it is measured. noise_sd: (C,) of their difference.
        observed: (M,) flat indices i * W + j, sorted. noise_seed: of the first draw.
        truths: {rows: field}; the observed resolution is always among them.
        time: of a frame of a sequence, in mean steps.
    """

    index: int
    inside: np.ndarray
    noisy: np.ndarray
    noise_sd: np.ndarray
    observed: np.ndarray
    noise_seed: int
    truths: dict[int, np.ndarray]
    time: float = 0.0

    @classmethod
    def open(
        cls, split: Split, index: int, pattern: Pattern, seed: int, resolutions: Sequence[int]
    ) -> Case:
        """A field of a split, with the truths that there are among some resolutions."""
        frozen = frozen_case(split, index, pattern, seed)
        inside = np.ascontiguousarray(frozen["truth"])
        fields = {rows: _finer(split, index, rows) for rows in resolutions} | {len(inside): inside}
        truths = {rows: to_unit(found) for rows, found in fields.items() if found is not None}
        return cls(index, inside, frozen["noisy"], frozen["noise_sd"], frozen["observed"],
                   frozen["noise_seed"], truths, time_of(split, index))

    @property
    def truth(self) -> np.ndarray:
        """The field at the resolution that it was observed at."""
        return self.truths[len(self.inside)]

    @cached_property
    def coords(self) -> Tensor:
        """(M, 2) of the observations."""
        return grid_coords(*self.inside.shape[:2])[torch.as_tensor(self.observed)]

    @cached_property
    def values(self) -> Tensor:
        """(M, C) observed, in [-1, 1], with noise, if there is any."""
        return torch.from_numpy(self.noisy.reshape(-1, self.noisy.shape[2])[self.observed])

    @property
    def exact(self) -> np.ndarray:
        """The observed points whose values are known: all, or none where there is noise."""
        return self.observed[: 0 if self.noise_sd.any() else None]

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates and values, in [0, 1], as baselines take them."""
        return self.coords.numpy(), to_unit(self.values.numpy())

    def exists(self, rows: int) -> np.ndarray:
        """(H, W) bool: which points of a resolution there are."""
        cell = np.ones((rows // len(self.inside),) * 2, dtype=bool)
        return np.kron(~np.isnan(self.inside).any(axis=2), cell)

    def asked(self, rows: int) -> np.ndarray:
        """(H, W) bool: points that exist and are not known; all that exist, if all are."""
        factor, asked = rows // len(self.inside), self.exists(rows)
        if factor % 2:  # the middle of a coarse cell is the middle of a fine one
            i, j = np.divmod(self.exact, self.inside.shape[1])
            asked[i * factor + factor // 2, j * factor + factor // 2] = False
        return asked if asked.any() else self.exists(rows)

    def seed(self, draw: int) -> int:
        """Seed of one of several draws: of the first, that of the protocol."""
        return self.noise_seed if draw == 0 else noise_seed(self.noise_seed, draw)


@dataclass(frozen=True)
class Outcome:
    """What one method made of all cases, in their order.

    Attributes:
        draws: of each case (K, H, W, C) in [0, 1], NaN where no point exists, observed values put
            in; K = 1 for what is no sample.
        rows: resolution. nfe, seconds: evaluations of the model and wall time per draw.
        how: the method in words. clip: whether values are limited to [0, 1].
    """

    draws: list[np.ndarray]
    rows: int
    nfe: float
    seconds: float
    how: str
    clip: bool = True

    @property
    def fields(self) -> list[np.ndarray]:
        """The first draw of each case."""
        return [draws[0] for draws in self.draws]

    def widened(self, factor: float | Sequence[float]) -> Outcome:
        """With the distance of the draws from their mean multiplied, limited to the range again."""
        draws = [metrics.widen(samples, factor) for samples in self.draws]
        draws = [np.clip(samples, 0, 1) for samples in draws] if self.clip else draws
        how = f"{self.how}, spread times {metrics.by_channel(factor)}"
        return replace(self, draws=draws, how=how)


class Cases:
    """Some fields of a split with their observations, and what methods make of them.

    Args:
        split: fields of one shape. pattern: which points are observed.
        indices: which fields, see `spread`. seed: mask and noise of field i depend on (seed, i).
        resolutions: for which the truth is wanted, beside the observed one.
        points: most queries of one model call. Small fields go together, which changes results by
            rounding only; a field with more queries is answered in blocks (`Result.how` says so).
    Raises:
        UserError: a resolution is no multiple of the rows of the fields.
    """

    def __init__(
        self, split: Split, pattern: Pattern, indices: Sequence[int], *, seed: int = 0,
        resolutions: Sequence[int] = (), points: int = POINTS, device: torch.device | str = "cpu",
    ):
        self.rows, self.columns, self.channels = split.example(0).shape
        self.points, self.device = points, torch.device(device)
        self.cases = [Case.open(split, i, pattern, seed, resolutions) for i in indices]
        self.frames, self.clip = frames_of(split), not is_standard(split)
        for i in range(0, len(self.cases) if self.frames > 1 else 0, self.frames):
            self.cases[i : i + self.frames] = _alike(self.cases[i : i + self.frames])

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __getitem__(self, k: int) -> Case:
        return self.cases[k]

    def subset(self, which: Sequence[int]) -> Cases:
        """Some of the cases, by their numbers here."""
        chosen = copy.copy(self)
        chosen.cases = [self.cases[k] for k in which]
        return chosen

    def shape(self, rows: int) -> tuple[int, int]:
        """Rows and columns of a resolution."""
        return rows, rows // self.rows * self.columns

    # --- methods ---------------------------------------------------------------------------------

    def sample(
        self, model: Model, *, rows: int | None = None, draws: int = 1, bar: str = "",
        **sampler: Any,
    ) -> Outcome:
        """What a model and a sampler give, in float32 on every machine.

        Args:
            model: runs in eval mode, whatever its mode is. draws: K. bar: name of a progress bar.
            sampler: `method` and its options, see `sparsefield.flow.sampling.sample`.
        """
        rows = rows or self.rows
        found: dict[int, np.ndarray] = {}
        evaluations = seconds = 0.0
        with progress.bar(f"{bar}, {rows} rows", draws * len(self), "picture", bool(bar)) as shown:
            for group in self.groups(rows):
                start = self._now()
                result = self._call(model, group, rows, draws, **sampler)
                seconds += self._now() - start
                evaluations += result.nfe * len(group)
                for k, values in zip(group, result.values, strict=True):
                    found[k] = np.stack([self._field(self.cases[k], own, rows) for own in values])
                shown.update(len(group) * draws)
        in_order = [found[k] for k in range(len(self))]
        return Outcome(in_order, rows, evaluations / len(self), seconds / (len(self) * draws),
                       result.how, self.clip)

    def warm_up(self, model: Model) -> None:
        """Run once what is compiled at its first call, so that it is not timed."""
        self._call(model, self.groups(self.rows)[0], self.rows, 1, method="mean")

    def interpolate(self, name: str, rows: int | None = None) -> Outcome:
        """What one of `BASELINES`, or ENLARGED, gives."""
        rows, start, draws = rows or self.rows, time.perf_counter(), []
        for k, case in enumerate(progress.over(self.cases, f"{name}, {rows} rows", "picture")):
            if name == ENLARGED:
                coarse = BASELINES["biharmonic"](*case.known, self.shape(self.rows), self.clip)
                fine = skimage.transform.resize(coarse, self.shape(rows), order=3, mode="edge")
                field = keep_observations(fine, *case.known, self.clip)
            elif name == KRIGED and len(case.exact) == 0:  # the only one that knows of noise
                field = self.subset([k]).sample(GaussianModel(), rows=rows, method="mean").fields[0]
            else:
                field = BASELINES[name](*case.known, self.shape(rows), self.clip)
            draws.append(np.where(case.exists(rows)[..., None], field, np.nan)[None])
        return Outcome(draws, rows, 0, (time.perf_counter() - start) / len(self), name, self.clip)

    def numbers(self, outcome: Outcome) -> list[dict[str, float]]:
        """Of each case `metrics.evaluate` of its first draw, and of two and more draws
        `metrics.evaluate_samples`, if there is a truth of that size; of a finer resolution also
        `psnr_base`, the PSNR of the field averaged down to the observed one."""
        factor = outcome.rows // self.rows
        results = []
        for case, draws in zip(self.cases, outcome.draws, strict=True):
            numbers, truth = {}, case.truths.get(outcome.rows)
            if factor > 1:
                averaged = metrics.block_sums(draws[0], factor) / factor**2
                numbers["psnr_base"] = metrics.psnr(averaged, case.truth)
            if truth is not None:
                numbers |= metrics.evaluate(draws[0], truth)
            if truth is not None and len(draws) > 1:
                known = case.exact if factor == 1 else np.empty(0, dtype=np.int64)
                numbers |= metrics.evaluate_samples(draws, truth, known)
            results.append(numbers)
        return results

    # --- batches ---------------------------------------------------------------------------------

    def groups(self, rows: int | None = None) -> list[list[int]]:
        """All cases, those with equally many points together, and with noise or without, as many
        as `points` allow; frames of a sequence together always."""
        by_shape: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for first in range(0, len(self.cases), self.frames):
            frames = range(first, first + self.frames)
            queries = max(np.count_nonzero(self.cases[k].asked(rows or self.rows)) for k in frames)
            case = self.cases[first]
            by_shape[int(queries), len(case.observed), len(case.exact)] += frames
        return [which[i : i + size] for (queries, *_), which in by_shape.items()
                for size in [max(1, self.points // (queries * self.frames)) * self.frames]
                for i in range(0, len(which), size)]

    def frames_at(self, which: Sequence[int]) -> Frames:
        """How some cases, whole sequences, follow each other."""
        if self.frames == 1:
            return SINGLE
        times = torch.tensor([self.cases[k].time for k in which], device=self.device)
        return Frames(self.frames, times)

    def spread(self, count: int) -> Cases:
        """At most `count` of them, at least one sequence, evenly spread."""
        chosen = spread(range(0, len(self), self.frames), max(1, count // self.frames))
        return self.subset([k + frame for k in chosen for frame in range(self.frames)])

    def asked(self, which: Sequence[int], rows: int | None = None) -> list[np.ndarray]:
        """Indices (N,) of the points that each of some cases asks for; the last again where a frame
        has fewer than others."""
        index = [np.flatnonzero(self.cases[k].asked(rows or self.rows)) for k in which]
        most = max(map(len, index))
        return [np.pad(own, (0, most - len(own)), mode="edge") for own in index]

    def noise_sd(self, which: Sequence[int]) -> Tensor:
        """(B, C) of the noise in the values of some cases, on the CPU."""
        return torch.from_numpy(np.stack([self.cases[k].noise_sd for k in which]))

    def stack(self, which: Sequence[int], rows: int | None = None) -> tuple[Tensor, ...]:
        """Queries (B, N, 2), observations (B, M, 2) and their values (B, M, C), on the device, of B
        cases with equally many points each."""
        cases = [self.cases[k] for k in which]
        rows = rows or self.rows
        grid = grid_coords(*self.shape(rows))
        queries = [grid[torch.from_numpy(index)] for index in self.asked(which, rows)]
        parts = queries, [case.coords for case in cases], [case.values for case in cases]
        return tuple(torch.stack(part).to(self.device) for part in parts)

    def _call(
        self, model: Model, which: list[int], rows: int, draws: int, **settings: Any
    ) -> Result:
        seeds = [[self.cases[k].seed(draw) for draw in range(draws)] for k in which]
        stacked, noise_sd = self.stack(which, rows), self.noise_sd(which)[:, None].to(self.device)
        with evaluating(model):
            return sample(model, *stacked, seeds=seeds,
                          noise_sd=noise_sd.expand_as(stacked[2]) if noise_sd.any() else None,
                          frames=self.frames_at(which),
                          domain=Domain.of_grid(self.rows, self.columns),
                          **{"clip": self.clip, "points": self.points, **settings})

    def _field(self, case: Case, values: Tensor, rows: int) -> np.ndarray:
        """Values (N, C) in [-1, 1] of the points that exist as a field, observations put in."""
        asked = case.asked(rows)
        result = np.full((*asked.shape, self.channels), np.nan, dtype=np.float32)
        result[asked] = to_unit(values[: np.count_nonzero(asked)].cpu().float().numpy())
        coords, known = (part[: len(case.exact)] for part in case.known)
        return keep_observations(result, coords, known, self.clip)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _alike(frames: list[Case]) -> list[Case]:
    """The frames of a sequence with equally many observations, those of the poorest."""
    most = min(len(case.observed) for case in frames)
    return [replace(case, observed=case.observed[
        np.linspace(0, len(case.observed) - 1, most).round().astype(int)]) for case in frames]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; every part of it then gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def spread(candidates: Sequence[int], count: int) -> list[int]:
    """At most `count` (else UserError: at least 1) of the candidates, evenly spread: neighbours in
    a file are often alike."""
    if count < 1:
        raise UserError(f"num_samples={count}: must be at least 1")
    places = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    return [int(candidates[place]) for place in places.round().astype(int)]


def spread_over(split: Split, count: int) -> list[int]:
    """At most `count` fields of a split, evenly spread; whole sequences, at least one."""
    frames = frames_of(split)
    firsts = spread(range(0, len(split), frames), max(count, 1) // frames or 1)
    return [first + frame for first in firsts for frame in range(frames)]


def with_finest_truth(split: Split, resolutions: Sequence[int]) -> list[int]:
    """The fields with a truth at the largest of the resolutions that any of them has."""
    for resolution in sorted(resolutions, reverse=True):
        known = [i for i in range(len(split)) if _finer(split, i, resolution) is not None]
        if known:
            return known
    return list(range(len(split)))


def _finer(split: Split, index: int, rows: int) -> np.ndarray | None:
    """The field with so many rows, in [-1, 1]; None if the source has no such truth. UserError if
    they are no multiple of those observed."""
    coarse = split.example(index)
    if rows < 1 or rows % len(coarse):
        raise UserError(f"--resolutions {rows}: give multiples of the {len(coarse)} rows that the "
                        "fields have, so that results can be averaged down to them")
    if rows == len(coarse):
        return coarse
    is_alike = coarse.shape[0] == coarse.shape[1] and not is_standard(split)
    return split.high_resolution(index, rows) if is_alike else None


# --- data of a checkpoint ------------------------------------------------------------------------


def _tell_of_learnt(opened: Data, config: dict[str, Any]) -> None:
    """Log how many test fields a model was trained on, where its training data are still there."""
    source, count = Path(config["data"]), 0
    if config["data"] in NAMES or not source.exists():
        return
    if isinstance(opened.test, FolderSplit) and source.is_dir():
        of_size = defaultdict(list)
        for path in filter(Path.is_file, source.rglob("*")):
            of_size[path.stat().st_size].append(path)
        count = sum(any(filecmp.cmp(found.path, path, shallow=False)
                        for path in of_size[found.path.stat().st_size])
                    for found in opened.test.found)
    elif isinstance(opened.test, ArraySplit) and source.is_file():
        with suppress(UserError):  # the training data are others by now
            learnt = open_as_configured(config).train
            count = len(opened.test.contents & getattr(learnt, "contents", frozenset()))
    if count:
        log.warning("WARNING: %s: %d of the fields to test on are among the data that the model "
                    "was trained on (%s), and scores will be too good: leave them out",
                    opened.name, count, source)


def open_test_data(
    checkpoint: dict[str, Any], data: str | None = None, test: str | None = None
) -> Data:
    """The data to test a model on.

    Args:
        checkpoint: as loaded. data: what to open instead of what the model was trained on.
        test: an .npz file, all of whose pictures are the test.
    Raises:
        UserError: the data are missing, changed since the training, or have other channels.
    """
    trained, config = checkpoint["data"], checkpoint["config"]
    if not (data or test) and checkpoint.get("shipped"):
        log.warning("tested on photos: the training data of the bundled weights (%s) are not part "
                    "of the project", config["data"])
        data = "photos"
    if named := test or data:
        bounds = np.ravel(trained["value_range"]).tolist()
        whites = (255.0, 65535.0, 1.0) if Path(named).is_dir() else (255.0,)
        of_pixels = [[0.0, white] * trained["channels"] for white in whites]
        is_same = test is None and are_one(named, config["data"])
        val_of, test_of = (config.get(f"data_{part}") if is_same else test
                           for part in ("val", "test"))
        opened = open_data(
            named, val=val_of, test=test_of, image_size=config["image_size"],
            frames=config.get("time", 1),
            # Of pixels the type of their numbers says it, unless it was said.
            value_range=None if config.get("standardise") or (
                bounds in of_pixels and not config.get("value_range")) else bounds,
            channels=trained["channels"] if trained["channels"] in (1, 3) else None,
            data_dir=config.get("data_dir"), units=config.get("units"),
            split_by=config.get("split_by"),
            variables=config.get("variables") if named.lower().endswith(ENDINGS) else None,
        )
        if config.get("standardise"):
            opened = standardised(opened)
        if not is_same:
            _tell_of_learnt(opened, config)
    else:
        for path in (config["data"], config["data_val"], config.get("data_test")):
            if path not in (None, *NAMES) and not Path(path).exists():
                raise UserError(f"the model was trained on {path}, which is not here: name the "
                                "data to test on with --data (`photos` needs no file)")
        opened = open_as_configured(config)
        if opened.fingerprint != trained["fingerprint"]:
            raise UserError(f"{config['data']} is not the data that the model was trained on (its "
                            "contents differ): restore it, or name the data to test on with --data")
    if opened.channels != trained["channels"]:
        raise UserError(f"{opened.name} has {opened.channels} channels, the model was trained with "
                        f"{trained['channels']}: choose other --data")
    learnt = Scale(tuple(map(tuple, trained["value_range"])), trained["units"],
                   trained.get("is_standard", False))
    is_alike = opened.value_range == learnt.value_range
    found = replace(opened.scale, units=opened.units or (learnt.units if is_alike else None))
    if found.describe() != learnt.describe():
        log.warning("WARNING: %s has values of %s, and the model was trained on %s", opened.name,
                    found.describe(), learnt.describe())
    return replace(opened, scale=found)
