import json
import os
import signal

import keras
import numpy as np
import pytest
from helpers import (
    NAMES,
    SMALL,
    SendsSignal,
    assert_same_weights,
    options,
    predicted,
    read_log,
    small_capsnet,
    small_data,
    tiny_capsnet,
)
from keras import layers

import capsulenet
from capsnet.networks import class_capsules, trio
from capsnet.options import MODELS
from capsnet.training import callbacks
from capsnet.training.resources import step_memory
from capsulelayers import CapsuleLayer, Length, Mask, PrimaryCap, SpectralConv2D
from capsulenet import save_weights


@pytest.mark.parametrize("about", [True, False], ids=["with sizes", "without"])
def test_a_file_of_weights_brings_its_own_network(trained, tmp_path, about):
    path = os.path.join(trained.save_dir, "trained_model.h5")
    trio = trained.trio
    if not about:  # as CapsNet-Keras writes it; the routings are then three
        trio = small_capsnet(routings=3)
        path = str(tmp_path / "plain.h5")
        save_weights(trio[0], path)
    (_, model, _), found = capsulenet.load_model(path)
    images = trained.data[1][0]
    classes, lengths, reconstructions = capsulenet.predict(model, images)
    expected, pictures = predicted(trio[1], images)
    np.testing.assert_allclose(lengths, expected, atol=1e-6)
    np.testing.assert_allclose(reconstructions, pictures, atol=1e-6)
    np.testing.assert_array_equal(classes, expected.argmax(1))
    names = NAMES if about else ["0", "1", "2"]
    assert (found.pop("thresholds") is not None) == about
    assert found == {"class_names": names, "like_mnist": False}


