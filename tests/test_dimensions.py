import os
import types

import numpy as np
import pytest
from helpers import options
from PIL import Image

import capsulenet
from capsnet import dimensions, routes
from capsnet import pictures as drawing
from capsnet.data import bent, pad, paired
from capsnet.options import complete
from capsnet.strokes import measure_strokes
from capsulenet import manipulate_latent


def test_manipulation_changes_one_dimension_a_row(trained, tmp_path, figures):
    x, y = trained.data[1]
    manipulate_latent(trained.trio[2], (x, y), options(tmp_path, seed=0))
    grid = np.array(figures[0].axes[1].images[0].get_array())
    assert grid.shape == (6 * 12, 11 * 12)
    tiles = 255 * grid.reshape(6, 12, 11, 12).transpose(0, 2, 1, 3)
    assert "class 1" in figures[0].get_suptitle()
    (chosen,) = np.random.default_rng(0).permutation(np.flatnonzero(y[:, 1]))[:1]
    noise = np.zeros((6, 11, 3, 6))
    for d in range(6):
        for column in range(11):
            noise[d, column, 1, d] = -0.25 + 0.05 * column
    inputs = [np.repeat(a[chosen : chosen + 1], 66, axis=0) for a in (x, y)]
    expected = trained.trio[2].predict([*inputs, noise.reshape(66, 3, 6)], verbose=0)
    expected = 255 * expected.reshape(6, 11, 12, 12)
    np.testing.assert_allclose(tiles, expected, atol=1)
    assert (abs(expected[:, 10] - expected[:, 0]).max((1, 2)) > 3).all()


def test_all_digits_are_manipulated_and_their_dimensions_named(
    trained, tmp_path, monkeypatch
):
    drawn = {}

    def record(pairs, effects, names, path):
        drawn.update(pairs=np.array(pairs), effects=np.array(effects), names=names)

    monkeypatch.setattr(drawing, "plot_dimensions", record)
    x, y = trained.data[1]
    args = options(tmp_path, seed=0, digit="all", class_names=["a", "b", "c"])
    some = np.argmax(y, 1) != 1  # a class that no image shows is left out
    manipulate_latent(trained.trio[2], (x[some], y[some]), args)
    pictures = ["manipulate-0.png", "manipulate-2.png"]
    assert sorted(os.listdir(tmp_path)) == pictures
    assert drawn["names"] == ["a", "c"]
    assert drawn["pairs"].shape == (2, 6, 2, 12, 12, 1)
    assert drawn["effects"].shape == (2, 6, 6)
    for pair, picture in zip(drawn["pairs"], pictures):
        assert np.isfinite(pair).all()
        assert (pair[:, 0] != pair[:, 1]).any(axis=(1, 2, 3)).all()
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) >= 500
    assert np.isfinite(drawn["effects"]).all() and (drawn["effects"] != 0).any()


def test_a_dimension_that_moves_the_strokes_down_is_named_so(tmp_path, monkeypatch):
    drawn = {}

    def record(pairs, effects, names, path):
        drawn.update(effects=np.array(effects))

    def reconstruct(inputs):
        images, labels, noise = inputs
        pixels = np.round(4 * (noise * labels[:, :, None]).sum(1)).astype(int)
        moves = zip(images, pixels[:, 0], pixels[:, 1])
        return np.stack([np.roll(x, (i, -2 * j), (0, 1)) for x, i, j in moves])

    x = np.zeros((60, 20, 20, 1), "float32")
    rows = np.random.default_rng(0).integers(6, 11, 60)
    for image, row in zip(x, rows):
        image[row : row + 4, 8:11] = 1
    x[::2] = np.roll(x[::2], 1, axis=2)
    y = np.eye(3, dtype="float32")[np.arange(60) % 3]
    model = types.SimpleNamespace(
        inputs=[x[:1], y[:1], np.zeros((1, 3, 2))],
        layers=[],
        predict_on_batch=reconstruct,
    )
    monkeypatch.setattr(drawing, "plot_dimensions", record)
    args = options(tmp_path, digit="all", seed=0, shift_fraction=0.0)
    manipulate_latent(model, (x, y), args)
    expected = np.zeros((3, 2, 6))
    expected[:, 0, 4] = 2 / np.std(rows)  # one pixel up, one down
    expected[:, 1, 5] = -4 / 0.5
    np.testing.assert_allclose(drawn["effects"], expected, atol=1e-4)


@pytest.mark.parametrize("digit", [3, -1])
def test_a_digit_that_is_no_class_is_refused(trained, tmp_path, digit):
    args = options(tmp_path, digit=digit)
    with pytest.raises(ValueError, match=f"--digit {digit}: the classes are 0 to 2"):
        manipulate_latent(trained.trio[2], trained.data[1], args)


def test_images_are_those_of_the_model(trained, tmp_path):
    (x, y), model = trained.data[1], trained.trio[2]
    for data, why in (
        ((np.uint8(255 * x), y), "images of type uint8: must be floats from 0 to 1"),
        ((255 * x, y), "images from 0 to 255: must be from 0 to 1"),
        ((x[:, :11], y), r"images of shape \(11, 12, 1\): the model takes"),
        ((x, y[:, :2]), "for 3 classes"),
    ):
        with pytest.raises(ValueError, match=why):
            manipulate_latent(model, data, options(tmp_path))
        if data[0] is not x:
            with pytest.raises(ValueError, match=why):
                routes.show(trained.trio[1], data, complete(options(tmp_path)))
    swapped = x.astype(x.dtype.newbyteorder()), y.tolist()
    manipulate_latent(model, swapped, options(tmp_path, seed=0))
    routes.show(trained.trio[1], swapped, complete(options(tmp_path, seed=0)))
    with pytest.raises(ValueError, match="no decoder"):
        manipulate_latent(None, (x, y), options(tmp_path))


@pytest.mark.parametrize("kind", ["pairs", "bent"])
def test_strokes_are_compared_with_digits_as_the_test_shows_them(
    tmp_path, monkeypatch, kind
):
    _, (x, y) = capsulenet.load_mnist()
    shown = y[:40].argmax(1)
    if kind == "bent":
        data = bent(pad(x[:40], 6), y[:40])
        digits, first = data.x, shown
    else:
        data = paired(pad(x[:9]), y[:9], count=9)  # some digits are second alone
        digits, first = data.digits[:, 0], data.labels[:, 0].argmax(1)
    seen, names = [], []
    monkeypatch.setattr(
        dimensions,
        "effects_on_strokes",
        lambda drawn, spread: seen.append(spread) or np.zeros((1, 6)),
    )
    monkeypatch.setattr(
        drawing, "plot_dimensions", lambda *given: names.extend(given[2])
    )
    monkeypatch.setattr(
        dimensions,
        "manipulated",
        lambda model, x, digit, amounts: np.zeros((len(x), 1, 2, *x.shape[1:])),
    )
    args = complete(options(tmp_path, seed=0))
    dimensions.show(None, data, args, np.flatnonzero(data.y.any(0)))
    expected = np.std(measure_strokes(digits), axis=0)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5)
    assert names == [str(digit) for digit in np.unique(first)]
