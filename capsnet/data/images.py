"""Picture files: reading them, and fitting them to what a network takes."""

import math
import warnings

import numpy as np
from PIL import Image, ImageOps

from capsnet.data.arrays import check_is_file

FORMATS = ("PNG", "JPEG", "BMP", "GIF")
"""What a picture is read as, whatever its ending: Pillow would run code for others."""

LARGEST_PICTURE = 50_000_000
"""Pixels of a picture that is still read; what claims more is refused unread."""


def read_picture(path):
    """Read a picture in the way it is meant to be seen.

    The first frame is taken, the rotation of EXIF data is applied, 16-bit grey is
    scaled, and what is transparent shows white.

    Args:
        path: str. PNG, JPEG, BMP or GIF.

    Returns:
        A Pillow image of mode `L` or `RGB`.

    Raises:
        ValueError: if it can't be read, or claims more than `LARGEST_PICTURE` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked here
            check_is_file(path)
            with Image.open(path, formats=FORMATS) as picture:
                if math.prod(picture.size) > LARGEST_PICTURE:
                    raise ValueError(f"{picture.width} x {picture.height} pixels")
                picture.load()
                picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            full = 65535 if picture.mode.startswith("I") else 1
            values = np.clip(np.asarray(picture, "float32") / full, 0, 1)
            return Image.fromarray(np.round(values * 255).astype("uint8"))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def fit_picture(picture, shape, like_mnist=False, invert=True):
    """Fit a picture to the images that a model was trained on.

    Args:
        picture: Pillow image of mode `L` or `RGB`.
        shape: `(height, width, channels)` of the model.
        like_mnist: bool. Whether to prepare it as the digits of MNIST were: what is
            drawn is scaled to 20 / 28 of the side, its aspect kept, and its centre of
            mass is put into the middle. A picture that has the shape already is left as
            it is. Defaults to False, which scales the whole picture.
        invert: bool. Whether dark drawings on a light ground are inverted, with
            `like_mnist`. Defaults to True.

    Returns:
        float32 array of `shape`, in [0, 1].
    """
    height, width, channels = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if not like_mnist or channels != 1:
        if picture.size != (width, height):
            picture = picture.resize((width, height))
        return np.asarray(picture, "float32").reshape(shape) / 255
    pixels = np.asarray(picture, "float32") / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if invert and np.median(border) > 0.5:
        pixels = 1 - pixels
        border = 1 - border
    if picture.size == (width, height):
        return pixels.reshape(shape)
    pixels = np.clip(pixels - np.median(border), 0, 1)  # an even ground is black
    inked = pixels > 0.05 * pixels.max()
    if not inked.any():
        return np.zeros(shape, "float32")
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    drawn = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 20 / 28 * min(height / drawn.shape[0], width / drawn.shape[1])
    size = [max(1, round(side * scale)) for side in drawn.shape]
    drawn = Image.fromarray(drawn).resize(size[::-1], Image.Resampling.BICUBIC)
    drawn = np.clip(np.asarray(drawn), 0, 1)
    drawn = drawn / drawn.max()
    corner = []
    for axis, (side, full) in enumerate(zip(size, (height, width))):
        mass = drawn.sum(1 - axis)  # its mean is at pixel 14 of 28 in MNIST
        center = (mass * np.arange(side)).sum() / mass.sum()
        corner.append(int(np.clip(round(full / 2 - center), 0, full - side)))
    fitted = np.zeros(shape, "float32")
    top, left = corner
    fitted[top : top + size[0], left : left + size[1], 0] = drawn
    return fitted
