"""The class capsules, and three models that share everything: to train, test, play with.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
"""

import math

import keras
from keras import layers, ops

from capsulelayers import CapsuleLayer, Length, Mask, full_dtype


def class_capsules(x, n_class, dim_capsule, routings=None, **how):
    """Add the class capsules, whose lengths are probabilities in any routing.

    Args:
        x: Keras tensor, input capsules as a `CapsuleLayer` takes them.
        n_class: int. Number of classes.
        dim_capsule: int. Dimension of a capsule.
        routings: int. Routing iterations. Defaults to the routing's own.
        **how: other arguments of `CapsuleLayer`.

    Returns:
        A Keras tensor `(B, n_class, dim_capsule)`.
    """
    if how.get("routing") == "inverted" and not how.get("squash"):
        how = {**how, "squash": "squash"}  # of its own it does not
    return CapsuleLayer(n_class, dim_capsule, routings, name="digitcaps", **how)(x)


def trio(x, digitcaps, decoder=True, most=None, name=None):
    """Add the capsules' lengths, and a decoder, to class capsules.

    The decoder reconstructs the image from one capsule, the others masked out (Sabour
    et al. 2017, section 4.1).

    Args:
        x: Keras tensor, the images `(B, height, width, channels)`.
        digitcaps: Keras tensor, the class capsules `(B, n_class, dim_capsule)`.
        decoder: bool. Whether there is one. Defaults to True.
        most: int, optional. Pixels a side that the decoder draws at most; larger images
            are drawn smaller and scaled up. Defaults to the images' own size.
        name: str, optional. Of the models: that of the network.

    Returns:
        `(train_model, eval_model, manipulate_model)`:

        - `train_model`: `[images, labels (B, n_class)]` to `[lengths, reconstructions]`,
          the decoder seeing the capsule of the label;
        - `eval_model`: `images` to the same, the decoder seeing the longest capsule;
        - `manipulate_model`: `[images, labels, noise (B, n_class, dim_capsule)]` to
          reconstructions of the label's capsule plus the noise.

        Without a decoder the first two are one model, of `images` to `lengths`, and the
        third is None.
    """
    full = full_dtype()  # of what half precision is not for
    # The length of each capsule, the probability of its class.
    lengths = Length(dtype=full, name="capsnet")(digitcaps)
    if not decoder:
        model = keras.Model(x, lengths, name=name)
        return model, model, None
    n_class, dim_capsule = digitcaps.shape[1:]
    decoded = _decoder(x.shape[1:], n_class * dim_capsule, most)
    y = layers.Input(shape=(n_class,))
    masked_by_y = Mask(dtype=full)([digitcaps, y])
    masked = Mask(dtype=full)(digitcaps)
    train_model = keras.Model([x, y], [lengths, decoded(masked_by_y)], name=name)
    eval_model = keras.Model(x, [lengths, decoded(masked)], name=name)

    noise = layers.Input(shape=(n_class, dim_capsule))
    noised_digitcaps = layers.Add(dtype=full)([digitcaps, noise])
    masked_noised_y = Mask(dtype=full)([noised_digitcaps, y])
    manipulate_model = keras.Model([x, y, noise], decoded(masked_noised_y), name=name)
    return train_model, eval_model, manipulate_model


def of_pairs(model):
    """Make the training model of pictures that show two classes, each drawn alone.

    The decoder runs once for each of the two, on its capsule (Sabour et al. 2017,
    section 6).

    Args:
        model: the training model of a trio, whose layers and weights it shares.

    Returns:
        A model of `[images, labels (B, 2, n_class)]` to `[lengths (B, n_class),
        reconstructions (B, 2, height, width, channels)]`; without a decoder `model`.
    """
    if len(model.outputs) == 1:
        return model
    x, y = model.inputs
    labels = layers.Input(shape=(2, y.shape[1]))
    capsules, decoder = (model.get_layer(n) for n in ("digitcaps", "decoder"))
    mask = Mask(dtype=full_dtype())
    drawn = [decoder(mask([capsules.output, labels[:, i]])) for i in (0, 1)]
    outputs = [model.outputs[0], ops.stack(drawn, axis=1)]
    return keras.Model([x, labels], outputs, name=model.name)


def _decoder(image_shape, size, most):
    """The decoder of capsules of `size` numbers, see `trio`."""
    full = full_dtype()
    height, width, channels = image_shape
    small = [min(side, most or side) for side in (height, width)]
    drawn = (*small, channels)
    last = [layers.Reshape(drawn, dtype=full, name="out_recon")]
    if small != [height, width]:
        how_resized = {"data_format": "channels_last", "name": "out_recon"}
        last = [
            layers.Reshape(drawn, dtype=full),
            layers.Resizing(height, width, dtype=full, **how_resized),
        ]
    return keras.Sequential(
        [
            layers.Input(shape=(size,)),
            # Named, for PyTorch's `state_dict` to fit the same network once more.
            layers.Dense(512, "relu", name="dense"),
            layers.Dense(1024, "relu", name="dense_1"),
            layers.Dense(math.prod(drawn), "sigmoid", dtype=full, name="dense_2"),
            *last,
        ],
        name="decoder",
    )


def start_as_the_authors(models):
    """Set weights to what they start from in `research/capsules` of Sarasra/models.

    Args:
        models: the trio of `capsulenet.CapsNet`, with a bias of the class capsules.

    Returns:
        `models`.
    """
    # What the second convolution gives is shared out there, to as many channels.
    channels = models[0].get_layer("primarycap_conv2d").filters
    channels /= models[0].get_layer("primarycap_reshape").target_shape[-1]
    deviations = {"conv1": 0.05, "primarycap_conv2d": 0.1 / channels, "digitcaps": 0.1}
    for name, stddev in deviations.items():
        kernel, bias = models[0].get_layer(name).weights
        kernel.assign(keras.initializers.TruncatedNormal(stddev=stddev)(kernel.shape))
        bias.assign(keras.initializers.Constant(0.1)(bias.shape))
    return models
