"""What a run goes on from, and whether it is the same run."""

import argparse
import os
import zlib

import numpy as np

from capsnet import options
from capsnet.files import sha256
from capsnet.training import checkpoints, devices


def find(args):
    """Return the checkpoint that `--resume` finds, or None to start afresh.

    Raises:
        ValueError: if the hosts find different ones.
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
    return checkpoint


def check(args, checkpoint):
    """Return the checkpoint, of which the run is a part; None of none.

    Where `args.seed` is None it becomes the seed of the checkpoint.

    Raises:
        ValueError: if the options differ from those of the checkpoint, or the weights
            from those that the run started from.
    """
    if checkpoint is None:
        return None
    saved = checkpoint["options"]
    if not args.run_options:  # an option newer than the checkpoint had its default
        defaults = options.of_the_run(options.complete(argparse.Namespace()))
        of_old = {"model": "capsnet", "balance": "no", "routing": "dynamic"}
        for name, only in of_old.items():
            if getattr(args, name) != "auto":  # which stands for that, where it is open
                defaults[name] = only
        saved = {**defaults, **saved}
    if args.seed is None:
        args.seed = saved.get("seed")
    given = options.of_the_run(args)
    others = [
        f"--{name} {given.get(name)} (there: {saved.get(name)})"
        for name in sorted(given.keys() | saved.keys())
        if given.get(name) != saved.get(name)
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
    if sha256(args.weights) != there.get("sha256"):
        began = there.get("path", "random weights") + " as it was then" * same_name
        raise ValueError(
            f"--weights {args.weights}: the run in {args.save_dir} started from {began};"
            " without -w, --resume goes on with it"
        )


def checksum(array):
    """Return type, shape and checksum of an array, a str."""
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape} crc32 {zlib.crc32(array):08x}"


def start_of(data, args, checkpoint):
    """Return what a run starts from, as its checkpoints tell it: data and weights.

    Raises:
        ValueError: if the data are not those of the checkpoint.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    sums = (checksum(array) for pair in data for array in pair)
    start = {"data": dict(zip(names, sums, strict=True))}
    if checkpoint is None:
        path, weights = args.weights, {}
        if path is not None:
            weights = {"path": path, "sha256": sha256(path)}
        return start | {"weights": weights}
    there = checkpoint.get("data", start["data"])
    for name, array in start["data"].items():
        if there.get(name) != array:
            composed = options.are_paired(args) and name.endswith("test")
            raise ValueError(
                f"--dataset {args.dataset}: its {name} ({array}) is not what the run in "
                f"{args.save_dir} was trained on ({there.get(name)}): "
                + "--test_size may differ; " * composed
                + "without --resume a new run begins"
            )
    return start | {k: checkpoint[k] for k in ("weights",) if k in checkpoint}


def how_to_go_on(save_dir):
    """Say which checkpoint `--resume` would go on from."""
    checkpoint = checkpoints.last_checkpoint(save_dir)
    if checkpoint is None:
        return "no epoch was finished, --resume starts at epoch 0"
    epochs = checkpoint["epochs"]
    path = checkpoints.weights_path(save_dir, epochs)
    return f"the last good checkpoint is {path}, --resume goes on after epoch {epochs}"
