import json
import os
import shutil

import numpy as np
import pytest
from helpers import (
    classifier,
    files_that_stay,
    h5_arrays,
    options,
    read_log,
    small_data,
    small_train,
)

from capsnet.training import checkpoints
from capsulenet import train


@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "no record"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, harm, capsys):
    train(classifier(), small_data(), options(tmp_path, seed=0, epochs=3))
    last = tmp_path / "checkpoint-0003.weights.h5"
    record = tmp_path / "checkpoint-0003.json"
    if harm == "flipped":
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    elif harm == "truncated":
        last.write_bytes(last.read_bytes()[:1000])
    elif harm == "missing":
        last.unlink()
    else:
        record.write_text("{")
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 2
    assert "checkpoint-0003" in capsys.readouterr().out
    args = options(tmp_path, seed=0, epochs=3, resume=True)
    train(classifier(), small_data(), args)
    assert [row["epoch"] for row in read_log(tmp_path)] == [0, 1, 2]
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 3
    assert not (tmp_path / "run-1").exists()


def test_a_full_disk_leaves_the_files_that_were_there(tmp_path, monkeypatch):
    small_train(tmp_path, epochs=2, pause_after=1)
    before = files_that_stay(tmp_path)
    save = checkpoints._save_whole_model

    def full(model, path):
        save(model, path)
        with open(path, "r+b") as file:
            file.truncate(1000)
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", full)
    with pytest.raises(OSError, match="No space left.*goes on after epoch 1"):
        small_train(tmp_path, epochs=2, resume=True)
    monkeypatch.undo()
    assert {n: d for n, d in files_that_stay(tmp_path).items() if n in before} == before
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_directory_that_vanishes_is_one_error(tmp_path, monkeypatch):
    save = checkpoints._save_whole_model

    def vanish(model, path):
        shutil.rmtree(tmp_path / "run")
        save(model, path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", vanish)
    with pytest.raises(OSError, match="no epoch was finished"):
        small_train(tmp_path / "run")


def test_no_kill_can_leave_a_checkpoint_without_its_best_weights(tmp_path, monkeypatch):
    save, saved = checkpoints._save_whole_model, []

    def killed(model, path):
        saved.append(os.path.basename(path).split(".")[0])
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(model, path)

    monkeypatch.setattr(checkpoints, "_save_whole_model", killed)
    with pytest.raises(KeyboardInterrupt):
        small_train(tmp_path)
    assert saved == ["best", "checkpoint-0001"]
    assert list(files_that_stay(tmp_path)) == ["best.weights.h5"]
    monkeypatch.undo()
    small_train(tmp_path, resume=True)  # the epoch that was lost is the best again
    best = h5_arrays(tmp_path / "best.weights.h5")
    last = h5_arrays(tmp_path / "checkpoint-0001.weights.h5")
    assert best.keys() == last.keys()
    assert all(map(np.array_equal, best.values(), last.values()))


def test_a_checkpoint_of_an_older_version_is_taken(tmp_path):
    small_train(tmp_path, epochs=2, pause_after=1)
    path = tmp_path / "checkpoint-0001.json"
    record = json.loads(path.read_text())
    del record["sha256 of the rest"], record["options"]["deterministic"]
    del record["data"], record["weights"]
    path.write_text(json.dumps(record))
    (tmp_path / "a.h5").write_text("perhaps what it started from")
    small_train(tmp_path, epochs=2, resume=True, weights=str(tmp_path / "a.h5"))
    assert len(read_log(tmp_path)) == 2
    record = checkpoints.last_checkpoint(tmp_path)
    assert "x_train" in record["data"] and "weights" not in record
