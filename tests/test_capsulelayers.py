import os
import re
import shutil
import warnings

import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    gradient_of_a_slope,
    layer_gradients,
    output_and_gradients,
    run_python,
)
from keras import ops

import capsulelayers
from capsnet import routing, spectral
from capsulelayers import (
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
    SpectralConv2D,
    Squash,
    squash,
)

TENSORFLOW = keras.backend.backend() == "tensorflow"


def array(*shape, scale=1.0):
    return (scale * np.random.normal(size=shape)).astype("float32")


def sum_of_squares(x):
    return ops.sum(ops.square(x))


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


# squash, Length and Mask -------------------------------------------------------------


def test_squash_gives_the_recorded_values(recorded):
    result = ops.convert_to_numpy(squash(recorded["squash_in"]))
    np.testing.assert_allclose(result, recorded["squash_out"], atol=1e-6)


def test_squash_of_known_lengths():
    vectors = np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 1e-2]], "float32")
    lengths = np.linalg.norm(ops.convert_to_numpy(squash(vectors)), axis=-1)
    np.testing.assert_allclose(lengths, [25 / 26, 0.5, 1e-4], rtol=1e-3)


@pytest.mark.parametrize("dtype, size", [("float16", 150.0), ("float32", 1e30)])
def test_squash_of_large_components_is_finite(dtype, size):
    vectors = np.array(
        [[size] * 8, [size, -size, *[0] * 6], [0.6, 0.8, *[0] * 6]], dtype
    )
    squashed = squash(vectors)
    assert keras.backend.standardize_dtype(squashed.dtype) == dtype
    result = ops.convert_to_numpy(squashed)
    expected = [[8**-0.5] * 8, [0.5**0.5, -(0.5**0.5), *[0] * 6], [0.3, 0.4, *[0] * 6]]
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-6)
    (gradient,) = layer_gradients(Squash(dtype=dtype), vectors, ops.sum)
    assert np.isfinite(gradient).all() and abs(gradient[:2]).max() < 0.1
    lengths = ops.convert_to_numpy(Length(dtype=dtype)(vectors))
    expected = [8**0.5 * size, 2**0.5 * size, 1]
    np.testing.assert_allclose(lengths, expected, rtol=1e-3)


def test_squash_works_along_any_axis():
    vectors = array(3, 5, 4)
    expected = ops.convert_to_numpy(squash(vectors))
    turned = ops.convert_to_numpy(squash(vectors.transpose(0, 2, 1), axis=1))
    np.testing.assert_allclose(turned.transpose(0, 2, 1), expected, atol=1e-6)


@pytest.mark.parametrize("layer", [Squash(), Length()], ids=["squash", "length"])
def test_zero_vector_has_finite_value_and_gradient(layer):
    zero = np.zeros((2, 3, 4), "float32")
    assert abs(ops.convert_to_numpy(layer(zero))).max() < 1e-3
    (gradient,) = layer_gradients(layer, zero, ops.sum)
    np.testing.assert_array_equal(gradient, zero)


def test_length_gives_the_recorded_values(recorded):
    result = ops.convert_to_numpy(Length()(recorded["squash_in"]))
    np.testing.assert_allclose(result, recorded["length_out"], atol=1e-6)


def test_mask_gives_the_recorded_values(recorded):
    x, y = recorded["squash_in"], recorded["mask_y"]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(Mask()(x)), recorded["mask_auto_out"]
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(Mask()([x, y])), recorded["mask_y_out"]
    )


def test_mask_keeps_the_first_capsule_at_a_tie():
    capsules = np.array([[[0, 1], [3, 4], [4, 3], [5, 0]]], "float32")
    masked = ops.convert_to_numpy(Mask()(capsules)).reshape(4, 2)
    np.testing.assert_array_equal(masked, [[0, 0], [3, 4], [0, 0], [0, 0]])


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_mask_multiplies_by_labels_that_are_not_one_hot(dtype):
    capsules, weights = array(2, 3, 4), array(2, 3, scale=3).astype(dtype)
    masked = ops.convert_to_numpy(Mask()([capsules, weights]))
    expected = (capsules * weights[:, :, None]).reshape(2, 12)
    np.testing.assert_allclose(masked, expected, rtol=1e-6)


