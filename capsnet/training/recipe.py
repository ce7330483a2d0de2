"""Which network and which options suit a data set, where the user gave none."""

import math

import numpy as np

from capsnet import rules
from capsnet.command_line import as_flags
from capsnet.data.affine import REACH
from capsnet.options import MODELS, NAMED_SETS, are_paired
from capsnet.training import devices

OWN_ROUTING = {"efficient": "attention", "shared": "none"}
"""What `--routing auto` is, where it is not dynamic."""

TOLD = ("routing", "routings", "use_bias", "leaky")
"""Options that a file of weights tells."""

UNEVEN = 3
"""`--balance auto` draws all classes equally often where one has more than so many times
the images of another."""


def choose_network(args, shape, told=None, source=None):
    """Set `args.model` and the routing where they are open, and say which and why.

    Args:
        args: namespace with all options. What is told counts as given from then on.
        shape: tuple `(height, width, channels)` of the images.
        told: dict of `model` and `TOLD`, what weights or the checkpoint to resume say of
            their network. An empty one is of weights that do not tell. Optional.
        source: str. The file that tells, for errors.

    Raises:
        ValueError: if the weights are of another network, or the routing has no such
            option.
    """
    model = told.get("model", "capsnet") if told else None
    if args.model not in ("auto", model or args.model):
        raise ValueError(
            f"--model {args.model}: {source} holds weights of the network {model!r:.50}"
        )
    _choose_model(args, shape, told is not None, model)
    if args.authors and args.model != "capsnet":
        raise ValueError(_no_such_choice(args, "authors"))
    told = told or {}
    other = args.routing not in ("auto", told.get("routing", "dynamic"))
    for name in TOLD if not other else ():
        is_open = name not in args.given or getattr(args, name) == "auto"
        if name in told and is_open:
            setattr(args, name, told[name])
            args.given = [*args.given, name]
    if args.authors and not told:
        args.use_bias = True
    if args.routing == "auto":
        args.routing = OWN_ROUTING.get(args.model, "dynamic")
    routings = args.routings if "routings" in args.given else None
    asked = {name: getattr(args, name) for name in ("use_bias", "leaky")}
    try:
        args.routings = rules.rule(args.routing, routings, **asked).routings
    except ValueError as error:
        of = f"{source}: " if told else "--authors: " if args.authors else ""
        raise ValueError(f"{of}{error}") from None


def _no_such_choice(args, name):
    value = getattr(args, name)
    flag = f"--{name}" if value is True else f"--{name} {value}"
    return f"{flag}: the network {args.model} has no such choice"


def _choose_model(args, shape, from_weights, told):
    if args.model != "auto":
        return
    if from_weights:
        args.model = told if told in MODELS else "capsnet"
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


def fit_to_data(args, labels, shape):
    """Give the options that the user left open values that suit the data.

    Nothing changes for the paper's network on a set that is known by name, but that the
    weight of the reconstruction grows with the pixels of pairs. Else a batch
    is a twentieth of the images, 16 to 100; there are 2,000 steps, in 30 to 200 epochs;
    the learning rate falls as a cosine. The network for pictures routes once, and its
    pictures change in brightness and colour, and are continued over their edges where
    they move, but for the grey ones known by name, which are on black; those of
    Efficient-CapsNet turn and change in size; neither does so where pictures are
    composed, of pairs or of affNIST. `--authors` has the batch and the schedule of their
    code. Several devices take equal shares of a batch, which grows where it must.

    Args:
        args: namespace with all options; `given` names those that the user gave.
        labels: one-hot array `(n, n_class)` of the training images.
        shape: tuple `(height, width, channels)` of the images.

    Raises:
        ValueError: if an option is given that the network does not have.
    """
    if "conv" in args.given and args.model not in ("capsnet", "shared"):
        raise ValueError(_no_such_choice(args, "conv"))
    named = args.dataset in NAMED_SETS
    if args.balance == "auto":
        args.balance = "yes" if is_balanced(args, labels) and not named else "no"
    suited = of_composed(args, shape)
    if not named or args.model != "capsnet" or args.authors:
        suited |= _suited(args, labels, shape[2], bool(suited))
    if "lr_decay" in args.given:
        suited.pop("schedule", None)  # the cosine would ignore it
    batch = suited.get("batch_size", args.batch_size)
    if left := batch % devices.replicas():
        suited["batch_size"] = batch + devices.replicas() - left
    chosen = {k: v for k, v in suited.items() if k not in args.given}
    vars(args).update(chosen)
    if chosen and not args.testing:
        print(f"Chosen for {len(labels)} training images: {as_flags(chosen)}")


def is_balanced(args, labels):
    """Whether all classes are drawn equally often, by `--balance` and one-hot labels."""
    uneven = args.balance == "auto" and _are_uneven(np.count_nonzero(labels, 0))
    return args.balance == "yes" or bool(uneven)


def of_composed(args, shape):
    """Return what suits images that are composed, as a dict of options.

    The weight of the reconstruction grows with the pixels, from 0.392 for 28 x 28; and
    upright digits of affNIST are moved, but not bent.

    Args:
        args: namespace with all options.
        shape: tuple `(height, width, channels)` of the images.
    """
    suited = {}
    if are_paired(args) or args.dataset == "affnist":
        suited["lam_recon"] = round(0.0005 * math.prod(shape), 4)
    if args.dataset == "affnist":
        suited["shift_fraction"] = REACH / shape[0]
    return suited


def _suited(args, labels, channels, composed):
    usual = 128 if args.authors else int(np.clip(len(labels) // 20, 16, 100))
    batch = args.batch_size if "batch_size" in args.given else usual
    steps = math.ceil(len(labels) / batch)
    if args.authors:  # their 0.96 each 2,000 steps
        return {"batch_size": batch, "lr_decay": round(0.96 ** (steps / 2000), 5)}
    epochs, changes = int(np.clip(math.ceil(2000 / steps), 30, 200)), {}
    suited = {"batch_size": batch, "epochs": epochs, "schedule": "cosine"}
    if args.model == "photo":
        suited |= {"routings": 1} if args.routing in ("auto", "dynamic") else {}
        on_black = channels == 1 and args.dataset in NAMED_SETS
        in_colour = {"brightness": 0.4, "tint": 0.4}
        changes = in_colour if channels > 1 else {"brightness": 0.2}
        changes |= {} if on_black else {"fill_mode": "nearest"}
    if args.model == "efficient":
        suited |= {"lr": 0.002}
        changes = {"rotation": 15.0, "zoom": 0.15, "shifts": "interpolated"}
    # What is composed has changes enough, or shall have none.
    return suited if composed else suited | changes


def say_counts(labels, names, balance):
    """Print how many training images each class has, and what is uneven about it.

    Args:
        labels: one-hot array `(n, n_class)`.
        names: list of str. The classes.
        balance: `"yes"` or `"no"`, see `--balance`.
    """
    counts = np.count_nonzero(labels, 0)
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
    return np.any(counts) and counts.max() > UNEVEN * counts[counts > 0].min()
