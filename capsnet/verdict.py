"""Whether an image shows what a network knows: `one` thing, `none`, `two`, or `unsure`.

A network names a class for whatever it is shown. Three quantities tell that an image is
unlike those that it was trained on: how short the longest class capsule is, how long all
others are together, and the error of the reconstruction by the longest (Frosst, Sabour,
Hinton 2018). It is the sum of fourth powers and not of squares, so that a stroke that is
missing counts for more than a drawing that is slightly off everywhere.

How strange a value is, is told by the share of training images with at least that value.
A training keeps, for each quantity, nine tenths of the values as deciles, and the rest
as an exponential tail (Pickands 1975, with shape 0): beyond what any training image has,
strange and stranger still differ. The logarithms of the three shares are added (Fisher
1925). The quantities depend on each other, and so the share of training images with at
least that sum is learned in the same way.

References:
    Fisher. Statistical Methods for Research Workers. 1925, section 21.1.
    Pickands. Statistical Inference Using Extreme Order Statistics. Annals of Statistics
        3, 1975.
    Frosst, Sabour, Hinton. DARCCC: Detecting Adversaries by Reconstruction from Class
        Conditional Capsules. 2018. https://arxiv.org/abs/1811.06969
"""

import collections
import json
import math
import os

import keras
import numpy as np
from keras import ops

from capsnet.files import open_file, sha256
from capsnet.inference import images_at_once, predict_in_batches
from capsnet.options import DEFAULTS
from capsnet.several import LONG

JOINED = ("short", "others", "error")
"""Quantities that make the score; `error` needs a decoder."""

IMAGES, LEAST = 1000, 100
"""Training images that thresholds are learned from, and the fewest that tell anything."""

UNSURE = 3
"""Up to so many times the share of `none`, an image is `unsure`."""

DECILES = np.arange(10) / 10
"""Shares of the training images, whose values are kept; the tail begins at the last."""

LEAST_EXCESS = 1e-9
"""Of the last tenth over the others, where all are equal."""


class Prediction(
    collections.namedtuple("Prediction", "classes lengths reconstructions")
):
    """What a network says of images; unpacks as `(classes, lengths, reconstructions)`.

    Attributes:
        classes: int array `(n,)`, the likeliest classes.
        lengths: float array `(n, n_class)`, the lengths of the class capsules.
        reconstructions: images `(n, height, width, channels)`, None without a decoder.
        verdicts: str array `(n,)` of `one`, `none`, `two` and `unsure`; None where no
            thresholds were given.
        strangeness: float array `(n,)`, likewise: with 2, one in 100 training images is
            at least as strange, with 3 one in 1,000. None of a network that was trained
            on pictures of several classes, whose verdicts count its long capsules.
    """

    verdicts = strangeness = None

    def told(self, i):
        """Return the classes that image `i` is told to show, the longest capsule first.

        The likeliest alone, but of a network that was trained on pictures of several
        classes, which tells all whose capsules are long.
        """
        of_several = self.verdicts is not None and self.strangeness is None
        count = np.sum(self.lengths[i] >= LONG) if of_several else 1
        return np.argsort(-self.lengths[i], kind="stable")[: max(1, count)]


