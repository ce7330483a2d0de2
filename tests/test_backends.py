"""The tests of layers and models, on every other backend that is installed."""

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
FILES = ["test_capsulelayers.py", "test_capsulenet.py", "test_datasets.py"]


@pytest.mark.parametrize("backend", OTHERS)
def test_other_backend(backend):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", *(f"tests/{n}" for n in FILES)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
