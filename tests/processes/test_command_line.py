"""The command line as a user runs it: processes, files and exit codes."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, run_script
from PIL import Image

import capsulenet

BACKENDS = [n for n in ("tensorflow", "jax", "torch") if importlib.util.find_spec(n)]


def run(*args, cwd, backend=None, **environment):
    """Run `python capsulenet.py` and return the finished process."""
    if backend:
        environment["KERAS_BACKEND"] = backend
    return run_script("capsulenet.py", *args, cwd=cwd, **environment)


@pytest.mark.parametrize("backend", BACKENDS)
def test_train_then_test(tmp_path, digits, backend, call):
    common = ["--dataset", digits, "--save-dir", "out", "--seed", 3]
    done = run(
        *common,
        *("--epochs", 1, "--batch-size=20", "--routings", 1, "--debug"),
        cwd=tmp_path,
        backend=backend,
    )
    assert done.returncode == 0, done.stderr
    assert "val_capsnet_accuracy" in done.stdout
    out = tmp_path / "out"
    log = (out / "log.csv").read_text().splitlines()
    assert len(log) == 2 and "val_capsnet_accuracy" in log[0]
    if importlib.util.find_spec("tensorflow"):
        events = (out / "tensorboard-logs").rglob("events*")
        assert any(b"conv1" in file.read_bytes() for file in events)

    weights = os.path.join("out", "trained_model.h5")
    digits = [0, 1, 2] if backend == "tensorflow" else [2]
    digit = "all" if len(digits) > 1 else 2
    printed = call(*common, "-t", "-w", weights, "-r1", "--digit", digit)
    accuracy = float(printed.out.split("Test acc: ")[1].split()[0])
    last = dict(zip(*(line.split(",") for line in (log[0], log[1]))))
    logged = float(last["val_capsnet_accuracy"])
    assert accuracy == pytest.approx(logged, abs=1e-4)
    with Image.open(out / "real_and_recon.png") as picture:
        assert min(picture.size) >= 1000
    for digit in digits:
        with Image.open(out / f"manipulate-{digit}.png") as picture:
            assert min(picture.size) >= 800
    assert (out / "dimensions.png").exists() == (len(digits) > 1)


def test_testing_without_weights_says_so_and_goes_on(
    tmp_path, digits, call, small_network
):
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
    assert done.stderr.splitlines()[-1].endswith(
        "--routings 0: must be at least 1, at most 100"
    )
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_of_digits_from_training_to_prediction(tmp_path, call, capsys):
    (x, y), _ = capsulenet.load_mnist()
    for digit, name in enumerate(("zero", "one", "two")):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for i in np.flatnonzero(y.argmax(1) == digit)[:60]:
            picture = Image.fromarray((x[i, 4:24, 4:24, 0] * 255).astype("uint8"))
            picture.save(tmp_path / "digits" / name / f"{i}.png")
    (tmp_path / "digits" / "two" / "broken.png").write_bytes(b"not a picture")
    flags = ("--dataset", "digits", "--save_dir", "out", "--seed", 1, "--routings", 2)
    schedule = ("--schedule", "exponential", "--epochs", 5, "--batch_size", 12)
    printed = call(*flags, *schedule)
    assert "1 of 181 pictures are not readable" in printed.out
    weights = os.path.join("out", "trained_model.h5")
    printed = call(*flags, "-t", "-w", weights)
    assert float(printed.out.split("Test acc: ")[1].split()[0]) > 0.9
    assert {"confusion.png", "mistakes.png"} <= set(os.listdir(tmp_path / "out"))

    first = sorted((tmp_path / "digits" / "one").iterdir())[:2]
    flags = ("--json", "-w", weights, "--save_dir", "seen")
    with pytest.raises(SystemExit) as end:
        call("--predict", *first, "digits/two", *flags)
    assert end.value.code == 1  # one can't be read, all others are told
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines() if line[0] == "{"]
    assert len(lines) == 62 and told.err.count("Left out: ") == 1
    assert "Left out: digits/two/broken.png: not a readable picture" in told.err
    assert [line["file"] for line in lines[:2]] == list(map(str, first))
    right = [
        line["class"] == name for line, name in zip(lines, ["one"] * 2 + ["two"] * 60)
    ]
    assert np.mean(right) > 0.9
    assert len(lines[0]["lengths"]) == 3
    verdicts = {line["verdict"] for line in lines}
    assert "one" in verdicts and verdicts <= {"one", "none", "two", "unsure"}
    assert (tmp_path / "seen" / "predictions.png").exists()
    with pytest.raises(SystemExit):
        call("--predict", "digits/two", "-w", weights, "--save_dir", "./result")
    assert (tmp_path / "result" / "predictions.png").exists()
    printed = call("--predict", *first, "-w", weights)
    assert printed.out.count("one ") >= 2 and str(first[0]) in printed.out


def test_colour_pictures_of_three_classes(tmp_path, call, small_network):
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "squares" / name).mkdir(parents=True)
        for i in range(8):
            picture = rng.integers(0, 90, (36, 36, 3), "uint8")
            picture[10:26, 10:26, channel] += 150
            Image.fromarray(picture).save(tmp_path / "squares" / name / f"{i}.jpg")
    common = ("--dataset", "squares", "--save_dir", "out", "--batch_size", 4)
    common += ("--model", "capsnet")
    printed = call(*common, "--epochs", 1, "-r1")
    assert "400 primary capsules" in printed.out
    printed = call(*common, "-t", "-r1", "-w", "out/trained_model.h5")
    assert "Test acc: " in printed.out
    printed = call("--predict", "squares", "-w", "out/trained_model.h5", "--json")
    lines = [json.loads(line) for line in printed.out.splitlines() if line[0] == "{"]
    assert len(lines) == 24
    assert set(lines[0]["lengths"]) == {"red", "green", "blue"}


def test_a_damaged_picture_among_a_thousand_costs_a_line(tmp_path, call, small_network):
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


@pytest.mark.parametrize(
    "command",
    [
        ("capsulenet.py", "--help"),
        ("capsulenet.py", "--epochs", "x"),
        ("capsulenet.py", "--epochs", "0"),
        ("capsulenet.py", "--dataset", "nowhere"),
        ("capsulenet.py", "-t", "-w", "nowhere.h5"),
        ("capsulenet.py", "--predict", "a.png"),
        ("capsulenet-multi-gpu.py", "--lr", "-1"),
        ("capsulenet-multi-gpu.py", "--help"),
        ("main.py", "--threads", "x"),
        ("demo.py", "--port", "80"),
        ("demo.py", "-w", "nowhere.h5"),
        ("reproduce.py", "--help"),
        ("reproduce.py", "--seed", "1"),
        ("-m", "capsnet", "--foo"),
    ],
)
def test_help_and_typing_errors_need_no_keras(command, tmp_path):
    (tmp_path / "keras.py").write_text("raise SystemExit('Keras was imported')")
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Keras was" not in done.stderr
    if "--help" in command:
        assert done.returncode == 0 and "usage:" in done.stdout
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "error: " in done.stderr


def test_a_backend_that_is_not_there_is_one_clear_line(tmp_path):
    done = run_script("capsulenet.py", cwd=tmp_path, KERAS_BACKEND="jaxx")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "KERAS_BACKEND is one of tensorflow, jax and torch" in done.stderr


def test_a_start_says_nothing_of_its_own(squares, tmp_path):
    flags = ("--dataset", squares, "-t", "--save_dir", "out", "--seed", 3)
    done = run_script("capsulenet.py", *flags, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    network, first, *_ = done.stdout.splitlines()
    assert network.startswith("Network capsnet: images are 17 x 17, grey")
    assert (
        first
        == f"Settings: --dataset {squares} --save_dir out --seed 3 --testing; seed 3"
    )
    assert "random weights" in done.stdout.splitlines()[-1]


def test_a_name_that_the_terminal_lacks_is_spelled_out(
    squares, tmp_path, call, small_network
):
    with np.load(squares) as file:
        arrays = dict(file)
    for part in ("y_train", "y_test"):
        arrays[part] = np.array(["a", "\N{SNOWMAN}"])[arrays[part]]
    np.savez(tmp_path / "named.npz", **arrays)
    Image.fromarray(arrays["x_test"][1]).save(tmp_path / "picture.png")
    flags = ("--dataset", "named.npz", "--epochs", 1, "-r", 1, "--save_dir", "out")
    call(*flags)
    done = run_script(
        "capsulenet.py",
        *("--predict", "picture.png", "-w", "out/trained_model.h5"),
        cwd=tmp_path,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert "\\u2603" in done.stdout
