"""The page to draw on, of Gradio: it asks a `capsnet.explorer.Explorer`.

Pictures stand within the page itself and not in files of Gradio's cache, so that nobody
can ask for another's, and an answer is one request.
"""

import math
from typing import NamedTuple

import gradio as gr
import numpy as np

from capsnet import markup
from capsnet.canvas import canvas, drawing_of
from capsnet.data import read_picture
from capsnet.dimensions import MANIPULATIONS
from capsnet.errors import printable
from capsnet.explorer import Answer

WAITING = 64
"""Events that wait at most; who comes later is told so, and tries again."""

LARGEST_UPLOAD = "20mb"
"""Bytes of a file that is taken at all."""

VISITORS = 200
"""Visitors whose last picture is kept; the one who was longest away is forgotten."""

STEPS = 24
"""Steps of a dimension that plays, to and fro."""

PRIVATE = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_id": "network",
    "concurrency_limit": 4,
}
"""What all events have: no public interface, and few at a time, as they take turns."""

ABOUT = (
    "Each class has a capsule, a vector. Its length says how likely it is that the picture "
    "shows the class, and its direction what that looks like. Lengths need not add up to "
    "1: all may be short, or two long."
)
EMPTY = "Draw something, upload a picture, or choose one of the digits."
NO_DECODER = (
    "These weights are of a network without a decoder: nothing could draw what a capsule "
    "stands for, and so there are no dimensions to turn. Draw and Watch work."
)


class Visit(NamedTuple):
    """What is kept of a visitor: the last `Answer`, and the capsule that is turned."""

    answer: Answer | None = None
    capsules: np.ndarray | None = None
    chosen: int | None = None


def left_out(error):
    """Say why a picture is not answered."""
    return markup.said(f"Left out: {printable(str(error))[:300]}")


