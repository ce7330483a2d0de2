import types

import matplotlib
import numpy as np
import pytest
from PIL import Image

from capsnet import pictures, strokes
from utils import combine_images, plot_log, save_image


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


def test_a_grid_of_just_the_size_is_filled_row_by_row():
    grid = combine_images(np.arange(6).reshape(6, 1, 1, 1), height=2, width=3)
    np.testing.assert_array_equal(grid, [[0, 1, 2], [3, 4, 5]])


def test_a_grid_of_no_images_is_empty():
    assert combine_images(np.zeros((0, 4, 5, 1))).shape == (0, 5)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_an_image_of_bytes_is_saved_as_it_is(tmp_path, kind):
    pixels = np.array([[0, 128], [255, 7]], "uint8")
    image = pixels if kind == "uint8" else (pixels / 255).astype(kind)
    pictures.save_image(image, str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), pixels)


def test_a_log_without_epochs_has_its_rows_counted(tmp_path, figures):
    (tmp_path / "log.csv").write_text("loss,accuracy\n3,0.1\n2,0.2\n")
    plot_log(str(tmp_path / "log.csv"), show=False)
    np.testing.assert_array_equal(figures[0].axes[0].lines[0].get_xdata(), [1, 2])


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="7 images do not fit into a 2 x 3"):
        combine_images(np.zeros((7, 2, 2, 1)), height=2, width=3)


@pytest.mark.parametrize("epochs", [1, 3])
def test_plot_log_labels_every_curve_and_saves_beside_the_log(
    tmp_path, epochs, monkeypatch
):
    log = tmp_path / "log.csv"
    columns = "epoch,capsnet_accuracy,decoder_loss,loss,seconds,val_loss"
    rows = [f"{n},0.5,0.2,{0.4 - 0.1 * n},9,0.3" for n in range(epochs)]
    log.write_text("\n".join([columns, *rows]))
    labels, titles, lines, ticks = [], [], {}, []
    save = "matplotlib.figure.Figure.savefig"

    def record(figure, *args, **kwargs):
        for axes in figure.axes:
            labels.append([text.get_text() for text in axes.get_legend().get_texts()])
            titles.append((axes.get_xlabel(), axes.get_ylabel()))
            lines.update({line.get_label(): line for line in axes.lines})
            ticks.extend(axes.get_xticks())
        original(figure, *args, **kwargs)

    from matplotlib.figure import Figure

    original = Figure.savefig
    monkeypatch.setattr(save, record)
    plot_log(str(log))
    assert labels == [["decoder_loss", "loss", "val_loss"], ["capsnet_accuracy"]]
    assert titles == [("epoch", "loss"), ("epoch", "accuracy")]
    assert lines["loss"].get_xdata().tolist() == list(range(1, epochs + 1))
    np.testing.assert_allclose(
        lines["loss"].get_ydata(), 0.4 - 0.1 * np.arange(epochs), atol=1e-9
    )
    styles = {name: line.get_linestyle() for name, line in lines.items()}
    assert styles.pop("val_loss") == "--" and set(styles.values()) == {"-"}
    # A line through one point would not be seen.
    assert {line.get_marker() for line in lines.values()} == {
        "o" if epochs == 1 else "None"
    }
    assert all(tick == int(tick) for tick in ticks)
    with Image.open(tmp_path / "log.png") as picture:
        assert min(picture.size) >= 500


@pytest.mark.parametrize("interactive", [False, True])
def test_windows_open_for_a_person_alone_and_never_block(
    tmp_path, interactive, monkeypatch
):
    shown = []
    monkeypatch.setattr(pictures, "_can_show", lambda: interactive)
    monkeypatch.setattr(pictures.plt, "show", lambda block: shown.append(block))
    (tmp_path / "log.csv").write_text("epoch,loss\n0,0.4")
    plot_log(str(tmp_path / "log.csv"))
    save_image(np.full((4, 6), 0.2), str(tmp_path / "image.png"))
    pictures.plt.close("all")
    assert shown == ([False, False] if interactive else [])
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (6, 4) and np.unique(picture) == [51]
    assert (tmp_path / "log.png").exists()


