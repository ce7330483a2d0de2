"""Memory and time of the capsule layer alone, forward and backward.

    python benchmarks/memory.py
    KERAS_BACKEND=jax python benchmarks/memory.py --output memory-jax.csv
    python benchmarks/memory.py --routings_at 100 1152 100

Compares `capsulelayers.CapsuleLayer` with a textbook layer that stores the prediction
vectors `u_hat`, B x J x I x O numbers. Input capsules are 8-D, output capsules 16-D,
with the iterations that `--routing` has, three of the dynamic one. The number of classes, of input capsules and of examples vary
one at a time; one more point has many of each. Every point is a fresh process on the
CPU, with the backend of `KERAS_BACKEND`. TensorFlow runs a `tf.function` without XLA,
JAX a jitted function, PyTorch eagerly.

What is counted is the working memory of a training step: the peak of the resident set
during six passes of forward and backward, less the resident set just before the first
and less the size of the weight's gradient. So weights, inputs, the gradient and
whatever an optimizer keeps are not in it. What the layer holds in between is, copies
of the weights and the gradient of the input capsules included, and so are some tens of
megabytes that a backend takes for its first run at any size. The time is the median of
the passes after the first.

`--routings_at` measures every routing at one point, and writes `memory_routings.csv`.

Textbook points are left out, and their fields empty, where `u_hat` alone would take
more than 60% of the free memory, or the process ends for want of it. Writes a table
`--output`, and beside it a picture `.png` and the machine `.md`.
"""

import argparse
import collections
import contextlib
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from matplotlib.figure import Figure
from step import (  # which also puts the repository on the path
    ROOT,
    describe_machine,
    peak_memory,
    textbook_capsules,
    write_csv,
    write_notes,
)

from capsnet.options import ROUTINGS

DIM_INPUT, DIM_OUTPUT = 8, 16
LARGEST_SHARE = 0.6
TIMED = 5
LAYERS = ("here", "textbook")

Point = collections.namedtuple("Point", "classes input_capsules batch")

# A worker: one layer at one point ----------------------------------------------------


def build(kind, routing, point):
    """Build one of the layers as a model.

    Args:
        kind: `"here"` or `"textbook"`.
        routing: see `CapsuleLayer`.
        point: a `Point`.

    Returns:
        A Keras model from input capsules to output capsules.
    """
    import keras

    from capsulelayers import CapsuleLayer

    u = keras.layers.Input((point.input_capsules, DIM_INPUT))
    layer = CapsuleLayer(point.classes, DIM_OUTPUT, routing=routing)
    if kind == "textbook":
        size = (point.classes, DIM_OUTPUT, layer.routings)
        v = textbook_capsules(u, *size, routing)
    else:
        v = layer(u)
    return keras.Model(u, v)


def gradient_function(model, u, direction):
    """Return a function that computes the gradients of `sum(model(u) * direction)`.

    The one place that is specific to the backend. What can be traced and compiled in
    advance is, so that the memory for it is not counted.

    Args:
        model: what `build` returned.
        u: tensor `(B, I, D)`.
        direction: tensor `(B, J, O)`.

    Returns:
        A function without arguments. It returns the gradients of the weights and of `u`
        when they are there.
    """
    import keras

    weights = [variable.value for variable in model.trainable_variables]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        def gradients(u, direction):
            with tf.GradientTape() as tape:
                tape.watch(u)
                loss = tf.reduce_sum(model(u) * direction)
            return tape.gradient(loss, [*weights, u])

        traced = tf.function(gradients, jit_compile=False)
        traced = traced.get_concrete_function(u, direction)
        return lambda: traced(u, direction)
    if keras.backend.backend() == "jax":
        import jax

        def loss(weights, u, direction):
            return (model.stateless_call(weights, [], u)[0] * direction).sum()

        given = (weights, u, direction)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*given).compile()
        return lambda: jax.block_until_ready(compiled(*given))
    import torch

    u.requires_grad_()
    return lambda: torch.autograd.grad((model(u) * direction).sum(), [*weights, u])


