"""Routing without the prediction vectors: iterations, their step, and its gradient.

One step serves all routings; `capsnet.rules` has what differs. Letters as in
`capsulelayers`.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
"""

import functools
import math

import keras
from keras import ops

from capsnet.numerics import (
    TYPICAL_BATCH,
    full,
    mean,
    sum_over_first,
    with_gradient,
)

ROUTING_BLOCK_BYTES = 2**22
"""Routing works on so many input capsules at a time that one array of B x J x I
numbers stays below this, for a batch of the typical size where it is not known."""

_MOST_PARTS = 16
"""Dimensions of input capsules that are routed one by one, at most."""


LAYER_NORM_EPSILON = 1e-5
"""Added to a variance under the square root, as PyTorch does and so Tsai et al."""


def iterations(given, rule, squash, routing_gradient):
    """Route: procedure 1 of Sabour et al. 2017, and what other routings make of it.

    Args:
        given: dict of tensors: `u`, the input capsules, and the weights of a
            `CapsuleLayer` by their names, `W` and what others the routing has.
        rule: `capsnet.rules.Rule`.
        squash: function of total inputs, `(J, B, O)`; or `"layer_norm"`.
        routing_gradient: bool. Whether the coupling coefficients are differentiated.

    Returns:
        `(votes, steps)`: `Votes`, and a generator of `(V, v)` for each iteration, both
        `(J, B, O)`: what the predictions were compared with, None in a first iteration
        with equal coefficients; and the outputs.
    """
    of_votes = (given["u"], given["W"], given.get("coupling_bias"))
    votes = Votes(*of_votes, rule.normalize, routing_gradient)

    def steps():
        V = rule.start(votes.sum(routing_gradient)) if rule.start else None
        for iteration in range(rule.routings):
            through = routing_gradient or iteration == rule.routings - 1
            if V is None:
                s = votes.sum(through) * rule.equal(given["W"].shape[0])
            else:
                s = votes.weighted(V, through)
            if "bias" in given:
                s = s + full(given["bias"])[:, None]
            normal = _layer_norm(s, given) if rule.layer_norm else None
            v = normal if squash == "layer_norm" else squash(s)
            yield V, v
            V = rule.agree(V, v if normal is None else normal)

    return votes, steps()


def _layer_norm(s, given):
    centred = s - mean(s)
    normal = centred * ops.rsqrt(mean(ops.square(centred)) + LAYER_NORM_EPSILON)
    return normal * full(given["gamma"]) + full(given["beta"])


def _transposed(x):
    axes = range(len(x.shape))  # by `transpose`, which torch.func.vmap knows
    return ops.transpose(x, (*axes[:-2], axes[-1], axes[-2]))


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
    """Sum over the dimensions of input capsules, one by one in at least float32."""
    full_parts = (full(p if len(p.shape) == 3 else sum_over_first(p)) for p in parts)
    return functools.reduce(ops.add, full_parts)  # without the zero of `sum`


def _coefficients(normalize, routing_gradient, u, W, V, beta=None):
    """The coupling coefficients, `(J, B, I)`, of `_block_input`'s arguments.

    Returns:
        `(c, pull)`, see `capsnet.rules.softmax`.
    """
    V = ops.cast(V, u.dtype)
    b = _sum_of_parts((V @ W_d) * u_d for u_d, W_d in _parts(u, W))
    c, pull = normalize(b)
    c = c if routing_gradient else ops.stop_gradient(c)
    return (c if beta is None else c + full(beta)[:, None]), pull


