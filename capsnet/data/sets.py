"""Data sets by their names: `load` takes what `--dataset` takes."""

import hashlib
import io
import os
import pathlib
import pickle

import keras
import numpy as np

from capsnet.data.affine import bent, load_mat, margin_of, placed
from capsnet.data.arrays import Data, from_arrays, load_npz
from capsnet.data.batches import check_can_be_paired
from capsnet.data.folders import load_folder
from capsnet.data.pairs import pad, paired
from capsnet.errors import first_line
from capsnet.files import keras_home
from capsnet.options import (
    DEFAULTS,
    HELD_OUT,
    are_held_out,
    are_paired,
    check_data,
    check_dataset,
)

MNIST_PATH = str(pathlib.Path(__file__).parents[2] / "data" / "mnist.npz")
"""The MNIST that a clone of this project has beside its package."""

MNIST_SHA256 = "edb50ad5c9f6ad6c7843b0e70355c1294158ccceb854766360abaa61e690c70a"
"""Of that file."""

_MNIST_ARRAYS_SHA256 = (
    "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
)
"""Of its four arrays, one after the other."""


_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load(
    name,
    image_size=None,
    color="auto",
    test_share=0.2,
    seed=0,
    overlap=None,
    test_size=10_000,
    affnist=None,
):
    """Load a data set by its name, from a folder of pictures, or from an `.npz` file.

    Args:
        name: str. One of `NAMED_SETS`, or a path.
        image_size: pair of int, optional. Height and width for the pictures of a
            folder, see `load_folder`.
        color: `"auto"`, `"gray"` or `"rgb"`, for a folder.
        test_share: float. Share of a folder's pictures that are kept for the test.
        seed: int. Draws those.
        overlap: int, optional. Images get a margin, and the test is of pairs that are
            moved by at most so many pixels, see `paired`.
        test_size: int. Of so many pairs, or bent digits. Defaults to 10,000.
        affnist: str, optional. A file of the original affNIST, to test on.

    Returns:
        A `Data`; its `test` is a `capsnet.data.Pairs` if there is an `overlap`.

    Raises:
        OSError: if a file can't be read.
        ValueError: if it is no data set, or can't be paired; the message says why.
    """
    data = _load(name, image_size, color, test_share, seed)
    if name == "multimnist" and overlap is None:
        overlap = DEFAULTS["overlap_shift"]
    if name == "affnist":
        data = _affine(data, test_size, affnist)
    elif overlap is not None:
        check_can_be_paired(*data.train)
        if len(data.class_names) < 3:
            raise ValueError("--pairs: of two classes each picture would show both")
        (x_train, y_train), (x_test, y_test) = data.train, data.test
        if overlap >= min(pad(x_test[:1]).shape[1:3]):
            raise ValueError(f"--overlap_shift {overlap}: moves digits out of sight")
        test = paired(pad(x_test), y_test, test_size, overlap)
        data = Data((pad(x_train), y_train), test, data.class_names)
    return data


def _affine(data, test_size, affnist):
    """MNIST with margins, and a test of bent digits."""
    (x_train, y_train), (x_test, y_test) = data.train, data.test
    x_train = margin_of(x_train)
    if affnist is None:
        test = bent(margin_of(x_test), y_test, test_size)
    else:
        typical = np.stack([x_train[of > 0].mean(0)[..., 0] for of in y_train.T])
        test = load_mat(affnist, typical)
    return Data((x_train, y_train), test, data.class_names)


