"""Which network and which options suit a data set, where the user gave none."""

import math

import numpy as np

from capsnet.command_line import as_flags
from capsnet.options import MODELS, NAMED_SETS

UNEVEN = 3
"""`--balance auto` draws all classes equally often where one has more than so many times
the images of another."""


def choose_network(args, shape, stored=None):
    """Set `args.model` where it is `"auto"`, and say which it is and why.

    Args:
        args: namespace with all options.
        shape: tuple `(height, width, channels)` of the images.
        stored: pair that `capsnet.weights.read` gave, of weights that are to be tested or
            trained on; they tell their network.
    """
    if args.model != "auto":
        return
    if stored is not None:
        told = stored[0].get("architecture")
        model = told.get("model") if isinstance(told, dict) else None
        args.model = model if model in MODELS else "capsnet"
    elif args.dataset in NAMED_SETS:
        args.model = "capsnet"
    else:
        small_and_grey = shape[2] == 1 and max(shape[:2]) <= 32
        args.model = "capsnet" if small_and_grey else "photo"
        colour = "grey" if shape[2] == 1 else "colour"
        print(
            f"Network {args.model}: images are {shape[0]} x {shape[1]}, {colour}, and "
            "the paper's network, capsnet, is for grey ones of up to 32 x 32 (--model)"
        )


def fit_to_data(args, labels, channels):
    """Give the options that the user left open values that suit the data.

    Nothing changes for the paper's network on a set that is known by name. Else a batch
    is a twentieth of the images, 16 to 100; there are 1,000 steps, in 30 to 100 epochs;
    the learning rate falls as a cosine. The network for pictures routes once, and its
    pictures change in brightness and colour.

    Args:
        args: namespace with all options; `given` names those that the user gave.
        labels: one-hot array `(n, n_class)` of the training images.
        channels: int. Of an image.

    Raises:
        ValueError: if an option is given that the network does not have.
    """
    if "conv" in args.given and args.model != "capsnet":
        raise ValueError(
            f"--conv {args.conv}: the network {args.model} has no such choice"
        )
    named = args.dataset in NAMED_SETS
    if args.balance == "auto":
        args.balance = "yes" if _are_uneven(labels.sum(0)) and not named else "no"
    if named and args.model == "capsnet":
        return
    batch = args.batch_size if "batch_size" in args.given else _batch_size(len(labels))
    epochs = math.ceil(1000 / math.ceil(len(labels) / batch))
    suited = {"batch_size": batch, "epochs": int(np.clip(epochs, 30, 100))}
    suited["schedule"] = "cosine"
    if args.model == "photo":
        suited |= {"routings": 1, "brightness": 0.2}
        suited |= {"tint": 0.2} if channels > 1 else {}
    chosen = {k: v for k, v in suited.items() if k not in args.given}
    vars(args).update(chosen)
    if not args.testing:
        print(f"Chosen for {len(labels)} training images: {as_flags(chosen)}")


def _batch_size(n):
    return int(np.clip(n // 20, 16, 100))


def say_counts(labels, names, balance):
    """Print how many training images each class has, and what is uneven about it.

    Args:
        labels: one-hot array `(n, n_class)`.
        names: list of str. The classes.
        balance: `"yes"` or `"no"`, see `--balance`.
    """
    counts = labels.sum(0).astype(int)
    shown = ", ".join(f"{name} {count}" for name, count in zip(names, counts[:20]))
    print(f"Training images of each class: {shown}{', ...' * (len(counts) > 20)}")
    missing = [name for name, count in zip(names, counts) if not count]
    if missing:
        print(
            f"Warning: no training image shows {', '.join(missing[:20])}: what is shown "
            "there in the test can't be learned"
        )
    if _are_uneven(counts):
        most = counts.argmax()
        least = np.where(counts > 0, counts, counts.max()).argmin()
        how = (
            "the images of all classes are drawn equally often (--balance)"
            if balance == "yes"
            else "--balance yes draws the images of all classes equally often"
        )
        print(
            f"Warning: {names[most]} has {counts[most]} images, {names[least]} "
            f"{counts[least]}: {how}"
        )


def _are_uneven(counts):
    return counts.max() > UNEVEN * counts[counts > 0].min()
