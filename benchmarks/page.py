"""How soon the page of `demo.py` is there, and how soon it answers.

    python benchmarks/page.py
    python benchmarks/page.py --visitors 10 --times 50

Starts the page as a user does, and looks at it in a headless chromium: seconds until the
page is shown; from the end of a stroke, and from a slider's change, until the page shows the
answer; and the same for strokes of several visitors at once. `server` are
the functions behind the page, without browser and network. Writes a table, `--output`,
with the median, the least and the largest of many times. Needs `requirements-dev.txt`.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

from step import ROOT, write_csv  # which also puts the repository on the path

WATCH = """kind => {
  window.answered = [];
  const shown = () => [...document.querySelectorAll('.capsnet .row img')]
    .filter(e => e.checkVisibility()).map(e => e.src).join();
  addEventListener(kind, () => {
    const begin = performance.now(), before = shown();
    const look = () => shown() === before ? requestAnimationFrame(look)
      : answered.push((performance.now() - begin) / 1000);
    look();
  }, true);
}"""
"""Note in the page how long after each event of a kind its pictures have changed."""

SEVEN = [(0.25, 0.2), (0.75, 0.2), (0.5, 0.9)]
"""Parts of the canvas, along which the mouse goes."""


def row(what, seconds):
    """Return a row of the table."""
    return {
        "what": what,
        "times": len(seconds),
        "median": statistics.median(seconds),
        "least": min(seconds),
        "largest": max(seconds),
    }


def timed(times, ask):
    """Return the seconds of each of some calls, after one that is not counted."""
    ask()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        ask()
        found.append(time.perf_counter() - begin)
    return found


def of_functions(times):
    """Time the functions behind the page; returns rows."""
    import numpy as np
    from PIL import Image

    import demo
    from capsnet.page import Page

    explorer, examples, _ = demo.explore(demo.WEIGHTS)
    explorer.learn_names()
    page = Page(explorer, examples)
    pixels = np.uint8(255 - 255 * examples[7][0][..., 0])
    digit = Image.fromarray(pixels).resize((280, 280))
    visit = page.answers(explorer.read(digit))[-1]
    visit, *_ = page.opened(visit, -1)
    amounts = [0.1] * explorer.dim
    asked = {
        "server: a drawing": lambda: page.answers(explorer.read(digit)),
        "server: a slider": lambda: page.turned(visit, *amounts),
        "server: the tab Turn": lambda: page.opened(visit, -1),
        "server: the tab Watch": lambda: page.watched(visit),
    }
    return [row(what, timed(times, ask)) for what, ask in asked.items()]


def stroke(page, points):
    """Draw on the canvas by the mouse."""
    box = page.locator("canvas").bounding_box()
    places = [
        (box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def opened(browser, address):
    """Open the page as one more visitor, with a 7 on the canvas; returns it."""
    page = browser.new_context().new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.locator("body[data-ready] canvas").wait_for()
    stroke(page, SEVEN)
    page.locator("tr.longest:visible", has_text="7").wait_for()
    page.wait_for_timeout(1000)  # until the last stroke is answered
    return page


def answers(page, count):
    """The seconds that `WATCH` noted, once there are `count`."""
    page.wait_for_function(f"answered.length >= {count}")
    return page.evaluate("answered")


def of_page(browser, address, times):
    """Time the page for one visitor; returns rows."""
    page = opened(browser, address)
    page.evaluate(WATCH, "pointerup")
    for n in range(times):  # dots, each a drawing of its own
        stroke(page, [(0.1 + 0.8 * n / times, 0.95)])
        answers(page, n + 1)
    rows = [row("page: a drawing", answers(page, times))]
    page.get_by_role("tab", name="Turn").click()
    slider = page.get_by_role("slider").first
    page.get_by_text("dimensions of the capsule").wait_for()
    page.wait_for_timeout(1000)
    page.evaluate(WATCH, "input")
    for n in range(times):
        slider.fill(f"{0.25 * (-1) ** n * (n + 1) / times:.2f}")
        answers(page, n + 1)
    return [*rows, row("page: a slider", answers(page, times))]


def of_visitors(browser, address, visitors, times):
    """Time the page for several visitors who draw at the same time; returns a row."""
    pages = [opened(browser, address) for _ in range(visitors)]
    for page in pages:
        page.evaluate(WATCH, "pointerup")
    for n in range(times):
        for page in pages:
            stroke(page, [(0.1 + 0.8 * n / times, 0.95)])
        for page in pages:
            answers(page, n + 1)
    found = [seconds for page in pages for seconds in answers(page, times)]
    return row(f"page: a drawing, {visitors} visitors at once", found)


def start():
    """Start the page; returns the process, its address and the seconds it took."""
    begin = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "demo.py"), "--no_browser", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    address = server.stdout.readline().split()[2]
    return server, address, time.perf_counter() - begin


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--times", type=int, default=50, help="answers that are timed")
    add("--starts", type=int, default=3, help="starts of the program")
    add("--visitors", type=int, default=10, help="who draw at the same time")
    add("--output", default=os.path.join(ROOT, "benchmarks/results/page.csv"))
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    starts = []
    for left in reversed(range(args.starts)):
        server, address, seconds = start()
        starts.append(seconds)
        if left:
            server.send_signal(signal.SIGINT)
            server.communicate()
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=flags
        )
        rows = [row("start, until the page answers", starts)]
        rows += of_page(chromium, address, args.times)
        rows.append(
            of_visitors(chromium, address, args.visitors, max(1, args.times // 5))
        )
        chromium.close()
    server.send_signal(signal.SIGINT)
    server.communicate()
    rows += of_functions(args.times)
    for found in rows:
        print("{what:40} {median:.3f} s ({least:.3f} to {largest:.3f})".format(**found))
    write_csv(rows, args.output)


if __name__ == "__main__":
    main()
