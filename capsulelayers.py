"""The layers of a capsule network, for Keras 3 on any backend.

Shape comments use one set of letters: `B` batch, `I` input capsules, `D` dimension of
an input capsule, `J` output capsules, `O` dimension of an output capsule. The
mathematics keeps the paper's names: `u` input capsules, `u_hat` prediction vectors,
`b` routing logits, `c` coupling coefficients, `s` total input, `v` output capsules.

To be copied into another project with four files of `capsnet`, see `docs/layers.md`;
they need Keras and NumPy alone.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
    Gu, Tresp. Improving the Robustness of Capsule Networks to Image Affine
        Transformations. CVPR 2020. https://arxiv.org/abs/1911.07968
"""

import math

import keras
import numpy as np
from keras import ops

from capsnet import routing
from capsnet.numerics import as_float, full, full_dtype, on_cpu, replicas  # noqa: F401
from capsnet.routing import ROUTING_BLOCK_BYTES  # noqa: F401
from capsnet.spectral import CONV_FORMS, SpectralConv2D  # noqa: F401

EPSILON = 1e-7
"""Added to a squared length under the square root, so that the zero vector has a
gradient."""


def _scaled(vectors, axis):
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
    scaled, scale = _scaled(vectors, axis)
    squared = ops.sum(ops.square(scaled), axis=axis, keepdims=True)
    unit = ops.square(1.0 / scale)  # what 1 is, in the scaled units
    factor = squared / (unit + squared) / ops.sqrt(squared + EPSILON * unit)
    return ops.cast(scaled * factor, vectors.dtype)


@keras.saving.register_keras_serializable(package="capsnet")
class Squash(keras.layers.Layer):
    """The function `squash` as a layer, over the last axis."""

    supports_masking = True

    def call(self, inputs):
        """Squash `inputs`, a tensor of any shape."""
        return squash(inputs)

    def compute_output_shape(self, input_shape):
        """Return `input_shape`."""
        return input_shape


@keras.saving.register_keras_serializable(package="capsnet")
class Length(keras.layers.Layer):
    """The lengths of capsules: `(batch, num_capsule, dim)` to `(batch, num_capsule)`.

    The length of a class capsule is the probability that its class is present
    (Sabour et al. 2017, section 3).
    """

    supports_masking = True

    def call(self, inputs):
        """Return the Euclidean length over the last axis of `inputs`."""
        inputs = as_float(inputs)
        scaled, scale = _scaled(inputs, -1)
        squared = ops.sum(ops.square(scaled), axis=-1)
        scale = ops.squeeze(scale, -1)
        lengths = scale * ops.sqrt(squared + EPSILON * ops.square(1.0 / scale))
        return ops.cast(lengths, inputs.dtype)

    def compute_mask(self, inputs, mask=None):
        """Return None: a loss would take a mask for one of its examples."""

    def compute_output_shape(self, input_shape):
        """Return `input_shape` without its last axis."""
        return tuple(input_shape[:-1])


@keras.saving.register_keras_serializable(package="capsnet")
class Mask(keras.layers.Layer):
    """Keep one capsule of each example, set the others to zero and flatten.

    Called on `x` of shape `(batch, num_capsule, dim)` it keeps the longest capsule, the
    first one at a tie. Called on `[x, y]` it multiplies the capsules by `y` of shape
    `(batch, num_capsule)`, which need not be one-hot. Either way it returns
    `(batch, num_capsule * dim)`, the decoder's input (Sabour et al. 2017, section 4.1).
    """

    def call(self, inputs):
        """Mask `x` by its longest capsule, or `[x, y]` by `y`."""
        if isinstance(inputs, (list, tuple)):
            capsules, mask = inputs
        else:
            capsules = inputs
            squared = ops.sum(ops.square(full(capsules)), axis=-1)
            longest = squared >= ops.max(squared, axis=-1, keepdims=True)
            # Of integers: of floats TensorFlow's takes operations on bits, which neither
            # ONNX nor LiteRT has.
            first = ops.argmax(ops.cast(longest, "int32"), axis=-1)
            mask = ops.one_hot(first, capsules.shape[1])
        masked = capsules * ops.expand_dims(ops.cast(mask, capsules.dtype), -1)
        return ops.reshape(masked, (-1, capsules.shape[1] * capsules.shape[2]))

    def compute_output_shape(self, input_shape):
        """Return `(batch, num_capsule * dim)`."""
        if isinstance(input_shape[0], (list, tuple)):
            input_shape = input_shape[0]
        return (input_shape[0], input_shape[1] * input_shape[2])


