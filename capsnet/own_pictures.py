"""`--predict`: the user's own pictures, and what the network says of them."""

import json
import math
import os
import sys

import numpy as np

from capsnet import data, options, pictures
from capsnet.architecture import architecture, check_asked
from capsnet.errors import printable
from capsnet.files import make_save_dir
from capsnet.training.recipe import TOLD

BYTES_AT_ONCE = 2**28
"""Images that are held at once have so many bytes, about; answers come after each."""

DRAWN = 50
"""Pictures that are drawn."""


def answer(args, load_model, predict):
    """Tell the classes of picture files, and whether they show one at all.

    Prints a table, or with `args.json` a JSON object a line. A picture that can't be
    read is named on the way. With a `save_dir` that was given, writes
    `predictions.png`, pictures beside reconstructions, and what was done to prepare
    each.

    Args:
        args: namespace of the command line.
        load_model: function of that name of `capsulenet`.
        predict: likewise.

    Returns:
        The number of pictures that can't be read.

    Raises:
        OSError: if the weights can't be read.
        ValueError: if they are none, or no picture can be read.
    """
    options.check_options(args)
    (_, model, _), about = load_model(args.weights, args.routings, args.image_size)
    asked = [name for name in ("model", *TOLD) if name in args.given]
    check_asked(args, architecture(model) if asked else {}, asked)
    shape = tuple(model.inputs[0].shape[1:])
    data.check_channels(shape)
    names, files = about["class_names"], []
    for path in args.predict:
        files += data.pictures_under(path) if os.path.isdir(path) else [path]
    how = (shape, about["like_mnist"], not args.no_invert)
    at_once = max(DRAWN, BYTES_AT_ONCE // (4 * math.prod(shape)))
    told, drawn = 0, []
    for first in range(0, len(files), at_once):
        images, read, done = _read(files[first : first + at_once], how)
        if not read:
            continue
        result = predict(model, images, about["thresholds"], args.threshold)
        if not (told or args.json):
            likeliest = "likeliest, with capsule length"
            print(f"{'class':<12}  {'verdict':<7}  {likeliest:<42}  picture")
        _tell(read, done, result, names, args.json)
        told += len(read)
        drawn += _titled(images, done, result, names)[: DRAWN - len(drawn)]
    if not told:
        these = printable(" ".join(args.predict))
        raise ValueError(f"--predict {these}: no readable pictures")
    if "save_dir" in args.given:
        make_save_dir(args.save_dir)
        path = os.path.join(args.save_dir, "predictions.png")
        images, reconstructions, titles = zip(*drawn)
        reconstructions = None if result.reconstructions is None else reconstructions
        pictures.plot_predictions(images, reconstructions, titles, path)
        print(f"Pictures and reconstructions: {path}", file=sys.stderr)
    return len(files) - told


def _read(files, how):
    """Read pictures as the network takes them; names those that can't be read.

    Args:
        files: list of str.
        how: what `capsnet.data.fit_and_tell` takes beside the picture.

    Returns:
        `(images, read, done)`: a list of arrays `(height, width, channels)`, their paths,
        and what was done with each.
    """
    images, read, done = [], [], []
    for path in files:
        try:
            picture = data.read_picture(path)
        except ValueError as error:
            print(f"Left out: {printable(error)}", file=sys.stderr)
            continue
        image, changes = data.fit_and_tell(picture, *how)
        images.append(image)
        read.append(path)
        done.append(changes)
    return images, read, done


def _tell(files, done, result, names, as_json):
    """Print a table of the likeliest classes, or a JSON object a line.

    Args:
        files: list of str. The pictures.
        done: list of str. What was done with each.
        result: `capsnet.verdict.Prediction` of them.
        names: list of str. The classes.
        as_json: bool.
    """
    for i, (path, how, row) in enumerate(zip(files, done, result.lengths)):
        name = _class(result, i, names)
        likeliest = [(names[j], round(float(row[j]), 4)) for j in np.argsort(-row)[:3]]
        said = {"verdict": None, "strangeness": None}
        if result.verdicts is not None:
            said["verdict"] = str(result.verdicts[i])
        if result.strangeness is not None:
            said["strangeness"] = round(float(result.strangeness[i]), 2)
        if as_json:
            told = {"file": path, "class": name, **said, "lengths": dict(likeliest)}
            print(json.dumps({**told, "done": how}))
        else:
            text = "  ".join(f"{name} {length:.3f}" for name, length in likeliest)
            shown = said["verdict"] or "-"
            print(f"{name:<12}  {shown:<7}  {text:<42}  {printable(path)}")


def _titled(images, done, result, names):
    """The first pictures, their reconstructions, and what is written above them."""
    titles = [_class(result, i, names) for i in range(len(images))][:DRAWN]
    if result.verdicts is not None:
        titles = list(map("{}: {}".format, titles, result.verdicts))
    lines = [how.replace(", ", "\n") for how in done]
    titles = map("{}\n{}".format, titles, lines)
    drawn = result.reconstructions
    return list(zip(images, images if drawn is None else drawn, titles))


def _class(result, i, names):
    """The name of the likeliest class, or of all that the image is told to show."""
    return " + ".join(names[j] for j in result.told(i))
