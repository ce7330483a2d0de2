"""Every figure: what came out, drawn to files that are whole or not there at all."""

import math
import os
import sys
import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from capsnet import scores
from capsnet.files import whole_file
from capsnet.strokes import STROKES, WEAKEST


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
        width = max(1, math.isqrt(num))
    if height is None:
        height = math.ceil(num / width)
    elif width is None:
        width = math.ceil(num / height)
    if height * width < num:
        raise ValueError(f"{num} images do not fit into a {height} x {width} grid")
    grid = np.zeros((height * width, rows, columns, channels), generated_images.dtype)
    grid[:num] = generated_images
    grid = grid.reshape(height, width, rows, columns, channels).transpose(0, 2, 1, 3, 4)
    image = grid.reshape(height * rows, width * columns, channels)
    return image[:, :, 0] if channels == 1 else image


def plot_log(filename, show=True):
    """Plot a training log, losses above and accuracies below.

    The picture is saved beside the log, as `log.png` for `log.csv`.

    Args:
        filename: str. A CSV file as `keras.callbacks.CSVLogger` writes it; rows are
            counted where it has no column `epoch`.
        show: bool. Whether to open a window too, which happens only in an interactive
            session on a screen and never blocks. Defaults to True.
    """
    data = pd.read_csv(filename)
    epochs = data.get("epoch", data.index) + 1
    show = show and _can_show()
    figure = plt.figure(figsize=(6, 8)) if show else Figure(figsize=(6, 8))
    for axes, kind in zip(figure.subplots(2, 1), ("loss", "acc"), strict=True):
        for column in data.columns:
            if kind in column:
                style = "--" if column.startswith("val_") else "-"
                marker = "o" if len(data) == 1 else None
                axes.plot(epochs, data[column], style, marker=marker, label=column)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss" if kind == "loss" else "accuracy")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.tight_layout()
    save_figure(figure, os.path.splitext(filename)[0] + ".png")
    if show:
        plt.show(block=False)


def show_test(x_test, x_recon, true, predicted, names, save_dir):
    """Draw what came out of a test, and say where.

    Writes `real_and_recon.png`: up to 50 images, each above its reconstruction;
    `confusion.png`: how often which class was taken for which; and `mistakes.png`: up to
    50 misread images.

    Args:
        x_test: array `(n, height, width, channels)`, in [0, 1].
        x_recon: the reconstructions, an array of that shape, or None.
        true: int array `(n,)`.
        predicted: int array `(n,)`.
        names: list of str. The classes.
        save_dir: str. The directory.
    """
    if x_recon is not None:
        path = os.path.join(save_dir, "real_and_recon.png")
        titles = [
            names[t] if t == p else f"{names[t]} as {names[p]}"
            for t, p in zip(true[:50], predicted[:50])
        ]
        heading = (
            f"{len(titles)} of {len(true)} test images under their classes (where misread:"
            " true as predicted);\nbelow each what the network draws again from the "
            "capsule of the class that it predicted"
        )
        draw_images([x_test[:50], x_recon[:50]], titles, heading, path)
        print(f"Reconstructed images are saved to {path}")
    counts = scores.confusion(true, predicted, len(names))
    path = os.path.join(save_dir, "confusion.png")
    plot_confusion(counts, names, path)
    print(f"Which class was taken for which: {path}")
    path = os.path.join(save_dir, "mistakes.png")
    wrong = np.flatnonzero(predicted != true)
    plot_mistakes(x_test[wrong], true[wrong], predicted[wrong], names, path)
    print(f"The misread images: {path}")


