import importlib.util
import inspect
import os
import pathlib

import keras
import numpy as np
import pytest
from helpers import (
    assert_same_weights,
    classifier,
    options,
    read_log,
    small_capsnet,
    small_data,
)
from keras import ops

from capsnet import data as datasets
from capsnet.architecture import architecture
from capsnet.data import TrainingBatches
from capsnet.data.changes import Augmentation
from capsnet.training import checkpoints, fit
from capsulelayers import CapsuleLayer, Length
from capsulenet import (
    CapsNet,
    load_model,
    load_weights,
    margin_loss,
    save_weights,
    train,
)


def test_training_leaves_its_files(trained):
    expected = {"log.csv", "log.png", "trained_model.h5", "best.weights.h5"}
    found = set(os.listdir(trained.save_dir))
    assert expected <= found
    assert not [name for name in found if ".tmp" in name]
    if all(map(importlib.util.find_spec, ("tensorflow", "tensorboard"))):
        logs = pathlib.Path(trained.save_dir, "tensorboard-logs")
        for part in ("train", "validation"):
            (events,) = (logs / part).glob("events*")
            assert b"epoch_loss" in events.read_bytes()


def test_the_last_two_checkpoints_are_kept(trained):
    names = [n for n in os.listdir(trained.save_dir) if n.startswith("checkpoint")]
    assert sorted(names) == [
        *("checkpoint-0005.json", "checkpoint-0005.weights.h5"),
        *("checkpoint-0006.json", "checkpoint-0006.weights.h5"),
    ]


def test_the_log_has_one_row_an_epoch(trained):
    log = read_log(trained.save_dir)
    assert [row["epoch"] for row in log] == list(range(6))
    assert set(log[0]) == {
        "epoch",
        "learning_rate",
        "seconds",
        *(
            prefix + name
            for prefix in ("", "val_")
            for name in ("loss", "capsnet_loss", "decoder_loss", "capsnet_accuracy")
        ),
    }
    rates = [row["learning_rate"] for row in log]
    np.testing.assert_allclose(rates, [0.005 * 0.9**n for n in range(6)], rtol=1e-5)
    for row in log:
        total = row["val_capsnet_loss"] + 0.392 * row["val_decoder_loss"]
        assert row["val_loss"] == pytest.approx(total, rel=1e-4)
        assert row["seconds"] > 0


def test_training_learns(trained):
    log = read_log(trained.save_dir)
    assert log[-1]["val_loss"] < log[0]["val_loss"]
    assert log[-1]["val_capsnet_accuracy"] > 0.8


def test_validation_figures_are_exact_with_a_smaller_last_batch(trained):
    x, y = trained.data[1]  # 23 images, batches of 10
    lengths, recon = trained.trio[0].predict([x, y], verbose=0)
    last = read_log(trained.save_dir)[-1]
    assert last["val_capsnet_loss"] == pytest.approx(
        float(ops.mean(margin_loss(y, lengths))), rel=1e-4
    )
    assert last["val_decoder_loss"] == pytest.approx(
        np.mean((recon - x) ** 2), rel=1e-4
    )
    accuracy = np.mean(lengths.argmax(1) == y.argmax(1))
    assert last["val_capsnet_accuracy"] == pytest.approx(accuracy, rel=1e-5)


def test_the_weights_written_are_the_trained_ones(trained):
    model = small_capsnet()[2]
    load_weights(model, os.path.join(trained.save_dir, "trained_model.h5"))
    assert_same_weights(model, trained.trio[0])
    load_weights(model, os.path.join(trained.save_dir, "best.weights.h5"))


def test_a_seed_makes_training_repeatable(tmp_path):
    logs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        keras.utils.set_random_seed(0)
        args = options(tmp_path / name, seed=seed, epochs=2)
        train(classifier(), small_data(), args)
        logs.append([{**row, "seconds": 0} for row in read_log(tmp_path / name)])
    for a, b in zip(logs[0], logs[1]):
        assert a == pytest.approx(b, rel=1e-5)
    assert logs[0][1]["loss"] != pytest.approx(logs[2][1]["loss"], rel=1e-4)


def test_every_epoch_is_trained_on_its_own_order(tmp_path, monkeypatch):
    calls = set()
    original = TrainingBatches.__getitem__

    def record(batches, index):
        calls.add((batches.order.tobytes(), index))
        return original(batches, index)

    monkeypatch.setattr(TrainingBatches, "__getitem__", record)
    data = small_data()
    train(classifier(), data, options(tmp_path, seed=7, epochs=3))
    expected = TrainingBatches(*data[0], 10, seed=7, shift_fraction=0.1)
    for epoch in range(3):
        expected.draw(epoch)
        assert {(expected.order.tobytes(), index) for index in range(5)} <= calls


