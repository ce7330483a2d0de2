"""The command line of the PyTorch CapsNet, as a user runs it."""

import importlib.util
import os
import pickle

import numpy as np
import pytest
from helpers import ROOT, run_python, run_script

import capsulenet
import main


def run(flags, *more, cwd, **environment):
    return run_script("main.py", *flags.split(), *more, cwd=cwd, **environment)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`python main.py` without a process of its own; returns what it printed."""

    def call(flags, *more):
        monkeypatch.chdir(tmp_path)
        main.main([*flags.split(), *more])
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A few of MNIST's digits as an .npz file."""
    (x_train, y_train), (x_test, y_test) = capsulenet.load_mnist()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    arrays = {"x_train": x_train[:60], "x_test": x_test[:40]}
    arrays |= {"y_train": y_train[:60].argmax(1), "y_test": y_test[:40].argmax(1)}
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def cifar_home(tmp_path_factory):
    """A directory of Keras' with a few images in CIFAR-10's own format."""
    home = tmp_path_factory.mktemp("keras")
    folder = home / "datasets" / "cifar-10-batches-py-target" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {
            b"batch_label": name.encode(),
            b"data": rng.integers(0, 256, (4, 3072), "uint8"),
            b"labels": rng.integers(0, 10, 4).tolist(),
            b"filenames": [b"a.png"] * 4,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return home


def test_eight_gpus_are_asked_for_and_the_cpu_is_named(tmp_path, digits):
    done = run(
        "--epochs 30 --num-routing 1 --threads 16 --batch-size 128 "
        "--test-batch-size 128 --epochs 2 --log-interval 1 --no-cuda --dataset",
        digits,
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7",
    )
    assert done.returncode == 0, done.stderr
    assert "On the CPU" in done.stdout
    assert "8,215,568 parameters" in done.stdout
    assert "digitcaps/W: (10, 1152, 16, 8)" in done.stdout
    assert "Batch 1: loss" in done.stdout and "reconstruction" in done.stdout
    out = tmp_path / "results"
    names = set(os.listdir(out))
    assert {"log.csv", "log.png", "trained_model.h5", "confusion.png"} <= names
    assert {f"checkpoint-000{i}.weights.h5" for i in (1, 2)} <= names
    header, *rows = (out / "log.csv").read_text().splitlines()
    assert len(rows) == 2
    assert {"val_loss", "val_capsnet_loss", "val_decoder_loss"} <= set(
        header.split(",")
    )
    if importlib.util.find_spec("tensorflow"):
        assert pictures_reached_tensorboard(out)


def pictures_reached_tensorboard(folder):
    written = b"".join(
        file.read_bytes() for file in folder.rglob("events*") if "images" in str(file)
    )
    return b"original" in written and b"reconstructed" in written


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_pictures_reach_tensorboard(tmp_path, digits, backend):
    pytest.importorskip("tensorflow")
    pytest.importorskip(backend)
    done = run("--epochs 2 --dataset", digits, cwd=tmp_path, KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert pictures_reached_tensorboard(tmp_path)


def test_cifar10_is_trained_from_its_own_format(call, cifar_home, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(cifar_home))
    printed = call(
        "--dataset cifar10 --num-conv-in-channel 3 --input-width 32 --input-height 32 "
        "--primary-unit-size 2048 --epochs 80 --num-routing 1 "
        "--use-reconstruction-loss yes --regularization-scale 0.0005 "
        "--num-conv-out-channel 16 "
        "--epochs 1 --batch-size 10",
    )
    assert "digitcaps/W: (10, 2048, 16, 8)" in printed
    assert "2048 primary capsules" in printed and "Test acc:" in printed


def test_a_network_without_decoder(tmp_path, digits, call):
    printed = call("--use-reconstruction-loss no --epochs 1 --dataset", digits)
    assert "decoder" not in printed.split("parameters")[0]
    assert "Test acc:" in printed
    assert not (tmp_path / "results" / "real_and_recon.png").exists()


@pytest.mark.parametrize("flags, expected", [(["--no-cuda"], "cpu, "), ([], "gpu, 0")])
def test_no_cuda_hides_the_gpus_before_keras_is_imported(tmp_path, flags, expected):
    (tmp_path / "keras.py").write_text(
        "import os\n"
        "names = 'JAX_PLATFORMS', 'CUDA_VISIBLE_DEVICES'\n"
        "raise SystemExit(', '.join(map(os.environ.get, names)))\n"
    )
    there = {"JAX_PLATFORMS": "gpu", "CUDA_VISIBLE_DEVICES": "0"}
    done = run_script(
        "main.py", *flags, cwd=tmp_path, PYTHONPATH=str(tmp_path), **there
    )
    assert done.stderr.rstrip("\n") == expected


THREADS = """
import sys; sys.path.insert(0, {root!r})
import threading
import keras, numpy as np
from capsnet.training import devices, resources
meeting = threading.Barrier(5, timeout=60)  # which fewer threads would never leave

class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 10
    def __getitem__(self, index):
        if threading.current_thread() is not threading.main_thread():
            meeting.wait()
        return np.array([index])

for deterministic in (False, True):
    if deterministic:
        devices.make_deterministic()
    batches = Batches(workers=5)
    print(*(int(batch[0]) for batch in resources.feed(batches)))
"""


def test_as_many_threads_as_asked_for_prepare_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    printed = run_python(THREADS.format(root=ROOT), tmp_path).splitlines()
    assert printed[-2:] == 2 * ["0 1 2 3 4 5 6 7 8 9"]
