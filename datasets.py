"""Data sets as arrays, and the batches that training and validation are fed with."""

import hashlib
import math
import os

import keras
import numpy as np

MNIST_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data/mnist.npz")
MNIST_SHA256 = "edb50ad5c9f6ad6c7843b0e70355c1294158ccceb854766360abaa61e690c70a"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load_mnist(path=MNIST_PATH):
    """Load the bundled MNIST database of handwritten digits.

    Args:
        path: str. The file. Defaults to `data/mnist.npz` beside this module.

    Returns:
        `((x_train, y_train), (x_test, y_test))` as `load_npz` returns them.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not the file that this project ships.
    """
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != MNIST_SHA256:
        raise ValueError(
            f"{path}: damaged, its sha256 is {digest[:12]}... and not "
            f"{MNIST_SHA256[:12]}...; restore it with `git checkout data/mnist.npz`"
        )
    return load_npz(path)


def load_npz(path):
    """Load a data set from a `.npz` file.

    The file holds `x_train`, `y_train`, `x_test` and `y_test`: images of shape
    `(n, height, width)` or `(n, height, width, channels)`, unsigned integers, signed
    ones from 0 to 255 or floats in [0, 1], and integer labels from 0 on of shape
    `(n,)`.

    Args:
        path: str. The file.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images `(n, height, width, channels)`
        float32 in [0, 1], labels one-hot `(n, n_class)` float32.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not such a file; the message says what is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[name] for name in _ARRAYS)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path}: not a data set: {error}") from error
    n_class = 1 + max(_check_labels(path, y).max() for y in (y_train, y_test))
    if n_class < 2:
        raise ValueError(f"{path}: there is one class only")
    if n_class > len(y_train) + len(y_test):
        raise ValueError(f"{path}: label {n_class - 1} exceeds the number of images")
    splits = []
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x = _to_float(path, x)
        if len(x) != len(y):
            raise ValueError(
                f"{path}: x_{split} has {len(x)} images, y_{split} {len(y)} labels"
            )
        splits.append((x, np.eye(n_class, dtype="float32")[y]))
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        raise ValueError(
            f"{path}: x_train {x_train.shape} and x_test {x_test.shape} have images "
            "of different shapes"
        )
    return tuple(splits)


def _check_labels(path, y):
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(
            f"{path}: labels must be integers from 0 on, not {y.dtype} {y.shape}"
        )
    return y


def _to_float(path, x):
    if x.ndim not in (3, 4) or x.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: images must be (n, height, width[, channels]) integer or float, "
            f"not {x.dtype} {x.shape}"
        )
    x = x if x.ndim == 4 else x[..., np.newaxis]
    if x.dtype.kind in "iu":
        full = np.iinfo(x.dtype).max if x.dtype.kind == "u" else 255
        if x.min() < 0 or x.max() > full:
            raise ValueError(
                f"{path}: images of type {x.dtype} must lie in 0 to {full}"
            )
        scaled = x.astype("float32")
        scaled /= full  # in place: this is the largest array there is
        return scaled
    if not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails
        raise ValueError(f"{path}: images of type float must lie in [0, 1]")
    return x.astype("float32")


def shift_images(images, shifts, xp=np):
    """Move each image by whole pixels; what moves in is zero.

    Args:
        images: array of shape `(n, height, width, channels)`.
        shifts: integer array of shape `(n, 2)`: pixels down and pixels to the right.
        xp: the module to compute with, `numpy` or `keras.ops`. Defaults to `numpy`.

    Returns:
        An array of the shape of `images`.
    """
    n, height, width, channels = images.shape
    rows = xp.arange(height) - shifts[:, :1]  # where a row comes from, (n, height)
    columns = xp.arange(width) - shifts[:, 1:]
    inside = xp.logical_and(
        xp.logical_and(rows >= 0, rows < height)[:, :, None],
        xp.logical_and(columns >= 0, columns < width)[:, None, :],
    )
    source = (
        xp.arange(n)[:, None, None] * (height * width)
        + xp.clip(rows, 0, height - 1)[:, :, None] * width
        + xp.clip(columns, 0, width - 1)[:, None, :]
    )  # (n, height, width)
    moved = xp.take(xp.reshape(images, (-1, channels)), source, axis=0)
    return xp.where(inside[..., None], moved, xp.zeros_like(moved))


class TrainingBatches(keras.utils.PyDataset):
    """Shuffled, randomly shifted batches `((x, y), (y, x))` for the training model.

    Each epoch has a fresh order and fresh shifts, which follow from the seed and the
    number of the epoch alone. The reconstruction target is the shifted image. Every
    batch has the same size, so that nothing is compiled twice: the last one of an epoch
    is filled up with images from the epoch's beginning.

    On an accelerator (JAX and PyTorch) the images are moved to the device once and the
    batches are put together there.

    Args:
        x: array of shape `(n, height, width, channels)`.
        y: array of shape `(n, n_class)`.
        batch_size: int. At most all images make a batch.
        shift_fraction: float in [0, 1). Images move by at most this fraction of their
            side in each direction, rounded down to whole pixels. Defaults to 0.
        seed: int. Defaults to 0.
        on_device: bool. Whether `x` and `y` live on the accelerator. Defaults to False.
        with_images: bool. False gives `(x, y)`, for a model that takes only images and
            gives only classes. Defaults to True.
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
    ):
        super().__init__()
        self.with_images = with_images
        self.xp = keras.ops if on_device else np
        self.placed = keras.ops.convert_to_tensor if on_device else np.asarray
        self.x, self.y = self.placed(x), self.placed(y)
        self.batch_size = min(batch_size, len(x))
        # The small surplus keeps 0.29 * 100 from becoming 28 pixels.
        self.reach = [int(side * shift_fraction + 1e-6) for side in x.shape[1:3]]
        self.seed = seed
        self.draw(epoch=0)

    def draw(self, epoch):
        """Draw the order and the shifts of an epoch, to be called where it begins."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.x)).astype("int32")
        self.order = np.resize(order, len(self) * self.batch_size)
        self.shifts = np.stack(
            [rng.integers(-r, r + 1, len(self.order), "int32") for r in self.reach], 1
        )

    def __len__(self):
        """Return the number of batches an epoch."""
        return math.ceil(len(self.x) / self.batch_size)

    def __getitem__(self, index):
        """Return batch `index` of the epoch."""
        span = slice(index * self.batch_size, (index + 1) * self.batch_size)
        order = self.placed(self.order[span])
        x = self.xp.take(self.x, order, axis=0)
        y = self.xp.take(self.y, order, axis=0)
        if any(self.reach):
            x = shift_images(x, self.placed(self.shifts[span]), self.xp)
        return ((x, y), (y, x)) if self.with_images else (x, y)


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
    """

    def __init__(self, x, y, batch_size, with_images=True):
        super().__init__()
        self.with_images = with_images
        self.x, self.y = x, y
        self.batch_size = min(batch_size, len(x))

    def __len__(self):
        """Return the number of batches."""
        return math.ceil(len(self.x) / self.batch_size)

    def __getitem__(self, index):
        """Return batch `index`."""
        start = index * self.batch_size
        indices = np.arange(start, start + self.batch_size)
        real = indices < len(self.x)
        weights = real.astype("float32") * (len(self) * self.batch_size / len(self.x))
        x, y = (a[np.minimum(indices, len(self.x) - 1)] for a in (self.x, self.y))
        if not self.with_images:
            return x, y, weights
        return (x, y), (y, x), (weights, weights[:, np.newaxis, np.newaxis])
