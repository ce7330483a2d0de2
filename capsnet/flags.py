"""Every option of the command line, once.

`OPTIONS` is all there is to an option: what reads the command line, checks a value,
compares a run with the one that it goes on from, passes flags on, or lists them in
`docs/options.md` (`python -m capsnet.command_line`) does so by this declaration.
"""

import math

from capsnet.option import Option, digit, image_size

NAMED_SETS = ("mnist", "fashion_mnist", "cifar10", "multimnist", "affnist")
"""Data sets that are known by name."""

MODELS = ("capsnet", "photo", "efficient", "shared")
MOST_ROUTINGS = 100
ROUTINGS = ("dynamic", "attention", "max_min", "none", "inverted")
CONV_FORMS = ("auto", "direct", "spectral", "patches")
"""Networks, see `capsulenet.NETWORKS`; the most iterations of routings, and those, see
`capsnet.rules`; and forms of a convolution, see `capsnet.spectral`."""

_AT_LEAST_0 = (lambda value: 0 <= value < math.inf, "at least 0")
_AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
_ROUTINGS = (lambda n: 1 <= n <= MOST_ROUTINGS, f"at least 1, at most {MOST_ROUTINGS}")
_FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")
DATA, TRAINING = "data", "training"
TESTING, PICTURES = "testing", "own pictures"
NETWORK, RUN = "more about the network and its training", "the run"


def _fraction(name, said):
    return Option(name, 0.0, said, NETWORK, rule=_FRACTION)


_OPEN = ("class_names", "run_options", "test_batch_size")

