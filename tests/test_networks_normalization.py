import keras
import numpy as np
import pytest
from helpers import array
from keras import ops

from capsnet.networks.normalization import BatchNormalization

KERAS = keras.layers.BatchNormalization


def after_a_step(kind, dtype, **how):
    """The loss of a step of gradient descent, and all weights after it."""
    draw = np.random.default_rng(0).standard_normal
    x = inputs = keras.Input((3, 5, 4))
    for layer in (keras.layers.Dense(4, dtype=dtype), kind(dtype=dtype, **how)):
        x = layer(x)
    model = keras.Model(inputs, x)
    model.set_weights([0.5 + draw(w.shape) ** 2 for w in model.weights])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    # 15 places a filter: whether a variance is over n or n - 1 makes a difference.
    loss = model.train_on_batch(3 + draw((1, 3, 5, 4)), draw((1, 3, 5, 4)))
    return [loss, *model.get_weights()]


@pytest.mark.parametrize(
    "dtype, close",
    [
        ("float32", 1e-5),
        *([("float64", 1e-6)] if keras.backend.backend() != "jax" else []),
        ("mixed_bfloat16", 0.02),
    ],
)
def test_a_training_step_is_that_of_keras(dtype, close):
    how = {"momentum": 0.5, "epsilon": 0.01}
    found, wanted = (
        after_a_step(kind, dtype, **how) for kind in (BatchNormalization, KERAS)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=close, atol=close)


def test_what_is_not_trained_normalizes_by_what_it_has_seen():
    found, wanted = (
        after_a_step(kind, "float32", trainable=False)
        for kind in (BatchNormalization, KERAS)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("how", [{"center": False}, {"scale": False}])
def test_without_an_offset_or_a_factor_it_is_keras_own(how):
    x = array(8, 3, 4, 5)
    ours, theirs = BatchNormalization(**how), keras.layers.BatchNormalization(**how)
    found, expected = (
        ops.convert_to_numpy(x_of(x, training=True)) for x_of in (ours, theirs)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_half_precision_are_trained_on():
    layer = BatchNormalization(dtype="float16")
    x = ops.convert_to_tensor(array(8, 3, 4, 5), "float16")
    found = ops.convert_to_numpy(layer(x, training=True)).astype("float32")
    assert np.abs(found.mean((0, 1, 2))).max() < 0.01
    assert np.abs(found.std((0, 1, 2)) - 1).max() < 0.01