def colours(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        return picture.size, len(np.unique(pixels, axis=0))


def test_confusion_is_drawn_to_a_file(tmp_path):
    counts = np.array([[5, 2], [0, 7]])
    pictures.plot_confusion(counts, ["$a", "bee"], tmp_path / "confusion.png")
    assert colours(tmp_path / "confusion.png")[1] > 10


def test_confusion_is_drawn_with_numbers_to_read(figures):
    counts = np.array([[50, 9, 0], [0, 70, 4], [5, 0, 30]])
    pictures.plot_confusion(counts, ["ape", "$bee", "cow"], "")
    (axes,) = figures[0].axes
    texts = {t.get_text(): (t.get_position(), t.get_color()) for t in axes.texts}
    assert texts == {
        "50": ((0, 0), "black"),
        "9": ((1, 0), "white"),  # column, row; on dark red
        "70": ((1, 1), "black"),
        "4": ((2, 1), "black"),
        "5": ((0, 2), "white"),
        "30": ((2, 2), "black"),
    }
    (image,) = axes.images
    wrong = [[0, 9, 0], [0, 0, 4], [5, 0, 0]]
    np.testing.assert_array_equal(image.get_array(), wrong)
    assert image.get_clim() == (0, 9) and image.get_cmap().name == "Reds"
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["ape", "$bee", "cow"]
        assert not any(label.get_parse_math() for label in labels)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    (right,) = axes.child_axes
    accuracies = [label.get_text() for label in right.get_yticklabels()]
    assert accuracies == ["84.7%", "94.6%", "85.7%"]  # 50 of 59, 70 of 74, 30 of 35
    assert right.get_ylabel() == "accuracy"
    heading = "18 of 168 images misread\nbalanced accuracy 88.4%"
    assert axes.get_title() == heading


def test_confusion_without_a_mistake_is_white_and_of_many_classes_without_numbers(
    figures,
):
    for n in (2, 30, 31):
        pictures.plot_confusion(np.eye(n, dtype=int), list(map(str, range(n))), "")
    images = [figure.axes[0].images[0] for figure in figures]
    assert [image.get_clim() for image in images] == [(0, 1)] * 3
    assert [len(figure.axes[0].texts) for figure in figures] == [2, 30, 0]
    sizes = [figure.get_size_inches() for figure in figures]
    assert sizes[0][1] < sizes[1][1] <= 20 and sizes[0][0] > sizes[0][1]


def drawn_images(figure):
    """The images of a figure, by their titles."""
    shown = [axes for axes in figure.axes if axes.images]
    assert not any(axes.axison for axes in figure.axes)
    assert not any(axes.title.get_parse_math() for axes in shown)
    return {axes.get_title(): np.array(axes.images[0].get_array()) for axes in shown}


def test_mistakes_have_titles_of_true_and_predicted(figures):
    images = np.random.random((13, 8, 6, 1)) * 1.5 - 0.2
    true, predicted = np.arange(13), np.arange(13)[::-1]
    names = [f"$class{n}" for n in range(13)]
    pictures.plot_mistakes(images, true, predicted, names, "")
    pictures.plot_mistakes(images, true, predicted, names, "", most=3)
    every, few = map(drawn_images, figures)
    assert list(every)[:2] == ["$class0 as $class12", "$class1 as $class11"]
    assert len(every) == 13 and list(few) == list(every)[:3]
    for image, drawn in zip(images, every.values()):
        np.testing.assert_array_equal(drawn, np.clip(image[..., 0], 0, 1))
    assert len(figures[0].axes) == 20  # two lines of ten
    heading = "13 of 13 misread images: true as predicted"
    assert figures[0].get_suptitle() == heading
    assert figures[1].get_suptitle() == heading.replace("13", "3", 1)
    zeros = np.zeros(51, int)
    pictures.plot_mistakes(np.zeros((51, 4, 4, 1)), zeros, zeros, names, "")
    assert figures[2].get_suptitle().startswith("50 of 51 misread")
    assert all(axes.images for axes in figures[2].axes) and len(figures[2].axes) == 50


def test_predictions_stand_above_their_reconstructions(figures):
    images = np.random.random((12, 8, 6, 3))
    reconstructions = np.random.random((12, 8, 6, 3)) * 1.5 - 0.2
    titles = [f"$title{n}" for n in range(12)]
    pictures.plot_predictions(images, reconstructions, titles, "")
    pictures.plot_predictions(images, None, titles, "", most=2)
    pairs, alone = map(drawn_images, figures)
    assert list(pairs) == titles and list(alone) == titles[:2]
    for n, drawn in enumerate(pairs.values()):
        np.testing.assert_array_equal(drawn[:8], images[n])
        np.testing.assert_array_equal(drawn[8:], np.clip(reconstructions[n], 0, 1))
    assert {axes.images[0].get_clim() for axes in figures[0].axes[:12]} == {(0, 1)}
    np.testing.assert_array_equal(alone["$title1"], images[1])
    headings = [figure.get_suptitle() for figure in figures]
    assert headings == ["pictures, reconstructions below", "pictures"]
    heights = [figure.get_size_inches()[1] for figure in figures]
    assert heights[0] > 2 * heights[1]  # two lines of two
    many = np.zeros((51, 4, 4, 1))
    pictures.plot_predictions(many, many, ["a"] * 51, "")
    assert sum(bool(axes.images) for axes in figures[2].axes) == 50


def test_test_images_stand_above_reconstructions_under_their_classes(figures, tmp_path):
    images = np.random.random((60, 20, 16, 3))
    recon = np.random.random((60, 20, 16, 3)) * 1.5 - 0.2
    true, predicted = np.arange(60), np.arange(60)
    predicted[1] = 0
    names = [f"$class{n}" for n in range(60)]
    pictures.show_test(images, recon, true, predicted, names, str(tmp_path))
    drawn = drawn_images(figures[0])
    assert list(drawn)[:3] == ["$class0", "$class1 as $class0", "$class2"]
    assert len(drawn) == 50
    pair = drawn["$class1 as $class0"]
    np.testing.assert_array_equal(pair[:20], images[1])
    np.testing.assert_array_equal(pair[20:], np.clip(recon[1], 0, 1))
    heading = figures[0].get_suptitle()
    assert heading.startswith("50 of 60 test images under their classes")
    assert min(figures[0].get_size_inches()) >= 10


def test_long_titles_break_into_lines(figures):
    names = ["a class with a very long name", "another one of those classes"]
    zeros = np.zeros(1, int)
    pictures.plot_mistakes(np.zeros((1, 8, 8, 1)), zeros, zeros + 1, names, "")
    title = figures[0].axes[0].get_title()
    assert title.replace("\n", " ") == " as ".join(names)
    assert max(map(len, title.split("\n"))) <= 20


@pytest.mark.parametrize("height, width", [(28, 28), (20, 120), (128, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_manipulations_say_which_dimension_and_how_much(
    figures, height, width, channels
):
    drawn = np.random.random((4, 3, height, width, channels)) * 1.5 - 0.2
    amounts = np.array([-0.25, 0.0, 0.25])
    pictures.plot_manipulations(np.clip(drawn[0, 1], 0, 1), drawn, amounts, "$ape", "")
    figure = figures[0]
    beside, axes = figure.axes
    assert beside.get_title() == "test\nimage" and len(beside.images) == 1
    grid = np.array(axes.images[0].get_array()).reshape(4, height, 3, width, -1)
    expected = np.clip(drawn, 0, 1).transpose(0, 2, 1, 3, 4)
    np.testing.assert_array_equal(grid, expected)
    below = [label.get_text() for label in axes.get_xticklabels()]
    assert below == ["-0.25", "0", "+0.25"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("0123")
    np.testing.assert_allclose(axes.get_xticks(), width * np.arange(0.5, 3) - 0.5)
    np.testing.assert_allclose(axes.get_yticks(), height * np.arange(0.5, 4) - 0.5)
    assert axes.get_xlabel().startswith("added to that dimension")
    assert axes.get_ylabel() == "dimension of the capsule"
    (frame,) = axes.patches
    assert frame.get_xy() == (width - 0.5, -0.5) and frame.get_width() == width
    assert (
        "class $ape" in figure.get_suptitle() and "4 numbers" in figure.get_suptitle()
    )
    figure.canvas.draw()  # all that is written lies within the picture
    whole, bounds = (
        figure.bbox,
        figure.get_tightbbox().transformed(figure.dpi_scale_trans),
    )
    assert bounds.x0 >= 0 and bounds.y0 >= 0
    assert bounds.x1 <= whole.x1 and bounds.y1 <= whole.y1


def test_the_strongest_effect_names_a_dimension(figures):
    pairs = [np.random.random((3, 2, 8, 6, 1)) * 1.5 - 0.2 for _ in range(2)]
    effects = np.zeros((2, 3, len(strokes.STROKES)))
    effects[0, :, 1] = 1.0, -2.0, 0.5
    effects[0, 1, 3] = 1.5
    effects[1, :, 4] = 0.4, -0.49, -0.5
    pictures.plot_dimensions(pairs, effects, ["$a", "b"], "")
    grid = np.reshape(figures[0].axes, (2, 3))
    titles = [[axes.get_title() for axes in row] for row in grid]
    assert titles == [
        ["slant +1.0", "slant -2.0", "slant +0.5"],
        ["down +0.4", "down -0.5", "down -0.5"],
    ]
    colours = [[axes.title.get_color() for axes in row] for row in grid]
    assert colours == [["C1", "C1", "C1"], ["0.7", "0.7", "C4"]]
    for row, expected in zip(grid, pairs):
        for axes, (low, high) in zip(row, np.clip(expected[..., 0], 0, 1)):
            (image,) = axes.images
            np.testing.assert_array_equal(image.get_array(), np.hstack([low, high]))
            assert not len(axes.get_xticks()) and not len(axes.get_yticks())
    below = [[axes.get_xlabel() for axes in row] for row in grid]
    assert below == [[""] * 3, [f"dimension {n}" for n in range(3)]]
    beside = [[axes.get_ylabel() for axes in row] for row in grid]
    assert beside == [["$a", "", ""], ["b", "", ""]]
    assert not grid[0, 0].yaxis.label.get_parse_math()
    assert figures[0].get_suptitle().startswith("each dimension lowered and raised")


def test_no_more_classes_are_drawn_than_fit(figures):
    for n, most in ((1, {}), (30, {}), (31, {}), (3, {"most": 2})):
        pairs, effects = np.zeros((n, 1, 2, 4, 4, 1)), np.zeros((n, 1, 6))
        pictures.plot_dimensions(pairs, effects, ["a"] * n, "", **most)
    assert [len(figure.axes) for figure in figures] == [1, 30, 30, 2]
    headings = [figure.get_suptitle().split(";")[0] for figure in figures]
    assert headings[0] == headings[1] and headings[0].startswith("each dimension")
    assert headings[2:] == ["30 of 31 classes", "2 of 3 classes"]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("backend", ["Agg", "qtagg"])
def test_a_person_is_at_a_prompt_before_a_screen(monkeypatch, prompt, inline, backend):
    monkeypatch.setattr(
        pictures, "sys", types.SimpleNamespace(**{"ps1": ">"} if prompt else {})
    )
    monkeypatch.setattr(matplotlib, "is_interactive", lambda: inline)
    monkeypatch.setattr(pictures.plt, "get_backend", lambda: backend)
    assert pictures._can_show() == ((prompt or inline) and backend != "Agg")


def test_mistakes_are_drawn(tmp_path):
    for n in (0, 1, 11):
        images, zeros = np.random.random((n, 8, 8, 3)), np.zeros(n, int)
        path = tmp_path / f"mistakes-{n}.png"
        pictures.plot_mistakes(images, zeros, zeros + 1, ["ape", "bee"], path)
        assert path.exists()
    heights = [colours(tmp_path / f"mistakes-{n}.png")[0][1] for n in (1, 11)]
    assert heights[1] > 1.5 * heights[0]  # two lines


def test_what_is_brighter_than_white_is_white(tmp_path):
    pictures.save_image(np.array([[-0.2, 0.0, 1.0, 1.2]]), tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as picture:
        assert np.asarray(picture).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("channels, shown", [(2, 1), (3, 3), (5, 3)])
def test_of_other_channels_than_grey_or_colours_the_first_are_drawn(
    tmp_path, channels, shown
):
    image = np.random.random((8, 8, channels))
    pictures.save_image(image, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as picture:
        pixels = np.asarray(picture).reshape(8, 8, -1)
    assert pixels.shape[2] == shown
    np.testing.assert_allclose(pixels / 255, image[..., :shown], atol=0.5 / 255 + 1e-6)
    zeros = np.zeros(1, int)
    path = tmp_path / "mistakes.png"
    pictures.plot_mistakes(image[None], zeros, zeros + 1, ["ape", "bee"], path)
    assert path.exists()


def test_dimensions_are_drawn_for_grey_and_colour(tmp_path):
    for channels, classes in ((1, 2), (3, 3)):
        pairs = np.random.random((classes, 4, 2, 8, 8, channels))
        effects = np.random.normal(size=(classes, 4, len(strokes.STROKES)))
        path = tmp_path / f"dimensions-{channels}.png"
        pictures.plot_dimensions(pairs, effects, ["$a"] * classes, path)
        assert colours(path)[1] > 10


def test_predictions_are_drawn_with_and_without_reconstructions(tmp_path):
    images = np.random.random((3, 8, 8, 1))
    sizes = []
    for reconstructions in (None, images):
        path = tmp_path / "predictions.png"
        pictures.plot_predictions(images, reconstructions, list("abc"), path)
        sizes.append(colours(path)[0][1])
    assert sizes[1] > sizes[0]
