"""The batches of training and validation."""

import math

import keras
import numpy as np

from capsnet.data.changes import Augmentation


def _batch_size(batch_size, n, devices):
    """No more than the images make, but a multiple of the devices."""
    return -(-min(batch_size, n) // devices) * devices


def _span(index, batch_size, share):
    """Where in the epoch one part of a batch lies, a slice."""
    part, parts = share
    own = batch_size // parts
    start = index * batch_size + part * own
    return slice(start, start + own)


def shows_several(y):
    """Whether some images show several classes, or none, by their labels `(n, n_class)`."""
    return bool(np.any(np.sum(y, axis=1) != 1))


def check_can_be_paired(x, y):
    """Raise a `ValueError` where images can't be overlapped with those of other classes."""
    why = None
    if x.shape[-1] > 1:
        why = "they are coloured, and overlapped colours make others"
        why += " (--color gray reads a folder's pictures as grey)"
    elif shows_several(y):
        why = "some show several classes already"
    elif np.count_nonzero(np.sum(y, axis=0)) < 2:
        why = "all show the same class"
    if why:
        raise ValueError(f"--pairs: these images can't be overlapped: {why}")


def _partners(classes, first, rng, chances):
    """Draw for each image one of another class, by the chances of each, or all alike."""

    def draw(count, dtype="int64"):
        if chances is None:
            return rng.integers(len(classes), size=count, dtype=dtype)
        return rng.choice(len(classes), count, p=chances)

    second = draw(len(first), "int32").astype("int32")
    while (alike := np.flatnonzero(classes[second] == classes[first])).size:
        second[alike] = draw(alike.size)
    return second


class TrainingBatches(keras.utils.PyDataset):
    """Shuffled, randomly changed batches `((x, y), (y, x))` for the training model.

    Each epoch has a fresh order and fresh shifts, rotations and scales, which follow
    from the seed and the number of the epoch alone. The reconstruction target is the
    changed image. Every batch has the same size, so that nothing is compiled twice: the
    last one of an epoch is filled up with images from the epoch's beginning.

    On an accelerator (JAX and PyTorch) the images are moved to the device once and the
    batches are put together there.

    Args:
        x: array of shape `(n, height, width, channels)`.
        y: array of shape `(n, n_class)`.
        batch_size: int. At most all images make a batch.
        shift_fraction: float in [0, 1). See `Augmentation`. Defaults to 0.
        seed: int. Defaults to 0.
        on_device: bool. Whether `x` and `y` live on the accelerator. Defaults to False.
        with_images: bool. False gives `(x, y)`, for a model that takes only images and
            gives only classes. Defaults to True.
        workers: int. Threads that prepare batches. Defaults to 1.
        devices: int. A batch of all images is filled up to a multiple of this.
            Defaults to 1.
        share: pair of int. With `(i, n)` this is part `i` of `n` equal parts of each
            batch, for host `i` of `n`. Defaults to `(0, 1)`.
        balance: bool. Whether the images of all classes are drawn equally often, those
            of rare classes several times an epoch. Defaults to False.
        overlap: int. Each image is overlapped with one of another class, both moved by
            at most so many pixels in place of `shift_fraction`, and batches are `((x,
            labels (B, 2, n_class)), (y, digits (B, 2, height, width, channels)))`: what
            each of the two is, and how it looks alone. None for single images. Defaults
            to None.
        **changes: what else is changed, see `Augmentation`. Defaults to nothing.

    Attributes:
        commonest: float. The share of the commonest class among what is drawn; where
            images show several, that of the commonest set of classes.

    Raises:
        ValueError: if images can't be overlapped.
    """

    def __init__(
        self,
        x,
        y,
        batch_size,
        shift_fraction=0.0,
        seed=0,
        on_device=False,
        with_images=True,
        workers=1,
        devices=1,
        share=(0, 1),
        balance=False,
        overlap=None,
        **changes,
    ):
        super().__init__(workers=workers)
        if overlap is not None:
            check_can_be_paired(x, y)
        self.with_images = with_images
        self.xp = keras.ops if on_device else np
        self.placed = keras.ops.convert_to_tensor if on_device else np.asarray
        self.x, self.y = self.placed(x), self.placed(y)
        self.batch_size = _batch_size(batch_size, len(x), devices)
        self.share = share
        self.parts = 1 if overlap is None else 2
        self.augmentation = Augmentation(
            x.shape[1:], shift_fraction, shift_pixels=overlap, **changes
        )
        self.groups = [np.arange(len(x))]
        if balance:  # those that show no class are one more
            shown = (*np.transpose(y), ~np.any(y, axis=1))
            groups = [np.flatnonzero(of_class) for of_class in shown]
            self.groups = [members for members in groups if len(members)]
        self.chances = np.zeros(len(x))  # that an image is drawn next
        for members in self.groups:
            self.chances[members] += 1 / (len(self.groups) * len(members))
        self.commonest = self._commonest(y)
        self.classes = np.argmax(y, 1)
        self.seed = seed
        self.draw(epoch=0)

    def draw(self, epoch):
        """Draw the order and the changes of an epoch, to be called where it begins."""
        rng = np.random.default_rng((self.seed, epoch))
        self.order = np.resize(self._order(rng), len(self) * self.batch_size)
        if self.parts > 1:
            chances = self.chances if len(self.groups) > 1 else None
            second = _partners(self.classes, self.order, rng, chances)
            self.order = np.append(self.order, second)
        self.augmentation.draw(len(self.order), rng)

    def _commonest(self, y):
        """The share of the commonest class, or set of them, among what is drawn."""
        kinds = np.argmax(y, 1)
        if shows_several(y):
            kinds = np.unique(y, axis=0, return_inverse=True)[1].ravel()
        shares = np.bincount(kinds, self.chances)
        if self.parts == 1:
            return shares.max()
        meet = np.outer(shares / (1 - shares), shares)  # the second is of another class
        meet += meet.T
        return np.max(meet, where=~np.eye(len(meet), dtype=bool), initial=0)

    def _order(self, rng):
        """The images of an epoch, each once, or as many of each class."""
        n = len(self.x)
        if len(self.groups) == 1:
            return rng.permutation(n).astype("int32")
        each = -(-n // len(self.groups))
        drawn = [np.resize(rng.permutation(group), each) for group in self.groups]
        return rng.permutation(np.concatenate(drawn)).astype("int32")[:n]

    def __len__(self):
        """Return the number of batches an epoch."""
        return math.ceil(len(self.x) / self.batch_size)

    def __getitem__(self, index):
        """Return batch `index` of the epoch."""
        span = _span(index, self.batch_size, self.share)
        x, y = self._changed(span)
        if self.parts == 1:
            if not self.with_images:
                return x, y
            # Copies: with two devices TensorFlow takes over an array's memory and writes
            # the reconstruction's error over its target, which would be the input too.
            return (x, y), (self.xp.copy(y), self.xp.copy(x))
        all_first = len(self) * self.batch_size
        second = slice(span.start + all_first, span.stop + all_first)
        digits, labels = (
            self.xp.stack(pair, 1) for pair in zip((x, y), self._changed(second))
        )
        x, y = self.xp.minimum(self.xp.sum(digits, 1), 1), self.xp.sum(labels, 1)
        return ((x, labels), (y, digits)) if self.with_images else (x, y)

    def _changed(self, span):
        """The images and labels whose turn it is, changed."""
        order = self.placed(self.order[span])
        x = self.xp.take(self.x, order, axis=0)
        y = self.xp.take(self.y, order, axis=0)
        return self.augmentation.apply(x, span, self.xp), y


class ValidationBatches(keras.utils.PyDataset):
    """Batches `((x, y), (y, x), weights)` of equal size, in order.

    The last batch is filled up with images of weight zero, so that nothing is compiled
    for a smaller one; all others have the weight that makes Keras' averages over the
    batches exact. Each output has weights of its own, of the shape of its losses.

    Args:
        x: array of shape `(n, height, width, channels)`.
        y: array of shape `(n, n_class)`.
        batch_size: int.
        with_images: bool. See `TrainingBatches`. Defaults to True.
        devices: int. See `TrainingBatches`. Defaults to 1.
        share: pair of int. See `TrainingBatches`. Defaults to `(0, 1)`.
        digits: pair of arrays. The `labels` and `digits` of pairs, see
            `capsnet.data.Pairs`. Defaults to None.
    """

    def __init__(
        self,
        x,
        y,
        batch_size,
        with_images=True,
        devices=1,
        share=(0, 1),
        digits=None,
    ):
        super().__init__()
        self.with_images = with_images
        self.x, self.y = x, y
        self.labels, self.targets = digits or (y, x)
        self.batch_size = _batch_size(batch_size, len(x), devices)
        self.share = share

    def __len__(self):
        """Return the number of batches."""
        return math.ceil(len(self.x) / self.batch_size)

    def __getitem__(self, index):
        """Return batch `index`."""
        span = _span(index, self.batch_size, self.share)
        indices = np.arange(span.start, span.stop)
        real = indices < len(self.x)
        weights = real.astype("float32") * (len(self) * self.batch_size / len(self.x))
        arrays = (self.x, self.y, self.labels, self.targets)
        x, y, labels, targets = (a[np.minimum(indices, len(a) - 1)] for a in arrays)
        if not self.with_images:
            return x, y, weights
        of_targets = weights.reshape(-1, *(1,) * (targets.ndim - 2)).copy()
        return (x, labels), (y, targets), (weights, of_targets)
