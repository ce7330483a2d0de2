"""Two digits in one picture, overlapped, as in MultiMNIST.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017, section 6.
        https://arxiv.org/abs/1710.09829
    Their code, Sarasra/models, research/capsules/input_data/mnist/mnist_shift.py:
        padded by 4 pixels, moved by up to 6, merged as `min(a + b, 255)`.
"""

import collections

import numpy as np

from capsnet.data.batches import TrainingBatches, shows_several

TEST_SEED = 2017
"""Draws the pairs of a test, so that all tests are of the same ones."""


class Pairs(collections.namedtuple("Pairs", "x y")):
    """Pictures of two overlapped images; unpacks as `(x, y)`.

    Attributes:
        x: array `(n, height, width, channels)`, in [0, 1]: the pictures.
        y: array `(n, n_class)`, with 1 for both classes that a picture shows.
        labels: array `(n, 2, n_class)`, one-hot: the class of each of the two.
        digits: array `(n, 2, height, width, channels)`: each of the two alone.
        blocks: function that gives an iterator over all pictures of the test, in blocks
            of `Pairs`; what is held here is the first.
    """


def shown(*labels, are_paired=False):
    """Return how many classes the pictures of a data set show.

    Args:
        *labels: arrays `(n, n_class)`, with 1 for each class that a picture shows: of
            the training pictures and of those that it is measured on.
        are_paired: bool. Whether each of them is overlapped with another.

    Returns:
        `"one"`, `"two"`, or `"several"` where their number differs.
    """
    if are_paired:
        return "two"
    return "several" if any(map(shows_several, labels)) else "one"


def shown_class(y, most):
    """Return the last class up to `most` that labels `(n, n_class)` show, else the first."""
    shown = np.any(y, axis=0)
    there = np.flatnonzero(shown if shown.any() else ~shown)
    return int(max(there[there <= most], default=there[0]))


def pad(images, margin=None):
    """Add a margin to images, which stays zero.

    Args:
        images: array `(n, height, width, channels)`.
        margin: int. Pixels on each side. Defaults to a seventh of the shorter side, 4
            for MNIST, as in the authors' code.

    Returns:
        An array `(n, height + 2 * margin, width + 2 * margin, channels)`.
    """
    margin = min(images.shape[1:3]) // 7 if margin is None else margin
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def unpad(images):
    """Take off the margin that `pad` gives, of a ninth of the shorter side then."""
    height, width = images.shape[1:3]
    margin = min(height, width) // 9
    return images[:, margin : height - margin, margin : width - margin]


def paired(x, y, count=None, shift=6, seed=TEST_SEED):
    """Overlap images of different classes to the fixed pictures of a test.

    Each block shows each image once as the first of a pair, with a second one that is
    drawn evenly among those of other classes.

    Args:
        x: array `(n, height, width, 1)`, in [0, 1], with its margin.
        y: one-hot array `(n, n_class)`.
        count: int. Pictures. Defaults to n.
        shift: int. Pixels that each of the two moves at most, in each direction.
            Defaults to 6, as in the authors' code; their paper has 4.
        seed: int. Draws the pairs.

    Returns:
        A `Pairs`.

    Raises:
        ValueError: if the images are coloured, or show several classes, or one alone.
    """
    count = len(x) if count is None else count

    def blocks():
        batches = TrainingBatches(x, y, len(x), seed=seed, overlap=shift)
        for block in range(-(-count // len(x))):
            batches.draw(block)
            (pictures, labels), (classes, digits) = batches[0]
            left = slice(count - block * len(x))
            part = Pairs(pictures[left], classes[left])
            part.labels, part.digits = labels[left], digits[left]
            part.blocks = lambda part=part: iter([part])
            yield part

    first = next(blocks())
    first.blocks = blocks
    return first
