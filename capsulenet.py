"""CapsNet on MNIST: the model, its training, its test, and the command line.

    python capsulenet.py
    python capsulenet.py -t -w result/trained_model.h5

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017.
        https://arxiv.org/abs/1710.09829
    Guo. CapsNet-Keras. https://github.com/XifengGuo/CapsNet-Keras, whose commands,
        functions, layer names and weights these are.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import itertools
import json
import math
import operator
import os
import signal
import sys
import zlib

import keras
import numpy as np
from keras import layers, ops

import callbacks
import checkpoints
import datasets
import devices
from capsulelayers import (
    CONV_FORMS,
    ROUTING_BLOCK_BYTES,
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
    SpectralConv2D,
    full_dtype,
    on_cpu,
)
from checkpoints import load_weights, save_weights
from datasets import load_mnist  # noqa: F401  (people import it from here)
from utils import (
    combine_images,
    first_line,
    measure_strokes,
    plot_confusion,
    plot_dimensions,
    plot_log,
    plot_mistakes,
    plot_predictions,
    printable,
    save_image,
)

MANIPULATIONS = np.linspace(-0.25, 0.25, 11)
"""What `manipulate_latent` adds to a dimension (Sabour et al. 2017, figure 4)."""

MOST_ROUTINGS = 100
"""Routing iterations that a file of weights may ask for."""

OPTIMIZERS = {"adam": keras.optimizers.Adam, "lamb": keras.optimizers.Lamb}


def CapsNet(
    input_shape,
    n_class,
    routings,
    batch_size=None,
    *,
    filters=256,
    kernel_size=9,
    strides=2,
    n_channels=32,
    dim_primary=8,
    dim_capsule=16,
    conv="auto",
    routing_gradient=True,
    decoder=True,
):
    """Build a capsule network (Sabour et al. 2017, figures 1 and 2).

    The three models share their layers and weights.

    Args:
        input_shape: tuple `(height, width, channels)`.
        n_class: int. Number of classes.
        routings: int. Number of routing iterations.
        batch_size: not needed; accepted for callers of CapsNet-Keras' TF2 branch.
        filters: int. Filters of the first convolution. Defaults to 256.
        kernel_size: int. Side of both convolutions' kernels. Defaults to 9.
        strides: int. Stride of the second convolution. Defaults to 2.
        n_channels: int. Primary capsules at each position. Defaults to 32.
        dim_primary: int. Dimension of a primary capsule. Defaults to 8.
        dim_capsule: int. Dimension of a class capsule. Defaults to 16.
        conv: the form of the convolutions, see `capsulelayers.SpectralConv2D`.
            Defaults to `"auto"`.
        routing_gradient: bool. See `capsulelayers.CapsuleLayer`. Defaults to True.
        decoder: bool. False builds a network that does not reconstruct images: the
            first two models are one, from images to lengths, and there is no third.
            Defaults to True.

    Returns:
        `(train_model, eval_model, manipulate_model)`, with B for the batch:

        - `train_model`: `[images, labels (B, n_class)]` to `[lengths (B, n_class),
          reconstructions (B, height, width, channels)]`, the decoder seeing the capsule
          of the label;
        - `eval_model`: `images` to the same, the decoder seeing the longest capsule;
        - `manipulate_model`: `[images, labels, noise (B, n_class,
          dim_capsule)]` to reconstructions of the label's capsule plus the noise.

    Raises:
        ValueError: if the images are too small for the two convolutions.
    """
    smallest = 2 * kernel_size - 1
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"images of {input_shape[0]} x {input_shape[1]} pixels are too small for "
            f"two {kernel_size} x {kernel_size} convolutions: at least {smallest} x "
            f"{smallest}"
        )
    full = full_dtype()  # of what half precision is not for
    x = layers.Input(shape=input_shape)

    # Layer 1: a conventional convolution.
    conv1 = SpectralConv2D(
        filters,
        kernel_size,
        data_format="channels_last",
        conv=conv,
        activation="relu",
        name="conv1",
    )(x)

    # Layer 2: a convolution whose outputs are grouped to capsules and squashed.
    primarycaps = PrimaryCap(
        conv1,
        dim_capsule=dim_primary,
        n_channels=n_channels,
        kernel_size=kernel_size,
        strides=strides,
        padding="valid",
        conv=conv,
        data_format="channels_last",
    )

    # Layer 3: the class capsules, by dynamic routing.
    digitcaps = CapsuleLayer(
        num_capsule=n_class,
        dim_capsule=dim_capsule,
        routings=routings,
        routing_gradient=routing_gradient,
        name="digitcaps",
    )(primarycaps)

    # Layer 4: the length of each capsule, the probability of its class.
    out_caps = Length(dtype=full, name="capsnet")(digitcaps)

    if not decoder:
        model = keras.Model(x, out_caps)
        return model, model, None

    # The decoder reconstructs the image from one capsule, the others masked out.
    y = layers.Input(shape=(n_class,))
    reconstruct = keras.Sequential(
        [
            layers.Input(shape=(n_class * dim_capsule,)),
            layers.Dense(512, activation="relu"),
            layers.Dense(1024, activation="relu"),
            layers.Dense(math.prod(input_shape), activation="sigmoid", dtype=full),
            layers.Reshape(input_shape, dtype=full, name="out_recon"),
        ],
        name="decoder",
    )
    masked_by_y = Mask(dtype=full)([digitcaps, y])
    masked = Mask(dtype=full)(digitcaps)
    train_model = keras.Model([x, y], [out_caps, reconstruct(masked_by_y)])
    eval_model = keras.Model(x, [out_caps, reconstruct(masked)])

    noise = layers.Input(shape=(n_class, dim_capsule))
    noised_digitcaps = layers.Add(dtype=full)([digitcaps, noise])
    masked_noised_y = Mask(dtype=full)([noised_digitcaps, y])
    manipulate_model = keras.Model([x, y, noise], reconstruct(masked_noised_y))
    return train_model, eval_model, manipulate_model


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
    """
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.cast(y_true, y_pred.dtype)
    present = y_true * ops.square(ops.maximum(0.0, m_plus - y_pred))
    absent = (1.0 - y_true) * ops.square(ops.maximum(0.0, y_pred - m_minus))
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


