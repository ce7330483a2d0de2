import gzip
import importlib.util
import json
import os
import pathlib
import types

import h5py
import keras
import numpy as np
import pytest
from conftest import (
    SMALL,
    Records,
    average_of,
    classifier,
    options,
    read_log,
    small_capsnet,
    small_data,
)
from keras import ops
from PIL import Image

import capsulenet
from capsnet import machine, routing, spectral
from capsnet import pictures as drawing
from capsnet.data import TrainingBatches
from capsnet.training import checkpoints, resources
from capsulenet import (
    CapsNet,
    MarginLoss,
    load_weights,
    manipulate_latent,
    margin_loss,
    save_weights,
    test,
    train,
)

test.__test__ = False  # the library's function, not a test


def assert_same_weights(a, b):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


# The model ---------------------------------------------------------------------------


def test_the_model_on_mnist_is_the_paper_s():
    model, evaluation, manipulation = CapsNet((28, 28, 1), 10, 3, batch_size=100)
    assert model.count_params() == 8_215_568
    shapes = {
        layer.name: [tuple(weight.shape) for weight in layer.weights]
        for layer in model.layers
        if layer.weights
    }
    assert shapes == {
        "conv1": [(9, 9, 1, 256), (256,)],
        "primarycap_conv2d": [(9, 9, 256, 256), (256,)],
        "digitcaps": [(10, 1152, 16, 8)],
        "decoder": [
            *[(160, 512), (512,), (512, 1024), (1024,)],
            *[(1024, 784), (784,)],
        ],
    }
    assert model.get_layer("decoder").layers[-1].name == "out_recon"
    assert model.output_shape == [(None, 10), (None, 28, 28, 1)]
    assert evaluation.output_shape == model.output_shape
    assert manipulation.output_shape == (None, 28, 28, 1)
    assert_same_weights(model, evaluation)
    assert_same_weights(model, manipulation)


def test_the_three_models_agree():
    model, evaluation, manipulation = small_capsnet()
    (x, _), _ = small_data(5)
    lengths, by_longest = evaluation.predict(x, verbose=0)
    longest = np.eye(3, dtype="float32")[lengths.argmax(1)]
    lengths_again, by_label = model.predict([x, longest], verbose=0)
    np.testing.assert_allclose(lengths_again, lengths, atol=1e-6)
    np.testing.assert_allclose(by_label, by_longest, atol=1e-6)
    silent = manipulation.predict([x, longest, np.zeros((5, 3, 6))], verbose=0)
    np.testing.assert_allclose(silent, by_label, atol=1e-6)
    noisy = manipulation.predict([x, longest, np.ones((5, 3, 6))], verbose=0)
    assert abs(noisy - silent).max() > 1e-3


@pytest.mark.parametrize("conv", ["direct", "spectral", "patches"])
def test_the_form_of_the_convolutions_does_not_change_the_model(conv):
    (x, _), _ = small_data(5)
    automatic = small_capsnet()[1]
    other = small_capsnet(conv=conv)[1]
    other.set_weights(automatic.get_weights())
    for a, b in zip(automatic.predict(x, verbose=0), other.predict(x, verbose=0)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture
def on_accelerator(monkeypatch):
    """Have everything take the way that it takes on an accelerator, on this CPU."""
    for module in (routing, spectral, machine, resources):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    if keras.backend.backend() == "tensorflow":  # Keras itself looks for a GPU
        monkeypatch.setattr(resources, "jit_compile", lambda: True)
        tf32 = "capsnet.spectral._products_are_rounded"  # a setting of GPUs
        monkeypatch.setattr(tf32, lambda: False)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="has no XLA")
