import gzip
import io
import os
import pickle
import shutil
import struct
import zlib

import keras
import numpy as np
import pytest
from conftest import ROOT, run_python
from PIL import Image, ImageOps

from capsnet import data as datasets
from capsnet import machine
from capsnet.data import (
    TrainingBatches,
    ValidationBatches,
    folders,
    load_npz,
    sets,
    shift_images,
)
from capsnet.data import images as picture_files


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
    (x_train, y_train), (x_test, y_test), names = datasets.load("mnist")
    assert names == tuple("0123456789")
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
    shutil.copy(sets.MNIST_PATH, path)
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
        ({"y_train": np.zeros((6, 1), int)}, r"shape \(n,\), not int64 \(6, 1\)"),
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


def test_a_data_set_that_is_nowhere_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="nowhere: .* mnist, fashion_mnist, cifar10"):
        datasets.load("nowhere")


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


# Pictures ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def keras_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("home")))


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, "uint8")


def save_pictures(root, names=("ape", "bee"), n=5, shape=(6, 5), ending="png"):
    for label, name in enumerate(names):
        os.makedirs(os.path.join(root, name))
        for i in range(n):
            picture = np.full(shape, (100 * label + i) % 256, "uint8")
            Image.fromarray(picture).save(os.path.join(root, name, f"{i}.{ending}"))
    return str(root)


def read(picture, path, **options):
    picture.save(path, **options)
    return datasets.read_picture(str(path))