def architecture(model):
    """Return the arguments of `CapsNet` that a model of the trio was built with.

    Args:
        model: the training or evaluation model.

    Returns:
        A dict that JSON can hold. `conv` is what was asked for, so that `"auto"` chooses
        anew on another machine.
    """
    conv1, primary, digitcaps = (
        model.get_layer(name) for name in ("conv1", "primarycap_conv2d", "digitcaps")
    )
    dim_primary = model.get_layer("primarycap_reshape").target_shape[-1]
    return {
        "input_shape": list(model.inputs[0].shape[1:]),
        "n_class": digitcaps.num_capsule,
        "routings": digitcaps.routings,
        "filters": conv1.filters,
        "kernel_size": conv1.kernel_size[0],
        "strides": primary.strides[0],
        "n_channels": primary.filters // dim_primary,
        "dim_primary": dim_primary,
        "dim_capsule": digitcaps.dim_capsule,
        "decoder": any(layer.name == "decoder" for layer in model.layers),
        "conv": conv1.conv,
        "routing_gradient": digitcaps.routing_gradient,
    }


def step_memory(model, batch_size):
    """Estimate the memory that a training step needs beyond an idle process.

    Eight arrays of the size of the weights (gradients, Adam's averages, transformed
    kernels), eight of each layer's output, six of what goes into and comes out of a
    spectral convolution, and what the routing works with. Coarse: for four networks of
    28 to 64 pixels on TensorFlow it was 0.8 to 1.7 times what was measured.

    Args:
        model: the training model.
        batch_size: int.

    Returns:
        The number of bytes, an int.
    """
    numbers = 0
    for layer in model.layers:
        output = math.prod(layer.output.shape[1:])
        numbers += 8 * output
        if getattr(layer, "form", None) == "spectral":
            numbers += 6 * (math.prod(layer.input.shape[1:]) + output)
    digitcaps = model.get_layer("digitcaps")
    coupling = digitcaps.num_capsule * digitcaps.input.shape[1] * batch_size
    coupling = min(coupling, ROUTING_BLOCK_BYTES // 4)
    return 4 * (8 * model.count_params() + batch_size * numbers + 48 * coupling)


# Training, test and manipulation -----------------------------------------------------


def train(model, data, args, signals=False):
    """Train a CapsNet, and leave log, checkpoint, curves and weights in `save_dir`.

    What another run left there is moved to a folder beside, see
    `checkpoints.set_aside`.

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
            what the model was started from; it is not read.
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
        callbacks.Interrupted: where one of those signals ended the training; it says
            where. The weights of that moment are in `interrupted_model.h5`.
        devices.HostLost: if another host is gone.
        Exception: whatever else Keras raises while it trains.
    """
    args = _with_defaults(args)
    check_options(args)
    _check_what_is_kept(model, args)
    if args.deterministic:
        devices.make_deterministic()
    host, hosts = devices.host()
    with contextlib.ExitStack() as stack:
        if host == 0:
            make_save_dir(args.save_dir)
            stack.enter_context(checkpoints.only_run(args.save_dir))
        interruption = callbacks.Interruption()
        if signals:
            stack.enter_context(interruption)
        progress = devices.Progress(devices.PATIENCE if hosts > 1 else None)
        try:
            end = _fit(model, data, args, [progress, interruption])
        except callbacks.Interrupted as stop:
            said = _leave(model, args, stop.number, progress.where())
            raise callbacks.Interrupted(stop.number, said) from None
        except (OSError, FloatingPointError) as error:
            how = _how_to_go_on(args.save_dir)
            raise type(error)(f"{first_line(error)}: {how}") from error
        except Exception as error:
            if hosts == 1 or _is_bad_input(error):
                raise
            raise devices.HostLost(progress.lost(first_line(error))) from error
        if host > 0:
            return model
        if end < args.epochs:
            print(f"Paused after epoch {end} of {args.epochs}; --resume goes on")
            return model
        weights = os.path.join(args.save_dir, "trained_model.h5")
        save_weights(model, weights, _about(model, args))
        print(f"Trained model saved to {weights}")
        plot_log(os.path.join(args.save_dir, "log.csv"), show=True)
        if interruption.number is not None:  # while the last files were written
            raise callbacks.Interrupted(interruption.number)
    return model


def _fit(model, data, args, watching):
    """Train until the last epoch, or the pause; returns the number of epochs done."""
    host, hosts = devices.host()
    (x_train, y_train), validation_data = data
    checkpoint = _checkpoint_to_resume(args)
    start = _start(data, args, checkpoint)
    if args.seed is None:
        args.seed = _draw_seed()
    with_images = len(model.outputs) > 1
    shared = {"devices": devices.replicas(), "share": (host, hosts)}
    batches = datasets.TrainingBatches(
        x_train,
        y_train,
        args.batch_size,
        args.shift_fraction,
        seed=args.seed,
        on_device=_on_device(),
        with_images=with_images,
        workers=_workers(args.threads),
        shifts=args.shifts,
        rotation=args.rotation,
        zoom=args.zoom,
        **shared,
    )
    compile_model(model, args, len(batches))
    print(describe(model, batches.batch_size))
    begin, end = 0, args.epochs
    if checkpoint is not None:
        checkpoints.restore(model, args.save_dir, checkpoint)
        begin = checkpoint["epochs"]
    elif args.resume:
        print(f"Nothing to resume in {args.save_dir}: starting at epoch 0")
    if host == 0 and checkpoint is not None:
        checkpoints.restore_log(args.save_dir, checkpoint)
        print(f"Resumed after epoch {begin} of {args.epochs}")
        if args.weights is not None:
            print(
                f"Its weights are the checkpoint's, no longer those of {args.weights}"
            )
    if args.pause_after:
        end = min(end, begin + args.pause_after)
    validation_batches = datasets.ValidationBatches(
        *validation_data,
        args.test_batch_size or args.batch_size,
        with_images=with_images,
        **shared,
    )
    used = _callbacks(model, args, batches, start, checkpoint, validation_data[0])
    if host == 0 and checkpoint is None:  # now that nothing can be refused any more
        checkpoints.set_aside(args.save_dir)
    try:
        model.fit(
            batches,
            initial_epoch=begin,
            epochs=end,
            shuffle=False,  # the batches bring their own order
            validation_data=validation_batches,
            callbacks=[*used, *watching],
        )
    except ValueError as error:
        error.add_note(_DEFECT)
        raise
    return end


def _check_what_is_kept(model, args):
    """Raise a `ValueError` where a trained model could not be written or read again."""
    if any(
        keras.backend.standardize_dtype(w.dtype) == "bfloat16" for w in model.weights
    ):
        raise ValueError(
            "weights of bfloat16 are too coarse to train, and HDF5 has no such numbers: "
            "keras.config.set_dtype_policy('mixed_bfloat16') keeps them in float32"
        )
    if args.class_names is None:
        return
    names = args.class_names = list(args.class_names)
    outputs = model.outputs[0].shape[-1]
    if len(names) != outputs or not all(map(datasets.is_class_name, names)):
        raise ValueError(
            f"class_names {repr(names)[:100]}: must be {outputs} strings of at most 255 "
            "printable characters"
        )


_DEFECT = "The training failed."
"""Note on a `ValueError` that is a defect, unlike the bad input others stand for."""


def _is_bad_input(error):
    notes = getattr(error, "__notes__", [])
    return isinstance(error, ValueError) and _DEFECT not in notes


def _workers(threads):
    """How many threads may prepare batches.

    Specific to the backend: with JAX and PyTorch, Keras' threads keep batches of one
    epoch for the next one, so that most of an epoch's order would be that of another.
    """
    return threads if keras.backend.backend() == "tensorflow" else 1


def _leave(model, args, number, where):
    """Save what there is of an interrupted training; returns what is to be said."""
    # Where weights are averaged, the average takes their place, as where a run ends.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    said = [f"\nStopped by {signal.Signals(number).name} {where}"]
    if devices.host()[0] == 0:
        weights = os.path.join(args.save_dir, "interrupted_model.h5")
        log = os.path.join(args.save_dir, "log.csv")
        try:
            save_weights(model, weights, _about(model, args))
            said.append(f"The weights of that moment: {weights}")
            if os.path.exists(log):
                plot_log(log, show=False)
        except OSError as error:
            said.append(f"Not everything could be saved: {first_line(error)}")
        said.append(_how_to_go_on(args.save_dir))
    return "\n".join(said)


def _how_to_go_on(save_dir):
    """Say which checkpoint `--resume` would go on from."""
    checkpoint = checkpoints.last_checkpoint(save_dir)
    if checkpoint is None:
        return "no epoch was finished, --resume starts at epoch 0"
    epochs = checkpoint["epochs"]
    path = checkpoints.weights_path(save_dir, epochs)
    return f"the last good checkpoint is {path}, --resume goes on after epoch {epochs}"


def _on_device():
    """Whether the images are kept on the accelerator."""
    one = devices.replicas() == 1
    return one and not on_cpu() and keras.backend.backend() != "tensorflow"


def _has_capsules(model):
    return any(isinstance(layer, CapsuleLayer) for layer in model.layers)


def _about(model, args):
    """What travels with the weights, so that `--predict` needs no flags."""
    if not _has_capsules(model):
        return {}
    built = architecture(model)
    names = args.class_names or map(str, range(built["n_class"]))
    return {
        "architecture": built,
        "class_names": list(names),
        "like_mnist": args.dataset == "mnist" and built["input_shape"] == [28, 28, 1],
    }


_NOT_OF_THE_RUN = (
    *("save_dir", "debug", "testing", "digit", "weights", "resume", "pause_after"),
    *("predict", "json", "no_invert"),
)


def _run_options(args):
    """The options that the result of a training depends on, by the names of flags."""
    if args.run_options:
        return args.run_options
    names = vars(build_parser().parse_args([])).keys() - set(_NOT_OF_THE_RUN)
    options = {name: getattr(args, name) for name in sorted(names)}
    # As they come back from a checkpoint: no tuples, no numbers of NumPy.
    return json.loads(json.dumps(options, default=operator.methodcaller("item")))


def _checkpoint_to_resume(args):
    """Return the checkpoint that `--resume` goes on from, or None to start afresh.

    Where `args.seed` is None it becomes the seed of the checkpoint.

    Raises:
        ValueError: if the options differ from those of the checkpoint, or the weights
            from those that the run started from, or the hosts find different ones.
    """
    if not args.resume:
        return None
    checkpoint = checkpoints.last_checkpoint(args.save_dir)
    found = devices.on_all_hosts(checkpoint["epochs"] if checkpoint else 0)
    if len(set(found)) > 1:
        raise ValueError(
            f"--resume: the hosts find checkpoints of {found} epochs in "
            f"{args.save_dir}: it must be a folder that all of them share"
        )
    if checkpoint is None:
        return None
    saved = checkpoint["options"]
    if not args.run_options:  # an option newer than the checkpoint had its default
        saved = {**_run_options(_with_defaults(argparse.Namespace())), **saved}
    if args.seed is None:
        args.seed = saved.get("seed")
    options = _run_options(args)
    others = [
        f"--{name} {options.get(name)} (there: {saved.get(name)})"
        for name in sorted(options.keys() | saved.keys())
        if options.get(name) != saved.get(name)
    ]
    if others:
        raise ValueError(
            f"--resume: the run in {args.save_dir} has other options: "
            + ", ".join(others)
        )
    _check_weights(args, checkpoint)
    return checkpoint


def _check_weights(args, checkpoint):
    """Raise a `ValueError` where `-w` names others than the run started from."""
    there = checkpoint.get("weights")
    if args.weights is None or there is None:  # an older version did not tell
        return
    same_name = args.weights == there.get("path")
    if same_name and not os.path.exists(args.weights):
        return  # the run moved them aside: they lay in its own directory
    if checkpoints.sha256(args.weights) != there.get("sha256"):
        began = there.get("path", "random weights") + " as it was then" * same_name
        raise ValueError(
            f"--weights {args.weights}: the run in {args.save_dir} started from {began};"
            " without -w, --resume goes on with it"
        )


def _start(data, args, checkpoint):
    """Return what a run starts from, as its checkpoints tell it: data and weights.

    Raises:
        ValueError: if the data are not those of the checkpoint.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = map(np.ascontiguousarray, (array for pair in data for array in pair))
    start = {
        "data": {
            name: f"{array.dtype} {array.shape} crc32 {zlib.crc32(array):08x}"
            for name, array in zip(names, arrays, strict=True)
        }
    }
    if checkpoint is None:
        path, weights = args.weights, {}
        if path is not None:
            weights = {"path": path, "sha256": checkpoints.sha256(path)}
        return start | {"weights": weights}
    there = checkpoint.get("data", start["data"])
    for name, array in start["data"].items():
        if there.get(name) != array:
            raise ValueError(
                f"--dataset {args.dataset}: its {name} ({array}) is not what the run in "
                f"{args.save_dir} was trained on ({there.get(name)}); without --resume a "
                "new run begins"
            )
    return start | {k: checkpoint[k] for k in ("weights",) if k in checkpoint}


def compile_model(model, args, steps=1):
    """Compile a training model with the optimizer, the losses and the metric.

    The classes are trained by the margin loss, those of a network without capsules by
    cross-entropy; the images, if the model gives any, by the squared error.

    Args:
        model: the training model of `CapsNet`, or a classifier.
        args: namespace; the options of optimizer, learning rate and loss are used, see
            `train`.
        steps: int. Steps an epoch. Defaults to 1.
    """
    learning_rate = args.lr
    if args.schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(
            args.lr, decay_steps=args.epochs * steps
        )
    losses = [
        MarginLoss() if _has_capsules(model) else "categorical_crossentropy",
        "mse",
    ]
    outputs = len(model.outputs)
    model.compile(
        optimizer=OPTIMIZERS[args.optimizer](
            learning_rate, use_ema=args.ema > 0, ema_momentum=args.ema
        ),
        loss=losses[:outputs],
        loss_weights=[1.0, args.lam_recon][:outputs],
        weighted_metrics=[["accuracy"], []][:outputs],
        jit_compile=_jit_compile(),
        steps_per_execution=_steps_per_execution(steps),
    )


def _callbacks(model, args, batches, start, checkpoint, x_test):
    """What runs beside the training: schedule, clock, log, checkpoint, TensorBoard."""
    used = [
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, _: _draw(model, batches, args.seed, epoch)
        )
    ]
    if args.schedule == "exponential":
        used.append(
            keras.callbacks.LearningRateScheduler(
                lambda epoch: args.lr * args.lr_decay**epoch
            )
        )
    used.append(callbacks.NotFinite())
    last = [callbacks.AveragedWeights()] if args.ema else []
    if devices.host()[0] > 0:  # the first host writes
        return used + last
    monitor = "val_capsnet_accuracy" if len(model.outputs) > 1 else "val_accuracy"
    used += [
        callbacks.EpochSeconds(),
        checkpoints.Checkpoints(
            args.save_dir,
            _run_options(args),
            start,
            args.keep_checkpoints,
            checkpoint,
            monitor,
        ),
    ]
    if _has_capsules(model) and devices.replicas() == 1:
        used.append(callbacks.DeadCapsules(lambda: _some_lengths(model, batches)))
    if args.log_interval:
        used.append(callbacks.BatchLog(args.log_interval))
    if all(map(importlib.util.find_spec, ("tensorflow", "tensorboard"))):
        used.append(
            keras.callbacks.TensorBoard(
                os.path.join(args.save_dir, "tensorboard-logs"),
                histogram_freq=int(args.debug),
                write_graph=False,
            )
        )
        if args.draw_reconstructions and devices.replicas() == 1:
            used.append(callbacks.Reconstructions(x_test[:10], args.save_dir))
    else:
        print(
            "TensorBoard logs are not written: they need the packages tensorflow and "
            "tensorboard"
        )
    return used + last


def _some_lengths(model, batches):
    """Capsule lengths of 100 to 199 training images, no more at once than in a step."""
    some = slice(None, None, max(1, len(batches.x) // 100))
    inputs = [ops.convert_to_numpy(a[some]) for a in (batches.x, batches.y)]
    at_once = min(batches.batch_size, images_at_once(model))
    outputs = predict_in_batches(model, inputs[: len(model.inputs)], at_once)
    return outputs[0] if len(model.outputs) > 1 else outputs


def _draw(model, batches, seed, epoch):
    """Draw what is random in an epoch, from the seed and its number alone.

    Keras does not save the state of what draws numbers for dropout. With PyTorch that
    may be a generator of its own.
    """
    batches.draw(epoch)
    rng = np.random.default_rng((seed, epoch))
    for variable in model.variables:
        if variable.path.endswith("seed_generator_state"):
            variable.assign(rng.integers(2**31, size=variable.shape))
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(int(rng.integers(2**31)))


def _jit_compile():
    """What Keras is to compile by XLA.

    Specific to the backend: what XLA compiles can't be mirrored by TensorFlow.
    """
    if keras.backend.backend() == "tensorflow" and devices.replicas() > 1:
        return False
    return "auto"


def _steps_per_execution(steps):
    """Steps between two looks at the numbers, which make an accelerator wait.

    Specific to the backend: PyTorch's trainer takes one step at a time.
    """
    if on_cpu() or keras.backend.backend() == "torch":
        return 1
    return max(1, steps // 20)


def describe(model, batch_size=None):
    """Describe what is about to be trained.

    Args:
        model: the training model.
        batch_size: int, optional. With it comes a line on sizes and memory.

    Returns:
        A line that names the backend and the forms of the convolutions, and whether XLA
        compiles; then numbers of capsules and parameters and the memory of a step, with
        a warning where that exceeds the machine's.
    """
    forms = [
        f"{layer.name} {layer.form}"
        for layer in model.layers
        if isinstance(layer, SpectralConv2D)
    ]
    if model.jit_compile:
        forms.append("compiled by XLA: the first step takes longer")
    lines = [f"Backend {keras.backend.backend()}: {', '.join(forms)}"]
    names = [layer.name for layer in model.layers]
    if batch_size and "digitcaps" in names:
        needed, there = step_memory(model, batch_size), devices.machine_memory()
        lines.append(
            f"{model.get_layer('digitcaps').input.shape[1]} primary capsules, "
            f"{model.count_params():,} parameters, about {needed / 1e9:.1f} GB a step "
            f"of {batch_size} images"
        )
        if on_cpu() and there and needed > there:
            lines.append(
                f"Warning: this machine has {there / 1e9:.1f} GB. A smaller "
                "--batch_size or --image_size brings the need down."
            )
    return "\n".join(lines)


def images_at_once(model):
    """Return how many images a model should be given at once, to stay within 3 GB.

    500 digits of MNIST, fewer where there are more primary capsules than their 1,152;
    100 for a network without capsules.
    """
    if "digitcaps" not in [layer.name for layer in model.layers]:
        return 100
    capsules = model.get_layer("digitcaps").input.shape[1]
    return max(1, min(500, 500 * 1152 // capsules))


def predict_in_batches(model, inputs, batch_size=None):
    """Run a model over arrays in batches of one size, so that nothing compiles twice.

    A larger batch costs less an image, since the kernels are transformed once a batch.
    `model.predict` would take 0.04 s more a call, for a pipeline that it sets up.

    Args:
        model: a Keras model.
        inputs: list of its inputs, arrays of equal length.
        batch_size: int. Defaults to `images_at_once`.

    Returns:
        What `model.predict` returns.
    """
    n = len(inputs[0])
    batch_size = min(batch_size or images_at_once(model), n)
    parts = []
    for begin in range(0, n, batch_size):
        indices = np.minimum(np.arange(begin, begin + batch_size), n - 1)
        batch = [array[indices] for array in inputs]
        parts.append(model.predict_on_batch(batch if len(batch) > 1 else batch[0]))
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays)[:n], *parts)


def test(model, data, args):
    """Print the accuracy and save real and reconstructed images.

    Writes to the save directory `real_and_recon.png`: up to 50 images above their
    reconstructions; `confusion.png`: how often which class was taken for which; and
    `mistakes.png`: up to 50 misread images.

    Args:
        model: the evaluation model of `CapsNet`.
        data: `(x_test, y_test)`.
        args: namespace; `save_dir` and `class_names` are used, see `train`.

    Returns:
        The accuracy, a float in [0, 1].
    """
    args = _with_defaults(args)
    make_save_dir(args.save_dir)
    x_test, y_test = data
    print("-" * 30 + "Begin: test" + "-" * 30)
    predicted, _, x_recon = predict(model, x_test)
    true = np.argmax(y_test, 1)
    wrong = np.flatnonzero(predicted != true)
    accuracy = 1 - len(wrong) / len(y_test)
    print(f"Test acc: {accuracy:.4f}")
    print(
        f"Test error: {100 * (1 - accuracy):.2f}% ({len(wrong)} of {len(y_test)} images)"
    )
    if x_recon is not None:
        shown = min(50, len(x_test))
        image = combine_images(
            np.concatenate([x_test[:shown], x_recon[:shown]]),
            width=10 if shown == 50 else shown,
        )
        path = os.path.join(args.save_dir, "real_and_recon.png")
        save_image(image, path)
        print(f"Reconstructed images are saved to {path}")
    names = args.class_names or [str(i) for i in range(y_test.shape[1])]
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (true, predicted), 1)
    path = os.path.join(args.save_dir, "confusion.png")
    plot_confusion(counts, names, path)
    print(f"Which class was taken for which: {path}")
    path = os.path.join(args.save_dir, "mistakes.png")
    plot_mistakes(x_test[wrong], true[wrong], predicted[wrong], names, path)
    print(f"The misread images: {path}")
    print("-" * 30 + "End: test" + "-" * 30)
    return accuracy


def manipulate_latent(model, data, args):
    """Show what each dimension of a class capsule stands for.

    Writes `manipulate-<digit>.png` to the save directory: reconstructions of one test
    image of class `args.digit`, one row a dimension of its capsule, with `MANIPULATIONS`
    added to that dimension from left to right (Sabour et al. 2017, figure 4).

    Where `args.digit` is `"all"`, it does so for every class that the test images show,
    and writes `dimensions.png`: which dimensions of which capsule change what about the
    strokes, see `utils.plot_dimensions`.

    Args:
        model: the manipulation model of `CapsNet`.
        data: `(x_test, y_test)`.
        args: namespace; `digit`, `class_names`, `save_dir` and `seed`, which chooses
            the image, are used, see `train`.

    Raises:
        ValueError: if `args.digit` is no class, or no test image shows it.
    """
    args = _with_defaults(args)
    x_test, y_test = data
    check_options(args, n_class=y_test.shape[1])
    make_save_dir(args.save_dir)
    print("-" * 30 + "Begin: manipulate" + "-" * 30)
    true = np.argmax(y_test, 1)
    digits = np.unique(true) if args.digit == "all" else [args.digit]
    dim = model.inputs[2].shape[2]
    for digit in digits:
        chosen = _some_of(digit, true, args.seed, 1)
        if not len(chosen):
            raise ValueError(f"--digit {digit}: no test image shows it")
        images = _manipulated(model, x_test[chosen], y_test[chosen], MANIPULATIONS)
        path = os.path.join(args.save_dir, f"manipulate-{digit}.png")
        save_image(combine_images(np.concatenate(images[0]), height=dim), path)
        print(f"Manipulated images are saved to {path}")
    if args.digit == "all":
        _show_dimensions(model, data, args, digits)
    print("-" * 30 + "End: manipulate" + "-" * 30)


def _some_of(digit, true, seed, most):
    """Choose images of a class; returns their indices."""
    return np.random.default_rng(seed).permutation(np.flatnonzero(true == digit))[:most]


def _manipulated(model, x, y, amounts):
    """Reconstruct images with `amounts` added to each dimension of their capsule.

    Returns:
        An array `(n, dim_capsule, len(amounts), height, width, channels)`.
    """
    n_class, dim = model.inputs[2].shape[1:]
    noise = np.zeros((dim, len(amounts), n_class, dim), "float32")
    for d in range(dim):
        noise[d, :, :, d] = np.reshape(amounts, (-1, 1))
    noise = noise.reshape(-1, n_class, dim)
    inputs = [np.repeat(x, len(noise), axis=0), np.repeat(y, len(noise), axis=0)]
    images = predict_in_batches(model, [*inputs, np.tile(noise, (len(x), 1, 1))])
    return images.reshape(len(x), dim, len(amounts), *x.shape[1:])


def _show_dimensions(model, data, args, digits, images=20):
    """Measure and draw what the dimensions of the class capsules stand for.

    The change between the two ends of `MANIPULATIONS`, a mean over some images of each
    class, is given in standard deviations among all test images, shifted as the
    training shifts them.
    """
    x_test, y_test = data
    true = np.argmax(y_test, 1)
    names = args.class_names or [str(i) for i in range(y_test.shape[1])]
    (seen, _), _ = datasets.TrainingBatches(
        x_test, y_test, len(x_test), args.shift_fraction, shifts=args.shifts
    )[0]
    spread = np.std(measure_strokes(seen), axis=0)
    ends = MANIPULATIONS[[0, -1]]
    pairs, effects = [], []
    for digit in digits:
        chosen = _some_of(digit, true, args.seed, images)
        drawn = _manipulated(model, x_test[chosen], y_test[chosen], ends)
        measured = measure_strokes(drawn)
        change = np.mean(measured[:, :, 1] - measured[:, :, 0], axis=0)
        pairs.append(drawn[0])
        effects.append(change / np.where(spread > 1e-6, spread, np.inf))
    path = os.path.join(args.save_dir, "dimensions.png")
    plot_dimensions(pairs, effects, [names[digit] for digit in digits], path)
    print(f"What the dimensions stand for: {path}")


def predict(model, images):
    """Tell the classes of images.

    Args:
        model: the evaluation model of `CapsNet`.
        images: float array `(n, height, width, channels)`, in [0, 1].

    Returns:
        `(classes, lengths, reconstructions)`: int `(n,)`, the likeliest classes; float
        `(n, n_class)`, the lengths of the class capsules; and images of the shape of
        `images`, None from a model without a decoder.

    Raises:
        ValueError: if there are no images, or they have another shape than the model's.
    """
    images = np.asarray(images, "float32")
    if not len(images):
        raise ValueError("no images to predict")
    expected = tuple(model.inputs[0].shape[1:])
    if images.shape[1:] != expected:
        raise ValueError(
            f"images of shape {images.shape[1:]}: the model takes {expected}"
        )
    outputs = predict_in_batches(model, [images])
    lengths, images = outputs if len(model.outputs) > 1 else (outputs, None)
    return lengths.argmax(1), lengths, images


class _ImageSize(ValueError):
    """These are a `CapsNet`'s weights, but of images of unknown or another size."""


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
        `(trio, about)`: the three models of `CapsNet`, and a dict of `class_names` and
        `like_mnist`, whether the images are digits prepared as those of MNIST.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it holds no weights of a `CapsNet`, or of one of images of
            another shape than `input_shape`, or does not tell their shape.
    """
    about, weights = checkpoints.read(path)
    try:
        said = {"routings": routings, **about.get("architecture", {})}
        built = _architecture_of(weights, said, input_shape)
        names = about.get("class_names") or [str(i) for i in range(built["n_class"])]
        if len(names) != built["n_class"] or not all(
            map(datasets.is_class_name, names)
        ):
            raise ValueError(f"{built['n_class']} classes, names {repr(names)[:100]}")
        try:
            trio = CapsNet(**built)
        except ValueError:  # a form of convolution that this machine does not compute
            trio = CapsNet(**{**built, "conv": "auto"})
    except _ImageSize as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: not a CapsNet's weights ({error!r})") from error
    except ValueError as error:
        reason = first_line(error)
        raise ValueError(f"{path}: not a CapsNet's weights ({reason})") from error
    checkpoints.set_weights(trio[0], weights, path)
    digits = built["input_shape"] == (28, 28, 1) and built["n_class"] == 10
    return trio, {
        "class_names": names,
        "like_mnist": about.get("like_mnist", digits),
    }


def _architecture_of(weights, said, input_shape=None):
    """Read the arguments of `CapsNet` from weights.

    What the weights do not tell is taken from `said`, by which nothing can be larger
    than the weights allow, and the shape of the images from `input_shape` where `said`
    has none.
    """
    kernel_size, _, channels, filters = weights["conv1"][0].shape
    n_class, n_primary, dim_capsule, dim_primary = weights["digitcaps"][0].shape
    primary = weights["primarycap_conv2d"][0].shape[3]
    built = {
        "n_class": n_class,
        "filters": filters,
        "kernel_size": kernel_size,
        "n_channels": primary // dim_primary,
        "dim_primary": dim_primary,
        "dim_capsule": dim_capsule,
        "decoder": "decoder" in weights,
    }
    for name in built.keys() & said.keys():
        if said[name] != built[name]:
            raise ValueError(f"{name} is {built[name]} and not {said[name]}")
    routings = operator.index(said["routings"])
    strides = operator.index(said.get("strides", 2))
    if not (1 <= routings <= MOST_ROUTINGS and 1 <= strides <= kernel_size):
        raise ValueError(f"routings {routings}, strides {strides}")
    conv, gradient = said.get("conv", "auto"), said.get("routing_gradient", True)
    if conv not in CONV_FORMS or not isinstance(gradient, bool):
        raise ValueError(f"conv {conv!r:.100}, routing_gradient {gradient!r:.100}")

    def places(height, width):
        sides = [
            (s - 2 * (kernel_size - 1) - 1) // strides + 1 for s in (height, width)
        ]
        return math.prod(sides) if min(sides) > 0 else 0

    if "input_shape" in said:
        shape = tuple(map(operator.index, said["input_shape"]))
    elif input_shape:
        shape = tuple(map(operator.index, (*input_shape, channels)[:3]))
    else:
        positions = n_primary // built["n_channels"]
        shape = (*_image_size_of(weights, channels, positions, places), channels)
    if input_shape and tuple(input_shape) != shape[: len(input_shape)]:
        raise _ImageSize(f"its images are {shape}, not {tuple(input_shape)}")
    if places(*shape[:2]) * built["n_channels"] != n_primary:
        raise ValueError(f"{n_primary} primary capsules on images of {shape}")
    sizes = [n_class * dim_capsule, 512, 1024, math.prod(shape)]
    dense = [shape for pair in itertools.pairwise(sizes) for shape in (pair, pair[1:])]
    expected = {
        "conv1": [(kernel_size, kernel_size, shape[2], filters), (filters,)],
        "primarycap_conv2d": [(kernel_size, kernel_size, filters, primary), (primary,)],
        "decoder": dense if built["decoder"] else [],
    }
    for name, shapes in expected.items():
        found = [array.shape for array in weights.get(name, [])]
        if found != shapes:
            raise ValueError(f"{name} has shapes {found}, not {shapes}")
    return {
        **built,
        "input_shape": shape,
        "routings": routings,
        "strides": strides,
        "conv": conv,
        "routing_gradient": gradient,
    }


def _image_size_of(weights, channels, positions, places):
    """Find height and width of the images from weights.

    Args:
        weights: dict that `checkpoints.read` returned.
        channels: int.
        positions: int. Where primary capsules are.
        places: function of height and width that gives their number.

    Raises:
        _ImageSize: if the weights do not tell.
    """
    way_out = "input_shape=(HEIGHT, WIDTH), or --image_size HEIGHTxWIDTH, does"
    if "decoder" not in weights:
        raise _ImageSize(
            f"without a decoder, weights do not tell the size of the images: {way_out}"
        )
    pixels = len(weights["decoder"][-1]) // channels
    heights = range(1, math.isqrt(pixels) + 1)
    sizes = [(h, pixels // h) for h in heights if pixels % h == 0]
    fitting = [size for size in sizes if places(*size) == positions]
    if not fitting:
        raise ValueError(f"no image has {pixels} pixels and {positions} positions")
    height, width = fitting[-1]
    if height != width:
        either = " or ".join(f"{h} x {w} or {w} x {h}" for h, w in fitting)
        raise _ImageSize(
            f"the weights do not tell whether images are {either} pixels: {way_out}"
        )
    return height, width


def predict_files(args):
    """Tell the classes of picture files: `--predict`.

    Prints a table, or with `args.json` a JSON object a line. A picture that can't be
    read is named on the way. With a `save_dir` that was given, writes
    `predictions.png`, pictures beside reconstructions.

    Args:
        args: namespace of the command line.

    Returns:
        The number of pictures that can't be read.

    Raises:
        OSError: if the weights can't be read.
        ValueError: if they are none, or no picture can be read.
    """
    if args.weights is None:
        raise ValueError("--predict: needs weights, -w FILE")
    (_, model, _), about = load_model(args.weights, args.routings, args.image_size)
    files = []
    for path in args.predict:
        files += datasets.pictures_under(path) if os.path.isdir(path) else [path]
    shape = tuple(model.inputs[0].shape[1:])
    images, read = [], []
    for path in files:
        try:
            picture = datasets.read_picture(path)
        except ValueError as error:
            print(f"Left out: {printable(error)}", file=sys.stderr)
            continue
        images.append(
            datasets.fit_picture(
                picture, shape, about["like_mnist"], not args.no_invert
            )
        )
        read.append(path)
    if not images:
        asked = printable(" ".join(args.predict))
        raise ValueError(f"--predict {asked}: no readable pictures")
    classes, lengths, reconstructions = predict(model, np.stack(images))
    names = about["class_names"]
    if not args.json:
        print(f"{'class':<12}  {'likeliest, with capsule length':<42}  picture")
    for path, chosen, row in zip(read, classes, lengths):
        likeliest = [(names[i], round(float(row[i]), 4)) for i in np.argsort(-row)[:3]]
        if args.json:
            print(
                json.dumps(
                    {"file": path, "class": names[chosen], "lengths": dict(likeliest)}
                )
            )
        else:
            text = "  ".join(f"{name} {length:.3f}" for name, length in likeliest)
            print(f"{names[chosen]:<12}  {text:<42}  {printable(path)}")
    if args.save_dir != build_parser().get_default("save_dir"):
        make_save_dir(args.save_dir)
        path = os.path.join(args.save_dir, "predictions.png")
        titles = [names[chosen] for chosen in classes]
        plot_predictions(images, reconstructions, titles, path)
        print(f"Pictures and reconstructions: {path}", file=sys.stderr)
    return len(files) - len(read)


# Command line ------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Takes dashes for underscores in flags, and reports errors in one line."""

    def parse_known_args(self, args=None, namespace=None):
        """Parse as `argparse` does, each dash in a flag's name taken for an underscore."""
        args = sys.argv[1:] if args is None else args
        spelled = []
        for arg in args:
            if arg.startswith("--"):
                name, equals, value = arg[2:].partition("=")
                arg = "--" + name.replace("-", "_") + equals + value
            spelled.append(arg)
        return super().parse_known_args(spelled, namespace)

    def error(self, message):
        """End the program with one line."""
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def build_parser():
    """Return the command line's parser."""
    parser = Parser(
        description="Capsule network on MNIST.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--epochs", default=50, type=int, help="epochs to train")
    add("--batch_size", default=100, type=int, help="images a step")
    add("--optimizer", default="adam", choices=OPTIMIZERS, help="the optimizer")
    add("--lr", default=0.001, type=float, help="initial learning rate")
    add(
        "--schedule",
        default="exponential",
        choices=("exponential", "cosine"),
        help="the learning rate falls by lr_decay each epoch, or as a cosine to zero",
    )
    add(
        "--lr_decay",
        default=0.9,
        type=float,
        help="factor on the learning rate after each epoch; nearer to 1 for more epochs",
    )
    add(
        "--lam_recon",
        default=0.392,
        type=float,
        help="weight of the reconstruction loss; 0.392 = 0.0005 * 784 pixels",
    )
    add("-r", "--routings", default=3, type=int, help="routing iterations, at least 1")
    add(
        "--shift_fraction",
        default=0.1,
        type=float,
        help="training images move by up to this fraction of their side",
    )
    add(
        "--shifts",
        default="whole",
        choices=datasets.SHIFTS,
        help="they move by whole pixels, or by parts of one as well",
    )
    add(
        "--rotation",
        default=0.0,
        type=float,
        help="training images turn by up to so many degrees, in either direction",
    )
    add(
        "--zoom",
        default=0.0,
        type=float,
        help="training images shrink or grow by up to this fraction of their size",
    )
    add(
        "--ema",
        default=0.0,
        type=float,
        help="momentum of the average of the weights that is validated and kept; 0: none",
    )
    add("--debug", action="store_true", help="weight histograms for TensorBoard")
    add("--save_dir", default="./result", help="directory for everything written")
    add("-t", "--testing", action="store_true", help="test instead of training")
    add(
        "--digit",
        default=5,
        type=_digit,
        help="class whose capsule -t manipulates, or all of them",
    )
    add(
        "-w",
        "--weights",
        default=None,
        help="weights to start from or to test; --resume takes those of its run alone",
    )
    add("--resume", action="store_true", help="go on with the run in save_dir")
    add(
        "--deterministic",
        action="store_true",
        help="compute the same bits each time, also where a run is interrupted",
    )
    add(
        "--pause_after",
        default=0,
        type=int,
        help="stop after so many epochs, for --resume to go on; 0 for never",
    )
    add(
        "--seed", default=None, type=int, help="makes a run repeatable; drawn if absent"
    )
    add(
        "--dataset",
        default="mnist",
        help=f"one of {', '.join(datasets.NAMED)}, a folder of pictures with a sub-folder "
        "for each class, or an .npz file like data/mnist.npz",
    )
    add(
        "--image_size",
        default=None,
        type=_image_size,
        help="side of a folder's pictures, or HEIGHTxWIDTH, their own if absent; for "
        "--predict that of the images of -w's network, where its file does not tell",
    )
    add(
        "--color",
        default="auto",
        choices=("auto", "gray", "rgb"),
        help="of a folder's pictures; auto is grey where no picture has a colour",
    )
    add(
        "--test_share",
        default=0.2,
        type=float,
        help="share of a folder's pictures kept for the test, without train/ and test/",
    )
    add(
        "--predict",
        nargs="+",
        metavar="FILE",
        help="tell the classes of pictures or folders of pictures, with -w; exits with 1 "
        "where some of them can't be read, with 2 where none can",
    )
    add("--json", action="store_true", help="--predict prints JSON, an object a line")
    add(
        "--no_invert",
        action="store_true",
        help="--predict takes dark drawings on a light ground as they are",
    )
    add("--conv", default="auto", choices=CONV_FORMS, help="form of the convolutions")
    add(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the matrix products; weights, softmax, squash, losses stay float32",
    )
    add(
        "--no_routing_gradient",
        dest="routing_gradient",
        action="store_false",
        help="take the coupling coefficients as constants in the gradient; faster",
    )
    return parser


def _digit(text):
    """Turn the number of a class into an int, and leave `all`."""
    try:
        return text if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the number of a class, nor all"
        ) from None


