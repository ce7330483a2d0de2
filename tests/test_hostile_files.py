"""Files from strangers: refused in one line, or read as what they are."""

import collections
import io
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import fuzz
import h5py
import keras
import numpy as np
import pytest
from conftest import options, script_environment, small_capsnet, small_data
from PIL import Image

import capsulenet
from capsnet import data as datasets
from capsnet import files, weights
from capsnet import options as options_of
from capsnet.data import arrays, images
from capsnet.training import checkpoints
from capsnet.weights import reader


def tiny_capsnet():
    sizes = {"filters": 2, "kernel_size": 3, "strides": 2, "n_channels": 1}
    sizes |= {"dim_primary": 2, "dim_capsule": 2, "decoder": False}
    return capsulenet.CapsNet((7, 7, 1), 2, 1, **sizes)[0]


@pytest.fixture
def whole(tmp_path):
    """Whole files of every kind that is read."""
    paths = {kind: str(tmp_path / f"a.{kind}") for kind in KINDS}
    model = tiny_capsnet()
    about = {"architecture": capsulenet.architecture(model)}
    capsulenet.save_weights(model, paths["h5"], about)
    capsulenet.save_weights(model, paths["keras2.h5"])
    with h5py.File(paths["keras2.h5"], "a") as file:
        del file.attrs["sha256"], file.attrs["capsnet"]
    model.save_weights(paths["weights.h5"])
    model.save(paths["keras"])
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (6, 9, 9), "uint8"), np.arange(6) % 3
    arrays = {f"x_{split}": images for split in ("train", "test")}
    np.savez(paths["npz"], **arrays, y_train=labels, y_test=labels)
    Image.fromarray(draw.integers(0, 255, (12, 9, 3), "uint8")).save(paths["png"])
    return paths


