"""Where the training is, and a watch over hosts that stand still."""

import threading
import time

import keras

from capsnet.training.devices import end, host


class Progress(keras.callbacks.Callback):
    """Know where the training is, and end the process where it stands still.

    A host that is cut off, not ended, leaves the others waiting in a step. JAX would
    abort them in its own time and words. Epoch and step are counted from 1.

    Args:
        limit: float. Seconds without a step after which the process ends, or ten times
            the longest step so far if that is more. The first step of training and the
            first of validation are not timed, since they compile. None for never.
            Defaults to None.
    """

    def __init__(self, limit=None):
        super().__init__()
        self.limit = limit
        self.epoch = self.step = 0
        self.longest = 0.0
        self.since = None  # when the step in progress began, if it is timed
        self.over = False
        self.compiled = set()

    def on_train_begin(self, logs=None):
        """Begin to watch."""
        if self.limit:
            threading.Thread(target=self._watch, daemon=True).start()

    def on_epoch_begin(self, epoch, logs=None):
        """Note the epoch."""
        self.epoch, self.step = epoch + 1, 0
        self._begin("train")

    def on_train_batch_end(self, batch, logs=None):
        """Note the step."""
        self.step = batch + 1
        self._end("train")

    def on_test_begin(self, logs=None):
        """Note the beginning of the validation."""
        self._begin("test")

    def on_test_batch_end(self, batch, logs=None):
        """Note a step of the validation."""
        self._end("test")

    def stop(self):
        """Watch no longer, also where the training ended in an error."""
        self.since, self.over = None, True

    def on_train_end(self, logs=None):
        """Watch no longer."""
        self.stop()

    def where(self):
        """Return where the training is, in words."""
        return f"in epoch {self.epoch} after step {self.step}"

    def lost(self, reason):
        """Return the line that says where the training stopped and how to go on."""
        number, hosts = host()
        return (
            f"host {number} of {hosts} stops {self.where()}: another host is gone "
            f"({reason}). Start all hosts again with --resume to go on after the last "
            "whole epoch."
        )

    def _begin(self, kind):
        self.since = time.monotonic() if kind in self.compiled else None

    def _end(self, kind):
        now = time.monotonic()
        if self.since is not None:
            self.longest = max(self.longest, now - self.since)
        self.compiled.add(kind)
        self.since = now

    def _watch(self):
        while not self.over:
            time.sleep(1)
            since, limit = self.since, max(self.limit, 10 * self.longest)
            if since is not None and time.monotonic() - since > limit:
                end(self.lost(f"no step in {limit:.0f} seconds"), 1)
