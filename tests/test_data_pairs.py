import itertools

import numpy as np
import pytest
from keras import ops

from capsnet import data as datasets
from capsnet.data import TrainingBatches, ValidationBatches, paired, sets


def dots(n, side=9):
    """An image a class, each one dot in the middle, as bright as its number."""
    x = np.zeros((n, side, side, 1), "float32")
    x[:, side // 2, side // 2, 0] = np.arange(1, n + 1) / (2 * n)
    return x, np.eye(n, dtype="float32")


def test_the_margin_is_that_of_the_authors_and_empty():
    x = np.ones((2, 28, 28, 1), "float32")
    padded = datasets.pad(x)
    assert padded.shape == (2, 36, 36, 1)
    assert padded.sum() == x.sum() and padded[:, 4:-4, 4:-4].min() == 1


def test_a_picture_is_the_sum_of_two_digits_of_different_classes_at_most_one():
    rng = np.random.default_rng(0)
    x = rng.random((30, 8, 8, 1)).astype("float32")
    y = np.eye(3, dtype="float32")[np.arange(30) % 3]
    (pictures, labels), (classes, digits) = TrainingBatches(x, y, 30, overlap=2)[0]
    np.testing.assert_array_equal(pictures, np.minimum(digits.sum(1), 1))
    assert (pictures == 1).any() and (digits.sum(1) > 1).any()
    np.testing.assert_array_equal(classes, labels.sum(1))
    assert (classes.sum(1) == 2).all() and classes.max() == 1


def test_each_image_is_once_the_first_of_a_pair_and_all_others_are_its_partners():
    x, y = dots(4)
    batches = TrainingBatches(x, y, 4, overlap=0)
    partners = set()
    for epoch in range(60):
        batches.draw(epoch)
        _, (_, digits) = batches[0]
        first, second = digits.max((2, 3, 4)).T
        assert len(set(first)) == 4
        partners |= set(zip((8 * first).round(), (8 * second).round()))
    assert partners == set(itertools.permutations([1, 2, 3, 4], 2))


def test_partners_are_drawn_evenly_among_the_images_of_other_classes():
    y = np.eye(2, dtype="float32")[[0] * 100 + [1] * 400]
    x = np.zeros((500, 3, 3, 1), "float32")
    x[:, 1, 1, 0] = np.arange(500) / 500
    _, (_, digits) = TrainingBatches(x, y, 500, overlap=0, seed=1)[0]
    second = (500 * digits[:, 1].max((1, 2, 3))).round()
    assert np.count_nonzero(second < 100) == 400  # partners of class 1
    counts = np.bincount(second[second < 100].astype(int), minlength=100)
    assert 0.5 < counts.var() / counts.mean() < 1.6  # as of independent draws


def test_both_digits_move_on_their_own_by_up_to_the_shift_and_no_further():
    x, y = dots(2, side=15)
    batches = TrainingBatches(x, y, 2, overlap=3, shift_fraction=0.4)
    places = []
    for epoch in range(300):
        batches.draw(epoch)
        _, (_, digits) = batches[0]
        places += [[np.argwhere(d[..., 0])[0] - 7 for d in pair] for pair in digits]
    places = np.array(places)  # (n, which, row and column)
    assert places.min((0, 1)).tolist() == [-3, -3]
    assert places.max((0, 1)).tolist() == [3, 3]
    assert abs(np.corrcoef(places[:, 0, 0], places[:, 1, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("overlap", [0, 2])
def test_pairs_on_the_device_are_the_same(overlap):
    x, y = dots(6)
    how = {"overlap": overlap, "rotation": 20, "zoom": 0.2, "seed": 4}
    here = TrainingBatches(x, y, 3, **how)[1]
    there = TrainingBatches(x, y, 3, on_device=True, **how)[1]
    for pair in zip(here, there):
        for a, b in zip(*pair):
            np.testing.assert_allclose(a, ops.convert_to_numpy(b), atol=1e-6)


def test_the_pairs_of_a_test_are_the_same_each_time_and_go_on_in_blocks():
    x, y = dots(5)
    test = paired(x, y, count=12, shift=2)
    blocks = list(test.blocks())
    assert [len(block.x) for block in blocks] == [5, 5, 2]
    np.testing.assert_array_equal(blocks[0].x, test.x)
    np.testing.assert_array_equal(blocks[0].digits, paired(x, y, shift=2).digits)
    assert not np.array_equal(blocks[0].x, blocks[1].x)
    few = paired(x, y, count=3, shift=2)
    np.testing.assert_array_equal(few.x, test.x[:3])
    pictures, classes = few
    assert len(pictures) == len(classes) == len(few.labels) == len(few.digits) == 3


def test_validation_gives_pairs_with_weights_for_both_digits():
    x, y = dots(5)
    test = paired(x, y, shift=1)
    batches = ValidationBatches(*test, 4, digits=(test.labels, test.digits))
    (pictures, labels), (classes, digits), (of_classes, of_digits) = batches[1]
    np.testing.assert_array_equal(pictures[0], test.x[4])
    np.testing.assert_array_equal(labels[0], test.labels[4])
    np.testing.assert_array_equal(digits[0], test.digits[4])
    assert classes.shape == (4, 5) and of_digits.shape == (4, 1, 1, 1)
    assert (of_classes[1:] == 0).all() and of_digits[1:].sum() == 0


def test_two_classes_make_no_pairs_to_tell_apart(tmp_path):
    x, y = np.zeros((6, 17, 17), "uint8"), np.arange(6)
    x[:, 5] = 255
    for n_class in (2, 3):
        path = str(tmp_path / f"{n_class}.npz")
        labels = y % n_class
        np.savez(path, x_train=x, y_train=labels, x_test=x, y_test=labels)
    assert len(datasets.load(path, overlap=1).test) == 2
    with pytest.raises(ValueError, match="--pairs: of two classes"):
        datasets.load(str(tmp_path / "2.npz"), overlap=1)


@pytest.mark.parametrize(
    "x, y, why",
    [
        (np.zeros((4, 5, 5, 3)), np.eye(4), "coloured.*--color gray"),
        (np.zeros((4, 5, 5, 1)), np.eye(4)[[1, 1, 1, 1]], "the same class"),
        (np.zeros((4, 5, 5, 1)), np.ones((4, 4)), "several classes already"),
    ],
)
def test_what_can_t_be_paired_is_refused_with_the_reason(x, y, why):
    with pytest.raises(ValueError, match=f"--pairs: .*{why}"):
        TrainingBatches(x, y, 2, overlap=1)


def test_multimnist_is_of_36_pixels_and_its_test_of_as_many_pairs_as_are_asked_for(
    monkeypatch,
):
    x, y = dots(10, side=28)
    few = datasets.Data((x, y), (x, y), tuple("0123456789"))
    monkeypatch.setattr(sets, "_load", lambda *args: few)
    data = datasets.load("multimnist", overlap=4, test_size=7)
    assert data.train[0].shape == (10, 36, 36, 1)
    assert (
        data.test.x.shape == (7, 36, 36, 1) and data.test.y.sum(1).tolist() == [2] * 7
    )


@pytest.mark.parametrize("balance", [False, True])
def test_the_commonest_pair_and_classes_are_what_is_drawn(balance):
    y = np.eye(3, dtype="float32")[np.repeat([0, 1, 2], [2000, 300, 200])]
    x = np.zeros((len(y), 2, 2, 1), "float32")
    batches = TrainingBatches(x, y, len(y), overlap=0, balance=balance)
    shown = []
    for epoch in range(20):
        batches.draw(epoch)
        shown.append(batches[0][1][0])
    shown = np.concatenate(shown)
    assert (shown.sum(1) == 2).all()
    _, counts = np.unique(shown, axis=0, return_counts=True)
    assert counts.max() / len(shown) == pytest.approx(batches.commonest, abs=0.01)
    if balance:
        np.testing.assert_allclose(shown.mean(0), 2 / 3, atol=0.01)


def test_the_margin_of_pairs_comes_off():
    for side in (6, 17, 28, 29, 32, 64):
        x = np.random.default_rng(0).random((2, side, side + 3, 1))
        np.testing.assert_array_equal(datasets.unpad(datasets.pad(x)), x)


def test_a_seed_s_pairs_stay_what_they_were():
    """The error that is told of the shipped network is of the pairs of one seed."""
    y = np.eye(4, dtype="float32")[np.arange(40) % 4]
    x = np.zeros((40, 9, 9, 1), "float32")
    order = TrainingBatches(x, y, 40, seed=3, overlap=1).order
    assert order[:8].tolist() == [23, 32, 30, 17, 20, 11, 33, 2]
    assert order[40:48].tolist() == [30, 18, 1, 10, 27, 20, 14, 23]
