"""The results table: the networks of the paper, some trials each, and their test error.

    python reproduce.py                                       # everything, 50 epochs
    python reproduce.py --variants v4 --trials 1 --epochs 10
    python reproduce.py --table

Each run goes through `capsulenet.train`, in a directory of its own under `--runs`. A run
that is in the table already is skipped, one that was cut off goes on after its last
whole epoch. The test images are read once, when a run has ended.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017, table 1.
        https://arxiv.org/abs/1710.09829
    Guo. CapsNet-Keras, whose results are the column beside the paper's.
        https://github.com/XifengGuo/CapsNet-Keras
"""

import argparse
import collections
import csv
import datetime
import importlib
import io
import os
import platform
import statistics

from capsnet.command_line import (
    Parser,
    as_flags,
    begin,
    build_parser,
    one_line_errors,
)
from capsnet.options import (
    DEFAULTS,
    HELD_OUT,
    OPTIONS,
    PICTURES,
    TESTING,
    are_paired,
    complete,
)

Variant = collections.namedtuple(
    "Variant",
    "title routings lam_recon reconstruction keras paper model routing leaky",
    defaults=(0.392, "yes", "–", "–", "capsnet", "dynamic", False),
)

VARIANTS = {
    "baseline": Variant("Baseline CNN", None, 0.0, "–", "–", "0.39"),
    "v1": Variant("CapsNet-v1", 1, 0.0, "no", "0.39 (0.024)", "0.34 (0.032)"),
    "v2": Variant("CapsNet-v2", 1, 0.392, "yes", "0.36 (0.009)", "0.29 (0.011)"),
    "v3": Variant("CapsNet-v3", 3, 0.0, "no", "0.40 (0.016)", "0.35 (0.036)"),
    "v4": Variant("CapsNet-v4", 3, 0.392, "yes", "0.34 (0.016)", "0.25 (0.005)"),
}
"""The rows of the paper's table, with the test errors in percent that others published."""


PAPER = tuple(VARIANTS)
VARIANTS |= {
    "leaky": Variant("CapsNet, leaky", 3, leaky=True),
    "max_min": Variant("CapsNet, max-min", 3, routing="max_min"),
    "attention": Variant("CapsNet, attention", 1, routing="attention"),
    "inverted": Variant("CapsNet, inverted attention", 2, routing="inverted"),
    "efficient": Variant(
        "Efficient-CapsNet", 1, model="efficient", routing="attention"
    ),
    "photo": Variant("network for pictures", 1, model="photo"),
    "shared": Variant("CapsNet, shared", 1, model="shared", routing="none"),
}

LONG = 20
"""Epochs from which on a run stands in the first table of its data set."""

KEY = ("variant", "recipe", "seed", "epochs", "dataset", "split", "options")
"""The columns of `result/mnist.csv` that tell runs apart."""

COLUMNS = (
    *KEY,
    *("error", "wrong", "images", "seconds", "device", "versions", "date"),
)
"""All columns of `result/mnist.csv`."""

RECIPES = {
    "default": [],
    "cosine": ["--schedule", "cosine"],
    "augmented": [
        *("--schedule", "cosine", "--shifts", "interpolated"),
        *("--rotation", "10", "--zoom", "0.1"),
    ],
    "averaged": [
        *("--shifts", "interpolated", "--rotation", "10", "--zoom", "0.1"),
        *("--lr_decay", "0.97", "--ema", "0.9995"),
        *("--batch_size", "200", "--no_routing_gradient"),
    ],
    "laptop": [
        *("--schedule", "cosine", "--lr", "0.002", "--shifts", "interpolated"),
        *("--rotation", "15", "--zoom", "0.15"),
    ],
    "authors": ["--authors", "--batch_size", "128", "--lr_decay", "0.99048"],
}
"""Names for sets of flags of `capsulenet.py`; the number of epochs comes on top."""

