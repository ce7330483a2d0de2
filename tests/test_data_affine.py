import argparse
import importlib

import numpy as np
import pytest
import scipy.io

from capsnet import bent, options
from capsnet import data as datasets
from capsnet.data import affine, sets


@pytest.fixture(scope="module")
def digits():
    (x, y), _ = datasets.load_mnist()
    return affine.margin_of(x[:200]), y[:200]


def middle_of(images):
    """Row and column of the centre of the ink, counted from the middle."""
    grid = np.indices(images.shape[1:3]) - (images.shape[1] - 1) / 2
    ink = images[..., 0] / images.sum((1, 2, 3))[:, None, None]
    return np.einsum("nij,dij->nd", ink, grid)


def test_bent_digits_are_whole_and_lie_inside(digits):
    x, y = digits
    made = affine.bent(x, y)
    assert made.x.shape == (200, 40, 40, 1) and made.x.max() <= 1
    np.testing.assert_array_equal(made.y, y)
    # The ink grows as the area does: nothing is cut off.
    share = made.x.sum((1, 2, 3)) / x.sum((1, 2, 3)) / made.changes["scale"] ** 2
    np.testing.assert_allclose(share, 1, atol=0.06)


def test_bent_digits_reach_everywhere_and_every_change_its_limits(digits):
    x, y = digits
    made = affine.bent(x, y, count=1000)
    angle, shear, scale = (made.changes[k] for k in ("angle", "shear", "scale"))
    assert -20 <= angle.min() < -19.5 and 19.5 < angle.max() <= 20
    assert -0.2 <= shear.min() < -0.19 and 0.19 < shear.max() <= 0.2
    assert 0.8 <= scale.min() < 0.85 and 1.15 < scale.max() <= 1.2
    ink = made.x[..., 0] > 0.1
    assert ink.any((0, 2)).all() and ink.any((0, 1)).all()


def test_a_bent_digit_was_moved_as_far_as_is_said(digits):
    made = affine.bent(*digits)
    way = np.abs(middle_of(made.x)).max(1)  # MNIST's ink lies about the middle
    np.testing.assert_allclose(made.changes["shift"], way, atol=1.5)
    assert made.changes["shift"].max() > 2 * affine.REACH > affine.REACH > way.min()


def test_images_without_ink_stay_as_they_are():
    empty = np.zeros((2, 40, 40, 1), "float32")
    made = affine.bent(empty, np.eye(2, dtype="float32"))
    np.testing.assert_array_equal(made.x, empty)
    np.testing.assert_array_equal(made.changes["shift"], 0)


def test_a_turn_is_anticlockwise_and_a_shear_moves_rows_against_each_other():
    arrow = np.zeros((1, 40, 40, 1), "float32")
    arrow[0, 5, 20] = 1  # above the middle
    still = np.zeros((1, 2))
    for angle, shear, scales, place in (
        (90.0, 0.0, (1, 1), (-0.5, -14.5)),  # to the left
        (0.0, 0.2, (1, 1), (-14.5, 0.5 - 0.2 * 14.5)),
        (0.0, 0.0, (0.5, 1), (-7.25, 0.5)),
    ):
        numbers = np.array([angle]), np.array([shear]), np.array([scales])
        matrices = affine._matrices(*numbers)
        expected = matrices[0] @ [-14.5, 0.5]
        np.testing.assert_allclose(expected, place, atol=1e-9)
        made, _ = affine._bend(np.full_like(arrow, 0) + arrow, matrices, still)
        low = -19.5 - expected  # moved as far up and left as it can be
        np.testing.assert_allclose(middle_of(made)[0], expected + low, atol=0.6)


def test_digits_are_bent_the_same_way_each_time(digits):
    few, more = affine.bent(*digits), affine.bent(*digits)
    np.testing.assert_array_equal(few.x, more.x)
    assert not np.array_equal(affine.bent(*digits, seed=1).x, few.x)


