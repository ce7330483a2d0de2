"""How well it is known that an image is no digit, by the weights that are shipped.

    python benchmarks/unknown.py
    python benchmarks/unknown.py --fashion /usr/share/datasets/fashion-mnist
    python benchmarks/unknown.py --learn

The test digits of MNIST against what is none, each prepared as `--predict` does: test
images of Fashion-MNIST, letters in the fonts that matplotlib ships, blank pages, noise,
and two test digits side by side or overlapped. For each set the area under the ROC curve
(the chance that one of the set seems stranger than a digit) of the length of the longest
capsule, of its lead over the second, of the squared error of the reconstruction, of the
score of `capsnet.verdict`, and of the softmax maximum of a CNN that
is trained here (Hendrycks and Gimpel 2017); and the share of the set that gets each
verdict. Everything is drawn from `SEED`. Writes `benchmarks/results/unknown.csv`.

`--learn` learns the thresholds of the shipped weights from training images, and writes
them to `result/trained_model.json`; nothing else is read for it.
"""

import argparse
import functools
import glob
import gzip
import json
import os
import struct

import keras
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from step import ROOT, write_csv  # which also puts the repository on the path

import capsulenet
import reproduce
from capsnet import data as datasets
from capsnet import verdict
from capsnet.files import sha256, write_text

SEED, EPOCHS = 0, 50
"""Of the training of the shipped weights, the seed also of what is drawn here."""

CNN_EPOCHS = 2

SHAPE = (28, 28, 1)

LETTERS = "ACEFGHJKLMNPQRTUVWXYacdefhjkmnprtuvwxy"
"""Those that do not read as digits."""

LIKE_DIGITS = "BDIOSZbgiloqsz"
"""The other letters, a set of their own."""

FONTS = ("Sans", "SansMono", "Serif")
"""Families of DejaVu, which matplotlib ships."""


def fitted(picture):
    """Return a picture, a uint8 array, as `--predict` fits it to the network."""
    return datasets.fit_picture(Image.fromarray(picture), SHAPE, like_mnist=True)


def letter(rng, letters):
    """Draw a letter, black on white, in one of the fonts, turned by up to 10 degrees."""
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    paths = sorted(
        path
        for family in FONTS
        for path in glob.glob(os.path.join(folder, f"DejaVu{family}*.ttf"))
        if "Display" not in path
    )
    font = ImageFont.truetype(
        paths[rng.integers(len(paths))], int(rng.integers(40, 90))
    )
    page = Image.new("L", (160, 160), 255)
    text = letters[rng.integers(len(letters))]
    ImageDraw.Draw(page).text((80, 80), text, 0, font, anchor="mm")
    page = page.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC, fillcolor=255)
    return fitted(np.asarray(page))


def blank(rng):
    """Draw an even page of any grey, as large as the network's images or larger."""
    side = int(rng.choice([28, 64]))
    return fitted(np.full((side, side), rng.integers(256), "uint8"))


def noise(rng):
    """Draw each pixel evenly from black to white."""
    return fitted(rng.integers(0, 256, SHAPE[:2], "uint8"))


def colour_noise(rng):
    """Draw each colour of each pixel likewise."""
    side = int(rng.choice([28, 64]))
    return fitted(rng.integers(0, 256, (side, side, 3), "uint8"))


def two_of(rng, images, labels):
    """Choose two digits of different classes, uint8 arrays of 28 x 28."""
    first = rng.integers(len(images))
    second = rng.choice(np.flatnonzero(labels != labels[first]))
    return [np.round(images[i, :, :, 0] * 255).astype("uint8") for i in (first, second)]


def side_by_side(rng, images, labels):
    """Draw two digits on 28 x 56 pixels."""
    return fitted(np.concatenate(two_of(rng, images, labels), axis=1))


def overlapped(rng, images, labels):
    """Draw two digits on 36 x 36, each moved by up to 4 (Sabour et al. 2017, 6)."""
    page = np.zeros((36, 36), "uint8")
    for digit in two_of(rng, images, labels):
        down, right = rng.integers(0, 9, 2)
        place = page[down : down + 28, right : right + 28]
        np.maximum(place, digit, out=place)
    return fitted(page)


def fashion(folder):
    """Read the test images of Fashion-MNIST, `(10000, 28, 28, 1)` in [0, 1].

    Args:
        folder: str. Where its IDX files are; None has Keras bring them.
    """
    if folder is None:
        return datasets.load("fashion_mnist").test[0]
    (path,) = glob.glob(os.path.join(folder, "t10k-images-idx3-ubyte*"))
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        shape = struct.unpack(">xxxxIII", file.read(16))
        pixels = np.frombuffer(file.read(), "uint8")
    return pixels.reshape(*shape, 1).astype("float32") / 255


