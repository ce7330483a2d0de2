"""A page to draw on: ten capsules answer, their dimensions turn, routing is watched.

pip install -r requirements-demo.txt
python demo.py
python demo.py -w out/trained_model.h5 --port 8000 --no_browser
"""

import os
import socket
import tempfile
import threading

from capsnet.command_line import Parser, begin, one_line_errors

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ["HF_HUB_OFFLINE"] = "1"
WEIGHTS = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "result", "trained_model.h5"
)


def build_parser():
    """Return the command line's parser."""
    parser = Parser(description="A page to draw on, for a capsule network.")
    add = parser.add_argument
    add("-w", "--weights", default=WEIGHTS, help="a file that a training wrote")
    add("--port", default=7860, type=int, help="of the page; 0 finds a free one")
    add("--host", default="127.0.0.1", help="0.0.0.0 shows the page to the network too")
    add("--no_browser", action="store_true", help="do not open a browser")
    return parser


def check(args):
    """Check what takes no time.

    Raises:
        OSError: if the weights are not there.
        ValueError: if the port or the host can't be.
    """
    if args.port and not 1024 <= args.port <= 65535:
        raise ValueError(f"--port {args.port}: must be from 1024 to 65535, or 0")
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        socket.create_server((args.host, 0), family=family).close()
    except OSError as error:
        raise ValueError(f"--host {args.host}: no address of this machine") from error
    os.stat(args.weights)


if __name__ == "__main__":  # Keras takes seconds, and typing errors need none
    begin(build_parser().parse_args, check)

import capsulenet
from capsnet.data import load_mnist
from capsnet.explorer import Explorer
from capsnet.page import Page, launch

HARD = (582, 659, 1901)
"""Test images, of which the shipped network reads none right."""


def explore(weights):
    """Load weights, and return what a page is made of.

    Args:
        weights: str. A file as `capsulenet.load_model` takes it.

    Returns:
        `(explorer, examples, told)`, the arguments of `capsnet.page.Page`. Networks of
        MNIST's digits have test images.

    Raises:
        OSError: if the weights can't be read.
        ValueError: if they are none.
    """
    models, about = capsulenet.load_model(weights)
    shape = tuple(models[1].inputs[0].shape[1:])
    names = list(about["class_names"])
    digits = (
        about["like_mnist"] and shape == (28, 28, 1) and names == list("0123456789")
    )
    _, test = load_mnist() if digits else (None, None)
    explorer = Explorer(models, about, capsulenet.predict, test)
    explorer.warm_up()
    examples = examples_of(test, explorer) if digits else []
    return explorer, examples, f"Weights: {os.path.basename(weights)}"


def examples_of(test, explorer):
    """Return a test image of each digit, and a few that are hard, with captions."""
    x, y = test
    true = y.argmax(1)
    chosen = [*(int((true == digit).argmax()) for digit in range(10)), *HARD]
    examples = []
    for n in chosen:
        read = explorer.answer(x[n], "").chosen
        caption = f"{true[n]}" if read == true[n] else f"{true[n]} as {read}"
        examples.append((x[n], caption))
    return examples


def main(argv=None):
    """Run the command line with the arguments `argv`, by default the program's own."""
    args = build_parser().parse_args(argv)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads end with the program
        explorer, examples, told = explore(args.weights)
        page = Page(explorer, examples, told).blocks()
        address = launch(page, args.host, args.port, not args.no_browser)
        print(f"The page: {address}  (Ctrl-C ends it)", flush=True)
        threading.Thread(target=explorer.learn_names, daemon=True).start()
        page.block_thread()


if __name__ == "__main__":
    main()
