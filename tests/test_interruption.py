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
    Records,
    average_of,
    classifier,
    h5_arrays,
    options,
    read_log,
    script_environment,
    small_capsnet,
    small_data,
)

import capsulenet
import main
import reproduce
from capsnet import data as datasets
from capsnet import errors, files, pictures
from capsnet.training import callbacks, checkpoints, fit, signals
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
    tmp_path, with_callback, capfd, name, code
):
    with_callback(SendsSignal(getattr(signal, name), epoch=1, step=2))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    model = small_capsnet()[0]
    args = options(tmp_path, seed=0, epochs=3)
    with pytest.raises(SystemExit) as stop, capsulenet.one_line_errors():
        train(model, small_data(), args, signals=True)
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


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{ROOT!r}, {ROOT + '/tests'!r}]\n"
        "import os, signal\nfrom capsnet.training import signals\n"
        "with signals.Interruption() as interruption:\n"
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
    model, args = small_capsnet()[0], options(tmp_path, seed=0, epochs=3, ema=0.8)
    with pytest.raises(errors.Interrupted):
        train(model, small_data(), args, signals=True)
    assert len(recorded.steps) == steps
    load_weights(model, str(tmp_path / "interrupted_model.h5"))
    expected = average_of(recorded.steps, 0.8)
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# A library, and command lines --------------------------------------------------------


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


def test_a_defect_in_the_training_is_no_bad_input_of_a_command_line(
    tmp_path, with_callback
):
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise ValueError("a defect")

    with_callback(Fails())
    with pytest.raises(ValueError, match="a defect"), capsulenet.one_line_errors():
        small_train(tmp_path)
    with pytest.raises(SystemExit) as stop, capsulenet.one_line_errors():
        small_train(tmp_path, lr=-1)
    assert stop.value.code == 2


@pytest.mark.parametrize("front", [capsulenet, main, reproduce])
def test_command_lines_take_over_signals(
    tmp_path, monkeypatch, data_file, with_callback, capfd, front
):
    monkeypatch.chdir(tmp_path)
    with_callback(SendsSignal(signal.SIGTERM, epoch=0, step=0))
    flags = {
        capsulenet: ["--batch_size", "20"],
        main: list(map(str, NETWORK)),
        reproduce: ["--variants", "v1", "--csv", "table.csv"],
    }
    with pytest.raises(SystemExit) as stop:
        front.main(["--dataset", str(data_file), *flags[front]])
    assert stop.value.code == 143
    said = capfd.readouterr().err
    assert "Stopped by SIGTERM in epoch 1 after step 1\nThe weights of that" in said
    assert "no epoch was finished, --resume starts at epoch 0\n" in said
    (weights,) = tmp_path.rglob("interrupted_model.h5")
    assert str(weights.relative_to(tmp_path)) in said


# One run a directory -----------------------------------------------------------------


