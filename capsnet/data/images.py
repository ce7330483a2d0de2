"""Picture files: reading them, and fitting them to what a network takes."""

import math
import warnings

import numpy as np
from PIL import Image, ImageOps

from capsnet.data.arrays import check_is_file
from capsnet.data.paper import FAINTEST, has_light_ground, lift_drawing, reduced

FORMATS = ("PNG", "JPEG", "BMP", "GIF")
"""What a picture is read as, whatever its ending: Pillow would run code for others."""

LARGEST_PICTURE = 50_000_000
"""Pixels of a picture that is still read; what claims more is refused unread."""

EVEN = 0.02
"""What an even ground differs from itself at most, as JPEG or a scanner has it."""


def read_picture(path, name=None):
    """Read a picture in the way it is meant to be seen.

    The first frame is taken, the rotation of EXIF data is applied, 16-bit grey is
    scaled, and what is transparent shows white.

    Args:
        path: str, or a binary file. PNG, JPEG, BMP or GIF.
        name: str. What errors call it. Defaults to `path`.

    Returns:
        A Pillow image of mode `L` or `RGB`.

    Raises:
        ValueError: if it can't be read, or claims more than `LARGEST_PICTURE` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked here
            if not hasattr(path, "read"):
                check_is_file(path)
            with Image.open(path, formats=FORMATS) as picture:
                if math.prod(picture.size) > LARGEST_PICTURE:
                    raise ValueError(
                        f"{picture.width} x {picture.height} pixels, more than "
                        f"{LARGEST_PICTURE:,}"
                    )
                picture.load()
                picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            full = 65535 if picture.mode.startswith("I") else 1
            values = np.clip(np.asarray(picture, "float32") / full, 0, 1)
            if picture.has_transparency_data:  # one value, which shows white
                values[np.asarray(picture) == picture.info["transparency"]] = 1
            return Image.fromarray(np.round(values * 255).astype("uint8"))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        why = error if name is None else str(error).replace(str(path), name)
        raise ValueError(f"{name or path}: not a readable picture ({why})") from error


def check_channels(shape):
    """Raise a `ValueError` where no picture can become an image of a network.

    Args:
        shape: `(height, width, channels)` of its images.
    """
    if shape[2] not in (1, 3):
        raise ValueError(
            f"the network takes images of {shape[2]} channels, and pictures have 1 or 3"
        )


def fit_picture(picture, shape, like_mnist=False, invert=True):
    """Fit a picture to the images that a model was trained on.

    Args:
        picture: Pillow image of mode `L` or `RGB`.
        shape: `(height, width, channels)` of the model.
        like_mnist: bool. Whether to prepare it as the digits of MNIST were, if
            `channels` is 1: light on dark, what is drawn scaled to 20 / 28 of the side,
            its aspect kept, and its centre of mass in the middle. Where the ground is
            not even, as on photographed paper, it is removed first
            (`capsnet.data.paper`). A picture that has the shape already is at most
            inverted. Defaults to False, which scales the whole picture.
        invert: bool. Whether dark drawings on a light ground are inverted, with
            `like_mnist`; else all are taken for light ones. Defaults to True.

    Returns:
        float32 array of `shape`, in [0, 1].
    """
    return fit_and_tell(picture, shape, like_mnist, invert)[0]


def fit_and_tell(picture, shape, like_mnist=False, invert=True):
    """Fit a picture as `fit_picture` does, and say what was done with it.

    Args:
        picture: see `fit_picture`, as the others.
        shape: likewise.
        like_mnist: likewise.
        invert: likewise.

    Returns:
        `(image, done)`: float32 array of `shape`, in [0, 1]; and a phrase such as
        `inverted, ground removed`, or `nothing drawn`, or `as it is`.
    """
    height, width, channels = shape
    same = picture.size == (width, height)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if not like_mnist or channels != 1:
        image = picture if same else picture.resize((width, height))
        pixels = np.asarray(image, "float32").reshape(shape) / 255
        return pixels, "as it is" if same else "scaled"
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) / 255
    ground = np.float32(np.median(border))
    light = invert and bool(ground > 0.5)
    if same:
        pixels = pixels.astype("float32") / 255
        return (1 - pixels if light else pixels).reshape(shape), _told(light)
    even = np.mean(np.abs(border - ground) <= EVEN)
    if even < 1:
        small = reduced(picture)
        paper_is_light = invert and has_light_ground(small)
        drawing = lift_drawing(small, paper_is_light)
        if drawing.any():
            return _centred(drawing, shape), _told(paper_is_light, "ground removed")
    pixels = pixels.astype("float32") / 255
    pixels = np.clip(ground - pixels if light else pixels - ground, 0, 1)
    # Where less of the border is even, what looks like a drawing is noise or a table.
    if even >= 0.9 and pixels.max() > (2 * EVEN if even == 1 else FAINTEST):
        return _centred(pixels, shape), _told(light, "centred")
    return np.zeros(shape, "float32"), "nothing drawn"


def are_like_mnist(images):
    """Whether images are prepared as the digits of MNIST were, see `fit_picture`.

    Args:
        images: array `(n, height, width, channels)`, of which 1,000 are looked at; 90%
            of them have to fill 20 / 28 of the side, their centre of mass within a 28th
            of it about the middle. Of MNIST all do, of Fashion-MNIST none.
    """
    if images.shape[3] > 1:
        return False
    seen, fills, off = np.asarray(images[:1000, ..., 0]), 0, 0
    mass = np.maximum(seen.sum((1, 2)), 1e-9)
    for axis in (1, 2):
        side = seen.shape[3 - axis]
        inked = seen.any(axis)
        fill = side - inked.argmax(1) - inked[:, ::-1].argmax(1)
        fills = np.maximum(fills, fill / side)
        centre = seen.sum(axis) @ np.arange(side) / mass - (side - 1) / 2
        off = np.maximum(off, np.abs(centre) / side)
    return bool(np.mean((np.abs(fills - 20 / 28) < 1 / 28) & (off < 1.01 / 28)) > 0.9)


def _told(light, done=""):
    """Say what was done with a picture, of which it may be that it was inverted."""
    return ", ".join(filter(None, ["inverted" if light else "", done])) or "as it is"


def _centred(pixels, shape):
    """Scale what is drawn, light on 0, to 20 / 28 of the side; its mass in the middle."""
    height, width, _ = shape
    inked = pixels > 0.05 * pixels.max()
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    drawn = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 20 / 28 * min(height / drawn.shape[0], width / drawn.shape[1])
    size = [max(1, round(side * scale)) for side in drawn.shape]
    drawn = Image.fromarray(np.float32(drawn)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
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
