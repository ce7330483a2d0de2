import numpy as np
import pytest
from PIL import Image

from capsnet import data as datasets
from capsnet.data import paper


def scene(kind):
    """A drawn "4" on a sheet, and where its ink is; the seed is always the same."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((240, 300))
    ink = np.zeros((240, 300), bool)
    ink[60:120, 100:108] = ink[112:120, 100:150] = ink[60:170, 135:143] = True
    sheet = np.full((240, 300), 200.0)
    if kind == "gradient":
        sheet = 80 + 0.5 * columns
    elif kind == "shadow":
        sheet[2 * rows + columns > 320] = 90
    elif kind == "squared":
        sheet[(rows + columns // 40) % 24 < 2] = 150
        sheet[(columns - rows // 40) % 24 < 2] = 150
    elif kind == "dark table":
        sheet[5 * columns + rows > 1200] = 50
    elif kind == "board":
        sheet = 30 + 0.1 * columns
    seen = sheet * np.where(ink, 4 if kind == "board" else 0.3, 1)
    seen = np.clip(seen + rng.normal(size=seen.shape) * 5, 0, 255)
    return Image.fromarray(np.uint8(seen)), ink


def fit(picture, **options):
    return datasets.fit_and_tell(picture, (28, 28, 1), True, **options)


@pytest.mark.parametrize(
    "kind", ["gradient", "shadow", "squared", "dark table", "board"]
)
def test_what_is_drawn_on_a_photograph_is_what_is_drawn_without_a_camera(kind):
    photograph, ink = scene(kind)
    plain, _ = fit(Image.fromarray(np.uint8(255 * ink)))
    fitted, done = fit(photograph)
    assert np.corrcoef(fitted.ravel(), plain.ravel())[0, 1] > 0.9
    assert done == ("" if kind == "board" else "inverted, ") + "ground removed"


def test_an_empty_photograph_is_black():
    rng = np.random.default_rng(0)
    light = 120 + np.linspace(0, 80, 200)[:, None] + np.zeros(150)
    for noise in (0, 1, 2, 4, 8):
        for page in (light, np.full((200, 150), 200)):
            seen = np.uint8(np.clip(page + noise * rng.normal(size=page.shape), 0, 255))
            fitted, done = fit(Image.fromarray(seen))
            assert not fitted.any() and done == "nothing drawn"


def test_a_faint_pencil_is_read_and_a_speck_is_not():
    rng = np.random.default_rng(0)
    light = 150 + np.linspace(0, 60, 200)[:, None] + np.zeros(200)
    noise = rng.normal(size=light.shape) * 2
    drawn = light.copy()
    drawn[50:150, 90:94] *= 0.75
    line, _ = fit(Image.fromarray(np.uint8(drawn + noise)))
    assert np.count_nonzero(line.max(1) > 0.5) >= 18
    assert np.count_nonzero(line.max(0) > 0.5) <= 2
    light[80:83, 80:83] = 20
    assert fit(Image.fromarray(np.uint8(light + noise)))[1] == "nothing drawn"


def test_a_long_stroke_is_no_rule():
    photograph = np.random.default_rng(0).normal(size=(200, 150)) * 4 + 190
    photograph[10:190, 70:82] *= 0.3
    fitted, _ = fit(Image.fromarray(np.uint8(photograph)))
    assert np.count_nonzero(fitted[..., 0].max(1) > 0.5) >= 18


def test_a_drawing_that_the_border_cuts_is_kept_and_two_beside_each_other_too():
    photograph = np.random.default_rng(0).normal(size=(200, 200)) * 4 + 190
    photograph[:120, 60:70] *= 0.3
    one, _ = fit(Image.fromarray(np.uint8(photograph)))
    assert np.count_nonzero(one.max((0, 2)) > 0.5) <= 3
    photograph[40:120, 100:110] *= 0.3
    photograph[:40, 60:70] = photograph[150:190, 60:70]
    two, _ = fit(Image.fromarray(np.uint8(photograph)))
    columns = np.flatnonzero(two.max((0, 2)) > 0.5)
    assert np.ptp(columns) > 8


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 5), (1, 400), (900, 2), (28, 29)])
def test_pictures_of_any_size_are_fitted(size):
    noise = np.random.default_rng(0).integers(0, 256, size).astype("uint8")
    fitted, _ = fit(Image.fromarray(noise))
    assert fitted.shape == (28, 28, 1) and np.isfinite(fitted).all()


def test_what_hangs_together_is_one_part_whatever_way_it_winds():
    mask = np.zeros((9, 11), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True  # a snake
    assert len(np.unique(paper._roots(mask))) == 1
    mask[4, 5] = False
    assert len(np.unique(paper._roots(mask))) == 2
    assert len(np.unique(paper._roots(np.eye(5, dtype=bool)))) == 1
    assert len(np.unique(paper._roots(np.eye(5, dtype=bool)[::-1]))) == 1


def test_what_was_done_is_said():
    x = np.zeros((28, 28), "uint8")
    x[8:20, 13:16] = 255
    large = Image.fromarray(x).resize((90, 90), Image.Resampling.NEAREST)
    for picture, done in (
        *((Image.fromarray(x), "as it is"), (Image.fromarray(255 - x), "inverted")),
        *((large, "centred"), (large.point(lambda v: 255 - v), "inverted, centred")),
    ):
        assert fit(picture)[1] == done
    assert datasets.fit_and_tell(large, (28, 28, 1))[1] == "scaled"
    assert fit(scene("board")[0], invert=False)[1] == "ground removed"