def test_upright_digits_are_placed_within_six_pixels(digits):
    x, y = digits
    moved, labels = affine.placed(x, y)
    way = (middle_of(moved) - middle_of(x)).round()
    assert way.min(0).tolist() == [-6, -6] and way.max(0).tolist() == [6, 6]
    np.testing.assert_allclose(moved.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(labels, y)


def test_affnist_is_trained_on_upright_digits_and_validated_on_others_of_them(
    monkeypatch,
):
    (x, y), test = datasets.load_mnist()
    few = datasets.Data((x[:400], y[:400]), test, tuple("0123456789"))
    monkeypatch.setattr(sets, "_load", lambda *args: few)
    args = argparse.Namespace(dataset="affnist", test_size=50)
    data = datasets.load_for(options.complete(args))
    assert data.train[0].shape == (300, 40, 40, 1)
    assert data.held_out[0].shape == (100, 40, 40, 1)
    assert data.test.x.shape == (50, 40, 40, 1)
    assert data.train[0][:, :6].max() == data.train[0][:, :, -6:].max() == 0
    assert data.held_out[0][:, :6].max() > 0
    inside = np.sort(
        data.train[0].sum((1, 2, 3)).tolist() + data.held_out[0].sum((1, 2, 3)).tolist()
    )
    np.testing.assert_allclose(inside, np.sort(x[:400].sum((1, 2, 3))), rtol=1e-5)


def mat(path, images, labels, **more):
    """A file in the format of affNIST's."""
    flat = np.round(images.reshape(len(images), -1).T * 255).astype("uint8")
    struct = {"image": flat, "label_int": labels[None], **more}
    scipy.io.savemat(path, {"affNISTdata": struct})
    return str(path)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])  # MATLAB's own is the second
@pytest.mark.parametrize("columns_first", [False, True])
def test_the_original_files_are_read_upright(tmp_path, digits, columns_first, dtype):
    x, y = digits
    typical = np.stack([x[of > 0].mean(0)[..., 0] for of in y.T])
    test = affine.bent(x, y)
    stored = test.x[..., 0].transpose(0, 2, 1) if columns_first else test.x[..., 0]
    path = mat(tmp_path / "test.mat", stored, y.argmax(1).astype(dtype))
    read = affine.load_mat(path, typical)
    np.testing.assert_allclose(read.x, test.x, atol=0.5 / 255)
    np.testing.assert_array_equal(read.y, y)
    assert read.changes is None


def test_the_original_file_is_tested_in_place_of_bent_digits(
    tmp_path, digits, monkeypatch
):
    few = datasets.Data(*datasets.load_mnist(), tuple("0123456789"))
    few = few._replace(train=tuple(array[:500] for array in few.train))
    monkeypatch.setattr(sets, "_load", lambda *args: few)
    original = affine.bent(*digits, count=6)
    path = mat(tmp_path / "test.mat", original.x[..., 0], original.y.argmax(1))
    args = argparse.Namespace(dataset="affnist", affnist=path)
    test = datasets.load_for(options.complete(args)).test
    np.testing.assert_allclose(test.x, original.x, atol=0.5 / 255)
    bent.show(test, np.ones(6, bool), str(tmp_path))  # how they are bent is not known
    assert [file.name for file in tmp_path.iterdir()] == ["test.mat"]


def test_files_that_are_none_are_refused_in_one_line(tmp_path, monkeypatch):
    typical = np.zeros((10, 40, 40))
    text = tmp_path / "a.mat"
    text.write_text("MATLAB 5.0 MAT-file, so it says")
    newer = tmp_path / "b.mat"
    newer.write_bytes(b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + bytes(400))
    other = tmp_path / "c.mat"
    scipy.io.savemat(other, {"faces": np.zeros(3)})
    wrong = mat(tmp_path / "d.mat", np.zeros((3, 40, 40)), np.arange(2))
    label = mat(tmp_path / "e.mat", np.zeros((2, 40, 40)), np.array([3, 12]))
    below = mat(tmp_path / "f.mat", np.zeros((2, 40, 40)), np.array([3, -1]))
    parts = mat(tmp_path / "g.mat", np.zeros((2, 40, 40)), np.array([3, 1.5]))
    for path in (text, newer, other, wrong, label, below, parts):
        with pytest.raises(ValueError, match=r"--affnist .*\.mat: not a file") as error:
            affine.load_mat(str(path), typical)
        assert "\n" not in str(error.value)
    with pytest.raises(OSError):
        affine.load_mat(str(tmp_path / "nowhere.mat"), typical)

    def nothing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(ValueError, match="pip install scipy"):
        affine.load_mat(wrong, typical)
