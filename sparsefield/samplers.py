"""From noise to fields: ODE and SDE samplers of a flow, behind one signature.

Symbols: B images, N queried points, M observed points, C channels; x_t = (1-t) x_0 + t x_1 runs
from noise x_0 ~ N(0, I) at t = 0 to data x_1 at t = 1; v = x_1 - x_0 is the velocity, so that
x + (1-t) v estimates the data and x - t v the noise (SiT, Ma et al. 2024, section 2).

A sampler is a function

    sampler(velocity, noise (B,N,C), times (n+1,), rng, **options) -> values (B,N,C)

with velocity(x (B,N,C), t (B,)) -> (B,N,C), a time grid from 0 to 1 and rng() -> fresh noise of
the same shape. Samplers know nothing of models, observations or blocks; `sample` does.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.flow import data_estimate, noise_estimate

Velocity = Callable[[Tensor, Tensor], Tensor]
Rng = Callable[[], Tensor]
Progress = Callable[[int, int | None], None]

SAME_POINT = 1e-6  # in sides of the square: above float32 rounding, far below any pixel
LAST_TIME = 1 - 1e-5  # (y - x) / (1 - t) is evaluated no later: see _KeepObserved


# --- time grids ---------------------------------------------------------------------------------


def uniform_times(num_steps: int) -> Tensor:
    """(num_steps + 1,) float64, equal steps from 0 to 1."""
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)


def quadratic_times(num_steps: int) -> Tensor:
    """(num_steps + 1,) float64, t = 1 - (1 - u)^2 for uniform u: steps shrink towards t = 1.

    The velocity of a posterior of width s bends where 1 - t is about s. Over Gaussian and
    two-peaked posteriors with s = 0.03 ... 0.4, Heun's error against the exact flow is 2.7 to 5
    times smaller than on the uniform grid at 3 to 31 evaluations, Euler's 1.4 to 1.6 times.
    """
    return 1 - (1 - uniform_times(num_steps)) ** 2


TIME_GRIDS = {"quadratic": quadratic_times, "uniform": uniform_times}


# --- noise --------------------------------------------------------------------------------------


def noise_seed(*path: int) -> int:
    """One 32-bit seed from a path of non-negative integers, such as (seed, image, draw)."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


class ImageNoise:
    """Standard normal noise from one stream per image, drawn on the CPU.

    What image i gets depends on its own seed and on how often it was asked, and not on the batch
    it is in, on the device or on how the queries are cut in blocks.

    Args:
        seeds: one integer per image.
        points, channels: N and C.
    Calling it returns (B, N, C).
    """

    def __init__(self, seeds: Sequence[int], points: int, channels: int, like: Tensor) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.shape = (points, channels)
        self.like = like

    def __call__(self) -> Tensor:
        draws = [torch.randn(self.shape, generator=generator, dtype=self.like.dtype)
                 for generator in self.generators]
        return torch.stack(draws).to(self.like.device)


# --- samplers -----------------------------------------------------------------------------------


def _at(x: Tensor, t: float) -> Tensor:
    return x.new_full((len(x),), t)


def _steps(times: Tensor) -> list[tuple[float, float]]:
    grid = times.tolist()
    return list(zip(grid[:-1], grid[1:]))


def euler(velocity: Velocity, noise: Tensor, times: Tensor, rng: Rng) -> Tensor:
    """The ODE by Euler's rule: first order, n evaluations."""
    x = noise
    for t, u in _steps(times):
        x = x + (u - t) * velocity(x, _at(x, t))
    return x


def heun(velocity: Velocity, noise: Tensor, times: Tensor, rng: Rng) -> Tensor:
    """The ODE by Heun's rule, the last step by Euler's: second order, 2n - 1 evaluations.

    Source: Karras et al. 2022 (EDM), algorithm 1.
    """
    x = noise
    for t, u in _steps(times):
        v = velocity(x, _at(x, t))
        if u < 1:
            ahead = x + (u - t) * v
            v = (v + velocity(ahead, _at(x, u))) / 2
        x = x + (u - t) * v
    return x


