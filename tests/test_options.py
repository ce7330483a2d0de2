import argparse
import os

import numpy as np
import pytest
from helpers import ROOT, small_capsnet, small_data
from helpers import options as options_for
from keras import optimizers

import capsulenet
from capsnet import command_line, options
from capsnet.rules import RULES
from capsnet.spectral import CONV_FORMS
from capsnet.training.optimizers import OPTIMIZERS, optimizer


def choices(name):
    return next(o.choices for o in options.OPTIONS if o.name == name)


def test_choices_are_what_the_code_knows():
    assert choices("conv") == CONV_FORMS == options.CONV_FORMS
    assert dict.fromkeys(choices("optimizer")) == dict.fromkeys(OPTIMIZERS)
    assert OPTIMIZERS["adam"] is optimizers.Adam
    assert dict.fromkeys(choices("routing")) == dict.fromkeys(["auto", *RULES])
    assert choices("model") == ("auto", *capsulenet.NETWORKS)


def test_a_cosine_falls_to_zero_with_the_last_step():
    args = argparse.Namespace(schedule="cosine", lr=0.1, epochs=4)
    rate = optimizer(options.complete(args), steps=5)._learning_rate
    rates = [float(rate(step)) for step in (0, 10, 20)]
    assert rates == pytest.approx([0.1, 0.05, 0], abs=1e-6)


def test_every_option_has_its_default_for_train_and_on_the_command_line():
    complete = options.complete(argparse.Namespace(epochs=3))
    assert vars(complete) == {**options.DEFAULTS, "epochs": 3, "given": ["epochs"]}
    parsed = vars(command_line.build_parser().parse_args(["--epochs", "50"]))
    assert parsed.pop("given") == ["epochs"]  # though it is the default
    assert parsed == {o.name: o.default for o in options.OPTIONS if o.group}


def test_flags_say_what_was_parsed():
    parser = command_line.build_parser()
    flags = (
        "--epochs 3 --image-size 28x32 --no-routing-gradient -w a --digit all --json "
        "--predict b c"
    )
    args = parser.parse_args(flags.split())
    told = command_line.settings(args, parser)
    assert told.startswith("Settings: ")
    said = told.removeprefix("Settings: ")
    for part in ("--image_size 28x32", "--no_routing_gradient", "--weights a"):
        assert part in said
    assert parser.parse_args(said.split()) == args
    nothing = command_line.settings(parser.parse_args([]), parser)
    assert nothing == "Settings: the defaults"


def test_help_is_in_groups_with_defaults_where_there_are_values():
    text = command_line.build_parser().format_help()
    places = [text.index(f"\n{o.group}:") for o in options.OPTIONS if o.group]
    assert places == sorted(places) and len(set(places)) == 6
    assert "(default: 50)" in text and "(default: True)" not in text
    assert "(default: None)" not in text and "(default: False)" not in text
    assert text.index("examples:") > places[-1]
    assert text.count("\n  python capsulenet.py") == 3


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--show_routing", "--show_routing: draws test images, so it needs -t"),
        ("-t --json", "--json: is how --predict answers, so it needs --predict FILE"),
        ("-t --resume", "--resume: goes on with a training, and -t is a test"),
        ("--image_size 14", "--image_size: is for a folder of pictures"),
        ("-t --dataset FILE --color gray", "--color: is for a folder of pictures"),
        ("--test_share 0.5", "--test_share: is for a folder of pictures"),
        ("--overlap_shift 4", "--overlap_shift: is for --pairs, --dataset multimnist"),
        ("--test_size 9", "--test_size: is for pairs and --dataset affnist"),
    ],
)
def test_flags_that_would_do_nothing_say_what_they_need(
    flags, line, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where a training would write
    flags = flags.replace("FILE", os.path.join(ROOT, "data", "mnist.npz"))
    with pytest.raises(SystemExit) as end:
        capsulenet.main(flags.split())
    assert end.value.code == 2 and f"error: {line}\n" in capsys.readouterr().err


def test_the_documentation_has_the_table():
    with open(os.path.join(ROOT, "docs", "options.md"), encoding="utf-8") as file:
        assert command_line.table().strip() in file.read()


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("epochs", -1, "--epochs -1"),
        ("epochs", "3", "--epochs '3': must be an integer"),
        ("epochs", 2.5, "--epochs 2.5: must be an integer"),
        ("batch_size", None, "--batch_size None: must be an integer"),
        ("seed", 1.5, "--seed 1.5: must be an integer"),
        ("lr", "0.1", "--lr '0.1': must be a number"),
        ("pairs", "no", "--pairs 'no': must be True or False"),
        ("digit", "five", "--digit 'five': must be an integer"),
        ("keep_checkpoints", -1, "--keep_checkpoints -1: must be at least 0"),
        ("batch_size", 0, "--batch_size 0"),
        ("lr", -0.1, "--lr -0.1"),
        ("lr", float("nan"), "--lr nan"),
        ("shift_fraction", 1.5, "--shift_fraction 1.5"),
        ("rotation", 181.0, "--rotation 181.0: must be 0 to 180 degrees"),
        ("zoom", 1.0, "--zoom 1.0: must be at least 0 and below 1"),
        ("shear", 1.0, "--shear 1.0: must be at least 0 and below 1"),
        ("elastic", -0.1, "--elastic -0.1: must be at least 0 and below 1"),
        ("erase", 1.0, "--erase 1.0: must be at least 0 and below 1"),
        ("lam_recon", -1, "--lam_recon -1"),
        ("routings", 101, "--routings 101: must be at least 1, at most 100"),
        ("schedule", "linear", "--schedule linear: must be one of exponential, cosine"),
        ("optimizer", "sgd", "--optimizer sgd: must be one of adam, lamb"),
    ],
)
def test_options_that_can_not_be_are_refused(tmp_path, option, value, message):
    args = options_for(tmp_path / "new", **{option: value})
    with pytest.raises(ValueError, match=message):
        capsulenet.train(small_capsnet()[0], small_data(), args)
    assert not os.path.exists(tmp_path / "new")


def test_what_is_nearly_an_option_is_warned_of():
    def trains():  # as capsulenet.train does, which names who called it
        options.complete(argparse.Namespace(epoch=3, gpus=2, my_own=1, given=["lr"]))

    with pytest.warns(UserWarning, match="epoch is no option.*; epochs is one") as said:
        trains()
    assert len(said) == 1 and said[0].filename == __file__


def test_numbers_of_numpy_are_numbers():
    given = {"epochs": np.int64(3), "lr": np.float32(0.1), "flip": np.True_, "zoom": 0}
    args = options.complete(argparse.Namespace(**given, digit="all", seed=np.uint8(7)))
    options.check_options(args)
