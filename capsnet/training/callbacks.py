"""What runs beside the training: clock, printed lines, pictures, and what watches it."""

import math
import os
import time

import keras
import numpy as np

FIRST_STEPS = 200
"""Steps after which every class capsule should have shown some length."""

GUESSING_STEPS = 400
"""Steps after which more should be read than the commonest class."""

SATURATED_LENGTH = 0.8
"""Where all capsules are longer than this for every image, they tell nothing."""

SAME_LENGTH = 0.001
"""As little as this between images is no difference."""

DEAD_LENGTH = 0.01
"""A capsule shorter than this for every image counts as one of length zero."""


class EpochSeconds(keras.callbacks.Callback):
    """Add `seconds`, the wall time of the epoch with its validation, to the logs."""

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Read the clock."""
        logs["seconds"] = round(time.perf_counter() - self.start, 2)


class BatchLog(keras.callbacks.Callback):
    """Print the epoch's averages so far every `interval` batches."""

    def __init__(self, interval):
        super().__init__()
        self.interval = interval

    def on_epoch_begin(self, epoch, logs=None):
        """Nothing of this epoch is printed yet."""
        self.printed = 0

    def on_train_batch_end(self, batch, logs=None):
        """Print total loss, its parts and the accuracy.

        On an accelerator Keras calls this once for several batches.
        """
        if (batch + 1) // self.interval > self.printed:
            self.printed = (batch + 1) // self.interval
            names = {
                "loss": "loss",
                "capsnet_loss": "margin",
                "decoder_loss": "reconstruction",
                "capsnet_accuracy": "accuracy",
                "accuracy": "accuracy",
            }
            values = [f"{t} {logs[n]:.4f}" for n, t in names.items() if n in logs]
            print(f"\nBatch {batch + 1}: {', '.join(values)}", flush=True)


class Reconstructions(keras.callbacks.Callback):
    """Show TensorBoard some images and their reconstructions after each epoch.

    Specific to TensorFlow, whose summaries TensorBoard reads. Not for several devices,
    which a few images can't be shared out to.
    """

    def __init__(self, images, save_dir):
        super().__init__()
        self.images = images
        self.directory = os.path.join(save_dir, "tensorboard-logs", "images")

    def on_epoch_end(self, epoch, logs=None):
        """Write the pictures; the decoder sees the longest capsule."""
        import tensorflow as tf

        nothing = np.zeros(
            (len(self.images), self.model.output_shape[0][-1]), "float32"
        )
        longest = self.model.predict_on_batch([self.images, nothing])[0]
        labels = np.eye(longest.shape[1], dtype="float32")[np.argmax(longest, 1)]
        shown = self.model.predict_on_batch([self.images, labels])[1]
        with tf.summary.create_file_writer(self.directory).as_default():
            for name, images in (("original", self.images), ("reconstructed", shown)):
                seen = images[..., :3] if images.shape[-1] > 2 else images[..., :1]
                tf.summary.image(name, seen, epoch, max_outputs=10)


class NotFinite(keras.callbacks.Callback):
    """End a training whose loss is no finite number, before that is saved.

    Keras' `TerminateOnNaN` lets the epoch end first, with a checkpoint of what is
    broken, or does not say which epoch it was.

    Raises:
        FloatingPointError: with the epoch and the step, both counted from 1.
    """

    def on_epoch_begin(self, epoch, logs=None):
        """Note the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Look at the average loss so far, which stays what it is once it is NaN."""
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} in epoch {self.epoch + 1} after step "
                f"{batch + 1}"
            )

    def on_test_end(self, logs=None):
        """Look at the validation: the last step may have broken the weights."""
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the validation loss is {logs['loss']} at the end of epoch "
                f"{self.epoch + 1}"
            )


class AveragedWeights(keras.callbacks.Callback):
    """Validate the optimizer's average of the weights, and train on with the weights.

    Callbacks that come before this one find the average in the model when a validation
    ends, all others find the weights. Keras' `SwapEMAWeights` adds and subtracts with
    TensorFlow, which rounds: a training would depend on its validations.
    """

    def on_test_begin(self, logs=None):
        """Keep the weights, and put the average in their place."""
        self.trained = [weight.copy() for weight in self.model.get_weights()]
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        # As copies: with JAX they are the optimizer's own, which a step gives away.
        self.model.set_weights(self.model.get_weights())

    def on_test_end(self, logs=None):
        """Put the weights back."""
        self.model.set_weights(self.trained)


