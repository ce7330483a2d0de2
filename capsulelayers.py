"""The layers of a capsule network, for Keras 3 on any backend.

This file imports Keras and NumPy alone, so it can be copied into another project.

Shape comments use one set of letters: `B` batch, `I` input capsules, `D` dimension of
an input capsule, `J` output capsules, `O` dimension of an output capsule. The
mathematics keeps the paper's names: `u` input capsules, `u_hat` prediction vectors,
`b` routing logits, `c` coupling coefficients, `s` total input, `v` output capsules.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
    Winograd. Arithmetic Complexity of Computations. SIAM 1980.
    Mathieu, Henaff, LeCun. Fast Training of Convolutional Networks through FFTs.
        ICLR 2014. https://arxiv.org/abs/1312.5851
"""

import contextlib
import functools
import math

import keras
import numpy as np
from keras import ops

EPSILON = 1e-7
"""Added to a squared length under the square root, so that the zero vector has a
gradient."""

_TYPICAL_BATCH = 100
"""The batch size that costs are reckoned for where a graph leaves it open."""

ROUTING_BLOCK_BYTES = 2**22
"""Routing works on so many input capsules at a time that one array of B x J x I
numbers stays below this, for a batch of the typical size where it is not known."""

_LARGEST_TILE = 16
"""Rows and columns of output that one transform computes, at most: the matrices of
larger ones grow with the fourth power."""

_LARGEST_TRANSFORM = 40
"""Rows and columns of input that one transform takes, at most: with more, float32's
rounding grows fast (a relative error of 1e-6 with 40, 2e-4 with 50)."""

_MOST_PARTS = 16
"""Dimensions of input capsules that are routed one by one, at most."""

CONV_FORMS = ("auto", "direct", "spectral", "patches")


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


def _devices(batch):
    """How many devices a batch is shared out to by `keras.distribution`.

    XLA sums gradients over the devices as soon as it can, be they larger than the
    weight's own or in many pieces. Where each device works with a copy of the weight,
    along an axis of its own, there is one sum, that of the weight's gradient. A batch
    that the devices can't share equally is left to XLA.
    """
    distribution = keras.distribution.distribution()
    devices = distribution.num_model_replicas if distribution else 1
    return 1 if isinstance(batch, int) and batch % devices else devices


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


def _full(x):
    return ops.cast(x, full_dtype(x.dtype))


def _float(x):
    """`x` as a tensor; integers become float32."""
    x = ops.convert_to_tensor(x)
    return x if keras.backend.is_float_dtype(x.dtype) else _full(x)


def _total(terms):
    """The sum of tensors, without the zero that `sum` starts from."""
    return functools.reduce(ops.add, terms)


def _scaled(vectors, axis):
    """Scale vectors so that the squares of their components do not overflow.

    Returns:
        `(scaled, scale)`: `vectors / scale`, whose components are below 1, in at least
        float32; and `scale`, at least 1. The gradient takes it for a constant, since
        what is computed from both does not depend on it.
    """
    vectors = _full(vectors)
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
    vectors = _float(vectors)
    scaled, scale = _scaled(vectors, axis)
    squared = ops.sum(ops.square(scaled), axis=axis, keepdims=True)
    one = ops.square(1.0 / scale)
    factor = squared / (one + squared) / ops.sqrt(squared + EPSILON * one)
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
        inputs = _float(inputs)
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
            squared = ops.sum(ops.square(_full(capsules)), axis=-1)
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


