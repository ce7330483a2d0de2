"""How images were routed: the coupling coefficients of each iteration, as pictures."""

import os

import keras
import numpy as np
from keras import ops
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from capsnet import options, pictures
from capsnet.architecture import network
from capsnet.inference import as_set

IMAGES = 4
"""Test images that are shown, of as many classes."""


def plot_routing(image, capsules, steps, path, names=None, places=None, extent=None):
    """Draw how the capsules of one image were routed, a column an iteration.

    Above, the image under the coupling coefficients to the winning capsule: at each place
    their mean over the channels, weighed by the lengths of the input capsules. In the
    middle the coefficients from each channel, mean over the places, to each output
    capsule; below the lengths of the output capsules.

    Args:
        image: array `(height, width, channels)`, in [0, 1].
        capsules: array `(I, D)`, the input capsules.
        steps: list of pairs `(coefficients (J, I), outputs (J, O))`, one an iteration:
            of one image what `CapsuleLayer.route` returns.
        path: str. The picture to write.
        names: list of str. The output capsules. Defaults to their numbers.
        places: pair `(rows, columns)` at which there are input capsules, I being these
            and channels. Defaults to one place.
        extent: `(left, right, bottom, top)` of the places in pixels. Defaults to the
            whole image.

    Returns:
        The index of the winning capsule.
    """
    places = tuple(places or (1, 1))
    image, capsules = map(ops.convert_to_numpy, (image, capsules))
    steps = [tuple(map(ops.convert_to_numpy, step)) for step in steps]
    lengths = [np.linalg.norm(outputs, axis=-1) for _, outputs in steps]
    winner, classes = int(lengths[-1].argmax()), len(lengths[-1])
    names = list(map(str, range(classes) if names is None else names))
    by_place = np.array([at_places(capsules, c[winner], places) for c, _ in steps])
    by_channel = np.array(
        [c.reshape(classes, np.prod(places), -1).mean(1) for c, _ in steps]
    )
    scales = [dict(zip(("vmin", "vmax"), span(c))) for c in (by_place, by_channel)]
    figure = Figure(figsize=(1.6 + 2.6 * len(steps), 7.4), layout="constrained")
    grid = figure.subplots(3, len(steps), squeeze=False)
    whole = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    how = {"alpha": 0.6, "extent": extent or whole, **scales[0]}
    for number, (above, middle, below) in enumerate(grid.T):
        above.imshow(
            pictures.what_shows(np.clip(image, 0, 1)), cmap="gray", vmin=0, vmax=1
        )
        placed = above.imshow(by_place[number], cmap="inferno", **how)
        above.set(xlim=whole[:2], ylim=whole[2:])
        above.set_title(f"iteration {number + 1}", fontsize=10)
        shown = middle.imshow(by_channel[number], aspect="auto", **scales[1])
        colours = ["C1" if j == winner else "C0" for j in range(classes)]
        below.barh(range(classes), lengths[number], color=colours)
        below.set(xlim=(0, max(1, np.max(lengths))), ylim=(classes - 0.5, -0.5))
        _label(above, middle, below, names if number == 0 else [""] * classes)
    for row, drawn, what in ((0, placed, f"to {names[winner]}"), (1, shown, "to each")):
        bar = figure.colorbar(drawn, ax=list(grid[row]), fraction=0.05, pad=0.02)
        bar.set_label(f"coefficients {what}", fontsize=8, parse_math=False)
        bar.ax.tick_params(labelsize=8)
    heading = f"routed to {names[winner]}: from which places, from which channels"
    figure.suptitle(heading, fontsize=10, parse_math=False)
    pictures.save_figure(figure, path)
    return winner


def _label(above, middle, below, names):
    """Label the three axes of an iteration."""
    above.set(xticks=[], yticks=[])
    for axes, what in ((middle, "channel"), (below, "length")):
        axes.set_xlabel(what, fontsize=8)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.tick_params(labelsize=8)


def at_places(capsules, coefficients, places):
    """Return the coefficients to one output capsule, place by place.

    Args:
        capsules: array `(I, D)`, the input capsules.
        coefficients: array `(I,)`, theirs to the output capsule.
        places: pair `(rows, columns)`, I being these and channels.

    Returns:
        An array `(rows, columns)`: at each place the mean over the channels, weighed by
        the lengths of the input capsules.
    """
    sent = np.linalg.norm(capsules, axis=-1).reshape(*places, -1) + 1e-12
    return np.average(coefficients.reshape(sent.shape), -1, sent)


EQUAL = 1e-4
"""What coefficients may differ by and still be shown as equal."""


