"""What the layers compute with: devices, types, and sums."""

import contextlib

import keras
from keras import ops

TYPICAL_BATCH = 100
"""The batch size that costs are reckoned for where a graph leaves it open."""


def on_cpu():
    """Whether new tensors are placed on a CPU, on any backend.

    Specific to the backend: where a graph is being traced, tensors of JAX and
    TensorFlow do not tell, and one has to be made outside of it.
    """
    outside = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        outside = jax.ensure_compile_time_eval()
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        outside = tf.init_scope()
    with outside:
        return "cpu" in str(ops.convert_to_tensor(0.0).device).lower()


def replicas(batch=None):
    """Return how many devices a batch is shared out to by `keras.distribution`.

    XLA sums gradients over the devices as soon as it can, be they larger than the
    weight's own or in many pieces. Where each device works with a copy of the weight,
    along an axis of its own, there is one sum, that of the weight's gradient. A batch
    that the devices can't share equally is left to XLA.

    Args:
        batch: int, optional. The size of a batch, if it is known.
    """
    distribution = keras.distribution.distribution()
    devices = distribution.num_model_replicas if distribution else 1
    return 1 if isinstance(batch, int) and batch % devices else devices


def mirrors():
    """Return how many copies of a model TensorFlow trains, each on its part of a batch.

    Specific to the backend.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def full_dtype(dtype=None):
    """The type that is computed in where half precision does not do.

    Args:
        dtype: the type of the half or full precision. Defaults to that of Keras'
            global policy.

    Returns:
        `"float32"`, or `"float64"` where `dtype` is that.
    """
    dtype = dtype or keras.config.dtype_policy().compute_dtype
    return (
        "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
    )


def full(x):
    """Return `x` in the type of `full_dtype`."""
    return ops.cast(x, full_dtype(x.dtype))


def sized(x, shape):
    """Give `x` the sizes of `shape` but the batch, where a graph of TensorFlow lost them."""
    return ops.reshape(x, (-1, *shape[1:])) if None in x.shape[1:] else x


def as_float(x):
    """`x` as a tensor; integers become float32."""
    x = ops.convert_to_tensor(x)
    return x if keras.backend.is_float_dtype(x.dtype) else full(x)


def with_gradient(function):
    """`ops.custom_gradient`: a function that returns its gradient besides.

    Specific to PyTorch: its transforms (`torch.func.vmap`, `grad`, `jacrev`) take no such
    functions of Keras', and under them the gradient is the automatic one.
    """
    if keras.backend.backend() == "torch":
        import torch

        if torch._C._are_functorch_transforms_active():
            return lambda *args: function(*args)[0]
    return ops.custom_gradient(function)


def mean(x):
    """The mean over the last axis, kept; Keras' rounds float64 with JAX and PyTorch."""
    return ops.sum(x, axis=-1, keepdims=True) / x.shape[-1]


def larger(a, b):
    """`ops.maximum` of two tensors; Keras' rounds float64 to float32 with PyTorch."""
    if keras.backend.standardize_dtype(a.dtype) == "float64":
        return ops.where(a >= b, a, b)
    return ops.maximum(a, b)


def one_each(numbers, capsules):
    """Return `numbers`, of which there has to be one for each of the `capsules`.

    Else they would be broadcast, without an error.
    """
    given, wanted = tuple(numbers.shape), tuple(capsules.shape[:-1])
    if not may_be_equal(given, wanted):
        raise ValueError(f"a mask or labels of shape {given} for capsules {wanted}")
    return numbers


def may_be_equal(shape, other):
    """Whether two shapes are of as many axes, and no size that is known differs."""
    known = (pair for pair in zip(shape, other) if None not in pair)
    return len(shape) == len(other) and all(a == b for a, b in known)


def part(x, axis, start, size):
    """`size` entries of `axis`, from `start` on.

    As an index, `x[start : start + size]`, the gradient took TensorFlow on a CPU ten
    times as long.
    """
    edges = [e for e in (start, start + size) if 0 < e < x.shape[axis]]
    return ops.split(x, edges, axis)[1 if start else 0] if edges else x


def sum_over_first(x):
    """`ops.sum(x, axis=0)` of `(J, B, I)` or `(D, J, B, I)`.

    As a product with ones on a CPU, where XLA takes 50 times as long for the sum;
    elsewhere products may be rounded to fewer bits.
    """
    if not on_cpu():
        return ops.sum(x, axis=0)
    ones = ops.ones((1, x.shape[0]), x.dtype)
    sums = ones @ ops.reshape(x, (x.shape[0], -1))
    return ops.reshape(sums, (*x.shape[1:-2], -1, x.shape[-1]))


def scaled(vectors, axis):
    """Scale vectors so that the squares of their components do not overflow.

    Returns:
        `(scaled, scale)`: `vectors / scale`, whose components are below 1, in at least
        float32; and `scale`, at least 1. The gradient takes it for a constant, since
        what is computed from both does not depend on it.
    """
    vectors = full(vectors)
    sizes = ops.abs(ops.stop_gradient(vectors))
    scale = 1.0 + ops.max(sizes, axis=axis, keepdims=True, initial=0)
    return vectors / scale, scale