def reset_peak():
    """Give free memory back and let the peak of the resident set start anew (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident_peak():
    """Return the peak of the resident set since `reset_peak`, in bytes.

    Where the system can't reset it, it is the peak since the process began.
    """
    if not os.path.exists("/proc/self/status"):
        return peak_memory()
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if "VmHWM" in line)


def work(kind, routing, point):
    """Measure one layer at one point.

    Args:
        kind: `"here"` or `"textbook"`.
        routing: see `CapsuleLayer`.
        point: a `Point`.

    Returns:
        A dict: `memory` in bytes and `seconds`.
    """
    # Should memory run out, the system is to end this process and no other.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    from keras import ops

    import capsulenet

    capsulenet.set_allocator()

    rng = np.random.default_rng(0)
    u_shape = (point.batch, point.input_capsules, DIM_INPUT)
    v_shape = (point.batch, point.classes, DIM_OUTPUT)
    u, direction = (
        ops.convert_to_tensor(0.1 * rng.standard_normal(shape, "float32"))
        for shape in (u_shape, v_shape)
    )
    model = build(kind, routing, point)
    run = gradient_function(model, u, direction)
    reset_peak()
    before = resident_peak()
    seconds = []
    for _ in range(1 + TIMED):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    gradient = 4 * model.count_params()
    return {
        "memory": resident_peak() - before - gradient,
        "seconds": statistics.median(seconds[1:]),  # the first one warms up
    }


# The parent: points, table and picture -----------------------------------------------


def free_memory():
    """Return the bytes that are free; where that is unknown, those that there are."""
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def u_hat_bytes(point):
    """Return the bytes of the prediction vectors."""
    return 4 * math.prod(point) * DIM_OUTPUT


def measure(kind, routing, point):
    """Measure one layer at one point in a fresh process.

    Args:
        kind: `"here"` or `"textbook"`.
        routing: see `CapsuleLayer`.
        point: a `Point`.

    Returns:
        What `work` returned; None for both numbers if the point is left out.
    """
    left_out = {"memory": None, "seconds": None}
    if kind == "textbook" and u_hat_bytes(point) > LARGEST_SHARE * free_memory():
        print(f"{kind} {point}: left out, u_hat does not fit", flush=True)
        return left_out
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, os.path.abspath(__file__), "--worker", kind, routing]
    command += map(str, point)
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(f"{kind} {point}: ended with {done.returncode}, left out", flush=True)
        return left_out
    result = json.loads(done.stdout.splitlines()[-1])
    megabytes = result["memory"] / 1e6
    print(f"{kind} {point}: {megabytes:.0f} MB, {result['seconds']:.3f} s", flush=True)
    return result


def points(args):
    """Return the points to measure: each list varied with the first of the others.

    Args:
        args: namespace of the command line's options.

    Returns:
        A list of `Point` without repetitions.
    """
    base = Point(args.classes[0], args.input_capsules[0], args.batch[0])
    found = [
        base._replace(**{name: value})
        for name in Point._fields
        for value in getattr(args, name)
    ]
    return list(dict.fromkeys([*found, Point(*args.named)]))


def row(point, routing):
    """Measure both layers at a point.

    Args:
        point: a `Point`.
        routing: see `CapsuleLayer`.

    Returns:
        A dict, the row of the table.
    """
    results = {kind: measure(kind, routing, point) for kind in LAYERS}
    columns = {**point._asdict(), "u_hat_mb": u_hat_bytes(point) / 1e6}
    for kind, result in results.items():
        memory = result["memory"]
        columns[f"memory_mb_{kind}"] = None if memory is None else memory / 1e6
        columns[f"seconds_{kind}"] = result["seconds"]
    return columns


def plot(rows, caption, path):
    """Draw memory and time against classes, input capsules and batch.

    Args:
        rows: dict of points, the one that the series have in common first, and what
            `row` returns for them.
        caption: str. The picture's title.
        path: str. The picture.
    """
    figure = Figure(figsize=(12, 7))
    axes = figure.subplots(2, 3)
    for column, name in enumerate(Point._fields):
        fixed = {k: v for k, v in next(iter(rows))._asdict().items() if k != name}
        series = [r for r in rows.values() if all(r[k] == v for k, v in fixed.items())]
        series.sort(key=lambda r: r[name])
        for line, quantity in enumerate(("memory_mb", "seconds")):
            for kind in LAYERS:
                draw(axes[line, column], series, name, f"{quantity}_{kind}", kind)
            axes[line, column].set_ylabel(quantity.replace("_mb", ", MB"))
        draw(axes[0, column], series, name, "u_hat_mb", "u_hat alone", "--")
        held = ", ".join(f"{k} {v}" for k, v in fixed.items())
        axes[0, column].set_title(held.replace("_", " "))
        axes[0, column].legend(fontsize="small")
        for panel in axes[:, column]:
            panel.set_ylim(bottom=0)
    figure.suptitle(caption)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def draw(axes, series, x, y, label, style="o-"):
    """Draw column `y` against column `x`; empty fields are left out."""
    values = [(r[x], r[y]) for r in series if r[y] is not None]
    axes.plot([v[0] for v in values], [v[1] for v in values], style, label=label)
    axes.set_xlabel(x.replace("_", " "))


def title(row):
    """Return a line about one row of the table."""
    memory = {
        kind: "not run" if value is None else f"{value:.0f} MB"
        for kind in LAYERS
        for value in [row[f"memory_mb_{kind}"]]
    }
    return (
        f"{row['classes']} classes, {row['input_capsules']} input capsules, "
        f"batch {row['batch']}: here {memory['here']}, textbook {memory['textbook']}"
    )


def parse():
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description="Memory and time of the capsule layer. The first value of each "
        "list is held while another list varies.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--classes", nargs="+", type=int, default=[10, 50, 100, 196, 200])
    add("--input_capsules", nargs="+", type=int, default=[1152, 2048, 3872, 5408, 8000])
    add("--batch", nargs="+", type=int, default=[100, 25, 50, 200])
    add(
        "--named",
        nargs=3,
        type=int,
        default=[196, 3872, 128],
        metavar=("CLASSES", "INPUT_CAPSULES", "BATCH"),
        help="one more point",
    )
    add("--routing", default="dynamic", choices=ROUTINGS, help="of both layers")
    add(
        "--routings_at",
        nargs=3,
        type=int,
        metavar=("CLASSES", "INPUT_CAPSULES", "BATCH"),
        help="measure every routing at this point, and nothing else",
    )
    add("--output", default=os.path.join(ROOT, "benchmarks/results/memory.csv"))
    add("--worker", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Run the command line."""
    args = parse()
    if args.worker:
        kind, routing, *point = args.worker
        print(json.dumps(work(kind, routing, Point(*map(int, point)))))
        return
    if args.routings_at:
        point = Point(*args.routings_at)
        rows = [{"routing": name, **row(point, name)} for name in ROUTINGS]
        write_csv(rows, os.path.splitext(args.output)[0] + "_routings.csv")
        return
    rows = {point: row(point, args.routing) for point in points(args)}
    caption = title(rows[Point(*args.named)])
    print(caption)
    write_csv(list(rows.values()), args.output)
    base = os.path.splitext(args.output)[0]
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    write_notes([*describe_machine(), f"Backend: {backend}"], base + ".md")
    plot(rows, caption, base + ".png")
    print(f"Written: {args.output}, {base}.md, {base}.png")


if __name__ == "__main__":
    main()
