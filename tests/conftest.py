"""What several test files need."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
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


def layer_gradients(layer, inputs, loss):
    """The gradients of `loss(layer(inputs))` by the inputs and the layer's weights."""
    backend = keras.backend.backend()
    if not layer.built:
        layer.build(inputs.shape)
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(inputs)
        sources = [x, *[weight.value for weight in layer.trainable_variables]]
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(layer(x))
        gradients = tape.gradient(value, sources)
    elif backend == "jax":
        import jax

        def value_of(x, weights):
            return loss(layer.stateless_call(weights, [], x)[0])

        weights = [weight.value for weight in layer.trainable_variables]
        dx, dweights = jax.grad(value_of, argnums=(0, 1))(inputs, weights)
        gradients = [dx, *dweights]
    else:
        import torch

        x = torch.tensor(inputs, requires_grad=True)
        sources = [x, *[weight.value for weight in layer.trainable_variables]]
        gradients = torch.autograd.grad(loss(layer(x)), sources)
    return [keras.ops.convert_to_numpy(g) for g in gradients]
