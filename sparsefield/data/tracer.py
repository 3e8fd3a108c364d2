"""Fields that move: a passive tracer in two-dimensional turbulence, simulated from a seed.

    dw/dt + u . grad w = nu laplacian w,    dc/dt + u . grad c = kappa laplacian c

w is the vorticity of the flow u = (d psi/dy, -d psi/dx), laplacian psi = -w, and c the tracer, on a
periodic square. Pseudo-spectral: products are formed at points and cut off by the 2/3 rule
(Orszag 1971); advection in Runge-Kutta steps of third order, diffusion exactly (splitting).
Nothing is forced, so that energy, enstrophy and the tracer's variance decay. A field is a quarter
of the square, and so is not periodic.

Symbols: n points of a side of the square, T frames, k wavenumber in waves a square.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np

from sparsefield.data.scale import Data, Scale
from sparsefield.errors import UserError
from sparsefield.hashed import Purpose, generator

WAVES = 6.0  # k at which the first vorticity is strongest, of a square of two fields
TRACER_WAVES = 4.0  # of the first tracer
SPEED = 0.06  # sides of a field that the flow moves in a frame, root mean square at the start
DIFFUSION = 0.12  # of both, in squared points a frame: what the grid resolves
STEPS = 4  # of a frame
SPIN_UP = 24  # frames, in which filaments form
STARTS = 12  # frames of a run that a sequence may begin with
RUNS, FROZEN_RUNS = 64, 16  # of an epoch, and of validation and test
PER_RUN = 8  # fields of an epoch from each run
TRACER_CROPS = 6  # stream of random numbers, beside those of crops.py
SIZES = 8, 128
RUNGE_KUTTA = ((0.0, 1.0), (0.75, 0.25), (1 / 3, 2 / 3))  # Shu & Osher 1988


class Turbulence:
    """A flow and its tracer, both in Fourier space.

    Args:
        n: points of a side, even. rng: of the first fields.
    Attributes:
        state: (2, n, n / 2 + 1), vorticity and tracer. Lengths are in sides of the square and times
            in frames.
    """

    def __init__(self, n: int, rng: np.random.Generator):
        rows, columns = np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)
        self.n = n
        self.wave = 2 * np.pi * np.stack(np.broadcast_arrays(columns, rows))  # (2, n, n/2 + 1)
        square = (self.wave**2).sum(axis=0)
        self.inverse = np.divide(1, square, out=np.zeros_like(square), where=square > 0)
        self.kept = (np.abs(rows) < n / 3) & (columns < n / 3)
        self.damping = np.exp(-DIFFUSION / n**2 / STEPS * square)
        self.state = np.stack([self._random(rng, waves) for waves in (WAVES, TRACER_WAVES)])
        self.state[0] *= SPEED / 2 / np.sqrt(2 * self.energy)
        self.state[1] /= np.abs(self.tracer).max()

    def _random(self, rng: np.random.Generator, waves: float) -> np.ndarray:
        """A random field, strongest at so many waves."""
        k = np.sqrt((self.wave**2).sum(axis=0)) / (2 * np.pi)
        noise = np.fft.rfft2(rng.normal(size=(self.n, self.n)))
        return noise * self.kept * k**2 * np.exp(-((k / waves) ** 2))

    def velocity(self, state: np.ndarray | None = None) -> np.ndarray:
        """(2, n, n) in x, along the rows, and y."""
        stream = (self.state if state is None else state)[0] * self.inverse
        return np.fft.irfft2(1j * np.stack([self.wave[1] * stream, -self.wave[0] * stream]))

    @property
    def tracer(self) -> np.ndarray:
        """(n, n)."""
        return np.fft.irfft2(self.state[1])

    @property
    def energy(self) -> float:
        """Mean of |u|^2 / 2."""
        return float((self.velocity() ** 2).sum(axis=0).mean() / 2)

    def _change(self, state: np.ndarray) -> np.ndarray:
        """Of advection, a frame."""
        slopes = np.fft.irfft2(1j * self.wave * state[:, None])           # (2, 2, n, n)
        product = (self.velocity(state) * slopes).sum(axis=1)               # (2, n, n)
        return np.where(self.kept, -np.fft.rfft2(product), 0)

    def advance(self) -> None:
        """By a frame."""
        for _ in range(STEPS):
            state = self.state
            for old, new in RUNGE_KUTTA:
                state = old * self.state + new * (state + self._change(state) / STEPS)
            self.state = self.damping * state


def sequences(count: int, frames: int = 8, size: int = 32, seed: int = 0) -> np.ndarray:
    """Sequences of the tracer (count, frames, size, size) float32, within -1 and 1 but for
    rounding, each of a flow of its own; number i is a function of (seed, i)."""
    return np.stack([_run(seed, i, frames, size)[:, :size, :size] for i in range(count)])


def _run(seed: int, number: int, frames: int, size: int) -> np.ndarray:
    """Frames of a whole square, (frames, 2 size, 2 size) float32."""
    flow = Turbulence(2 * size, generator(seed, Purpose.TRACER, number))
    for _ in range(SPIN_UP):
        flow.advance()
    highest, kept = np.abs(flow.tracer).max(), []
    for _ in range(frames):
        kept.append((flow.tracer / highest).astype(np.float32))
        flow.advance()
    return np.stack(kept)


class TracerSplit:
    """Sequences of some runs, see `scale.Split`: simulated when they are first asked for.

    Sequence i is of run i modulo their number, a training sequence at any place and time of it.
    """

    has_gaps, is_symmetric = False, True

    def __init__(self, runs: range, size: int, frames: int, seed: int):
        self.runs, self.size, self.frames, self.seed = runs, size, frames, seed
        self.span = frames  # of a run, from the first to the last
        self.made: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return PER_RUN * len(self.runs) * self.frames

    def moment(self, index: int) -> int:
        """Frames of the run between the first of a sequence and field `index`."""
        return index % self.frames

    def time(self, index: int) -> float:
        return float(self.moment(index))

    def example(self, index: int) -> np.ndarray:
        sequence = index // self.frames
        return self._cut(index, generator(self.seed, Purpose.FROZEN_CROP, TRACER_CROPS, sequence))

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        return self._cut(index, rng)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        return None

    def _cut(self, index: int, rng: np.random.Generator) -> np.ndarray:
        number = self.runs[index // self.frames % len(self.runs)]
        if number not in self.made:
            self.made[number] = _run(self.seed, number, self.span - 1 + STARTS, self.size)
        first, *place = rng.integers((STARTS, 2 * self.size, 2 * self.size))
        rows, columns = ((start + np.arange(self.size)) % (2 * self.size) for start in place)
        return self.made[number][first + self.moment(index)][rows[:, None], columns][..., None]


def open_tracer(image_size: int, seed: int, frames: int = 1) -> Data:
    """Sequences of the tracer, or single frames, each from anywhere in one of RUNS runs, which a
    training uses in all orientations; validation and test have runs of their own.

    Raises:
        UserError: image_size is not within SIZES.
    """
    if not SIZES[0] <= image_size <= SIZES[1]:
        raise UserError(f"image size {image_size}: the tracer can be simulated at {SIZES[0]} to "
                        f"{SIZES[1]} points")
    ends = np.cumsum([0, RUNS, FROZEN_RUNS, FROZEN_RUNS]).tolist()
    splits = [TracerSplit(range(first, last), image_size, frames, seed)
              for first, last in pairwise(ends)]
    made = (image_size, seed, frames, WAVES, TRACER_WAVES, SPEED, DIFFUSION, STEPS, SPIN_UP, STARTS,
            RUNS, FROZEN_RUNS, PER_RUN)
    fingerprint = hashlib.sha256(repr(made).encode()).hexdigest()
    return Data("tracer", image_size, image_size, Scale(((-1.0, 1.0),)), fingerprint, *splits)