class Page:
    """The page: what it has, and what it does.

    Args:
        explorer: `capsnet.explorer.Explorer`.
        examples: list of pairs of an array `(height, width, channels)`, in [0, 1], and
            its caption, to choose from. Defaults to none.
        told: str. A line about the weights. Defaults to none.
    """

    def __init__(self, explorer, examples=(), told=""):
        self.explorer, self.examples, self.told = explorer, list(examples), told
        self.names = explorer.names

    def answers(self, answer):
        """What all places of the first tab show of an answer, and what is kept of it."""
        table = markup.bars(self.names, answer.lengths, answer.chosen)
        return (
            markup.verdict(answer, self.names),
            markup.framed(table),
            markup.seen(answer, self.names),
            Visit(answer),
        )

    def nothing(self):
        """What they show where there is no picture."""
        lengths = np.zeros(len(self.names), "float32")
        table = markup.framed(markup.bars(self.names, lengths, None))
        return markup.said(EMPTY), table, "", Visit()

    def drawn(self, text):
        """Answer what the canvas sent, see `drawing_of`."""
        try:
            picture = drawing_of(text)
        except ValueError as error:
            return left_out(error), *[gr.skip()] * 3
        if picture is None:
            return self.nothing()
        return self.answers(self.explorer.read(picture))

    def uploaded(self, path):
        """Answer a file; one that can't be read costs a line, and changes nothing."""
        try:
            picture = read_picture(path, "the file")
        except ValueError as error:
            return left_out(error), *[gr.skip()] * 4
        return *self.answers(self.explorer.read(picture)), ""

    def picked(self, event: gr.SelectData):
        """Answer an example."""
        image, _ = self.examples[event.index]
        return *self.answers(self.explorer.answer(image, "as it is")), ""

    def opened(self, visit, which):
        """Show the dimensions of a capsule, all at 0: the winner's, or another's.

        Args:
            visit: `Visit`.
            which: int, a class, or -1 for the winner.

        Returns:
            `(visit, heading, picture, dimensions to play)`, the sliders, and the pairs.
        """
        dim = self.explorer.dim
        if visit.answer is None:
            return visit, markup.said(EMPTY), "", gr.skip(), *[gr.skip()] * 2 * dim
        chosen = visit.answer.chosen if which < 0 else which
        capsules = visit.capsules
        if capsules is None:
            capsules = self.explorer.capsules(visit.answer.image)
        visit = Visit(visit.answer, capsules, chosen)
        changes = self.explorer.named(capsules, chosen)
        labels = [f"{d}: {change}" for d, change in enumerate(changes)]
        pairs = self.explorer.pairs(capsules, chosen)
        heading = (
            f"The {dim} dimensions of the capsule {self.names[chosen]}, each named "
        )
        heading += "by what changes most from its left end to its right"
        if self.explorer.test is not None:
            heading += ", in standard deviations among test images"
        return (
            visit,
            markup.said(f"{heading}."),
            self.turned(visit, *[0] * dim),
            gr.update(choices=[(label, d) for d, label in enumerate(labels)]),
            *[gr.update(label=label, value=0) for label in labels],
            *map(markup.pair, pairs, range(dim)),
        )

    def turned(self, visit, *amounts):
        """Show what a capsule stands for, its dimensions changed by some amounts."""
        if visit.capsules is None:
            return markup.said(EMPTY)
        drawn = self.explorer.turned(visit.capsules, visit.chosen, amounts)
        name = self.names[visit.chosen]
        caption = f"Drawn from the capsule {name}, changed"
        if not any(amounts):
            caption = f"Drawn from the capsule {name} as it is"
        before = markup.figure(visit.answer.image, "What the network sees", 140)
        both = before + markup.figure(drawn, caption, 196)
        return markup.framed(f'<div class="row">{both}</div>')

    def reset(self, visit):
        """Bring all dimensions back to 0."""
        zeros = [0] * self.explorer.dim
        return self.turned(visit, *zeros), *zeros

    def played(self, visit, step, dimension, *amounts):
        """Move one dimension a step further, to and fro."""
        step = (step + 1) % STEPS
        farthest = float(MANIPULATIONS[-1])
        amounts = list(amounts)
        amounts[dimension] = round(farthest * math.sin(2 * math.pi * step / STEPS), 2)
        moved = [gr.skip()] * len(amounts)
        moved[dimension] = amounts[dimension]
        return step, self.turned(visit, *amounts), *moved

    def watched(self, visit):
        """Show the routing of the last picture."""
        if visit.answer is None:
            return markup.said(EMPTY)
        found = self.explorer.routing(visit.answer.image)
        return markup.iterations(found, self.names)

    def blocks(self):
        """Return the page, `gr.Blocks`, whose queue is bounded."""
        about = f"# Capsules: draw, turn, watch\n\n{ABOUT} {self.told}"
        options = {"analytics_enabled": False, "delete_cache": (300, 600)}
        with gr.Blocks(title="Capsules: draw, turn, watch", **options) as page:
            gr.Markdown(about)
            begin = self.nothing()
            if self.examples:
                begin = self.answers(
                    self.explorer.answer(self.examples[0][0], "as it is")
                )
            visit = gr.State(begin[-1], time_to_live=3600)
            with gr.Tab("Draw") as tab:
                self._drawing(begin, visit)
            timer = gr.Timer(0.15, active=False)
            with gr.Tab("Turn") as turning:
                if self.explorer.has_decoder:
                    self._turning(visit, turning, timer)
                else:
                    gr.HTML(markup.said(NO_DECODER))
            with gr.Tab("Watch") as watching:
                gr.Markdown(
                    "Each capsule of the layer below sends its vote to the capsules that "
                    "agree with it. Bright places send more to the winner than dark ones: "
                    "how much more, the numbers below say."
                )
                routing = gr.HTML(label="Routing")
                watching.select(self.watched, visit, routing, **PRIVATE)
            for other in (tab, watching):
                other.select(lambda: gr.Timer(active=False), None, timer, **PRIVATE)
            page.load(
                None, js="() => { document.body.dataset.ready = 'yes'; }", **PRIVATE
            )
        page.queue(max_size=WAITING, api_open=False, default_concurrency_limit=4)
        return page

    def _drawing(self, begin, visit):
        """Build the first tab."""
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                pad = canvas(colour=self.explorer.shape[-1] == 3)
                upload = gr.UploadButton("Upload a picture", file_types=["image"])
            with gr.Column(scale=4, min_width=300):
                verdict, table = gr.HTML(begin[0]), gr.HTML(begin[1])
            with gr.Column(scale=2, min_width=160):
                seen = gr.HTML(begin[2])
        shown = [verdict, table, seen, visit]
        if self.examples:
            gallery = gr.Gallery(
                [
                    (np.uint8(255 * np.squeeze(image)), caption)
                    for image, caption in self.examples
                ],
                label="Or choose a test digit",
                elem_id="digits",
                columns=7,
                height="auto",
                allow_preview=False,
                interactive=False,
                buttons=[],
            )
            gallery.select(self.picked, None, [*shown, pad], **PRIVATE)
        latest = {**PRIVATE, "trigger_mode": "always_last"}
        pad.input(self.drawn, pad, shown, **latest)
        upload.upload(self.uploaded, upload, [*shown, pad], **PRIVATE)

    def _turning(self, visit, tab, timer):
        """Build the second tab."""
        low, high = float(MANIPULATIONS[0]), float(MANIPULATIONS[-1])
        dim, step = self.explorer.dim, gr.State(0)
        sliders, pairs = [], []
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                heading, drawn = gr.HTML(), gr.HTML()
                which = gr.Dropdown(
                    [("the winner", -1), *((n, j) for j, n in enumerate(self.names))],
                    value=-1,
                    label="Capsule",
                )
                reset = gr.Button("Reset all dimensions")
                dimension = gr.Dropdown(
                    [(str(d), d) for d in range(dim)],
                    value=0,
                    label="Dimension to play",
                )
                with gr.Row():
                    play = gr.Button("Play", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
            with gr.Column(scale=5, min_width=300):
                for d in range(dim):
                    if d % 2 == 0:
                        row = gr.Row()
                    with row, gr.Column(min_width=280), gr.Row(equal_height=True):
                        slider = gr.Slider(
                            low, high, 0, step=0.01, label=str(d), scale=3
                        )
                        sliders.append(slider)
                        pairs.append(gr.HTML(min_height=50))
        opened = [visit, heading, drawn, dimension, *sliders, *pairs]
        # Not `which.input`, which a list that is only passed by tells too.
        for event in (tab.select, which.change):
            event(self.opened, [visit, which], opened, **PRIVATE)
        latest = {**PRIVATE, "trigger_mode": "always_last"}
        moved = [slider.input for slider in sliders]
        # The queue looks for answers every 50 ms only, longer than one of these takes.
        gr.on(moved, self.turned, [visit, *sliders], drawn, **latest, queue=False)
        reset.click(self.reset, visit, [drawn, *sliders], **PRIVATE)
        play.click(lambda: gr.Timer(active=True), None, timer, **PRIVATE)
        stop.click(lambda: gr.Timer(active=False), None, timer, **PRIVATE)
        timer.tick(
            self.played,
            [visit, step, dimension, *sliders],
            [step, drawn, *sliders],
            **PRIVATE,
            trigger_mode="once",
        )


def launch(page, host, port, browser=False):
    """Serve a page, on this machine alone unless told otherwise, and return at once.

    Args:
        page: what `Page.blocks` returned.
        host: str. The address to listen at.
        port: int. Likewise; 0 for one that is free.
        browser: bool. Whether to open it. Defaults to False.

    Returns:
        The address of the page, a str.

    Raises:
        OSError: if the port is taken.
    """
    names = (
        "body_text_color_subdued",
        "block_label_text_color",
        "block_title_text_color",
    )
    clear = {name: "*neutral_700" for name in names}
    clear |= {f"{name}_dark": "*neutral_200" for name in names}
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    _, address, _ = page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port or None,
        inbrowser=browser,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=LARGEST_UPLOAD,
        max_threads=16,
        state_session_capacity=VISITORS,
        theme=gr.themes.Default(primary_hue="blue", **fonts).set(**clear),
        css=markup.CSS,
        quiet=True,
    )
    return address
