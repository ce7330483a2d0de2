"""Pictures that show several classes at once: which they are.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017, section 6: two
        overlapped digits, told apart and each drawn alone.
        https://arxiv.org/abs/1710.09829
"""

import keras
from keras import ops

from capsnet.numerics import may_be_equal

LONG = 0.5
"""Length from which a class capsule says that its class is there, where their number is
not known: halfway between the two lengths that the margin loss asks for."""


ONE_HOT = (
    "they must be zeros and ones (n, n_class), as keras.utils.to_categorical makes of "
    "integers"
)
"""What labels have to be, for errors."""

COUNTS = {"one": 1, "two": 2, "several": None}
"""How many classes each picture shows, see `capsnet.data.shown`."""


def like(y, lengths):
    """Return labels, whose shape has to be that of the lengths `(n, n_class)`.

    Else they would be broadcast, and trained on without an error.
    """
    if not may_be_equal(y.shape, lengths.shape):
        raise ValueError(
            f"labels of shape {tuple(y.shape)} for lengths {tuple(lengths.shape)}: "
            f"{ONE_HOT}"
        )
    return y


def present(lengths, shown):
    """Tell which classes pictures show.

    Args:
        lengths: tensor or array `(n, n_class)`, lengths of the class capsules.
        shown: str, of `COUNTS`: the longest one or two, or all that are at least `LONG`.

    Returns:
        A boolean tensor `(n, n_class)`.
    """
    lengths, count = ops.convert_to_tensor(lengths), COUNTS[shown]
    if count is None:
        return lengths >= LONG
    longest = ops.top_k(lengths, count)[1]  # of equal ones the first, as argmax
    return ops.sum(ops.one_hot(longest, lengths.shape[-1]), axis=1) > 0


def right(y, lengths, shown):
    """Tell of which pictures exactly the classes are told that they show.

    Args:
        y: tensor or array `(n, n_class)`, with 1 for each class that a picture shows.
        lengths: see `present`.
        shown: likewise.

    Returns:
        A boolean tensor `(n,)`.
    """
    same = ops.equal(present(lengths, shown), ops.convert_to_tensor(y) > 0.5)
    return ops.all(same, axis=-1)


@keras.saving.register_keras_serializable(package="capsnet")
class ExactSet(keras.metrics.MeanMetricWrapper):
    """The share of pictures of which exactly the classes are told that they show.

    Args:
        shown: see `present`. Defaults to `"several"`.
        name: str. Defaults to `"accuracy"`.
        dtype: see `keras.metrics.Metric`.
    """

    def __init__(self, shown="several", name="accuracy", dtype=None):
        super().__init__(
            lambda y, lengths: ops.cast(right(y, lengths, shown), "float32"),
            name,
            dtype,
        )
        self.shown = shown

    def get_config(self):
        """Return the arguments of the constructor."""
        return {"shown": self.shown, "name": self.name, "dtype": self.dtype}
