"""The public CapsNet-Keras as a contestant of `step.py --original FOLDER`.

    git clone --branch tf2.2 https://github.com/XifengGuo/CapsNet-Keras ../CapsNet-Keras
    pip install tf-keras
    python benchmarks/step.py --original ../CapsNet-Keras

A worker, see `step.work`: the project's own network, loss and augmentation, put together as
its `train` does, on Keras 2.
"""

import argparse
import json
import os
import sys
import time

import numpy as np
from step import ROOT, direct_flops, peak_memory

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow

import tensorflow as tf


def batches(batch_size):
    """The batches of `capsulenet.train`, moved by up to two pixels; without an end."""
    with np.load(os.path.join(ROOT, "data", "mnist.npz")) as file:
        x = np.float32(file["x_train"][..., None]) / 255
        y = np.eye(10, dtype="float32")[file["y_train"]]
    move = {"width_shift_range": 0.1, "height_shift_range": 0.1}
    moved = tf.keras.preprocessing.image.ImageDataGenerator(**move)

    def pairs():
        for images, labels in moved.flow(x, y, batch_size=batch_size):
            yield (images, labels), (labels, images)

    # Its capsule layer needs to know the batch size, which a generator does not tell.
    images, labels = (tf.TensorSpec([batch_size, *a.shape[1:]]) for a in (x, y))
    signature = ((images, labels), (labels, images))
    return tf.data.Dataset.from_generator(pairs, output_signature=signature)


def timed_steps(model, data, steps):
    """Train for a number of steps and one before; the seconds of each, see `step`."""
    times = []

    def tick(batch, logs):
        times.append(time.perf_counter())

    clock = tf.keras.callbacks.LambdaCallback(on_batch_end=tick)
    model.fit(data, steps_per_epoch=steps + 1, verbose=0, callbacks=[clock])
    return list(np.diff(times))


def main():
    """Run the worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--batch_size", type=int, default=100)
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, args.folder)
    import capsulenet  # the folder's

    model, *_ = capsulenet.CapsNet((28, 28, 1), 10, 3, args.batch_size)
    model.compile(
        optimizer=tf.keras.optimizers.Adam(0.001),
        loss=[capsulenet.margin_loss, "mse"],
        loss_weights=[1.0, 0.392],
        metrics={"capsnet": "accuracy"},
    )
    data = batches(args.batch_size)
    for line in sys.stdin:
        answer = {
            "seconds": timed_steps(model, data, json.loads(line)["steps"]),
            "peak_memory": peak_memory(),
            "flops": direct_flops(model, 3),
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
