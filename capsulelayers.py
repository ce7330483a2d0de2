"""The layers of a capsule network, for Keras 3 on any backend.

This file imports Keras and NumPy alone, so it can be copied into another project.

Shape comments use one set of letters: `B` batch, `I` input capsules, `D` dimension of
an input capsule, `J` output capsules, `O` dimension of an output capsule. The
mathematics keeps the paper's names: `u` input capsules, `u_hat` prediction vectors,
`b` routing logits, `c` coupling coefficients, `s` total input, `v` output capsules.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
    Mathieu, Henaff, LeCun. Fast Training of Convolutional Networks through FFTs.
        ICLR 2014. https://arxiv.org/abs/1312.5851
"""

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

_BLOCK_BYTES = 2**26
"""Routing works on so many input capsules at a time that one array of B x J x I
numbers stays below this."""

_LARGEST_TILE = 16
"""Rows and columns of output that one transform computes, at most: the matrices of
larger ones grow with the fourth power."""

CONV_FORMS = ("auto", "direct", "spectral", "patches")


def on_cpu():
    """Whether new tensors are placed on a CPU, on any backend."""
    return "cpu" in str(ops.convert_to_tensor(0.0).device).lower()


def _float32(x):
    return ops.cast(x, "float32")


def _squared_length(vectors, axis=-1, keepdims=False):
    return ops.sum(ops.square(vectors), axis=axis, keepdims=keepdims)


def squash(vectors, axis=-1):
    """Shrink vectors to lengths below one, keeping their direction.

    `squash(s) = |s|^2 / (1 + |s|^2) * s / |s|` (Sabour et al. 2017, eq. 1). The zero
    vector gives zero, in value and in gradient.

    Args:
        vectors: float tensor of any shape.
        axis: int. The axis that holds a vector's components. Defaults to -1.

    Returns:
        A tensor of the shape of `vectors`.
    """
    squared = _squared_length(vectors, axis, keepdims=True)
    return vectors * (squared / (1.0 + squared) / ops.sqrt(squared + EPSILON))


@keras.saving.register_keras_serializable(package="capsnet")
class Squash(keras.layers.Layer):
    """The function `squash` as a layer, over the last axis."""

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

    def call(self, inputs):
        """Return the Euclidean length over the last axis of `inputs`."""
        return ops.sqrt(_squared_length(inputs) + EPSILON)

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
            mask = ops.one_hot(
                ops.argmax(_squared_length(capsules), axis=-1),
                capsules.shape[1],
                dtype=capsules.dtype,
            )
        masked = capsules * ops.expand_dims(mask, -1)
        return ops.reshape(masked, (-1, capsules.shape[1] * capsules.shape[2]))

    def compute_output_shape(self, input_shape):
        """Return `(batch, num_capsule * dim)`."""
        if isinstance(input_shape[0], (list, tuple)):
            input_shape = input_shape[0]
        return (input_shape[0], input_shape[1] * input_shape[2])


def _fourier_bases(size, kernel_size, output_size):
    """The three constant matrices of a correlation in the Fourier domain.

    For an image `x` of `size` pixels and a kernel `k`, with the discrete Fourier
    transforms X and K, the correlation's transform is X times the conjugate of K. Of a
    real signal's frequencies (a, b) and (-a, -b) one is enough. A complex product is
    three real ones, with P1 = (Xr + Xi) Kr, P2 = Xr (Ki - Kr), P3 = Xi (Kr + Ki):
    its real part is P1 - P3, its imaginary part P1 + P2. Where a frequency is its own
    negative, X and K are real and one product is enough.

    Args:
        size: pair of int. Rows and columns of the transform.
        kernel_size: pair of int. Rows and columns of the kernel.
        output_size: pair of int. Rows and columns of the output; the circular
            correlation is exact for `output_size + kernel_size - 1 <= size`.

    Returns:
        `forward (R, pixels)`, `kernel (R, kernel pixels)` and `inverse (output pixels,
        R)`, float32, such that the correlation of `x` and `k` is
        `inverse @ ((forward @ x) * (kernel @ k))`.
    """
    rows, columns = size
    forward, kernel, inverse = [], [], []
    for a in range(rows):
        for b in range(columns):
            mirror = (-a % rows, -b % columns)
            if mirror < (a, b):
                continue
            angle = (
                2
                * np.pi
                * np.add.outer(
                    a * np.arange(rows) / rows, b * np.arange(columns) / columns
                )
            )
            cos, sin = np.cos(angle), np.sin(angle)
            xr, xi = cos.ravel(), -sin.ravel()
            kr, ki = (f[: kernel_size[0], : kernel_size[1]].ravel() for f in (cos, sin))
            yr, yi = (
                f[: output_size[0], : output_size[1]].ravel() / (rows * columns)
                for f in (cos, -sin)
            )
            if mirror == (a, b):
                forward += [xr]
                kernel += [kr]
                inverse += [yr]
            else:  # twice: for this frequency and for its mirror image
                forward += [xr + xi, xr, xi]
                kernel += [kr, ki - kr, kr + ki]
                inverse += [2 * (yr + yi), 2 * yi, -2 * yr]
    forward, kernel, inverse = (
        np.asarray(m, "float32") for m in (forward, kernel, inverse)
    )
    return forward, kernel, np.ascontiguousarray(inverse.T)


