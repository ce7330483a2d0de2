"""The network that a file of weights is of, as the file and its weights tell it."""

import inspect
import itertools
import math
import operator

from capsnet import rules, verdict
from capsnet.architecture import BEYOND, STRIDES, primary_positions
from capsnet.data.arrays import is_class_name
from capsnet.errors import first_line
from capsnet.options import CONV_FORMS, MODELS, MOST_ROUTINGS
from capsnet.squashes import SQUASHES

_HANDED_ON = ("routing_gradient", "routing", "use_bias", "leaky", "squash")
"""What any network hands on to its `CapsuleLayer`."""


class UnknownImageSize(ValueError):
    """These are a `CapsNet`'s weights, but of images of unknown or another size."""


def of_file(path, said, weights, routings, input_shape):
    """Read the arguments of `CapsNet` from a file of weights, and what it is of.

    Args:
        path: str. The file, which an error names.
        said: dict, what the file says of itself.
        weights: dict of its weights; `capsnet.weights.read` returns both.
        routings: int. See `capsulenet.load_model`.
        input_shape: tuple or None. Likewise.

    Returns:
        `(arguments, about)`; for `about` see `capsulenet.load_model`.

    Raises:
        ValueError: if it holds no weights of a `CapsNet`.
    """
    try:
        told = {"routings": routings, **said.get("architecture", {})}
        built = of_weights(weights, told, input_shape)
        names = said.get("class_names") or [str(i) for i in range(built["n_class"])]
        if len(names) != built["n_class"] or not all(map(is_class_name, names)):
            raise ValueError(f"{built['n_class']} classes, names {repr(names)[:100]}")
        thresholds = verdict.of_weights(path, said, built["decoder"])
    except UnknownImageSize as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: not a CapsNet's weights ({error!r})") from error
    except ValueError as error:
        reason = first_line(error)
        raise ValueError(f"{path}: not a CapsNet's weights ({reason})") from error
    digits = built["input_shape"] == (28, 28, 1) and built["n_class"] == 10
    like_mnist = said.get("like_mnist", digits)
    about = {"class_names": names, "like_mnist": like_mnist, "thresholds": thresholds}
    return built, about


def rebuild(networks, built):
    """Build the network that `of_file` read the arguments of.

    Args:
        networks: dict of functions, by the names of `MODELS`.
        built: dict. What the network neither names nor hands on is left out.

    Returns:
        The trio.
    """
    network = networks[built["model"]]
    names = inspect.signature(network).parameters
    built = {k: v for k, v in built.items() if k in names or k in _HANDED_ON}
    try:
        return network(**built)
    except ValueError:  # a form of convolution that this machine does not compute
        if "conv" not in built:
            raise
        return network(**{**built, "conv": "auto"})


def of_weights(weights, said, input_shape=None):
    """Read the arguments of `CapsNet` from weights.

    What the weights do not tell is taken from `said`, by which nothing can be larger
    than the weights allow, and the shape of the images from `input_shape` where `said`
    has none.

    Args:
        weights: dict that `capsnet.weights.read` returned.
        said: dict, what the file says of itself; `routings` at least.
        input_shape: tuple, optional. See `capsulenet.load_model`.

    Returns:
        A dict.

    Raises:
        UnknownImageSize: if neither tells the shape of the images.
        ValueError: if what is said does not fit the weights.
        Exception: whatever else foreign weights lead to.
    """
    model = said.get("model", "capsnet")
    if model not in MODELS:
        raise ValueError(
            f"its network, {model!r:.50}, is none of {', '.join(MODELS)}: build that, "
            "and use load_weights"
        )
    if model != "capsnet":
        return _other_of_weights(model, weights, said, input_shape)
    if not {"conv1", "primarycap_conv2d"} <= weights.keys():
        raise ValueError(
            "it does not tell its network: build that, and use load_weights"
        )
    built = _told_by_shapes(model, weights, said)
    kernel_size, n_channels = built["kernel_size"], built["n_channels"]
    channels, n_primary = weights["conv1"][0].shape[2], weights["digitcaps"][0].shape[1]
    built |= {"model": model, **_said_alone(said)}

    def positions(height, width):
        return primary_positions(height, width, kernel_size, built["strides"])

    if "input_shape" in said:
        shape = tuple(map(operator.index, said["input_shape"]))
    elif input_shape:
        shape = tuple(map(operator.index, (*input_shape, channels)[:3]))
    else:
        there = n_primary // n_channels
        shape = (*_image_size_of(weights, channels, there, positions), channels)
    if input_shape and tuple(input_shape) != shape[: len(input_shape)]:
        raise UnknownImageSize(f"its images are {shape}, not {tuple(input_shape)}")
    if positions(*shape[:2]) * n_channels != n_primary:
        raise ValueError(f"{n_primary} primary capsules on images of {shape}")
    built["input_shape"] = shape
    _check_shapes(weights, built)
    return built


def by_layers(weights):
    """Tell another network than the paper's by the names of its layers, a dict."""
    layers = {name.partition("/")[0] for name in weights}
    for layer, model in (("stem", "photo"), ("primarycap_depthwise", "efficient")):
        if layer in layers:
            return {"model": model}
    return {}


