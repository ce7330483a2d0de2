"""The page of `demo.py` in a real browser, as a visitor uses it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, script_environment
from PIL import Image

import capsulenet

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
if BROWSER is None and os.environ.get("CAPSNET_BROWSER") != "required":
    pytest.skip("there is no chromium to look with", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright

NAME = "capsules.test"
"""What the browser takes this machine for, too: one of a network, without HTTPS."""

expect.set_options(timeout=60_000)  # milliseconds; machines are shared

DIGITS = {  # strokes, as parts of the canvas
    "0": [[(0.5, 0.15), (0.3, 0.3), (0.27, 0.5), (0.33, 0.75), (0.5, 0.85)]
          + [(0.67, 0.75), (0.73, 0.5), (0.68, 0.28), (0.5, 0.15)]],
    "1": [[(0.52, 0.12), (0.5, 0.5), (0.48, 0.88)]],
    "2": [[(0.3, 0.3), (0.4, 0.16), (0.6, 0.16), (0.7, 0.3), (0.62, 0.48)]
          + [(0.3, 0.84), (0.74, 0.84)]],
    "3": [[(0.3, 0.18), (0.55, 0.13), (0.68, 0.26), (0.62, 0.42), (0.45, 0.48)]
          + [(0.64, 0.54), (0.71, 0.7), (0.58, 0.85), (0.3, 0.82)]],
    "4": [[(0.36, 0.14), (0.3, 0.52), (0.72, 0.5)], [(0.66, 0.14), (0.62, 0.88)]],
    "5": [[(0.72, 0.15), (0.36, 0.15), (0.33, 0.45), (0.55, 0.42), (0.7, 0.55)]
          + [(0.66, 0.78), (0.48, 0.86), (0.28, 0.8)]],
    "6": [[(0.62, 0.12), (0.4, 0.35), (0.32, 0.62), (0.4, 0.84), (0.58, 0.85)]
          + [(0.68, 0.7), (0.58, 0.55), (0.36, 0.64)]],
    "7": [[(0.26, 0.18), (0.74, 0.18), (0.6, 0.5), (0.48, 0.88)]],
    "8": [[(0.66, 0.22), (0.5, 0.13), (0.35, 0.24), (0.42, 0.42), (0.62, 0.58)]
          + [(0.68, 0.75), (0.5, 0.87), (0.34, 0.76), (0.42, 0.56), (0.64, 0.38)]
          + [(0.66, 0.22)]],
    "9": [[(0.68, 0.28), (0.52, 0.14), (0.36, 0.27), (0.42, 0.45), (0.6, 0.44)]
          + [(0.68, 0.28), (0.66, 0.5), (0.58, 0.88)]],
}  # fmt: skip


@pytest.fixture(scope="module")
def address():
    """The page of the shipped weights, started as a user starts it."""
    command = [sys.executable, os.path.join(ROOT, "demo.py")]
    with subprocess.Popen(
        [*command, "--no_browser", "--port", "0"],
        env=script_environment(KERAS_BACKEND="tensorflow"),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield re.search(r"The page: (\S+)", server.stdout.readline())[1]
        server.send_signal(signal.SIGINT)
        server.communicate()
        assert server.returncode == 0


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        flags = [f"--host-resolver-rules=MAP {NAME} 127.0.0.1"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """A function that opens the page as one more visitor.

    At the end it is checked that nothing was asked of another machine, and nothing
    complained of.
    """
    contexts, elsewhere, complaints = [], [], []

    def look(route):
        here = (address, by_name(address), "data:", "blob:")
        if route.request.url.startswith(here):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    def visit(width=1280, height=800, at=address, **how):
        view = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=view, **how))
        contexts[-1].route("**/*", look)
        contexts[-1].set_default_timeout(60_000)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda m: complaints.append(m.text) if m.type == "error" else None,
        )
        page.goto(at)
        expect(page.locator("body[data-ready] canvas")).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not elsewhere and not complaints


def by_name(address):
    return address.replace("127.0.0.1", NAME)


@pytest.fixture
def page(visit):
    return visit()


def verdict(page):
    return page.get_by_role("status").first


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def draw(page, digit, left=0.0, width=1.0):
    """Draw a digit by the mouse, into a part of the canvas."""
    canvas = page.get_by_role("img", name="Canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for stroke in DIGITS[digit]:
        places = [
            (box["x"] + box["width"] * (left + width * x), box["y"] + box["height"] * y)
            for x, y in stroke
        ]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=4)
        page.mouse.up()


def upload(page, path):
    page.locator("input[type=file]").set_input_files(path)


def clear(page):
    page.get_by_role("button", name="Clear").click()
    expect(verdict(page)).to_contain_text("Draw something")


def winner(page):
    return page.get_by_role("row").filter(has_text="longest").get_by_role("rowheader")


def shown(page):
    """What the page shows in the tab that is open."""
    return page.locator("img:visible").evaluate_all("all => all.map(e => e.src)")


def test_digits_that_are_drawn_are_read(page):
    for digit in "170":
        draw(page, digit)
        expect(verdict(page)).to_contain_text(
            re.compile(rf"one It shows one thing .*: {digit}\.")
        )
        expect(winner(page)).to_have_text(digit)
        clear(page)


def test_digits_are_drawn_on_a_page_of_another_machine(visit, address):
    page = visit(at=by_name(address))
    assert not page.evaluate("window.isSecureContext")
    draw(page, "1")
    expect(winner(page)).to_have_text("1")


def test_two_digits_are_called_two_and_an_undo_takes_a_stroke_away(page):
    draw(page, "1", -0.1, 0.7)
    draw(page, "7", 0.35, 0.7)
    expect(verdict(page)).to_contain_text("two It shows two things at once")
    page.get_by_role("button", name="Undo").click()
    expect(verdict(page)).to_contain_text("one thing that the network knows: 1.")


def test_the_lengths_move_while_one_draws(page):
    box = page.get_by_role("img", name="Canvas").bounding_box()
    page.mouse.move(box["x"] + 180, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 170, box["y"] + 320, steps=8)
    expect(winner(page)).to_have_text("1")  # the button is still down
    page.mouse.up()


def test_a_dot_is_drawn(page):
    clear(page)
    page.get_by_role("img", name="Canvas").click()
    expect(page.get_by_text("inverted, centred")).to_be_visible()


def test_an_example_is_read_and_wipes_the_canvas(page):
    draw(page, "1")
    expect(winner(page)).to_have_text("1")
    page.get_by_role("button", name=re.compile("Thumbnail 4")).click()
    expect(winner(page)).to_have_text("3")
    draw(page, "7")
    expect(winner(page)).to_have_text("7")


def test_a_slider_changes_the_picture_and_a_reset_brings_it_back(page):
    tab(page, "Turn")
    expect(page.get_by_text("dimensions of the capsule 0")).to_be_visible()
    expect(page.get_by_label(re.compile(r"range slider for 0: \w+"))).to_be_visible()
    before = shown(page)
    slider = page.get_by_role("slider").nth(1)
    slider.fill("0.25")
    expect(page.get_by_text("capsule 0, changed")).to_be_visible()
    after = shown(page)
    assert len(before) == len(after) == 2 + 2 * 16
    assert [a == b for a, b in zip(before, after)] == [True, False] + 32 * [True]
    page.get_by_role("button", name="Reset all").click()
    expect(page.get_by_text("capsule 0 as it is")).to_be_visible()
    assert shown(page) == before
    expect(slider).to_have_value("0")


def test_a_dimension_plays_and_stops(page):
    tab(page, "Turn")
    expect(page.get_by_text("dimensions of the capsule 0")).to_be_visible()
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_text("capsule 0, changed")).to_be_visible()
    expect(page.get_by_role("slider").first).not_to_have_value("0")
    page.get_by_role("button", name="Stop").click()


def test_another_capsule_than_the_winner_s_is_turned(page):
    tab(page, "Turn")
    expect(page.get_by_text("dimensions of the capsule 0")).to_be_visible()
    page.get_by_label("Capsule", exact=True).click()
    page.get_by_role("option", name="8").click()
    expect(page.get_by_text("dimensions of the capsule 8")).to_be_visible()


def test_the_routing_is_told_iteration_by_iteration(page):
    tab(page, "Watch")
    for number in "123":
        heading = page.get_by_role("heading", name=f"After iteration {number}")
        expect(heading).to_be_visible()
    expect(page.get_by_text("Coefficients to 0")).to_have_count(3)
    expect(page.get_by_text("equal everywhere")).to_have_count(1)


def test_files_are_read_or_cost_a_line(page, tmp_path):
    _, (x, _) = capsulenet.load_mnist()
    good = tmp_path / "seven.png"
    digit = Image.fromarray(np.uint8(255 * x[0, :, :, 0]))
    digit.resize((280, 280)).save(good)
    huge = tmp_path / "huge.png"
    Image.new("1", (10_000, 10_000), 1).save(huge)
    false = tmp_path / "false.png"
    false.write_text("no picture at all")
    drawing = tmp_path / "drawing.svg"
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    for path, words in ((huge, "10000 x 10000 pixels"), (false, "not a readable")):
        upload(page, path)
        expect(verdict(page)).to_contain_text(re.compile(f"Left out: .*{words}"))
        upload(page, good)
        expect(verdict(page)).to_contain_text("one thing that the network knows: 7.")
    upload(page, drawing)
    expect(verdict(page)).to_contain_text("Left out: the file: not a readable picture")
    expect(winner(page)).to_have_text("7")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(visit, scheme):
    page = visit(390, 844, color_scheme=scheme)
    for name in ("Draw", "Turn", "Watch"):
        tab(page, name)
        expect(
            page.get_by_role("tabpanel").locator("img:visible").first
        ).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(CONTRASTS) == []


CONTRASTS = """() => {
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length == 3 || c[3] > 0.5) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || !e.checkVisibility({opacityProperty: true, visibilityProperty: true}))
      continue;
    if (!e.getClientRects().length || e.closest('script, style, button:disabled')) continue;
    const [a, b] = [numbers(getComputedStyle(e).color), ground(e)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


def test_the_keyboard_alone_reaches_and_turns_a_slider(page):
    page.get_by_role("tab", name="Draw").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("dimensions of the capsule 0")).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("capsule 0, changed")).to_be_visible()
    assert float(page.get_by_role("slider").first.input_value()) == pytest.approx(0.01)


