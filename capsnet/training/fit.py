"""One training: batches, callbacks, checkpoints, and how it ends."""

import contextlib
import csv
import importlib.util
import os
import signal

import keras
import numpy as np
from keras import ops

from capsnet import data as datasets
from capsnet import options, verdict
from capsnet.architecture import architecture, capsule_layer, has_capsules
from capsnet.errors import DEFECT, HostLost, Interrupted, first_line, is_bad_input
from capsnet.files import make_save_dir
from capsnet.inference import as_set, check_images, images_at_once, predict_in_batches
from capsnet.pictures import plot_log
from capsnet.training import (
    callbacks,
    checkpoints,
    devices,
    folder,
    recipe,
    resources,
    resume,
)
from capsnet.training.progress import Progress
from capsnet.training.signals import Interruption
from capsnet.weights import save_weights

CHANGES = ("shifts", "fill_mode", "rotation", "zoom", "shear", "elastic", "erase")
CHANGES += ("flip", "brightness", "tint")
"""Options that say how training images are changed, see `capsnet.data.changes.Augmentation`."""


def run(model, data, args, compile_model, signals=False):
    """Train a model; `capsulenet.train` tells what goes in and comes out.

    Args:
        model: the training model.
        data: the pairs of training and test images and labels.
        args: namespace with all options.
        compile_model: function of the model, the options and the steps an epoch, which
            compiles the model.
        signals: bool. Whether signals are taken over. Defaults to False.
    """
    options.check_options(args)
    _check_what_is_kept(model, args)
    data = [as_set(part, model, trained=True) for part in data]
    if args.brightness or args.tint:  # which leave no number outside of 0 to 1
        check_images(data[0][0], True, "a training without --brightness and --tint")
    if args.deterministic:
        devices.make_deterministic()
    host, hosts = devices.host()
    with contextlib.ExitStack() as stack:
        if host == 0:
            make_save_dir(args.save_dir)
            stack.enter_context(folder.only_run(args.save_dir))
        interruption = Interruption()
        if signals:
            stack.enter_context(interruption)
        progress = Progress(devices.PATIENCE if hosts > 1 else None)
        stack.callback(progress.stop)
        try:
            end, batches = _fit(
                model, data, args, compile_model, [progress, interruption]
            )
        except Interrupted as stop:
            said = _save_interrupted(model, args, stop.number, progress.where())
            raise Interrupted(stop.number, said) from None
        except (OSError, FloatingPointError) as error:
            how = resume.how_to_go_on(args.save_dir)
            raise type(error)(f"{first_line(error)}: {how}") from error
        except Exception as error:
            if hosts == 1 or is_bad_input(error):
                raise
            raise HostLost(progress.lost(first_line(error))) from error
        if host == 0:
            _finish(model, args, end, batches)
        if interruption.number is not None:  # while the last files were written
            raise Interrupted(interruption.number)


def trained(args):
    """Return where the weights of a training lie that has ended."""
    return os.path.join(args.save_dir, "trained_model.h5")


def has_ended(args):
    """Whether a training has ended and not paused, on one device, which can test."""
    return devices.replicas() == 1 and os.path.exists(trained(args))


def _finish(model, args, end, batches):
    """Write the trained model and the curves, or say that the training is paused."""
    if end < args.epochs:
        print(f"Paused after epoch {end} of {args.epochs}; --resume goes on")
        return
    weights = trained(args)
    kept = _kept_with_weights(model, args)
    if args.shown != "one":
        kept["thresholds"] = verdict.of_several(args.shown)
    elif has_capsules(model) and devices.replicas() == 1:
        kept["thresholds"] = verdict.learned(model, batches, args.epochs)
    save_weights(model, weights, kept)
    print(f"Trained model saved to {weights}")
    plot_log(os.path.join(args.save_dir, "log.csv"), show=True)


def _fit(model, data, args, compile_model, watching):
    """Train until the last epoch, or the pause; returns the epochs done, and the batches."""
    host, _ = devices.host()
    checkpoint = resume.check(args, resume.find(args))
    start = resume.start_of(data, args, checkpoint)
    if args.seed is None:
        args.seed = devices.draw_seed()
    batches, validation_batches = _batches(model, data, args)
    labels, paired = (part[1] for part in data), options.are_paired(args)
    x = datasets.unpad(data[0][0]) if paired else data[0][0]
    args.like_mnist = datasets.are_like_mnist(x)
    args.shown = datasets.shown(*labels, are_paired=paired)
    other = paired or options.are_held_out(args)  # than the pictures of the test
    args.test_pictures = None if other else start["data"]["x_test"]
    compile_model(model, args, len(batches))
    resources.check_step(model, batches.batch_size)
    resources.make_variables(model)
    print(resources.describe(model, batches.batch_size))
    begin, end = 0, args.epochs
    if checkpoint is not None:
        checkpoints.restore(model, args.save_dir, checkpoint)
        begin = checkpoint["epochs"]
        if host == 0:
            checkpoints.restore_log(args.save_dir, checkpoint)
        print(f"Resumed after epoch {begin} of {args.epochs}")
        if args.weights is not None:
            print(
                f"Its weights are the checkpoint's, no longer those of {args.weights}"
            )
    elif args.resume:
        print(f"Nothing to resume in {args.save_dir}: starting at epoch 0")
    if args.pause_after:
        end = min(end, begin + args.pause_after)
    log = csv.DictReader(checkpoint["log"].splitlines() if checkpoint else [])
    until = callbacks.Until(args.until, _monitor(model), list(log))
    end = begin if until.reached else end
    used = callbacks_of(model, args, batches, start, checkpoint, data[1][0])
    if host == 0 and checkpoint is None:  # now that nothing can be refused any more
        folder.set_aside(args.save_dir)
    try:
        model.fit(
            resources.feed(batches),
            initial_epoch=begin,
            epochs=end,
            verbose=args.verbose,
            shuffle=False,  # the batches bring their own order
            validation_data=resources.feed(validation_batches),
            callbacks=[*used, until, *watching],
        )
    except ValueError as error:
        error.add_note(DEFECT)
        raise
    return args.epochs if until.reached else end, batches


