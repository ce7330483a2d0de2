import gc
import re
import weakref

import keras
import numpy as np
import pytest
from helpers import options, small_capsnet, small_data, small_train

import capsulenet
from capsnet import command_line, machine
from capsnet.data import TrainingBatches, ValidationBatches
from capsnet.networks import PhotoCapsNet
from capsnet.training import resources


def test_describe_ends_with_the_backend_where_a_model_has_no_forms():
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    model.compile(jit_compile=False)
    assert resources.describe(model, 10) == f"Backend {keras.backend.backend()}"


def test_describe_names_the_forms():
    line, _ = resources.describe(small_capsnet(conv="patches")[0], 10).splitlines()
    assert "conv1 patches, primarycap_conv2d patches" in line


def test_a_step_that_exceeds_the_machine_is_refused_with_what_fits(monkeypatch):
    model = small_capsnet()[0]
    sizes = [resources.step_memory(model, batch) for batch in (10, 1000, 2000)]
    assert sizes[0] < sizes[1] and sizes[2] > 1.5 * sizes[1]
    monkeypatch.setattr(machine, "machine_memory", lambda: sizes[1])
    resources.check_step(model, 1000)
    with pytest.raises(ValueError, match="--batch_size 2000: .*--model photo") as error:
        resources.check_step(model, 2000)
    fits = int(re.search(r"--batch_size (\d+) fits", str(error.value))[1])
    assert 900 < fits <= 1000  # blocks of routing make it uneven
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    with pytest.raises(ValueError, match="not even one image fits"):
        resources.check_step(model, 2000)


def test_a_picture_s_stem_counts_towards_the_memory():
    sizes = [PhotoCapsNet((side, side, 3), 3)[0] for side in (56, 64)]
    small, large = (resources.step_memory(model, 100) for model in sizes)
    assert 1.1 * small < large < 2 * small
    assert 0.5e9 < large < 4e9


@pytest.mark.parametrize(
    "error, code, text",
    [
        (FloatingPointError("the loss is nan\nin epoch 3"), 1, "the loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left", "a.h5"), 2, "a.h5: No space left"),
        (ValueError("--lr -1"), 2, "--lr -1"),
    ],
)
def test_errors_that_are_no_defects_are_a_line_and_a_code(error, code, text, capsys):
    with pytest.raises(SystemExit) as end, command_line.one_line_errors():
        raise error
    assert end.value.code == code
    assert capsys.readouterr().err.endswith(f": error: {text}\n")


def test_memory_that_runs_out_all_the_same_is_one_line(capsys):
    class ResourceExhaustedError(Exception):
        pass

    for error in (MemoryError("x"), ResourceExhaustedError("OOM when\nallocating")):
        with pytest.raises(SystemExit) as end, command_line.one_line_errors():
            raise error
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "not enough memory" in said
        assert "--batch_size" in said
    with pytest.raises(RuntimeError), command_line.one_line_errors():
        raise RuntimeError("something else")


@pytest.mark.parametrize("model", ["capsnet", "shared"])
def test_weights_that_exceed_the_machine_are_refused(
    model, squares, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**5)
    with pytest.raises(SystemExit):
        capsulenet.main(["--dataset", squares, "--model", model])
    assert "images of 17 x 17 pixels need 0 GB" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 3])
def test_fit_is_fed_each_epoch_s_batches_in_their_order(workers):
    (x, y), validation = small_data()
    batches = TrainingBatches(x, y, 8, 0.1, workers=workers)
    for source in (batches, ValidationBatches(*validation, 8)):
        fed = resources.feed(source)
        assert len(fed) == len(source)
        for epoch in (0, 1):  # what is drawn anew comes out of the same pipeline
            batches.draw(epoch)
            for found, index in zip(fed, range(len(source)), strict=True):
                keras.tree.map_structure(
                    np.testing.assert_array_equal, found, source[index]
                )


def test_batches_are_let_go_of():
    x, y = small_data()[0]
    batches = TrainingBatches(x, y, 8)
    for _ in resources.feed(batches):
        pass
    left = weakref.ref(batches)
    del batches, _
    gc.collect()
    assert left() is None


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="looks at TensorFlow's pipelines"
)
def test_no_pipeline_of_a_training_tunes_itself(tmp_path, monkeypatch):
    import tensorflow as tf

    begin, tuned = tf.data.Dataset.__iter__, []

    def spied(dataset):
        tuned.append(dataset.options().autotune.enabled)
        return begin(dataset)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", spied)
    small_train(tmp_path, epochs=2)
    assert len(tuned) >= 4  # of two epochs and their validations
    assert set(tuned) == {False}  # None: as TensorFlow likes


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the others trace otherwise"
)
@pytest.mark.parametrize("decoder", [True, False])
def test_a_training_step_is_traced_once(tmp_path, monkeypatch, decoder):
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(
        keras.Model, "train_step", lambda *args: traced.append(args) or step(*args)
    )
    model, data = small_capsnet(decoder=decoder)[0], small_data(30)
    capsulenet.train(model, data, options(tmp_path, epochs=2, ema=0.9))
    assert len(traced) == 1
