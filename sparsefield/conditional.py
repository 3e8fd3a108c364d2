"""What V1 and V2 share: preconditioning around kriging, tokens, order and decoder.

A subclass adds only what it does between tokens and decoder (`mix`). Everything that depends on
the points alone, not on the noise, is computed once by `prepare` and reused by every evaluation
of a sampler.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield import flow
from sparsefield.embeddings import FourierFeatures, TimeEmbedding
from sparsefield.errors import UserError
from sparsefield.kriging import ordinary_kriging
from sparsefield.neighbours import gather_points, nearest
from sparsefield.ordering import check_order, token_order

PRIORS = ("kriging", "none")
FEATURE_LIMIT = 30.0  # in units of the kriging sd: a query on top of an observation has sd near 0


class Prepared(NamedTuple):
    """What the points alone determine.

    Attributes:
        mean, sd: (B, N, C) and (B, N, 1), the Gaussian answer; 0 and 1 without a prior.
        input_features: (B, M, F_in). query_features: (B, N, F_q): everything but noise and time.
        order: (B, L) reading order of the tokens [context, queries], or None for as they are.
        input_coords, query_coords: (B, M, 2), (B, N, 2).
    """

    mean: Tensor
    sd: Tensor
    input_features: Tensor
    query_features: Tensor
    order: Tensor | None
    input_coords: Tensor
    query_coords: Tensor


class FieldModel(nn.Module):
    """A velocity field over queries, given observations: the contract of every model.

    Args:
        channels: C. d_model: D.
        prior: "kriging" lets the network learn what kriging does not know; "none" everything.
        neighbours: how many nearest observations each query token holds; 0 for none.
        order: reading order of the tokens, one of sparsefield.ordering.ORDERS.
        num_frequencies, max_frequency: of the Fourier features, see FourierFeatures.
    Raises:
        UserError: a value that no model can be built from, with the reason.
    """

    def __init__(
        self,
        *,
        channels: int,
        d_model: int,
        prior: str = "kriging",
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
        self.fourier = FourierFeatures(num_frequencies, max_frequency)
        self.time_embedding = TimeEmbedding(d_model)
        kriged = (channels + 1) * (prior == "kriging")  # a mean and a log sd
        input_width = self.fourier.width + channels + kriged
        query_width = self.fourier.width + channels + kriged + neighbours * (2 + channels)
        self.input_proj = projection(input_width, d_model)
        self.query_proj = projection(query_width, d_model)
        self.decoder = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_model),
            nn.GELU(),
            nn.Linear(d_model, channels),
        )
        nn.init.zeros_(self.decoder[-1].weight)  # so that training starts at kriging itself
        nn.init.zeros_(self.decoder[-1].bias)

    def mix(self, context: Tensor, queries: Tensor, prepared: Prepared) -> Tensor:
        """Let tokens inform each other: (B, M, D), (B, N, D) to queries (B, N, D)."""
        raise NotImplementedError

    def forward(
        self,
        noisy_values: Tensor,
        query_coords: Tensor,
        t: Tensor,
        input_coords: Tensor,
        input_values: Tensor,
        *,
        prepared: Prepared | None = None,
    ) -> Tensor:
        """Velocity at the queries.

        Args:
            noisy_values: (B, N, C), x_t. query_coords: (B, N, 2) in [0, 1]. t: (B,) in [0, 1].
            input_coords: (B, M, 2). input_values: (B, M, C) in [-1, 1].
            prepared: what `prepare` gave for these points, or None to compute it here.
        Returns:
            (B, N, C) float32.
        """
        if prepared is None:
            prepared = self.prepare(query_coords, input_coords, input_values)
        state = noisy_values
        if self.prior == "kriging":
            state = flow.normalised_state(noisy_values, t, prepared.mean, prepared.sd)
        time = self.time_embedding(t)[:, None]                            # (B, 1, D)
        context = self.input_proj(prepared.input_features) + time         # (B, M, D)
        queries = torch.cat([state, prepared.query_features], dim=-1)     # (B, N, F)
        queries = self.query_proj(queries) + time                         # (B, N, D)
        queries = self.mix(context, queries, prepared)                    # (B, N, D)
        output = self.decoder(queries).float()                            # (B, N, C)
        if self.prior == "none":
            return output
        return flow.preconditioned_velocity(output, noisy_values, t, prepared.mean, prepared.sd)

    @torch.no_grad()
    def prepare(
        self, query_coords: Tensor, input_coords: Tensor, input_values: Tensor
    ) -> Prepared:
        """Everything that depends on the points alone; shapes as in `forward`."""
        inputs = [self.fourier(input_coords), input_values]
        queries = [self.fourier(query_coords)]
        mean = torch.zeros(*query_coords.shape[:2], input_values.shape[2]).to(input_values)
        sd = torch.ones_like(mean[..., :1])
        if self.prior == "kriging":
            mean, sd, loo_mean, loo_sd = ordinary_kriging(input_coords, input_values, query_coords)
            surprise = ((input_values - loo_mean) / loo_sd).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
            inputs += [surprise, loo_sd.log()]
            queries += [mean, sd.log()]
        if self.neighbours:
            queries.append(self._nearest_observations(
                query_coords, input_coords, input_values, mean, sd
            ))
        return Prepared(
            mean,
            sd,
            torch.cat(inputs, dim=-1),
            torch.cat(queries, dim=-1),
            token_order(input_coords, query_coords, self.order),
            input_coords,
            query_coords,
        )

    def _nearest_observations(
        self, query_coords: Tensor, coords: Tensor, values: Tensor, mean: Tensor, sd: Tensor
    ) -> Tensor:
        """Offsets (in mean spacings) and values (in sd from the mean): (B, N, K (2 + C))."""
        index, _ = nearest(query_coords, coords, self.neighbours)         # (B, N, K)
        spacing = coords.shape[1] ** -0.5
        offset = (gather_points(coords, index) - query_coords[:, :, None]) / spacing
        value = (gather_points(values, index) - mean[:, :, None]) / sd[:, :, None]
        value = value.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        return torch.cat([offset, value], dim=-1).flatten(2)

    def loss_weight(self, t: Tensor, prepared: Prepared) -> Tensor:
        """Weight (B, N, 1) of the squared velocity error in training."""
        if self.prior == "none":
            return torch.ones_like(prepared.sd)
        return flow.loss_weight(t, prepared.sd)


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