class DeadCapsules(keras.callbacks.Callback):
    """Warn of class capsules that tell nothing after the first 200 steps.

    They may be of length zero for every image, or all of them be long, or as long for
    one image as for another.

    Not for several devices, where one can't compute alone.

    Args:
        lengths: function without arguments, which returns the capsule lengths of some
            training images, an array `(n, n_class)`.
    """

    def __init__(self, lengths):
        super().__init__()
        self.lengths = lengths
        self.looked = False

    def on_epoch_begin(self, epoch, logs=None):
        """Count the steps of the epochs before."""
        self.before = epoch * (self.params["steps"] or 0)
        self.looked = self.looked or self.before >= FIRST_STEPS

    def on_train_batch_end(self, batch, logs=None):
        """Look once, after `FIRST_STEPS` steps."""
        if self.looked or self.before + batch + 1 < FIRST_STEPS:
            return
        self.looked = True
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # the trainer keeps the weights to itself
        lengths = self.lengths()
        self._say_saturated(lengths, self.before + batch + 1)
        dead = np.flatnonzero(lengths.max(0) < DEAD_LENGTH)
        if len(dead):
            layer = self.model.get_layer("digitcaps")
            positions = math.prod(layer.input_spec.shape[1:-2]) if layer.shared else 1
            initializer = layer.kernel_initializer or layer.default_initializer(
                layer.W.shape[1], positions
            )
            print(
                f"\nWarning: after {self.before + batch + 1} steps the capsules of "
                f"{len(dead)} of {lengths.shape[1]} classes "
                f"({', '.join(map(str, dead[:10]))}{', ...' * (len(dead) > 10)}) are "
                f"shorter than {DEAD_LENGTH} for each of {len(lengths)} training "
                "images: they learn nothing. Try another --seed, or another "
                f"kernel_initializer of the CapsuleLayer than {_in_words(initializer)}",
                flush=True,
            )

    def _say_saturated(self, lengths, steps):
        """Warn where all capsules are long, or as long for one image as for another."""
        if lengths.min() > SATURATED_LENGTH:
            said = f"all capsules are longer than {SATURATED_LENGTH} for each"
        elif (
            lengths.max() > DEAD_LENGTH and np.ptp(lengths, axis=0).max() < SAME_LENGTH
        ):
            said = (
                f"the capsules' lengths differ by less than {SAME_LENGTH} between any"
            )
        else:
            return
        print(
            f"\nWarning: after {steps} steps {said} of {len(lengths)} training images: "
            "they learn nothing. A lower --lr may help, or --model photo",
            flush=True,
        )


class Until(keras.callbacks.Callback):
    """End a training with the first epoch that validates so well.

    Args:
        accuracy: float. From this on it ends; 0 for never.
        monitor: str. What is compared, as the log names it.
        log: list of dicts, the log of the epochs that a run goes on from.

    Attributes:
        reached: bool. Whether the last epoch did.
    """

    def __init__(self, accuracy, monitor, log=()):
        super().__init__()
        self.accuracy, self.monitor = accuracy or math.inf, monitor
        self.reached = bool(log) and self._reaches(float(log[-1][monitor]))

    def _reaches(self, accuracy):
        return accuracy > self.accuracy - 1e-6  # float32's 0.95 is less than 0.95

    def on_epoch_end(self, epoch, logs=None):
        """Compare."""
        self.reached = self._reaches(logs[self.monitor])
        if self.reached:
            self.model.stop_training = True
            print(
                f"\nStopped after epoch {epoch + 1}: {self.monitor} "
                f"{logs[self.monitor]:.4f} reaches --until {self.accuracy}",
                flush=True,
            )


class NoBetterThanGuessing(keras.callbacks.Callback):
    """Warn where an epoch's accuracy is that of always guessing the commonest class.

    Looks once, at the end of the first epoch that ends after `GUESSING_STEPS` steps.

    Args:
        share: float. The share of the commonest class among the images as drawn.
        monitor: str. What the log calls the accuracy, with `val_` before it.
    """

    def __init__(self, share, monitor="val_capsnet_accuracy"):
        super().__init__()
        self.share, self.monitor = share, monitor.removeprefix("val_")
        self.looked = False

    def on_epoch_end(self, epoch, logs=None):
        """Compare the accuracy of the epoch with that of guessing."""
        steps = (epoch + 1) * (self.params["steps"] or 0)
        if self.looked or steps < GUESSING_STEPS:
            return
        self.looked = True
        accuracy = logs[self.monitor]
        if accuracy < self.share + 0.1 * (1 - self.share):
            print(
                f"\nWarning: after {steps} steps {accuracy:.1%} of the training images "
                f"are read, and the commonest class alone has {self.share:.1%}: nothing "
                "was learned yet. Another --lr, more --epochs or --model photo may help",
                flush=True,
            )


def _in_words(initializer):
    """Return the name of an initializer and what it was made with."""
    if not hasattr(initializer, "get_config"):  # a function
        return getattr(initializer, "__name__", "its own")
    config = initializer.get_config().items()
    values = ", ".join(f"{k}={v}" for k, v in config if v is not None)
    return f"{type(initializer).__name__}({values})"
