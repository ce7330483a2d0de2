"""What a drawing looks like, in numbers: the width of its strokes, its slant, its size."""

import numpy as np

STROKES = ("stroke width", "slant", "height", "width", "down", "right")
"""What `measure_strokes` measures."""

WEAKEST = 0.5
"""Below so many standard deviations a dimension is said to change little."""


def measure_strokes(images):
    """Measure the strokes of drawings, dark on light or light on dark.

    The properties are those of Morpho-MNIST (Castro, Tan, Kainz, Konukoglu, Glocker.
    JMLR 2019, https://arxiv.org/abs/1809.10780) and the place, taken from the grey
    values' first and second moments, and for the stroke width from twice the ink over
    the length of its outline, the total variation. What has less than a tenth of the
    full ink is ground. Of photographs the figures say little.

    Args:
        images: array `(..., height, width, channels)`, in [0, 1].

    Returns:
        An array `(..., 6)` of the properties `STROKES`: stroke width, in pixels; slant,
        columns to the right a row up; height, and width without the slant, as standard
        deviations in pixels; and how far down and right the middle lies, in pixels.
        Images without ink measure 0, and the slant of one without height is 0.
    """
    ink = np.asarray(images, "float64").mean(-1)
    border = [ink[..., 0, :], ink[..., -1, :], ink[..., 0], ink[..., -1]]
    light = np.median(np.concatenate(border, axis=-1), axis=-1) > 0.5
    ink = np.where(light[..., None, None], 1 - ink, ink)
    ink = np.where(ink < 0.1, 0, ink)
    framed = np.pad(ink, [(0, 0)] * (ink.ndim - 2) + [(1, 1)] * 2)
    down, right = np.diff(framed, axis=-2), np.diff(framed, axis=-1)
    outline = np.hypot(  # between four pixels each, so that no direction is preferred
        down[..., :, 1:] + down[..., :, :-1], right[..., 1:, :] + right[..., :-1, :]
    ).sum((-2, -1))
    total = ink.sum((-2, -1))
    weight = ink / np.where(total > 0, total, 1)[..., None, None]
    rows, columns = np.indices(ink.shape[-2:])
    down, right = ((weight * place).sum((-2, -1)) for place in (rows, columns))
    dy = rows - down[..., None, None]
    dx = columns - right[..., None, None]
    yy, xy, xx = ((weight * p).sum((-2, -1)) for p in (dy * dy, dx * dy, dx * dx))
    slope = xy / np.where(yy > 0, yy, 1)
    return np.stack(
        [
            4 * total / np.where(outline > 0, outline, 1),
            -slope,
            np.sqrt(yy),
            np.sqrt(np.maximum(xx - slope * xy, 0)),
            down,
            right,
        ],
        axis=-1,
    )
