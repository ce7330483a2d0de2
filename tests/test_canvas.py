import os

import numpy as np
import pytest
from helpers import sent
from PIL import Image

from capsnet import canvas


def test_a_drawing_is_what_was_drawn():
    pixels = np.random.default_rng(0).integers(0, 255, (280, 280, 3), "uint8")
    drawn = Image.fromarray(pixels // 64 * 64)
    np.testing.assert_array_equal(canvas.drawing_of(sent(drawn)), drawn)
    assert canvas.drawing_of("") is canvas.drawing_of(None) is None


@pytest.mark.parametrize(
    "text",
    [
        "no drawing",
        7,
        ["data:image/png;base64,"],
        canvas.HEAD,
        canvas.HEAD + "?",
        canvas.HEAD + "A" * 1000,
        canvas.HEAD + "A" * canvas.LONGEST,
        sent(Image.new("L", (280, 281))),
        sent(Image.new("1", (10_000, 10_000))),
        sent(Image.new("L", (280, 280)))[:-60],
    ],
    ids=lambda text: str(text)[:30],
)
def test_what_no_canvas_sends_is_refused_in_a_line(text):
    with pytest.raises(ValueError, match="the drawing: ") as caught:
        canvas.drawing_of(text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_canvas_leaves_no_file_beside_its_own():
    canvas.canvas(colour=True)
    files = os.listdir(os.path.dirname(canvas.__file__))
    assert not [name for name in files if name.endswith(".pyi")]