def _block_input(normalize, routing_gradient, u, W, V, beta=None):
    """The total input from one block, without the prediction vectors.

    The coupling coefficients follow from the agreement of the predictions with one
    vector an output capsule, which for dynamic routing is the *sum* of the outputs so
    far, since its logits are sums of agreements: `b_ij = u_hat_ij . V_j`. With them

        c_ij = normalize_j(b_ij) [+ beta_ij]        s_j = sum_i c_ij u_hat_ij

    (Sabour et al. 2017, eq. 2 and 3). `u_hat_ij = W_ij u_i` appears only inside sums.
    Written for one input dimension d at a time these are matrix products with
    nothing larger than B x J x I:

        b = sum_d (V W_d) u_d         s = sum_d (c u_d) W_d^T

    The gradient is written out below in the same form, since automatic differentiation
    would keep the products of every d. It can be differentiated again.

    Args:
        normalize: function of the logits, see `capsnet.rules.softmax`.
        routing_gradient: bool. Whether the coupling coefficients are differentiated.
        u: `(D, B, I)` input capsules.
        W: `(D, J, O, I)` transformation matrices.
        V: `(J, B, O)` what the predictions are compared with.
        beta: `(J, I)`, added to the coefficients. Optional.

    Returns:
        `s`, the total input, at least float32, of shape `(J, B, O)`.
    """

    @with_gradient
    def block_input(*args):
        u, W = args[:2]
        c, pull = _coefficients(normalize, routing_gradient, *args)
        low_c = ops.cast(c, u.dtype)
        s = _sum_of_parts((low_c * u_d) @ _transposed(W_d) for u_d, W_d in _parts(u, W))

        def gradient(*given, upstream=None):
            if upstream is None:
                return _gradient(args, c, pull, given[0], routing_gradient)
            again = routing_gradient and _differentiated_again()
            of_given = _coefficients(normalize, True, *given) if again else (c, pull)
            return _gradient(given, *of_given, upstream, routing_gradient)

        return s, gradient

    return block_input(u, W, V, *([] if beta is None else [beta]))


def _differentiated_again():
    """Whether the gradient that is being computed will itself be differentiated.

    Specific to PyTorch, where what is computed forward is a constant for the gradient
    of a gradient.
    """
    import torch

    return torch.is_grad_enabled()


def _gradient(args, c, pull, ds, routing_gradient):
    """The gradients by `_block_input`'s tensors `args`, from `ds` `(J, B, O)`."""
    u, W, V, *beta = args
    parts = _parts(u, W)
    low_c, low_ds, low_V = (ops.cast(x, u.dtype) for x in (c, ds, V))
    du, dW, dc, dV = [], [], [], []
    # The gradient of u_hat_ij is c_ij ds_j + db_ij V_j. What follows from the first
    # term:
    for u_d, W_d in parts:
        ds_W = low_ds @ W_d  # (J, B, I)
        du.append(_sum_over_outputs(ds_W * low_c))
        dW.append(_transposed(low_ds) @ (low_c * u_d))
        if routing_gradient or beta:
            dc.append(ds_W * u_d)
    dc = _sum_of_parts(dc) if dc else None
    if routing_gradient:
        db = ops.cast(pull(dc), u.dtype)  # (J, B, I)
        for d, (u_d, W_d) in enumerate(parts):  # and from the second
            db_u = db * u_d
            du[d] = du[d] + _sum_over_outputs((low_V @ W_d) * db)
            dW[d] = dW[d] + _transposed(low_V) @ db_u
            dV.append(db_u @ _transposed(W_d))
    dV = _sum_of_parts(dV) if routing_gradient else ops.zeros_like(V)
    dbeta = [ops.cast(ops.sum(dc, axis=1), b.dtype) for b in beta]
    if u.shape[0] > _MOST_PARTS:
        return du[0], dW[0], dV, *dbeta
    return ops.stack(du), ops.stack(dW), dV, *dbeta


def _sum_over_outputs(x):
    """Sum `(J, B, I)` or `(D, J, B, I)` over J."""
    return sum_over_first(x) if len(x.shape) == 3 else ops.sum(x, axis=1)