def sde(
    velocity: Velocity, noise: Tensor, times: Tensor, rng: Rng, *, temperature: float = 0.5
) -> Tensor:
    """The SDE with the marginals of the ODE: n evaluations, second order in its drift.

    dx = (v + tau (t v - x)) dt + sqrt(2 tau (1-t)) dW: diffusion D = tau (1-t) with its score
    drift D s, s = (t v - x) / (1 - t), has no singularity and leaves every marginal as it is (SiT,
    equation 4). `temperature` is tau: how strongly errors of earlier steps are forgotten. It is
    not a width: every tau samples the same posterior, tau = 0 is the ODE.

    Each step solves the SDE exactly for a data estimate that stands still, at its value
    extrapolated to the middle of the step (the idea of SDE-DPM-Solver++(2M), Lu et al. 2022). Too
    few steps then give a spread that is too small, where Euler-Maruyama leaves speckle: of
    N(m, 0.1^2) at tau = 1, 8, 16 and 50 quadratic steps give 0.81, 0.96 and 1.00 times the sd,
    Euler-Maruyama 1.18, 1.06 and 1.02; of N(m, 0.03^2) at 8 steps 0.61 against 2.23.
    """
    x, before, step_before = noise, None, None
    for t, u in _steps(times):
        at_t = _at(x, t)
        data = data_estimate(x, velocity(x, at_t), at_t)
        ahead = data
        if before is not None and u < 1:
            ahead = data + (u - t) / (2 * step_before) * (data - before)
        before, step_before = data, u - t
        kept = ((1 - u) / (1 - t)) ** temperature
        decay = kept * (1 - u) / (1 - t)
        x = decay * x + (u - decay * t) * ahead
        if temperature > 0 and u < 1:
            x = x + (1 - u) * math.sqrt(1 - kept**2) * rng()
    return x


def ddim(
    velocity: Velocity, noise: Tensor, times: Tensor, rng: Rng, *, eta: float = 0.0
) -> Tensor:
    """DDIM in flow time: each step splits x in data and noise, and renews part of the noise.

    eta = 0 is Euler's rule, eta = 1 renews as much as ancestral sampling; n evaluations. Between,
    sigma = eta (1-u) sqrt(1 - [t(1-u) / (u(1-t))]^2), and 0 at t = 0 and u = 1.
    Source: Song et al. 2021 (DDIM), equation 12, with alpha = t and sigma = 1 - t.
    """
    x = noise
    for t, u in _steps(times):
        at_t = _at(x, t)
        v = velocity(x, at_t)
        ratio = t * (1 - u) / (u * (1 - t))
        sigma = eta * (1 - u) * math.sqrt(1 - ratio**2) if t > 0 else 0.0
        old_noise = math.sqrt((1 - u) ** 2 - sigma**2) * noise_estimate(x, v, at_t)
        x = u * data_estimate(x, v, at_t) + old_noise
        if sigma > 0:
            x = x + sigma * rng()
    return x


def mean(
    velocity: Velocity, noise: Tensor, times: Tensor, rng: Rng, *, num_draws: int = 4
) -> Tensor:
    """The posterior mean E[x_1 | observations], not a sample; `times` is not used.

    At t = 0 the noise says nothing about the data, so x_0 + v(x_0, 0) is the mean for every x_0.
    A trained velocity lets some noise through: the average over `num_draws` noises, taken in
    pairs (x_0, -x_0) so that what leaks linearly cancels. num_draws evaluations.
    """
    total = torch.zeros_like(noise)
    x, start = noise, _at(noise, 0.0)
    for draw in range(num_draws):
        if draw > 0:
            x = -x if draw % 2 else rng()
        total = total + data_estimate(x, velocity(x, start), start)
    return total / num_draws