# CapsuleLayer ------------------------------------------------------------------------


@pytest.mark.parametrize("routings", [1, 2, 3, 5])
@pytest.mark.parametrize("block_bytes", [2**26, 1000], ids=["whole", "blocks"])
def test_routing_gives_the_recorded_outputs_and_gradients(
    recorded, routings, block_bytes, monkeypatch
):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
    layer = capsule_layer(recorded["caps_W"], routings=routings)
    output, gradients = output_and_gradients(layer, recorded["caps_in"], sum_of_squares)
    np.testing.assert_allclose(output, recorded[f"caps_out_r{routings}"], atol=1e-5)
    for gradient, name in zip(gradients, "uW"):
        expected = recorded[f"caps_grad_{name}_r{routings}"]
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("routing_gradient", [True, False])
def test_routing_in_blocks_trains_as_without(monkeypatch, routing_gradient):
    u, target = array(6, 10, 4), array(6, 3, 5)
    W = array(3, 10, 5, 4, scale=0.3)
    trained = []
    for block_bytes in (2**26, 300):  # one block, and four with two capsules to spare
        monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
        layer = CapsuleLayer(3, 5, routing_gradient=routing_gradient)
        model = keras.Sequential([keras.Input((10, 4)), layer])
        layer.set_weights([W])
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.fit(u, target, epochs=3, batch_size=6, verbose=0)
        trained.append(layer.get_weights()[0])
    assert abs(trained[0] - W).max() > 1e-3
    np.testing.assert_allclose(*trained, atol=1e-6)


def test_routing_ignores_the_order_of_input_capsules():
    u, W = array(2, 9, 4), array(3, 9, 5, 4)
    order = np.random.permutation(9)
    result = capsule_layer(W)(u)
    shuffled = capsule_layer(W[:, order])(u[:, order])
    np.testing.assert_allclose(
        ops.convert_to_numpy(shuffled), ops.convert_to_numpy(result), atol=1e-5
    )


def test_routing_treats_each_example_alone():
    layer = capsule_layer(array(3, 9, 5, 4))
    u = array(6, 9, 4)
    together = ops.convert_to_numpy(layer(u))
    for n in (1, 4):
        alone = ops.convert_to_numpy(layer(u[:n]))
        assert alone.shape == (n, 3, 5)
        np.testing.assert_allclose(alone, together[:n], atol=1e-6)


def test_agreement_wins():
    """Of two outputs, the one whose predictions agree gets longer by routing."""
    u = np.ones((1, 8, 1), "float32")
    W = np.ones((2, 8, 1, 1), "float32") * 0.5
    W[1, 4:] = -0.4  # half of the second capsule's predictions point the other way
    lengths = [
        np.abs(ops.convert_to_numpy(capsule_layer(W, routings=r)(u))).ravel()
        for r in (1, 3)
    ]
    assert lengths[1][0] > lengths[0][0]
    assert lengths[0][0] > lengths[0][1]


def test_masked_capsules_send_nothing():
    u, W = array(2, 9, 4), array(3, 9, 5, 4)
    kept = np.arange(9) % 3 > 0
    inputs = keras.Input((9, 4))
    masked = keras.layers.Masking()(inputs)  # of capsules that are all zeros
    layer = capsule_layer(W)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = keras.Model(inputs, Length()(layer(masked)))
    lengths = model.predict(u * kept[:, None], verbose=0)
    expected = Length()(capsule_layer(W[:, kept])(u[:, kept]))
    np.testing.assert_allclose(lengths, ops.convert_to_numpy(expected), atol=1e-6)
    mask = np.tile(kept, (2, 1))
    lengths = Length()(layer(u, mask=mask))
    np.testing.assert_allclose(
        ops.convert_to_numpy(lengths), ops.convert_to_numpy(expected), atol=1e-6
    )


