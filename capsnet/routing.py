"""Routing without the prediction vectors: its step, the gradient, weights to start from.

Letters as in `capsulelayers`.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
"""

import functools
import math

import keras
from keras import ops

from capsnet.numerics import TYPICAL_BATCH, full, on_cpu, total

ROUTING_BLOCK_BYTES = 2**22
"""Routing works on so many input capsules at a time that one array of B x J x I
numbers stays below this, for a batch of the typical size where it is not known."""

_MOST_PARTS = 16
"""Dimensions of input capsules that are routed one by one, at most."""


PRIMARY_LENGTH = 0.8
"""What input capsules are taken to be long at the start; see `PrimaryCap`."""

CAPSULE_LENGTH = 0.2
"""The same of those that come from a layer of capsules."""

TOTAL_INPUT = 0.5
"""Length of the total inputs that a layer of capsules starts with: squash leaves
`CAPSULE_LENGTH` of it."""


def kernel_initializer(J, I, O, positions, length, routings):
    """Weights that a layer of capsules starts well with, at any depth and of any size.

    Total inputs are made about `TOTAL_INPUT` long. Squash makes short ones shorter
    still, so that a few layers of them are dead; long ones saturate squash and routing.
    With a standard deviation of sigma, input capsules of length l give `sigma * l *
    sqrt(I * O) / J` in the first iteration. Of shared transformations the predictions
    from several positions may agree or not; their sum is taken to grow with the power
    3/4 of their number.

    Args:
        J: int. Output capsules.
        I: int. Input capsules at a position.
        O: int. Dimension of an output capsule.
        positions: int. Positions that share a transformation.
        length: float. What the input capsules are long.
        routings: int. Iterations.

    Returns:
        A truncated normal.
    """
    of_ones = math.sqrt(I * O) * positions**0.75 / J
    first = _first_total_input(J / O, routings)
    return keras.initializers.TruncatedNormal(stddev=first / length / of_ones)


def _first_total_input(ratio, routings):
    """What the first iteration should give for the last to give `TOTAL_INPUT`.

    To first order in the logits, random predictions that are weighed by their agreement
    with `V` add `J / O * first**2 * V` to the total input `first` of equal weights.

    Args:
        ratio: float, `J / O`.
        routings: int. Iterations.
    """
    first = TOTAL_INPUT
    while True:
        s, V = first, 0.0
        for _ in range(routings - 1):
            V += s**2 / (1 + s**2)
            s = first + ratio * first**2 * V
        if s <= TOTAL_INPUT:
            return first
        first *= 0.99


def maker(tensor):
    """Return the layer that a symbolic tensor comes from, None of another tensor.

    What has one input and no weights is passed over, such as dropout.
    """
    while hasattr(tensor, "_keras_history"):
        operation, node, _ = tensor._keras_history
        given = operation._inbound_nodes[node].input_tensors
        if getattr(operation, "weights", None) or len(given) != 1:
            return operation
        tensor = given[0]
    return None


def _sum_over_first(x):
    """`ops.sum(x, axis=0)` of `(J, B, I)` or `(D, J, B, I)`.

    As a product with ones on a CPU, where XLA takes 50 times as long for the sum;
    elsewhere products may be rounded to fewer bits.
    """
    if not on_cpu():
        return ops.sum(x, axis=0)
    ones = ops.ones((1, x.shape[0]), x.dtype)
    sums = ones @ ops.reshape(x, (x.shape[0], -1))
    return ops.reshape(sums, (*x.shape[1:-2], -1, x.shape[-1]))


def _softmax_over_first(x):
    """`ops.softmax(x, axis=0)` of `(J, B, I)`, for XLA on a CPU several times as fast."""
    largest = x
    while largest.shape[0] > 1:  # halves that overlap where their number is odd
        n = largest.shape[0]
        half = (n + 1) // 2
        largest = ops.maximum(largest[:half], largest[n - half :])
    exponentials = ops.exp(x - largest)
    return exponentials / _sum_over_first(exponentials)


def _transposed(x):
    return ops.swapaxes(x, -1, -2)


def _parts(u, W):
    """The dimensions of the input capsules one by one, or at once where they are many.

    One by one needs the least memory; a graph of hundreds takes too long to build.

    Returns:
        A list of pairs `(B, I)` and `(J, O, I)`, or of the one pair `(D, 1, B, I)` and
        `(D, J, O, I)`.
    """
    if u.shape[0] > _MOST_PARTS:
        return [(u[:, None], W)]
    return list(zip(ops.unstack(u), ops.unstack(W)))


def _sum_of_parts(parts):
    """Sum over the dimensions of the input capsules, in at least float32."""
    return total(
        full(part if len(part.shape) == 3 else _sum_over_first(part)) for part in parts
    )


def _coefficients(u, W, V):
    """The coupling coefficients `c`, `(J, B, I)`, of `_block_input`'s arguments."""
    V = ops.cast(V, u.dtype)
    b = _sum_of_parts((V @ W_d) * u_d for u_d, W_d in _parts(u, W))
    return _softmax_over_first(b)


