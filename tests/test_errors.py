import pytest

from capsnet import errors
from utils import printable


@pytest.mark.parametrize(
    "text, shown",
    [
        ("ältere Bilder/猫 1.png", "ältere Bilder/猫 1.png"),
        (r"C:\new\x1b.png", r"C:\new\x1b.png"),
        ("\x1b[2J\r\n\t", r"\x1b[2J\r\n\t"),
        ("a\u202egnp.exe\u2028b\x9b", r"a\u202egnp.exe\u2028b\x9b"),
        ("\udcff.png", r"\udcff.png"),
        ("\U000e0041", r"\U000e0041"),
        (ValueError("a\nb"), r"a\nb"),
    ],
)
def test_what_can_not_be_printed_is_escaped_and_nothing_else(text, shown):
    assert printable(text) == shown == printable(shown)
    assert shown.isprintable()


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a\nb"), "a"),
        (ValueError("\n  a \n"), "a"),
        (ValueError(), "ValueError"),
        (KeyError("a"), "'a'"),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert errors.first_line(error) == line
