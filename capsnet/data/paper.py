"""Drawings on photographed paper: what is drawn, without the paper, its light and lines.

The ground is what a closing makes of the picture: in a square window that no stroke
fills, dark strokes vanish, while shadows and tables, which are larger than it, stay as
they are, with their edges (Serra. Image Analysis and Mathematical Morphology, 1982).
The drawing is what is darker than that, above Otsu's threshold (Otsu 1979, A Threshold
Selection Method from Gray-Level Histograms), and hangs together.
"""

import numpy as np
from PIL import Image, ImageFilter

SIDE = 320
"""Pixels that the longer side of a picture is reduced to, where it has more."""

FAINTEST = 0.08
"""The least part of the light that ink takes away; paper and sensors vary by less."""

WINDOW = 0.25
"""Of the shorter side: the window of the closing before strokes are measured."""

RULES = np.arange(-8, 8.1, 0.5)
"""Degrees that the lines of ruled paper are looked for at, about the axes."""


def reduced(picture, side=SIDE):
    """Reduce a picture to `side` pixels at most, its aspect kept."""
    scale = min(1, side / max(picture.size))
    size = [max(1, round(scale * pixels)) for pixels in picture.size]
    return picture.resize(size, Image.Resampling.BOX)


def lift_drawing(picture, light):
    """Lift a drawing from the paper that it was photographed on.

    Args:
        picture: Pillow image of mode `L`, as `reduced` returns it.
        light: bool. Whether the paper is light and the pen dark.

    Returns:
        A float array `(height, width)`: 0 where nothing is drawn, 1 where much of the
        ink is. All 0 where there is no drawing.
    """
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)), "int16")
    pixels = pixels + 1 if light else 256 - pixels
    window = max(3, round(WINDOW * min(pixels.shape)))
    for _ in range(3):  # each time with what was learned of the strokes' width
        dark = 1 - pixels / _closing(pixels, window)
        usual = np.median(dark)
        noise = usual - np.quantile(dark, 0.16)  # the darker half may have lines
        dark = _without_rules(np.clip(dark - usual, 0, 1))
        drawn, level = _drawing(dark, max(_otsu(dark), FAINTEST, 5 * noise))
        if not drawn.any():
            return np.zeros(pixels.shape)
        outline = np.diff(np.pad(drawn, 1), axis=0), np.diff(np.pad(drawn, 1), axis=1)
        width = 2 * drawn.sum() / sum(change.sum() for change in outline)
        if (narrower := round(2.5 * width) + 2) >= window:
            break
        window = narrower
    around = _most(_most(np.pad(drawn, 2), 5, 0), 5, 1)
    return np.where(around, np.clip((dark / level - 0.15) / 0.85, 0, 1), 0)


def has_light_ground(picture):
    """Whether what stands out in a photograph is mostly darker than what is around it.

    Edges of shadows and tables do not count: a median keeps them.

    Args:
        picture: Pillow image of mode `L`.

    Returns:
        bool.
    """
    small = reduced(picture, 64)
    around = np.asarray(small.filter(ImageFilter.MedianFilter(17)), "float64")
    out = np.asarray(small) - around
    return bool((out * abs(out)).sum() < 0)


def _most(values, window, axis):
    """The largest of each `window` values in a row: so many fewer, less one."""
    values = np.moveaxis(values, axis, 0)
    done = 1
    while done < window:
        ahead = min(done, window - done)
        values = np.maximum(values[: len(values) - ahead], values[ahead:])
        done += ahead
    return np.moveaxis(values, 0, axis)


def _closing(pixels, window):
    """Fill what is darker than its surroundings and nowhere holds a square window."""
    pixels = np.pad(pixels, window - 1, "edge")  # what is cut off goes on
    pixels = _most(_most(pixels, window, 0), window, 1)
    return -_most(_most(-pixels, window, 0), window, 1)


def _otsu(values):
    """The threshold in [0, 1] that parts values into the two most distinct classes."""
    counts, edges = np.histogram(values, 256, (0, 1))
    below = np.cumsum(counts)
    total = np.cumsum(counts * edges[1:])
    both = below * (below[-1] - below)
    apart = (total[-1] * below / below[-1] - total) ** 2 / np.maximum(both, 1)
    return edges[1:][np.argmax(apart)]


