import os
import pickle
import shutil

import keras
import numpy as np
import pytest
from helpers import pixels

from capsnet import data as datasets
from capsnet.data import sets

pytestmark = pytest.mark.usefixtures("keras_home")


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


def test_a_data_set_that_is_nowhere_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="nowhere: .* mnist, fashion_mnist, cifar10"):
        datasets.load("nowhere")


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


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match="refused: (posix|nt).mkdir"):
        sets._read_cifar(str(tmp_path), "data_batch_1")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("n, held", [(3, None), (4, 1), (9, 2)])
def test_a_quarter_of_few_images_is_held_out_and_less_than_four_are_too_few(n, held):
    x, y = np.zeros((n, 2, 2, 1)), np.ones((n, 1))
    if held is None:
        with pytest.raises(
            ValueError, match="a quarter .* is held out, and there are 3"
        ):
            datasets.hold_out(x, y)
    else:
        assert [len(part[0]) for part in datasets.hold_out(x, y)] == [n - held, held]
