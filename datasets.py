"""Data sets as arrays, pictures, and the batches of training and validation.

`load` takes what `--dataset` takes: a name, a folder of pictures, or an `.npz` file.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import stat
import typing
import warnings
import zipfile

import keras
import numpy as np
from PIL import Image, ImageOps

import devices
from utils import printable, whole_file

MNIST_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data/mnist.npz")
MNIST_SHA256 = "edb50ad5c9f6ad6c7843b0e70355c1294158ccceb854766360abaa61e690c70a"
NAMED = ("mnist", "fashion_mnist", "cifar10")
"""Names that `load` knows."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
"""Endings of the files in a folder that are taken for pictures."""

MOST_UNPACKED = 200_000_000
"""Bytes that an `.npz` file may unpack to, or 20 times its own size if that is more."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF")
"""What a picture is read as, whatever its ending: Pillow would run code for others."""

LARGEST_PICTURE = 50_000_000
"""Pixels of a picture that is still read; what claims more is refused unread."""

CACHE_BYTES = 4_000_000_000
"""What the cache of pictures holds at most; what was longest unused leaves it first."""

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Data(typing.NamedTuple):
    """A data set.

    `train` and `test` are pairs of images, float32 `(n, height, width, channels)` in
    [0, 1], and one-hot labels, float32 `(n, n_class)`; `class_names` are the names of
    the classes, in the order of the labels.
    """

    train: tuple
    test: tuple
    class_names: tuple


def load(name, image_size=None, color="auto", test_share=0.2, seed=0):
    """Load a data set by its name, from a folder of pictures, or from an `.npz` file.

    Args:
        name: str. One of `NAMED`, or a path.
        image_size: pair of int, optional. Height and width for the pictures of a
            folder, see `load_folder`.
        color: `"auto"`, `"gray"` or `"rgb"`, for a folder.
        test_share: float. Share of a folder's pictures that are kept for the test.
        seed: int. Draws those.

    Returns:
        A `Data`.

    Raises:
        OSError: if a file can't be read.
        ValueError: if it is no data set; the message says what is wrong.
    """
    if name == "mnist":
        return Data(*load_mnist(), tuple("0123456789"))
    if name == "fashion_mnist":
        return _load_fashion_mnist()
    if name == "cifar10":
        return _load_cifar10()
    if os.path.isdir(name):
        return load_folder(name, image_size, color, test_share, seed)
    if not os.path.exists(name):
        raise ValueError(
            f"--dataset {name}: no such file or folder, and not one of the names "
            + ", ".join(NAMED)
        )
    return load_npz(name)


def load_mnist(path=MNIST_PATH):
    """Load the bundled MNIST database of handwritten digits.

    Args:
        path: str. The file. Defaults to `data/mnist.npz` beside this module.

    Returns:
        `((x_train, y_train), (x_test, y_test))`, see `Data`.

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
    data = load_npz(path)
    return data.train, data.test


def load_npz(path):
    """Load a data set from a `.npz` file.

    The file holds `x_train`, `y_train`, `x_test` and `y_test`: images of shape
    `(n, height, width)` or `(n, height, width, channels)`, unsigned integers, signed
    ones from 0 to 255 or floats in [0, 1], and labels of shape `(n,)`, integers or
    strings. Each label that occurs is a class, in their order.

    Args:
        path: str. The file.

    Returns:
        A `Data`.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not such a file; the message says what is wrong.
    """
    try:
        _check_is_file(path)
        with zipfile.ZipFile(path) as archive:
            _check_unpacked(path, archive.infolist())
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in _ARRAYS]
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path}: not a data set: {error}") from error
    return _from_arrays(path, *arrays)


