"""Trainings that are killed, and go on as if nothing had been."""

import csv
import random
import subprocess
import sys

import pytest
from conftest import ROOT, h5_arrays, script_environment

import checkpoints

NETWORK = [
    *("--num-conv-out-channel", 4, "--primary-unit-size", 4, "--num-primary-unit", 2),
    *("--output-unit-size", 4, "--num-classes", 2, "--batch-size", 8),
    *("--input-width", 17, "--input-height", 17),
]


def start(backend, dataset, cwd, epochs):
    """Start a training by `main.py` whose output can be read while it runs."""
    command = [sys.executable, f"{ROOT}/main.py", "--dataset", dataset, *NETWORK]
    command += ["--deterministic", "--resume", "--epochs", epochs]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=script_environment(KERAS_BACKEND=backend, PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def what_it_leaves(directory, epochs):
    """The log without the seconds, and the weights, optimizer and random state."""
    with open(directory / "log.csv", newline="") as file:
        log = [{**row, "seconds": None} for row in csv.DictReader(file)]
    names = (
        "trained_model.h5",
        "best.weights.h5",
        f"checkpoint-{epochs:04d}.weights.h5",
    )
    return log, {name: h5_arrays(directory / name) for name in names}


def last_epoch(directory):
    """The epoch that a run would go on after."""
    found = checkpoints.last_checkpoint(directory)
    return found["epochs"] if found else 0


@pytest.mark.parametrize(
    "backend, kills",
    [
        ("tensorflow", 4),
        pytest.param("tensorflow", 30, marks=pytest.mark.slow),
        pytest.param("jax", 30, marks=pytest.mark.slow),
        pytest.param("torch", 30, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_ends_with_the_same_bits(
    backend, kills, squares, tmp_path
):
    pytest.importorskip(backend)
    total = 8 + 2 * kills
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    process = start(backend, squares, whole, total)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    draw = random.Random(kills)
    resumed_after = []
    for _ in range(kills):
        process = start(backend, squares, killed, total)
        epochs = draw.choice([1, 2, 3, 5])  # that begin before it is killed
        for line in process.stdout:
            epochs -= line.startswith("Epoch ")
            if not epochs:
                break
        try:  # an epoch takes about so long, with all that is written
            process.communicate(timeout=draw.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert process.returncode in (-9, 0)
        resumed_after.append(last_epoch(killed / "results"))
    process = start(backend, squares, killed, total)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    assert len(set(resumed_after) - {0, total}) >= kills / 4  # it was spread out
    log, arrays = what_it_leaves(whole / "results", total)
    log_of_killed, arrays_of_killed = what_it_leaves(killed / "results", total)
    assert len(log) == total and log_of_killed == log
    for name, expected in arrays.items():
        assert expected.keys() == arrays_of_killed[name].keys()
        for path, array in expected.items():
            assert array.tobytes() == arrays_of_killed[name][path].tobytes(), path
    print(f"{backend}: {kills} kills, after epochs {resumed_after}")
    assert not list(killed.glob("results/*.tmp*"))
