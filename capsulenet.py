"""CapsNet on MNIST: the model, its training, its test, and the command line.

    python capsulenet.py
    python capsulenet.py -t -w result/trained_model.h5

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
    Guo. CapsNet-Keras. https://github.com/XifengGuo/CapsNet-Keras, whose commands,
        functions, layer names and weights these are.
"""

from capsnet import command_line

if __name__ == "__main__":  # Keras takes seconds, and typing errors need none
    command_line.begin_capsulenet()

import math
import os

import keras
import numpy as np
from keras import layers, ops

# ruff: noqa: F401 (people import from here what other files define)
from capsnet import (
    bent,
    dimensions,
    networks,
    options,
    own_pictures,
    routes,
    scores,
    several,
    told_apart,
    verdict,
    weights,
)
from capsnet.architecture import (
    KERNEL_SIZE,
    STRIDES,
    architecture,
    check_image_size,
    has_capsules,
)
from capsnet.command_line import build_parser, one_line_errors
from capsnet.data import Bent, Pairs, load_mnist, shown_class, shows_several
from capsnet.dimensions import MANIPULATIONS
from capsnet.errors import HostLost, Interrupted
from capsnet.files import make_save_dir
from capsnet.inference import as_images, as_set, outputs_of
from capsnet.machine import set_allocator
from capsnet.networks import EfficientCapsNet, PhotoCapsNet, SharedCapsNet
from capsnet.networks.trio import class_capsules, of_pairs, start_as_the_authors, trio
from capsnet.options import check_options
from capsnet.pictures import combine_images, plot_log, plot_manipulations, show_test
from capsnet.several import ExactSet
from capsnet.training import fit, recipe, resources, start
from capsnet.training.optimizers import optimizer
from capsnet.weights import load_weights, save_weights
from capsnet.weights.network import of_file, rebuild
from capsulelayers import (
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
    SpectralConv2D,
    full_dtype,
)


def CapsNet(
    input_shape,
    n_class,
    routings,
    batch_size=None,
    *,
    filters=256,
    kernel_size=KERNEL_SIZE,
    strides=STRIDES,
    n_channels=32,
    dim_primary=8,
    dim_capsule=16,
    conv="auto",
    decoder=True,
    authors=False,
    **how,
):
    """Build a capsule network (Sabour et al. 2017, figures 1 and 2).

    Args:
        input_shape: tuple `(height, width, channels)`.
        n_class: int. Number of classes.
        routings: int. Number of routing iterations.
        batch_size: not needed; CapsNet-Keras' TF2 branch takes it.
        filters: int. Filters of the first convolution. Defaults to 256.
        kernel_size: int. Side of both convolutions' kernels. Defaults to 9.
        strides: int. Of the second convolution. Defaults to 2.
        n_channels: int. Primary capsules at each position. Defaults to 32.
        dim_primary: int. Their dimension. Defaults to 8.
        dim_capsule: int. Dimension of a class capsule. Defaults to 16.
        conv: form of the convolutions, see `SpectralConv2D`. Defaults to `"auto"`.
        decoder: bool. Whether images are reconstructed, see `trio`. Defaults to True.
        authors: bool. Whether weights start as in the authors' code, with a bias of the
            class capsules. Defaults to False.
        **how: of the class capsules: `routing` and others of `CapsuleLayer`.

    Returns:
        `(train_model, eval_model, manipulate_model)`, see `capsnet.networks.trio`.

    Raises:
        ValueError: if the images are too small for the two convolutions.
    """
    check_image_size(input_shape, "capsnet", 2 * kernel_size - 1)
    x = layers.Input(shape=input_shape)
    form = {"conv": conv, "data_format": "channels_last"}
    # Layer 1: a conventional convolution.
    conv1 = {"activation": "relu", "name": "conv1"}
    conv1 = SpectralConv2D(filters, kernel_size, **conv1, **form)(x)
    # Layer 2: a convolution whose outputs are grouped to capsules and squashed.
    size = (dim_primary, n_channels, kernel_size, strides, "valid")
    primarycaps = PrimaryCap(conv1, *size, kernel_initializer="glorot_uniform", **form)
    # Layer 3: the class capsules, by dynamic routing or another.
    sigma = min(0.5 * n_class / math.sqrt(primarycaps.shape[1]), 0.4)
    initial = keras.initializers.TruncatedNormal(stddev=sigma / math.sqrt(dim_capsule))
    how = {"kernel_initializer": initial, **how}
    how["use_bias"] = authors or how.get("use_bias", False)
    digitcaps = class_capsules(primarycaps, n_class, dim_capsule, routings, **how)
    # Layer 4: the length of each capsule, the probability of its class; and a decoder.
    models = trio(x, digitcaps, decoder)
    return start_as_the_authors(models) if authors else models


