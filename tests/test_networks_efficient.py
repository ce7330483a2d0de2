import functools
import math
import os

import keras
import numpy as np
import pytest
from helpers import (
    ROOT,
    array,
    assert_same_weights,
    output_and_gradients,
    predicted,
)
from keras import ops

import capsulenet
from capsnet.networks import SharedCapsNet
from capsnet.networks.efficient import DepthwiseByPlace
from capsnet.options import ROUTINGS
from capsnet.squashes import exponential_squash
from capsnet.training import recipe


@pytest.mark.parametrize(
    "size, weights", [((28, 28, 1), 161_824), ((36, 36, 1), 154_656)]
)
def test_there_are_as_many_weights_as_its_authors_count(size, weights):
    model = capsulenet.EfficientCapsNet(size, 10, decoder=False)[0]
    assert sum(math.prod(w.shape) for w in model.trainable_weights) == weights


@pytest.mark.parametrize(
    "size, capsules", [((13, 40), 16), ((36, 48), 16 * 3), ((64, 64), 16 * 25)]
)
def test_images_of_other_sizes_make_the_capsules_that_fit(size, capsules):
    model = capsulenet.EfficientCapsNet((*size, 3), 4, decoder=False)[0]
    assert model.get_layer("digitcaps").input.shape == (None, capsules, 8)


@pytest.mark.parametrize("size", [(12, 28), (28, 65)])
def test_what_the_convolutions_do_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="efficient takes sides of 13 to 64"):
        capsulenet.EfficientCapsNet((*size, 1), 10)


@pytest.mark.parametrize("kernel, strides, places", [(7, 1, 1), (3, 2, 9)])
def test_a_convolution_by_place_is_that_of_keras(kernel, strides, places):
    x, how = array(2, 7, 7, 3), {"bias_initializer": "normal"}
    layer = DepthwiseByPlace(kernel, strides, data_format="channels_last", **how)
    expected = keras.layers.DepthwiseConv2D(
        kernel, strides, data_format="channels_last"
    )
    for each in (layer, expected):
        each.build(x.shape)
    expected.set_weights(layer.get_weights())
    direction = array(2, round(places**0.5), round(places**0.5), 3)

    def loss(y):
        return ops.sum(ops.multiply(y, direction))

    found, gradients = output_and_gradients(layer, x, loss)
    wanted, wanted_gradients = output_and_gradients(expected, x, loss)
    for a, b in zip([found, *gradients], [wanted, *wanted_gradients]):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_primary_capsules_and_squash_are_those_of_efficient_capsnet():
    with np.load(f"{ROOT}/tests/efficient_capsnet_layers.npz") as file:
        recorded = dict(file)
    found = ops.convert_to_numpy(exponential_squash(recorded["squash_in"]))
    np.testing.assert_allclose(found, recorded["squash_out"], atol=1e-5)
    # Their convolution of groups, as this network's depthwise one, on 4 x 4 places.

    inputs = keras.Input((4, 4, 12))
    layer = DepthwiseByPlace(4, data_format="channels_last")
    x = keras.layers.Reshape((-1, 4))(layer(inputs))
    model = keras.Model(inputs, exponential_squash(x))
    kernel = recorded["primary_kernel"].transpose(0, 1, 3, 2)
    layer.set_weights([kernel, recorded["primary_bias"]])
    found = model.predict_on_batch(recorded["primary_in"])
    np.testing.assert_allclose(found, recorded["primary_out"], atol=1e-5)


def test_vectors_of_any_length_are_squashed():
    x = np.array([[0, 0], [3e-6, 4e-6], [3, 4], [3e30, 4e30]], "float32")
    lengths = np.linalg.norm(ops.convert_to_numpy(exponential_squash(x)), axis=-1)
    expected = [0, 5e-6, 1 - math.exp(-5), 1]
    np.testing.assert_allclose(lengths, expected, atol=1e-6)
    half = exponential_squash(ops.convert_to_tensor(x[:3], "float16"))
    assert keras.backend.standardize_dtype(half.dtype) == "float16"