def test_xla_takes_the_same_steps(on_accelerator, monkeypatch):
    (x, y), _ = small_data(10)
    losses, weights = [], None
    for conv, block_bytes, jit_compile in (
        ("patches", 2**26, keras.backend.backend() == "jax"),
        ("direct", 2**26, True),
        ("spectral", 400, True),  # several blocks
    ):
        monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
        model = small_capsnet(conv=conv, routings=3)[0]
        weights = weights or model.get_weights()
        model.set_weights(weights)
        optimizer, loss = keras.optimizers.SGD(0.1), [MarginLoss(), "mse"]
        model.compile(optimizer, loss, jit_compile=jit_compile)
        losses.append([model.train_on_batch([x, y], [y, x])[0] for _ in range(3)])
        assert model.jit_compile == jit_compile
    assert losses[0][2] < losses[0][0]
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others compile")
def test_xla_takes_the_same_step_of_the_full_network():
    (x, y), _ = capsulenet.load_mnist()
    x, y, losses, weights = x[:100], y[:100], [], None
    for jit_compile in (True, False):
        model = CapsNet((28, 28, 1), 10, 3)[0]
        weights = weights or model.get_weights()
        model.set_weights(weights)
        model.compile("adam", [MarginLoss(), "mse"], jit_compile=jit_compile)
        losses.append([model.train_on_batch([x, y], [y, x])[0] for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_images_too_small_are_refused_with_the_smallest_size():
    with pytest.raises(ValueError, match="16 x 28 pixels .* at least 17 x 17"):
        CapsNet((16, 28, 1), 10, 3)
    with pytest.raises(ValueError, match="routings .* not 0"):
        small_capsnet(routings=0)


def test_half_precision_keeps_outputs_and_weights_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_capsnet()[0]
    finally:
        keras.config.set_dtype_policy("float32")
    exact = small_capsnet()[0]
    exact.set_weights(model.get_weights())
    (x, y), _ = small_data(6)
    for a, b in zip(model.predict([x, y], verbose=0), exact.predict([x, y], verbose=0)):
        assert a.dtype == "float32"
        assert 0 < distance(a, b) < 0.01
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert {keras.ops.dtype(model.get_layer("conv1")(x))} == {"bfloat16"}
    before, steps = model.get_weights(), []
    for either in (model, exact):
        sgd = keras.optimizers.SGD(1000.0)  # beyond the rounding of weights
        either.compile(sgd, [MarginLoss(), "mse"], loss_weights=[1.0, 10.0])
        either.train_on_batch([x, y], [y, x])
        steps.append([a - b for a, b in zip(either.get_weights(), before)])
    for half, whole in zip(*steps, strict=True):
        assert half.dtype == "float32"
        assert 0 < distance(half, whole) < 0.1


def distance(a, b):
    """How far `a` is from `b`, in lengths of `b`."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# The loss ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["", "_multi"])
def test_margin_loss_gives_the_recorded_values(recorded, which):
    y_true, y_pred = recorded[f"margin_true{which}"], recorded["margin_pred"]
    expected = recorded[f"margin_loss{which}"]
    mean = ops.mean(margin_loss(y_true, y_pred))
    assert float(mean) == pytest.approx(expected, abs=1e-6)
    assert float(MarginLoss()(y_true, y_pred)) == pytest.approx(expected, abs=1e-6)


def test_margin_loss_of_known_lengths():
    y_true = np.array([[1, 0, 0]] * 2, "float32")
    losses = margin_loss(y_true, [[0.9, 0.1, 0.0], [0.4, 0.3, 0.1]])
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), [0, 0.25 + 0.02], atol=1e-7
    )
    other = MarginLoss(m_plus=1.0, m_minus=0.0, lambda_=2.0)
    again = MarginLoss.from_config(other.get_config())
    for loss in (other, again):  # one example: 0.6^2 + 2 (0.3^2 + 0.1^2)
        assert float(loss(y_true[:1], [[0.4, 0.3, 0.1]])) == pytest.approx(0.56)


@pytest.mark.parametrize("loss", [margin_loss, MarginLoss()], ids=["function", "class"])
def test_margin_loss_takes_the_weights_that_keras_gives(loss, tmp_path):
    """A model from lengths to lengths, on an example that is right and one wrong."""
    lengths = np.array([[0.9, 0.1], [0.9, 0.1]], "float32")
    y = np.array([[1, 0], [0, 1]], "float32")
    wrong = 0.5 * 0.8**2 + 0.8**2
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(loss=loss)
    model.save(tmp_path / "compiled.keras")
    loaded = keras.saving.load_model(tmp_path / "compiled.keras")
    for each in (model, loaded):
        for weights, expected in (
            (None, wrong / 2),
            ([1.0, 0.0], 0),
            ([0.0, 1.0], wrong / 2),
        ):
            weights = None if weights is None else np.array(weights)
            value = each.evaluate(lengths, y, sample_weight=weights, verbose=0)
            assert value == pytest.approx(expected, abs=1e-6)


# Training ----------------------------------------------------------------------------


NAMES = ["bar", "pole", "block"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network trained for six epochs, its models, data and save directory."""
    keras.utils.set_random_seed(0)
    save_dir = tmp_path_factory.mktemp("trained")
    trio, data = small_capsnet(), small_data(200)
    args = options(save_dir, epochs=6, lr_decay=0.9, seed=1, class_names=NAMES)
    returned = train(trio[0], data, args)
    assert returned is trio[0]
    return types.SimpleNamespace(trio=trio, data=data, save_dir=str(save_dir))


def test_training_leaves_its_files(trained):
    expected = {"log.csv", "log.png", "trained_model.h5", "best.weights.h5"}
    found = set(os.listdir(trained.save_dir))
    assert expected <= found
    assert not [name for name in found if ".tmp" in name]
    if all(map(importlib.util.find_spec, ("tensorflow", "tensorboard"))):
        logs = pathlib.Path(trained.save_dir, "tensorboard-logs")
        for part in ("train", "validation"):
            (events,) = (logs / part).glob("events*")
            assert b"epoch_loss" in events.read_bytes()


def test_the_log_has_one_row_an_epoch(trained):
    log = read_log(trained.save_dir)
    assert [row["epoch"] for row in log] == list(range(6))
    assert set(log[0]) == {
        "epoch",
        "learning_rate",
        "seconds",
        *(
            prefix + name
            for prefix in ("", "val_")
            for name in ("loss", "capsnet_loss", "decoder_loss", "capsnet_accuracy")
        ),
    }
    rates = [row["learning_rate"] for row in log]
    np.testing.assert_allclose(rates, [0.005 * 0.9**n for n in range(6)], rtol=1e-5)
    for row in log:
        total = row["val_capsnet_loss"] + 0.392 * row["val_decoder_loss"]
        assert row["val_loss"] == pytest.approx(total, rel=1e-4)
        assert row["seconds"] > 0


def test_training_learns(trained):
    log = read_log(trained.save_dir)
    assert log[-1]["val_loss"] < log[0]["val_loss"]
    assert log[-1]["val_capsnet_accuracy"] > 0.8


def test_validation_figures_are_exact_with_a_smaller_last_batch(trained):
    x, y = trained.data[1]  # 23 images, batches of 10
    lengths, recon = trained.trio[0].predict([x, y], verbose=0)
    last = read_log(trained.save_dir)[-1]
    assert last["val_capsnet_loss"] == pytest.approx(
        float(ops.mean(margin_loss(y, lengths))), rel=1e-4
    )
    assert last["val_decoder_loss"] == pytest.approx(
        np.mean((recon - x) ** 2), rel=1e-4
    )
    accuracy = np.mean(lengths.argmax(1) == y.argmax(1))
    assert last["val_capsnet_accuracy"] == pytest.approx(accuracy, rel=1e-5)


def test_the_weights_written_are_the_trained_ones(trained):
    model = small_capsnet()[2]
    load_weights(model, os.path.join(trained.save_dir, "trained_model.h5"))
    assert_same_weights(model, trained.trio[0])
    load_weights(model, os.path.join(trained.save_dir, "best.weights.h5"))


def test_a_seed_makes_training_repeatable(tmp_path):
    logs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        keras.utils.set_random_seed(0)
        args = options(tmp_path / name, seed=seed, epochs=2)
        train(classifier(), small_data(), args)
        logs.append([{**row, "seconds": 0} for row in read_log(tmp_path / name)])
    for a, b in zip(logs[0], logs[1]):
        assert a == pytest.approx(b, rel=1e-5)
    assert logs[0][1]["loss"] != pytest.approx(logs[2][1]["loss"], rel=1e-4)


def test_the_way_of_an_accelerator_ends_with_the_same_weights(
    tmp_path, request, monkeypatch
):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", 100)  # several blocks
    drawn, draw = [], TrainingBatches.draw
    monkeypatch.setattr(
        TrainingBatches,
        "draw",
        lambda self, epoch: (drawn.append(self), draw(self, epoch)),
    )
    data, models, weights = small_data(80), [], None
    for place in ("cpu", "accelerator"):
        if place == "accelerator":
            request.getfixturevalue("on_accelerator")
        model = small_capsnet()[0]
        weights = weights or model.get_weights()
        model.set_weights(weights)
        args = options(tmp_path / place, seed=3, batch_size=2, lr=0.001, epochs=2)
        models.append(train(model, data, args))
    backend = keras.backend.backend()
    assert models[1].get_layer("primarycap_conv2d").form == "direct"
    if backend != "torch":  # two of 40 steps at once
        assert models[1].steps_per_execution == 2 and models[1].jit_compile
    if backend != "tensorflow":
        assert keras.ops.is_tensor(drawn[-1].x)
    logs = [without_seconds(read_log(tmp_path / n)) for n in ("cpu", "accelerator")]
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_epoch_is_trained_on_its_own_order(tmp_path, monkeypatch):
    calls = set()
    original = TrainingBatches.__getitem__

    def record(batches, index):
        calls.add((batches.order.tobytes(), index))
        return original(batches, index)

    monkeypatch.setattr(TrainingBatches, "__getitem__", record)
    data = small_data()
    train(classifier(), data, options(tmp_path, seed=7, epochs=3))
    expected = TrainingBatches(*data[0], 10, seed=7, shift_fraction=0.1)
    for epoch in range(3):
        expected.draw(epoch)
        assert {(expected.order.tobytes(), index) for index in range(5)} <= calls


def without_seconds(log):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log]


@pytest.mark.parametrize(
    "build, changes",
    [
        (lambda: small_capsnet()[0], {"threads": 4, "rotation": 10.0, "zoom": 0.1}),
        (classifier, {"schedule": "cosine", "ema": 0.9}),
        (classifier, {"optimizer": "lamb"}),
    ],
    ids=["threads and rotation", "cosine and ema", "lamb"],
)
def test_a_run_in_parts_ends_as_one_in_one_piece(tmp_path, build, changes):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = {"epochs": 3, "seed": 7, **changes}
    data, models = small_data(), [build() for _ in range(4)]
    models[1].set_weights(models[0].get_weights())  # the later ones are restored
    train(models[0], data, options(whole, **args))
    for model in models[1:]:
        train(model, data, options(parts, resume=True, pause_after=1, **args))
    log, expected = (without_seconds(read_log(path)) for path in (parts, whole))
    assert [row["epoch"] for row in log] == [0, 1, 2]
    for row, other in zip(log, expected):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    ends = [build() for _ in range(2)]
    for end, path in zip(ends, (whole, parts)):
        load_weights(end, str(path / "trained_model.h5"))
    for a, b in zip(ends[0].get_weights(), ends[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_averaged_weights_are_validated_kept_and_what_a_run_ends_with(
    tmp_path, with_callback
):
    recorded, model = with_callback(Records()), small_capsnet()[0]
    (x, y), data = small_data()[1], small_data()
    train(model, data, options(tmp_path, seed=0, epochs=3, lr=0.01, ema=0.8))
    averages = [average_of(recorded.steps[: 5 * n], 0.8) for n in (1, 2, 3)]
    log = read_log(tmp_path)
    for row, average in zip(log, averages, strict=True):
        model.set_weights(average)
        loss = MarginLoss()(y, model.predict([x, y], verbose=0)[0])
        loss = ops.convert_to_numpy(loss)
        assert row["val_capsnet_loss"] == pytest.approx(loss, rel=1e-4)
    best = np.argmax([row["val_capsnet_accuracy"] for row in log])
    expected = {
        "trained_model.h5": averages[-1],
        "best.weights.h5": averages[best],
        "checkpoint-0003.weights.h5": recorded.steps[-1],  # to go on from
    }
    for name, weights in expected.items():
        load_weights(model, str(tmp_path / name))
        for a, b in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert (
        max(abs(a - b).max() for a, b in zip(averages[-1], recorded.steps[-1])) > 0.01
    )


def test_averaging_does_not_change_the_steps(tmp_path, with_callback):
    recorded = with_callback(Records())
    for ema in (0.0, 0.8):
        keras.utils.set_random_seed(0)
        args = options(tmp_path / str(ema), seed=0, epochs=2, ema=ema)
        train(small_capsnet()[0], small_data(), args)
    plain, averaged = recorded.steps[:10], recorded.steps[10:]
    for step, other in zip(plain, averaged, strict=True):
        for a, b in zip(step, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_run_is_not_resumed_with_other_options(tmp_path):
    train(classifier(), small_data(), options(tmp_path, seed=0))
    with pytest.raises(ValueError, match=r"--lr 0.1 \(there: 0.005\)"):
        train(classifier(), small_data(), options(tmp_path, lr=0.1, resume=True))


def test_resuming_nothing_says_so_and_starts(tmp_path, capsys):
    train(classifier(), small_data(), options(tmp_path, resume=True))
    assert "Nothing to resume" in capsys.readouterr().out
    assert len(read_log(tmp_path)) == 1


def test_resuming_a_finished_run_trains_no_more(tmp_path):
    train(classifier(), small_data(), options(tmp_path, seed=0))
    model = classifier()
    train(model, small_data(), options(tmp_path, resume=True))
    assert len(read_log(tmp_path)) == 1
    ended = classifier()
    load_weights(ended, str(tmp_path / "trained_model.h5"))
    assert_same_weights(model, ended)


@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "no record"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, harm, capsys):
    train(classifier(), small_data(), options(tmp_path, seed=0, epochs=3))
    last = tmp_path / "checkpoint-0003.weights.h5"
    record = tmp_path / "checkpoint-0003.json"
    if harm == "flipped":
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    elif harm == "truncated":
        last.write_bytes(last.read_bytes()[:1000])
    elif harm == "missing":
        last.unlink()
    else:
        record.write_text("{")
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 2
    assert "checkpoint-0003" in capsys.readouterr().out
    args = options(tmp_path, seed=0, epochs=3, resume=True)
    train(classifier(), small_data(), args)
    assert [row["epoch"] for row in read_log(tmp_path)] == [0, 1, 2]
    assert checkpoints.last_checkpoint(tmp_path)["epochs"] == 3


def test_the_last_two_checkpoints_are_kept(trained):
    names = [n for n in os.listdir(trained.save_dir) if n.startswith("checkpoint")]
    assert sorted(names) == [
        *("checkpoint-0005.json", "checkpoint-0005.weights.h5"),
        *("checkpoint-0006.json", "checkpoint-0006.weights.h5"),
    ]


def test_a_classifier_without_capsules_is_trained_by_the_same_function(tmp_path):
    x = keras.Input((12, 12, 1))
    y = keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(x))
    args = options(tmp_path, epochs=5, lr=0.02, lr_decay=0.9, seed=0)
    train(keras.Model(x, y), small_data(200), args)
    accuracy = [row["val_accuracy"] for row in read_log(tmp_path)]
    assert accuracy[-1] > 0.9


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("epochs", -1, "--epochs -1"),
        ("batch_size", 0, "--batch_size 0"),
        ("lr", -0.1, "--lr -0.1"),
        ("lr", float("nan"), "--lr nan"),
        ("shift_fraction", 1.5, "--shift_fraction 1.5"),
        ("rotation", 181.0, "--rotation 181.0: must be 0 to 180 degrees"),
        ("zoom", 1.0, "--zoom 1.0: must be at least 0 and below 1"),
        ("lam_recon", -1, "--lam_recon -1"),
    ],
)
def test_options_that_can_not_be_are_refused(tmp_path, option, value, message):
    args = options(tmp_path / "new", **{option: value})
    with pytest.raises(ValueError, match=message):
        train(small_capsnet()[0], small_data(), args)
    assert not os.path.exists(tmp_path / "new")


