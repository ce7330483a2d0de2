import argparse
import importlib.util
import re

import keras
import numpy as np
import pytest
from helpers import (
    Records,
    average_of,
    classifier,
    files_that_stay,
    options,
    read_log,
    small_capsnet,
    small_data,
)

from capsnet import data as datasets
from capsnet import options as options_of
from capsnet.networks import SharedCapsNet
from capsnet.training import callbacks, checkpoints, devices, fit
from capsulenet import CapsNet, load_weights, train


def test_averaged_weights_are_validated_kept_and_what_a_run_ends_with(
    tmp_path, with_callback
):
    recorded, model = with_callback(Records()), classifier()
    (x, y), data = small_data()[1], small_data()
    train(model, data, options(tmp_path, seed=0, epochs=3, lr=0.01, ema=0.8))
    averages = [average_of(recorded.steps[: 5 * n], 0.8) for n in (1, 2, 3)]
    log = read_log(tmp_path)
    for row, average in zip(log, averages, strict=True):
        model.set_weights(average)
        loss = np.mean(-np.log(model.predict(x, verbose=0)[y == 1]))
        assert row["val_loss"] == pytest.approx(loss, rel=1e-4)
    best = np.argmax([row["val_accuracy"] for row in log])
    expected = {
        "trained_model.h5": averages[-1],
        "best.weights.h5": averages[best],
        "checkpoint-0003.weights.h5": recorded.steps[-1],  # to go on from
    }
    for name, weights in expected.items():
        load_weights(model, str(tmp_path / name))
        for a, b in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert (
        max(abs(a - b).max() for a, b in zip(averages[-1], recorded.steps[-1])) > 0.01
    )


def test_averaging_does_not_change_the_steps(tmp_path, with_callback):
    recorded = with_callback(Records())
    for ema in (0.0, 0.8):
        keras.utils.set_random_seed(0)
        args = options(tmp_path / str(ema), seed=0, epochs=2, ema=ema)
        train(classifier(), small_data(), args)
    plain, averaged = recorded.steps[:10], recorded.steps[10:]
    for step, other in zip(plain, averaged, strict=True):
        for a, b in zip(step, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path, monkeypatch
):
    model = classifier()
    (x, y), test = small_data()
    args = options(tmp_path, seed=0, epochs=2, pause_after=1, resume=True)
    train(model, ((x, y), test), args)
    before = files_that_stay(tmp_path)
    draw = datasets.TrainingBatches.draw

    def harmful(batches, epoch):
        draw(batches, epoch)
        batches.x = np.full_like(batches.x, np.nan)

    monkeypatch.setattr(datasets.TrainingBatches, "draw", harmful)
    with pytest.raises(
        FloatingPointError,
        match="loss is nan in epoch 2 after step 1: .*checkpoint-0001.*--resume",
    ):
        train(model, ((x, y), test), args)
    assert files_that_stay(tmp_path) == before


def test_weights_broken_by_the_last_step_are_noticed_too(tmp_path):
    model, data = classifier(), small_data()

    class Breaks(callbacks.EpochSeconds):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4 and keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            if batch == 4:
                self.model.set_weights(
                    [np.full_like(w, np.inf) for w in self.model.get_weights()]
                )

    original, callbacks.EpochSeconds = callbacks.EpochSeconds, Breaks
    try:
        with pytest.raises(FloatingPointError, match="validation loss is nan"):
            train(model, data, options(tmp_path, seed=0, epochs=2))
    finally:
        callbacks.EpochSeconds = original
    assert checkpoints.last_checkpoint(tmp_path) is None
    assert not files_that_stay(tmp_path)


@pytest.mark.parametrize("dead", [True, False])
def test_capsules_of_length_zero_are_warned_of(tmp_path, monkeypatch, capsys, dead):
    monkeypatch.setattr(callbacks, "FIRST_STEPS", 8)  # in the second epoch of 5 steps
    model = small_capsnet()[0]
    if dead:
        layer = model.get_layer("digitcaps")
        layer.set_weights([np.zeros_like(layer.get_weights()[0])])
    sizes, predict = [], model.predict_on_batch
    model.predict_on_batch = lambda x: (sizes.append(len(x[0])), predict(x))[1]
    train(model, small_data(), options(tmp_path, seed=0, epochs=2))
    assert sum(sizes) == 50 and max(sizes) == 10  # no more at once than in a step
    printed = capsys.readouterr().out
    assert printed.count("after 8 steps the capsules of 3 of 3 classes") == dead
    assert ("TruncatedNormal" in printed) == dead


def test_several_devices_draw_no_pictures(tmp_path, monkeypatch):
    args = argparse.Namespace(draw_reconstructions=True, save_dir=str(tmp_path), seed=0)
    args = options_of.complete(args)
    (x, y), _ = small_data()
    kinds = []
    for count in (1, 2):
        monkeypatch.setattr(devices, "replicas", lambda count=count: count)
        batches = datasets.TrainingBatches(x, y, 10)
        used = fit.callbacks_of(small_capsnet()[0], args, batches, {}, None, x)
        kinds.append([type(callback).__name__ for callback in used])
    assert "Reconstructions" in kinds[0] and "Reconstructions" not in kinds[1]