KINDS = ("h5", "keras2.h5", "weights.h5", "keras", "npz", "png")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_whole(whole, kind):
    outcomes, memory = collections.Counter(), 0
    first = 0
    while first < fuzz.MUTATIONS:
        done = subprocess.run(
            [sys.executable, fuzz.__file__, kind, whole[kind], str(first)],
            env=script_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        outcomes.update(line[0] for line in lines)
        if done.returncode == 0:
            memory = int(lines[-1][1])
            break
        # HDF5's library hung or crashed: that is what the process of its own is for.
        assert done.returncode < 0 and kind not in ("npz", "png"), done.stderr
        start = time.monotonic()
        try:
            weights.read(f"{whole[kind]}.damaged")
            outcomes["slow"] += 1
        except ValueError:
            outcomes["refused by its limits"] += 1
        assert time.monotonic() - start < 6 * fuzz.SECONDS  # of a busy machine
        first = int(lines[-1][1]) + 1
    print(kind, dict(outcomes), f"{memory / 1e6:.0f} MB")
    counted = ("refused", "same", "other", "slow", "refused by its limits")
    read = sum(outcomes[outcome] for outcome in counted)
    assert read == outcomes["begin"] == fuzz.MUTATIONS >= 500
    assert outcomes["refused"] > fuzz.MUTATIONS / 5
    assert memory < 2e9
    if kind == "h5":  # it has a checksum
        assert outcomes["other"] == 0


def test_a_checkpoint_is_never_taken_when_altered(tmp_path):
    directory = tmp_path / "run"
    model = small_capsnet(decoder=False)[0]
    capsulenet.train(model, small_data(), options(directory, seed=0))
    for ending in ("weights.h5", "json"):
        path = directory / f"checkpoint-0001.{ending}"
        content = path.read_bytes()
        for number in range(fuzz.MUTATIONS):
            damaged = fuzz.mutate(content, random.Random(number))
            path.write_bytes(damaged)
            taken = checkpoints.last_checkpoint(directory)
            assert (taken is None) == (damaged != content), number
        path.write_bytes(content)
        assert checkpoints.last_checkpoint(directory)["epochs"] == 1


# Checkpoints -------------------------------------------------------------------------


def small_train(directory, **changes):
    model = small_capsnet(decoder=False)[0]
    args = options(directory, seed=0, epochs=2, ema=0.9, **changes)
    return capsulenet.train(model, small_data(), args)


@pytest.fixture(scope="module")
def paused(tmp_path_factory):
    directory = tmp_path_factory.mktemp("paused")
    small_train(directory, pause_after=1)
    return directory


def layer(file):
    return file["layers"]["capsule_layer"]["vars"]


def outer_link(file):
    del file["layers"]["capsule_layer"]
    file["layers/capsule_layer"] = h5py.ExternalLink("/dev/zero", "/")


def soft_link(file):
    del file["optimizer/vars/3"]
    file["optimizer/vars/3"] = h5py.SoftLink("/optimizer/vars/2")


def compressed(file):
    del layer(file)["0"]
    layer(file).create_dataset("0", data=np.zeros(30_000_000, "f4"), compression="gzip")


def bytes_of_another_file(file):
    shape = layer(file)["0"].shape
    del layer(file)["0"]
    layer(file).create_dataset("0", shape, "f4", external=[("/etc/hostname", 0, 4096)])


def not_a_number(file):
    file["optimizer/vars/5"][...] = np.nan


def another_shape(file):
    del layer(file)["0"]
    layer(file)["0"] = np.zeros((1, 2, 3), "f4")


def no_optimizer(file):
    del file["optimizer"]


def half_an_optimizer(file):
    del file["optimizer/vars/7"]


@pytest.mark.parametrize(
    "change, message",
    [
        (outer_link, "is a link"),
        (soft_link, "is a link"),
        (compressed, "is not in the file"),
        (bytes_of_another_file, "is not in the file"),
        (not_a_number, "not finite"),
        (another_shape, "of another model"),
        (no_optimizer, "its optimizer has 0 arrays"),
        (half_an_optimizer, "its optimizer has"),
        (None, "not a readable weights file"),
    ],
)
def test_a_hostile_checkpoint_is_refused_in_one_line(
    paused, tmp_path, change, message, capsys
):
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    weights, state = (tmp_path / f"checkpoint-0001.{e}" for e in ("weights.h5", "json"))
    if change:
        with_h5(weights, change)
    else:
        weights.write_bytes(b"no HDF5")
    record = json.loads(state.read_text())
    del record["sha256 of the rest"]
    record["sha256"] = files.sha256(weights)
    state.write_text(checkpoints._to_text(record))
    with pytest.raises(SystemExit) as stop, capsulenet.one_line_errors():
        small_train(tmp_path, resume=True)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(weights) in line and message in line
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 1


@pytest.mark.parametrize("ending", ["weights.h5", "json"])
def test_a_checkpoint_that_is_no_file_is_not_waited_for(paused, tmp_path, ending):
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    (tmp_path / f"checkpoint-0001.{ending}").unlink()
    (tmp_path / f"checkpoint-0001.{ending}").symlink_to("/dev/zero")
    assert checkpoints.last_checkpoint(tmp_path) is None


def test_a_checkpoint_is_not_opened_as_hdf5_in_the_process_itself(
    paused, tmp_path, monkeypatch
):
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    (weights,) = tmp_path.glob("checkpoint-*.h5")
    opened, open_file = [], h5py.File.__init__

    def record(self, name, mode="r", *args, **kwargs):
        opened.append((str(name), mode))
        open_file(self, name, mode, *args, **kwargs)

    monkeypatch.setattr(h5py.File, "__init__", record)
    small_train(tmp_path, resume=True)
    assert opened and (str(weights), "r") not in opened


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_a_checkpoint_is_set_to_the_bit_as_keras_would_set_it(tmp_path, optimizer):
    def build():
        x = keras.Input((12, 12, 1))
        y = keras.layers.Flatten()(x)
        for _ in range(11):  # more than nine of a kind
            y = keras.layers.Dense(4, activation="relu")(y)
        y = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(y))
        return keras.Model(x, keras.layers.Dense(3, activation="softmax")(y))

    args = options(tmp_path, optimizer=optimizer, ema=0.9, epochs=2, pause_after=1)
    capsulenet.train(build(), small_data(), args)
    states = []
    for by in ("keras", "checkpoints"):
        model = build()
        capsulenet.compile_model(model, options_of.complete(args))
        model.optimizer.build(model.trainable_variables)
        if by == "keras":
            model.load_weights(tmp_path / "checkpoint-0001.weights.h5")
        else:
            record = checkpoints.last_checkpoint(tmp_path)
            checkpoints.restore(model, tmp_path, record)
        variables = [*model.weights, *model.optimizer.variables]  # seeds are drawn
        states.append([keras.ops.convert_to_numpy(v) for v in variables])
    assert int(states[0][len(model.weights)]) == 5  # steps of the optimizer
    for a, b in zip(*states, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


# Weights -----------------------------------------------------------------------------


def with_h5(path, change):
    with h5py.File(path, "a") as file:
        change(file)


def huge_shape(file):
    del file["digitcaps"]
    file.create_dataset("digitcaps/digitcaps/W:0", (2**20,) * 3, "f4", chunks=(64,) * 3)
    file["digitcaps"].attrs["weight_names"] = [b"digitcaps/W:0"]


def bomb(file):
    name = "digitcaps/digitcaps/W:0"
    del file[name]
    file.create_dataset(name, data=np.zeros(30_000_000, "f4"), compression="gzip")


def deep(file):
    group = file["digitcaps"]
    for _ in range(3000):
        group = group.create_group("g")


def a_cycle(file):
    file["digitcaps/again"] = file["digitcaps"]


def link_out(file):
    del file["conv1"]
    file["conv1"] = h5py.ExternalLink("/dev/zero", "/conv1")


def data_outside(file):
    name = "digitcaps/digitcaps/W:0"
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, "f4", external=[("/etc/hostname", 0, 4096)])


