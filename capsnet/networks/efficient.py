"""Efficient-CapsNet: few weights, attention routing, for small grey images.

References:
    Mazzia, Salvetti, Chiaberge. Efficient-CapsNet: Capsule Network with Self-Attention
        Routing. Scientific Reports 2021. https://arxiv.org/abs/2101.12491
"""

import keras
from keras import layers, ops

from capsnet.architecture import check_image_size
from capsnet.networks.normalization import batch_normalization
from capsnet.networks.trio import class_capsules, trio
from capsnet.numerics import full, part
from capsnet.squashes import exponential_squash
from capsulelayers import SpectralConv2D, full_dtype

SMALLEST, LARGEST = 13, 64
"""Pixels a side."""

HALVED_TWICE = 36
"""Pixels a side from which two convolutions have stride 2, as the authors' network for
two digits has."""


def EfficientCapsNet(
    input_shape,
    n_class,
    routings=None,
    *,
    routing="attention",
    dim_primary=8,
    dim_capsule=16,
    decoder=True,
    **how,
):
    """Build Efficient-CapsNet (Mazzia et al. 2021, figure 2).

    161,824 trainable weights without the decoder for MNIST, 154,656 for 36 x 36 pixels.

    Args:
        input_shape: tuple `(height, width, channels)`; sides of 13 to 64 pixels. From 36
            on, the third convolution has stride 2 as well, and the primary capsules see 5
            x 5 places of the map and not all of it.
        n_class: int. Number of classes.
        routings: int. Number of routing iterations. Defaults to the routing's own.
        routing: see `CapsuleLayer`. Defaults to `"attention"`.
        dim_primary: int. Dimension of a primary capsule. Defaults to 8.
        dim_capsule: int. Dimension of a class capsule. Defaults to 16.
        decoder: bool. Whether images are reconstructed, see `trio`. Defaults to True.
        **how: of the class capsules: `use_bias`, `leaky`, `routing_gradient` and others
            of `CapsuleLayer`.

    Returns:
        `(train_model, eval_model, manipulate_model)`, see `trio`.

    Raises:
        ValueError: if the images have another size.
    """
    check_image_size(input_shape, "efficient", SMALLEST, LARGEST)
    x = inputs = layers.Input(shape=input_shape)
    # Layers 1 to 4: convolutions.
    large = min(input_shape[:2]) >= HALVED_TWICE
    sizes = ((32, 5, 1), (64, 3, 1), (64, 3, 2 if large else 1), (128, 3, 2))
    for number, size in enumerate(sizes, start=1):
        how_convolved = {"data_format": "channels_last", "name": f"conv{number}"}
        how_convolved |= {"activation": "relu", "kernel_initializer": "he_normal"}
        x = SpectralConv2D(*size, **how_convolved)(x)
        x = batch_normalization(name=f"normalized{number}")(x)
    # Layer 5: primary capsules, each of its own filters, which see all of the map.
    kernel, strides = ((5, 5), 2) if large else (x.shape[1:3], 1)
    how_convolved = {"data_format": "channels_last", "name": "primarycap_depthwise"}
    x = DepthwiseByPlace(kernel, strides, **how_convolved)(x)
    x = layers.Reshape((-1, dim_primary), name="primarycap_reshape")(x)
    how_squashed = {"dtype": full_dtype(), "name": "primarycap_squash"}
    primarycaps = layers.Activation(exponential_squash, **how_squashed)(x)
    # Layer 6: the class capsules.
    size = (n_class, dim_capsule, routings)
    digitcaps = class_capsules(primarycaps, *size, routing=routing, **how)
    return trio(inputs, digitcaps, decoder, name="efficient")


@keras.saving.register_keras_serializable(package="capsnet")
class DepthwiseByPlace(layers.DepthwiseConv2D):
    """A `DepthwiseConv2D` of few places, each of them a weighted sum.

    Its weights are those of `keras.layers.DepthwiseConv2D`, and so are its outputs, to
    rounding. XLA takes 200 times as long for the gradients of that one on a CPU, and
    oneDNN twice, where the kernel covers the map.

    Channels last, "valid", one filter a channel, with a bias and no activation.
    """

    def call(self, inputs):
        """Convolve `inputs` `(B, H, W, C)`, to `(B, rows, columns, C)`."""
        if None in inputs.shape[1:]:  # which a graph of TensorFlow lost
            return super().call(inputs)
        x, kernel = full(inputs), ops.squeeze(full(self.kernel), -1)
        _, rows, columns, channels = self.compute_output_shape(inputs.shape)
        (height, width), (sh, sw) = self.kernel_size, self.strides
        places = []
        for i in range(rows):
            row = part(x, 1, i * sh, height)
            for j in range(columns):
                seen = part(row, 2, j * sw, width)
                places.append(ops.sum(seen * kernel, (1, 2)))
        x = ops.reshape(ops.stack(places, 1), (-1, rows, columns, channels))
        return ops.cast(x + full(self.bias), self.compute_dtype)
