"""Sets of pictures as people bring them, what the network for pictures makes of them.

python benchmarks/own_pictures.py                        # all sets, three seeds
python benchmarks/own_pictures.py --sets shapes --seeds 1

Each set is drawn from its seed and written as a folder of PNG files, with `train/` and
`test/`, then trained by `python capsulenet.py --dataset FOLDER --save_dir OUT`, no other
flag, in a process of its own; beside it, on the same pictures and by the same training,
its convolutions with a dense layer in place of the capsules.
`--sets fashion` needs Debian's package `dataset-fashion-mnist`, see `--fashion`.

Writes `results/own_pictures.csv` and `results/own_pictures.png`.
"""

import argparse
import csv
import gzip
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results", "own_pictures.csv")
SHAPES = ("circle", "square", "triangle")

SETS = {
    "shapes": {"size": (64, 64), "counts": (150, 150, 150)},
    "bright_on_black": {"size": (64, 64), "counts": (150, 150, 150), "black": True},
    "several_sizes": {"size": (200, 150), "counts": (100, 100, 100), "jitter": 10},
    "uneven": {"size": (64, 64), "counts": (300, 20, 20)},
    "shapes_128": {"size": (128, 128), "counts": (60, 60, 60)},
    "shapes_224": {"size": (224, 224), "counts": (60, 60, 60)},
}
"""Width and height, and pictures of each class; a fifth of them, at least 20 of each
class (drawn besides), are for the test."""


def draw(shape, size, rng, black=False):
    """Draw one shape in a random colour on a ground of another, with noise.

    Args:
        shape: one of `SHAPES`.
        size: pair of int, width and height in pixels.
        rng: generator of NumPy.
        black: bool. Whether the ground is black and the shape bright. Defaults to False.

    Returns:
        A Pillow image.
    """
    fine = 4  # drawn so many times larger, so that edges are soft
    width, height = (fine * side for side in size)
    ground, colour = np.zeros(3), rng.integers(128, 256, 3)
    if not black:
        ground = colour  # so that both are drawn
        while np.abs(colour - ground).sum() < 120:
            ground, colour = rng.integers(0, 256, (2, 3))
    image = Image.new("RGB", (width, height), tuple(map(int, ground)))
    radius = min(width, height) * rng.uniform(0.2, 0.4)
    x = rng.uniform(radius, width - radius)
    y = rng.uniform(radius, height - radius)
    fill = tuple(map(int, colour))
    if shape == "circle":
        box = [x - radius, y - radius, x + radius, y + radius]
        ImageDraw.Draw(image).ellipse(box, fill=fill)
    else:
        sides = {"square": 4, "triangle": 3}[shape]
        turn = rng.uniform(-15, 15)
        ImageDraw.Draw(image).regular_polygon((x, y, radius), sides, turn, fill=fill)
    image = image.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(image) + rng.normal(0, 20, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))


