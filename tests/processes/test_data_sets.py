"""Data sets that Keras looks for when it is imported."""

import gzip
import os
import struct

import numpy as np
import pytest
from helpers import ROOT, pixels, run_python

pytestmark = pytest.mark.usefixtures("keras_home")


def test_fashion_mnist_is_read_from_keras_files(tmp_path, monkeypatch):
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
    monkeypatch.setenv("KERAS_BACKEND", "numpy")  # which starts at once
    printed = run_python(program, tmp_path).splitlines()[-1]
    assert printed == "(12, 28, 28, 1) (7, 10) Ankle boot"
    x_test = np.load(tmp_path / "x_test.npy")
    np.testing.assert_allclose(x_test[..., 0], pixels(7, 28, 28) / 255, atol=1e-6)
