import json
import os

import numpy as np
import pytest
from helpers import HOSTILE
from PIL import Image

import capsulenet
from capsnet import errors, own_pictures, pictures, verdict


def test_hostile_names_of_pictures_are_shown_and_not_obeyed(
    tmp_path, call, two_classes, capsys
):
    folder = tmp_path / "new"
    folder.mkdir()
    for name in (os.fsencode(HOSTILE), b"\xff\xfe.png"):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.new("L", (17, 17)).save(file, "PNG")
        with open(os.path.join(os.fsencode(folder), b"broken" + name), "wb"):
            pass
    found = sorted(os.fsdecode(path) for path in os.listdir(os.fsencode(folder)))
    whole, broken = ([n for n in found if ("broken" in n) == b] for b in (False, True))
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            call("--predict", "new", "-w", two_classes[0], *flags)
        assert caught.value.code == 1
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        assert all(line.isprintable() for line in printed.out.split("\n"))
        assert all(line.isprintable() for line in printed.err.split("\n"))
        assert printed.err.count("Left out: ") == 2
        for name in broken:
            assert f"Left out: new/{errors.printable(name)}: not a" in printed.err
        if flags:
            told = [json.loads(line)["file"] for line in lines]
            assert told == [f"new/{name}" for name in whole]
        else:
            assert [line.split()[0] for line in lines[1:]] == ["ape", "ape"]
            for line, name in zip(lines[1:], whole):
                assert line.endswith(f"  new/{errors.printable(name)}")


@pytest.mark.parametrize(
    "flags, there",
    [
        (["--model", "efficient"], "--model capsnet"),
        (["--routing", "max_min"], "--routing dynamic"),
        (["-r", "3"], "--routings 1"),
    ],
)
def test_another_network_than_the_weights_are_of_is_refused(
    flags, there, tmp_path, call, two_classes, capsys
):
    Image.new("L", (17, 17)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as caught:
        call("--predict", "a.png", "-w", two_classes[0], *flags)
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{two_classes[0]} was trained with {there}" in said


def test_pictures_that_are_no_squares_are_told_by_a_foreign_file(
    tmp_path, call, capsys
):
    trio = capsulenet.CapsNet((18, 24, 1), 2, 3, filters=4, n_channels=2)
    trio[0].save_weights(tmp_path / "a.weights.h5")
    image = np.arange(18 * 24, dtype="uint8").reshape(18, 24)
    Image.fromarray(image).save(tmp_path / "a.png")
    predict = ("--predict", "a.png", "-w", "a.weights.h5", "--json")
    told = json.loads(call(*predict, "--image_size", "18x24").out)
    (expected,), _ = trio[1].predict(image.reshape(1, 18, 24, 1) / 255.0, verbose=0)
    for digit in range(2):
        assert told["lengths"][str(digit)] == pytest.approx(expected[digit], abs=1e-4)
    with pytest.raises(SystemExit) as caught:
        call(*predict)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "18 x 24 or 24 x 18" in said and "--image_size HEIGHTxWIDTH" in said


def test_images_of_channels_that_no_picture_has_are_refused(tmp_path, call, capsys):
    model = capsulenet.CapsNet((17, 17, 2), 2, 1, filters=4, n_channels=2)[0]
    capsulenet.save_weights(model, str(tmp_path / "two.h5"))
    Image.new("L", (17, 17)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as caught:
        call("--predict", "a.png", "-w", "two.h5")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "the network takes images of 2 channels, and pictures have 1 or 3" in said


def test_many_pictures_are_answered_block_by_block(
    tmp_path, call, two_classes, monkeypatch, capsys
):
    rng, drawn = np.random.default_rng(0), []
    for number in range(7):
        pixels = rng.integers(0, 256, (17, 17), "uint8")
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for number in (2, 3, 5):  # a whole block, and one of another
        (tmp_path / f"{number}.png").write_bytes(b"")
    monkeypatch.setattr(pictures, "plot_predictions", lambda *a: drawn.append(a))
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            call("--predict", ".", "-w", two_classes[0], "--save_dir", "out")
        said.append(capsys.readouterr())
        monkeypatch.setattr(own_pictures, "BYTES_AT_ONCE", 0)
        monkeypatch.setattr(own_pictures, "DRAWN", 2)
    assert said[0] == said[1] and len(said[0].out.splitlines()) == 1 + 4
    (images, pictured, titles, _), some = drawn
    assert len(images) == 4 and titles[:2] == some[2]
    np.testing.assert_array_equal(images[:2], some[0])
    np.testing.assert_allclose(pictured[:2], some[1], atol=1e-6)


def test_pictures_of_which_none_is_readable_are_bad_input(
    tmp_path, call, two_classes, capsys
):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        call("--predict", "a.png", "-w", two_classes[0])
    assert caught.value.code == 2
    assert "--predict a.png: no readable pictures" in capsys.readouterr().err


def test_a_network_of_digits_sees_drawings_without_the_paper_and_its_picture_says_so(
    tmp_path, monkeypatch, capsys
):
    sheet = np.random.default_rng(0).normal(size=(120, 150)) * 4 + 190
    sheet[:, 100:] *= 0.5  # a shadow
    sheet[30:90, 60:66] *= 0.3
    Image.fromarray(np.uint8(sheet)).save(tmp_path / "a.png")
    Image.new("L", (28, 28), 255).save(tmp_path / "b.png")
    seen, titles = [], []

    class Model:
        inputs = (np.zeros((1, 28, 28, 1)),)

    def predict(model, images, *of_verdicts):
        seen.extend(images)
        return verdict.Prediction(np.array([1, 0]), np.eye(2)[::-1], None)

    monkeypatch.setattr(pictures, "plot_predictions", lambda *a: titles.extend(a[2]))
    about = {"like_mnist": True, "class_names": ["nought, or none", "one"]}
    about["thresholds"] = None
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    args = ["--predict", *paths, "-w", paths[0], "--save_dir", str(tmp_path / "out")]
    args += ["--json"]
    own_pictures.answer(
        capsulenet.build_parser().parse_args(args),
        lambda *a: ((None, Model, None), about),
        predict,
    )
    assert np.flatnonzero(seen[0].max((1, 2)) > 0.5).size >= 18
    assert np.flatnonzero(seen[0].max((0, 2)) > 0.05).size <= 4
    assert titles == ["one\ninverted\nground removed", "nought, or none\ninverted"]
    told = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["done"] for row in told] == ["inverted, ground removed", "inverted"]