NOT_PASSED_ON = (
    *("lam_recon", "routings", "routing", "leaky", "model"),  # set here
    *("seed", "save_dir", "resume"),
    *(o.name for o in OPTIONS if o.group in (TESTING, PICTURES)),  # no training's
)
"""Options of `capsulenet.py` that runs do not take."""


SUITED = ("shift_fraction",)
"""Options whose default depends on the data set: given, they count with any value."""


def data_name(dataset):
    """Return the name of a data set that a file or a folder is of."""
    return os.path.splitext(os.path.basename(os.path.normpath(dataset)))[0]


def given_flags(flags):
    """Return the flags of `capsulenet.py` that differ from its defaults, as a dict.

    Raises:
        ValueError: if there is one that runs do not take.
    """
    args = build_parser().parse_args(flags)
    for name in NOT_PASSED_ON:
        if name in args.given:
            raise ValueError(f"--{name}: reproduce.py has no use for it")
    values = ((name, getattr(args, name)) for name in sorted(args.given))
    return {k: v for k, v in values if v != DEFAULTS[k] or k in SUITED}


def parse(argv=None):
    """Return the command line's options.

    Raises:
        ValueError: if a flag has a value that it can't have.
    """
    parser = Parser(
        description=__doc__.splitlines()[0],
        epilog="Any other flag is passed on to every run: see capsulenet.py --help.",
    )
    add = parser.add_argument
    add("--variants", nargs="+", default=list(PAPER), choices=VARIANTS, help="rows")
    add("--trials", default=3, type=int, help="runs a row, of seeds 0, 1, ...")
    add("--epochs", default=50, type=int, help="epochs a run")
    add("--recipe", default="default", choices=RECIPES, help="set of flags")
    add("--pause_after", default=0, type=int, help="epochs before a pause; 0 for none")
    add("--dataset", default="mnist", help="as in capsulenet.py")
    add(
        "--held_out",
        action="store_true",
        help=f"train on the training images but {HELD_OUT}, and test on those",
    )
    add(
        "--images",
        default=0,
        type=int,
        help="use so many training images, for a quick comparison; 0 for all",
    )
    add("--runs", default="runs", help="directory for the runs")
    add(
        "--csv",
        help="the finished runs; default: <dataset>.csv in result/, "
        "<dataset>_held_out.csv with --held_out",
    )
    add("--table", action="store_true", help="print the tables of --csv and stop")
    args, flags = parser.parse_known_args(argv)
    args.given = given_flags([*RECIPES[args.recipe], *flags])
    for name, least in (("trials", 1), ("images", 0)):
        if getattr(args, name) < least:
            raise ValueError(
                f"--{name} {getattr(args, name)}: must be at least {least}"
            )
    args.dataset = os.path.normpath(args.dataset)
    name = data_name(args.dataset) + "_held_out" * args.held_out
    args.csv = args.csv or os.path.join("result", f"{name}.csv")
    return args


if __name__ == "__main__":
    with one_line_errors():
        begin(parse)

import filelock
import keras
import numpy as np
from keras import layers

import capsulenet
from capsnet import bent, several, weights
from capsnet import data as datasets
from capsnet.files import write_text
from capsnet.numerics import on_cpu
from capsnet.training import devices, fit, recipe
from capsnet.training.start import policy_kept

CHANNELS_LAST = {"data_format": "channels_last"}
"""As the images are, whatever Keras' global setting."""