def test_what_a_masked_capsule_holds_does_not_matter():
    u, W = array(2, 9, 4), array(3, 9, 5, 4)
    layer, mask = capsule_layer(W), np.arange(18).reshape(2, 9) % 3 > 0
    expected = ops.convert_to_numpy(layer(u, mask=mask))
    result = layer(np.where(mask[..., None], u, np.nan), mask=mask)
    np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=1e-6)


def test_a_loss_of_lengths_gets_no_mask_of_capsules():
    x = keras.layers.Masking()(keras.Input((3, 4)))
    assert getattr(Length()(Squash()(x)), "_keras_mask", None) is None


def test_integers_are_taken_as_floats():
    u, W = np.arange(18).reshape(2, 3, 3) % 4, array(2, 3, 5, 3, scale=0.2)
    for layer in (capsule_layer(W), Squash(), Length()):
        expected = ops.convert_to_numpy(layer(u.astype("float32")))
        assert abs(expected).max() > 0.1
        result = ops.convert_to_numpy(layer(u))
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_an_empty_batch_gives_an_empty_one():
    v = capsule_layer(array(3, 9, 5, 4))(squash(np.zeros((0, 9, 4), "float32")))
    assert tuple(v.shape) == (0, 3, 5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_pytorch_s_newer_names_for_precision_are_taken(monkeypatch):
    def refuse():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr("torch.get_float32_matmul_precision", refuse)
    layer = SpectralConv2D(64, 9, strides=2)
    layer.build((None, 20, 20, 64))
    assert layer.form == "direct"


def test_the_weight_may_be_regularized_and_constrained():
    layer = CapsuleLayer(
        3, 5, kernel_regularizer=keras.regularizers.L2(0.5), kernel_constraint="non_neg"
    )
    layer = CapsuleLayer.from_config(layer.get_config())
    layer.build((None, 9, 4))
    W = layer.get_weights()[0]
    loss = ops.convert_to_numpy(layer.losses[0])
    assert loss == pytest.approx(0.5 * (W**2).sum(), rel=1e-5)
    constrained = ops.convert_to_numpy(layer.W.constraint(layer.W.value))
    np.testing.assert_array_equal(constrained, np.maximum(W, 0))


@pytest.mark.parametrize("shape", [(7, 12, 4), (7, 9, 5), (7, 9, 4, 1)])
def test_capsules_of_another_number_are_refused_where_the_graph_is_made(shape):
    layer = capsule_layer(array(3, 9, 5, 4))
    with pytest.raises(ValueError, match="incompatible with the layer"):
        layer(keras.Input(batch_shape=shape))


@pytest.mark.parametrize(
    "policy", ["float32", "float64", "mixed_bfloat16", "mixed_float16"]
)
def test_layers_give_the_dtype_that_they_tell(policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float64 where the whole process does")
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((11, 11, 1))
        x = PrimaryCap(inputs, 4, 2, 5, 2, "valid", conv="spectral")
        v = CapsuleLayer(3, 5)(x)
        model = keras.Model(inputs, [x, v, Length()(v), Mask()(v)])
        outputs = model(array(2, 11, 11, 1))
    finally:
        keras.config.set_dtype_policy("float32")
    dtypes = [keras.backend.standardize_dtype(output.dtype) for output in outputs]
    assert dtypes == [tensor.dtype for tensor in model.outputs]
    full, other = "float32", policy.removeprefix("mixed_")
    full = "float64" if policy == "float64" else full
    assert dtypes == [full, full, other, other]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="needs another process")
def test_float64_is_computed_in_float64():
    u, W = array(2, 9, 4).astype("float64"), array(3, 9, 5, 4).astype("float64")
    v = ops.convert_to_numpy(capsule_layer(W, dtype="float64")(u))
    np.testing.assert_allclose(v, routed_by_the_book(u, W, 3)[0], atol=1e-12)
    x = array(2, 20, 20, 3).astype("float64")
    outputs = []
    for form in ("direct", "spectral", "patches"):
        keras.utils.set_random_seed(0)
        layer = SpectralConv2D(5, 9, 2, conv=form, dtype="float64")
        outputs.append(ops.convert_to_numpy(layer(x)))
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], atol=1e-11)


