"""The contract of a model, and what V1 and V2 share.

    state = model.encode(observed, queries)     all that does not depend on the draw
    F     = model.velocity(z, theta, state)     the velocity of the flow at the queries

    closed form -> grid U-Nets: mean and sd where the flow starts
    z           -> grid U-Net: a first velocity -> tokens -> mix -> F

A subclass adds what it does between tokens and decoder (`mix`), and is known by its name from then
on: to training, `load` and the evaluations.

Symbols: B fields, M observations, N queries, C channels, D d_model, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield.device import has_float64
from sparsefield.errors import UserError
from sparsefield.flow.path import END
from sparsefield.flow.sampling import POINTS, Noise
from sparsefield.gaussian import Answer, LeaveOneOut, Posterior, condition
from sparsefield.model.blocks import Block, cut_blocks, most_in_a_block, nearby, take
from sparsefield.model.grid_unet import FlowContext, GridUNets, Lattice, grid_features
from sparsefield.model.tokens import (
    FourierFeatures,
    ScanOrder,
    TimeEmbedding,
    check_order,
    gather_points,
    nearest,
    scan_order,
)
from sparsefield.place import Observed
from sparsefield.progress import Count

STEPS = {"fitted": 2, "none": 8}  # of Heun's rule, by prior; see docs/models.md
TIME_STARTS = ("frame", "spacetime")
FEATURE_LIMIT = 30.0  # in units of the closed form's sd: next to an observation sd is near 0
HALO = 0.5  # queries seen around a block, of those answered

MODELS: dict[str, type[FieldModel]] = {}  # by name; a class enters when it is defined


class ClosedForm(NamedTuple):
    """What the observations tell before anything is learnt.

    Attributes:
        mean, sd: (B, N, C) at the queries. loo_sd, loo_z: (B, M, C) at the observations, see
            sparsefield.gaussian.LeaveOneOut. features: (B, F, h, w) of the lattice, or None.
        noise: a source of draws z_0, or None. posterior: that it comes from, or None.
    """

    mean: Tensor
    sd: Tensor
    loo_sd: Tensor
    loo_z: Tensor
    features: Tensor | None = None
    noise: Noise | None = None
    posterior: Posterior | None = None

    def part(self, rows: slice) -> ClosedForm:
        """Of some of the fields, without the source of draws."""
        return self._each(lambda x: x[rows])

    def to(self, device: torch.device) -> ClosedForm:
        """On a device, its draws as well."""
        draw, noise = self.noise, None
        if draw is not None:
            def noise(generators: Sequence[torch.Generator]) -> Tensor:
                return draw(generators).to(device)
        found = self._each(lambda x: x.to(device))
        return found._replace(noise=noise, posterior=self.posterior)

    def _each(self, change: Callable[[Tensor], Tensor]) -> ClosedForm:
        features = None if self.features is None else change(self.features)
        return ClosedForm(change(self.mean), change(self.sd), change(self.loo_sd),
                          change(self.loo_z), features)


class Start(NamedTuple):
    """Where the flow starts: the closed form, improved by the U-Nets. z = (x - mean) / sd.

    Attributes:
        mean, sd: (B, N, C). at_queries, at_inputs: (B, N, W), (B, M, W) features of the U-Nets,
            W = 0 without any. output: (B, F, h, w) of the U-Nets, or None.
    """

    mean: Tensor
    sd: Tensor
    at_queries: Tensor
    at_inputs: Tensor
    output: Tensor | None = None


@dataclass(frozen=True)
class TokenBlock:
    """Tokens of some queries, the first `core` of which are answered, and of observations.

    Attributes:
        fields: whose they are, of those of a state. index: (B, n), which queries. core: as in
            `Block`.
        input_features: (B, m, F_in). query_features: (B, n, F_q): all but z and the angle.
        scan: order of the tokens [context, queries], or None for as they are.
        input_coords, query_coords: (B, m, 2), (B, n, 2).
    """

    fields: slice
    index: Tensor
    core: int
    input_features: Tensor
    query_features: Tensor
    scan: ScanOrder | None
    input_coords: Tensor
    query_coords: Tensor

    def repeat(self, times: int) -> TokenBlock:
        """Every field `times` times, side by side: for as many draws."""
        def wide(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, dim=0)

        ends = (end and times * end for end in (self.fields.start, self.fields.stop))
        return TokenBlock(slice(*ends), wide(self.index), self.core, wide(self.input_features),
                          wide(self.query_features), self.scan and self.scan.repeat(times),
                          wide(self.input_coords), wide(self.query_coords))


class State(NamedTuple):
    """What a model knows of fields before it sees a draw.

    Attributes:
        mean, sd: (B, N, C), where the flow starts: x = mean + sd z.
        noise: (generators, one a draw) -> z_0 (S, N, C), the draws of a field side by side; None
            where the closed form was given. posterior: the closed form, or None.
        context, lattice: of the flow's U-Net, or None. blocks: of the tokens.
    """

    mean: Tensor
    sd: Tensor
    noise: Noise | None = None
    posterior: Posterior | None = None
    context: FlowContext | None = None
    lattice: Lattice | None = None
    blocks: Sequence[TokenBlock] = ()

    def repeat(self, times: int) -> State:
        """What `velocity` needs, every field `times` times, side by side: for as many draws."""
        if times == 1:
            return self
        return self._replace(context=self.context and self.context.repeat(times),
                             blocks=[block.repeat(times) for block in self.blocks])


class GaussianModel(nn.Module):
    """The closed form alone: a network that predicts 0."""

    num_steps, time = 1, 1

    def encode(
        self, observed: Observed, queries: Tensor, *, points: int = POINTS,
        most_inputs: int | None = None, done: Count | None = None,
    ) -> State:
        form = fitted_form(observed, queries, None, done, scored=False)
        return State(form.mean, form.sd, form.noise, form.posterior)

    def velocity(self, z: Tensor, theta: Tensor, state: State, done: Count | None = None) -> Tensor:
        return torch.zeros_like(z)


@torch.no_grad()
def fitted_form(
    observed: Observed, queries: Tensor, lattice: Lattice | None, done: Count | None = None,
    *, scored: bool = True,
) -> ClosedForm:
    """The Gaussian posterior fitted to every field, with a source of draws.

    Args:
        queries: (B, N, 2). lattice: of the grid features; None: none. scored: with what the other
            observations predict for each; else its place is empty.
    """
    if not has_float64(queries.device):  # which the fit needs: all of it is done on the CPU
        form = fitted_form(observed.cpu(), queries.cpu(), lattice, done, scored=scored)
        return form.to(queries.device)
    asked = _asked(observed, queries, lattice)
    parts = [_answered(own, [places[rows] for places in asked], done, scored)
             for rows, own in observed.alike()]

    def noise(generators: Sequence[torch.Generator]) -> Tensor:
        count = len(generators) // len(parts)
        return torch.cat([part.noise(generators[k * count : (k + 1) * count])
                          for k, part in enumerate(parts)])

    answers = [Answer(*map(torch.cat, zip(*each, strict=True)))
               for each in zip(*(part.answers for part in parts), strict=True)]
    loo_sd, loo_z = (_filled([field for part in parts for field in part.loo[k]], observed)
                     for k in (1, 2))
    return _closed_form(answers, observed, loo_sd, loo_z, lattice, noise,
                        parts[0].posterior if len(parts) == 1 else None)


@torch.no_grad()
def spacetime_form(
    observed: Observed, queries: Tensor, lattice: Lattice | None, done: Count | None = None
) -> ClosedForm:
    """One Gaussian posterior of all frames of each sequence, with time as a further coordinate
    whose scale is fitted; arguments as in `fitted_form`. A draw of a sequence is that of the
    generator of its first frame."""
    if not has_float64(queries.device):
        return spacetime_form(observed.cpu(), queries.cpu(), lattice, done).to(queries.device)
    frames = observed.frames
    places = [frames.in_time(each) for each in _asked(observed, queries, lattice)]
    part = _answered(observed.in_time(), places, done)
    answers = [Answer(*map(frames.apart, answer)) for answer in part.answers]
    loo_sd, loo_z = (frames.apart(x) if observed.counts is None else
                     _filled(x[0].split(observed.counts), observed) for x in part.loo[1:])

    def noise(generators: Sequence[torch.Generator]) -> Tensor:
        draws = len(generators) // len(queries)
        first = [g for b in range(0, len(queries), frames.count)
                 for g in generators[b * draws : (b + 1) * draws]]
        drawn = part.noise(first).unflatten(0, (-1, draws))               # (B / T, K, T N, C)
        return drawn.unflatten(2, (frames.count, -1)).transpose(1, 2).flatten(0, 2)

    return _closed_form(answers, observed, loo_sd, loo_z, lattice, noise, part.posterior)


class _Answered(NamedTuple):
    """What a posterior tells: `answers` at each of what is asked for, draws at the first."""

    answers: list[Answer]
    loo: LeaveOneOut
    noise: Noise
    posterior: Posterior


def _asked(observed: Observed, queries: Tensor, lattice: Lattice | None) -> list[Tensor]:
    """The queries and, with a lattice, its cells."""
    return [queries] if lattice is None else [
        queries, lattice.cell_queries(observed.coords, observed.there)]


def _answered(
    observed: Observed, asked: list[Tensor], done: Count | None, scored: bool = True
) -> _Answered:
    coords, values, noise_sd, domain, _, covariates, trend, timed, *_ = observed
    posterior = condition(coords, values, noise_sd, domain=domain, covariates=covariates,
                          trend=trend, timed=timed)
    noise, every = posterior.noise(asked[0], done), torch.cat(asked, dim=1)
    if done is not None:
        done.expect(posterior.parts(every) + noise.parts)
    each = (x.split([places.shape[1] for places in asked], dim=1)
            for x in posterior.at(every, done))
    answers = [Answer(*parts) for parts in zip(*each, strict=True)]
    loo = posterior.leave_one_out if scored else LeaveOneOut(*(values[:, :0] for _ in range(3)))
    return _Answered(answers, loo, noise, posterior)


def _filled(fields: Sequence[Tensor], observed: Observed) -> Tensor:
    """(B, M, C) of observations of fields (m, C), filled up with zeros."""
    most = observed.coords.shape[1] if observed.counts else 0  # else as they are
    return torch.stack([nn.functional.pad(x, (0, 0, 0, max(0, most - len(x)))) for x in fields])


def _closed_form(
    answers: list[Answer], observed: Observed, loo_sd: Tensor, loo_z: Tensor,
    lattice: Lattice | None, noise: Noise, posterior: Posterior | None,
) -> ClosedForm:
    features = None if lattice is None else grid_features(answers[1], observed, loo_z, lattice)
    return ClosedForm(answers[0].mean, answers[0].sd, loo_sd, loo_z, features, noise, posterior)


class FieldModel(nn.Module):
    """The velocity F of the flow at the queries, given observations: the base of every model.

    Args:
        channels: C. d_model: D.
        prior: what the flow starts from: with "fitted" the Gaussian posterior of the observations
            (sparsefield.gaussian), so that a network that predicts 0 is kriging; with "none"
            independent noise of the data's sd around 0.
        value_sd: sd of the data in [-1, 1], for prior "none".
        unet_width: of the grid U-Nets (sparsefield.model.grid_unet), which improve the mean and sd
            that the flow starts from; 0: none. symmetries: of the data, over which they are
            averaged. unet_dropout: share of their channels that training drops, in [0, 1).
            flow_unet_width: of the one that sees z; 0: none.
        neighbours: how many nearest observations each query token holds; 0 for none.
        order: scan order of the tokens, one of sparsefield.model.tokens.ORDERS.
        num_frequencies: of the Fourier features of places, 0 for none. max_frequency: see
            FourierFeatures.
        time: frames of a sequence that it learns from; 1: it knows single fields alone.
        time_start: what a sequence starts from: "frame", the closed form of every frame alone, or
            "spacetime", that of all its observations. time_reader: name of what reads frames along
            time, see sparsefield.model.readers. time_scale: of "spacetime" in training: sides of
            the domain that a step counts as; in use it is fitted.
    Raises:
        UserError: a value that no model can be built from, with the reason.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        MODELS[cls.__name__] = cls

    def __init__(
        self, *, channels: int, d_model: int, prior: str = "fitted", value_sd: float = 0.5,
        unet_width: int = 0, symmetries: int = 8, unet_dropout: float = 0.0,
        flow_unet_width: int = 0, neighbours: int = 24, order: str = "hilbert",
        num_frequencies: int = 64, max_frequency: float = 16.0, time: int = 1,
        time_start: str = "frame", time_reader: str = "gru", time_scale: float = 0.0,
    ):
        super().__init__()
        require_positive(channels=channels, d_model=d_model, time=time)
        if time_start not in TIME_STARTS:
            raise UserError(f"time_start={time_start!r} is unknown: choose one of "
                            f"{', '.join(TIME_STARTS)}")
        self.time, self.time_start, self.time_scale = time, time_start, time_scale
        if prior not in STEPS:
            raise UserError(f"prior={prior!r} is unknown: choose one of {', '.join(STEPS)}")
        for name, size in {"neighbours": neighbours, "unet_width": unet_width,
                           "flow_unet_width": flow_unet_width,
                           "num_frequencies": num_frequencies}.items():
            if size < 0:
                raise UserError(f"{name}={size}: give 0 (none) or more")
        require_share(unet_dropout=unet_dropout)
        check_order(order)
        self.prior, self.neighbours, self.order = prior, neighbours, order
        self.num_steps = STEPS[prior]
        self.value_sd, self.channels = value_sd, channels
        flow_width = flow_unet_width if unet_width else 0
        self.unet = None
        if unet_width:
            self.unet = GridUNets(channels, unet_width, symmetries, unet_dropout, flow_width,
                                  time_reader if time > 1 else None)
        self.has_flow_unet = flow_width > 0
        self.fourier = FourierFeatures(num_frequencies, max_frequency) if num_frequencies else None
        self.time_embedding = TimeEmbedding(d_model)
        known = unet_width + 2 * channels * (prior != "none")  # a mean and a log sd of channels
        places = self.fourier.width if self.fourier else 0
        seen = channels + (channels + flow_width if flow_width else 0)
        self.input_proj = projection(places + channels + known, d_model)
        self.query_proj = projection(seen + places + known + neighbours * (2 + channels), d_model)
        last = nn.Linear(d_model, channels)
        nn.init.zeros_(last.weight)  # so that training starts at the closed form
        nn.init.zeros_(last.bias)
        self.decoder = nn.Sequential(
            nn.LayerNorm(d_model), nn.Linear(d_model, d_model), nn.GELU(), last
        )

    @property
    def is_still(self) -> bool:
        """Whether its velocity is 0 everywhere, as that of a flow that has not been trained: its
        samples are Gaussian, and tokens need not be read."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        return not (self.has_flow_unet or bool(last.weight.any()) or bool(last.bias.any()))

    def mix(self, context: Tensor, queries: Tensor, block: TokenBlock) -> Tensor:
        """Let tokens inform each other: (B, m, D), (B, n, D) to queries (B, n, D)."""
        raise NotImplementedError

    # --- what does not depend on the draw --------------------------------------------------------

    def encode(
        self, observed: Observed, queries: Tensor, *, form: ClosedForm | None = None,
        answered: Tensor | None = None, points: int = POINTS, most_inputs: int | None = None,
        done: Count | None = None,
    ) -> State:
        """All that does not depend on the draw.

        Args:
            queries: (B, N, 2), where a draw is known. form: the closed form there, if it is at
                hand. answered: (B, n), the queries at which the velocity is wanted; None: all.
            points: most queries in a block of tokens; 0: without tokens, so that the velocity is
                that of the flow's U-Net. most_inputs: observations that a block sees;
                where there are more, the nearest, enlarged. done: called after each part of it.
        """
        if form is None:
            form = self.closed_form(observed, queries, done)
        lattice = self.lattice(observed)
        with torch.no_grad():  # the flow does not train where it starts
            start = self.start(form, observed, queries)
        context = None
        if self.has_flow_unet:
            assert self.unet is not None and form.features is not None
            assert start.output is not None and lattice is not None
            context = self.unet.flow_context(form.features, start.output, queries, lattice,
                                             observed.frames)
        is_idle = answered is None and not self.training and self.is_still
        if points == 0 or is_idle:
            if context is None and not is_idle:
                raise UserError("the tokens of this model cannot be left out: it has no grid U-Net "
                                "for its flow (FLOW_UNET_WIDTH)")
            return State(start.mean, start.sd, form.noise, form.posterior, context, lattice)
        tokens = []
        for rows, own in observed.alike():
            if answered is not None:
                blocks = [Block(answered, answered.shape[1])]
            else:
                count, observations = queries.shape[1], own.coords.shape[1]
                size = most_in_a_block(count, observations, points, most_inputs)
                blocks = cut_blocks(queries[rows], size,
                                    halo=0 if count <= size else int(HALO * size))
            tokens += [self._tokens(block, rows, start, form, own, queries[rows], most_inputs)
                       for block in blocks]
        return State(start.mean, start.sd, form.noise, form.posterior, context, lattice, tokens)

    def lattice(self, observed: Observed) -> Lattice | None:
        """The lattice of the U-Nets, None without any."""
        if self.unet is None:
            return None
        return Lattice.of(observed.usual_count, observed.domain, observed.box)

    def closed_form(
        self, observed: Observed, queries: Tensor, done: Count | None = None
    ) -> ClosedForm:
        """What the observations tell by themselves, at queries (B, N, 2)."""
        if self.prior == "none":
            return self._without_prior(observed, queries)
        in_time = self.time_start == "spacetime" and observed.frames.count > 1
        form = spacetime_form if in_time else fitted_form
        return form(observed, queries, self.lattice(observed), done)

    def _without_prior(self, observed: Observed, queries: Tensor) -> ClosedForm:
        lattice, values = self.lattice(observed), observed.values

        def everywhere(count: int) -> tuple[Tensor, Tensor, Tensor]:
            mean = values.new_zeros(len(values), count, self.channels)
            return mean, torch.full_like(mean, self.value_sd), mean[..., :1]

        mean, sd, _ = everywhere(queries.shape[1])
        loo_sd = torch.full_like(values, self.value_sd)
        features = None
        if lattice is not None:
            features = grid_features(everywhere(lattice.height * lattice.width), observed,
                                     values / loo_sd, lattice)

        def noise(generators: Sequence[torch.Generator]) -> Tensor:
            return torch.stack([torch.randn(mean.shape[1:], generator=g)
                                for g in generators]).to(mean)

        return ClosedForm(mean, sd, loo_sd, values / loo_sd, features, noise)

    def start(self, form: ClosedForm, observed: Observed, queries: Tensor) -> Start:
        """Where the flow starts: the closed form, improved by the U-Nets."""
        if self.unet is None:
            return Start(form.mean, form.sd, form.mean[..., :0], form.loo_sd[..., :0])
        lattice, features = self.lattice(observed), form.features
        assert lattice is not None and features is not None
        output = self.unet(features, observed.frames)                     # (B, 2 C + W, h, w)
        there = self.unet.at(output, queries, lattice, mask=features[:, :1])
        at_inputs = self.unet.at(output, observed.coords, lattice).features
        return Start(form.mean + form.sd * there.shift, form.sd * there.log_scale.exp(),
                     there.features, at_inputs, output)

    def _tokens(
        self, block: Block, rows: slice, start: Start, form: ClosedForm, observed: Observed,
        queries: Tensor, most_inputs: int | None,
    ) -> TokenBlock:
        """Tokens of the queries of a block, and of the observations that it sees; rows: which of
        the fields of the start and the form these are."""
        coords, input_coords, which = nearby(
            take(queries, block.index), observed.coords, most_inputs
        )
        of_inputs = [observed.values, *(part[rows, : observed.values.shape[1]] for part in (
            start.at_inputs, form.loo_z, form.loo_sd))]
        if which is not None:
            of_inputs = [take(part, which) for part in of_inputs]
        values, at_inputs, loo_z, loo_sd = of_inputs
        mean, sd, at_queries = (take(part[rows], block.index)
                                for part in (start.mean, start.sd, start.at_queries))
        inputs, asked = [values, at_inputs], [at_queries]
        if self.fourier is not None:
            inputs.insert(0, self.fourier(input_coords))
            asked.insert(0, self.fourier(coords))
        if self.prior != "none":
            inputs += [loo_z.clamp(-FEATURE_LIMIT, FEATURE_LIMIT), loo_sd.log()]
            asked += [mean, sd.log()]
        if self.neighbours:
            spacing = (observed.domain.spacing(observed.coords.shape[1]) if which is None
                       else input_coords.shape[1] ** -0.5)  # then enlarged to the unit square
            asked.append(self._nearest_observations(coords, input_coords, values, mean, sd,
                                                    spacing))
        return TokenBlock(rows, block.index, block.core, torch.cat(inputs, dim=-1),
                          torch.cat(asked, dim=-1), scan_order(input_coords, coords, self.order),
                          input_coords, coords)

    def _nearest_observations(
        self, coords: Tensor, input_coords: Tensor, values: Tensor, mean: Tensor, sd: Tensor,
        spacing: float,
    ) -> Tensor:
        """Offsets (in mean distances) and values (in sd from the mean): (B, n, K (2 + C))."""
        index = nearest(coords, input_coords, self.neighbours)            # (B, n, K)
        offset = (gather_points(input_coords, index) - coords[:, :, None]) / spacing
        value = (gather_points(values, index) - mean[:, :, None]) / sd[:, :, None]
        value = value.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        return torch.cat([offset, value], dim=-1).flatten(2)

    # --- what does -------------------------------------------------------------------------------

    def velocity(self, z: Tensor, theta: Tensor, state: State, done: Count | None = None) -> Tensor:
        """F(z, theta) at the queries that `encode` was asked to answer.

        Args:
            z: (B, N, C) at all queries. theta: (B,) in [0, pi/2]. done: called after each block.
        Returns:
            (B, N, C) float32, or (B, n, C) with `answered`.
        """
        seen, whole = z, torch.zeros_like(z)                              # (B, N, C)
        if state.context is not None:
            assert self.unet is not None and state.lattice is not None
            first = self.unet.velocity(z, theta, state.context, state.lattice)
            seen = torch.cat([z, first], dim=2)                           # (B, N, 2 C + W)
            whole = first[..., : self.channels]  # where there are no tokens
        for block in state.blocks:
            answer = self(take(seen[block.fields], block.index), theta[block.fields], block)
            answer = answer[:, : block.core]                              # (b, n, C)
            if done is not None:
                done()
            if len(state.blocks) == 1 and len(answer) == len(z):
                return answer
            index = block.index[:, : block.core, None].expand_as(answer)
            whole[block.fields].scatter_(1, index, answer.to(whole))
        return whole

    def forward(self, seen: Tensor, theta: Tensor, block: TokenBlock) -> Tensor:
        """F at the queries of a block, (B, n, C) float32.

        Args:
            seen: (B, n, C + ...): z and, with a flow U-Net, its velocity and features.
        """
        time = self.time_embedding(theta / END)[:, None]                  # (B, 1, D)
        context = self.input_proj(block.input_features) + time            # (B, m, D)
        queries = torch.cat([seen, block.query_features], dim=-1)         # (B, n, F)
        queries = self.query_proj(queries) + time                         # (B, n, D)
        queries = self.mix(context, queries, block)                       # (B, n, D)
        velocity = self.decoder(queries).float()                          # (B, n, C)
        if self.has_flow_unet:
            velocity = velocity + seen[..., self.channels : 2 * self.channels]
        return velocity


def projection(width: int, d_model: int) -> nn.Module:
    """Token features (..., width) to (..., d_model), by a hidden layer of 4 d_model."""
    return nn.Sequential(nn.Linear(width, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))


def require_positive(**sizes: int) -> None:
    """Raises UserError naming the first size that is not at least 1."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")


def require_share(**shares: float) -> None:
    """Raises UserError naming the first that is not in [0, 1)."""
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"{name}={value}: give a share in [0, 1)")
