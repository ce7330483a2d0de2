import json
import resource
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers import with_h5

import capsulenet
from capsnet.weights import reader


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
