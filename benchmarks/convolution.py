"""Seconds of each form of a convolution, forward and backward, on each backend.

    python benchmarks/convolution.py
    python benchmarks/convolution.py --backends jax --rounds 10

What `conv="auto"` chooses from (`SpectralConv2D`), for convolutions of the networks here
and some beside them; by the weights alone where the input is an image, else by the input
too. The forms take turns; the figure is the median. Each backend is a process of its own.
Writes `--output`.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from parts import compiled_gradient
from step import ROOT, settle_tensorflow, write_csv  # and the repository on the path

BACKENDS = ("tensorflow", "jax", "torch")
FORMS = ("direct", "spectral", "patches")

CONVOLUTIONS = {
    "CapsNet, first": ((256, 9, 1), (28, 28, 1)),
    "CapsNet, first, colour": ((256, 9, 1), (32, 32, 3)),
    "CapsNet, primary": ((256, 9, 2), (20, 20, 256)),
    "CapsNet, primary, 20 x 20": ((256, 9, 2), (12, 12, 256)),
    "CapsNet, primary, 40 x 40": ((256, 9, 2), (32, 32, 256)),
    "baseline CNN of pairs, second": ((256, 5, 1), (18, 18, 512)),
    "5 x 5 of 64": ((64, 5, 1), (20, 20, 64)),
    "7 x 7 of 64": ((64, 7, 1), (20, 20, 64)),
    "3 x 3 of 256": ((256, 3, 1), (16, 16, 256)),
    "efficient, conv1": ((32, 5, 1), (28, 28, 1)),
    "efficient, conv2": ((64, 3, 1), (24, 24, 32)),
    "efficient, conv3": ((64, 3, 1), (22, 22, 64)),
    "efficient, conv4": ((128, 3, 2), (20, 20, 64)),
}
"""Filters, side of the kernel and stride; rows, columns and channels of the input."""

PATIENCE = 4
"""Seconds of one run above which a form is timed no second time."""


def seconds_of_forms(convolution, size, rounds, batch_size):
    """Return the median seconds of each form, a dict, and the form that is chosen."""
    from keras import ops

    from capsulelayers import SpectralConv2D

    def layer(conv):
        made = SpectralConv2D(*convolution, conv=conv, activation="relu")
        made.build((None, *size))
        return made

    shape = layer("direct").compute_output_shape((batch_size, *size))
    x, dy = (
        ops.convert_to_tensor(np.random.default_rng(0).normal(size=s), "float32")
        for s in ((batch_size, *size), shape)
    )
    waiting = {f: compiled_gradient(layer(f), by_input=size[-1] > 3) for f in FORMS}
    seconds = {form: [] for form in FORMS}
    for index in range(-2, rounds):
        for form, gradient in list(waiting.items()):
            begin = time.perf_counter()
            gradient(x, dy)
            taken = time.perf_counter() - begin
            if index == -1 and taken > PATIENCE:
                del waiting[form]
            if index >= 0 or form not in waiting:
                seconds[form].append(taken)
    return {f: statistics.median(s) for f, s in seconds.items()}, layer("auto").form


def work(args):
    """Measure the backend that Keras has, and write its rows to standard output."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    settle_tensorflow()
    import keras

    import capsulenet

    capsulenet.set_allocator()
    columns = ("backend", "convolution", *FORMS, "chosen")
    table = csv.DictWriter(answers, columns)
    table.writeheader()
    for name, of in CONVOLUTIONS.items():
        medians, chosen = seconds_of_forms(*of, args.rounds, args.batch_size)
        row = {"backend": keras.backend.backend(), "convolution": name}
        row |= {form: round(taken, 4) for form, taken in medians.items()}
        table.writerow(row | {"chosen": chosen})
        print(row, chosen, file=sys.stderr, flush=True)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="which")
    add("--batch_size", default=100, type=int, help="images a step")
    add("--rounds", default=7, type=int, help="times that each form is timed")
    add("--output", default=os.path.join(ROOT, "benchmarks/results/convolution.csv"))
    add("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args)
    sizes = ["--rounds", str(args.rounds), "--batch_size", str(args.batch_size)]
    command, rows = [sys.executable, __file__, "--work", *sizes], []
    for backend in args.backends:
        env = {**os.environ, "KERAS_BACKEND": backend}
        found = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        rows += csv.DictReader(found.stdout.splitlines())
    write_csv(rows, args.output)
    print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
