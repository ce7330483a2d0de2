"""One to four capsule layers on crops of MNIST: whether depth costs accuracy.

    python benchmarks/stacked.py
    KERAS_BACKEND=jax python benchmarks/stacked.py --seeds 0 --routings dynamic

A convolution of 32 filters of 5 x 5, `PrimaryCap(8, 8, 5, 2)`, layers of 16 capsules of 8 and a
last one of 10 of 16, all as they start by themselves, in plain `model.fit`: the squared
error of the lengths, Adam at 0.001, batches of 50, 6 epochs of 10,000 training images, cut to
their 20 x 20 pixels in the middle. Tested on the 2,000 training images after those.

Appends to `results/stacked.csv`.
"""

import argparse
import os
import sys

import keras
import numpy as np
from keras import layers
from own_pictures import keep

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import capsulenet
from capsnet.options import ROUTINGS
from capsulelayers import CapsuleLayer, Length, PrimaryCap

RESULTS = os.path.join(ROOT, "benchmarks", "results", "stacked.csv")


def network(depth, routing):
    """Build `depth` layers of capsules on primary ones."""
    inputs = layers.Input((20, 20, 1))
    x = layers.Conv2D(32, 5, activation="relu")(inputs)
    x = PrimaryCap(x, 8, 8, 5, 2, "valid")
    for _ in range(depth - 1):
        x = CapsuleLayer(16, 8, routing=routing)(x)
    # Lengths of the last are to be probabilities.
    squash = "squash" if routing == "inverted" else None
    x = CapsuleLayer(10, 16, routing=routing, squash=squash)(x)
    return keras.Model(inputs, Length()(x))


def main():
    """Train each network, and append a row for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--routings", nargs="+", default=["dynamic"], choices=ROUTINGS)
    parser.add_argument("--results", default=RESULTS)
    args = parser.parse_args()
    (x, y), _ = capsulenet.load_mnist()
    x = x[:12000, 4:24, 4:24]
    for seed in args.seeds:
        for routing in args.routings:
            for depth in args.depths:
                keras.utils.set_random_seed(seed)
                model = network(depth, routing)
                model.compile(keras.optimizers.Adam(0.001), "mse", metrics=["accuracy"])
                model.fit(x[:10000], y[:10000], batch_size=50, epochs=6, verbose=0)
                lengths = model.predict(x[10000:], batch_size=100, verbose=0)
                right = lengths.argmax(1) == y[10000:12000].argmax(1)
                keep(
                    args.results,
                    {
                        "backend": keras.backend.backend(),
                        "routing": routing,
                        "layers": depth,
                        "seed": seed,
                        "accuracy": round(float(np.mean(right)), 4),
                        "finite": bool(np.isfinite(lengths).all()),
                    },
                )


if __name__ == "__main__":
    main()
