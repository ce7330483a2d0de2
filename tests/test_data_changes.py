import keras
import numpy as np
import pytest
from helpers import images
from PIL import Image

from capsnet import data as datasets
from capsnet.data import shift_images


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_shifts_move_whole_pixels_and_fill_with_zeros(xp):
    x = images(4, 4, 5, 2) + 1
    shifts = np.array([[0, 0], [1, -2], [-3, 5], [-1, 2]], "int32")
    moved = keras.ops.convert_to_numpy(shift_images(x, shifts, xp))
    np.testing.assert_array_equal(moved[0], x[0])
    np.testing.assert_array_equal(moved[1, 1:, :3], x[1, :3, 2:])
    assert not moved[1, 0].any() and not moved[1, :, 3:].any()
    assert not moved[2].any()
    np.testing.assert_array_equal(moved[3, :3, 2:], x[3, 1:, :3])
    assert not moved[3, 3].any() and not moved[3, :, :2].any()


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_the_nearest_pixel_of_the_edge_may_move_in(xp):
    x = images(3, 4, 5, 2) + 1
    shifts = np.array([[1, -2], [0, 0], [-3, 5]], "int32")
    moved = keras.ops.convert_to_numpy(shift_images(x, shifts, xp, nearest=True))
    for image, (down, right), found in zip(x, shifts, moved):
        framed = np.pad(image, [(5, 5), (5, 5), (0, 0)], "edge")
        expected = framed[5 - down :, 5 - right :][:4, :5]
        np.testing.assert_array_equal(found, expected)
    interpolated = transformed(x, (0.5, 0), xp=xp, nearest=True)
    np.testing.assert_allclose(interpolated[:, 0], x[:, 0], rtol=1e-6)
    expected = (x[:, :-1] + x[:, 1:]) / 2
    np.testing.assert_allclose(interpolated[:, 1:], expected, rtol=1e-6)


def transformed(x, shift=(0, 0), angle=0, scale=1, shear=0, xp=np, nearest=False):
    n = len(x)
    shifts, others = np.tile(shift, (n, 1)), np.tile((angle, scale, shear), (n, 1))
    transforms = datasets.inverse_transforms(shifts, *others.T)
    moved = datasets.transform_images(x, transforms, xp, nearest)
    return keras.ops.convert_to_numpy(moved)


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_parts_of_a_pixel_are_interpolated(xp):
    x = images(2, 4, 5, 2) + 1
    whole = transformed(x, (1, -2), xp=xp)
    np.testing.assert_allclose(whole, shift_images(x, np.array([[1, -2]] * 2)))
    framed = np.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)])
    across = 0.5 * framed[:, :, 1:] + 0.5 * framed[:, :, :-1]
    expected = 0.75 * across[:, 1:] + 0.25 * across[:, :-1]
    moved = transformed(x, (0.25, 0.5), xp=xp)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_images_turn_anticlockwise_about_their_middle(xp):
    x = images(2, 5, 5, 2)
    for turns in (1, 2, -1):
        expected = np.rot90(x, turns, axes=(1, 2))
        np.testing.assert_allclose(
            transformed(x, angle=90 * turns, xp=xp), expected, atol=1e-5
        )


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_rows_below_the_middle_are_sheared_to_the_right(xp):
    x = images(2, 5, 7, 2)
    sheared = transformed(x, shear=1, xp=xp)
    for row in range(5):
        expected = shift_images(x[:, row : row + 1], np.array([[0, row - 2]] * 2))
        np.testing.assert_allclose(sheared[:, row], expected[:, 0], atol=1e-5)


def test_images_are_sheared_before_they_turn_and_move():
    x = images(2, 9, 9)
    x[:, :3], x[:, -3:], x[..., :3, :], x[..., -3:, :] = 0, 0, 0, 0
    expected = np.rot90(transformed(x, shear=1), axes=(1, 2))
    expected = shift_images(expected, np.array([[1, 2]] * 2))
    moved = transformed(x, (1, 2), angle=90, shear=1)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize("angle, scale", [(0, 0.7), (0, 1.3), (10, 1), (-15, 0.9)])
def test_turned_and_scaled_images_are_those_of_pillow(angle, scale):
    smooth = np.random.random((1, 4, 4, 1)).astype("float32")
    x = np.array(keras.ops.image.resize(smooth, (21, 20), "bicubic"))
    middle = np.array([10, 10.5])  # of Pillow, which counts from a pixel's corner
    inverse = datasets.inverse_transforms([[2, -1]], [angle], [scale])[0].astype(float)
    (d, e, f), (a, b, c) = inverse[:, [1, 0, 2]]
    c += middle[0] - a * middle[0] - b * middle[1]
    f += middle[1] - d * middle[0] - e * middle[1]
    expected = Image.fromarray(x[0, :, :, 0]).transform(
        (20, 21), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    moved = transformed(x, (2, -1), angle, scale)[0, :, :, 0]
    inner = np.s_[7:-7, 7:-7]  # they treat the edge of the image differently
    assert np.ptp(moved[inner]) > 0.1
    np.testing.assert_allclose(moved[inner], np.array(expected)[inner], atol=1e-5)
