import csv

import keras
import numpy as np
import pytest
from helpers import assert_same_weights, options, read_log

import capsulenet
from capsnet import data as datasets
from capsnet import told_apart
from capsnet.networks.trio import of_pairs
from capsnet.verdict import of_several

SMALL = {"filters": 8, "n_channels": 4, "dim_primary": 4, "dim_capsule": 6}


def strokes(n):
    """Bars in three directions on 18 x 18 pixels, one a class."""
    y = np.arange(n) % 3
    x = np.zeros((n, 18, 18, 1), "float32")
    x[y == 0, 8:10, 4:14] = 1
    x[y == 1, 4:14, 8:10] = 1
    x[y == 2, 6:12, 6:12] = 0.7
    return x, np.eye(3, dtype="float32")[y]


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    return capsulenet.CapsNet((18, 18, 1), 3, 2, **SMALL)


@pytest.fixture(scope="module")
def pairs():
    return datasets.paired(*strokes(12), count=30, shift=2)


def test_each_of_a_pair_is_drawn_from_its_own_capsule(models, pairs):
    train, evaluate, _ = models
    lengths, drawn = of_pairs(train).predict_on_batch([pairs.x, pairs.labels])
    assert drawn.shape == (12, 2, 18, 18, 1)
    for i in (0, 1):
        alone = train.predict_on_batch([pairs.x, pairs.labels[:, i]])
        np.testing.assert_allclose(drawn[:, i], alone[1], atol=1e-6)
        np.testing.assert_allclose(lengths, alone[0], atol=1e-6)
    reader = told_apart.Reader(evaluate)
    capsules, other = reader.read(pairs.x)
    np.testing.assert_allclose(other, lengths, atol=1e-6)
    np.testing.assert_allclose(
        reader.draw(capsules, pairs.labels[:, 1]), drawn[:, 1], atol=1e-6
    )


def test_a_network_without_a_decoder_is_trained_on_pairs_as_it_is():
    model = capsulenet.CapsNet((18, 18, 1), 3, 2, decoder=False, **SMALL)[0]
    assert of_pairs(model) is model


class Knows:
    """Stands for `Reader`: gives what it was told to give, and draws nothing."""

    decoder = None

    def __init__(self, *lengths):
        self.lengths = iter(lengths)

    def read(self, images):
        lengths = next(self.lengths)
        return lengths[:, :, None], lengths


def test_what_is_printed_is_of_all_blocks(monkeypatch, pairs, capsys, tmp_path):
    blocks = list(pairs.blocks())
    lengths = [block.y * 0.9 for block in blocks]
    lengths[2][0] = [0.9, 0.8, 0.7] * (1 - lengths[2][0]) + lengths[2][0] / 9
    monkeypatch.setattr(told_apart, "Reader", lambda model: Knows(*lengths))
    accuracy = told_apart.test(
        None, pairs, capsulenet.options.complete(options(tmp_path))
    )
    assert accuracy == pytest.approx(29 / 30)
    said = capsys.readouterr().out
    assert "Test error: 3.33% (1 of 30 pictures: the two longest capsules" in said
    assert "Digits found: 98.33% of those shown" in said


