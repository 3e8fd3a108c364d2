"""A model and a sampler give fields: the closed form once a field, the network at every angle.

What a model is to this module stands in `FlowModel`; sparsefield.model.field.FieldModel is one.
Symbols: B fields, K draws of each, N queries, M observations, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.flow.blocks import Block, cut_blocks, nearby, take
from sparsefield.flow.samplers import (
    SAMPLERS,
    angles,
    check_sampler,
    declared_nfe,
    sampler_options,
)

Progress = Callable[[int, int | None], None]
Noise = Callable[[Sequence[torch.Generator]], Tensor]  # one generator a draw

POINTS = 4096  # most queries of a field that one model call answers
HALO = 0.5  # queries seen around a block, of those answered


class FlowModel(Protocol):
    """Anything that says where a flow starts, and its slope F."""

    def closed_form(
        self, query_coords: Tensor, input_coords: Tensor, input_values: Tensor,
        noise_sd: Tensor | None = None, /,
    ) -> tuple[Any, Noise]:
        """What the observations say by themselves, and a source of draws (S, N, C)."""

    def start(self, form: Any, query_coords: Tensor, input_coords: Tensor, /) -> Any:
        """Where the flow starts: has mean, sd (B, N, C) and take(queries, observations)."""

    def outlook(self, start: Any, query_coords: Tensor, /) -> Any:
        """What `overview` needs of a field: None, or has repeat(times)."""

    def overview(self, z: Tensor, theta: Tensor, outlook: Any, /) -> Tensor:
        """z at all queries of a field, and what is seen of it as a whole: (B, N, C + ...)."""

    def prepare(
        self, start: Any, query_coords: Tensor, input_coords: Tensor, input_values: Tensor, /
    ) -> Any:
        """What places alone determine: has repeat(times)."""

    def __call__(self, seen: Tensor, theta: Tensor, prepared: Any, /) -> Tensor:
        """F (B, n, C) at theta (B,), of what `overview` gave, at the n points of `prepared`."""


@dataclass(frozen=True)
class Result:
    """What `sample` returns.

    Attributes:
        values: (B, K, N, C). mean: (B, N, C) posterior mean, which the first evaluation gives.
        start_sd: (B, N, C) of the draws that the flow starts from: of a model without a network
            that of the values.
        nfe: evaluations of the network for each draw, the first shared by all
            draws of a field. blocks: pieces in which the queries went through the model.
        how: one line for reports. variogram: that of the first field's closed form, in words.
    """

    values: Tensor
    mean: Tensor
    start_sd: Tensor
    nfe: int
    blocks: int
    how: str
    variogram: str


@torch.no_grad()
def sample(
    model: FlowModel,
    query_coords: Tensor,
    input_coords: Tensor,
    input_values: Tensor,
    *,
    seeds: Sequence[Sequence[int]],
    method: str = "heun",
    num_steps: int = 4,
    noise_sd: Tensor | None = None,
    clip: bool = True,
    points: int = POINTS,
    block_size: int | None = None,
    most_inputs: int | None = None,
    bfloat16: bool = False,
    progress: Progress | None = None,
    **options: float,
) -> Result:
    """Draws of every field at the query points, given the observations.

    Draw (i, k) depends on seeds[i][k], the points and the settings alone, within rounding (with the
    adaptive solver: within its tolerance; where a canvas sees the sd of observed cells, which is
    rounding itself, within 1e-3): not on the batch or the other draws. The closed form and
    its noise belong to places, so that blocks of a large field agree at their seams; the network
    sees a block with half as many queries around it.

    Args:
        query_coords: (B, N, 2) in sides of the square; not the observed ones, whose value is known.
        input_coords, input_values: (B, M, 2) and (B, M, C) in [-1, 1].
        seeds: B lists of K >= 1 integers. method: one of SAMPLERS, with options of its own.
        num_steps: equal steps in the angle. noise_sd: (B, M, C) of the values, None: exact.
        clip: limit the result to [-1, 1]. points: most queries of a field that one model call
            answers; bounds memory, of B fields and half as many queries around each block.
        block_size: queries answered together, at most and by default `points`.
        most_inputs: observations that a block sees; where there are more, the nearest, enlarged.
        bfloat16: products of the network in bfloat16 (autocast), as in training where the machine
            is fast at them; the closed form and its draws stay in float32.
        progress: called as progress(parts of the work so far, parts in all or None if unknown):
            pieces of the closed form and of the first draw, then model calls.
    Raises:
        UserError: an unknown sampler or option, or one out of range.
        ValueError: shapes that do not agree.
    """
    check_sampler(method, num_steps, options)
    block_size = points if block_size is None else min(points, block_size)
    for name, value in (("points", points), ("block_size", block_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: a model call takes at least 1")
    _check_shapes(query_coords, input_coords, input_values, seeds)
    draws = 1 if method == "mean" else len(seeds[0])
    generators = [[torch.Generator().manual_seed(int(seed)) for seed in own] for own in seeds]
    count = _Count(progress)

    def fresh() -> Tensor:
        return noise([generator for own in generators for generator in own[:draws]])

    form, noise = model.closed_form(query_coords, input_coords, input_values, noise_sd)
    count.step()
    start = model.start(form, query_coords, input_coords)
    first = torch.zeros_like(start.mean) if method == "mean" else fresh()
    count.step()
    slope = _Slope(model, start, (query_coords, input_coords, input_values), draws, points,
                   block_size, most_inputs, bfloat16, count)
    evaluations = declared_nfe(method, num_steps)
    if evaluations is not None:
        count.total = count.done + slope.calls_for(evaluations)
    z = SAMPLERS[method](slope, first, angles(num_steps), fresh, **options)
    values = start.mean[:, None] + start.sd[:, None] * z.unflatten(0, (-1, draws))
    mean = start.mean + start.sd * slope.at_start()
    if clip:
        values, mean = values.clamp(-1, 1), mean.clamp(-1, 1)
    how = _describe(method, num_steps, slope, options)
    variogram = getattr(noise, "variogram", "")
    return Result(values, mean, start.sd, slope.evaluations, len(slope.blocks), how, variogram)


class _Count:
    """Parts of the work that are done, and of how many; told to whoever asked."""

    def __init__(self, progress: Progress | None):
        self.progress, self.done = progress, 0
        self.total: int | None = None

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


class _Slope:
    """F(z, theta) of a model at fixed points, block by block and few draws at a time, counted.

    z is (B K, N, C), the draws of a field side by side. At theta = 0, where z says nothing, one
    evaluation a field serves all draws.
    """

    def __init__(
        self, model: FlowModel, start: Any, places: tuple[Tensor, Tensor, Tensor], draws: int,
        points: int, block_size: int, most_inputs: int | None, bfloat16: bool, count: _Count,
    ):
        self.model, self.start, self.draws, self.points = model, start, draws, points
        self.query_coords, self.input_coords, self.input_values = places
        halo = 0 if start.mean.shape[1] <= block_size else int(HALO * block_size)
        self.blocks = cut_blocks(self.query_coords, block_size, halo)
        self.prepared = [self._prepare(block, most_inputs) for block in self.blocks]
        self.bfloat16 = bfloat16
        with torch.autocast(self.query_coords.device.type, torch.bfloat16, enabled=bfloat16):
            self.outlook = model.outlook(start, self.query_coords)
        self._repeated: dict[int, Any] = {}
        self.count = count
        self.evaluations = 0
        self.first: Tensor | None = None

    def calls_for(self, evaluations: int) -> int:
        """Calls of the model in so many evaluations, the first of which all draws share."""
        return len(self.blocks) * (1 + (evaluations - 1) * len(self._parts(self.draws)))

    def _prepare(self, block: Block, most_inputs: int | None) -> Any:
        coords, input_coords, which = nearby(
            take(self.query_coords, block.index), self.input_coords, most_inputs
        )
        start = self.start.take(block.index, which)
        values = self.input_values if which is None else take(self.input_values, which)
        return self.model.prepare(start, coords, input_coords, values)

    def _parts(self, draws: int) -> list[range]:
        """The draws in groups that a model call holds."""
        fields = len(self.query_coords)
        held = max(1, self.points // (self.blocks[0].index.shape[1] * fields))
        return [range(k, min(k + held, draws)) for k in range(0, draws, held)]

    def __call__(self, z: Tensor, theta: float) -> Tensor:
        self.evaluations += 1
        if theta == 0:
            return self.at_start().repeat_interleave(self.draws, dim=0)
        return self._evaluate(z, theta, self.draws)

    def at_start(self) -> Tensor:
        """F(0, 0) of every field (B, N, C), computed once."""
        if self.first is None:
            self.first = self._evaluate(torch.zeros_like(self.start.mean), 0.0, 1)
        return self.first

    def _evaluate(self, z: Tensor, theta: float, draws: int) -> Tensor:
        by_field = z.unflatten(0, (-1, draws))                            # (B, K, N, C)
        slope = torch.zeros(by_field.shape, dtype=z.dtype, device=z.device)
        for part in self._parts(draws):
            size = len(part)
            some = by_field[:, part.start:part.stop].flatten(0, 1)        # (B size, N, C)
            angle = some.new_full((len(some),), theta, dtype=torch.float32)
            with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bfloat16):
                outlook = self.outlook and self.outlook.repeat(size)
                seen = self.model.overview(some, angle, outlook)
                for b, block in enumerate(self.blocks):
                    index = block.index.repeat_interleave(size, dim=0)
                    found = self.model(take(seen, index), angle, self._prepared_for(b, size))
                    self.count.step()
                    found = found[:, :block.core].to(z).unflatten(0, (-1, size))
                    core = block.index[:, None, :block.core, None].expand_as(found)
                    slope[:, part.start:part.stop].scatter_(2, core, found)
        return slope.flatten(0, 1)

    def _prepared_for(self, b: int, size: int) -> Any:
        """What block b determines, `size` times; kept for all evaluations of a small field."""
        if len(self.blocks) > 1:
            return self.prepared[b].repeat(size)
        if size not in self._repeated:
            self._repeated[size] = self.prepared[b].repeat(size)
        return self._repeated[size]


def _check_shapes(
    query_coords: Tensor, input_coords: Tensor, input_values: Tensor,
    seeds: Sequence[Sequence[int]],
) -> None:
    fields = len(query_coords)
    if not len(input_coords) == len(input_values) == len(seeds) == fields:
        raise ValueError(f"{fields} query sets, {len(input_coords)} observed sets, "
                         f"{len(input_values)} value sets and {len(seeds)} seeds: give one each")
    if input_coords.shape[1] != input_values.shape[1]:
        raise ValueError(f"{input_coords.shape[1]} observed points but "
                         f"{input_values.shape[1]} observed values")
    if len({len(own) for own in seeds}) != 1 or not seeds[0]:
        raise ValueError("give every field equally many seeds, at least one")


def _describe(method: str, num_steps: int, slope: _Slope, options: dict[str, float]) -> str:
    settings = {**sampler_options(method), **options}
    words = [method] + [f"{name} {value:g}" for name, value in settings.items()]
    if method not in ("mean", "adaptive"):
        words.append(f"{num_steps} steps")
    words.append(f"{slope.evaluations} evaluation{'s' if slope.evaluations > 1 else ''}")
    if len(slope.blocks) > 1:
        core = max(block.core for block in slope.blocks)
        seen = slope.blocks[0].index.shape[1] - slope.blocks[0].core
        words.append(f"queries in {len(slope.blocks)} blocks of {core} with {seen} around")
    return ", ".join(words)
