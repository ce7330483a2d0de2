import numpy as np
import pytest
from helpers import (
    assert_same_weights,
    classifier,
    files_under,
    options,
    read_log,
    small_capsnet,
    small_data,
    small_train,
    without_seconds,
)

from capsulenet import load_weights, train

CHANGES = ("zoom", "shear", "elastic", "erase")


@pytest.mark.parametrize(
    "build, changes",
    [
        (
            lambda: small_capsnet()[0],
            {"threads": 4, "rotation": 10.0, **dict.fromkeys(CHANGES, 0.1)},
        ),
        (classifier, {"schedule": "cosine", "ema": 0.9}),
        (classifier, {"optimizer": "lamb"}),
    ],
    ids=["threads and augmentation", "cosine and ema", "lamb"],
)
def test_a_run_in_parts_ends_as_one_in_one_piece(tmp_path, build, changes):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = {"epochs": 3, "seed": 7, **changes}
    data, models = small_data(), [build() for _ in range(4)]
    models[1].set_weights(models[0].get_weights())  # the later ones are restored
    train(models[0], data, options(whole, **args))
    for model in models[1:]:
        train(model, data, options(parts, resume=True, pause_after=1, **args))
    assert not (parts / "run-1").exists()  # where a run from the start moves another
    log, expected = (without_seconds(read_log(path)) for path in (parts, whole))
    assert [row["epoch"] for row in log] == [0, 1, 2]
    for row, other in zip(log, expected):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    ends = [build() for _ in range(2)]
    for end, path in zip(ends, (whole, parts)):
        load_weights(end, str(path / "trained_model.h5"))
    for a, b in zip(ends[0].get_weights(), ends[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_run_is_not_resumed_with_other_options(tmp_path):
    train(classifier(), small_data(), options(tmp_path, seed=0))
    with pytest.raises(ValueError, match=r"--lr 0.1 \(there: 0.005\)"):
        train(classifier(), small_data(), options(tmp_path, lr=0.1, resume=True))


def test_resuming_nothing_says_so_and_starts(tmp_path, capsys):
    train(classifier(), small_data(), options(tmp_path, resume=True))
    assert "Nothing to resume" in capsys.readouterr().out
    assert len(read_log(tmp_path)) == 1


def test_resuming_a_finished_run_trains_no_more(tmp_path):
    first = train(classifier(), small_data(), options(tmp_path, seed=0))
    model = classifier()
    train(model, small_data(), options(tmp_path, resume=True))
    assert len(read_log(tmp_path)) == 1 and not (tmp_path / "run-1").exists()
    assert_same_weights(model, first)
    ended = classifier()
    load_weights(ended, str(tmp_path / "trained_model.h5"))
    assert_same_weights(model, ended)


def with_one_image_changed(data):
    (x, y), test = data
    x = x.copy()
    x[17, 3, 4] += 1e-3
    return (x, y), test


def with_one_label_changed(data):
    train, (x, y) = data
    return train, (x, np.roll(y, 1, axis=0))


@pytest.mark.parametrize(
    "change, name",
    [(with_one_image_changed, "x_train"), (with_one_label_changed, "y_test")],
)
def test_a_run_does_not_go_on_with_other_data(tmp_path, change, name):
    small_train(tmp_path, epochs=2, pause_after=1)
    before = files_under(tmp_path)
    args = options(tmp_path, seed=0, epochs=2, resume=True)
    with pytest.raises(ValueError, match=f"--dataset mnist: its {name} .float32 .*run"):
        train(classifier(), change(small_data()), args)
    assert files_under(tmp_path) == before


def test_a_run_that_started_from_no_weights_goes_on_with_none(tmp_path):
    small_train(tmp_path / "run", epochs=2, pause_after=1)
    (tmp_path / "a.h5").write_text("weights")
    with pytest.raises(ValueError, match="a.h5: the run in .* from random weights"):
        small_train(
            tmp_path / "run", epochs=2, resume=True, weights=str(tmp_path / "a.h5")
        )


def test_dropout_goes_on_as_if_never_stopped(tmp_path):
    models = [classifier() for _ in range(3)]
    models[1].set_weights(models[0].get_weights())
    args = {"seed": 3, "epochs": 2, "deterministic": True, "lam_recon": 0.0}
    data = small_data()
    train(models[0], data, options(tmp_path / "whole", **args))
    for model in models[1:]:
        parts = options(tmp_path / "parts", resume=True, pause_after=1, **args)
        train(model, data, parts)
    for a, b in zip(models[0].get_weights(), models[2].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
