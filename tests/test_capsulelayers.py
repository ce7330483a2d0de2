import warnings

import keras
import numpy as np
import pytest
from helpers import (
    array,
    capsule_layer,
    layer_gradients,
    output_of,
    predicted,
    routed_by_the_book,
)
from keras import ops

from capsulelayers import (
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
    SpectralConv2D,
    Squash,
    squash,
)


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


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 3, 1), (3, 2), (1, 3)])
def test_a_mask_of_another_shape_is_no_mask(shape):
    capsules = array(3, 3, 2)
    with pytest.raises(ValueError, match=r"for capsules \(3, 3\)"):
        Mask()([capsules, np.ones(shape, "float32")])
    with pytest.raises(ValueError, match=r"for capsules \(3, 3\)"):
        CapsuleLayer(3, 4)(capsules, mask=np.ones(shape, bool))


def test_what_are_no_capsules_is_not_masked():
    with pytest.raises(ValueError, match="unpack"):
        Mask()(array(2, 3, 3, 5))
    for shape in ((3,), (3, 3, 5)):
        with pytest.raises(ValueError, match="unpack"):
            Mask()(keras.Input(shape))


def test_capsules_need_a_size():
    for shape in ((2, 0, 4), (2, 3, 0)):
        with pytest.raises(ValueError, match="with known sizes"):
            CapsuleLayer(3, 4)(np.ones(shape, "float32"))
    with pytest.raises(ValueError, match="squash ''"):
        CapsuleLayer(3, 4, squash="")


def test_no_capsules_are_masked_to_none():
    empty = np.zeros((0, 4, 2), "float32")
    assert Mask()(empty).shape == Mask()([empty, empty[..., 0]]).shape == (0, 8)


def test_masked_capsules_send_nothing():
    u, W = array(2, 9, 4), array(3, 9, 5, 4)
    kept = np.arange(9) % 3 > 0
    inputs = keras.Input((9, 4))
    masked = keras.layers.Masking()(inputs)  # of capsules that are all zeros
    layer = capsule_layer(W)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = keras.Model(inputs, Length()(layer(masked)))
    lengths = predicted(model, u * kept[:, None])
    expected = Length()(output_of(capsule_layer(W[:, kept]), u[:, kept]))
    np.testing.assert_allclose(lengths, ops.convert_to_numpy(expected), atol=1e-6)
    mask = np.tile(kept, (2, 1))
    lengths = Length()(output_of(layer, u, mask=mask))
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
        expected = ops.convert_to_numpy(output_of(layer, u.astype("float32")))
        assert abs(expected).max() > 0.1
        result = ops.convert_to_numpy(output_of(layer, u))
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_an_empty_batch_gives_an_empty_one():
    v = capsule_layer(array(3, 9, 5, 4))(squash(np.zeros((0, 9, 4), "float32")))
    assert tuple(v.shape) == (0, 3, 5)


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
        outputs = output_of(model, array(2, 11, 11, 1))
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