def _check_is_file(path):
    """Refuse what is no file before it is opened, which might never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a file")


def _check_unpacked(path, members):
    """Refuse arrays that claim more memory than a file of this size can be worth."""
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(MOST_UNPACKED, 20 * os.path.getsize(path)):
        raise ValueError(f"unpacks to {unpacked / 1e6:.0f} MB, a bomb")


def _from_arrays(source, x_train, y_train, x_test, y_test, class_names=None):
    """Check arrays as `load_npz` takes them, and turn them into a `Data`."""
    for y in (y_train, y_test):
        if y.ndim != 1 or not len(y) or y.dtype.kind not in "iuUS":
            raise ValueError(
                f"{source}: labels must be integers or strings of shape (n,), not "
                f"{y.dtype} {y.shape}"
            )
    if (y_train.dtype.kind in "US") != (y_test.dtype.kind in "US"):
        raise ValueError(f"{source}: y_train is {y_train.dtype}, y_test {y_test.dtype}")
    if class_names:
        labels = np.arange(len(class_names))
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
        one_hot = np.eye(len(labels), dtype="float32")[np.searchsorted(labels, y)]
        splits.append((x, one_hot))
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
        if x.min() < 0 or x.max() > full:
            raise ValueError(
                f"{source}: images of type {x.dtype} must lie in 0 to {full}"
            )
        scaled = x.astype("float32")
        scaled /= full  # in place: this is the largest array there is
        return scaled
    if not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails
        raise ValueError(f"{source}: images of type float must lie in [0, 1]")
    return x.astype("float32")


# Data sets from the network ----------------------------------------------------------


def _keras_home():
    """Where Keras keeps what it downloads."""
    return os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")


def _download(name, load_data, files, origin, folder):
    """Call Keras' loader; where it fails, say which files to put where."""
    try:
        return load_data()
    except Exception as error:  # Keras raises a bare Exception without a network
        raise ValueError(
            f"--dataset {name}: can't be downloaded ({str(error).splitlines()[0]}); "
            f"put {files} from {origin} into {folder}"
        ) from error


def _load_fashion_mnist():
    names = (f"{a}-{b}-ubyte.gz" for a in ("train", "t10k") for b in _IDX)
    splits = _download(
        "fashion_mnist",
        keras.datasets.fashion_mnist.load_data,
        ", ".join(names),
        "https://github.com/zalandoresearch/fashion-mnist",
        os.path.join(_keras_home(), "datasets", "fashion-mnist"),
    )
    return _from_arrays("fashion_mnist", *splits[0], *splits[1], _FASHION)


_IDX = ("images-idx3", "labels-idx1")


def _load_cifar10():
    """Read CIFAR-10 where Keras has unpacked it, or have Keras download it first."""
    unpacked = os.path.join(_keras_home(), "datasets", "cifar-10-batches-py-target")
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
    return _from_arrays("cifar10", x_train, y_train, *test, _CIFAR10)


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


# Pictures ----------------------------------------------------------------------------