OPTIONS = (
    Option(
        "dataset",
        "mnist",
        f"one of {', '.join(NAMED_SETS)}, a folder of pictures with a sub-folder for "
        "each class, or an .npz file like data/mnist.npz",
        DATA,
    ),
    Option(
        "image_size",
        None,
        "side of a folder's pictures, or HEIGHTxWIDTH, their own if absent; for "
        "--predict that of the images of -w's network, where its file does not tell",
        DATA,
        type=image_size,
    ),
    Option(
        "color",
        "auto",
        "of a folder's pictures; auto is grey where no picture has a colour",
        DATA,
        choices=("auto", "gray", "rgb"),
    ),
    Option(
        "test_share",
        0.2,
        "share of a folder's pictures kept for the test, without train/ and test/",
        DATA,
        rule=(lambda value: 0 < value < 1, "above 0 and below 1"),
    ),
    Option(
        "pairs",
        False,
        "overlap each image of a grey data set with one of another class",
        DATA,
    ),
    Option(
        "overlap_shift",
        6,
        "pixels that each of the two moves at most; the paper's text has 4",
        DATA,
        rule=_AT_LEAST_0,
    ),
    Option(
        "test_size",
        10_000,
        "test pictures where they are composed",
        DATA,
        rule=_AT_LEAST_1,
        decides=False,
    ),
    Option(
        "affnist",
        None,
        "test.mat of the original affNIST, for -t to test on",
        DATA,
        type=str,
        more={"metavar": "FILE"},
        decides=False,
    ),
    Option("epochs", 50, "epochs to train", TRAINING, rule=_AT_LEAST_1),
    Option(
        "until",
        0.0,
        "hold out some training images, and stop after the epoch in which so large a "
        "share of them is read; 0 for never",
        TRAINING,
        rule=(lambda value: 0 <= value <= 1, "0 to 1"),
    ),
    Option("batch_size", 100, "images a step", TRAINING, rule=_AT_LEAST_1),
    Option("lr", 0.001, "initial learning rate", TRAINING, rule=_AT_LEAST_0),
    Option("save_dir", "./result", "for everything written", TRAINING, decides=False),
    Option(
        "weights",
        None,
        "weights to start from or to test; --resume takes those of its run alone",
        TRAINING,
        type=str,
        short="w",
        decides=False,
    ),
    Option("resume", False, "go on with the run in save_dir", TRAINING, decides=False),
    Option(
        "seed",
        None,
        "makes a run repeatable; drawn if absent",
        TRAINING,
        type=int,
        rule=(lambda value: value is None or 0 <= value < 2**32, "0 to 2**32 - 1"),
    ),
    Option(
        "testing", False, "test instead of training", TESTING, short="t", decides=False
    ),
    Option(
        "digit",
        5,
        "class whose capsule -t manipulates, or all of them",
        TESTING,
        type=digit,
        decides=False,
    ),
    Option(
        "show_routing",
        False,
        "-t draws how a few test images were routed",
        TESTING,
        decides=False,
    ),
    Option(
        "predict",
        None,
        "tell the classes of pictures or folders of pictures, with -w; exits with 1 "
        "where some of them can't be read, with 2 where none can",
        PICTURES,
        type=str,
        more={"nargs": "+", "metavar": "FILE"},
        decides=False,
    ),
    Option("json", False, "--predict prints JSON lines", PICTURES, decides=False),
    Option(
        "no_invert",
        False,
        "--predict takes dark drawings on a light ground as they are",
        PICTURES,
        decides=False,
    ),
    Option(
        "threshold",
        0.01,
        "share of training images that --predict may call none or two",
        PICTURES,
        rule=_FRACTION,
        decides=False,
    ),
    Option(
        "model",
        "auto",
        "the network: the paper's, one for pictures, Efficient-CapsNet, or the paper's with "
        "shared transformations; auto takes the first for the sets known by name and for "
        "grey images of up to 32 x 32 pixels, else the second",
        NETWORK,
        choices=("auto", *MODELS),
    ),
    Option(
        "routing",
        "auto",
        "how predictions are weighed; auto is attention of efficient, none of shared, else "
        "dynamic",
        NETWORK,
        choices=("auto", *ROUTINGS),
    ),
    Option(
        "routings",
        3,
        "routing iterations; where not given, those of the routing: 2 of inverted, 1 of "
        "attention, none, and photo's dynamic",
        NETWORK,
        rule=_ROUTINGS,
        short="r",
    ),
    Option("use_bias", False, "add a learned bias in each routing iteration", NETWORK),
    Option("leaky", False, "let capsules send nothing, in dynamic routing", NETWORK),
    Option(
        "authors",
        False,
        "first weights, bias, batch and schedule of the paper's authors' code",
        NETWORK,
    ),
    Option(
        "routing_gradient",
        True,
        "take the coupling coefficients as constants in the gradient; faster",
        NETWORK,
        flag="no_routing_gradient",
    ),
    Option(
        "lam_recon",
        0.392,
        "weight of the reconstruction loss; 0.392 = 0.0005 * 784 pixels",
        NETWORK,
        rule=_AT_LEAST_0,
    ),
    Option("optimizer", "adam", "the optimizer", NETWORK, choices=("adam", "lamb")),
    Option(
        "schedule",
        "exponential",
        "the learning rate falls by lr_decay each epoch, or as a cosine to zero",
        NETWORK,
        choices=("exponential", "cosine"),
    ),
    Option(
        "lr_decay",
        0.9,
        "factor on the learning rate after each epoch; nearer to 1 for more epochs",
        NETWORK,
        rule=(lambda value: 0 < value < math.inf, "above 0"),
    ),
    _fraction(
        "ema",
        "momentum of the average of the weights that is validated and kept; 0: none",
    ),
    Option(
        "shift_fraction",
        0.1,
        "training images move by up to this fraction of their side",
        NETWORK,
        rule=_FRACTION,
    ),
    Option(
        "shifts",
        "whole",
        "they move by whole pixels, or by parts of one as well",
        NETWORK,
        choices=("whole", "interpolated"),
    ),
    Option(
        "fill_mode",
        "constant",
        "what comes in where they move or turn is zero, or the nearest pixel of the edge",
        NETWORK,
        choices=("constant", "nearest"),
    ),
    Option(
        "rotation",
        0.0,
        "training images turn by up to so many degrees, in either direction",
        NETWORK,
        rule=(lambda value: 0 <= value <= 180, "0 to 180 degrees"),
    ),
    _fraction(
        "zoom",
        "training images shrink or grow by up to this fraction of their size",
    ),
    _fraction(
        "shear",
        "they lean, each row by up to this fraction of its distance from the middle",
    ),
    _fraction(
        "elastic",
        "their pixels move along a smooth random field of this standard deviation, a "
        "fraction of their side",
    ),
    _fraction(
        "erase",
        "a square of this fraction of their side is blanked, at a random place",
    ),
    Option("flip", False, "half of the training images are mirrored", NETWORK),
    _fraction(
        "brightness",
        "training images become lighter or darker by up to this fraction",
    ),
    _fraction(
        "tint",
        "at most this is added to each of their colours, or taken from it, 1 being full",
    ),
    Option(
        "balance",
        "auto",
        "draw the images of all classes equally often; auto does where one class has "
        "more than three times as many as another",
        NETWORK,
        choices=("auto", "yes", "no"),
    ),
    Option("conv", "auto", "form of the convolutions", NETWORK, choices=CONV_FORMS),
    Option(
        "precision",
        "float32",
        "of the matrix products; weights, softmax, squash, losses stay float32",
        NETWORK,
        choices=("float32", "bfloat16"),
    ),
    Option(
        "pause_after",
        0,
        "stop after so many epochs, for --resume to go on; 0 for never",
        RUN,
        rule=_AT_LEAST_0,
        decides=False,
    ),
    Option(
        "deterministic",
        False,
        "compute the same bits each time, also where a run is interrupted",
        RUN,
    ),
    Option("debug", False, "weight histograms for TensorBoard", RUN, decides=False),
    Option(
        "verbose",
        1,
        "progress of an epoch: 0 none, 1 a bar that moves, 2 a line at its end",
        RUN,
        choices=(0, 1, 2),
        decides=False,
    ),
    # What `train` and `test` take besides, and this command line has no flags for.
    *(Option(name, None, decides=False) for name in _OPEN),
    Option("shown", "one", decides=False),  # classes of a picture, see `data.shown`
    Option("like_mnist", False, decides=False),  # see `data.are_like_mnist`
    Option("log_interval", 0, rule=_AT_LEAST_0, decides=False),
    Option("threads", 1, rule=_AT_LEAST_1, decides=False),
    Option("keep_checkpoints", 2, rule=_AT_LEAST_0, decides=False),
    Option("draw_reconstructions", False, decides=False),
)
"""All options, in the order of `--help`."""
