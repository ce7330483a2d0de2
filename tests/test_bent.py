import csv

import numpy as np

from capsnet import bent
from capsnet.data import Bent


def test_a_curve_counts_each_image_once_where_it_was_bent():
    angle = np.array([-20.0, -19, 0.1, 20])
    rows = bent.curves({"angle": angle}, np.array([True, False, True, True]))
    assert [row["images"] for row in rows] == [2, 0, 0, 0, 1, 0, 0, 1]
    assert [row["right"] for row in rows] == [1, 0, 0, 0, 1, 0, 0, 1]
    assert (rows[0]["value"], rows[-1]["value"]) == (-17.5, 17.5)


def test_the_curve_of_places_tells_those_of_the_training_from_others():
    shift = np.array([0.0, 1.9, 2, 5.9, 6, 6.1, 9])
    rows = bent.curves({"shift": shift}, np.arange(7) % 2 == 0)
    assert [row["value"] for row in rows] == [1, 3, 5, 7, 9]
    assert [row["images"] for row in rows] == [2, 1, 1, 2, 1]
    assert [row["right"] for row in rows] == [1, 1, 0, 1, 1]
    for last, images in ((0, [1]), (6, [1, 0, 0, 1])):  # 6 is no longer of the training
        rows = bent.curves(
            {"shift": np.unique([0.0, last])}, np.ones(2, bool)[: last + 1]
        )
        assert [row["images"] for row in rows] == images


def test_it_says_what_is_read_where_the_training_was_and_where_not(
    tmp_path, figures, capsys
):
    data = Bent(np.zeros((3, 40, 40, 1)), np.eye(10)[:3])
    data.changes, data.upright = {k: np.array([0.5, 7, 8]) for k in bent.WHAT}, data.x
    bent.show(data, np.array([True, False, True]), str(tmp_path))
    said = capsys.readouterr().out
    assert "Moved by less than 6 pixels: 100.00% of 1 digits were read" in said
    assert "Moved further: 50.00% of 2 digits were read" in said
    data.changes["shift"] = np.ones(3)
    bent.show(data, np.array([True, False, True]), str(tmp_path))
    assert "further" not in capsys.readouterr().out


def test_the_pictures_and_the_table_are_written(tmp_path, figures):
    rng = np.random.default_rng(0)
    data = Bent(rng.random((60, 40, 40, 1)), np.eye(10)[np.arange(60) % 10])
    data.changes = {k: rng.random(60) for k in bent.WHAT}
    data.upright = data.x
    bent.show(data, rng.random(60) < 0.5, str(tmp_path), "CapsNet")
    with open(tmp_path / "affnist-curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["images"]) for row in rows) == 4 * 60
    assert {row["network"] for row in rows} == {"CapsNet"}
    curves, digits = figures
    labels = [axes.get_xlabel() for axes in curves.axes]
    changes = ["turned by, degrees", "sheared by", "size, factor"]
    assert labels == [*changes, "moved by, pixels (6 in training)"]
    assert len(digits.axes) == 50


def test_where_no_image_was_bent_so_there_is_no_point(tmp_path, figures):
    right = np.array([True, False, True, True])
    rows = bent.curves({"angle": np.array([-20.0, -19, 0.1, 20])}, right)
    rows = [{"network": "CapsNet", **row} for row in rows]
    bent.plot_curves(rows, str(tmp_path / "curves.png"))
    (line,) = figures[0].axes[0].lines
    assert line.get_ydata().tolist() == [50, 100, 100]