def no_numbers(file):
    name = "digitcaps/digitcaps/W:0"
    del file[name]
    file.create_dataset(name, (10**9, 0, 2, 8), "f4")


def root_link(file):
    file["model_weights"] = h5py.ExternalLink("/dev/zero", "/")


def layer_outside(file):
    file.attrs["layer_names"] = [b"/conv1/conv1"]


def repeated(file):
    file["conv1"].attrs["weight_names"] = [b"conv1/kernel:0"] * 90


def too_large_for_float32(file):
    del file.attrs["sha256"], file["conv1/conv1/bias:0"]
    file["conv1/conv1/bias:0"] = np.full(2, 1e300)


def not_finite(file):
    del file.attrs["sha256"]
    file["digitcaps/digitcaps/W:0"][0] = np.inf


def flipped(file):
    file["digitcaps/digitcaps/W:0"][0] += 1e-3


def text_for_numbers(file):
    del file["conv1"]["conv1/kernel:0"]
    file["conv1/conv1/kernel:0"] = b"text"


@pytest.mark.parametrize(
    "change, message",
    [
        (huge_shape, "is not in the file"),
        (bomb, "is not in the file"),
        (deep, "deep"),
        (a_cycle, "deep"),
        (link_out, "is a link"),
        (data_outside, "is not in the file"),
        (no_numbers, "is not in the file"),
        (root_link, "is a link"),
        (layer_outside, "is a link"),
        (repeated, "conv1/kernel"),
        (too_large_for_float32, "not finite"),
        (not_finite, "not finite"),
        (flipped, "checksum"),
        (text_for_numbers, "conv1/kernel"),
    ],
)
def test_hostile_weights_are_refused(whole, change, message):
    with_h5(whole["h5"], change)
    with pytest.raises(ValueError, match=message):
        capsulenet.load_model(whole["h5"])


