"""Checkpoints: the whole state of a training after each epoch, to go on from."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import re

import keras

from capsnet.errors import first_line
from capsnet.files import open_file, sha256, whole_file, write_text
from capsnet.training import devices
from capsnet.weights.files import load_as_keras, read


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
        for epochs in filter(which, found(self.save_dir)):
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


def last_checkpoint(save_dir):
    """Find the last whole checkpoint in a directory.

    Says so where a later one is damaged.

    Args:
        save_dir: str. The directory.

    Returns:
        The record that `Checkpoints` wrote, a dict, or None if there is none.
    """
    for epochs in sorted(found(save_dir), reverse=True):
        weights, state = _paths(save_dir, epochs)
        try:
            with open_file(state) as file:
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
    _, arrays = read(path, "checkpoint")
    there = sum(name.startswith("optimizer/vars/") for name in arrays)
    needed = len(model.optimizer.variables)
    if there != needed:  # Keras would leave the optimizer as it is
        raise ValueError(
            f"{path}: is of another model (its optimizer has {there} arrays, and this "
            f"one {needed})"
        )
    try:
        with devices.alone():
            load_as_keras(model, arrays)
    except Exception as error:  # whatever Keras raises
        raise ValueError(
            f"{path}: is of another model ({first_line(error)})"
        ) from error


def restore_log(save_dir, record):
    """Bring `log.csv` back to a checkpoint; the arguments are those of `restore`."""
    write_text(os.path.join(save_dir, "log.csv"), record["log"])


def weights_path(save_dir, epochs):
    """Return where the weights of a checkpoint lie."""
    return _paths(save_dir, epochs)[0]


def _paths(save_dir, epochs):
    stem = os.path.join(save_dir, f"checkpoint-{epochs:04d}")
    return f"{stem}.weights.h5", f"{stem}.json"


def found(save_dir):
    """The numbers of epochs that there are checkpoints of, whole or not."""
    if not os.path.isdir(save_dir):
        return []
    numbers = (
        re.fullmatch(r"checkpoint-([0-9]+)\.json", n) for n in os.listdir(save_dir)
    )
    return [int(match[1]) for match in numbers if match]
