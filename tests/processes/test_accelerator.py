"""The ways that are taken on an accelerator, on this CPU: compiled, at length."""

import keras
import numpy as np
import pytest
from helpers import options, read_log, small_capsnet, small_data, without_seconds

import capsulenet
from capsnet import numerics, routing, spectral
from capsnet.data import TrainingBatches
from capsnet.training import resources
from capsulelayers import SpectralConv2D
from capsulenet import CapsNet, MarginLoss, train


@pytest.fixture
def on_accelerator(monkeypatch):
    """Have everything take the way that it takes on an accelerator, on this CPU."""
    for module in (numerics, spectral, resources):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    if keras.backend.backend() == "tensorflow":  # Keras itself looks for a GPU
        monkeypatch.setattr(resources, "jit_compile", lambda model: True)
        tf32 = "capsnet.spectral._products_are_rounded"  # a setting of GPUs
        monkeypatch.setattr(tf32, lambda: False)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="has no XLA")
def test_xla_takes_the_same_steps(on_accelerator, monkeypatch):
    (x, y), _ = small_data(10)
    losses, weights = [], None
    for conv, block_bytes, jit_compile in (
        ("patches", 2**26, keras.backend.backend() == "jax"),
        ("direct", 2**26, True),
        ("spectral", 400, True),  # several blocks
    ):
        monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
        model = small_capsnet(conv=conv, routings=3)[0]
        weights = weights or model.get_weights()
        model.set_weights(weights)
        optimizer, loss = keras.optimizers.SGD(0.1), [MarginLoss(), "mse"]
        model.compile(optimizer, loss, jit_compile=jit_compile)
        losses.append([model.train_on_batch([x, y], [y, x])[0] for _ in range(3)])
        assert model.jit_compile == jit_compile
    assert losses[0][2] < losses[0][0]
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-5)


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


def test_the_way_of_an_accelerator_ends_with_the_same_weights(
    tmp_path, request, monkeypatch
):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", 100)  # several blocks
    drawn, draw = [], TrainingBatches.draw
    monkeypatch.setattr(
        TrainingBatches,
        "draw",
        lambda self, epoch: (drawn.append(self), draw(self, epoch)),
    )
    data, models, weights = small_data(80), [], None
    for place in ("cpu", "accelerator"):
        if place == "accelerator":
            request.getfixturevalue("on_accelerator")
        model = small_capsnet()[0]
        weights = weights or model.get_weights()
        model.set_weights(weights)
        args = options(tmp_path / place, seed=3, batch_size=2, lr=0.001, epochs=2)
        models.append(train(model, data, args))
    backend = keras.backend.backend()
    layer = SpectralConv2D(64, 9, strides=2)  # spectral on a CPU
    layer.build((None, 20, 20, 64))
    assert layer.form == models[1].get_layer("primarycap_conv2d").form == "direct"
    if backend != "torch":  # two of 40 steps at once
        assert models[1].steps_per_execution == 2 and models[1].jit_compile
    if backend != "tensorflow":
        assert keras.ops.is_tensor(drawn[-1].x)
    logs = [without_seconds(read_log(tmp_path / n)) for n in ("cpu", "accelerator")]
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
