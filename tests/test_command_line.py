import io
import os
import shutil
import sys
from argparse import Namespace

import keras
import pytest
from helpers import HOSTILE, ROOT, small_train

import capsulenet
import main
import reproduce
from capsnet import data as datasets
from capsnet.data import sets


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


@pytest.mark.parametrize("content", ["{}", ""], ids=["json", "empty"])
def test_the_command_line_refuses_in_one_line(tmp_path, capfd, content):
    path = tmp_path / "a.h5"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        capsulenet.main(["-w", str(path), "--predict", "x.png"])
    assert stop.value.code == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f"error: {path}: not a readable weights file" in said[0]


@pytest.fixture(scope="module")
def foreign_files(tmp_path_factory):
    """Weights of another network, and files that are none."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "foreign.h5").write_bytes(b"not HDF5")
    capsulenet.save_weights(
        capsulenet.CapsNet((28, 28, 1), 10, 3, dim_capsule=8, filters=16, n_channels=4)[
            0
        ],
        str(folder / "eight.h5"),
    )
    whole = (folder / "eight.h5").read_bytes()
    (folder / "truncated.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def foreign(foreign_files, tmp_path):
    shutil.copytree(foreign_files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    "args, message",
    [
        ("--routings 0", "--routings 0: must be at least 1"),
        ("--digit 11", "--digit 11: the classes are 0 to 9"),
        ("--digit some", "--digit: 'some' is not the number of a class, nor all"),
        ("--batch_size 0", "--batch_size 0: must be at least 1"),
        ("--batch-size 0", "--batch_size 0: must be at least 1"),
        ("--epochs -1", "--epochs -1: must be at least 1"),
        ("--epochs many", "invalid int value: 'many'"),
        (
            "--shift_fraction 1.5",
            "--shift_fraction 1.5: must be at least 0 and below 1",
        ),
        ("--lr -0.1", "--lr -0.1: must be at least 0"),
        ("--no_such_flag", "--no_such_flag"),
        ("--save_dir file/dir", "--save_dir file/dir: can't be written"),
        ("--dataset nowhere.npz", "nowhere.npz: no such file or folder"),
        ("--image_size 3x4x5", "'3x4x5' is neither SIDE nor HEIGHTxWIDTH"),
        ("--image_size big", "'big' is neither SIDE nor HEIGHTxWIDTH"),
        ("--test_share 1", "--test_share 1.0: must be above 0 and below 1"),
        ("--dataset .", "needs a sub-folder of pictures for each of two classes"),
        ("--predict file", "--predict: needs weights"),
        ("--predict file -w nowhere.h5", "nowhere.h5: No such file"),
        ("--predict file -w foreign.h5", "foreign.h5: not a readable weights file"),
        ("-t -w nowhere.h5", "nowhere.h5: No such file"),
        ("-t -w .", "Is a directory"),
        ("-t -w foreign.h5", "foreign.h5: not a readable weights file"),
        ("-t -w truncated.h5", "truncated.h5: not a readable weights file"),
        (
            f"-t -r 1 -w {ROOT}/result/trained_model.h5",
            "trained_model.h5 was trained with --routings 3",
        ),
        ("-t -w eight.h5", "'digitcaps' has shapes [(10, 144, 8, 8)]"),
    ],
)
def test_bad_input_is_one_clear_line(
    args, message, foreign, monkeypatch, capsys, small_network
):
    monkeypatch.chdir(foreign)
    with pytest.raises(SystemExit) as caught:
        capsulenet.main(args.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    left = set(os.listdir(foreign))
    assert left == {"foreign.h5", "eight.h5", "truncated.h5", "file"}


def test_damaged_mnist_is_one_clear_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mnist.npz").write_bytes(b"damaged")
    load = datasets.load_mnist
    monkeypatch.setattr(sets, "load_mnist", lambda: load(tmp_path / "mnist.npz"))
    with pytest.raises(SystemExit) as caught:
        capsulenet.main(["--save_dir", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "mnist.npz: damaged" in capsys.readouterr().err


def test_defaults_are_those_of_capsnet_keras():
    defaults = vars(capsulenet.build_parser().parse_args([]))
    expected = {
        "epochs": 50,
        "batch_size": 100,
        "lr": 0.001,
        "lr_decay": 0.9,
        "lam_recon": 0.392,
        "routings": 3,
        "shift_fraction": 0.1,
        "debug": False,
        "save_dir": "./result",
        "testing": False,
        "digit": 5,
        "weights": None,
    }
    assert expected.items() <= defaults.items()


@pytest.mark.parametrize(
    "args",
    [
        ["--predict", "a.png", "-w", HOSTILE],
        ["--predict", HOSTILE, "-w", "WEIGHTS"],
        ["--dataset", HOSTILE],
        ["--save_dir", os.path.join(HOSTILE, "WEIGHTS")],
        [HOSTILE],
    ],
    ids=["weights", "picture", "dataset", "directory", "argument"],
)
def test_hostile_names_in_errors_are_shown_and_not_obeyed(
    args, tmp_path, two_classes, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / HOSTILE).write_bytes(b"not a picture")
    for line_of in (capsulenet.main, main.main):
        if line_of is main.main:  # with the flags that it has, too
            args = [arg for arg in args if arg not in ("--predict", "-w")]
        with pytest.raises(SystemExit) as caught:
            line_of([arg.replace("WEIGHTS", two_classes[0]) for arg in args])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert said.count("error: ") == 1
        assert all(line.isprintable() for line in said.split("\n"))
        assert r"\x1b[2J\x1b[Hbee" in said


@pytest.mark.parametrize(
    "module, inner, command",
    [
        (capsulenet.start, "prepare", lambda: capsulenet.main(["-t"])),
        (capsulenet.start, "prepare", lambda: capsulenet.run(Namespace())),  # multi-gpu
        (main, "prepare", lambda: main.main([])),
        (reproduce, "run_all", lambda: reproduce.main([])),
    ],
)
def test_every_command_spells_out_what_the_terminal_lacks(
    monkeypatch, module, inner, command
):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)

    def say(*args, **kwargs):
        print("K\xe4se \u2013 \N{SNOWMAN}")
        raise ValueError("enough")

    monkeypatch.setattr(module, inner, say)
    with pytest.raises(SystemExit):
        command()
    terminal.flush()
    assert terminal.buffer.getvalue() == b"K\\xe4se \\u2013 \\u2603\n"
