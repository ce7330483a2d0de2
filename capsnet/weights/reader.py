"""Reads a file of weights as data alone, within limits of time and memory.

    python capsnet/weights/reader.py FILE
    python capsnet/weights/reader.py FILE checkpoint

`read` of `capsnet.weights.files` runs this in a process of its own:
on some damaged files HDF5's library never comes to an end, and on others it takes all
the memory there is. What is read goes to the standard output, as `numpy.savez` writes
it. Code in a file is never run, and links out of it are not followed.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import zipfile

import h5py
import numpy as np

DEPTH = 16
"""Groups within groups, at most; whole models of Keras 2 have six."""

SECONDS = 3
"""Processor time at most, and one more for each 50 MB."""


def read(path):
    """Read an HDF5 file of Keras 2 or 3, or a `.keras` file.

    The numbers in a file can't take more bytes than the file: Keras never compresses
    them, and so whatever claims more is refused unread.

    Args:
        path: str. The file.

    Returns:
        `(about, weights)`: what `files.save_weights` was given, a dict, and a
        dict of layer names to lists of arrays.

    Raises:
        ValueError: if the numbers are more than the file can hold, are not finite or
            do not match their checksum, or a `.keras` file holds code.
        Exception: whatever else a damaged file makes h5py raise.
    """
    with open(path, "rb") as start:
        is_zip = start.read(2) == b"PK"
    content = _from_zip(path) if is_zip else path
    with h5py.File(content, "r") as file:
        names = set(file)
        if "layers" in names:
            layers = _inside(file, "layers")
            arrays = _arrays(layers, os.path.getsize(path))
            return {}, _of_keras_3(layers, arrays)
        about = file.attrs.get("capsnet", "{}")
        root = _inside(file, "model_weights") if "model_weights" in names else file
        weights = _of_keras_2(root, _arrays(root, os.path.getsize(path)))
        if file.attrs.get("sha256", "") not in ("", checksum(about, weights)):
            raise ValueError("damaged, its checksum is another")
        return dict(json.loads(about)), weights


def read_checkpoint(path):
    """Read every array of an HDF5 file, the optimizer's too; limits are as for `read`.

    Args:
        path: str. The file.

    Returns:
        `({}, arrays)`: nothing about it, and a dict of paths in the file to lists of
        one array each.
    """
    with h5py.File(path, "r") as file:
        arrays = _arrays(file, os.path.getsize(path))
    return {}, {name: [array] for name, array in arrays.items()}


def checksum(about, weights):
    """Return the sha256 of what a file says of itself and of its numbers.

    Args:
        about: str.
        weights: dict of layer names to lists of arrays.
    """
    digest = hashlib.sha256(about.encode())
    for name, arrays in weights.items():
        for array in arrays:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _from_zip(path):
    """Take the weights out of a `.keras` file; the layers themselves are not made."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        for name in ("config.json", "model.weights.h5"):
            if archive.getinfo(name).file_size > size:
                raise ValueError(f"{name} is larger than the file it is packed in")
        kinds = _class_names(json.loads(archive.read("config.json")))
        if kinds & {"Lambda", "__lambda__"}:
            raise ValueError("a Lambda layer holds code, which is never run")
        return io.BytesIO(archive.read("model.weights.h5"))


def _class_names(config):
    """Every `class_name` that is anywhere in a configuration."""
    inner = config if isinstance(config, list) else []
    found = set()
    if isinstance(config, dict):
        found.add(str(config.get("class_name")))
        inner = config.values()
    return found.union(*map(_class_names, inner))


def _arrays(group, room, depth=1):
    """Read the arrays below a group; returns a dict of paths to them, sorted."""
    if depth > DEPTH:
        raise ValueError(f"groups more than {DEPTH} deep")
    found = {}
    for name in group:
        node = _inside(group, name)
        if isinstance(node, h5py.Group):
            below = _arrays(node, room, depth + 1)
            found |= {f"{name}/{path}": array for path, array in below.items()}
            room -= sum(array.nbytes for array in below.values())
        elif isinstance(node, h5py.Dataset) and node.dtype.kind in "fiu":
            room -= node.nbytes
            if room < 0 or 0 in node.shape or node.is_virtual or node.external:
                raise ValueError(f"{name!r} of shape {node.shape} is not in the file")
            found[name] = np.asarray(node[()])
            with np.errstate(over="ignore"):
                if not np.isfinite(found[name].astype("float32")).all():
                    raise ValueError(f"{name!r} holds numbers that are not finite")
    return found


def _inside(group, name):
    """Return what a group has under a name; links may lead out of the file."""
    if "/" in name or type(group.get(name, getlink=True)) is not h5py.HardLink:
        raise ValueError(f"{name!r} is a link")
    return group[name]


def _of_keras_2(root, arrays):
    """Each layer's group lists its weights, in order, as paths below the group."""
    return {
        layer: [
            arrays.pop(f"{layer}/{_text(weight)}")  # no array counts twice
            for weight in _inside(root, layer).attrs["weight_names"]
        ]
        for layer in map(_text, root.attrs["layer_names"])
    }


def _of_keras_3(layers, arrays):
    """Groups `vars` hold the weights by number; the outermost tells the layer's name.

    The layers within a layer are numbered by kind. Which kind comes first the file does
    not tell: where there are several, each array stands by itself, as `layer/path`.
    """
    found = {}
    for key, group in layers.items():
        name = _text(group["vars"].attrs.get("name", key))
        paths = [path for path in arrays if path.startswith(f"{key}/")]
        kinds = {re.sub(r"(_\d+)?/vars/\d+$", "", path) for path in paths}
        if len(kinds) > 1:
            found |= {f"{name}{p.removeprefix(key)}": [arrays[p]] for p in paths}
        else:
            found[name] = [arrays[path] for path in sorted(paths, key=_by_number)]
    return found


def _by_number(path):
    """A path's parts, those that are numbers as such: 10 comes after 2."""
    parts = re.split(r"(\d+)", path)
    return [int(part) if part.isdecimal() else part for part in parts]


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def limit(size):
    """Limit the time and the memory of this process, where the system can do that.

    Args:
        size: int. Bytes of the file to be read.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        resource.RLIMIT_CPU: SECONDS + size // 50_000_000,
        resource.RLIMIT_AS: 2**30 + 4 * size,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS lacks one of them
            resource.setrlimit(kind, (most, hard))


def main():
    """Write what `read` or `read_checkpoint` returns to the standard output."""
    path, *checkpoint = sys.argv[1:]
    limit(os.path.getsize(path))
    try:
        about, weights = (read_checkpoint if checkpoint else read)(path)
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SystemExit(reason) from error
    counts = {name: len(arrays) for name, arrays in weights.items()}
    header = json.dumps([about, counts])
    arrays = [array for arrays in weights.values() for array in arrays]
    np.savez(sys.stdout.buffer, np.array(header), *arrays)


if __name__ == "__main__":
    main()
