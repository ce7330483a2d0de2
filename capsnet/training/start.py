"""What a command line needs before there is a network: options checked, data, weights."""

import contextlib

import keras

from capsnet import data as datasets
from capsnet import options, weights
from capsnet.architecture import check_asked
from capsnet.training import devices, recipe, resume
from capsnet.weights.network import by_layers, of_file


def prepare(args):
    """Check what the user gave, load the data, and set seed and precision.

    Args:
        args: namespace with all options; `seed`, `digit` and `class_names` are set
            where they are open.

    Returns:
        `(data, stored)`: a `capsnet.data.Data`, and what `weights.read` gives of the
        weights that the user named, None where a checkpoint takes their place.

    Raises:
        OSError: if a file can't be read or written.
        ValueError: if something can't be what it is.
    """
    options.check_options(args)
    if args.deterministic:
        devices.make_deterministic()
    checkpoint = None if args.testing else resume.find(args)
    stored = None
    if args.weights is not None and checkpoint is None:
        stored = weights.read(args.weights)
        _test_what_was_left_out(args, stored[0])
    data = datasets.load_for(args)
    (x_train, y_train), args.class_names = data.train, data.class_names
    args.shown = datasets.shown(
        y_train, data.test[1], are_paired=options.are_paired(args)
    )
    if "digit" not in args.given:
        args.digit = datasets.shown_class(data.test[1], args.digit)
    options.check_options(args, n_class=y_train.shape[1])
    told, source = _told(args, stored, checkpoint)
    recipe.choose_network(args, x_train.shape[1:], told, source)
    recipe.fit_to_data(args, y_train, x_train.shape[1:])
    if args.testing and stored is not None:
        _say_if_trained_on(args, stored[0], data.test[0])
    resume.check(args, checkpoint)
    args.seed = devices.draw_seed() if args.seed is None else args.seed
    keras.utils.set_random_seed(args.seed)
    mixed = args.precision == "bfloat16"
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed else "float32")
    return data, stored


def _test_what_was_left_out(args, said):
    """Take the `--test_share` of the training where none is given, not to test on its images.

    Args:
        args: namespace with all options.
        said: dict, what the weights say of themselves.
    """
    share, given = said.get("test_share"), "test_share" in args.given
    told = isinstance(share, float) and 0 < share < 1
    if args.testing and options.is_folder(args) and told and not given:
        args.test_share = share


def _say_if_trained_on(args, said, images):
    """Warn where a folder's test pictures are others than when it was trained on."""
    before = said.get("test_pictures")
    if options.is_folder(args) and before not in (None, resume.checksum(images)):
        print(
            f"Warning: the test pictures of {args.dataset} are not those of the training "
            f"of {args.weights}, which may have been trained on some of them. Folders train/ "
            "and test/ keep them apart where pictures are added"
        )


@contextlib.contextmanager
def policy_kept():
    """A context after which Keras' global policy, of the precision, is what it was."""
    before = keras.config.dtype_policy()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _told(args, stored, checkpoint=None):
    """What weights or a checkpoint tell of their network, and which file that is."""
    if stored is not None:
        said, arrays = stored
        told = said.get("architecture", by_layers(arrays))
        return told if isinstance(told, dict) else {}, args.weights
    if checkpoint is None:
        return None, None
    there = checkpoint["options"]
    told = {name: there[name] for name in recipe.TOLD if name in there}
    # Another model than that of the run is for `resume.check` to refuse.
    model = there.get("model", "capsnet") if args.model == "auto" else args.model
    return {**told, "model": model}, args.save_dir


def has_decoder(args, stored):
    """Whether a network is built with a decoder: but for a test of weights without one.

    Args:
        args: namespace with all options.
        stored: pair or None, see `prepare`.
    """
    if not args.testing or stored is None:
        return True
    return not _lacks_decoder(_told(args, stored)[0], stored[1])


def _lacks_decoder(told, arrays):
    """Whether weights have no decoder, as they say, or as their layers' names do."""
    layers = {name.partition("/")[0] for name in arrays}
    no_layer = "digitcaps" in layers and "decoder" not in layers
    return told.get("decoder") is False or no_layer


def load_weights(model, args, stored):
    """Load the weights that the user named; a test has to be of what they were trained on.

    Most routings have no weights, so that another would go unnoticed.

    Args:
        model: the model to load them into.
        args: namespace with all options.
        stored: pair, what `weights.read` gave of them.

    Raises:
        ValueError: if they are of another network.
    """
    told, _ = _told(args, stored)
    said, stored = stored
    if args.testing and "architecture" in said:
        built, _ = of_file(args.weights, said, stored, args.routings, None)
        _check_trained_on(model, args, built, said.get("class_names"))
    elif not args.testing and _lacks_decoder(told, stored):
        print(f"{args.weights}: has no decoder, which starts anew")
        stored = {**stored, "decoder": model.get_layer("decoder").get_weights()}
    squash, here = told.get("squash"), model.get_layer("digitcaps").squash
    if squash not in (None, here):
        raise ValueError(
            f"{args.weights}: its capsules are squashed by {squash!r:.50}, for which there "
            "is no option: capsulenet.load_model builds its network"
        )
    weights.set_weights(model, stored, args.weights)


def _check_trained_on(model, args, built, names):
    check_asked(args, built, recipe.TOLD)
    here = tuple(model.inputs[0].shape[1:]), model.outputs[0].shape[-1]
    others = names and args.class_names and list(names) != list(args.class_names)
    if (built["input_shape"], built["n_class"]) != here or others:
        height, width, channels = built["input_shape"]
        colour = "grey" if channels == 1 else "colour"
        names = names or map(str, range(built["n_class"]))
        same = f"--image_size {height}x{width} --color {'gray' if channels == 1 else 'rgb'}"
        same = f", with {same}" if options.is_folder(args) else ""
        raise ValueError(
            f"{args.weights}: was trained on {height} x {width} {colour}, classes "
            f"{', '.join(names)[:200]}, which --dataset {args.dataset} "
            f"is not: give the --dataset it was trained on{same}"
        )


@contextlib.contextmanager
def random_weights_said(args):
    """Say before and after a test of random weights that it is one."""
    said = "No weights are given (-w): the test is of random weights."
    if args.weights is None:
        print(said)
    yield
    if args.weights is None:
        print(said)
