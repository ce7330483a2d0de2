"""What lies between two epochs of a training on TensorFlow.

    python benchmarks/between_epochs.py

Batches that take a tenth of a second each and nothing to compute, so that what an epoch
takes beside them is waiting: once through Keras' own pipeline of a `PyDataset` and once
through `resources.feed`, both at the same time, each in a process of its own. Prints the
seconds between the beginning of each epoch and its first batch.
"""

import argparse
import os
import subprocess
import sys
import time

# Keras itself is imported in the workers only.
sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir))


def waits(fed, args):
    """Train a model of one weight; returns the seconds before the epochs' first batches."""
    import keras
    import numpy as np

    from capsnet.training import resources

    class Slow(keras.utils.PyDataset):
        def __len__(self):
            return args.batches

        def __getitem__(self, index):
            time.sleep(0.1)
            return np.zeros((1, 1), "float32"), np.zeros((1, 1), "float32")

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                seconds.append(time.perf_counter() - self.began)

    seconds = []
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    batches = Slow()
    given = resources.feed(batches) if fed else batches
    model.fit(given, epochs=args.epochs, shuffle=False, verbose=0, callbacks=[Clock()])
    return seconds


def main():
    """Start both, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batches", type=int, default=450, help="of each epoch")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--worker", choices=("keras", "feed"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        seconds = waits(args.worker == "feed", args)
        print(f"{args.worker:5}", *(f"{each:6.2f}" for each in seconds))
        return
    command = [sys.executable, *sys.argv, "--worker"]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    workers = [
        subprocess.Popen([*command, name], env=environment)
        for name in ("keras", "feed")
    ]
    sys.exit(max(worker.wait() for worker in workers))


if __name__ == "__main__":
    main()
