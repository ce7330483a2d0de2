import numpy as np
import pytest

from capsnet import strokes


def test_strokes_are_measured_in_pixels():
    def measured(image):
        values = strokes.measure_strokes(np.asarray(image, "float32")[..., None])
        return dict(zip(strokes.STROKES, values, strict=True))

    image = np.zeros((28, 28))
    image[4:24, 10:13] = 1  # 20 rows of 3 pixels
    bar = measured(image)
    assert bar["stroke width"] == pytest.approx(2 * 60 / (2 * (20 + 3)), rel=0.03)
    assert measured(1 - image) == pytest.approx(bar)  # dark on light
    assert measured(np.maximum(image, 0.03)) == pytest.approx(bar)  # a haze
    assert bar["height"] == pytest.approx(np.std(np.arange(20)))
    assert bar["width"] == pytest.approx(np.std(np.arange(3)))
    assert bar["slant"] == pytest.approx(0, abs=1e-9)
    assert (bar["down"], bar["right"]) == (13.5, 11)

    # Half as bright and elsewhere: nothing but the place is another.
    moved = measured(0.5 * np.roll(image, (2, -3), (0, 1)))
    expected = bar | {"down": 15.5, "right": 8}
    assert moved == pytest.approx(expected, abs=1e-6)

    # One pixel to the right every second row up.
    slanted = [np.roll(row, -(i // 2)) for i, row in enumerate(image)]
    mirrored = measured(np.roll(slanted, 7, axis=1)[:, ::-1])
    slanted = measured(np.roll(slanted, 7, axis=1))
    right = 27 - slanted["right"]
    expected = slanted | {"slant": -slanted["slant"], "right": right}
    assert mirrored == pytest.approx(expected)
    assert slanted["slant"] == pytest.approx(0.5, rel=0.02)
    assert slanted["width"] == pytest.approx(bar["width"], rel=0.1)

    assert not any(measured(np.zeros((9, 9)))[name] for name in strokes.STROKES)


def test_strokes_of_many_images_are_those_of_each():
    images = np.random.default_rng(0).random((2, 3, 9, 7, 2))
    images[0, 1] = 1 - images[0, 1] ** 9  # on a light ground
    images[1, 2] = 0
    many = strokes.measure_strokes(images)
    assert many.shape == (2, 3, 6)
    for index in np.ndindex(2, 3):
        one = strokes.measure_strokes(images[index])
        np.testing.assert_allclose(many[index], one, atol=1e-12)


@pytest.mark.parametrize("sides", [(0, 0), (-1, -1), (0, -1), (-1, 0)])
def test_strokes_are_light_unless_most_of_the_border_is(sides):
    image = np.zeros((9, 9, 1))
    image[sides[0]] = image[:, sides[1]] = 0.6  # 20 of 36 pixels of the border
    down, right = strokes.measure_strokes(image)[4:]
    rows, columns = np.indices((9, 9))
    ink = 1 - image[..., 0]
    assert down == pytest.approx((ink * rows).sum() / ink.sum())
    assert right == pytest.approx((ink * columns).sum() / ink.sum())


def test_less_than_a_tenth_of_the_ink_is_ground_and_the_edge_of_an_image_an_outline():
    for faint, counts in ((0.09, False), (0.12, True)):
        image = np.zeros((20, 10, 1))
        image[:10, 4], image[15, 4] = 1, faint
        assert (strokes.measure_strokes(image)[4] > 4.5) == counts
    bar = np.zeros((20, 10, 1))
    bar[5:15, 3:6] = 1
    expected = strokes.measure_strokes(bar)[0]
    for rows, columns in ((5, 0), (-5, 0), (0, 3), (0, -3), (0, 4)):
        moved = np.roll(bar, (rows, columns), (0, 1))
        assert strokes.measure_strokes(moved)[0] == pytest.approx(expected)
