"""The routings by name: what differs between them, and what they start from.

All of them weigh the predictions `u_hat_ij = W_ij u_i` by coupling coefficients that
follow from their agreement with one vector `V_j` an output capsule:

    c_ij = normalize_j(u_hat_ij . V_j)        s_j = sum_i c_ij u_hat_ij

so that one step, `capsnet.routing`, serves all. Letters as in `capsulelayers`.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829, and the authors' code,
        https://github.com/Sarasra/models (research/capsules), for bias and leak.
    Mazzia, Salvetti, Chiaberge. Efficient-CapsNet: Capsule Network with Self-Attention
        Routing. Scientific Reports 2021. https://arxiv.org/abs/2101.12491
    Zhao, Kleyko, Frady, Osipov, Sommer, Rozell. Capsule Networks with Max-Min
        Normalization. 2019. https://arxiv.org/abs/1903.09662
    Gu, Tresp. Improving the Robustness of Capsule Networks to Image Affine
        Transformations. CVPR 2020. https://arxiv.org/abs/1911.07968
    Tsai, Srivastava, Goh, Salakhutdinov. Capsules with Inverted Dot-Product Attention
        Routing. ICLR 2020. https://arxiv.org/abs/2002.04764
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from capsnet.numerics import larger, sum_over_first


def _largest_over_first(x):
    """`ops.max(x, axis=0, keepdims=True)`, for XLA on a CPU several times as fast."""
    while x.shape[0] > 1:  # halves that overlap where their number is odd
        n = x.shape[0]
        half = (n + 1) // 2
        x = larger(x[:half], x[n - half :])
    return x


def softmax(b):
    """Normalize logits over the output capsules by the softmax.

    Args:
        b: `(J, B, I)` logits.

    Returns:
        `(c, pull)`: the coupling coefficients, and the function from their gradient to
        that of `b`, which can itself be differentiated.
    """
    return _softmax(b, _largest_over_first(b), leak=0.0)


def leaky_softmax(b):
    """As `softmax`, with one more logit of zero, for what is sent nowhere."""
    largest = ops.relu(_largest_over_first(b))
    return _softmax(b, largest, leak=ops.exp(-largest))


def _softmax(b, largest, leak):
    exponentials = ops.exp(b - largest)
    c = exponentials / (sum_over_first(exponentials) + leak)
    return c, lambda dc: c * (dc - sum_over_first(c * dc))


ROUNDING = 1e-5
"""How near to the largest and the smallest a coefficient of `max_min` counts as it."""


def max_min(b):
    """As `softmax`, by the distance from the smallest logit to the largest.

    The coefficients go from 0 to 1; logits that are all equal give 1.
    """
    largest, smallest = _largest_over_first(b), -_largest_over_first(-b)
    spread = largest - smallest
    equal = ops.cast(spread == 0, b.dtype)
    spread = spread + equal
    c = (b - smallest) / spread + equal

    def pull(dc):
        # Not `c == 1`: XLA computes `c` anew in each place, and rounds it differently.
        of_largest = _share(c > 1 - ROUNDING, sum_over_first(dc * c))
        of_smallest = _share(c < ROUNDING, sum_over_first(dc * (1 - c)))
        return (1.0 - equal) * (dc - of_largest - of_smallest) / spread

    return c, pull


def _share(chosen, x):
    """Share `x`, `(1, B, I)`, among what was chosen of `(J, B, I)`."""
    chosen = ops.cast(chosen, x.dtype)
    return chosen * x / ops.maximum(sum_over_first(chosen), 1.0)


class Rule(NamedTuple):
    """What a routing has of its own."""

    normalize: Callable = softmax
    """From logits `(J, B, i)` to coefficients, see `softmax`. They are of one block of the
    input capsules, with some of zeros at its end: the last axis is not to be looked along."""
    start: Callable | None = None
    """From the sum of all predictions, `(J, B, O)`, to the first `V`; without it the
    first iteration has equal coefficients."""
    agree: Callable = lambda V, v: v if V is None else V + v
    """The next `V`, from the last and the output of an iteration."""
    equal: Callable = lambda J: 1.0 / J
    """Coupling coefficients where no logits are, of `J` output capsules."""
    typical: Callable = lambda J: 1.0 / J
    """What coefficients are about at the start, in the last iteration."""
    squash: str = "squash"
    """The default of `CapsuleLayer`'s `squash`."""
    layer_norm: bool = False
    """Whether the total inputs are normalized before predictions are compared with them:
    then `agree` gets these, not the output."""
    routings: int = 3
    """Iterations by default."""
    most: int | None = None
    """Iterations at most."""
    coupling_bias: bool = False
    """Whether a learned number is added to each coupling coefficient that follows from
    logits: with `start` to all of them."""
    use_bias: bool = False
    """Whether `CapsuleLayer`'s `use_bias` may be set."""
    leaky: object = None
    """The `Rule` where its `leaky` is set, if that may be."""


def _scaled_by_dimension(vectors):
    return vectors / math.sqrt(vectors.shape[-1])


LEAKY = Rule(
    normalize=leaky_softmax,
    equal=lambda J: 1.0 / (J + 1),
    typical=lambda J: 1.1 / (J + 1),
    use_bias=True,
)
"""Dynamic routing in which an input capsule may send nothing."""