def judged(model, images, lengths, drawn, thresholds=None, share=None):
    """Return the `Prediction` of images, with verdicts where there are thresholds.

    An image is `none` where less than `share` of the training images are as strange,
    and `unsure` up to `UNSURE` times that. It is `two` rather than `none` where the
    second capsule is strangely long too, and what it draws brings the reconstruction
    nearer to the image, as near as two images of usual error would be. Without a
    decoder the length of the second alone decides.

    Args:
        model: the evaluation model.
        images: array `(n, height, width, channels)`.
        lengths: array `(n, n_class)`.
        drawn: the reconstructions, an array of the shape of `images`, or None.
        thresholds: what `learned` returned, or None.
        share: float in [0, 1). Defaults to the command line's.

    Raises:
        ValueError: if the thresholds are none, or of another network.
    """
    result = Prediction(lengths.argmax(1), lengths, drawn)
    if checked(thresholds, drawn is not None) is None:
        return result
    if "long" in thresholds:
        return _by_lengths(result, model, images, thresholds)
    share = DEFAULTS["threshold"] if share is None else share
    found = _quantities(images, lengths, drawn)
    result.strangeness = _decades(_joined(found, thresholds), thresholds["together"])
    usual = 10.0**-result.strangeness
    names = np.where(usual < UNSURE * share, "unsure", "one")
    names[usual < share] = "none"
    long = 10.0 ** -_decades(found["second"], thresholds["second"]) < share
    maybe = np.flatnonzero((usual < share) & long)
    if drawn is not None and len(maybe):
        second = _only(np.argsort(-lengths[maybe])[:, 1], lengths)
        both = np.maximum(drawn[maybe], _drawn_by(model, images[maybe], second))
        left = _error(images[maybe], both)
        usual = 10.0 ** -_decades(left / 2, thresholds["error"])
        maybe = maybe[(left < found["error"][maybe]) & (usual >= share)]
    names[maybe] = "two"
    result.verdicts = names
    return result


def learned(model, batches, epoch):
    """Learn from training images what is usual, as an epoch changes them.

    Args:
        model: the training model.
        batches: `capsnet.data.TrainingBatches`, which draws anew.
        epoch: int. Its number; one that was not trained leaves the images' changes
            fresh, although the images themselves were trained on.

    Returns:
        A dict that JSON can hold: for each quantity nine deciles of its values and the
        smallest before them, and the mean by which the last tenth exceeds them. None
        where there are fewer than `LEAST` training images.
    """
    if len(batches.x) < LEAST:
        return None
    batches.draw(epoch)
    at_once = min(batches.batch_size, images_at_once(model))
    parts = []
    for index in range(min(len(batches), math.ceil(IMAGES / batches.batch_size))):
        batch = batches[index][0] if batches.with_images else batches[index]
        x, y = (ops.convert_to_numpy(array)[:IMAGES] for array in batch)
        outputs = predict_in_batches(model, [x, y][: len(model.inputs)], at_once)
        if len(model.outputs) > 1:  # again, by the longest capsule and not the label's
            y = np.eye(y.shape[1], dtype=y.dtype)[outputs[0].argmax(1)]
            outputs = predict_in_batches(model, [x, y], at_once)
        lengths, drawn = outputs if len(model.outputs) > 1 else (outputs, None)
        parts.append(_quantities(x, lengths, drawn))
    found = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    thresholds = {name: _numbers(values) for name, values in found.items()}
    return {**thresholds, "together": _numbers(_joined(found, thresholds))}


def of_several(shown):
    """Return the thresholds of a network whose training pictures show several classes.

    Args:
        shown: `"two"`, each of which the decoder draws alone, or `"several"`, which it
            draws together.

    Returns:
        A dict that JSON can hold. From the length `long` on a capsule's class is there.
    """
    return {"long": LONG, "shown": shown}


def _by_lengths(result, model, images, thresholds):
    """Add verdicts by how many capsules are long, and draw what all of them stand for."""
    classes, lengths, drawn = result
    long = lengths >= thresholds["long"]
    counts = long.sum(1)
    if drawn is not None:
        drawn = np.copy(drawn)
        many = np.flatnonzero(counts > 1)
        if thresholds["shown"] == "several" and len(many):
            drawn[many] = _drawn_by(model, images[many], long[many])
        elif len(many):
            ranked = np.argsort(-lengths, kind="stable")
            for rank in range(1, counts.max()):
                more = np.flatnonzero(counts > rank)
                alone = _only(ranked[more, rank], lengths)
                drawn[more] += _drawn_by(model, images[more], alone)
            drawn[many] = np.minimum(drawn[many], 1)
    result = Prediction(classes, lengths, drawn)
    result.verdicts = np.array(["none", "one", "two", "unsure"])[np.minimum(counts, 3)]
    return result


