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
import importlib.metadata
import os
import platform
import statistics

import keras
import numpy as np
from keras import layers

import capsulenet
import checkpoints
import datasets
import devices

Variant = collections.namedtuple(
    "Variant", "title routings lam_recon reconstruction keras paper"
)

VARIANTS = {
    "baseline": Variant("Baseline CNN", None, 0.0, "–", "–", "0.39"),
    "v1": Variant("CapsNet-v1", 1, 0.0, "no", "0.39 (0.024)", "0.34 (0.032)"),
    "v2": Variant("CapsNet-v2", 1, 0.392, "yes", "0.36 (0.009)", "0.29 (0.011)"),
    "v3": Variant("CapsNet-v3", 3, 0.0, "no", "0.40 (0.016)", "0.35 (0.036)"),
    "v4": Variant("CapsNet-v4", 3, 0.392, "yes", "0.34 (0.016)", "0.25 (0.005)"),
}
"""The rows of the table, with the test errors in percent that others published."""

COLUMNS = (
    *("variant", "recipe", "seed", "epochs", "error", "wrong", "images", "options"),
    *("seconds", "device", "versions", "date"),
)
"""The columns of `result/mnist.csv`."""

RECIPES = {
    "default": [],
    "cosine": ["--schedule", "cosine"],
}
"""Names for sets of flags of `capsulenet.py`; the number of epochs comes on top."""

HELD_OUT = 5000
"""Training images that `--held_out` tests on instead of the test images."""


