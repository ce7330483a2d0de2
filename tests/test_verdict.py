import hashlib
import json
import math
import os

import numpy as np
import pytest
from helpers import SMALL, small_capsnet, tiny_capsnet
from PIL import Image

import capsulenet
from capsnet import pictures, verdict
from capsnet.data import TrainingBatches
from capsnet.weights import read

EVEN = [n / 10 for n in range(10)]
"""Deciles of a quantity that is even from 0 to 1."""

AS_IT_IS = [*(-np.log10(1 - np.array(EVEN))).tolist(), 1 / math.log(10)]
"""Of a sum of decades, whose strangeness is then the sum itself."""

LENGTHS = {
    "short": [*EVEN, 0.02],
    "others": [0.0] * 2 + [1e9] * 8 + [1.0],  # tells nothing
    "second": [*EVEN, 0.1],
    "together": AS_IT_IS,
}


def of_lengths(*lengths, share=None):
    model, images = tiny_capsnet(), np.zeros((len(lengths), 7, 7, 1))
    return verdict.judged(model, images, np.array(lengths), None, LENGTHS, share)


def test_strangeness_is_the_logarithm_of_a_share_also_beyond_all_training_images():
    found = of_lengths([1.0, 0], [0, 0.5], [0.15, 0], [0.1, 0], [0.05, 0]).strangeness
    expected = [0, -np.log10(0.5), 0.85, 1, 1 + 2.5 / np.log(10)]
    between = -np.mean(np.log10([0.2, 0.1]))  # 0.85 lies between two deciles
    expected[2] = between
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_each_of_three_quantities_makes_an_image_strange():
    images = np.zeros((2, 7, 7, 1))
    nothing = [0.0] + [1e9] * 9 + [1.0]
    for name, lengths, drawn in (
        ("short", [0.5, 0.0], 0),
        ("others", [1.0, 0.5], 0),
        ("error", [1.0, 0.0], 1),
    ):
        thresholds = dict.fromkeys(("short", "others", "second", "error"), nothing)
        thresholds |= {name: [0.0] * 10 + [0.1], "together": AS_IT_IS}
        shown = np.stack([images[0], images[1] + drawn])
        lengths = np.array([[1.0, 0.0], lengths])
        found = verdict.judged(None, images, lengths, shown, thresholds).strangeness
        assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 2


def test_the_share_moves_the_verdicts():
    lengths = [1.0, 0], [0.2, 0], [0.1, 0]  # of 1, 0.2 and 0.1 of the images
    expected = {
        0.0: ["one", "one", "one"],
        0.05: ["one", "one", "unsure"],
        0.15: ["one", "unsure", "none"],
        0.25: ["one", "none", "none"],
        0.35: ["unsure", "none", "none"],
    }
    for share, verdicts in expected.items():
        assert list(of_lengths(*lengths, share=share).verdicts) == verdicts
    assert list(of_lengths([0.0, 0], [0.2, 0]).verdicts) == ["none", "one"]  # 0.01


def test_without_a_decoder_a_long_second_capsule_makes_two_of_what_is_strange():
    lengths = [0.1, 0.01], [0.4, 0.35], [0.9, 0.9]
    verdicts = of_lengths(*lengths, share=0.8).verdicts
    assert list(verdicts) == ["none", "two", "unsure"]


def test_a_prediction_unpacks_as_ever_and_has_no_verdicts_without_thresholds(trained):
    images = trained.data[1][0]
    result = capsulenet.predict(trained.trio[1], images)
    classes, lengths, reconstructions = result
    assert isinstance(result, tuple) and len(result) == 3
    assert classes is result.classes and lengths is result.lengths
    assert reconstructions.shape == images.shape
    assert result.verdicts is None and result.strangeness is None


def batches_of(trained, y=None, seed=1):
    x, labels = trained.data[0]
    return TrainingBatches(x, labels if y is None else y, 10, 0.1, seed)


