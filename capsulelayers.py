"""The layers of a capsule network, for Keras 3 on any backend.

Shape comments use one set of letters: `B` batch, `I` input capsules, `D` dimension of
an input capsule, `J` output capsules, `O` dimension of an output capsule. The
mathematics keeps the paper's names: `u` input capsules, `u_hat` prediction vectors,
`b` routing logits, `c` coupling coefficients, `s` total input, `v` output capsules.

To be copied into other projects with six files of `capsnet`: see `docs/layers.md`.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829; what came after: see `capsnet.rules`
"""

import math
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from capsnet import numerics, routing, rules
from capsnet.numerics import as_float, full, full_dtype, one_each, replicas, scaled
from capsnet.spectral import SpectralConv2D
from capsnet.squashes import EPSILON, SQUASHES, squash


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
        small, scale = scaled(inputs, -1)
        squared = ops.sum(ops.square(small), axis=-1)
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
            capsules, mask = inputs[0], one_each(inputs[1], inputs[0])
        else:
            capsules = inputs
            squared = ops.sum(ops.square(full(capsules)), axis=-1)
            longest = squared >= ops.max(squared, axis=-1, keepdims=True, initial=0)
            # Of integers: of floats TensorFlow's takes operations on bits, which neither
            # ONNX nor LiteRT has.
            first = ops.argmax(ops.cast(longest, "int32"), axis=-1)
            mask = ops.one_hot(first, capsules.shape[1])
        masked = capsules * ops.expand_dims(ops.cast(mask, capsules.dtype), -1)
        return ops.reshape(masked, (-1, self.compute_output_shape(capsules.shape)[1]))

    def compute_output_shape(self, input_shape):
        """Return `(batch, num_capsule * dim)`."""
        if isinstance(input_shape[0], (list, tuple)):
            input_shape = input_shape[0]
        batch, number, size = input_shape
        return (batch, number * size)


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

    Raises:
        TypeError: if `inputs` is no Keras tensor, such as in `call` of a subclass.
    """
    if not isinstance(inputs, keras.KerasTensor):
        raise TypeError(
            "PrimaryCap makes layers, so it takes keras.Input(...) or what comes of it: in a "
            "subclass call it in __init__, in a keras.Model(x, PrimaryCap(x, ...))"
        )
    how = {"strides": strides, "padding": padding, "data_format": data_format}
    first = kernel_initializer or keras.initializers.VarianceScaling(64.0)
    how |= {"conv": conv, "kernel_initializer": first, "name": f"{name}_conv2d"}
    convolution = SpectralConv2D(dim_capsule * n_channels, kernel_size, **how)
    outputs = convolution(inputs)
    if convolution.data_format == "channels_first":
        outputs = keras.layers.Permute((2, 3, 1), name=f"{name}_permute")(outputs)
    outputs = keras.layers.Reshape((-1, dim_capsule), name=f"{name}_reshape")(outputs)
    return Squash(dtype=full_dtype(), name=f"{name}_squash")(outputs)


class RoutingStep(NamedTuple):
    """What one iteration of `CapsuleLayer.route` gave."""

    coefficients: object  # c, (batch, num_capsule, input capsules)
    outputs: object  # v, (batch, num_capsule, dim_capsule)


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleLayer(keras.layers.Layer):
    """A layer of capsules with routing by agreement (Sabour et al. 2017, procedure 1).

    Every output capsule predicts itself from every input capsule, `u_hat_ij = W_ij
    u_i`, and the routing weighs the predictions by how far they agree. The logits start
    at zero and are not updated after the last iteration.

    The prediction vectors, B x J x I x O numbers, are never stored, in any routing: see
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
        routings: int. Number of routing iterations, at least 1. `None`, the default, is
            the routing's own: 3, of `"inverted"` 2, of those without iterations 1.
        kernel_initializer: initializer of the weight `W` of shape `(num_capsule,
            input_num_capsule, dim_capsule, input_dim_capsule)`, with `shared=True`
            `(num_capsule, channels, dim_capsule, input_dim_capsule)`. `None`, the
            default, is a truncated normal whose standard deviation follows from these
            sizes.
        routing: `"dynamic"`, the default, Sabour et al. 2017; `"attention"`, one pass
            with a learned bias on the coupling coefficients, `coupling_bias` of shape
            `(num_capsule, input_num_capsule)`, Mazzia et al. 2021; `"max_min"`, dynamic
            with another normalization, Zhao et al. 2019; `"none"`, equal coefficients,
            Gu and Tresp 2020; `"inverted"`, dot-product attention to layer-normalized
            outputs, Tsai et al. 2020. See `capsnet.rules`.
        squash: `"squash"`, `"exponential"`, or a function of vectors `(..., dim_capsule)`.
            `None`, the default, is the routing's own: `"exponential"` of attention, of
            `"inverted"` `"layer_norm"`, which only this one has, else `"squash"`.
        use_bias: bool. Whether a learned bias, `(num_capsule, dim_capsule)`, is added to
            the total inputs of each iteration. Defaults to False.
        leaky: bool. Whether an input capsule may send nothing, by one more logit of zero
            in the softmax of `"dynamic"`. Defaults to False.
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
        ValueError: if a size or `routings` is not a positive integer, the input is not a
            batch of capsules, there is no such routing or squash, or the routing has no
            such option.
    """

    def __init__(
        self,
        num_capsule,
        dim_capsule,
        routings=None,
        kernel_initializer=None,
        *,
        routing="dynamic",
        squash=None,
        use_bias=False,
        leaky=False,
        shared=False,
        routing_gradient=True,
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.rule = rules.rule(routing, routings, use_bias=use_bias, leaky=leaky)
        for name, value in (("num_capsule", num_capsule), ("dim_capsule", dim_capsule)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be an integer above 0, not {value!r}")
        self.num_capsule, self.dim_capsule = int(num_capsule), int(dim_capsule)
        self.routings = int(self.rule.routings)
        self.routing = routing
        saved = isinstance(squash, dict)  # a function
        squash = keras.saving.deserialize_keras_object(squash) if saved else squash
        self.squash = self.rule.squash if squash is None else squash
        known = (self.rule.squash, *SQUASHES)
        if not (self.squash in known or callable(self.squash)):
            raise ValueError(f"squash {squash!r}: {', '.join(SQUASHES)}, or a function")
        self.use_bias, self.leaky = bool(use_bias), bool(leaky)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.shared, self.routing_gradient = bool(shared), bool(routing_gradient)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self._input_length = rules.PRIMARY_LENGTH

    def __call__(self, inputs, *args, **kwargs):
        """Call, or build first, with regard to what the input capsules come from."""
        if isinstance(maker := rules.maker(inputs), CapsuleLayer):
            size = (maker.num_capsule, maker.dim_capsule)
            self._input_length = rules.typical_length(maker.squash, *size)
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape):
        """Make the weights for input capsules of `input_shape`, `(batch, I, D)`."""
        rules.check_capsules(input_shape, self.shared)
        *positions, input_num, input_dim = input_shape[1:]
        initializer = self.kernel_initializer or self.default_initializer(
            input_num, math.prod(positions)
        )
        J, O = self.num_capsule, self.dim_capsule
        how = {"regularizer": self.kernel_regularizer, "name": "W"}
        how |= {"constraint": self.kernel_constraint, "initializer": initializer}
        self.W = self.add_weight(shape=(J, input_num, O, input_dim), **how)
        self._learned = {"W": self.W}  # what routing needs, by name
        for name, shape, first, there in (
            ("bias", (J, O), "zeros", self.use_bias),
            ("coupling_bias", (J, input_num), "zeros", self.rule.coupling_bias),
            ("gamma", (O,), "ones", self.rule.layer_norm),
            ("beta", (O,), "zeros", self.rule.layer_norm),
        ):
            if there:
                self._learned[name] = self.add_weight(shape, first, name=name)
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))

    def get_build_config(self):
        """Return the input's shape, and how long its capsules are taken to be."""
        config = super().get_build_config()
        return config and {**config, "input_length": self._input_length}

    def build_from_config(self, config):
        """Make the weights as `get_build_config` of another layer says."""
        self._input_length = config.get("input_length", rules.PRIMARY_LENGTH)
        super().build_from_config(config)

    def default_initializer(self, input_num_capsule, positions=1):
        """Return the initializer that `kernel_initializer=None` stands for.

        See `capsnet.rules.kernel_initializer`; `input_num_capsule` counts the channels
        of one of the `positions`, ints, where these share transformations.
        """
        how = (input_num_capsule, self.dim_capsule, positions, self._input_length)
        return rules.kernel_initializer(self.num_capsule, *how, self.rule)

    def call(self, inputs, mask=None):
        """Route `inputs`, `(batch, I, D)`, to `(batch, num_capsule, dim_capsule)`."""
        given = self._given(inputs, mask)
        u = given["u"]
        devices = replicas(u.shape[0])
        if devices == 1:
            return self._route(given)
        given = {
            name: ops.broadcast_to(x, (devices, *x.shape)) for name, x in given.items()
        } | {"u": ops.reshape(u, (devices, -1, *u.shape[1:]))}
        v = ops.vectorized_map(self._route, given)
        return ops.reshape(v, (-1, *v.shape[2:]))

    def compute_mask(self, inputs, mask=None):
        """Return None: all output capsules are there."""

    def route(self, inputs, mask=None):
        """Route as `call` does, and return what each iteration gave.

        Args:
            inputs: as the layer takes them, but not symbolic.
            mask: likewise. Defaults to None.

        Returns:
            A list of `RoutingStep`; the outputs of the last are what `call` returns.

        Raises:
            ValueError: if the layer was built for inputs of another shape.
        """
        if not self.built:
            self.build(ops.shape(inputs))
        rules.check_shape(inputs.shape, self.input_spec.shape)
        votes, steps = self._iterations(self._given(inputs, mask))
        found = []
        for V, v in steps:
            c = votes.coefficients(V, self.rule.equal(self.num_capsule))
            found.append(RoutingStep(*(ops.transpose(x, (1, 0, 2)) for x in (c, v))))
        return found

    def _given(self, inputs, mask):
        """The input capsules and the weights, by name, in the type of the products."""
        u = numerics.sized(inputs, self.input_spec.shape)
        given = {"u": u, **self._learned, "W": self.W}
        given = {name: ops.cast(x, self.compute_dtype) for name, x in given.items()}
        if mask is not None:  # a capsule of zeros changes no sum
            mask = ops.expand_dims(ops.cast(one_each(mask, inputs), "bool"), -1)
            given["u"] = ops.where(mask, given["u"], ops.zeros_like(given["u"]))
        return given

    def _route(self, given):
        *_, (_, v) = self._iterations(given)[1]
        return ops.transpose(v, (1, 0, 2))

    def _iterations(self, given):
        squashed = SQUASHES.get(self.squash, self.squash)
        return routing.iterations(given, self.rule, squashed, self.routing_gradient)

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
        names = ("num_capsule", "dim_capsule", "routings", "routing", "use_bias")
        names += ("leaky", "shared", "routing_gradient")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "squash": keras.saving.serialize_keras_object(self.squash),
            **{n: serialize(getattr(self, n)) for n, serialize in serialized.items()},
        }