@keras.saving.register_keras_serializable(package="capsnet")
def margin_loss(y_true, y_pred, m_plus=0.9, m_minus=0.1, lambda_=0.5):
    """The margin loss of each example (Sabour et al. 2017, eq. 4).

    Keras averages it over the batch, with the weights of examples or classes where
    there are any.

    Args:
        y_true: tensor `(batch, n_class)`, 1 where a class is present, else 0. Several
            classes may be present.
        y_pred: tensor `(batch, n_class)`, the lengths of the class capsules.
        m_plus: float. Length that the capsule of a class that is present should reach.
            Defaults to 0.9.
        m_minus: float. Length that the others should stay below. Defaults to 0.1.
        lambda_: float. Weight of the classes that are absent. Defaults to 0.5.

    Returns:
        A tensor `(batch,)`.

    Raises:
        ValueError: if the two have different shapes.
    """
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = several.like(ops.cast(y_true, y_pred.dtype), y_pred)
    present = y_true * ops.square(ops.relu(m_plus - y_pred))
    absent = (1.0 - y_true) * ops.square(ops.relu(y_pred - m_minus))
    return ops.sum(present + lambda_ * absent, axis=-1)


@keras.saving.register_keras_serializable(package="capsnet")
class MarginLoss(keras.losses.Loss):
    """`margin_loss` as a Keras loss, averaged over the batch.

    Args:
        m_plus: see `margin_loss`. Defaults to 0.9.
        m_minus: likewise. Defaults to 0.1.
        lambda_: likewise. Defaults to 0.5.
        **kwargs: `name`, `reduction` and `dtype` of `keras.losses.Loss`.
    """

    def __init__(self, m_plus=0.9, m_minus=0.1, lambda_=0.5, **kwargs):
        super().__init__(**kwargs)
        self.margins = {"m_plus": m_plus, "m_minus": m_minus, "lambda_": lambda_}

    def call(self, y_true, y_pred):
        """Return the loss of each example, `(batch,)`."""
        return margin_loss(y_true, y_pred, **self.margins)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), **self.margins}


def compile_model(model, args, steps=1):
    """Compile a training model with the optimizer, the losses and the metric.

    The classes are trained by the margin loss, those of a network without capsules by
    cross-entropy; the images, if the model gives any, by the squared error, that of pairs
    by the sum of both.

    Args:
        model: the training model of `CapsNet`, or a classifier.
        args: namespace; the options of optimizer, learning rate and loss are used, see
            `train`.
        steps: int. Steps an epoch. Defaults to 1.
    """
    shown = getattr(args, "shown", "one")
    kind = "categorical" if shown == "one" else "binary"
    of_classes = MarginLoss() if has_capsules(model) else f"{kind}_crossentropy"
    outputs = len(model.outputs)
    exact = "accuracy" if shown == "one" else ExactSet(shown)
    model.compile(
        optimizer(args, steps),
        loss=[of_classes, "mse"][:outputs],
        loss_weights=[1.0, args.lam_recon * (1 + (shown == "two"))][:outputs],
        weighted_metrics=[[exact], []][:outputs],
        jit_compile=resources.jit_compile(model),
        steps_per_execution=resources.steps_per_execution(steps),
    )


