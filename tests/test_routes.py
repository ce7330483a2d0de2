import os

import keras
import numpy as np
import pytest
from helpers import SMALL, options, small_capsnet
from keras import ops
from PIL import Image

from capsnet import routes
from capsnet.networks import EfficientCapsNet, PhotoCapsNet
from capsnet.options import complete
from capsulelayers import CapsuleLayer, PrimaryCap
from capsulenet import CapsNet


@pytest.fixture(scope="module")
def routed():
    model = small_capsnet()[1]
    x = np.random.default_rng(0).random((3, *model.input_shape[1:])).astype("float32")
    return model, x, *routes.routed(model, x)


def test_what_is_shown_is_what_the_network_did(routed):
    model, x, capsules, steps = routed
    coefficients, outputs = steps[-1]
    lengths = np.linalg.norm(outputs, axis=-1)
    expected = model.predict_on_batch(x)[0]
    np.testing.assert_allclose(lengths, expected, atol=1e-3)
    assert coefficients.shape == (3, lengths.shape[1], capsules.shape[1])
    np.testing.assert_allclose(coefficients.sum(1), 1, atol=1e-5)
    assert np.ptp(steps[0][0]) == 0 < np.ptp(coefficients)


def drawn(monkeypatch):
    """What `imshow` is given, by the row of its axes."""
    seen = []
    used = routes.Figure.savefig

    def look(figure, *args, **kwargs):
        seen.extend(axes for axes in figure.axes if axes.images)
        return used(figure, *args, **kwargs)

    monkeypatch.setattr(routes.Figure, "savefig", look)
    return seen


def test_the_coefficients_lie_where_their_capsules_look(routed, tmp_path, monkeypatch):
    model, x, _, _ = routed
    (rows, columns), extent = routes.places_of(model)
    seen = drawn(monkeypatch)
    # Of two places one sends all to the second class, the other all to the first.
    c = np.zeros((2, rows * columns * 2))
    at = np.arange(rows * columns * 2) // 2 == columns  # the first of the second row
    c[1, at], c[0, ~at] = 1, 1
    steps = [(np.full_like(c, 0.5), np.eye(2)), (c, np.diag([0.1, 0.9]))]
    path = str(tmp_path / "a.png")
    where = (["left", "right"], (rows, columns), extent)
    assert routes.plot_routing(x[0], np.ones((c.shape[1], 4)), steps, path, *where) == 1
    first = seen[0].images[1]
    assert (first.get_array() == 0.5).all()
    second = seen[2 if seen[1].get_title() == "" else 1].images[1].get_array()
    assert second[1, 0] == 1 and second.sum() == 1
    # They see 9 x 9 pixels of 12 x 12, whose middles are 4 and 6.
    assert (rows, columns) == (2, 2) and extent == (3, 7, 7, 3)
    with Image.open(path) as picture:
        assert min(picture.size) > 400


def test_what_a_layer_routed_is_drawn_as_it_is(tmp_path):
    layer = CapsuleLayer(3, 4)
    steps = layer.route(ops.ones((1, 8, 4)))
    of_one = [(coefficients[0], outputs[0]) for coefficients, outputs in steps]
    path = str(tmp_path / "a.png")
    routes.plot_routing(ops.zeros((9, 9, 1)), ops.ones((8, 4)), of_one, path)
    assert os.path.getsize(path) > 1000


def test_coefficients_that_rounding_alone_tells_apart_are_drawn_alike():
    by_place = np.full((4, 4), 1 / 3) + np.arange(16).reshape(4, 4) * 1e-8
    drawn = routes.laid_over(np.full((8, 8, 1), 0.5), by_place, routes.span(by_place))
    inside = drawn[2:-2, 2:-2].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1
    assert routes.span(np.array([0.1, 0.4])) == (0.1, 0.4)


def test_dead_capsules_and_any_name_of_a_class_are_drawn(tmp_path):
    c = np.full((2, 8), 0.5)
    steps = [(c, np.eye(2))]
    path, names = str(tmp_path / "a.png"), np.array(["$x^$", "_"])
    image, capsules = np.zeros((9, 9, 1)), np.zeros((8, 4))
    assert routes.plot_routing(image, capsules, steps, path, names, (2, 2)) == 0


def test_places_that_are_not_known_are_not_guessed():
    pixels = keras.Input((12, 12, 1))
    capsules = CapsuleLayer(3, 4, name="digitcaps")(
        keras.layers.Reshape((12, 12))(pixels)
    )
    assert routes.places_of(keras.Model(pixels, capsules)) == (None, None)
    wide = keras.layers.Conv2D(8, 5, strides=2, activation="relu", name="conv1")(pixels)
    capsules = CapsuleLayer(3, 4, name="digitcaps")(
        PrimaryCap(wide, 4, 2, 3, 1, "same")
    )
    assert routes.places_of(keras.Model(pixels, capsules)) == ((4, 4), None)


@pytest.mark.parametrize(
    "network, places", [(PhotoCapsNet, (6, 8)), (EfficientCapsNet, (1, 1))]
)
def test_the_places_of_the_other_networks_are_known(network, places):
    found, extent = routes.places_of(network((24, 32, 1), 2)[1])
    assert found == places and extent is None


def test_four_images_of_as_many_classes_are_shown(tmp_path, monkeypatch):
    model = small_capsnet_of(6)
    y = np.eye(6, dtype="float32")[np.repeat(np.arange(6), [9, 1, 1, 5, 1, 1])]
    x = np.random.default_rng(0).random((18, 12, 12, 1), "float32")
    shown = []
    monkeypatch.setattr(
        routes, "plot_routing", lambda image, *rest: shown.append(image) or 0
    )
    routes.show(model, (x, y), complete(options(tmp_path, seed=0)))
    indices = [int(np.flatnonzero((x == image).all((1, 2, 3)))[0]) for image in shown]
    assert len({int(y[index].argmax()) for index in indices}) == len(indices) == 4


def small_capsnet_of(n_class):
    return CapsNet((12, 12, 1), n_class, **SMALL)[1]
