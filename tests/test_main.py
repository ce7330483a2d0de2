import os

import pytest

import main


def test_defaults_are_those_of_the_pytorch_capsnet():
    defaults = vars(main.build_parser().parse_args([]))
    assert defaults.pop("save_dir") == "./results"
    assert defaults.pop("given") == []
    assert not defaults.pop("resume") and not defaults.pop("deterministic")  # ours
    assert defaults == {
        "epochs": 10,
        "lr": 0.01,
        "batch_size": 128,
        "test_batch_size": 128,
        "log_interval": 10,
        "no_cuda": False,
        "threads": 4,
        "seed": 42,
        "num_conv_out_channel": 256,
        "num_conv_in_channel": 1,
        "num_primary_unit": 8,
        "primary_unit_size": 1152,
        "num_classes": 10,
        "output_unit_size": 16,
        "num_routing": 3,
        "use_reconstruction_loss": True,
        "regularization_scale": 0.0005,
        "dataset": "mnist",
        "input_width": 28,
        "input_height": 28,
    }


@pytest.mark.parametrize(
    "text, value",
    [
        *(("--use-reconstruction-loss", True), ("", True)),
        *((f"--use-reconstruction-loss {t}", True) for t in ("yes", "True", "1")),
        *((f"--use-reconstruction-loss {t}", False) for t in ("no", "false", "0")),
    ],
)
def test_the_reconstruction_loss_is_spelled_in_several_ways(text, value):
    args = main.build_parser().parse_args(text.split())
    assert args.use_reconstruction_loss is value


def test_the_training_is_that_of_the_pytorch_capsnet():
    args = vars(main.training_options(main.build_parser().parse_args([])))
    assert args["lam_recon"] == pytest.approx(0.0005 * 784)
    recipe = {"optimizer": "lamb", "lr": 0.01, "lr_decay": 1.0, "shift_fraction": 0.0}
    recipe |= {"schedule": "exponential", "balance": "no", "keep_checkpoints": 0}
    assert recipe.items() <= args.items()


@pytest.mark.parametrize(
    "args, message",
    [
        ("--primary-unit-size 1000", "multiples of 36: 36, 72, 108, ... (1152 with"),
        ("--num-classes 7", "--num-classes 7: mnist has 10"),
        ("--num-conv-in-channel 3", "--num-conv-in-channel"),
        ("--num-conv-in-channel 2", "1 (grey) or 3 (colour)"),
        ("--input-width 12", "at least 17 x 17 pixels"),
        ("--use-reconstruction-loss maybe", "'maybe' is not one of"),
        ("--num-routing 0", "--num-routing 0: must be at least 1"),
        ("--batch-size 0", "--batch-size 0: must be at least 1"),
        ("--regularization-scale -1", "--regularization-scale -1.0: must be at least"),
        ("--threads 0", "--threads 0: must be at least 1"),
        ("--num-conv-out-channel 0", "--num-conv-out-channel 0: must be at least 1"),
        ("--output-unit-size 0", "--output-unit-size 0: must be at least 1"),
        ("--dataset multimnist", "--dataset multimnist: has a training and a test of"),
        (
            "--dataset affnist",
            "--dataset affnist: has a training and a test of its own",
        ),
        ("--dataset nowhere", "no such file or folder"),
        ("--save-dir /dev/null/a", "--save_dir /dev/null/a: can't be written"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main.main(args.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []
