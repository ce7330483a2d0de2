"""What a `CapsNet` was built with, as its layers or its weights tell it."""

import itertools
import math
import operator

from capsnet import rules, verdict
from capsnet.data.arrays import is_class_name
from capsnet.errors import first_line
from capsnet.options import CONV_FORMS, MODELS, MOST_ROUTINGS
from capsnet.squashes import SQUASHES

KERNEL_SIZE = 9
"""Side of both convolutions' kernels."""

STRIDES = 2
"""Stride of the second convolution."""


def primary_positions(height, width, kernel_size=KERNEL_SIZE, strides=STRIDES):
    """Return at how many positions of an image there are primary capsules.

    Args:
        height: int. Of the image, in pixels.
        width: int. Likewise.
        kernel_size: int. Side of both convolutions' kernels. Defaults to 9.
        strides: int. Stride of the second convolution. Defaults to 2.

    Returns:
        An int, 0 where the image is too small for the convolutions.
    """
    sides = [
        (side - 2 * (kernel_size - 1) - 1) // strides + 1 for side in (height, width)
    ]
    return math.prod(sides) if min(sides) > 0 else 0


def check_image_size(input_shape, kernel_size=KERNEL_SIZE):
    """Raise a `ValueError` where images are too small for the two convolutions."""
    smallest = 2 * kernel_size - 1
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"images of {input_shape[0]} x {input_shape[1]} pixels are too small for "
            f"two {kernel_size} x {kernel_size} convolutions: at least {smallest} x "
            f"{smallest}"
        )


def architecture(model):
    """Return the arguments of the network that a model of the trio was built with.

    Args:
        model: the training or evaluation model.

    Returns:
        A dict that JSON can hold; `model` is the name of the network, none is CapsNet.
        `conv` is what was asked for, so that `"auto"` chooses anew on another machine.
    """
    digitcaps = model.get_layer("digitcaps")
    dim_primary = model.get_layer("primarycap_reshape").target_shape[-1]
    names = [layer.name for layer in model.layers]
    of_digitcaps = ("routings", "dim_capsule", "routing_gradient")
    of_digitcaps += ("routing", "use_bias", "leaky")
    built = {
        "input_shape": list(model.inputs[0].shape[1:]),
        "n_class": digitcaps.num_capsule,
        "dim_primary": dim_primary,
        "decoder": "decoder" in names,
        **{name: getattr(digitcaps, name) for name in of_digitcaps},
        "squash": digitcaps.squash if isinstance(digitcaps.squash, str) else "own",
    }
    if model.name == "efficient":
        return {"model": model.name, **built}
    primary = model.get_layer("primarycap_conv2d")
    built["n_channels"] = primary.filters // dim_primary
    if model.name == "shared":
        conv1 = model.get_layer("conv1")
        form = {"filters": conv1.filters, "conv": conv1.conv}
        return {"model": model.name, **built, **form}
    if digitcaps.shared:
        stem = "residual" if "stem" in names else "own"
        return {"model": "photo", **built, "stem": stem}
    conv1 = model.get_layer("conv1")
    return {
        **built,
        "filters": conv1.filters,
        "kernel_size": conv1.kernel_size[0],
        "strides": primary.strides[0],
        "conv": conv1.conv,
    }


def check_asked(args, built, names):
    """Raise a `ValueError` where options ask for another network than weights are of.

    Args:
        args: namespace with all options.
        built: dict as `architecture` returns it.
        names: list of str. The options that are compared.
    """
    for name in names:
        given, there = getattr(args, name), built.get(name, "capsnet")
        if given not in ("auto", there):
            raise ValueError(
                f"--{name} {given}: {args.weights} was trained with --{name} {there}"
            )


def has_capsules(model):
    """Whether a model has a layer of class capsules."""
    return any(hasattr(layer, "num_capsule") for layer in model.layers)


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
        other = told.get("model", "capsnet") in MODELS[1:]
        of = _other_of_weights if other else of_weights
        built = of(weights, told, input_shape)
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
    if not {"conv1", "primarycap_conv2d"} <= weights.keys():
        raise ValueError(
            "it does not tell its network: build that, and use load_weights"
        )
    kernel_size, _, channels, filters = weights["conv1"][0].shape
    n_class, n_primary, dim_capsule, dim_primary = weights["digitcaps"][0].shape
    n_channels = weights["primarycap_conv2d"][0].shape[3] // dim_primary
    built = {
        "n_class": n_class,
        "filters": filters,
        "kernel_size": kernel_size,
        "n_channels": n_channels,
        "dim_primary": dim_primary,
        "dim_capsule": dim_capsule,
        "decoder": "decoder" in weights,
    }
    _check_said(said, built)
    built |= {"model": "capsnet", **_said_alone(said, kernel_size)}

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


def _other_of_weights(weights, said, input_shape=None):
    """As `of_weights`, of another network; loading checks the shapes of the rest."""
    model = said["model"]
    if model == "photo" and said["stem"] != "residual":
        raise ValueError(
            "its stem is not this project's: build PhotoCapsNet with that stem, and use "
            "load_weights"
        )
    n_class, inputs, dim_capsule, dim_primary = weights["digitcaps"][0].shape
    *_, channels, filters = weights["stem" if model == "photo" else "conv1"][0].shape
    shape = tuple(map(operator.index, said["input_shape"]))
    if input_shape and tuple(input_shape) != shape[: len(input_shape)]:
        raise UnknownImageSize(f"its images are {shape}, not {tuple(input_shape)}")
    if len(shape) != 3 or shape[2] != channels:
        raise ValueError(f"images of {shape}")
    built = {
        "n_class": n_class,
        "dim_primary": dim_primary,
        "dim_capsule": dim_capsule,
        "decoder": "decoder" in weights,
        **({"n_channels": inputs} if model != "efficient" else {}),
        **({"filters": filters} if model == "shared" else {}),
    }
    _check_said(said, built)
    known = _said_alone(said, KERNEL_SIZE)
    none = ("strides",) if model == "shared" else ("strides", "conv")
    known = {k: v for k, v in known.items() if k not in none}
    return {"model": model, "input_shape": shape, **built, **known}


def _check_said(said, built):
    """Raise a `ValueError` where what is said differs from what the weights tell."""
    for name in built.keys() & said.keys():
        if said[name] != built[name]:
            raise ValueError(f"{name} is {built[name]} and not {said[name]}")


def _said_alone(said, kernel_size):
    """What weights do not tell, checked."""
    routings = operator.index(said["routings"])
    strides = operator.index(said.get("strides", STRIDES))
    if not (1 <= routings <= MOST_ROUTINGS and 1 <= strides <= kernel_size):
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
