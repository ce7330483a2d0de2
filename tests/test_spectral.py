import keras
import numpy as np
import pytest
from helpers import array, output_and_gradients
from keras import ops

from capsnet import numerics, spectral
from capsulelayers import SpectralConv2D


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_pytorch_s_newer_names_for_precision_are_taken(monkeypatch):
    def refuse():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr("torch.get_float32_matmul_precision", refuse)
    layer = SpectralConv2D(64, 9, strides=2)
    layer.build((None, 20, 20, 64))
    assert layer.form == "direct"


@pytest.mark.parametrize(
    "how", [{"groups": 2}, {"dilation_rate": 2}, {"data_format": "channels_first"}]
)
def test_groups_dilation_and_channels_first_are_direct_or_refused(how):
    shape = (None, 4, 40, 40) if "data_format" in how else (None, 40, 40, 4)
    layer = SpectralConv2D(64, 9, **how)
    layer.build(shape)
    assert layer.form == "direct"
    for conv in ("spectral", "patches"):
        with pytest.raises(ValueError, match=f"conv='{conv}' needs channels_last, no"):
            SpectralConv2D(64, 9, conv=conv, **how).build(shape)


CONVOLUTIONS = [
    # height, width, channels, kernel, strides, padding
    (20, 20, 3, 9, 2, "valid"),  # the primary capsules on MNIST
    (28, 28, 1, 9, 1, "valid"),
    (23, 17, 2, 7, 2, "valid"),
    (12, 15, 2, 5, 3, "valid"),
    (40, 64, 2, 9, 2, "valid"),  # several tiles
    (19, 14, 2, (4, 6), (1, 2), "valid"),
    (16, 13, 2, 5, 2, "same"),
    (9, 9, 2, 9, 2, "valid"),  # one pixel remains
    (10, 10, 2, 5, 1, "valid"),  # six points a side: roots of unity alone
    (9, 9, 2, 2, 3, "valid"),  # stride beyond the kernel
    (60, 60, 1, 30, 1, "valid"),  # the largest transform
]
if keras.backend.backend() != "tensorflow":  # NumPy computes where each pixel goes
    CONVOLUTIONS = [*CONVOLUTIONS[4:7], *CONVOLUTIONS[-2:]]


@pytest.mark.parametrize("form", ["spectral", "patches"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_every_form_of_convolution_agrees_with_keras(case, form):
    height, width, channels, kernel, strides, padding = case
    x = array(3, height, width, channels)
    options = {
        "filters": 5,
        "kernel_size": kernel,
        "strides": strides,
        "padding": padding,
    }
    reference = keras.layers.Conv2D(**options, bias_initializer="normal")
    layer = SpectralConv2D(**options, conv=form)
    reference.build(x.shape)
    layer.build(x.shape)
    layer.set_weights(reference.get_weights())
    shape = reference.compute_output_shape(x.shape)
    assert layer.compute_output_shape(x.shape) == shape
    direction = array(*shape)

    def loss(y):
        return ops.sum(ops.multiply(y, direction))

    result, gradients = output_and_gradients(layer, x, loss)
    expected, expected_gradients = output_and_gradients(reference, x, loss)
    assert result.shape == expected.shape == shape
    for a, b in zip([result, *gradients], [expected, *expected_gradients]):
        np.testing.assert_allclose(a, b, atol=1e-5 * abs(b).max())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_no_gradient_of_an_index_is_in_the_way_of_tensorflow():
    import tensorflow as tf

    layer = SpectralConv2D(8, 9, strides=2, conv="spectral")
    layer.build((None, 39, 64, 4))  # several tiles, the last ones cut off

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x)

    graph = gradient.get_concrete_function(tf.zeros((2, 39, 64, 4))).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert "BatchMatMulV2" in kinds  # the product
    assert "StridedSliceGrad" not in kinds


@pytest.mark.parametrize("form", ["direct", "spectral", "patches"])
def test_an_activation_may_be_taken_off(form):
    layer = SpectralConv2D(4, 5, activation="relu", conv=form)
    x = array(2, 20, 20, 1)
    layer(x)
    layer.activation = None
    assert ops.convert_to_numpy(ops.min(layer(x))) < 0


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
def test_a_layer_may_be_made_while_jax_traces():
    import jax

    forms, x = [], array(2, 20, 20, 64)

    def trace(x):
        layer = SpectralConv2D(64, 9, strides=2)
        y = layer(x)
        forms.append(layer.form)
        return y

    jax.eval_shape(trace, x)
    layer = SpectralConv2D(64, 9, strides=2)
    layer.build(x.shape)
    assert forms == [layer.form]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="how JAX says it")
