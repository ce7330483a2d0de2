"""The project as `pip install` leaves it, away from the clone."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib

import keras
import numpy as np
import pytest
from helpers import ROOT, script_environment

from capsnet.data import sets


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment that has this project, and what the tests have."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(sysconfig.get_path("purelib"))
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "-q", "--no-deps", source], check=True)
    return folder / "bin"


def run(command, folder):
    done = subprocess.run(
        command,
        cwd=folder,
        env=script_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_trains_and_the_layers_are_there(installed, squares, tmp_path):
    flags = ["--epochs", "1", "--dataset", squares, "--save-dir", "out", "-r", "1"]
    printed = run([installed / "capsulenet", *flags], tmp_path)
    assert "Trained model saved to out/trained_model.h5" in printed
    with open(os.path.join(ROOT, "docs", "layers.md"), encoding="utf-8") as file:
        example = re.search(r"```python\n(.*?)```", file.read(), re.DOTALL)[1]
    where = "\nimport capsulelayers; print(capsulelayers.__file__)"
    printed = run([installed / "python", "-c", example + where], tmp_path)
    assert str(installed.parent) in printed.splitlines()[-1]


def test_extras_are_those_of_the_requirements():
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    lines = []
    for name in ("requirements-backends.txt", "requirements-dev.txt"):
        with open(os.path.join(ROOT, name)) as file:
            lines += [line.split()[0] for line in file if line[0].isalpha()]
    assert extras["torch"] == [
        w.replace("==2.13.0", ">=2.13") for w in lines if "torch" in w
    ]
    assert {*extras["jax"], *extras["test"], *extras["affnist"]} <= set(lines)


def test_mnist_of_an_installation_is_that_of_keras(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "MNIST_PATH", str(tmp_path / "mnist.npz"))
    load = sets.load_mnist
    with np.load(os.path.join(ROOT, "data", "mnist.npz")) as arrays:
        given = [[arrays[f"{a}_{part}"] for a in "xy"] for part in ("train", "test")]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: given)
    of_keras = load()
    of_clone = load(os.path.join(ROOT, "data", "mnist.npz"))
    for mine, theirs in zip(of_clone, of_keras, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    given[1][1][7] ^= 1
    with pytest.raises(ValueError, match="mnist.npz is not MNIST; remove it"):
        load()
