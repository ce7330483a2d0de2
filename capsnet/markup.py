"""What the page shows of a network's answers, as HTML: all text in it is escaped."""

import base64
import html
import io

import numpy as np
from PIL import Image

from capsnet.routes import EQUAL

MOST_BARS = 20
"""Classes whose lengths are shown; where there are more, the longest."""

CSS = """
.capsnet { --bar: #2563eb; --other: #6b7280; --track: #e5e7eb; --line: #9ca3af; }
.dark .capsnet { --bar: #60a5fa; --other: #9ca3af; --track: #374151; --line: #6b7280; }
.capsnet, .capsnet p, .capsnet table, .capsnet figcaption { color: var(--body-text-color); }
.capsnet p { margin: 0 0 .5rem; font-size: 1rem; line-height: 1.4; }
.capsnet .word { display: inline-block; padding: .1rem .6rem; margin-right: .4rem;
  border: 2px solid currentColor; border-radius: 1rem; font-weight: 700; }
.capsnet table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.capsnet caption { text-align: left; padding: 0 0 .3rem; font-weight: 600; }
.capsnet table, .capsnet tr { border: 0 !important; }
.capsnet th, .capsnet td { border: 0 !important; padding: .12rem .4rem .12rem 0; text-align: left;
  font-size: .95rem; font-weight: 400; white-space: nowrap; }
.capsnet th { overflow-wrap: anywhere; white-space: normal; min-width: 1.5rem; }
.capsnet tr.longest th, .capsnet tr.longest td { font-weight: 700; }
.capsnet td.track { width: 60%; min-width: 4rem; }
.capsnet .track div { background: var(--track); border-radius: 3px; height: .85rem; }
.capsnet .track div div { background: var(--other); }
.capsnet .longest .track div div { background: var(--bar); }
.capsnet .row { display: flex; flex-wrap: wrap; gap: 1rem; }
.capsnet .row > section { flex: 1 1 14rem; min-width: 0; }
.capsnet figure { margin: 0; display: inline-block; }
.capsnet figcaption { font-size: .9rem; max-width: 14rem; }
.capsnet img { image-rendering: pixelated; border: 1px solid var(--line); display: block;
  max-width: 100%; height: auto; margin: 0; }
.capsnet .pair { display: flex; gap: 2px; }
button.selected[role="tab"], button[role="tab"] { color: var(--body-text-color) !important; }
button.selected[role="tab"] { font-weight: 700; }
#digits .grid-container { grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)) !important;
  grid-template-rows: none !important; }
#digits .grid-wrap { min-height: 0 !important; max-height: none !important; }
.capsnet h3 { margin: 0 0 .4rem; font-size: 1rem; color: var(--body-text-color); }
"""


def picture(image, text, side=140):
    """Return an image as an element that needs no file.

    Args:
        image: array `(height, width, channels)`: floats in [0, 1], or uint8.
        text: str. What it shows, for who does not see it.
        side: int. Pixels of the longer side on the page. Defaults to 140.
    """
    if image.dtype != np.uint8:
        image = np.uint8(np.round(255 * np.clip(image, 0, 1)))
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
    height, width = image.shape[:2]
    across, down = (round(side * n / max(height, width)) for n in (width, height))
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}" '
        f'width="{across}" height="{down}">'
    )


def figure(image, caption, side=140):
    """Return a `picture` above its caption."""
    shown = picture(image, caption, side)
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def framed(*parts):
    """Return elements in the frame that the style of the page holds for."""
    return f'<div class="capsnet">{"".join(parts)}</div>'


def said(text):
    """Return a line of text."""
    return framed(f'<p role="status">{html.escape(text)}</p>')


