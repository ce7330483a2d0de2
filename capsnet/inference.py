"""A model run over arrays, in batches that the memory holds."""

import math

import keras
import numpy as np

from capsnet.several import ONE_HOT


def images_at_once(model):
    """Return how many images a model should be given at once, to stay within 3 GB.

    500 digits of MNIST, fewer where there are more primary capsules than their 1,152,
    or more pixels than 64 x 64 in a network for pictures; 100 for a network without
    capsules.
    """
    if "digitcaps" not in [layer.name for layer in model.layers]:
        return 100
    digitcaps = model.get_layer("digitcaps")
    if digitcaps.shared:
        return max(1, min(500, 500 * 64**2 // math.prod(model.inputs[0].shape[1:3])))
    return max(1, min(500, 500 * 1152 // digitcaps.input.shape[1]))


def check_images(images, drawn=False):
    """Raise a `ValueError` where images can't be numbers from 0 to 1.

    Args:
        images: array `(n, height, width, channels)`.
        drawn: bool. Whether a decoder draws them, which draws nothing else; without it
            other floats are taken for what they are. Defaults to False.
    """
    images = np.asarray(images)
    if images.dtype.kind in "USO":
        raise ValueError(
            "images must be an array of numbers, (n, height, width, channels), not names "
            "or objects; files of pictures are read by --predict"
        )
    dtype = keras.backend.standardize_dtype(images.dtype)
    if not dtype.startswith(("float", "bfloat")) and images.max(initial=0) > 1:
        raise ValueError(
            f"images of type {dtype}: must be floats from 0 to 1, such as "
            'x.astype("float32") / 255'
        )
    if drawn and not (images.min() >= 0 and images.max() <= 1):  # NaN is neither
        raise ValueError(
            f"images from {images.min():.4g} to {images.max():.4g}: must be from 0 to 1, "
            "or the network without a decoder, decoder=False"
        )


def check_set(images, labels, drawn=False):
    """Raise a `ValueError` where images and labels can't be trained or tested on.

    Args:
        images: see `check_images`.
        labels: array `(n, n_class)` of zeros and ones.
        drawn: see `check_images`.
    """
    if not len(images):
        raise ValueError("no images to train or test on")
    check_images(images, drawn)
    if len(labels.shape) != 2:
        raise ValueError(f"labels of shape {tuple(labels.shape)}: {ONE_HOT}")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")


def as_images(images):
    """Return images as an array of float32; for errors see `check_images`."""
    images = np.asarray(images)
    check_images(images)
    return images.astype("float32", copy=False)


def outputs_of(model, images):
    """Return capsule lengths and reconstructions of images.

    Args:
        model: the evaluation model.
        images: array `(n, height, width, channels)`.

    Returns:
        Arrays `(n, n_class)` and of the shape of `images`, which is None from a model
        without a decoder.

    Raises:
        ValueError: if there are no images, or they have another shape than the model's.
    """
    if not len(images):
        raise ValueError("no images to predict")
    expected = tuple(model.inputs[0].shape[1:])
    if images.shape[1:] != expected:
        given = images.shape[1:]
        raise ValueError(f"images of shape {given}: the model takes {expected}")
    outputs = predict_in_batches(model, [images])
    return outputs if len(model.outputs) > 1 else (outputs, None)


def predict_in_batches(model, inputs, batch_size=None):
    """Run a model over arrays in batches of one size, so that nothing compiles twice.

    A larger batch costs less an image, since the kernels are transformed once a batch.
    `model.predict` would take 0.04 s more a call, for a pipeline that it sets up.

    Args:
        model: a Keras model.
        inputs: list of its inputs, arrays of equal length.
        batch_size: int. Defaults to `images_at_once`.

    Returns:
        What `model.predict` returns.
    """
    n = len(inputs[0])
    batch_size = min(batch_size or images_at_once(model), n)
    parts = []
    for begin in range(0, n, batch_size):
        indices = np.minimum(np.arange(begin, begin + batch_size), n - 1)
        batch = [array[indices] for array in inputs]
        parts.append(model.predict_on_batch(batch if len(batch) > 1 else batch[0]))
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays)[:n], *parts)
