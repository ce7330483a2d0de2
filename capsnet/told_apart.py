"""How well pictures of several classes are read: the test, and what it draws.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017, figure 5 and
        table 1. https://arxiv.org/abs/1710.09829
    Mazzia, Salvetti, Chiaberge. Efficient-CapsNet. Scientific Reports 11, 2021, whose
        figure for MultiMNIST is the share of the digits that are found.
"""

import os

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from capsnet import options, pictures, several
from capsnet.data import Pairs
from capsnet.errors import printable
from capsnet.inference import predict_in_batches

COLUMNS = 8
"""Pictures in a row of `multimnist.png`."""

COLOURS = np.array([[1.0, 0.45, 0.0], [0.0, 0.55, 1.0]], "float32")
"""Orange for the one digit, blue for the other."""


class Reader:
    """The class capsules of pictures, and what the decoder draws from one or some.

    Args:
        model: the evaluation model of one of the networks.
    """

    def __init__(self, model):
        names = [layer.name for layer in model.layers]
        self.decoder = model.get_layer("decoder") if "decoder" in names else None
        of = [model.get_layer(name).output for name in ("digitcaps", "capsnet")]
        self.capsules = keras.Model(model.inputs[0], of)

    def read(self, images):
        """Return the class capsules `(n, J, O)` of images and their lengths `(n, J)`."""
        return predict_in_batches(self.capsules, [images])

    def draw(self, capsules, classes):
        """Draw from those capsules alone that `classes (n, J)` has ones for."""
        masked = capsules * classes[:, :, np.newaxis]
        return predict_in_batches(self.decoder, [masked.reshape(len(masked), -1)])


def test(model, data, args):
    """Print how many pictures are read without a mistake, and draw some.

    Writes `multimnist.png` or `pairs.png` of pairs, see `plot_pairs`, and else
    `real_and_recon.png`.

    Args:
        model: the evaluation model of one of the networks.
        data: `(x_test, y_test)`; of `capsnet.data.Pairs` all blocks are read.
        args: namespace with all options.

    Returns:
        The share of pictures of which exactly the classes are told that they show.
    """
    pairs = isinstance(data, Pairs)
    shown = "two" if pairs else "several"
    names = options.class_names(args, data[1].shape[1])
    reader = Reader(model)
    print("-" * 30 + "Begin: test" + "-" * 30)
    counts, right, total, error, first = 0, 0, 0, 0.0, None
    for block in data.blocks() if pairs else [data]:
        (x, y), (capsules, lengths) = block, reader.read(block[0])
        told = ops.convert_to_numpy(several.present(lengths, shown))
        is_right = (told == (y > 0.5)).all(1)
        counts = counts + np.array([y.sum(0), (told * y).sum(0), told.sum(0)])
        right, total = right + int(is_right.sum()), total + len(x)
        if pairs and reader.decoder is not None:
            error += _squared_error(reader, capsules, block) * len(x)
        first = first or (block, capsules, told, is_right)
    _say(shown, right, total, counts, names)
    if reader.decoder is not None:
        if pairs:
            print(
                f"Reconstruction error: {error / total:.4f}, the mean square of a pixel"
            )
        (_draw_pairs if pairs else _draw_several)(reader, *first, names, args)
    print("-" * 30 + "End: test" + "-" * 30)
    return right / total


def _squared_error(reader, capsules, pairs):
    """The mean squared error of a pixel, of each digit drawn from its own capsule."""
    errors = [
        np.square(reader.draw(capsules, pairs.labels[:, i]) - pairs.digits[:, i]).mean()
        for i in (0, 1)
    ]
    return float(np.mean(errors))


def _say(shown, right, total, counts, names):
    """Print what came out; `counts` are of each class shown, found, and told."""
    print(f"Test acc: {right / total:.4f}")
    wrong = total - right
    how = {
        "two": "the two longest capsules are not the pair",
        "several": f"the capsules of at least {several.LONG} are not those of its classes",
    }[shown]
    print(
        f"Test error: {100 * wrong / total:.2f}% ({wrong} of {total} pictures: {how})"
    )
    there, found, told = counts
    if not there.any():
        print("Classes found: no test picture shows a class")
        return
    things = "Digits" if shown == "two" else "Classes"
    print(f"{things} found: {100 * found.sum() / there.sum():.2f}% of those shown")
    for what, of in (("found of those shown", there), ("right of those told", told)):
        listed = [
            f"{names[i]} {100 * found[i] / of[i]:.1f}%"
            for i in np.flatnonzero(of)[np.argsort((found / np.maximum(of, 1))[of > 0])]
        ]
        listed = ", ".join(listed[:20]) + ", ..." * (len(listed) > 20)
        print(f"Each class, {what}: {printable(listed)}")
    never = ", ".join(names[i] for i in np.flatnonzero((there > 0) & (told == 0))[:20])
    if never:
        print(f"Warning: never told, though test pictures show it: {printable(never)}")


