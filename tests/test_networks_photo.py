import argparse

import keras
import numpy as np
import pytest
from helpers import array, predicted
from keras import ops

import capsulenet
from capsnet.networks import PhotoCapsNet, residual_stem
from capsnet.training import resources


def images(n, *shape):
    return np.random.default_rng(0).random((n, *shape)).astype("float32")


def same(tensor, array, atol):
    np.testing.assert_allclose(ops.convert_to_numpy(tensor), array, atol=atol)


@pytest.mark.parametrize(
    "size, places",
    [
        ((17, 17), (9, 9)),
        ((28, 28), (7, 7)),
        ((64, 48), (8, 6)),
        ((150, 200), (10, 13)),
    ],
)
def test_the_stem_makes_a_map_of_about_eight_by_eight(size, places):
    assert residual_stem((*size, 3)).output_shape == (None, *places, 128)


@pytest.mark.parametrize("size", [(224, 224), (512, 384), (17, 512)])
def test_the_stem_takes_large_pictures(size):
    rows, columns = residual_stem((*size, 1)).output_shape[1:3]
    assert 6 <= min(rows, columns) <= 12


@pytest.mark.parametrize("size", [(16, 40), (40, 513)])
def test_pictures_of_other_sizes_are_refused_with_the_way_out(size):
    with pytest.raises(ValueError, match="17 to 512; --image_size"):
        PhotoCapsNet((*size, 3), 2)


def test_brightness_and_contrast_of_a_whole_picture_change_nothing():
    model = PhotoCapsNet((20, 20, 3), 4)[1]
    x = images(3, 20, 20, 3)
    lengths = capsulenet.predict(model, x).lengths
    other = capsulenet.predict(model, 0.3 + 0.5 * x).lengths
    assert np.ptp(lengths) > 0.01
    np.testing.assert_allclose(other, lengths, atol=0.01)
    assert np.abs(capsulenet.predict(model, 1 - x).lengths - lengths).max() > 0.01


def test_the_three_models_share_everything_and_draw_the_whole_picture():
    train, evaluate, manipulate = PhotoCapsNet((40, 36, 3), 3)
    x, y = images(2, 40, 36, 3), np.eye(3, dtype="float32")[:2]
    drawn = train.predict_on_batch([x, y])[1]
    assert drawn.shape == x.shape
    same = manipulate.predict_on_batch([x, y, np.zeros((2, 3, 16), "float32")])
    np.testing.assert_allclose(same, drawn, atol=1e-6)
    assert evaluate.count_params() == train.count_params()
    assert train.get_layer("decoder").layers[2].units == 32 * 32 * 3


def test_a_file_of_weights_tells_the_network_and_builds_it(tmp_path):
    models = PhotoCapsNet((24, 20, 3), 3, 2, n_channels=4, routing_gradient=False)
    path = str(tmp_path / "w.h5")
    about = {
        "architecture": capsulenet.architecture(models[0]),
        "class_names": list("abc"),
    }
    capsulenet.save_weights(models[0], path, about)
    (train, loaded, _), told = capsulenet.load_model(path)
    assert capsulenet.architecture(train) == about["architecture"]
    assert about["architecture"]["model"] == "photo" and told["class_names"] == list(
        "abc"
    )
    x = images(3, 24, 20, 3)
    expected = capsulenet.predict(models[1], x)
    found = capsulenet.predict(loaded, x)
    np.testing.assert_allclose(found.lengths, expected.lengths, atol=1e-6)
    np.testing.assert_allclose(
        found.reconstructions, expected.reconstructions, atol=1e-6
    )


@pytest.mark.parametrize(
    "lie, said",
    [
        ({"stem": "own"}, "its stem is not this project's"),
        ({"input_shape": [24, 20, 1]}, "images of"),
        ({"input_shape": [24, 20000, 3]}, "17 to 512"),
        ({"n_class": 4}, "n_class is 3 and not 4"),
        ({"routings": 0}, "routings 0"),
        ({"dim_capsule": None}, "dim_capsule is 16"),
    ],
)
def test_a_file_that_lies_about_the_network_is_refused(tmp_path, lie, said):
    model = PhotoCapsNet((24, 20, 3), 3)[0]
    path = str(tmp_path / "w.h5")
    about = {"architecture": capsulenet.architecture(model) | lie}
    capsulenet.save_weights(model, path, about)
    with pytest.raises(ValueError, match=said):
        capsulenet.load_model(path)


def test_any_keras_model_may_be_the_stem(tmp_path):
    stem = keras.Sequential(
        [keras.Input((20, 20, 3)), keras.layers.Conv2D(8, 5, 3), keras.layers.ReLU()]
    )
    models = PhotoCapsNet((20, 20, 3), 3, stem=stem, n_channels=4, decoder=False)
    x, y = images(8, 20, 20, 3), np.eye(3, dtype="float32")[np.arange(8) % 3]
    capsulenet.compile_model(
        models[0], capsulenet.options.complete(argparse.Namespace())
    )
    assert np.isfinite(models[0].train_on_batch(x, y)).all()
    path = str(tmp_path / "model.keras")
    models[0].save(path)
    loaded = keras.saving.load_model(path)
    expected = predicted(models[0], x)
    np.testing.assert_allclose(predicted(loaded, x), expected, atol=1e-6)
    assert capsulenet.architecture(models[0])["stem"] == "own"


