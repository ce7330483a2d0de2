"""Files of weights, and the checkpoints that a run goes on from."""

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import platform
import re
import shlex
import stat
import subprocess
import sys
import tempfile

import filelock
import h5py
import keras
import numpy as np

import devices
import weights_reader
from utils import first_line, whole_file

SECONDS_TO_READ = 60
"""Patience with the process that reads a file of weights; a second more for 5 MB."""


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
    content = io.BytesIO()  # HDF5 itself does not survive a full disk
    with h5py.File(content, "w") as file:
        weighted = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in weighted]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["capsnet"] = about = json.dumps(about or {})
        # The version of the layout; without it Keras takes the weights for older
        # ones, and converts them.
        file.attrs["keras_version"] = b"2.15.0"
        values = {layer.name: layer.get_weights() for layer in weighted}
        file.attrs["sha256"] = weights_reader.checksum(about, values)
        for layer in weighted:
            group = file.create_group(layer.name)
            names = [f"{weight.path}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, values[layer.name], strict=True):
                group[name] = value
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.getbuffer())


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
            raise ValueError(
                f"{path}: holds no layer {layer.name!r}, but "
                f"{repr(sorted(stored))[1:-1][:200] or 'none at all'}; not a CapsNet's "
                "weights"
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

    It is read as data alone, in a process of its own whose time and memory are limited
    (`weights_reader.py`): no damaged or hostile file can run code, hang or crash this
    one.

    Args:
        path: str. The file.

    Returns:
        `(about, weights)`: the dict that `save_weights` was given, empty for other
        files, and a dict of layer names to lists of arrays, whose numbers are finite.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file.
    """
    return _read_apart(path)


def _read_apart(path, *how):
    """Run `weights_reader.py` on a file, and return what it read; see `read`."""
    with _open_file(path):  # an OSError that names the file
        pass
    try:
        done = subprocess.run(
            [sys.executable, weights_reader.__file__, path, *how],
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


def _open_file(path):
    """Open a file to read its bytes; opening or reading what is none may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: not a file")
    return open(path, "rb")


# The directory of a run ---------------------------------------------------------------


@contextlib.contextmanager
def only_run(save_dir):
    """Keep other trainings out of a directory, and remove what a dead one left there.

    The system gives the lock back when a process ends, however it ends; `.lock.by` names
    the last process that held it.

    Args:
        save_dir: str. The directory.

    Raises:
        OSError: if another process trains there; the message has its number.
    """
    lock = filelock.FileLock(os.path.join(save_dir, ".lock"))
    holder = os.path.join(save_dir, ".lock.by")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        with open(holder) as file:
            who = file.read()
        raise OSError(
            f"--save_dir {save_dir}: process {who} trains there; wait for it, or choose "
            "another directory"
        ) from None
    try:
        write_text(holder, f"{os.getpid()} on {platform.node()}")
        for name in os.listdir(save_dir):
            if _HALF_WRITTEN.fullmatch(name):
                os.remove(os.path.join(save_dir, name))
        yield
    finally:
        lock.release()


_HALF_WRITTEN = re.compile(
    r"(checkpoint-\d+|best|trained_model|interrupted_model|log)\.\d+\.tmp\..+"
)
"""Temporary names of the files that a training writes, see `whole_file`."""


def set_aside(save_dir):
    """Move what another run left to a folder of its own, so that a new run begins.

    The folder is `run-1` in `save_dir`, or the first such number that is free;
    `--resume` goes on with the run there. Files that no run writes stay. Says what went
    where, and how to get back what git tracks.

    Args:
        save_dir: str. The directory.
    """
    names = sorted(filter(_OF_A_RUN.fullmatch, os.listdir(save_dir)))
    if not names:
        return
    folders = (os.path.join(save_dir, f"run-{n}") for n in itertools.count(1))
    folder = next(path for path in folders if not os.path.lexists(path))
    os.mkdir(folder)
    for name in names:
        os.replace(os.path.join(save_dir, name), os.path.join(folder, name))
    print(f"What another run left in {save_dir} is now in {folder}: {', '.join(names)}")
    if _found(folder):
        print(f"--resume --save_dir {folder}, with that run's options, goes on with it")
    tracked = _tracked_by_git(save_dir, names)
    if tracked:
        command = shlex.join(["git", "-C", save_dir, "restore", "--", *tracked])
        print(
            "git has copies of some of them. This brings those back, and what this run "
            f"writes under their names is lost then:\n{command}"
        )


_OF_A_RUN = re.compile(
    r"checkpoint-\d+\.(json|weights\.h5)|log\.(csv|png)|tensorboard-logs|"
    r"(best\.weights|trained_model|interrupted_model)\.h5|"
    r"(real_and_recon|confusion|mistakes|dimensions|predictions|manipulate-\d+)\.png"
)
"""Names of what a run, and the test of what it trained, leave in their directory."""


def _tracked_by_git(folder, names):
    """The files by these names that git tracks; none where there is no git."""
    # A monitor of the file system is a program that the repository names.
    command = ["git", "-c", "core.fsmonitor=false", "-C", folder, "ls-files", "-z"]
    try:
        done = subprocess.run(
            [*command, "--", *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # not installed
        return []
    return done.stdout.split("\0")[:-1]


class Checkpoints(keras.callbacks.Callback):
    """Keep the whole state of the training after each epoch, so that it can go on.

    A checkpoint is a pair of files: `checkpoint-<epochs>.weights.h5` with weights
    and optimizer, and `checkpoint-<epochs>.json` with the checksums of both, what the
    run depends on and the log so far. The second is written last, and only where
    both fit together is there a checkpoint. Two are kept, so that one remains if the
    other is damaged. What Keras' `BackupAndRestore` lacks: it keeps one, without
    checksum or log, and deletes it at the end.

    Before its checkpoint the best epoch so far gets `best.weights.h5`, with the weights
    that were validated, and after it `log.csv` a row; Keras' `CSVLogger` could leave
    half a row.

    Args:
        save_dir: str. The directory.
        options: dict of the options that the run depends on, to be compared where it
            goes on.
        start: dict of what it started from, `data` and `weights`, to be compared too.
        keep: int. How many are kept, the last ones; 0 for all. Defaults to 2.
        checkpoint: dict. The checkpoint that the run goes on from, or None. What is
            there of later epochs is damaged; it is removed with the first epoch's end.
        monitor: str. The figure that is largest in the best epoch. Defaults to
            `"val_accuracy"`.
    """

    def __init__(
        self, save_dir, options, start, keep=2, checkpoint=None, monitor="val_accuracy"
    ):
        super().__init__()
        self.save_dir = save_dir
        self.about = {"options": options, **start}
        self.keep = keep
        self.log = checkpoint["log"] if checkpoint else ""
        self.monitor = monitor
        rows = csv.DictReader(self.log.splitlines())
        self.best = max((float(row[monitor]) for row in rows), default=-math.inf)
        self.path_of_best = os.path.join(save_dir, "best.weights.h5")

    def on_test_end(self, logs=None):
        """Save the best weights: those in the model, which were just validated."""
        if logs[self.monitor.removeprefix("val_")] > self.best:
            with whole_file(self.path_of_best) as temporary:
                _save_whole_model(self.model, temporary)

    def on_epoch_end(self, epoch, logs=None):
        """Write the checkpoint and the log, then remove what is not to be kept."""
        epochs = epoch + 1
        weights, state = _paths(self.save_dir, epochs)
        with whole_file(weights) as temporary:
            _save_whole_model(self.model, temporary)
            digest = sha256(temporary)
        self._remove(lambda other: other > epochs)
        self._add_row({"epoch": epoch, **{name: logs[name] for name in sorted(logs)}})
        record = {
            "epochs": epochs,
            **self.about,
            "log": self.log,
            "sha256": digest,
        }
        write_text(state, _to_text(record))
        write_text(os.path.join(self.save_dir, "log.csv"), self.log)
        if logs[self.monitor] > self.best:
            self.best = logs[self.monitor]
            best = f"{self.monitor} {self.best:.5f}: {self.path_of_best}"
            print(f"\nBest epoch so far, with {best}")
        if self.keep:
            self._remove(lambda other: other <= epochs - self.keep)

    def _add_row(self, row):
        text = io.StringIO()
        writer = csv.DictWriter(text, row, lineterminator="\n")
        if not self.log:
            writer.writeheader()
        writer.writerow(row)
        self.log += text.getvalue()

    def _remove(self, which):
        for epochs in filter(which, _found(self.save_dir)):
            for path in reversed(_paths(self.save_dir, epochs)):
                if os.path.exists(path):
                    os.remove(path)


def _save_whole_model(model, path):
    """Save weights and optimizer by Keras.

    Whether there is room for it is tried first: where HDF5 finds the disk full, it
    takes the process down with it.
    """
    variables = [*model.variables, *model.optimizer.variables]
    size = sum(4 * math.prod(variable.shape) for variable in variables)
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size + size // 20 + 2**20)
        except AttributeError:  # not on this system
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    with devices.alone():
        model.save_weights(path)


_RECORD = {"epochs": int, "options": dict, "log": str, "sha256": str}
"""What the record of a checkpoint holds, beside its own checksum."""

_START = {"data": dict, "weights": dict}
"""What it holds as well, unless an older version wrote it."""


def _to_text(record):
    """Turn the record of a checkpoint into text that holds its own checksum."""
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps({**record, "sha256 of the rest": digest}, indent=1)


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
            with _open_file(state) as file:
                text = file.read().decode()
            record = json.loads(text)
            if record.keys() != _RECORD.keys():  # those of older versions had no more
                del record["sha256 of the rest"]
                if text != _to_text(record):
                    raise ValueError("it was altered")
            kinds = _RECORD | {k: v for k, v in _START.items() if k in record}
            if any(type(record[name]) is not kind for name, kind in kinds.items()):
                problem = "it is none"
            elif record["epochs"] != epochs:
                problem = "it has another number"
            elif record["sha256"] != sha256(weights):
                problem = f"the checksum of {weights} is another"
            else:
                return record
        except FileNotFoundError as error:
            problem = first_line(error)
        except OSError:  # no damage: it can't be read now
            raise
        except Exception as error:  # noqa: BLE001 (whatever a damaged file leads to)
            problem = first_line(error)
        print(f"{state}: damaged checkpoint passed over ({problem})")
    return None


def restore(model, save_dir, record):
    """Bring a compiled model back to a checkpoint.

    The file is read as data alone, in a process of its own, see `read`. Keras, which
    knows where each array belongs, is given a file that was written anew from that.

    Args:
        model: the training model, compiled.
        save_dir: str. The directory.
        record: dict that `last_checkpoint` returned for it.

    Raises:
        ValueError: if its file can't be read as one, or is of another model.
    """
    model.optimizer.build(model.trainable_variables)
    path = weights_path(save_dir, record["epochs"])
    _, arrays = _read_apart(path, "checkpoint")
    found = sum(name.startswith("optimizer/vars/") for name in arrays)
    needed = len(model.optimizer.variables)
    if found != needed:  # Keras would leave the optimizer as it is
        raise ValueError(
            f"{path}: is of another model (its optimizer has {found} arrays, and this "
            f"one {needed})"
        )
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy.weights.h5")
        with open(copy, "wb") as file:
            file.write(_to_hdf5(arrays))
        try:
            with devices.alone():
                model.load_weights(copy)
        except Exception as error:  # whatever Keras raises
            raise ValueError(
                f"{path}: is of another model ({first_line(error)})"
            ) from error


def _to_hdf5(arrays):
    """Return the bytes of an HDF5 file that holds what `_read_apart` returned."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, (array,) in arrays.items():
            file[name] = array
    return content.getbuffer()


def restore_log(save_dir, record):
    """Bring `log.csv` back to a checkpoint; the arguments are those of `restore`."""
    write_text(os.path.join(save_dir, "log.csv"), record["log"])


def weights_path(save_dir, epochs):
    """Return where the weights of a checkpoint lie."""
    return _paths(save_dir, epochs)[0]


def _paths(save_dir, epochs):
    stem = os.path.join(save_dir, f"checkpoint-{epochs:04d}")
    return f"{stem}.weights.h5", f"{stem}.json"


def _found(save_dir):
    """The numbers of epochs that there are checkpoints of, whole or not."""
    if not os.path.isdir(save_dir):
        return []
    found = (
        re.fullmatch(r"checkpoint-([0-9]+)\.json", n) for n in os.listdir(save_dir)
    )
    return [int(match[1]) for match in found if match]


def sha256(path):
    """Return the sha256 of a file, in hexadecimal digits."""
    with _open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
