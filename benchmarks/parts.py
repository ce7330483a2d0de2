"""Seconds of each part of a training step of the MNIST network, one backend beside another.

    python benchmarks/parts.py
    python benchmarks/parts.py --backends jax --rounds 10

Each layer that has weights, forward and backward by its weights and its input (by its
weights alone for the first), and the optimizer's update. A part is timed alone: what a
whole step saves by running parts together, or loses by handing over, is not in their sum.
The backends take turns, part after part; the figure is the median. Writes `--output`.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from step import ROOT, settle_tensorflow, write_csv  # and the repository on the path

BACKENDS = ("tensorflow", "jax")


def compiled_gradient(layer, by_input):
    """Return a compiled function of `(x, dy)`: the gradients by the weights, and `x`."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        def loss(weights, x, dy):
            return (layer.stateless_call(weights, [], x)[0] * dy).sum()

        gradient = jax.jit(jax.grad(loss, (0, 1) if by_input else 0))
        weights = [w.value for w in layer.trainable_variables]
        return lambda x, dy: jax.block_until_ready(gradient(weights, x, dy))
    if keras.backend.backend() == "torch":  # which compiles nothing

        def gradient(x, dy):
            (layer(x.detach().requires_grad_(by_input)) * dy).sum().backward()

        return gradient
    import tensorflow as tf

    @tf.function
    def gradient(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) * dy)
        variables = [w.value for w in layer.trainable_variables]
        return tape.gradient(loss, [*variables, x] if by_input else variables)

    return lambda x, dy: gradient(x, dy)[0].numpy()


def compiled_update(optimizer, variables):
    """Return a compiled function without arguments: one update by gradients of zero."""
    import keras
    from keras import ops

    optimizer.build(variables)
    zeros = [ops.zeros(v.shape) for v in variables]
    if keras.backend.backend() == "jax":
        import jax

        update = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
        kept = [[v.value.copy() for v in vs] for vs in (optimizer.variables, variables)]

        def call():
            new, state = update(kept[0], zeros, kept[1])
            kept[:] = jax.block_until_ready([state, new])

        return call
    import tensorflow as tf

    return tf.function(lambda: optimizer.apply(zeros, variables))


def parts(batch_size):
    """Return a dict of functions without arguments, one a part."""
    import keras
    from keras import ops

    import capsulenet

    capsulenet.set_allocator()
    args = capsulenet.build_parser().parse_args([])
    model = capsulenet.CapsNet((28, 28, 1), 10, args.routings)[0]
    normal = np.random.default_rng(0).normal

    def part(layer):
        x, dy = (
            ops.convert_to_tensor(normal(size=(batch_size, *t.shape[1:])), "float32")
            for t in (layer.input, layer.output)
        )
        gradient = compiled_gradient(layer, by_input=layer.name != "conv1")
        return lambda: gradient(x, dy)

    found = {layer.name: part(layer) for layer in model.layers if layer.weights}
    adam = compiled_update(keras.optimizers.Adam(), model.trainable_variables)
    return found | {"Adam": adam}


def work(batch_size):
    """Answer each line of standard input, a part's name, with its seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    settle_tensorflow()
    functions = parts(batch_size)
    for function in functions.values():
        function()
        function()
    print(json.dumps(list(functions)), file=answers, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        functions[line.strip()]()
        print(time.perf_counter() - begin, file=answers, flush=True)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="which")
    add("--batch_size", default=100, type=int, help="images a step")
    add("--rounds", default=30, type=int, help="times that each part is timed")
    add("--output", default=os.path.join(ROOT, "benchmarks/results/parts.csv"))
    add("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.batch_size)
    command = [sys.executable, __file__, "--work", "--batch_size", str(args.batch_size)]
    rows = []
    with contextlib.ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = {
            backend: stack.enter_context(
                subprocess.Popen(
                    command,
                    env={**os.environ, "KERAS_BACKEND": backend},
                    **pipes,
                )
            )
            for backend in args.backends
        }
        names, *_ = [json.loads(w.stdout.readline()) for w in workers.values()]
        for name in names:
            seconds = {backend: [] for backend in workers}
            for _ in range(args.rounds):
                for backend, worker in workers.items():
                    print(name, file=worker.stdin, flush=True)
                    seconds[backend].append(float(worker.stdout.readline()))
            medians = {b: statistics.median(s) for b, s in seconds.items()}
            print(name, {b: round(s, 4) for b, s in medians.items()}, flush=True)
            rows.append({"part": name} | medians)
        for worker in workers.values():
            worker.stdin.close()
    write_csv(rows, args.output)
    print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
