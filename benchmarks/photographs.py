"""How well digits on photographed paper are read.

    python benchmarks/photographs.py
    python benchmarks/photographs.py --split train --first 1000 --count 500
    python benchmarks/photographs.py --show photographs

Draws images of MNIST as a pen would, photographs the sheet (`photograph`), and reads the
pictures as `--predict` does, with the shipped model. Prints and writes how many of each
kind are read right, `benchmarks/results/photographs.csv`; with `--split train`, where
parameters are chosen, only prints. `clean` are the same digits without a camera, black
on white. `--show` writes some photographs, and what the network is given of them,
to a folder.
"""

import argparse
import io
import os
import sys

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import step

import capsulenet
from capsnet import data as datasets

KINDS = ("gradient", "shadow", "ruled", "blue", "turned", "edge")
"""What `photograph` can do: a strong gradient of the light, with much noise; a hard
shadow; ruled or squared paper; blue ink; a turn of 15 degrees; a table behind the sheet."""

SEEDS = {"train": 0, "test": 1}
"""No scene that parameters were chosen on is measured on."""

WEIGHTS = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    "result",
    "trained_model.h5",
)


def photograph(digit, kind, rng):
    """Photograph a digit that was drawn with a pen on paper.

    Whatever the kind, the light is uneven, the paper has a tint and fibres, the pen
    does not cover evenly, the lens blurs, the sensor has noise and JPEG was used.

    Args:
        digit: array `(28, 28)`, in [0, 1], light on dark as in MNIST.
        kind: str. One of `KINDS`.
        rng: a `numpy.random.Generator`.

    Returns:
        A Pillow image of mode `RGB`, of 200 to 400 pixels a side.
    """
    height, width = rng.integers(200, 401, 2)
    sheet, table = _sheet_and_table(height, width, kind, rng)
    ink = _ink(digit, sheet, 15 * rng.choice([-1, 1]) if kind == "turned" else 0, rng)
    scene = (
        rng.uniform(0.8, 0.95) * rng.uniform(0.92, 1, 3) * np.ones((height, width, 1))
    )
    scene *= 1 + rng.uniform(0.005, 0.02) * _clouds(height, width, 2, rng)[..., None]
    if kind == "ruled":
        scene *= _rules(height, width, rng)
    pen = rng.uniform(0.08, 0.3) * np.ones(3)
    if kind == "blue":
        pen = np.array([rng.uniform(0.1, 0.3), rng.uniform(0.15, 0.4), 0.6])
    scene = scene * (1 - ink[..., None] * (1 - pen))
    scene = np.where(sheet[..., None], scene, table)
    scene *= _light(height, width, kind, rng)[..., None]
    return _camera(scene, rng.uniform(0.02, 0.05 if kind == "gradient" else 0.03), rng)


def _clouds(height, width, size, rng):
    """Smooth noise of mean 0 and deviation 1, with spots of about `size` pixels."""
    coarse = rng.normal(size=(height // size + 2, width // size + 2))
    values = _resize(coarse, (height, width))
    return (values - values.mean()) / values.std()


def _resize(values, shape):
    image = Image.fromarray(values.astype("float32"))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC))


def _blur(values, radius):
    """Blur in 8 bits, which is what Pillow blurs; for values in [0, 1]."""
    image = Image.fromarray(np.uint8(np.round(255 * np.clip(values, 0, 1))))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius))) / 255


def _across(height, width, degrees):
    """How far each pixel lies along a direction, from the middle, in pixels."""
    rows, columns = np.indices((height, width))
    angle = np.radians(degrees)
    rows, columns = rows - (height - 1) / 2, columns - (width - 1) / 2
    return columns * np.cos(angle) + rows * np.sin(angle)