def test_pictures_of_every_kind_are_read_as_they_are_meant(tmp_path):
    gray, colour = pixels(4, 6), pixels(4, 6, 3)
    for ending in ("png", "bmp", "gif"):
        same = read(Image.fromarray(gray), tmp_path / f"a.{ending}")
        assert same.mode == ("RGB" if ending == "gif" else "L")  # GIF has a palette
        np.testing.assert_array_equal(np.asarray(same.convert("L")), gray)
    jpeg = read(Image.fromarray(np.full((8, 8, 3), 90, "uint8")), tmp_path / "a.jpg")
    assert jpeg.mode == "RGB" and abs(np.asarray(jpeg).astype(int) - 90).max() <= 2
    values = gray.astype("uint16") * 257
    values[0, 0] = 33025  # 128.502 of 255
    deep = np.array(read(Image.fromarray(values), tmp_path / "deep.png"))
    assert deep[0, 0] == 129
    deep[0, 0] = gray[0, 0]
    np.testing.assert_array_equal(deep, gray)
    two = read(Image.fromarray(gray > 99), tmp_path / "two.png")
    assert two.mode == "L"
    np.testing.assert_array_equal(np.asarray(two), 255 * (gray > 99))
    palette = Image.fromarray(colour // 64 * 64).quantize(200)
    back = read(palette, tmp_path / "palette.png")
    np.testing.assert_array_equal(np.asarray(back), np.asarray(palette.convert("RGB")))
    alpha = np.dstack([np.zeros((4, 6, 3), "uint8"), np.full((4, 6), 0, "uint8")])
    alpha[0, :, 3] = 255
    seen = np.asarray(read(Image.fromarray(alpha), tmp_path / "alpha.png").convert("L"))
    assert (seen[0] == 0).all() and (seen[1:] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    assert read(Image.fromarray(gray), tmp_path / "r.jpg", exif=exif).size == (4, 6)
    frames = [Image.fromarray(np.full((4, 6), v, "uint8")) for v in (10, 200)]
    first = read(frames[0], tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(first.convert("L"))[0, 0] == 10


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    header = io.BytesIO()
    Image.new("L", (1, 1)).save(header, "PNG")
    content = bytearray(header.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match="bomb.png: not a readable picture"):
        datasets.read_picture(str(tmp_path / "bomb.png"))


def test_a_folder_of_pictures(tmp_path):
    data = datasets.load(save_pictures(tmp_path / "a", n=10))
    assert data.class_names == ("ape", "bee")
    (x, y), (x_test, y_test) = data.train, data.test
    assert x.shape == (16, 6, 5, 1) and x_test.shape == (4, 6, 5, 1)
    assert y.sum(0).tolist() == [8, 8] and y_test.sum(0).tolist() == [2, 2]
    values = np.round(255 * np.concatenate([x, x_test])[:, 0, 0, 0])
    assert sorted(values) == [*range(10), *range(100, 110)]
    for images, labels in (data.train, data.test):
        np.testing.assert_array_equal(images[:, 0, 0, 0] > 0.3, labels[:, 1] == 1)


def test_the_classes_are_in_the_order_of_their_names(tmp_path):
    names = ("d", "b", "train", "e", "a", "c")  # without test that is a class
    data = datasets.load(save_pictures(tmp_path / "a", names))
    assert data.class_names == ("a", "b", "c", "d", "e", "train")
    assert data.train[1].sum(0).tolist() == [4] * 6
    (x, y), shades = data.test, np.arange(6) * 100 % 256
    expected = shades[[names.index(data.class_names[i]) for i in y.argmax(1)]]
    assert (abs(255 * x[:, 0, 0, 0] - expected) < 5).all()


def test_the_split_follows_from_the_seed_and_its_share(tmp_path):
    path = save_pictures(tmp_path / "a", n=10)
    drawn = [datasets.load(path, seed=seed).test[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert len(datasets.load(path, test_share=0.5).test[0]) == 10
    options = {"image_size": None, "color": "auto", "test_share": 0.2, "seed": 0}
    expected = datasets.load(path, **options).test[0]
    assert expected.shape == (4, 6, 5, 1)
    for load in (datasets.load, datasets.load_folder):  # always the same
        np.testing.assert_array_equal(load(path).test[0], expected, strict=True)
    for share, each in ((0.01, 1), (0.99, 9)):  # none is left without
        labels = datasets.load(path, test_share=share).test[1]
        assert labels.sum(0).tolist() == [each, each]


def test_the_split_does_not_depend_on_the_order_of_a_directory(tmp_path, monkeypatch):
    path, tests, scandir = save_pictures(tmp_path / "a", n=10), [], os.scandir
    for step in (1, -1):
        monkeypatch.setattr(os, "scandir", lambda p, s=step: list(scandir(p))[::s])
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / f"home{step}"))
        tests.append(datasets.load(path).test[0])
    np.testing.assert_array_equal(*tests)


def test_hidden_files_and_what_is_no_picture_are_passed_over(tmp_path, capsys):
    path = save_pictures(tmp_path / "a", n=10)
    (tmp_path / "a" / "list.txt").write_text("")
    save_pictures(tmp_path / "a", (".hidden",), n=3)
    for name in ("._0.png", "notes.txt"):
        (tmp_path / "a" / "ape" / name).write_text("no picture")
    (tmp_path / "a" / "ape" / "0.png").rename(tmp_path / "a" / "ape" / "0.PNG")
    data = datasets.load(path)
    assert data.class_names == ("ape", "bee")
    assert len(data.train[0]) + len(data.test[0]) == 20
    assert "readable" not in capsys.readouterr().out
    below = datasets.pictures_under(str(tmp_path))
    assert len(below) == 24 and below == sorted(below)
    assert all(name.lower().endswith(".png") for name in below)


def test_folders_train_and_test_are_taken_as_they_are(tmp_path):
    save_pictures(tmp_path / "a" / "train", n=5)
    save_pictures(tmp_path / "a" / "test", n=2)
    data = datasets.load(str(tmp_path / "a"))
    assert [len(split[0]) for split in data[:2]] == [10, 4]


def test_size_and_colour_of_a_folder_s_pictures(tmp_path, capsys):
    path = save_pictures(tmp_path / "a")
    assert datasets.load(path, (9, 7), "rgb").train[0].shape[1:] == (9, 7, 3)
    assert "several sizes" not in capsys.readouterr().out
    Image.fromarray(pixels(20, 30, 3)).save(tmp_path / "a" / "ape" / "big.png")
    assert datasets.load(path).train[0].shape[1:] == (32, 32, 3)
    assert f"{path}: pictures of several sizes, scaled" in capsys.readouterr().out
    assert datasets.load(path, color="gray").train[0].shape[1:] == (32, 32, 1)


@pytest.mark.parametrize("channel", [None, 0, 1, 2])
def test_pictures_are_grey_where_no_pixel_has_a_colour(tmp_path, channel):
    path = save_pictures(tmp_path / "a")
    picture = np.full((6, 5, 3), 99, "uint8")
    if channel is not None:
        picture[3, 2, channel] = 98
    Image.fromarray(picture).save(tmp_path / "a" / "ape" / "rgb.png")
    channels = datasets.load(path).train[0].shape[3]
    assert channels == (1 if channel is None else 3)


def test_a_broken_picture_costs_a_line_and_not_the_run(tmp_path, capsys):
    path = save_pictures(tmp_path / "a")
    broken = tmp_path / "a" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    for cached in (False, True):
        data = datasets.load(path)
        assert len(data.train[0]) + len(data.test[0]) == 9
        printed = capsys.readouterr().out
        assert "1 of 10 pictures are not readable" in printed
        assert (f"Left out: {broken}: not a readable picture" in printed) != cached
    broken.unlink()
    datasets.load(path)
    assert "readable" not in capsys.readouterr().out


def test_the_second_start_reads_no_picture_until_one_changes(tmp_path, monkeypatch):
    path = save_pictures(tmp_path / "a")
    count = []
    reader = datasets.read_picture
    monkeypatch.setattr(
        picture_files,
        "read_picture",
        lambda file: (count.append(file), reader(file))[1],
    )
    first = datasets.load(path)
    assert len(count) == 10
    np.testing.assert_array_equal(datasets.load(path).train[0], first.train[0])
    assert len(count) == 10
    Image.fromarray(np.zeros((6, 5), "uint8")).save(tmp_path / "a" / "ape" / "new.png")
    for _ in range(2):
        assert len(datasets.load(path).train[0]) == len(first.train[0]) + 1
        assert len(count) == 21


@pytest.mark.parametrize("harm", ["empty", "half", "other arrays", "objects"])
def test_a_damaged_cache_is_not_believed(tmp_path, harm):
    path = save_pictures(tmp_path / "a")
    first = datasets.load(path)
    folder = os.path.join(os.environ["KERAS_HOME"], "capsnet")
    (name,) = os.listdir(folder)
    cached = os.path.join(folder, name)
    if harm == "other arrays":
        np.savez(cached, images=np.zeros((10, 6, 5, 1), "uint8"))
    elif harm == "objects":
        objects = np.array([None] * 10, object)
        np.savez(cached, images=objects, readable=objects)
    else:
        size = 0 if harm == "empty" else os.path.getsize(cached) // 2
        os.truncate(cached, size)
    np.testing.assert_array_equal(datasets.load(path).train[0], first.train[0])


def test_two_folders_that_look_alike_are_not_taken_for_each_other(tmp_path):
    for shade, name in enumerate("ab"):
        path = save_pictures(tmp_path / name, n=2, ending="bmp")
        for file in datasets.pictures_under(path):
            Image.new("L", (5, 6), 100 * shade).save(file)
            os.utime(file, (1, 1))
        data = datasets.load(path)
        assert (data.train[0] == np.float32(100 * shade / 255)).all()


def test_a_cache_that_can_not_be_written_leaves_nothing(tmp_path, monkeypatch, capsys):
    def half(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", half)
    datasets.load(save_pictures(tmp_path / "a"))
    assert "not cached (disk full)" in capsys.readouterr().out
    assert os.listdir(os.path.join(os.environ["KERAS_HOME"], "capsnet")) == []


def cached():
    return os.listdir(os.path.join(os.environ["KERAS_HOME"], "capsnet"))


def test_the_cache_drops_what_was_longest_unused(tmp_path, monkeypatch):
    one = save_pictures(tmp_path / "a", n=50)  # 3,000 bytes of pixels
    datasets.load(one)
    (of_one,) = cached()
    home = os.path.join(os.environ["KERAS_HOME"], "capsnet")
    size = os.path.getsize(os.path.join(home, of_one))
    monkeypatch.setattr(folders, "CACHE_BYTES", 2 * size)
    datasets.load(save_pictures(tmp_path / "b", n=50))
    (of_two,) = set(cached()) - {of_one}
    for name, when in ((of_one, 1000), (of_two, 2000)):
        os.utime(os.path.join(home, name), (when, when))
    datasets.load(one)  # used after the other one
    datasets.load(save_pictures(tmp_path / "c", n=50))
    assert len(cached()) == 2 and of_one in cached() and of_two not in cached()


def test_what_a_dead_process_left_in_the_cache_leaves_it_first(tmp_path, monkeypatch):
    home = os.path.join(os.environ["KERAS_HOME"], "capsnet")
    os.makedirs(home)
    for name, when in (("half.77.tmp.npz", 1000), ("whole.npz", 2000), ("mine", 500)):
        with open(os.path.join(home, name), "wb") as file:
            file.write(bytes(5000))
        os.utime(file.name, (when, when))
    monkeypatch.setattr(folders, "CACHE_BYTES", 9999)
    datasets.load(save_pictures(tmp_path / "a"))
    left = set(cached())
    assert {"whole.npz", "mine"} < left and len(left) == 3
    monkeypatch.setattr(folders, "CACHE_BYTES", 5000)
    datasets.load(save_pictures(tmp_path / "b"))
    assert "whole.npz" not in cached() and "mine" in cached()


@pytest.mark.parametrize("fault", ["gone", "kept"])
def test_what_can_not_leave_the_cache_costs_nothing(tmp_path, monkeypatch, fault):
    remove = os.remove

    def fail(path):
        if fault == "kept":
            raise PermissionError(path)
        remove(path)  # another process was first
        remove(path)

    datasets.load(save_pictures(tmp_path / "a", n=50))
    monkeypatch.setattr(folders, "CACHE_BYTES", 5000)
    monkeypatch.setattr(os, "remove", fail)
    data = datasets.load(save_pictures(tmp_path / "b", n=50))
    assert len(data.train[0]) == 80
    assert len(cached()) == (1 if fault == "gone" else 2)


def test_pictures_larger_than_the_cache_do_not_empty_it(tmp_path, monkeypatch, capsys):
    datasets.load(save_pictures(tmp_path / "a", n=5))
    before = cached()
    monkeypatch.setattr(folders, "CACHE_BYTES", 2900)
    datasets.load(save_pictures(tmp_path / "b", n=50))
    assert "not cached (they take more than" in capsys.readouterr().out
    assert cached() == before


# What a hostile name would do on a terminal: clear it, forge a line, turn the writing.
HOSTILE = "\x1b[2J\x1b[Hseven\r\neight\u202egnp"


def test_names_of_pictures_reach_no_terminal_as_they_are(tmp_path, capsys):
    path = save_pictures(tmp_path / "a")
    names = [os.fsencode(HOSTILE), b"\xff\xfe"]
    for name in names:
        with open(os.path.join(os.fsencode(path), b"ape", name + b".png"), "wb"):
            pass
    datasets.load(path)
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.split("\n"))
    assert r"\x1b[2J\x1b[Hseven\r\neight\u202egnp.png: not a readable" in said
    assert r"\udcff\udcfe.png: not a readable" in said


def test_names_of_folders_reach_no_terminal_as_they_are(tmp_path):
    for names in ([HOSTILE], [HOSTILE, "ape"]):
        for name in names:
            os.makedirs(tmp_path / "a" / name, exist_ok=True)
        with pytest.raises(ValueError, match="seven.*eight") as refused:
            datasets.load(str(tmp_path / "a"))
        assert str(refused.value).isprintable()
    save_pictures(tmp_path / "b", ("ape", HOSTILE), n=1)
    with open(tmp_path / "b" / HOSTILE / "0.png", "w"):
        pass
    with pytest.raises(ValueError, match="holds no readable pictures") as refused:
        datasets.load(str(tmp_path / "b"))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "groups, limits, expected",
    [
        ("0::/a/b", {"a/b/memory.max": "5000", "a/memory.max": "max"}, 5000),
        ("0::/a/b", {"a/b/memory.max": "5000", "a/memory.max": "4000"}, 4000),
        ("0::/", {"memory.max": "3000"}, 3000),
        ("0::/../elsewhere", {"memory.max": "3000", "a/memory.max": "1"}, 3000),
        ("0::/a", {"a/memory.max": "max"}, None),
        ("0::/a", {"a/memory.max": str(2**62)}, None),
        ("0::/a", {}, None),
        ("0::/a:b", {"a:b/memory.max": "2000"}, 2000),
        (
            "3:cpu:/c\n2:memory:/a/b\n0::/u",
            {
                "memory/a/b/memory.limit_in_bytes": "7000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/c/memory.limit_in_bytes": "1",
            },
            7000,
        ),
        (
            "2:cpu,memory:/docker/0123",
            {"memory/memory.limit_in_bytes": "6000"},
            6000,
        ),
        (None, {"memory.max": "1"}, None),
    ],
)
def test_the_memory_that_a_container_is_limited_to_counts(
    tmp_path, groups, limits, expected
):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, limit in limits.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit + "\n")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.machine_memory(tmp_path) == (expected or whole)


@pytest.mark.parametrize("image_size", [None, [6, 5]])
def test_pictures_that_would_fill_the_memory_are_refused(
    tmp_path, monkeypatch, image_size
):
    path = save_pictures(tmp_path / "a")  # 10 x 30 pixels
    seen, reader = [], datasets.read_picture
    monkeypatch.setattr(
        picture_files, "read_picture", lambda file: (seen.append(file), reader(file))[1]
    )
    monkeypatch.setattr(machine, "machine_memory", lambda: 7199)
    with pytest.raises(ValueError, match="a smaller --image_size"):
        datasets.load(path, image_size)
    assert len(seen) == (0 if image_size else 10)  # as soon as it is known
    monkeypatch.setattr(machine, "machine_memory", lambda: 7200)
    assert datasets.load(path, image_size).train[0].shape[1:3] == (6, 5)


def test_names_of_classes_that_can_not_be_printed_are_refused(tmp_path):
    path = save_pictures(tmp_path / "a", ("ape", "b\tee"))
    with pytest.raises(ValueError, match=r"'b\\tee': a name has"):
        datasets.load(path)


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "found none"),
        (("ape",), "found ape"),
        (("ape", "bee", "cow/empty"), "cow: holds no pictures"),
        (("train/ape", "train/bee", "test/ape"), "test.bee: holds no pictures"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path, names, message):
    (tmp_path / "a").mkdir()
    for name in names:
        save_pictures(tmp_path / "a", (name,))
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path / "a"))