@functools.lru_cache(maxsize=None)
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
        computes, and multiplications an image.
    """
    phases = math.prod(strides) * channels
    kernel_size = [-(-k // s) for k, s in zip(kernel_size, strides)]

    def cost(tile):
        tiles = math.prod(-(-o // t) for o, t in zip(output_size, tile))
        pixels = math.prod(t + k - 1 for t, k in zip(tile, kernel_size))
        products = 1.5 * pixels  # three for every other frequency
        per_tile = phases * filters + pixels * phases + math.prod(tile) * filters
        per_batch = math.prod(kernel_size) * phases * filters
        return products * (tiles * per_tile + per_batch / _TYPICAL_BATCH)

    rows, columns = (range(1, min(o, _LARGEST_TILE) + 1) for o in output_size)
    tile = min(((r, c) for r in rows for c in columns), key=cost)
    return tile, cost(tile)


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
       rows and columns of the input. The circular wrap-around of an n x n transform
       touches only rows and columns that the tile does not read.
    3. *Transform*: the real discrete Fourier transforms of tiles and kernels are
       products with small constant matrices, see `_fourier_bases`.
    4. *Product*: at each frequency one matrix product `(B, s s C) x (s s C, filters)`
       sums channels and phases at once.
    5. *Inverse transform*: one more product with a constant matrix.

    For 9 x 9 and stride 2 on 20 x 20 pixels (the primary capsules on MNIST) this takes
    a quarter of the multiplications of the direct form.

    Args:
        filters: int. Number of output channels.
        kernel_size: int or pair of int.
        conv: `"direct"` is the convolution of the backend; `"spectral"` the Fourier
            domain; `"patches"` one matrix product with the unfolded image. `"auto"`,
            the default, takes the direct form on an accelerator and for what the
            others do not cover (half precision, dilation, groups, channels first,
            unknown image size); on a CPU it takes the spectral form or patches,
            whichever needs fewer multiplications. The attribute `form` tells the choice
            once the layer is built.
        **kwargs: the other arguments of `keras.layers.Conv2D`.

    Raises:
        ValueError: if `conv` is none of these, or the form asked for does not cover
            the layer's other arguments.
    """

    def __init__(self, filters, kernel_size, conv="auto", **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        if conv not in CONV_FORMS:
            raise ValueError(f"conv must be one of {CONV_FORMS}, not {conv!r}")
        self.conv = conv
        self.form = None

    def build(self, input_shape):
        """Make the weights and choose the form for `input_shape`, `(B, H, W, C)`."""
        super().build(input_shape)
        self.form = self._choose_form(input_shape)
        if self.form == "direct" and max(self.strides) > 1:
            # XLA on a CPU takes 20 times as long for the gradient of this.
            self.supports_jit = not on_cpu()

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
        if self.conv != "auto":
            return self.conv
        if not covered or self.compute_dtype != "float32" or not on_cpu():
            return "direct"
        output_size = self.compute_output_shape(input_shape)[1:3]
        multiplications = math.prod(output_size) * math.prod(self.kernel.shape)
        _, spectral = self._tile(output_size)
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

    def convolution_op(self, inputs, kernel):
        """Convolve `inputs` `(B, H, W, C)` in the chosen form."""
        if self.form == "direct":
            return super().convolution_op(inputs, kernel)
        inputs = self._padded(inputs)
        if self.form == "spectral":
            return self._spectral(inputs, kernel)
        return self._unfolded(inputs, kernel)

    def _padded(self, inputs):
        """Pad as TensorFlow's "same" does, so that a "valid" convolution remains."""
        if self.padding == "valid":
            return inputs
        padding = [(0, 0)]
        for size, k, s in zip(inputs.shape[1:3], self.kernel_size, self.strides):
            missing = max(0, (-(-size // s) - 1) * s + k - size)
            padding.append((missing // 2, missing - missing // 2))
        return ops.pad(inputs, padding + [(0, 0)])

    def _unfolded(self, inputs, kernel):
        """One matrix product with the patches under the kernel."""
        (kh, kw), (sh, sw) = self.kernel_size, self.strides
        _, height, width, channels = inputs.shape
        rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
        x = ops.stack(
            [inputs[:, :, j : j + (columns - 1) * sw + 1 : sw] for j in range(kw)], 3
        )  # (B, H, columns, kw, C)
        x = ops.stack([x[:, i : i + (rows - 1) * sh + 1 : sh] for i in range(kh)], 3)
        x = ops.reshape(x, (-1, kh * kw * channels))
        y = ops.matmul(x, ops.reshape(kernel, (kh * kw * channels, -1)))
        return ops.reshape(y, (-1, rows, columns, self.filters))

    def _spectral(self, inputs, kernel):
        (kh, kw), (sh, sw) = self.kernel_size, self.strides
        _, height, width, channels = inputs.shape
        rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
        (th, tw), _ = self._tile((rows, columns))
        tiles_h, tiles_w = -(-rows // th), -(-columns // tw)
        ph, pw = -(-kh // sh), -(-kw // sw)  # kernel of one phase
        nh, nw = th + ph - 1, tw + pw - 1  # size of a transform
        forward, kernel_basis, inverse = (
            ops.convert_to_tensor(m)
            for m in _fourier_bases((nh, nw), (ph, pw), (th, tw))
        )
        phases = sh * sw * channels

        # Bring the image to exactly the pixels that the tiles read.
        full_h, full_w = sh * (tiles_h * th + ph - 1), sw * (tiles_w * tw + pw - 1)
        x = inputs[:, :full_h, :full_w]
        missing = [(0, 0), (0, full_h - x.shape[1]), (0, full_w - x.shape[2]), (0, 0)]
        if any(after for _, after in missing):
            x = ops.pad(x, missing)
        x = ops.reshape(x, (-1, full_h // sh, sh, full_w // sw, sw, channels))
        x = ops.stack([x[:, i * th : i * th + nh] for i in range(tiles_h)], 1)
        x = ops.stack([x[:, :, :, :, j * tw : j * tw + nw] for j in range(tiles_w)], 2)
        # (B, tiles_h, tiles_w, nh, sh, nw, sw, C)
        x = ops.transpose(x, (3, 5, 0, 1, 2, 4, 6, 7))
        x = ops.matmul(forward, ops.reshape(x, (nh * nw, -1)))
        x = ops.reshape(x, (forward.shape[0], -1, phases))  # (R, B tiles, s s C)

        k = ops.pad(kernel, [(0, ph * sh - kh), (0, pw * sw - kw), (0, 0), (0, 0)])
        k = ops.reshape(k, (ph, sh, pw, sw, channels, self.filters))
        k = ops.transpose(k, (0, 2, 1, 3, 4, 5))
        k = ops.matmul(kernel_basis, ops.reshape(k, (ph * pw, -1)))
        k = ops.reshape(k, (forward.shape[0], phases, self.filters))

        y = ops.matmul(x, k)  # (R, B tiles, filters)
        y = ops.matmul(inverse, ops.reshape(y, (forward.shape[0], -1)))
        y = ops.reshape(y, (th, tw, -1, tiles_h, tiles_w, self.filters))
        y = ops.transpose(y, (2, 3, 0, 4, 1, 5))
        y = ops.reshape(y, (-1, tiles_h * th, tiles_w * tw, self.filters))
        return y[:, :rows, :columns]

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "conv": self.conv}


def PrimaryCap(
    inputs, dim_capsule, n_channels, kernel_size, strides, padding, conv="auto"
):
    """Primary capsules: a convolution whose outputs are grouped and squashed.

    Adds the layers `primarycap_conv2d`, `primarycap_reshape` and `primarycap_squash`
    (Sabour et al. 2017, section 4).

    Args:
        inputs: Keras tensor of shape `(batch, height, width, channels)`.
        dim_capsule: int. Dimension of a capsule.
        n_channels: int. Capsules at each position of the convolution's output.
        kernel_size: int or pair of int.
        strides: int or pair of int.
        padding: `"valid"` or `"same"`.
        conv: the form of the convolution, see `SpectralConv2D`. Defaults to `"auto"`.

    Returns:
        A Keras tensor of shape `(batch, positions * n_channels, dim_capsule)`.
    """
    outputs = SpectralConv2D(
        filters=dim_capsule * n_channels,
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        conv=conv,
        name="primarycap_conv2d",
    )(inputs)
    outputs = keras.layers.Reshape((-1, dim_capsule), name="primarycap_reshape")(
        outputs
    )
    return Squash(dtype="float32", name="primarycap_squash")(outputs)


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
    would keep the products of every d.

    Args:
        u: `(D, B, I)` input capsules.
        W: `(D, J, O, I)` transformation matrices.
        V: `(J, B, O)` sum of the outputs of the iterations so far.
        routing_gradient: bool. Whether the coupling coefficients are differentiated.

    Returns:
        `s`, the total input, float32 of shape `(J, B, O)`.
    """

    @ops.custom_gradient
    def total_input(u, W, V):
        dims = range(u.shape[0])
        low = u.dtype  # float32, or the half precision of the matrix products

        def transposed(x):
            return ops.transpose(x, (0, 2, 1))

        def agreement(x):  # (J, B, O) -> (J, B, I)
            x = ops.cast(x, low)
            return sum(_float32(ops.matmul(x, W[d]) * u[d]) for d in dims)

        def weighted_sum(c):  # (J, B, I) -> (J, B, O)
            c = ops.cast(c, low)
            return sum(_float32(ops.matmul(c * u[d], transposed(W[d]))) for d in dims)

        c = ops.softmax(agreement(V), axis=0)  # (J, B, I)

        def gradient(*args, upstream=None):
            ds = args[0] if upstream is None else upstream  # (J, B, O)
            pairs = [(ds, c)]  # d(s . ds) = sum of x_j . u_hat_ij y_ij over the pairs
            dV = ops.zeros_like(V)
            if routing_gradient:
                dc = agreement(ds)
                db = c * (dc - ops.sum(c * dc, axis=0, keepdims=True))  # (J, B, I)
                dV = weighted_sum(db)
                pairs.append((V, db))
            pairs = [(ops.cast(x, low), ops.cast(y, low)) for x, y in pairs]
            du = [
                ops.sum(sum(ops.matmul(x, W[d]) * y for x, y in pairs), axis=0)
                for d in dims
            ]
            dW = [
                sum(ops.matmul(transposed(x), y * u[d]) for x, y in pairs) for d in dims
            ]
            return ops.stack(du), ops.stack(dW), dV

        return weighted_sum(c), gradient

    return total_input(u, W, V)


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleLayer(keras.layers.Layer):
    """A layer of capsules with dynamic routing (Sabour et al. 2017, procedure 1).

    Every output capsule predicts itself from every input capsule, `u_hat_ij = W_ij
    u_i`, and the routing weighs the predictions by how far they agree. The logits start
    at zero and are not updated after the last iteration.

    The prediction vectors, B x J x I x O numbers, are never stored: see
    `_total_input`. Many or large layers are routed in blocks of input capsules, whose
    size follows from the shapes.

    Input shape: `(batch, input_num_capsule, input_dim_capsule)`.
    Output shape: `(batch, num_capsule, dim_capsule)`, float32 under mixed precision.

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
        routing_gradient=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
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
            name="W",
        )

    def default_initializer(self, input_num_capsule):
        """Return the initializer that `kernel_initializer=None` stands for."""
        scale = self.num_capsule / math.sqrt(input_num_capsule * self.dim_capsule)
        return keras.initializers.TruncatedNormal(stddev=scale)

    def call(self, inputs):
        """Route `inputs`, `(batch, I, D)`, to `(batch, num_capsule, dim_capsule)`."""
        u = ops.transpose(inputs, (2, 0, 1))  # (D, B, I)
        W = ops.cast(ops.transpose(self.W, (3, 0, 2, 1)), u.dtype)  # (D, J, O, I)
        if self.routing_gradient:
            routed_u, routed_W = u, W
        else:
            routed_u, routed_W = ops.stop_gradient(u), ops.stop_gradient(W)

        V = 0.0
        for iteration in range(self.routings):
            if iteration == self.routings - 1:
                routed_u, routed_W = u, W
            if iteration == 0:
                s = self._uniform_total_input(routed_u, routed_W)
            else:
                s = self._routed_total_input(routed_u, routed_W, V)
            v = squash(s)  # (J, B, O)
            V = V + v
        return ops.transpose(v, (1, 0, 2))

    def _uniform_total_input(self, u, W):
        """The first iteration, where every coupling coefficient is 1 / J."""
        D, J, O, I = W.shape  # noqa: E741
        W = ops.reshape(W, (D, J * O, I))
        s = sum(_float32(ops.matmul(u[d], ops.transpose(W[d]))) for d in range(D))
        return ops.transpose(ops.reshape(s / J, (-1, J, O)), (1, 0, 2))

    def _routed_total_input(self, u, W, V):
        _, J, _, I = W.shape  # noqa: E741
        batch = u.shape[1] or _TYPICAL_BATCH
        size = max(1, _BLOCK_BYTES // (4 * J * batch))
        return sum(
            _total_input(
                u[:, :, start : start + size],
                W[:, :, :, start : start + size],
                V,
                self.routing_gradient,
            )
            for start in range(0, I, size)
        )

    def compute_output_shape(self, input_shape):
        """Return `(batch, num_capsule, dim_capsule)`."""
        return (input_shape[0], self.num_capsule, self.dim_capsule)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_capsule": self.num_capsule,
            "dim_capsule": self.dim_capsule,
            "routings": self.routings,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer)
            if self.kernel_initializer
            else None,
            "routing_gradient": self.routing_gradient,
        }
