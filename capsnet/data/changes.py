"""Images moved, turned, scaled and deformed: what makes more of a training set.

References:
    Simard, Steinkraus, Platt. Best Practices for Convolutional Neural Networks Applied to
        Visual Document Analysis. ICDAR 2003: elastic deformations.
    DeVries, Taylor. Improved Regularization of Convolutional Neural Networks with Cutout.
        2017. https://arxiv.org/abs/1708.04552: squares that are blanked.
"""

import numpy as np

GRID = 7
"""Displacements are drawn at so many places along each side. Between them they follow
Gaussians of a seventh of the side, 4 pixels of 28, as wide as those of Simard et al."""


class Augmentation:
    """Random changes of the images of an epoch, which are drawn all at once.

    Args:
        shape: `(height, width, channels)` of the images.
        shift_fraction: float in [0, 1). Images move by at most this fraction of their
            side in each direction. Defaults to 0.
        shifts: `"whole"` rounds the reach of the shifts down to whole pixels, and
            `"interpolated"` moves by parts of a pixel as well. Defaults to `"whole"`.
        fill_mode: `"constant"` makes what comes from outside zero, and `"nearest"` the
            nearest pixel of the edge. Defaults to `"constant"`.
        rotation: float in [0, 180]. Images turn by at most so many degrees in either
            direction, before they move. Defaults to 0.
        zoom: float in [0, 1). They shrink or grow by at most this fraction of their
            size. Defaults to 0.
        shear: float in [0, 1). They lean to one side: a row below the middle moves to
            the right or left by at most this fraction of its distance, one above it to
            the other side. Defaults to 0.
        elastic: float in [0, 1). Their pixels move along a smooth random field of this
            standard deviation, as a fraction of the side. Defaults to 0.
        erase: float in [0, 1). A square of this fraction of the shorter side, one pixel
            at least, is set to 0, anywhere in the image, last of all. Defaults to 0.
        flip: bool. Whether images are mirrored, left to right, first of all, each with a
            probability of one half. Defaults to False.
        brightness: float in [0, 1). Images are multiplied by 1 plus or minus at most
            this. Defaults to 0.
        tint: float in [0, 1). What is added to or taken from each channel, at most.
            Defaults to 0.
        shift_pixels: int. The most that images move, in place of `shift_fraction`.
            Defaults to None.
    """

    def __init__(
        self,
        shape,
        shift_fraction=0.0,
        shifts="whole",
        fill_mode="constant",
        rotation=0.0,
        zoom=0.0,
        shear=0.0,
        elastic=0.0,
        erase=0.0,
        flip=False,
        brightness=0.0,
        tint=0.0,
        shift_pixels=None,
    ):
        *self.sides, self.channels = shape
        self.reach = [side * shift_fraction for side in self.sides]
        if shift_pixels is not None:
            self.reach = [shift_pixels, shift_pixels]
        self.whole = shifts == "whole"
        if self.whole:
            # The small surplus keeps 0.29 * 100 from becoming 28 pixels.
            self.reach = [int(reach + 1e-6) for reach in self.reach]
        self.rotation, self.zoom, self.shear = rotation, zoom, shear
        self.elastic, self.nearest = elastic, fill_mode == "nearest"
        self.blank = max(1, round(erase * min(self.sides))) if erase else 0
        self.bends = bool(rotation or zoom or shear or elastic)
        self.flip, self.brightness, self.tint = flip, brightness, tint

    def draw(self, n, rng):
        """Draw the changes of `n` images by a NumPy generator."""
        if self.whole:
            shifts = [rng.integers(-r, r + 1, n, "int32") for r in self.reach]
        else:
            shifts = [rng.uniform(-r, r, n) for r in self.reach]
        self.move, self.moves = shift_images, np.stack(shifts, 1)
        interpolated = self.bends or not self.whole
        if interpolated:
            angles = rng.uniform(-self.rotation, self.rotation, n)
            scales = rng.uniform(1 - self.zoom, 1 + self.zoom, n)
        self.mirrored = rng.random((n, 1, 1, 1)) < 0.5 * self.flip
        factors = rng.uniform(1 - self.brightness, 1 + self.brightness, (n, 1, 1, 1))
        added = rng.uniform(-self.tint, self.tint, (n, 1, 1, self.channels))
        self.factors, self.added = factors.astype("float32"), added.astype("float32")
        if self.elastic:
            deviations = self.elastic * np.reshape(self.sides, (2, 1, 1)).astype(
                "float32"
            )
            self.drawn = rng.standard_normal((n, 2, GRID, GRID), "float32") * deviations
        if interpolated:  # shears come last: what was drawn before them stays as it was
            shears = rng.uniform(-self.shear, self.shear, n)
            self.move = transform_images
            self.moves = inverse_transforms(self.moves, angles, scales, shears)
        if self.blank:
            places = [rng.integers(0, s - self.blank + 1, (n, 1)) for s in self.sides]
            self.blanked = np.stack(places).astype("int32")

    def apply(self, images, span, xp=np):
        """Change those images of which the draws are `span`, a slice; see `shift_images`."""
        if self.flip:
            mirrored = xp.array(self.mirrored[span])
            images = xp.where(mirrored, xp.flip(images, 2), images)
        if self.bends or any(self.reach):
            drawn = (xp.array(self.drawn[span]),) if self.elastic else ()
            images = self.move(images, self.moves[span], xp, self.nearest, *drawn)
        if self.brightness or self.tint:
            factors, added = xp.array(self.factors[span]), xp.array(self.added[span])
            images = xp.clip(images * factors + added, 0, 1)
        if self.blank:
            inside = [
                (first <= xp.arange(side)) & (xp.arange(side) < first + self.blank)
                for first, side in zip(xp.array(self.blanked[:, span]), self.sides)
            ]
            square = inside[0][:, :, None] & inside[1][:, None]
            images = xp.where(square[..., None], xp.zeros_like(images), images)
        return images