@pytest.mark.parametrize("ending", ["h5", "weights.h5"])
@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "no decoder"])
def test_images_that_are_no_squares_need_a_word_where_the_file_has_none(
    tmp_path, ending, decoder
):
    trio = capsulenet.CapsNet((11, 14, 2), 3, **SMALL, decoder=decoder)
    path = str(tmp_path / f"a.{ending}")
    save = save_weights if ending == "h5" else keras.Model.save_weights
    save(trio[0], path)
    with pytest.raises(ValueError) as refused:
        capsulenet.load_model(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ") and "not a CapsNet" not in said
    assert "input_shape=(HEIGHT, WIDTH)" in said and "--image_size" in said
    assert ("11 x 14 or 14 x 11" in said) == decoder
    for shape in ((11, 14, 2), [11, 14]):
        (loaded, model, _), about = capsulenet.load_model(path, input_shape=shape)
        assert model.input_shape == (None, 11, 14, 2) and not about["like_mnist"]
        assert_same_weights(loaded, trio[0])
    for shape in ((11, 22), (11, 14, 3)):
        with pytest.raises(ValueError, match="not a CapsNet's weights"):
            capsulenet.load_model(path, input_shape=shape)


def test_another_size_than_the_file_tells_is_refused(tmp_path):
    trio = capsulenet.CapsNet((11, 14, 1), 3, **SMALL)
    path = str(tmp_path / "a.h5")
    save_weights(trio[0], path, {"architecture": capsulenet.architecture(trio[0])})
    for shape in (None, (11, 14)):
        (_, model, _), _ = capsulenet.load_model(path, input_shape=shape)
        assert model.input_shape == (None, 11, 14, 1)
    with pytest.raises(
        ValueError, match=r"its images are \(11, 14, 1\), not \(14, 11\)"
    ):
        capsulenet.load_model(path, input_shape=(14, 11))


@pytest.mark.parametrize(
    "conv, routing_gradient", [("auto", False), ("direct", True), ("spectral", False)]
)
def test_what_a_network_was_asked_for_travels_with_its_weights(
    tmp_path, conv, routing_gradient
):
    asked = {"conv": conv, "routing_gradient": routing_gradient}
    trio = small_capsnet(**asked)
    built = capsulenet.architecture(trio[0])
    assert asked.items() <= json.loads(json.dumps(built)).items()
    path = str(tmp_path / "a.h5")
    save_weights(trio[0], path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    assert capsulenet.architecture(loaded) == built
    assert [loaded.get_layer(n).form for n in ("conv1", "primarycap_conv2d")] == [
        trio[0].get_layer(n).form for n in ("conv1", "primarycap_conv2d")
    ]
    for name in asked:  # as in files that are older
        del built[name]
    save_weights(trio[0], path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    older = {**built, "conv": "auto", "routing_gradient": True}
    assert capsulenet.architecture(loaded) == older


def test_a_form_that_this_machine_does_not_compute_gives_way(tmp_path):
    sizes = {"filters": 1, "kernel_size": 41, "strides": 1, "n_channels": 1}
    sizes |= {"dim_primary": 2, "dim_capsule": 2, "decoder": False}
    model = capsulenet.CapsNet((81, 81, 1), 2, 1, **sizes)[0]
    path = str(tmp_path / "a.h5")
    built = {**capsulenet.architecture(model), "conv": "spectral"}
    save_weights(model, path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    assert loaded.get_layer("conv1").form in ("direct", "patches")
    assert_same_weights(loaded, model)


def test_the_routings_of_a_foreign_file_are_those_that_are_asked_for(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    capsulenet.CapsNet((17, 17, 1), 2, 1, filters=8)[0].save_weights(path)
    (model, _, _), _ = capsulenet.load_model(path, routings=1)
    assert model.get_layer("digitcaps").routings == 1


@pytest.mark.parametrize(
    "said",
    [
        {"routings": 10**9},
        {"routings": "3"},
        {"strides": 0},
        {"strides": 10**6, "input_shape": [60_000, 60_000, 1]},
        {"input_shape": [10**6, 10**6, 1]},
        {"input_shape": 7},
        {"n_class": 10**6},
        {"filters": 10**9},
        {"n_channels": 10**6},
        {"dim_capsule": 10**9},
        {"decoder": True},
        {"conv": "fast"},
        {"conv": ["spectral"]},
        {"conv": None},
        {"routing_gradient": "no"},
        {"routing_gradient": 1},
    ],
    ids=str,
)
def test_sizes_that_the_weights_deny_are_refused(whole, said):
    model = tiny_capsnet()
    about = {"architecture": {**capsulenet.architecture(model), **said}}
    capsulenet.save_weights(model, whole["h5"], about)
    with pytest.raises(ValueError, match="not a CapsNet's weights"):
        capsulenet.load_model(whole["h5"])


def test_names_that_are_none_are_refused(whole):
    model = tiny_capsnet()
    for names in ([["a"], 1], ["a"], ["a", "\x1b[2J"], ["a", "\ud800"], "a" * 10**6):
        about = {"architecture": capsulenet.architecture(model), "class_names": names}
        capsulenet.save_weights(model, whole["h5"], about)
        with pytest.raises(ValueError, match="names") as refused:
            capsulenet.load_model(whole["h5"])
        assert len(str(refused.value)) < 300 + len(whole["h5"])


def of_pixels(name=None):
    """A model of class capsules that none of the networks is."""
    pixels = keras.Input((12, 12, 1))
    rows = layers.Reshape((12, 12))(pixels)
    lengths = Length(name="capsnet")(CapsuleLayer(3, 4, name="digitcaps")(rows))
    return keras.Model(pixels, lengths, name=name)


def like_capsnet(activation="relu", between=None):
    """A model whose layers have the names of the paper's network."""
    images = keras.Input((12, 12, 1))
    x = SpectralConv2D(8, 5, activation=activation, name="conv1")(images)
    x = PrimaryCap(x, 4, 2, 5, 2, "valid")
    x = x if between is None else between(x)
    return trio(images, class_capsules(x, 3, 4, 1))[0]


OF_ONE_S_OWN = (
    "'own', is none of capsnet, photo, efficient, shared: build that, and use load"
)


def test_a_model_of_one_s_own_trains_and_is_not_taken_for_a_network(tmp_path):
    model, again = of_pixels(), of_pixels()
    capsulenet.train(model, small_data(), options(tmp_path))
    path = str(tmp_path / "trained_model.h5")
    with pytest.raises(ValueError, match=OF_ONE_S_OWN):
        capsulenet.load_model(path)
    capsulenet.load_weights(again, path)
    assert_same_weights(again, model)


@pytest.mark.parametrize(
    "how",
    [
        {"activation": "tanh"},
        {"activation": layers.LeakyReLU()},
        {"between": CapsuleLayer(5, 4)},
        {"between": layers.UnitNormalization()},
    ],
    ids=["tanh", "a layer as activation", "two layers of capsules", "no weights"],
)
def test_what_has_the_names_of_the_paper_s_network_need_not_be_it(how, tmp_path):
    model, path = like_capsnet(**how), str(tmp_path / "a.h5")
    save_weights(model, path, {"architecture": capsulenet.architecture(model)})
    with pytest.raises(ValueError, match=OF_ONE_S_OWN):
        capsulenet.load_model(path)


@pytest.mark.parametrize("name", MODELS)
def test_the_name_of_a_network_does_not_make_it_one(name):
    assert capsulenet.architecture(of_pixels(name)) == {"model": "own"}


def test_a_part_of_one_s_own_may_be_a_subclass(tmp_path):
    class Stem(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = layers.Conv2D(4, 5, strides=2)

        def call(self, images):
            return layers.Reshape((-1, 4))(self.convolution(images))

    images = keras.Input((12, 12, 1))
    capsules = CapsuleLayer(3, 4, name="digitcaps")(Stem()(images))
    model = keras.Model(images, Length(name="capsnet")(capsules))
    capsulenet.train(model, small_data(), options(tmp_path))
    assert (tmp_path / "trained_model.h5").exists()


def test_outputs_of_one_s_own_may_have_names_of_their_own(tmp_path):
    images, labels = keras.Input((12, 12, 1)), keras.Input((3,))
    rows = layers.Reshape((12, 12))(images)
    capsules = CapsuleLayer(3, 4, name="digitcaps")(rows)
    drawn = layers.Dense(144, "sigmoid")(Mask()([capsules, labels]))
    drawn = layers.Reshape((12, 12, 1), name="drawn")(drawn)
    model = keras.Model([images, labels], [Length(name="long")(capsules), drawn])
    capsulenet.train(model, small_data(), options(tmp_path))
    assert "val_long_accuracy" in read_log(tmp_path)[-1]


@pytest.mark.parametrize("name", ["filters", "n_channels", "dim_primary"])
def test_sizes_may_be_numbers_of_numpy(name, tmp_path):
    sizes = {**SMALL, name: np.int64(SMALL.get(name, 4))}
    model = capsulenet.CapsNet((12, 12, 1), 3, **sizes)[0]
    path = str(tmp_path / "a.h5")
    save_weights(model, path, {"architecture": capsulenet.architecture(model)})
    assert_same_weights(capsulenet.load_model(path)[0][0], model)


def test_a_stride_may_be_larger_than_the_kernel(tmp_path):
    sizes = {**SMALL, "kernel_size": 3, "strides": 4}
    model = capsulenet.CapsNet((12, 12, 1), 3, **sizes)[0]
    path = str(tmp_path / "a.h5")
    save_weights(model, path, {"architecture": capsulenet.architecture(model)})
    assert_same_weights(capsulenet.load_model(path)[0][0], model)


def test_a_model_of_one_s_own_is_interrupted_as_any_other(tmp_path, with_callback):
    with_callback(SendsSignal(signal.SIGINT, 0, 2))
    with pytest.raises(capsulenet.Interrupted, match="interrupted_model.h5"):
        capsulenet.train(of_pixels(), small_data(), options(tmp_path), signals=True)
    assert (tmp_path / "interrupted_model.h5").exists()


def test_the_code_of_others_under_the_paper_s_names_is_the_paper_s_network(tmp_path):
    """As CapsNet-Keras builds it, of plain convolutions."""
    images = keras.Input((12, 12, 1))
    x = layers.Conv2D(8, 5, activation="relu", name="conv1")(images)
    x = PrimaryCap(x, 4, 2, 5, 2, "valid")
    _, model, _ = trio(images, class_capsules(x, 3, 4, 1))
    path = str(tmp_path / "a.h5")
    save_weights(model, path, {"architecture": capsulenet.architecture(model)})
    (_, loaded, _), _ = capsulenet.load_model(path)
    pictures = small_data()[1][0]
    found, expected = (predicted(each, pictures)[0] for each in (loaded, model))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_file_of_a_network_that_is_not_here_is_not_taken_for_the_paper_s(whole):
    model = tiny_capsnet()
    about = {"architecture": {**capsulenet.architecture(model), "model": "em"}}
    capsulenet.save_weights(model, whole["h5"], about)
    with pytest.raises(ValueError, match="'em', is none of capsnet, photo"):
        capsulenet.load_model(whole["h5"])


def test_models_that_can_not_be_trained_are_told_why(tmp_path):
    class Subclassed(keras.Model):
        def call(self, images):
            return keras.ops.sum(images, (1, 2))

    with pytest.raises(ValueError, match="must tell its inputs"):
        capsulenet.train(Subclassed(), small_data(), options(tmp_path))
    pixels = keras.Input((12, 12, 1))
    within = keras.Model(pixels, of_pixels()(pixels))
    with pytest.raises(ValueError, match="not lie in a model within"):
        capsulenet.train(within, small_data(), options(tmp_path))


@keras.saving.register_keras_serializable(package="test")
class Others(layers.Layer):
    """Class capsules by another hand, with what theirs are usually called."""

    num_capsule, routings = 3, 2

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 3 * 4))

    def call(self, x):
        return keras.ops.reshape(keras.ops.mean(x, 1) @ self.kernel, (-1, 3, 4))


def test_class_capsules_by_another_hand_are_trained_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        callbacks, "FIRST_STEPS", 2
    )  # after which capsules are looked at
    pixels = keras.Input((12, 12, 1))
    rows = layers.Reshape((12, 12))(pixels)
    states, last = layers.GRU(5, return_sequences=True, return_state=True)(rows)
    rows = layers.Concatenate()([states, layers.RepeatVector(12)(last)])
    lengths = Length(name="capsnet")(Others(name="digitcaps")(rows))
    model, data = keras.Model(pixels, lengths), small_data()
    capsulenet.train(model, data, options(tmp_path))
    assert capsulenet.architecture(model) == {"model": "own"}
    assert capsulenet.predict(model, data[1][0]).lengths.shape == (23, 3)


@pytest.mark.parametrize("layer", [Others(), CapsuleLayer(3, 4)])
def test_the_memory_of_a_step_counts_all_outputs(layer):
    pixels = keras.Input((12, 12))
    memory = []
    for of_state in (False, True):
        lstm = layers.LSTM(5, return_sequences=True, return_state=of_state)
        states, *last = keras.tree.flatten(lstm(pixels))
        memory.append(step_memory(keras.Model(pixels, [layer(states), *last]), 10))
    assert memory[1] > memory[0]