def baseline_cnn(input_shape, n_class, conv="auto", last="softmax"):
    """Build the paper's convolutional baseline (Sabour et al. 2017, section 5).

    Three 5 x 5 convolutions of 256, 256 and 128 channels with stride 1, dense layers of
    328 and 192, dropout before the last layer. With "same" padding it has the 35.4
    million parameters that the paper states.

    Args:
        input_shape: tuple `(height, width, channels)`.
        n_class: int. Number of classes.
        conv: the form of the convolutions, see `capsulelayers.SpectralConv2D`.
            Defaults to `"auto"`.
        last: str. The last activation: `"sigmoid"` where an image shows several classes.
            Defaults to `"softmax"`.

    Returns:
        A Keras model from images to probabilities `(B, n_class)`.
    """
    x = inputs = layers.Input(input_shape)
    for filters in (256, 256, 128):
        how = {"padding": "same", "conv": conv, "activation": "relu", **CHANNELS_LAST}
        x = capsulenet.SpectralConv2D(filters, 5, **how)(x)
    x = layers.Flatten()(x)
    for units in (328, 192):
        x = layers.Dense(units, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    outputs = layers.Dense(n_class, activation=last, dtype="float32")(x)
    return keras.Model(inputs, outputs)


def pairs_cnn(input_shape, n_class, conv="auto", last="sigmoid", padding="same"):
    """Build the paper's convolutional baseline for pairs (its section 6.2).

    Convolutions of 512 channels, 9 x 9, and 256, 5 x 5, each followed by pooling of 2 x
    2, and dense layers of 1024 and the classes. With "same" padding it has the 24.56
    million parameters that the paper states.

    Args:
        input_shape: see `baseline_cnn`.
        n_class: likewise.
        conv: likewise.
        last: likewise. Defaults to `"sigmoid"`.
        padding: str. Of the convolutions. Defaults to `"same"`.
    """
    x = inputs = layers.Input(input_shape)
    for filters, side in ((512, 9), (256, 5)):
        how = {"padding": padding, "conv": conv, "activation": "relu", **CHANNELS_LAST}
        x = capsulenet.SpectralConv2D(filters, side, **how)(x)
        x = layers.MaxPooling2D(**CHANNELS_LAST)(x)
    x = layers.Dense(1024, activation="relu")(layers.Flatten()(x))
    outputs = layers.Dense(n_class, activation=last, dtype="float32")(x)
    return keras.Model(inputs, outputs)


def affine_cnn(input_shape, n_class, conv="auto", last="softmax"):
    """Build a baseline for affNIST, with about as many parameters as its CapsNet.

    The paper says no more of its own than that it has pooling and dropout; this is
    `pairs_cnn` without padding: 12.8 million where CapsNet has 13.5.

    Args:
        input_shape: see `baseline_cnn`.
        n_class: likewise.
        conv: likewise.
        last: likewise.
    """
    return pairs_cnn(input_shape, n_class, conv, last, "valid")


def load(args):
    """Load the data set, with `--images` and `--held_out` as they are there for."""
    wanted = complete(argparse.Namespace(**{**args.given, "dataset": args.dataset}))
    return datasets.load_for(wanted, args.images or None, args.held_out)


def run_options(args, variant, seed):
    """Return the options of one run, a namespace as `capsulenet.train` takes it."""
    row = VARIANTS[variant]
    if row.model != "capsnet" and args.given.get("authors"):
        raise ValueError(f"--authors: the network {row.model} has no such choice")
    recipe = given_flags(RECIPES[args.recipe])
    more = [f"{k}={v}" for k, v in args.given.items() if recipe.get(k) != v]
    parts = [variant, args.recipe, *more, args.epochs, f"seed{seed}"]
    parts += ["held_out"] * args.held_out + [f"of{args.images}"] * (args.images > 0)
    parts += [data_name(args.dataset)] * (args.dataset != "mnist")
    name = "-".join(str(part).replace(os.sep, "_") for part in parts)
    return argparse.Namespace(
        **DEFAULTS
        | args.given
        | {
            "dataset": args.dataset,
            "epochs": args.epochs,
            "lam_recon": row.lam_recon,
            "leaky": row.leaky,
            "model": row.model,
            "pause_after": args.pause_after,
            "resume": True,
            "routing": row.routing,
            "routings": row.routings or 1,
            "save_dir": os.path.join(args.runs, name),
            "seed": seed,
        }
    )


def key(args, variant, seed):
    """Return what tells this run from others: the columns `KEY` of its row."""
    split = "held_out" if args.held_out else "test"
    dataset = args.dataset + f", {args.images} images" * (args.images > 0)
    columns = (variant, args.recipe, seed, args.epochs, dataset, split)
    return dict(zip(KEY, map(str, (*columns, as_flags(args.given))), strict=True))


def build(variant, options, data):
    """Build the model of a run.

    Returns:
        `(train_model, eval_model)`; the second gives the classes first, or alone.
    """
    x, y = data.train
    if options.deterministic:
        devices.make_deterministic()
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(
        "mixed_bfloat16" if options.precision == "bfloat16" else "float32"
    )
    if variant == "baseline":
        of = {"multimnist": pairs_cnn, "affnist": affine_cnn}
        cnn = pairs_cnn if options.pairs else of.get(options.dataset, baseline_cnn)
        kind = datasets.shown(y, are_paired=are_paired(options))
        last = "softmax" if kind == "one" else "sigmoid"
        model = cnn(x.shape[1:], y.shape[1], options.conv, last)
        return model, model
    return capsulenet.build(options, x.shape[1:], y.shape[1:])[:2]


def run(args, variant, seed, data):
    """Train one network, or go on with it, and test it where it is finished.

    What is logged as validation on the way is of training images, unshifted; with
    `--held_out` of those that are held out.

    Returns:
        The row for the table, a dict; None if the run was paused.
    """
    options = run_options(args, variant, seed)
    options.class_names = data.class_names
    suited = recipe.of_composed(options, data.train[0].shape[1:])
    if VARIANTS[variant].lam_recon == 0:
        suited.pop("lam_recon", None)
    vars(options).update({k: v for k, v in suited.items() if k not in args.given})
    print(
        f"{variant}, recipe {args.recipe}, seed {seed}: {options.save_dir}", flush=True
    )
    train_model, eval_model = build(variant, options, data)
    if options.weights is not None:
        weights.load_weights(train_model, options.weights)
    about = {"device": device(), "versions": versions()}
    seen = tuple(array[:HELD_OUT] for array in data.train)
    validation = data.held_out or (data.test if args.held_out else seen)
    capsulenet.train(train_model, (data.train, validation), options, signals=True)
    if not os.path.exists(fit.trained(options)):
        return None
    log = read_csv(os.path.join(options.save_dir, "log.csv"))
    labels = data.train[1], data.test[1]
    kind = datasets.shown(*labels, are_paired=are_paired(options))
    right = read_right(eval_model, data.test, kind)
    wrong = int(np.sum(~right))
    if isinstance(data.test, datasets.Bent):
        bent.show(data.test, right, options.save_dir, VARIANTS[variant].title)
    return key(args, variant, seed) | {
        "error": f"{100 * wrong / len(right):.3f}",
        "wrong": wrong,
        "images": len(right),
        "seconds": round(sum(float(row["seconds"]) for row in log)),
        **about,
        "date": datetime.date.today().isoformat(),
    }


def read_right(model, test, kind):
    """Tell which test images are read right, see `several.right`; of pairs all of them."""
    blocks = test.blocks() if isinstance(test, datasets.Pairs) else [test]
    right = [
        several.right(y, capsulenet.predict(model, x).lengths, kind) for x, y in blocks
    ]
    return np.concatenate(list(map(keras.ops.convert_to_numpy, right)))


def device():
    """Return what the numbers are computed on."""
    if on_cpu():
        return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return "GPU"


def versions():
    """Return the versions of Keras and of its backend."""
    names = ("keras", keras.backend.backend())
    return " ".join(f"{n} {importlib.import_module(n).__version__}" for n in names)


def read_csv(path):
    """Read a CSV file as a list of dicts."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def finished_runs(path):
    """Return the rows of a results table; a file that is not there has none.

    Raises:
        ValueError: if it is another kind of file.
    """
    try:
        rows = read_csv(path) if os.path.exists(path) else []
    except UnicodeDecodeError as error:
        raise ValueError(f"--csv {path}: not a results table ({error})") from None
    for row in rows:
        missing = [name for name in COLUMNS if row.get(name) is None]
        if missing:
            raise ValueError(
                f"--csv {path}: no column {missing[0]}, not a results table"
            )
    return rows


def add_rows(path, new):
    """Add rows to a results table, whole or not at all; those of runs it has stay out.

    Processes that add at the same time wait for each other.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with filelock.FileLock(os.path.join(folder, f".lock.{name}")):
        rows = finished_runs(path)
        rows += [row for row in new if not is_finished(row, rows)]
        text = io.StringIO()
        writer = csv.DictWriter(
            text, COLUMNS, extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())


def is_finished(run, rows):
    """Whether a run, by its columns `KEY`, is among the rows."""
    return any(all(row[name] == run[name] for name in KEY) for row in rows)


def table(rows):
    """Return the Markdown tables: of each data set the long runs, then the short ones.

    A row is a network, a column a recipe and its epochs. A cell holds mean, standard
    deviation and number of the trials, or nothing where none was run. Published figures
    stand beside long runs that were tested on MNIST.
    """
    groups = {}
    for row in rows:
        short = int(row["epochs"]) < LONG
        groups.setdefault((row["dataset"], row["split"], short), []).append(row)
    return "\n".join(one_table(*key, groups[key]) for key in sorted(groups))


def one_table(dataset, split, short, rows):
    """Return one table, and below it what its columns' flags were."""

    def kind(row):
        return -int(row["epochs"]), row["recipe"], row["options"]

    columns = {}
    for epochs, name, options in sorted(set(map(kind, rows))):
        same = sum(c[:2] == (epochs, name) for c in columns.values())
        title = f"`{name}`, {-epochs}" + f" ({same + 1})" * bool(same)
        columns[title] = epochs, name, options
    published = (dataset, split, short) == ("mnist", "test", False)
    titles = [*columns, *(["CapsNet-Keras", "paper"] if published else [])]
    what = "Test error" if split == "test" else "Error on held-out training images"
    runs = f"runs of fewer than {LONG} epochs" if short else f"{LONG} epochs and more"
    lines = [
        f"{what} in percent, {dataset}, {runs}:",
        "mean (standard deviation), number of trials.",
        "",
        f"| | routings | reconstruction | {' | '.join(titles)} |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for name, variant in VARIANTS.items():
        of = [row for row in rows if row["variant"] == name]
        if not of and not (published and name in PAPER):
            continue
        cells = [variant.title, str(variant.routings or "–"), variant.reconstruction]
        for column in columns.values():
            cells.append(cell([float(r["error"]) for r in of if kind(r) == column]))
        cells += [variant.keras, variant.paper] * published
        lines.append(f"| {' | '.join(cells)} |")
    told = [
        f"- {t}: " + (f"`{c[2]}`" if c[2] else "no flags") for t, c in columns.items()
    ]
    return "\n".join([*lines, "", "The columns are recipe and epochs:", "", *told, ""])


def cell(errors):
    """Return a cell of the table for the errors of some trials."""
    if not errors:
        return ""
    spread = f" ({statistics.stdev(errors):.3f})" if len(errors) > 1 else ""
    trials = "trial" if len(errors) == 1 else "trials"
    return f"{statistics.mean(errors):.2f}{spread}, {len(errors)} {trials}"


def run_all(args):
    """Train and test what the table lacks; returns after a pause."""
    data = load(args)
    add_rows(args.csv, [])  # tries that it can be written
    for seed in range(args.trials):
        for variant in args.variants:
            if is_finished(key(args, variant, seed), finished_runs(args.csv)):
                print(f"{variant}, recipe {args.recipe}, seed {seed}: in {args.csv}")
                continue
            row = run(args, variant, seed, data)
            if row is None:  # paused, as it was told
                return
            add_rows(args.csv, [row])
            print(f"{variant}, seed {seed}: error {row['error']}%", flush=True)


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    with one_line_errors():
        args = parse(argv)
        if args.table:
            rows = finished_runs(args.csv)
            if not rows:
                raise ValueError(f"--csv {args.csv}: no finished run in it yet")
            print(table(rows))
            return
        capsulenet.set_allocator()
        with policy_kept():
            run_all(args)


if __name__ == "__main__":
    main()
