"""The code of docs/exporting.md, and that what it exports is the network."""

import os
import re

import keras
import numpy as np
import pytest
from helpers import ROOT, array

import capsulenet
from capsnet import routing

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports need TensorFlow"
)


with open(os.path.join(ROOT, "docs", "exporting.md"), encoding="utf-8") as file:
    SECTIONS = {
        title: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        for title, section in re.findall(
            r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", file.read(), re.DOTALL | re.MULTILINE
        )
    }


def run(code, names):
    """Run code of the page; `names` holds its variables, before and after."""
    exec(code, names)  # noqa: S102 (it is our own)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Names and values after the page's first code, on a small network; its folder.

    Its weights are enlarged, so that the lengths differ between images.
    """
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("export")
    trio = capsulenet.CapsNet(
        *((28, 28, 1), 10, 2), filters=16, n_channels=16, dim_primary=2, dim_capsule=4
    )
    for name, factor in (("primarycap_conv2d", 2), ("digitcaps", 16)):
        layer = trio[0].get_layer(name)
        layer.set_weights([factor * weight for weight in layer.get_weights()])
    os.mkdir(folder / "result")
    about = {"architecture": capsulenet.architecture(trio[0])}
    capsulenet.save_weights(trio[0], str(folder / "result/trained_model.h5"), about)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(*SECTIONS["The network"], names)
    return names, folder


def forms(model):
    return [model.get_layer(name).form for name in ("conv1", "primarycap_conv2d")]


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("runtime", ["SavedModel", "ONNX", "LiteRT"])
def test_what_is_exported_is_the_network(page, runtime, blocks, monkeypatch):
    names, folder = page
    names = dict(names)
    monkeypatch.chdir(folder)
    if blocks > 1:  # as the page says; the routing is then a loop in the graph
        assert forms(names["model"]) == ["direct", "direct"]
        capsules = names["model"].get_layer("digitcaps").input.shape[1]
        size = 4 * 10 * 100 * -(-capsules // blocks)
        monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", size)
    else:  # as the network of the paper's size has them on a CPU
        conv = "patches" if runtime == "LiteRT" else "spectral"
        sizes = {**capsulenet.architecture(names["trained"]), "conv": conv}
        names["model"] = capsulenet.CapsNet(**sizes)[1]
        names["model"].set_weights(names["trained"].get_weights())
        names["model"].get_layer("conv1").form = "patches"
        assert forms(names["model"]) == ["patches", conv]
    images = names["images"]
    expected = names["model"].predict(images, verbose=0)
    assert np.ptp(expected[0], axis=0).max() > 0.5
    export, use = SECTIONS[runtime]
    run(export, names)
    for n in (100, 1, 7):
        names["images"] = images[:n]
        run(use, names)
        for found, right in zip((names["lengths"], names["reconstructions"]), expected):
            np.testing.assert_allclose(found, right[:n], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
@pytest.mark.parametrize(
    "network, runtime",
    [("efficient", "ONNX"), ("photo", "LiteRT"), ("shared", "LiteRT")],
)
def test_other_networks_are_exported_as_the_page_says(
    network, runtime, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trained = capsulenet.NETWORKS[network]((17, 17, 1), 3, None)[1]
    built = {**capsulenet.architecture(trained), "conv": "direct"}
    names = {"model": trained, "images": array(7, 17, 17, 1)}
    if built.pop("model") == "shared":
        names["model"] = capsulenet.NETWORKS["shared"](**built)[1]
        names["model"].set_weights(trained.get_weights())
    expected = trained.predict(names["images"], verbose=0)
    for code in SECTIONS[runtime]:
        run(code, names)
    for found, right in zip((names["lengths"], names["reconstructions"]), expected):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)
