import os
import re
import stat

import numpy as np
import pytest
from helpers import small_capsnet

import capsulenet
from capsnet import data as datasets
from capsnet import files, pictures


def test_a_file_without_a_folder_is_whole_and_on_the_disk_with_its_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kinds, descriptors, fsync = [], [], os.fsync

    def record(descriptor):
        kinds.append(stat.S_IFMT(os.fstat(descriptor).st_mode))
        descriptors.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with files.whole_file("a.tar.gz") as temporary:
        assert temporary == f"a.{os.getpid()}.tmp.tar.gz"
        with open(temporary, "w") as file:
            file.write("whole")
        assert os.listdir() == [temporary]
    assert os.listdir() == ["a.tar.gz"]
    assert (tmp_path / "a.tar.gz").read_text() == "whole"
    assert kinds == [stat.S_IFREG, stat.S_IFDIR]
    with pytest.raises(OSError):  # it is closed
        os.fstat(descriptors[1])


@pytest.mark.parametrize("write", ["text", "figure", "image", "weights"])
def test_what_can_not_be_written_leaves_the_old_file(tmp_path, write, monkeypatch):
    path = tmp_path / "log.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    writers = {
        "text": lambda: files.write_text(path, "new"),
        "figure": lambda: pictures.plot_confusion(np.eye(2, dtype=int), "ab", path),
        "image": lambda: pictures.save_image(np.zeros((2, 2)), path),
        "weights": lambda: capsulenet.save_weights(small_capsnet()[0], path),
    }
    with pytest.raises(OSError):
        writers[write]()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["log.png"]


def test_a_directory_that_can_not_be_written_is_one_line(tmp_path, data_file, capsys):
    (tmp_path / "results").write_text("a file")
    save_dir = str(tmp_path / "results")
    with pytest.raises(SystemExit) as stop:
        capsulenet.main(["--dataset", str(data_file), "--save_dir", save_dir])
    assert stop.value.code == 2
    assert f"--save_dir {save_dir}: can't be written" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = str(tmp_path / "a.h5")
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.symlink("/dev/zero", path)
    for read in (capsulenet.load_model, datasets.read_picture, datasets.load_npz):
        with pytest.raises((ValueError, OSError), match=re.escape(path)):
            read(path)


def test_a_death_while_a_folder_is_tried_leaves_nothing_there(tmp_path, monkeypatch):
    folder, seen, opened = tmp_path / "a" / "b", [], os.open

    def look(*args, **kwargs):  # a kill may come as soon as the file is there
        descriptor = opened(*args, **kwargs)
        seen.append(os.listdir(folder))
        return descriptor

    monkeypatch.setattr(os, "open", look)
    files.make_save_dir(str(folder))
    assert seen and not any(seen) and os.listdir(folder) == []


def test_the_home_of_keras_is_where_keras_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", "~/kept")
    assert files.keras_home() == str(tmp_path / "kept")
    monkeypatch.delenv("KERAS_HOME")
    assert files.keras_home() == str(tmp_path / ".keras")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert files.keras_home() == "/tmp/.keras"
