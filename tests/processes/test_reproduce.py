"""The results table, from runs that are killed and paused."""

import csv
import re
import signal

import numpy as np
from helpers import run_killed, without_tensorflow

import reproduce


def flags_for(dataset, *flags):
    return ["--dataset", dataset, "--csv", "table.csv", "--batch-size=20", *flags]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_killed_anywhere_ends_with_the_same_table(
    tmp_path, squares, monkeypatch, small_network
):
    flags = flags_for(squares, "--variants", "v1", "--trials=1", "--epochs=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    monkeypatch.chdir(whole)
    reproduce.main(flags)
    statuses, output = run_killed("reproduce.py", [40, 0], *flags, cwd=broken)
    assert statuses == [-signal.SIGKILL, 0], output[-3000:]
    assert "Resumed after epoch" in output
    compared = ("variant", "recipe", "seed", "epochs", "error", "wrong", "options")
    tables = []
    for directory in (whole, broken):
        table = rows(directory / "table.csv")
        tables.append([[row[column] for column in compared] for row in table])
        (path,) = directory.glob("runs/*/log.csv")
        assert [row["epoch"] for row in rows(path)] == ["0", "1", "2"]
    assert tables[0] == tables[1]
    assert [row[0] for row in tables[0]] == ["v1"]


def test_a_finished_run_is_skipped_and_a_paused_one_goes_on(tmp_path):
    y = np.arange(40) % 2
    x = np.uint8(200 * y)[:, None, None] * np.ones((8, 8), "uint8")
    arrays = {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}
    np.savez(tmp_path / "shades.npz", **arrays)
    of_baseline = ("--variants", "baseline", "--trials", 1, "--epochs", 2)
    flags = flags_for("shades.npz", *of_baseline)
    statuses, output = run_killed(  # three times, and never killed
        *("reproduce.py", [0, 0, 0], *flags, "--pause-after", 1),
        cwd=tmp_path,
        KERAS_BACKEND="torch",
        **without_tensorflow(tmp_path),
    )
    assert statuses == [0, 0, 0], output[-3000:]
    paused, resumed, skipped = re.split(
        "(?m)^baseline, recipe default, seed 0: ", output
    )[1:]
    assert "Paused after epoch 1 of 2" in paused and "error" not in paused
    assert "Resumed after epoch 1 of 2" in resumed and "seed 0: error" in resumed
    assert "in table.csv" in skipped and "Epoch" not in skipped
    (row,) = rows(tmp_path / "table.csv")
    assert tuple(row) == reproduce.COLUMNS
    assert row["options"] == "--batch_size 20" and row["images"] == "20"
    assert (row["dataset"], row["split"]) == ("shades.npz", "test")
    assert float(row["error"]) == 100 * int(row["wrong"]) / 20