def span(coefficients):
    """Return the coefficients that are drawn darkest and brightest.

    Those of `"none"` differ by rounding alone, and are drawn alike, on a scale of 0.1.
    """
    low, high = float(np.min(coefficients)), float(np.max(coefficients))
    return low, high if high - low > EQUAL else low + 0.1


def laid_over(image, by_place, scale, extent=None, side=168):
    """Lay coefficients over an image, framed: the middles of what input capsules see.

    Args:
        image: array `(height, width, channels)`, in [0, 1].
        by_place: array `(rows, columns)`, see `at_places`.
        scale: what `span` returned.
        extent: see `plot_routing`. Defaults to the whole image.
        side: int. Pixels of the longer side of what is returned. Defaults to 168.

    Returns:
        uint8 array `(rows, columns, 3)`.
    """
    height, width = image.shape[:2]
    times = side / max(height, width)
    size = [max(1, round(times * n)) for n in (width, height)]
    low, high = scale
    shares = np.clip((by_place - low) / (high - low), 0, 1)
    colours = colormaps["plasma"](shares)
    colours[..., 3] = 0.1 + 0.7 * shares  # what sends little hides little
    left, right, bottom, top = extent or (-0.5, width - 0.5, height - 0.5, -0.5)
    corners = [round(times * (n + 0.5)) for n in (left, top, right, bottom)]
    inside = (max(1, corners[2] - corners[0]), max(1, corners[3] - corners[1]))
    nearest = Image.Resampling.NEAREST
    drawn = Image.fromarray(np.uint8(255 * np.clip(pictures.what_shows(image), 0, 1)))
    drawn = drawn.resize(size, nearest).convert("RGBA")
    places = Image.fromarray(np.uint8(255 * colours)).resize(inside, nearest)
    drawn.alpha_composite(places, tuple(np.maximum(corners[:2], 0).tolist()))
    ImageDraw.Draw(drawn).rectangle(corners, outline="#f0f921")
    return np.asarray(drawn.convert("RGB"))


def routed(model, images):
    """Route images, and return what each iteration gave.

    Args:
        model: the evaluation model of one of the networks.
        images: array `(n, height, width, channels)`, in [0, 1].

    Returns:
        `(capsules, steps)`: input capsules, an array `(n, I, D)`, and a list of pairs of
        arrays `(coefficients (n, J, I), outputs (n, J, O))`.
    """
    layer = model.get_layer("digitcaps")
    capsules = keras.Model(model.input, layer.input)(images, training=False)
    steps = [tuple(map(ops.convert_to_numpy, step)) for step in layer.route(capsules)]
    capsules = ops.convert_to_numpy(capsules)
    return capsules.reshape(len(capsules), -1, capsules.shape[-1]), steps


def show(model, data, args):
    """Write `routing-<n>.png` for a few test images, each of another class if it can be.

    Args:
        model: the evaluation model of one of the networks.
        data: `(x_test, y_test)`.
        args: namespace; `class_names`, `save_dir` and `seed`, which chooses the images.
    """
    x_test, y_test = as_set(data, model)
    names = options.class_names(args, y_test.shape[1])
    order = np.random.default_rng(args.seed).permutation(len(x_test))
    true = np.argmax(y_test, 1)
    _, first = np.unique(true[order], return_index=True)
    chosen = order[np.sort(first)[:IMAGES]]
    capsules, steps = routed(model, x_test[chosen])
    places, extent = places_of(model)
    for number, index in enumerate(chosen):
        path = os.path.join(args.save_dir, f"routing-{number}.png")
        of_image = [tuple(array[number] for array in step) for step in steps]
        where = (path, names, places, extent)
        winner = plot_routing(x_test[index], capsules[number], of_image, *where)
        print(
            f"How test image {index}, {_what(y_test[index], names)}, was routed to "
            f"{names[winner]}: {path}"
        )


def _what(classes, names):
    return " and ".join(f"a {names[i]}" for i in np.flatnonzero(classes))


def places_of(model):
    """At which places of the image there are input capsules: `(places, extent)`.

    Args:
        model: the evaluation model of one of the networks.

    Returns:
        Two arguments of those names of `plot_routing`, None where it is not known.
    """
    named = {layer.name: layer for layer in model.layers}
    last = named.get("primarycap_conv2d", named.get("primarycap_depthwise"))
    if last is None:
        return None, None
    rows, columns = last.output.shape[1:3]
    if network(model) not in ("capsnet", "shared"):
        return (rows, columns), None
    # The middles of what a capsule sees, with convolutions that are not padded.
    stride, sees = last.strides[0], named["conv1"].kernel_size[0] + last.kernel_size[0]
    start = (sees - 2) / 2 - stride / 2
    across, down = start + stride * columns, start + stride * rows
    return (rows, columns), (start, across, down, start)
