"""What goes wrong, and how it is said: errors."""


class Interrupted(Exception):
    """The training was asked to stop.

    Args:
        number: int. The signal that asked.
        said: str. Where it stopped, what was saved and how to go on. Defaults to none.
    """

    def __init__(self, number, said=""):
        super().__init__(said)
        self.number = number


class HostLost(Exception):
    """The training can't go on since another host is gone."""


def first_line(error):
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text):
    """Return a path or another text so that a terminal shows it and obeys none of it.

    What can't be printed is escaped as Python does: codes that steer a terminal, breaks
    of lines, marks that turn the direction of writing, and bytes of a file's name that
    are no text.

    Args:
        text: str, or what `str` makes one of.

    Returns:
        A str whose characters can all be printed. What is printable stays as it is.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )


DEFECT = "The training failed."
"""Note on a `ValueError` that is a defect, unlike the bad input others stand for."""


def is_bad_input(error):
    """Whether an error stands for something that the user gave."""
    notes = getattr(error, "__notes__", [])
    return isinstance(error, ValueError) and DEFECT not in notes


def is_out_of_memory(error):
    """Whether an error of whatever backend says that memory ran out."""
    kinds = ("MemoryError", "ResourceExhaustedError", "OutOfMemoryError")
    said = ("RESOURCE_EXHAUSTED", "can't allocate memory", "Out of memory")
    return type(error).__name__ in kinds or any(text in str(error) for text in said)