def test_a_classifier_without_capsules_is_trained_by_the_same_function(tmp_path):
    x = keras.Input((12, 12, 1))
    y = keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(x))
    args = options(tmp_path, epochs=5, lr=0.02, lr_decay=0.9, seed=0)
    train(keras.Model(x, y), small_data(200), args)
    accuracy = [row["val_accuracy"] for row in read_log(tmp_path)]
    assert accuracy[-1] > 0.9


@pytest.mark.parametrize(
    "names", [["a"], [0, 1, 2], ["a", "b", "\x1b[2J"]], ids=["few", "numbers", "codes"]
)
def test_class_names_that_no_file_may_have_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match="class_names .* must be 3 strings"):
        train(classifier(), small_data(), options(tmp_path / "new", class_names=names))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("digits", [True, False])
def test_the_weights_tell_whether_images_are_prepared_as_those_of_mnist(
    tmp_path, digits
):
    (x, y), _ = datasets.load_mnist()
    part = x[:40] if digits else 1 - x[:40], y[:40]  # dark on light, and no file named
    size = {"filters": 4, "n_channels": 1, "dim_primary": 4, "dim_capsule": 4}
    model = CapsNet((28, 28, 1), 10, 1, **size)[0]
    train(model, (part, part), options(tmp_path))
    _, about = load_model(str(tmp_path / "trained_model.h5"))
    assert about["like_mnist"] is digits


def test_class_capsules_of_another_name_are_refused_with_theirs(tmp_path):
    inputs = keras.Input((12, 12, 1))
    capsules = CapsuleLayer(3, 4, name="mine")(keras.layers.Reshape((36, 4))(inputs))
    model = keras.Model(inputs, Length()(capsules))
    with pytest.raises(ValueError, match="must have the name 'digitcaps'"):
        train(model, small_data(), options(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_weights_of_half_precision_are_refused_before_they_are_trained(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = small_capsnet()[0]
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        train(model, small_data(), options(tmp_path / "new"))


def test_paths_may_be_those_of_pathlib(tmp_path):
    save_weights(classifier(), str(tmp_path / "a.h5"))
    args = options(tmp_path / "run", seed=0, weights=tmp_path / "a.h5")
    args.save_dir, args.dataset = tmp_path / "run", tmp_path / "b.npz"
    train(classifier(), small_data(), args)
    assert checkpoints.last_checkpoint(args.save_dir)["epochs"] == 1


@pytest.mark.parametrize("change", ["brightness", "tint"])
def test_changes_of_brightness_are_for_images_from_0_to_1(tmp_path, change):
    (x, y), test = small_data()
    args = options(tmp_path / "out", **{change: 0.2})
    with pytest.raises(
        ValueError, match="images from -0.*or a training without --bright"
    ):
        train(classifier(), ((2 * x - 1, y), test), args)


def test_training_hands_on_all_changes_of_images():
    takes = inspect.signature(Augmentation).parameters
    of_the_set = ("shape", "shift_fraction", "shift_pixels")
    assert set(fit.CHANGES) == set(takes) - set(of_the_set)


def test_a_save_directory_that_can_not_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't be written"):
        train(small_capsnet()[0], small_data(), options(tmp_path / "file" / "dir"))


@pytest.mark.parametrize("balance, share", [("auto", 0.5), ("no", 0.1)])
def test_a_training_balances_classes_as_the_command_line_does(
    tmp_path, monkeypatch, balance, share
):
    made = []

    def make(*args, **kwargs):
        made.append(TrainingBatches(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(datasets, "TrainingBatches", make)
    (x, y), held = small_data(60)
    some = np.concatenate([np.flatnonzero(y[:, 0])[:18], np.flatnonzero(y[:, 1])[:2]])
    args = options(tmp_path, balance=balance)
    train(classifier(), ((x[some], y[some]), held), args)
    assert np.mean(y[some][made[0].order, 1]) == share


def test_names_that_were_not_given_are_not_compared(
    tmp_path, squares, small_network, call
):
    model = small_network((17, 17, 1), 2, 3)[0]
    about, weights = {"architecture": architecture(model)}, str(tmp_path / "w.h5")
    save_weights(model, weights, {**about, "class_names": None})
    arrays = dict(np.load(squares))
    names = {k: np.array(["ape", "bee"])[y] for k, y in arrays.items() if k[0] == "y"}
    np.savez(tmp_path / "named.npz", **arrays | names)
    assert "Test acc" in call("-t", "-w", weights, "--dataset", "named.npz").out
