import io
import os
import zipfile

import numpy as np
import pytest

from capsnet import data as datasets
from capsnet.data import arrays, load_npz


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
    (x_train, y_train), _, names = datasets.load(npz(tmp_path / "a.npz"))
    assert names == ("0", "1", "2")
    assert x_train.shape == (6, 4, 4, 1) and x_train.dtype == "float32"
    np.testing.assert_allclose(x_train, 0.2)
    np.testing.assert_array_equal(y_train, np.eye(3)[[0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize(
    "dtype, black, white",
    [
        *(("uint8", 0, 255), ("uint16", 0, 65535), ("int16", 0, 255)),
        *(("float32", 0, 1), ("float64", 0, 1)),
    ],
)
def test_each_type_of_images_has_its_white(tmp_path, dtype, black, white):
    x = np.full((6, 4, 4, 3), white / 5).astype(dtype)
    x[0, 0, 0], x[-1, -1, -1] = black, white
    (found, _), _, _ = load_npz(
        npz(tmp_path / "a.npz", x_train=x, x_test=np.zeros((3, 4, 4, 3)))
    )
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, x.astype("float64") / white, rtol=1e-6)


def one_pixel(value, dtype=None):
    """Images of which a single pixel has this value."""
    x = np.zeros((6, 4, 4), dtype or np.asarray(value).dtype)
    x[3, 2, 1] = value
    return x


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_test": None}, "y_test"),
        ({"y_train": np.arange(5) % 3}, "6 images, y_train 5 labels"),
        ({"y_train": np.array(["a"] * 6, object)}, "not a data set"),
        ({"y_train": np.zeros(6)}, "integers or strings"),
        ({"y_train": np.array(list("abcabc"))}, "y_train is <U1, y_test int64"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "one class"),
        ({"y_train": np.zeros((6, 1), int)}, r"shape \(n,\), .*not int64 \(6, 1\)"),
        ({"y_test": np.zeros(2, int)}, "x_test has 3 images, y_test 2 labels"),
        ({"x_train": one_pixel(np.nan)}, r"lie in \[0, 1\]"),
        ({"x_train": one_pixel(1.001)}, r"lie in \[0, 1\]"),
        ({"x_train": one_pixel(-0.001)}, r"lie in \[0, 1\]"),
        ({"x_train": np.zeros((6, 16), "uint8")}, "images must be"),
        ({"x_train": np.zeros((6, 0, 4), "uint8")}, "images must be"),
        ({"x_train": np.zeros((6, 4, 4), bool)}, "images must be"),
        ({"x_train": one_pixel(256, "int64")}, "must lie in 0 to 255"),
        ({"x_train": one_pixel(-1, "int64")}, "must lie in 0 to 255"),
        ({"x_train": np.zeros((0, 4, 4)), "y_train": np.zeros(0, int)}, "labels must"),
        ({"x_test": np.zeros((3, 5, 4), "uint8")}, "different shapes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_npz_that_is_no_data_set_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_npz(npz(tmp_path / "a.npz", **changes))


@pytest.mark.parametrize("n_class, refused", [(2000, False), (2001, True)])
def test_more_than_2000_classes_are_refused(tmp_path, n_class, refused):
    labels = np.arange(n_class)
    images = np.zeros((n_class, 4, 4), "uint8")
    path = npz(tmp_path / "a.npz", x_train=images, y_train=labels)
    if refused:
        with pytest.raises(ValueError, match="2001 classes; are these labels"):
            load_npz(path)
    else:
        assert len(load_npz(path).class_names) == 2000


def test_the_name_of_a_class_has_at_most_255_printable_characters():
    assert all(map(datasets.is_class_name, ("a", "öl", "a b", "a" * 255)))
    others = ("a" * 256, "a\nb", "a\tb", "\x1b[2J", 7, b"a", None)
    assert not any(map(datasets.is_class_name, others))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="array.npy: not a data set"):
        load_npz(tmp_path / "array.npy")
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(ValueError, match="a.npz: not a data set"):
        load_npz(tmp_path / "a.npz")
    with pytest.raises(OSError, match=r"b.npz"):
        load_npz(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "labels, names",
    [
        ([-5, 700, 3], ("-5", "3", "700")),
        (["zebra", "ape", "öl"], ("ape", "zebra", "öl")),
        ([b"b", b"a", b"c"], ("a", "b", "c")),
    ],
)
def test_labels_may_be_strings_or_any_integers(tmp_path, labels, names):
    labels = np.array(labels)
    path = npz(tmp_path / "a.npz", y_train=labels[[0, 1, 2, 0, 1, 2]], y_test=labels)
    _, (_, y_test), found = load_npz(path)
    assert found == names
    order = [np.sort(labels).tolist().index(label) for label in labels.tolist()]
    assert y_test.argmax(1).tolist() == order


def test_labels_of_unsigned_and_signed_integers_stay_integers(tmp_path):
    unsigned, signed = np.arange(6).astype("uint64") % 3, np.array([2, 0, 1])
    path = npz(tmp_path / "a.npz", y_train=unsigned, y_test=signed)
    _, (_, y_test), found = load_npz(path)
    assert found == ("0", "1", "2") and y_test.argmax(1).tolist() == [2, 0, 1]


def npz_claiming(path, shape, dtype="|u1", content=b""):
    """Write a data set whose training images claim a shape that they do not have."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header.getvalue() + content)
        for name in ("y_train", "x_test", "y_test"):
            array = io.BytesIO()
            np.save(array, np.zeros(3, "uint8"))
            archive.writestr(f"{name}.npy", array.getvalue())


@pytest.mark.parametrize(
    "claim, message",
    [
        ({"shape": (10**12, 28, 28)}, "Unable to allocate"),
        ({"shape": (3, 2**31, 2**31)}, "negative dimensions"),
        ({"shape": (-1, 28, 28)}, "negative dimensions"),
        (
            {
                "shape": (3, 28, 28),
                "dtype": "|O",
                "content": b"cos\nsystem\n(S'a'\ntR.",
            },
            "allow_pickle=False",
        ),
        (
            {"shape": (400_000, 28, 28), "content": bytes(400_000 * 784)},
            "unpacks to 314 MB, a bomb",
        ),
    ],
    ids=["huge", "overflow", "negative", "pickle", "bomb"],
)
def test_hostile_data_sets_are_refused(tmp_path, claim, message, monkeypatch):
    monkeypatch.setattr(arrays, "MOST_UNPACKED", 200_000_000)
    path = tmp_path / "a.npz"
    npz_claiming(path, **claim)
    with pytest.raises(ValueError, match=rf"a\.npz: not a data set: .*({message})"):
        datasets.load_npz(path)


@pytest.mark.parametrize(
    "dtype, most, refused",
    [
        ("uint8", 1, "from 0 to 1 would be black, since white is 255"),
        ("int64", 1, "from 0 to 1 would be black"),
        ("uint16", 255, "from 0 to 255 would be black, since white is 65535"),
        ("uint8", 2, None),
        ("uint16", 256, None),
    ],
)
def test_integers_on_a_scale_that_is_not_their_type_s_are_refused(
    tmp_path, dtype, most, refused
):
    x, y = np.zeros((4, 17, 17), "uint8"), np.arange(4) % 2
    other = x.astype(dtype)
    x[:, 3], other[:, 3] = 255, most
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=x, y_train=y, x_test=other, y_test=y)
    if refused is None:
        assert datasets.load_npz(path).test[0].max() > 0
        return
    with pytest.raises(ValueError, match=refused):
        datasets.load_npz(path)


def test_arrays_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    x, y = np.zeros((4, 17, 17), "uint8"), np.arange(4) % 2
    x[:, 3] = 255
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    needed = 2 * x.size * (1 + 4)
    monkeypatch.setattr(arrays.machine, "machine_memory", lambda: needed)
    datasets.load_npz(path)
    monkeypatch.setattr(arrays.machine, "machine_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match="a.npz: needs 0.0 GB, and this machine"):
        datasets.load_npz(path)


@pytest.mark.parametrize("first", [2**60, 2**63 - 2])
def test_signed_and_unsigned_labels_keep_all_their_digits(tmp_path, first):
    x = np.full((4, 17, 17), 255, "uint8")
    y = np.array([first, first + 1] * 2, "uint64")
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y.astype("int64"))
    names = datasets.load_npz(path).class_names
    assert names == (str(first), str(first + 1))
    np.savez(
        path, x_train=x, y_train=y + np.uint64(2**63), x_test=x, y_test=[1, 2, 1, 2]
    )
    with pytest.raises(ValueError, match="labels of 2.*63 and more beside signed"):
        datasets.load_npz(path)


@pytest.mark.parametrize("missing", [1, 0])
def test_a_data_set_may_unpack_to_so_much_or_to_20_times_itself(
    tmp_path, monkeypatch, missing
):
    path = tmp_path / "a.npz"
    x, y = np.zeros((20, 17, 17), "uint8"), np.arange(20) % 2
    np.savez_compressed(path, x_train=x, y_train=y, x_test=x, y_test=y)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    assert unpacked < 20 * os.path.getsize(path)
    monkeypatch.setattr(arrays, "MOST_UNPACKED", 0)
    assert len(datasets.load_npz(path).train[0]) == 20  # by its own size
    monkeypatch.setattr(arrays.os.path, "getsize", lambda path: unpacked // 20 - 1)
    monkeypatch.setattr(arrays, "MOST_UNPACKED", unpacked - missing)
    if missing:
        with pytest.raises(ValueError, match="a bomb"):
            datasets.load_npz(path)
    else:
        assert len(datasets.load_npz(path).train[0]) == 20


def test_labels_that_would_fill_the_memory_are_refused(tmp_path):
    n = 300_000
    x, y = np.zeros((n, 1, 1), "uint8"), (np.arange(n) % 2000).astype("uint16")
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    with pytest.raises(ValueError, match="2000 classes"):
        datasets.load_npz(tmp_path / "a.npz")
