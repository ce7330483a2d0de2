import keras
import numpy as np
import pytest
from keras import ops

from capsnet.several import ExactSet, present, right

LENGTHS = np.array(
    [[0.9, 0.1, 0.8], [0.4, 0.3, 0.2], [0.2, 0.6, 0.7], [0.1, 0.2, 0.3]], "float32"
)


@pytest.mark.parametrize(
    "shown, classes",
    [
        ("one", [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]),
        ("two", [[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 1, 1]]),
        ("several", [[1, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]]),
    ],
)
def test_the_longest_are_there_or_those_that_are_long(shown, classes):
    told = ops.convert_to_numpy(present(LENGTHS, shown))
    np.testing.assert_array_equal(told, np.array(classes) > 0)
    tied = ops.convert_to_numpy(present(np.float32([[0.3, 0.9, 0.3]]), shown))
    assert tied.tolist() == [[shown == "two", True, False]]  # the first of equal ones


def test_one_wrong_class_makes_a_picture_wrong():
    y = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], "float32")
    assert ops.convert_to_numpy(right(y, LENGTHS, "two")).tolist() == [1, 0, 1, 1]
    assert ops.convert_to_numpy(right(y, LENGTHS, "several")).tolist() == [1, 0, 1, 0]


def test_the_metric_is_a_mean_by_the_weights_and_comes_back_from_its_configuration():
    y = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], "float32")
    metric = ExactSet("two")
    metric = keras.metrics.deserialize(keras.metrics.serialize(metric))
    metric.update_state(y, LENGTHS, sample_weight=np.array([1, 3, 1, 0]))
    assert float(metric.result()) == pytest.approx(2 / 5)
    assert metric.name == "accuracy"