def _block_input(u, W, V, routing_gradient):
    """The total input from one block, without the prediction vectors.

    The logits of dynamic routing are sums of agreements, so they are the agreement with
    the *sum* `V` of the outputs so far: `b_ij = u_hat_ij . V_j`. With them

        c_ij = softmax_j(b_ij)        s_j = sum_i c_ij u_hat_ij

    (Sabour et al. 2017, eq. 2 and 3). `u_hat_ij = W_ij u_i` appears only inside sums.
    Written for one input dimension d at a time these are matrix products with
    nothing larger than B x J x I:

        b = sum_d (V W_d) u_d         s = sum_d (c u_d) W_d^T

    The gradient is written out below in the same form, since automatic differentiation
    would keep the products of every d. It can be differentiated again.

    Args:
        u: `(D, B, I)` input capsules.
        W: `(D, J, O, I)` transformation matrices.
        V: `(J, B, O)` sum of the outputs of the iterations so far.
        routing_gradient: bool. Whether the coupling coefficients are differentiated.

    Returns:
        `s`, the total input, at least float32, of shape `(J, B, O)`.
    """

    @ops.custom_gradient
    def block_input(u, W, V):
        c = _coefficients(u, W, V)
        if not routing_gradient:
            c = ops.stop_gradient(c)
        low_c = ops.cast(c, u.dtype)
        s = _sum_of_parts((low_c * u_d) @ _transposed(W_d) for u_d, W_d in _parts(u, W))

        def gradient(*args, upstream=None):
            if upstream is None:
                return _gradient(u, W, V, c, args[0], routing_gradient)
            again = routing_gradient and _differentiated_again()
            of_args = _coefficients(*args) if again else c
            return _gradient(*args, of_args, upstream, routing_gradient)

        return s, gradient

    return block_input(u, W, V)


def _differentiated_again():
    """Whether the gradient that is being computed will itself be differentiated.

    Specific to PyTorch, where what is computed forward is a constant for the gradient
    of a gradient.
    """
    import torch

    return torch.is_grad_enabled()


def _gradient(u, W, V, c, ds, routing_gradient):
    """The gradients by `u`, `W` and `V` of `_block_input`, from `ds` `(J, B, O)`."""
    parts = _parts(u, W)
    low_c, low_ds, low_V = (ops.cast(x, u.dtype) for x in (c, ds, V))
    du, dW, dc, dV = [], [], [], []
    # The gradient of u_hat_ij is c_ij ds_j + db_ij V_j. What follows from the first
    # term:
    for u_d, W_d in parts:
        ds_W = low_ds @ W_d  # (J, B, I)
        du.append(_sum_over_outputs(ds_W * low_c))
        dW.append(_transposed(low_ds) @ (low_c * u_d))
        if routing_gradient:
            dc.append(ds_W * u_d)
    if routing_gradient:
        dc = _sum_of_parts(dc)
        db = ops.cast(c * (dc - _sum_over_first(c * dc)), u.dtype)  # (J, B, I)
        for d, (u_d, W_d) in enumerate(parts):  # and from the second
            db_u = db * u_d
            du[d] = du[d] + _sum_over_outputs((low_V @ W_d) * db)
            dW[d] = dW[d] + _transposed(low_V) @ db_u
            dV.append(db_u @ _transposed(W_d))
    dV = _sum_of_parts(dV) if routing_gradient else ops.zeros_like(V)
    if u.shape[0] > _MOST_PARTS:
        return du[0], dW[0], dV
    return ops.stack(du), ops.stack(dW), dV


def _sum_over_outputs(x):
    """Sum `(J, B, I)` or `(D, J, B, I)` over J."""
    return _sum_over_first(x) if len(x.shape) == 3 else ops.sum(x, axis=1)


def blocks(u, W):
    """Cut the input capsules into N blocks of i, which bound the memory of routing.

    Args:
        u: `(B, I, D)` input capsules.
        W: `(J, I, O, D)` transformation matrices.

    Returns:
        `(u_blocks, W_blocks)`, `(N, D, B, i)` and `(N, D, J, O, i)`.
    """
    J, I, O, D = W.shape
    batch = u.shape[0] if isinstance(u.shape[0], int) else TYPICAL_BATCH
    numbers = J * max(1, batch) * (1 if D <= _MOST_PARTS else D)
    size = max(1, ROUTING_BLOCK_BYTES // (4 * numbers))
    n = -(-I // size)
    size = -(-I // n)
    if n * size > I:  # capsules of zeros change no sum
        missing = (0, n * size - I)
        u = ops.pad(u, [(0, 0), missing, (0, 0)])
        W = ops.pad(W, [(0, 0), missing, (0, 0), (0, 0)])
    u = ops.reshape(u, (-1, n, size, D))
    W = ops.reshape(W, (J, n, size, O, D))
    return ops.transpose(u, (1, 3, 0, 2)), ops.transpose(W, (1, 4, 0, 3, 2))


def total_input(u_blocks, W_blocks, V, routing_gradient):
    """One routing step: the total inputs `s` that follow from the routing so far.

    The blocks come one after the other: that bounds the memory. Specific to the backend.
    XLA needs TensorFlow's loop to be bounded, which that of `ops.scan` is not. PyTorch
    needs no loop of its own, and in that of `ops.scan` the gradient of each block would
    be as large as all blocks.

    Args:
        u_blocks: `(N, D, B, i)`, see `blocks`.
        W_blocks: `(N, D, J, O, i)`.
        V: `(J, B, O)` sum of the outputs of the iterations so far.
        routing_gradient: bool. Whether the coupling coefficients are differentiated.

    Returns:
        `s`, at least float32, of shape `(J, B, O)`.
    """

    def add_block(s, block):
        return s + _block_input(*block, V, routing_gradient)

    s = ops.zeros_like(V)
    given = (u_blocks, W_blocks)
    if u_blocks.shape[0] == 1 or keras.backend.backend() == "torch":
        return functools.reduce(add_block, zip(*map(ops.unstack, given)), s)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.foldl(add_block, given, s, parallel_iterations=1)
    return ops.scan(lambda s, block: (add_block(s, block), None), s, given)[0]