def test_a_network_without_a_decoder_draws_no_pictures(tmp_path):
    model = small_capsnet(decoder=False)[0]
    train(model, small_data(), options(tmp_path, draw_reconstructions=True))
    assert (tmp_path / "trained_model.h5").exists()


@pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="TensorBoard's summaries"
)
@pytest.mark.parametrize("channels", [2, 5])
def test_tensorboard_is_given_what_it_can_show_of_images(tmp_path, channels):
    model = CapsNet((17, 17, channels), 2, 1, filters=4, n_channels=2)[0]
    images = np.random.default_rng(0).random((3, 17, 17, channels), "float32")
    shown = callbacks.Reconstructions(images, str(tmp_path))
    shown.set_model(model)
    shown.on_epoch_end(0)
    (events,) = (tmp_path / "tensorboard-logs" / "images").glob("events*")
    assert b"reconstructed" in events.read_bytes()


def test_lines_come_too_where_steps_are_taken_several_at_once(capsys):
    log = callbacks.BatchLog(10)
    for _ in range(2):
        log.on_epoch_begin(0)
        for step in (4, 7, 23, 46, 49):
            log.on_train_batch_end(step - 1, {"loss": 0.5})
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == 2 * ["Batch 23: loss 0.5000", "Batch 46: loss 0.5000"]


@pytest.mark.parametrize(
    "lengths, said",
    [
        (np.full((50, 3), 0.97), "all capsules are longer than 0.8 for each of 50"),
        (
            np.tile([0.1, 0.3, 0.5], (50, 1)),
            "lengths differ by less than 0.001 between",
        ),
        (np.linspace(0.1, 0.9, 150).reshape(50, 3), None),
    ],
)
def test_lengths_that_tell_nothing_are_warned_of(capsys, lengths, said):
    watch = callbacks.DeadCapsules(lambda: lengths)
    watch.set_params({"steps": 300})
    watch.set_model(small_capsnet()[0])
    watch.on_epoch_begin(0)
    for step in range(250):
        watch.on_train_batch_end(step)
    printed = capsys.readouterr().out
    assert printed.count("Warning") == (said is not None)
    assert said is None or (said in printed and "--lr" in printed)


@pytest.mark.parametrize(
    "share, accuracy, warned", [(0.33, 0.35, 1), (0.33, 0.5, 0), (0.95, 0.951, 1)]
)
def test_guessing_the_commonest_class_is_warned_of_once(
    capsys, share, accuracy, warned
):
    watch = callbacks.NoBetterThanGuessing(share)
    watch.set_params({"steps": 100})
    for epoch in range(6):
        watch.on_epoch_end(epoch, {"capsnet_accuracy": accuracy})
        printed = capsys.readouterr().out
        assert printed.count("Warning") == (warned if epoch == 3 else 0)


@pytest.mark.parametrize("accuracy", [0.95, 0.9, 0.96, 0.992])
def test_until_is_reached_by_an_accuracy_of_32_bits_that_is_just_below(accuracy):
    seen = float(np.float32(accuracy))
    assert seen < accuracy
    resumed = callbacks.Until(accuracy, "val_accuracy", [{"val_accuracy": str(seen)}])
    assert resumed.reached
    until = callbacks.Until(accuracy, "val_accuracy")
    until.set_model(classifier())
    until.model.stop_training = False  # as `fit` begins
    until.on_epoch_end(0, {"val_accuracy": seen - 1e-5})
    assert not until.reached and not until.model.stop_training
    until.on_epoch_end(1, {"val_accuracy": seen})
    assert until.reached and until.model.stop_training


def test_the_first_weights_that_are_warned_of_are_those_there_were(capsys):
    small = {"filters": 8, "n_channels": 2, "decoder": False}
    model = SharedCapsNet((28, 28, 1), 10, **small)[0]
    assert model.get_layer("digitcaps").kernel_initializer is None
    watch = callbacks.DeadCapsules(lambda: np.zeros((3, 10)))
    watch.set_model(model), watch.set_params({"steps": callbacks.FIRST_STEPS})
    watch.on_epoch_begin(0), watch.on_train_batch_end(callbacks.FIRST_STEPS - 1)
    stddev = float(re.search(r"stddev=([\d.e-]+)", capsys.readouterr().out)[1])
    W = model.get_layer("digitcaps").get_weights()[0]
    assert W.std() == pytest.approx(stddev, rel=0.2)  # of a truncated normal


def test_an_initializer_may_be_a_function():
    def halves(shape, dtype=None):
        return keras.ops.full(shape, 0.5, dtype)

    assert callbacks._in_words(halves) == "halves"
