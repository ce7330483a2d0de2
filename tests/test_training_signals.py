import os
import signal
import sys

import keras
import numpy as np
import pytest
from helpers import (
    Records,
    SendsSignal,
    average_of,
    classifier,
    options,
    read_log,
    small_data,
    small_train,
)

import capsulenet
from capsnet import errors
from capsnet.training import checkpoints, fit, signals
from capsulenet import load_weights, train


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    tmp_path, with_callback, capfd, name, code
):
    with_callback(SendsSignal(getattr(signal, name), epoch=1, step=2))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    model = classifier()
    args = options(tmp_path, seed=0, epochs=3)
    with pytest.raises(SystemExit) as stop, capsulenet.one_line_errors():
        train(model, small_data(), args, signals=True)
    assert stop.value.code == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    said = capfd.readouterr().err
    assert f"Stopped by {name} in epoch 2 after step 3" in said
    assert "interrupted_model.h5" in said and "--resume goes on after epoch 1" in said
    assert len(read_log(tmp_path)) == 1 and (tmp_path / "log.png").exists()
    saved = classifier()
    load_weights(saved, str(tmp_path / "interrupted_model.h5"))
    for a, b in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(tmp_path, monkeypatch):
    save = checkpoints._save_whole_model

    def interrupted_save(model, path):
        monkeypatch.undo()  # once is enough
        os.kill(os.getpid(), signal.SIGTERM)
        save(model, path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", interrupted_save)
    with pytest.raises(errors.Interrupted):
        train(classifier(), small_data(), options(tmp_path, epochs=3), signals=True)
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1
    assert len(read_log(tmp_path)) == 1


@pytest.mark.parametrize("trouble", ["nobody reads", "full disk"])
def test_a_signal_is_answered_where_nothing_can_be_said_or_saved(
    tmp_path, monkeypatch, with_callback, trouble
):
    with_callback(SendsSignal(signal.SIGINT, epoch=0, step=1))

    def fail(*_):
        raise BrokenPipeError

    if trouble == "full disk":
        monkeypatch.setattr(fit, "save_weights", fail)
    else:
        monkeypatch.setattr(os, "write", fail)
        monkeypatch.setattr(sys.stderr, "write", fail, raising=False)
    with pytest.raises(SystemExit) as stop, capsulenet.one_line_errors():
        train(classifier(), small_data(), options(tmp_path), signals=True)
    assert stop.value.code == 130
    assert (tmp_path / "interrupted_model.h5").exists() == (trouble == "nobody reads")


def test_signals_that_are_ignored_stay_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.Interruption():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


class InterruptsValidation(keras.callbacks.Callback):
    """Sends Ctrl-C in the validation of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_batch_begin(self, batch, logs=None):
        if self.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("steps", [8, 10])
def test_an_interrupted_run_leaves_the_average_of_its_weights(
    tmp_path, with_callback, steps
):
    recorded = with_callback(Records())
    stop = SendsSignal(signal.SIGINT, epoch=1, step=2)
    with_callback(stop if steps == 8 else InterruptsValidation())
    model, args = classifier(), options(tmp_path, seed=0, epochs=3, ema=0.8)
    with pytest.raises(errors.Interrupted):
        train(model, small_data(), args, signals=True)
    assert len(recorded.steps) == steps
    load_weights(model, str(tmp_path / "interrupted_model.h5"))
    expected = average_of(recorded.steps, 0.8)
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_library_call_leaves_signals_and_errors_as_they_are(tmp_path, with_callback):
    class Defect(ValueError):
        pass

    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            handlers.append(list(map(signal.getsignal, numbers)))
            raise error

    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [list(map(signal.getsignal, numbers))]
    with_callback(Fails())
    for error in (Defect("of three lines"), KeyboardInterrupt(), TypeError("a type")):
        with pytest.raises(BaseException) as raised:
            small_train(tmp_path)
        assert raised.value is error
    with pytest.raises(ValueError, match="--lr -1"):
        small_train(tmp_path, lr=-1)
    assert all(handler == handlers[0] for handler in handlers) and len(handlers) == 4