def adaptive(
    velocity: Velocity, noise: Tensor, times: Tensor, rng: Rng, *, tolerance: float = 1e-3
) -> Tensor:
    """The ODE by Dormand-Prince 5(4) with step control (torchdiffeq); `times` is not used.

    `tolerance` is the local error, absolute and relative. All of a batch shares the steps, so
    `sample` runs the images one by one. The evaluations are as many as it takes.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError("sampler 'adaptive' needs torchdiffeq: pip install torchdiffeq") from error
    ends = noise.new_tensor([0.0, 1.0])
    path = odeint(lambda t, x: velocity(x, t.expand(len(x))), noise, ends,
                  rtol=tolerance, atol=tolerance, method="dopri5")
    return path[-1]


SAMPLERS = {"heun": heun, "euler": euler, "sde": sde, "ddim": ddim, "mean": mean,
            "adaptive": adaptive}
STOCHASTIC = ("sde", "ddim")
LIMITS = {"temperature": (0.0, math.inf), "eta": (0.0, 1.0), "num_draws": (1, math.inf),
          "tolerance": (1e-12, 1.0)}


def sampler_options(method: str) -> dict[str, float]:
    """The options of a sampler beside the shared signature, with their defaults."""
    parameters = inspect.signature(SAMPLERS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def declared_nfe(method: str, num_steps: int, **options: float) -> int | None:
    """Evaluations of the model at each point; None where the sampler decides as it goes."""
    if method == "mean":
        return int({**sampler_options(method), **options}["num_draws"])
    return {"heun": 2 * num_steps - 1, "adaptive": None}.get(method, num_steps)


def check_sampler(method: str, num_steps: int, options: dict[str, float]) -> None:
    """Raise UserError unless the sampler exists and its settings are in range."""
    if method not in SAMPLERS:
        raise UserError(f"unknown sampler '{method}': choose one of {', '.join(SAMPLERS)}")
    if num_steps < 1:
        raise UserError(f"num_steps is {num_steps}: a sampler takes at least 1 step")
    known = sampler_options(method)
    for name, value in options.items():
        if name not in known:
            raise UserError(f"sampler '{method}' has no option '{name}': it takes "
                            f"{', '.join(known) or 'none'}")
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise UserError(f"{name} of sampler '{method}' is {value}: give {low} to {high}")


# --- blocks of queries --------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Queries that go through the model together: the first `core` are answered, the others,
    nearest around them, are only seen."""

    index: Tensor  # (B, core + halo) int64
    core: int