def test_unknown_batch_size_in_the_graph():
    inputs = keras.Input((9, 4))
    model = keras.Model(inputs, CapsuleLayer(3, 5)(inputs))
    assert model.output_shape == (None, 3, 5)
    assert model.predict(array(7, 9, 4), batch_size=3, verbose=0).shape == (7, 3, 5)


@pytest.mark.parametrize("routing_gradient", [True, False])
@pytest.mark.parametrize("block_bytes", [2**26, 300], ids=["whole", "blocks"])
def test_second_derivatives_are_those_of_float64(
    routing_gradient, block_bytes, monkeypatch
):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
    u, W = array(2, 9, 2), array(3, 9, 5, 2)
    z, step_u, step_W = array(*u.shape), array(*u.shape), array(*W.shape)
    layer = capsule_layer(W, routing_gradient=routing_gradient)
    du, dW = gradient_of_a_slope(layer, u, sum_of_squares, z)
    _, c = routed_by_the_book(u, W, 3)
    exact_u, exact_W = u.astype("float64"), W.astype("float64")

    def value(u, W):
        return (
            routed_by_the_book(u, W, 3, None if routing_gradient else c)[0] ** 2
        ).sum()

    h = 1e-4
    corners = [
        sign
        * other
        * value(exact_u + h * (sign * z + other * step_u), exact_W + h * other * step_W)
        for sign in (1, -1)
        for other in (1, -1)
    ]
    expected = sum(corners) / (4 * h * h)
    assert abs(expected) > 0.1
    assert (du * step_u).sum() + (dW * step_W).sum() == pytest.approx(
        expected, rel=1e-3
    )


def test_without_routing_gradient_the_coefficients_are_constants():
    u, W = array(2, 9, 4), array(3, 9, 5, 4, scale=0.5)
    exact_u, exact_W = u.astype("float64"), W.astype("float64")
    layer = capsule_layer(W, routing_gradient=False)
    _, c = routed_by_the_book(u, W, 3)
    du, dW = layer_gradients(layer, u, sum_of_squares)

    def value(u, W):
        return (routed_by_the_book(u, W, 3, c)[0] ** 2).sum()

    step_u, step_W, h = array(*u.shape), array(*W.shape), 1e-5
    ahead, behind = (
        value(exact_u + step * step_u, exact_W + step * step_W) for step in (h, -h)
    )
    assert (du * step_u).sum() + (dW * step_W).sum() == pytest.approx(
        (ahead - behind) / (2 * h), rel=1e-3
    )
    through_all = layer_gradients(capsule_layer(W), u, sum_of_squares)
    assert abs(through_all[1] - dW).max() > 1e-3


@pytest.mark.parametrize("block_bytes", [2**26, 4000], ids=["whole", "blocks"])
def test_capsules_of_many_dimensions_are_routed_by_the_book(block_bytes, monkeypatch):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
    u, W = array(2, 7, 40), array(3, 7, 5, 40, scale=0.2)
    direction = array(2, 3, 5)

    def loss(v):
        return ops.sum(ops.multiply(v, direction))

    v, gradients = output_and_gradients(capsule_layer(W), u, loss)
    np.testing.assert_allclose(v, routed_by_the_book(u, W, 3)[0], atol=1e-5)
    exact_u, exact_W, h = u.astype("float64"), W.astype("float64"), 1e-5
    step_u, step_W = array(*u.shape), array(*W.shape)
    ahead, behind = (
        (
            routed_by_the_book(exact_u + s * step_u, exact_W + s * step_W, 3)[0]
            * direction
        )
        for s in (h, -h)
    )
    slope = (ahead - behind).sum() / (2 * h)
    du, dW = gradients
    assert (du * step_u).sum() + (dW * step_W).sum() == pytest.approx(slope, rel=1e-3)


