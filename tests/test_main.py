"""The command line of the PyTorch CapsNet, as a user runs it."""

import argparse
import importlib.util
import os
import pickle

import numpy as np
import pytest
from conftest import run_script, small_capsnet, small_data

import capsulenet
import main
from capsnet import data as datasets
from capsnet import options as options_of
from capsnet.data import sets
from capsnet.training import callbacks, devices, fit


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


def test_defaults_are_those_of_the_pytorch_capsnet():
    defaults = vars(main.build_parser().parse_args([]))
    assert defaults.pop("save_dir") == "./results"
    assert not defaults.pop("resume") and not defaults.pop("deterministic")  # ours
    assert defaults == {
        "epochs": 10,
        "lr": 0.01,
        "batch_size": 128,
        "test_batch_size": 128,
        "log_interval": 10,
        "no_cuda": False,
        "threads": 4,
        "seed": 42,
        "num_conv_out_channel": 256,
        "num_conv_in_channel": 1,
        "num_primary_unit": 8,
        "primary_unit_size": 1152,
        "num_classes": 10,
        "output_unit_size": 16,
        "num_routing": 3,
        "use_reconstruction_loss": True,
        "regularization_scale": 0.0005,
        "dataset": "mnist",
        "input_width": 28,
        "input_height": 28,
    }


@pytest.mark.parametrize(
    "text, value",
    [
        *(("--use-reconstruction-loss", True), ("", True)),
        *((f"--use-reconstruction-loss {t}", True) for t in ("yes", "True", "1")),
        *((f"--use-reconstruction-loss {t}", False) for t in ("no", "false", "0")),
    ],
)
def test_the_reconstruction_loss_is_spelled_in_several_ways(text, value):
    args = main.build_parser().parse_args(text.split())
    assert args.use_reconstruction_loss is value


def test_the_loss_is_weighted_as_a_sum_over_pixels():
    args = main.build_parser().parse_args([])
    assert main.training_options(args).lam_recon == pytest.approx(0.0005 * 784)


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


def test_several_devices_draw_no_pictures(tmp_path, monkeypatch):
    args = argparse.Namespace(draw_reconstructions=True, save_dir=str(tmp_path), seed=0)
    args = options_of.complete(args)
    (x, y), _ = small_data()
    kinds = []
    for count in (1, 2):
        monkeypatch.setattr(devices, "replicas", lambda count=count: count)
        batches = datasets.TrainingBatches(x, y, 10)
        used = fit.callbacks_of(small_capsnet()[0], args, batches, {}, None, x)
        kinds.append([type(callback).__name__ for callback in used])
    assert "Reconstructions" in kinds[0] and "Reconstructions" not in kinds[1]


def test_lines_come_too_where_steps_are_taken_several_at_once(capsys):
    log = callbacks.BatchLog(10)
    for _ in range(2):
        log.on_epoch_begin(0)
        for step in (4, 7, 23, 46, 49):
            log.on_train_batch_end(step - 1, {"loss": 0.5})
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == 2 * ["Batch 23: loss 0.5000", "Batch 46: loss 0.5000"]


def test_cifar10_is_trained_from_its_own_format(call, cifar_home, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(cifar_home))
    printed = call(
        "--dataset cifar10 --num-conv-in-channel 3 --input-width 32 --input-height 32 "
        "--primary-unit-size 2048 --epochs 80 --num-routing 1 "
        "--use-reconstruction-loss yes --regularization-scale 0.0005 "
        "--epochs 1 --batch-size 10",
    )
    assert "digitcaps/W: (10, 2048, 16, 8)" in printed
    assert "2048 primary capsules" in printed and "Test acc:" in printed


def test_a_network_without_decoder(tmp_path, digits, call):
    printed = call("--use-reconstruction-loss no --epochs 1 --dataset", digits)
    assert "decoder" not in printed.split("parameters")[0]
    assert "Test acc:" in printed
    assert not (tmp_path / "results" / "real_and_recon.png").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        ("--primary-unit-size 1000", "multiples of 36: 36, 72, 108, ... (1152 with"),
        ("--num-classes 7", "--num-classes 7: mnist has 10"),
        ("--num-conv-in-channel 3", "--num-conv-in-channel"),
        ("--num-conv-in-channel 2", "1 (grey) or 3 (colour)"),
        ("--input-width 12", "at least 17 x 17 pixels"),
        ("--use-reconstruction-loss maybe", "'maybe' is not one of"),
        ("--num-routing 0", "--num-routing 0: must be at least 1"),
        ("--batch-size 0", "--batch-size 0: must be at least 1"),
        ("--regularization-scale -1", "--regularization-scale -1.0: must be at least"),
        ("--threads 0", "--threads 0: must be at least 1"),
        ("--num-conv-out-channel 0", "--num-conv-out-channel 0: must be at least 1"),
        ("--output-unit-size 0", "--output-unit-size 0: must be at least 1"),
        ("--dataset nowhere", "no such file or folder"),
        ("--save-dir /dev/null/a", "--save_dir /dev/null/a: can't be written"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main.main(args.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_pickle_that_runs_code_is_refused(cifar_home, monkeypatch, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match="refused: (posix|nt).mkdir"):
        sets._read_cifar(str(tmp_path), "data_batch_1")
    assert not (tmp_path / "evil").exists()
