import os
import types

import numpy as np
import pytest
from helpers import options
from PIL import Image

from capsnet import pictures as drawing
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
