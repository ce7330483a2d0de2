import keras
import numpy as np
import pandas
import pytest
from helpers import (
    assert_same_weights,
    classifier,
    needs_float64,
    options,
    predicted,
    small_capsnet,
    small_data,
)
from keras import ops

import capsulenet
from capsnet.inference import as_set
from capsulenet import CapsNet, MarginLoss, margin_loss, test, train

test.__test__ = False  # the library's function, not a test


def test_the_model_on_mnist_is_the_paper_s():
    model, evaluation, manipulation = CapsNet((28, 28, 1), 10, 3, batch_size=100)
    assert model.count_params() == 8_215_568
    shapes = {
        layer.name: [tuple(weight.shape) for weight in layer.weights]
        for layer in model.layers
        if layer.weights
    }
    assert shapes == {
        "conv1": [(9, 9, 1, 256), (256,)],
        "primarycap_conv2d": [(9, 9, 256, 256), (256,)],
        "digitcaps": [(10, 1152, 16, 8)],
        "decoder": [
            *[(160, 512), (512,), (512, 1024), (1024,)],
            *[(1024, 784), (784,)],
        ],
    }
    assert model.get_layer("decoder").layers[-1].name == "out_recon"
    assert model.output_shape == [(None, 10), (None, 28, 28, 1)]
    assert evaluation.output_shape == model.output_shape
    assert manipulation.output_shape == (None, 28, 28, 1)
    assert_same_weights(model, evaluation)
    assert_same_weights(model, manipulation)


def test_the_three_models_agree():
    model, evaluation, manipulation = small_capsnet()
    (x, _), _ = small_data(5)
    lengths, by_longest = predicted(evaluation, x)
    longest = np.eye(3, dtype="float32")[lengths.argmax(1)]
    lengths_again, by_label = predicted(model, [x, longest])
    np.testing.assert_allclose(lengths_again, lengths, atol=1e-6)
    np.testing.assert_allclose(by_label, by_longest, atol=1e-6)
    silent = predicted(manipulation, [x, longest, np.zeros((5, 3, 6), "float32")])
    np.testing.assert_allclose(silent, by_label, atol=1e-6)
    noisy = predicted(manipulation, [x, longest, np.ones((5, 3, 6), "float32")])
    assert abs(noisy - silent).max() > 1e-3


