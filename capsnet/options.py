"""The options of a run: completed, checked, and those that its result depends on.

Keras is not imported, so that `--help` and what is typed wrong are answered at once.
"""

import argparse
import difflib
import json
import numbers
import operator
import os
import warnings

# ruff: noqa: F401 (they are found here)
from capsnet.flags import (
    CONV_FORMS,
    MODELS,
    MOST_ROUTINGS,
    NAMED_SETS,
    OPTIONS,
    PICTURES,
    ROUTINGS,
    TESTING,
)

HELD_OUT = 5000
"""Training images that are held out, or a quarter of them where that is less."""

DEFAULTS = {option.name: option.default for option in OPTIONS}


def complete(args):
    """Return `args` with the default for every option that it lacks.

    Args:
        args: namespace with any of the options as attributes; `given` names those that
            were given, by default all that it has.
    """
    for name in vars(args).keys() - DEFAULTS.keys():
        for option in difflib.get_close_matches(name, DEFAULTS, 1, cutoff=0.85):
            said = f"{name} is no option and counts for nothing; {option} is one"
            warnings.warn(said, stacklevel=3)
    given = {"given": list(vars(args))}
    args = argparse.Namespace(**{**DEFAULTS, **given, **vars(args)})
    for name in ("dataset", "save_dir", "weights"):  # which may be a pathlib.Path
        if getattr(args, name) is not None:
            setattr(args, name, os.fspath(getattr(args, name)))
    return args


def are_paired(args):
    """Whether the pictures are of two overlapped images."""
    return args.pairs or args.dataset == "multimnist"


def is_folder(args):
    """Whether the data set is a folder of pictures."""
    return args.dataset not in NAMED_SETS and os.path.isdir(args.dataset)


def are_held_out(args):
    """Whether some training images are held out, to validate on."""
    return args.until > 0 or args.dataset == "affnist"


def class_names(args, n_class):
    """Return the names of the classes, their numbers where there are none."""
    names = list(args.class_names or map(str, range(n_class)))
    if len(names) != n_class:
        raise ValueError(f"class_names {repr(names)[:100]}: must be {n_class} strings")
    return names


def check_options(args, n_class=None):
    """Raise a `ValueError` that names the option, its value and the rule it breaks.

    Args:
        args: namespace with all options.
        n_class: int, optional. The number of classes that `digit` is checked against.
    """
    for option in OPTIONS:
        value = getattr(args, option.name, option.default)
        _check_kind(option, value)
        if option.rule and not option.rule[0](value):
            raise ValueError(f"--{option.name} {value}: must be {option.rule[1]}")
        if option.choices and value not in option.choices:
            known = ", ".join(map(str, option.choices))
            raise ValueError(f"--{option.name} {value}: must be one of {known}")
    if args.predict and args.weights is None:
        raise ValueError("--predict: needs weights, -w FILE")
    if args.show_routing and not args.testing:
        raise ValueError("--show_routing: draws test images, so it needs -t")
    if args.json and not args.predict:
        raise ValueError("--json: is how --predict answers, so it needs --predict FILE")
    if args.resume and args.testing:
        raise ValueError("--resume: goes on with a training, and -t is a test")
    if args.pairs and args.dataset == "affnist":
        raise ValueError("--pairs: the digits of --dataset affnist are tested alone")
    if args.affnist and args.dataset != "affnist":
        raise ValueError("--affnist: is a test of --dataset affnist")
    if n_class is not None and args.digit != "all" and not 0 <= args.digit < n_class:
        raise ValueError(f"--digit {args.digit}: the classes are 0 to {n_class - 1}")


def _check_kind(option, value):
    """Raise a `ValueError` where a value that Python gave is of another kind."""
    kind = option.type if option.type in (int, float) else type(option.default)
    if value is option.default or (option.name, value) == ("digit", "all"):
        return
    if kind is bool:
        fits = value in (True, False)
    else:
        of = {int: numbers.Integral, float: numbers.Real}
        fits = isinstance(value, of.get(kind, object))
    if not fits:
        what = {bool: "True or False", int: "an integer", float: "a number"}[kind]
        raise ValueError(f"--{option.name} {value!r:.50}: must be {what}")


def check_dataset(name):
    """Raise a `ValueError` where a data set is neither known by name nor there."""
    if name not in NAMED_SETS and not os.path.exists(name):
        raise ValueError(
            f"--dataset {name}: no such file or folder, and not one of the names "
            + ", ".join(NAMED_SETS)
        )


def check_data(args):
    """Raise a `ValueError` where the data set is not there, or an option is for another.

    Args:
        args: namespace with all options.
    """
    check_dataset(args.dataset)
    paired, bent = are_paired(args), args.dataset == "affnist"
    of_folder = ("image_size", "color", "test_share")
    for names, is_it, what in (
        (of_folder, is_folder(args), "a folder of pictures"),
        (("overlap_shift",), paired, "--pairs, --dataset multimnist"),
        (("test_size",), paired or bent, "pairs and --dataset affnist"),
    ):
        for name in names:
            if not is_it and getattr(args, name) != DEFAULTS[name]:
                raise ValueError(f"--{name}: is for {what}")


def of_the_run(args):
    """Return the options that the result of a training depends on, a dict."""
    if args.run_options:
        return args.run_options
    decisive = sorted(option.name for option in OPTIONS if option.decides)
    options = {name: getattr(args, name) for name in decisive}
    # As they come back from a checkpoint: no tuples, no numbers of NumPy.
    return json.loads(json.dumps(options, default=operator.methodcaller("item")))
