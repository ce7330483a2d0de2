"""The command line as a user runs it: processes, files and exit codes."""

import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image

import capsulenet
import main
from capsnet import data as datasets
from capsnet import errors
from capsnet.data import sets

BACKENDS = [n for n in ("tensorflow", "jax", "torch") if importlib.util.find_spec(n)]


def run(*args, cwd, backend=None, **environment):
    """Run `python capsulenet.py` and return the finished process."""
    if backend:
        environment["KERAS_BACKEND"] = backend
    return run_script("capsulenet.py", *args, cwd=cwd, **environment)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`python capsulenet.py` without a process of its own, which costs seconds.

    Gives a function that returns what was printed, on stdout and stderr.
    """

    def call(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
        capsulenet.main(list(map(str, args)))
        return capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A little of MNIST, three classes cut to 20 x 20 pixels, as an .npz file."""
    (x_train, y_train), (x_test, y_test) = capsulenet.load_mnist()
    arrays = {}
    for split, x, y, n in (
        ("train", x_train, y_train, 90),
        ("test", x_test, y_test, 53),
    ):
        few = np.flatnonzero(y.argmax(1) < 3)[:n]
        arrays[f"x_{split}"] = (x[few, 4:24, 4:24, 0] * 255).astype("uint8")
        arrays[f"y_{split}"] = y[few].argmax(1)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_train_then_test(tmp_path, digits, backend, call):
    common = ["--dataset", digits, "--save-dir", "out", "--seed", 3]
    done = run(
        *common,
        *("--epochs", 2, "--batch-size=20", "--routings", 2, "--debug"),
        cwd=tmp_path,
        backend=backend,
    )
    assert done.returncode == 0, done.stderr
    assert "val_capsnet_accuracy" in done.stdout
    out = tmp_path / "out"
    log = (out / "log.csv").read_text().splitlines()
    assert len(log) == 3 and "val_capsnet_accuracy" in log[0]
    if importlib.util.find_spec("tensorflow"):
        events = (out / "tensorboard-logs").rglob("events*")
        assert any(b"conv1" in file.read_bytes() for file in events)

    weights = os.path.join("out", "trained_model.h5")
    digits = [0, 1, 2] if backend == "tensorflow" else [2]
    digit = "all" if len(digits) > 1 else 2
    printed = call(*common, "-t", "-w", weights, "-r2", "--digit", digit)
    accuracy = float(printed.out.split("Test acc: ")[1].split()[0])
    assert accuracy == pytest.approx(float(log[2].split(",")[7]), abs=1e-4)
    with Image.open(out / "real_and_recon.png") as picture:
        assert picture.size == (10 * 20, 10 * 20)
    for digit in digits:
        with Image.open(out / f"manipulate-{digit}.png") as picture:
            assert picture.size == (11 * 20, 16 * 20)
    assert (out / "dimensions.png").exists() == (len(digits) > 1)


def test_testing_without_weights_says_so_and_goes_on(tmp_path, digits, call):
    printed = call("-t", "--dataset", digits).out
    assert "random weights" in printed and "Test acc:" in printed
    assert sorted(os.listdir(tmp_path / "result")) == [
        "confusion.png",
        "manipulate-2.png",
        "mistakes.png",
        "real_and_recon.png",
    ]


