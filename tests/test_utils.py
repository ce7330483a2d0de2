import numpy as np
import pytest
from PIL import Image

import utils
from utils import combine_images, plot_log, printable, save_image


@pytest.mark.parametrize(
    "text, shown",
    [
        ("ältere Bilder/猫 1.png", "ältere Bilder/猫 1.png"),
        (r"C:\new\x1b.png", r"C:\new\x1b.png"),
        ("\x1b[2J\r\n\t", r"\x1b[2J\r\n\t"),
        ("a\u202egnp.exe\u2028b\x9b", r"a\u202egnp.exe\u2028b\x9b"),
        ("\udcff.png", r"\udcff.png"),
        ("\U000e0041", r"\U000e0041"),
        (ValueError("a\nb"), r"a\nb"),
    ],
)
def test_what_can_not_be_printed_is_escaped_and_nothing_else(text, shown):
    assert printable(text) == shown == printable(shown)
    assert shown.isprintable()


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("combine_out", {}),
        ("combine_h2_out", {"height": 2}),
        ("combine_w3_out", {"width": 3}),
    ],
)
def test_combine_images_gives_the_recorded_grids(recorded, name, sizes):
    grid = combine_images(recorded["combine_in"], **sizes)
    np.testing.assert_array_equal(grid, recorded[name])
    assert grid.dtype == recorded[name].dtype


def test_colour_images_keep_their_channels():
    images = np.random.default_rng(0).random((5, 2, 3, 3))
    grid = combine_images(images, width=2)
    assert grid.shape == (6, 6, 3)
    np.testing.assert_array_equal(grid[2:4, 3:6], images[3])
    assert not grid[4:, 3:].any()


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="7 images do not fit into a 2 x 3"):
        combine_images(np.zeros((7, 2, 2, 1)), height=2, width=3)


@pytest.mark.parametrize("epochs", [1, 3])
def test_plot_log_labels_every_curve_and_saves_beside_the_log(
    tmp_path, epochs, monkeypatch
):
    log = tmp_path / "log.csv"
    columns = "epoch,capsnet_accuracy,decoder_loss,loss,seconds,val_loss"
    rows = [f"{n},0.5,0.2,0.4,9,0.3" for n in range(epochs)]
    log.write_text("\n".join([columns, *rows]))
    labels = []
    save = "matplotlib.figure.Figure.savefig"

    def record(figure, *args, **kwargs):
        for axes in figure.axes:
            labels.append([text.get_text() for text in axes.get_legend().get_texts()])
        original(figure, *args, **kwargs)

    from matplotlib.figure import Figure

    original = Figure.savefig
    monkeypatch.setattr(save, record)
    plot_log(str(log))
    assert labels == [["decoder_loss", "loss", "val_loss"], ["capsnet_accuracy"]]
    with Image.open(tmp_path / "log.png") as picture:
        assert min(picture.size) >= 500


@pytest.mark.parametrize("interactive", [False, True])
def test_windows_open_for_a_person_alone_and_never_block(
    tmp_path, interactive, monkeypatch
):
    shown = []
    monkeypatch.setattr(utils, "_can_show", lambda: interactive)
    monkeypatch.setattr(utils.plt, "show", lambda block: shown.append(block))
    (tmp_path / "log.csv").write_text("epoch,loss\n0,0.4")
    plot_log(str(tmp_path / "log.csv"))
    save_image(np.full((4, 6), 0.2), str(tmp_path / "image.png"))
    utils.plt.close("all")
    assert shown == ([False, False] if interactive else [])
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (6, 4) and np.unique(picture) == [51]
    assert (tmp_path / "log.png").exists()


def colours(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        return picture.size, len(np.unique(pixels, axis=0))


def test_confusion_is_drawn_with_numbers_to_read(tmp_path, monkeypatch):
    counts = np.array([[5, 2], [0, 7]])
    utils.plot_confusion(counts, ["ape", "bee"], tmp_path / "confusion.png")
    assert colours(tmp_path / "confusion.png")[1] > 10
    figures = []
    monkeypatch.setattr(utils, "_save", lambda figure, path: figures.append(figure))
    utils.plot_confusion(counts, ["ape", "bee"], tmp_path / "confusion.png")
    texts = {t.get_text(): t.get_color() for t in figures[0].axes[0].texts}
    assert texts == {"5": "black", "2": "white", "7": "black"}  # the 2 is on dark red


def test_mistakes_are_drawn(tmp_path):
    for n in (0, 1, 70):
        images, zeros = np.random.random((n, 8, 8, 3)), np.zeros(n, int)
        path = tmp_path / f"mistakes-{n}.png"
        utils.plot_mistakes(images, zeros, zeros + 1, ["ape", "bee"], path)
        assert path.exists()
    assert colours(tmp_path / "mistakes-70.png")[0][1] > 500


@pytest.mark.parametrize("channels, shown", [(2, 1), (3, 3), (5, 3)])
def test_of_other_channels_than_grey_or_colours_the_first_are_drawn(
    tmp_path, channels, shown
):
    image = np.random.random((8, 8, channels))
    utils.save_image(image, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as picture:
        pixels = np.asarray(picture).reshape(8, 8, -1)
    assert pixels.shape[2] == shown
    np.testing.assert_allclose(pixels / 255, image[..., :shown], atol=0.5 / 255 + 1e-6)
    zeros = np.zeros(1, int)
    path = tmp_path / "mistakes.png"
    utils.plot_mistakes(image[None], zeros, zeros + 1, ["ape", "bee"], path)
    assert path.exists()


def test_strokes_are_measured_in_pixels():
    def measured(image):
        values = utils.measure_strokes(np.asarray(image, "float32")[..., None])
        return dict(zip(utils.STROKES, values, strict=True))

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

    assert not any(measured(np.zeros((9, 9)))[name] for name in utils.STROKES)


def test_dimensions_are_drawn_for_grey_and_colour(tmp_path):
    for channels, classes in ((1, 2), (3, 31)):
        pairs = np.random.random((classes, 4, 2, 8, 8, channels))
        effects = np.random.normal(size=(classes, 4, len(utils.STROKES)))
        path = tmp_path / f"dimensions-{channels}.png"
        utils.plot_dimensions(pairs, effects, ["$a"] * classes, path)
        assert colours(path)[1] > 10
    assert colours(path)[0][1] < 3000  # 30 of the 31


def test_predictions_are_drawn_with_and_without_reconstructions(tmp_path):
    images = np.random.random((3, 8, 8, 1))
    sizes = []
    for reconstructions in (None, images):
        path = tmp_path / "predictions.png"
        utils.plot_predictions(images, reconstructions, list("abc"), path)
        sizes.append(colours(path)[0][1])
    assert sizes[1] > sizes[0]
