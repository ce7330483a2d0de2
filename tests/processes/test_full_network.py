"""The full network, which takes minutes."""

import keras
import numpy as np
import pytest

import capsulenet
from capsulenet import CapsNet, MarginLoss


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others compile")
def test_xla_takes_the_same_step_of_the_full_network():
    (x, y), _ = capsulenet.load_mnist()
    x, y, losses, weights = x[:100], y[:100], [], None
    for jit_compile in (True, False):
        model = CapsNet((28, 28, 1), 10, 3)[0]
        weights = weights or model.get_weights()
        model.set_weights(weights)
        model.compile("adam", [MarginLoss(), "mse"], jit_compile=jit_compile)
        losses.append([model.train_on_batch([x, y], [y, x])[0] for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
