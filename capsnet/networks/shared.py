"""CapsNet with one transformation for all positions of a type of capsule.

References:
    Gu, Tresp. Improving the Robustness of Capsule Networks to Image Affine
        Transformations. CVPR 2020. https://arxiv.org/abs/1911.07968
"""

from keras import layers

from capsnet.architecture import KERNEL_SIZE, STRIDES, check_image_size
from capsnet.networks.photo import by_place
from capsnet.networks.trio import class_capsules, trio
from capsulelayers import PrimaryCap, SpectralConv2D


def SharedCapsNet(
    input_shape,
    n_class,
    routings=None,
    *,
    routing="none",
    filters=256,
    n_channels=32,
    dim_primary=8,
    dim_capsule=16,
    conv="auto",
    decoder=True,
    **how,
):
    """Build the paper's network with shared transformations, by default without routing.

    What a capsule type predicts does not depend on where in the image it is, so that a
    transformation is learned once for all places.

    Args:
        input_shape: tuple `(height, width, channels)`; sides of at least 17 pixels.
        n_class: int. Number of classes.
        routings: int. Number of routing iterations. Defaults to the routing's own.
        routing: see `CapsuleLayer`. Defaults to `"none"`.
        filters: int. Filters of the first convolution. Defaults to 256.
        n_channels: int. Types of primary capsules. Defaults to 32.
        dim_primary: int. Their dimension. Defaults to 8.
        dim_capsule: int. Dimension of a class capsule. Defaults to 16.
        conv: form of the convolutions, see `SpectralConv2D`. Defaults to `"auto"`.
        decoder: bool. Whether images are reconstructed, see `trio`. Defaults to True.
        **how: of the class capsules: others of `CapsuleLayer`.

    Returns:
        `(train_model, eval_model, manipulate_model)`, see `trio`.

    Raises:
        ValueError: if the images are too small for the two convolutions.
    """
    check_image_size(input_shape, "shared", 2 * KERNEL_SIZE - 1)
    x = layers.Input(shape=input_shape)
    form = {"conv": conv, "data_format": "channels_last"}
    # Layer 1: a conventional convolution.
    conv1 = {"activation": "relu", "name": "conv1"}
    conv1 = SpectralConv2D(filters, KERNEL_SIZE, **conv1, **form)(x)
    # Layer 2: primary capsules, a vector for each type at each place.
    size = (dim_primary, n_channels, KERNEL_SIZE, STRIDES, "valid")
    primarycaps = PrimaryCap(conv1, *size, kernel_initializer="glorot_uniform", **form)
    # Layer 3: the class capsules.
    size = (n_class, dim_capsule, routings)
    how |= {"routing": routing, "shared": True}
    digitcaps = class_capsules(by_place(primarycaps, n_channels), *size, **how)
    return trio(x, digitcaps, decoder, name="shared")
