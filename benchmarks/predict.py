"""Seconds for telling the classes of 100 images with the full MNIST model.

    python benchmarks/predict.py

This project's `predict`, beside Keras' `predict` of the textbook version in
`benchmarks/step.py` without its decoder; both take 100 images at once, and 2,000 (the
textbook in batches of 100). They take turns, so that whatever else the machine does
falls on all of them. Writes `benchmarks/results/predict.csv` and `predict.md`.
"""

import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import step

ROUNDS, CALLS = 7, 5
"""Turns of each contestant, and calls a turn with 100 images."""


def main():
    """Measure, print and write."""
    step.settle_tensorflow()
    import keras

    import capsulenet
    from capsnet import data as datasets

    capsulenet.set_allocator()
    images = datasets.load_mnist()[1][0][:2000]
    options = capsulenet.build_parser().parse_args([])
    here = capsulenet.CapsNet((28, 28, 1), 10, options.routings)[1]
    trained = step.textbook_model(options)
    textbook = keras.Model(trained.inputs[0], trained.outputs[0])
    contestants = {
        "here": lambda x: capsulenet.predict(here, x),
        "textbook": lambda x: textbook.predict(x, batch_size=100, verbose=0),
    }
    for predict in contestants.values():  # compile
        predict(images[:100])
        predict(images[:1000])
    times = {(name, n): [] for n in (100, len(images)) for name in contestants}
    for _ in range(ROUNDS):
        for (name, n), seconds in times.items():
            for _ in range(CALLS if n == 100 else 1):
                begin = time.perf_counter()
                contestants[name](images[:n])
                seconds.append((time.perf_counter() - begin) / (n / 100))
    rows = [
        {
            "contestant": name,
            "images": n,
            "seconds_per_100": statistics.median(seconds),
            "least": min(seconds),
            "largest": max(seconds),
        }
        for (name, n), seconds in times.items()
    ]
    for row in rows:
        print("{contestant:10}{images:7} images  {seconds_per_100:.4f} s".format(**row))
    base = os.path.join(os.path.dirname(__file__), "results", "predict")
    step.write_csv(rows, base + ".csv")
    backend = f"Backend: {keras.backend.backend()}"
    step.write_notes([*step.describe_machine(), backend], base + ".md")


if __name__ == "__main__":
    main()