def test_to_pass_the_list_of_capsules_by_leaves_the_dimensions_turned(page):
    tab(page, "Turn")
    expect(page.get_by_text("dimensions of the capsule 0")).to_be_visible()
    first, second = (page.get_by_role("slider").nth(n) for n in range(2))
    first.press("ArrowRight")
    expect(page.get_by_text("capsule 0, changed")).to_be_visible()
    page.get_by_label("Capsule").focus()
    page.keyboard.press("Tab")
    before = shown(page)[1]
    second.fill("0.25")
    page.wait_for_function(
        "before => ![...document.images].some(e => e.src === before)", arg=before
    )
    assert first.input_value() == "0.01"


def test_every_control_has_a_name(page):
    for name in ("Draw", "Turn", "Watch"):
        tab(page, name)
        expect(
            page.get_by_role("tabpanel").locator("img:visible").first
        ).to_be_visible()
        assert page.evaluate(NAMELESS) == []


NAMELESS = """() => [...document.querySelectorAll(
  'button, input, select, textarea, canvas, img, [role=slider], [role=listbox]')]
  .filter(e => e.checkVisibility() && e.type != 'file')
  .filter(e => !(e.ariaLabel || e.alt || e.innerText?.trim() || e.title
    || [...(e.labels || [])].some(l => l.innerText.trim())))
  .map(e => e.outerHTML.slice(0, 100))"""