def _bisect(points: np.ndarray, index: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Cut a set of points in compact pieces of equal count, always across the longer side."""
    if pieces == 1:
        return [index]
    here = points[index]
    side = int(np.argmax(np.ptp(here, axis=0)))
    order = index[np.argsort(here[:, side], kind="stable")]
    cut = len(order) * (pieces // 2) // pieces
    return (_bisect(points, order[:cut], pieces // 2)
            + _bisect(points, order[cut:], pieces - pieces // 2))


def _with_halo(points: np.ndarray, core: np.ndarray, halo: int) -> np.ndarray:
    """Append the `halo` points nearest to the bounding box of the core."""
    low, high = points[core].min(axis=0), points[core].max(axis=0)
    outside = np.linalg.norm(points - np.clip(points, low, high), axis=1)
    outside[core] = np.inf
    nearest = np.argsort(outside, kind="stable")[:halo]
    return np.concatenate([core, nearest])


def cut_blocks(query_coords: Tensor, block_size: int | None, halo: int) -> list[Block]:
    """Cut the queries of each image in compact blocks of at most `block_size` points.

    Args:
        query_coords: (B, N, 2).
        block_size: points answered per block; None for one block of all.
        halo: points around each block that are seen but not answered.
    """
    images, count, _ = query_coords.shape
    if block_size is None or block_size >= count:
        everything = torch.arange(count, device=query_coords.device).expand(images, count)
        return [Block(everything, count)]
    pieces = -(-count // block_size)
    halo = min(halo, count - block_size)
    shared = bool((query_coords == query_coords[:1]).all())
    per_image = []
    for points in query_coords[:1 if shared else None].cpu().numpy():
        cores = _bisect(points, np.arange(count), pieces)
        per_image.append([(len(core), _with_halo(points, core, halo)) for core in cores])
    blocks = []
    for same_piece in zip(*per_image):
        index = torch.from_numpy(np.stack([index for _, index in same_piece]))
        blocks.append(Block(index.expand(images, -1).to(query_coords.device), same_piece[0][0]))
    return blocks


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _nearby(
    coords: Tensor, input_coords: Tensor, input_values: Tensor, max_inputs: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A block with its observations: all of them, or the nearest, enlarged to the whole square.

    With `max_inputs` and more observations than that, the block is seen with the nearest to its
    bounding box (inside it: to its middle), and the square around both becomes the unit square: as
    many observations on a square as the model knows from training, however many there are.
    """
    if max_inputs is None or input_coords.shape[1] <= max_inputs:
        return coords, input_coords, input_values
    low, high = coords.amin(dim=1, keepdim=True), coords.amax(dim=1, keepdim=True)  # (B, 1, 2)
    to_box = (input_coords - input_coords.clamp(low, high)).norm(dim=2)             # (B, M)
    to_middle = (input_coords - (low + high) / 2).norm(dim=2)
    index = (to_box + 1e-3 * to_middle).topk(max_inputs, dim=1, largest=False).indices
    index = index.sort(dim=1).values
    near = _take(input_coords, index)
    low = torch.minimum(low, near.amin(dim=1, keepdim=True))
    high = torch.maximum(high, near.amax(dim=1, keepdim=True))
    side = (high - low).amax(dim=2, keepdim=True).clamp_min(SAME_POINT)
    return (coords - low) / side, (near - low) / side, _take(input_values, index)


class _ModelVelocity:
    """velocity(x, t) of a model at fixed points, block by block at the same t, and counted."""

    def __init__(
        self, model, query_coords, input_coords, input_values, blocks, max_inputs, progress, total
    ):
        self.model = model
        self.blocks = blocks
        self.places = [
            _nearby(_take(query_coords, block.index), input_coords, input_values, max_inputs)
            for block in blocks
        ]
        self.extra = [self._prepare(places) for places in self.places]
        self.progress, self.total = progress, total
        self.calls = 0

    def _prepare(self, places: tuple[Tensor, Tensor, Tensor]) -> dict:
        """What does not depend on the noise is computed once per block, not at every step."""
        if not hasattr(self.model, "prepare"):
            return {}
        return {"prepared": self.model.prepare(*places)}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        velocity = torch.empty_like(x)
        for block, (coords, *inputs), extra in zip(self.blocks, self.places, self.extra):
            out = self.model(_take(x, block.index), coords, t, *inputs, **extra)
            core = block.index[:, :block.core, None].expand(-1, -1, x.shape[-1])
            velocity.scatter_(1, core, out[:, :block.core].to(x.dtype))
            self.calls += 1
            if self.progress is not None:
                self.progress(self.calls, self.total)
        return velocity


# --- observed points ----------------------------------------------------------------------------


def match_observed(query_coords: Tensor, input_coords: Tensor) -> tuple[Tensor, Tensor]:
    """Which queries coincide with an observation, within 1e-6 of the side of the square.

    Args:
        query_coords: (B, N, 2); input_coords: (B, M, 2).
    Returns:
        found (B, N) bool, and index (B, N) int64 into the M observations (0 where not found).
    """
    pairs = zip(query_coords.cpu().numpy(), input_coords.cpu().numpy())
    index = [cKDTree(seen).query(asked, distance_upper_bound=SAME_POINT)[1]
             for asked, seen in pairs]
    index = torch.from_numpy(np.stack(index)).to(query_coords.device)
    found = index < input_coords.shape[1]
    return found, index.where(found, 0)


class _KeepObserved:
    """Put the exact velocity at the queries that were observed.

    The posterior of an observed point is its value y, so its data estimate is y and its velocity
    (y - x) / (1 - t): every sampler then takes it along the exact path (1-t) x_0 + t y, and its
    neighbours attend to a point whose noise is right for that t. Unlike the replacement used with
    unconditional models (RePaint) this is no approximation. The last rounding goes with `finish`.
    """

    def __init__(self, velocity, query_coords, input_coords, input_values):
        self.velocity = velocity
        found, index = match_observed(query_coords, input_coords)
        self.found = found[..., None]
        self.values = _take(input_values, index)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        left = 1 - t.clamp(max=LAST_TIME)[:, None, None]
        return torch.where(self.found, (self.values - x) / left, self.velocity(x, t))

    def finish(self, x: Tensor) -> Tensor:
        return torch.where(self.found, self.values, x)


# --- the whole ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What `sample` returns: the values and how they came about."""

    values: Tensor  # (B, N, C)
    nfe: float  # evaluations of the velocity at each point, mean over the images
    blocks: int  # pieces in which the queries went through the model
    kept: int  # queries set to an observed value, over all images
    how: str  # one line for reports


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    query_coords: Tensor,
    input_coords: Tensor,
    input_values: Tensor,
    *,
    seeds: Sequence[int],
    method: str = "heun",
    num_steps: int = 20,
    grid: str = "quadratic",
    consistency: bool = True,
    clip: bool = True,
    block_size: int | None = None,
    halo: int | None = None,
    max_inputs: int | None = None,
    progress: Progress | None = None,
    **options: float,
) -> Result:
    """Fields at the query points, given the observations.

    Result i depends on seeds[i], the points and the settings alone: not on the batch or device.

    Blocks bound memory and, where queries attend to each other, time. All blocks take each time
    step together, so that the noise is the same however the queries are cut, and each block sees
    the current state of its halo. The posterior mean needs no more than that: at t = 0 other
    queries hold only noise, so blocks do not change what an exact model answers, and the halo is
    left out. A *sample* is then drawn from a local approximation of the joint posterior: points
    farther apart than the halo agree only through the observations. `Result.how` says so. Without
    a halo, neighbours across a border differ 1.4 times as much as they should (exact Gaussian
    random field, 20 % observed); with half a block around they differ as anywhere else.

    Args:
        model: see the one contract in the README; `model.prepare` is used where there is one.
        query_coords: (B, N, 2) in [0, 1].
        input_coords, input_values: (B, M, 2) in [0, 1] and (B, M, C) in [-1, 1].
        seeds: B integers, see `noise_seed`.
        method: one of SAMPLERS; options are its own (temperature, eta, num_draws, tolerance).
        num_steps, grid: the time grid, one of TIME_GRIDS.
        consistency: keep observed values where a query coincides with one, along the whole path.
        clip: limit the result to [-1, 1].
        block_size, halo: queries answered together, and queries seen around them (default: half
            of block_size); None for all at once.
        max_inputs: most observations that a block sees, the nearest to it; None for all. Where
            there are more, the model sees each block enlarged to the whole square.
        progress: called as progress(model calls so far, calls in all or None if unknown).
    Raises:
        UserError: an unknown sampler, grid or option, or one out of range.
        ValueError: shapes that do not agree.
    """
    check_sampler(method, num_steps, options)
    if grid not in TIME_GRIDS:
        raise UserError(f"unknown time grid '{grid}': choose one of {', '.join(TIME_GRIDS)}")
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size is {block_size}: a block holds at least 1 query")
    _check_shapes(query_coords, input_coords, input_values, seeds)
    if halo is None:
        halo = (block_size or 0) // 2
    if method == "mean":
        halo = 0

    images, points, _ = query_coords.shape
    groups = [slice(i, i + 1) for i in range(images)] if method == "adaptive" else [slice(None)]
    blocks = cut_blocks(query_coords, block_size, halo)
    nfe = declared_nfe(method, num_steps, **options)
    total = None if nfe is None else nfe * len(blocks)
    values, calls, kept = [], [], 0
    for group in groups:
        places = (query_coords[group], input_coords[group], input_values[group])
        parts = [Block(block.index[group], block.core) for block in blocks]
        counted = _ModelVelocity(model, *places, parts, max_inputs, progress, total)
        velocity = _KeepObserved(counted, *places) if consistency else counted
        rng = ImageNoise(seeds[group], points, input_values.shape[-1], like=input_values)
        x = SAMPLERS[method](velocity, rng(), TIME_GRIDS[grid](num_steps), rng, **options)
        if consistency:
            x = velocity.finish(x)
            kept += int(velocity.found.sum())
        values.append(x.clamp(-1, 1) if clip else x)
        calls.append(counted.calls / len(blocks))
    nfe = float(np.mean(calls))
    how = _describe(method, num_steps, grid, nfe, blocks, kept, options)
    return Result(torch.cat(values), nfe, len(blocks), kept, how)


def _check_shapes(query_coords, input_coords, input_values, seeds) -> None:
    images = len(query_coords)
    if not len(input_coords) == len(input_values) == len(seeds) == images:
        raise ValueError(f"{images} query sets, {len(input_coords)} observed sets, "
                         f"{len(input_values)} value sets and {len(seeds)} seeds: give one each")
    if input_coords.shape[1] != input_values.shape[1]:
        raise ValueError(f"{input_coords.shape[1]} observed points but "
                         f"{input_values.shape[1]} observed values")


def _describe(method, num_steps, grid, nfe, blocks, kept, options) -> str:
    settings = {**sampler_options(method), **options}
    words = [method] + [f"{name} {value:g}" for name, value in settings.items()]
    if method not in ("mean", "adaptive"):
        words.append(f"{num_steps} {grid} steps")
    words.append(f"{nfe:g} evaluations")
    if kept:
        words.append("observed points kept")
    if len(blocks) > 1:
        core = max(block.core for block in blocks)
        seen = blocks[0].index.shape[1] - blocks[0].core
        joint = "" if method == "mean" else ", jointly sampled only as far as that"
        words.append(f"queries in {len(blocks)} blocks of {core} with {seen} around{joint}")
    return ", ".join(words)
