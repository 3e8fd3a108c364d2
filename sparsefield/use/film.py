"""A field that moves as a film: measurements, mean, sd and a sample, frame by frame."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.animation import FFMpegWriter, PillowWriter

from sparsefield.evaluate.plots import plt
from sparsefield.use.export import colour_bar, limits_of, most_of, panels, size_of
from sparsefield.use.field import Field
from sparsefield.use.grids import Asked
from sparsefield.use.points import Measurements

log = logging.getLogger("sparsefield")

MOST_FRAMES = 100
SECONDS, SLOWEST, FASTEST = 12, 2, 10  # of a film, about; frames a second
WRITERS = {"field.gif": PillowWriter, "field.mp4": FFMpegWriter}  # where they can be had


def film(field: Field, given: Measurements, asked: Asked) -> dict[str, bytes]:
    """The film by its names: GIF, and MP4 where ffmpeg is there; of the first channel.

    Args:
        field: with x and y growing.
    """
    step = -(-len(field.mean) // MOST_FRAMES)
    shown = range(0, len(field.mean), step)
    if step > 1:
        log.info("the film shows %d of %d times", len(shown), len(field.mean))
    low, high = limits_of(given)
    which, labels = field.times.nearest(given.times.values), field.times.labels()
    figure, axes, style = panels(4, 3.4, given, asked)
    points = axes[0].scatter([], [], c=[], vmin=low, vmax=high, linewidths=0,
                             s=size_of(len(given.coords) / len(field.mean)))
    images = [axis.imshow(values[0, ..., 0], vmin=bottom, vmax=top, cmap=colours, **style)
              for axis, values, bottom, top, colours in zip(
                  axes[1:], (field.mean, field.sd, field.samples[0]), (low, 0, low),
                  (high, most_of(field.sd), high), ("viridis", "magma", "viridis"), strict=True)]
    name = f" of {field.names[0]}" if len(field.names) > 1 else ""
    for axis, title in zip(axes, (f"measurements{name}", "posterior mean", "sd", "sample 1"),
                           strict=True):
        axis.set_title(title, fontsize=10)
    colour_bar(images[1], axes[2], None)
    colour_bar(images[2], axes[3], field.units)
    title = figure.suptitle(labels[0], fontsize=11)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # which would be found again for each
    speed = float(np.clip(len(shown) / SECONDS, SLOWEST, FASTEST))
    files = {}
    for file, writer_of in WRITERS.items():
        if not writer_of.isAvailable():
            continue
        with tempfile.TemporaryDirectory() as folder:
            path, writer = Path(folder) / file, writer_of(fps=speed)
            with writer.saving(figure, str(path), dpi=90):
                for k in shown:
                    now = which == k
                    points.set_offsets(given.coords[now])
                    points.set_array(given.values[now, 0])
                    for image, values in zip(images, (field.mean, field.sd, field.samples[0]),
                                             strict=True):
                        image.set_data(values[k, ..., 0])
                    title.set_text(labels[k])
                    writer.grab_frame()
            files[file] = path.read_bytes()
    plt.close(figure)
    return files
