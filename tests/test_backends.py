"""What depends on the backend, on every other one that is installed."""

import importlib.util
import os
import subprocess
import sys

import keras
import pytest
from conftest import ROOT

OTHERS = [
    name
    for name in ("tensorflow", "jax", "torch")
    if importlib.util.find_spec(name) and name != keras.backend.backend()
]
TESTS = [
    "test_capsulelayers.py",
    "test_capsulenet.py",
    "test_datasets.py::test_shifts_move_whole_pixels_and_fill_with_zeros",
    "test_datasets.py::test_batches_on_the_device_are_the_same",
    "test_interruption.py::test_a_signal_ends_the_step_saves_and_says_how_to_go_on",
    "test_interruption.py::test_dropout_goes_on_as_if_never_stopped",
    "test_interruption.py::test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved",
    "test_interruption.py::test_weights_broken_by_the_last_step_are_noticed_too",
    "test_interruption.py::test_capsules_of_length_zero_are_warned_of",
]


@pytest.mark.parametrize("backend", OTHERS)
def test_other_backend(backend, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0"),
            *("-k", "not (damaged or foreign or refused)"),
            *(f"tests/{name}" for name in TESTS),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            # Most of the time goes into compiling for JAX what runs once or is the same
            # for several models.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