def _other_of_weights(model, weights, said, input_shape=None):
    """As `of_weights`, of another network; loading checks the shapes of the rest."""
    if model == "photo" and said["stem"] != "residual":
        raise ValueError(
            "its stem is not this project's: build PhotoCapsNet with that stem, and use "
            "load_weights"
        )
    shape = tuple(map(operator.index, said["input_shape"]))
    if input_shape and tuple(input_shape) != shape[: len(input_shape)]:
        raise UnknownImageSize(f"its images are {shape}, not {tuple(input_shape)}")
    first = weights.get("stem" if model == "photo" else "conv1", [None])[0]
    if len(shape) != 3 or (first is not None and shape[2] != first.shape[-2]):
        raise ValueError(f"images of {shape}")
    built = _told_by_shapes(model, weights, said)
    taken = (*_HANDED_ON, "routings", *BEYOND.get(model, ()))
    known = _said_alone(said).items()
    known = {name: value for name, value in known if name in taken}
    return {"model": model, "input_shape": shape, **built, **known}


def _told_by_shapes(model, weights, said):
    """What the shapes of weights tell, from which what is said must not differ."""
    n_class, _, dim_capsule, dim_primary = weights["digitcaps"][0].shape
    read = {
        "filters": lambda: weights["conv1"][0].shape[3],
        "kernel_size": lambda: weights["conv1"][0].shape[0],
        "n_channels": lambda: weights["primarycap_conv2d"][0].shape[3] // dim_primary,
    }
    built = {
        "n_class": n_class,
        "dim_primary": dim_primary,
        "dim_capsule": dim_capsule,
        "decoder": "decoder" in weights,
        **{name: read[name]() for name in BEYOND.get(model, ()) if name in read},
    }
    for name in built.keys() & said.keys():
        if said[name] != built[name]:
            raise ValueError(f"{name} is {built[name]} and not {said[name]}")
    return built


def _said_alone(said):
    """What weights do not tell, checked."""
    routings = operator.index(said["routings"])
    strides = operator.index(said.get("strides", STRIDES))
    if not (1 <= routings <= MOST_ROUTINGS and 1 <= strides <= 1000):
        raise ValueError(f"routings {routings}, strides {strides}")
    conv, gradient = said.get("conv", "auto"), said.get("routing_gradient", True)
    if conv not in CONV_FORMS or not isinstance(gradient, bool):
        raise ValueError(f"conv {conv!r:.100}, routing_gradient {gradient!r:.100}")
    how = {name: said.get(name, False) for name in ("use_bias", "leaky")}
    if not all(isinstance(value, bool) for value in how.values()):
        raise ValueError(f"use_bias, leaky {how!r:.100}")
    routing, squash = said.get("routing", "dynamic"), said.get("squash")
    own = rules.rule(routing, routings, **how).squash  # or a ValueError
    if squash == "own":
        raise ValueError(
            "its squash is a function: build the network with it, and use load_weights"
        )
    if squash not in (None, own, *SQUASHES):
        raise ValueError(f"squash {squash!r:.100}")
    return {
        "routing": routing,
        "squash": squash,
        **how,
        "routings": routings,
        "strides": strides,
        "conv": conv,
        "routing_gradient": gradient,
    }


def _check_shapes(weights, built):
    """Raise a `ValueError` where convolutions or decoder are of another network."""
    shape, kernel_size = built["input_shape"], built["kernel_size"]
    primary = weights["primarycap_conv2d"][0].shape[3]
    sizes = [built["n_class"] * built["dim_capsule"], 512, 1024, math.prod(shape)]
    dense = [shape for pair in itertools.pairwise(sizes) for shape in (pair, pair[1:])]
    filters = built["filters"]
    expected = {
        "conv1": [(kernel_size, kernel_size, shape[2], filters), (filters,)],
        "primarycap_conv2d": [(kernel_size, kernel_size, filters, primary), (primary,)],
        "decoder": dense if built["decoder"] else [],
    }
    for name, shapes in expected.items():
        found = [array.shape for array in weights.get(name, [])]
        if found != shapes:
            raise ValueError(f"{name} has shapes {found}, not {shapes}")


def _image_size_of(weights, channels, there, positions):
    """Find height and width of the images from weights.

    Args:
        weights: dict that `capsnet.weights.read` returned.
        channels: int.
        there: int. At how many positions primary capsules are.
        positions: function of height and width that tells that of an image.

    Raises:
        UnknownImageSize: if the weights do not tell.
    """
    way_out = "input_shape=(HEIGHT, WIDTH), or --image_size HEIGHTxWIDTH, does"
    if "decoder" not in weights:
        raise UnknownImageSize(
            f"without a decoder, weights do not tell the size of the images: {way_out}"
        )
    pixels = len(weights["decoder"][-1]) // channels
    heights = range(1, math.isqrt(pixels) + 1)
    sizes = [(h, pixels // h) for h in heights if pixels % h == 0]
    fitting = [size for size in sizes if positions(*size) == there]
    if not fitting:
        raise ValueError(f"no image has {pixels} pixels and {there} positions")
    height, width = fitting[-1]
    if height != width:
        either = " or ".join(f"{h} x {w} or {w} x {h}" for h, w in fitting)
        raise UnknownImageSize(
            f"the weights do not tell whether images are {either} pixels: {way_out}"
        )
    return height, width