@pytest.mark.parametrize(
    "names", [["a"], [0, 1, 2], ["a", "b", "\x1b[2J"]], ids=["few", "numbers", "codes"]
)
def test_class_names_that_no_file_may_have_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match="class_names .* must be 3 strings"):
        train(classifier(), small_data(), options(tmp_path / "new", class_names=names))
    assert not (tmp_path / "new").exists()


def test_weights_of_half_precision_are_refused_before_they_are_trained(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = small_capsnet()[0]
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        train(model, small_data(), options(tmp_path / "new"))


def test_paths_may_be_those_of_pathlib(tmp_path):
    save_weights(classifier(), str(tmp_path / "a.h5"))
    args = options(tmp_path, seed=0, weights=tmp_path / "a.h5")
    args.save_dir = tmp_path / "run"
    train(classifier(), small_data(), args)
    assert checkpoints.last_checkpoint(args.save_dir)["epochs"] == 1


def test_a_save_directory_that_can_not_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't be written"):
        train(small_capsnet()[0], small_data(), options(tmp_path / "file" / "dir"))


# Test and manipulation ---------------------------------------------------------------


def test_test_counts_and_draws(trained, tmp_path, capsys):
    x, y = trained.data[1]
    accuracy = test(trained.trio[1], (x, y), options(tmp_path))
    lengths, recon = trained.trio[1].predict(x, verbose=0)
    assert accuracy == pytest.approx(np.mean(lengths.argmax(1) == y.argmax(1)))
    printed = capsys.readouterr().out
    assert f"Test acc: {accuracy:.4f}\n" in printed
    assert f"Test error: {100 - 100 * accuracy:.2f}%" in printed
    with Image.open(tmp_path / "real_and_recon.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * 12, 23 * 12)
    np.testing.assert_array_equal(pixels[:12, :12], np.round(x[0, :, :, 0] * 255))
    expected = np.round(recon[1, :, :, 0] * 255)
    np.testing.assert_allclose(pixels[12:, 12:24], expected, atol=1)


def test_manipulation_changes_one_dimension_a_row(trained, tmp_path):
    x, y = trained.data[1]
    manipulate_latent(trained.trio[2], (x, y), options(tmp_path, seed=0))
    with Image.open(tmp_path / "manipulate-1.png") as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (6 * 12, 11 * 12)
    tiles = pixels.reshape(6, 12, 11, 12).transpose(0, 2, 1, 3)
    (chosen,) = np.random.default_rng(0).permutation(np.flatnonzero(y[:, 1]))[:1]
    noise = np.zeros((6, 11, 3, 6))
    for d in range(6):
        for column in range(11):
            noise[d, column, 1, d] = -0.25 + 0.05 * column
    inputs = [np.repeat(a[chosen : chosen + 1], 66, axis=0) for a in (x, y)]
    expected = trained.trio[2].predict([*inputs, noise.reshape(66, 3, 6)], verbose=0)
    expected = 255 * expected.reshape(6, 11, 12, 12)
    np.testing.assert_allclose(tiles, expected, atol=1)
    assert (abs(expected[:, 10] - expected[:, 0]).max((1, 2)) > 3).all()


def test_all_digits_are_manipulated_and_their_dimensions_named(
    trained, tmp_path, monkeypatch
):
    drawn = {}

    def record(pairs, effects, names, path):
        drawn.update(pairs=np.array(pairs), effects=np.array(effects), names=names)

    monkeypatch.setattr(drawing, "plot_dimensions", record)
    x, y = trained.data[1]
    args = options(tmp_path, seed=0, digit="all", class_names=["a", "b", "c"])
    some = np.argmax(y, 1) != 1  # a class that no image shows is left out
    manipulate_latent(trained.trio[2], (x[some], y[some]), args)
    pictures = ["manipulate-0.png", "manipulate-2.png"]
    assert sorted(os.listdir(tmp_path)) == pictures
    assert drawn["names"] == ["a", "c"]
    assert drawn["pairs"].shape == (2, 6, 2, 12, 12, 1)
    assert drawn["effects"].shape == (2, 6, 6)
    for pair, picture in zip(drawn["pairs"], pictures):
        assert np.isfinite(pair).all()
        assert (pair[:, 0] != pair[:, 1]).any(axis=(1, 2, 3)).all()
        with Image.open(tmp_path / picture) as image:
            assert image.size == (11 * 12, 6 * 12)
    assert np.isfinite(drawn["effects"]).all() and (drawn["effects"] != 0).any()


def test_a_dimension_that_moves_the_strokes_down_is_named_so(tmp_path, monkeypatch):
    drawn = {}

    def record(pairs, effects, names, path):
        drawn.update(effects=np.array(effects))

    def reconstruct(inputs):
        images, labels, noise = inputs
        pixels = np.round(4 * (noise * labels[:, :, None]).sum(1)).astype(int)
        moves = zip(images, pixels[:, 0], pixels[:, 1])
        return np.stack([np.roll(x, (i, -2 * j), (0, 1)) for x, i, j in moves])

    x = np.zeros((60, 20, 20, 1), "float32")
    rows = np.random.default_rng(0).integers(6, 11, 60)
    for image, row in zip(x, rows):
        image[row : row + 4, 8:11] = 1
    x[::2] = np.roll(x[::2], 1, axis=2)
    y = np.eye(3, dtype="float32")[np.arange(60) % 3]
    model = types.SimpleNamespace(
        inputs=[x[:1], y[:1], np.zeros((1, 3, 2))],
        layers=[],
        predict_on_batch=reconstruct,
    )
    monkeypatch.setattr(drawing, "plot_dimensions", record)
    args = options(tmp_path, digit="all", seed=0, shift_fraction=0.0)
    manipulate_latent(model, (x, y), args)
    expected = np.zeros((3, 2, 6))
    expected[:, 0, 4] = 2 / np.std(rows)  # one pixel up, one down
    expected[:, 1, 5] = -4 / 0.5
    np.testing.assert_allclose(drawn["effects"], expected, atol=1e-4)


@pytest.mark.parametrize("digit", [3, -1])
def test_a_digit_that_is_no_class_is_refused(trained, tmp_path, digit):
    args = options(tmp_path, digit=digit)
    with pytest.raises(ValueError, match=f"--digit {digit}: the classes are 0 to 2"):
        manipulate_latent(trained.trio[2], trained.data[1], args)


# Weights -----------------------------------------------------------------------------


def changed(model):
    """The model with weights that no initializer gives."""
    model.set_weights([np.random.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("saver", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras", "keras2.h5"])
def test_every_format_loads_into_all_three_models(tmp_path, saver, name):
    model = changed(small_capsnet()[saver])
    path = str(tmp_path / name)
    if name == "a.h5":
        save_weights(model, path)
    elif name == "a.weights.h5":
        model.save_weights(path)
    elif name == "a.keras":
        model.save(path)
    else:
        write_keras_2_model(model, path)
    trio = small_capsnet()
    load_weights(trio[(saver + 1) % 3], path)
    for other in trio:
        assert_same_weights(other, model)


def write_keras_2_model(model, path):
    """A whole model as Keras 2 writes it: all layers, the weights one group deeper."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = root.create_group(layer.name)
            names = [f"{layer.name}/{n}/kernel:0" for n in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for key, value in zip(names, layer.get_weights()):
                group[key] = value


def test_files_that_keras_2_wrote(recorded_by_keras_2):
    path, x, lengths, reconstructions = recorded_by_keras_2
    trio = CapsNet((12, 12, 1), 3, **SMALL)
    load_weights(trio[0], path)
    result = trio[1].predict(x, verbose=0)
    np.testing.assert_allclose(result[0], lengths, atol=1e-4)
    np.testing.assert_allclose(result[1], reconstructions, atol=1e-4)


@pytest.fixture(params=["weights", "model"])
def recorded_by_keras_2(request, tmp_path):
    """Written by the layers of CapsNet-Keras under Keras 2 (tf-keras), and packed."""
    here = os.path.join(os.path.dirname(__file__), "keras2")
    path = str(tmp_path / "keras2.h5")
    with (
        gzip.open(os.path.join(here, f"{request.param}.h5.gz")) as packed,
        open(path, "wb") as file,
    ):
        file.write(packed.read())
    with np.load(os.path.join(here, "predictions.npz")) as file:
        predictions = file["x"], file["lengths"], file["reconstructions"]
    return path, *predictions


def test_keras_itself_reads_our_file(tmp_path):
    model = changed(small_capsnet()[0])
    save_weights(model, str(tmp_path / "a.h5"))
    other = small_capsnet()[0]
    other.load_weights(tmp_path / "a.h5")
    assert_same_weights(other, model)
    with h5py.File(tmp_path / "a.h5") as file:  # what Keras 2 tells the layout by
        said = {
            name: np.asarray(value, str).tolist() for name, value in file.attrs.items()
        }
    assert (said["keras_version"], said["backend"]) == ("2.15.0", "tensorflow")
    weighted = [layer.name for layer in model.layers if layer.weights]
    assert said["layer_names"] == weighted


def test_weights_of_another_shape_name_the_layer_and_both_shapes(tmp_path):
    path = str(tmp_path / "a.h5")
    save_weights(small_capsnet()[0], path)
    model = changed(small_capsnet(dim_capsule=7)[0])
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"'digitcaps'.*\(3, 8, 6, 4\).*\(3, 8, 7, 4\)"
    ):
        load_weights(model, path)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras"])
@pytest.mark.parametrize("harm", ["empty", "truncated", "foreign"])
def test_damaged_and_foreign_files_are_refused(tmp_path, name, harm):
    path = str(tmp_path / name)
    model = small_capsnet()[0]
    if harm == "foreign":
        inputs = keras.Input((4,))
        other = keras.Model(inputs, keras.layers.Dense(3, name="other")(inputs))
        other.save(path) if name == "a.keras" else None
        other.save_weights(path) if name == "a.weights.h5" else None
        save_weights(other, path) if name == "a.h5" else None
    else:
        model.save(path) if name == "a.keras" else save_weights(model, path)
        with open(path, "r+b") as file:
            file.truncate(0 if harm == "empty" else os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=name) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nowhere.h5"):
        load_weights(small_capsnet()[0], str(tmp_path / "nowhere.h5"))


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = str(tmp_path / "a.h5")
    model = small_capsnet()[0]
    save_weights(model, path)
    with open(path, "rb") as file:
        before = file.read()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(h5py.Group, "__setitem__", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(model, path)
    with open(path, "rb") as file:
        assert file.read() == before
    assert os.listdir(tmp_path) == ["a.h5"]


def test_lengths_are_probabilities():
    (x, _), _ = small_data(8)
    lengths = ops.convert_to_numpy(small_capsnet()[1](x)[0])
    assert ((lengths >= 0) & (lengths < 1)).all()


def test_larger_images_are_predicted_in_smaller_batches():
    small, large = (CapsNet((side, side, 1), 3, 1)[1] for side in (28, 44))
    assert capsulenet.images_at_once(small) == 500
    assert capsulenet.images_at_once(large) == 500 * 36 // 14**2
    assert capsulenet.images_at_once(small_capsnet()[1]) == 500


def test_describe_names_the_forms():
    line = capsulenet.describe(small_capsnet(conv="patches")[0])
    assert "conv1 patches, primarycap_conv2d patches" in line


# Prediction --------------------------------------------------------------------------


@pytest.mark.parametrize("about", [True, False], ids=["with sizes", "without"])
def test_a_file_of_weights_brings_its_own_network(trained, tmp_path, about):
    path = os.path.join(trained.save_dir, "trained_model.h5")
    trio = trained.trio
    if not about:  # as CapsNet-Keras writes it; the routings are then three
        trio = small_capsnet(routings=3)
        path = str(tmp_path / "plain.h5")
        save_weights(trio[0], path)
    (_, model, _), found = capsulenet.load_model(path)
    images = trained.data[1][0]
    classes, lengths, reconstructions = capsulenet.predict(model, images)
    expected, pictures = trio[1].predict(images, verbose=0)
    np.testing.assert_allclose(lengths, expected, atol=1e-6)
    np.testing.assert_allclose(reconstructions, pictures, atol=1e-6)
    np.testing.assert_array_equal(classes, expected.argmax(1))
    names = NAMES if about else ["0", "1", "2"]
    assert found == {"class_names": names, "like_mnist": False}


@pytest.mark.parametrize("ending", ["h5", "weights.h5"])
@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "no decoder"])
def test_images_that_are_no_squares_need_a_word_where_the_file_has_none(
    tmp_path, ending, decoder
):
    trio = capsulenet.CapsNet((11, 14, 2), 3, **SMALL, decoder=decoder)
    path = str(tmp_path / f"a.{ending}")
    save = save_weights if ending == "h5" else keras.Model.save_weights
    save(trio[0], path)
    with pytest.raises(ValueError) as refused:
        capsulenet.load_model(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ") and "not a CapsNet" not in said
    assert "input_shape=(HEIGHT, WIDTH)" in said and "--image_size" in said
    assert ("11 x 14 or 14 x 11" in said) == decoder
    for shape in ((11, 14, 2), [11, 14]):
        (loaded, model, _), about = capsulenet.load_model(path, input_shape=shape)
        assert model.input_shape == (None, 11, 14, 2) and not about["like_mnist"]
        assert_same_weights(loaded, trio[0])
    for shape in ((11, 22), (11, 14, 3)):
        with pytest.raises(ValueError, match="not a CapsNet's weights"):
            capsulenet.load_model(path, input_shape=shape)


def test_another_size_than_the_file_tells_is_refused(tmp_path):
    trio = capsulenet.CapsNet((11, 14, 1), 3, **SMALL)
    path = str(tmp_path / "a.h5")
    save_weights(trio[0], path, {"architecture": capsulenet.architecture(trio[0])})
    for shape in (None, (11, 14)):
        (_, model, _), _ = capsulenet.load_model(path, input_shape=shape)
        assert model.input_shape == (None, 11, 14, 1)
    with pytest.raises(
        ValueError, match=r"its images are \(11, 14, 1\), not \(14, 11\)"
    ):
        capsulenet.load_model(path, input_shape=(14, 11))


@pytest.mark.parametrize(
    "conv, routing_gradient", [("auto", False), ("direct", True), ("spectral", False)]
)
def test_what_a_network_was_asked_for_travels_with_its_weights(
    tmp_path, conv, routing_gradient
):
    asked = {"conv": conv, "routing_gradient": routing_gradient}
    trio = small_capsnet(**asked)
    built = capsulenet.architecture(trio[0])
    assert asked.items() <= json.loads(json.dumps(built)).items()
    path = str(tmp_path / "a.h5")
    save_weights(trio[0], path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    assert capsulenet.architecture(loaded) == built
    assert [loaded.get_layer(n).form for n in ("conv1", "primarycap_conv2d")] == [
        trio[0].get_layer(n).form for n in ("conv1", "primarycap_conv2d")
    ]
    for name in asked:  # as in files that are older
        del built[name]
    save_weights(trio[0], path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    older = {**built, "conv": "auto", "routing_gradient": True}
    assert capsulenet.architecture(loaded) == older


def test_a_form_that_this_machine_does_not_compute_gives_way(tmp_path):
    sizes = {"filters": 1, "kernel_size": 41, "strides": 1, "n_channels": 1}
    sizes |= {"dim_primary": 2, "dim_capsule": 2, "decoder": False}
    model = capsulenet.CapsNet((81, 81, 1), 2, 1, **sizes)[0]
    path = str(tmp_path / "a.h5")
    built = {**capsulenet.architecture(model), "conv": "spectral"}
    save_weights(model, path, {"architecture": built})
    (loaded, _, _), _ = capsulenet.load_model(path)
    assert loaded.get_layer("conv1").form in ("direct", "patches")
    assert_same_weights(loaded, model)


def test_images_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"\(12, 12, 3\): the model takes \(12, 12, 1\)"
    ):
        capsulenet.predict(small_capsnet()[1], np.zeros((2, 12, 12, 3)))


def test_a_network_without_decoder_gives_lengths_alone(tmp_path):
    model, evaluation, none = small_capsnet(decoder=False)
    assert none is None and model.output_shape == (None, 3)
    data = small_data()
    train(model, data, options(tmp_path))
    test(evaluation, data[1], options(tmp_path))
    assert not (tmp_path / "real_and_recon.png").exists()
    (loaded, _, _), about = capsulenet.load_model(str(tmp_path / "trained_model.h5"))
    assert_same_weights(loaded, model)
    assert about["class_names"] == ["0", "1", "2"]  # none were given


def test_a_step_that_exceeds_the_machine_is_warned_of(monkeypatch):
    model = small_capsnet()[0]
    model.compile(loss="mse")
    sizes = [capsulenet.step_memory(model, batch) for batch in (10, 1000, 2000)]
    assert sizes[0] < sizes[1] and sizes[2] > 1.5 * sizes[1]
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**9)
    assert "Warning" not in capsulenet.describe(model, 10)
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    text = capsulenet.describe(model, 10)
    assert "--batch_size" in text and "parameters" in text


def test_weights_that_exceed_the_machine_are_refused(squares, monkeypatch, capsys):
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    with pytest.raises(SystemExit):
        capsulenet.main(["--dataset", squares])
    assert "images of 17 x 17 pixels need 0 GB" in capsys.readouterr().err


def test_the_routings_of_a_foreign_file_are_those_that_are_asked_for(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    capsulenet.CapsNet((17, 17, 1), 2, 1, filters=8)[0].save_weights(path)
    (model, _, _), _ = capsulenet.load_model(path, routings=1)
    assert model.get_layer("digitcaps").routings == 1


def test_prediction_needs_images():
    with pytest.raises(ValueError, match="no images"):
        capsulenet.predict(small_capsnet()[1], np.zeros((0, 12, 12, 1)))