@pytest.mark.parametrize(
    "sizes", [[10], [50], [8, 3]], ids=["10_classes", "50_classes", "two_layers"]
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


def test_positions_of_arguments_are_those_of_conv2d():
    layer = SpectralConv2D(8, 3, 2, "same")
    assert (layer.strides, layer.padding) == ((2, 2), "same")
    with pytest.raises(TypeError):
        CapsuleLayer(3, 5, 3, None, True)


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
    result = predicted(model, recorded["primary_in"])
    np.testing.assert_allclose(result, recorded["primary_out"], atol=1e-5)


def test_a_model_may_have_two_layers_of_primary_capsules():
    inputs = keras.Input((20, 20, 1))
    x = PrimaryCap(inputs, 4, 2, 5, 2, "valid")
    y = PrimaryCap(inputs, 4, 2, 5, 2, "valid", name="second")
    model = keras.Model(inputs, keras.layers.Concatenate(axis=1)([x, y]))
    names = {layer.name for layer in model.layers}
    assert {"primarycap_conv2d", "second_conv2d", "second_squash"} <= names


def test_primary_capsules_are_no_layer_to_be_made_in_a_call():
    with pytest.raises(TypeError, match="in a subclass call it in __init__"):
        PrimaryCap(ops.ones((1, 20, 20, 1)), 4, 2, 5, 2, "valid")


def test_the_weight_of_another_layer_may_be_shared():
    class Tied(CapsuleLayer):
        def build(self, shape):
            super().build(shape)
            self.W = other.W

    other, layer = capsule_layer(array(3, 9, 5, 4)), Tied(3, 5)
    u = squash(array(2, 9, 4))
    np.testing.assert_allclose(predicted(layer, u), predicted(other, u), atol=1e-6)


def test_channels_first_make_the_same_capsules():
    try:
        ops.conv(
            ops.ones((1, 1, 3, 3)), ops.ones((2, 2, 1, 1)), data_format="channels_first"
        )
    except Exception as error:  # of TensorFlow without oneDNN
        if "only supports the NHWC" not in str(error):
            raise
        pytest.skip("the backend's own convolution has no channels first here")
    x = array(2, 14, 13, 3)
    outputs = []
    for data_format in ("channels_last", "channels_first"):
        images = x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)
        inputs = keras.Input(images.shape[1:])
        keras.utils.set_random_seed(0)
        capsules = PrimaryCap(inputs, 4, 2, 5, 2, "valid", data_format=data_format)
        outputs.append(predicted(keras.Model(inputs, capsules), images))
    np.testing.assert_allclose(*outputs, atol=1e-5)


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
    for a, b in zip(predicted(model, x), predicted(loaded, x)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for before, after in zip(model.layers, loaded.layers):
        assert before.get_config() == after.get_config()


def test_layers_tell_their_output_shapes():
    assert Mask().compute_output_shape((None, 3, 4)) == (None, 12)
    assert Mask().compute_output_shape([(None, 3, 4), (None, 3)]) == (None, 12)
    assert Length().compute_output_shape((7, 3, 4)) == (7, 3)
    assert CapsuleLayer(5, 6).compute_output_shape((None, 9, 4)) == (None, 5, 6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX has such sizes")
def test_a_batch_may_be_a_symbol():
    import jax
    from jax import export

    layer = CapsuleLayer(3, 4, routings=2)
    layer.build((None, 6, 5))

    def call(x):
        return layer.stateless_call([layer.W.value], [], x)[0]

    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 6, 5"), "float32")
    exported = export.export(jax.jit(call))(shape)
    for batch in (1, 7):
        x = array(batch, 6, 5)
        expected = output_of(layer, x)
        np.testing.assert_allclose(exported.call(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "sizes, routings", [((10, 16), 1), ((3, 2), 3), ((200, 16), 3)]
)
def test_layers_start_alive_at_any_depth(sizes, routings):
    inputs = x = keras.Input((20, 20, 1))
    x = PrimaryCap(x, 8, 8, 9, 2, "valid")
    outputs = []
    for num_capsule, dim_capsule in [(16, 8), (24, 4), (16, 8), sizes]:
        x = CapsuleLayer(num_capsule, dim_capsule, routings)(x)
        outputs.append(Length()(x))
    images = np.random.default_rng(0).random((20, 20, 20, 1)) > 0.7
    model = keras.Model(inputs, outputs)
    for lengths in predicted(model, images.astype("float32")):
        assert 0.03 < np.mean(lengths) < 0.7


@pytest.mark.parametrize(
    "rebuilt",
    [
        lambda model: keras.Model.from_config(model.get_config()),
        lambda model: keras.models.model_from_json(model.to_json()),
        keras.models.clone_model,
    ],
    ids=["config", "json", "clone"],
)
def test_stacked_layers_that_are_made_anew_start_as_long(rebuilt):
    inputs = x = keras.Input((40, 8))
    lengths = []
    for _ in range(4):
        x = CapsuleLayer(16, 8)(x)
        lengths.append(Length()(x))
    model, u = keras.Model(inputs, lengths), squash(array(50, 40, 8))
    for old, new in zip(predicted(model, u), predicted(rebuilt(model), u), strict=True):
        assert np.mean(new) == pytest.approx(np.mean(old), rel=0.5)


def test_a_layer_that_was_not_built_tells_no_shape():
    assert CapsuleLayer(3, 4).get_build_config() is None


@pytest.mark.parametrize("depth", [4])
def test_stacked_layers_learn_as_one_does(depth):
    centres = array(10, 40, 8)
    labels = np.random.randint(10, size=600)
    u = squash(centres[labels] + array(600, 40, 8, scale=0.3))
    inputs = x = keras.Input((40, 8))
    for _ in range(depth - 1):
        x = CapsuleLayer(16, 8)(x)
    model = keras.Model(inputs, Length()(CapsuleLayer(10, 16)(x)))
    model.compile(keras.optimizers.Adam(0.003), "mse", metrics=["accuracy"])
    given = (ops.convert_to_numpy(u), np.eye(10)[labels])
    history = model.fit(*given, batch_size=30, epochs=6, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["accuracy"][-1] > 0.95