class Votes:
    """The predictions of input capsules for output capsules, of which sums are known.

    Args:
        u: input capsules, `(B, I, D)`, or `(B, ..., C, D)` with one transformation for
            each of C channels at all positions.
        W: transformation matrices, `(J, I, O, D)` or `(J, C, O, D)`.
        beta: `(J, I)` or `(J, C)`, added to the coupling coefficients, or None.
        normalize: function of the logits, see `capsnet.rules.softmax`.
        routing_gradient: bool. Whether the coupling coefficients are differentiated.
    """

    def __init__(self, u, W, beta, normalize, routing_gradient):
        summed = u
        if len(u.shape) > 3:  # (B, P, C, D), where I is P * C
            u = ops.reshape(u, (-1, math.prod(u.shape[1:-2]), *u.shape[-2:]))
            summed = ops.sum(u, axis=1)
        self._first = (summed, W)
        self._all = (u, W, beta)
        self._normalize = normalize
        self._routing_gradient = routing_gradient
        self._blocks = None

    def sum(self, through):
        """Return the sum of all predictions, `(J, B, O)`.

        Args:
            through: bool. Whether it has a gradient.
        """
        given = self._first if through else map(ops.stop_gradient, self._first)
        return full(ops.einsum("bid,jiod->jbo", *given))

    def weighted(self, V, through):
        """Return the sum of the predictions weighed by their agreement with `V`.

        The blocks come one after the other: that bounds the memory. Specific to the
        backend. XLA needs TensorFlow's loop to be bounded, which that of `ops.scan` is
        not. PyTorch needs no loop of its own, and in that of `ops.scan` the gradient of
        each block would be as large as all blocks.

        Args:
            V: `(J, B, O)` what the predictions are compared with.
            through: bool. Whether it has a gradient.
        """
        given = self._in_blocks()
        if not through:
            given = tuple(map(ops.stop_gradient, given))

        def add_block(s, block):
            u, W, *beta = block
            how = (self._normalize, self._routing_gradient)
            return s + _block_input(*how, u, W, V, *beta)

        s = ops.zeros_like(V)
        if given[0].shape[0] == 1 or keras.backend.backend() == "torch":
            return functools.reduce(add_block, zip(*map(ops.unstack, given)), s)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.foldl(add_block, given, s, parallel_iterations=1)
        return ops.scan(lambda s, block: (add_block(s, block), None), s, given)[0]

    def coefficients(self, V, equal):
        """Return the coupling coefficients, `(J, B, I)`.

        Args:
            V: `(J, B, O)` what the predictions are compared with, or None.
            equal: float. What they all are where it is None.
        """
        if V is None:
            u, W, _ = self._all
            return equal * ops.ones(
                (W.shape[0], ops.shape(u)[0], self.number), full(u).dtype
            )
        found = [
            _coefficients(self._normalize, True, u, W, V, *beta)[0]
            for u, W, *beta in zip(*map(ops.unstack, self._in_blocks()))
        ]
        return ops.concatenate(found, axis=-1)[..., : self.number]

    @property
    def number(self):
        """Input capsules."""
        return math.prod(self._all[0].shape[1:-1])

    def _in_blocks(self):
        if self._blocks is None:
            u, W, beta = self._all
            if len(u.shape) == 4:
                P = u.shape[1]
                u = ops.reshape(u, (-1, self.number, u.shape[-1]))
                W = _repeated(W, P)
                beta = None if beta is None else _repeated(beta, P)
            self._blocks = blocks(u, W, beta)
        return self._blocks


def _repeated(x, positions):
    """A transformation `(J, C, ...)` for each of P positions, `(J, P * C, ...)`."""
    J, C, *rest = x.shape
    return ops.reshape(
        ops.broadcast_to(x[:, None], (J, positions, C, *rest)), (J, -1, *rest)
    )


def blocks(u, W, beta=None):
    """Cut the input capsules into N blocks of i, which bound the memory of routing.

    Args:
        u: `(B, I, D)` input capsules.
        W: `(J, I, O, D)` transformation matrices.
        beta: `(J, I)`, added to the coupling coefficients. Optional.

    Returns:
        `(u_blocks, W_blocks)`, `(N, D, B, i)` and `(N, D, J, O, i)`, and with `beta` a
        third, `(N, J, i)`.
    """
    J, I, O, D = W.shape
    batch = u.shape[0] if isinstance(u.shape[0], int) else TYPICAL_BATCH
    numbers = J * max(1, batch) * (1 if D <= _MOST_PARTS else D)
    size = max(1, ROUTING_BLOCK_BYTES // (4 * numbers))
    n = -(-I // size)
    size = -(-I // n)
    missing = (0, n * size - I)
    if n * size > I:  # capsules of zeros change no sum
        u = ops.pad(u, [(0, 0), missing, (0, 0)])
        W = ops.pad(W, [(0, 0), missing, (0, 0), (0, 0)])
    u = ops.reshape(u, (-1, n, size, D))
    W = ops.reshape(W, (J, n, size, O, D))
    cut = ops.transpose(u, (1, 3, 0, 2)), ops.transpose(W, (1, 4, 0, 3, 2))
    if beta is None:
        return cut
    beta = ops.reshape(ops.pad(beta, [(0, 0), missing]), (J, n, size))
    return *cut, ops.transpose(beta, (1, 0, 2))