def shift_images(images, shifts, xp=np, nearest=False):
    """Move each image by whole pixels.

    Args:
        images: array of shape `(n, height, width, channels)`.
        shifts: integer array of shape `(n, 2)`: pixels down and pixels to the right.
        xp: the module to compute with, `numpy` or `keras.ops`. Defaults to `numpy`.
        nearest: bool. Whether the nearest pixel of the edge moves in. Defaults to False:
            zero.

    Returns:
        An array of the shape of `images`.
    """
    shifts = xp.array(shifts)
    rows = xp.arange(images.shape[1]) - shifts[:, :1]  # where a row comes from
    columns = xp.arange(images.shape[2]) - shifts[:, 1:]
    return _pixels_at(images, rows[:, :, None], columns[:, None, :], xp, nearest)


def transform_images(images, transforms, xp=np, nearest=False, drawn=None):
    """Transform each image, by linear interpolation.

    Args:
        images: array of shape `(n, height, width, channels)`.
        transforms: float array of shape `(n, 2, 3)`. Its product with a pixel's
            `(row, column, 1)`, counted from the middle of the image, is the place that
            the pixel comes from, counted likewise; see `inverse_transforms`.
        xp: see `shift_images`. Defaults to `numpy`.
        nearest: likewise. Defaults to False.
        drawn: what `displacements` takes, of `xp`, where pixels move each its own way.
            Defaults to None.

    Returns:
        An array of the shape of `images`.
    """
    n, height, width, channels = images.shape
    middle = np.array([[(height - 1) / 2], [(width - 1) / 2]], "float32")
    grid = np.indices((height, width), "float32").reshape(2, -1) - middle
    transforms, middle, (rows, columns) = map(xp.array, (transforms, middle, grid))
    places = (  # (n, 2, height * width); no matrix product, which may round more
        transforms[:, :, :1] * rows
        + transforms[:, :, 1:2] * columns
        + transforms[:, :, 2:]
        + middle
    )
    if drawn is not None:
        displaced = displacements(drawn, height, width, xp)
        places = places + xp.reshape(displaced, places.shape)
    corners = xp.floor(places)
    parts = (places - corners)[..., None]
    corners = xp.array(corners, dtype="int32")
    moved = 0
    for i, down in enumerate((1 - parts[:, 0], parts[:, 0])):
        for j, right in enumerate((1 - parts[:, 1], parts[:, 1])):
            at = (corners[:, 0] + i, corners[:, 1] + j)
            corner = _pixels_at(images, *at, xp, nearest)
            moved = moved + down * right * corner
    return xp.reshape(moved, (n, height, width, channels))


def displacements(drawn, height, width, xp=np):
    """Return smooth random displacements of the pixels, of one standard deviation all over.

    Args:
        drawn: array of shape `(n, 2, GRID, GRID)`: independent normal numbers, in pixels
            down and to the right.
        height: int.
        width: int.
        xp: see `shift_images`. Defaults to `numpy`.

    Returns:
        An array of shape `(n, 2, height, width)`, in pixels.
    """
    rows, columns = (xp.array(_gaussians(side)) for side in (height, width))
    places = range(GRID)  # one by one: a matrix product may round more
    down = sum(rows[:, k, None] * drawn[:, :, k, None, :] for k in places)
    return sum(columns[:, k] * down[..., k, None] for k in places)


def _gaussians(side):
    """What a pixel takes of each number along a side, `(side, GRID)`."""
    apart = np.arange(side)[:, None] - np.linspace(0, side - 1, GRID)
    weights = np.exp(-0.5 * (apart * GRID / side) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype("float32")


def inverse_transforms(shifts, angles, scales, shears=0.0):
    """Return what `transform_images` takes, for images sheared, turned, scaled, then moved.

    Args:
        shifts: array of shape `(n, 2)`: pixels down and pixels to the right.
        angles: array of shape `(n,)`: degrees, anticlockwise.
        scales: array of shape `(n,)`: factors on the size.
        shears: array of shape `(n,)`: pixels to the right for each pixel down. Defaults to 0.

    Returns:
        A float32 array of shape `(n, 2, 3)`.
    """
    cosine, sine = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    turn = np.array([[cosine, sine], [-sine, cosine]]) / scales  # (2, 2, n)
    turn[1] -= shears * turn[0]
    turn = np.moveaxis(turn, 2, 0)
    origin = -turn @ np.asarray(shifts)[:, :, None]
    return np.concatenate([turn, origin], axis=2).astype("float32")


def _pixels_at(images, rows, columns, xp, nearest):
    """The pixels at whole places, one row and column for each."""
    n, height, width, channels = images.shape
    source = xp.clip(rows, 0, height - 1) * width + xp.clip(columns, 0, width - 1)
    first = xp.arange(n) * (height * width)  # of each image
    source = source + xp.reshape(first, (n,) + (1,) * (len(source.shape) - 1))
    pixels = xp.take(xp.reshape(images, (-1, channels)), source, axis=0)
    if nearest:
        return pixels
    inside = xp.logical_and(
        xp.logical_and(rows >= 0, rows < height),
        xp.logical_and(columns >= 0, columns < width),
    )
    return xp.where(inside[..., None], pixels, xp.zeros_like(pixels))