def baseline_cnn(input_shape, n_class):
    """Build the paper's convolutional baseline (Sabour et al. 2017, section 5).

    Three 5 x 5 convolutions of 256, 256 and 128 channels with stride 1, dense layers of
    328 and 192, dropout before the last layer. With "same" padding it has the 35.4
    million parameters that the paper states.

    Args:
        input_shape: tuple `(height, width, channels)`.
        n_class: int. Number of classes.

    Returns:
        A Keras model from images to probabilities `(B, n_class)`.
    """
    x = inputs = layers.Input(input_shape)
    for filters in (256, 256, 128):
        x = capsulenet.SpectralConv2D(filters, 5, padding="same", activation="relu")(x)
    x = layers.Flatten()(x)
    for units in (328, 192):
        x = layers.Dense(units, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    outputs = layers.Dense(n_class, activation="softmax", dtype="float32")(x)
    return keras.Model(inputs, outputs)


def load(args):
    """Return the data set; with `--held_out` its training part alone, cut in two."""
    data = datasets.load(args.dataset)[:2]
    if not args.held_out:
        return data
    (x, y), _ = data
    order = np.random.default_rng(0).permutation(len(x))
    held_out = min(HELD_OUT, len(x) // 4)
    return tuple((x[part], y[part]) for part in (order[held_out:], order[:held_out]))


def run_options(args, variant, seed):
    """Return the options of one run, a namespace as `capsulenet.train` takes it."""
    row = VARIANTS[variant]
    flags = [*RECIPES[args.recipe], *args.flags, f"--lam_recon={row.lam_recon}"]
    flags += [f"--seed={seed}", f"--epochs={args.epochs}", f"--dataset={args.dataset}"]
    flags += [f"--routings={row.routings or 1}", "--resume"]
    parts = [variant, args.recipe, *args.flags, args.epochs, f"seed{seed}"]
    parts += ["held_out"] * args.held_out
    parts += [data_name(args.dataset)] * (args.dataset != "mnist")
    name = "-".join(str(part).lstrip("-").replace(os.sep, "_") for part in parts)
    flags += [f"--save_dir={os.path.join(args.runs, name)}"]
    flags += [f"--pause_after={args.pause_after}"]
    return capsulenet.build_parser().parse_args(flags)


def data_name(dataset):
    """Return the name of a data set that a file or a folder is of."""
    return os.path.splitext(os.path.basename(os.path.normpath(dataset)))[0]


def all_flags(args):
    """Return the flags of the recipe and those given beside it, as one text."""
    return " ".join([*RECIPES[args.recipe], *args.flags])


def build(variant, options, data):
    """Build the model of a run.

    Returns:
        `(train_model, eval_model)`; the second gives the classes first, or alone.
    """
    (x, y), _ = data
    if options.deterministic:
        devices.make_deterministic()
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(
        "mixed_bfloat16" if options.precision == "bfloat16" else "float32"
    )
    if variant == "baseline":
        model = baseline_cnn(x.shape[1:], y.shape[1])
        return model, model
    return capsulenet.CapsNet(
        x.shape[1:],
        y.shape[1],
        options.routings,
        conv=options.conv,
        routing_gradient=options.routing_gradient,
    )[:2]


def run(args, variant, seed, data):
    """Train one network, or go on with it, and test it where it is finished.

    Returns:
        The row for the table, a dict; None if the run was paused.
    """
    options = run_options(args, variant, seed)
    print(
        f"{variant}, recipe {args.recipe}, seed {seed}: {options.save_dir}", flush=True
    )
    train_model, eval_model = build(variant, options, data)
    capsulenet.train(train_model, data, options)
    log = read_rows(os.path.join(options.save_dir, "log.csv"))
    if len(log) < options.epochs:
        return None
    x_test, y_test = data[1]
    predicted, _, _ = capsulenet.predict(eval_model, x_test)
    wrong = int(np.sum(predicted != y_test.argmax(1)))
    return {
        "variant": variant,
        "recipe": args.recipe,
        "seed": seed,
        "epochs": options.epochs,
        "error": f"{100 * wrong / len(y_test):.3f}",
        "wrong": wrong,
        "images": len(y_test),
        "options": all_flags(args),
        "seconds": round(sum(float(row["seconds"]) for row in log)),
        "device": device(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }


def device():
    """Return what the numbers were computed on."""
    if capsulenet.on_cpu():
        return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name()
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    return "GPU"


def versions():
    """Return the versions of Keras and of its backend."""
    names = ("keras", keras.backend.backend())
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def read_rows(path):
    """Read a CSV file as a list of dicts; a file that is not there has no rows."""
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def add_row(path, row):
    """Add a row to the table, whole or not at all."""
    lines = [
        ",".join(COLUMNS),
        *(
            ",".join(str(r[name]).replace(",", ";") for name in COLUMNS)
            for r in [*read_rows(path), row]
        ),
    ]
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    checkpoints.write_text(path, "\n".join(lines) + "\n")


def is_run(row, args, variant, seed):
    """Whether a row of the table is of this run."""
    asked = (variant, args.recipe, str(seed), str(args.epochs), all_flags(args))
    return tuple(row[c] for c in (*COLUMNS[:4], "options")) == asked


def table(rows):
    """Return the Markdown tables, one for each number of epochs and set of options.

    A cell holds mean, standard deviation and number of the trials, or nothing where
    none was run.
    """
    kinds = {(int(r["epochs"]), r["recipe"], r["options"]) for r in rows}
    lines = []
    for kind in sorted(kinds, reverse=True) or [(50, "default", "")]:
        epochs, recipe, options = kind
        lines += [
            f"Test error in percent after {epochs} epochs, recipe `{recipe}`"
            + (f" (`{options}`):" if options else ":"),
            "mean (standard deviation), number of trials.",
            "",
            "| | routings | reconstruction | here | CapsNet-Keras | paper |",
            "|---|---|---|---|---|---|",
        ]
        for name, variant in VARIANTS.items():
            errors = [
                float(row["error"])
                for row in rows
                if row["variant"] == name
                and (int(row["epochs"]), row["recipe"], row["options"]) == kind
            ]
            lines.append(
                f"| {variant.title} | {variant.routings or '–'} | "
                f"{variant.reconstruction} | {cell(errors)} | {variant.keras} | "
                f"{variant.paper} |"
            )
        lines.append("")
    return "\n".join(lines)


def cell(errors):
    """Return a cell of the table for the errors of some trials."""
    if not errors:
        return ""
    spread = f" ({statistics.stdev(errors):.3f})" if len(errors) > 1 else ""
    trials = "trial" if len(errors) == 1 else "trials"
    return f"{statistics.mean(errors):.2f}{spread}, {len(errors)} {trials}"


def parse(argv=None):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Any other flag is passed on to every run: see capsulenet.py --help.",
    )
    add = parser.add_argument
    add("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="rows")
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
    add("--runs", default="runs", help="directory for the runs")
    add(
        "--csv",
        help="the finished runs; default: <dataset>.csv in result/, "
        "<dataset>_held_out.csv with --held_out",
    )
    add("--table", action="store_true", help="print the table of --csv and stop")
    args, flags = parser.parse_known_args(argv)
    args.flags = flags
    name = data_name(args.dataset) + "_held_out" * args.held_out
    args.csv = args.csv or os.path.join("result", f"{name}.csv")
    return args


def run_all(args):
    """Train and test what the table lacks; returns after a pause."""
    data = load(args)
    for seed in range(args.trials):
        for variant in args.variants:
            if any(is_run(row, args, variant, seed) for row in read_rows(args.csv)):
                print(f"{variant}, recipe {args.recipe}, seed {seed}: in {args.csv}")
                continue
            row = run(args, variant, seed, data)
            if row is None:  # paused, as it was told
                return
            add_row(args.csv, row)
            print(f"{variant}, seed {seed}: {row['error']}% test error", flush=True)


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    args = parse(argv)
    if args.table:
        print(table(read_rows(args.csv)))
        return
    capsulenet.set_allocator()
    with capsulenet.one_line_errors():
        run_all(args)


if __name__ == "__main__":
    main()
