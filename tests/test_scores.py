import numpy as np
import pytest

from capsnet import scores


def test_accuracies_of_known_predictions():
    true, predicted = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 2, 2, 0])
    counts = scores.confusion(true, predicted, 3)
    np.testing.assert_array_equal(counts, [[3, 0, 1], [0, 0, 0], [1, 0, 1]])
    of_classes, balanced = scores.accuracies(counts)
    np.testing.assert_array_equal(of_classes, [0.75, np.nan, 0.5])
    assert balanced == pytest.approx(0.625)  # of 4 of 6 images


def test_a_class_that_is_shown_and_never_predicted_is_one_line(capsys):
    scores.say(np.array([[3, 0, 0], [2, 0, 0], [0, 0, 0]]), ["ape", "bee\x1b", "cow"])
    assert capsys.readouterr().out.splitlines() == [
        "Balanced acc: 0.5000, the mean over the classes",
        "Accuracy of each class: ape 100.0%, bee\\x1b 0.0%",
        (
            "Warning: no image was taken for bee\\x1b, though test images show it: more "
            "--epochs may help, or --balance yes of capsulenet.py"
        ),
    ]
    scores.say(np.array([[3, 1], [2, 1]]), ["ape", "bee"])
    assert "Warning" not in capsys.readouterr().out


def test_of_many_classes_the_worst_ten_are_listed(capsys):
    counts = np.diag(np.arange(21)) + np.eye(21, k=1, dtype=int)
    counts[20, 0] = 1
    scores.say(counts, [f"c{n}" for n in range(21)])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("Accuracy of the worst 10 of 21 classes: c0 0.0%, c1 50.0%,")
    assert line.endswith(" c9 90.0%")
