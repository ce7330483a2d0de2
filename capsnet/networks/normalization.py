"""Batch normalization, whose training step is one operation of the backend."""

import keras
from keras import layers, ops

from capsnet.numerics import mirrors


def batch_normalization(**how):
    """A layer that normalizes by the whole batch, also where several devices share it.

    TensorFlow has to be told; JAX never does otherwise.

    Args:
        **how: arguments of `keras.layers.BatchNormalization`.
    """
    return BatchNormalization(synchronized=mirrors() > 1, **how)


@keras.saving.register_keras_serializable(package="capsnet")
class BatchNormalization(layers.BatchNormalization):
    """Keras' `BatchNormalization` of maps, channels last, to rounding.

    Keras puts it together from operations each of which reads and writes the whole map.
    Specific to the backend: TensorFlow and PyTorch have one operation that does it all
    in training, and one for the gradients; XLA makes one itself. Where replicas share a
    batch, or weights are not float32, or one of the two is missing, it is Keras' own.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalize `inputs` `(B, H, W, C)`."""
        normalize = _AT_ONCE.get(keras.backend.backend())
        at_once = training and self.trainable and normalize and mask is None
        taken = self.variable_dtype == "float32" and self.center and self.scale
        if not (at_once and taken) or self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = map(ops.convert_to_tensor, (self.gamma, self.beta))
        outputs, *moments = normalize(inputs, gamma, beta, self.epsilon)
        for moving, now in zip((self.moving_mean, self.moving_variance), moments):
            moving.assign(moving * self.momentum + now * (1 - self.momentum))
        return outputs


def _by_tensorflow(x, gamma, beta, epsilon):
    """Returns `(outputs, mean, variance)`."""
    import tensorflow as tf

    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon
    )
    n = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
    return y, mean, variance * (1 - 1 / n)  # it has divided by n - 1


def _by_torch(x, gamma, beta, epsilon):
    """Returns `(outputs, mean, variance)`."""
    import torch

    y, mean, scale = torch.native_batch_norm(
        x.movedim(-1, 1), gamma, beta, None, None, True, 0.0, epsilon
    )
    return y.movedim(1, -1), mean, scale**-2 - epsilon


_AT_ONCE = {"tensorflow": _by_tensorflow, "torch": _by_torch}