def test_training_testing_and_resuming_on_pairs(tmp_path, capsys, figures):
    x, y = strokes(60)
    data = (x, y), datasets.paired(*strokes(12), count=30, shift=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = {"pairs": True, "overlap_shift": 2, "seed": 0, "epochs": 2, "lr": 0.01}

    def train(folder, **more):
        keras.utils.set_random_seed(0)
        models = capsulenet.CapsNet((18, 18, 1), 3, 2, **SMALL)
        capsulenet.train(models[0], data, options(folder, **args, **more))
        return models

    models = train(whole)
    train(parts, pause_after=1)
    resumed = train(parts, resume=True)
    assert not (parts / "run-1").exists()  # it went on, and did not start again
    assert_same_weights(resumed[0], models[0])
    first, last = read_log(whole)
    assert last["loss"] < first["loss"] and "val_capsnet_accuracy" in last

    (_, model, _), about = capsulenet.load_model(str(whole / "trained_model.h5"))
    assert about["thresholds"] == of_several("two")
    capsys.readouterr()
    assert 0 <= capsulenet.test(model, data[1], options(whole)) <= 1
    said = capsys.readouterr().out
    assert "of 30 pictures" in said and "Reconstruction error: " in said
    titles = [part.get_suptitle() for part in figures[-1].subfigs]
    assert titles[-1] in told_apart.BANDS.values()


@pytest.fixture
def some_long(models):
    """The evaluation model where capsules are long, and images with 0 to 3 such."""
    digitcaps = models[1].get_layer("digitcaps")
    before, reader = digitcaps.get_weights(), told_apart.Reader(models[1])
    noise = np.random.default_rng(0).random((12, 18, 18, 1)) / 2
    x = np.minimum(strokes(12)[0] + noise, 1)

    def counts(factor):
        digitcaps.set_weights([factor * w for w in before])
        return (reader.read(x)[1] >= 0.5).sum(1)

    counts(max(range(60, 300, 20), key=lambda factor: len(set(counts(factor)))))
    yield models[1], x
    digitcaps.set_weights(before)


def test_verdicts_of_such_a_network_count_the_long_capsules(some_long):
    result = capsulenet.predict(*some_long, of_several("two"))
    counts = (result.lengths >= 0.5).sum(1)
    expected = [("none", "one", "two", "unsure")[count] for count in counts]
    assert result.verdicts.tolist() == expected and result.strangeness is None
    assert len(set(expected)) > 2


@pytest.mark.parametrize("shown", ["two", "several"])
def test_what_is_told_of_a_picture_is_what_is_drawn_of_it(some_long, shown):
    result = capsulenet.predict(*some_long, of_several(shown))
    reader = told_apart.Reader(some_long[0])
    capsules, lengths = reader.read(some_long[1])
    long = lengths >= 0.5
    for i in range(12):
        told = result.told(i)
        assert list(told) == list(np.argsort(-lengths[i])[: max(1, long[i].sum())])
        of = np.zeros((len(told), 3), "float32")
        of[range(len(told)), told] = 1
        if shown == "several":
            expected = reader.draw(capsules[[i]], of.sum(0)[None])[0]
        else:
            alone = reader.draw(np.repeat(capsules[[i]], len(told), 0), of)
            expected = np.minimum(alone.sum(0), 1)
        np.testing.assert_allclose(result.reconstructions[i], expected, atol=1e-5)


def test_pictures_of_any_number_of_classes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = (rng.random((80, 3)) < 0.5).astype("float32")
    bars = np.eye(3, dtype="float32") @ strokes(3)[0].reshape(3, -1)
    x = np.minimum(y @ bars, 1).reshape(-1, 18, 18, 1)
    arrays = {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]}
    np.savez(tmp_path / "several.npz", **arrays)
    data = datasets.load(str(tmp_path / "several.npz"))
    np.testing.assert_array_equal(data.train[1], y[:60])
    models = capsulenet.CapsNet((18, 18, 1), 3, 2, **SMALL)
    args = options(tmp_path, seed=0, epochs=2, lr=0.01)
    capsulenet.train(models[0], (data.train, data.test), args)
    assert "val_capsnet_accuracy" in read_log(tmp_path)[-1]
    capsulenet.test(models[1], data.test, args)
    said = capsys.readouterr().out
    assert "of 20 pictures: the capsules of at least 0.5 are not those" in said
    assert (tmp_path / "real_and_recon.png").exists()


def test_test_pictures_that_show_nothing_are_no_error(tmp_path, call, small_network):
    x, y = np.zeros((30, 18, 18, 1)), np.ones((30, 3))
    arrays = {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": 0 * y[:4]}
    np.savez(tmp_path / "nothing.npz", **arrays)
    path = str(tmp_path / "w.h5")
    capsulenet.save_weights(small_network((18, 18, 1), 3, 3)[0], path)
    flags = ["-t", "-w", path, "--dataset", "nothing.npz", "--save_dir", "out"]
    said = call(*flags).out
    assert "nan" not in said and "no test picture shows a class" in said
    for digit in ("1", "all"):
        with pytest.raises(SystemExit):
            call(*flags, "--digit", digit)


@pytest.mark.parametrize("several", ["train", "test"])
def test_training_and_test_count_alike_where_one_of_them_shows_several(
    tmp_path, small_network, call, several
):
    rng = np.random.default_rng(0)
    one = np.eye(3, dtype="uint8")[np.arange(12) % 3]
    labels = {"y_train": one, "y_test": one, f"y_{several}": one | one[::-1] | one[0]}
    pixels = {f"x_{split}": rng.random((12, 17, 17)) for split in ("train", "test")}
    np.savez(tmp_path / "several.npz", **pixels, **labels)
    call("--dataset", "several.npz", "--epochs=1", "--save_dir=out")
    with open(tmp_path / "out" / "log.csv") as file:
        (row,) = csv.DictReader(file)
    printed = call("--dataset", "several.npz", "-t", "-w", "out/trained_model.h5").out
    assert "of 12 pictures: the capsules of at least 0.5 are not those" in printed
    wrong = int(printed.split(" of 12 pictures")[0].split("(")[-1])
    assert 1 - wrong / 12 == pytest.approx(float(row["val_capsnet_accuracy"]))


@pytest.mark.parametrize(
    "labels, why",
    [
        (np.full((4, 3), 2), "must be zeros and ones"),
        (np.ones((4, 1)), "one class only"),
        (np.zeros((4, 3)), "no training image shows any class"),
        (np.ones((4, 2, 2)), "of shape \\(n, n_class\\)"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, why):
    x, _ = strokes(4)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    with pytest.raises(ValueError, match=why):
        datasets.load(str(tmp_path / "a.npz"))


def test_pairs_of_mnist_s_digits_are_known_as_such_by_any_name(tmp_path):
    (x, y), _ = capsulenet.load_mnist()
    x, y = datasets.pad(x[:200]), y[:200]
    data = (x, y), datasets.paired(x, y, count=20)
    model = capsulenet.CapsNet((36, 36, 1), 10, 1, **SMALL, decoder=False)[0]
    capsulenet.train(model, data, options(tmp_path, pairs=True, batch_size=100))
    _, about = capsulenet.load_model(str(tmp_path / "trained_model.h5"))
    assert about["like_mnist"]
