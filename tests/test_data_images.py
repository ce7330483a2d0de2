import io
import struct
import zlib

import numpy as np
import pytest
from helpers import pixels
from PIL import Image, ImageOps

from capsnet import data as datasets
from capsnet.data import images


def read(picture, path, **options):
    picture.save(path, **options)
    return datasets.read_picture(str(path))


def test_pictures_of_every_kind_are_read_as_they_are_meant(tmp_path):
    gray, colour = pixels(4, 6), pixels(4, 6, 3)
    for ending in ("png", "bmp", "gif"):
        same = read(Image.fromarray(gray), tmp_path / f"a.{ending}")
        assert same.mode == ("RGB" if ending == "gif" else "L")  # GIF has a palette
        np.testing.assert_array_equal(np.asarray(same.convert("L")), gray)
    jpeg = read(Image.fromarray(np.full((8, 8, 3), 90, "uint8")), tmp_path / "a.jpg")
    assert jpeg.mode == "RGB" and abs(np.asarray(jpeg).astype(int) - 90).max() <= 2
    values = gray.astype("uint16") * 257
    values[0, 0] = 33025  # 128.502 of 255
    deep = np.array(read(Image.fromarray(values), tmp_path / "deep.png"))
    assert deep[0, 0] == 129
    deep[0, 0] = gray[0, 0]
    np.testing.assert_array_equal(deep, gray)
    values[1] = 500  # is black, but stands for transparent
    white = read(Image.fromarray(values), tmp_path / "hole.png", transparency=500)
    assert (np.asarray(white)[1] == 255).all() and np.asarray(white)[0, 0] == 129
    two = read(Image.fromarray(gray > 99), tmp_path / "two.png")
    assert two.mode == "L"
    np.testing.assert_array_equal(np.asarray(two), 255 * (gray > 99))
    palette = Image.fromarray(colour // 64 * 64).quantize(200)
    back = read(palette, tmp_path / "palette.png")
    np.testing.assert_array_equal(np.asarray(back), np.asarray(palette.convert("RGB")))
    alpha = np.dstack([np.zeros((4, 6, 3), "uint8"), np.full((4, 6), 0, "uint8")])
    alpha[0, :, 3] = 255
    seen = np.asarray(read(Image.fromarray(alpha), tmp_path / "alpha.png").convert("L"))
    assert (seen[0] == 0).all() and (seen[1:] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    assert read(Image.fromarray(gray), tmp_path / "r.jpg", exif=exif).size == (4, 6)
    frames = [Image.fromarray(np.full((4, 6), v, "uint8")) for v in (10, 200)]
    first = read(frames[0], tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(first.convert("L"))[0, 0] == 10


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    header = io.BytesIO()
    Image.new("L", (1, 1)).save(header, "PNG")
    content = bytearray(header.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match="bomb.png: not a readable picture"):
        datasets.read_picture(str(tmp_path / "bomb.png"))


def test_a_picture_of_the_model_s_size_is_left_as_it_is():
    (x, _), _ = datasets.load_mnist()
    digit = Image.fromarray((x[0, :, :, 0] * 255).astype("uint8"))
    same = datasets.fit_picture(digit, (28, 28, 1), like_mnist=True)
    np.testing.assert_allclose(same, x[0], atol=1 / 255)
    inverted = ImageOps.invert(digit)
    same = datasets.fit_picture(inverted, (28, 28, 1), like_mnist=True)
    np.testing.assert_allclose(same, x[0], atol=1 / 255)
    kept = datasets.fit_picture(inverted, (28, 28, 1), like_mnist=True, invert=False)
    np.testing.assert_allclose(kept, 1 - x[0], atol=1 / 255)


def test_a_picture_is_scaled_as_a_whole_unless_the_model_is_of_mnist():
    colour = Image.fromarray(pixels(4, 6, 3))
    gray = Image.fromarray(np.full((28, 28), 240, "uint8"))  # no drawing: not inverted
    for picture, shape, kind in (
        *((colour, (4, 6, 3), "RGB"), (colour, (9, 7, 3), "RGB")),
        *((colour, (4, 6, 1), "L"), (gray, (28, 28, 1), "L"), (gray, (4, 6, 3), "RGB")),
    ):
        expected = picture.convert(kind)
        if shape[:2] != picture.size[::-1]:
            expected = expected.resize((shape[1], shape[0]))
        expected = np.asarray(expected, "float64").reshape(shape) / 255
        for options in [{}] + [{"like_mnist": True}] * (shape[2] == 3):
            fitted = datasets.fit_picture(picture, shape, **options)
            assert fitted.dtype == "float32"
            np.testing.assert_allclose(fitted, expected, rtol=1e-6)


@pytest.mark.parametrize("sides", [(0, 0), (-1, -1), (0, -1), (-1, 0)])
def test_a_drawing_is_inverted_where_most_of_its_border_is_light(sides):
    x = np.zeros((28, 28), "uint8")
    x[sides[0]] = x[:, sides[1]] = 153  # light are 58 of the 112 pixels of the border
    for light in (x, 255 - x):  # of the second they are dark
        fitted = datasets.fit_picture(Image.fromarray(light), (28, 28, 1), True)
        np.testing.assert_allclose(fitted[..., 0], (255 - x) / 255, atol=1e-6)


def drawn(x, ground=0):
    """What becomes of a drawing on a larger sheet; the corners of its ink, too."""
    sheet = np.full((100, 120), ground, "uint8")
    sheet[30 : 30 + x.shape[0], 50 : 50 + x.shape[1]] = x
    fitted = datasets.fit_picture(Image.fromarray(sheet), (28, 28, 1), True)[..., 0]
    assert fitted.dtype == "float32"
    rows, columns = (np.flatnonzero(fitted.any(axis)) for axis in (1, 0))
    return fitted, (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


@pytest.mark.parametrize("ink, ground", [(255, 0), (100, 0), (230, 60), (0, 255)])
def test_a_block_fills_20_of_28_pixels_about_the_middle(ink, ground):
    for turned in (False, True):
        x = np.full((40, 20), ink, "uint8")
        fitted, _ = drawn(x.T if turned else x, ground)
        expected = np.zeros((28, 28))
        expected[4:24, 10:20] = 1  # its centre, at 9.5 and 4.5, goes to 14 at most
        np.testing.assert_allclose(fitted, expected.T if turned else expected)


def test_a_thin_line_stays_one_pixel_wide_and_an_empty_sheet_empty():
    _, corners = drawn(np.full((60, 1), 255, "uint8"))
    assert corners[:2] == (4, 24) and corners[3] - corners[2] == 1
    for shade in (0, 128, 255):
        sheet = Image.fromarray(np.full((50, 40), shade, "uint8"))
        empty = datasets.fit_picture(sheet, (28, 28, 1), True)
        assert empty.shape == (28, 28, 1) and empty.dtype == "float32"
        assert not empty.any()


def test_ink_below_a_twentieth_of_the_strongest_is_ground():
    for faint, counts in ((8, True), (5, False)):  # of 128
        x = np.full((20, 60), 0, "uint8")
        x[:, :20] = 128
        x[10, 59] = faint
        fitted, _ = drawn(x)
        width = np.count_nonzero(fitted.max(0) > 0.5)
        assert width == (7 if counts else 20)


def test_a_drawing_with_its_mass_at_one_end_stays_inside():
    x = np.zeros((40, 40), "uint8")
    x[:4], x[:, 20] = 255, 255  # a bar with a stem
    for turned, rows, columns in (
        *((x, (8, 28), None), (x[::-1], (0, 20), None)),
        *((x.T, None, (8, 28)), (x.T[:, ::-1], None, (0, 20))),
    ):
        _, corners = drawn(turned)
        assert rows in (None, corners[:2]) and columns in (None, corners[2:])


def test_what_scaling_overshoots_does_not_dim_a_drawing():
    x = np.full((40, 40), 255, "uint8")
    x[:, 15:25] = 0
    assert np.count_nonzero(drawn(x)[0] == 1) > 100


def test_a_large_drawing_becomes_what_mnist_has():
    (x, _), _ = datasets.load_mnist()
    alike = []
    for index in range(20):
        digit = Image.fromarray((x[index, :, :, 0] * 255).astype("uint8"))
        paper = Image.new("L", (300, 200), 255)
        large = ImageOps.invert(digit.resize((140, 140)))
        paper.paste(large, (130, 20))  # dark, off the centre
        fitted = datasets.fit_picture(paper, (28, 28, 1), like_mnist=True)
        assert fitted.shape == (28, 28, 1)
        alike.append(np.corrcoef(fitted.ravel(), x[index].ravel())[0, 1])
        rows = np.flatnonzero(fitted[..., 0].max(1) > 0.3)
        columns = np.flatnonzero(fitted[..., 0].max(0) > 0.3)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (18, 19, 20)
    assert np.mean(alike) > 0.93


def test_what_is_no_picture_by_its_content_is_not_opened(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(ValueError, match="cannot identify"):
        datasets.read_picture(path)


def png(width, height, rows):
    """A PNG of grey pixels that claims a size."""

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "size, message",
    [
        ((60_000, 60_000), "could be decompression bomb"),
        ((2**31 - 1, 2), "could be decompression bomb"),
        ((10_000, 10_000), r"\(10000 x 10000 pixels, more than 50,000,000\)"),
    ],
)
def test_pictures_that_would_fill_the_memory_are_refused(tmp_path, size, message):
    path = tmp_path / "a.png"
    path.write_bytes(png(*size, bytes(1000)))
    with pytest.raises(ValueError, match=message):
        datasets.read_picture(path)


def test_the_largest_picture_is_still_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(6, 5, bytes(35)))
    monkeypatch.setattr(images, "LARGEST_PICTURE", 30)
    assert datasets.read_picture(path).size == (6, 5)
    monkeypatch.setattr(images, "LARGEST_PICTURE", 29)
    with pytest.raises(ValueError, match=r"\(6 x 5 pixels, more than 29\)"):
        datasets.read_picture(path)


def test_images_are_like_mnist_where_they_are_prepared_as_its_digits_are():
    (x, _), (x_test, _) = datasets.load_mnist()
    assert datasets.are_like_mnist(x) and datasets.are_like_mnist(x_test)
    assert datasets.are_like_mnist(x.repeat(2, 1)[:90].repeat(2, 2))  # 40 of 56 pixels
    wide = [np.concatenate([x[:90], x[:90]], axis) for axis in (2, 3)]
    moved, placed = np.roll(x[:90], 2, 1), datasets.pad(x[:90], 6)
    for other in (*wide, moved, placed, 1 - x[:90], x[:90, 4:24, 4:24], 0 * x[:90]):
        assert not datasets.are_like_mnist(other)
    mixed = np.concatenate([x[:80], moved[:20]])
    assert not datasets.are_like_mnist(mixed) and datasets.are_like_mnist(mixed[:85])
