"""Which network a model is of and what it was built with, as its layers tell it."""

import math
import operator

from capsnet.options import MODELS

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


def check_image_size(input_shape, network, smallest, largest=None):
    """Raise a `ValueError` where a network does not take images of a shape.

    Args:
        input_shape: tuple `(height, width, channels)`.
        network: str. Its name, for the error.
        smallest: int. Pixels that a side has at least.
        largest: int, optional. Pixels that a side has at most. Defaults to any number.
    """
    try:
        height, width, _ = sides = list(map(operator.index, input_shape))
    except (TypeError, ValueError):
        sides = [0]
    if min(sides) < 1:
        raise ValueError(
            f"input_shape {input_shape!r:.50}: must be (height, width, channels), integers "
            "above 0"
        )
    if min(height, width) < smallest or max(height, width) > (largest or math.inf):
        taken = f"sides of {smallest} to {largest}"
        taken = taken if largest else f"at least {smallest} x {smallest} pixels"
        raise ValueError(
            f"images of {height} x {width} pixels (height x width): the network {network} "
            f"takes {taken}; --image_size scales a folder's pictures"
        )


BEYOND = {
    "capsnet": ("filters", "kernel_size", "n_channels", "strides", "conv"),
    "photo": ("n_channels", "stem"),
    "shared": ("filters", "n_channels", "conv"),
}
"""What a network takes of its own, which its layers and weights tell."""

CONVOLUTIONS = {
    "photo": {"primarycap_conv2d"},
    "efficient": {"conv1", "primarycap_depthwise"},
    "shared": {"conv1", "primarycap_conv2d"},
}
"""Layers without which a model is not a network, whatever its name."""

WITHOUT_WEIGHTS = {
    *("InputLayer", "Reshape", "Permute", "Dropout"),
    *("Squash", "Length", "Mask"),
}
"""Classes of layers without weights that the paper's network may have."""

OF_CAPSULES = (
    *("routings", "dim_capsule", "routing_gradient"),
    *("routing", "use_bias", "leaky"),
)
"""What any network takes for its class capsules, under the names of `CapsuleLayer`."""


def capsule_layer(model):
    """Return a model's layer of class capsules, None where it is none of this library."""
    layer = {layer.name: layer for layer in model.layers}.get("digitcaps")
    ours = all(hasattr(layer, name) for name in (*OF_CAPSULES, "shared"))
    return layer if ours else None


def network(model):
    """Return which of `MODELS` a model is of, as its name tells it, or its layers.

    Args:
        model: the training or evaluation model.

    Returns:
        A str, `"own"` for a model that is of none of them.
    """
    learned = {layer.name: layer for layer in model.layers if layer.weights}
    digitcaps = capsule_layer(model)
    if digitcaps is None:
        return "own"
    if model.name in MODELS[1:]:
        there = CONVOLUTIONS.get(model.name, set()) <= learned.keys()
        return model.name if there else "own"
    learned.pop("decoder", None)
    others = {type(layer).__name__ for layer in model.layers if not layer.weights}
    if others - WITHOUT_WEIGHTS:
        return "own"
    if list(learned) != ["conv1", "primarycap_conv2d", "digitcaps"]:
        return "own"
    conv1, primary, _ = learned.values()

    def convolved(layer):  # an activation may be a layer, which has no __name__
        activation = getattr(layer, "activation", None)
        return getattr(activation, "__name__", None), getattr(layer, "padding", None)

    of_paper = [("relu", "valid"), ("linear", "valid")]
    are_paper_s = [convolved(conv1), convolved(primary)] == of_paper
    if are_paper_s and max(conv1.strides) == 1 and not digitcaps.shared:
        return "capsnet"
    return "own"


def architecture(model):
    """Return the arguments of the network that a model of the trio was built with.

    Args:
        model: the training or evaluation model.

    Returns:
        A dict that JSON can hold; `model` is the name of the network, none is CapsNet, and
        `"own"`, alone, what can't be built from a file. `conv` is what was asked for, so
        that `"auto"` chooses anew on another machine.
    """
    name = network(model)
    if name == "own":
        return {"model": name}
    layers = {layer.name: layer for layer in model.layers}
    digitcaps = layers["digitcaps"]
    dim_primary = digitcaps.W.shape[-1]
    conv1, primary = layers.get("conv1"), layers.get("primarycap_conv2d")
    read = {
        "filters": lambda: int(conv1.filters),
        "kernel_size": lambda: conv1.kernel_size[0],
        "n_channels": lambda: int(primary.filters) // dim_primary,
        "strides": lambda: primary.strides[0],
        "conv": lambda: getattr(conv1, "conv", "auto"),
        "stem": lambda: "residual" if "stem" in layers else "own",
    }
    return {
        **({} if name == "capsnet" else {"model": name}),
        "input_shape": list(model.inputs[0].shape[1:]),
        "n_class": digitcaps.num_capsule,
        "dim_primary": dim_primary,
        "decoder": "decoder" in layers,
        **{option: getattr(digitcaps, option) for option in OF_CAPSULES},
        "squash": digitcaps.squash if isinstance(digitcaps.squash, str) else "own",
        **{option: read[option]() for option in BEYOND.get(name, ())},
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
    """Whether a model has a layer of class capsules, itself or in a model within."""
    return any(hasattr(layer, "num_capsule") for layer in model._flatten_layers())