@pytest.mark.parametrize(
    "said",
    [
        {"routings": 10**9},
        {"routings": "3"},
        {"strides": 0},
        {"strides": 10**6, "input_shape": [60_000, 60_000, 1]},
        {"input_shape": [10**6, 10**6, 1]},
        {"input_shape": 7},
        {"n_class": 10**6},
        {"filters": 10**9},
        {"n_channels": 10**6},
        {"dim_capsule": 10**9},
        {"decoder": True},
        {"conv": "fast"},
        {"conv": ["spectral"]},
        {"conv": None},
        {"routing_gradient": "no"},
        {"routing_gradient": 1},
    ],
    ids=str,
)
def test_sizes_that_the_weights_deny_are_refused(whole, said):
    model = tiny_capsnet()
    about = {"architecture": {**capsulenet.architecture(model), **said}}
    capsulenet.save_weights(model, whole["h5"], about)
    with pytest.raises(ValueError, match="not a CapsNet's weights"):
        capsulenet.load_model(whole["h5"])


def test_names_that_are_none_are_refused(whole):
    model = tiny_capsnet()
    for names in ([["a"], 1], ["a"], ["a", "\x1b[2J"], ["a", "\ud800"], "a" * 10**6):
        about = {"architecture": capsulenet.architecture(model), "class_names": names}
        capsulenet.save_weights(model, whole["h5"], about)
        with pytest.raises(ValueError, match="names") as refused:
            capsulenet.load_model(whole["h5"])
        assert len(str(refused.value)) < 300 + len(whole["h5"])


def test_code_in_a_keras_file_is_refused_and_not_run(tmp_path):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(
        tmp_path / "a.keras"
    )
    with pytest.raises(ValueError, match="Lambda"):
        capsulenet.load_model(str(tmp_path / "a.keras"))


@pytest.mark.parametrize("kind", ["Lambda", "__lambda__", "Dense"])
def test_code_is_found_wherever_it_stands_in_a_configuration(tmp_path, kind):
    path = tmp_path / "a.keras"
    inner = {"config": [{"class_name": "Add"}, [{"f": {"class_name": kind}}]]}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"layers": [inner]}))
        archive.writestr("model.weights.h5", b"none")
    with pytest.raises((ValueError, OSError)) as refused:
        reader.read(str(path))
    assert ("holds code" in str(refused.value)) == (kind != "Dense")


