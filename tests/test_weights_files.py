import gzip
import os

import h5py
import keras
import numpy as np
import pytest
from helpers import SMALL, assert_same_weights, predicted, small_capsnet

import capsulenet
from capsnet.weights import files
from capsulenet import CapsNet, PhotoCapsNet, load_weights, save_weights


def changed(model):
    """The model with weights that no initializer gives."""
    model.set_weights([np.random.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("saver", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras", "keras2.h5"])
def test_every_format_loads_into_all_three_models(tmp_path, saver, name):
    model = changed(small_capsnet()[saver])
    path = str(tmp_path / name)
    if name == "a.h5":
        save_weights(model, path)
    elif name == "a.weights.h5":
        model.save_weights(path)
    elif name == "a.keras":
        model.save(path)
    else:
        write_keras_2_model(model, path)
    trio = small_capsnet()
    load_weights(trio[(saver + 1) % 3], path)
    for other in trio:
        assert_same_weights(other, model)


def write_keras_2_model(model, path):
    """A whole model as Keras 2 writes it: all layers, the weights one group deeper."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = root.create_group(layer.name)
            names = [f"{layer.name}/{n}/kernel:0" for n in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for key, value in zip(names, layer.get_weights()):
                group[key] = value


def test_files_that_keras_2_wrote(recorded_by_keras_2):
    path, x, lengths, reconstructions = recorded_by_keras_2
    trio = CapsNet((12, 12, 1), 3, **SMALL)
    load_weights(trio[0], path)
    result = predicted(trio[1], x)
    np.testing.assert_allclose(result[0], lengths, atol=1e-4)
    np.testing.assert_allclose(result[1], reconstructions, atol=1e-4)


@pytest.fixture(params=["weights", "model"])
def recorded_by_keras_2(request, tmp_path):
    """Written by the layers of CapsNet-Keras under Keras 2 (tf-keras), and packed."""
    here = os.path.join(os.path.dirname(__file__), "keras2")
    path = str(tmp_path / "keras2.h5")
    with (
        gzip.open(os.path.join(here, f"{request.param}.h5.gz")) as packed,
        open(path, "wb") as file,
    ):
        file.write(packed.read())
    with np.load(os.path.join(here, "predictions.npz")) as file:
        predictions = file["x"], file["lengths"], file["reconstructions"]
    return path, *predictions


def test_keras_itself_reads_our_file(tmp_path):
    model = changed(small_capsnet()[0])
    save_weights(model, str(tmp_path / "a.h5"))
    other = small_capsnet()[0]
    other.load_weights(tmp_path / "a.h5")
    assert_same_weights(other, model)
    with h5py.File(tmp_path / "a.h5") as file:  # what Keras 2 tells the layout by
        said = {
            name: np.asarray(value, str).tolist() for name, value in file.attrs.items()
        }
    assert (said["keras_version"], said["backend"]) == ("2.15.0", "tensorflow")
    weighted = [layer.name for layer in model.layers if layer.weights]
    assert said["layer_names"] == weighted


def test_weights_of_another_shape_name_the_layer_and_both_shapes(tmp_path):
    path = str(tmp_path / "a.h5")
    save_weights(small_capsnet()[0], path)
    model = changed(small_capsnet(dim_capsule=7)[0])
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"'digitcaps'.*\(3, 8, 6, 4\).*\(3, 8, 7, 4\)"
    ):
        load_weights(model, path)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras"])
@pytest.mark.parametrize("harm", ["empty", "truncated", "foreign"])
def test_damaged_and_foreign_files_are_refused(tmp_path, name, harm):
    path = str(tmp_path / name)
    model = small_capsnet()[0]
    if harm == "foreign":
        inputs = keras.Input((4,))
        other = keras.Model(inputs, keras.layers.Dense(3, name="other")(inputs))
        other.save(path) if name == "a.keras" else None
        other.save_weights(path) if name == "a.weights.h5" else None
        save_weights(other, path) if name == "a.h5" else None
    else:
        model.save(path) if name == "a.keras" else save_weights(model, path)
        with open(path, "r+b") as file:
            file.truncate(0 if harm == "empty" else os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=name) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nowhere.h5"):
        load_weights(small_capsnet()[0], str(tmp_path / "nowhere.h5"))


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = str(tmp_path / "a.h5")
    model = small_capsnet()[0]
    save_weights(model, path)
    with open(path, "rb") as file:
        before = file.read()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(h5py.Group, "__setitem__", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(model, path)
    with open(path, "rb") as file:
        assert file.read() == before
    assert os.listdir(tmp_path) == ["a.h5"]


def stem(kinds):
    """A model of twelve inner layers, of one kind or two, in an order of its own."""
    x = inputs = keras.Input((4, 4, 2))
    for index in range(12):
        x = keras.layers.Conv2D(2, 3, padding="same")(x)
        if kinds == 2 and index % 3 == 0:
            x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, x, name="stem")


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras"])
def test_a_model_within_the_model_is_read_in_its_own_order(tmp_path, kinds, name):
    def around(inner):
        images = keras.Input((4, 4, 2))
        flat = keras.layers.Flatten()(inner(images))
        return keras.Model(images, keras.layers.Dense(3, name="head")(flat))

    model = around(stem(kinds))
    model.set_weights([np.random.uniform(size=w.shape) for w in model.get_weights()])
    path = str(tmp_path / name)
    if name == "a.h5":
        save_weights(model, path)
    elif name == "a.keras":
        model.save(path)
    else:
        model.save_weights(path)
    loaded = around(stem(kinds))
    load_weights(loaded, path)
    assert_same_weights(loaded, model)
    if kinds == 2 and name != "a.h5":
        before = around(stem(1))
        kept = before.get_weights()
        with pytest.raises(ValueError, match=f"{name}: layer 'stem' is another"):
            load_weights(before, path)
        for a, b in zip(before.get_weights(), kept, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_best_weights_of_the_network_for_pictures_are_read(tmp_path):
    model = changed(PhotoCapsNet((17, 17, 3), 2, decoder=False)[0])
    model.save_weights(str(tmp_path / "best.weights.h5"))
    other = PhotoCapsNet((17, 17, 3), 2, decoder=False)[0]
    load_weights(other, str(tmp_path / "best.weights.h5"))
    assert_same_weights(other, model)


def test_layers_of_the_same_name_in_models_within_the_model_are_kept_apart(tmp_path):
    def block(name, side):
        x = keras.Input((side, side, 3))
        return keras.Model(x, keras.layers.Conv2D(3, 3, name="conv")(x), name=name)

    models = []
    for _ in range(2):
        stem = [keras.Input((18, 18, 3)), block("a", 18), block("b", 16)]
        stem = keras.Sequential(stem, name="own")
        models.append(changed(PhotoCapsNet((18, 18, 3), 2, stem=stem, n_channels=2)[0]))
    save_weights(models[0], str(tmp_path / "w.h5"))
    load_weights(models[1], str(tmp_path / "w.h5"))
    assert_same_weights(*models)


def test_weights_of_half_precision_are_stored_as_the_numbers_that_they_are(tmp_path):
    layer = keras.layers.Dense(2, dtype="bfloat16", name="half")
    model = changed(keras.Sequential([keras.Input((3,)), layer]))
    path = str(tmp_path / "w.h5")
    save_weights(model, path)
    stored = h5py.File(path)["half"]
    found = [stored[name][()] for name in stored.attrs["weight_names"]]
    for a, b in zip(found, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b.astype("float32"))
    kept = model.get_weights()
    load_weights(changed(model), path)
    for a, b in zip(model.get_weights(), kept):
        np.testing.assert_array_equal(a, b)


def test_a_file_that_takes_too_long_to_read_is_refused(whole, monkeypatch):
    monkeypatch.setattr(files, "SECONDS_TO_READ", 0)
    with pytest.raises(ValueError, match="a.h5: not a readable .*it takes too long"):
        capsulenet.load_model(whole["h5"])
