import collections

import keras
import numpy as np
import pytest

import capsulenet
from capsnet.architecture import architecture
from capsnet.networks import SharedCapsNet


def small(shape=(20, 20, 1), **how):
    how = {"filters": 8, "n_channels": 4, "dim_primary": 4, "dim_capsule": 6, **how}
    return SharedCapsNet(shape, 3, **how)


def test_it_is_the_paper_s_network_with_fewer_transformations():
    keras.utils.set_random_seed(0)
    shared, own = SharedCapsNet((28, 28, 1), 10), capsulenet.CapsNet((28, 28, 1), 10, 3)
    weights, others = (
        collections.Counter(tuple(w.shape) for w in model[0].weights)
        for model in (shared, own)
    )
    assert list(weights - others) == [(10, 32, 16, 8)]
    assert list(others - weights) == [(10, 1152, 16, 8)]


def test_a_digit_elsewhere_gives_the_same_class_capsules():
    model = small((60, 60, 1))[1]
    digitcaps = model.get_layer("digitcaps")
    digitcaps.set_weights([300 * w for w in digitcaps.get_weights()])  # long ones
    blob = np.random.default_rng(0).random((4, 4, 1)).astype("float32")
    images = np.zeros((2, 60, 60, 1), "float32")
    images[0, 20:24, 24:28] = images[1, 30:34, 28:32] = blob
    here, there = capsulenet.predict(model, images).lengths
    empty = capsulenet.predict(model, np.zeros_like(images[:1])).lengths[0]
    assert np.abs(here - empty).max() > 0.01
    np.testing.assert_allclose(here, there, rtol=1e-4)


@pytest.mark.parametrize("routing, routings", [("none", 1), ("dynamic", 2)])
def test_a_file_of_weights_tells_the_network(tmp_path, routing, routings):
    models = small(routing=routing, routings=routings)
    path = str(tmp_path / "weights.h5")
    about = {"architecture": architecture(models[0])}
    capsulenet.save_weights(models[0], path, about)
    others, _ = capsulenet.load_model(path)
    x = np.random.default_rng(0).random((2, 20, 20, 1)).astype("float32")
    assert architecture(others[0]) == architecture(models[0])
    for a, b in zip(capsulenet.predict(models[1], x), capsulenet.predict(others[1], x)):
        np.testing.assert_array_equal(a, b)


def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 17 x 17"):
        small((16, 20, 1))