def _image_size(text):
    """Turn `28` or `28x32` into height and width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither SIDE nor HEIGHTxWIDTH")
    return [int(sides[0]), int(sides[-1])]


_OTHER_OPTIONS = {
    "class_names": None,
    "run_options": None,
    "test_batch_size": None,
    "log_interval": 0,
    "threads": 1,
    "keep_checkpoints": 2,
    "draw_reconstructions": False,
}
"""Options of `train` and `test` that this command line has no flags for."""


def _with_defaults(args):
    """Return `args` with the default for every option it lacks."""
    defaults = {**_OTHER_OPTIONS, **vars(build_parser().parse_args([]))}
    args = argparse.Namespace(**{**defaults, **vars(args)})
    for name in ("save_dir", "weights"):  # which may be a pathlib.Path
        if getattr(args, name) is not None:
            setattr(args, name, os.fspath(getattr(args, name)))
    return args


def check_options(args, n_class=None):
    """Raise a `ValueError` that names the option, its value and the rule it breaks.

    Args:
        args: namespace with all options.
        n_class: int, optional. The number of classes that `digit` is checked against.
    """
    rules = [
        ("epochs", args.epochs >= 1, "at least 1"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
        ("lr", 0 <= args.lr < math.inf, "at least 0"),
        ("lr_decay", 0 < args.lr_decay < math.inf, "above 0"),
        ("lam_recon", 0 <= args.lam_recon < math.inf, "at least 0"),
        ("routings", args.routings >= 1, "at least 1"),
        ("shift_fraction", 0 <= args.shift_fraction < 1, "at least 0 and below 1"),
        ("rotation", 0 <= args.rotation <= 180, "0 to 180 degrees"),
        ("zoom", 0 <= args.zoom < 1, "at least 0 and below 1"),
        ("test_share", 0 < args.test_share < 1, "above 0 and below 1"),
        ("ema", 0 <= args.ema < 1, "at least 0 and below 1"),
        ("pause_after", args.pause_after >= 0, "at least 0"),
        ("seed", args.seed is None or 0 <= args.seed < 2**32, "0 to 2**32 - 1"),
    ]
    if n_class is not None and args.digit != "all":
        rule = f"the classes are 0 to {n_class - 1}"
        rules.append(("digit", 0 <= args.digit < n_class, rule))
    for name, holds, rule in rules:
        if not holds:
            must = rule if name == "digit" else f"must be {rule}"
            raise ValueError(f"--{name} {getattr(args, name)}: {must}")


def _draw_seed():
    """Return a seed that all hosts have in common."""
    return devices.on_all_hosts(int(np.random.SeedSequence().entropy % 2**31))[0]


def make_save_dir(path):
    """Make the directory and try that a file can be written there."""
    trial = os.path.join(path, f"trial.{os.getpid()}.tmp")
    try:
        os.makedirs(path, exist_ok=True)
        with open(trial, "w"):
            pass
        os.remove(trial)
    except OSError as error:
        raise OSError(
            f"--save_dir {path}: can't be written ({error.strerror})"
        ) from None


def _prepare(args):
    """Check everything the user gave, then return the trio and the data."""
    check_options(args)
    if args.deterministic:
        devices.make_deterministic()
    data = datasets.load(args.dataset, args.image_size, args.color, args.test_share)
    (x_train, y_train), args.class_names = data.train, data.class_names
    if args.dataset != "mnist" and args.digit == build_parser().get_default("digit"):
        args.digit = min(args.digit, y_train.shape[1] - 1)
    check_options(args, n_class=y_train.shape[1])
    checkpoint = None if args.testing else _checkpoint_to_resume(args)
    args.seed = _draw_seed() if args.seed is None else args.seed
    keras.utils.set_random_seed(args.seed)
    if args.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    _check_memory(x_train.shape[1:], y_train.shape[1])
    trio = CapsNet(
        x_train.shape[1:],
        y_train.shape[1],
        args.routings,
        conv=args.conv,
        routing_gradient=args.routing_gradient,
    )
    if args.weights is not None and checkpoint is None:
        _load_weights(trio[0], args)
    if devices.host()[0] == 0:
        make_save_dir(args.save_dir)
    return trio, data


def _check_memory(shape, n_class):
    """Raise a `ValueError` where the weights of `CapsNet` alone would fill the memory."""
    there = devices.machine_memory()
    places = math.prod(max(0, (side - 17) // 2 + 1) for side in shape[:2])
    needed = 4 * (places * 32 * 8 * n_class * 16 + 1024 * math.prod(shape))
    if on_cpu() and there and needed > there:
        raise ValueError(
            f"images of {shape[0]} x {shape[1]} pixels need {needed / 1e9:.0f} GB for "
            f"the weights alone, and this machine has {there / 1e9:.0f}: a smaller "
            "--image_size helps"
        )


def _load_weights(model, args):
    """Load the weights that the user named; a test has to route as they were trained.

    Routing has no weights, so that another number of iterations would go unnoticed.
    """
    said = load_weights(model, args.weights).get("architecture")
    trained = said.get("routings") if isinstance(said, dict) else None
    if args.testing and trained not in (None, args.routings):
        raise ValueError(
            f"--routings {args.routings}: {args.weights} was trained with --routings "
            f"{trained}"
        )


def set_allocator():
    """Set glibc's allocator for large arrays that come and go with each step.

    JAX and PyTorch get the arrays of each step from the kernel anew, which clears them
    page by page: on two CPU cores 0.97 s a step instead of 0.73 with JAX, 1.02 instead
    of 0.85 with PyTorch. They are told to keep what a step frees. TensorFlow keeps it,
    but in arenas for each thread that others do not use: fewer of them save 0.07 GB of
    1.9. Does nothing with these two on an accelerator, and on systems without glibc.

    To be called before anything is computed: JAX's threads keep the arenas that they
    start with.
    """
    if keras.backend.backend() != "jax" and not on_cpu():
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
    if keras.backend.backend() == "tensorflow":
        mallopt(M_ARENA_MAX, max(1, os.cpu_count() // 2))
    else:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)
        mallopt(M_ARENA_MAX, 1)


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    args = build_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # names may have what the terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    set_allocator()
    run(args)


@contextlib.contextmanager
def one_line_errors():
    """End the program in a few words where an error is no defect.

    The exit code is 2 for bad input, 1 for a sick training, and 130 or 143 for Ctrl-C or
    SIGTERM.
    """
    try:
        yield
    except OSError as error:
        about = f"{error.filename}: {error.strerror}"
        _fail(about if error.filename else first_line(error), 2)
    except ValueError as error:
        if not _is_bad_input(error):
            raise
        _fail(first_line(error), 2)
    except MemoryError as error:
        _fail(f"not enough memory ({first_line(error)})", 2)
    except FloatingPointError as error:
        _fail(first_line(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except callbacks.Interrupted as stop:
        with contextlib.suppress(OSError):  # whoever reads may have been stopped too
            if str(stop):
                print(stop, file=sys.stderr, flush=True)
        raise SystemExit(128 + stop.number) from None


def _fail(reason, code):
    name = os.path.basename(sys.argv[0])
    print(f"{name}: error: {printable(reason)}", file=sys.stderr)
    raise SystemExit(code)


def run(args):
    """Do what a command line says: predict, test, or train.

    Bad input ends the program with one line.

    Args:
        args: namespace with all options.
    """
    args = _with_defaults(args)
    with one_line_errors():
        if args.predict:
            check_options(args)
            if predict_files(args):  # some can't be read, which was said
                raise SystemExit(1)
            return
        (train_model, eval_model, manipulate_model), data = _prepare(args)
        print(args)
        train_model.summary()
        if args.testing:
            if args.weights is None:
                print("No weights are given (-w): the test is of random weights.")
            test(eval_model, data.test, args)
            manipulate_latent(manipulate_model, data.test, args)
        else:
            train(train_model, (data.train, data.test), args, signals=True)


if __name__ == "__main__":
    main()