def _sheared(values, degrees, step=1):
    """Make lines of an angle level, taking each `step`-th column."""
    height, width = values.shape
    columns = np.arange(0, width, step)
    down = np.round((columns - width // 2) * np.tan(np.radians(degrees))).astype(int)
    rows = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
    return values[rows, columns]


def _without_rules(dark):
    """Take away lines that run across the picture, where there are three or more.

    One or two may be a drawing. What remains of ink that crosses a line is what it has
    more than the line.
    """
    for _ in range(2):  # across, then down
        sharp = [(np.diff(_sheared(dark, a, 6).mean(1)) ** 2).sum() for a in RULES]
        angle = RULES[np.argmax(sharp)]
        line = np.quantile(_sheared(dark, angle), 0.4, axis=1)
        if (np.diff(line > 0.03, prepend=False) & (line > 0.03)).sum() >= 3:
            lines = np.broadcast_to(line[:, None], dark.shape)
            dark = np.clip(dark - _sheared(lines, -angle), 0, 1)
        dark = dark.T
    return dark


def _drawing(dark, threshold):
    """Find what is drawn, by what hangs together.

    The drawing is the part with the most ink, of those that the picture's border does
    not cut if possible, and what is near to it and like it.

    Args:
        dark: array `(height, width)`, in [0, 1].
        threshold: float. What is darker may be ink.

    Returns:
        `(drawn, level)`: a bool array of that shape, and how dark its ink is.
    """
    drawn = np.zeros(dark.shape, bool)
    where, part, main, *traits = _parts(dark, threshold)
    if main is None:
        return drawn, 0
    level = np.quantile(dark[where][part == main], 0.7)
    if 0.35 * level > threshold:  # not what is drawn set it, but a table or lines
        where, part, main, *traits = _parts(dark, 0.35 * level)
    ink, count, cut, first, last = traits
    size = last[:, main] - first[:, main]
    if max(size) < max(dark.shape) / 30:  # a speck
        return drawn, 0
    gap = np.maximum(first - last[:, [main]], first[:, [main]] - last).max(0)
    kept = (ink > 0.1 * ink[main]) & (gap <= max(size) / 2) & (cut <= cut[main])
    kept &= ink / count > 0.6 * ink[main] / count[main]
    drawn[where] = kept[part]
    return drawn, level


def _parts(dark, threshold):
    """Measure what hangs together, corners included.

    Returns:
        `(where, part, main, ink, count, cut, first, last)`: the places that are darker
        than the threshold, as two index arrays; the number of each one's part; the part
        that is the drawing, or None; and of each part its ink, its pixels, whether the
        border cuts it, its first and its last row and column, `(2, parts)`.
    """
    mask = dark > threshold
    where = np.nonzero(mask)
    if not len(where[0]):
        return where, None, None
    part = np.unique(_roots(mask), return_inverse=True)[1]
    ink, count = np.bincount(part, dark[where]), np.bincount(part)
    first = np.full((2, len(ink)), max(dark.shape))
    last = np.zeros((2, len(ink)), int)
    for axis in (0, 1):
        np.minimum.at(first[axis], part, where[axis])
        np.maximum.at(last[axis], part, where[axis])
    cut = (first == 0).any(0) | (last == np.array([dark.shape]).T - 1).any(0)
    main = np.argmax(ink * np.where(cut, 0.1, 1))
    return where, part, main, ink, count, cut, first, last


def _roots(mask):
    """For each place of a mask, in order, the first one that it hangs together with."""
    height, width = mask.shape
    number = np.cumsum(mask).reshape(mask.shape) - 1
    a, b = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left = max(0, -right)
        here = np.s_[: height - down, left : width - max(0, right)]
        there = np.s_[down:, left + right : width + min(0, right)]
        both = mask[here] & mask[there]
        a.append(number[here][both])
        b.append(number[there][both])
    a, b = np.concatenate(a), np.concatenate(b)
    root = np.arange(mask.sum())
    while (root[a] != root[b]).any():
        least = np.minimum(root[a], root[b])
        np.minimum.at(root, root[a].copy(), least)
        np.minimum.at(root, root[b].copy(), least)
        while (root != root[root]).any():
            root = root[root]
    return root
