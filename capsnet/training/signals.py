"""Ctrl-C and SIGTERM, which end a training after the step in progress."""

import contextlib
import os
import signal
import threading

import keras

from capsnet.errors import Interrupted


class Interruption(keras.callbacks.Callback):
    """End the training after the step in progress, on Ctrl-C or SIGTERM.

    A second signal ends the process at once. To be used as a context around `fit`;
    without it, and outside of the main thread, it does nothing. `number` is the signal,
    or None.

    Raises:
        Interrupted: after that step.
    """

    def __init__(self):
        super().__init__()
        self.number = None
        self.former = {}

    def __enter__(self):
        """Take over the signals, other than those that are ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        """Give the signals back."""
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def on_train_batch_end(self, batch, logs=None):
        """Stop here if asked to; at the end of an epoch, after the checkpoint."""
        if self.number is not None:
            raise Interrupted(self.number)

    on_test_batch_end = on_epoch_end = on_train_batch_end

    def _ask(self, number, frame):
        self.number = number
        for other in self.former:
            signal.signal(other, signal.SIG_DFL)
        # Not by print, which must not be entered a second time.
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2, b"\nStopping after this step; once more stops at once\n")