def train(model, data, args, signals=False):
    """Train a CapsNet, and leave log, checkpoint, curve and weights in `save_dir`.

    What another run left there is moved aside: see `capsnet.training.folder`.

    Args:
        model: the training model of `CapsNet`.
        data: `((x_train, y_train), (x_test, y_test))`, images `(n, height, width,
            channels)` in [0, 1] and one-hot labels `(n, n_class)`.
        args: namespace with any of the command line's options as attributes; the
            others take the command line's defaults. Beyond those: `class_names`, list
            of str; `run_options`, dict of what is compared where a run goes on, by
            default the options that its result depends on; `test_batch_size`, images a
            validation step; `log_interval`, batches between two printed lines, 0 for
            none; `threads` that prepare batches; `keep_checkpoints`, 0 for all;
            `draw_reconstructions`, whether TensorBoard gets pictures. `weights` names
            what the model was started from; it is not loaded.
        signals: bool. Whether Ctrl-C and SIGTERM are taken over, to end the training
            after the step in progress; for command lines. Defaults to False.

    Returns:
        `model`, trained.

    Raises:
        ValueError: if an option has a value that it can't have, or a run can't go on
            from what there is.
        OSError: if the save directory can't be written, or another process trains
            there.
        FloatingPointError: if the loss is no finite number.
        capsnet.errors.Interrupted: where one of those signals ended the training; it
            says where. The weights of that moment are in `interrupted_model.h5`.
        capsnet.errors.HostLost: if another host is gone.
        Exception: whatever else Keras raises while it trains.
    """
    args = options.complete(args)
    trained = of_pairs(model) if options.are_paired(args) else model
    fit.run(trained, data, args, compile_model, signals)
    return model


def test(model, data, args):
    """Print the accuracy, over all and by class, and draw `pictures.show_test`.

    A class that test images show, but that none was taken for, is warned of. Of images
    that show several classes, see `capsnet.told_apart.test`.

    Args:
        model: the evaluation model of `CapsNet`.
        data: `(x_test, y_test)`, or a `capsnet.data.Pairs`.
        args: namespace; `save_dir` and `class_names` are used, see `train`.

    Returns:
        The accuracy, a float in [0, 1].
    """
    args = options.complete(args)
    data = as_set(data, model)
    make_save_dir(args.save_dir)
    if args.shown == "several" or isinstance(data, Pairs) or shows_several(data[1]):
        return told_apart.test(model, data, args)
    print("-" * 30 + "Begin: test" + "-" * 30)
    x_test, y_test = data
    predicted, _, x_recon = predict(model, x_test)
    true = np.argmax(y_test, 1)
    right = predicted == true
    n, wrong = len(right), np.sum(~right)
    print(f"Test acc: {1 - wrong / n:.4f}")
    print(f"Test error: {100 * wrong / n:.2f}% ({wrong} of {n} images)")
    names = options.class_names(args, y_test.shape[1])
    scores.say(scores.confusion(true, predicted, len(names)), names)
    show_test(x_test, x_recon, true, predicted, names, args.save_dir)
    if isinstance(data, Bent):
        bent.show(data, right, args.save_dir)
    print("-" * 30 + "End: test" + "-" * 30)
    return float(1 - wrong / n)


def manipulate_latent(model, data, args):
    """Show what each dimension of a class capsule stands for.

    Writes `manipulate-<digit>.png` to the save directory: reconstructions of one test
    image of class `args.digit`, one row a dimension of its capsule, with
    `MANIPULATIONS` added to it from left to right (Sabour et al. 2017, figure 4). Where
    that is `"all"`, it does so for every class that the test images show, and writes
    `dimensions.png`, see `capsnet.dimensions.show`.

    Args:
        model: the manipulation model of `CapsNet`.
        data: `(x_test, y_test)`.
        args: namespace; `digit`, `class_names`, `save_dir` and `seed`, which chooses
            the image, are used, see `train`.

    Raises:
        ValueError: if no test image shows `args.digit`, there is no decoder, or `data` is
            not the model's.
    """
    args = options.complete(args)
    x_test, y_test = data = dimensions.as_test(model, data)
    if "digit" not in args.given:
        args.digit = shown_class(y_test, args.digit)
    check_options(args, n_class=y_test.shape[1])
    make_save_dir(args.save_dir)
    print("-" * 30 + "Begin: manipulate" + "-" * 30)
    all_digits = args.digit == "all"
    digits = np.flatnonzero(y_test.any(0)) if all_digits else [args.digit]
    names = options.class_names(args, y_test.shape[1])
    if not len(digits):
        raise ValueError("--digit all: no test image shows a class")
    for digit in digits:
        chosen = x_test[dimensions.some_of(digit, y_test, args.seed, 1)]
        if not len(chosen):
            raise ValueError(f"--digit {digit}: no test image shows it")
        images = dimensions.manipulated(model, chosen, digit, MANIPULATIONS)
        path = os.path.join(args.save_dir, f"manipulate-{digit}.png")
        plot_manipulations(chosen[0], images[0], MANIPULATIONS, names[digit], path)
        print(f"Manipulated images are saved to {path}")
    if all_digits:
        dimensions.show(model, data, args, digits)
    print("-" * 30 + "End: manipulate" + "-" * 30)


