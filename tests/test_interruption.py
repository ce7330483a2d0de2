"""What stops a training, and what it finds when it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    classifier,
    options,
    read_log,
    script_environment,
    small_capsnet,
    small_data,
)

import callbacks
import capsulenet
import checkpoints
import main
import utils
from capsulenet import load_weights, train


def small_train(directory, **changes):
    return train(classifier(), small_data(), options(directory, seed=0, **changes))


# Signals -----------------------------------------------------------------------------


class SendsSignal(keras.callbacks.Callback):
    """Sends a signal to this process, at a place in the training."""

    def __init__(self, number, epoch, step):
        super().__init__()
        self.number, self.place = number, (epoch, step)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    tmp_path, monkeypatch, capfd, name, code
):
    sends = SendsSignal(getattr(signal, name), epoch=1, step=2)
    used = capsulenet._callbacks
    monkeypatch.setattr(capsulenet, "_callbacks", lambda *args: [sends, *used(*args)])
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    model = small_capsnet()[0]
    args = options(tmp_path, seed=0, epochs=3)
    with pytest.raises(SystemExit) as stop:
        train(model, small_data(), args)
    assert stop.value.code == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    said = capfd.readouterr().err
    assert f"Stopped by {name} in epoch 2 after step 3" in said
    assert "interrupted_model.h5" in said and "--resume goes on after epoch 1" in said
    assert len(read_log(tmp_path)) == 1 and (tmp_path / "log.png").exists()
    saved = small_capsnet()[0]
    load_weights(saved, str(tmp_path / "interrupted_model.h5"))
    for a, b in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(tmp_path, monkeypatch):
    save = checkpoints._save_whole_model

    def interrupted_save(model, path):
        os.kill(os.getpid(), signal.SIGTERM)
        save(model, path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", interrupted_save)
    with pytest.raises(SystemExit):
        small_train(tmp_path, epochs=3)
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1
    assert len(read_log(tmp_path)) == 1


@pytest.mark.parametrize("trouble", ["nobody reads", "full disk"])
def test_a_signal_is_answered_where_nothing_can_be_said_or_saved(
    tmp_path, monkeypatch, trouble
):
    sends = SendsSignal(signal.SIGINT, epoch=0, step=1)
    used = capsulenet._callbacks
    monkeypatch.setattr(capsulenet, "_callbacks", lambda *args: [sends, *used(*args)])

    def fail(*_):
        raise BrokenPipeError

    if trouble == "full disk":
        monkeypatch.setattr(capsulenet, "save_weights", fail)
    else:
        monkeypatch.setattr(os, "write", fail)
        monkeypatch.setattr(sys.stderr, "write", fail, raising=False)
    with pytest.raises(SystemExit) as stop:
        small_train(tmp_path)
    assert stop.value.code == 130
    assert (tmp_path / "interrupted_model.h5").exists() == (trouble == "nobody reads")


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{ROOT!r}, {ROOT + '/tests'!r}]\n"
        "import os, signal, callbacks\n"
        "with callbacks.Interruption() as interruption:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=script_environment(KERAS_BACKEND="numpy"),  # starts at once
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "goes on\n")
    assert "once more stops at once" in done.stderr


def test_signals_that_are_ignored_stay_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with callbacks.Interruption():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


# One run a directory -----------------------------------------------------------------


def test_a_directory_in_use_is_refused_with_the_number_of_the_process(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{ROOT!r}]\n"
        "import checkpoints\n"
        f"with checkpoints.only_run({str(tmp_path)!r}):\n"
        "    print('has it', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        env=script_environment(KERAS_BACKEND="numpy"),  # starts at once
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "has it\n"
        with pytest.raises(OSError, match=f"process {holder.pid} on .* trains there"):
            small_train(tmp_path)
        assert set(os.listdir(tmp_path)) == {".lock", ".lock.by"}
    finally:
        holder.kill()
        holder.communicate()
    small_train(tmp_path)  # a lock that a dead process left is taken over
    assert (tmp_path / ".lock.by").read_text().startswith(f"{os.getpid()} on ")


def test_a_run_from_the_start_keeps_the_log_of_the_one_before(tmp_path, capsys):
    small_train(tmp_path, epochs=2)
    (tmp_path / "tensorboard-logs").mkdir(exist_ok=True)
    (tmp_path / "tensorboard-logs.1").mkdir()
    old = {name: (tmp_path / name).read_bytes() for name in ("log.csv", "log.png")}
    for number in (2, 3):
        small_train(tmp_path, epochs=1)
        assert f"is now log.{number}.csv" in capsys.readouterr().out
    assert (tmp_path / "log.2.csv").read_bytes() == old["log.csv"]
    assert (tmp_path / "log.2.png").read_bytes() == old["log.png"]
    assert (tmp_path / "tensorboard-logs.2").is_dir()
    assert len(read_log(tmp_path)) == 1


def test_what_a_dead_run_left_half_written_is_removed(tmp_path):
    half = tmp_path / "checkpoint-0001.99999.tmp.weights.h5"
    half.write_bytes(b"half")
    foreign = tmp_path / "my.99999.tmp.txt"
    foreign.write_bytes(b"not ours")
    small_train(tmp_path)
    assert not half.exists() and foreign.exists()


def test_a_run_from_the_start_does_not_go_on_with_the_one_before(tmp_path):
    small_train(tmp_path, epochs=3, pause_after=2)
    model = classifier()
    model.fit = None  # a run that fails before its first epoch has ended
    with pytest.raises(TypeError):
        train(model, small_data(), options(tmp_path, seed=0, epochs=3))
    assert checkpoints.last_checkpoint(tmp_path) is None
    former = tmp_path / "former-run"
    assert checkpoints.last_checkpoint(former)["epochs"] == 2
    small_train(tmp_path, epochs=1)
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1
    small_train(former, epochs=3, resume=True)
    assert [row["epoch"] for row in read_log(former)] == [0, 1, 2]


# Disks and directories ---------------------------------------------------------------


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    arrays = {f"x_{s}": rng.integers(0, 255, (20, 17, 17), "uint8") for s in SPLITS}
    np.savez(path, **arrays, **{f"y_{s}": np.arange(20) % 2 for s in SPLITS})
    return path


SPLITS = ("train", "test")
NETWORK = [
    *("--num-conv-out-channel", 4, "--primary-unit-size", 4, "--num-primary-unit", 2),
    *("--output-unit-size", 4, "--num-classes", 2, "--batch-size", 20),
    *("--input-width", 17, "--input-height", 17, "--epochs", 1),
]


def small_main(data_file, cwd, *wrapper):
    """Train by `main.py`, perhaps wrapped in other programs."""
    command = [sys.executable, f"{ROOT}/main.py", "--dataset", data_file, *NETWORK]
    return subprocess.run(
        [*wrapper, *map(str, command)],
        cwd=cwd,
        env=script_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(done):
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def on_a_disk(options):
    """The command that runs another on a file system of its own, or skip."""
    mount = f'mount -t tmpfs -o {options} none disk && cd disk && exec "$@"'
    for wrapper in (["unshare", "-m"], ["unshare", "-rm"]):
        command = [*wrapper, "sh", "-c", mount, "sh"]
        try:
            os.makedirs("disk", exist_ok=True)
            subprocess.run([*command, "true"], check=True, capture_output=True)
            return command
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("no file system can be mounted here")


@pytest.mark.parametrize(
    "options, message",
    [
        ("size=5M", "No space left on device: no epoch was finished, --resume starts"),
        ("ro", "--save_dir ./results: can't be written (Read-only file system)"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(
    tmp_path, monkeypatch, data_file, options, message
):
    monkeypatch.chdir(tmp_path)
    done = small_main(data_file, tmp_path, *on_a_disk(options))
    assert done.returncode == 2
    assert message in last_line(done)


def test_a_full_disk_leaves_the_files_that_were_there(tmp_path, monkeypatch):
    small_train(tmp_path, epochs=2, pause_after=1)
    before = files_that_stay(tmp_path)
    save = checkpoints._save_whole_model

    def full(model, path):
        save(model, path)
        with open(path, "r+b") as file:
            file.truncate(1000)
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", full)
    with pytest.raises(OSError, match="No space left.*goes on after epoch 1"):
        small_train(tmp_path, epochs=2, resume=True)
    monkeypatch.undo()
    assert {n: d for n, d in files_that_stay(tmp_path).items() if n in before} == before
    assert not list(tmp_path.glob("*.tmp*"))


def files_that_stay(directory):
    names = (*directory.glob("checkpoint*"), *directory.glob("*.h5"))
    return {path.name: path.read_bytes() for path in names}


@pytest.mark.parametrize("write", ["text", "figure", "image", "weights"])
def test_what_can_not_be_written_leaves_the_old_file(tmp_path, write, monkeypatch):
    path = tmp_path / "log.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    writers = {
        "text": lambda: checkpoints.write_text(path, "new"),
        "figure": lambda: utils.plot_confusion(np.eye(2, dtype=int), "ab", path),
        "image": lambda: utils.save_image(np.zeros((2, 2)), path),
        "weights": lambda: capsulenet.save_weights(small_capsnet()[0], path),
    }
    with pytest.raises(OSError):
        writers[write]()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["log.png"]


def test_a_directory_that_can_not_be_written_is_one_line(tmp_path, data_file, capsys):
    (tmp_path / "results").write_text("a file")
    save_dir = str(tmp_path / "results")
    with pytest.raises(SystemExit) as stop:
        capsulenet.main(["--dataset", str(data_file), "--save_dir", save_dir])
    assert stop.value.code == 2
    assert f"--save_dir {save_dir}: can't be written" in capsys.readouterr().err


def test_a_directory_that_vanishes_is_one_error(tmp_path, monkeypatch):
    save = checkpoints._save_whole_model

    def vanish(model, path):
        shutil.rmtree(tmp_path / "run")
        save(model, path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", vanish)
    with pytest.raises(OSError, match="no epoch was finished"):
        small_train(tmp_path / "run")


# Sick trainings ----------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    model = small_capsnet()[0]
    (x, y), test = small_data()
    args = options(tmp_path, seed=0, epochs=2, pause_after=1, resume=True)
    train(model, ((x, y), test), args)
    before = files_that_stay(tmp_path)
    with pytest.raises(
        FloatingPointError,
        match="loss is nan in epoch 2 after step 1: .*checkpoint-0001.*--resume",
    ):
        train(model, ((np.full_like(x, np.nan), y), test), args)
    assert files_that_stay(tmp_path) == before


def test_weights_broken_by_the_last_step_are_noticed_too(tmp_path):
    model, data = small_capsnet()[0], small_data()

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


# Going on ----------------------------------------------------------------------------


def test_capsulenet_goes_on_and_names_other_options(tmp_path, data_file, capsys):
    save_dir = tmp_path / "run"
    command = ["--dataset", str(data_file), "--save_dir", str(save_dir), "--resume"]
    command += ["--epochs", "1"]
    capsulenet.main(command)
    first = (save_dir / "log.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        capsulenet.main([*command, "--lr", "0.5", "--routings", "2"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--lr 0.5 (there: 0.001), --routings 2 (there: 3)" in said
    capsulenet.main(command)
    assert "Resumed after epoch 1 of 1" in capsys.readouterr().out
    assert (save_dir / "log.csv").read_bytes() == first


def test_dropout_goes_on_as_if_never_stopped(tmp_path):
    models = [classifier() for _ in range(3)]
    models[1].set_weights(models[0].get_weights())
    args = {"seed": 3, "epochs": 2, "deterministic": True, "lam_recon": 0.0}
    data = small_data()
    train(models[0], data, options(tmp_path / "whole", **args))
    for model in models[1:]:
        parts = options(tmp_path / "parts", resume=True, pause_after=1, **args)
        train(model, data, parts)
    for a, b in zip(models[0].get_weights(), models[2].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_best_weights_are_copied_where_a_kill_prevented_it(tmp_path):
    small_train(tmp_path, epochs=2, pause_after=1)
    best = tmp_path / "best.weights.h5"
    content = best.read_bytes()
    best.unlink()
    record = checkpoints.last_checkpoint(tmp_path)
    checkpoints.Checkpoints(
        str(tmp_path), {}, checkpoint=record, monitor="val_accuracy"
    )
    assert best.read_bytes() == content


def test_a_checkpoint_of_an_older_version_is_taken(tmp_path):
    small_train(tmp_path, epochs=2, pause_after=1)
    path = tmp_path / "checkpoint-0001.json"
    record = json.loads(path.read_text())
    del record["sha256 of the rest"], record["options"]["deterministic"]
    path.write_text(json.dumps(record))
    small_train(tmp_path, epochs=2, resume=True)
    assert len(read_log(tmp_path)) == 2


def test_main_goes_on_and_names_other_options(tmp_path, monkeypatch, data_file, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--dataset", str(data_file), *map(str, NETWORK), "--resume"]
    main.main(command)
    first = (tmp_path / "results" / "log.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main.main([*command, "--lr", "0.5", "--num-conv-out-channel", "8"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--lr 0.5 (there: 0.01)" in said
    assert "--num-conv-out-channel 8 (there: 4)" in said
    main.main(command)
    assert "Resumed after epoch 1 of 1" in capsys.readouterr().out
    assert (tmp_path / "results" / "log.csv").read_bytes() == first