def test_a_directory_in_use_is_refused_with_the_number_of_the_process(tmp_path):
    program = (
        f"import sys; sys.path[:0] = [{ROOT!r}]\n"
        "from capsnet.training import folder\n"
        f"with folder.only_run({str(tmp_path)!r}):\n"
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


OF_A_RUN = (
    *("log.csv", "log.png", "trained_model.h5", "best.weights.h5"),
    *("checkpoint-0001.json", "checkpoint-0001.weights.h5"),
    *("interrupted_model.h5", "real_and_recon.png", "confusion.png", "mistakes.png"),
    *("manipulate-0.png", "manipulate-12.png", "dimensions.png", "predictions.png"),
)
NOT_OF_A_RUN = ("README.md", "mnist.csv", "my-log.csv", "mine.h5", "manipulate-me.png")


def files_under(directory):
    """The content of every file in a directory, but for who holds the lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def test_a_run_from_the_start_moves_every_file_of_the_one_before(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "tensorboard-logs").mkdir()
    (tmp_path / "run-2").mkdir()  # somebody's
    foreign = {*NOT_OF_A_RUN, "run-2/trained_model.h5"}
    for name in {*OF_A_RUN, *foreign, "tensorboard-logs/events"}:
        (tmp_path / name).write_text(name)
    with pytest.raises(ValueError, match="--lr -1"):
        small_train(tmp_path, lr=-1)
    assert not (tmp_path / "run-1").exists()  # a run that is refused has not begun
    monkeypatch.setenv("PATH", "")  # as if git were not installed
    expected = {}
    for number in (1, 3):
        before = files_under(tmp_path)
        small_train(tmp_path)
        moved = {n: d for n, d in before.items() if n not in foreign | {*expected}}
        assert number > 1 or moved.keys() >= {*OF_A_RUN, "tensorboard-logs/events"}
        expected |= {f"run-{number}/{name}": data for name, data in moved.items()}
        expected |= {name: before[name] for name in foreign}
        after = files_under(tmp_path)
        assert {name: after.get(name) for name in expected} == expected
        said = capsys.readouterr().out
        assert f"is now in {tmp_path}/run-{number}: " in said and "git" not in said
        assert all(name in said for name in OF_A_RUN if name in moved)


def test_a_run_from_the_start_does_not_go_on_with_the_one_before(tmp_path):
    small_train(tmp_path, epochs=3, pause_after=2)
    before = files_under(tmp_path)
    model = classifier()
    model.fit = None  # a run that fails before its first epoch has ended
    with pytest.raises(TypeError):
        train(model, small_data(), options(tmp_path, seed=0, epochs=3))
    assert checkpoints.last_checkpoint(tmp_path) is None
    former = tmp_path / "run-1"
    assert files_under(former) == before
    small_train(tmp_path, epochs=1)
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1
    small_train(former, epochs=3, resume=True)
    assert [row["epoch"] for row in read_log(former)] == [0, 1, 2]


def test_three_runs_into_one_folder_leave_three_trained_models(
    tmp_path, monkeypatch, data_file
):
    monkeypatch.chdir(tmp_path)
    results, left = tmp_path / "results", []
    names = ("trained_model.h5", "best.weights.h5", "log.csv", "confusion.png")
    flags = ["--dataset", str(data_file), *map(str, NETWORK)]
    for seed in ("1", "2", "3"):
        main.main([*flags, "--use-reconstruction-loss", "no", "--seed", seed])
        left.append([(results / name).read_bytes() for name in names])
    folders = (results / "run-1", results / "run-2", results)
    assert left == [[(f / name).read_bytes() for name in names] for f in folders]
    assert len({trained for trained, *_ in left}) == 3


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_shipped_model_is_moved_and_git_s_way_back_is_told(
    tmp_path, monkeypatch, data_file, capsys
):
    monkeypatch.chdir(tmp_path)
    shipped = {
        name: f"shipped {name}".encode() for name in os.listdir(f"{ROOT}/result")
    }
    (tmp_path / "result").mkdir()
    for name, content in shipped.items():
        (tmp_path / "result" / name).write_bytes(content)
    subprocess.run("git init -q && git add result", shell=True, check=True)
    (tmp_path / "result" / "mnist.csv").write_bytes(b"another row")
    shipped["mnist.csv"] = b"another row"
    capsulenet.main(["--dataset", str(data_file), "--epochs", "1"])
    told = capsys.readouterr().out.splitlines()
    stay = {"README.md", "mnist.csv", "mnist_held_out.csv"}
    after = files_under(tmp_path / "result")
    for name, content in shipped.items():
        assert after[name if name in stay else f"run-1/{name}"] == content
    (line,) = [line for line in told if " is now in ./result/run-1: " in line]
    assert "trained_model.h5" in line
    (command,) = [line for line in told if line.startswith("git -C ./result restore")]
    subprocess.run(command, shell=True, check=True)
    restored = files_under(tmp_path / "result")
    assert {name: restored[name] for name in shipped} == shipped


def test_what_a_dead_run_left_half_written_is_removed(tmp_path):
    half = tmp_path / "checkpoint-0001.99999.tmp.weights.h5"
    half.write_bytes(b"half")
    foreign = tmp_path / "my.99999.tmp.txt"
    foreign.write_bytes(b"not ours")
    small_train(tmp_path)
    assert not half.exists() and foreign.exists()


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
        "text": lambda: files.write_text(path, "new"),
        "figure": lambda: pictures.plot_confusion(np.eye(2, dtype=int), "ab", path),
        "image": lambda: pictures.save_image(np.zeros((2, 2)), path),
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


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path, monkeypatch
):
    model = small_capsnet()[0]
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


# Going on ----------------------------------------------------------------------------


def with_one_image_changed(data):
    (x, y), test = data
    x = x.copy()
    x[17, 3, 4] += 1e-3
    return (x, y), test


def with_one_label_changed(data):
    train, (x, y) = data
    return train, (x, np.roll(y, 1, axis=0))


@pytest.mark.parametrize(
    "change, name",
    [(with_one_image_changed, "x_train"), (with_one_label_changed, "y_test")],
)
def test_a_run_does_not_go_on_with_other_data(tmp_path, change, name):
    small_train(tmp_path, epochs=2, pause_after=1)
    before = files_under(tmp_path)
    args = options(tmp_path, seed=0, epochs=2, resume=True)
    with pytest.raises(ValueError, match=f"--dataset mnist: its {name} .float32 .*run"):
        train(classifier(), change(small_data()), args)
    assert files_under(tmp_path) == before


def test_a_run_goes_on_with_the_weights_that_it_started_from(
    tmp_path, data_file, capsys
):
    for name in ("a", "b"):
        model = capsulenet.CapsNet((17, 17, 1), 2, 1)[0]
        capsulenet.save_weights(model, str(tmp_path / f"{name}.h5"))
    save_dir, first, other = (str(tmp_path / name) for name in ("run", "a.h5", "b.h5"))
    command = ["--dataset", str(data_file), "--save_dir", save_dir, "--resume"]
    command += ["--epochs", "1", "--routings", "1", "-w"]
    capsulenet.main([*command, first])
    log = (tmp_path / "run" / "log.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        capsulenet.main([*command, other])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--weights {other}: the run in {save_dir} started from {first};" in line
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes())
    for same in (first, other, first):
        capsulenet.main([*command, same])
        said = capsys.readouterr().out
        assert "Resumed after epoch 1 of 1" in said
        assert f"no longer those of {same}" in said
        (tmp_path / "a.h5").unlink(missing_ok=True)  # or moved aside by the run itself
    assert (tmp_path / "run" / "log.csv").read_bytes() == log
    (tmp_path / "a.h5").write_bytes(b"something else")
    with pytest.raises(SystemExit):
        capsulenet.main([*command, first])
    assert f"started from {first} as it was then" in capsys.readouterr().err


def test_a_run_that_started_from_no_weights_goes_on_with_none(tmp_path):
    small_train(tmp_path / "run", epochs=2, pause_after=1)
    (tmp_path / "a.h5").write_text("weights")
    with pytest.raises(ValueError, match="a.h5: the run in .* from random weights"):
        small_train(
            tmp_path / "run", epochs=2, resume=True, weights=str(tmp_path / "a.h5")
        )


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


def test_no_kill_can_leave_a_checkpoint_without_its_best_weights(tmp_path, monkeypatch):
    save, saved = checkpoints._save_whole_model, []

    def killed(model, path):
        saved.append(os.path.basename(path).split(".")[0])
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(model, path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", killed)
    with pytest.raises(KeyboardInterrupt):
        small_train(tmp_path)
    assert saved == ["best", "checkpoint-0001"]
    assert list(files_that_stay(tmp_path)) == ["best.weights.h5"]
    monkeypatch.undo()
    small_train(tmp_path, resume=True)  # the epoch that was lost is the best again
    best = h5_arrays(tmp_path / "best.weights.h5")
    last = h5_arrays(tmp_path / "checkpoint-0001.weights.h5")
    assert best.keys() == last.keys()
    assert all(map(np.array_equal, best.values(), last.values()))


def test_a_checkpoint_of_an_older_version_is_taken(tmp_path):
    small_train(tmp_path, epochs=2, pause_after=1)
    path = tmp_path / "checkpoint-0001.json"
    record = json.loads(path.read_text())
    del record["sha256 of the rest"], record["options"]["deterministic"]
    del record["data"], record["weights"]
    path.write_text(json.dumps(record))
    (tmp_path / "a.h5").write_text("perhaps what it started from")
    small_train(tmp_path, epochs=2, resume=True, weights=str(tmp_path / "a.h5"))
    assert len(read_log(tmp_path)) == 2
    record = checkpoints.last_checkpoint(tmp_path)
    assert "x_train" in record["data"] and "weights" not in record


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
