"""Several devices and hosts: the mathematics of one, and the command line."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import ROOT, SCRIPT, run_python, run_script, without_tensorflow

import capsulenet
from capsnet import data as datasets
from capsnet import numerics
from capsnet import weights as files_of_weights
from capsnet.training import devices

ENGINES = [n for n in ("tensorflow", "jax") if importlib.util.find_spec(n)]
needs_jax = pytest.mark.skipif("jax" not in ENGINES, reason="several hosts need JAX")
FLAGS = [
    *("--device", "cpu", "--dataset", "digits.npz", "--batch_size", 20, "-r1"),
    *("--seed", 3, "--save_dir", "out"),
]


@pytest.fixture
def folder(tmp_path):
    """A working directory with a small data set, `digits.npz`, of 17 x 17 pixels."""
    (x, y), (x_test, y_test) = datasets.load_mnist()
    few, few_test = (np.flatnonzero(labels.argmax(1) < 2) for labels in (y, y_test))
    arrays = {
        "x_train": x[few[:60], 5:22, 5:22, 0],
        "y_train": y[few[:60]].argmax(1),
        "x_test": x_test[few_test[:33], 5:22, 5:22, 0],
        "y_test": y_test[few_test[:33]].argmax(1),
    }
    np.savez(tmp_path / "digits.npz", **arrays)
    return tmp_path


@pytest.fixture(scope="module")
def cheap_jax(tmp_path_factory):
    """What makes JAX start and compile faster, the same for all processes."""
    return {
        **without_tensorflow(tmp_path_factory.mktemp("without")),
        "KERAS_BACKEND": "jax",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@contextlib.contextmanager
def coordinator():
    """The address for host 0, on a port that no other program gets meanwhile.

    It is bound here, and JAX shares it; a port that was given back might be taken.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("localhost", 0))
        yield f"localhost:{holder.getsockname()[1]}"


SMALL = f"""
import functools, os, runpy, sys; sys.path.insert(0, {ROOT!r})
import capsulenet
from capsnet.training import devices
small = functools.partial(capsulenet.CapsNet, filters=16, n_channels=4)
capsulenet.NETWORKS["capsnet"] = small
devices.PATIENCE = int(os.environ.get("PATIENCE", devices.PATIENCE))
runpy.run_path({os.path.join(ROOT, SCRIPT)!r}, run_name="__main__")
"""
"""The script with a smaller network, since its size does not matter to several devices."""


def small_command(*flags):
    return [sys.executable, "-c", SMALL, *map(str, (*FLAGS, *flags))]


def run_small(folder, environment, *flags):
    """Run the script, alone, to its end; what it printed."""
    done = subprocess.run(
        small_command(*flags),
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_host(number, address, folder, environment, *flags):
    """Start one of two hosts on this machine."""
    hosts = ("--gpus", 1, "--coordinator", address, "--num_hosts", 2)
    return subprocess.Popen(
        small_command(*hosts, "--host_id", number, *flags),
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_log(path):
    with open(path) as file:
        names, *rows = (line.strip().split(",") for line in file)
    kept = [i for i, name in enumerate(names) if name != "seconds"]
    return np.array([[float(row[i]) for i in kept] for row in rows])


STEPS = """
import sys; sys.path.insert(0, {root!r})
import contextlib
import keras, numpy as np
import capsulenet
from capsnet import data as datasets
from capsnet.training import devices, resources
devices.use_cpu(2)
(x, y), _ = datasets.load("digits.npz")[:2]
ends = []
for number in (1, 2):
    keras.utils.set_random_seed(0)
    scope = devices.data_parallel(2, "cpu") if number == 2 else contextlib.nullcontext()
    with scope:
        model = capsulenet.CapsNet(x.shape[1:], 2, 2, filters=16, n_channels=4)[0]
        assert devices.replicas() == number
        model.compile(  # not Adam, which takes a gradient's double for the same
            keras.optimizers.SGD(1.0),
            [capsulenet.MarginLoss(), "mse"],
            loss_weights=[1.0, 0.392],
            jit_compile=resources.jit_compile(model),
        )
        first = model.get_weights()
        batches = datasets.TrainingBatches(x, y, 20, 0.1, seed=0, devices=number)
        model.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0)
        odd = model([x[:3], y[:3]])  # which two devices can't share equally
        moved = [abs(a - b).max() for a, b in zip(first, model.get_weights())]
        assert max(moved) > 1e-3, moved
        ends.append([*model.get_weights(), *map(keras.ops.convert_to_numpy, odd)])
for a, b in zip(*ends):
    np.testing.assert_allclose(a, b, atol=1e-5)
print("agreed on", len(ends[0]), "arrays")
"""


@pytest.mark.parametrize("backend", ENGINES)
def test_two_devices_take_the_steps_of_one(folder, backend, cheap_jax, monkeypatch):
    for name, value in {**cheap_jax, "KERAS_BACKEND": backend}.items():
        monkeypatch.setenv(name, value)
    assert "agreed on 13 arrays" in run_python(STEPS.format(root=ROOT), folder)


NORMALIZED = """
import sys; sys.path.insert(0, {root!r})
import keras, numpy as np, tensorflow as tf
from capsnet import networks
from capsnet.training import devices
devices.use_cpu(2)
with devices.data_parallel(2, "cpu"):
    models = [build((17, 17, 1), 2)[0] for build in networks.OTHERS.values()]
    layers = [layer for model in models for layer in model._flatten_layers()]
    kind = keras.layers.BatchNormalization
    found = [layer for layer in layers if isinstance(layer, kind)]
    strategy = tf.distribute.get_strategy()
    for layer in found:
        filters = layer.gamma.shape[0]

        @tf.function
        def of_numbers():  # the one device has zeros, the other twos
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            twos = 2 * tf.ones((4, 3, 3, filters)) * tf.cast(replica, "float32")
            return layer(twos, training=True)

        values = strategy.experimental_local_results(strategy.run(of_numbers))
        for value, expected in zip(values, (-1, 1)):
            np.testing.assert_allclose(value, expected, atol=1e-3)
print("normalized by", len(found), "layers")
"""


@pytest.mark.skipif("tensorflow" not in ENGINES, reason="the others mirror nothing")
def test_mirrored_layers_normalize_by_the_whole_batch(folder, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    printed = run_python(NORMALIZED.format(root=ROOT), folder)
    assert "normalized by 13 layers" in printed  # 4 of efficient, 9 of photo


@pytest.mark.parametrize("backend", ENGINES)
def test_two_devices_train_and_test(
    folder, backend, cheap_jax, monkeypatch, capsys, small_network
):
    environment = {**cheap_jax, "KERAS_BACKEND": backend}
    printed = run_small(folder, environment, "--epochs", 2, "--resume")  # as by Slurm
    accuracy = float(printed.split("Test acc: ")[1].split()[0])
    with open(folder / "out" / "log.csv") as file:
        column = file.readline().split(",").index("val_capsnet_accuracy")
        assert accuracy == pytest.approx(
            float(file.readlines()[1].split(",")[column]), abs=1e-4
        )
    if backend == keras.backend.backend():  # capsulenet.py reads the file
        monkeypatch.chdir(folder)
        flags = ["--dataset", "digits.npz", "-r1", "-t", "--save_dir", "seen"]
        capsulenet.main([*flags, "-w", "out/trained_model.h5"])
        assert f"Test acc: {accuracy:.4f}" in capsys.readouterr().out


@needs_jax
def test_two_hosts_are_as_one_with_two_devices_and_one_may_die(folder, cheap_jax):
    def both(address, *flags):
        return [start_host(i, address, folder, cheap_jax, *flags) for i in range(2)]

    def alone(*flags):
        return run_small(folder, cheap_jax, *flags)

    with coordinator() as address:
        hosts = both(address, "--epochs", 2)
        for host in hosts:
            _, stderr = host.communicate()
            assert host.returncode == 0, stderr
    together = read_log(folder / "out" / "log.csv")
    # A pause at its very end leaves out the test that follows a training.
    alone("--epochs", 2, "--save_dir", "one", "--pause_after", 2)
    np.testing.assert_allclose(
        together, read_log(folder / "one" / "log.csv"), rtol=1e-5
    )
    ends = [
        files_of_weights.read(str(folder / name / "trained_model.h5"))[1]
        for name in ("out", "one")
    ]
    for name, weights in ends[0].items():
        for a, b in zip(weights, ends[1][name], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)

    # Another run; the second host is killed, and the first says so.
    long = ("--epochs", 500, "--save_dir", "long")
    with coordinator() as address:
        hosts = both(address, *long)
        assert any("Best epoch" in line for line in hosts[0].stdout)  # the first ended
        hosts[1].kill()
        _, stderr = hosts[0].communicate()
        hosts[1].communicate()
    assert hosts[0].returncode == 1
    line = stderr.splitlines()[-1]
    assert "another host is gone" in line and "--resume" in line and "step" in line
    assert "Resumed after epoch" in alone(*long, "--resume", "--pause_after", 1)


@needs_jax
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--gpus 3", "--gpus 3: found 0 GPUs"),
        (
            "--device cpu --batch_size 301",
            "--batch_size 301: must divide by the 2 devices",
        ),
    ],
)
def test_devices_that_do_not_fit_are_one_clear_line(
    flags, message, cheap_jax, tmp_path
):
    if "found 0 GPUs" in message and not numerics.on_cpu():
        pytest.skip("there are GPUs")
    done = run_script(SCRIPT, *flags.split(), cwd=tmp_path, **cheap_jax)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and os.listdir(tmp_path) == []


@needs_jax
def test_a_host_alone_does_not_wait_for_ever(folder, cheap_jax):
    with coordinator() as address:
        host = start_host(0, address, folder, {**cheap_jax, "PATIENCE": "1"})
        _, stderr = host.communicate()
    assert host.returncode == 2
    line = stderr.splitlines()[-1]
    assert f"host 0 of 2, coordinator {address}: the hosts did not come" in line
    assert "together in 1 seconds" in line and devices.PATIENCE == 40


def test_a_process_that_ends_at_once_has_said_what_it_said():
    program = "from capsnet.training import devices; print('before'); "
    program += "devices.end('a host is gone', 3)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment["KERAS_BACKEND"] = "numpy"  # which starts at once
    how = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    ended = subprocess.run([sys.executable, "-c", program], check=False, **how)
    assert (ended.returncode, ended.stdout) == (3, "before\n")
    assert ended.stderr.endswith("-c: error: a host is gone\n")