def strange_sets(images, labels, n, folder, seed=SEED):
    """Make the sets of what is no digit.

    Args:
        images: array `(m, 28, 28, 1)`. Digits, of which two make a picture.
        labels: int array `(m,)`.
        n: int. Images a set.
        folder: str. See `fashion`.
        seed: int.

    Returns:
        A dict of names to arrays `(n, 28, 28, 1)`.
    """
    digits = {"images": images, "labels": labels}
    draw = {
        "letters": functools.partial(letter, letters=LETTERS),
        "letters like digits": functools.partial(letter, letters=LIKE_DIGITS),
        "blank": blank,
        "noise": noise,
        "colour noise": colour_noise,
        "side by side": functools.partial(side_by_side, **digits),
        "overlapped": functools.partial(overlapped, **digits),
    }
    sets = {}
    for number, (name, one) in enumerate(draw.items()):
        rng = np.random.default_rng((seed, number))
        sets[name] = np.stack([one(rng) for _ in range(n)])
    clothes = fashion(folder)
    chosen = np.random.default_rng(seed).permutation(len(clothes))[:n]
    return {"Fashion-MNIST": clothes[chosen], **sets}


def auroc(true, strange):
    """Return the chance that one of `strange` is above one of `true`; ties count half."""
    true = np.sort(true)
    below = np.searchsorted(true, strange, "left") + np.searchsorted(
        true, strange, "right"
    )
    return below.mean() / (2 * len(true))


def trained_cnn(train):
    """Train a small CNN on the digits."""
    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "categorical_crossentropy")
    model.fit(*train, batch_size=100, epochs=CNN_EPOCHS, verbose=2)
    return model


def learn(model, train, path):
    """Learn the thresholds of shipped weights as its training would have."""
    flags = reproduce.RECIPES["averaged"]
    args = capsulenet.build_parser().parse_args(list(flags))
    how = {"shifts": args.shifts, "rotation": args.rotation, "zoom": args.zoom}
    how |= {"shift_fraction": args.shift_fraction, "seed": SEED}
    batches = datasets.TrainingBatches(*train, args.batch_size, **how)
    thresholds = verdict.learned(model, batches, EPOCHS)
    told = {"sha256": sha256(path), "thresholds": thresholds}
    write_text(os.path.splitext(path)[0] + ".json", json.dumps(told, indent=1) + "\n")


def scores(model, cnn, images, thresholds):
    """Return the prediction, and what tells that an image is strange, by its name."""
    result = capsulenet.predict(model, images, thresholds)
    lengths = np.sort(result.lengths)
    errors = np.square(images - result.reconstructions).sum((1, 2, 3))
    return result, {
        "length": -lengths[:, -1],
        "lead": lengths[:, -2] - lengths[:, -1],
        "error": errors,
        "score": result.strangeness,
        "cnn": -cnn.predict(images, verbose=0).max(1),
    }


def measure(model, cnn, digits, labels, sets, thresholds):
    """Compare each set with the digits; returns a row for each and for the digits."""
    verdicts = ("one", "unsure", "none", "two")

    def row(name, given, areas):
        shares = {v: round(float((given == v).mean()), 4) for v in verdicts}
        return {"images": name, "n": len(given), **areas, **shares}

    result, true = scores(model, cnn, digits, thresholds)
    nothing = dict.fromkeys(true, "")
    wrong = result.classes != labels
    rows = [
        row("digits", result.verdicts, nothing),
        row("misread digits", result.verdicts[wrong], nothing),
    ]
    for name, images in sets.items():
        result, strange = scores(model, cnn, images, thresholds)
        areas = {kind: round(auroc(true[kind], strange[kind]), 4) for kind in true}
        rows.append(row(name, result.verdicts, areas))
    return rows


def main():
    """Learn, or measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--n", type=int, default=1000, help="images of each set")
    parser.add_argument("--learn", action="store_true", help="learn the thresholds")
    args = parser.parse_args()
    capsulenet.set_allocator()
    path = os.path.join(ROOT, "result", "trained_model.h5")
    (trained, model, _), about = capsulenet.load_model(path)
    train, (digits, labels) = datasets.load_mnist()
    if args.learn:
        learn(trained, train, path)
        return
    labels = labels.argmax(1)
    sets = strange_sets(digits, labels, args.n, args.fashion)
    cnn = trained_cnn(train)
    rows = measure(model, cnn, digits, labels, sets, about["thresholds"])
    print(*(f"{name:>9}" for name in rows[0]))
    for row in rows:
        print(*(f"{value!s:>9}" for value in row.values()))
    results = os.path.join(os.path.dirname(__file__), "results")
    write_csv(rows, os.path.join(results, "unknown.csv"))


if __name__ == "__main__":
    main()
