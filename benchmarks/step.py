"""Seconds a training step of the full MNIST model, side by side in one run.

    python benchmarks/step.py
    python benchmarks/step.py --contestants tensorflow textbook --rounds 3
    git worktree add ../before HEAD~1 && python benchmarks/step.py --before ../before
    python benchmarks/step.py --original ../CapsNet-Keras

The contestants are this project on every backend that is installed, this project on
TensorFlow with the coupling coefficients taken as constants in the gradient, and a
textbook version: the same network of `keras.layers.Conv2D` and explicit prediction
vectors, on TensorFlow without XLA. Each is a process of its own. They take turns at a
few steps of `model.fit` while the others wait, round after round, so that whatever
else the machine does falls on all of them: read the ratios. With `--before`, another
version of this project takes part, by its own workers; with `--original`, a folder with the
branch `tf2.2` of github.com/XifengGuo/CapsNet-Keras, on Keras 2 (`pip install tf-keras`),
as it is typed, and once more with TensorFlow's faster kernels for processors without
AVX-512, with which all others run.

Writes a table `--output`, and beside it a picture `.png` and the machine `.md`. The
memory is the largest resident set of the whole process, data set included; it does not
count what an accelerator holds. Needs Linux or macOS.
"""

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from matplotlib.figure import Figure

# Keras itself is imported in the workers only, since its import settles the backend.

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from capsnet.command_line import settle_tensorflow

TEXTBOOK = "textbook"
CONSTANT_COUPLING = "tensorflow-no_routing_gradient"
NETWORKS = (
    *("capsnet", "capsnet-attention", "capsnet-max_min", "capsnet-none"),
    *("capsnet-inverted", "photo", "efficient"),
)
"""Networks of `--model`, perhaps with a `--routing`; for `networks.py`."""

CONTESTANTS = {
    "tensorflow": "tensorflow",
    CONSTANT_COUPLING: "tensorflow",
    "jax": "jax",
    "torch": "torch",
    TEXTBOOK: "tensorflow",
    **dict.fromkeys(NETWORKS, "tensorflow"),
}
"""Names of the contestants and their backends."""

MATRIX_SIZE = 3000
"""Rows and columns of the matrix product that the machine's peak is measured with."""

# The textbook version ----------------------------------------------------------------


def textbook_capsules(u, num_capsule, dim_capsule, routings, routing="dynamic"):
    """Routing as it is usually written, with explicit prediction vectors.

    Letters as in `capsulelayers`; the gradient goes through all iterations.

    Args:
        u: Keras tensor `(B, I, D)`, the input capsules.
        num_capsule: int. Number of output capsules, J.
        dim_capsule: int. Dimension of an output capsule, O.
        routings: int. Number of routing iterations.
        routing: see `CapsuleLayer`; without its learned biases. Defaults to `"dynamic"`.

    Returns:
        A Keras tensor `(B, J, O)`, the output capsules.
    """
    from keras import initializers, layers, ops

    from capsnet.squashes import exponential_squash, squash

    u_hat = layers.EinsumDense(
        "bid,jiod->bjio",
        output_shape=(num_capsule, u.shape[1], dim_capsule),
        kernel_initializer=initializers.TruncatedNormal(stddev=0.1),
        name="digitcaps",
    )(u)  # (B, J, I, O)
    b = ops.zeros_like(u_hat[..., 0])  # (B, J, I)

    def weighted(c):
        return ops.einsum("bji,bjio->bjo", c, u_hat)

    def agreement(v):
        return ops.einsum("bjo,bjio->bji", v, u_hat)

    if routing == "none":
        return squash(weighted(b + 1 / num_capsule))
    if routing == "attention":
        b = agreement(ops.sum(u_hat, axis=2)) / dim_capsule**0.5
        return exponential_squash(weighted(ops.softmax(b, axis=1)))
    if routing == "inverted":
        for _ in range(routings):
            v = layers.LayerNormalization()(weighted(ops.softmax(b, axis=1)))
            b = agreement(v) / dim_capsule**0.5
        return v
    for iteration in range(routings):
        if routing == "dynamic":
            c = ops.softmax(b, axis=1)
        elif iteration == 0:
            c = b + 1
        else:
            least, most = (f(b, axis=1, keepdims=True) for f in (ops.min, ops.max))
            c = (b - least) / (most - least)
        v = squash(weighted(c))
        if iteration < routings - 1:
            b = b + agreement(v)
    return v


