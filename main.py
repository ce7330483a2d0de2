"""CapsNet, spoken with the flags of the public PyTorch CapsNet (capsule-net-pytorch).

    python main.py
    python main.py --epochs 30 --num-routing 1 --threads 16

The network, its training and its test are those of `capsulenet.py`.

References:
    Chee. capsule-net-pytorch. https://github.com/cedrickchee/capsule-net-pytorch,
        whose flags and defaults these are.
"""

import argparse
import contextlib
import math
import os

from capsnet.command_line import Parser, begin


def _yes_or_no(text):
    """Turn yes/no, true/false or 1/0 into a bool."""
    known = {"yes": True, "true": True, "1": True}
    known |= {"no": False, "false": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
    return known[text.lower()]


def build_parser():
    """Return the command line's parser."""
    parser = Parser(
        description="CapsNet with the flags of the PyTorch CapsNet.", dashes=True
    )
    add = parser.add_argument
    add("--epochs", default=10, type=int, help="epochs to train")
    add(
        "--lr",
        default=0.01,
        type=float,
        help="learning rate of the optimizer Lamb, constant. (Adam at 0.01 kills this "
        "network: every capsule grows to length one within 20 steps.)",
    )
    add("--batch-size", default=128, type=int, help="images a training step")
    add("--test-batch-size", default=128, type=int, help="images a test step")
    add("--log-interval", default=10, type=int, help="batches between two log lines")
    add("--no-cuda", action="store_true", help="stay on the CPU")
    add(
        "--threads",
        default=4,
        type=int,
        help="threads that prepare batches; with TensorFlow",
    )
    add("--seed", default=42, type=int, help="makes a run repeatable")
    add("--num-conv-out-channel", default=256, type=int, help="first convolution's")
    add("--num-conv-in-channel", default=1, type=int, help="1 for grey, 3 for colour")
    add("--num-primary-unit", default=8, type=int, help="primary capsule's dimension")
    add(
        "--primary-unit-size", default=1152, type=int, help="number of primary capsules"
    )
    add("--num-classes", default=10, type=int, help="number of classes")
    add("--output-unit-size", default=16, type=int, help="class capsule's dimension")
    add("--num-routing", default=3, type=int, help="routing iterations, at least 1")
    add(
        "--use-reconstruction-loss",
        default=True,
        nargs="?",
        const=True,
        type=_yes_or_no,
        help="yes/no, true/false or 1/0; no builds the model without a decoder",
    )
    add(
        "--regularization-scale",
        default=0.0005,
        type=float,
        help="weight of the sum of squared errors of an image's reconstruction",
    )
    add(
        "--dataset",
        default="mnist",
        help="as capsulenet.py --dataset, but for its multimnist and affnist",
    )
    add("--input-width", default=28, type=int, help="width of the images")
    add("--input-height", default=28, type=int, help="height of the images")
    add("--save-dir", default="./results", help="directory for everything written")
    add("--resume", action="store_true", help="go on with the run in --save-dir")
    add("--deterministic", action="store_true", help="compute the same bits each time")
    return parser


def stay_on_cpu(args):
    """Hide the GPUs where `--no-cuda` asks for it: JAX reads this once, on its import."""
    if args.no_cuda:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}


if __name__ == "__main__":
    begin(build_parser().parse_args, stay_on_cpu)

import keras

import capsulenet
from capsnet import data as datasets
from capsnet.architecture import KERNEL_SIZE, primary_positions
from capsnet.command_line import settings
from capsnet.numerics import on_cpu
from capsnet.options import complete
from capsnet.training import devices


def primary_channels(args):
    """Return the capsules at each position that make `--primary-unit-size` in all.

    Args:
        args: namespace of the command line.

    Raises:
        ValueError: if the image size can't give that number of capsules.
    """
    positions = primary_positions(args.input_height, args.input_width)
    if not positions:
        least = 2 * KERNEL_SIZE - 1
        raise ValueError(
            f"--input-width {args.input_width} --input-height {args.input_height}: at "
            f"least {least} x {least} pixels are needed"
        )
    if args.primary_unit_size < 1 or args.primary_unit_size % positions:
        values = ", ".join(str(positions * n) for n in (1, 2, 3))
        raise ValueError(
            f"--primary-unit-size {args.primary_unit_size}: images of "
            f"{args.input_width} x {args.input_height} give multiples of {positions}: "
            f"{values}, ... ({positions * 32} with 32 channels)"
        )
    return args.primary_unit_size // positions


