"""What several test files need."""

import argparse
import csv
import os
import signal
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads would spin and wait
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
# A command that a script puts in the background inherits that Ctrl-C is ignored, and the
# program respects this: the tests must not depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

import h5py
import keras
import killed
import numpy as np
import pytest

import capsulenet
from capsnet.training import fit


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def recorded():
    """Inputs and outputs recorded from the layers of the public CapsNet-Keras."""
    path = os.path.join(ROOT, "tests", "capsnet_keras_layers.npz")
    with np.load(path) as file:
        return dict(file)


SMALL = {
    "filters": 8,
    "kernel_size": 5,
    "n_channels": 2,
    "dim_primary": 4,
    "dim_capsule": 6,
    "routings": 2,
}


def small_capsnet(**changes):
    return capsulenet.CapsNet((12, 12, 1), 3, **{**SMALL, **changes})


def classifier():
    """A network that trains at once, where it does not matter which one it is."""
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax", name="classes"),
        ]
    )


def small_data(n=50, n_test=23):
    """Bars in three directions, which a small network tells apart quickly.

    The same each time: a run goes on with its own data alone.
    """
    y = np.arange(n + n_test) % 3
    x = np.random.default_rng(0).random((len(y), 12, 12, 1), "float32") * 0.3
    x[y == 0, 5:7] = 1
    x[y == 1, :, 5:7] = 1
    x[y == 2, 4:8, 4:8] = 1
    y = np.eye(3, dtype="float32")[y]
    return (x[:n], y[:n]), (x[n:], y[n:])


class Records(keras.callbacks.Callback):
    """Keeps the weights after every step, as lists of arrays."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.steps.append([weight.copy() for weight in self.model.get_weights()])


def average_of(steps, momentum):
    """The running average of weights that `Records` kept, in float64."""
    average = [np.float64(weight) for weight in steps[0]]
    for step in steps[1:]:
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, step)]
    return average


def h5_arrays(path):
    """Every array of an HDF5 file, by its path."""
    arrays = {}
    with h5py.File(path, "r") as file:

        def collect(name, node):
            if isinstance(node, h5py.Dataset):
                arrays[name] = node[()]

        file.visititems(collect)
    return arrays


@pytest.fixture
def with_callback(monkeypatch):
    """A function that puts a callback before those of every training."""

    def put(callback):
        used = fit.callbacks_of
        monkeypatch.setattr(fit, "callbacks_of", lambda *args: [callback, *used(*args)])
        return callback

    return put


def options(save_dir, **changes):
    """The options that the scripts of CapsNet-Keras set, and no others."""
    return argparse.Namespace(
        **{
            "epochs": 1,
            "batch_size": 10,
            "lr": 0.005,
            "lr_decay": 0.5,
            "lam_recon": 0.392,
            "shift_fraction": 0.1,
            "debug": False,
            "save_dir": str(save_dir),
            "digit": 1,
            **changes,
        }
    )


def read_log(save_dir):
    with open(os.path.join(save_dir, "log.csv")) as file:
        return [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


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


def run_python(program, cwd):
    """Run a program in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def script_environment(**changes):
    """The environment that scripts are started in, on the backend of the tests."""
    return {**os.environ, "KERAS_BACKEND": keras.backend.backend(), **changes}


def run_script(name, *args, cwd, **environment):
    """Run one of the project's scripts as a user does; return the finished process."""
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, name), *map(str, args)],
        cwd=cwd,
        env=script_environment(**environment),
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )


def run_killed(name, numbers, *args, cwd, **environment):
    """Run a script once for each number, see `killed.py`; exit statuses and output."""
    done = subprocess.run(
        [sys.executable, killed.__file__, os.path.join(ROOT, name), *map(str, args)],
        cwd=cwd,
        env=script_environment(**environment),
        input="\n".join(map(str, numbers)),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(map(int, done.stdout.split())), done.stderr


def layer_gradients(layer, inputs, loss):
    """The gradients of `loss(layer(inputs))` by the inputs and the layer's weights."""
    return output_and_gradients(layer, inputs, loss)[1]


def output_and_gradients(layer, inputs, loss):
    """`layer(inputs)`, and the gradients of the loss of that."""
    backend = keras.backend.backend()
    if not layer.built:
        layer.build(inputs.shape)
    weights = [weight.value for weight in layer.trainable_variables]
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = layer(x)
            value = loss(output)
        gradients = tape.gradient(value, [x, *weights])
    elif backend == "jax":
        import jax

        def value_of(x, weights):
            output = layer.stateless_call(weights, [], x)[0]
            return loss(output), output

        differentiate = jax.jit(jax.grad(value_of, argnums=(0, 1), has_aux=True))
        (dx, dweights), output = differentiate(inputs, weights)
        gradients = [dx, *dweights]
    else:
        import torch

        x = torch.tensor(inputs, requires_grad=True)
        output = layer(x)
        gradients = torch.autograd.grad(loss(output), [x, *weights])
    return (
        keras.ops.convert_to_numpy(output),
        [keras.ops.convert_to_numpy(gradient) for gradient in gradients],
    )


def gradient_of_a_slope(layer, inputs, loss, direction):
    """The gradients by inputs and weights of the loss's slope along `direction`.

    The slope is that of the inputs, the product of their gradient with `direction`.
    """
    backend = keras.backend.backend()
    weights = [weight.value for weight in layer.trainable_variables]
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(inputs)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = loss(layer(x))
            slope = tf.reduce_sum(inner.gradient(value, x) * direction)
        gradients = outer.gradient(slope, [x, *weights])
    elif backend == "jax":
        import jax

        def slope(x, weights):
            def value(x):
                return loss(layer.stateless_call(weights, [], x)[0])

            return (jax.grad(value)(x) * direction).sum()

        dx, dweights = jax.jit(jax.grad(slope, argnums=(0, 1)))(inputs, weights)
        gradients = [dx, *dweights]
    else:
        import torch

        x = torch.tensor(inputs, requires_grad=True)
        (dx,) = torch.autograd.grad(loss(layer(x)), x, create_graph=True)
        slope = (dx * torch.tensor(direction)).sum()
        gradients = torch.autograd.grad(slope, [x, *weights])
    return [keras.ops.convert_to_numpy(gradient) for gradient in gradients]
