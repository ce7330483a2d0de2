"""Files of weights, written whole and read as data alone."""

import io
import itertools
import json
import os
import subprocess
import sys
import tempfile

import h5py
import keras
import numpy as np

from capsnet.errors import first_line
from capsnet.files import open_file, whole_file
from capsnet.weights import reader

SECONDS_TO_READ = 60
"""Patience with the process that reads a file of weights; a second more for 5 MB."""


def save_weights(model, path, about=None):
    """Write the weights of one of the trio's models to an HDF5 file.

    Keras 3 writes weights only under names that end in `.weights.h5`. This writes the
    layout of Keras 2 under any name, so that `trained_model.h5` stays what it was:
    CapsNet-Keras itself can read it, and so can Keras 3's `load_weights`, unless a model
    within the model normalizes batches.

    Args:
        model: a model of the trio.
        path: str. The file; one that is there is replaced when the new one is whole.
        about: dict, optional. Whatever JSON can hold; `read` returns it.
    """
    content = io.BytesIO()  # HDF5 itself does not survive a full disk
    with h5py.File(content, "w") as file:
        weighted = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in weighted]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["capsnet"] = about = json.dumps(about or {})
        # The version of the layout; without it Keras takes the weights for older
        # ones, and converts them.
        file.attrs["keras_version"] = b"2.15.0"
        values = {
            layer.name: list(map(_storable, layer.get_weights())) for layer in weighted
        }
        file.attrs["sha256"] = reader.checksum(about, values)
        for layer in weighted:
            group = file.create_group(layer.name)
            paths = [weight.path for weight in layer.weights]
            # The layers of models within a model may have the same names.
            names = [f"{p}:{paths[:i].count(p)}" for i, p in enumerate(paths)]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, values[layer.name], strict=True):
                group[name] = value
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.getbuffer())


def _storable(array):
    """An array as HDF5 stores it, which knows no bfloat16; float32 holds the same."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def load_weights(model, path):
    """Load weights into a model of the trio, and so into all three.

    Reads what `save_weights` writes, Keras 3's `.weights.h5` and `.keras` files of this
    model, and the HDF5 files of CapsNet-Keras under Keras 2 (weights or whole model).
    Layers are found by their names. Nothing is changed unless everything fits.

    Args:
        model: a model of the trio.
        path: str. The file.

    Returns:
        The dict that `save_weights` was given, empty for other files.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or its weights are of another model; the
            message names the layer and both shapes.
    """
    about, weights = read(path)
    set_weights(model, weights, path)
    return about


def set_weights(model, stored, path):
    """Set the weights that `read` returned; the rest is as for `load_weights`."""
    weighted = [layer for layer in model.layers if layer.weights]
    for layer in weighted:
        if layer.name not in stored:
            stored = {**stored, layer.name: _inner_arrays(layer, stored, path)}
        shapes = [tuple(weight.shape) for weight in layer.weights]
        found = [value.shape for value in stored[layer.name]]
        if shapes != found:
            raise ValueError(
                f"{path}: layer {layer.name!r} has shapes {found} in the file and "
                f"{shapes} in the model"
            )
    for layer in weighted:
        layer.set_weights(stored[layer.name])


def _inner_arrays(layer, stored, path):
    """The arrays of a model within the model, in the order that Keras knows alone."""
    start = f"{layer.name}/"
    inner = {n.removeprefix(start): a for n, a in stored.items() if n.startswith(start)}
    if not inner:
        raise ValueError(
            f"{path}: holds no layer {layer.name!r}, but "
            f"{repr(sorted(stored))[1:-1][:200] or 'none at all'}; not a CapsNet's "
            "weights"
        )
    try:
        if len(inner) != len(layer.weights):  # Keras leaves what it has no place for
            raise ValueError(f"{len(inner)} arrays and not {len(layer.weights)}")
        copy = keras.models.clone_model(layer)
        load_as_keras(copy, inner)
    except Exception as error:  # whatever Keras raises
        raise ValueError(
            f"{path}: layer {layer.name!r} is another ({first_line(error)})"
        ) from error
    return copy.get_weights()


def load_as_keras(model, arrays):
    """Have Keras find where each array belongs, of a file that was read as data alone.

    Args:
        model: the model to load them into.
        arrays: dict of paths in a `.weights.h5` file to lists of one array each.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy.weights.h5")
        with h5py.File(copy, "w") as file:
            for name, (array,) in arrays.items():
                file[name] = array
        model.load_weights(copy)


def read(path, *how):
    """Read a file of any of the formats that `load_weights` takes.

    It is read as data alone, in a process of its own whose time and memory are limited
    (`capsnet/weights/reader.py`): no damaged or hostile file can run code, hang or crash this
    one.

    Args:
        path: str. The file.
        *how: `"checkpoint"` for one, of which every array is read.

    Returns:
        `(about, weights)`: the dict that `save_weights` was given, empty for other
        files, and a dict of layer names to lists of arrays, whose numbers are finite; of
        layers within a layer see `load_as_keras`, their paths begin with its name.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file.
    """
    with open_file(path):  # an OSError that names the file
        pass
    try:
        done = subprocess.run(
            [sys.executable, reader.__file__, path, *how],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # threads take memory
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS_TO_READ + os.path.getsize(path) // 5_000_000,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = "it takes too long"
        raise ValueError(f"{path}: not a readable weights file ({reason})") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        reason = said[-1] if said else "the reader was ended"
        raise ValueError(f"{path}: not a readable weights file ({reason})")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        header, *values = (arrays[name] for name in arrays)
    about, counts = json.loads(str(header))
    values = iter(values)
    return about, {
        layer: list(itertools.islice(values, count)) for layer, count in counts.items()
    }