def test_one_picture_a_class_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="too few pictures for a training and a test"):
        datasets.load(save_pictures(tmp_path / "a", n=1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_broken_pictures_only_is_refused(tmp_path, split):
    for name in ("train", "test"):
        save_pictures(tmp_path / "a" / name, n=1)
    for file in datasets.pictures_under(tmp_path / "a" / split):
        os.truncate(file, 9)
    with pytest.raises(ValueError, match="too few pictures for a training and a test"):
        datasets.load(str(tmp_path / "a"))


def test_a_class_of_broken_pictures_only_is_refused(tmp_path):
    path = save_pictures(tmp_path / "a", n=1)
    (tmp_path / "a" / "bee" / "0.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="bee: holds no readable pictures"):
        datasets.load(path)
    (tmp_path / "a" / "ape" / "0.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="a: holds no readable pictures"):
        datasets.load(path)


def test_fashion_mnist_is_read_from_keras_files(tmp_path):
    folder = os.path.join(os.environ["KERAS_HOME"], "datasets", "fashion-mnist")
    os.makedirs(folder)
    for split, n in (("train", 12), ("t10k", 7)):
        x, y = pixels(n, 28, 28), np.arange(n, dtype="uint8") % 10
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            sizes = struct.pack(f">{array.ndim}I", *array.shape)
            name = os.path.join(folder, f"{split}-{kind}-ubyte.gz")
            with gzip.open(name, "wb") as file:
                file.write(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    # Keras reads the variable when it is imported.
    program = (
        f"import sys; sys.path.insert(0, {ROOT!r})\n"
        "import numpy\nfrom capsnet import data as datasets\n"
        "data = datasets.load('fashion_mnist')\n"
        "print(data.train[0].shape, data.test[1].shape, data.class_names[9])\n"
        "numpy.save('x_test.npy', data.test[0])"
    )
    printed = run_python(program, tmp_path).splitlines()[-1]
    assert printed == "(12, 28, 28, 1) (7, 10) Ankle boot"
    x_test = np.load(tmp_path / "x_test.npy")
    np.testing.assert_allclose(x_test[..., 0], pixels(7, 28, 28) / 255, atol=1e-6)


@pytest.mark.parametrize("python", [2, 3])
def test_cifar10_is_read_from_its_own_format(monkeypatch, python):
    folder = os.path.join(os.environ["KERAS_HOME"], "datasets")
    folder = os.path.join(folder, "cifar-10-batches-py-target", "cifar-10-batches-py")
    os.makedirs(folder)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", None)  # not asked for
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    data = pixels(6, 2, 3, 32, 32)  # two pictures a file, as planes of colours
    for name, planes, label in zip(names, data, range(6)):
        batch = {b"data": planes.reshape(2, -1), b"labels": [label, 9]}
        content = pickle.dumps(batch, protocol=2)
        if python == 2:  # whose keys are strings that are bytes
            values = [pickle.dumps(value, protocol=2)[2:-1] for value in batch.values()]
            content = b"\x80\x02}(U\x04data%bU\x06labels%bu." % tuple(values)
            content = content.replace(b"numpy._core", b"numpy.core")
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    (x, y), (x_test, y_test), class_names = datasets.load("cifar10")
    assert y.argmax(1).tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert y_test.argmax(1).tolist() == [5, 9] and y.shape[1] == y_test.shape[1] == 10
    assert (class_names[0], class_names[9]) == ("airplane", "truck")
    images = np.moveaxis(data, 2, -1).reshape(12, 32, 32, 3) / 255
    np.testing.assert_allclose(np.concatenate([x, x_test]), images, atol=1e-6)


FILES = {
    "fashion_mnist": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz from "
    "https://github.com/zalandoresearch/fashion-mnist into "
    "HOME/datasets/fashion-mnist",
    "cifar10": "the unpacked cifar-10-python.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html into "
    "HOME/datasets/cifar-10-batches-py-target",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("variable", ["KERAS_HOME", "HOME"])
def test_without_a_network_it_says_which_file_to_put_where(
    name, variable, monkeypatch, tmp_path
):
    def fail():
        raise Exception("URL fetch failure\nand more")  # noqa: TRY002 (as Keras does)

    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", fail)
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv(variable, str(tmp_path))
    home = tmp_path / ".keras" if variable == "HOME" else tmp_path
    with pytest.raises(ValueError) as refused:
        datasets.load(name)
    assert str(refused.value) == (
        f"--dataset {name}: can't be downloaded (URL fetch failure); put "
        + FILES[name].replace("HOME", str(home))
    )


def test_a_picture_of_the_model_s_size_is_left_as_it_is():
    (x, _), _ = datasets.load_mnist()
    digit = Image.fromarray((x[0, :, :, 0] * 255).astype("uint8"))
    same = datasets.fit_picture(digit, (28, 28, 1), like_mnist=True)
    np.testing.assert_allclose(same, x[0], atol=1 / 255)
    inverted = ImageOps.invert(digit)
    same = datasets.fit_picture(inverted, (28, 28, 1), like_mnist=True)
    np.testing.assert_allclose(same, x[0], atol=1 / 255)
    kept = datasets.fit_picture(inverted, (28, 28, 1), like_mnist=True, invert=False)
    np.testing.assert_allclose(kept, 1 - x[0], atol=1 / 255)


def test_a_picture_is_scaled_as_a_whole_unless_the_model_is_of_mnist():
    colour = Image.fromarray(pixels(4, 6, 3))
    gray = Image.fromarray(np.full((28, 28), 240, "uint8"))  # no drawing: not inverted
    for picture, shape, kind in (
        *((colour, (4, 6, 3), "RGB"), (colour, (9, 7, 3), "RGB")),
        *((colour, (4, 6, 1), "L"), (gray, (28, 28, 1), "L"), (gray, (4, 6, 3), "RGB")),
    ):
        expected = picture.convert(kind)
        if shape[:2] != picture.size[::-1]:
            expected = expected.resize((shape[1], shape[0]))
        expected = np.asarray(expected, "float64").reshape(shape) / 255
        for options in [{}] + [{"like_mnist": True}] * (shape[2] == 3):
            fitted = datasets.fit_picture(picture, shape, **options)
            assert fitted.dtype == "float32"
            np.testing.assert_allclose(fitted, expected, rtol=1e-6)


@pytest.mark.parametrize("sides", [(0, 0), (-1, -1), (0, -1), (-1, 0)])
def test_a_drawing_is_inverted_where_most_of_its_border_is_light(sides):
    x = np.zeros((28, 28), "uint8")
    x[sides[0]] = x[:, sides[1]] = 153  # light are 58 of the 112 pixels of the border
    for light in (x, 255 - x):  # of the second they are dark
        fitted = datasets.fit_picture(Image.fromarray(light), (28, 28, 1), True)
        np.testing.assert_allclose(fitted[..., 0], (255 - x) / 255, atol=1e-6)


def drawn(x, ground=0):
    """What becomes of a drawing on a larger sheet; the corners of its ink, too."""
    sheet = np.full((100, 120), ground, "uint8")
    sheet[30 : 30 + x.shape[0], 50 : 50 + x.shape[1]] = x
    fitted = datasets.fit_picture(Image.fromarray(sheet), (28, 28, 1), True)[..., 0]
    assert fitted.dtype == "float32"
    rows, columns = (np.flatnonzero(fitted.any(axis)) for axis in (1, 0))
    return fitted, (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


@pytest.mark.parametrize("ink, ground", [(255, 0), (100, 0), (230, 60), (0, 255)])
def test_a_block_fills_20_of_28_pixels_about_the_middle(ink, ground):
    for turned in (False, True):
        x = np.full((40, 20), ink, "uint8")
        fitted, _ = drawn(x.T if turned else x, ground)
        expected = np.zeros((28, 28))
        expected[4:24, 10:20] = 1  # its centre, at 9.5 and 4.5, goes to 14 at most
        np.testing.assert_allclose(fitted, expected.T if turned else expected)


def test_a_thin_line_stays_one_pixel_wide_and_an_empty_sheet_empty():
    _, corners = drawn(np.full((60, 1), 255, "uint8"))
    assert corners[:2] == (4, 24) and corners[3] - corners[2] == 1
    for shade in (0, 128, 255):
        sheet = Image.fromarray(np.full((50, 40), shade, "uint8"))
        empty = datasets.fit_picture(sheet, (28, 28, 1), True)
        assert empty.shape == (28, 28, 1) and empty.dtype == "float32"
        assert not empty.any()


def test_ink_below_a_twentieth_of_the_strongest_is_ground():
    for faint, counts in ((8, True), (5, False)):  # of 128
        x = np.full((20, 60), 0, "uint8")
        x[:, :20] = 128
        x[10, 59] = faint
        fitted, _ = drawn(x)
        width = np.count_nonzero(fitted.max(0) > 0.5)
        assert width == (7 if counts else 20)


def test_a_drawing_with_its_mass_at_one_end_stays_inside():
    x = np.zeros((40, 40), "uint8")
    x[:4], x[:, 20] = 255, 255  # a bar with a stem
    for turned, rows, columns in (
        *((x, (8, 28), None), (x[::-1], (0, 20), None)),
        *((x.T, None, (8, 28)), (x.T[:, ::-1], None, (0, 20))),
    ):
        _, corners = drawn(turned)
        assert rows in (None, corners[:2]) and columns in (None, corners[2:])


def test_what_scaling_overshoots_does_not_dim_a_drawing():
    x = np.full((40, 40), 255, "uint8")
    x[:, 15:25] = 0
    assert np.count_nonzero(drawn(x)[0] == 1) > 100


def test_a_large_drawing_becomes_what_mnist_has():
    (x, _), _ = datasets.load_mnist()
    alike = []
    for index in range(20):
        digit = Image.fromarray((x[index, :, :, 0] * 255).astype("uint8"))
        paper = Image.new("L", (300, 200), 255)
        large = ImageOps.invert(digit.resize((140, 140)))
        paper.paste(large, (130, 20))  # dark, off the centre
        fitted = datasets.fit_picture(paper, (28, 28, 1), like_mnist=True)
        assert fitted.shape == (28, 28, 1)
        alike.append(np.corrcoef(fitted.ravel(), x[index].ravel())[0, 1])
        rows = np.flatnonzero(fitted[..., 0].max(1) > 0.3)
        columns = np.flatnonzero(fitted[..., 0].max(0) > 0.3)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (18, 19, 20)
    assert np.mean(alike) > 0.93


# Shifts ------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_shifts_move_whole_pixels_and_fill_with_zeros(xp):
    x = images(4, 4, 5, 2) + 1
    shifts = np.array([[0, 0], [1, -2], [-3, 5], [-1, 2]], "int32")
    moved = keras.ops.convert_to_numpy(shift_images(x, shifts, xp))
    np.testing.assert_array_equal(moved[0], x[0])
    np.testing.assert_array_equal(moved[1, 1:, :3], x[1, :3, 2:])
    assert not moved[1, 0].any() and not moved[1, :, 3:].any()
    assert not moved[2].any()
    np.testing.assert_array_equal(moved[3, :3, 2:], x[3, 1:, :3])
    assert not moved[3, 3].any() and not moved[3, :, :2].any()


def transformed(x, shift=(0, 0), angle=0, scale=1, xp=np):
    n = len(x)
    shifts, angles, scales = (
        np.tile(shift, (n, 1)),
        np.full(n, angle),
        np.full(n, scale),
    )
    transforms = datasets.inverse_transforms(shifts, angles, scales)
    return keras.ops.convert_to_numpy(datasets.transform_images(x, transforms, xp))


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_parts_of_a_pixel_are_interpolated(xp):
    x = images(2, 4, 5, 2) + 1
    whole = transformed(x, (1, -2), xp=xp)
    np.testing.assert_allclose(whole, shift_images(x, np.array([[1, -2]] * 2)))
    framed = np.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)])
    across = 0.5 * framed[:, :, 1:] + 0.5 * framed[:, :, :-1]
    expected = 0.75 * across[:, 1:] + 0.25 * across[:, :-1]
    moved = transformed(x, (0.25, 0.5), xp=xp)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras.ops"])
def test_images_turn_anticlockwise_about_their_middle(xp):
    x = images(2, 5, 5, 2)
    for turns in (1, 2, -1):
        expected = np.rot90(x, turns, axes=(1, 2))
        np.testing.assert_allclose(
            transformed(x, angle=90 * turns, xp=xp), expected, atol=1e-5
        )


@pytest.mark.parametrize("angle, scale", [(0, 0.7), (0, 1.3), (10, 1), (-15, 0.9)])
def test_turned_and_scaled_images_are_those_of_pillow(angle, scale):
    smooth = np.random.random((1, 4, 4, 1)).astype("float32")
    x = np.array(keras.ops.image.resize(smooth, (21, 20), "bicubic"))
    middle = np.array([10, 10.5])  # of Pillow, which counts from a pixel's corner
    inverse = datasets.inverse_transforms([[2, -1]], [angle], [scale])[0].astype(float)
    (d, e, f), (a, b, c) = inverse[:, [1, 0, 2]]
    c += middle[0] - a * middle[0] - b * middle[1]
    f += middle[1] - d * middle[0] - e * middle[1]
    expected = Image.fromarray(x[0, :, :, 0]).transform(
        (20, 21), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    moved = transformed(x, (2, -1), angle, scale)[0, :, :, 0]
    inner = np.s_[7:-7, 7:-7]  # they treat the edge of the image differently
    assert np.ptp(moved[inner]) > 0.1
    np.testing.assert_allclose(moved[inner], np.array(expected)[inner], atol=1e-5)


def test_rotations_and_zooms_have_every_size_up_to_the_limits():
    rows, columns = np.indices((29, 29)) - 14
    blot = np.exp(-(rows**2 + (columns - 8) ** 2) / 4)  # 8 pixels right of the middle
    x = np.tile(blot.astype("float32")[..., None], (4000, 1, 1, 1))
    batches = TrainingBatches(x, one_hot(4000), 4000, rotation=30, zoom=0.2)
    (moved, _), (_, target) = batches[0]
    np.testing.assert_array_equal(moved, target)
    mass = moved.sum((1, 2, 3))
    rows, columns = (moved.sum((k, 3)) @ (np.arange(29) - 14) / mass for k in (2, 1))
    angles = np.degrees(np.arctan2(-rows, columns))
    assert -30.1 < angles.min() < -29.5 and 29.5 < angles.max() < 30.1
    lengths = np.hypot(rows, columns) / 8
    assert 0.79 < lengths.min() < 0.81 and 1.19 < lengths.max() < 1.21
    for values, limits in ((angles, (-30, 30)), (lengths, (0.8, 1.2))):
        assert np.histogram(values, 5, limits)[0].min() > 4000 / 5 * 0.8
    assert abs(np.corrcoef(angles, lengths)[0, 1]) < 0.1


def test_interpolated_shifts_have_every_length_up_to_the_fraction():
    x = np.zeros((4000, 28, 28, 1), "float32")
    x[:, 14, 14] = 1
    batches = TrainingBatches(x, one_hot(4000), 4000, 0.1, shifts="interpolated")
    (moved, _), _ = batches[0]
    assert moved.dtype == "float32"
    np.testing.assert_allclose(moved.sum((1, 2, 3)), 1, rtol=1e-5)
    for axis in (1, 2):
        places = np.arange(28) - 14
        centres = moved.sum((3 - axis, 3)) @ places
        assert -2.8 <= centres.min() < -2.7 and 2.7 < centres.max() <= 2.8
        parts = np.histogram(centres % 1, 5, (0, 1))[0]
        assert parts.min() > 4000 / 5 * 0.8


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


def test_the_reach_of_whole_shifts_is_rounded_down_but_for_rounding_errors():
    x = np.zeros((2, 100, 50, 1), "float32")
    assert 0.29 * 100 < 29
    assert TrainingBatches(x, one_hot(2), 2, 0.29).reach == [29, 14]
    assert TrainingBatches(x, one_hot(2), 2, 0.2999).reach == [29, 14]
    parts = TrainingBatches(x, one_hot(2), 2, 0.25, shifts="interpolated")
    assert parts.reach == [25, 12.5]


# Batches -----------------------------------------------------------------------------


def test_batches_are_prepared_by_one_thread_or_by_as_many_as_are_asked_for():
    x, y = numbered(4), one_hot(4)
    assert TrainingBatches(x, y, 2).workers == 1
    assert TrainingBatches(x, y, 2, workers=3).workers == 3


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

    default = TrainingBatches(numbered(50), one_hot(50), 50)
    assert numbers(default, 0) == order(0, 0) != order(0, 1)
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


@pytest.mark.parametrize(
    "changes", [{}, {"shifts": "interpolated"}, {"rotation": 20, "zoom": 0.3}]
)
def test_batches_on_the_device_are_the_same(changes):
    x, y = images(10), one_hot(10)
    options = {"batch_size": 4, "shift_fraction": 0.4, "seed": 3, **changes}
    for index in range(3):
        host = TrainingBatches(x, y, **options)[index]
        on_device = TrainingBatches(x, y, on_device=True, **options)
        assert all(map(keras.ops.is_tensor, (on_device.x, on_device.y)))
        device = on_device[index]
        assert all(map(keras.ops.is_tensor, keras.tree.flatten(device)))
        assert not any(map(keras.ops.is_tensor, keras.tree.flatten(host)))
        for a, b in zip(keras.tree.flatten(host), keras.tree.flatten(device)):
            b = keras.ops.convert_to_numpy(b)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 if changes else 0)


@pytest.mark.parametrize(
    "change",
    [{"shift_fraction": 0.2}, {"rotation": 20}, {"zoom": 0.3}],
    ids=lambda change: next(iter(change)),
)
def test_each_change_is_made_alone_too(change):
    x, y = images(10, height=6, width=4), one_hot(10)  # 0.2 moves rows alone
    still = TrainingBatches(x, y, 10)
    np.testing.assert_array_equal(still[0][0][0], x[still.order])
    moved = TrainingBatches(x, y, 10, **change)
    assert (moved.order == still.order).all()
    assert abs(moved[0][0][0] - x[moved.order]).max() > 0.1


@pytest.mark.parametrize("n, batch_size", [(10, 4), (12, 4), (3, 8)])
def test_validation_weights_make_averages_exact(n, batch_size):
    batches = ValidationBatches(numbered(n), one_hot(n), batch_size)
    means, sizes = [], []
    assert batches.batch_size == min(batch_size, n)
    assert len(batches) == -(-n // batch_size)
    for index in range(len(batches)):
        (x, _), _, (weights, _) = batches[index]
        means.append((x[:, 0, 0, 0] * weights).mean())
        sizes.append(len(x))
    assert len(set(sizes)) == 1
    assert np.mean(means) == pytest.approx(np.arange(n).mean())
