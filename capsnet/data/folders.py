"""Folders of pictures as data sets, and the cache of what was read from them."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import stat
import zipfile
import zlib

import keras
import numpy as np

from capsnet import machine
from capsnet.data import images as picture_files
from capsnet.data.arrays import from_arrays
from capsnet.errors import printable
from capsnet.files import keras_home, whole_file

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
"""Endings of the files in a folder that are taken for pictures."""

LONGEST_SIDE, SHORTEST_SIDE = 64, 17
"""Pixels that pictures of several sizes are scaled to, at most and at least."""

READER = (__file__, picture_files.__file__)
"""The code that reads pictures: of another version nothing is taken from the cache."""

CACHE_BYTES = 4_000_000_000
"""What the cache of pictures holds at most; what was longest unused leaves it first."""


def load_folder(path, image_size=None, color="auto", test_share=0.2, seed=0):
    """Load a folder of pictures, one sub-folder a class.

    The sub-folders stand in the folder itself, or under `train` and `test` in it.
    Without those a share of each class is drawn for the test. A picture that can't be
    read is named and left out. What was read is cached in Keras' directory
    (`~/.keras`), until a file, one of the arguments, or the code that reads them
    changes, or others are used that need its place (`CACHE_BYTES`).

    Args:
        path: str. The folder.
        image_size: pair of int, optional. Height and width that the pictures are
            scaled to. Defaults to their own, where all have the same; else to that of the
            first one, scaled to at most 64 pixels a side.
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
    splits = images[train], labels[train], images[test], labels[test]
    return from_arrays(path, *splits, tuple(names))


def pictures_under(path):
    """Return the paths of the pictures in a folder and those below it, sorted.

    What is hidden is passed over, as in a data set.
    """
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if _is_picture(name)]
    return sorted(found)


def _is_picture(name):
    return name.lower().endswith(PICTURES) and not name.startswith(".")


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
        (entry.path, *_version(entry))
        for entry in os.scandir(path)
        if _is_picture(entry.name)
    )


def _version(entry):
    """Size and times of a file, zeros of one that is gone, which reading it will say."""
    try:
        about = entry.stat()
    except OSError:
        return 0, 0, 0
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


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
    reader = [zlib.crc32(pathlib.Path(file).read_bytes()) for file in READER]
    key = json.dumps([folder, relative, image_size, color, reader])
    name = hashlib.sha256(key.encode()).hexdigest()[:24] + ".npz"
    cached = os.path.join(keras_home(), "capsnet", name)
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
            picture = picture_files.read_picture(file)
        except ValueError as error:
            print(f"\nLeft out: {printable(error)}")
            continue
        if size is None and pictures and picture.size != pictures[0].size:
            size = _common_size(pictures[0].size)
            print(
                f"\n{path}: pictures of several sizes, scaled to {size[1]} x {size[0]} "
                "(image_size)"
            )
            pictures = [other.resize(size) for other in pictures]
            values = len(pictures) * math.prod(size) * 3
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


def _common_size(size):
    """Width and height for pictures of several sizes, of which the first has `size`."""
    scale = min(1, LONGEST_SIDE / max(size))
    return tuple(max(SHORTEST_SIDE, round(scale * side)) for side in size)


def _check_memory(path, values):
    """Refuse pictures that fill the memory, in colours, as bytes and as floats."""
    needed, there = 8 * values, machine.machine_memory()
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
