import argparse
import shutil

import keras
import numpy as np
import pytest
from helpers import assert_same_weights, options, save_pictures

import capsulenet
from capsnet import options as options_of
from capsnet.training import start


def small(channels=1, n_class=3):
    size = {"filters": 4, "kernel_size": 5, "n_channels": 1, "dim_primary": 4}
    return capsulenet.CapsNet((12, 12, channels), n_class, 2, dim_capsule=4, **size)


@pytest.mark.parametrize("channels, n_class", [(3, 3), (1, 4)])
def test_a_test_of_weights_says_what_they_were_trained_on(tmp_path, channels, n_class):
    model = small(channels, n_class)[0]
    names = list("abcd")[:n_class]
    listed = ", ".join(names)
    about = {"architecture": capsulenet.architecture(model), "class_names": names}
    path = str(tmp_path / "w.h5")
    capsulenet.save_weights(model, path, about)
    args = options(tmp_path, weights=path, testing=True, routings=2)
    args = options_of.complete(args)
    stored = capsulenet.weights.read(path)
    start.load_weights(small(channels, n_class)[0], args, stored)
    colour = "grey" if channels == 1 else "colour"
    other_names = options_of.complete(
        options(
            tmp_path, weights=path, testing=True, routings=2, class_names=["c", "d"]
        )
    )
    with pytest.raises(ValueError, match=f"classes {listed}, which"):
        start.load_weights(small(channels, n_class)[0], other_names, stored)
    said = f"w.h5: was trained on 12 x 12 {colour}, classes {listed}, which --dataset mnist"
    with pytest.raises(ValueError, match=f"{said} .*give the --dataset"):
        start.load_weights(small()[0], args, stored)


def test_random_weights_are_said_at_both_ends(tmp_path, capsys):
    for weights, times in ((None, 2), ("w.h5", 0)):
        with start.random_weights_said(options(tmp_path, weights=weights)):
            print("tested")
        lines = capsys.readouterr().out.splitlines()
        assert sum("random weights" in line for line in lines) == times
        assert times == 0 or [i for i, t in enumerate(lines) if t == "tested"] == [1]


def test_what_is_open_is_settled_before_there_is_a_network(tmp_path, squares):
    given = options(tmp_path, dataset=squares, seed=7)
    del given.digit
    args = options_of.complete(given)
    data, stored = start.prepare(args)
    assert stored is None and args.digit == 1
    assert (args.model, args.balance) == ("capsnet", "no")
    assert list(args.class_names) == list(data.class_names) == ["0", "1"]
    assert np.shape(data.train[0]) == (40, 17, 17, 1)
    args.seed = None
    start.prepare(args)
    assert 0 <= args.seed < 2**31


@pytest.mark.parametrize(
    "lie",
    [{"input_shape": 5}, {"input_shape": "aaa"}, 7, {"class_names": 3}],
)
def test_a_test_of_weights_that_say_nonsense_is_refused(tmp_path, lie):
    model = small()[0]
    about = {"architecture": capsulenet.architecture(model)}
    if isinstance(lie, dict):
        about["architecture"] |= lie
        about |= {"class_names": lie.get("class_names")}
    else:
        about["architecture"] = lie
    path = str(tmp_path / "w.h5")
    capsulenet.save_weights(model, path, about)
    args = options(tmp_path, weights=path, testing=True, routings=2)
    with pytest.raises(ValueError, match="w.h5: not a CapsNet's weights"):
        stored = capsulenet.weights.read(path)
        start.load_weights(model, options_of.complete(args), stored)


def test_weights_are_read_where_there_is_nothing_to_resume(tmp_path, squares):
    path = str(tmp_path / "w.h5")
    capsulenet.save_weights(small()[0], path)
    given = options(tmp_path / "new", dataset=squares, resume=True, weights=path)
    _, stored = start.prepare(options_of.complete(given))
    assert "conv1" in stored[1]


@pytest.mark.usefixtures("keras_home", "small_network")
def test_a_folder_is_tested_on_what_the_training_left_out(tmp_path, capsys):
    folder, out = save_pictures(tmp_path / "a", n=10, shape=(24, 20)), tmp_path / "out"
    left_out = ["--test_share", "0.5", "--epochs", "1", "--save_dir", str(out)]
    capsulenet.main(["--dataset", folder, *left_out])
    train = argparse.Namespace(dataset=folder, test_share=0.5, save_dir=str(out))
    images = start.prepare(options_of.complete(train))[0].train[0]
    trained_on = {x.tobytes() for x in images}  # each of another shade
    test = {"dataset": folder, "testing": True, "weights": out / "trained_model.h5"}
    for given, pictures in (({}, 10), ({"test_share": 0.2}, 4)):
        args = argparse.Namespace(**test, **given)
        tested = start.prepare(options_of.complete(args))[0].test[0]
        assert len(tested) == pictures
        assert given or not {x.tobytes() for x in tested} & trained_on
        assert ("may have been trained on" in capsys.readouterr().out) == bool(given)
    capsulenet.main(["--dataset", folder, *left_out, "--image_size", "17"])
    models = capsulenet.load_model(str(out / "trained_model.h5"))[0]
    larger = small()[0]
    args = options_of.complete(argparse.Namespace(**test))
    stored = start.prepare(args)[1]
    with pytest.raises(ValueError, match="with --image_size 17x17 --color gray"):
        start.load_weights(larger, args, stored)
    start.load_weights(models[0], args, stored)


