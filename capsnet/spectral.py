"""The convolution of a capsule network, in the Fourier domain where that is faster.

References:
    Mathieu, Henaff, LeCun. Fast Training of Convolutional Networks through FFTs.
        ICLR 2014. https://arxiv.org/abs/1312.5851
"""

import contextlib
import math

import keras
from keras import ops

from capsnet.numerics import full, on_cpu, part, replicas
from capsnet.transforms import LARGEST_TRANSFORM, MOVED, best_tile, transforms

CONV_FORMS = ("auto", "direct", "spectral", "patches")

DIRECT = 1.125
"""How long a multiplication of the backend's own convolution takes on a CPU, where one of
a large matrix product takes 1; but for JAX, see `_direct`."""


def _direct():
    """`DIRECT`, or infinity: XLA on a CPU has no kernels for a convolution's gradients.

    The primary capsules of 100 images took it 22 s in place of 0.2. Specific to the
    backend.
    """
    return math.inf if keras.backend.backend() == "jax" else DIRECT


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


def _float32_products(x):
    """A context whose matrix products have all of float32's bits, with their gradients.

    Specific to the backend: JAX's default on accelerators is TF32 or bfloat16, and
    PyTorch's `autocast` takes half precision wherever the tensor `x` lies.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    if keras.backend.backend() == "torch" and hasattr(x, "device"):
        import torch

        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def _every(x, axis, start, count, step):
    """`count` entries of `axis` from `start` on, a `step` apart."""
    x = part(x, axis, start, (count - 1) * step + 1)
    return x if step == 1 else x[(*[slice(None)] * axis, slice(None, None, step))]


def _overlapping(x, axis, count, step, size):
    """Cut `axis` into `count` pieces of `size`, a `step` apart: two axes for one."""
    if count == 1:  # nothing to copy
        return ops.expand_dims(x, axis)
    return ops.stack([part(x, axis, i * step, size) for i in range(count)], axis)


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
       matrices; see `capsnet.transforms`.
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
            on a CPU the one that takes least, by the multiplications and the numbers
            moved, with JAX never the direct one. The other two compute in float32, or in
            float64 where that is asked for. The attribute `form` tells the choice once
            the layer is built.
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
            # XLA on a CPU takes 20 times as long for the gradient of this; JAX has no other.
            tensorflow = keras.backend.backend() == "tensorflow"
            self.supports_jit = not (self._on_cpu and tensorflow)

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
        tile, spectral = self._tile(output_size)
        if self.conv == "spectral":
            if tile is None:
                raise ValueError(
                    f"conv='spectral' takes no kernels of {self.kernel_size}, which "
                    f"reach over more than {LARGEST_TRANSFORM} times the stride"
                )
            if not precise:
                raise ValueError(
                    "conv='spectral' needs all bits of float32 in matrix products: use "
                    "conv='direct', or "
                    "tf.config.experimental.enable_tensor_float_32_execution(False), or "
                    "torch.set_float32_matmul_precision('highest')"
                )
            return "spectral"
        copied = math.prod(output_size) * math.prod(self.kernel.shape[:3])
        multiplications = copied * self.filters
        costs = {
            "spectral": spectral,
            "patches": multiplications + 0.75 * MOVED * copied,  # written, read once
            "direct": multiplications * _direct(),
        }
        return min(costs, key=costs.get)

    def _tile(self, output_size):
        how = (self.kernel_size, self.strides, *self.kernel.shape[2:])
        return best_tile(tuple(output_size), *how)

    def call(self, inputs):
        """Convolve `inputs` `(B, H, W, C)`, add the bias and apply the activation."""
        if self._form(inputs) != "patches" or not self.use_bias:
            return super().call(inputs)
        outputs = self._unfolded(inputs, self.kernel, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def _form(self, inputs):
        """The chosen form; direct where a graph of TensorFlow lost the image's size."""
        return "direct" if None in inputs.shape[1:] else self.form

    def convolution_op(self, inputs, kernel):
        """Convolve `inputs` `(B, H, W, C)` in the chosen form, without the bias."""
        form = self._form(inputs)
        if form == "direct":
            return super().convolution_op(inputs, kernel)
        if form == "patches":
            return self._unfolded(inputs, kernel)
        with _float32_products(inputs):
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
        inputs, kernel = self._padded(full(inputs)), full(kernel)
        (kh, kw), (sh, sw) = self.kernel_size, self.strides
        _, height, width, channels = inputs.shape
        rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
        x = ops.stack([_every(inputs, 2, j, columns, sw) for j in range(kw)], 3)
        # (B, H, columns, kw, C)
        x = ops.stack([_every(x, 1, i, rows, sh) for i in range(kh)], 3)
        x = ops.reshape(x, (-1, kh * kw * channels))
        kernel = ops.reshape(kernel, (kh * kw * channels, -1))
        if bias is not None:
            x = ops.concatenate([x, ops.ones_like(x[:, :1])], axis=1)
            kernel = ops.concatenate([kernel, full(bias)[None]], axis=0)
        y = ops.cast(x @ kernel, self.compute_dtype)
        return ops.reshape(y, (-1, rows, columns, self.filters))

    def _spectral(self, inputs, kernel):
        inputs, kernel = self._padded(full(inputs)), full(kernel)
        (kh, kw), (sh, sw) = self.kernel_size, self.strides
        _, height, width, channels = inputs.shape
        rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
        (th, tw), _ = self._tile((rows, columns))
        tiles_h, tiles_w = -(-rows // th), -(-columns // tw)
        ph, pw = -(-kh // sh), -(-kw // sw)  # kernel of one phase
        nh, nw = th + ph - 1, tw + pw - 1  # size of a transform
        forward, kernel_basis, inverse = (
            ops.convert_to_tensor(matrix, inputs.dtype)
            for matrix in transforms((nh, nw), (ph, pw), (th, tw))
        )
        phases = sh * sw * channels

        # Bring the image to exactly the pixels that the tiles read.
        full_h, full_w = sh * (tiles_h * th + ph - 1), sw * (tiles_w * tw + pw - 1)
        x = part(part(inputs, 1, 0, full_h), 2, 0, full_w)
        if height < full_h or width < full_w:
            missing = max(0, full_h - height), max(0, full_w - width)
            x = ops.pad(x, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
        x = ops.reshape(x, (-1, full_h // sh, sh, full_w // sw, sw, channels))
        x = _overlapping(x, 1, tiles_h, th, nh)
        x = _overlapping(x, 4, tiles_w, tw, nw)
        # (B, tiles_h, nh, sh, tiles_w, nw, sw, C)
        x = ops.transpose(x, (2, 5, 0, 1, 4, 3, 6, 7))
        x = forward @ ops.reshape(x, (nh * nw, -1))
        R, devices = forward.shape[0], replicas(inputs.shape[0])
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
        y = part(part(y, 1, 0, rows), 2, 0, columns)
        return ops.cast(y, self.compute_dtype)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "conv": self.conv}