def predict(model, images, thresholds=None, share=None):
    """Tell the classes of images, and with thresholds whether they show one at all.

    Args:
        model: the evaluation model of `CapsNet`.
        images: float array `(n, height, width, channels)`, in [0, 1].
        thresholds: `about["thresholds"]` of `load_model`. Defaults to None.
        share: float. Share of the training images that may be called `none`, see
            `capsnet.verdict.judged`. Defaults to that of `--threshold`.

    Returns:
        A `capsnet.verdict.Prediction`: `(classes, lengths, reconstructions)`, with
        `verdicts` and `strangeness`, which are None without thresholds.

    Raises:
        ValueError: if there are none, or of another shape than the model's, or numbers that
            are not finite, or not in [0, 1] while there is a decoder.
    """
    images = as_images(images, model)
    outputs = outputs_of(model, images)
    return verdict.judged(model, images, *outputs, thresholds, share)


def load_model(path, routings=3, input_shape=None):
    """Build the trio that a file of weights is of, and load the weights.

    What `train` writes tells its own architecture. Of other files the sizes are read
    from the weights, the second stride being taken for 2; where images of several sizes
    have as many pixels and primary capsules, a square is taken.

    Args:
        path: str. A file as `load_weights` takes it.
        routings: int. Routing iterations where the file does not tell. Defaults to 3.
        input_shape: tuple `(height, width)` or `(height, width, channels)` of the
            images, where the file does not tell. Weights alone do not tell height from
            width, nor, without a decoder, either. Defaults to what the file tells.

    Returns:
        `(trio, about)`: the three models of `CapsNet`, and a dict of `class_names`,
        `like_mnist`, whether the images are digits prepared as those of MNIST, and
        `thresholds` for `predict`, None where there are none.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it holds no weights of a `CapsNet`, or of one of images of
            another shape than `input_shape`, or does not tell their shape.
    """
    said, stored = weights.read(path)
    built, about = of_file(path, said, stored, routings, input_shape)
    models = rebuild(NETWORKS, built)
    weights.set_weights(models[0], stored, path)
    return models, about


NETWORKS = {"capsnet": CapsNet, **networks.OTHERS}
"""What `--model` may be."""


def build(args, input_shape, labels_shape, decoder=True):
    """Build the trio that the options ask for, see `CapsNet`."""
    names = ("routing", "use_bias", "leaky", "routing_gradient")
    how = {name: getattr(args, name) for name in names} | {"decoder": decoder}
    if args.model in ("capsnet", "shared"):
        resources.check_memory(input_shape, *labels_shape, args.model == "shared")
        how |= {"conv": args.conv}
    if args.model == "capsnet":
        how |= {"authors": args.authors}
    return NETWORKS[args.model](input_shape, *labels_shape, args.routings, **how)


def run(args, parser=None):
    """Do what a command line says: predict, test, or train.

    Bad input ends the program with one line. `args` has all options, as `parser` read
    them, by default that of this file.
    """
    args = options.complete(args)
    told = command_line.settings(args, parser or build_parser())
    with one_line_errors(), start.policy_kept():
        if args.predict:
            if own_pictures.answer(args, load_model, predict):
                raise SystemExit(1)  # some can't be read, which was said
            return
        data, stored = start.prepare(args)
        shapes = (array.shape[1:] for array in data.train)
        models = build(args, *shapes, start.has_decoder(args, stored))
        if stored is not None:
            start.load_weights(models[0], args, stored)
        print(f"{told}; seed {args.seed}")
        models[0].summary()
        if args.testing:
            with start.random_weights_said(args):
                test(models[1], data.test, args)
                if (models[2] and data.test[1].any()) or "digit" in args.given:
                    manipulate_latent(models[2], data.test, args)
                if args.show_routing:
                    routes.show(models[1], data.test, args)
        else:
            recipe.say_counts(data.train[1], data.class_names, args.balance)
            train(models[0], (data.train, data.held_out or data.test), args, True)
            if data.held_out and fit.has_ended(args):
                test(models[1], data.test, args)


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    args = build_parser().parse_args(argv)
    set_allocator()
    run(args)


if __name__ == "__main__":
    main()