def test_a_training_keeps_what_its_images_changed_anew_tell(trained):
    path = os.path.join(trained.save_dir, "trained_model.h5")
    kept = read(path)[0]["thresholds"]
    model = trained.trio[0]
    assert verdict.learned(model, batches_of(trained), 6) == kept
    assert verdict.learned(model, batches_of(trained), 5) != kept
    assert verdict.learned(model, batches_of(trained, seed=2), 6) != kept
    others = np.roll(trained.data[0][1], 1, axis=1)
    by_longest = verdict.learned(model, batches_of(trained, others), 6)
    assert by_longest == kept  # and not by the capsule of the label
    _, about = capsulenet.load_model(path)
    assert about["thresholds"] == kept


def test_the_trained_network_knows_its_own_images_from_noise(trained):
    thresholds = verdict.learned(trained.trio[0], batches_of(trained), 6)
    batches = batches_of(trained)
    batches.draw(100)
    own = np.concatenate([batches[index][0][0] for index in range(20)])
    noise = np.random.default_rng(0).random((50, 12, 12, 1), "float32")
    own, noise = (
        capsulenet.predict(trained.trio[1], images, thresholds)
        for images in (own, noise)
    )
    for share in (0.1, 0.3, 0.6):  # as many are as strange as is said
        assert np.mean(10**-own.strangeness < share) == pytest.approx(share, abs=0.08)
    assert np.mean(own.verdicts == "one") > 0.9
    assert np.mean(noise.verdicts == "one") < 0.1
    assert np.median(noise.strangeness) > np.quantile(own.strangeness, 0.99)


def test_two_is_what_the_second_capsule_helps_to_draw(trained):
    images = trained.data[1][0]
    images = np.concatenate([images, np.maximum(images[:-1], images[1:])])
    usual, strange = [0.0] * 10 + [1e9], [0.0] * 10 + [1e-9]
    thresholds = dict.fromkeys(("short", "others", "second", "together"), strange)
    result = capsulenet.predict(trained.trio[1], images, thresholds | {"error": usual})
    second = np.eye(3)[np.argsort(result.lengths)[:, 1]]
    nothing = np.zeros((len(images), 3, 6))
    drawn = trained.trio[2].predict([images, second, nothing], verbose=0)
    both = np.maximum(drawn, result.reconstructions)
    error = [((images - x) ** 4).sum((1, 2, 3)) for x in (result.reconstructions, both)]
    clear = abs(error[1] / error[0] - 1) > 1e-4
    expected = np.where(error[1] < error[0], "two", "none")
    assert {*expected[clear]} == {"two", "none"}
    np.testing.assert_array_equal(result.verdicts[clear], expected[clear])
    # Nor where even both leave more than is usual.
    result = capsulenet.predict(
        trained.trio[1], images, thresholds | {"error": strange}
    )
    assert {*result.verdicts} == {"none"}


def test_few_images_tell_nothing():
    model = small_capsnet()[0]
    x, y = np.zeros((99, 12, 12, 1), "float32"), np.eye(3, dtype="float32")[[0] * 99]
    assert verdict.learned(model, TrainingBatches(x, y, 10), 1) is None


def test_images_that_are_all_alike_are_learned_from_all_the_same():
    model = capsulenet.CapsNet((12, 12, 3), 3, **SMALL, decoder=False)[0]
    x, y = np.zeros((100, 12, 12, 3), "float32"), np.eye(3, dtype="float32")[[0] * 100]
    batches = TrainingBatches(x, y, 10, with_images=False)
    thresholds = json.loads(json.dumps(verdict.learned(model, batches, 1)))
    result = capsulenet.predict(model, x, thresholds)
    assert result.reconstructions is None and {*result.verdicts} == {"one"}


BROKEN = {
    "no dict": [1],
    "empty": {},
    "one is missing": {k: v for k, v in LENGTHS.items() if k != "short"},
    "one too many": {**LENGTHS, "error": LENGTHS["short"]},
    "too short": {**LENGTHS, "short": EVEN},
    "falls": {**LENGTHS, "short": [*EVEN[::-1], 0.1]},
    "no excess": {**LENGTHS, "short": [*EVEN, 0]},
    "infinite": {**LENGTHS, "short": [*EVEN, float("inf")]},
    "huge": {**LENGTHS, "short": [*EVEN, 10**400]},
    "text": {**LENGTHS, "short": "0123456789a"},
    "truth": {**LENGTHS, "short": [*EVEN, True]},
}


