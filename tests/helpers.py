"""What several test files call; their fixtures are in `conftest.py`."""

import argparse
import base64
import csv
import io
import os
import subprocess
import sys

import h5py
import keras
import killed
import numpy as np
import pytest
from PIL import Image

import capsulenet
from capsulelayers import CapsuleLayer
from capsulenet import train

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


def without_tensorflow(folder):
    """The environment of processes that have no TensorFlow, but where it is the backend.

    Keras imports it on any other, for its seed and for TensorBoard, which takes seconds.

    Args:
        folder: path of a folder that Python then looks into as it starts.
    """
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('KERAS_BACKEND') in ('jax', 'torch'):\n"
        "    sys.modules['tensorflow'] = None\n"
    )
    return {"PYTHONPATH": str(folder)}


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


def output_of(layer, x, **kwargs):
    """`layer(x)`, which JAX compiles as a whole: one operation at a time takes longer."""
    if keras.backend.backend() != "jax":
        return layer(x, **kwargs)
    import jax

    if not layer.built:
        layer.build(x.shape)
    variables = layer.trainable_variables, layer.non_trainable_variables
    values = [[variable.value for variable in some] for some in variables]
    return jax.jit(lambda x: layer.stateless_call(*values, x, **kwargs)[0])(x)


def predicted(model, x):
    """What `model.predict` gives for one batch, as arrays, without a graph for it."""
    outputs = output_of(model, x)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


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


needs_float64 = pytest.mark.skipif(
    keras.backend.backend() == "jax" and "JAX_ENABLE_X64" not in os.environ,
    reason="JAX computes in float64 where the whole process does",
)


def array(*shape, scale=1.0):
    return (scale * np.random.normal(size=shape)).astype("float32")


def capsule_layer(W, **kwargs):
    """A CapsuleLayer with the weight `W`, `(J, I, O, D)`."""
    layer = CapsuleLayer(W.shape[0], W.shape[2], **kwargs)
    layer.build((None, W.shape[1], W.shape[3]))
    layer.set_weights([W])
    return layer


def routed_by_the_book(u, W, routings, constants=None):
    """Procedure 1 of the paper in float64; returns v and the last coefficients.

    With `constants` for these coefficients there is nothing to be iterated.
    """
    u_hat = np.einsum("bid,jiod->bjio", u.astype("float64"), W.astype("float64"))
    b = np.zeros(u_hat.shape[:3])
    for _ in range(routings if constants is None else 1):
        c = np.exp(b) / np.exp(b).sum(1, keepdims=True)
        c = c if constants is None else constants
        s = np.einsum("bji,bjio->bjo", c, u_hat)
        squared = (s**2).sum(-1, keepdims=True)
        v = s * squared / (1 + squared) / np.sqrt(squared + 1e-7)
        b = b + np.einsum("bjio,bjo->bji", u_hat, v)
    return v, c


def assert_same_weights(a, b):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


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


NAMES = ["bar", "pole", "block"]


def without_seconds(log):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log]


def images(n, height=6, width=5, channels=1):
    return np.random.random((n, height, width, channels)).astype("float32")


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, "uint8")


def small_train(directory, **changes):
    return train(classifier(), small_data(), options(directory, seed=0, **changes))


class SendsSignal(keras.callbacks.Callback):
    """Sends a signal to this process, at a place in the training."""

    def __init__(self, number, epoch, step):
        super().__init__()
        self.number, self.place = number, (epoch, step)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            os.kill(os.getpid(), self.number)


def files_under(directory):
    """The content of every file in a directory, but for who holds the lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


NETWORK = [
    *("--num-conv-out-channel", 4, "--primary-unit-size", 4, "--num-primary-unit", 2),
    *("--output-unit-size", 4, "--num-classes", 2, "--batch-size", 20),
    *("--input-width", 17, "--input-height", 17, "--num-routing", 1),
    *("--epochs", 1),
]


def files_that_stay(directory):
    names = (*directory.glob("checkpoint*"), *directory.glob("*.h5"))
    return {path.name: path.read_bytes() for path in names}


def tiny_capsnet():
    sizes = {"filters": 2, "kernel_size": 3, "strides": 2, "n_channels": 1}
    sizes |= {"dim_primary": 2, "dim_capsule": 2, "decoder": False}
    return capsulenet.CapsNet((7, 7, 1), 2, 1, **sizes)[0]


KINDS = ("h5", "keras2.h5", "weights.h5", "keras", "npz", "png")


def with_h5(path, change):
    with h5py.File(path, "a") as file:
        change(file)


SCRIPT = "capsulenet-multi-gpu.py"
# What a hostile name would do on a terminal: clear it, forge a row, turn the writing.
HOSTILE = "\x1b[2J\x1b[Hbee\r\nbee  ape 0.999\u202e.png"


def sent(picture):
    """A Pillow image as the canvas of the page sends it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def save_pictures(root, names=("ape", "bee"), n=5, shape=(6, 5), ending="png"):
    """A folder of pictures, each of one shade; returns its path."""
    for label, name in enumerate(names):
        os.makedirs(os.path.join(root, name))
        for i in range(n):
            picture = np.full(shape, (100 * label + i) % 256, "uint8")
            Image.fromarray(picture).save(os.path.join(root, name, f"{i}.{ending}"))
    return str(root)