def hdf5(path, fill):
    """A file of weights of no layers, with what else there is."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.zeros(0, "S1")
        fill(file)
    return reader.read(str(path))


def test_groups_may_be_16_deep_with_that_of_the_file(tmp_path):
    assert hdf5(tmp_path / "a.h5", lambda f: f.create_group("g/" * 15)) == ({}, {})
    with pytest.raises(ValueError, match="more than 16 deep"):
        hdf5(tmp_path / "a.h5", lambda f: f.create_group("g/" * 16))


def test_numbers_that_are_not_in_the_file_are_refused(tmp_path):
    def once_in_many_groups(file):
        file["g0/w"] = np.zeros(10_000, "f4")
        for number in range(1, 9):
            file[f"g{number}/w"] = file["g0/w"]

    def from_another_file(file):
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
        file.create_virtual_dataset("w", layout)

    for fill in (once_in_many_groups, from_another_file):
        with pytest.raises(ValueError, match="is not in the file"):
            hdf5(tmp_path / "a.h5", fill)
    with pytest.raises(ValueError, match="not finite"):
        hdf5(tmp_path / "a.h5", lambda file: file.update(w=np.full(2, 1e300)))


@pytest.mark.parametrize("kind", [str, str.encode])
def test_names_are_text_or_bytes(tmp_path, kind):
    def fill(file):
        file["dense/kernel"] = np.ones(3, "f4")
        file["dense"].attrs["weight_names"] = [kind("kernel")]
        file.attrs["layer_names"] = [kind("dense")]

    def fill_as_keras_3(file):
        file["layers/d/vars/0"] = np.ones(3, "f4")
        file["layers/d/vars"].attrs["name"] = np.array(kind("dense"), dtype=object)
        file["layers/e/vars/0"] = np.zeros(3, "f4")

    (kernel,) = hdf5(tmp_path / "a.h5", fill)[1]["dense"]
    weights = hdf5(tmp_path / "b.h5", fill_as_keras_3)[1]
    assert weights.keys() == {"dense", "e"} and not weights["e"][0].any()
    for array in (kernel, *weights["dense"]):
        np.testing.assert_array_equal(array, np.ones(3))


def test_the_checksum_is_of_names_types_shapes_and_numbers():
    x = np.arange(6, dtype="float32").reshape(2, 3)
    sums = {
        reader.checksum(about, {name: [array]})
        for about, name, array in (
            *(("{}", "a", x), ("[]", "a", x), ("{}", "b", x), ("{}", "a", x + 1)),
            *(("{}", "a", x.reshape(3, 2)), ("{}", "a", x.view("int32"))),
        )
    }
    assert len(sums) == 6
    order = reader.checksum("{}", {"a": [np.asfortranarray(x)]})
    assert order in sums


def test_the_reader_limits_its_time_and_memory_by_the_size_of_the_file(monkeypatch):
    limits, unlimited = {}, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (7, unlimited))
    reader.limit(100_000_000)
    assert limits == {
        resource.RLIMIT_CPU: (3 + 2, unlimited),
        resource.RLIMIT_AS: (2**30 + 400_000_000, unlimited),
        resource.RLIMIT_CORE: (0, unlimited),
    }
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (7, 4))  # set by others
    reader.limit(100_000_000)
    assert set(limits.values()) == {(4, 4), (0, 4)}


def test_a_keras_file_that_unpacks_to_more_than_itself_is_refused(whole):
    with zipfile.ZipFile(whole["keras"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(50_000_000))
    with pytest.raises(ValueError, match="larger than the file"):
        capsulenet.load_model(whole["keras"])


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


# Data and pictures -------------------------------------------------------------------


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
def test_hostile_data_sets_are_refused(tmp_path, claim, message):
    path = tmp_path / "a.npz"
    npz_claiming(path, **claim)
    with pytest.raises(ValueError, match=rf"a\.npz: not a data set: .*({message})"):
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


def test_what_is_no_picture_by_its_content_is_not_opened(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(ValueError, match="cannot identify"):
        datasets.read_picture(path)


def test_labels_that_would_fill_the_memory_are_refused(tmp_path):
    n = 300_000
    x, y = np.zeros((n, 1, 1), "uint8"), (np.arange(n) % 2000).astype("uint16")
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    with pytest.raises(ValueError, match="2000 classes"):
        datasets.load_npz(tmp_path / "a.npz")


def png(width, height, rows):
    """A PNG of grey pixels that claims a size."""

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "size, message",
    [
        ((60_000, 60_000), "could be decompression bomb"),
        ((2**31 - 1, 2), "could be decompression bomb"),
        ((10_000, 10_000), r"\(10000 x 10000 pixels\)"),
    ],
)
def test_pictures_that_would_fill_the_memory_are_refused(tmp_path, size, message):
    path = tmp_path / "a.png"
    path.write_bytes(png(*size, bytes(1000)))
    with pytest.raises(ValueError, match=message):
        datasets.read_picture(path)


def test_the_largest_picture_is_still_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(6, 5, bytes(35)))
    monkeypatch.setattr(images, "LARGEST_PICTURE", 30)
    assert datasets.read_picture(path).size == (6, 5)
    monkeypatch.setattr(images, "LARGEST_PICTURE", 29)
    with pytest.raises(ValueError, match=r"\(6 x 5 pixels\)"):
        datasets.read_picture(path)


@pytest.mark.parametrize("content", ["{}", ""], ids=["json", "empty"])
def test_the_command_line_refuses_in_one_line(tmp_path, capfd, content):
    path = tmp_path / "a.h5"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        capsulenet.main(["-w", str(path), "--predict", "x.png"])
    assert stop.value.code == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f"error: {path}: not a readable weights file" in said[0]
