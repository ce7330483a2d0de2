"""What users bring, through the command line: each of these once went wrong."""

import json
import os
import re
import sys

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import capsulenet
from capsnet import machine

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))
import own_pictures
import photographs
import unknown

SHIPPED = os.path.join(ROOT, "result", "trained_model.h5")


def trained(folder, tmp_path, capsys, *flags):
    """Train on a folder of pictures; what was printed, and the test accuracy."""
    common = ["--dataset", str(folder), "--save_dir", str(tmp_path / "out")]
    capsulenet.main([*common, "--verbose", "0", "--seed", "0", *flags])
    said = capsys.readouterr().out
    path = str(tmp_path / "out" / "trained_model.h5")
    capsulenet.main([*common, *flags[:2], "-t", "-w", path, "--seed", "0"])
    tested = capsys.readouterr().out
    accuracy = float(tested.split("Test acc: ")[1].split()[0])
    return said, tested, accuracy


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a set of the benchmark, small enough for a test."""

    def write(name, size, counts):
        of = {"size": size, "counts": counts, "black": True}
        of = own_pictures.SETS[name] | of
        monkeypatch.setitem(own_pictures.SETS, name, of)
        own_pictures.write_set(name, 0, str(tmp_path / name))
        return tmp_path / name

    return write


@pytest.mark.parametrize("black", [True, False])
def test_shapes_are_drawn_on_grounds_of_any_colour_or_on_black(black):
    rng = np.random.default_rng(0)
    drawn = [own_pictures.draw("circle", (40, 40), rng, black) for _ in range(30)]
    corners = np.array([np.asarray(d)[:3, :3].mean((0, 1)) for d in drawn])
    assert (corners.max(1) < 40).mean() == (1.0 if black else pytest.approx(0, abs=0.1))
    assert black or corners.std() > 50  # of 0 to 255


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size, flags",
    [
        ("shapes", (48, 48), ["--image_size", "24"]),
        ("bright_on_black", (24, 24), []),
        ("several_sizes", (60, 45), ["--image_size", "24x32"]),
    ],
)
def test_shapes_of_any_size_are_learned(name, size, flags, written, tmp_path, capsys):
    folder = written(name, size, (50, 50, 50))
    said, _, accuracy = trained(folder, tmp_path, capsys, *flags, "--epochs", "12")
    assert "Network photo" in said
    assert accuracy >= 0.85  # a third by chance


@pytest.mark.slow
@pytest.mark.parametrize("name, least", [("shapes", 0.9), ("uneven", 0.75)])
def test_shapes_on_grounds_of_any_colour_are_learned_by_default(
    name, least, tmp_path, capsys
):
    folder = tmp_path / name
    own_pictures.write_set(name, 0, str(folder))
    _, tested, _ = trained(folder, tmp_path, capsys)
    assert float(tested.split("Balanced acc: ")[1].split(",")[0]) >= least


@pytest.mark.slow
def test_classes_of_very_different_size_are_said_and_all_learned(
    written, tmp_path, capsys
):
    folder = written("uneven", (20, 20), (150, 12, 12))
    said, tested, _ = trained(folder, tmp_path, capsys, "--epochs", "12")
    assert "Warning: circle has 120 images" in said and "--balance" in said
    balanced = float(tested.split("Balanced acc: ")[1].split(",")[0])
    assert balanced >= 0.75  # a third where all are called circles


def test_pictures_too_large_for_the_memory_are_one_line_with_the_way_out(
    tmp_path, monkeypatch, capsys
):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            image = Image.new("RGB", (32, 32), (200, 30, ord(name)))
            for number in range(60 if split == "train" else 1):
                image.save(tmp_path / split / name / f"{number}.png")
    monkeypatch.setattr(machine, "machine_memory", lambda: 5e8)
    flags = ["--model", "capsnet", "--save_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        capsulenet.main(["--dataset", str(tmp_path), *flags, "--batch_size", "100"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    assert "--batch_size 100" in said and "machine has 0.5" in said
    assert 1 <= int(re.search(r"--batch_size (\d+) fits", said)[1]) < 100
    assert re.search(r"or --image_size \d+", said)


def predicted(pictures, tmp_path, capsys):
    """What `--predict --json` says of pictures."""
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number:02}.png")
    files = sorted(str(path) for path in tmp_path.glob("*.png"))
    flags = ["-w", SHIPPED, "--json", "--save_dir", str(tmp_path / "out")]
    capsulenet.main(["--predict", *files, *flags])
    lines = capsys.readouterr().out.strip().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_digits_on_photographed_paper_are_read(tmp_path, capsys):
    _, (x, y) = capsulenet.load_mnist()
    of_each = [np.flatnonzero(y[:, digit])[0] for digit in range(10)]
    pictures = photographs.pictures_of("gradient", x[of_each, ..., 0], seed=0)
    found = predicted(pictures, tmp_path, capsys)
    assert sum(row["class"] == str(digit) for digit, row in enumerate(found)) >= 9


def test_what_is_no_digit_is_not_called_one(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = capsulenet.load_mnist()[1][0][:20, ..., 0]
    noise = rng.integers(0, 256, (64, 64, 3), "uint8")
    letter = unknown.letter(rng, "AKMRW")[..., 0]  # as the network is given it
    two = np.concatenate([x[0], x[1]], axis=1)
    pictures = [
        Image.new("L", (64, 64), 255),
        Image.fromarray((255 - 255 * letter).astype("uint8")),
        Image.fromarray(noise),
        Image.fromarray((255 - 255 * two).astype("uint8")),
    ]
    digits = [photographs.clean(digit) for digit in x[2:12]]
    found = predicted([*pictures, *digits], tmp_path, capsys)
    verdicts = [row["verdict"] for row in found]
    assert "one" not in verdicts[:4]
    assert verdicts[4:].count("one") >= 9
