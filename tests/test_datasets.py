import os
import shutil

import keras
import numpy as np
import pytest

import datasets
from datasets import TrainingBatches, ValidationBatches, load_npz, shift_images


def images(n, height=6, width=5, channels=1):
    return np.random.random((n, height, width, channels)).astype("float32")


def one_hot(n, n_class=3):
    return np.eye(n_class, dtype="float32")[np.arange(n) % n_class]


def numbered(n):
    """Images that each show their own number, so that a batch tells what is in it."""
    return np.ones((n, 2, 2, 1), "float32") * np.arange(n)[:, None, None, None]


def numbers(batches, index):
    (x, _), _ = batches[index]
    return keras.ops.convert_to_numpy(x)[:, 0, 0, 0].astype(int).tolist()


# MNIST and .npz ----------------------------------------------------------------------


def test_mnist_is_whole():
    (x_train, y_train), (x_test, y_test) = datasets.load_mnist()
    assert x_train.shape == (60000, 28, 28, 1) and x_test.shape == (10000, 28, 28, 1)
    assert x_train.dtype == y_train.dtype == "float32"
    assert (x_train.min(), x_train.max()) == (0, 1)
    # How often each digit occurs in the official training and test sets.
    assert y_train.sum(0).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert y_test.sum(0).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert y_train[:5].argmax(1).tolist() == [5, 0, 4, 1, 9]


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_damaged_mnist_is_refused(tmp_path, harm):
    path = tmp_path / "mnist.npz"
    shutil.copy(datasets.MNIST_PATH, path)
    with open(path, "r+b") as file:
        if harm == "truncated":
            file.truncate(os.path.getsize(path) // 2)
        else:
            file.seek(5_000_000)
            file.write(b"\0\1\2\3")
    with pytest.raises(ValueError, match="mnist.npz: damaged"):
        datasets.load_mnist(path)


def npz(path, **changes):
    arrays = {
        "x_train": np.full((6, 4, 4), 51, "uint8"),
        "y_train": np.arange(6) % 3,
        "x_test": np.zeros((3, 4, 4), "uint8"),
        "y_test": np.arange(3),
        **changes,
    }
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return str(path)


def test_npz_is_scaled_and_one_hot(tmp_path):
    (x_train, y_train), _ = load_npz(npz(tmp_path / "a.npz"))
    assert x_train.shape == (6, 4, 4, 1) and x_train.dtype == "float32"
    np.testing.assert_allclose(x_train, 0.2)
    np.testing.assert_array_equal(y_train, np.eye(3)[[0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_test": None}, "y_test"),
        ({"y_train": np.arange(5) % 3}, "6 images, y_train 5 labels"),
        ({"y_train": np.array(["a"] * 6, object)}, "not a data set"),
        ({"y_train": np.arange(6) - 1}, "integers from 0 on"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "one class"),
        ({"x_train": np.full((6, 4, 4), np.nan)}, r"lie in \[0, 1\]"),
        ({"x_train": np.full((6, 4, 4), 200.0)}, r"lie in \[0, 1\]"),
        ({"x_train": np.zeros((6, 16), "uint8")}, "images must be"),
        ({"x_train": np.full((6, 4, 4), 256)}, "must lie in 0 to 255"),
        ({"y_train": np.full(6, 10**9)}, "exceeds the number of images"),
        ({"x_test": np.zeros((3, 5, 4), "uint8")}, "different shapes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_npz_that_is_no_data_set_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_npz(npz(tmp_path / "a.npz", **changes))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="array.npy: not a data set"):
        load_npz(tmp_path / "array.npy")
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(ValueError, match="a.npz: not a data set"):
        load_npz(tmp_path / "a.npz")
    with pytest.raises(OSError, match=r"b.npz"):
        load_npz(tmp_path / "b.npz")


# Shifts ------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_shifts_move_whole_pixels_and_fill_with_zeros(xp):
    x = images(3, 4, 5, 2) + 1
    shifts = np.array([[0, 0], [1, -2], [-3, 5]], "int32")
    moved = keras.ops.convert_to_numpy(shift_images(x, shifts, xp))
    np.testing.assert_array_equal(moved[0], x[0])
    np.testing.assert_array_equal(moved[1, 1:, :3], x[1, :3, 2:])
    assert not moved[1, 0].any() and not moved[1, :, 3:].any()
    assert not moved[2].any()


def test_shifts_reach_two_pixels_on_mnist_and_no_further():
    x = np.zeros((4000, 28, 28, 1), "float32")
    x[:, 14, 14] = 1
    (moved, _), _ = TrainingBatches(x, one_hot(4000), 4000, shift_fraction=0.1)[0]
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 4000
    for positions in (rows, columns):
        values, counts = np.unique(positions, return_counts=True)
        assert values.tolist() == [12, 13, 14, 15, 16]
        assert counts.min() > 4000 / 5 * 0.8


# Batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("n, batch_size", [(10, 4), (12, 4), (3, 8)])
def test_an_epoch_shows_every_image_in_batches_of_one_size(n, batch_size):
    batches = TrainingBatches(numbered(n), one_hot(n), batch_size)
    seen = [numbers(batches, index) for index in range(len(batches))]
    assert len(batches) == -(-n // batch_size)
    assert {len(batch) for batch in seen} == {min(batch_size, n)}
    assert sorted(np.ravel(seen)[:n]) == list(range(n))


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        batches = TrainingBatches(numbered(50), one_hot(50), 50, seed=seed)
        batches.draw(epoch)
        return numbers(batches, 0)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_the_target_is_the_shifted_image_and_labels_stay_with_their_images():
    x, y = numbered(20), np.eye(20, dtype="float32")
    batches = TrainingBatches(x, y, 8, shift_fraction=0.5)
    (x_in, y_in), (y_out, x_out) = batches[1]
    np.testing.assert_array_equal(x_in, x_out)
    np.testing.assert_array_equal(y_in, y_out)
    assert (x_in == 0).any()
    for image, label in zip(x_in, y_in):
        assert set(np.unique(image)) <= {0, label.argmax()}


def test_batches_on_the_device_are_the_same():
    x, y = images(10), one_hot(10)
    options = {"batch_size": 4, "shift_fraction": 0.4, "seed": 3}
    for index in range(3):
        host = TrainingBatches(x, y, **options)[index]
        device = TrainingBatches(x, y, on_device=True, **options)[index]
        for a, b in zip(keras.tree.flatten(host), keras.tree.flatten(device)):
            np.testing.assert_array_equal(a, keras.ops.convert_to_numpy(b))


@pytest.mark.parametrize("n, batch_size", [(10, 4), (12, 4), (3, 8)])
def test_validation_weights_make_averages_exact(n, batch_size):
    batches = ValidationBatches(numbered(n), one_hot(n), batch_size)
    means, sizes = [], []
    for index in range(len(batches)):
        (x, _), _, (weights, _) = batches[index]
        means.append((x[:, 0, 0, 0] * weights).mean())
        sizes.append(len(x))
    assert len(set(sizes)) == 1
    assert np.mean(means) == pytest.approx(np.arange(n).mean())
