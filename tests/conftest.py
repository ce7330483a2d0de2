"""The surroundings of every test, and the fixtures of several files."""

import os
import signal

import pytest

from capsnet.command_line import settle_tensorflow

settle_tensorflow()
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads would spin and wait
# A command that a script puts in the background inherits that Ctrl-C is ignored, and the
# program respects this: the tests must not depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("helpers")

import functools
import shutil
import types

import h5py
import keras
import numpy as np
from helpers import KINDS, NAMES, ROOT, options, small_capsnet, small_data, tiny_capsnet
from PIL import Image

import capsulenet
from capsnet import pictures
from capsnet.data import sets
from capsnet.training import fit
from capsulenet import train


def pytest_collection_modifyitems(items):
    """Start the tests of the other backends first: they take longest.

    Each of the three processes begins with its own third of the tests.
    """
    longest = [item for item in items if item.path.name == "test_backends.py"]
    items[:] = [item for item in items if item not in longest]
    for number, item in enumerate(longest):
        items.insert(number * len(items) // 3, item)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_tuning():
    """Let tf.data tune nothing.

    To free an iterator that tunes itself takes what is left of its period, up to a minute
    where it lived as long.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tunes, options = tf.data.Dataset.__iter__, tf.data.Options()
    options.autotune.enabled = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.data.Dataset, "__iter__", lambda self: tunes(self.with_options(options))
        )
        yield


@pytest.fixture(autouse=True, scope="session")
def mnist_once():
    """Unpack MNIST once in a process of tests, and not for each that reads it."""
    load, kept = sets.load_npz, functools.cache(sets.load_npz)

    def load_npz(path):
        return kept(path) if path == sets.MNIST_PATH else load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "load_npz", load_npz)
        yield


@pytest.fixture(scope="session")
def recorded():
    """Inputs and outputs recorded from the layers of the public CapsNet-Keras."""
    path = os.path.join(ROOT, "tests", "capsnet_keras_layers.npz")
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def with_callback(monkeypatch):
    """A function that puts a callback before those of every training."""

    def put(callback):
        used = fit.callbacks_of
        monkeypatch.setattr(fit, "callbacks_of", lambda *args: [callback, *used(*args)])
        return callback

    return put


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A file of two classes of 17 x 17 images, the smallest that the network takes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 40), ("test", 20)):
        y = np.arange(n) % 2
        x = rng.integers(0, 60, (n, 17, 17), "uint8")
        x[y == 1, 5:12, 5:12] += 190
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small network trained for six epochs, its models, data and save directory."""
    keras.utils.set_random_seed(0)
    save_dir = tmp_path_factory.mktemp("trained")
    trio, data = small_capsnet(), small_data(200)
    args = options(save_dir, epochs=6, lr_decay=0.9, seed=1, class_names=NAMES)
    returned = train(trio[0], data, args)
    assert returned is trio[0]
    return types.SimpleNamespace(trio=trio, data=data, save_dir=str(save_dir))


@pytest.fixture
def keras_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("home")))


SPLITS = ("train", "test")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    arrays = {f"x_{s}": rng.integers(0, 255, (20, 17, 17), "uint8") for s in SPLITS}
    np.savez(path, **arrays, **{f"y_{s}": np.arange(20) % 2 for s in SPLITS})
    return path


@pytest.fixture
def whole(whole_files, tmp_path):
    """Whole files of every kind that is read."""
    return {kind: shutil.copy(path, tmp_path) for kind, path in whole_files.items()}


@pytest.fixture(scope="session")
def whole_files(tmp_path_factory):
    """Those that `whole` copies for each test."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("whole")
    paths = {kind: str(folder / f"a.{kind}") for kind in KINDS}
    model = tiny_capsnet()
    about = {"architecture": capsulenet.architecture(model)}
    capsulenet.save_weights(model, paths["h5"], about)
    capsulenet.save_weights(model, paths["keras2.h5"])
    with h5py.File(paths["keras2.h5"], "a") as file:
        del file.attrs["sha256"], file.attrs["capsnet"]
    model.save_weights(paths["weights.h5"])
    model.save(paths["keras"])
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (6, 9, 9), "uint8"), np.arange(6) % 3
    arrays = {f"x_{split}": images for split in ("train", "test")}
    np.savez(paths["npz"], **arrays, y_train=labels, y_test=labels)
    Image.fromarray(draw.integers(0, 255, (12, 9, 3), "uint8")).save(paths["png"])
    return paths


@pytest.fixture
def small_network(monkeypatch):
    """Have command lines build a CapsNet of few filters: the paper's takes seconds."""
    small = functools.partial(capsulenet.CapsNet, filters=16, n_channels=4)
    monkeypatch.setitem(capsulenet.NETWORKS, "capsnet", small)
    return small


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
def two_classes(tmp_path_factory):
    """The weights of a network for pictures of 17 x 17 pixels, and the network."""
    path = str(tmp_path_factory.mktemp("weights") / "two.h5")
    trio = capsulenet.CapsNet((17, 17, 1), 2, 1, filters=4, n_channels=2)
    about = {"architecture": capsulenet.architecture(trio[0])}
    capsulenet.save_weights(trio[0], path, {**about, "class_names": ["ape", "bee"]})
    return path, trio


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


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved, in order."""
    figures = []
    kept = lambda figure, path: figures.append(figure)
    monkeypatch.setattr(pictures, "save_figure", kept)
    return figures