def write_set(name, seed, folder):
    """Write a set of `SETS` as a folder of pictures."""
    of = SETS[name]
    rng = np.random.default_rng((seed, sorted(SETS).index(name)))
    for shape, count in zip(SHAPES, of["counts"]):
        tests = max(20, count // 5)
        for split, number in (("train", count - count // 5), ("test", tests)):
            where = os.path.join(folder, split, shape)
            os.makedirs(where)
            for index in range(number):
                jitter = of.get("jitter", 0)
                size = [
                    side + int(rng.integers(-jitter, jitter + 1)) for side in of["size"]
                ]
                picture = draw(shape, tuple(size), rng, of.get("black", False))
                picture.save(os.path.join(where, f"{index}.png"))


def write_fashion(source, path):
    """Write Fashion-MNIST's four files, IDX, as an `.npz` file."""
    arrays = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        for kind, rank, key in (("images-idx3", 3, "x"), ("labels-idx1", 1, "y")):
            with gzip.open(os.path.join(source, f"{name}-{kind}-ubyte.gz")) as file:
                content = file.read()
            shape = np.frombuffer(content, ">i4", rank, 4)
            values = np.frombuffer(content, "uint8", offset=4 + 4 * rank)
            arrays[f"{key}_{split}"] = values.reshape(shape)
    np.savez(path, **arrays)


def capsules(dataset, out, flags=()):
    """Train by the command line; returns what a row of the table needs."""
    command = [sys.executable, os.path.join(HERE, "..", "capsulenet.py")]
    command += ["--dataset", dataset, "--save_dir", out, *flags]
    began = time.perf_counter()
    with subprocess.Popen(command) as training:
        _, status, used = os.wait4(training.pid, 0)  # of this child alone
        training.returncode = os.waitstatus_to_exitcode(status)
    if training.returncode:
        raise subprocess.CalledProcessError(training.returncode, command)
    seconds = time.perf_counter() - began
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    import capsulenet
    from capsnet import data

    (_, model, _), _ = capsulenet.load_model(os.path.join(out, "trained_model.h5"))
    size = model.inputs[0].shape[1:3]
    loaded = data.load(dataset, None if os.path.isfile(dataset) else size)
    predicted = capsulenet.predict(model, loaded.test[0])[0]
    return row(predicted, loaded, seconds, peak)


def without_capsules(dataset, seed, out, flags=()):
    """Train the same convolutions with a dense layer in place of capsules, likewise.

    What they say is averaged over the picture, and a softmax tells the class. Options,
    and with them steps and changes of the pictures, are those of the network for
    pictures; there is no decoder.
    """
    import capsulenet
    from capsnet.training import start

    began = time.perf_counter()
    flags = ["--dataset", dataset, "--seed", str(seed), "--save_dir", out, *flags]
    args = capsulenet.build_parser().parse_args([*flags, "--model", "photo"])
    loaded, _ = start.prepare(args)
    (x, y), (x_test, _) = loaded.train, loaded.test
    model = cnn(x.shape[1:], y.shape[1])
    capsulenet.train(model, (loaded.train, loaded.test), args)
    seconds = time.perf_counter() - began
    predicted = model.predict(x_test, verbose=0).argmax(1)
    return row(predicted, loaded, seconds, float("nan"))


def cnn(input_shape, n_class):
    """Build the convolutions of `PhotoCapsNet`, their average, and a dense layer."""
    from keras import Model, layers

    from capsnet.networks.photo import residual_stem

    x = layers.Input(input_shape)
    only = {"center": False, "scale": False}
    features = layers.LayerNormalization(axis=[1, 2, 3], **only)(x)
    features = residual_stem(input_shape)(features)
    features = layers.GlobalAveragePooling2D(data_format="channels_last")(features)
    return Model(x, layers.Dense(n_class, activation="softmax")(features))


def row(predicted, loaded, seconds, peak):
    """Return the columns that are measured."""
    true = loaded.test[1].argmax(1)
    of_class = [np.mean(predicted[true == c] == c) for c in np.unique(true)]
    return {
        "accuracy": round(float(np.mean(predicted == true)), 4),
        "balanced_accuracy": round(float(np.mean(of_class)), 4),
        "seconds": round(seconds, 1),
        "peak_gb": round(peak, 2),
        "train_images": len(loaded.train[0]),
        "test_images": len(true),
    }


def plot(path):
    """Draw the means over seeds, with the range."""
    rows = pd.read_csv(path)
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    names = list(dict.fromkeys(rows["set"]))
    networks = list(dict.fromkeys(rows["network"]))
    width = 0.8 / len(networks)
    for index, network in enumerate(networks):
        of = rows[rows["network"] == network].groupby("set")["balanced_accuracy"]
        mean = 100 * of.mean().reindex(names)
        spread = [mean - 100 * of.min().reindex(names)]
        spread.append(100 * of.max().reindex(names) - mean)
        places = np.arange(len(names)) + (index - (len(networks) - 1) / 2) * width
        axes.bar(places, mean, width, yerr=spread, label=network)
    axes.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names])
    axes.set_ylabel("balanced test accuracy, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above the bars
    figure.tight_layout()
    figure.savefig(os.path.splitext(path)[0] + ".png", dpi=100)


def main():
    """Train on each set with each seed, and append a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sets", nargs="+", default=list(SETS), help="sets, or fashion"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=["photo", "cnn"])
    parser.add_argument("--fashion", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--flags", default="", help="more flags, for trials")
    parser.add_argument("--results", default=RESULTS)
    args = parser.parse_args()
    sys.path.insert(0, os.path.dirname(HERE))
    for name in args.sets:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                dataset = os.path.join(folder, "set")
                if name == "fashion":
                    dataset += ".npz"
                    write_fashion(args.fashion, dataset)
                else:
                    write_set(name, seed, dataset)
                for network in args.networks:
                    out = os.path.join(folder, network)
                    if network == "photo":
                        measured = capsules(dataset, out, args.flags.split())
                    else:
                        measured = without_capsules(
                            dataset, seed, out, args.flags.split()
                        )
                    keep(
                        args.results,
                        {"set": name, "seed": seed, "network": network} | measured,
                    )
    plot(args.results)


def keep(path, measured):
    """Append a row to the table, and print it."""
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, measured)
        if new:
            writer.writeheader()
        writer.writerow(measured)
    print(measured, flush=True)


if __name__ == "__main__":
    main()