def textbook_model(args):
    """Build and compile the textbook version of the training model.

    Args:
        args: namespace with the options of `capsulenet.train`.

    Returns:
        A Keras model with the inputs, outputs and layer names of `capsulenet.CapsNet`.
    """
    import keras
    from keras import layers

    from capsulelayers import Length, Mask, Squash
    from capsulenet import MarginLoss

    x = layers.Input((28, 28, 1))
    y = layers.Input((10,))
    conv1 = layers.Conv2D(256, 9, activation="relu", name="conv1")(x)
    primary = layers.Conv2D(256, 9, strides=2, name="primarycap_conv2d")(conv1)
    u = Squash()(layers.Reshape((-1, 8))(primary))
    v = textbook_capsules(u, 10, 16, args.routings)
    decoder = keras.Sequential(
        [
            layers.Input((160,)),
            layers.Dense(512, activation="relu"),
            layers.Dense(1024, activation="relu"),
            layers.Dense(784, activation="sigmoid"),
            layers.Reshape((28, 28, 1), name="out_recon"),
        ],
        name="decoder",
    )
    model = keras.Model([x, y], [Length(name="capsnet")(v), decoder(Mask()([v, y]))])
    model.compile(
        optimizer=keras.optimizers.Adam(args.lr),
        loss=[MarginLoss(), "mse"],
        loss_weights=[1.0, args.lam_recon],
        weighted_metrics=[["accuracy"], []],
        jit_compile=False,
    )
    return model


# A worker: one contestant ------------------------------------------------------------


def project_model(args, steps):
    """Build and compile the training model of this project, as its command line does.

    Args:
        args: namespace with the options of `capsulenet.train`.
        steps: int. Steps an epoch.

    Returns:
        A compiled Keras model.
    """
    import capsulenet

    model, _, _ = capsulenet.CapsNet(
        (28, 28, 1),
        10,
        args.routings,
        conv=args.conv,
        routing_gradient=args.routing_gradient,
    )
    capsulenet.compile_model(model, args, steps)
    return model


def direct_flops(model, routings):
    """Count the operations of training on one image with direct convolutions.

    Two for each multiply-add of the convolutions, the prediction vectors, the
    `2 * routings - 1` sums over them, and the decoder; three times that for forward
    and backward, but twice for the first layer, whose input needs no gradient. The
    count is the same for all contestants, however they compute.

    Args:
        model: the training model, of this project or the textbook.
        routings: int. Number of routing iterations.

    Returns:
        The number of floating point operations, an int.
    """

    def convolution(name):
        layer = model.get_layer(name)
        return math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)

    W_shape = model.get_layer("digitcaps").weights[0].shape  # (J, I, O, D)
    decoder = sum(
        math.prod(weight.shape)
        for weight in model.get_layer("decoder").weights
        if len(weight.shape) == 2
    )
    routing = math.prod(W_shape[:3]) * (W_shape[3] + 2 * routings - 1)
    later = convolution("primarycap_conv2d") + routing + decoder
    return 2 * (2 * convolution("conv1") + 3 * later)


def network(name, labels, batch_size, steps):
    """Build and compile one of `NETWORKS` as the command line does."""
    import capsulenet
    from capsnet.training import recipe

    kind, _, routing = name.partition("-")
    flags = ["--model", kind, "--routing", routing or "auto"]
    args = capsulenet.build_parser().parse_args(flags)
    recipe.choose_network(args, (28, 28, 1))
    recipe.fit_to_data(args, labels, (28, 28, 1))
    args.batch_size = batch_size
    model = capsulenet.build(args, (28, 28, 1), labels.shape[1:])[0]
    capsulenet.compile_model(model, args, steps)
    return model


