"""What the README shows and states."""

import os
import re

import numpy as np
from helpers import ROOT, run_python

import capsulenet
import reproduce

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()


def test_the_example_runs():
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert sum(bool(line) for line in example.splitlines()) <= 10
    run_python(example, ROOT)


def test_every_file_that_it_shows_is_there():
    links = re.findall(r"\]\(([^)]*)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) >= 3
    for link in local:
        assert os.path.exists(os.path.join(ROOT, link)), link


def test_every_flag_and_its_default_are_documented():
    table = dict(
        re.findall(r"^\| (?:`-\w`, )?`(--\w+)` \| ([^|]*) \|", README, re.MULTILINE)
    )
    words = {"None": ("none", "drawn"), "False": ("off",), "True": ("off",)}
    actions = {
        action.option_strings[-1]: action.default
        for action in capsulenet.build_parser()._actions
        if action.dest != "help"
    }
    assert table.keys() == actions.keys()
    for flag, default in actions.items():
        assert table[flag].strip("`") in words.get(str(default), (str(default),)), flag


def test_the_shipped_weights_have_the_error_that_is_stated():
    error, wrong = re.search(
        r"\*\*(\d\.\d\d)%\*\* test error, (\d+) images", README
    ).groups()
    assert float(error) == int(wrong) / 100
    path = os.path.join(ROOT, "result", "trained_model.h5")
    (_, model, _), _ = capsulenet.load_model(path)
    _, (x, y) = capsulenet.load_mnist()
    classes, _, _ = capsulenet.predict(model, x)
    # One image may lie so near to the border that rounding decides.
    assert abs(np.sum(classes != y.argmax(1)) - int(wrong)) <= 1


def test_its_tables_are_those_of_the_finished_runs():
    rows = reproduce.finished_runs(os.path.join(ROOT, "result", "mnist.csv"))
    assert rows and reproduce.table(rows).strip() in README
