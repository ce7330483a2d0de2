import os

import numpy as np
import pytest
from helpers import pixels, save_pictures
from PIL import Image

from capsnet import data as datasets
from capsnet import machine
from capsnet.data import folders
from capsnet.data import images as picture_files

pytestmark = pytest.mark.usefixtures("keras_home")


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
    assert len(below) == 20 and below == sorted(below)
    assert all(name.lower().endswith(".png") for name in below)
    assert not any("/." in name.removeprefix(str(tmp_path)) for name in below)


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
    assert datasets.load(path).train[0].shape[1:] == (17, 17, 3)
    assert f"{path}: pictures of several sizes, scaled" in capsys.readouterr().out
    assert datasets.load(path, color="gray").train[0].shape[1:] == (17, 17, 1)


def test_pictures_of_several_sizes_keep_the_aspect_of_the_first(tmp_path):
    sizes = iter([(150, 200), (140, 210), (155, 190), (150, 200)])
    for name in ("ape", "bee"):
        (tmp_path / name).mkdir()
        for index in range(2):
            picture = Image.fromarray(pixels(*next(sizes), 3))
            picture.save(tmp_path / name / f"{index}.png")
    assert datasets.load(str(tmp_path)).train[0].shape[1:] == (48, 64, 3)


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


def test_a_link_to_nothing_costs_a_line_and_not_the_run(tmp_path, capsys):
    path = save_pictures(tmp_path / "a")
    (tmp_path / "a" / "bee" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = datasets.load(path)
    assert len(data.train[0]) + len(data.test[0]) == 10
    assert f"Left out: {tmp_path}/a/bee/gone.png: " in capsys.readouterr().out


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


def test_another_version_of_the_reader_reads_again(tmp_path, monkeypatch):
    path = save_pictures(tmp_path / "a")
    datasets.load(path)
    (first,) = cached()
    reader = tmp_path / "images.py"
    reader.write_text("# reads in another way")
    monkeypatch.setattr(folders, "READER", (folders.READER[0], str(reader)))
    datasets.load(path)
    assert len(cached()) == 2 and first in cached()


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