def PrimaryCap(
    inputs,
    dim_capsule,
    n_channels,
    kernel_size,
    strides,
    padding,
    *,
    conv="auto",
    data_format=None,
    kernel_initializer=None,
    name="primarycap",
):
    """Primary capsules: a convolution whose outputs are grouped and squashed.

    Adds the layers `primarycap_conv2d`, `primarycap_reshape` and `primarycap_squash`
    (Sabour et al. 2017, section 4); with channels first, `primarycap_permute` stands
    before the second, since a capsule is made of neighbouring channels.

    Args:
        inputs: Keras tensor of shape `(batch, height, width, channels)`, or `(batch,
            channels, height, width)` with channels first.
        dim_capsule: int. Dimension of a capsule.
        n_channels: int. Capsules at each position of the convolution's output.
        kernel_size: int or pair of int.
        strides: int or pair of int.
        padding: `"valid"` or `"same"`.
        conv: the form of the convolution, see `SpectralConv2D`. Defaults to `"auto"`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to Keras' global
            `image_data_format`.
        kernel_initializer: initializer of the convolution's kernel. `None`, the default,
            is a truncated normal of variance `64 / fan_in`, since `squash` leaves next
            to nothing of short capsules: they start at 0.7 to 1 on images and on the
            outputs of a ReLU.
        name: str. What the layers' names begin with, which must differ where a model
            has several. Defaults to `"primarycap"`.

    Returns:
        A Keras tensor of shape `(batch, positions * n_channels, dim_capsule)`.
    """
    convolution = SpectralConv2D(
        filters=dim_capsule * n_channels,
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        data_format=data_format,
        conv=conv,
        kernel_initializer=kernel_initializer
        or keras.initializers.VarianceScaling(64.0),
        name=f"{name}_conv2d",
    )
    outputs = convolution(inputs)
    if convolution.data_format == "channels_first":
        outputs = keras.layers.Permute((2, 3, 1), name=f"{name}_permute")(outputs)
    outputs = keras.layers.Reshape((-1, dim_capsule), name=f"{name}_reshape")(outputs)
    return Squash(dtype=full_dtype(), name=f"{name}_squash")(outputs)


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleLayer(keras.layers.Layer):
    """A layer of capsules with dynamic routing (Sabour et al. 2017, procedure 1).

    Every output capsule predicts itself from every input capsule, `u_hat_ij = W_ij
    u_i`, and the routing weighs the predictions by how far they agree. The logits start
    at zero and are not updated after the last iteration.

    The prediction vectors, B x J x I x O numbers, are never stored: see
    `capsnet.routing`. Many or large layers are routed in blocks of input capsules, whose
    size follows from the shapes.

    Input shape: `(batch, input_num_capsule, input_dim_capsule)`; with `shared=True`
    `(batch, positions, channels, input_dim_capsule)`, with any number of axes of
    positions. A mask of that shape without the last axis leaves capsules out: they send
    nothing.
    Output shape: `(batch, num_capsule, dim_capsule)`, float32 also under mixed precision,
    float64 where the layer's dtype is that. Coupling coefficients and squash are computed
    in that type, under mixed precision the products in half precision.

    Gradients can be differentiated again in reverse mode (`GradientTape` in a
    `GradientTape`, `jax.grad` of `jax.grad`, `create_graph=True`). Forward mode (`jax.jvp`,
    `jax.jacfwd`, `jax.hessian`) raises JAX's error for functions with a gradient of their
    own; `jax.jacrev` of `jax.grad` gives a Hessian.

    Args:
        num_capsule: int. Number of output capsules.
        dim_capsule: int. Dimension of an output capsule.
        routings: int. Number of routing iterations, at least 1. Defaults to 3.
        kernel_initializer: initializer of the weight `W` of shape `(num_capsule,
            input_num_capsule, dim_capsule, input_dim_capsule)`, with `shared=True`
            `(num_capsule, channels, dim_capsule, input_dim_capsule)`. `None`, the
            default, is a truncated normal whose standard deviation follows from these
            sizes: see `default_initializer`.
        shared: bool. Whether one transformation a channel serves all positions (Gu and
            Tresp 2020). Defaults to False.
        routing_gradient: bool. `True`, the default, differentiates through all
            iterations, as the paper's authors do. `False` treats the coupling
            coefficients as constants, so that the gradient is that of the last
            weighted sum alone; a step is faster and learns slightly another way.
        kernel_regularizer: regularizer of `W`. Defaults to None.
        kernel_constraint: constraint of `W`. Defaults to None.
        **kwargs: `name`, `dtype`, `trainable` and the like of `keras.layers.Layer`.

    Raises:
        ValueError: if a size or `routings` is not a positive integer, or the input is
            not a batch of capsules.
    """

    def __init__(
        self,
        num_capsule,
        dim_capsule,
        routings=3,
        kernel_initializer=None,
        *,
        shared=False,
        routing_gradient=True,
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        for name, value in (
            ("num_capsule", num_capsule),
            ("dim_capsule", dim_capsule),
            ("routings", routings),
        ):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be an integer above 0, not {value!r}")
        self.num_capsule = int(num_capsule)
        self.dim_capsule = int(dim_capsule)
        self.routings = int(routings)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.shared = bool(shared)
        self.routing_gradient = bool(routing_gradient)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self._input_length = routing.PRIMARY_LENGTH

    def __call__(self, inputs, *args, **kwargs):
        """Call, or build first, with regard to what the input capsules come from."""
        if isinstance(routing.maker(inputs), CapsuleLayer):
            self._input_length = routing.CAPSULE_LENGTH
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape):
        """Make `W` for input capsules of `input_shape`, `(batch, I, D)`."""
        fits = len(input_shape) > 3 if self.shared else len(input_shape) == 3
        if not fits or None in input_shape[1:]:
            positions = "positions, channels" if self.shared else "input_num_capsule"
            raise ValueError(
                f"CapsuleLayer with shared={self.shared} takes (batch, {positions}, "
                f"input_dim_capsule) with known sizes, not {tuple(input_shape)}"
            )
        *positions, input_num, input_dim = input_shape[1:]
        initializer = self.kernel_initializer or self.default_initializer(
            input_num, math.prod(positions)
        )
        self.W = self.add_weight(
            shape=(self.num_capsule, input_num, self.dim_capsule, input_dim),
            initializer=initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="W",
        )
        axes = dict(enumerate(input_shape[1:], start=1))
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=axes)

    def default_initializer(self, input_num_capsule, positions=1):
        """Return the initializer that `kernel_initializer=None` stands for.

        See `capsnet.routing.kernel_initializer`.

        Args:
            input_num_capsule: int. Input capsules; channels with `shared=True`.
            positions: int. Positions that share a transformation. Defaults to 1.
        """
        sizes = (self.num_capsule, input_num_capsule, self.dim_capsule)
        how = (positions, self._input_length, self.routings)
        return routing.kernel_initializer(*sizes, *how)

    def call(self, inputs, mask=None):
        """Route `inputs`, `(batch, I, D)`, to `(batch, num_capsule, dim_capsule)`."""
        u, W = (ops.cast(x, self.compute_dtype) for x in (inputs, self.W))
        if mask is not None:  # a capsule of zeros changes no sum
            mask = ops.expand_dims(ops.cast(mask, "bool"), -1)
            u = ops.where(mask, u, ops.zeros_like(u))
        devices = replicas(u.shape[0])
        if devices == 1:
            return self._route((u, W))
        u = ops.reshape(u, (devices, -1, *u.shape[1:]))
        W = ops.broadcast_to(W, (devices, *W.shape))
        v = ops.vectorized_map(self._route, (u, W))
        return ops.reshape(v, (-1, *v.shape[2:]))

    def compute_mask(self, inputs, mask=None):
        """Return None: all output capsules are there."""

    def _route(self, capsules_and_weight):
        u, W = capsules_and_weight
        summed = u  # of the first iteration, (B, I, D)
        if self.shared:  # (B, P, C, D), where I is P * C
            u = ops.reshape(u, (-1, math.prod(u.shape[1:-2]), *u.shape[-2:]))
            summed = ops.sum(u, axis=1)
        first = (summed, W)
        if self.routings > 1:
            u_blocks, W_blocks = routing.blocks(*self._at_all_positions(u, W))

        V = 0.0
        for iteration in range(self.routings):
            last = iteration == self.routings - 1
            through = last or self.routing_gradient
            given = first if iteration == 0 else (u_blocks, W_blocks)
            given = given if through else map(ops.stop_gradient, given)
            if iteration == 0:  # every coupling coefficient is 1 / J
                s = full(ops.einsum("bid,jiod->jbo", *given)) / self.num_capsule
            else:
                s = routing.total_input(*given, V, self.routing_gradient)
            v = squash(s)  # (J, B, O)
            V = V + v
        return ops.transpose(v, (1, 0, 2))

    def _at_all_positions(self, u, W):
        """Input capsules `(B, I, D)`, and a transformation for each of them."""
        if not self.shared:
            return u, W
        J, C, O, D = W.shape
        P = u.shape[1]
        W = ops.broadcast_to(W[:, None], (J, P, C, O, D))
        return ops.reshape(u, (-1, P * C, D)), ops.reshape(W, (J, P * C, O, D))

    def compute_output_shape(self, input_shape):
        """Return `(batch, num_capsule, dim_capsule)`."""
        return (input_shape[0], self.num_capsule, self.dim_capsule)

    def compute_output_spec(self, inputs, mask=None):
        """Return the shape and the dtype of what `call` returns."""
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, full_dtype(self.compute_dtype))

    def get_config(self):
        """Return the arguments of the constructor."""
        serialized = {
            "kernel_initializer": keras.initializers.serialize,
            "kernel_regularizer": keras.regularizers.serialize,
            "kernel_constraint": keras.constraints.serialize,
        }
        own = {name: getattr(self, name) for name in serialized}
        return {
            **super().get_config(),
            "num_capsule": self.num_capsule,
            "dim_capsule": self.dim_capsule,
            "routings": self.routings,
            "shared": self.shared,
            "routing_gradient": self.routing_gradient,
            **{n: serialized[n](value) if value else None for n, value in own.items()},
        }
