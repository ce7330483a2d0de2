"""A model run over arrays, in batches that the memory holds."""

import math

import keras
import numpy as np
from keras import ops

from capsnet.architecture import capsule_layer
from capsnet.several import ONE_HOT


def images_at_once(model):
    """Return how many images a model should be given at once, to stay within 3 GB.

    500 digits of MNIST, fewer where there are more primary capsules than their 1,152,
    or more pixels than 64 x 64 in a network for pictures; 100 for a network without
    capsules of this library.
    """
    digitcaps = capsule_layer(model)
    if digitcaps is None:
        return 100
    if digitcaps.shared:
        return max(1, min(500, 500 * 64**2 // math.prod(model.inputs[0].shape[1:3])))
    return max(1, min(500, 500 * 1152 // digitcaps.input.shape[1]))


NO_DECODER = "the network without a decoder, decoder=False"
"""What takes images that are not from 0 to 1."""


def check_images(images, drawn=False, unless=NO_DECODER):
    """Raise a `ValueError` where images can't be numbers from 0 to 1.

    Args:
        images: array `(n, height, width, channels)`.
        drawn: bool. Whether a decoder draws them, which draws nothing else; without it
            other floats are taken for what they are. Defaults to False.
        unless: str. What would take them; for the error.
    """
    images = np.asarray(images)
    if images.dtype.kind in "USO":
        raise ValueError(
            "images must be an array of numbers, (n, height, width, channels), not names "
            "or objects; files of pictures are read by --predict"
        )
    dtype = keras.backend.standardize_dtype(images.dtype)
    low, high = images.min(initial=0), images.max(initial=0)
    if not dtype.startswith(("float", "bfloat")) and high > 1:
        raise ValueError(
            f"images of type {dtype}: must be floats from 0 to 1, such as "
            'x.astype("float32") / 255'
        )
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("images of numbers that are not finite")
    if drawn and not 0 <= low <= high <= 1:
        raise ValueError(
            f"images from {low:.9g} to {high:.9g}: must be from 0 to 1, or {unless}"
        )


def check_model(model, inputs):
    """Raise a `ValueError` unless a model is the one of the three with so many inputs."""
    if not getattr(model, "inputs", None):
        raise ValueError("the model must tell its inputs: functional or Sequential")
    if len(model.inputs) != inputs:
        raise ValueError(
            "of the three models the first is trained, the second tested and asked, the "
            "third manipulated"
        )


def as_set(data, model, trained=False):
    """Return images and labels as arrays of NumPy that a model is trained or tested on.

    Args:
        data: pair of images `(n, height, width, channels)` and labels `(n, n_class)`,
            zeros and ones: whatever NumPy makes arrays of. What tells more than that,
            such as `capsnet.data.Pairs`, is checked and returned as it is.
        model: the training model, or the evaluation model.
        trained: bool. Whether it is to be trained. Defaults to False.

    Raises:
        ValueError: if it is no such pair, or not the model's, or that is another model.
    """
    check_model(model, len(getattr(model, "outputs", ())) if trained else 1)
    sizes = (model.inputs[0].shape[1:], model.outputs[0].shape[-1])
    return as_arrays(data, *sizes, drawn=len(model.outputs) > 1)


def as_arrays(data, shape, n_class, drawn=True):
    """As `as_set`, of images of a shape without the batch, and a number of classes."""
    images, labels = map(_native, data)
    check_images(images, drawn)
    _check_shape(images, shape)
    if not len(images):
        raise ValueError("no images to train or test on")
    if labels.ndim != 2 or labels.shape[1] != n_class:
        raise ValueError(
            f"labels of shape {labels.shape} for {n_class} classes: {ONE_HOT}"
        )
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels that are not all 0 or 1: {ONE_HOT}")
    return data if hasattr(data, "_fields") else (images, labels)


def _native(array):
    """An array of NumPy in the byte order of this machine, which backends suppose."""
    array = array if isinstance(array, np.ndarray) else ops.convert_to_numpy(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder())


def _check_shape(images, shape):
    given, expected = images.shape[1:], tuple(shape)
    if given != expected:
        raise ValueError(f"images of shape {given}: the model takes {expected}")


def as_images(images, model):
    """Return images for a model as an array of float32; for errors see `check_images`."""
    check_model(model, 1)
    images = _native(images) if ops.is_tensor(images) else np.asarray(images)
    check_images(images, drawn=len(model.outputs) > 1)
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
    _check_shape(images, model.inputs[0].shape[1:])
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