def of_weights(path, said, decoder):
    """Return the thresholds that a file of weights has, or a JSON file beside it.

    That is for weights that were trained before there were thresholds: the file by the
    same name that ends in `.json`, with `thresholds` and the `sha256` of the weights'
    file. Another file by that name is passed over.

    Args:
        path: str. The file of weights.
        said: dict, what it says of itself.
        decoder: bool. Whether the weights are of a network with a decoder.

    Returns:
        A dict, or None where there are none.

    Raises:
        ValueError: if they can be none.
    """
    thresholds = said.get("thresholds")
    if thresholds is None:
        try:
            with open_file(os.path.splitext(path)[0] + ".json") as file:
                beside = json.loads(file.read(100_000))
            if beside["sha256"] == sha256(path):
                thresholds = beside["thresholds"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None  # none, or whatever it is a file of
    return checked(thresholds, decoder)


def checked(thresholds, decoder):
    """Return thresholds; raise a `ValueError` if they can be none of such a network."""
    if thresholds in (None, of_several("two"), of_several("several")):
        return thresholds
    names = {*JOINED, "second", "together"} - ({"error"} if not decoder else set())
    if not isinstance(thresholds, dict) or thresholds.keys() != names:
        raise ValueError(
            f"thresholds {repr(thresholds)[:100]}: must be of {', '.join(sorted(names))}"
        )
    for name, numbers in thresholds.items():
        if not (
            isinstance(numbers, list)
            and len(numbers) == len(DECILES) + 1
            and all(type(x) in (int, float) and abs(x) <= 1e12 for x in numbers)
            and sorted(numbers[:-1]) == numbers[:-1]
            and numbers[-1] >= LEAST_EXCESS
        ):
            raise ValueError(
                f"thresholds of {name}, {repr(numbers)[:100]}: must be "
                f"{len(DECILES)} numbers that rise, and an excess, none beyond 1e12"
            )
    return thresholds


def _quantities(images, lengths, drawn):
    """What tells that images are strange, arrays `(n,)` that are larger the more so."""
    ordered = np.pad(np.float64(lengths), ((0, 0), (1, 0)))
    ordered.sort()  # one class has a second, too
    first, second = ordered[:, -1], ordered[:, -2]
    found = {"short": 1 - first, "others": ordered.sum(1) - first, "second": second}
    if drawn is not None:
        found["error"] = _error(images, drawn)
    return found


def _error(images, drawn):
    """The fourth powers summed over pixels and channels, a float64 array `(n,)`."""
    return np.square(np.square(images - drawn)).sum((1, 2, 3), "float64")


def _numbers(values):
    """The deciles of values from 0 to 9, and the mean excess over the last."""
    deciles = np.quantile(values, DECILES)
    beyond = values[values > deciles[-1]] - deciles[-1]
    excess = float(beyond.sum()) / max(1, len(beyond))
    return [*deciles.tolist(), max(excess, LEAST_EXCESS)]


def _decades(values, numbers):
    """Minus the decimal logarithm of the share of training images with such values."""
    deciles, excess = np.array(numbers[:-1]), numbers[-1]
    known = -np.log10(1 - DECILES)
    # From above: a value that many have is as usual as the lowest of its deciles.
    inside = np.interp(-values, -deciles[::-1], known[::-1])
    return inside + np.maximum(0, values - deciles[-1]) / (excess * math.log(10))


def _joined(found, thresholds):
    """The sum of the decades of what is joined."""
    return sum(_decades(found[n], thresholds[n]) for n in JOINED if n in found)


def _only(classes, lengths):
    """One class an image, as `_drawn_by` takes it."""
    return np.eye(lengths.shape[1], dtype=bool)[classes]


def _drawn_by(model, images, classes):
    """Reconstruct each image from the capsules of classes, a boolean array `(n, J)`."""
    digitcaps = keras.Model(model.inputs[0], model.get_layer("digitcaps").output)
    decoder, at_once, parts = model.get_layer("decoder"), images_at_once(model), []
    for begin in range(0, len(images), at_once):  # called: each run would compile anew
        some = slice(begin, begin + at_once)
        capsules = ops.cast(digitcaps(images[some]), "float32")
        mask = ops.convert_to_tensor(classes[some], "float32")
        masked = capsules * mask[:, :, None]
        drawn = decoder(ops.reshape(masked, (masked.shape[0], -1)))
        parts.append(ops.convert_to_numpy(drawn))
    return np.concatenate(parts)