def test_an_error_is_one_line_and_no_traceback(tmp_path):
    done = run("--routings", 0, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--routings 0: must be at least 1")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def foreign_files(tmp_path_factory):
    """Weights of another network, and files that are none."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "foreign.h5").write_bytes(b"not HDF5")
    capsulenet.save_weights(
        capsulenet.CapsNet((28, 28, 1), 10, 3, dim_capsule=8)[0],
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
        ("-t -w eight.h5", "'digitcaps' has shapes [(10, 1152, 8, 8)]"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, foreign, monkeypatch, capsys):
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


# Your own pictures -------------------------------------------------------------------


def test_a_folder_of_digits_from_training_to_prediction(tmp_path, call):
    (x, y), _ = capsulenet.load_mnist()
    for digit, name in enumerate(("zero", "one", "two")):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for i in np.flatnonzero(y.argmax(1) == digit)[:60]:
            picture = Image.fromarray((x[i, 4:24, 4:24, 0] * 255).astype("uint8"))
            picture.save(tmp_path / "digits" / name / f"{i}.png")
    (tmp_path / "digits" / "two" / "broken.png").write_bytes(b"not a picture")
    flags = ("--dataset", "digits", "--save_dir", "out", "--seed", 1, "--routings", 2)
    printed = call(*flags, "--epochs", 5, "--batch_size", 12)
    assert "1 of 181 pictures are not readable" in printed.out
    weights = os.path.join("out", "trained_model.h5")
    printed = call(*flags, "-t", "-w", weights)
    assert float(printed.out.split("Test acc: ")[1].split()[0]) > 0.9
    assert {"confusion.png", "mistakes.png"} <= set(os.listdir(tmp_path / "out"))

    first = sorted((tmp_path / "digits" / "one").iterdir())[:2]
    done = run(
        *("--predict", *first, "digits/two", "--json", "-w", weights),
        *("--save_dir", "seen"),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr  # one can't be read, all others are told
    lines = [json.loads(line) for line in done.stdout.splitlines() if line[0] == "{"]
    assert len(lines) == 62 and done.stderr.count("Left out: ") == 1
    assert "Left out: digits/two/broken.png: not a readable picture" in done.stderr
    assert [line["file"] for line in lines[:2]] == list(map(str, first))
    right = [
        line["class"] == name for line, name in zip(lines, ["one"] * 2 + ["two"] * 60)
    ]
    assert np.mean(right) > 0.9
    assert len(lines[0]["lengths"]) == 3
    assert (tmp_path / "seen" / "predictions.png").exists()
    printed = call("--predict", *first, "-w", weights)
    assert printed.out.count("one ") >= 2 and str(first[0]) in printed.out


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """The weights of a network for pictures of 17 x 17 pixels, and the network."""
    path = str(tmp_path_factory.mktemp("weights") / "two.h5")
    trio = capsulenet.CapsNet((17, 17, 1), 2, 1, filters=4, n_channels=2)
    about = {"architecture": capsulenet.architecture(trio[0])}
    capsulenet.save_weights(trio[0], path, {**about, "class_names": ["ape", "bee"]})
    return path, trio


# What a hostile name would do on a terminal: clear it, forge a row, turn the writing.
HOSTILE = "\x1b[2J\x1b[Hbee\r\nbee  ape 0.999\u202e.png"


def test_hostile_names_of_pictures_are_shown_and_not_obeyed(
    tmp_path, call, two_classes, capsys
):
    folder = tmp_path / "new"
    folder.mkdir()
    for name in (os.fsencode(HOSTILE), b"\xff\xfe.png"):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.new("L", (17, 17)).save(file, "PNG")
        with open(os.path.join(os.fsencode(folder), b"broken" + name), "wb"):
            pass
    found = sorted(os.fsdecode(path) for path in os.listdir(os.fsencode(folder)))
    whole, broken = ([n for n in found if ("broken" in n) == b] for b in (False, True))
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            call("--predict", "new", "-w", two_classes[0], *flags)
        assert caught.value.code == 1
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        assert all(line.isprintable() for line in printed.out.split("\n"))
        assert all(line.isprintable() for line in printed.err.split("\n"))
        assert printed.err.count("Left out: ") == 2
        for name in broken:
            assert f"Left out: new/{errors.printable(name)}: not a" in printed.err
        if flags:
            told = [json.loads(line)["file"] for line in lines]
            assert told == [f"new/{name}" for name in whole]
        else:
            assert [line.split()[0] for line in lines[1:]] == ["ape", "ape"]
            for line, name in zip(lines[1:], whole):
                assert line.endswith(f"  new/{errors.printable(name)}")


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


def test_pictures_that_are_no_squares_are_told_by_a_foreign_file(
    tmp_path, call, capsys
):
    trio = capsulenet.CapsNet((18, 24, 1), 2, 3, filters=4, n_channels=2)
    trio[0].save_weights(tmp_path / "a.weights.h5")
    image = np.arange(18 * 24, dtype="uint8").reshape(18, 24)
    Image.fromarray(image).save(tmp_path / "a.png")
    predict = ("--predict", "a.png", "-w", "a.weights.h5", "--json")
    told = json.loads(call(*predict, "--image_size", "18x24").out)
    (expected,), _ = trio[1].predict(image.reshape(1, 18, 24, 1) / 255.0, verbose=0)
    for digit in range(2):
        assert told["lengths"][str(digit)] == pytest.approx(expected[digit], abs=1e-4)
    with pytest.raises(SystemExit) as caught:
        call(*predict)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "18 x 24 or 24 x 18" in said and "--image_size HEIGHTxWIDTH" in said


def test_pictures_of_which_none_is_readable_are_bad_input(
    tmp_path, call, two_classes, capsys
):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        call("--predict", "a.png", "-w", two_classes[0])
    assert caught.value.code == 2
    assert "--predict a.png: no readable pictures" in capsys.readouterr().err


def test_colour_pictures_of_three_classes(tmp_path, call):
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "squares" / name).mkdir(parents=True)
        for i in range(8):
            picture = rng.integers(0, 90, (36, 36, 3), "uint8")
            picture[10:26, 10:26, channel] += 150
            Image.fromarray(picture).save(tmp_path / "squares" / name / f"{i}.jpg")
    common = ("--dataset", "squares", "--save_dir", "out", "--batch_size", 4)
    printed = call(*common, "--epochs", 1, "-r1")
    assert "3200 primary capsules" in printed.out
    printed = call(*common, "-t", "-r1", "-w", "out/trained_model.h5")
    assert "Test acc: " in printed.out
    printed = call("--predict", "squares", "-w", "out/trained_model.h5", "--json")
    lines = [json.loads(line) for line in printed.out.splitlines() if line[0] == "{"]
    assert len(lines) == 24
    assert set(lines[0]["lengths"]) == {"red", "green", "blue"}


def test_a_damaged_picture_among_a_thousand_costs_a_line(tmp_path, call):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for i in range(500):
            picture = rng.integers(100 * label, 100 * label + 90, (17, 17), "uint8")
            Image.fromarray(picture).save(tmp_path / "shades" / name / f"{i}.png")
    broken = tmp_path / "shades" / "light" / "77.png"
    broken.write_bytes(broken.read_bytes()[:100])
    flags = ("--dataset", "shades", "--save_dir", "out", "--epochs", 1, "-r1")
    printed = call(*flags, "--batch_size", 200).out
    assert f"Left out: {os.path.join('shades', 'light', '77.png')}" in printed
    assert "1 of 1000 pictures are not readable" in printed
    assert (tmp_path / "out" / "trained_model.h5").exists()
