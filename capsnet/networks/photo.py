"""A capsule network for pictures of any size and colour.

References:
    Gu, Tresp. Improving the Robustness of Capsule Networks to Image Affine
        Transformations. CVPR 2020. https://arxiv.org/abs/1911.07968
    He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
        https://arxiv.org/abs/1512.03385
"""

import math

import keras
from keras import layers

from capsnet.architecture import check_image_size
from capsnet.networks.normalization import batch_normalization
from capsnet.networks.trio import class_capsules, trio
from capsnet.rules import kernel_initializer, rule
from capsulelayers import PrimaryCap

SMALLEST, LARGEST = 17, 512
"""Sides of pictures, in pixels, that `residual_stem` is for."""

STARTING_LENGTH = 1.28
"""What input capsules are taken to be long at the start: as if longer than they are, so
that class capsules start shorter than those of a stack of layers do."""

DRAWN = 32
"""Pixels a side that the decoder draws at most."""


def PhotoCapsNet(
    input_shape,
    n_class,
    routings=None,
    *,
    stem=None,
    n_channels=16,
    dim_primary=8,
    dim_capsule=16,
    decoder=True,
    **how,
):
    """Build a capsule network for pictures.

    Each image is standardised, a residual stem makes a map of about 8 x 8 places of it,
    and one transformation a capsule type, the same at all places, predicts the class
    capsules (Gu and Tresp 2020). With one routing iteration all predictions count alike,
    which learned more from a few hundred pictures than three did.

    Args:
        input_shape: tuple `(height, width, channels)`; sides of 17 to 512 pixels.
        n_class: int. Number of classes.
        routings: int. Routing iterations. Defaults to 1, or to those of another routing.
        stem: Keras model of images of `input_shape`, standardised, to a map `(batch,
            rows, columns, channels)`, such as one of `keras.applications` without its
            top. Defaults to `residual_stem(input_shape)`.
        n_channels: int. Primary capsules at each place. Defaults to 16.
        dim_primary: int. Dimension of a primary capsule. Defaults to 8.
        dim_capsule: int. Of a class capsule. Defaults to 16.
        decoder: bool. Whether images are reconstructed, see `trio`. Defaults to True.
        **how: of the class capsules: `routing` and others of `CapsuleLayer`.

    Returns:
        `(train_model, eval_model, manipulate_model)`, see `trio`.

    Raises:
        ValueError: if the images have another size, or the stem gives no map.
    """
    if stem is None:
        stem = residual_stem(input_shape)
    else:
        _check_stem(stem)
    x = layers.Input(shape=input_shape)
    # Layer 1: how bright, dark or pale a picture is says nothing of its class.
    only = {"center": False, "scale": False, "name": "standardize"}
    standard = layers.LayerNormalization(axis=[1, 2, 3], **only)(x)
    # Layer 2: conventional convolutions.
    features = stem(standard)
    # Layer 3: primary capsules, a vector for each type at each place.
    size = (dim_primary, n_channels, 1, 1, "valid")
    form = {"data_format": "channels_last", "kernel_initializer": "glorot_uniform"}
    primarycaps = PrimaryCap(features, *size, **form)
    places = by_place(primarycaps, n_channels)
    # Layer 4: the class capsules.
    how = {"routing": "dynamic", **how}
    once = routings is None and how["routing"] == "dynamic"
    size = (n_class, dim_capsule, 1 if once else routings)
    how = {"kernel_initializer": _first_weights(places, *size, **how), **how}
    digitcaps = class_capsules(places, *size, shared=True, **how)
    return trio(x, digitcaps, decoder, most=DRAWN, name="photo")


def by_place(capsules, n_channels):
    """Give capsules `(B, I, D)` the shape `(B, positions, n_channels, D)`."""
    shape = (-1, n_channels, capsules.shape[-1])
    return layers.Reshape(shape, dtype=capsules.dtype, name="places")(capsules)


def _first_weights(capsules, n_class, dim_capsule, routings, routing, **how):
    """What the transformations start from, see `STARTING_LENGTH`."""
    positions, n_channels = capsules.shape[1:3]
    sizes = (n_class, n_channels, dim_capsule, positions, STARTING_LENGTH)
    of_rule = rule(routing, routings, leaky=how.get("leaky", False))
    return kernel_initializer(*sizes, of_rule)


def _check_stem(stem):
    """Check a stem that was given; files tell that of `residual_stem` by its name."""
    if not getattr(stem, "inputs", None):
        raise ValueError(
            f"stem {stem.name}: must tell its inputs, functional or Sequential with one"
        )
    shapes = [tuple(output.shape) for output in stem.outputs]
    if [len(shape) for shape in shapes] != [4]:
        raise ValueError(
            f"stem {stem.name}: gives {', '.join(map(str, shapes))}, not a map (batch, "
            "rows, columns, channels); models of keras.applications do with "
            "include_top=False"
        )
    if stem.name == "stem":
        ours = residual_stem(stem.input_shape[1:])
        if _layers_of(stem) != _layers_of(ours):
            raise ValueError("stem: has the name of residual_stem's, but other layers")


def _layers_of(model):
    return [{**layer.get_config(), "name": type(layer)} for layer in model.layers]


def residual_stem(input_shape):
    """Build convolutions from a picture to a map of about 8 x 8 places (He et al. 2016).

    Args:
        input_shape: tuple `(height, width, channels)`; sides of 17 to 512 pixels.

    Returns:
        A Keras model named `stem`, of images to `(batch, rows, columns, 128)`.

    Raises:
        ValueError: if the pictures are smaller or larger.
    """
    check_image_size(input_shape, "photo", SMALLEST, LARGEST)
    halvings = round(math.log2(min(input_shape[:2]) / 8))
    x = inputs = layers.Input(shape=input_shape)
    for index in range(max(1, halvings - 2)):
        strides = 2 if index < halvings - 2 else 1
        x = _normalised(x, f"conv{index + 1}", 32, 3, strides)
        x = layers.ReLU()(x)
    for index, filters in enumerate((32, 64, 128)):
        strides = 2 if index >= 3 - min(halvings, 2) else 1
        x = _residual(x, f"block{index + 1}", filters, strides)
    return keras.Model(inputs, x, name="stem")


def _residual(x, name, filters, strides):
    y = layers.ReLU()(_normalised(x, f"{name}_conv1", filters, 3, strides))
    y = _normalised(y, f"{name}_conv2", filters, 3)
    if strides > 1 or x.shape[-1] != filters:
        x = _normalised(x, f"{name}_shortcut", filters, 1, strides)
    return layers.ReLU()(layers.Add()([x, y]))


def _normalised(x, name, filters, kernel_size, strides=1):
    """A convolution and batch normalization, whose averages are of ten batches or so."""
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        data_format="channels_last",
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return batch_normalization(momentum=0.9, name=f"{name}_normalized")(x)
