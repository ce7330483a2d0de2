import threading

import keras
import numpy as np
import pytest
from helpers import NAMES, SMALL, small_capsnet
from PIL import Image

import capsulenet
from capsnet import dimensions, verdict
from capsnet.data import fit_picture
from capsnet.explorer import Explorer
from capsnet.strokes import STROKES


def about(**changes):
    return {"class_names": NAMES, "like_mnist": False, "thresholds": None, **changes}


@pytest.fixture(scope="module")
def explorer(trained):
    models, said = capsulenet.load_model(f"{trained.save_dir}/trained_model.h5")
    assert said["thresholds"]
    return Explorer(models, said, capsulenet.predict, trained.data[1])


def test_answers_and_verdicts_are_those_of_predict(explorer, trained):
    images = trained.data[1][0].copy()
    images[:4] = np.random.default_rng(1).random(images[:4].shape)  # strange ones
    result = capsulenet.predict(trained.trio[1], images, explorer.thresholds)
    answers = [explorer.answer(image, "") for image in images]
    assert [a.chosen for a in answers] == result.classes.tolist()
    assert [a.verdict for a in answers] == result.verdicts.tolist()
    assert len({a.verdict for a in answers}) > 1
    lengths = np.stack([a.lengths for a in answers])
    np.testing.assert_allclose(lengths, result.lengths, atol=1e-5)
    drawn = np.stack([a.reconstruction for a in answers])
    np.testing.assert_allclose(drawn, result.reconstructions, atol=1e-5)


def test_all_long_capsules_are_told_where_several_are(trained):
    thresholds = verdict.of_several("several")
    several = Explorer(trained.trio, about(thresholds=thresholds), capsulenet.predict)
    images = trained.data[1][0]
    images = np.concatenate([images, np.minimum(images[:-1] + images[1:], 1)])
    result = capsulenet.predict(trained.trio[1], images, thresholds)
    told = [several.answer(image, "").told for image in images]
    assert told == [tuple(result.told(i)) for i in range(len(images))]
    assert {len(t) for t in told} >= {1, 2}


def test_a_network_of_images_that_no_picture_is_is_refused():
    models = small_capsnet_of(2)
    with pytest.raises(ValueError, match="2 channels, and pictures have 1 or 3"):
        Explorer(models, about(), capsulenet.predict)


def small_capsnet_of(channels):
    return capsulenet.CapsNet((12, 12, channels), 3, **SMALL)


def test_pictures_are_fitted_as_predict_fits_them(explorer):
    picture = Image.effect_noise((30, 40), 80)
    answer = explorer.read(picture)
    np.testing.assert_array_equal(answer.image, fit_picture(picture, (12, 12, 1)))
    assert answer.done == "scaled"


def test_a_capsule_is_drawn_as_manipulate_latent_draws_it(explorer, trained):
    x, y = trained.data[1]
    capsules, chosen = explorer.capsules(x[0]), int(y[0].argmax())
    ends = dimensions.MANIPULATIONS[[0, -1]]
    expected = dimensions.manipulated(trained.trio[2], x[:1], y[0].argmax(), ends)[0]
    np.testing.assert_allclose(explorer.pairs(capsules, chosen), expected, atol=1e-5)
    amounts = np.zeros(6)
    for amount, image in zip(ends, expected[3]):
        amounts[3] = amount
        drawn = explorer.turned(capsules, chosen, amounts)
        np.testing.assert_allclose(drawn, image, atol=1e-5)


def test_amounts_are_held_within_the_sliders(explorer):
    capsules = explorer.capsules(np.zeros((12, 12, 1), "float32"))
    wild = [np.inf, -1e300, np.nan, 7, 0, 0]
    held = [0.25, -0.25, 0, 0.25, 0, 0]
    drawn = [explorer.turned(capsules, 1, amounts) for amounts in (wild, held)]
    np.testing.assert_array_equal(*drawn)


def test_dimensions_are_named_as_dimensions_png_names_them(
    explorer, trained, tmp_path, monkeypatch
):
    drawn = {}

    def keep(pairs, effects, names, path):
        drawn["effects"] = effects

    monkeypatch.setattr(dimensions.pictures, "plot_dimensions", keep)
    args = capsulenet.options.complete(capsulenet.build_parser().parse_args([]))
    args.save_dir, args.seed = str(tmp_path), 0
    dimensions.show(trained.trio[2], trained.data[1], args, range(3))
    explorer.learn_names()
    for chosen, effects in enumerate(drawn["effects"]):
        told = explorer.named(None, chosen)
        assert len(told) == 6
        for words, row in zip(told, effects):
            strongest = np.abs(row).argmax()
            assert f"{STROKES[strongest]} {row[strongest]:+.1f}" in words
            assert words.startswith("little, ") == (abs(row[strongest]) < 0.5)


def test_without_test_images_the_picture_names_its_dimensions(trained):
    explorer = Explorer(trained.trio, about(), capsulenet.predict)
    told = explorer.named(explorer.capsules(trained.data[1][0][0]), 0)
    assert len(told) == 6
    for words in told:
        assert words.rsplit(" ", 1)[0] in STROKES
        assert words.endswith(("more", "less"))


def test_the_routing_is_that_of_the_network(explorer, trained):
    image = trained.data[1][0][0]
    found = explorer.routing(image)
    assert len(found) == 2  # iterations
    answer = explorer.answer(image, "")
    np.testing.assert_allclose(found[-1].lengths, answer.lengths, atol=1e-5)
    np.testing.assert_allclose(found[0].by_place, 1 / 3, atol=1e-6)
    assert np.ptp(found[1].by_place) > 1e-4
    assert all(step.picture.dtype == np.uint8 for step in found)
    assert (found[0].picture != found[1].picture).any()


@pytest.mark.parametrize("network", ["PhotoCapsNet", "EfficientCapsNet"])
def test_colour_and_networks_without_decoder_are_explored(network):
    keras.utils.set_random_seed(0)
    build = getattr(capsulenet, network)
    for decoder in (True, False):
        models = build((24, 32, 3), 3, decoder=decoder)
        explorer = Explorer(models, about(), capsulenet.predict)
        explorer.warm_up()
        answer = explorer.read(Image.new("RGB", (50, 50), "red"))
        assert answer.image.shape == (24, 32, 3)
        assert explorer.has_decoder == decoder
        assert (answer.reconstruction is None) == (not decoder)
        assert answer.verdict is None
        for step in explorer.routing(answer.image):
            assert step.picture.ndim == 3 and step.lengths.shape == (3,)


def test_threads_take_turns(explorer, trained, monkeypatch):
    images, inside, most = trained.data[1][0][:8], [], []
    predict = explorer._predict

    def one_at_a_time(*given):
        inside.append(given)
        most.append(len(inside))
        answer = predict(*given)
        inside.pop()
        return answer

    monkeypatch.setattr(explorer, "_predict", one_at_a_time)
    expected = [explorer.answer(image, "").lengths for image in images]
    found = [None] * len(images)

    def ask(n):
        found[n] = explorer.answer(images[n], "").lengths

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)
    assert most == [1] * 16


@pytest.mark.parametrize("conv", ["spectral", "patches"])
def test_one_image_is_convolved_directly(conv):
    models = small_capsnet(conv=conv)
    assert models[1].get_layer("conv1").form == conv
    Explorer(models, about(), capsulenet.predict)
    assert models[1].get_layer("conv1").form == "direct"
    assert models[1].get_layer("primarycap_conv2d").form == "direct"
