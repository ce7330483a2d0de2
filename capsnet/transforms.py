"""The constant matrices of a convolution in the Fourier domain, and what it costs.

References:
    Winograd. Arithmetic Complexity of Computations. SIAM 1980.
"""

import functools
import math

import numpy as np

from capsnet.numerics import TYPICAL_BATCH

_LARGEST_TILE = 16
"""Rows and columns of output that one transform computes, at most: the matrices of
larger ones grow with the fourth power."""

MOVED = 40
"""Multiplications that take as long as storing one number and reading it again, on a CPU."""

LARGEST_TRANSFORM = 40
"""Rows and columns of input that one transform takes, at most: with more, float32's
rounding grows fast (a relative error of 1e-6 with 40, 2e-4 with 50)."""


def _evaluation_points(n):
    """Return `n` points of the real line and the complex plane, as two lists.

    The n-th roots of unity would make the discrete Fourier transform. From seven points
    on some are 0, infinity and others of the real line, and the rest roots of unity: a
    real point costs one product where a pair of conjugates costs three, and rounds a
    little worse. In float32, outputs and gradients differ from the exact ones by 2e-6 of
    the largest for a size of ten (up to 5e-6 for sizes up to 24), with the Fourier
    transform by 0.5e-6, and with ten real points by 28e-6.

    Returns:
        The real points, and one of each pair of conjugate complex points.
    """
    if n < 7:
        special = []
    elif n < 9:
        special = [0.0, np.inf, 0.7, -0.7]
    else:
        special = [0.0, np.inf, 0.55, -0.55, 1.8, -1.8]
    roots = n - len(special)
    real = [1.0, -1.0] if roots % 2 == 0 else [1.0]
    angles = 2 * np.pi * np.arange(1, (roots + 1) // 2) / roots
    return special + real, list(np.exp(1j * angles))


def _evaluations(n, kernel_size, output_size):
    """The matrices of a correlation in one dimension, see `transforms`.

    Returns:
        `(real, forward, kernel, inverse)`: the number of rows that are real, which come
        first, and matrices of one row a point, the conjugates left out.
    """
    real, pairs = _evaluation_points(n)

    def powers(points, length):
        top = np.eye(length)[-1]  # at infinity the highest power alone counts
        return np.array(
            [top if p == np.inf else p ** np.arange(length) for p in points], complex
        )

    points = real + pairs
    interpolation = np.linalg.inv(powers(points + [p.conj() for p in pairs], n))
    return (
        len(real),
        interpolation.T[: len(points)],
        powers(points, kernel_size),
        powers(points, output_size),
    )


@functools.cache
def transforms(size, kernel_size, output_size):
    """The three constant matrices of a correlation by evaluation at points.

    The product of two polynomials takes one multiplication at each of n points, which
    their evaluation there and the interpolation of the result surround (Toom and Cook;
    at the roots of unity, Fourier). A correlation is the transpose of that
    (Winograd 1980). In two dimensions the points are pairs of points. The values at a
    pair that is conjugate to another need not be computed. A complex product is three
    real ones, with P1 = (Xr + Xi) Kr, P2 = Xr (Ki - Kr), P3 = Xi (Kr + Ki): its real
    part is P1 - P3, its imaginary part P1 + P2. Where both points are real, so are X
    and K, and one product is enough.

    Args:
        size: pair of int. Rows and columns of the image `x`.
        kernel_size: pair of int. Rows and columns of the kernel `k`.
        output_size: pair of int. Rows and columns of the output, `size - kernel_size
            + 1`.

    Returns:
        `forward (R, pixels)`, `kernel (R, kernel pixels)` and `inverse (output pixels,
        R)`, float64, such that the correlation of `x` and `k` is
        `inverse @ ((forward @ x) * (kernel @ k))`.
    """
    rows = _evaluations(size[0], kernel_size[0], output_size[0])
    columns = _evaluations(size[1], kernel_size[1], output_size[1])
    forward, kernel, inverse = [], [], []
    for i, of_row in enumerate(zip(*rows[1:])):
        for j, of_column in enumerate(zip(*columns[1:])):
            both_complex = i >= rows[0] and j >= columns[0]
            for conjugate in (False, True)[: 1 + both_complex]:
                x, k, y = (
                    np.outer(a, b.conj() if conjugate else b).ravel()
                    for a, b in zip(of_row, of_column)
                )
                x_scale, k_scale = abs(x).max(), abs(k).max()  # keep rounding small
                x, k, y = x / x_scale, k / k_scale, y * x_scale * k_scale
                if i < rows[0] and j < columns[0]:
                    forward += [x.real]
                    kernel += [k.real]
                    inverse += [y.real]
                else:  # twice the real part: this pair of points and its conjugate
                    forward += [x.real + x.imag, x.real, x.imag]
                    kernel += [k.real, k.imag - k.real, k.real + k.imag]
                    inverse += [2 * (y.real - y.imag), -2 * y.imag, -2 * y.real]
    return (
        np.array(forward),
        np.array(kernel),
        np.ascontiguousarray(np.transpose(inverse)),
    )


@functools.cache
def best_tile(output_size, kernel_size, strides, channels, filters):
    """Choose the tile size and count what a spectral convolution takes.

    Args:
        output_size: pair of int. Rows and columns of the convolution's output.
        kernel_size: pair of int.
        strides: pair of int.
        channels: int. Input channels.
        filters: int. Output channels.

    Returns:
        The pair `(tile, cost)`: rows and columns of the output that one transform
        computes, and multiplications an image, with `MOVED` for each number that is
        stored; None and infinity where the kernel is larger than a transform may be.
    """
    phases = math.prod(strides) * channels
    kernel_size = [-(-k // s) for k, s in zip(kernel_size, strides)]

    def cost(tile):
        tiles = math.prod(-(-o // t) for o, t in zip(output_size, tile))
        sizes = [t + k - 1 for t, k in zip(tile, kernel_size)]
        pixels = math.prod(sizes)
        (r0, c0), (r1, c1) = (map(len, _evaluation_points(n)) for n in sizes)
        products = r0 * r1 + 3 * (r0 * c1 + c0 * r1) + 6 * c0 * c1
        outputs = math.prod(tile)
        per_tile = phases * filters + pixels * phases + outputs * filters
        per_batch = math.prod(kernel_size) * phases * filters
        stored = (pixels + products) * phases + (products + outputs) * filters
        multiplications = products * (tiles * per_tile + per_batch / TYPICAL_BATCH)
        return multiplications + MOVED * tiles * stored

    rows, columns = (
        range(1, min(o, _LARGEST_TILE, LARGEST_TRANSFORM - k + 1) + 1)
        for o, k in zip(output_size, kernel_size)
    )
    if not rows or not columns:
        return None, math.inf
    tile = min(((r, c) for r in rows for c in columns), key=cost)
    return tile, cost(tile)
