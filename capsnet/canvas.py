"""The canvas of the page: strokes of mouse, pen and finger.

Gradio's own, `gr.Sketchpad`, tells of a stroke once it has ended, needs WebGL, and begins
with no brush chosen; here the page is told while one draws.
"""

import base64
import io
import struct

import gradio as gr

from capsnet.data import read_picture

SIDE = 280
"""Pixels of the canvas, a side."""

WIDTH = 20
"""Pixels of a stroke: as wide as those of MNIST, where a digit fills the canvas."""

PAUSE = 80
"""Milliseconds between two messages while one draws."""

LONGEST = 500_000
"""Characters of a drawing that is sent; strokes make some thousands."""

HEAD = "data:image/png;base64,"

_HTML = """
<div class="pad">
  <canvas width="{{side}}" height="{{side}}" role="img" tabindex="0" aria-label="Canvas:
draw with mouse, pen or finger"></canvas>
  <div class="tools">
    {{#if colour}}<label>Colour <input type="color" value="#000000"></label>{{/if}}
    <button type="button" name="undo">Undo</button>
    <button type="button" name="clear">Clear</button>
  </div>
</div>
"""

_CSS = """
.pad { max-width: 23rem; }
canvas { width: 100%; aspect-ratio: 1; background: #fff; border: 2px solid #6b7280;
  border-radius: .5rem; touch-action: none; cursor: crosshair; display: block; }
.tools { display: flex; gap: .5rem; margin-top: .5rem; align-items: center; }
button { flex: 1; margin: 0; padding: .5rem; border-radius: .5rem; cursor: pointer; font: inherit;
  border: 1px solid #6b7280; background: var(--button-secondary-background-fill);
  color: var(--body-text-color); }
button:focus-visible, canvas:focus-visible { outline: 3px solid #2563eb; }
"""

_JS = """
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
const colour = element.querySelector('input[type=color]');
let strokes = [], open = null, waiting = null;

function paint() {
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.lineCap = pen.lineJoin = 'round';
  pen.lineWidth = props.width;
  for (const stroke of strokes) {
    pen.strokeStyle = stroke.colour;
    pen.beginPath();
    const [x, y] = stroke.points[0];
    pen.moveTo(x + 0.01, y);  // a line without length would not be drawn
    for (const point of stroke.points) pen.lineTo(...point);
    pen.stroke();
  }
}

function tell() {
  clearTimeout(waiting);
  waiting = null;
  props.value = strokes.length ? canvas.toDataURL('image/png') : '';
  trigger('input');
}

function add(event) {
  const box = canvas.getBoundingClientRect();
  const edge = canvas.clientLeft;
  open.points.push([
    (event.clientX - box.left - edge) * canvas.width / canvas.clientWidth,
    (event.clientY - box.top - edge) * canvas.height / canvas.clientHeight,
  ]);
  paint();
}

canvas.addEventListener('pointerdown', (event) => {
  if (!event.isPrimary || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  open = { colour: colour ? colour.value : '#000000', points: [] };
  strokes.push(open);
  add(event);
});
canvas.addEventListener('pointermove', (event) => {
  if (!open || !event.isPrimary) return;
  event.getCoalescedEvents?.().forEach(add);  // browsers lack it without HTTPS
  add(event);
  waiting ??= setTimeout(tell, props.pause);
});
for (const end of ['pointerup', 'pointercancel'])
  canvas.addEventListener(end, (event) => {
    if (!open || !event.isPrimary) return;
    open = null;
    tell();
  });
element.querySelector('[name=undo]').addEventListener('click', () => {
  strokes.pop();
  paint();
  tell();
});
element.querySelector('[name=clear]').addEventListener('click', () => {
  strokes = [];
  paint();
  tell();
});
watch('value', () => {  // what else is chosen wipes the canvas
  if (props.value || open) return;
  strokes = [];
  paint();
});
paint();
"""


def canvas(colour=False):
    """Return a canvas, whose event is `input`; an empty text as value wipes it.

    It is no class of its own, for which Gradio would write a file beside this one.

    Args:
        colour: bool. Whether the colour of strokes can be chosen. Defaults to False.
    """
    return gr.HTML(
        "",
        html_template=_HTML,
        css_template=_CSS,
        js_on_load=_JS,
        side=SIDE,
        width=WIDTH,
        pause=PAUSE,
        colour=colour,
    )


def drawing_of(text):
    """Return what a canvas sent, a Pillow image, or None where nothing is drawn.

    Args:
        text: str. A PNG file of `SIDE` x `SIDE` pixels as a data URL, or nothing; it is
            a stranger's, and may be anything.

    Raises:
        ValueError: if it is anything else.
    """
    if not text:
        return None
    if not isinstance(text, str) or not text.startswith(HEAD) or len(text) > LONGEST:
        raise ValueError("the drawing: not what the canvas sends")
    data = base64.b64decode(text[len(HEAD) :])
    if data[16:24] != struct.pack(">II", SIDE, SIDE):  # where PNG has the size
        raise ValueError(f"the drawing: must have {SIDE} x {SIDE} pixels")
    return read_picture(io.BytesIO(data), "the drawing")
