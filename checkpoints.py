"""Files of weights, and the checkpoints that a run goes on from."""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile

import h5py
import keras

import devices


@contextlib.contextmanager
def whole_file(path, ending=".tmp"):
    """Give a temporary name; what is written there becomes `path`, whole or not at all.

    Args:
        path: str. The file; one that is there is replaced when the new one is whole.
        ending: str. What the temporary name has to end with. Defaults to `".tmp"`.
    """
    temporary = f"{path}.{os.getpid()}{ending}"
    try:
        yield temporary
        with open(temporary, "rb") as file:  # to the disk, before it has its name
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def save_weights(model, path, about=None):
    """Write the weights of one of the trio's models to an HDF5 file.

    Keras 3 writes weights only under names that end in `.weights.h5`. This writes the
    layout of Keras 2 under any name, so that `trained_model.h5` stays what it was:
    CapsNet-Keras itself can read it, and so can Keras 3's `load_weights`.

    Args:
        model: a model of the trio.
        path: str. The file; one that is there is replaced when the new one is whole.
        about: dict, optional. Whatever JSON can hold; `read` returns it.
    """
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        weighted = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in weighted]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["capsnet"] = json.dumps(about or {})
        # The version of the layout; without it Keras takes the weights for older
        # ones, and converts them.
        file.attrs["keras_version"] = b"2.15.0"
        for layer in weighted:
            group = file.create_group(layer.name)
            names = [f"{weight.path}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


def load_weights(model, path):
    """Load weights into a model of the trio, and so into all three.

    Reads what `save_weights` writes, Keras 3's `.weights.h5` and `.keras` files of this
    model, and the HDF5 files of CapsNet-Keras under Keras 2 (weights or whole model).
    Layers are found by their names. Nothing is changed unless everything fits.

    Args:
        model: a model of the trio.
        path: str. The file.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or its weights are of another model; the
            message names the layer and both shapes.
    """
    _, stored = read(path)
    weighted = [layer for layer in model.layers if layer.weights]
    for layer in weighted:
        if layer.name not in stored:
            raise ValueError(
                f"{path}: holds no layer {layer.name!r}, but "
                f"{', '.join(sorted(stored)) or 'none at all'}; not a CapsNet's weights"
            )
        shapes = [tuple(weight.shape) for weight in layer.weights]
        found = [value.shape for value in stored[layer.name]]
        if shapes != found:
            raise ValueError(
                f"{path}: layer {layer.name!r} has shapes {found} in the file and "
                f"{shapes} in the model"
            )
    for layer in weighted:
        layer.set_weights(stored[layer.name])


def read(path):
    """Read a file of any of the formats that `load_weights` takes.

    Args:
        path: str. The file.

    Returns:
        `(about, weights)`: the dict that `save_weights` was given, empty for other
        files, and a dict of layer names to lists of arrays.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file.
    """
    with open(path, "rb"):  # an OSError that names the file
        pass
    try:
        if zipfile.is_zipfile(path):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            return {}, {layer.name: layer.get_weights() for layer in model.layers}
        with h5py.File(path, "r") as file:
            if "layers" in file:
                return {}, _read_keras_3(file["layers"])
            about = json.loads(file.attrs.get("capsnet", "{}"))
            return dict(about), _read_keras_2(file.get("model_weights", file))
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(
            f"{path}: not a readable weights file ({str(error).splitlines()[0]})"
        ) from error


def _read_keras_2(root):
    """Each layer's group lists its weights, in order, as paths below the group."""
    return {
        name: [root[name][weight][()] for weight in root[name].attrs["weight_names"]]
        for name in (
            name.decode() if isinstance(name, bytes) else name
            for name in root.attrs["layer_names"]
        )
    }


def _read_keras_3(root):
    """Groups `vars` hold the weights by number; the outermost tells the layer's name."""
    weights = {}
    for key, group in root.items():
        arrays = []

        def collect(_, node, arrays=arrays):
            if isinstance(node, h5py.Dataset):
                arrays.append(node[()])

        group.visititems(collect)
        weights[group["vars"].attrs.get("name", key)] = arrays
    return weights


class Checkpoints(keras.callbacks.Callback):
    """Keep the whole state of the training after each epoch, so that it can go on.

    A checkpoint is a pair of files: `checkpoint-<epochs>.weights.h5` with weights,
    optimizer and random state, and `checkpoint-<epochs>.json` with the checksum of the
    first, the options and the log so far. The second is written last, and only where
    both fit together is there a checkpoint. Two are kept, so that one remains if the
    other is damaged. What Keras' `BackupAndRestore` lacks: it keeps one, without
    checksum or log, and deletes it at the end. The one of the best epoch is copied to
    `best.weights.h5`.

    Args:
        save_dir: str. The directory.
        options: dict of what the run depends on, to be compared where it goes on.
        keep: int. How many are kept, the last ones; 0 for all. Defaults to 2.
        begin: int. Epochs done before. What is there of later ones is of another run,
            or damaged, and is removed. Defaults to 0.
        monitor: str. The figure that is largest in the best epoch. Defaults to
            `"val_accuracy"`.
        best: float. The largest one of the epochs before. Defaults to -1.
    """

    def __init__(
        self, save_dir, options, keep=2, begin=0, monitor="val_accuracy", best=-1.0
    ):
        super().__init__()
        self.monitor, self.best = monitor, best
        self.begin = begin
        self.keep = keep
        self.save_dir = save_dir
        self.options = options

    def on_train_begin(self, logs=None):
        """Remove what is left of another run."""
        self._remove(lambda epochs: epochs > self.begin)

    def on_epoch_end(self, epoch, logs=None):
        """Write the checkpoint, then remove those that are not to be kept."""
        epochs = epoch + 1
        weights, state = _paths(self.save_dir, epochs)
        with whole_file(weights, ".weights.h5") as temporary:
            with devices.alone():
                self.model.save_weights(temporary)
            digest = _sha256(temporary)
        with open(os.path.join(self.save_dir, "log.csv")) as file:
            log = file.read()
        record = {
            "epochs": epochs,
            "options": self.options,
            "log": log,
            "sha256": digest,
        }
        write_text(state, json.dumps(record, indent=1))
        if logs[self.monitor] > self.best:
            self.best = logs[self.monitor]
            path = os.path.join(self.save_dir, "best.weights.h5")
            with whole_file(path) as temporary:
                shutil.copyfile(weights, temporary)
            print(f"\nBest epoch so far, with {self.monitor} {self.best:.5f}: {path}")
        if self.keep:
            self._remove(lambda old: old <= epochs - self.keep)

    def _remove(self, which):
        for epochs in filter(which, _found(self.save_dir)):
            for path in reversed(_paths(self.save_dir, epochs)):
                if os.path.exists(path):
                    os.remove(path)


def write_text(path, text):
    """Write a text file whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "w", newline="") as file:
        file.write(text)


def last_checkpoint(save_dir):
    """Find the last whole checkpoint in a directory.

    Says so where a later one is damaged.

    Args:
        save_dir: str. The directory.

    Returns:
        The record that `Checkpoints` wrote, a dict, or None if there is none.
    """
    for epochs in sorted(_found(save_dir), reverse=True):
        weights, state = _paths(save_dir, epochs)
        try:
            with open(state) as file:
                record = json.load(file)
            if record["epochs"] == epochs and record["sha256"] == _sha256(weights):
                return record
            problem = "its checksum is another"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error).splitlines()[0]
        print(f"{state}: damaged checkpoint passed over ({problem})")
    return None


def restore(model, save_dir, record):
    """Bring a compiled model back to a checkpoint.

    Args:
        model: the training model, compiled.
        save_dir: str. The directory.
        record: dict that `last_checkpoint` returned for it.
    """
    model.optimizer.build(model.trainable_variables)
    with devices.alone():
        model.load_weights(_paths(save_dir, record["epochs"])[0])


def restore_log(save_dir, record):
    """Bring `log.csv` back to a checkpoint; the arguments are those of `restore`."""
    write_text(os.path.join(save_dir, "log.csv"), record["log"])


def _paths(save_dir, epochs):
    stem = os.path.join(save_dir, f"checkpoint-{epochs:04d}")
    return f"{stem}.weights.h5", f"{stem}.json"


def _found(save_dir):
    """The numbers of epochs that there are checkpoints of, whole or not."""
    if not os.path.isdir(save_dir):
        return []
    names = (name.removeprefix("checkpoint-") for name in os.listdir(save_dir))
    numbers = (name.split(".")[0] for name in names if name.endswith(".json"))
    return [int(number) for number in numbers if number.isdecimal()]


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
