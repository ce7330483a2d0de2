"""Data sets as arrays: what they have to be, and `.npz` files of them."""

import collections
import os
import stat
import zipfile

import numpy as np

from capsnet import machine

MOST_UNPACKED = 2_000_000_000
"""Bytes that an `.npz` file may unpack to, or 20 times its own size if that is more."""

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Data(collections.namedtuple("Data", "train test class_names")):
    """A data set; unpacks as `(train, test, class_names)`.

    `train` and `test` are pairs of images, float32 `(n, height, width, channels)` in
    [0, 1], and one-hot labels, float32 `(n, n_class)`; `class_names` are the names of
    the classes, in the order of the labels. `held_out` is a pair of training images and
    labels that a training is validated on in place of the test, or None.
    """

    held_out = None

    def with_train(self, train, held_out=None):
        """Return the same test, with another training part."""
        data = self._replace(train=train)
        data.held_out = held_out
        return data


def load_npz(path):
    """Load a data set from a `.npz` file.

    The file holds `x_train`, `y_train`, `x_test` and `y_test`: images of shape
    `(n, height, width)` or `(n, height, width, channels)`, unsigned integers, signed
    ones from 0 to 255 or floats in [0, 1], and labels of shape `(n,)`, integers or
    strings. Each label that occurs is a class, in their order. Or labels of shape `(n,
    n_class)`, zeros and ones: an image may show several classes.

    Args:
        path: str. The file.

    Returns:
        A `Data`.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not such a file; the message says what is wrong.
    """
    try:
        check_is_file(path)
        with zipfile.ZipFile(path) as archive:
            _check_unpacked(path, archive.infolist())
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in _ARRAYS]
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path}: not a data set: {error}") from error
    _check_memory(path, *arrays[::2])  # the images
    return from_arrays(path, *arrays)


def check_is_file(path):
    """Refuse what is no file before it is opened, which might never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a file")


def _check_unpacked(path, members):
    """Refuse arrays that claim more memory than a file of this size can be worth."""
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(MOST_UNPACKED, 20 * os.path.getsize(path)):
        raise ValueError(
            f"unpacks to {unpacked / 1e6:.0f} MB, a bomb; one of your own can be kept as "
            "uint8, or by np.savez, which does not compress"
        )


def from_arrays(source, x_train, y_train, x_test, y_test, class_names=None):
    """Check arrays as `load_npz` takes them, and turn them into a `Data`."""
    of_several = y_train.ndim == y_test.ndim == 2
    (_check_of_several if of_several else _check_labels)(source, y_train, y_test)
    if {y_train.dtype.kind, y_test.dtype.kind} == {"i", "u"}:
        if max(y_train.max(), y_test.max()) >= 2**63:
            raise ValueError(f"{source}: labels of 2**63 and more beside signed ones")
        y_train, y_test = y_train.astype("int64"), y_test.astype("int64")
    if class_names or of_several:
        labels = np.arange(len(class_names) if class_names else y_train.shape[1])
    else:
        labels = np.unique(np.concatenate([np.unique(y_train), np.unique(y_test)]))
    if len(labels) < 2:
        raise ValueError(f"{source}: there is one class only")
    if len(labels) > 2000:
        raise ValueError(f"{source}: {len(labels)} classes; are these labels?")
    splits = []
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x = _to_float(source, x)
        if len(x) != len(y):
            raise ValueError(
                f"{source}: x_{split} has {len(x)} images, y_{split} {len(y)} labels"
            )
        if len(y) * len(labels) > max(2**27, 4 * x.size):
            raise ValueError(
                f"{source}: {len(labels)} classes are too many for {len(x)} images of "
                f"{x.size // len(x)} pixels"
            )
        if not of_several:
            y = np.eye(len(labels), dtype="float32")[np.searchsorted(labels, y)]
        splits.append((x, y.astype("float32", copy=False)))
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        raise ValueError(
            f"{source}: x_train {x_train.shape} and x_test {x_test.shape} have images "
            "of different shapes"
        )
    names = (n.decode() if isinstance(n, bytes) else str(n) for n in labels.tolist())
    names = class_names or tuple(names)
    for name in names:
        if not is_class_name(name):
            raise ValueError(
                f"{source}: class {name[:100]!r}: a name has at most 255 printable "
                "characters"
            )
    return Data(*splits, names)


def _check_memory(source, *images):
    """Refuse images that would not fit into the memory beside their float32."""
    there = machine.machine_memory()
    needed = sum(x.nbytes + 4 * x.size for x in images)
    if there and needed > there:
        raise ValueError(
            f"{source}: needs {needed / 1e9:.1f} GB, and this machine has {there / 1e9:.1f}"
        )


def _check_labels(source, y_train, y_test):
    for y in (y_train, y_test):
        if y.ndim != 1 or not len(y) or y.dtype.kind not in "iuUS":
            raise ValueError(
                f"{source}: labels must be integers or strings of shape (n,), or zeros "
                f"and ones of shape (n, n_class), not {y.dtype} {y.shape}"
            )
    if (y_train.dtype.kind in "US") != (y_test.dtype.kind in "US"):
        raise ValueError(f"{source}: y_train is {y_train.dtype}, y_test {y_test.dtype}")


def _check_of_several(source, y_train, y_test):
    if y_train.shape[1] != y_test.shape[1]:
        raise ValueError(
            f"{source}: y_train {y_train.shape} and y_test {y_test.shape} are of "
            "different classes"
        )
    if not y_train.any():
        raise ValueError(f"{source}: no training image shows any class")
    for y in (y_train, y_test):
        if not y.size or y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"{source}: labels of shape {y.shape} must be zeros and ones"
            )


def is_class_name(name):
    """Whether this can be the name of a class, which is printed and drawn."""
    return isinstance(name, str) and name.isprintable() and len(name) <= 255


def _to_float(source, x):
    if x.ndim not in (3, 4) or x.dtype.kind not in "iuf" or not x.size:
        raise ValueError(
            f"{source}: images must be (n, height, width[, channels]) integer or float, "
            f"not {x.dtype} {x.shape}"
        )
    x = x if x.ndim == 4 else x[..., np.newaxis]
    if x.dtype.kind in "iu":
        full = np.iinfo(x.dtype).max if x.dtype.kind == "u" else 255
        least, most = x.min(), x.max()
        if least < 0 or most > full:
            raise ValueError(
                f"{source}: images of type {x.dtype} must lie in 0 to {full}"
            )
        if most == 1 or 1 < most <= 255 < full:
            raise ValueError(
                f"{source}: images of type {x.dtype} from 0 to {most} would be black, "
                f"since white is {full}: give uint8 from 0 to 255, or floats in [0, 1]"
            )
        scaled = x.astype("float32")
        scaled /= full  # in place: this is the largest array there is
        return scaled
    if not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails
        raise ValueError(f"{source}: images of type float must lie in [0, 1]")
    return x.astype("float32")