@pytest.mark.parametrize("thresholds", BROKEN.values(), ids=BROKEN)
def test_thresholds_that_are_none_are_refused(whole, thresholds):
    model = tiny_capsnet()
    about = {"architecture": capsulenet.architecture(model), "thresholds": thresholds}
    capsulenet.save_weights(model, whole["h5"], about)
    with pytest.raises(ValueError, match="not a CapsNet's weights") as refused:
        capsulenet.load_model(whole["h5"])
    assert "\n" not in str(refused.value)
    if "huge" not in str(refused.value):
        assert len(str(refused.value)) < 300 + len(whole["h5"])


def test_thresholds_of_a_network_with_a_decoder_are_refused_without_one():
    error = {**LENGTHS, "error": [*EVEN, 0.1]}
    images = np.zeros((1, 7, 7, 1))
    with pytest.raises(ValueError, match="thresholds .* must be of others, second"):
        capsulenet.predict(tiny_capsnet(), images, error)


def test_thresholds_may_stand_beside_the_weights_they_are_of(whole):
    path, beside = whole["h5"], os.path.splitext(whole["h5"])[0] + ".json"

    def found(content):
        with open(beside, "w") as file:
            file.write(content)
        return capsulenet.load_model(path)[1]["thresholds"]

    with open(path, "rb") as file:
        told = {"sha256": hashlib.sha256(file.read()).hexdigest()}
    told["thresholds"] = LENGTHS
    assert found(json.dumps(told)) == LENGTHS
    for foreign in (
        "",
        "[]",
        "{}",
        "\0",
        "[" * 9000,
        json.dumps({**told, "sha256": 1}),
    ):
        assert found(foreign) is None
    with pytest.raises(ValueError, match="thresholds"):
        found(json.dumps({**told, "thresholds": BROKEN["falls"]}))
    os.remove(beside)
    os.mkfifo(beside)  # which no one ever writes to
    assert capsulenet.load_model(path)[1]["thresholds"] is None


def test_the_verdict_stands_wherever_a_prediction_is_told(
    tmp_path, call, two_classes, monkeypatch
):
    path, trio = two_classes
    Image.new("L", (17, 17), 200).save(tmp_path / "a.png")
    thresholds = {n: [0.0] * 10 + [1e9] for n in ("short", "others", "second", "error")}
    thresholds["together"] = [-9.0, *[100.0] * 9, 1.0]
    about = {**read(path)[0], "thresholds": thresholds}
    capsulenet.save_weights(trio[0], str(tmp_path / "a.h5"), about)
    (result,) = [capsulenet.predict(trio[1], [[[[0]] * 17] * 17], thresholds)]
    usual = 10 ** -float(result.strangeness[0])
    assert 0.9 < usual < 1
    titles = []
    monkeypatch.setattr(
        pictures, "plot_predictions", lambda *args: titles.extend(args[2])
    )
    args = ("--predict", "a.png", "-w", "a.h5", "--save_dir", "out", "--threshold")
    for share, expected in ((0.01, "one"), (0.5, "unsure"), (0.999, "none")):
        told = json.loads(call(*args, share, "--json").out)
        assert told["verdict"] == expected
        assert told["strangeness"] == pytest.approx(-np.log10(usual), abs=0.01)
        line = call(*args, share).out.splitlines()[1]
        assert line.split()[:2] == [told["class"], expected]
        assert titles[-2:] == [f"{told['class']}: {expected}\nas it is"] * 2
    without = ("--predict", "a.png", "-w", path)
    told = json.loads(call(*without, "--json").out)
    assert told["verdict"] is None and told["strangeness"] is None
    assert call(*without).out.splitlines()[1].split()[1] == "-"