def over_all_devices():
    """Say what is computed on, and return the context to build and train a model in."""
    if on_cpu():
        print("On the CPU: no GPU is visible")
        return contextlib.nullcontext()
    number = 1 if keras.backend.backend() == "torch" else devices.count("gpu")
    print("On one GPU" if number == 1 else f"Data-parallel over {number} GPUs")
    return devices.data_parallel(number) if number > 1 else contextlib.nullcontext()


_NOT_OF_THE_RUN = ("save_dir", "resume", "log_interval", "threads", "no_cuda", "given")
"""Flags that the result of a training does not depend on."""


def training_options(args):
    """Return the options of `capsulenet.train` that say the same."""
    pixels = args.input_width * args.input_height * args.num_conv_in_channel
    said = argparse.Namespace(
        epochs=args.epochs,
        batch_size=args.batch_size,
        test_batch_size=args.test_batch_size,
        log_interval=args.log_interval,
        threads=args.threads,
        seed=args.seed,
        optimizer="lamb",
        lr=args.lr,
        lr_decay=1.0,
        lam_recon=args.regularization_scale * pixels * args.use_reconstruction_loss,
        routings=args.num_routing,
        shift_fraction=0.0,
        balance="no",
        save_dir=args.save_dir,
        dataset=args.dataset,
        image_size=[args.input_height, args.input_width],
        color="gray" if args.num_conv_in_channel == 1 else "rgb",
        keep_checkpoints=0,
        draw_reconstructions=args.use_reconstruction_loss,
        resume=args.resume,
        deterministic=args.deterministic,
        run_options={
            name.replace("_", "-"): value
            for name, value in vars(args).items()
            if name not in _NOT_OF_THE_RUN
        },
    )
    return complete(said)


def prepare(args):
    """Check the flags and return `data, options`.

    Raises:
        OSError: if a file can't be read or written.
        ValueError: if a flag has a value that it can't have.
    """
    for name in (
        *("test_batch_size", "threads", "num_conv_out_channel", "num_primary_unit"),
        *("num_classes", "output_unit_size", "num_routing", "batch_size", "epochs"),
    ):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(args, name)}: must be at least 1")
    if not 0 <= args.regularization_scale < math.inf:
        raise ValueError(
            f"--regularization-scale {args.regularization_scale}: must be at least 0"
        )
    if args.num_conv_in_channel not in (1, 3):
        raise ValueError(
            f"--num-conv-in-channel {args.num_conv_in_channel}: 1 (grey) or 3 (colour)"
        )
    options = training_options(args)
    capsulenet.check_options(options)
    primary_channels(args)
    if args.dataset in ("multimnist", "affnist"):
        raise ValueError(
            f"--dataset {args.dataset}: has a training and a test of its own, in "
            "capsulenet.py"
        )
    data = datasets.load(args.dataset, options.image_size, options.color)
    (x, y), options.class_names = data.train, list(data.class_names)
    asked = (args.input_height, args.input_width, args.num_conv_in_channel)
    if x.shape[1:] != asked:
        raise ValueError(
            f"--dataset {args.dataset}: has images of height, width, channels "
            f"{x.shape[1:]}, not {asked}: see --input-height, --input-width, "
            "--num-conv-in-channel"
        )
    if y.shape[1] != args.num_classes:
        raise ValueError(
            f"--num-classes {args.num_classes}: {args.dataset} has {y.shape[1]}"
        )
    capsulenet.make_save_dir(args.save_dir)
    return data, options


def build(args, input_shape):
    """Build the models that train and evaluate, from the flags."""
    return capsulenet.CapsNet(
        input_shape,
        args.num_classes,
        args.num_routing,
        filters=args.num_conv_out_channel,
        n_channels=primary_channels(args),
        dim_primary=args.num_primary_unit,
        dim_capsule=args.output_unit_size,
        decoder=args.use_reconstruction_loss,
    )[:2]


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    args = build_parser().parse_args(argv)
    if args.deterministic:
        devices.make_deterministic()
    capsulenet.set_allocator()
    with capsulenet.one_line_errors():
        data, options = prepare(args)
        print(settings(args, build_parser()))
        shape = data.train[0].shape[1:]
        keras.utils.set_random_seed(args.seed)
        with over_all_devices():
            train_model, _ = build(args, shape)
            for weight in train_model.weights:
                print(f"{weight.path}: {tuple(weight.shape)}")
            print(f"{train_model.count_params():,} parameters")
            capsulenet.train(train_model, data[:2], options, signals=True)
        _, eval_model = build(args, shape)  # for one device
        eval_model.set_weights(train_model.get_weights())
        capsulenet.test(eval_model, data.test, options)


if __name__ == "__main__":
    main()