@pytest.mark.skipif(not TENSORFLOW, reason="reads TensorFlow's graph")
def test_the_graph_does_not_grow_with_the_dimension_of_the_input_capsules():
    import tensorflow as tf

    numbers = []
    for D in (8, 64, 256):
        layer = capsule_layer(array(3, 7, 5, D))
        differentiate = tf.function(lambda u, layer=layer: tf.gradients(layer(u), u))
        graph = differentiate.get_concrete_function(tf.TensorSpec((2, 7, D))).graph
        numbers.append(len(graph.get_operations()))
    assert numbers[2] == numbers[1] < numbers[0]


@pytest.mark.skipif(not TENSORFLOW, reason="reads TensorFlow's graph")
def test_no_array_is_as_large_as_the_prediction_vectors(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", 2**26)  # one block

    B, J, I, O, D = 200, 20, 300, 16, 8
    layer = capsule_layer(array(J, I, O, D))

    @tf.function
    def gradient(u):
        with tf.GradientTape() as tape:
            tape.watch(u)
            value = sum_of_squares(layer(u))
        return tape.gradient(value, [u, layer.W.value])

    graph = gradient.get_concrete_function(tf.TensorSpec((B, I, D))).graph
    largest = max(
        np.prod(output.shape.as_list())
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    )
    assert largest == B * J * I


@pytest.mark.parametrize(
    "sizes", [[10], [50], [8, 3]], ids=["10 classes", "50 classes", "two layers"]
)
def test_training_starts_at_once_and_stays_finite(sizes):
    n_class = sizes[-1]
    centres = array(n_class, 40, 8, scale=0.3)
    labels = np.random.randint(n_class, size=400)
    u = centres[labels] + array(400, 40, 8, scale=0.1)
    inputs = x = keras.Input((40, 8))
    for size in sizes:
        x = CapsuleLayer(size, 8)(x)
    model = keras.Model(inputs, Length()(x))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["accuracy"])
    history = model.fit(
        u, np.eye(n_class)[labels], batch_size=20, epochs=5, verbose=0
    ).history
    assert np.isfinite(history["loss"]).all()
    assert history["accuracy"][-1] > 0.9


@pytest.mark.parametrize(
    "sizes, named",
    [((0, 16, 3), "num_capsule"), ((10, -1, 3), "dim_capsule"), ((10, 16, 0), "0")],
)
def test_sizes_that_can_not_be_are_refused(sizes, named):
    with pytest.raises(ValueError, match=named):
        CapsuleLayer(*sizes)


def test_input_that_is_no_batch_of_capsules_is_refused():
    with pytest.raises(ValueError, match="input_num_capsule"):
        CapsuleLayer(3, 5)(array(2, 9))


# Convolutions ------------------------------------------------------------------------

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


def test_positions_of_arguments_are_those_of_conv2d():
    layer = SpectralConv2D(8, 3, 2, "same")
    assert (layer.strides, layer.padding) == ((2, 2), "same")
    with pytest.raises(TypeError):
        CapsuleLayer(3, 5, 3, None, True)


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


def test_sums_of_the_softmax_are_no_products_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(routing, "on_cpu", lambda: False)
    x = array(6, 4, 5)
    expected = np.exp(x) / np.exp(x).sum(0)
    monkeypatch.setattr(routing.ops, "ones", None)  # for the product with ones
    result = routing._softmax_over_first(ops.convert_to_tensor(x))
    result = ops.convert_to_numpy(result)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.skipif(not capsulelayers.on_cpu(), reason="direct on an accelerator")