def read_picture(path):
    """Read a picture in the way it is meant to be seen.

    The first frame is taken, the rotation of EXIF data is applied, 16-bit grey is
    scaled, and what is transparent shows white.

    Args:
        path: str. PNG, JPEG, BMP or GIF.

    Returns:
        A Pillow image of mode `L` or `RGB`.

    Raises:
        ValueError: if it can't be read, or claims more than `LARGEST_PICTURE` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked here
            _check_is_file(path)
            with Image.open(path, formats=FORMATS) as picture:
                if math.prod(picture.size) > LARGEST_PICTURE:
                    raise ValueError(f"{picture.width} x {picture.height} pixels")
                picture.load()
                picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            full = 65535 if picture.mode.startswith("I") else 1
            values = np.clip(np.asarray(picture, "float32") / full, 0, 1)
            return Image.fromarray(np.round(values * 255).astype("uint8"))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def load_folder(path, image_size=None, color="auto", test_share=0.2, seed=0):
    """Load a folder of pictures, one sub-folder a class.

    The sub-folders stand in the folder itself, or under `train` and `test` in it.
    Without those a share of each class is drawn for the test. A picture that can't be
    read is named and left out. What was read is cached in Keras' directory
    (`~/.keras`), until a file, or one of the arguments, changes, or others are used
    that need its place (`CACHE_BYTES`).

    Args:
        path: str. The folder.
        image_size: pair of int, optional. Height and width that the pictures are
            scaled to. Defaults to their own, where all have the same; else to 32, 32.
        color: `"gray"`, `"rgb"`, or `"auto"`: grey where no picture has a colour.
        test_share: float in (0, 1). Defaults to 0.2.
        seed: int. Draws the pictures of the test. Defaults to 0.

    Returns:
        A `Data`; the names of the sub-folders are the class names.

    Raises:
        OSError: if the folder can't be read.
        ValueError: if it holds no such pictures.
    """
    roots = [os.path.join(path, split) for split in ("train", "test")]
    divided = all(map(os.path.isdir, roots))
    roots = roots if divided else [path]
    names = sorted({name for root in roots for name in _sub_folders(root)})
    if len(names) < 2:
        raise ValueError(
            f"{path}: needs a sub-folder of pictures for each of two classes or more, "
            f"found {printable(', '.join(names)) or 'none'}"
        )
    files, labels, splits = [], [], []
    for split, root in enumerate(roots):
        for label, name in enumerate(names):
            found = _pictures(os.path.join(root, name))
            if not found:
                where = printable(os.path.join(root, name))
                raise ValueError(f"{where}: holds no pictures")
            files += found
            labels += [label] * len(found)
            splits += [split] * len(found)
    images, readable = _read_cached(path, files, image_size, color)
    labels, splits = np.array(labels)[readable], np.array(splits)[readable]
    if not divided:
        splits = _draw_test(labels, test_share, seed)
    for label, name in enumerate(names):
        if not (labels == label).any():
            where = printable(os.path.join(path, name))
            raise ValueError(f"{where}: holds no readable pictures")
    train, test = (np.flatnonzero(splits == split) for split in (0, 1))
    if not len(train) or not len(test):
        raise ValueError(f"{path}: too few pictures for a training and a test set")
    names_of = np.array(names)[labels]
    return _from_arrays(
        path, images[train], names_of[train], images[test], names_of[test]
    )


def pictures_under(path):
    """Return the paths of the pictures in a folder and those below it, sorted."""
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(PICTURES)
    )


def _sub_folders(path):
    return [
        entry.name
        for entry in os.scandir(path)
        if entry.is_dir() and not entry.name.startswith(".")
    ]


def _pictures(path):
    """The pictures of a class, sorted, with what tells whether they changed."""
    if not os.path.isdir(path):
        return []
    return sorted(
        (entry.path, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in os.scandir(path)
        if entry.name.lower().endswith(PICTURES) and not entry.name.startswith(".")
    )


def _draw_test(labels, share, seed):
    """Draw a share of each class for the test, at least one picture of two."""
    rng = np.random.default_rng(seed)
    splits = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        splits[members[:count]] = 1
    return splits


def _read_cached(path, files, image_size, color):
    """Read pictures to one array, or take it from the cache.

    Returns:
        `(images, readable)`: uint8 `(n, height, width, channels)`, and the indices of
        the files that they are from.
    """
    relative = [(os.path.relpath(f, path), *rest) for f, *rest in files]
    folder = os.path.abspath(path)
    key = json.dumps([folder, relative, image_size, color, LARGEST_PICTURE])
    name = hashlib.sha256(key.encode()).hexdigest()[:24] + ".npz"
    cached = os.path.join(_keras_home(), "capsnet", name)
    try:
        with open(cached, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, readable = file["images"], file["readable"]
        with contextlib.suppress(OSError):
            os.utime(cached)  # by which `_trim_cache` tells when it was used
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        images, readable = _read_pictures(path, files, image_size, color)
        _write_cache(cached, images=images, readable=readable)
    if len(readable) < len(files):
        missing = len(files) - len(readable)
        print(f"{path}: {missing} of {len(files)} pictures are not readable")
    return images, readable


def _write_cache(path, **arrays):
    """Write arrays to the cache, and keep it below `CACHE_BYTES`."""
    try:
        if sum(array.nbytes for array in arrays.values()) > CACHE_BYTES:
            raise OSError(f"they take more than {CACHE_BYTES / 1e9:.0f} GB")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        print(f"The pictures are not cached ({error}): the next start reads them again")
    _trim_cache(os.path.dirname(path))


def _trim_cache(folder):
    """Remove the files longest unused until the others take at most `CACHE_BYTES`.

    Another process may do the same: what is gone already, or can't be removed, costs
    nothing. Files that a dead process left half written go the same way.
    """
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if entry.name.endswith(".npz") and stat.S_ISREG(about.st_mode):
                    found.append((about.st_mtime_ns, entry.path, about.st_size))
    total = sum(size for *_, size in found)
    for _, path, size in sorted(found):
        if total <= CACHE_BYTES:
            break
        with contextlib.suppress(OSError):
            os.remove(path)
        total -= size


def _read_pictures(path, files, image_size, color):
    """Read pictures to one array of one size, see `_read_cached`."""
    pictures, readable, values = [], [], 0
    if image_size:
        _check_memory(path, len(files) * math.prod(image_size) * 3)
    size = image_size and tuple(reversed(image_size))  # width and height, as Pillow's
    progress = keras.utils.Progbar(len(files), unit_name="picture")
    for index, (file, *_) in enumerate(files):
        try:
            picture = read_picture(file)
        except ValueError as error:
            print(f"\nLeft out: {printable(error)}")
            continue
        if size is None and pictures and picture.size != pictures[0].size:
            size = (32, 32)
            print(
                f"\n{path}: pictures of several sizes, scaled to 32 x 32 (image_size)"
            )
            pictures = [other.resize(size) for other in pictures]
            values = 0
        if size is not None and picture.size != size:
            picture = picture.resize(size)
        readable.append(index)
        pictures.append(picture)
        values += math.prod(picture.size) * 3
        _check_memory(path, values)
        if len(files) >= 1000 and index % 100 == 99:
            progress.update(index + 1)
    if not pictures:
        raise ValueError(f"{path}: holds no readable pictures")
    if color == "auto":
        color = "gray" if all(map(_is_gray, pictures)) else "rgb"
    mode = "L" if color == "gray" else "RGB"
    images = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    return images.reshape(*images.shape[:3], -1), np.array(readable)


def _check_memory(path, values):
    """Refuse pictures that fill the memory, in colours, as bytes and as floats."""
    needed, there = 8 * values, devices.machine_memory()
    if there and needed > there:
        raise ValueError(
            f"{path}: the pictures need more than {there / 1e9:.1f} GB, which is all "
            "that this machine has: a smaller --image_size helps"
        )


def _is_gray(picture):
    if picture.mode == "L":
        return True
    red, green, blue = (np.asarray(channel) for channel in picture.split())
    return np.array_equal(red, green) and np.array_equal(green, blue)


def fit_picture(picture, shape, like_mnist=False, invert=True):
    """Fit a picture to the images that a model was trained on.

    Args:
        picture: Pillow image of mode `L` or `RGB`.
        shape: `(height, width, channels)` of the model.
        like_mnist: bool. Whether to prepare it as the digits of MNIST were: what is
            drawn is scaled to 20 / 28 of the side, its aspect kept, and its centre of
            mass is put into the middle. A picture that has the shape already is left as
            it is. Defaults to False, which scales the whole picture.
        invert: bool. Whether dark drawings on a light ground are inverted, with
            `like_mnist`. Defaults to True.

    Returns:
        float32 array of `shape`, in [0, 1].
    """
    height, width, channels = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if not like_mnist or channels != 1:
        if picture.size != (width, height):
            picture = picture.resize((width, height))
        return np.asarray(picture, "float32").reshape(shape) / 255
    pixels = np.asarray(picture, "float32") / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if invert and np.median(border) > 0.5:
        pixels = 1 - pixels
        border = 1 - border
    if picture.size == (width, height):
        return pixels.reshape(shape)
    pixels = np.clip(pixels - np.median(border), 0, 1)  # an even ground is black
    inked = pixels > 0.05 * pixels.max()
    if not inked.any():
        return np.zeros(shape, "float32")
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    drawn = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 20 / 28 * min(height / drawn.shape[0], width / drawn.shape[1])
    size = [max(1, round(side * scale)) for side in drawn.shape]
    drawn = Image.fromarray(drawn).resize(size[::-1], Image.Resampling.BICUBIC)
    drawn = np.clip(np.asarray(drawn), 0, 1)
    drawn = drawn / drawn.max()
    corner = []
    for axis, (side, full) in enumerate(zip(size, (height, width))):
        mass = drawn.sum(1 - axis)  # its mean is at pixel 14 of 28 in MNIST
        center = (mass * np.arange(side)).sum() / mass.sum()
        corner.append(int(np.clip(round(full / 2 - center), 0, full - side)))
    fitted = np.zeros(shape, "float32")
    top, left = corner
    fitted[top : top + size[0], left : left + size[1], 0] = drawn
    return fitted


# Shifts and batches ------------------------------------------------------------------


def shift_images(images, shifts, xp=np):
    """Move each image by whole pixels; what moves in is zero.

    Args:
        images: array of shape `(n, height, width, channels)`.
        shifts: integer array of shape `(n, 2)`: pixels down and pixels to the right.
        xp: the module to compute with, `numpy` or `keras.ops`. Defaults to `numpy`.

    Returns:
        An array of the shape of `images`.
    """
    shifts = xp.array(shifts)
    rows = xp.arange(images.shape[1]) - shifts[:, :1]  # where a row comes from
    columns = xp.arange(images.shape[2]) - shifts[:, 1:]
    return _pixels_at(images, rows[:, :, None], columns[:, None, :], xp)


def transform_images(images, transforms, xp=np):
    """Transform each image, by linear interpolation; what comes from outside is zero.

    Args:
        images: array of shape `(n, height, width, channels)`.
        transforms: float array of shape `(n, 2, 3)`. Its product with a pixel's
            `(row, column, 1)`, counted from the middle of the image, is the place that
            the pixel comes from, counted likewise; see `inverse_transforms`.
        xp: see `shift_images`. Defaults to `numpy`.

    Returns:
        An array of the shape of `images`.
    """
    n, height, width, channels = images.shape
    middle = np.array([[(height - 1) / 2], [(width - 1) / 2]], "float32")
    grid = np.indices((height, width), "float32").reshape(2, -1) - middle
    transforms, middle, (rows, columns) = map(xp.array, (transforms, middle, grid))
    places = (  # (n, 2, height * width); no matrix product, which may round more
        transforms[:, :, :1] * rows
        + transforms[:, :, 1:2] * columns
        + transforms[:, :, 2:]
        + middle
    )
    corners = xp.floor(places)
    parts = (places - corners)[..., None]
    corners = xp.array(corners, dtype="int32")
    moved = 0
    for i, down in enumerate((1 - parts[:, 0], parts[:, 0])):
        for j, right in enumerate((1 - parts[:, 1], parts[:, 1])):
            corner = _pixels_at(images, corners[:, 0] + i, corners[:, 1] + j, xp)
            moved = moved + down * right * corner
    return xp.reshape(moved, (n, height, width, channels))


def inverse_transforms(shifts, angles, scales):
    """Return what `transform_images` takes, for images turned, scaled, then moved.

    Args:
        shifts: array of shape `(n, 2)`: pixels down and pixels to the right.
        angles: array of shape `(n,)`: degrees, anticlockwise.
        scales: array of shape `(n,)`: factors on the size.

    Returns:
        A float32 array of shape `(n, 2, 3)`.
    """
    cosine, sine = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    turn = np.array([[cosine, sine], [-sine, cosine]]) / scales  # (2, 2, n)
    turn = np.moveaxis(turn, 2, 0)
    origin = -turn @ np.asarray(shifts)[:, :, None]
    return np.concatenate([turn, origin], axis=2).astype("float32")


def _pixels_at(images, rows, columns, xp):
    """The pixels at whole places, one row and column for each; zero outside."""
    n, height, width, channels = images.shape
    inside = xp.logical_and(
        xp.logical_and(rows >= 0, rows < height),
        xp.logical_and(columns >= 0, columns < width),
    )
    source = xp.clip(rows, 0, height - 1) * width + xp.clip(columns, 0, width - 1)
    first = xp.arange(n) * (height * width)  # of each image
    source = source + xp.reshape(first, (n,) + (1,) * (len(source.shape) - 1))
    pixels = xp.take(xp.reshape(images, (-1, channels)), source, axis=0)
    return xp.where(inside[..., None], pixels, xp.zeros_like(pixels))


def _batch_size(batch_size, n, devices):
    """No more than the images make, but a multiple of the devices."""
    return -(-min(batch_size, n) // devices) * devices


def _span(index, batch_size, share):
    """Where in the epoch one part of a batch lies, a slice."""
    part, parts = share
    own = batch_size // parts
    start = index * batch_size + part * own
    return slice(start, start + own)


SHIFTS = ("whole", "interpolated")
"""What `TrainingBatches` may shift images by."""


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
        shift_fraction: float in [0, 1). Images move by at most this fraction of their
            side in each direction. Defaults to 0.
        seed: int. Defaults to 0.
        on_device: bool. Whether `x` and `y` live on the accelerator. Defaults to False.
        with_images: bool. False gives `(x, y)`, for a model that takes only images and
            gives only classes. Defaults to True.
        workers: int. Threads that prepare batches. Defaults to 1.
        devices: int. A batch of all images is filled up to a multiple of this.
            Defaults to 1.
        share: pair of int. With `(i, n)` this is part `i` of `n` equal parts of each
            batch, for host `i` of `n`. Defaults to `(0, 1)`.
        shifts: `"whole"` rounds the reach of the shifts down to whole pixels, and
            `"interpolated"` moves by parts of a pixel as well. Defaults to `"whole"`.
        rotation: float in [0, 180]. Images turn by at most so many degrees in either
            direction, before they move. Defaults to 0.
        zoom: float in [0, 1). They shrink or grow by at most this fraction of their
            size. Defaults to 0.
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
        shifts="whole",
        rotation=0.0,
        zoom=0.0,
    ):
        super().__init__(workers=workers)
        self.with_images = with_images
        self.xp = keras.ops if on_device else np
        self.placed = keras.ops.convert_to_tensor if on_device else np.asarray
        self.x, self.y = self.placed(x), self.placed(y)
        self.batch_size = _batch_size(batch_size, len(x), devices)
        self.share = share
        self.reach = [side * shift_fraction for side in x.shape[1:3]]
        self.rotation, self.zoom = rotation, zoom
        self.whole = shifts == "whole"
        if self.whole:
            # The small surplus keeps 0.29 * 100 from becoming 28 pixels.
            self.reach = [int(reach + 1e-6) for reach in self.reach]
        self.seed = seed
        self.draw(epoch=0)

    def draw(self, epoch):
        """Draw the order and the changes of an epoch, to be called where it begins."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.x)).astype("int32")
        self.order = np.resize(order, len(self) * self.batch_size)
        n = len(self.order)
        if self.whole:
            shifts = [rng.integers(-r, r + 1, n, "int32") for r in self.reach]
        else:
            shifts = [rng.uniform(-r, r, n) for r in self.reach]
        self.move, self.moves = shift_images, np.stack(shifts, 1)
        if not self.whole or self.rotation or self.zoom:
            angles = rng.uniform(-self.rotation, self.rotation, n)
            scales = rng.uniform(1 - self.zoom, 1 + self.zoom, n)
            self.move = transform_images
            self.moves = inverse_transforms(self.moves, angles, scales)

    def __len__(self):
        """Return the number of batches an epoch."""
        return math.ceil(len(self.x) / self.batch_size)

    def __getitem__(self, index):
        """Return batch `index` of the epoch."""
        span = _span(index, self.batch_size, self.share)
        order = self.placed(self.order[span])
        x = self.xp.take(self.x, order, axis=0)
        y = self.xp.take(self.y, order, axis=0)
        if any(self.reach) or self.rotation or self.zoom:
            x = self.move(x, self.placed(self.moves[span]), self.xp)
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
        devices: int. See `TrainingBatches`. Defaults to 1.
        share: pair of int. See `TrainingBatches`. Defaults to `(0, 1)`.
    """

    def __init__(self, x, y, batch_size, with_images=True, devices=1, share=(0, 1)):
        super().__init__()
        self.with_images = with_images
        self.x, self.y = x, y
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
        x, y = (a[np.minimum(indices, len(self.x) - 1)] for a in (self.x, self.y))
        if not self.with_images:
            return x, y, weights
        return (x, y), (y, x), (weights, weights[:, np.newaxis, np.newaxis])
