"""What the dimensions of a class capsule stand for."""

import os

import numpy as np

from capsnet import options, pictures
from capsnet.data import Bent, Pairs, TrainingBatches
from capsnet.inference import as_arrays, check_model, predict_in_batches
from capsnet.strokes import measure_strokes

MANIPULATIONS = np.linspace(-0.25, 0.25, 11)
"""What `capsulenet.manipulate_latent` adds to a dimension (Sabour et al. 2017, figure 4)."""

IMAGES = 20
"""Test images of a class whose dimensions are measured."""


def some_of(digit, y, seed, most):
    """Choose images of a class by the labels `(n, n_class)`; returns their indices."""
    return np.random.default_rng(seed).permutation(np.flatnonzero(y[:, digit]))[:most]


def as_test(model, data):
    """Return images and labels as arrays of NumPy that the manipulation model takes.

    Raises:
        ValueError: if they are none of its, or there is no such model.
    """
    if model is None:
        raise ValueError(
            "the network has no decoder, so there is nothing to manipulate"
        )
    check_model(model, 3)
    images, labels, _ = (x.shape[1:] for x in model.inputs)
    return as_arrays(data, images, *labels)


def manipulated(model, x, digit, amounts):
    """Reconstruct images with `amounts` added to each dimension of a class's capsule.

    Returns:
        An array `(n, dim_capsule, len(amounts), height, width, channels)`.
    """
    n_class, dim = model.inputs[2].shape[1:]
    noise = np.zeros((dim, len(amounts), n_class, dim), "float32")
    for d in range(dim):
        noise[d, :, :, d] = np.reshape(amounts, (-1, 1))
    noise = noise.reshape(-1, n_class, dim)
    y = np.eye(n_class, dtype="float32")[np.full(len(x) * len(noise), digit)]
    inputs = [np.repeat(x, len(noise), axis=0), y]
    images = predict_in_batches(model, [*inputs, np.tile(noise, (len(x), 1, 1))])
    return images.reshape(len(x), dim, len(amounts), *x.shape[1:])


def spread_of(x, y, shift_fraction, shifts):
    """Return the standard deviation of each of `STROKES` among images.

    Args:
        x: array `(n, height, width, channels)`, in [0, 1].
        y: array `(n, n_class)`.
        shift_fraction: float. How far the training shifts images, which is done here.
        shifts: str. How they are shifted, see `capsnet.options`.

    Returns:
        An array `(6,)`.
    """
    batches = TrainingBatches(x, y, 1000, shift_fraction, shifts=shifts)
    seen = [measure_strokes(batches[i][0][0]) for i in range(len(batches))]
    return np.std(np.concatenate(seen)[: len(x)], axis=0)  # each image once


def effects_on_strokes(drawn, spread):
    """Return what each dimension changes about the strokes, from its lower end to its upper.

    Args:
        drawn: array `(n, dim, 2, height, width, channels)`: images with a dimension
            lowered, and raised.
        spread: array `(6,)`, what the changes are divided by; where it is next to
            nothing, a change counts for nothing.

    Returns:
        An array `(dim, 6)`, means over the images.
    """
    measured = measure_strokes(drawn)
    change = np.mean(measured[:, :, 1] - measured[:, :, 0], axis=0)
    return change / np.where(spread > 1e-6, spread, np.inf)


def show(model, data, args, digits):
    """Measure and draw what the dimensions of the class capsules stand for.

    The change between the two ends of `MANIPULATIONS`, a mean over some images of each
    class, is given in standard deviations among all test images, shifted as the
    training shifts them. Classes that no pair shows first are left out.
    """
    x_test, y_test = data
    if isinstance(data, Pairs):  # strokes are measured of one digit alone
        x_test, y_test = data.digits[:, 0], data.labels[:, 0]
        digits = [digit for digit in digits if y_test[:, digit].any()]
    names = options.class_names(args, y_test.shape[1])
    moved = isinstance(data, (Bent, Pairs))  # already
    reach = 0.0 if moved else args.shift_fraction
    spread = spread_of(x_test, y_test, reach, args.shifts)
    ends = MANIPULATIONS[[0, -1]]
    pairs, effects = [], []
    for digit in digits:
        chosen = some_of(digit, y_test, args.seed, IMAGES)
        of_images = []
        for image in x_test[chosen]:  # one by one, since large ones fill the memory
            drawn = manipulated(model, image[None], digit, ends)
            if not of_images:
                pairs.append(drawn[0])
            of_images.append(effects_on_strokes(drawn, spread))
        effects.append(np.mean(of_images, axis=0))
    path = os.path.join(args.save_dir, "dimensions.png")
    pictures.plot_dimensions(pairs, effects, [names[digit] for digit in digits], path)
    print(f"What the dimensions stand for: {path}")
