"""What V1 and V2 share: the closed form that they start from, tokens, order and decoder.

A subclass adds only what it does between tokens and decoder (`mix`). Everything that depends on
the points alone, not on the draw, is computed once by `prepare` and reused by every evaluation
of a sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield.model.embeddings import FourierFeatures, TimeEmbedding
from sparsefield.device import has_float64
from sparsefield.errors import UserError
from sparsefield.flow.blocks import take
from sparsefield.flow.path import END
from sparsefield.gaussian import condition
from sparsefield.gaussian.neighbours import gather_points, nearest
from sparsefield.model.ordering import check_order, token_order

PRIORS = ("fitted", "none")
FEATURE_LIMIT = 30.0  # in units of the closed form's sd: next to an observation sd is near 0

Noise = Callable[[Sequence[torch.Generator]], Tensor]


class ClosedForm(NamedTuple):
    """What the observations say before anything is learnt: the path is z = (x - mean) / sd.

    Attributes:
        mean, sd: (B, N, C) at the queries. spread: (B, N, 1), see sparsefield.gaussian.Answer.
        loo_sd, surprise: (B, M, C) at the observations, see sparsefield.gaussian.LeaveOneOut.
    """

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    surprise: Tensor

    def take(self, queries: Tensor, observations: Tensor | None) -> ClosedForm:
        """At some of the queries (B, n) and of the observations (B, m), None for all."""
        at_inputs = (self.loo_sd, self.surprise)
        if observations is not None:
            at_inputs = (take(part, observations) for part in at_inputs)
        return ClosedForm(*(take(part, queries) for part in self[:3]), *at_inputs)


class Prepared(NamedTuple):
    """What the points alone determine.

    Attributes:
        input_features: (B, M, F_in). query_features: (B, N, F_q): everything but z and the angle.
        order: (B, L) reading order of the tokens [context, queries], or None for as they are.
        input_coords, query_coords: (B, M, 2), (B, N, 2).
    """

    input_features: Tensor
    query_features: Tensor
    order: Tensor | None
    input_coords: Tensor
    query_coords: Tensor

    def repeat(self, times: int) -> Prepared:
        """Every field `times` times, side by side: for as many draws."""
        if times == 1:
            return self
        return Prepared(*(part if part is None else part.repeat_interleave(times, dim=0)
                          for part in self))


@torch.no_grad()
def fitted_form(
    query_coords: Tensor, input_coords: Tensor, input_values: Tensor, noise_sd: Tensor | None = None
) -> tuple[ClosedForm, Noise]:
    """The Gaussian posterior fitted to every field, and draws; see FieldModel.closed_form."""
    device = query_coords.device
    if not has_float64(device):  # which the fit needs: all of it is done on the CPU
        places = (query_coords, input_coords, input_values, noise_sd)
        form, noise = fitted_form(*(part if part is None else part.cpu() for part in places))
        return ClosedForm(*(part.to(device) for part in form)), _Brought(noise, device)
    posterior = condition(input_coords, input_values, noise_sd)
    answer, loo = posterior.at(query_coords), posterior.leave_one_out
    form = ClosedForm(answer.mean, answer.sd, answer.spread, loo.sd, loo.surprise)
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

    def prepare(self, form: ClosedForm, *places: Tensor) -> GaussianModel:
        return self

    def repeat(self, times: int) -> GaussianModel:
        return self

    def forward(self, z: Tensor, theta: Tensor, prepared: object) -> Tensor:
        return torch.zeros_like(z)


class FieldModel(nn.Module):
    """The slope F of the flow at the queries, given observations: the contract of every model.

    Args:
        channels: C. d_model: D.
        prior: what the flow starts from: with "fitted" the Gaussian posterior of the observations
            (sparsefield.gaussian), so that a network that says 0 is kriging; with "none"
            independent noise of the data's sd around 0.
        value_sd: sd of the data in [-1, 1], for prior "none".
        neighbours: how many nearest observations each query token holds; 0 for none.
        order: reading order of the tokens, one of sparsefield.model.ordering.ORDERS.
        num_frequencies, max_frequency: of the Fourier features, see FourierFeatures.
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
        neighbours: int = 24,
        order: str = "hilbert",
        num_frequencies: int = 64,
        max_frequency: float = 16.0,
    ):
        super().__init__()
        require_positive(channels=channels, d_model=d_model, num_frequencies=num_frequencies)
        if prior not in PRIORS:
            raise UserError(f"prior={prior!r} is unknown: choose one of {', '.join(PRIORS)}")
        if neighbours < 0:
            raise UserError(f"neighbours={neighbours}: give 0 (none) or more")
        check_order(order)
        self.prior, self.neighbours, self.order = prior, neighbours, order
        self.value_sd, self.channels = value_sd, channels
        self.fourier = FourierFeatures(num_frequencies, max_frequency)
        self.time_embedding = TimeEmbedding(d_model)
        known = 2 * channels * (prior != "none")  # a mean and a log sd of every channel
        input_width = self.fourier.width + channels + known
        query_width = self.fourier.width + channels + known + neighbours * (2 + channels)
        self.input_proj = projection(input_width, d_model)
        self.query_proj = projection(query_width, d_model)
        self.decoder = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_model),
            nn.GELU(),
            nn.Linear(d_model, channels),
        )
        nn.init.zeros_(self.decoder[-1].weight)  # so that training starts at the closed form
        nn.init.zeros_(self.decoder[-1].bias)

    def mix(self, context: Tensor, queries: Tensor, prepared: Prepared) -> Tensor:
        """Let tokens inform each other: (B, M, D), (B, N, D) to queries (B, N, D)."""
        raise NotImplementedError

    def forward(self, z: Tensor, theta: Tensor, prepared: Prepared) -> Tensor:
        """F(z, theta) at the queries.

        Args:
            z: (B, N, C), as sparsefield.flow.path.seen gives it. theta: (B,) in [0, pi/2].
            prepared: what `prepare` gave for the points.
        Returns:
            (B, N, C) float32.
        """
        time = self.time_embedding(theta / END)[:, None]                  # (B, 1, D)
        context = self.input_proj(prepared.input_features) + time         # (B, M, D)
        queries = torch.cat([z, prepared.query_features], dim=-1)         # (B, N, F)
        queries = self.query_proj(queries) + time                         # (B, N, D)
        queries = self.mix(context, queries, prepared)                    # (B, N, D)
        return self.decoder(queries).float()                              # (B, N, C)

    def closed_form(
        self, query_coords: Tensor, input_coords: Tensor, input_values: Tensor,
        noise_sd: Tensor | None = None,
    ) -> tuple[ClosedForm, Noise]:
        """What the flow starts from, and a source of draws z_0: (S, N, C), one a generator, the
        draws of a field side by side.

        Args:
            query_coords: (B, N, 2). input_coords: (B, M, 2). input_values: (B, M, C) in [-1, 1].
            noise_sd: (B, M, C) of the values; None: they are exact.
        """
        if self.prior == "none":
            return self._without_prior(query_coords, input_values)
        return fitted_form(query_coords, input_coords, input_values, noise_sd)

    def _without_prior(self, query_coords: Tensor, values: Tensor) -> tuple[ClosedForm, Noise]:
        mean = values.new_zeros(*query_coords.shape[:2], self.channels)
        sd = torch.full_like(values, self.value_sd)
        at_queries = mean, torch.full_like(mean, self.value_sd), mean[..., :1]
        form = ClosedForm(*at_queries, sd, values / sd)

        def noise(generators: Sequence[torch.Generator]) -> Tensor:
            draws = [torch.randn(mean.shape[1:], generator=g) for g in generators]
            return torch.stack(draws).to(mean)

        return form, noise

    @torch.no_grad()
    def prepare(
        self, form: ClosedForm, query_coords: Tensor, input_coords: Tensor, input_values: Tensor
    ) -> Prepared:
        """Everything that depends on the points alone; shapes as in `closed_form`."""
        inputs = [self.fourier(input_coords), input_values]
        queries = [self.fourier(query_coords)]
        if self.prior != "none":
            surprise = form.surprise.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
            inputs += [surprise, form.loo_sd.log()]
            queries += [form.mean, form.sd.log()]
        if self.neighbours:
            queries.append(self._nearest_observations(
                query_coords, input_coords, input_values, form
            ))
        return Prepared(
            torch.cat(inputs, dim=-1),
            torch.cat(queries, dim=-1),
            token_order(input_coords, query_coords, self.order),
            input_coords,
            query_coords,
        )

    def _nearest_observations(
        self, query_coords: Tensor, coords: Tensor, values: Tensor, form: ClosedForm
    ) -> Tensor:
        """Offsets (in mean spacings) and values (in sd from the mean): (B, N, K (2 + C))."""
        index, _ = nearest(query_coords, coords, self.neighbours)         # (B, N, K)
        spacing = coords.shape[1] ** -0.5
        offset = (gather_points(coords, index) - query_coords[:, :, None]) / spacing
        value = (gather_points(values, index) - form.mean[:, :, None]) / form.sd[:, :, None]
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


def reorder(tokens: Tensor, order: Tensor | None) -> Tensor:
    """Tokens (B, L, D) in reading order."""
    return tokens if order is None else tokens.gather(1, order[..., None].expand_as(tokens))


def restore(tokens: Tensor, order: Tensor | None) -> Tensor:
    """Undo `reorder`."""
    return tokens if order is None else reorder(tokens, order.argsort(dim=1))