def test_the_products_of_the_spectral_form_have_all_bits():
    import jax

    layer = SpectralConv2D(4, 5, conv="spectral")
    layer.build((None, 12, 12, 2))
    weights = [weight.value for weight in layer.trainable_variables]

    def loss(x, weights):
        return layer.stateless_call(weights, [], x)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(array(2, 12, 12, 2), weights))
    products = program.count("dot_general[")
    assert products >= 7 and program.count("precision=(Precision.HIGHEST") == products


def test_where_products_are_rounded_the_spectral_form_is_not_taken(monkeypatch):
    monkeypatch.setattr(spectral, "_products_are_rounded", lambda: True)
    layer = SpectralConv2D(64, 9, strides=2)
    layer.build((None, 20, 20, 64))
    assert layer.form == "direct"
    with pytest.raises(ValueError, match="needs all bits of float32"):
        SpectralConv2D(64, 9, conv="spectral").build((None, 20, 20, 64))


@pytest.mark.skipif(not numerics.on_cpu(), reason="direct on an accelerator")
@pytest.mark.parametrize(
    "convolution, size, form",
    [
        ((256, 9, 1), (28, 28, 1), "patches"),  # the first one on MNIST
        ((256, 9, 2), (20, 20, 256), "spectral"),  # the second
        ((256, 9, 2), (12, 12, 256), "spectral"),  # the same of 20 x 20 pixels
        ((256, 9, 1), (32, 32, 3), "patches"),  # in colour: many places, few channels
        ((64, 3, 1), (22, 22, 64), "direct or spectral"),  # Efficient-CapsNet
        ((128, 3, 2), (20, 20, 64), "direct or patches"),
        ((16, 3, 1), (28, 28, 16), "direct or patches"),
    ],
)
def test_the_form_that_takes_least_is_chosen(convolution, size, form):
    layer = SpectralConv2D(*convolution)
    layer.build((None, *size))
    # XLA's own convolution is the slowest, oneDNN's the fastest of small ones.
    assert layer.form == form.split(" or ")[-(keras.backend.backend() == "jax")]


@pytest.mark.skipif(not numerics.on_cpu(), reason="direct on an accelerator")
def test_the_form_is_chosen_as_well_where_the_model_is_built_late():
    model = keras.Sequential([SpectralConv2D(64, 9, strides=2)])
    model.compile("sgd", "mse")
    model.fit(array(2, 20, 20, 64), array(2, 6, 6, 64), verbose=0)
    assert model.layers[0].form == "spectral"


def test_kernels_beyond_the_precision_of_a_transform_are_left_to_others():
    layer = SpectralConv2D(64, 41, conv="auto")
    layer.build((None, 80, 80, 64))
    assert layer.form != "spectral"
    with pytest.raises(ValueError, match="takes no kernels of .41, 41."):
        SpectralConv2D(64, 41, conv="spectral").build((None, 80, 80, 64))


def test_what_the_other_forms_do_not_cover_is_direct_or_refused():
    layer = SpectralConv2D(4, 3)
    layer.build((None, None, None, 2))
    assert layer.form == "direct"
    with pytest.raises(ValueError, match="known image size"):
        SpectralConv2D(4, 3, conv="spectral").build((None, None, None, 2))
    with pytest.raises(ValueError, match="'fft'"):
        SpectralConv2D(4, 3, conv="fft")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_autocast_does_not_round_the_products():
    import torch

    layer = SpectralConv2D(5, 9, 2, conv="spectral")
    x = ops.convert_to_tensor(array(2, 20, 20, 3))
    expected = layer(x).detach()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        found = layer(x).detach()
    np.testing.assert_array_equal(found.cpu(), expected.cpu())


def test_a_stride_keeps_tensorflow_alone_from_compiling_on_a_cpu():
    layer = SpectralConv2D(4, 3, strides=2, conv="direct")
    layer.build((None, 9, 9, 2))
    tensorflow = keras.backend.backend() == "tensorflow"
    assert layer.supports_jit == (not (tensorflow and numerics.on_cpu()))
