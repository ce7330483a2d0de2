import asyncio
import os
import re
import types

import numpy as np
import pytest
from helpers import NAMES, sent, small_capsnet
from PIL import Image

import capsulenet
import demo
from capsnet import page
from capsnet.explorer import Explorer


@pytest.fixture(scope="module")
def explorer(trained):
    models, about = capsulenet.load_model(f"{trained.save_dir}/trained_model.h5")
    return Explorer(models, about, capsulenet.predict, trained.data[1])


@pytest.fixture
def shown(explorer, trained):
    examples = [(image, "an example") for image in trained.data[1][0][:3]]
    return page.Page(explorer, examples, "Weights: here.")


@pytest.fixture
def visit(shown, trained):
    return shown.answers(shown.explorer.answer(trained.data[1][0][0], "as it is"))[-1]


def pole():
    drawn = Image.new("RGB", (280, 280), "black")
    drawn.paste("white", (117, 0, 163, 280))
    return drawn


def built(shown):
    """The page of Gradio, which opens a loop for each event where none runs."""

    async def build():
        return shown.blocks()

    return asyncio.run(build())


def skipped(value):
    return isinstance(value, dict) and set(value) == {"__type__"}


def test_a_drawing_is_answered_and_kept_for_its_visitor_alone(shown):
    *told, visit = shown.drawn(sent(pole()))
    assert "<strong>pole</strong>" in told[0] and ">longest<" in told[1]
    assert told[2].count("<img") == 2
    assert visit.answer.chosen == 1 and visit.capsules is None
    assert shown.drawn("")[-1].answer is None
    assert page.Visit().answer is None


def test_a_file_that_is_no_picture_costs_a_line_and_changes_nothing(shown, tmp_path):
    path = tmp_path / "secret-name.png"
    for write in (
        lambda: path.write_text("text"),
        lambda: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
        lambda: Image.new("1", (10_000, 10_000)).save(path),
        path.unlink,
    ):
        write()
        told, *others = shown.uploaded(str(path))
        assert "Left out: the file: not a readable picture" in told
        assert "secret" not in told and len(told) < 400
        assert len(others) == 4 and all(map(skipped, others))
    told, *others = shown.drawn("text")
    assert "Left out: the drawing" in told and all(map(skipped, others))


def test_an_upload_and_an_example_wipe_the_canvas(shown, tmp_path, trained):
    pole().save(tmp_path / "a.png")
    *_, visit, canvas = shown.uploaded(str(tmp_path / "a.png"))
    assert visit.answer.chosen == 1 and canvas == ""
    *_, visit, canvas = shown.picked(types.SimpleNamespace(index=2))
    np.testing.assert_array_equal(visit.answer.image, trained.data[1][0][2])
    assert canvas == ""


def test_the_winner_s_capsule_is_opened_or_another(shown, visit):
    for which in (-1, 2):
        opened, heading, drawn, dimensions, *rest = shown.opened(visit, which)
        chosen = visit.answer.chosen if which < 0 else which
        assert opened.chosen == chosen and NAMES[chosen] in heading
        assert drawn.count("<img") == 2 and "as it is" in drawn
        sliders, pairs = rest[:6], rest[6:]
        assert [s["value"] for s in sliders] == [0] * 6
        labels = [f"{d}: {n}" for d, n in enumerate(shown.explorer.named(None, chosen))]
        assert [s["label"] for s in sliders] == labels
        assert dimensions["choices"] == [(label, d) for d, label in enumerate(labels)]
        assert len(pairs) == 6 and all(pair.count("<img") == 2 for pair in pairs)


def test_a_turn_changes_the_picture_and_a_reset_brings_it_back(shown, visit):
    visit, _, before, *_ = shown.opened(visit, -1)
    turned = shown.turned(visit, 0, 0.25, 0, 0, 0, 0)
    assert turned != before and "changed" in turned
    after, *zeros = shown.reset(visit)
    assert after == before and zeros == [0] * 6


def test_a_dimension_plays_to_and_fro_and_the_others_stay(shown, visit):
    visit, *_ = shown.opened(visit, -1)
    step, amounts, seen = 0, [0.1] * 6, []
    for _ in range(page.STEPS):
        step, _, *moved = shown.played(visit, step, 4, *amounts)
        assert all(skipped(value) for d, value in enumerate(moved) if d != 4)
        seen.append(moved[4])
    assert max(seen) == 0.25 and min(seen) == -0.25
    assert step == 0 and abs(np.diff(seen)).max() < 0.075


def test_without_a_picture_the_page_asks_for_one(shown):
    nobody = page.Visit()
    assert page.EMPTY in shown.watched(nobody)
    assert page.EMPTY in shown.turned(nobody, *[0] * 6)
    assert page.EMPTY in shown.opened(nobody, -1)[1]
    assert len(shown.opened(nobody, -1)) == 4 + 2 * 6


def test_the_routing_is_shown(shown, visit):
    told = shown.watched(visit)
    assert told.count("After iteration") == told.count("<img") == 2


def test_nothing_of_the_page_is_public_or_unbounded(shown):
    blocks = built(shown)
    config = blocks.get_config_file()
    assert not blocks.analytics_enabled
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    asks = [d for d in config["dependencies"] if d["backend_fn"]]
    # The sliders pass the queue: milliseconds each, and one at a time from each page.
    (sliders,) = (d for d in asks if d["queue"] is False)
    assert len(sliders["targets"]) == shown.explorer.dim and len(asks) > 8
    assert sliders["trigger_mode"] == "always_last"
    assert blocks._queue.max_size == page.WAITING and blocks.api_open is False
    assert all(fn.concurrency_limit == 4 for fn in blocks.fns.values())
    for component in config["components"]:  # what an API's page would show
        component.pop("example_inputs", None)
    text = str(config)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_a_network_without_a_decoder_says_why_there_are_no_sliders():
    models = small_capsnet(decoder=False)
    about = {"class_names": NAMES, "like_mnist": False, "thresholds": None}
    shown = page.Page(Explorer(models, about, capsulenet.predict))
    components = built(shown).get_config_file()["components"]
    kinds = [component["type"] for component in components]
    assert "slider" not in kinds and "gallery" not in kinds
    assert any("without a decoder" in str(c["props"].get("value")) for c in components)
    *told, visit = shown.drawn(sent(pole()))
    assert told[2].count("<img") == 1
    assert shown.watched(visit).count("After iteration") == 2


@pytest.mark.parametrize("names", ["0123456789", "ABCDEFGHIJ"])
def test_digits_are_examples_for_a_network_of_digits_alone(tmp_path, names):
    model = capsulenet.CapsNet((28, 28, 1), 10, 1, filters=4, n_channels=1)[0]
    about = {"architecture": capsulenet.architecture(model), "like_mnist": True}
    about["class_names"] = list(names)
    capsulenet.save_weights(model, str(tmp_path / "w.h5"), about)
    explorer, examples, _ = demo.explore(str(tmp_path / "w.h5"))
    of_digits = names == "0123456789"
    assert bool(examples) == of_digits == (explorer.test is not None)


IPV6 = ["::1"] if os.path.exists("/proc/net/if_inet6") else []


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_refused_before_anything_is_read(host):
    args = demo.build_parser().parse_args(["--host", host])
    with pytest.raises(ValueError, match=f"--host {host}: no address of this"):
        demo.check(args)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", *IPV6])
def test_addresses_of_this_machine_are_taken(host):
    demo.check(demo.build_parser().parse_args(["--host", host]))