def timed_steps(model, batches, steps):
    """Train for a number of steps, and for one before them that is not timed.

    Args:
        model: a compiled model.
        batches: `datasets.TrainingBatches`.
        steps: int. On an accelerator each may stand for several, which run as one.

    Returns:
        A list of seconds a step.
    """
    import keras

    times = []

    def tick(batch, logs):
        float(logs["loss"])  # waits for a step that runs on in the background
        times.append(time.perf_counter())

    model.fit(
        batches,
        steps_per_epoch=(steps + 1) * model.steps_per_execution,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=tick)],
    )
    return list(np.diff(times) / model.steps_per_execution)


def peak_memory():
    """Return the largest resident set of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def work(name, batch_size):
    """Be a contestant: read requests from standard input, write answers to output.

    Both are one JSON object a line. A request gives the number of `steps`; the answer
    has the `seconds` of each, `peak_memory` and the `flops` of training on an image.

    Args:
        name: a key of `CONTESTANTS`.
        batch_size: int.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    settle_tensorflow()
    import keras

    import capsulenet
    from capsnet import data as datasets
    from capsnet import numerics

    if name != TEXTBOOK:
        capsulenet.set_allocator()
    keras.utils.set_random_seed(0)
    args = capsulenet.build_parser().parse_args([])
    args.batch_size = batch_size
    args.routing_gradient = name != CONSTANT_COUPLING
    (x, y), _ = datasets.load_mnist()
    batches = datasets.TrainingBatches(
        x,
        y,
        batch_size,
        args.shift_fraction,
        on_device=not numerics.on_cpu() and keras.backend.backend() != "tensorflow",
    )
    if name == TEXTBOOK:
        model = textbook_model(args)
    elif name in NETWORKS:
        model = network(name, y, args.batch_size, len(batches))
    else:
        model = project_model(args, len(batches))
    for line in sys.stdin:
        answer = {
            "seconds": timed_steps(model, batches, json.loads(line)["steps"]),
            "peak_memory": peak_memory(),
            "flops": None if name in NETWORKS else direct_flops(model, args.routings),
        }
        print(json.dumps(answer), file=answers, flush=True)


# The parent: turns, table and picture ------------------------------------------------


BEFORE = " before"
"""What the names of another version's contestants end in."""

ORIGINAL = "CapsNet-Keras"
"""The name of the public project as a contestant."""

ORIGINAL_ONEDNN = "CapsNet-Keras, oneDNN"
"""The same with the kernels of TensorFlow that the command line here asks for."""


def start(name, args):
    """Start the worker of a contestant.

    Args:
        name: a key of `CONTESTANTS`, perhaps with `BEFORE`.
        args: namespace of the command line's options.

    Returns:
        A `subprocess.Popen`; as a context manager it ends the worker.
    """
    root = args.before if name.endswith(BEFORE) else ROOT
    name = name.removesuffix(BEFORE)
    worker = ["step.py", "--worker", name]
    if name in (ORIGINAL, ORIGINAL_ONEDNN):
        worker = ["original.py", args.original]
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **os.environ,
        "KERAS_BACKEND": CONTESTANTS.get(name, "tensorflow"),
        # Several processes share an accelerator.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if name == ORIGINAL_ONEDNN:
        environment["TF_ENABLE_ONEDNN_OPTS"] = "1"
    command = [sys.executable, os.path.join(root, "benchmarks", worker[0])]
    command += [*worker[1:], "--batch_size", str(args.batch_size)]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(name, worker, steps):
    """Have a worker train and return its answer, see `work`.

    Args:
        name: str. The contestant, for the message.
        worker: what `start` returned.
        steps: int.

    Returns:
        The answer, a dict.

    Raises:
        RuntimeError: if the worker has ended.
    """
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(json.dumps({"steps": steps}) + "\n")
        worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"contestant {name} has ended; see its messages above")
    return json.loads(line)


