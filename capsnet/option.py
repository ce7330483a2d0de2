"""What an option of the command line is."""

import argparse
import dataclasses


@dataclasses.dataclass(frozen=True)
class Option:
    """One option.

    Args:
        name: str. Its flag is `--name`, unless there is a `flag`.
        default: its value where it is not given.
        help: str. What it is, in a line or two.
        group: str. Where `--help` lists it; None for what only `train` takes.
        type: function that turns text into its value. Defaults to the default's type.
        rule: pair of a function that tells whether a value is allowed, and of words for
            that. Defaults to every value.
        choices: tuple of the values that there are, if they are few.
        short: str. A flag of one letter, as `-r`.
        flag: str. The flag that turns a default of True off, without dashes.
        more: dict of further arguments of `ArgumentParser.add_argument`.
        decides: bool. Whether what is trained depends on it, so that a run goes on with
            the same value alone. Defaults to True.
    """

    name: str
    default: object
    help: str = ""
    group: str | None = None
    type: object = None
    rule: tuple | None = None
    choices: tuple | None = None
    short: str | None = None
    flag: str | None = None
    more: dict = dataclasses.field(default_factory=dict)
    decides: bool = True

    def add_to(self, parser):
        """Add the option to an `argparse` parser, or to a group of one."""
        flags = [f"--{self.flag or self.name}"]
        given = {"default": self.default, "help": self.help, "dest": self.name}
        if isinstance(self.default, bool):
            given["action"] = f"store_{not self.default}".lower()
        else:
            given["type"] = self.type or type(self.default)
            given["choices"] = self.choices
        flags[:0] = [f"-{self.short}"] if self.short else []
        parser.add_argument(*flags, **given, **self.more)


def digit(text):
    """Turn the number of a class into an int, and leave `all`."""
    try:
        return text if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the number of a class, nor all"
        ) from None


def image_size(text):
    """Turn `28` or `28x32` into height and width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither SIDE nor HEIGHTxWIDTH")
    return [int(sides[0]), int(sides[-1])]
