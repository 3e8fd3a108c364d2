"""What V1 and V2 share: the closed form, the canvas that improves it, tokens, order and decoder.

    closed form  ->  canvas: mean and sd where the flow starts
    z            ->  canvas: a first slope  ->  tokens  ->  mix  ->  F

A subclass adds only what it does between tokens and decoder (`mix`). Everything that depends on
the points alone, not on the draw, is computed once (`closed_form`, `start`, `prepare`) and reused
by every evaluation of a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield.device import has_float64
from sparsefield.errors import UserError
from sparsefield.flow.blocks import take
from sparsefield.flow.path import END
from sparsefield.flow.sampling import Noise
from sparsefield.gaussian import condition
from sparsefield.gaussian.neighbours import gather_points, nearest
from sparsefield.model.canvas import Canvas, Look, Outlook, holding, lattice_side, lookouts, sketch
from sparsefield.model.embeddings import FourierFeatures, TimeEmbedding
from sparsefield.model.ordering import Reading, check_order, read_along

PRIORS = ("fitted", "none")
FEATURE_LIMIT = 30.0  # in units of the closed form's sd: next to an observation sd is near 0


class ClosedForm(NamedTuple):
    """What the observations say before anything is learnt.

    Attributes:
        mean, sd: (B, N, C) at the queries. spread: (B, N, 1), see sparsefield.gaussian.Answer.
        loo_sd, surprise: (B, M, C) at the observations, see sparsefield.gaussian.LeaveOneOut.
        sketch: (B, F, n, n) the same on a lattice (sparsefield.model.canvas), or None.
    """

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    surprise: Tensor
    sketch: Tensor | None = None


class Start(NamedTuple):
    """Where the flow starts: the closed form, improved by the canvas. z = (x - mean) / sd.

    Attributes:
        mean, sd: (B, N, C) at the queries. loo_sd, surprise: (B, M, C), of the closed form.
        at_queries, at_inputs: (B, N, W), (B, M, W) features of the canvas; W = 0 without one.
        painted: (B, F, n, n) sketch and canvas, or None where z does not go through the canvas.
    """

    mean: Tensor
    sd: Tensor
    at_queries: Tensor
    loo_sd: Tensor
    surprise: Tensor
    at_inputs: Tensor
    painted: Tensor | None = None

    def take(self, queries: Tensor, observations: Tensor | None) -> Start:
        """At some of the queries (B, n) and of the observations (B, m), None for all."""
        at_queries = [take(part, queries) for part in (self.mean, self.sd, self.at_queries)]
        at_inputs = [part if observations is None else take(part, observations)
                     for part in (self.loo_sd, self.surprise, self.at_inputs)]
        return Start(*at_queries, *at_inputs)


class Prepared(NamedTuple):
    """What the points alone determine.

    Attributes:
        input_features: (B, M, F_in). query_features: (B, N, F_q): everything but z and the angle.
        reading: of the tokens [context, queries], or None for as they are.
        input_coords, query_coords: (B, M, 2), (B, N, 2).
    """

    input_features: Tensor
    query_features: Tensor
    reading: Reading | None
    input_coords: Tensor
    query_coords: Tensor

    def repeat(self, times: int) -> Prepared:
        """Every field `times` times, side by side: for as many draws."""
        if times == 1:
            return self
        tokens = [part.repeat_interleave(times, dim=0) for part in self[:2]]
        coords = [part.repeat_interleave(times, dim=0) for part in self[3:]]
        reading = self.reading and self.reading.repeat(times)
        return Prepared(tokens[0], tokens[1], reading, coords[0], coords[1])


@torch.no_grad()
def fitted_form(
    query_coords: Tensor, input_coords: Tensor, input_values: Tensor,
    noise_sd: Tensor | None = None, side: int | None = None,
) -> tuple[ClosedForm, Noise]:
    """The Gaussian posterior fitted to every field, and draws; see FieldModel.closed_form.

    Args:
        side: of the lattice to sketch; None: no sketch.
    """
    device = query_coords.device
    if not has_float64(device):  # which the fit needs: all of it is done on the CPU
        sd = None if noise_sd is None else noise_sd.cpu()
        form, noise = fitted_form(
            query_coords.cpu(), input_coords.cpu(), input_values.cpu(), sd, side
        )
        brought = [part if part is None else part.to(device) for part in form]
        return ClosedForm._make(brought), _Brought(noise, device)
    posterior = condition(input_coords, input_values, noise_sd)
    answer, loo = posterior.at(query_coords), posterior.leave_one_out
    form = ClosedForm(answer.mean, answer.sd, answer.spread, loo.sd, loo.z)
    if side is not None:
        there = posterior.at(lookouts(input_coords, side))
        form = form._replace(sketch=sketch(
            (there.mean, there.sd, there.spread), input_coords, input_values, loo.z
        ))
    return form, posterior.noise(query_coords)


class _Brought:
    """A source of noise whose draws are brought to a device."""

    def __init__(self, noise: Noise, device: torch.device):
        self.noise, self.device = noise, device
        self.variogram = getattr(noise, "variogram", "")

    def __call__(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.noise(generators).to(self.device)


class GaussianModel(nn.Module):
    """The closed form alone, with the contract of a FieldModel: a network that says 0."""

    closed_form = staticmethod(fitted_form)

    def start(self, form: ClosedForm, *places: Tensor) -> Start:
        return started(form)

    def outlook(self, start: Start, query_coords: Tensor) -> None:
        return None

    def overview(self, z: Tensor, theta: Tensor, outlook: None) -> Tensor:
        return z

    def prepare(self, start: Start, *places: Tensor) -> GaussianModel:
        return self

    def repeat(self, times: int) -> GaussianModel:
        return self

    def forward(self, z: Tensor, theta: Tensor, prepared: object) -> Tensor:
        return torch.zeros_like(z)


def started(form: ClosedForm) -> Start:
    """The closed form as it is."""
    return Start(form.mean, form.sd, form.mean[..., :0], form.loo_sd, form.surprise,
                 form.loo_sd[..., :0])


class FieldModel(nn.Module):
    """The slope F of the flow at the queries, given observations: the contract of every model.

    Args:
        channels: C. d_model: D.
        prior: what the flow starts from: with "fitted" the Gaussian posterior of the observations
            (sparsefield.gaussian), so that a network that says 0 is kriging; with "none"
            independent noise of the data's sd around 0.
        value_sd: sd of the data in [-1, 1], for prior "none".
        canvas_width: of the canvas (sparsefield.model.canvas), which improves the mean and sd that
            the flow starts from; 0: none. canvas_turns: symmetries of the data that it is
            averaged over. canvas_dropout: share of its channels that training drops, in [0, 1).
            canvas_flow_width: of its part that sees z; 0: none.
        neighbours: how many nearest observations each query token holds; 0 for none.
        order: reading order of the tokens, one of sparsefield.model.ordering.ORDERS.
        num_frequencies: of the Fourier features of places, 0 for none. max_frequency: see
            FourierFeatures.
    Attributes:
        sees_whole_draws: whether the canvas has a part that sees z, of all queries together.
    Raises:
        UserError: a value that no model can be built from, with the reason.
    """

    def __init__(
        self,
        *,
        channels: int,
        d_model: int,
        prior: str = "fitted",
        value_sd: float = 0.5,
        canvas_width: int = 0,
        canvas_turns: int = 8,
        canvas_dropout: float = 0.0,
        canvas_flow_width: int = 0,
        neighbours: int = 24,
        order: str = "hilbert",
        num_frequencies: int = 64,
        max_frequency: float = 16.0,
    ):
        super().__init__()
        require_positive(channels=channels, d_model=d_model)
        if prior not in PRIORS:
            raise UserError(f"prior={prior!r} is unknown: choose one of {', '.join(PRIORS)}")
        for name, size in (("neighbours", neighbours), ("canvas_width", canvas_width),
                           ("canvas_flow_width", canvas_flow_width),
                           ("num_frequencies", num_frequencies)):
            if size < 0:
                raise UserError(f"{name}={size}: give 0 (none) or more")
        if not 0 <= canvas_dropout < 1:
            raise UserError(f"canvas_dropout={canvas_dropout}: give a share in [0, 1)")
        check_order(order)
        self.prior, self.neighbours, self.order = prior, neighbours, order
        self.value_sd, self.channels = value_sd, channels
        self.canvas = None
        flow_width = canvas_flow_width if canvas_width else 0
        if canvas_width:
            self.canvas = Canvas(channels, canvas_width, canvas_turns, canvas_dropout, flow_width)
        self.sees_whole_draws = flow_width > 0
        self.fourier = FourierFeatures(num_frequencies, max_frequency) if num_frequencies else None
        self.time_embedding = TimeEmbedding(d_model)
        known = canvas_width + 2 * channels * (prior != "none")  # a mean and a log sd of channels
        places = self.fourier.width if self.fourier else 0
        self.input_proj = projection(places + channels + known, d_model)
        followed = channels + flow_width if flow_width else 0
        self.query_proj = projection(
            places + channels + followed + known + neighbours * (2 + channels), d_model
        )
        last = nn.Linear(d_model, channels)
        nn.init.zeros_(last.weight)  # so that training starts at the closed form
        nn.init.zeros_(last.bias)
        self.decoder = nn.Sequential(
            nn.LayerNorm(d_model), nn.Linear(d_model, d_model), nn.GELU(), last
        )

    def mix(self, context: Tensor, queries: Tensor, prepared: Prepared) -> Tensor:
        """Let tokens inform each other: (B, M, D), (B, N, D) to queries (B, N, D)."""
        raise NotImplementedError

    def forward(self, seen: Tensor, theta: Tensor, prepared: Prepared) -> Tensor:
        """F(z, theta) at the queries.

        Args:
            seen: (B, N, C + ...), what `overview` gave for all queries of the field, at these.
            theta: (B,) in [0, pi/2]. prepared: what `prepare` gave for the points.
        Returns:
            (B, N, C) float32.
        """
        time = self.time_embedding(theta / END)[:, None]                  # (B, 1, D)
        context = self.input_proj(prepared.input_features) + time         # (B, M, D)
        queries = torch.cat([seen, prepared.query_features], dim=-1)      # (B, N, F)
        queries = self.query_proj(queries) + time                         # (B, N, D)
        queries = self.mix(context, queries, prepared)                    # (B, N, D)
        slope = self.decoder(queries).float()                             # (B, N, C)
        return slope + self.first_slope(seen) if self.sees_whole_draws else slope

    def closed_form(
        self, query_coords: Tensor, input_coords: Tensor, input_values: Tensor,
        noise_sd: Tensor | None = None,
    ) -> tuple[ClosedForm, Noise]:
        """What the observations say by themselves, and a source of draws z_0: (S, N, C), one a
        generator, the draws of a field side by side.

        Args:
            query_coords: (B, N, 2). input_coords: (B, M, 2). input_values: (B, M, C) in [-1, 1].
            noise_sd: (B, M, C) of the values; None: they are exact.
        """
        side = self.lattice_side(input_coords.shape[1])
        if self.prior == "none":
            return self._without_prior(query_coords, input_coords, input_values, side)
        return fitted_form(query_coords, input_coords, input_values, noise_sd, side)

    def lattice_side(self, observations: int) -> int | None:
        """Cells a side of the canvas, None without one."""
        return None if self.canvas is None else lattice_side(observations)

    def _without_prior(
        self, query_coords: Tensor, coords: Tensor, values: Tensor, side: int | None
    ) -> tuple[ClosedForm, Noise]:
        def everywhere(count: int) -> tuple[Tensor, Tensor, Tensor]:
            mean = values.new_zeros(len(values), count, self.channels)
            return mean, torch.full_like(mean, self.value_sd), mean[..., :1]

        sd = torch.full_like(values, self.value_sd)
        form = ClosedForm(*everywhere(query_coords.shape[1]), sd, values / sd)
        if side is not None:
            form = form._replace(sketch=sketch(everywhere(side**2), coords, values, values / sd))

        def noise(generators: Sequence[torch.Generator]) -> Tensor:
            draws = [torch.randn(form.mean.shape[1:], generator=g) for g in generators]
            return torch.stack(draws).to(form.mean)

        return form, noise

    def start(self, form: ClosedForm, query_coords: Tensor, input_coords: Tensor) -> Start:
        """Where the flow starts: the closed form, improved by what the canvas says."""
        if self.canvas is None:
            return started(form)
        assert form.sketch is not None
        painted = self.canvas(form.sketch)                                # (B, 2 C + W, n, n)
        at_queries = self.canvas.look(painted, query_coords, holding(form.sketch))
        whole = None
        if self.sees_whole_draws:
            whole = torch.cat([form.sketch.float(), painted], dim=1)
        return Start(form.mean + form.sd * at_queries.shift, form.sd * at_queries.log_scale.exp(),
                     at_queries.features, form.loo_sd, form.surprise,
                     self.canvas.look(painted, input_coords).features, whole)

    def look(self, form: ClosedForm, query_coords: Tensor) -> Look:
        """What the canvas, which the model has, says at places (B, N, 2)."""
        assert self.canvas is not None and form.sketch is not None
        look: Look = self.canvas.look(
            self.canvas(form.sketch), query_coords, holding(form.sketch)
        )
        return look

    def outlook(self, start: Start, query_coords: Tensor) -> Outlook | None:
        """What `overview` needs to know of a field, whatever is drawn: has repeat(times)."""
        if start.painted is None:
            return None
        assert self.canvas is not None
        outlook: Outlook = self.canvas.outlook(start.painted, query_coords)
        return outlook

    def overview(self, z: Tensor, theta: Tensor, outlook: Outlook | None) -> Tensor:
        """z at all queries of a field (B, N, C) and, beside it, what the canvas says of it as a
        whole: a first slope (B, N, C) and features of it."""
        if outlook is None:
            return z
        assert self.canvas is not None
        return torch.cat([z, self.canvas.follow(z, theta, outlook)], dim=2)

    def first_slope(self, seen: Tensor) -> Tensor:
        """The part of an overview that says a slope, (B, N, C)."""
        return seen[..., self.channels : 2 * self.channels]

    def prepare(
        self, start: Start, query_coords: Tensor, input_coords: Tensor, input_values: Tensor
    ) -> Prepared:
        """Everything that depends on the points alone; shapes as in `closed_form`."""
        inputs, queries = [], []
        if self.fourier is not None:
            inputs.append(self.fourier(input_coords))
            queries.append(self.fourier(query_coords))
        inputs += [input_values, start.at_inputs]
        queries.append(start.at_queries)
        if self.prior != "none":
            surprise = start.surprise.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
            inputs += [surprise, start.loo_sd.log()]
            queries += [start.mean, start.sd.log()]
        if self.neighbours:
            queries.append(self._nearest_observations(
                query_coords, input_coords, input_values, start
            ))
        return Prepared(
            torch.cat(inputs, dim=-1),
            torch.cat(queries, dim=-1),
            read_along(input_coords, query_coords, self.order),
            input_coords,
            query_coords,
        )

    def _nearest_observations(
        self, query_coords: Tensor, coords: Tensor, values: Tensor, start: Start
    ) -> Tensor:
        """Offsets (in mean spacings) and values (in sd from the mean): (B, N, K (2 + C))."""
        index, _ = nearest(query_coords, coords, self.neighbours)         # (B, N, K)
        spacing = coords.shape[1] ** -0.5
        offset = (gather_points(coords, index) - query_coords[:, :, None]) / spacing
        value = (gather_points(values, index) - start.mean[:, :, None]) / start.sd[:, :, None]
        value = value.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        return torch.cat([offset, value], dim=-1).flatten(2)


def projection(width: int, d_model: int) -> nn.Module:
    """Token features (..., width) to (..., d_model), by a hidden layer of 4 d_model."""
    return nn.Sequential(
        nn.Linear(width, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
    )


def require_positive(**sizes: int) -> None:
    """Raises UserError naming the first size that is not at least 1."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