@pytest.mark.parametrize("network", ["capsnet", "efficient", "photo"])
def test_weights_that_keras_wrote_tell_their_network_by_their_layers(
    tmp_path, squares, network
):
    model = capsulenet.NETWORKS[network]((17, 17, 1), 2, 1)[0]
    path = str(tmp_path / "best.weights.h5")
    model.save_weights(path)
    given = options(tmp_path, dataset=squares, testing=True, weights=path)
    args = options_of.complete(given)
    start.prepare(args)
    assert args.model == network
    other = "capsnet" if network == "photo" else "photo"
    args = options_of.complete(given)
    args.model = other
    if network != "capsnet":
        with pytest.raises(ValueError, match=f"weights of the network '{network}'"):
            start.prepare(args)


def test_the_precision_of_one_run_is_not_that_of_the_next(tmp_path, squares):
    before = keras.config.dtype_policy()
    try:
        for precision, policy in (
            ("bfloat16", "mixed_bfloat16"),
            ("float32", "float32"),
        ):
            given = options(tmp_path, dataset=squares, precision=precision)
            start.prepare(options_of.complete(given))
            assert keras.config.dtype_policy().name == policy
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "tested, digit", [([0, 1, 2], 2), ([0, 1], 1), ([6, 7], 6), ([], 5)]
)
def test_the_class_that_is_drawn_is_one_that_test_images_show(tmp_path, tested, digit):
    n_class = 3 if max(tested, default=9) < 3 else 8
    y = np.eye(n_class, dtype="uint8")
    x = np.zeros((n_class, 17, 17), "uint8")
    y_test = y[tested] if tested else 0 * y[:1]
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=x, y_train=y, x_test=x[: len(y_test)], y_test=y_test)
    given = options(tmp_path, dataset=path, testing=True)
    del given.digit
    args = options_of.complete(given)
    start.prepare(args)
    assert args.digit == digit


@pytest.mark.usefixtures("keras_home", "small_network")
def test_pictures_that_are_added_to_a_folder_may_change_the_test(tmp_path, capsys):
    folder, out = save_pictures(tmp_path / "a", n=10, shape=(24, 20)), tmp_path / "out"
    capsulenet.main(["--dataset", folder, "--epochs", "1", "--save_dir", str(out)])
    again = ["--dataset", folder, "-t", "-w", str(out / "trained_model.h5")]
    again += ["--save_dir", str(out)]
    capsulenet.main(again)
    assert "may have been trained on" not in capsys.readouterr().out
    for number in range(10, 15):
        shutil.copy(f"{folder}/ape/0.png", f"{folder}/ape/{number}.png")
    capsulenet.main(again)
    said = capsys.readouterr().out
    assert f"Warning: the test pictures of {folder} are not those of the tr" in said


def test_a_squash_for_which_there_is_no_option_is_not_passed_over(tmp_path):
    model = capsulenet.CapsNet((28, 28, 1), 3, 2, filters=2, squash="exponential")[0]
    path = str(tmp_path / "w.h5")
    about = {"architecture": capsulenet.architecture(model)}
    capsulenet.save_weights(model, path, about)
    here = capsulenet.CapsNet((28, 28, 1), 3, 2, filters=2)[0]
    stored = capsulenet.weights.read(path)
    for testing in (True, False):
        args = options(tmp_path, weights=path, testing=testing, routings=2)
        with pytest.raises(ValueError, match="w.h5: its capsules are squashed by 'exp"):
            start.load_weights(here, options_of.complete(args), stored)


@pytest.mark.parametrize("testing", [True, False])
def test_files_of_keras_without_a_decoder_are_taken(tmp_path, testing, capsys):
    sizes = {"filters": 2, "n_channels": 1}
    path = str(tmp_path / "best.weights.h5")
    without = capsulenet.CapsNet((28, 28, 1), 3, 2, decoder=False, **sizes)[0]
    without.save_weights(path)
    stored = capsulenet.weights.read(path)
    args = options(tmp_path, weights=path, testing=testing)
    args = options_of.complete(args)
    decoder = start.has_decoder(args, stored)
    assert decoder != testing
    model = capsulenet.CapsNet((28, 28, 1), 3, 2, decoder=decoder, **sizes)[0]
    start.load_weights(model, args, stored)
    assert ("has no decoder, which starts anew" in capsys.readouterr().out) == decoder
    for name in ("conv1", "digitcaps"):
        assert_same_weights(model.get_layer(name), without.get_layer(name))


def test_a_command_line_leaves_the_precision_of_the_process_alone(
    squares, small_network, call
):
    before = keras.config.dtype_policy()
    call("--dataset", squares, "--epochs=1", "--precision=bfloat16", "--save_dir=out")
    assert keras.config.dtype_policy() == before
