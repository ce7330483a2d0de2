"""Drawing what came out, to files that are whole or not there at all."""

import contextlib
import math
import os
import sys

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image


@contextlib.contextmanager
def whole_file(path):
    """Give a temporary name; what is written there becomes `path`, whole or not at all.

    The name lies in the same folder, holds `.<process id>.tmp`, and ends as `path`
    does.

    Args:
        path: str. The file; one that is there is replaced when the new one is whole.
    """
    folder, name = os.path.split(path)
    stem, dot, ending = name.partition(".")
    temporary = os.path.join(folder, f"{stem}.{os.getpid()}.tmp{dot}{ending}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # to the disk, before it has its name
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system can do that
            directory = os.open(folder or ".", os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def first_line(error):
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text):
    """Return a path or another text so that a terminal shows it and obeys none of it.

    What can't be printed is escaped as Python does: codes that steer a terminal, breaks
    of lines, marks that turn the direction of writing, and bytes of a file's name that
    are no text.

    Args:
        text: str, or what `str` makes one of.

    Returns:
        A str whose characters can all be printed. What is printable stays as it is.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )


def combine_images(generated_images, height=None, width=None):
    """Arrange images in a grid, row by row.

    Args:
        generated_images: array of shape `(n, rows, columns, channels)`.
        height: int. Images from top to bottom. Defaults to what `width` leaves, or to
            the smallest height of a grid that is about square.
        width: int. Images from left to right. Defaults to what `height` leaves.

    Returns:
        An array of the dtype of `generated_images`: `(height * rows, width * columns)`
        for one channel, `(height * rows, width * columns, channels)` for more. Places
        without an image are zero.

    Raises:
        ValueError: if the images do not fit into `height` x `width`.
    """
    num, rows, columns, channels = generated_images.shape
    if height is None and width is None:
        width = math.isqrt(num)
    if height is None:
        height = math.ceil(num / width)
    elif width is None:
        width = math.ceil(num / height)
    if height * width < num:
        raise ValueError(f"{num} images do not fit into a {height} x {width} grid")
    grid = np.zeros((height * width, rows, columns, channels), generated_images.dtype)
    grid[:num] = generated_images
    grid = grid.reshape(height, width, rows, columns, channels)
    image = grid.transpose(0, 2, 1, 3, 4).reshape(height * rows, width * columns, -1)
    return image[:, :, 0] if channels == 1 else image


def plot_log(filename, show=True):
    """Plot a training log, losses above and accuracies below.

    The picture is saved beside the log, as `log.png` for `log.csv`.

    Args:
        filename: str. A CSV file with a column `epoch`, as `keras.callbacks.CSVLogger`
            writes it.
        show: bool. Whether to open a window too, which happens only in an interactive
            session on a screen and never blocks. Defaults to True.
    """
    data = pd.read_csv(filename)
    show = show and _can_show()
    figure = plt.figure(figsize=(6, 8)) if show else Figure(figsize=(6, 8))
    for axes, kind in zip(figure.subplots(2, 1), ("loss", "acc"), strict=True):
        for column in data.columns:
            if kind in column:
                style = "--" if column.startswith("val_") else "-"
                marker = "o" if len(data) == 1 else None
                axes.plot(
                    data["epoch"] + 1, data[column], style, marker=marker, label=column
                )
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss" if kind == "loss" else "accuracy")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.tight_layout()
    _save(figure, os.path.splitext(filename)[0] + ".png")
    if show:
        plt.show(block=False)


def plot_confusion(counts, names, path):
    """Draw how often which class was taken for which.

    Args:
        counts: int array `(n_class, n_class)`: images of the class of the row that were
            taken for that of the column.
        names: list of str. The classes.
        path: str. The picture to write.
    """
    n = len(names)
    side = min(20, 3 + 0.45 * n)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    mistakes = np.where(np.eye(n, dtype=bool), 0, counts)
    most = max(1, mistakes.max())
    axes.imshow(mistakes, cmap="Reds", vmax=most)
    if n <= 30:
        style = {"ha": "center", "va": "center", "size": 8}
        for row, column in zip(*np.nonzero(counts)):
            color = "white" if mistakes[row, column] > most / 2 else "black"
            axes.text(column, row, counts[row, column], color=color, **style)
        axes.set_xticks(range(n), names, rotation=90, parse_math=False)
        axes.set_yticks(range(n), names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    wrong, total = mistakes.sum(), counts.sum()
    axes.set_title(f"{wrong} of {total} images misread")
    figure.tight_layout()
    _save(figure, path)


def plot_mistakes(images, true, predicted, names, path, most=50):
    """Draw misread images, each with its true and its predicted class.

    Args:
        images: array `(n, height, width, channels)`, in [0, 1].
        true: int array `(n,)`.
        predicted: int array `(n,)`.
        names: list of str. The classes.
        path: str. The picture to write.
        most: int. Images that are shown at most. Defaults to 50.
    """
    titles = [f"{names[t]} as {names[p]}" for t, p in zip(true, predicted)]
    shown = min(most, len(images))
    heading = f"{shown} of {len(images)} misread images: true as predicted"
    _draw_images([images[:shown]], titles[:shown], heading, path)


STROKES = ("stroke width", "slant", "height", "width", "down", "right")
"""What `measure_strokes` measures."""


def measure_strokes(images):
    """Measure the strokes of drawings, dark on light or light on dark.

    The properties are those of Morpho-MNIST (Castro, Tan, Kainz, Konukoglu, Glocker.
    JMLR 2019, https://arxiv.org/abs/1809.10780) and the place, taken from the grey
    values' first and second moments, and for the stroke width from twice the ink over
    the length of its outline, the total variation. What has less than a tenth of the
    full ink is ground. Of photographs the figures say little.

    Args:
        images: array `(..., height, width, channels)`, in [0, 1].

    Returns:
        An array `(..., 6)` of the properties `STROKES`: stroke width, in pixels; slant,
        columns to the right a row up; height, and width without the slant, as standard
        deviations in pixels; and how far down and right the middle lies, in pixels.
        Images without ink measure 0, and the slant of one without height is 0.
    """
    ink = np.asarray(images, "float64").mean(-1)
    border = [ink[..., 0, :], ink[..., -1, :], ink[..., 0], ink[..., -1]]
    light = np.median(np.concatenate(border, axis=-1), axis=-1) > 0.5
    ink = np.where(light[..., None, None], 1 - ink, ink)
    ink = np.where(ink < 0.1, 0, ink)
    framed = np.pad(ink, [(0, 0)] * (ink.ndim - 2) + [(1, 1)] * 2)
    down, right = np.diff(framed, axis=-2), np.diff(framed, axis=-1)
    outline = np.hypot(  # between four pixels each, so that no direction is preferred
        down[..., :, 1:] + down[..., :, :-1], right[..., 1:, :] + right[..., :-1, :]
    ).sum((-2, -1))
    total = ink.sum((-2, -1))
    weight = ink / np.where(total > 0, total, 1)[..., None, None]
    rows, columns = np.indices(ink.shape[-2:])
    down, right = ((weight * place).sum((-2, -1)) for place in (rows, columns))
    dy = rows - down[..., None, None]
    dx = columns - right[..., None, None]
    yy, xy, xx = ((weight * p).sum((-2, -1)) for p in (dy * dy, dx * dy, dx * dx))
    slope = xy / np.where(yy > 0, yy, 1)
    return np.stack(
        [
            4 * total / np.where(outline > 0, outline, 1),
            -slope,
            np.sqrt(yy),
            np.sqrt(np.maximum(xx - slope * xy, 0)),
            down,
            right,
        ],
        axis=-1,
    )


def plot_dimensions(pairs, effects, names, path, most=30):
    """Draw what the dimensions of class capsules change about the strokes.

    A row a class, a column a dimension. Each place shows one image, left with the
    dimension lowered and right with it raised, under the property that this changes
    most: among several images, of which one is shown.

    Args:
        pairs: for each class an array `(dim, 2, height, width, channels)`, in [0, 1].
        effects: for each class an array `(dim, len(STROKES))`: how far the properties
            move, in standard deviations among images. Below 0.5 the name of the
            property is grey.
        names: list of str. The classes.
        path: str. The picture to write.
        most: int. Classes that are shown at most. Defaults to 30.
    """
    shown, dim = min(most, len(names)), len(pairs[0])
    figure = Figure(figsize=(1 + 1.25 * dim, 0.8 + 0.85 * shown))
    grid = figure.subplots(shown, dim, squeeze=False)
    for row in range(shown):
        for column in range(dim):
            axes = grid[row, column]
            image = np.concatenate(list(np.clip(pairs[row][column], 0, 1)), axis=1)
            axes.imshow(_shown(image), cmap="gray")
            axes.set_xticks([])
            axes.set_yticks([])
            strongest = np.argmax(np.abs(effects[row][column]))
            effect = effects[row][column][strongest]
            axes.set_title(
                f"{STROKES[strongest]} {effect:+.1f}",
                fontsize=8,
                color=f"C{strongest}" if abs(effect) >= 0.5 else "0.7",
            )
            if row == shown - 1:
                axes.set_xlabel(f"dimension {column}", fontsize=8)
        grid[row, 0].set_ylabel(
            names[row], rotation=0, ha="right", va="center", parse_math=False
        )
    heading = (
        "each dimension lowered and raised, and what that changes most, on average, in "
        "standard deviations among the test images"
    )
    if shown < len(names):
        heading = f"{shown} of {len(names)} classes; {heading}"
    figure.suptitle(heading, fontsize=10)
    figure.tight_layout()
    _save(figure, path)


def plot_predictions(images, reconstructions, titles, path, most=50):
    """Draw images above their reconstructions, with titles.

    Args:
        images: array `(n, height, width, channels)`, in [0, 1].
        reconstructions: array of that shape, or None.
        titles: list of str.
        path: str. The picture to write.
        most: int. Images that are shown at most. Defaults to 50.
    """
    rows = [images] if reconstructions is None else [images, reconstructions]
    heading = (
        "pictures" if reconstructions is None else "pictures, reconstructions below"
    )
    _draw_images([row[:most] for row in rows], titles[:most], heading, path)


def _draw_images(rows, titles, heading, path, width=10):
    """Draw a grid; each place has the images of that index in `rows`, and a title."""
    count = len(titles)
    columns = max(1, min(width, count))
    lines = max(1, math.ceil(count / columns))
    figure = Figure(
        figsize=(max(5, 1.2 * columns), 0.6 + (0.4 + len(rows)) * 1.1 * lines)
    )
    places = figure.subplots(lines, columns, squeeze=False).ravel()
    for index, axes in enumerate(places):
        axes.axis("off")
        if index < count:
            image = np.concatenate([np.clip(row[index], 0, 1) for row in rows])
            axes.imshow(_shown(image), cmap="gray")
            axes.set_title(titles[index], fontsize=8, parse_math=False)
    figure.suptitle(heading, fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def save_image(image, path):
    """Save an image, and show it as `plot_log` shows its picture.

    Args:
        image: array `(rows, columns)` or `(rows, columns, channels)`, in [0, 1].
        path: str. The file to write; its ending tells the format.
    """
    pixels = np.round(_shown(image) * 255).astype("uint8")
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary)
    if _can_show():
        plt.figure(os.path.basename(path))
        plt.imshow(pixels, cmap="gray")
        plt.axis("off")
        plt.show(block=False)


def _shown(image):
    """Return what a picture can show of an image: three channels, or else the first."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _save(figure, path):
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _can_show():
    """Whether a person is at a prompt, before a screen."""
    interactive = hasattr(sys, "ps1") or matplotlib.is_interactive()
    return interactive and plt.get_backend().lower() != "agg"
