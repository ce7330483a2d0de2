"""Checkpoints that were altered, or that others wrote."""

import json
import random
import shutil

import fuzz
import h5py
import keras
import numpy as np
import pytest
from helpers import options, small_capsnet, small_data, with_h5

import capsulenet
from capsnet import files
from capsnet import options as options_of
from capsnet.training import checkpoints


def test_a_checkpoint_is_never_taken_when_altered(tmp_path):
    directory = tmp_path / "run"
    model = small_capsnet(decoder=False)[0]
    capsulenet.train(model, small_data(), options(directory, seed=0))
    for ending in ("weights.h5", "json"):
        path = directory / f"checkpoint-0001.{ending}"
        content = path.read_bytes()
        for number in range(fuzz.MUTATIONS):
            damaged = fuzz.mutate(content, random.Random(number))
            path.write_bytes(damaged)
            taken = checkpoints.last_checkpoint(directory)
            assert (taken is None) == (damaged != content), number
        path.write_bytes(content)
        assert checkpoints.last_checkpoint(directory)["epochs"] == 1


def train_capsnet(directory, **changes):
    model = small_capsnet(decoder=False)[0]
    args = options(directory, seed=0, epochs=2, ema=0.9, **changes)
    return capsulenet.train(model, small_data(), args)


@pytest.fixture(scope="module")
def paused(tmp_path_factory):
    directory = tmp_path_factory.mktemp("paused")
    train_capsnet(directory, pause_after=1)
    return directory


def layer(file):
    return file["layers"]["capsule_layer"]["vars"]


def outer_link(file):
    del file["layers"]["capsule_layer"]
    file["layers/capsule_layer"] = h5py.ExternalLink("/dev/zero", "/")


def soft_link(file):
    del file["optimizer/vars/3"]
    file["optimizer/vars/3"] = h5py.SoftLink("/optimizer/vars/2")


def compressed(file):
    del layer(file)["0"]
    layer(file).create_dataset("0", data=np.zeros(30_000_000, "f4"), compression="gzip")


def bytes_of_another_file(file):
    shape = layer(file)["0"].shape
    del layer(file)["0"]
    layer(file).create_dataset("0", shape, "f4", external=[("/etc/hostname", 0, 4096)])


def not_a_number(file):
    file["optimizer/vars/5"][...] = np.nan


def another_shape(file):
    del layer(file)["0"]
    layer(file)["0"] = np.zeros((1, 2, 3), "f4")


def no_optimizer(file):
    del file["optimizer"]


def half_an_optimizer(file):
    del file["optimizer/vars/7"]


@pytest.mark.parametrize(
    "change, message",
    [
        (outer_link, "is a link"),
        (soft_link, "is a link"),
        (compressed, "is not in the file"),
        (bytes_of_another_file, "is not in the file"),
        (not_a_number, "not finite"),
        (another_shape, "of another model"),
        (no_optimizer, "its optimizer has 0 arrays"),
        (half_an_optimizer, "its optimizer has"),
        (None, "not a readable weights file"),
    ],
)
def test_a_hostile_checkpoint_is_refused_in_one_line(
    paused, tmp_path, change, message, capsys
):
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    weights, state = (tmp_path / f"checkpoint-0001.{e}" for e in ("weights.h5", "json"))
    if change:
        with_h5(weights, change)
    else:
        weights.write_bytes(b"no HDF5")
    record = json.loads(state.read_text())
    del record["sha256 of the rest"]
    record["sha256"] = files.sha256(weights)
    state.write_text(checkpoints._to_text(record))
    with pytest.raises(SystemExit) as stop, capsulenet.one_line_errors():
        train_capsnet(tmp_path, resume=True)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(weights) in line and message in line
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1


@pytest.mark.parametrize("ending", ["weights.h5", "json"])
def test_a_checkpoint_that_is_no_file_is_not_waited_for(paused, tmp_path, ending):
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    (tmp_path / f"checkpoint-0001.{ending}").unlink()
    (tmp_path / f"checkpoint-0001.{ending}").symlink_to("/dev/zero")
    assert checkpoints.last_checkpoint(tmp_path) is None


def test_a_checkpoint_is_not_opened_as_hdf5_in_the_process_itself(
    paused, tmp_path, monkeypatch
):
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    (weights,) = tmp_path.glob("checkpoint-*.h5")
    opened, open_file = [], h5py.File.__init__

    def record(self, name, mode="r", *args, **kwargs):
        opened.append((str(name), mode))
        open_file(self, name, mode, *args, **kwargs)

    monkeypatch.setattr(h5py.File, "__init__", record)
    train_capsnet(tmp_path, resume=True)
    assert opened and (str(weights), "r") not in opened


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_a_checkpoint_is_set_to_the_bit_as_keras_would_set_it(tmp_path, optimizer):
    def build():
        x = keras.Input((12, 12, 1))
        y = keras.layers.Flatten()(x)
        for _ in range(11):  # more than nine of a kind
            y = keras.layers.Dense(4, activation="relu")(y)
        y = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(y))
        return keras.Model(x, keras.layers.Dense(3, activation="softmax")(y))

    args = options(tmp_path, optimizer=optimizer, ema=0.9, epochs=2, pause_after=1)
    capsulenet.train(build(), small_data(), args)
    states = []
    for by in ("keras", "checkpoints"):
        model = build()
        capsulenet.compile_model(model, options_of.complete(args))
        model.optimizer.build(model.trainable_variables)
        if by == "keras":
            model.load_weights(tmp_path / "checkpoint-0001.weights.h5")
        else:
            record = checkpoints.last_checkpoint(tmp_path)
            checkpoints.restore(model, tmp_path, record)
        variables = [*model.weights, *model.optimizer.variables]  # seeds are drawn
        states.append([keras.ops.convert_to_numpy(v) for v in variables])
    assert int(states[0][len(model.weights)]) == 5  # steps of the optimizer
    for a, b in zip(*states, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
