"""The command line: reading it before Keras is there, and errors in one line.

python -m capsnet.command_line      # the table of docs/options.md
"""

import argparse
import contextlib
import itertools
import os
import platform
import signal
import sys
import tempfile

from capsnet import options
from capsnet.errors import (
    Interrupted,
    first_line,
    is_bad_input,
    is_out_of_memory,
    printable,
)

_EXAMPLES = """examples:
  python capsulenet.py                                    train on MNIST
  python capsulenet.py -t -w result/trained_model.h5      test what was trained
  python capsulenet.py --predict photo.png -w result/trained_model.h5
"""


class _Help(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Tells the defaults of what takes a value."""

    def _get_help_string(self, action):
        told = action.nargs != 0 and action.default not in (None, argparse.SUPPRESS)
        return super()._get_help_string(action) if told else action.help


class Parser(argparse.ArgumentParser):
    """Takes dashes for underscores in flags, and reports errors in one line.

    Args:
        dashes: bool. Whether flags are spelled with dashes, and underscores are taken
            for those. Defaults to False.
        **kwargs: those of `argparse.ArgumentParser`.
    """

    def __init__(self, *, dashes=False, **kwargs):
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **kwargs})
        self.spelling = ("_", "-") if dashes else ("-", "_")

    def parse_known_args(self, args=None, namespace=None):
        """Parse as `argparse` does, however a flag's name is spelled.

        The namespace has a list `given` of what was there, besides.
        """
        args = sys.argv[1:] if args is None else args
        spelled = []
        for arg in args:
            if arg.startswith("--"):
                name, equals, value = arg[2:].partition("=")
                arg = "--" + name.replace(*self.spelling) + equals + value
            spelled.append(arg)
        namespace = namespace or argparse.Namespace()
        absent = object()
        defaults = {
            action.dest: action.default
            for action in self._actions
            if action.default is not argparse.SUPPRESS
        }
        for name in defaults:
            setattr(namespace, name, absent)
        namespace, rest = super().parse_known_args(spelled, namespace)
        namespace.given = [n for n in defaults if getattr(namespace, n) is not absent]
        for name in defaults.keys() - set(namespace.given):
            setattr(namespace, name, defaults[name])
        return namespace, rest

    def error(self, message):
        """End the program with one line."""
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def groups():
    """Return the options that have flags, pairs of a title and a list of options."""
    flags = [option for option in options.OPTIONS if option.group]
    by_title = itertools.groupby(flags, lambda option: option.group)
    return [(title, list(members)) for title, members in by_title]


def build_parser():
    """Return the parser of `capsulenet.py`."""
    parser = Parser(description="Capsule network on MNIST.", epilog=_EXAMPLES)
    for title, members in groups():
        group = parser.add_argument_group(title)
        for option in members:
            option.add_to(group)
    return parser


def check_at_once(args):
    """Check what takes no time: see `options.check_options`, and whether files are there.

    Raises:
        OSError: if the weights are not there.
        ValueError: if something else can't be.
    """
    options.check_options(args)
    if args.weights is not None and not args.resume:
        os.stat(args.weights)
    if not args.predict:
        options.check_data(args)


def begin_capsulenet():
    """Begin as `capsulenet.py` does."""
    begin(build_parser().parse_args, check_at_once)


def settle_tensorflow():
    """Settle what TensorFlow says and computes with, where it is not yet imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if platform.machine() in ("x86_64", "AMD64"):
        # It has faster kernels, and without AVX-512 does not use them by itself.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def begin(read, check=None):
    """Read the command line, then import Keras.

    `--help` and what is typed wrong are answered at once, before Keras takes seconds.
    What TensorFlow says of its start stays off the screen, unless it fails. Ctrl-C on
    the way ends it in silence.

    Args:
        read: function without arguments that reads the command line.
        check: function of what was read, which raises where something can't be.
    """
    args = read()
    if check:
        with one_line_errors():
            check(args)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    settle_tensorflow()
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there may be no screen
            screen = os.dup(2)
            stack.callback(os.close, screen)
            stack.callback(os.dup2, screen, 2)
            os.dup2(said.fileno(), 2)
        try:
            import keras  # noqa: F401
        except BaseException as error:
            stack.close()
            if isinstance(error, (ImportError, ValueError)):  # no such backend
                _fail(
                    f"Keras can't be imported ({first_line(error)}): KERAS_BACKEND is one of "
                    "tensorflow, jax and torch, and that has to be installed",
                    2,
                )
            said.seek(0)
            os.write(2, said.read())
            raise


def as_flags(values, parser=None):
    """Return values as the text of a command line.

    Args:
        values: dict of names of options to their values.
        parser: the parser that knows them. Defaults to that of `capsulenet.py`.
    """
    actions = {action.dest: action for action in (parser or build_parser())._actions}
    words = []
    for name, value in values.items():
        words.append(actions[name].option_strings[-1])
        if actions[name].nargs == "+":
            words += value
        elif actions[name].nargs != 0:  # one that takes a value
            words.append("x".join(map(str, value)) if name == "image_size" else value)
    return " ".join(map(str, words))


def settings(args, parser):
    """Return a line that tells which options differ from their defaults.

    Args:
        args: namespace of a command line.
        parser: the parser that it comes from.
    """
    given = {
        action.dest: getattr(args, action.dest)
        for action in parser._actions
        if getattr(args, action.dest, action.default) != action.default
    }
    return f"Settings: {printable(as_flags(given, parser)) or 'the defaults'}"


def table():
    """Return the table of `docs/options.md`, Markdown."""
    lines = []
    for title, members in groups():
        lines += [f"### {title.capitalize()}", ""]
        lines += ["| flag | default | |", "|---|---|---|"]
        for option in members:
            flag = f"`-{option.short}`, " if option.short else ""
            flag += f"`--{option.flag or option.name}`"
            switch = isinstance(option.default, bool)
            default = "off" if switch else str(option.default).lower()
            about = option.help
            if option.choices:
                about += f" ({', '.join(map(str, option.choices))})"
            if option.rule:
                about += f"; {option.rule[1]}"
            lines.append(f"| {flag} | {default} | {about} |")
        lines.append("")
    return "\n".join(lines)


@contextlib.contextmanager
def one_line_errors():
    """End the program in a few words where an error is no defect.

    The exit code is 2 for bad input, 1 for a sick training, and 130 or 143 for Ctrl-C or
    SIGTERM. The standard output takes any text from here on: names may have what its
    encoding lacks.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `begin` left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except OSError as error:
        about = f"{error.filename}: {error.strerror}"
        _fail(about if error.filename else first_line(error), 2)
    except ValueError as error:
        if not is_bad_input(error):
            raise
        _fail(first_line(error), 2)
    except FloatingPointError as error:
        _fail(first_line(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except Interrupted as stop:
        with contextlib.suppress(OSError):  # whoever reads may have been stopped too
            if str(stop):
                print(stop, file=sys.stderr, flush=True)
        raise SystemExit(128 + stop.number) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _fail(
            f"not enough memory ({first_line(error)[:200]}): a smaller --batch_size or "
            "--image_size helps",
            2,
        )


def _fail(reason, code):
    name = os.path.basename(sys.argv[0])
    print(f"{name}: error: {printable(reason)}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    print(table())