@pytest.fixture(scope="module")
def trained(data_file, tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("efficient")
    common = ["--dataset", str(data_file), "--save_dir", str(save_dir)]
    flags = ["--model", "efficient", "--epochs", "1", "--batch_size", "10"]
    capsulenet.main([*common, *flags, "--seed", "3", "--verbose", "0"])
    return common, os.path.join(save_dir, "trained_model.h5")


def test_it_trains_tests_manipulates_and_predicts_as_any_network(trained, capsys):
    common, path = trained
    capsulenet.main(["-t", "-w", path, *common, "--show_routing", "--seed", "1"])
    said = capsys.readouterr().out
    assert "Test acc" in said
    assert said.count("was routed to") == 2
    files = os.listdir(os.path.dirname(path))
    assert {"manipulate-1.png", "routing-0.png", "routing-1.png"} <= set(files)
    (train, model, _), _ = capsulenet.load_model(path)
    built = capsulenet.architecture(train)
    assert built["model"] == "efficient" and built["routing"] == "attention"
    images = np.random.default_rng(0).random((3, 17, 17, 1))
    assert capsulenet.predict(model, images).lengths.shape == (3, 2)


@pytest.mark.parametrize("network", ["photo", "shared"])
def test_the_other_networks_do_so_too_and_go_on(
    network, data_file, tmp_path, monkeypatch, capsys
):
    if network == "shared":  # the paper's 256 filters take seconds
        small = functools.partial(SharedCapsNet, filters=16, n_channels=4)
        monkeypatch.setitem(capsulenet.NETWORKS, network, small)
    common = ["--dataset", str(data_file), "--save_dir", str(tmp_path)]
    how = ["--model", network, "--epochs", "2", "--batch_size", "10", "--verbose", "0"]
    capsulenet.main([*common, *how, "--seed", "3", "--pause_after", "1"])
    capsulenet.main([*common, *how, "--resume"])
    assert not (tmp_path / "run-1").exists()
    path = str(tmp_path / "trained_model.h5")
    capsulenet.main(["-t", "-w", path, *common, "--show_routing", "--seed", "1"])
    assert "Test acc" in capsys.readouterr().out
    assert {"manipulate-1.png", "routing-0.png"} <= set(os.listdir(tmp_path))
    (train, model, _), _ = capsulenet.load_model(path)
    assert capsulenet.architecture(train)["model"] == network
    images = np.random.default_rng(0).random((3, 17, 17, 1))
    assert capsulenet.predict(model, images).lengths.shape == (3, 2)


@pytest.fixture
def without_decoder(tmp_path):
    """A network without a decoder, and the file of its weights."""
    _, model, _ = capsulenet.EfficientCapsNet((17, 17, 1), 2, decoder=False)
    path, built = str(tmp_path / "w.h5"), capsulenet.architecture(model)
    capsulenet.save_weights(model, path, {"architecture": built})
    return model, path


def test_weights_without_a_decoder_are_tested_without_one(
    without_decoder, data_file, tmp_path, capsys
):
    (model, path), out = without_decoder, tmp_path / "out"
    common = ["-t", "-w", path, "--dataset", str(data_file), "--save_dir", str(out)]
    capsulenet.main(common)
    with np.load(data_file) as data:
        lengths = predicted(model, data["x_test"][..., None].astype("float32") / 255)
        right = np.mean(lengths.argmax(1) == data["y_test"])
    assert f"Test acc: {right:.4f}" in capsys.readouterr().out
    assert {"confusion.png", "mistakes.png"} == set(os.listdir(out))
    with pytest.raises(SystemExit) as end:
        capsulenet.main([*common, "--digit", "1"])
    assert end.value.code == 2
    assert "no decoder, so there is nothing to man" in capsys.readouterr().err


def test_a_training_from_weights_without_a_decoder_makes_one(
    without_decoder, data_file, tmp_path, capsys
):
    (model, path), out = without_decoder, tmp_path / "out"
    common = ["--dataset", str(data_file), "--save_dir", str(out), "--verbose", "0"]
    capsulenet.main([*common, "-w", path, "--epochs", "1", "--lr", "0"])
    assert f"{path}: has no decoder, which starts anew" in capsys.readouterr().out
    (found, _, _), _ = capsulenet.load_model(str(out / "trained_model.h5"))
    assert found.get_layer("decoder").weights
    for name in ("conv1", "primarycap_depthwise", "digitcaps"):
        assert_same_weights(found.get_layer(name), model.get_layer(name))


def test_a_file_of_another_network_or_routing_is_refused_by_name(trained, capsys):
    common, path = trained
    for flags, said in (
        (
            ["--model", "capsnet"],
            "--model capsnet: {} holds weights of the network 'ef",
        ),
        (
            ["--routing", "max_min"],
            "--routing max_min: {} was trained with --routing at",
        ),
        (["--use_bias"], "{}: routing 'attention' has no use_bias"),
        (["-r", "3"], "{}: routing 'attention' takes 1 iteration, not routings=3"),
    ):
        with pytest.raises(SystemExit) as end:
            capsulenet.main(["-t", "-w", path, *common, *flags])
        assert end.value.code == 2
        assert said.format(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "network, how",
    [
        *(("capsnet", how) for how in (*ROUTINGS, "leaky", "bias")),
        *((other, "leaky and bias") for other in capsulenet.NETWORKS),
        *((other, "max_min") for other in ("photo", "efficient", "shared")),
    ],
)
def test_a_file_of_weights_tells_the_routing_of_any_network(network, how, tmp_path):
    flags = {"leaky": "leaky" in how, "use_bias": "bias" in how, "decoder": False}
    flags |= {"routing": how if how in ROUTINGS else "dynamic"}
    if network in ("capsnet", "shared"):
        flags |= {"filters": 8, "n_channels": 2}
    model = capsulenet.NETWORKS[network]((17, 17, 1), 2, None, **flags)[0]
    path, built = str(tmp_path / "w.h5"), capsulenet.architecture(model)
    assert flags.items() <= built.items()
    capsulenet.save_weights(model, path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    assert capsulenet.architecture(loaded) == built
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("network", ["capsnet", "efficient"])
def test_a_file_of_weights_tells_the_squash(network, tmp_path):
    path, x = str(tmp_path / "w.h5"), array(4, 17, 17, 1)
    sizes = {"filters": 8, "n_channels": 2} if network == "capsnet" else {}
    for how, squash in (("dynamic", "exponential"), ("inverted", "layer_norm")):
        flags = {"routing": how, "squash": squash, **sizes}
        trio = capsulenet.NETWORKS[network]((17, 17, 1), 2, None, **flags)
        built = {"architecture": capsulenet.architecture(trio[0])}
        capsulenet.save_weights(trio[0], path, built)
        (_, loaded, _), _ = capsulenet.load_model(path)
        expected = predicted(trio[1], x)[0]
        np.testing.assert_allclose(predicted(loaded, x)[0], expected, atol=1e-6)
    flags = {"squash": lambda s: s / 9, **sizes}
    trio = capsulenet.NETWORKS[network]((17, 17, 1), 2, None, **flags)
    built = {"architecture": capsulenet.architecture(trio[0])}
    capsulenet.save_weights(trio[0], path, built)
    with pytest.raises(ValueError, match="its squash is a function"):
        capsulenet.load_model(path)


def test_weights_that_do_not_tell_another_network_say_what_to_do(tmp_path):
    path = str(tmp_path / "w.h5")
    model = capsulenet.EfficientCapsNet((17, 17, 1), 2, decoder=False)[0]
    capsulenet.save_weights(model, path)
    with pytest.raises(ValueError, match="build that, and use load_weights"):
        capsulenet.load_model(path)


@pytest.mark.parametrize("told", [["x"], {}, None, "y" * 5000, "em"])
def test_a_routing_that_is_none_is_one_line_which_names_the_file(
    told, data_file, tmp_path, capsys
):
    path = str(tmp_path / "w.h5")
    sizes = {"filters": 8, "n_channels": 2, "decoder": False}
    model = capsulenet.CapsNet((17, 17, 1), 2, 1, **sizes)[0]
    built = {**capsulenet.architecture(model), "routing": told}
    capsulenet.save_weights(model, path, {"architecture": built})
    with pytest.raises(SystemExit) as end:
        capsulenet.main(["-t", "-w", path, "--dataset", str(data_file)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"{path}: routing" in said and len(said) < 500


def typed(*flags):
    return capsulenet.build_parser().parse_args(list(flags))


@pytest.mark.parametrize(
    "flags, routings",
    [([], 1), (["--routing", "max_min"], 3), (["--routing", "dynamic", "-r", "2"], 2)],
)
def test_the_network_for_pictures_routes_once_where_no_routing_is_asked(
    flags, routings
):
    args = typed("--model", "photo", *flags)
    recipe.choose_network(args, (40, 40, 3))
    recipe.fit_to_data(args, np.eye(2)[[0, 1] * 50], (32, 32, 3))
    assert args.routings == routings


def test_what_weights_tell_of_their_routing_is_taken_unless_another_is_asked():
    told = {"routing": "dynamic", "routings": 2, "leaky": True, "use_bias": False}
    args = typed()
    recipe.choose_network(args, (28, 28, 1), told, "file")
    assert (args.model, args.routings, args.leaky) == ("capsnet", 2, True)
    args = typed("--routing", "max_min")
    recipe.choose_network(args, (28, 28, 1), told, "file")
    assert (args.routing, args.routings, args.leaky) == ("max_min", 3, False)


def test_a_run_on_weights_that_tell_their_routing_goes_on(
    data_file, tmp_path, small_network
):
    path, out = str(tmp_path / "w.h5"), str(tmp_path / "out")
    model = small_network((17, 17, 1), 2, 1, routing="max_min")[0]
    about = {"architecture": capsulenet.architecture(model)}
    capsulenet.save_weights(model, path, about)
    common = ["--dataset", str(data_file), "--epochs", "2", "--batch_size", "20"]
    common += ["--save_dir", out, "--verbose", "0", "--seed", "0"]
    capsulenet.main([*common, "-w", path, "--pause_after", "1"])
    capsulenet.main([*common, "--resume"])
    built = capsulenet.architecture(
        capsulenet.load_model(os.path.join(out, "trained_model.h5"))[0][0]
    )
    assert (built["routing"], built["routings"]) == (
        "max_min",
        1,
    )  # its own, not the usual 3


def test_the_same_command_with_resume_goes_on(data_file, tmp_path):
    common = ["--dataset", str(data_file), "--save_dir", str(tmp_path), "--epochs", "2"]
    common += ["--model", "efficient", "--batch_size", "20", "--verbose", "0"]
    capsulenet.main([*common, "--seed", "0", "--pause_after", "1"])
    capsulenet.main([*common, "--resume"])
    with open(tmp_path / "log.csv") as log:
        assert len(log.readlines()) == 3
    assert not (tmp_path / "run-1").exists()


def test_the_command_line_trains_by_another_routing_and_tests_it(
    data_file, tmp_path, capsys, small_network
):
    common = ["--dataset", str(data_file), "--save_dir", str(tmp_path)]
    how = ["--epochs", "1", "--batch_size", "10", "--verbose", "0"]
    capsulenet.main([*common, *how, "--authors", "--leaky", "-r1", "--seed", "0"])
    path = str(tmp_path / "trained_model.h5")
    capsulenet.main([*common, "-t", "-w", path, "--seed", "0"])
    assert "Test acc" in capsys.readouterr().out
    built = capsulenet.architecture(capsulenet.load_model(path)[0][0])
    assert built["leaky"] and built["use_bias"] and built["routing"] == "dynamic"


def test_the_authors_first_weights_are_theirs():
    model = capsulenet.CapsNet((20, 20, 1), 3, 3, filters=8, authors=True)[0]
    for name, stddev in (("conv1", 0.05), ("primarycap_conv2d", 0.1 / 32)):
        kernel, bias = model.get_layer(name).get_weights()
        assert kernel.std() == pytest.approx(stddev, rel=0.2)  # of a truncated normal
        assert (bias == np.float32(0.1)).all()
    W, bias = model.get_layer("digitcaps").get_weights()
    assert W.std() == pytest.approx(0.1, rel=0.2) and (bias == np.float32(0.1)).all()


def test_what_only_the_paper_s_network_has_is_refused_of_others(data_file, capsys):
    for flag, name in ((["--authors"], "efficient"), (["--conv", "direct"], "photo")):
        with pytest.raises(SystemExit) as end:
            capsulenet.main(["--dataset", str(data_file), "--model", name, *flag])
        assert end.value.code == 2
        assert f"the network {name} has no such choice" in capsys.readouterr().err
