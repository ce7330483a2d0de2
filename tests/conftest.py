"""What several test files need."""

import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads would spin and wait
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def recorded():
    """Inputs and outputs recorded from the layers of the public CapsNet-Keras."""
    path = os.path.join(ROOT, "tests", "capsnet_keras_layers.npz")
    with np.load(path) as file:
        return dict(file)


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


def run_script(name, *args, cwd, **environment):
    """Run one of the project's scripts as a user does; return the finished process."""
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, name), *map(str, args)],
        cwd=cwd,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend(), **environment},
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )


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
