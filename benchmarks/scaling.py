"""Images a second with one host, two and four, on one core each.

    python benchmarks/scaling.py

Every host is a process of its own, bound to a core of its own and joined by JAX's
runtime as `capsulenet-multi-gpu.py --coordinator` joins real ones; each takes as many
images a step of the full MNIST model. They are started anew round after round, so that
whatever else the machine does falls on all numbers of hosts. The efficiency is the
images a second of n hosts over n times those of one. Numbers that the machine lacks
cores for are left out. Writes `benchmarks/results/scaling.csv` and `scaling.md`. Needs
Linux and JAX.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import step


def work(number, hosts, port, batch, steps):
    """Be one of the hosts: train, and print the seconds of each step as JSON.

    Args:
        number: int. This host, from 0.
        hosts: int. How many there are.
        port: int. Where the first one listens.
        batch: int. Images a step of each host.
        steps: int. Timed steps.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number]})  # before any thread is started
    import keras

    import capsulenet
    from capsnet import data as datasets
    from capsnet.training import devices

    capsulenet.set_allocator()
    devices.use_cpu(1)
    if hosts > 1:
        devices.join_hosts(f"localhost:{port}", hosts, number)
    keras.utils.set_random_seed(0)
    args = capsulenet.build_parser().parse_args([])
    (x, y), _ = datasets.load_mnist()
    with devices.data_parallel(1, "cpu"):
        batches = datasets.TrainingBatches(
            x,
            y,
            batch * hosts,
            args.shift_fraction,
            devices=hosts,
            share=(number, hosts),
        )
        model = step.project_model(args, len(batches))
        seconds = step.timed_steps(model, batches, steps)
    print(json.dumps({"seconds": seconds}), flush=True)
    os._exit(0)  # the others may still be at their last step


def measure(hosts, batch, steps):
    """Start the hosts and return the median seconds of a step on the first one."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--steps", str(steps)]
            + ["--worker", *map(str, (number, hosts, port, batch))],
            env={**os.environ, "KERAS_BACKEND": "jax"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(hosts)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"one of {hosts} hosts failed; see its messages above")
    return statistics.median(json.loads(outputs[0].splitlines()[-1])["seconds"])


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Images a second with several hosts on one core each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", default=5, type=int, help="starts of each number")
    parser.add_argument("--steps", default=10, type=int, help="timed steps a start")
    parser.add_argument(
        "--batches", nargs="+", default=[100, 300], type=int, help="images of each host"
    )
    parser.add_argument("--worker", nargs=4, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker, args.steps)
    numbers = [n for n in (1, 2, 4) if n <= len(os.sched_getaffinity(0))]
    rates = {(batch, n): [] for batch in args.batches for n in numbers}
    for number in range(args.rounds):
        for (batch, hosts), found in rates.items():
            found.append(hosts * batch / measure(hosts, batch, args.steps))
            print(
                f"round {number + 1}: {hosts} x {batch} images, {found[-1]:.1f} a second",
                flush=True,
            )
    rows = []
    for (batch, hosts), found in rates.items():
        speedup = statistics.median(a / b for a, b in zip(found, rates[batch, 1]))
        rows.append(
            {
                "hosts": hosts,
                "images_of_each": batch,
                "images_a_second": statistics.median(found),
                "speedup": speedup,
                "efficiency": speedup / hosts,
            }
        )
        print(
            "{hosts} hosts, {images_of_each} images each: {images_a_second:.1f} a "
            "second, {speedup:.2f} x one, efficiency {efficiency:.2f}".format(
                **rows[-1]
            )
        )
    base = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results/scaling")
    step.write_csv(rows, base + ".csv")
    settings = f"Settings: {args.rounds} rounds of {args.steps} steps"
    step.write_notes([*step.describe_machine(), settings], base + ".md")


if __name__ == "__main__":
    main()