def _draw_several(reader, data, capsules, told, is_right, names, args):
    """Draw pictures above what the decoder makes of all classes that were told."""
    (x, y), some = data, slice(50)
    drawn = reader.draw(capsules[some], told[some].astype("float32"))
    titles = [
        _joined(t, names) if ok else f"{_joined(t, names)} as {_joined(p, names)}"
        for t, p, ok in zip(y[some] > 0.5, told[some], is_right[some])
    ]
    heading = (
        f"{len(titles)} of {len(x)} test images under their classes (where misread: true "
        "as predicted);\nbelow each what the network draws from their capsules"
    )
    path = os.path.join(args.save_dir, "real_and_recon.png")
    pictures.draw_images([x[some], drawn], titles, heading, path)
    print(f"Reconstructed images are saved to {path}")


def _joined(classes, names):
    """The names of the classes that a boolean array has, none as a dash."""
    return ", ".join(names[i] for i in np.flatnonzero(classes)) or "–"


def _draw_pairs(reader, pairs, capsules, told, is_right, names, args):
    """Choose pictures that were read, misread, and asked for what is not there."""
    rng = np.random.default_rng(args.seed)
    first, second = pairs.labels.argmax(2).T
    longest = np.where(told, np.linalg.norm(capsules, axis=2), -1).argsort(1)[:, :-3:-1]
    columns = []
    for what, among in (
        ("read", is_right),
        ("misread", ~is_right),
        ("asked", is_right),
    ):
        for i in rng.permutation(np.flatnonzero(among))[:COLUMNS]:
            asked = [first[i], second[i]] if what == "read" else list(longest[i])
            if what == "asked":
                absent = np.flatnonzero(~told[i] & (pairs.y[i] < 0.5))
                asked = [first[i], rng.choice(absent)] if len(absent) else asked
            columns.append((what, i, asked))
    indices = np.array([i for _, i, _ in columns])
    eye = np.eye(len(names), dtype="float32")
    drawn = [
        reader.draw(capsules[indices], eye[[asked[k] for _, _, asked in columns]])
        for k in (0, 1)
    ]
    shown = [
        (
            what,
            pairs.x[i],
            (a, b),
            (names[first[i]], names[second[i]]),
            [names[j] for j in asked],
        )
        for (what, i, asked), a, b in zip(columns, *drawn)
    ]
    name = "multimnist.png" if args.dataset == "multimnist" else "pairs.png"
    path = os.path.join(args.save_dir, name)
    plot_pairs(shown, path)
    print(f"Pairs and what is drawn of each digit: {path}")


BANDS = {
    "read": "read without a mistake: drawn from the capsules of the two that are there",
    "misread": "misread: drawn from the two longest capsules",
    "asked": "asked for one that is there, and for one that is not",
}
"""The three parts of `multimnist.png`."""


def plot_pairs(columns, path):
    """Draw pairs above what the decoder makes of two capsules (Sabour et al., figure 5).

    Args:
        columns: list of `(band, image, (one, other), shown, asked)`: a key of `BANDS`,
            the picture, two reconstructions, each `(height, width, 1)`, and two pairs of
            names, of what is shown and of what the reconstructions are of.
        path: str. The picture to write.
    """
    bands = [band for band in BANDS if any(c[0] == band for c in columns)]
    figure = Figure(
        figsize=(1.15 * COLUMNS + 1, 5.6 * len(bands)), layout="constrained"
    )
    for part, band in zip(np.atleast_1d(figure.subfigures(len(bands), 1)), bands):
        part.suptitle(BANDS[band], fontsize=10)
        grid = part.subplots(4, COLUMNS, squeeze=False)
        for axes in grid.ravel():
            axes.set(xticks=[], yticks=[], frame_on=False)
        for axes, what in zip(grid[:, 0], ("picture", "both", "one", "the other")):
            axes.set_ylabel(what, fontsize=9)
        for of_column, (_, image, drawn, shown, asked) in zip(
            grid.T, (c for c in columns if c[0] == band)
        ):
            title = f"{shown[0]} and {shown[1]}"
            of_column[0].set_title(title, fontsize=9, parse_math=False)
            both = sum(d * colour for d, colour in zip(drawn, COLOURS))
            of_column[0].imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            of_column[1].imshow(np.clip(both, 0, 1))
            for axes, one, colour, name in zip(of_column[2:], drawn, COLOURS, asked):
                axes.imshow(np.clip(one * colour, 0, 1))
                axes.set_xlabel(name, fontsize=9, parse_math=False)
    pictures.save_figure(figure, path)