RULES = {
    # Logits are sums of agreements, so the agreement with the sum of the outputs.
    "dynamic": Rule(use_bias=True, leaky=LEAKY),
    "attention": Rule(
        start=_scaled_by_dimension,
        coupling_bias=True,
        squash="exponential",
        routings=1,
        most=1,
    ),
    "max_min": Rule(
        normalize=max_min,
        equal=lambda J: 1.0,
        typical=lambda J: 0.8,
        use_bias=True,
    ),
    "none": Rule(routings=1, most=1, use_bias=True),
    "inverted": Rule(
        agree=lambda V, v: _scaled_by_dimension(v),
        squash="layer_norm",
        layer_norm=True,
        routings=2,
    ),
}
"""What `CapsuleLayer`'s `routing` may be."""


def rule(name, routings=None, **options):
    """Find a routing and check that it has what is asked of it.

    Args:
        name: str. One of `RULES`.
        routings: int, optional. Iterations. Defaults to the routing's own.
        **options: bool, `use_bias` and `leaky`.

    Returns:
        A `Rule`, whose `routings` is the number of iterations.

    Raises:
        ValueError: if there is no such routing, or it has no such option.
    """
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"routing {name!r:.50}: there are {', '.join(RULES)}")
    found = RULES[name]
    for option, asked in options.items():
        if asked and not getattr(found, option):
            having = [n for n, r in RULES.items() if getattr(r, option)]
            raise ValueError(
                f"routing {name!r} has no {option}; {', '.join(having)} has"
            )
    if options.get("leaky"):
        found = found.leaky
    routings = found.routings if routings is None else routings
    if not isinstance(routings, (int, np.integer)) or routings < 1:
        raise ValueError(f"routings must be an integer above 0, not {routings!r:.50}")
    if found.most and routings > found.most:
        raise ValueError(
            f"routing {name!r} takes {found.most} iteration, not routings={routings}"
        )
    return found._replace(routings=routings)


PRIMARY_LENGTH = 0.7
"""What input capsules are taken to be long at the start; see `PrimaryCap`."""


def total_input(J):
    """Length of the total inputs that a layer of J capsules starts with.

    At 0.8 squash makes an eighth of what is a tenth too short, so that errors of the
    estimate grow little from layer to layer. Many capsules start shorter: most of them are
    to be short in the end, and where all are long the loss drives all to zero.
    """
    return 0.8 * min(1.0, math.sqrt(16 / J))


def kernel_initializer(J, I, O, positions, length, how):
    """Weights that a layer of capsules starts well with, at any depth and of any size.

    Total inputs are to be `total_input(J)` long, and are somewhat shorter, since a normal
    that is truncated deviates by 0.88 of what it is given. Squash makes short ones shorter
    still, so that a few layers of them are dead; long ones saturate squash and routing.
    With a standard deviation of sigma, input capsules of length l give `sigma * l * c *
    sqrt(I * O)` where all coupling coefficients are c. Of shared transformations the
    predictions from several positions may agree or not; their sum is taken to grow with
    the power 3/4 of their number.

    Args:
        J: int. Output capsules.
        I: int. Input capsules at a position.
        O: int. Dimension of an output capsule.
        positions: int. Positions that share a transformation.
        length: float. What the input capsules are long.
        how: `Rule`.

    Returns:
        A truncated normal.
    """
    of_ones = math.sqrt(I * O) * positions**0.75 * how.typical(J)
    first = _first_total_input(total_input(J), J / O, how.routings)
    return keras.initializers.TruncatedNormal(stddev=first / length / of_ones)


def _first_total_input(last, ratio, routings):
    """What the first iteration should give for the last to give `last`.

    To first order in the logits, random predictions that are weighed by their agreement
    with `V` add `J / O * first**2 * V` to the total input `first` of equal weights.

    Args:
        last: float.
        ratio: float, `J / O`.
        routings: int. Iterations.
    """
    first = last
    while True:
        s, V = first, 0.0
        for _ in range(routings - 1):
            V += s**2 / (1 + s**2)
            s = first + ratio * first**2 * V
        if s <= last:
            return first
        first *= 0.99


def typical_length(squash, J, O):
    """What the capsules of a layer with that squash are long at the start."""
    if squash == "layer_norm":
        return math.sqrt(O)
    s = total_input(J)
    return 1 - math.exp(-s) if squash == "exponential" else s**2 / (1 + s**2)


def check_capsules(shape, shared):
    """Raise a `ValueError` unless a shape is of input capsules, all but the batch known."""
    fits = len(shape) > 3 if shared else len(shape) == 3
    if not fits or not all(shape[1:]):
        positions = "positions, channels" if shared else "input_num_capsule"
        raise ValueError(
            f"CapsuleLayer with shared={shared} takes (batch, {positions}, "
            f"input_dim_capsule) with known sizes, not {tuple(shape)}"
        )


def check_shape(shape, built_for):
    """Raise a `ValueError` unless a shape is what a layer was built for, but the batch."""
    if tuple(shape[1:]) != tuple(built_for[1:]):
        raise ValueError(f"the layer was built for {built_for}, not {tuple(shape)}")


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