def _monitor(model):
    """What the log calls the accuracy that tells how good an epoch is."""
    of = f"{model.output_names[0]}_" if len(model.outputs) > 1 else ""
    return f"val_{of}accuracy"


def _batches(model, data, args):
    """The batches of training and validation."""
    train, validation = data
    overlap, digits = None, None
    if options.are_paired(args):
        overlap = args.overlap_shift
        if not isinstance(validation, datasets.Pairs):
            validation = datasets.paired(*validation, shift=overlap)
        digits = validation.labels, validation.digits
    shared = {
        "devices": devices.replicas(),
        "share": devices.host(),
        "with_images": len(model.outputs) > 1,
    }
    return datasets.TrainingBatches(
        *train,
        args.batch_size,
        args.shift_fraction,
        seed=args.seed,
        on_device=resources.images_on_device(),
        workers=resources.batch_threads(args.threads),
        **{name: getattr(args, name) for name in CHANGES},
        balance=recipe.is_balanced(args, train[1]),
        overlap=overlap,
        **shared,
    ), datasets.ValidationBatches(
        *validation,
        args.test_batch_size or args.batch_size,
        digits=digits,
        **shared,
    )


def _check_what_is_kept(model, args):
    """Raise a `ValueError` where what is asked for can't be trained, or not be kept."""
    if has_capsules(model) and "digitcaps" not in [each.name for each in model.layers]:
        raise ValueError(
            "the layer of class capsules, whose lengths are trained, must have the name "
            "'digitcaps', and not lie in a model within"
        )
    other = args.lam_recon not in (0, options.DEFAULTS["lam_recon"])
    if other and len(model.outputs) == 1:
        raise ValueError(f"--lam_recon {args.lam_recon}: the network has no decoder")
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


def _save_interrupted(model, args, number, where):
    """Save what there is of an interrupted training; returns what is to be said."""
    # Where weights are averaged, the average takes their place, as where a run ends.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    said = [f"\nStopped by {signal.Signals(number).name} {where}"]
    if devices.host()[0] == 0:
        weights = os.path.join(args.save_dir, "interrupted_model.h5")
        log = os.path.join(args.save_dir, "log.csv")
        try:
            save_weights(model, weights, _kept_with_weights(model, args))
            said.append(f"The weights of that moment: {weights}")
            if os.path.exists(log):
                plot_log(log, show=False)
        except OSError as error:
            said.append(f"Not everything could be saved: {first_line(error)}")
        said.append(resume.how_to_go_on(args.save_dir))
    return "\n".join(said)


def _kept_with_weights(model, args):
    """What travels with the weights, so that `--predict` needs no flags."""
    if not has_capsules(model):
        return {}
    names = ("test_share", "test_pictures") if options.is_folder(args) else ()
    return {
        **{name: getattr(args, name) for name in names},
        "architecture": architecture(model),
        "class_names": args.class_names,
        "like_mnist": args.like_mnist,
    }


def callbacks_of(model, args, batches, start, checkpoint, x_test):
    """Return what runs beside the training: schedule, clock, log, checkpoint, TensorBoard."""
    used = [
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, _: _draw_epoch(
                model, batches, args.seed, epoch
            )
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
    used += [
        callbacks.EpochSeconds(),
        checkpoints.Checkpoints(
            args.save_dir,
            options.of_the_run(args),
            start,
            args.keep_checkpoints,
            checkpoint,
            _monitor(model),
        ),
    ]
    used.append(callbacks.NoBetterThanGuessing(batches.commonest, _monitor(model)))
    if capsule_layer(model) is not None and devices.replicas() == 1:
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
        drawn = args.draw_reconstructions and not options.are_paired(args)
        if drawn and len(model.outputs) > 1 and devices.replicas() == 1:
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
    at_once = min(batches.batch_size, images_at_once(model))
    inputs = [ops.convert_to_numpy(a[some]) for a in (batches.x, batches.y)]
    if batches.parts > 1:  # a picture of one, which is taken for both
        inputs[1] = np.stack([inputs[1], inputs[1]], 1)
    outputs = predict_in_batches(model, inputs[: len(model.inputs)], at_once)
    return outputs[0] if len(model.outputs) > 1 else outputs


def _draw_epoch(model, batches, seed, epoch):
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
