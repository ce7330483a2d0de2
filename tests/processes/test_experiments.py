"""Two digits in one picture, and trainings that stop, through the command line."""

import json

import numpy as np
import pytest
from helpers import options, read_log, small_data
from PIL import Image

import capsulenet
from capsnet import data as datasets


def test_pairs_from_training_to_prediction(tmp_path, digits, call):
    pairs = ["--dataset", digits, "--pairs", "--overlap_shift", 3, "--seed", 0]
    out = ["--save_dir", tmp_path / "out"]
    trained = call(*pairs, *out, "--model=efficient", "--epochs=1", "--batch_size=30")
    assert "--lam_recon 0.288" in trained.out  # 0.0005 * 24 * 24
    weights = ["-w", tmp_path / "out" / "trained_model.h5"]
    test = ["-t", "--digit=1", "--test_size=40", "--show_routing"]
    tested = call(*pairs, *test, *weights, "--save_dir", tmp_path / "test")
    assert "of 40 pictures: the two longest capsules are not the pair" in tested.out
    for name in ("pairs.png", "manipulate-1.png", "routing-0.png"):
        assert (tmp_path / "test" / name).exists()
    one = datasets.load(digits, overlap=3).test.x[0]
    Image.fromarray(np.uint8(255 * one[..., 0])).save(tmp_path / "pair.png")
    said = call("--predict", tmp_path / "pair.png", "--json", *weights)
    told = json.loads(said.out.splitlines()[-1])
    counts = {"none": [1], "one": [1], "two": [2], "unsure": [3]}  # of three classes
    assert told["class"].count(" + ") + 1 in counts[told["verdict"]]
    assert told["strangeness"] is None


def test_until_stops_once_and_reads_the_test_images_once(tmp_path, digits, call):
    run = ["--dataset", digits, "--until=0.01", "--epochs=3", "--seed=0"]
    run += ["--save_dir", tmp_path, "--batch_size=34", "--lr=0"]
    said = call(*run).out
    assert "Stopped after epoch 1: val_capsnet_accuracy" in said
    assert said.count("Test acc") == 1 and "of 53 images" in said
    assert len(read_log(tmp_path)) == 1
    said = call(*run, "--resume").out
    assert "Resumed after epoch 1 of 3" in said and "Test acc" in said
    assert len(read_log(tmp_path)) == 1


def colour(tmp_path):
    x = np.zeros((6, 20, 20, 3), "uint8")
    y = np.arange(6) % 2
    np.savez(tmp_path / "colour.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return tmp_path / "colour.npz"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--until=1.5"], "--until 1.5: must be 0 to 1"),
        (["--pairs", "--overlap_shift=-1"], "--overlap_shift -1: must be at least 0"),
        (["--pairs", "--overlap_shift=24"], "--overlap_shift 24: moves digits out"),
        (["--dataset=affnist", "--pairs"], "--pairs: the digits of --dataset affnist"),
        (["--affnist=a.mat"], "--affnist: is a test of --dataset affnist"),
    ],
)
def test_bad_input_is_one_line(tmp_path, digits, call, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        call("--dataset", digits, *flags, "--save_dir", tmp_path)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_digit_that_no_pair_shows_is_refused(tmp_path, digits, call, capsys):
    (absent,) = np.flatnonzero(
        datasets.load(digits, overlap=6, test_size=1).test.y == 0
    )
    flags = ["--pairs", "-t", "--test_size=1", f"--digit={absent}"]
    with pytest.raises(SystemExit) as stop:
        call("--dataset", digits, *flags, "--save_dir", tmp_path)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--digit {absent}: no test image shows it" in said


def test_colours_are_not_overlapped(tmp_path, call, capsys):
    with pytest.raises(SystemExit) as stop:
        call("--dataset", colour(tmp_path), "--pairs")
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "can't be overlapped: they are coloured" in said


def test_without_a_decoder_there_is_no_weight_of_reconstructions(tmp_path):
    model = capsulenet.CapsNet((12, 12, 1), 3, 1, kernel_size=3, decoder=False)[0]
    with pytest.raises(ValueError, match="--lam_recon 0.5: the network has no decoder"):
        capsulenet.train(model, small_data(), options(tmp_path, lam_recon=0.5))
