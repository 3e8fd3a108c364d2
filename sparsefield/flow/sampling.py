"""A model and a sampler give fields: `encode` once a field, `velocity` at every angle.

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
from sparsefield.flow.samplers import (
    SAMPLERS,
    angles,
    check_sampler,
    declared_nfe,
    sampler_options,
)
from sparsefield.gaussian import Posterior
from sparsefield.place import SINGLE, UNIT_SQUARE, Domain, Frames, Observed
from sparsefield.progress import Count

Progress = Callable[[int, int | None], None]
Noise = Callable[[Sequence[torch.Generator]], Tensor]  # one generator a draw

POINTS = 4096  # most queries of a field that go through the tokens together
LARGE = 256 * 256  # queries, beyond which seconds count more than the third digit


class FlowModel(Protocol):
    """Anything that knows where a flow starts, and its velocity F.

    Attributes:
        num_steps: of Heun's rule that its samples take where nobody says another number.
    """

    num_steps: int

    def encode(
        self, observed: Observed, queries: Tensor, *, points: int = POINTS,
        most_inputs: int | None = None, done: Count | None = None,
    ) -> Any:
        """What does not depend on a draw: has mean, sd (B, N, C), noise, posterior, blocks and
        repeat(times)."""

    def velocity(
        self, z: Tensor, theta: Tensor, state: Any, done: Count | None = None
    ) -> Tensor:
        """F (B, N, C) of z (B, N, C) at theta (B,)."""


@dataclass(frozen=True)
class Result:
    """What `sample` returns.

    Attributes:
        values: (B, K, N, C). mean: (B, N, C) posterior mean, which the first evaluation gives.
        start_sd: (B, N, C) of the draws that the flow starts from: of the closed form alone that
            of the values.
        nfe: evaluations of the network for each draw, the first shared by all draws of a field.
        blocks: pieces in which the queries went through the tokens, at least 1.
        how: one line for reports. posterior: the closed form that it starts from, or None.
    """

    values: Tensor
    mean: Tensor
    start_sd: Tensor
    nfe: int
    blocks: int
    how: str
    posterior: Posterior | None


@torch.no_grad()
def sample(
    model: FlowModel,
    query_coords: Tensor,
    input_coords: Tensor,
    input_values: Tensor,
    *,
    seeds: Sequence[Sequence[int]],
    method: str = "heun",
    num_steps: int | None = None,
    noise_sd: Tensor | None = None,
    domain: Domain = UNIT_SQUARE,
    covariates: int = 0,
    trend: int = 0,
    timed: bool = False,
    frames: Frames = SINGLE,
    counts: tuple[int, ...] | None = None,
    clip: bool = True,
    points: int = POINTS,
    most_inputs: int | None = None,
    bfloat16: bool = False,
    progress: Progress | None = None,
    **options: float,
) -> Result:
    """Draws of every field at the query points, given the observations.

    Draw (i, k) depends on seeds[i][k], the points and the settings alone, within rounding (with the
    adaptive solver: within its tolerance; where a U-Net sees the sd of observed cells, which is
    rounding itself, within 1e-3): not on the batch or the other draws. The closed form and
    its noise belong to places, so that blocks of a large field agree at their seams; the tokens
    of a block see half as many queries around it.

    Args:
        model: see FlowModel. query_coords: (B, N, 2) from (0, 0) on, see sparsefield.place.
        input_coords: (B, M, 2). input_values: (B, M, C) in [-1, 1].
        seeds: of K draws of each field. method: one of SAMPLERS. num_steps: of the sampler;
            None: the model's own number.
        noise_sd: (B, M, C) of the noise in the values; None: they are exact.
        domain: the rectangle that the observations stand for. covariates, trend, timed, frames,
            counts: see sparsefield.place.Observed.
        clip: limit the result to [-1, 1]. points: most queries of a field that go through the
            tokens together; bounds memory; 0: without tokens, see FieldModel.encode.
        most_inputs: observations that a block sees; where there are more, the nearest, enlarged.
        bfloat16: products of the velocity in bfloat16 (autocast), as in training where the machine
            is fast at them, and of more than LARGE queries those of all networks: the mean is then
            off by 1 % of the sd. The closed form stays in float32.
        progress: called as progress(parts of the work so far, parts in all of this phase or None):
            first of the closed form, then of the velocity.
    Raises:
        UserError: an unknown sampler or option, or one out of range.
        ValueError: shapes that do not agree.
    """
    num_steps = model.num_steps if num_steps is None else num_steps
    check_sampler(method, num_steps, options)
    if points < 0:
        raise UserError(f"points is {points}: a block takes at least 1, or 0 for no tokens")
    _check_shapes(query_coords, input_coords, input_values, seeds)
    draws = 1 if method == "mean" else len(seeds[0])
    generators = [[torch.Generator().manual_seed(int(seed)) for seed in own] for own in seeds]
    count = Count(progress)
    box = domain.around(query_coords, input_coords)
    observed = Observed(input_coords, input_values, noise_sd, domain, box, covariates, trend,
                        timed, frames, counts)
    is_large = query_coords.shape[1] > LARGE
    with torch.autocast(query_coords.device.type, torch.bfloat16, enabled=bfloat16 and is_large):
        state = model.encode(observed, query_coords, points=points, most_inputs=most_inputs,
                             done=count)

    def fresh() -> Tensor:
        drawn: Tensor = state.noise([g for own in generators for g in own[:draws]])
        return drawn

    first = torch.zeros_like(state.mean) if method == "mean" else fresh()
    velocity = _Velocity(model, state, draws, points, bfloat16, count)
    evaluations = declared_nfe(method, num_steps)
    if evaluations is not None:
        count.expect(velocity.calls_for(evaluations))
    z = SAMPLERS[method](velocity, first, angles(num_steps), fresh, **options)
    values = state.mean[:, None] + state.sd[:, None] * z.unflatten(0, (-1, draws))
    mean = state.mean + state.sd * velocity.at_start()
    if clip:
        values, mean = values.clamp(-1, 1), mean.clamp(-1, 1)
    how = _describe(method, num_steps, velocity, options)
    return Result(values, mean, state.sd, velocity.evaluations, velocity.blocks, how,
                  state.posterior)


class _Velocity:
    """F(z, theta) of a model for K draws of each field, few draws at a time, counted.

    z is (B K, N, C), the draws of a field side by side. At theta = 0, where z tells nothing, one
    evaluation a field serves all draws.
    """

    def __init__(self, model: FlowModel, state: Any, draws: int, points: int, bfloat16: bool,
                 count: Count):
        self.model, self.state, self.draws, self.bfloat16 = model, state, draws, bfloat16
        own = [block for block in state.blocks if block.fields == state.blocks[0].fields]
        self.count, self.blocks = count, max(1, len(own))  # of a field
        fields, queries, _ = state.mean.shape
        size = max((block.index.shape[1] for block in state.blocks), default=queries)
        held = max(1, points // (size * fields))
        self.parts = [range(k, min(k + held, draws)) for k in range(0, draws, held)]
        self.repeated: dict[int, Any] = {}
        self.evaluations = 0
        self.first: Tensor | None = None

    def calls_for(self, evaluations: int) -> int:
        """Parts of the work in so many evaluations, the first of which all draws share."""
        return len(self.state.blocks) * (1 + (evaluations - 1) * len(self.parts))

    def __call__(self, z: Tensor, theta: float) -> Tensor:
        self.evaluations += 1
        if theta == 0:
            return self.at_start().repeat_interleave(self.draws, dim=0)
        by_field = z.unflatten(0, (-1, self.draws))                       # (B, K, N, C)
        parts = [self._evaluate(by_field[:, part.start:part.stop].flatten(0, 1), theta, len(part))
                 .unflatten(0, (-1, len(part))) for part in self.parts]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def at_start(self) -> Tensor:
        """F(0, 0) of every field (B, N, C), computed once."""
        if self.first is None:
            self.first = self._evaluate(torch.zeros_like(self.state.mean), 0.0, 1)
        return self.first

    def _evaluate(self, z: Tensor, theta: float, times: int) -> Tensor:
        angle = z.new_full((len(z),), theta, dtype=torch.float32)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.model.velocity(z, angle, self._state_for(times), self.count).to(z)

    def _state_for(self, times: int) -> Any:
        """The state of so many draws; kept, of a small field, for all evaluations."""
        if self.blocks > 1:
            return self.state.repeat(times)
        if times not in self.repeated:
            self.repeated[times] = self.state.repeat(times)
        return self.repeated[times]


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


def _describe(method: str, num_steps: int, velocity: _Velocity, options: dict[str, float]) -> str:
    settings = {**sampler_options(method), **options}
    words = [method] + [f"{name} {value:g}" for name, value in settings.items()]
    if method not in ("mean", "adaptive"):
        words.append(f"{num_steps} steps")
    words.append(f"{velocity.evaluations} evaluation{'s' if velocity.evaluations > 1 else ''}")
    if velocity.blocks > 1:
        block = velocity.state.blocks[0]
        core = max(block.core for block in velocity.state.blocks)
        words.append(f"queries in {velocity.blocks} blocks of {core} with "
                     f"{block.index.shape[1] - block.core} around")
    return ", ".join(words)