def hold_out(x, y, images=None):
    """Cut training images in two, always in the same way.

    Args:
        x: array `(n, height, width, channels)`.
        y: array `(n, n_class)`.
        images: int. Use so many of them. Defaults to all.

    Returns:
        Two pairs `(x, y)`: what is left to train on, and `HELD_OUT` images, a quarter
        where there are few.

    Raises:
        ValueError: if there are less than four.
    """
    order = np.random.default_rng(0).permutation(len(x))[:images]
    count = min(HELD_OUT, len(order) // 4)
    if not count:
        raise ValueError(
            f"a quarter of the training images is held out, and there are {len(order)}"
        )
    return tuple((x[part], y[part]) for part in (order[count:], order[:count]))


def _with_held_out(data, args, images=None):
    """Hold out some training images, composed as those of the test are."""
    train, held_out = hold_out(*data.train, images)
    if args.dataset == "affnist":
        held_out = placed(*held_out)
    elif are_paired(args):
        held_out = paired(*held_out, shift=args.overlap_shift)
    return data.with_train(train, held_out)


def load_for(args, images=None, tests_held_out=False):
    """Load the data set that the command line asks for.

    Args:
        args: namespace with all options. With `--until`, and of affNIST, some training
            images are held out, to validate on.
        images: int. Use so many training images, drawn always in the same way. Defaults
            to all.
        tests_held_out: bool. Whether the test is of training images as well, held out
            before all others. Defaults to False.

    Returns:
        A `Data`.

    Raises:
        OSError: as `load`.
        ValueError: likewise, and where an option is for another kind of data set.
    """
    check_data(args)
    data = load(
        args.dataset,
        args.image_size,
        args.color,
        args.test_share,
        overlap=args.overlap_shift if are_paired(args) else None,
        test_size=args.test_size,
        affnist=args.affnist,
    )
    if tests_held_out:
        data = _with_held_out(data, args, images)
        data = Data(data.train, data.held_out, data.class_names)
    elif images:
        some = np.random.default_rng(0).permutation(len(data.train[0]))[:images]
        data = data.with_train(tuple(array[some] for array in data.train))
    return _with_held_out(data, args) if are_held_out(args) else data


def _load(name, image_size, color, test_share, seed):
    if name in ("mnist", "multimnist", "affnist"):
        return Data(*load_mnist(), tuple("0123456789"))
    if name == "fashion_mnist":
        return _load_fashion_mnist()
    if name == "cifar10":
        return _load_cifar10()
    if os.path.isdir(name):
        return load_folder(name, image_size, color, test_share, seed)
    check_dataset(name)
    return load_npz(name)


def load_mnist(path=None):
    """Load the MNIST database of handwritten digits.

    Args:
        path: str. The file. Defaults to the one that a clone of this project has; where
            that is not there, since the project is installed, Keras brings the same.

    Returns:
        `((x_train, y_train), (x_test, y_test))`, see `Data`.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not what this project ships.
    """
    if path is None and not os.path.exists(MNIST_PATH):
        return _load_mnist_by_keras()
    path = path or MNIST_PATH
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != MNIST_SHA256:
        raise ValueError(
            f"{path}: damaged, its sha256 is {digest[:12]}... and not "
            f"{MNIST_SHA256[:12]}...; restore it with `git checkout data/mnist.npz`"
        )
    data = load_npz(path)
    return data.train, data.test


def _load_mnist_by_keras():
    folder = os.path.join(keras_home(), "datasets")
    origin = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
    load_data = keras.datasets.mnist.load_data
    train, test = _download("mnist", load_data, "mnist.npz", origin, folder)
    content = b"".join(array.tobytes() for array in (*train, *test))
    if hashlib.sha256(content).hexdigest() != _MNIST_ARRAYS_SHA256:
        raise ValueError(f"{folder}: its mnist.npz is not MNIST; remove it")
    return from_arrays("mnist", *train, *test)[:2]


def _download(name, load_data, files, origin, folder):
    """Call Keras' loader; where it fails, say which files to put where."""
    try:
        return load_data()
    except Exception as error:  # Keras raises a bare Exception without a network
        raise ValueError(
            f"--dataset {name}: can't be downloaded ({first_line(error)}); "
            f"put {files} from {origin} into {folder}"
        ) from error


def _load_fashion_mnist():
    names = (f"{a}-{b}-ubyte.gz" for a in ("train", "t10k") for b in _IDX)
    splits = _download(
        "fashion_mnist",
        keras.datasets.fashion_mnist.load_data,
        ", ".join(names),
        "https://github.com/zalandoresearch/fashion-mnist",
        os.path.join(keras_home(), "datasets", "fashion-mnist"),
    )
    return from_arrays("fashion_mnist", *splits[0], *splits[1], _FASHION)


_IDX = ("images-idx3", "labels-idx1")


def _load_cifar10():
    """Read CIFAR-10 where Keras has unpacked it, or have Keras download it first."""
    unpacked = os.path.join(keras_home(), "datasets", "cifar-10-batches-py-target")
    folder = os.path.join(unpacked, "cifar-10-batches-py")
    if not os.path.isdir(folder):
        _download(
            "cifar10",
            keras.datasets.cifar10.load_data,
            "the unpacked cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            unpacked,
        )
    batches = [_read_cifar(folder, f"data_batch_{i}") for i in range(1, 6)]
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*batches))
    test = _read_cifar(folder, "test_batch")
    return from_arrays("cifar10", x_train, y_train, *test, _CIFAR10)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of NumPy arrays, and refuses everything that could run code."""

    def find_class(self, module, name):
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.zeros(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, coding: text.encode(coding)
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


def _read_cifar(folder, name):
    """Read one batch in CIFAR-10's own format."""
    path = os.path.join(folder, name)
    with open(path, "rb") as file:
        content = file.read()
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        x = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return x, np.asarray(batch[b"labels"], "uint8")
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path}: not a batch of CIFAR-10: {error}") from error