def matrix_product_rates(count=3):
    """Measure the machine's float32 matrix product.

    Args:
        count: int. Number of measurements. Defaults to 3.

    Returns:
        A list of operations a second.
    """
    matrix = np.random.default_rng(0).random((MATRIX_SIZE, MATRIX_SIZE), "float32")
    rates = []
    for _ in range(count + 1):
        begin = time.perf_counter()
        matrix @ matrix
        rates.append(2 * MATRIX_SIZE**3 / (time.perf_counter() - begin))
    return rates[1:]  # the first one wakes the threads


def compete(args):
    """Let the contestants take turns.

    Args:
        args: namespace of the command line's options.

    Returns:
        `(answers, rate)`: a dict of each contestant's list of answers, one a round, and
        the operations a second of a matrix product.
    """
    names = list(args.contestants)
    if args.before:
        names += [name + BEFORE for name in names if name != TEXTBOOK]
    if args.original:
        names += [ORIGINAL, ORIGINAL_ONEDNN]
    answers = {name: [] for name in names}
    rates = []
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in names:
            print(f"{name}: starts and warms up", flush=True)
            workers[name] = stack.enter_context(start(name, args))
            ask(name, workers[name], args.warmup)
        for number in range(args.rounds):
            for name, worker in workers.items():
                answers[name].append(ask(name, worker, args.steps))
                seconds = statistics.median(answers[name][-1]["seconds"])
                print(f"round {number + 1}: {name} {seconds:.3f} s a step", flush=True)
            rates += matrix_product_rates()
    return answers, statistics.median(rates)


def summarise(answers, batch_size, rate):
    """Boil the answers down to one row a contestant.

    Args:
        answers: dict of each contestant's list of answers, one a round.
        batch_size: int.
        rate: float. Operations a second of a matrix product.

    Returns:
        A list of dicts. `ratio` is how many times as fast as the textbook version a
        contestant is, `before` as its other version, and `original` as CapsNet-Keras:
        the median over the rounds, with the least and the largest; None if that did
        not take part.
    """
    rounds = {
        name: [statistics.median(answer["seconds"]) for answer in given]
        for name, given in answers.items()
    }
    rows = []
    for name, given in answers.items():
        seconds = statistics.median(s for answer in given for s in answer["seconds"])
        ratios = {}
        others = (TEXTBOOK, name + BEFORE, ORIGINAL)
        for column, other in zip(_RATIOS, others):
            found = [a / b for a, b in zip(rounds.get(other, []), rounds[name])]
            ratios[column] = statistics.median(found) if found else None
            ratios[f"{column}_min"] = min(found, default=None)
            ratios[f"{column}_max"] = max(found, default=None)
        of_peak = given[-1]["flops"]
        rows.append(
            {
                "contestant": name,
                "seconds": seconds,
                "images_a_second": batch_size / seconds,
                "peak_memory_gb": given[-1]["peak_memory"] / 1e9,
                **ratios,
                "fraction_of_peak": of_peak and of_peak * batch_size / seconds / rate,
            }
        )
    return rows


_RATIOS = {"ratio": "textbook", "before": "before", "original": "original"}
"""Columns of `summarise` that compare with another contestant, and their headings."""


def print_table(rows):
    """Print what `summarise` returned."""
    print(
        f"\n{'contestant':32}{'s/step':>8}{'images/s':>10}{'peak GB':>9}"
        f"{'of peak':>9}"
        + "".join(
            f"{'x ' + other:>12}{'min':>7}{'max':>7}" for other in _RATIOS.values()
        )
    )
    for row in rows:
        shown = [row[kind + end] for kind in _RATIOS for end in ("", "_min", "_max")]
        shown = map(_shown, shown)
        print(
            f"{row['contestant']:32}{row['seconds']:8.3f}{row['images_a_second']:10.1f}"
            f"{row['peak_memory_gb']:9.2f}{_shown(row['fraction_of_peak']):>9}"
            + "".join(
                f"{ratio:>{width}}" for ratio, width in zip(shown, 3 * (12, 7, 7))
            )
        )


