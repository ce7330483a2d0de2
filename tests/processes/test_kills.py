"""Trainings that are killed, and go on as if nothing had been."""

import csv
import os
import random
import re
import signal

import pytest
from helpers import h5_arrays, run_killed

NETWORK = [
    *("--num-conv-out-channel", 4, "--primary-unit-size", 4, "--num-primary-unit", 2),
    *("--output-unit-size", 4, "--num-classes", 2, "--batch-size", 8),
    *("--input-width", 17, "--input-height", 17, "--num-routing", 1),
]
OPERATIONS = 22
"""On files, by which an epoch is kept; a few more where it is the best so far."""


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


@pytest.mark.parametrize(
    "backend, kills",
    [
        ("tensorflow", 6),
        pytest.param("tensorflow", 30, marks=pytest.mark.slow),
        pytest.param("jax", 30, marks=pytest.mark.slow),
        pytest.param("torch", 30, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_ends_with_the_same_bits(
    backend, kills, squares, tmp_path
):
    pytest.importorskip(backend)
    draw = random.Random(kills)
    numbers = [draw.randrange(1, 5 * OPERATIONS) for _ in range(kills)]
    total = 4 + sum(numbers) // OPERATIONS  # more than these kills reach
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    flags = ["--dataset", squares, *NETWORK, "--epochs", total]
    flags += ["--deterministic", "--resume"]

    def train(numbers, cwd):
        return run_killed("main.py", numbers, *flags, cwd=cwd, KERAS_BACKEND=backend)

    statuses, output = train([0], whole)
    assert statuses == [0], output[-3000:]
    statuses, output = train([*numbers, 0], broken)
    assert statuses == [-signal.SIGKILL] * kills + [0], output[-3000:]
    resumed_after = re.findall(r"Resumed after epoch (\d+) of", output)
    assert len(set(resumed_after)) >= kills / 2  # it was spread out
    log, arrays = what_it_leaves(whole / "results", total)
    log_of_broken, arrays_of_broken = what_it_leaves(broken / "results", total)
    assert len(log) == total and log_of_broken == log
    assert len(list((whole / "results").glob("checkpoint-*.json"))) == total  # all
    for name, expected in arrays.items():
        assert expected.keys() == arrays_of_broken[name].keys()
        for path, array in expected.items():
            assert array.tobytes() == arrays_of_broken[name][path].tobytes(), path
    print(f"{backend}: {kills} kills, after epochs {resumed_after}")
    assert (broken / "results" / "log.csv").exists()
    assert not [n for n in os.listdir(broken / "results") if ".tmp" in n]