def _evaluation_points(n):
    """Return `n` points of the real line and the complex plane, as two lists.

    The n-th roots of unity would make the discrete Fourier transform. From seven points
    on some are 0, infinity and others of the real line, and the rest roots of unity: a
    real point costs one product where a pair of conjugates costs three, and rounds a
    little worse. In float32, outputs and gradients differ from the exact ones by 2e-6 of
    the largest for a size of ten (up to 5e-6 for sizes up to 24), with the Fourier
    transform by 0.5e-6, and with ten real points by 28e-6.

    Returns:
        The real points, and one of each pair of conjugate complex points.
    """
    if n < 7:
        special = []
    elif n < 9:
        special = [0.0, np.inf, 0.7, -0.7]
    else:
        special = [0.0, np.inf, 0.55, -0.55, 1.8, -1.8]
    roots = n - len(special)
    real = [1.0, -1.0] if roots % 2 == 0 else [1.0]
    angles = 2 * np.pi * np.arange(1, (roots + 1) // 2) / roots
    return special + real, list(np.exp(1j * angles))


def _evaluations(n, kernel_size, output_size):
    """The matrices of a correlation in one dimension, see `_transforms`.

    Returns:
        `(real, forward, kernel, inverse)`: the number of rows that are real, which come
        first, and matrices of one row a point, the conjugates left out.
    """
    real, pairs = _evaluation_points(n)

    def powers(points, length):
        top = np.eye(length)[-1]  # at infinity the highest power alone counts
        return np.array(
            [top if p == np.inf else p ** np.arange(length) for p in points], complex
        )

    points = real + pairs
    interpolation = np.linalg.inv(powers(points + [p.conj() for p in pairs], n))
    return (
        len(real),
        interpolation.T[: len(points)],
        powers(points, kernel_size),
        powers(points, output_size),
    )


@functools.cache
def _transforms(size, kernel_size, output_size):
    """The three constant matrices of a correlation by evaluation at points.

    The product of two polynomials takes one multiplication at each of n points, which
    their evaluation there and the interpolation of the result surround (Toom and Cook;
    at the roots of unity, Fourier). A correlation is the transpose of that
    (Winograd 1980). In two dimensions the points are pairs of points. The values at a
    pair that is conjugate to another need not be computed. A complex product is three
    real ones, with P1 = (Xr + Xi) Kr, P2 = Xr (Ki - Kr), P3 = Xi (Kr + Ki): its real
    part is P1 - P3, its imaginary part P1 + P2. Where both points are real, so are X
    and K, and one product is enough.

    Args:
        size: pair of int. Rows and columns of the image `x`.
        kernel_size: pair of int. Rows and columns of the kernel `k`.
        output_size: pair of int. Rows and columns of the output, `size - kernel_size
            + 1`.

    Returns:
        `forward (R, pixels)`, `kernel (R, kernel pixels)` and `inverse (output pixels,
        R)`, float64, such that the correlation of `x` and `k` is
        `inverse @ ((forward @ x) * (kernel @ k))`.
    """
    rows = _evaluations(size[0], kernel_size[0], output_size[0])
    columns = _evaluations(size[1], kernel_size[1], output_size[1])
    forward, kernel, inverse = [], [], []
    for i, of_row in enumerate(zip(*rows[1:])):
        for j, of_column in enumerate(zip(*columns[1:])):
            both_complex = i >= rows[0] and j >= columns[0]
            for conjugate in (False, True)[: 1 + both_complex]:
                x, k, y = (
                    np.outer(a, b.conj() if conjugate else b).ravel()
                    for a, b in zip(of_row, of_column)
                )
                x_scale, k_scale = abs(x).max(), abs(k).max()  # keep rounding small
                x, k, y = x / x_scale, k / k_scale, y * x_scale * k_scale
                if i < rows[0] and j < columns[0]:
                    forward += [x.real]
                    kernel += [k.real]
                    inverse += [y.real]
                else:  # twice the real part: this pair of points and its conjugate
                    forward += [x.real + x.imag, x.real, x.imag]
                    kernel += [k.real, k.imag - k.real, k.real + k.imag]
                    inverse += [2 * (y.real - y.imag), -2 * y.imag, -2 * y.real]
    return (
        np.array(forward),
        np.array(kernel),
        np.ascontiguousarray(np.transpose(inverse)),
    )


@functools.cache
def _best_tile(output_size, kernel_size, strides, channels, filters):
    """Choose the tile size and count the multiplications of a spectral convolution.

    Args:
        output_size: pair of int. Rows and columns of the convolution's output.
        kernel_size: pair of int.
        strides: pair of int.
        channels: int. Input channels.
        filters: int. Output channels.

    Returns:
        The pair `(tile, cost)`: rows and columns of the output that one transform
        computes, and multiplications an image; None and infinity where the kernel is
        larger than a transform may be.
    """
    phases = math.prod(strides) * channels
    kernel_size = [-(-k // s) for k, s in zip(kernel_size, strides)]

    def cost(tile):
        tiles = math.prod(-(-o // t) for o, t in zip(output_size, tile))
        sizes = [t + k - 1 for t, k in zip(tile, kernel_size)]
        pixels = math.prod(sizes)
        (r0, c0), (r1, c1) = (map(len, _evaluation_points(n)) for n in sizes)
        products = r0 * r1 + 3 * (r0 * c1 + c0 * r1) + 6 * c0 * c1
        per_tile = phases * filters + pixels * phases + math.prod(tile) * filters
        per_batch = math.prod(kernel_size) * phases * filters
        return products * (tiles * per_tile + per_batch / _TYPICAL_BATCH)

    rows, columns = (
        range(1, min(o, _LARGEST_TILE, _LARGEST_TRANSFORM - k + 1) + 1)
        for o, k in zip(output_size, kernel_size)
    )
    if not rows or not columns:
        return None, math.inf
    tile = min(((r, c) for r in rows for c in columns), key=cost)
    return tile, cost(tile)


def _products_are_rounded():
    """Whether matrix products of float32 have fewer bits than the spectral form needs.

    Its transforms enlarge rounding some thirty times: TF32, with ten bits, would leave
    an error of percents. Specific to the backend: a setting of the whole process with
    TensorFlow (on a GPU) and PyTorch; for JAX see `_float32_products`.
    """
    if keras.backend.backend() == "tensorflow" and not on_cpu():
        import tensorflow as tf

        return tf.config.experimental.tensor_float_32_execution_enabled()
    if keras.backend.backend() == "torch":
        import torch

        try:
            return torch.get_float32_matmul_precision() != "highest"
        except RuntimeError:  # set by PyTorch's newer names, of which it tells nothing
            return True
    return False


def _float32_products():
    """A context whose matrix products have all of float32's bits, with their gradients.

    Specific to JAX, whose default on accelerators is TF32 or bfloat16.
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision("highest")


def _overlapping(x, axis, count, step, size):
    """Cut `axis` into `count` pieces of `size`, a `step` apart: two axes for one."""
    if count == 1:  # nothing to copy
        return ops.expand_dims(x, axis)
    span = [slice(None)] * axis
    pieces = [x[(*span, slice(i * step, i * step + size))] for i in range(count)]
    return ops.stack(pieces, axis)


@keras.saving.register_keras_serializable(package="capsnet")
class SpectralConv2D(keras.layers.Conv2D):
    """A `Conv2D` that goes through the Fourier domain where that is faster.

    The convolution with a large kernel takes most of a capsule network's time. In the
    Fourier domain it is one product a frequency (Mathieu et al. 2014). The weights are
    those of `keras.layers.Conv2D`, and so are the outputs, to rounding.

    How the spectral form works, for a kernel of k x k and stride s:

    1. *Stride*: rows and columns are split by their remainder modulo s. The strided
       convolution is the sum of s x s convolutions of stride 1 with kernels of
       ceil(k / s), over images of 1 / s the side. The phases join the channels.
    2. *Tiles*: the output is cut into tiles of t x t, each from n = t + ceil(k / s) - 1
       rows and columns of the input.
    3. *Transform*: tiles and kernels are evaluated at n x n points, roots of unity as
       in the Fourier transform and a few real ones, by products with constant
       matrices; see `_evaluation_points` and `_transforms`.
    4. *Product*: at each point one matrix product `(B, s s C) x (s s C, filters)` sums
       channels and phases at once.
    5. *Inverse transform*: one more product with a constant matrix.

    For 9 x 9 and stride 2 on 20 x 20 pixels (the primary capsules on MNIST) that is 118
    products of 4 C numbers in place of 36 x 81 of C.

    Args:
        filters: int. Number of output channels.
        kernel_size: int or pair of int.
        conv: `"direct"` is the convolution of the backend; `"spectral"` the Fourier
            domain; `"patches"` one matrix product with the unfolded image. `"auto"`,
            the default, takes the direct form on an accelerator and for what the
            others do not cover (dilation, groups, channels first, unknown image size);
            on a CPU it takes the spectral form or patches, whichever needs fewer
            multiplications. Both compute in float32, or in float64 where that is asked
            for. The attribute `form` tells the choice once the layer is built.
        *args: the other arguments of `keras.layers.Conv2D`.
        **kwargs: likewise.

    Raises:
        ValueError: if `conv` is none of these, or the form asked for does not cover
            the layer's other arguments, or products of float32 are computed with less
            precision than the spectral form needs.
    """

    def __init__(self, filters, kernel_size, *args, conv="auto", **kwargs):
        super().__init__(filters, kernel_size, *args, **kwargs)
        if conv not in CONV_FORMS:
            raise ValueError(f"conv must be one of {CONV_FORMS}, not {conv!r}")
        self.conv = conv
        self.form = None
        self._on_cpu = on_cpu()  # here, since PyTorch's `build` may not compute at all

    def build(self, input_shape):
        """Make the weights and choose the form for `input_shape`, `(B, H, W, C)`."""
        super().build(input_shape)
        self.form = self._choose_form(input_shape)
        if self.form == "direct" and max(self.strides) > 1:
            # XLA on a CPU takes 20 times as long for the gradient of this.
            self.supports_jit = not self._on_cpu

    def _choose_form(self, input_shape):
        covered = (
            self.data_format == "channels_last"
            and self.groups == 1
            and max(self.dilation_rate) == 1
            and None not in input_shape[1:]
        )
        if self.conv in ("spectral", "patches") and not covered:
            raise ValueError(
                f"conv={self.conv!r} needs channels_last, no groups, no dilation and a "
                f"known image size; use conv='direct' for input {tuple(input_shape)}"
            )
        if self.conv in ("direct", "patches"):
            return self.conv
        precise = not _products_are_rounded()
        if self.conv == "auto" and not (covered and self._on_cpu and precise):
            return "direct"
        output_size = self.compute_output_shape(input_shape)[1:3]
        multiplications = math.prod(output_size) * math.prod(self.kernel.shape)
        tile, spectral = self._tile(output_size)
        if self.conv == "spectral":
            if tile is None:
                raise ValueError(
                    f"conv='spectral' takes no kernels of {self.kernel_size}, which "
                    f"reach over more than {_LARGEST_TRANSFORM} times the stride"
                )
            if not precise:
                raise ValueError(
                    "conv='spectral' needs all bits of float32 in matrix products: use "
                    "conv='direct', or "
                    "tf.config.experimental.enable_tensor_float_32_execution(False), or "
                    "torch.set_float32_matmul_precision('highest')"
                )
            return "spectral"
        return "spectral" if spectral < multiplications else "patches"

    def _tile(self, output_size):
        channels, filters = self.kernel.shape[2:]
        return _best_tile(
            tuple(output_size),
            self.kernel_size,
            self.strides,
            channels,
            filters,
        )

    def call(self, inputs):
        """Convolve `inputs` `(B, H, W, C)`, add the bias and apply the activation."""
        if self.form != "patches" or not self.use_bias:
            return super().call(inputs)
        outputs = self._unfolded(inputs, self.kernel, self.bias)
        return self.activation(outputs)

    def convolution_op(self, inputs, kernel):
        """Convolve `inputs` `(B, H, W, C)` in the chosen form, without the bias."""
        if self.form == "direct":
            return super().convolution_op(inputs, kernel)
        if self.form == "patches":
            return self._unfolded(inputs, kernel)
        with _float32_products():
            return self._spectral(inputs, kernel)

    def _padded(self, inputs):
        """Pad as TensorFlow's "same" does, so that a "valid" convolution remains."""
        if self.padding == "valid":
            return inputs
        padding = [(0, 0)]
        for size, k, s in zip(inputs.shape[1:3], self.kernel_size, self.strides):
            missing = max(0, (-(-size // s) - 1) * s + k - size)
            padding.append((missing // 2, missing - missing // 2))
        return ops.pad(inputs, padding + [(0, 0)])

    def _unfolded(self, inputs, kernel, bias=None):
        """One matrix product with the patches under the kernel.

        The bias is one more row of the kernel, for a column of ones in the patches: an
        addition to all outputs, and the sum over them in the gradient, are spared.
        """
        inputs, kernel = self._padded(_full(inputs)), _full(kernel)
        (kh, kw), (sh, sw) = self.kernel_size, self.strides
        _, height, width, channels = inputs.shape
        rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
        x = ops.stack(
            [inputs[:, :, j : j + (columns - 1) * sw + 1 : sw] for j in range(kw)], 3
        )  # (B, H, columns, kw, C)
        x = ops.stack([x[:, i : i + (rows - 1) * sh + 1 : sh] for i in range(kh)], 3)
        x = ops.reshape(x, (-1, kh * kw * channels))
        kernel = ops.reshape(kernel, (kh * kw * channels, -1))
        if bias is not None:
            x = ops.concatenate([x, ops.ones_like(x[:, :1])], axis=1)
            kernel = ops.concatenate([kernel, _full(bias)[None]], axis=0)
        y = ops.cast(x @ kernel, self.compute_dtype)
        return ops.reshape(y, (-1, rows, columns, self.filters))

    def _spectral(self, inputs, kernel):
        inputs, kernel = self._padded(_full(inputs)), _full(kernel)
        (kh, kw), (sh, sw) = self.kernel_size, self.strides
        _, height, width, channels = inputs.shape
        rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
        (th, tw), _ = self._tile((rows, columns))
        tiles_h, tiles_w = -(-rows // th), -(-columns // tw)
        ph, pw = -(-kh // sh), -(-kw // sw)  # kernel of one phase
        nh, nw = th + ph - 1, tw + pw - 1  # size of a transform
        forward, kernel_basis, inverse = (
            ops.convert_to_tensor(matrix, inputs.dtype)
            for matrix in _transforms((nh, nw), (ph, pw), (th, tw))
        )
        phases = sh * sw * channels

        # Bring the image to exactly the pixels that the tiles read.
        full_h, full_w = sh * (tiles_h * th + ph - 1), sw * (tiles_w * tw + pw - 1)
        x = inputs
        if height > full_h or width > full_w:
            x = x[:, :full_h, :full_w]
        if height < full_h or width < full_w:
            missing = max(0, full_h - height), max(0, full_w - width)
            x = ops.pad(x, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
        x = ops.reshape(x, (-1, full_h // sh, sh, full_w // sw, sw, channels))
        x = _overlapping(x, 1, tiles_h, th, nh)
        x = _overlapping(x, 4, tiles_w, tw, nw)
        # (B, tiles_h, nh, sh, tiles_w, nw, sw, C)
        x = ops.transpose(x, (2, 5, 0, 1, 4, 3, 6, 7))
        x = forward @ ops.reshape(x, (nh * nw, -1))
        R, devices = forward.shape[0], _devices(inputs.shape[0])
        x = ops.reshape(x, (R, devices, -1, phases))  # (R, devices, B tiles, s s C)

        k = ops.pad(kernel, [(0, ph * sh - kh), (0, pw * sw - kw), (0, 0), (0, 0)])
        k = ops.broadcast_to(k, (devices, *k.shape))
        k = ops.reshape(k, (devices, ph, sh, pw, sw, channels, self.filters))
        k = ops.transpose(k, (1, 3, 0, 2, 4, 5, 6))
        k = kernel_basis @ ops.reshape(k, (ph * pw, -1))
        k = ops.reshape(k, (R, devices, phases, self.filters))

        y = x @ k  # (R, devices, B tiles, filters)
        y = inverse @ ops.reshape(y, (R, -1))
        y = ops.reshape(y, (th, tw, -1, tiles_h, tiles_w, self.filters))
        y = ops.transpose(y, (2, 3, 0, 4, 1, 5))
        y = ops.reshape(y, (-1, tiles_h * th, tiles_w * tw, self.filters))
        return ops.cast(y[:, :rows, :columns], self.compute_dtype)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "conv": self.conv}


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
        name=f"{name}_conv2d",
    )
    outputs = convolution(inputs)
    if convolution.data_format == "channels_first":
        outputs = keras.layers.Permute((2, 3, 1), name=f"{name}_permute")(outputs)
    outputs = keras.layers.Reshape((-1, dim_capsule), name=f"{name}_reshape")(outputs)
    return Squash(dtype=full_dtype(), name=f"{name}_squash")(outputs)


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
    return _total(
        _full(part if len(part.shape) == 3 else _sum_over_first(part)) for part in parts
    )


def _coefficients(u, W, V):
    """The coupling coefficients `c`, `(J, B, I)`, of `_total_input`'s arguments."""
    V = ops.cast(V, u.dtype)
    b = _sum_of_parts((V @ W_d) * u_d for u_d, W_d in _parts(u, W))
    return _softmax_over_first(b)


def _total_input(u, W, V, routing_gradient):
    """One routing step without the prediction vectors: `s` from the routing so far.

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
    def total_input(u, W, V):
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

    return total_input(u, W, V)


def _differentiated_again():
    """Whether the gradient that is being computed will itself be differentiated.

    Specific to PyTorch, where what is computed forward is a constant for the gradient
    of a gradient.
    """
    import torch

    return torch.is_grad_enabled()


def _gradient(u, W, V, c, ds, routing_gradient):
    """The gradients by `u`, `W` and `V` of `_total_input`, from `ds` `(J, B, O)`."""
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


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleLayer(keras.layers.Layer):
    """A layer of capsules with dynamic routing (Sabour et al. 2017, procedure 1).

    Every output capsule predicts itself from every input capsule, `u_hat_ij = W_ij
    u_i`, and the routing weighs the predictions by how far they agree. The logits start
    at zero and are not updated after the last iteration.

    The prediction vectors, B x J x I x O numbers, are never stored: see
    `_total_input`. Many or large layers are routed in blocks of input capsules, whose
    size follows from the shapes.

    Input shape: `(batch, input_num_capsule, input_dim_capsule)`. A mask of shape
    `(batch, input_num_capsule)` leaves capsules out: they send nothing.
    Output shape: `(batch, num_capsule, dim_capsule)`, float32 also under mixed precision,
    float64 where the layer's dtype is that. Coupling coefficients and squash are computed
    in that type, under mixed precision the products in half of it.

    Gradients can be differentiated again in reverse mode (`GradientTape` in a
    `GradientTape`, `jax.grad` of `jax.grad`, `create_graph=True`). Forward mode (`jax.jvp`,
    `jax.jacfwd`, `jax.hessian`) raises JAX's error for functions with a gradient of their
    own; `jax.jacrev` of `jax.grad` gives a Hessian.

    Args:
        num_capsule: int. Number of output capsules.
        dim_capsule: int. Dimension of an output capsule.
        routings: int. Number of routing iterations, at least 1. Defaults to 3.
        kernel_initializer: initializer of the weight `W` of shape `(num_capsule,
            input_num_capsule, dim_capsule, input_dim_capsule)`. `None`, the default,
            is a truncated normal whose standard deviation follows from these sizes:
            see `default_initializer`.
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
        self.routing_gradient = bool(routing_gradient)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)

    def build(self, input_shape):
        """Make `W` for input capsules of `input_shape`, `(batch, I, D)`."""
        if len(input_shape) != 3 or None in input_shape[1:]:
            raise ValueError(
                "CapsuleLayer takes (batch, input_num_capsule, input_dim_capsule) "
                f"with known sizes, not {tuple(input_shape)}"
            )
        _, input_num, input_dim = input_shape
        self.W = self.add_weight(
            shape=(self.num_capsule, input_num, self.dim_capsule, input_dim),
            initializer=self.kernel_initializer or self.default_initializer(input_num),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="W",
        )
        self.input_spec = keras.layers.InputSpec(
            ndim=3, axes={1: input_num, 2: input_dim}
        )

    def default_initializer(self, input_num_capsule):
        """Return the initializer that `kernel_initializer=None` stands for.

        With a standard deviation of sigma, input capsules of length one start with
        total inputs of length `sigma * sqrt(I * O) / J` and predictions of length
        `sigma * sqrt(O)`. Too short total inputs are dead, since squash makes them
        shorter still; too long predictions saturate the routing. The first are made 0.5
        long, as long as that leaves the second below 0.4.
        """
        sigma = min(0.5 * self.num_capsule / math.sqrt(input_num_capsule), 0.4)
        return keras.initializers.TruncatedNormal(
            stddev=sigma / math.sqrt(self.dim_capsule)
        )

    def call(self, inputs, mask=None):
        """Route `inputs`, `(batch, I, D)`, to `(batch, num_capsule, dim_capsule)`."""
        u, W = (ops.cast(x, self.compute_dtype) for x in (inputs, self.W))
        if mask is not None:  # a capsule of zeros changes no sum
            mask = ops.expand_dims(ops.cast(mask, "bool"), -1)
            u = ops.where(mask, u, ops.zeros_like(u))
        devices = _devices(u.shape[0])
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
        u_blocks, W_blocks = self._blocks(u, W)

        V = 0.0
        for iteration in range(self.routings):
            last = iteration == self.routings - 1
            through = last or self.routing_gradient
            given = (u, W) if iteration == 0 else (u_blocks, W_blocks)
            given = given if through else map(ops.stop_gradient, given)
            if iteration == 0:  # every coupling coefficient is 1 / J
                s = _full(ops.einsum("bid,jiod->jbo", *given)) / self.num_capsule
            else:
                s = self._routed_total_input(*given, V)
            v = squash(s)  # (J, B, O)
            V = V + v
        return ops.transpose(v, (1, 0, 2))

    def _blocks(self, u, W):
        """Cut the input capsules into N blocks of i: `(N, D, B, i)`, `(N, D, J, O, i)`."""
        J, I, O, D = W.shape
        batch = u.shape[0] if isinstance(u.shape[0], int) else _TYPICAL_BATCH
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

    def _routed_total_input(self, u, W, V):
        """The total input from all blocks, one after the other: that bounds the memory.

        Specific to the backend. XLA needs TensorFlow's loop to be bounded, which that of
        `ops.scan` is not. PyTorch needs no loop of its own, and in that of `ops.scan` the
        gradient of each block would be as large as all blocks.
        """

        def add_block(s, block):
            return s + _total_input(*block, V, self.routing_gradient)

        s = ops.zeros_like(V)
        if u.shape[0] == 1 or keras.backend.backend() == "torch":
            return functools.reduce(add_block, zip(ops.unstack(u), ops.unstack(W)), s)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.foldl(add_block, (u, W), s, parallel_iterations=1)
        return ops.scan(lambda s, block: (add_block(s, block), None), s, (u, W))[0]

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
            "routing_gradient": self.routing_gradient,
            **{n: serialized[n](value) if value else None for n, value in own.items()},
        }