def _shown(number):
    return "" if number is None else f"{number:.2f}"


def write_csv(rows, path):
    """Write dicts of the same keys as a table; None leaves a field empty.

    Args:
        rows: list of dicts of numbers and strings.
        path: str. The file; its directory is made.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
            )


def plot(rows, path):
    """Draw seconds a step and memory as bars.

    Args:
        rows: what `summarise` returned.
        path: str. The picture.
    """
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row["contestant"] for row in rows]
    bars = left.barh(names, [row["seconds"] for row in rows])
    ratios = [row["ratio"] for row in rows]
    left.bar_label(bars, ["" if r is None else f"{r:.2f} x" for r in ratios], padding=3)
    left.set_xlabel("seconds a step; how many times as fast as the textbook")
    right.barh(names, [row["peak_memory_gb"] for row in rows], color="tab:orange")
    right.set_xlabel("peak memory of the process, GB")
    left.margins(x=0.15)
    left.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def describe_machine():
    """Return what a measurement depends on: lines of processor, versions and date."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            models = [line for line in file if line.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    lines = [
        f"Date: {datetime.date.today()}",
        f"Processor: {processor}, {os.cpu_count()} cores",
        f"System: {platform.system()}",
        f"Python: {platform.python_version()}",
    ]
    for package in ("keras", "tensorflow", "tf_keras", "jax", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{package}: {importlib.metadata.version(package)}")
    return lines


def write_notes(lines, path):
    """Write lines as a list in Markdown.

    Args:
        lines: list of str.
        path: str. The file.
    """
    with open(path, "w") as file:
        file.writelines(f"- {line}\n" for line in lines)


def parse(argv):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description="Seconds a training step, side by side in one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    installed = [
        name
        for name, package in CONTESTANTS.items()
        if importlib.util.find_spec(package)
    ]
    usual = [name for name in installed if name not in NETWORKS]
    add("--contestants", nargs="+", choices=installed, default=usual, help="who")
    add("--batch_size", default=100, type=int, help="images a step")
    add("--rounds", default=6, type=int, help="turns of each contestant")
    add(
        "--steps", default=5, type=int, help="timed steps a turn, after one that is not"
    )
    add("--warmup", default=4, type=int, help="steps before the first turn")
    add("--before", metavar="FOLDER", help="another version of this project")
    add("--original", metavar="FOLDER", help="the public CapsNet-Keras, branch tf2.2")
    add("--output", default=os.path.join(ROOT, "benchmarks/results/step.csv"))
    add("--worker", choices=installed, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if min(args.batch_size, args.rounds, args.steps) < 1 or args.warmup < 0:
        parser.error(
            "--batch_size, --rounds, --steps: at least 1; --warmup: at least 0"
        )
    return args


def main(argv=None):
    """Run the command line with `argv`, by default the program's own arguments."""
    args = parse(argv)
    if args.worker:
        work(args.worker, args.batch_size)
        return
    answers, rate = compete(args)
    rows = summarise(answers, args.batch_size, rate)
    print_table(rows)
    print(f"\nPeak of the machine's matrix product: {rate / 1e9:.0f} GFLOP/s")
    write_csv(rows, args.output)
    base = os.path.splitext(args.output)[0]
    settings = (
        f"batches of {args.batch_size}, {args.rounds} rounds of {args.steps} steps"
    )
    peak = f"Matrix product, float32: {rate / 1e9:.0f} GFLOP/s"
    write_notes([*describe_machine(), peak, f"Settings: {settings}"], base + ".md")
    plot(rows, base + ".png")
    print(f"Written: {args.output}, {base}.md, {base}.png")


if __name__ == "__main__":
    main()