def test_a_stem_of_other_layers_has_another_name_than_the_residual_one():
    stem = residual_stem((20, 20, 3))
    assert PhotoCapsNet((20, 20, 3), 3, stem=stem, decoder=False)
    pictures = keras.Input((20, 20, 3))
    other = keras.layers.Conv2D(8, 5)(pictures)
    with pytest.raises(ValueError, match="has the name of residual_stem's"):
        PhotoCapsNet((20, 20, 3), 3, stem=keras.Model(pictures, other, name="stem"))


def test_a_model_of_keras_applications_without_its_top_may_be_the_stem():
    stem = keras.applications.MobileNet(
        (40, 40, 3), 0.25, include_top=False, weights=None
    )
    model = PhotoCapsNet((40, 40, 3), 3, stem=stem, decoder=False)[1]
    assert model.output_shape == (None, 3)


@pytest.mark.parametrize("network", capsulenet.NETWORKS.values())
def test_two_networks_name_their_weights_alike(network):
    """For PyTorch's `state_dict`, which finds them by their paths."""
    first, second = (network((20, 20, 1), 2, None)[0] for _ in range(2))
    assert [w.path for w in first.weights] == [w.path for w in second.weights]


@pytest.mark.parametrize("network", capsulenet.NETWORKS)
@pytest.mark.parametrize(
    "shape",
    [
        28,
        (28, 28),
        (None, None, 1),
        (28, 28, 0),
        (28.0, 28, 1),
        (28, 28, 1, 1),
        "28x28",
    ],
    ids=str,
)
def test_what_is_no_shape_of_images_is_refused_as_that(network, shape):
    with pytest.raises(ValueError, match="must be .height, width, channels., integers"):
        capsulenet.NETWORKS[network](shape, 2, None)


@pytest.mark.parametrize("network", capsulenet.NETWORKS)
def test_images_are_drawn_channels_last_whatever_keras_prefers(network):
    keras.config.set_image_data_format("channels_first")
    try:
        built = capsulenet.NETWORKS[network]((40, 44, 3), 2, None)[1]
    finally:
        keras.config.set_image_data_format("channels_last")
    assert built.output_shape == [(None, 2), (None, 40, 44, 3)]


def test_a_stem_that_gives_no_map_is_refused():
    stem = keras.Sequential([keras.Input((20, 20, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="not a map .*include_top=False"):
        PhotoCapsNet((20, 20, 3), 3, stem=stem)


def test_convolutions_of_keras_are_not_compiled_by_xla_on_a_cpu():
    if keras.backend.backend() == "tensorflow":
        assert resources.jit_compile(PhotoCapsNet((20, 20, 3), 2)[0]) is False
        small = {"filters": 4, "kernel_size": 5, "n_channels": 1, "dim_primary": 4}
        paper = capsulenet.CapsNet((12, 12, 1), 2, 2, **small)[0]
        assert resources.jit_compile(paper) == "auto"


def test_shared_transformations_do_not_ask_where_a_capsule_is():
    layer = capsulenet.CapsuleLayer(3, 5, 3, shared=True)
    u = array(2, 6, 4, 8)
    v = ops.convert_to_numpy(layer(u))
    order = np.random.default_rng(1).permutation(6)
    same(layer(u[:, order]), v, atol=1e-6)
    in_rows = capsulenet.CapsuleLayer(3, 5, 3, shared=True)
    in_rows.build((None, 3, 2, 4, 8))
    in_rows.set_weights(layer.get_weights())
    same(in_rows(u.reshape(2, 3, 2, 4, 8)), v, atol=1e-6)
    assert np.abs(ops.convert_to_numpy(layer(u[:, :, ::-1].copy())) - v).max() > 1e-3


@pytest.mark.parametrize("routings", [1, 3])
def test_shared_transformations_are_those_of_a_layer_whose_weights_repeat(routings):
    shared = capsulenet.CapsuleLayer(3, 5, routings, shared=True)
    plain = capsulenet.CapsuleLayer(3, 5, routings)
    u = array(2, 6, 4, 8)
    v = predicted(shared, u)
    plain.build((None, 24, 8))
    plain.set_weights([np.tile(ops.convert_to_numpy(shared.W), (1, 6, 1, 1))])
    same(predicted(plain, u.reshape(2, 24, 8)), v, atol=1e-5)
    assert shared.W.shape == (3, 4, 5, 8)


def test_shared_transformations_need_channels_to_share_over():
    with pytest.raises(ValueError, match=r"takes \(batch, positions, channels"):
        capsulenet.CapsuleLayer(3, 5, shared=True).build((None, 24, 8))


def test_no_routing_iterations_are_refused_as_in_any_network():
    with pytest.raises(ValueError, match="routings must be .* not 0"):
        PhotoCapsNet((20, 20, 3), 3, routings=0)


@pytest.mark.parametrize("outputs", [0, 2, 4])
def test_a_stem_must_tell_its_one_map(outputs):
    pictures = keras.Input((20, 20, 3))
    convolved = keras.layers.Conv2D(8, 5)(pictures)
    stem = keras.Sequential([keras.layers.Conv2D(8, 5)])
    if outputs:
        stem = keras.Model(pictures, [convolved] * outputs)
    why = "not a map" if outputs else "must tell its inputs"
    with pytest.raises(ValueError, match=f"stem .*{why}"):
        PhotoCapsNet((20, 20, 3), 3, stem=stem)
