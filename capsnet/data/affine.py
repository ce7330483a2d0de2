"""Digits bent out of shape, as in affNIST: turned, sheared, stretched and moved.

References:
    Tieleman. affNIST. https://www.cs.toronto.edu/~tijmen/affNIST, whose test digits are
        turned by up to 20 degrees, sheared by up to 0.2, scaled by 0.8 to 1.2 on each
        axis, and moved as far as the digit stays inside of 40 x 40 pixels.
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017, section 5.
        https://arxiv.org/abs/1710.09829
"""

import collections
import importlib

import numpy as np

from capsnet.data.changes import shift_images, transform_images
from capsnet.data.pairs import TEST_SEED, pad
from capsnet.errors import first_line

SIDE = 40
"""Pixels of affNIST's images."""

ANGLE, SHEAR, SCALE = 20.0, 0.2, 0.2
"""Most that a digit is turned, in degrees, is sheared, and grows or shrinks."""

REACH = 6
"""Pixels that upright digits move at most, as in Sarasra/models (`--shift=6 --pad=6`)."""

CHUNK = 1000
"""Images that are bent at once."""


class Bent(collections.namedtuple("Bent", "x y")):
    """Images that were bent, and how; unpacks as `(x, y)`.

    Attributes:
        x: array `(n, 40, 40, 1)`, in [0, 1].
        y: one-hot array `(n, n_class)`.
        changes: dict of arrays `(n,)`: `angle` in degrees, anticlockwise, `shear`,
            `scale`, the root of the factor on the area, and `shift` in pixels, by rows or
            by columns, whichever is more. None where a file does not tell.
        upright: array of the first 1,000 images or fewer before that; or None.
    """

    changes = upright = None


def margin_of(images):
    """Give images the margin that makes them 40 x 40."""
    return pad(images, (SIDE - images.shape[1]) // 2)


def placed(x, y, seed=TEST_SEED):
    """Move upright digits anywhere within `REACH` pixels, the same way each time.

    Args:
        x: array `(n, 40, 40, 1)`.
        y: array `(n, n_class)`.
        seed: int.

    Returns:
        `(x, y)`.
    """
    shifts = np.random.default_rng(seed).integers(-REACH, REACH + 1, (len(x), 2))
    return shift_images(x, shifts), y


def bent(x, y, count=None, seed=TEST_SEED):
    """Bend images at random, the same way each time.

    Args:
        x: array `(n, 40, 40, 1)`, in [0, 1].
        y: one-hot array `(n, n_class)`.
        count: int. Images that are made, each in turn. Defaults to n.
        seed: int.

    Returns:
        A `Bent`.
    """
    count = len(x) if count is None else count
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-ANGLE, ANGLE, count)
    shear = rng.uniform(-SHEAR, SHEAR, count)
    scales = rng.uniform(1 - SCALE, 1 + SCALE, (count, 2))
    places = rng.random((count, 2))
    matrices = _matrices(angle, shear, scales)
    sources = np.arange(count) % len(x)
    moved = np.empty((count, *x.shape[1:]), "float32")
    shifts = np.empty((count, 2))
    for begin in range(0, count, CHUNK):
        part = slice(begin, begin + CHUNK)
        images = x[sources[part]]
        moved[part], shifts[part] = _bend(images, matrices[part], places[part])
    made = Bent(moved, y[sources])
    scale = np.sqrt(scales.prod(1))
    shift = np.abs(shifts).max(1)
    made.changes = {"angle": angle, "shear": shear, "scale": scale, "shift": shift}
    made.upright = x[sources[:CHUNK]]
    return made


def _matrices(angle, shear, scales):
    """Stretched, then sheared, then turned: matrices `(n, 2, 2)` on (row, column)."""
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    lean = np.array([[one, zero], [shear, one]])
    stretch = np.array([[scales[:, 0], zero], [zero, scales[:, 1]]])
    return np.einsum("abn,bcn,cdn->nad", turn, lean, stretch)


def _bend(images, matrices, places):
    """Bend images by matrices, and move them to a share of the way that they have.

    Returns:
        The images, and by how many rows and columns they were moved, `(n, 2)`.
    """
    middle = (SIDE - 1) / 2
    grid = np.indices((SIDE, SIDE)).reshape(2, -1) - middle
    ink = images.reshape(len(images), 1, -1) > 0
    bent_grid = matrices @ grid  # (n, 2, pixels): where each pixel comes to lie
    least = np.where(ink, bent_grid, np.inf).min(2)
    most = np.where(ink, bent_grid, -np.inf).max(2)
    low, high = -middle - least, middle - most
    # Neither an empty image, nor one that is too large.
    inside = np.isfinite(low) & (low <= high)
    low, high = np.where(inside, (low, high), 0)
    shifts = low + places * (high - low)
    inverse = np.linalg.inv(matrices)
    origin = -inverse @ shifts[:, :, None]
    inverse = np.concatenate([inverse, origin], 2).astype("float32")
    return transform_images(images, inverse), shifts


def load_mat(path, typical):
    """Load the test images of the original affNIST.

    Args:
        path: str. Its `test.mat`, or `training_and_validation` alike: a struct
            `affNISTdata` with `image`, uint8 `(1600, n)`, and `label_int`, `(1, n)`.
        typical: array `(10, 40, 40)`. Mean images of the digits, by which it is seen
            whether columns or rows come first.

    Returns:
        A `Bent`; its `changes` are None.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or SciPy is not there to read it.
    """
    try:
        io = importlib.import_module("scipy.io")
    except ImportError as error:
        raise ValueError(f"--affnist {path}: needs `pip install scipy`") from error
    with open(path, "rb"):  # an OSError of its own where it can't be read
        pass
    try:
        struct = io.loadmat(path)["affNISTdata"][0, 0]
        images = np.asarray(struct["image"]).T.reshape(-1, SIDE, SIDE)
        labels = np.asarray(struct["label_int"]).ravel()
        if images.dtype != "uint8" or len(labels) != len(images) or not len(labels):
            raise ValueError(
                f"image {images.dtype} {images.shape}, {len(labels)} labels"
            )
        given, labels = labels, labels.astype(int)  # MATLAB's own numbers are doubles
        if labels.min() < 0 or np.any(labels != given):
            raise ValueError(f"label_int from {given.min()} to {given.max()}")
        y = np.eye(10, dtype="float32")[labels]
    except Exception as error:  # whatever another file makes the reader raise
        raise ValueError(
            f"--affnist {path}: not a file of affNIST (a version-5 .mat file with the "
            f"struct affNISTdata): {first_line(error)[:200]}"
        ) from error
    x = images[..., np.newaxis].astype("float32") / 255
    if _lie_on_their_side(x[:CHUNK], labels[:CHUNK], typical):
        x = np.ascontiguousarray(x.transpose(0, 2, 1, 3))
    return Bent(x, y)


def _lie_on_their_side(x, labels, typical):
    """Whether digits, brought to the middle, are more like others by their columns."""
    grid = np.indices(x.shape[1:3]) - (SIDE - 1) / 2
    ink = np.maximum(x.sum((1, 2, 3)), 1e-6)
    middles = np.einsum("nij,dij->nd", x[..., 0], grid) / ink[:, None]
    x = shift_images(x, -np.round(middles).astype(int))[..., 0]
    upright, aside = (typical[labels] * way for way in (x, x.transpose(0, 2, 1)))
    return aside.sum() > upright.sum()