def test_nobody_sees_another_s_drawing(visit):
    visitors = [visit() for _ in range(3)]
    for page, digit in zip(visitors, "170"):
        draw(page, digit)
    for page, digit in zip(visitors, "170"):
        expect(winner(page)).to_have_text(digit)
    for page, digit in zip(visitors, "170"):
        tab(page, "Turn")
        expect(page.get_by_text(f"dimensions of the capsule {digit}")).to_be_visible()


def test_a_flood_of_events_costs_no_more_than_a_wait(page):
    tab(page, "Turn")
    expect(page.get_by_text("dimensions of the capsule 0")).to_be_visible()
    page.get_by_role("slider").nth(3).evaluate("""e => {
      for (let i = 0; i < 10000; i++) {
        e.value = (i % 50 - 25) / 100;
        e.dispatchEvent(new Event('input', {bubbles: true}));
      }
    }""")
    expect(page.get_by_text("capsule 0, changed")).to_be_visible()
    tab(page, "Draw")
    draw(page, "7")
    begin = time.monotonic()
    expect(winner(page)).to_have_text("7")
    assert time.monotonic() - begin < 10


@pytest.mark.slow
def test_a_hundred_uploads_and_twenty_drawings_are_read(page, tmp_path):
    _, (x, y) = capsulenet.load_mnist()
    (_, model, _), about = capsulenet.load_model(f"{ROOT}/result/trained_model.h5")
    wrong, told = [], []
    for n in range(100):
        path = tmp_path / f"{n}.png"
        digit = Image.fromarray(np.uint8(255 * x[n, :, :, 0])).resize((280, 280))
        digit.save(path)
        clear(page)
        upload(page, path)
        expect(verdict(page)).not_to_contain_text("Draw something")
        read = winner(page).inner_text()
        wrong += [n] if read != str(y[n].argmax()) else []
        told.append((read, page.locator(".word").inner_text()))
    assert len(wrong) <= 2, wrong
    images = [
        capsulenet.own_pictures.data.fit_picture(
            Image.open(f"{tmp_path}/{n}.png"), (28, 28, 1), True
        )
        for n in range(100)
    ]
    result = capsulenet.predict(model, np.stack(images), about["thresholds"])
    assert told == [(str(c), v) for c, v in zip(result.classes, result.verdicts)]
    wrong = []
    for left, width in ((0, 1), (0.12, 0.8)):
        for digit in DIGITS:
            clear(page)
            draw(page, digit, left, width)
            expect(verdict(page)).not_to_contain_text("Draw something")
            page.wait_for_timeout(1000)  # until the last stroke is answered
            if winner(page).inner_text() != digit:
                wrong.append((digit, left, verdict(page).inner_text()))
    assert len(wrong) <= 1, wrong
