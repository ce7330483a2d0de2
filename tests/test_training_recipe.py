import argparse
import math

import numpy as np
import pytest

from capsnet import command_line, options
from capsnet.training import devices, recipe, start


def typed(*flags):
    args = command_line.build_parser().parse_args(list(map(str, flags)))
    return options.complete(args)


def labels(*counts):
    return np.repeat(np.eye(len(counts), dtype="float32"), counts, axis=0)


@pytest.mark.parametrize(
    "flags, shape, network",
    [
        ([], (28, 28, 1), "capsnet"),
        (["--dataset", "cifar10"], (32, 32, 3), "capsnet"),
        (["--dataset", "a"], (32, 32, 1), "capsnet"),
        (["--dataset", "a"], (32, 33, 1), "photo"),
        (["--dataset", "a"], (20, 20, 3), "photo"),
        (["--dataset", "a", "--model", "capsnet"], (99, 99, 3), "capsnet"),
        (["--model", "photo"], (28, 28, 1), "photo"),
    ],
)
def test_the_network_suits_the_images_unless_it_is_given(flags, shape, network, capsys):
    args = typed(*flags)
    recipe.choose_network(args, shape)
    assert args.model == network
    said = capsys.readouterr().out
    assert (f"Network {network}: images are" in said) == (flags == ["--dataset", "a"])


@pytest.mark.parametrize(
    "told, network",
    [
        ({"model": "photo"}, "photo"),
        ({}, "capsnet"),
        ({"model": "nonsense"}, "capsnet"),
        ({"model": [1]}, "capsnet"),
        (7, "capsnet"),
        (None, "capsnet"),
    ],
)
def test_weights_tell_their_network(told, network):
    args = typed("--dataset", "a")
    of_file = start._told(args, ({"architecture": told}, {}))
    recipe.choose_network(args, (64, 64, 3), *of_file)
    assert args.model == network


def test_the_default_routing_of_a_network_is_the_same_by_its_name():
    found = []
    for flags in ((), ("--routing", "dynamic")):
        args = typed("--dataset", "a", "--model", "photo", *flags)
        recipe.choose_network(args, (64, 64, 3), None, None)
        recipe.fit_to_data(args, labels(45, 45), (64, 64, 3))
        found.append((args.routing, args.routings))
    assert found == 2 * [("dynamic", 1)]


def test_a_choice_that_comes_with_authors_is_told_so():
    args = typed("--authors", "--routing", "attention")
    with pytest.raises(ValueError, match="--authors: routing 'attention' has no use_b"):
        recipe.choose_network(args, (28, 28, 1), None, None)
    args = typed("--authors", "--model", "efficient")
    with pytest.raises(ValueError, match="^--authors: the network efficient has no"):
        recipe.choose_network(args, (28, 28, 1), None, None)