def _sheet_and_table(height, width, kind, rng):
    """Where the sheet lies, bool `(height, width)`, and the colours of the table."""
    sheet = np.ones((height, width), bool)
    if kind != "edge":
        return sheet, np.zeros(3)
    tilt, first = rng.uniform(-8, 8), rng.integers(4)
    shade = np.zeros((height, width))
    for side in range(first, first + rng.integers(1, 3)):  # one side, or a corner
        across = _across(height, width, 90 * side + tilt)
        full = height if side % 2 else width
        beyond = across - full * (0.5 - rng.uniform(0.05, 0.25))
        sheet &= beyond < 0
        shade = np.maximum(shade, np.exp(-np.abs(beyond) / rng.uniform(1, 5)))
    colour = [(0.25, 0.15, 0.1), (0.5, 0.35, 0.2), (0.5, 0.5, 0.52), (0.75, 0.72, 0.7)]
    table = np.array(colour[rng.integers(4)]) * rng.uniform(0.7, 1.2)
    along = np.round(_across(height, width, rng.uniform(0, 180)) / rng.uniform(2, 6))
    grain = rng.normal(size=2000)[along.astype(int) + 1000]
    grain = grain + _clouds(height, width, 12, rng)
    table = table * (1 + rng.uniform(0.02, 0.12) * grain[..., None])
    return sheet, table * (1 - rng.uniform(0.2, 0.7) * shade[..., None])


def _ink(digit, sheet, degrees, rng):
    """Draw the digit on the sheet: how much of each pixel is inked, in [0, 1]."""
    height, width = sheet.shape
    side = int(rng.uniform(0.4, 0.75) * min(height, width))
    while True:
        top, left = (
            rng.integers(0, height - side + 1),
            rng.integers(0, width - side + 1),
        )
        if sheet[top : top + side, left : left + side].all():
            break
        side = max(60, int(0.97 * side))
    turned = Image.fromarray(np.float32(digit)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    turned = turned.rotate(degrees, Image.Resampling.BICUBIC)
    covered = 1 / (1 + np.exp((rng.uniform(0.35, 0.6) - np.asarray(turned)) * side / 4))
    ink = np.zeros((height, width))
    ink[top : top + side, left : left + side] = covered
    pressure = 1 - 0.08 * np.abs(_clouds(height, width, 8, rng))
    return ink * rng.uniform(0.75, 1) * np.clip(pressure, 0.6, 1)


def _rules(height, width, rng):
    """Ruled or squared paper: what its lines leave of the light, `(..., 3)`."""
    tilt, pitch = rng.uniform(-4, 4), rng.uniform(18, 40)
    thick, strength = rng.uniform(1, 2.2), rng.uniform(0.15, 0.5)
    colour = np.array([1, 0.85, 0.6]) if rng.random() < 0.7 else np.ones(3)
    left = np.ones((height, width, 3))
    squared = rng.random() < 0.5
    for degrees in (90, 0) if squared else (90,):
        across = _across(height, width, degrees + tilt) + rng.uniform(0, pitch)
        line = np.abs(across - pitch * np.round(across / pitch))
        covered = np.clip(thick / 2 + 0.5 - line, 0, 1)
        left *= 1 - strength * covered[..., None] * colour
    if not squared and rng.random() < 0.5:  # the margin, in red
        line = np.abs(_across(height, width, tilt) + width * rng.uniform(0.25, 0.45))
        covered = np.clip(thick / 2 + 0.5 - line, 0, 1)
        left *= 1 - strength * covered[..., None] * np.array([0.1, 0.9, 0.9])
    return left


def _light(height, width, kind, rng):
    """The light on the scene, at most 1."""
    darkest = rng.uniform(0.3, 0.6) if kind == "gradient" else rng.uniform(0.6, 0.95)
    across = _across(height, width, rng.uniform(0, 360))
    across = (across - across.min()) / np.ptp(across)
    light = darkest + (1 - darkest) * across ** rng.uniform(0.7, 2)
    far = np.hypot(_across(height, width, 0), _across(height, width, 90))
    light *= 1 - rng.uniform(0, 0.2) * (far / far.max()) ** 2  # of the lens
    if kind == "shadow":
        direction = rng.uniform(0, 360)
        shadow = np.ones((height, width))
        for degrees in (direction, direction + rng.uniform(60, 120))[
            : rng.integers(1, 3)
        ]:
            across = _across(height, width, degrees)
            shadow *= across > rng.uniform(-0.2, 0.2) * min(height, width)
        shadow = _blur(shadow, rng.uniform(0.5, 3))
        light *= 1 - rng.uniform(0.35, 0.65) * shadow
    return light * rng.uniform(0.8, 1.1)


def _camera(scene, noise, rng):
    """Blur, noise of the sensor (more where there is more light), and JPEG."""
    scene = _blur(scene, rng.uniform(0.4, 1.2))
    grain = rng.normal(size=scene.shape) * 0.5 + rng.normal(size=(*scene.shape[:2], 1))
    scene = scene + noise * np.sqrt(0.2 + 0.8 * scene) * grain
    image = Image.fromarray(np.uint8(np.round(255 * np.clip(scene, 0, 1))))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(60, 96)))
    return Image.open(file).convert("RGB")