def test_small_kernels_are_not_transformed():
    layer = SpectralConv2D(16, 3)
    layer.build((None, 28, 28, 16))
    assert layer.form == "patches"


@pytest.mark.skipif(not capsulelayers.on_cpu(), reason="direct on an accelerator")
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


@pytest.mark.parametrize("form", ["direct", "spectral", "patches"])
def test_primary_capsules_give_the_recorded_values(recorded, form):
    inputs = keras.Input(recorded["primary_in"].shape[1:])
    outputs = PrimaryCap(inputs, 8, 4, 9, 2, "valid", conv=form)
    model = keras.Model(inputs, outputs)
    model.set_weights([recorded["primary_kernel"], recorded["primary_bias"]])
    assert [layer.name for layer in model.layers[1:]] == [
        "primarycap_conv2d",
        "primarycap_reshape",
        "primarycap_squash",
    ]
    result = model.predict(recorded["primary_in"], verbose=0)
    np.testing.assert_allclose(result, recorded["primary_out"], atol=1e-5)


def test_a_model_may_have_two_layers_of_primary_capsules():
    inputs = keras.Input((20, 20, 1))
    x = PrimaryCap(inputs, 4, 2, 5, 2, "valid")
    y = PrimaryCap(inputs, 4, 2, 5, 2, "valid", name="second")
    model = keras.Model(inputs, keras.layers.Concatenate(axis=1)([x, y]))
    names = {layer.name for layer in model.layers}
    assert {"primarycap_conv2d", "second_conv2d", "second_squash"} <= names


def test_channels_first_make_the_same_capsules():
    x = array(2, 14, 13, 3)
    outputs = []
    for data_format in ("channels_last", "channels_first"):
        images = x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)
        inputs = keras.Input(images.shape[1:])
        keras.utils.set_random_seed(0)
        capsules = PrimaryCap(inputs, 4, 2, 5, 2, "valid", data_format=data_format)
        outputs.append(keras.Model(inputs, capsules).predict(images, verbose=0))
    np.testing.assert_allclose(*outputs, atol=1e-5)


# The file as a whole -----------------------------------------------------------------


def small_model():
    inputs = keras.Input((14, 14, 1))
    x = SpectralConv2D(8, 5, activation="relu", conv="spectral")(inputs)
    x = PrimaryCap(x, 4, 2, 5, 2, "valid")
    x = CapsuleLayer(3, 6, routings=2, routing_gradient=False)(x)
    return keras.Model(inputs, [Length()(x), Mask()(x)])


def test_a_saved_model_loads_in_safe_mode(tmp_path):
    model, x = small_model(), array(2, 14, 14, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for a, b in zip(model.predict(x, verbose=0), loaded.predict(x, verbose=0)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for before, after in zip(model.layers, loaded.layers):
        assert before.get_config() == after.get_config()


def test_layers_tell_their_output_shapes():
    assert Mask().compute_output_shape((None, 3, 4)) == (None, 12)
    assert Mask().compute_output_shape([(None, 3, 4), (None, 3)]) == (None, 12)
    assert Length().compute_output_shape((7, 3, 4)) == (7, 3)
    assert CapsuleLayer(5, 6).compute_output_shape((None, 9, 4)) == (None, 5, 6)


def test_the_files_that_the_docs_name_work_when_copied(tmp_path):
    with open(os.path.join(ROOT, "docs", "layers.md")) as file:
        command = re.search(r"^cp (.*) YOUR_PROJECT$", file.read(), re.MULTILINE)
    for name in command[1].removeprefix("--parents ").split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), tmp_path / name)
    program = "import numpy; from capsulelayers import CapsuleLayer as C; "
    program += "print(C(3, 5)(numpy.ones((2, 9, 4), 'float32')).shape)"
    assert "2, 3, 5" in run_python(program, tmp_path)