@pytest.mark.parametrize(
    "n, batch_size, epochs",
    [(90, 16, 200), (360, 18, 100), (5000, 100, 40), (10_000, 100, 30)],
)
def test_what_is_open_suits_the_number_of_images(n, batch_size, epochs, capsys):
    args = typed("--dataset", "a", "--model", "photo", "--lr", 0.5)
    recipe.fit_to_data(args, labels(n // 2, n // 2), (32, 32, 3))
    assert (args.batch_size, args.epochs) == (batch_size, epochs)
    assert (args.schedule, args.routings, args.tint) == ("cosine", 1, 0.4)
    assert args.lr == 0.5 and args.balance == "no"
    said = capsys.readouterr().out
    assert f"Chosen for {n} training images: --batch_size {batch_size}" in said


@pytest.mark.parametrize(
    "flags, shape, before, batch_size",
    [
        ((), (28, 28, 1), 300, 304),
        (("--batch_size", 300), (28, 28, 1), 300, 300),  # for `start` to refuse
        ((), (28, 28, 1), 320, 320),
        (("--dataset", "a", "--model", "photo"), (32, 32, 3), 300, 24),
    ],
)
def test_devices_get_equal_shares_of_a_batch_that_is_not_given(
    flags, shape, before, batch_size, monkeypatch, capsys
):
    monkeypatch.setattr(devices, "replicas", lambda: 8)
    args = typed(*flags)
    args.batch_size = before
    recipe.choose_network(args, shape)
    recipe.fit_to_data(args, labels(180, 180), shape)
    assert args.batch_size == batch_size
    said = f"--batch_size {batch_size}" in capsys.readouterr().out
    assert said == (batch_size != before)


@pytest.mark.parametrize(
    "flags, channels, mode",
    [
        (("--dataset", "a", "--model", "photo"), 3, "nearest"),
        (("--dataset", "a", "--model", "photo"), 1, "nearest"),
        (
            ("--dataset", "a", "--model", "photo", "--fill_mode", "constant"),
            3,
            "constant",
        ),
        (("--dataset", "fashion_mnist", "--model", "photo"), 1, "constant"),
        (("--dataset", "cifar10", "--model", "photo"), 3, "nearest"),
        (("--dataset", "a", "--model", "efficient"), 1, "constant"),
    ],
)
def test_pictures_are_continued_over_their_edges_but_not_on_black(
    flags, channels, mode
):
    args = typed(*flags)
    recipe.fit_to_data(args, labels(45, 45), (32, 32, channels))
    assert args.fill_mode == mode


def test_what_is_given_stays_though_it_is_the_default():
    flags = ("--epochs", 50, "--batch_size", 100, "--schedule", "exponential", "-r", 3)
    args = typed("--dataset", "a", "--model", "photo", *flags, "--brightness", 0)
    recipe.fit_to_data(args, labels(45, 45), (32, 32, 1))
    assert (args.epochs, args.batch_size, args.routings) == (50, 100, 3)
    assert (args.schedule, args.brightness, args.tint) == ("exponential", 0, 0)


def test_a_decay_that_is_given_is_no_cosine_s():
    args = typed("--dataset", "a", "--model", "photo", "--lr_decay", 0.97)
    recipe.fit_to_data(args, labels(45, 45), (32, 32, 1))
    assert (args.schedule, args.lr_decay) == ("exponential", 0.97)


def test_mnist_by_name_is_trained_as_ever():
    args, before = typed(), typed()
    recipe.choose_network(args, (28, 28, 1))
    recipe.fit_to_data(args, labels(*[60] * 9, 6), (32, 32, 1))
    before.model, before.balance, before.routing = "capsnet", "no", "dynamic"
    assert vars(args) == vars(before)


@pytest.mark.parametrize(
    "counts, flags, balance",
    [
        ((30, 10), [], "no"),
        ((31, 10), [], "yes"),
        ((31, 0, 10), [], "yes"),
        ((31, 10), ["--balance", "no"], "no"),
        ((30, 30), ["--balance", "yes"], "yes"),
    ],
)
def test_uneven_classes_are_balanced_and_said(counts, flags, balance, capsys):
    args = typed("--dataset", "a", "--model", "photo", *flags)
    recipe.fit_to_data(args, labels(*counts), (32, 32, 3))
    assert args.balance == balance
    capsys.readouterr()
    recipe.say_counts(labels(*counts), "abc", args.balance)
    said = capsys.readouterr().out
    assert f"a {counts[0]}, b {counts[1]}" in said
    assert ("no training image shows b" in said) == (0 in counts)
    assert ("Warning: a has 31 images" in said) == (max(counts) == 31)
    assert ("--balance yes draws" in said) == (flags == ["--balance", "no"])


def test_a_form_of_convolution_that_the_network_lacks_is_refused():
    args = typed("--dataset", "a", "--model", "photo", "--conv", "direct")
    with pytest.raises(ValueError, match="--conv direct: the network photo"):
        recipe.fit_to_data(args, labels(20, 20), (32, 32, 3))


def test_what_only_train_is_called_with_counts_as_given():
    args = options.complete(argparse.Namespace(dataset="a", model="photo", epochs=2))
    recipe.fit_to_data(args, labels(20, 20), (32, 32, 3))
    assert (args.epochs, args.batch_size) == (2, 16)


@pytest.mark.parametrize("network", ["capsnet", "efficient", "photo", "shared"])
@pytest.mark.parametrize("dataset", ["multimnist", "affnist"])
def test_images_that_are_composed_are_not_changed_beside_that(network, dataset):
    args, plain = typed("--dataset", dataset, "--model", network), typed()
    recipe.fit_to_data(args, labels(300, 300), (36, 36, 1))
    bends = ("rotation", "zoom", "shear", "elastic")
    for change in (*bends, "erase", "brightness", "tint"):
        assert getattr(args, change) == getattr(plain, change), change


@pytest.mark.parametrize("flags", [[], ["--routing", "auto"]])
def test_auto_is_the_routing_that_the_weights_tell(flags):
    told = {"model": "capsnet", "routing": "max_min", "routings": 2, "use_bias": True}
    args = typed(*flags)
    recipe.choose_network(args, (28, 28, 1), told, "w.h5")
    assert (args.routing, args.routings, args.use_bias) == ("max_min", 2, True)


def test_classes_of_half_precision_are_counted():
    y = np.eye(2, dtype="float16")[np.repeat([0, 1], [9000, 1000])]
    assert recipe.is_balanced(typed(), y)
    assert not recipe.is_balanced(typed(), y[:0])


def test_the_authors_batch_and_decay_are_those_of_their_code():
    args = typed("--authors", "--model", "capsnet")
    recipe.fit_to_data(args, labels(*[6000] * 10), (28, 28, 1))
    assert args.batch_size == 128 and args.schedule == "exponential"
    in_2000_steps = args.lr_decay ** (2000 / math.ceil(60_000 / 128))
    assert in_2000_steps == pytest.approx(0.96, abs=1e-4)