def plot_confusion(counts, names, path):
    """Draw how often which class was taken for which, and the accuracy of each.

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
    of_classes, balanced = scores.accuracies(counts)
    if n <= 120:
        axes.set_xticks(range(n), names, rotation=90, parse_math=False)
        axes.set_yticks(range(n), names, parse_math=False)
        percent = ["" if np.isnan(a) else f"{a:.1%}" for a in of_classes]
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(n), percent)
        right.set_ylabel("accuracy")
        for side in (axes, right):
            side.tick_params(labelsize=10 if n <= 30 else 8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    wrong, total = mistakes.sum(), counts.sum()
    heading = f"{wrong} of {total} images misread"
    axes.set_title(f"{heading}\nbalanced accuracy {balanced:.1%}", fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


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
    draw_images([images[:shown]], titles[:shown], heading, path)


def plot_manipulations(image, drawn, amounts, name, path):
    """Draw what each dimension of a class capsule changes (Sabour et al. 2017, figure 4).

    A row a dimension, a column an amount that is added to it; the column where nothing
    is added is framed. The image stands beside them.

    Args:
        image: array `(height, width, channels)`, in [0, 1]. A test image of the class.
        drawn: array `(dim, len(amounts), height, width, channels)`, in [0, 1]: its
            reconstructions.
        amounts: float array, with a 0.
        name: str. The class.
        path: str. The picture to write.
    """
    dim, count, height, width, _ = drawn.shape
    inches = np.clip(max(height, width) / 50, 0.65, 1.28)  # of the longer side
    down, across = inches * np.array([height, width]) / max(height, width)
    size = (max(5.5, 1.3 + across * (count + 1)), max(4, 1.8 + down * dim))
    figure = Figure(figsize=size, layout="constrained")
    left, axes = figure.subplots(1, 2, width_ratios=(1, count))
    left.imshow(what_shows(image), cmap="gray", vmin=0, vmax=1)
    left.set_anchor("N")
    left.set_title("test\nimage", fontsize=9)
    left.axis("off")
    grid = combine_images(np.clip(np.concatenate(drawn), 0, 1), height=dim)
    axes.imshow(what_shows(grid), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks(
        width * (np.arange(count) + 0.5) - 0.5,
        [f"{amount:+.2f}" if amount else "0" for amount in np.round(amounts, 9)],
        rotation=0 if across > 0.5 else 90,
    )
    axes.set_yticks(height * (np.arange(dim) + 0.5) - 0.5, range(dim))
    axes.tick_params(labelsize=9, length=0)
    axes.set_xlabel("added to that dimension (framed: nothing)")
    axes.set_ylabel("dimension of the capsule")
    corner = width * np.argmin(np.abs(amounts)) - 0.5, -0.5
    frame = Rectangle(corner, width, height * dim, fill=False, color="C1", linewidth=2)
    axes.add_patch(frame)
    figure.suptitle(
        f"{textwrap.fill(f'An image of class {name},', 60)}\nthat the network draws again "
        f"from its capsule of {dim} numbers,\none of which is changed in each row",
        fontsize=10,
        parse_math=False,
    )
    save_figure(figure, path)


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
            axes.imshow(what_shows(image), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            strongest = np.argmax(np.abs(effects[row][column]))
            effect = effects[row][column][strongest]
            axes.set_title(
                f"{STROKES[strongest]} {effect:+.1f}",
                fontsize=8,
                color=f"C{strongest}" if abs(effect) >= WEAKEST else "0.7",
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
    save_figure(figure, path)


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
    draw_images([row[:most] for row in rows], titles[:most], heading, path)


def draw_images(rows, titles, heading, path, width=10):
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
            axes.imshow(what_shows(image), cmap="gray", vmin=0, vmax=1)
            lines = (textwrap.fill(line, 19) for line in titles[index].split("\n"))
            axes.set_title("\n".join(lines), fontsize=8, parse_math=False)
    figure.suptitle(heading, fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def save_image(image, path):
    """Save an image, and show it as `plot_log` shows its picture.

    Args:
        image: array `(rows, columns)` or `(rows, columns, channels)`, in [0, 1] or uint8.
        path: str. The file to write; its ending tells the format.
    """
    scale = 1 if image.dtype == "uint8" else 255
    pixels = np.round(np.clip(what_shows(image) * scale, 0, 255)).astype("uint8")
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary)
    if _can_show():
        plt.figure(os.path.basename(path))
        plt.imshow(pixels, cmap="gray")
        plt.axis("off")
        plt.show(block=False)


def what_shows(image):
    """Return what a picture can show of an image: three channels, or else the first."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def save_figure(figure, path):
    """Write a figure to a file that is whole or not there at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _can_show():
    """Whether a person is at a prompt, before a screen."""
    interactive = hasattr(sys, "ps1") or matplotlib.is_interactive()
    return interactive and plt.get_backend().lower() != "agg"
