"""Squashes: what makes the length of a capsule a probability.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
    Mazzia, Salvetti, Chiaberge. Efficient-CapsNet: Capsule Network with Self-Attention
        Routing. Scientific Reports 2021. https://arxiv.org/abs/2101.12491
"""

import keras
from keras import ops

from capsnet.numerics import as_float, scaled

EPSILON = 1e-7
"""Added to a squared length under the square root, so that the zero vector has a
gradient."""


@keras.saving.register_keras_serializable(package="capsnet")
def squash(vectors, axis=-1):
    """Shrink vectors to lengths below one, keeping their direction.

    `squash(s) = |s|^2 / (1 + |s|^2) * s / |s|` (Sabour et al. 2017, eq. 1). The zero
    vector gives zero, in value and in gradient. Finite vectors of any length give
    finite ones; half precision is computed in float32.

    Args:
        vectors: float tensor of any shape.
        axis: int. The axis that holds a vector's components. Defaults to -1.

    Returns:
        A tensor of the shape and the dtype of `vectors`.
    """
    vectors = as_float(vectors)
    small, scale = scaled(vectors, axis)
    squared = ops.sum(ops.square(small), axis=axis, keepdims=True)
    unit = ops.square(1.0 / scale)  # what 1 is, in the scaled units
    factor = squared / (unit + squared) / ops.sqrt(squared + EPSILON * unit)
    return ops.cast(small * factor, vectors.dtype)


@keras.saving.register_keras_serializable(package="capsnet")
def exponential_squash(vectors, axis=-1):
    """As `squash`, to lengths of `1 - exp(-|s|)` (Mazzia et al. 2021, eq. 4).

    Short vectors keep their length.
    """
    vectors = as_float(vectors)
    small, scale = scaled(vectors, axis)
    squared = ops.sum(ops.square(small), axis=axis, keepdims=True)
    length = ops.sqrt(squared + EPSILON * ops.square(1.0 / scale))  # in scaled units
    if keras.backend.standardize_dtype(length.dtype) == "float64":  # JAX's tanh rounds
        squashed = 1 - ops.exp(-length * scale)
    else:  # the same for short vectors too: ONNX knows no expm1
        half = ops.tanh(length * scale / 2)
        squashed = 2 * half / (1 + half)
    factor = squashed / length
    return ops.cast(small * factor, vectors.dtype)


SQUASHES = {"squash": squash, "exponential": exponential_squash}
"""What a squash may be called."""