def test_the_form_of_the_convolutions_does_not_change_the_model():
    (x, _), _ = small_data(5)
    forms = ("direct", "spectral", "patches")
    models = [small_capsnet(conv=conv)[1] for conv in forms]
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    expected, *others = (predicted(model, x) for model in models)
    for other in others:
        for a, b in zip(expected, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_images_too_small_are_refused_with_the_smallest_size():
    with pytest.raises(ValueError, match="16 x 28 pixels .* at least 17 x 17"):
        CapsNet((16, 28, 1), 10, 3)
    with pytest.raises(ValueError, match="routings .* not 0"):
        small_capsnet(routings=0)


def test_half_precision_keeps_outputs_and_weights_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_capsnet()[0]
    finally:
        keras.config.set_dtype_policy("float32")
    exact = small_capsnet()[0]
    exact.set_weights(model.get_weights())
    (x, y), _ = small_data(6)
    for a, b in zip(predicted(model, [x, y]), predicted(exact, [x, y])):
        assert a.dtype == "float32"
        assert 0 < distance(a, b) < 0.01
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert {keras.ops.dtype(model.get_layer("conv1")(x))} == {"bfloat16"}
    before, steps = model.get_weights(), []
    for either in (model, exact):
        sgd = keras.optimizers.SGD(1000.0)  # beyond the rounding of weights
        either.compile(sgd, [MarginLoss(), "mse"], loss_weights=[1.0, 10.0])
        either.train_on_batch([x, y], [y, x])
        steps.append([a - b for a, b in zip(either.get_weights(), before)])
    for half, whole in zip(*steps, strict=True):
        assert half.dtype == "float32"
        assert 0 < distance(half, whole) < 0.1


def distance(a, b):
    """How far `a` is from `b`, in lengths of `b`."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("which", ["", "_multi"])
def test_margin_loss_gives_the_recorded_values(recorded, which):
    y_true, y_pred = recorded[f"margin_true{which}"], recorded["margin_pred"]
    expected = recorded[f"margin_loss{which}"]
    mean = ops.mean(margin_loss(y_true, y_pred))
    assert float(mean) == pytest.approx(expected, abs=1e-6)
    assert float(MarginLoss()(y_true, y_pred)) == pytest.approx(expected, abs=1e-6)


def test_margin_loss_of_known_lengths():
    y_true = np.array([[1, 0, 0]] * 2, "float32")
    losses = margin_loss(y_true, [[0.9, 0.1, 0.0], [0.4, 0.3, 0.1]])
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), [0, 0.25 + 0.02], atol=1e-7
    )
    other = MarginLoss(m_plus=1.0, m_minus=0.0, lambda_=2.0)
    again = MarginLoss.from_config(other.get_config())
    for loss in (other, again):  # one example: 0.6^2 + 2 (0.3^2 + 0.1^2)
        assert float(loss(y_true[:1], [[0.4, 0.3, 0.1]])) == pytest.approx(0.56)


@pytest.mark.parametrize("y", [[0, 1, 2], [[0], [1], [2]], [[1, 0]] * 3])
def test_labels_that_are_not_one_hot_are_refused(y):
    lengths = np.full((3, 3), 0.5, "float32")
    for loss in (margin_loss, MarginLoss()):
        with pytest.raises(ValueError, match=r"zeros and ones \(n, n_class\)"):
            loss(np.array(y), lengths)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile(loss=MarginLoss())
    with pytest.raises(ValueError, match="zeros and ones"):
        model.train_on_batch(lengths, np.array(y))


@pytest.mark.parametrize("loss", [margin_loss, MarginLoss()], ids=["function", "class"])
def test_margin_loss_takes_the_weights_that_keras_gives(loss, tmp_path):
    """A model from lengths to lengths, on an example that is right and one wrong."""
    lengths = np.array([[0.9, 0.1], [0.9, 0.1]], "float32")
    y = np.array([[1, 0], [0, 1]], "float32")
    wrong = 0.5 * 0.8**2 + 0.8**2
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(loss=loss)
    model.save(tmp_path / "compiled.keras")
    loaded = keras.saving.load_model(tmp_path / "compiled.keras")
    for each in (model, loaded):
        for weights, expected in (
            (None, wrong / 2),
            ([1.0, 0.0], 0),
            ([0.0, 1.0], wrong / 2),
        ):
            weights = None if weights is None else np.array(weights)
            value = each.evaluate(lengths, y, sample_weight=weights, verbose=0)
            assert value == pytest.approx(expected, abs=1e-6)


def test_test_counts_and_draws(trained, tmp_path, capsys, figures):
    x, y = trained.data[1]
    accuracy = test(trained.trio[1], (x, y), options(tmp_path))
    lengths, recon = trained.trio[1].predict(x, verbose=0)
    assert accuracy == pytest.approx(np.mean(lengths.argmax(1) == y.argmax(1)))
    printed = capsys.readouterr().out
    assert f"Test acc: {accuracy:.4f}\n" in printed
    assert f"Test error: {100 - 100 * accuracy:.2f}%" in printed
    right = lengths.argmax(1) == y.argmax(1)
    of_classes = [right[y[:, digit] == 1].mean() for digit in range(3)]
    assert f"Balanced acc: {np.mean(of_classes):.4f}" in printed
    listed = ", ".join(f"{n} {100 * a:.1f}%" for n, a in enumerate(of_classes))
    assert f"Accuracy of each class: {listed}\n" in printed
    drawn = [axes.images[0].get_array() for axes in figures[0].axes if axes.images]
    assert len(drawn) == 23
    np.testing.assert_array_equal(drawn[0][:12], x[0, :, :, 0])
    np.testing.assert_allclose(drawn[1][12:], recon[1, :, :, 0], atol=1e-5)


def test_lengths_are_probabilities():
    (x, _), _ = small_data(8)
    lengths = ops.convert_to_numpy(small_capsnet()[1](x)[0])
    assert ((lengths >= 0) & (lengths < 1)).all()


def test_images_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"\(12, 12, 3\): the model takes \(12, 12, 1\)"
    ):
        capsulenet.predict(small_capsnet()[1], np.zeros((2, 12, 12, 3)))


def test_a_network_without_decoder_gives_lengths_alone(tmp_path):
    model, evaluation, none = small_capsnet(decoder=False)
    assert none is None and model.output_shape == (None, 3)
    data = small_data()
    train(model, data, options(tmp_path))
    test(evaluation, data[1], options(tmp_path))
    assert not (tmp_path / "real_and_recon.png").exists()
    (loaded, _, _), about = capsulenet.load_model(str(tmp_path / "trained_model.h5"))
    assert_same_weights(loaded, model)
    assert about["class_names"] == ["0", "1", "2"]
    said, _ = capsulenet.weights.read(str(tmp_path / "trained_model.h5"))
    assert said["class_names"] is None  # none were given
    assert about["thresholds"] is None  # of 50 images


def test_images_of_bytes_are_refused_with_what_to_do(tmp_path):
    (x, y), test_data = small_data()
    bytes_ = np.round(x * 255).astype("uint8")
    of_bytes = "images of type uint8: must be floats from 0 to 1, such as x.astype"
    with pytest.raises(ValueError, match=of_bytes):
        train(small_capsnet()[0], ((bytes_, y), test_data), options(tmp_path / "new"))
    with pytest.raises(
        ValueError, match="images from 0 to 255: must be from 0 to 1, or"
    ):
        large = (bytes_.astype("float32"), y), test_data
        train(small_capsnet()[0], large, options(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=of_bytes):
        capsulenet.predict(small_capsnet()[1], bytes_)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x, y.argmax(1)), r"labels of shape \(23,\).*to_categorical"),
        (lambda x, y: (x, y[:9]), "23 images and 9 labels"),
        (lambda x, y: (x[:0], y[:0]), "no images"),
        (lambda x, y: (np.uint8(x * 255), y), "images of type uint8"),
        (lambda x, y: (x[:, :9], y), r"\(9, 12, 1\): the model takes \(12, 12, 1\)"),
        (lambda x, y: (x, y[:, :2]), r"labels of shape \(23, 2\) for 3 classes"),
        (lambda x, y: (x, 0.9 * y + 0.05), "labels that are not all 0 or 1"),
        (lambda x, y: (x, y.astype(str)), "labels that are not all 0 or 1"),
        (lambda x, y: (x, np.where(y, 1, np.nan)), "labels that are not all 0 or 1"),
    ],
)
def test_a_data_set_that_is_none_is_refused_before_anything_runs(
    tmp_path, change, message
):
    some, new = small_data()[1], options(tmp_path / "new")
    for data in ((change(*some), some), (some, change(*some))):
        with pytest.raises(ValueError, match=message):
            train(small_capsnet()[0], data, new)
    with pytest.raises(ValueError, match=message):
        test(small_capsnet()[1], change(*some), new)
    assert not (tmp_path / "new").exists()


def test_the_wrong_model_of_the_three_is_not_asked(tmp_path):
    (_, (x, y)), models = small_data(), small_capsnet()
    for wrong in (models[0], models[2]):
        with pytest.raises(ValueError, match="the second tested and asked"):
            capsulenet.predict(wrong, x)
    with pytest.raises(ValueError, match="the model must tell its inputs"):
        capsulenet.predict(models, x)
    for wrong in models[:2]:
        with pytest.raises(ValueError, match="the third manipulated"):
            capsulenet.manipulate_latent(wrong, (x, y), options(tmp_path))


def test_the_wrong_model_of_the_three_is_told(tmp_path):
    data, models = small_data(), small_capsnet()
    for wrong in models[1:]:
        with pytest.raises(ValueError, match="the first is trained"):
            train(wrong, data, options(tmp_path / "new"))
    for wrong in (models[0], models[2]):
        with pytest.raises(ValueError, match="the second tested"):
            test(wrong, data[1], options(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_as_many_names_as_classes_are_asked_of_a_test(tmp_path):
    with pytest.raises(ValueError, match=r"class_names \['a', 'b'\]: must be 3 str"):
        some = options(tmp_path, class_names=["a", "b"])
        test(small_capsnet()[1], small_data()[1], some)


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(decoder, number):
    x = small_data()[1][0]
    x[3, 4, 5] = number
    with pytest.raises(ValueError, match="not finite"):
        capsulenet.predict(small_capsnet(decoder=decoder)[1], x)


@pytest.mark.parametrize(
    "kind",
    [
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: a.tolist(),
        lambda a: pandas.DataFrame(a) if a.ndim == 2 else list(a),
        ops.convert_to_tensor,
        np.float64,
        lambda a: a > 0.5,
    ],
)
def test_images_and_labels_may_be_what_numpy_makes_arrays_of(kind):
    x, y = small_data(30)[0]
    x = np.round(x)
    found = as_set((kind(x), kind(y)), classifier())
    for a, b in zip(found, (x, y)):
        assert isinstance(a, np.ndarray) and a.dtype.isnative
        np.testing.assert_array_equal(a, b)


def test_arrays_of_the_other_byte_order_are_trained_on_as_what_they_are(tmp_path):
    trained = []
    for order in "<>":
        keras.utils.set_random_seed(0)
        parts = [[a.astype(f"{order}f4") for a in part] for part in small_data()]
        save_dir = tmp_path / order
        trained.append(train(classifier(), parts, options(save_dir, seed=0)))
    assert_same_weights(*trained)


def test_images_may_be_tensors(tmp_path):
    (x, y), test_data = small_data()
    train(
        small_capsnet()[0],
        ((ops.convert_to_tensor(x), y), test_data),
        options(tmp_path),
    )
    assert (tmp_path / "trained_model.h5").exists()


def test_a_class_that_is_shown_is_manipulated_where_a_decoder_draws(tmp_path):
    (x, y), _ = small_data()
    args = options(tmp_path)
    del args.digit  # 5 for MNIST
    capsulenet.manipulate_latent(small_capsnet()[2], (x, y), args)
    assert (tmp_path / "manipulate-2.png").exists()
    with pytest.raises(ValueError, match="has no decoder"):
        capsulenet.manipulate_latent(None, (x, y), args)


def test_prediction_needs_images():
    with pytest.raises(ValueError, match="no images"):
        capsulenet.predict(small_capsnet()[1], np.zeros((0, 12, 12, 1)))


@needs_float64
def test_the_margin_loss_has_all_digits_of_float64():
    lengths, labels = (
        np.float64([[0.1 / 3, 1 / 3, 0.95], [0.9, 0.7, 0.2]]),
        np.eye(3)[:2],
    )
    present = labels * np.maximum(0, 0.9 - lengths) ** 2
    absent = (1 - labels) * np.maximum(0, lengths - 0.1) ** 2
    found = margin_loss(
        *(ops.convert_to_tensor(x, "float64") for x in (labels, lengths))
    )
    expected = (present + 0.5 * absent).sum(-1)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-14)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize("network", capsulenet.NETWORKS)
def test_a_pipeline_need_not_tell_how_large_its_images_are(network):
    import tensorflow as tf

    small = {"filters": 8, "n_channels": 2} if network in ("capsnet", "shared") else {}
    model = capsulenet.NETWORKS[network]((28, 28, 1), 3, None, decoder=False, **small)[
        0
    ]
    model.compile("sgd", "mse")
    x, y = np.random.default_rng(0).random((4, 28, 28, 1), "float32"), np.eye(4, 3)
    unknown = (tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None, 3)))
    pipeline = tf.data.Dataset.from_generator(
        lambda: iter([(x, y.astype("float32"))]), output_signature=unknown
    ).repeat()
    expected = model.evaluate(x, y, verbose=0)
    found = model.evaluate(pipeline, steps=1, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)
    once = {"steps_per_epoch": 1, "shuffle": False, "verbose": 0}
    history = model.fit(pipeline, **once).history
    assert np.isfinite(history["loss"]).all()