def bars(names, lengths, chosen, caption="Length of each capsule, 0 to 1"):
    """Return the lengths of class capsules as a table, with a bar and a number each.

    Args:
        names: list of str. The classes.
        lengths: float array `(n_class,)`.
        chosen: int. The class that is marked as the longest.
        caption: str. Of the table.
    """
    shown = np.sort(np.argsort(-lengths, kind="stable")[:MOST_BARS])
    rows = [
        f'<tr class="{"longest" if j == chosen else ""}"><th scope="row">'
        f'{html.escape(names[j])}</th><td class="track"><div aria-hidden="true">'
        f'<div style="width:{100 * min(1, max(0, float(lengths[j]))):.1f}%"></div></div>'
        f"</td><td>{lengths[j]:.2f}</td><td>{'longest' if j == chosen else ''}</td></tr>"
        for j in shown
    ]
    if len(lengths) > len(shown):
        caption = f"{caption}; the {len(shown)} longest of {len(lengths)}"
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(rows)}</table>"


def verdict(answer, names):
    """Say in plain words what a network holds of a picture.

    Args:
        answer: `capsnet.explorer.Answer`.
        names: list of str. The classes.
    """
    first, *others = (f"<strong>{html.escape(names[j])}</strong>" for j in answer.told)
    if answer.verdict is None:
        text = f"The longest capsule is {first}. These weights have no thresholds: "
        text += "nothing tells whether the picture shows what the network knows."
        return framed(f'<p role="status">{text}</p>')
    second = int(np.argsort(-answer.lengths, kind="stable")[:2][-1])
    text = {
        "one": f"It shows one thing that the network knows: {first}.",
        "none": "It shows nothing that the network knows; nearest, but not near, is "
        f"{first}.",
        "two": "It shows two things at once; the longest capsules are "
        f"{first} and <strong>{html.escape(names[second])}</strong>.",
        "unsure": f"Perhaps {first}; few training images are as strange as this.",
    }[answer.verdict]
    if len(others) > 1:
        text = f"Perhaps it shows more than two things: {_listed([first, *others])}."
    word = f'<span class="word">{answer.verdict}</span> '
    return framed(f'<p role="status">{word}{text}</p>')


def _listed(names):
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def seen(answer, names):
    """Show what a network sees, and what it draws again from what it tells."""
    height, width = answer.image.shape[:2]
    caption = f"What the network sees: {width} × {height} pixels, {answer.done}"
    parts = [figure(answer.image, caption)]
    if answer.reconstruction is not None:
        of = _listed([names[j] for j in answer.told])
        caption = f"Drawn again from the capsule {of} alone"
        if len(answer.told) > 1:
            caption = f"Drawn again from the capsules {of}"
        parts.append(figure(answer.reconstruction, caption))
    return framed(f'<div class="row">{"".join(parts)}</div>')


def pair(images, number):
    """Show what a dimension does: lowered on the left, raised on the right."""
    lowered, raised = (
        picture(image, f"Dimension {number} {how}", 48)
        for image, how in zip(images, ("lowered", "raised"))
    )
    return framed(f'<div class="pair">{lowered}{raised}</div>')


def iterations(found, names):
    """Show the routing: for each `Iteration` where votes come from, and the lengths."""
    chosen = int(found[-1].lengths.argmax())
    sections = []
    for number, (lengths, by_place, drawn) in enumerate(found, 1):
        row, column = np.unravel_index(by_place.argmax(), by_place.shape)
        caption = f"Coefficients to {names[chosen]}: {by_place.min():.3f} to "
        caption += f"{by_place.max():.3f}"
        if by_place.max() - by_place.min() > EQUAL:
            caption += f", most at row {row + 1}, column {column + 1} of "
            caption += "{} × {} places".format(*by_place.shape)
        else:
            caption += ", equal everywhere"
        table = bars(names, lengths, int(lengths.argmax()), "Lengths")
        heading = f"<h3>After iteration {number}</h3>"
        sections.append(
            f"<section>{heading}{figure(drawn, caption, 224)}{table}</section>"
        )
    return framed(f'<div class="row">{"".join(sections)}</div>')
