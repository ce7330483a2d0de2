import base64
import io
import re

import numpy as np
import pytest
from helpers import HOSTILE, images
from PIL import Image

from capsnet import markup
from capsnet.explorer import Answer, Iteration

WORDS = {
    "one": "shows one thing that the network knows: <strong>b</strong>.",
    "none": "nothing that the network knows",
    "two": "two things at once; the longest capsules are <strong>b</strong> and "
    "<strong>c</strong>.",
    "unsure": "Perhaps <strong>b</strong>",
    None: "have no thresholds",
}


def answer(verdict="one", lengths=(0.1, 0.9, 0.5), **changes):
    image = images(1)[0]
    parts = [image, "as it is", 1, (1,), np.float32(lengths), image, verdict]
    return Answer(*parts)._replace(**changes)


@pytest.mark.parametrize("verdict", WORDS)
def test_verdicts_are_told_in_plain_words(verdict):
    told = markup.verdict(answer(verdict), ["a", "b", "c"])
    assert WORDS[verdict] in told
    assert (f'<span class="word">{verdict}</span>' in told) == (verdict is not None)


def test_a_network_of_several_classes_tells_and_draws_all_that_are_long():
    three = answer("unsure", (0.7, 0.9, 0.6), told=(1, 0, 2))
    said = markup.verdict(three, ["a", "b", "c"])
    assert "strange" not in said
    assert "more than two things: <strong>b</strong>, <strong>a</strong> and" in said
    assert "from the capsules b, a and c" in markup.seen(three, ["a", "b", "c"])
    assert "from the capsule b alone" in markup.seen(answer(), ["a", "b", "c"])


def test_a_network_of_one_class_is_told():
    lone = answer("two", [0.3], chosen=0, told=(0,))
    assert "<strong>a</strong>" in markup.verdict(lone, ["a"])


def test_pictures_are_kept_to_the_pixel_within_the_page():
    image = images(1, 6, 5, 3)[0]
    tag = markup.picture(image, 'a "b"', side=60)
    assert 'alt="a &quot;b&quot;" width="50" height="60"' in tag
    data = base64.b64decode(re.search('base64,([^"]*)', tag)[1])
    with Image.open(io.BytesIO(data)) as shown:
        np.testing.assert_array_equal(shown, np.round(255 * image))


def test_lengths_are_told_by_numbers_and_words_beside_the_bars():
    table = markup.bars(["a", "b", "c"], np.float32([0.1, 0.9, 1.5]), 2)
    assert re.findall(r"<td>([\d.]+)</td>", table) == ["0.10", "0.90", "1.50"]
    assert re.findall(r"width:([\d.]+)%", table) == ["10.0", "90.0", "100.0"]
    assert table.count(">longest<") == 1


def test_of_many_classes_the_longest_are_shown():
    lengths = np.linspace(0, 1, 100)
    table = markup.bars([f"n{j}" for j in range(100)], lengths, 99)
    assert re.findall('row">n(\\d+)<', table) == [str(j) for j in range(80, 100)]
    assert "the 20 longest of 100" in table


def test_hostile_names_of_classes_are_shown_and_not_obeyed():
    names = [f"<img src=x onerror=alert(1)>{HOSTILE}", "<script>", '"><b>']
    one = answer("two")
    step = Iteration(one.lengths, np.eye(2), np.zeros((4, 4, 3), "uint8"))
    told = markup.verdict(one, names) + markup.seen(one, names)
    told += markup.bars(names, one.lengths, 1) + markup.iterations([step], names)
    assert "<img src=x" not in told and "<script" not in told and "><b>" not in told
    assert "&lt;script&gt;" in told


def test_without_a_decoder_there_is_no_reconstruction():
    assert markup.seen(answer(), ["a", "b", "c"]).count("<img") == 2
    alone = answer(reconstruction=None)
    assert markup.seen(alone, ["a", "b", "c"]).count("<img") == 1


def test_where_votes_come_from_is_told_in_numbers():
    picture = np.zeros((4, 4, 3), "uint8")
    equal = Iteration(np.float32([0.1, 0.3]), np.full((2, 3), 0.5), picture)
    places = np.float32([[0.1, 0.2, 0.3], [0.4, 0.1, 0.2]])
    told = markup.iterations([equal, Iteration(equal.lengths, places, picture)], "ab")
    assert "Coefficients to b: 0.500 to 0.500, equal everywhere" in told
    assert "0.100 to 0.400, most at row 2, column 1 of 2 × 3 places" in told
    assert told.count("After iteration") == 2