def clean(digit):
    """The digit as a drawing program has it: smooth, black on white, off the middle."""
    large = Image.fromarray(np.uint8(255 - np.round(255 * digit)))
    paper = Image.new("L", (300, 240), 255)
    paper.paste(large.resize((168, 168), Image.Resampling.BICUBIC), (90, 30))
    return paper


def pictures_of(kind, digits, seed):
    """Return the photographs, or clean drawings, of digits `(n, 28, 28)`."""
    if kind == "clean":
        return [clean(digit) for digit in digits]
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    return [photograph(digit, kind, rng) for digit in digits]


def show(kind, pictures, fitted, folder):
    """Write photographs above what the network is given, ten a row."""
    tiles = []
    for picture, image in zip(pictures[:40], fitted):
        tile = Image.new("RGB", (200, 400))
        tile.paste(picture.convert("RGB").resize((200, 200)), (0, 0))
        small = Image.fromarray(np.uint8(np.round(255 * image[..., 0])))
        tile.paste(small.resize((196, 196), Image.Resampling.NEAREST), (2, 202))
        tiles.append(np.asarray(tile))
    rows = [np.concatenate(tiles[i : i + 10], 1) for i in range(0, len(tiles), 10)]
    rows = [row for row in rows if row.shape == rows[0].shape]
    os.makedirs(folder, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(os.path.join(folder, f"{kind}.png"))


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--first", type=int, default=0, help="the first image")
    parser.add_argument("--count", type=int, default=300, help="images of each kind")
    parser.add_argument("--show", metavar="DIR", help="write pictures there")
    args = parser.parse_args()
    (_, model, _), _ = capsulenet.load_model(WEIGHTS)
    x, y = datasets.load_mnist()[args.split == "test"]
    some = slice(args.first, args.first + args.count)
    digits, classes = x[some, :, :, 0], y[some].argmax(1)
    rows = []
    for kind in ("clean", *KINDS):
        pictures = pictures_of(kind, digits, SEEDS[args.split])
        fitted = [
            datasets.fit_picture(p, (28, 28, 1), like_mnist=True) for p in pictures
        ]
        right = int((capsulenet.predict(model, np.stack(fitted))[0] == classes).sum())
        rows.append(
            {
                "kind": kind,
                "right": right,
                "of": len(digits),
                "share": right / len(digits),
            }
        )
        print("{kind:10}{right:6} of {of}  {share:.1%}".format(**rows[-1]), flush=True)
        if args.show:
            show(kind, pictures, fitted, args.show)
    if args.split == "test":
        base = os.path.join(os.path.dirname(__file__), "results", "photographs.csv")
        step.write_csv(rows, base)


if __name__ == "__main__":
    main()
